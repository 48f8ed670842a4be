/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 4 of docs/design.md: the pull order, replayed without data; and what may overwrite dead rows (rule 6). */
#include "verify.h"

/*
 * The stage's last segment is about to do a row step, which writes rows of y, the stage's last entry. If y may overlap:
 * whether every row that is still to be read of tensors of earlier stages lies above them.
 */
static WEFT_APART bool writes_dead(const weft_pull_t *c, const weft_entry_t *y)
{
    const weft_plan_t *plan = c->plan;
    const weft_segment_t *segment = weft_segment_at(plan, c->stage->first_segment);
    const weft_entry_t *const first = weft_entry_at(plan, segment->first_entry);
    const weft_entry_t *segment_end = first + segment->entry_count;
    const weft_tensor_t *out = weft_tensor_at(plan, weft_entry_tensor(plan, y));
    const weft_state_t *state = c->state;
    const int32_t done = state[c->segment].done + 1;
    /* Offsets are below 2^31, tensors at most 2^30 bytes: sums fit in 32 bits. */
    const uint32_t row = (uint32_t)out->w * out->c;
    const uint32_t end = y->offset + row * (uint32_t)weft_clamp(y->row_adv * done + y->row_off, 0, out->h);

    weft_reads_t r = weft_reads(plan, first, y + 1);
    while (weft_next_read(&r)) {
        while (r.entry >= segment_end) {
            segment++;
            segment_end += segment->entry_count;
            state++;
        }
        const weft_entry_t *x = r.producer;
        const weft_tensor_t *in = r.in;
        const uint32_t in_row = (uint32_t)in->w * in->c, in_size = in_row * in->h;
        const int32_t step = state->done;
        if (x == NULL || x >= first || x->policy != WEFT_POLICY_FULL || step >= segment->row_steps ||
            y->offset >= x->offset + in_size) {
            continue;
        }
        if (r.entry == y && x->offset == y->offset && in_size == row * out->h &&
            (WEFT_IS(r.op, LUT) || weft_is_binary(r.op))) {
            continue; /* the same shape at the same place: kernels read each element before they write it */
        }
        weft_range_t rows = {0, 0};
        if (!weft_needs_whole(r.op) && !(weft_is_binary(r.op) && in->h != weft_tensor_at(plan, r.op->output)->h)) {
            weft_read_rows(&r, step, &rows);
        }
        if (rows.lo < in->h && end > x->offset + in_row * (uint32_t)rows.lo) {
            return false;
        }
    }
    return true;
}

int weft_verify_replay(const weft_plan_t *plan, weft_place_t *place)
{
    weft_state_t state[WEFT_MAX_SEGMENTS];
    weft_pull_t p = {plan, weft_stage_at(plan, 0), state, 0, 0, NULL};
    for (uint32_t left = plan->stage_count; left > 0; left--, p.stage++) {
        p.next = p.stage->segment_count;
        const weft_segment_t *last = weft_segment_at(plan, p.stage->first_segment + p.next - 1u);
        const weft_entry_t *sink = weft_entry_at(plan, last->first_entry) + last->entry_count - 1;
        memset(state, 0, sizeof state);
        for (;;) {
            const int r = weft_pull(&p);
            if (r == 0) {
                break;
            }
            place->at = p.entry;
            if (r < 0) {
                return -r;
            }
            if (p.segment + 1u == p.stage->segment_count && sink->flags != 0 && !writes_dead(&p, sink)) {
                place->at = sink;
                return BAD(OVERLAP);
            }
            state[p.segment].done++;
        }
    }
    place->at = plan->bytes;
    return 0;
}
