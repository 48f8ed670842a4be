/* SPDX-License-Identifier: Apache-2.0 */
/* Private: the verifier's parts. */
#ifndef WEFT_VERIFY_H
#define WEFT_VERIFY_H

#include "plan.h"

/* Kept apart so that its locals are not on the stack while other parts of the verifier run. */
#if defined(__GNUC__)
#define WEFT_APART __attribute__((noinline))
#else
#define WEFT_APART
#endif

/* Tells the caller of an error of the plan's header. */
static inline int weft_fail(weft_error_t *err, int code, uint32_t record, uint32_t offset)
{
    err->code = code;
    err->record = (uint16_t)record;
    err->opcode = 0;
    err->offset = offset;
    return code;
}

/* What the parts of the verifier return for an error: its number without the sign, which takes less code. */
#define BAD(name) (-WEFT_ERR_##name)

/* Where an error that is found next lies. */
typedef struct {
    const void *at;  /* in the plan's bytes */
    uint32_t record; /* its number, WEFT_NONE if it has none; of what lies at an ENTRY record, weft_open() counts it */
} weft_place_t;

/*
 * Every field of HEADER, of which all must be readable, and the caller's limits; `len`: bytes that the plan may have.
 */
int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err);

/*
 * The parts of weft_open(). Each returns 0 or an error, BAD(...), of which *place then tells where it lies.
 *
 * Every record by itself: tensors, operators, parameter blocks (shapes, ranges, overflow), the structure of the
 * schedule, and that every tensor has one producer. After this, every index is in range.
 */
int weft_verify_records(const weft_plan_t *plan, weft_place_t *place);

/*
 * Records of one kind, in the order of their sections: where the plan's members say where they are and how many (in
 * bytes), bytes of one, and the check of one, number i, or NULL. Those that own records of the next kind begin with the
 * number of the first one and how many; they own consecutive ones, from the one that the member `owns` tells, and
 * nothing is left over.
 */
typedef struct {
    uint8_t base, count, size, owns;
    int (*check)(const weft_plan_t *plan, const void *record, uint32_t i);
} weft_kind_t;

#define WEFT_GRAPH_KINDS 5
#define WEFT_KINDS 9
extern const weft_kind_t weft_kinds[WEFT_KINDS];

int weft_check_tensor(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_const(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_io(const weft_plan_t *plan, const void *record, uint32_t i);
int weft_check_op(const weft_plan_t *plan, const void *record, uint32_t i);

/* The entry that makes a network input or output. */
const weft_entry_t *weft_io_entry(const weft_plan_t *plan, uint32_t io);

/* The read is of a whole tensor, or of an operand that is broadcast. */
bool weft_reads_whole(const weft_reads_t *reads);

/* Regions, windows, reads (rules 1 to 5 of docs/design.md), and the declared figures (rule 7). */
int weft_verify_regions(const weft_plan_t *plan, weft_place_t *place);

/* Windows that are live together do not overlap and lie inside the arena (rule 6). */
int weft_verify_arena(const weft_plan_t *plan, weft_place_t *place);

/* Pull order of every stage: no ring is overwritten too early, every stage ends (rule 4). */
int weft_verify_replay(const weft_plan_t *plan, weft_place_t *place);

#endif
