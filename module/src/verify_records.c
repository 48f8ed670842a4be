/* SPDX-License-Identifier: Apache-2.0 */
/* Every record by itself, and who produces what. After this, no index in the plan is out of range. */
#include "verify.h"

/* Stages own consecutive segments, and nothing is left over. */
static int check_stage(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const weft_stage_t *s = record;
    const uint32_t first = i == 0 ? 0 : (uint32_t)s[-1].first_segment + s[-1].segment_count;
    const uint32_t end = first + s->segment_count;
    return s->first_segment == first && s->segment_count - 1u < WEFT_MAX_SEGMENTS &&
                   (i + 1u == plan->stage_count ? end == plan->segment_count : end <= plan->segment_count)
               ? WEFT_OK
               : WEFT_ERR_INDEX;
}

/* Segments own consecutive entries, behind those that are placed, and nothing is left over. */
static int check_segment(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const weft_segment_t *s = record;
    const uint32_t first = i == 0 ? plan->placed_count : (uint32_t)s[-1].first_entry + s[-1].entry_count;
    const uint32_t end = first + s->entry_count;
    return s->first_entry == first && s->entry_count != 0 && s->row_steps != 0 && s->col_steps != 0 &&
                   (i + 1u == plan->segment_count ? end == plan->entry_count : end <= plan->entry_count)
               ? WEFT_OK
               : WEFT_ERR_INDEX;
}

/*
 * The tensor that an entry produces is mapped to it. What is placed is a network input, resident or external; flags of
 * others are looked at later.
 */
static int check_entry(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const weft_entry_t *e = record;
    if ((e->op & (WEFT_INPUT_BIT - 1u)) >= (weft_is_input(e) ? plan->input_count : plan->op_count)) {
        return WEFT_ERR_INDEX;
    }
    if (weft_entry_of(plan, weft_entry_tensor(plan, e)) != i) {
        return WEFT_ERR_GRAPH;
    }
    if (e->flags > WEFT_ENTRY_OVERLAP) {
        return WEFT_ERR_UNKNOWN;
    }
    return i >= plan->placed_count || (weft_is_input(e) && e->keep == 0 && e->flags == 0 && e->slice == 0 &&
                                       (e->policy == WEFT_POLICY_FULL || e->policy == WEFT_POLICY_EXTERNAL))
               ? WEFT_OK
               : WEFT_ERR_POLICY;
}

/* Tensors are mapped to the entry that produces them, constants to none. */
static int check_produced(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const uint32_t n = weft_rd16(record);
    if ((weft_tensor_at(plan, i)->flags & WEFT_TENSOR_CONST) != 0) {
        return n == WEFT_NONE ? WEFT_OK : WEFT_ERR_GRAPH;
    }
    return n < plan->entry_count && weft_entry_tensor(plan, weft_entry_at(plan, n)) == i ? WEFT_OK : WEFT_ERR_GRAPH;
}

#define KIND(base, count, size, check)                                                                                 \
    {                                                                                                                  \
        offsetof(weft_plan_t, base), offsetof(weft_plan_t, count), size, check                                         \
    }

const weft_kind_t weft_kinds[WEFT_KINDS] = {
    KIND(graph, tensor_count, WEFT_TENSOR_SIZE, weft_check_tensor),
    KIND(ops, op_count, WEFT_OP_SIZE, weft_check_op),
    KIND(consts, const_count, WEFT_CONST_SIZE, weft_check_const),
    KIND(ios, io_count, WEFT_IO_SIZE, weft_check_io),
    KIND(lists, list_count, 2, NULL),
    KIND(stages, stage_count, WEFT_STAGE_SIZE, check_stage),
    KIND(segments, segment_count, WEFT_SEGMENT_SIZE, check_segment),
    KIND(entries, entry_count, WEFT_ENTRY_SIZE, check_entry),
    KIND(entry_of, tensor_count, 2, check_produced),
};

int weft_verify_records(const weft_plan_t *plan, weft_error_t *err)
{
    for (const weft_kind_t *k = weft_kinds; k != weft_kinds + WEFT_KINDS; k++) {
        const uint8_t *record = *(const uint8_t *const *)(const void *)((const uint8_t *)plan + k->base);
        const uint32_t count = weft_rd16((const uint8_t *)plan + k->count);
        for (uint32_t i = 0; k->check != NULL && i < count; i++, record += k->size) {
            weft_locate(plan, i, record, err);
            int r = k->check(plan, record, i);
            if (r != WEFT_OK) {
                return r;
            }
        }
    }
    /* Each entry is an operator or an input, another one than the others (no two map to one tensor): so all are there.
     * Tensors that are not theirs are constants, of which no two records are about the same one. */
    weft_locate(plan, 0, plan->consts, err);
    if (plan->entry_count != plan->op_count + plan->input_count ||
        plan->tensor_count != plan->entry_count + plan->const_count) {
        return WEFT_ERR_GRAPH;
    }
    uint32_t mask = 0; /* opcodes are below 32 */
    for (uint32_t i = 0; i < plan->op_count; i++) {
        mask |= 1u << weft_op_at(plan, i)->opcode;
    }
    weft_locate(plan, WEFT_NONE, plan->bytes + WEFT_HEADER_OP_MASK, err);
    return mask == weft_rd64(plan->bytes + WEFT_HEADER_OP_MASK) ? WEFT_OK : WEFT_ERR_DECLARED;
}
