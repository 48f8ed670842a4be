/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of any bytes that are given to the engine as a plan. */
#ifndef WEFT_FUZZ_CHECK_H
#define WEFT_FUZZ_CHECK_H

#include "plan_bytes.h"

/* More than the catalogue has. */
#define ERROR_CODES 64

typedef struct {
    const char *name;
    const uint8_t *bytes; /* the original */
    uint32_t len;
    map_t map;
    weft_limits_t limits;
    weft_plan_info_t info;
} subject_t;

typedef struct {
    uint64_t mutations, accepted, executed, scheduled, overlapping, skipped;
    uint64_t errors[ERROR_CODES];
} tally_t;

extern tally_t tally;

/* Ends the program, with the plan under test in fuzz-failure.weft. */
void fail(const char *what);

/* A block of exactly `size` bytes: what lies before and behind it is a red zone. */
void *block(size_t size, size_t align);

/* The same bytes give the same number. */
uint64_t digest(const uint8_t *p, size_t n);

/*
 * Open `len` bytes (a heap block of exactly that size) and, when accepted, execute. Whether it was accepted. `mutated`:
 * under the subject's limits, and counted.
 */
bool attempt(const subject_t *subject, const uint8_t *bytes, uint32_t len, bool mutated);

#endif
