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
            const uint32_t tensor = weft_op_input(reads->plan, reads->op, reads->k++);
            const uint32_t producer = weft_entry_of(reads->plan, tensor);
            reads->in = weft_tensor_at(reads->plan, tensor);
            reads->producer = producer != WEFT_NONE ? weft_entry_at(reads->plan, producer) : NULL;
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
    if (!weft_consumes(op)) {
        return 0;
    }
    /* Steps of the axes that the operator sums over; what it does not sum over has an accumulator each. */
    const uint32_t over = WEFT_IS(op, FULLY_CONNECTED) ? ~0u : op->flags;
    const weft_tensor_t *in = weft_tensor_at(plan, op->input0);
    uint32_t steps = 1, accumulators = weft_tensor_at(plan, op->output)->c;
    if ((over & WEFT_OP_REDUCE_H) != 0) {
        steps = segment->row_steps;
    } else {
        accumulators *= (uint32_t)weft_min(e->row_adv, in->h);
    }
    if ((over & WEFT_OP_REDUCE_W) != 0) {
        steps *= segment->col_steps;
    } else {
        accumulators *= in->w;
    }
    return steps > 1 ? 4u * accumulators : 0;
}

bool weft_read_rows(const weft_reads_t *reads, int32_t step, weft_range_t *rows)
{
    const weft_op_t *op = reads->op;
    const int32_t in_h = reads->in->h;
    const int32_t out_h = weft_consumes(op) ? in_h : weft_tensor_at(reads->plan, op->output)->h;
    const weft_span_t span = weft_new_rows(reads->entry);
    *rows = weft_at(&span, step, out_h);
    const bool some = rows->lo < rows->hi, over = rows->lo == out_h;
    weft_field(op, 0, &rows->lo, &rows->hi);
    rows->lo = over ? in_h : weft_clamp(rows->lo, 0, in_h);
    rows->hi = weft_clamp(rows->hi, 0, in_h);
    return some;
}

/* Whether segment s of the stage can do its next row step: 1, 0 with the producer to run first in *wait_for, or an
 * error. */
static int ready(weft_pull_t *p, uint32_t s, uint32_t *wait_for)
{
    const weft_plan_t *plan = p->plan;
    const weft_segment_t *const first = weft_segment_at(plan, p->stage->first_segment);
    const weft_entry_t *const begin = weft_entry_at(plan, first[s].first_entry);
    const weft_entry_t *const stage_begin = weft_entry_at(plan, first->first_entry);
    weft_reads_t r = weft_reads(plan, begin, begin + first[s].entry_count);

    while (weft_next_read(&r)) {
        const weft_entry_t *producer = r.producer;
        weft_range_t rows;
        if (producer < stage_begin || producer >= begin || !weft_read_rows(&r, p->state[s].done, &rows)) {
            continue; /* constant, complete before this stage, or of this segment; or nothing is made */
        }
        uint32_t q = s;
        do {
            q--;
        } while (weft_entry_at(plan, first[q].first_entry) > producer);
        const int32_t done = p->state[q].done;
        const int32_t produced = weft_clamp(producer->row_adv * done + producer->row_off, 0, r.in->h);
        p->entry = r.entry;
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

int weft_pull(weft_pull_t *p)
{
    const uint32_t count = p->stage->segment_count;
    uint32_t s = p->next;
    if (s >= count) { /* nobody asked: the last segment that has steps left drives */
        s = count;
        do {
            if (s == 0) {
                return 0;
            }
            s--;
        } while (p->state[s].done >= weft_segment_at(p->plan, p->stage->first_segment)[s].row_steps);
        p->state[s].asked_by = (uint16_t)count;
    }
    for (;;) {
        uint32_t wait_for = 0;
        const int r = ready(p, s, &wait_for);
        if (r != 0) {
            p->segment = s;
            p->next = p->state[s].asked_by;
            return r;
        }
        p->state[wait_for].asked_by = (uint16_t)s;
        s = wait_for;
    }
}
