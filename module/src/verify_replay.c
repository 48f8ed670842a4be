/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 4 of docs/design.md: the pull order, replayed without data; and what may overwrite dead rows (rule 6). */
#include "verify.h"

/* First row of `in` that an entry still reads, at row step `step` or later; `in->h` if none. */
static int32_t next_read(const weft_reads_t *r, const weft_tensor_t *in, const weft_tensor_t *over, int32_t step,
                         int32_t steps)
{
    if (step >= steps) {
        return in->h;
    }
    if (weft_needs_whole(r->op) || (weft_is_binary(r->op) && in->h != over->h)) {
        return 0;
    }
    weft_span_t rows = weft_new_rows(r->entry);
    rows.lo = weft_clamp(rows.adv * step + rows.lo, 0, over->h);
    if (rows.lo == over->h) {
        return in->h;
    }
    rows.hi = rows.lo + 1;
    weft_field(r->op, 0, &rows.lo, &rows.hi);
    return weft_clamp(rows.lo, 0, in->h);
}

/* Kernels that read each element before they write it at the same place. */
static bool in_place(const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out)
{
    return (WEFT_IS(op, LUT) || weft_is_binary(op)) && weft_same_shape(in, out);
}

/*
 * The stage's last segment is about to do a row step, which writes rows of y, the stage's last entry. If y may overlap:
 * whether every row that is still to be read of tensors of earlier stages lies above them.
 */
static WEFT_APART bool writes_dead(const weft_plan_t *plan, const weft_stage_t *stage, const uint16_t *state,
                                   const weft_entry_t *y)
{
    const weft_segment_t *segment = weft_segment_at(plan, stage->first_segment);
    const uint32_t stage_first = segment->first_entry;
    const weft_tensor_t *out = weft_tensor_at(plan, weft_entry_tensor(plan, y));
    const int32_t done = WEFT_STATE_DONE(state, stage->segment_count - 1u) + 1;
    /* Offsets are below 2^31, tensors at most 2^30 bytes: sums fit in 32 bits. */
    const uint32_t row = (uint32_t)out->w * out->c;
    const uint32_t end = y->offset + row * (uint32_t)weft_clamp(y->row_adv * done + y->row_off, 0, out->h);

    for (uint32_t g = 0; g < stage->segment_count; g++, segment++) {
        weft_reads_t r = weft_reads(plan, segment->first_entry, segment->entry_count);
        while (weft_next_read(&r)) {
            if (r.producer >= stage_first) {
                continue; /* constant, or of this stage */
            }
            const weft_entry_t *x = weft_entry_at(plan, r.producer);
            const weft_tensor_t *in = weft_tensor_at(plan, r.tensor);
            const uint32_t in_row = (uint32_t)in->w * in->c;
            if (x->policy != WEFT_POLICY_FULL || y->offset >= x->offset + in_row * in->h ||
                (r.entry == y && x->offset == y->offset && in_place(r.op, in, out))) {
                continue;
            }
            const weft_tensor_t *over = weft_consumes(r.op) ? in : weft_tensor_at(plan, r.op->output);
            const int32_t first = next_read(&r, in, over, WEFT_STATE_DONE(state, g), segment->row_steps);
            if (first < in->h && end > x->offset + in_row * (uint32_t)first) {
                return false;
            }
        }
    }
    return true;
}

int weft_verify_replay(const weft_plan_t *plan, weft_error_t *err)
{
    for (uint32_t s = 0; s < plan->stage_count; s++) {
        const weft_stage_t *stage = weft_stage_at(plan, s);
        const weft_segment_t *last = weft_segment_at(plan, stage->first_segment + stage->segment_count - 1u);
        const uint32_t sink = last->first_entry + last->entry_count - 1u;
        const weft_entry_t *y = weft_entry_at(plan, sink);
        uint16_t state[2u * WEFT_MAX_SEGMENTS] = {0};
        uint32_t cur = stage->segment_count;
        for (;;) {
            uint32_t entry = sink;
            int next = weft_pull(plan, stage, state, cur, &entry);
            cur = (uint32_t)next;
            if (cur == stage->segment_count) {
                break;
            }
            if (next >= 0 && cur + 1u == stage->segment_count && y->flags != 0 && !writes_dead(plan, stage, state, y)) {
                next = WEFT_ERR_OVERLAP;
                entry = sink;
            }
            if (next < 0) {
                weft_locate_entry(plan, weft_entry_at(plan, entry), err);
                return next;
            }
            WEFT_STATE_DONE(state, cur)++;
        }
    }
    return WEFT_OK;
}
