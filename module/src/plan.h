/* SPDX-License-Identifier: Apache-2.0 */
/* Private: schedule records and what the verifier and the executor both need to know about them. */
#ifndef WEFT_PLAN_H
#define WEFT_PLAN_H

#include "weft/weft_config.h"
#include "weft_internal.h"

/*
 * Whether an operator is a CONV2D, ... Never, where the build leaves the operator out: plans with it are refused, so
 * that what is there for its sake only drops out of the code.
 */
#define WEFT_IS(op, name) (WEFT_WITH_##name && (op)->opcode == WEFT_OP_##name)

/* Segments of one stage; bounds the verifier's counters, which live on its stack. */
#define WEFT_MAX_SEGMENTS 64u
/* Inputs of one CONCAT. */
#define WEFT_MAX_INPUTS 64u

typedef struct WEFT_RECORD {
    uint16_t first_segment, segment_count;
    uint32_t state, scratch, scratch_len;
} weft_stage_t;

typedef struct WEFT_RECORD {
    uint16_t first_entry, entry_count;
    uint16_t row_steps, col_steps;
} weft_segment_t;

typedef struct WEFT_RECORD {
    uint16_t op; /* or WEFT_INPUT_BIT | number */
    uint8_t policy, flags;
    uint16_t row_adv;
    int16_t row_off;
    uint16_t row_ext, keep, col_adv;
    int16_t col_off;
    uint16_t col_ext, slice;
    uint32_t offset, aux;
} weft_entry_t;

/* At step i: [adv*i + lo, adv*i + hi), not clamped. */
typedef struct {
    int32_t adv, lo, hi;
} weft_span_t;

/* A clamped range, empty if lo >= hi. */
typedef struct {
    int32_t lo, hi;
} weft_range_t;

static inline const weft_stage_t *weft_stage_at(const weft_plan_t *plan, uint32_t stage)
{
    return (const weft_stage_t *)(const void *)plan->stages + stage;
}
static inline const weft_segment_t *weft_segment_at(const weft_plan_t *plan, uint32_t segment)
{
    return (const weft_segment_t *)(const void *)plan->segments + segment;
}
static inline const weft_entry_t *weft_entry_at(const weft_plan_t *plan, uint32_t entry)
{
    return (const weft_entry_t *)(const void *)plan->entries + entry;
}
/* Copies of them. */
static inline void weft_stage(const weft_plan_t *plan, uint32_t stage, weft_stage_t *out)
{
    *out = *weft_stage_at(plan, stage);
}
static inline void weft_segment(const weft_plan_t *plan, uint32_t segment, weft_segment_t *out)
{
    *out = *weft_segment_at(plan, segment);
}
static inline void weft_entry(const weft_plan_t *plan, uint32_t entry, weft_entry_t *out)
{
    *out = *weft_entry_at(plan, entry);
}

/* First entry of a stage. */
static inline uint32_t weft_first_entry(const weft_plan_t *plan, const weft_stage_t *stage)
{
    return weft_segment_at(plan, stage->first_segment)->first_entry;
}

static inline uint32_t weft_entry_of(const weft_plan_t *plan, uint32_t tensor)
{
    return weft_rd16(plan->entry_of + 2u * tensor);
}

/* Tensor of a network input or output record (inputs first, then outputs). */
static inline uint16_t weft_io_tensor(const weft_plan_t *plan, uint32_t io)
{
    return weft_rd16(plan->ios + io * WEFT_IO_SIZE + WEFT_IO_TENSOR);
}

static inline bool weft_is_input(const weft_entry_t *entry)
{
    return (entry->op & WEFT_INPUT_BIT) != 0;
}

/* The tensor that an entry produces. */
uint16_t weft_entry_tensor(const weft_plan_t *plan, const weft_entry_t *entry);

/* Number of activation or constant inputs of an operator, and the k-th one. */
uint32_t weft_op_inputs(const weft_op_t *op);
uint16_t weft_op_input(const weft_plan_t *plan, const weft_op_t *op, uint32_t k);

/* Bytes of a constant tensor; NULL if there is no such record. */
const uint8_t *weft_const(const weft_plan_t *plan, uint32_t tensor);

/* Walks what the operators of a run of entries read. */
typedef struct {
    const weft_plan_t *plan;
    const weft_entry_t *entry, *end; /* the one that reads; where to stop */
    const weft_op_t *op;
    const weft_tensor_t *in;
    const weft_entry_t *producer; /* the one that makes it, NULL if constant */
    uint32_t k;                   /* inputs of the operator so far */
} weft_reads_t;

static inline weft_reads_t weft_reads(const weft_plan_t *plan, const weft_entry_t *first, const weft_entry_t *end)
{
    weft_reads_t r = {plan, first, end, NULL, NULL, NULL, 0};
    return r;
}

/* The next read; false at the end. */
bool weft_next_read(weft_reads_t *reads);

