/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4) for tests: small, and fast enough for a million simulated boots. */
#ifndef TEST_SHA256_H
#define TEST_SHA256_H

#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
} sha256_t;

void sha256_init(sha256_t *s);
void sha256_update(sha256_t *s, const void *data, uint32_t len);
void sha256_finish(sha256_t *s, uint8_t hash[32]);

#endif
