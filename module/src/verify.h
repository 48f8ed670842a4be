/* SPDX-License-Identifier: Apache-2.0 */
/* Private: the verifier's parts. Each returns WEFT_OK or an error that it has written to *err. */
#ifndef WEFT_VERIFY_H
#define WEFT_VERIFY_H

#include "plan.h"

/* Kept apart so that its locals are not on the stack while other parts of the verifier run. */
#if defined(__GNUC__)
#define WEFT_APART __attribute__((noinline))
#else
#define WEFT_APART
#endif

static inline int weft_fail(weft_error_t *err, int code, uint32_t record, uint32_t offset)
{
    err->code = code;
    err->record = (uint16_t)record;
    err->offset = offset;
    return code;
}

/* Offset of a record's first byte in the plan, for errors. */
static inline uint32_t weft_where(const weft_plan_t *plan, const uint8_t *base, uint32_t record, uint32_t size)
{
    return (uint32_t)(base - plan->bytes) + record * size;
}

static inline uint64_t weft_mul_sat(uint64_t a, uint64_t b)
{
    return a != 0 && b > UINT64_MAX / a ? UINT64_MAX : a * b;
}
static inline uint64_t weft_add_sat(uint64_t a, uint64_t b)
{
    return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

/* Every field of HEADER, of which all must be readable, and the caller's limits; `len`: bytes that the plan may have.
 */
int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err);

/* Tensors, operators, parameter blocks: shapes, ranges, overflow. Recomputes the op mask. */
int weft_verify_graph(const weft_plan_t *plan, uint64_t *op_mask, weft_error_t *err);

/* Structure of the schedule, regions, windows, reads (rules 1 to 5 of docs/design.md). */
int weft_verify_regions(const weft_plan_t *plan, weft_error_t *err);

/* Windows that are live together do not overlap and lie inside the arena (rule 6). */
int weft_verify_arena(const weft_plan_t *plan, uint32_t arena_bytes, weft_error_t *err);

/* Pull order of every stage: no ring is overwritten too early, every stage ends (rule 4). */
int weft_verify_replay(const weft_plan_t *plan, weft_error_t *err);

/* Declared figures (rule 7). */
int weft_verify_figures(const weft_plan_t *plan, weft_error_t *err);

#endif
