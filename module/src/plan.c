/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

/* Records are read in place. */
#define SAME_SIZE(type, size) typedef char type##_is_the_record[sizeof(type) == (size) ? 1 : -1]
SAME_SIZE(weft_tensor_t, WEFT_TENSOR_SIZE);
SAME_SIZE(weft_op_t, WEFT_OP_SIZE);
SAME_SIZE(weft_stage_t, WEFT_STAGE_SIZE);
SAME_SIZE(weft_segment_t, WEFT_SEGMENT_SIZE);
SAME_SIZE(weft_entry_t, WEFT_ENTRY_SIZE);

uint16_t weft_entry_tensor(const weft_plan_t *plan, const weft_entry_t *entry)
{
    if (weft_is_input(entry)) {
        return weft_io_tensor(plan, entry->op & (WEFT_INPUT_BIT - 1u));
    }
    return weft_op_at(plan, entry->op)->output;
}

uint32_t weft_op_inputs(const weft_op_t *op)
{
    return WEFT_IS(op, CONCAT) ? op->input1 : weft_is_binary(op) ? 2 : 1;
}

uint16_t weft_op_input(const weft_plan_t *plan, const weft_op_t *op, uint32_t k)
{
    if (WEFT_IS(op, CONCAT)) {
        return weft_rd16(plan->lists + 2u * (op->input0 + k));
    }
    return k == 0 ? op->input0 : op->input1;
}

bool weft_next_read(weft_reads_t *reads)
{
    for (; reads->entry < reads->end; reads->entry++, reads->k = 0) {
        if (weft_is_input(reads->entry)) {
            continue;
        }
        reads->op = weft_op_at(reads->plan, reads->entry->op);
        if (reads->k < weft_op_inputs(reads->op)) {
            reads->tensor = weft_op_input(reads->plan, reads->op, reads->k++);
            reads->producer = weft_entry_of(reads->plan, reads->tensor);
            return true;
        }
    }
    return false;
}

const uint8_t *weft_const(const weft_plan_t *plan, uint32_t tensor)
{
    for (uint32_t i = 0; i < plan->const_count; i++) {
        const uint8_t *p = plan->consts + i * WEFT_CONST_SIZE;
        if (weft_rd16(p + WEFT_CONST_TENSOR) == tensor) {
            return plan->weights + weft_rd32(p + WEFT_CONST_OFFSET);
        }
    }
    return NULL;
}

bool weft_needs_whole(const weft_op_t *op)
{
    return WEFT_IS(op, RESHAPE) || (WEFT_IS(op, RESIZE) && (op->flags & WEFT_OP_RESIZE_TABLE) != 0) ||
           (WEFT_IS(op, CONCAT) && op->kernel_h != 2);
}

void weft_field(const weft_op_t *op, uint32_t axis, int32_t *lo, int32_t *hi)
{
    const int32_t kernel = weft_kernel(op, axis);
    if (WEFT_IS(op, RESIZE)) {
        /* Floor division: positions before the tensor are negative. */
        *lo = (*lo >= 0 ? *lo : *lo - kernel + 1) / kernel;
        *hi = (*hi > 0 ? *hi - 1 : *hi - kernel) / kernel + 1;
    } else if (!WEFT_IS(op, CONCAT)) { /* without a window: kernel, stride and dilation 1, no padding */
        const int32_t stride = weft_stride(op, axis), pad = weft_pad_before(op, axis);
        *lo = *lo * stride - pad;
        *hi = (*hi - 1) * stride - pad + (kernel - 1) * weft_dilation(op, axis) + 1;
    }
}

uint32_t weft_acc_bytes(const weft_plan_t *plan, const weft_op_t *op, const weft_entry_t *e,
                        const weft_segment_t *segment)
{
    /* Axes that the operator sums over in several steps; what it does not sum over has an accumulator each. */
    const bool dense = WEFT_IS(op, FULLY_CONNECTED);
    const bool over_h = weft_ends_rows(op), over_w = dense || (op->flags & WEFT_OP_REDUCE_W) != 0;
    if (!weft_consumes(op) || !((over_h && segment->row_steps > 1) || (over_w && segment->col_steps > 1))) {
        return 0;
    }
    const weft_tensor_t *in = weft_tensor_at(plan, op->input0);
    const int32_t pixels = over_h && over_w ? 1 : over_h ? in->w : weft_min(e->row_adv, in->h);
    return 4u * (uint32_t)(pixels * weft_tensor_at(plan, op->output)->c);
}

