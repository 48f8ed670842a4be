/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 4 of docs/design.md: the pull order, replayed without data; and what may overwrite dead rows (rule 6). */
#include "verify.h"

/*
 * A segment is about to do a row step, which writes rows of y, its last entry. If y may overlap (only the stage's last
 * one does): whether every row that is still to be read of tensors of earlier stages lies above them.
 */
static WEFT_APART bool writes_dead(weft_pull_t *c)
{
    const weft_plan_t *plan = c->plan;
    const weft_segment_t *segment = weft_segment_at(plan, c->stage->first_segment), *last = segment + c->segment;
    const weft_entry_t *const first = weft_entry_at(plan, segment->first_entry);
    const weft_entry_t *const y = weft_entry_at(plan, last->first_entry) + last->entry_count - 1;
    if (y->flags == 0) {
        return true;
    }
    c->entry = y;
    const weft_tensor_t *out = weft_tensor_at(plan, weft_entry_tensor(plan, y));
    const weft_state_t *state = c->state;
    const int32_t done = state[c->segment].done + 1;
    /* Offsets are below 2^31, tensors at most 2^30 bytes: sums fit in 32 bits. */
    const uint32_t row = (uint32_t)out->w * out->c;
    const uint32_t end = y->offset + row * (uint32_t)weft_clamp(y->row_adv * done + y->row_off, 0, out->h);

    weft_reads_t r = weft_reads(plan, first, first);
    for (; r.entry <= y; segment++, state++) {
        r.end += segment->entry_count;
        if (state->done >= segment->row_steps) {
            r.entry = r.end;
        }
        while (weft_next_read(&r)) {
            const weft_entry_t *x = r.producer;
            const weft_tensor_t *in = r.in;
            const uint32_t in_row = (uint32_t)in->w * in->c, in_size = in_row * in->h;
            if (x == NULL || x >= first || x->policy != WEFT_POLICY_FULL || y->offset >= x->offset + in_size) {
                continue;
            }
            if (r.entry == y && x->offset == y->offset && in_size == row * out->h &&
                (WEFT_IS(r.op, LUT) || weft_is_binary(r.op))) {
                continue; /* the same shape at the same place: kernels read each element before they write it */
            }
            weft_range_t rows = {0, 0};
            if (!weft_reads_whole(&r)) {
                weft_read_rows(&r, state->done, &rows);
            }
            if (rows.lo < in->h && end > x->offset + in_row * (uint32_t)rows.lo) {
                return false;
            }
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
        memset(state, 0, sizeof state);
        for (;;) {
            int r = weft_pull(&p);
            if (r == 0) {
                break;
            }
            if (r > 0 && !writes_dead(&p)) {
                r = WEFT_ERR_OVERLAP;
            }
            place->at = p.entry;
            if (r < 0) {
                return -r;
            }
            state[p.segment].done++;
        }
    }
    return 0;
}
