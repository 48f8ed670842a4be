/* SPDX-License-Identifier: Apache-2.0 */
/* Every record by itself, and who produces what. After this, no index in the plan is out of range. */
#include "verify.h"

static int check_stage(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)plan;
    (void)i;
    return ((const weft_stage_t *)record)->segment_count <= WEFT_MAX_SEGMENTS ? 0 : BAD(INDEX);
}

/*
 * The tensor that an entry produces is mapped to it. What is placed is a network input, resident or external; flags of
 * others are looked at later.
 */
static int check_entry(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const weft_entry_t *e = record;
    if ((e->op & (WEFT_INPUT_BIT - 1u)) >= (weft_is_input(e) ? plan->input_count : plan->op_count)) {
        return BAD(INDEX);
    }
    if (weft_entry_of(plan, weft_entry_tensor(plan, e)) != i) {
        return BAD(GRAPH);
    }
    if (e->flags > WEFT_ENTRY_OVERLAP) {
        return BAD(UNKNOWN);
    }
    return i >= plan->placed_count || (weft_is_input(e) && e->keep == 0 && e->flags == 0 && e->slice == 0 &&
                                       (e->policy == WEFT_POLICY_FULL || e->policy == WEFT_POLICY_EXTERNAL))
               ? 0
               : BAD(POLICY);
}

/* Tensors are mapped to the entry that produces them, constants to none. */
static int check_produced(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const uint32_t n = weft_rd16(record);
    if ((weft_tensor_at(plan, i)->flags & WEFT_TENSOR_CONST) != 0) {
        return n == WEFT_NONE ? 0 : BAD(GRAPH);
    }
    return n < plan->entry_count && weft_entry_tensor(plan, weft_entry_at(plan, n)) == i ? 0 : BAD(GRAPH);
}

#define KIND(base, count, size, owns, check)                                                                           \
    {                                                                                                                  \
        offsetof(weft_plan_t, base), offsetof(weft_plan_t, count), size, owns, check                                   \
    }
#define OWNS_FROM(member) offsetof(weft_plan_t, member)

const weft_kind_t weft_kinds[WEFT_KINDS] = {
    KIND(graph, tensor_count, WEFT_TENSOR_SIZE, 0, weft_check_tensor),
    KIND(ops, op_count, WEFT_OP_SIZE, 0, weft_check_op),
    KIND(consts, const_count, WEFT_CONST_SIZE, 0, weft_check_const),
    KIND(ios, io_count, WEFT_IO_SIZE, 0, weft_check_io),
    KIND(lists, list_count, 2, 0, NULL),
    KIND(stages, stage_count, WEFT_STAGE_SIZE, OWNS_FROM(reserved), check_stage), /* from 0 */
    KIND(segments, segment_count, WEFT_SEGMENT_SIZE, OWNS_FROM(placed_count), NULL),
    KIND(entries, entry_count, WEFT_ENTRY_SIZE, 0, check_entry),
    KIND(entry_of, tensor_count, 2, 0, check_produced),
};

static uint32_t member16(const weft_plan_t *plan, uint32_t at)
{
    return weft_rd16((const uint8_t *)plan + at);
}

int weft_verify_records(const weft_plan_t *plan, weft_place_t *place)
{
    uint32_t mask = 0; /* of opcodes, which are below 32 */
    for (const weft_kind_t *k = weft_kinds; k != weft_kinds + WEFT_KINDS; k++) {
        const uint8_t *record = *(const uint8_t *const *)(const void *)((const uint8_t *)plan + k->base);
        const uint32_t count = member16(plan, k->count);
        uint32_t first = member16(plan, k->owns); /* of those that the record owns */
        for (uint32_t i = 0; i < count; i++, record += k->size) {
            place->at = record;
            place->record = i;
            if (k->owns != 0) {
                const uint32_t n = weft_rd16(record + 2), left = member16(plan, k[1].count) - first;
                if (weft_rd16(record) != first || n == 0 || n > left || (i + 1u == count && n != left)) {
                    return BAD(INDEX);
                }
                first += n;
            }
            const int bad = k->check != NULL ? k->check(plan, record, i) : 0;
            if (bad != 0) {
                return bad;
            }
            if (k == &weft_kinds[1]) {
                mask |= 1u << *record;
            }
        }
    }
    /* Each entry is an operator or an input, another one than the others (no two map to one tensor): so all are there.
     * Tensors that are not theirs are constants, of which no two records are about the same one. */
    place->at = plan->consts;
    place->record = 0;
    if (plan->entry_count != plan->op_count + plan->input_count ||
        plan->tensor_count != plan->entry_count + plan->const_count) {
        return BAD(GRAPH);
    }
    place->at = plan->bytes + WEFT_HEADER_OP_MASK;
    place->record = WEFT_NONE;
    return mask == weft_rd64(place->at) ? 0 : BAD(DECLARED);
}
