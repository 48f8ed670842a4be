/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 and ECDSA P-256 of the host board, by Mbed TLS through PSA: the interface that Zephyr and RIOT have too. */
#ifndef WEFT_HOST_CRYPTO_H
#define WEFT_HOST_CRYPTO_H

#include <stdint.h>

#define HOST_KEY_BYTES 65u

/* Returns 0, or -1. */
int host_crypto_init(void);
/* A public key from a PEM file, as `weft getpub --lang pem` prints it. Returns 0, or -1 if that is no key of P-256. */
int host_crypto_load_key(const char *path, uint8_t key[HOST_KEY_BYTES]);

/* weft_update_hal_t; ctx is not used: one hash is computed at a time. */
int host_sha256_init(void *ctx);
int host_sha256_update(void *ctx, const void *data, uint32_t len);
int host_sha256_finish(void *ctx, uint8_t hash[32]);
int host_verify_p256(void *ctx, const uint8_t *key, const uint8_t *hash, const uint8_t *signature);

#endif