/*
 * Rows that a read takes at a row step: those of `reads->in`, none if lo >= hi. Whether the step makes any; if not, lo
 * is the first row that a later one takes.
 */
bool weft_read_rows(const weft_reads_t *reads, int32_t step, weft_range_t *rows);

/* The operator's region is over its input (REDUCE, FULLY_CONNECTED). */
static inline bool weft_consumes(const weft_op_t *op)
{
    return WEFT_IS(op, REDUCE) || WEFT_IS(op, FULLY_CONNECTED);
}

/* ADD, SUB, MUL. */
static inline bool weft_is_binary(const weft_op_t *op)
{
    return WEFT_IS(op, ADD) || WEFT_IS(op, SUB) || WEFT_IS(op, MUL);
}

/* The operator needs whole inputs: its receptive field is not affine. */
bool weft_needs_whole(const weft_op_t *op);

/* Rows of the output do not follow rows of the input: the output exists only when all steps are done. */
static inline bool weft_ends_rows(const weft_op_t *op)
{
    return WEFT_IS(op, FULLY_CONNECTED) || (WEFT_IS(op, REDUCE) && (op->flags & WEFT_OP_REDUCE_H) != 0);
}

/* What a step adds to the window: rows, columns. */
static inline weft_span_t weft_new_rows(const weft_entry_t *e)
{
    weft_span_t s = {e->row_adv, e->row_off + (e->policy == WEFT_POLICY_TILE ? e->keep : 0), e->row_off + e->row_ext};
    return s;
}
static inline weft_span_t weft_new_cols(const weft_entry_t *e)
{
    weft_span_t s = {e->col_adv, e->col_off + e->col_ext - e->col_adv, e->col_off + e->col_ext};
    return s;
}

static inline weft_range_t weft_at(const weft_span_t *s, int32_t step, int32_t size)
{
    weft_range_t r = {weft_clamp(s->adv * step + s->lo, 0, size), weft_clamp(s->adv * step + s->hi, 0, size)};
    return r;
}

/*
 * Fields that come once per axis, rows (0) and columns (1): size of a tensor, steps of a segment, region of an entry,
 * kernel, stride, dilation and padding of an operator.
 */
typedef struct WEFT_RECORD {
    uint16_t adv;
    int16_t off;
    uint16_t ext, keep;
} weft_region_t;

static inline int32_t weft_size(const weft_tensor_t *t, uint32_t axis)
{
    return weft_rd16((const uint8_t *)t + WEFT_TENSOR_H + 2u * axis);
}
static inline int32_t weft_steps(const weft_segment_t *s, uint32_t axis)
{
    return weft_rd16((const uint8_t *)s + WEFT_SEGMENT_ROW_STEPS + 2u * axis);
}
static inline const weft_region_t *weft_region(const weft_entry_t *e, uint32_t axis)
{
    return (const weft_region_t *)(const void *)((const uint8_t *)e + WEFT_ENTRY_ROW_ADV) + axis;
}
static inline int32_t weft_kernel(const weft_op_t *op, uint32_t axis)
{
    return ((const uint8_t *)op)[WEFT_OP_KERNEL_H + axis];
}
static inline int32_t weft_stride(const weft_op_t *op, uint32_t axis)
{
    return ((const uint8_t *)op)[WEFT_OP_STRIDE_H + axis];
}
static inline int32_t weft_dilation(const weft_op_t *op, uint32_t axis)
{
    return ((const uint8_t *)op)[WEFT_OP_DILATION_H + axis];
}
static inline int32_t weft_pad_before(const weft_op_t *op, uint32_t axis)
{
    return ((const uint8_t *)op)[WEFT_OP_PAD_TOP + axis];
}

/* From output positions [lo, hi), not empty, on an axis to their receptive field. Not clamped. */
void weft_field(const weft_op_t *op, uint32_t axis, int32_t *lo, int32_t *hi);

/* Whether the accumulators of a REDUCE or FULLY_CONNECTED are needed, and their bytes (0 if not). */
uint32_t weft_acc_bytes(const weft_plan_t *plan, const weft_op_t *op, const weft_entry_t *e,
                        const weft_segment_t *segment);

/* Per segment of a stage: row steps done, and the segment that asked for the next one. */
typedef struct WEFT_RECORD {
    uint16_t done, asked_by;
} weft_state_t;

/* The pull order of a stage; `state` is zero at the start, `next` the number of its segments. */
typedef struct {
    const weft_plan_t *plan;
    const weft_stage_t *stage;
    weft_state_t *state;
    uint32_t segment;          /* that is to do a row step, number within the stage */
    uint32_t next;             /* what asked for it */
    const weft_entry_t *entry; /* of an error */
} weft_pull_t;

/* Finds the segment that does the next row step: 1, 0 if the stage is complete, or an error (RING, NEED). */
int weft_pull(weft_pull_t *pull);

#endif