uint32_t weft_window_bytes(const weft_entry_t *e, const weft_tensor_t *t)
{
    switch (e->policy) {
    case WEFT_POLICY_FULL:
        return (uint32_t)(t->h * t->w * t->c);
    case WEFT_POLICY_ROWS:
        return (uint32_t)(e->keep * t->w * t->c);
    case WEFT_POLICY_TILE:
        return (uint32_t)(weft_min(e->row_ext - e->keep, t->h) * weft_min(e->col_ext, t->w) *
                          weft_window_channels(e, t));
    default:
        return 0;
    }
}

uint32_t weft_line_bytes(const weft_entry_t *e, const weft_tensor_t *t)
{
    return e->policy == WEFT_POLICY_TILE ? (uint32_t)(weft_min(e->keep, t->h) * t->w * t->c) : 0;
}

/* Whether segment s of the stage can do its next row step: 1, 0 with the producer to run first in *wait_for, or an
 * error. */
static int ready(const weft_plan_t *plan, const weft_stage_t *stage, const uint16_t *state, uint32_t s,
                 uint32_t *wait_for, uint32_t *at)
{
    const weft_segment_t *const first = weft_segment_at(plan, stage->first_segment), *const segment = first + s;
    weft_reads_t r = weft_reads(plan, segment->first_entry, segment->entry_count);

    while (weft_next_read(&r)) {
        if (r.producer < first->first_entry || r.producer >= segment->first_entry) {
            continue; /* constant, complete before this stage, or of this segment */
        }
        const int32_t in_h = weft_tensor_at(plan, r.tensor)->h;
        const int32_t out_h = weft_consumes(r.op) ? in_h : weft_tensor_at(plan, r.op->output)->h;
        const weft_span_t span = weft_new_rows(r.entry);
        weft_range_t rows = weft_at(&span, WEFT_STATE_DONE(state, s), out_h);
        if (rows.lo >= rows.hi) {
            continue;
        }
        weft_field(r.op, 0, &rows.lo, &rows.hi);
        rows.lo = weft_clamp(rows.lo, 0, in_h);
        rows.hi = weft_clamp(rows.hi, 0, in_h);
        const weft_entry_t *producer = weft_entry_at(plan, r.producer);
        uint32_t q = s;
        do {
            q--;
        } while (first[q].first_entry > r.producer);
        const int32_t done = WEFT_STATE_DONE(state, q);
        const int32_t produced = weft_clamp(producer->row_adv * done + producer->row_off, 0, in_h);
        *at = (uint32_t)(r.entry - weft_entry_at(plan, 0));
        if (produced < rows.hi) {
            *wait_for = q;
            return done < first[q].row_steps ? 0 : WEFT_ERR_NEED;
        }
        if (producer->policy == WEFT_POLICY_ROWS && rows.lo < rows.hi && rows.lo < produced - producer->keep) {
            return WEFT_ERR_RING;
        }
    }
    return 1;
}

int weft_pull(const weft_plan_t *plan, const weft_stage_t *stage, uint16_t *state, uint32_t cur, uint32_t *entry)
{
    uint32_t next = cur < stage->segment_count ? WEFT_STATE_ASKED_BY(state, cur) : stage->segment_count;
    if (next >= stage->segment_count) { /* nobody asked: the last segment that has steps left drives */
        next = stage->segment_count;
        do {
            if (next == 0) {
                return stage->segment_count;
            }
            next--;
        } while (WEFT_STATE_DONE(state, next) >= weft_segment_at(plan, stage->first_segment + next)->row_steps);
        WEFT_STATE_ASKED_BY(state, next) = stage->segment_count;
    }
    for (;;) {
        uint32_t wait_for = 0;
        int r = ready(plan, stage, state, next, &wait_for, entry);
        if (r < 0) {
            return r;
        }
        if (r > 0) {
            return (int)next;
        }
        WEFT_STATE_ASKED_BY(state, wait_for) = (uint16_t)next;
        next = wait_for;
    }
}
