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
    err->opcode = 0;
    err->offset = offset;
    return code;
}

/* Where an error that follows lies: in record number `record`, at `at` of the plan's bytes. */
void weft_locate(const weft_plan_t *plan, uint32_t record, const void *at, weft_error_t *err);
void weft_locate_entry(const weft_plan_t *plan, const weft_entry_t *entry, weft_error_t *err);

/* Tensors have the same height, width and channels. */
bool weft_same_shape(const weft_tensor_t *a, const weft_tensor_t *b);

/*
 * Every field of HEADER, of which all must be readable, and the caller's limits; `len`: bytes that the plan may have.
 */
int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err);

/*
 * The parts of weft_open(). Each returns WEFT_OK or an error, of which *err then has the place but not the code.
 *
 * Every record by itself: tensors, operators, parameter blocks (shapes, ranges, overflow), the structure of the
 * schedule, and that every tensor has one producer. After this, every index is in range.
 */
int weft_verify_records(const weft_plan_t *plan, weft_error_t *err);

/*
 * Records of one kind, in the order of their sections: where the plan's members say where they are and how many (in
 * bytes), bytes of one, and the check of one, number i, or NULL.
 */
typedef struct {
    uint8_t base, count, size;
    int (*check)(const weft_plan_t *plan, const void *record, uint32_t i);
} weft_kind_t;

#define WEFT_GRAPH_KINDS 5
#define WEFT_KINDS 9
extern const weft_kind_t weft_kinds[WEFT_KINDS];

int weft_check_tensor(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_const(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_io(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_op(const weft_plan_t *plan, const void *record, uint32_t i);

/* Regions, windows, reads (rules 1 to 5 of docs/design.md), and the declared figures (rule 7). */
int weft_verify_regions(const weft_plan_t *plan, weft_error_t *err);

/* Windows that are live together do not overlap and lie inside the arena (rule 6). */
int weft_verify_arena(const weft_plan_t *plan, weft_error_t *err);

/* Pull order of every stage: no ring is overwritten too early, every stage ends (rule 4). */
int weft_verify_replay(const weft_plan_t *plan, weft_error_t *err);

#endif
