/* SPDX-License-Identifier: Apache-2.0 */
/* Rules 1 to 3 and 5 of docs/design.md, entry by entry, and the declared figures (rule 7). */
#include "verify.h"

/* Largest |position| that a region may reach: keeps every sum and product of positions in 32 bits. */
#define FAR (1 << 30)

/* Figures, as they lie in the header; MACs [0] as executed, [1] without repetition. */
typedef struct WEFT_RECORD {
    uint64_t macs[2], elements;
    uint32_t row_steps, calls;
} figures_t;

/* The entry that is looked at, and where it is. */
typedef struct {
    weft_reads_t r;                   /* what it reads */
    const weft_tensor_t *made, *over; /* what it makes, what its regions are over */
    weft_span_t rows;                 /* that a step makes */
    const weft_segment_t *segment;
    const weft_entry_t *segment_first, *stage_first;
    uint32_t channels; /* of what the segment's first entry makes */
    uint32_t behind;   /* entries of the segment behind it, and 2^16 times the stage's segments behind that */
    figures_t sum;     /* of all entries so far */
} entry_t;

/* The policy suits the operator (NULL: a streamed input) and its place, and keeps as many rows as it may. */
static WEFT_APART bool suits(const entry_t *c, const weft_op_t *op)
{
    const weft_entry_t *e = c->r.entry;
    const uint32_t policy = e->policy, keep = e->keep;
    if (op == NULL || weft_consumes(op)) {
        /* An input comes in whole rows, alone in its segment; nothing that runs along can read what is summed up. */
        const bool alone = op == NULL           ? c->segment->entry_count == 1 && c->segment->col_steps == 1
                           : weft_ends_rows(op) ? c->behind == 0
                                                : (uint16_t)c->behind == 0;
        if (!alone || e->flags != 0 || policy == WEFT_POLICY_TILE) {
            return false;
        }
    }
    if (c->behind == 0 ? policy != WEFT_POLICY_FULL : e->flags != 0) {
        return false;
    }
    if (policy == WEFT_POLICY_FULL) {
        return keep == 0;
    }
    if (policy == WEFT_POLICY_ROWS) {
        return keep - 1u < c->over->h;
    }
    return policy == WEFT_POLICY_TILE && (keep == 0 || keep + e->row_adv <= e->row_ext);
}

/* Rules 1, 2 and 5 on one axis: every position of the tensor that the regions are over is produced (or consumed). */
static WEFT_APART int check_axis(const entry_t *c, const weft_op_t *op, uint32_t axis)
{
    const weft_entry_t *e = c->r.entry;
    const weft_region_t *a = weft_region(e, axis);
    const int32_t steps = weft_steps(c->segment, axis), size = weft_size(c->over, axis), end = a->off + a->ext;
    /* Where the last step begins, less the offset. Two numbers of 16 bits: their product has 32. */
    const uint32_t far = (uint32_t)a->adv * (uint32_t)steps;
    const int32_t last = (int32_t)(far - a->adv);
    bool good = a->ext != 0 && far - 1u < FAR;
    if (e->policy != WEFT_POLICY_TILE) { /* exactly once */
        good = good && a->ext == a->adv && a->off <= 0 && last + end >= size;
    } else if (axis == 0) { /* what is kept has been produced; without, rows that nobody reads may be left out */
        good = good && (e->keep == 0 || a->off + e->keep <= 0);
    } else {
        good = good && a->ext >= a->adv && end <= a->adv && last + end >= size;
    }
    if (!good) {
        return BAD(COVERAGE);
    }
    /* Every step's region is the whole axis. */
    return op == NULL || !weft_needs_whole(op) || (steps == 1 && a->off <= 0 && end >= size) ? 0 : BAD(POLICY);
}

/*
 * Rule 3 on one axis: the window of a tensor of the same segment holds at every step what the operator reads to produce
 * what is new of its output; both clamped to the tensor.
 */
static WEFT_APART bool holds(const entry_t *c, uint32_t axis)
{
    const weft_op_t *op = c->r.op;
    const weft_entry_t *producer = c->r.producer;
    const int32_t size = weft_size(c->r.in, axis), steps = weft_steps(c->segment, axis);
    weft_span_t need = axis == 0 ? c->rows : weft_new_cols(c->r.entry);
    weft_field(op, axis, &need.lo, &need.hi);
    need.adv *= weft_stride(op, axis);
    const weft_region_t *a = weft_region(producer, axis);
    int32_t lo = a->off;
    const int32_t hi = a->off + a->ext;
    if (producer->policy != WEFT_POLICY_TILE) { /* older columns, and older rows up to the ring's capacity, are there */
        lo = axis == 0 && producer->policy == WEFT_POLICY_ROWS && producer->keep < size ? hi - producer->keep : -FAR;
    }
    const bool along = a->adv * (WEFT_IS(op, RESIZE) ? weft_kernel(op, axis) : 1) == need.adv;
    return ((along && lo <= need.lo) || a->adv * (steps - 1) + lo <= 0) && ((along && hi >= need.hi) || hi >= size);
}

bool weft_reads_whole(const weft_reads_t *reads)
{
    /* Rows and columns are the first four bytes of a TENSOR. */
    const void *in = reads->in, *out = weft_tensor_at(reads->plan, reads->op->output);
    return weft_needs_whole(reads->op) || (weft_is_binary(reads->op) && weft_rd32(in) != weft_rd32(out));
}

/* What an operator reads of a tensor. */
static WEFT_APART int check_read(const entry_t *c)
{
    const weft_entry_t *producer = c->r.producer;
    if (producer == NULL) {
        return 0;
    }
    if (producer >= c->r.entry) {
        return BAD(GRAPH);
    }
    const uint32_t policy = producer->policy;
    if (producer < c->stage_first) { /* done */
        return policy == WEFT_POLICY_FULL || policy == WEFT_POLICY_EXTERNAL ? 0 : BAD(POLICY);
    }
    if (weft_reads_whole(&c->r)) {
        return BAD(POLICY);
    }
    const bool same_segment = producer >= c->segment_first;
    if (!same_segment) { /* rows are checked by the replay, columns are complete */
        return policy == WEFT_POLICY_TILE ? BAD(POLICY) : 0;
    }
    return holds(c, 0) && holds(c, 1) ? 0 : BAD(NEED);
}

/*
 * Rule 8: a segment may make its tensors in slices of channels if it is a convolution that reads nothing of the
 * segment, and depthwise ones, all with as many channels, of which nothing is kept. `op`: NULL if e is an input. What
 * it reads has been looked at.
 */
static bool may_slice(const entry_t *c, const weft_op_t *op)
{
    const weft_entry_t *e = c->r.entry, *first = c->segment_first;
    const uint32_t slice = e->slice, channels = c->channels;
    if (slice != first->slice) {
        return false;
    }
    if (slice == 0) {
        return true;
    }
    if (op == NULL || c->made->c != channels || slice == channels || channels % slice != 0 ||
        (e->policy == WEFT_POLICY_TILE && e->keep != 0)) {
        return false;
    }
    if (WEFT_IS(op, DWCONV2D)) {
        return c->r.in->c == channels;
    }
    return WEFT_IS(op, CONV2D) && op->groups == 1 && c->r.producer < first && e->policy == WEFT_POLICY_TILE;
}

/* ---------------------------------------------------------------- figures */

/*
 * Taps inside the input of the positions [lo, hi) of an axis; an operator that consumes has one at each position of its
 * input. Tap k is inside from position first / stride on, which is rounded wrongly where it is negative, to 0 or less.
 */
static WEFT_APART uint32_t taps(const entry_t *c, uint32_t axis, int32_t lo, int32_t hi)
{
    const weft_op_t *op = c->r.op;
    const int32_t stride = weft_stride(op, axis), in = weft_size(c->r.in, axis);
    int32_t first = weft_pad_before(op, axis) + stride - 1, sum = 0;
    for (int32_t k = weft_kernel(op, axis); k > 0; k--, first -= weft_dilation(op, axis)) {
        sum += weft_clamp((first + in) / stride, lo, hi) - weft_clamp(first / stride, lo, hi);
    }
    return (uint32_t)sum;
}

/*
 * What the row steps of an entry do. MACs of one operator are below 2^63: its parameters and the size of its output let
 * a row step make less than 2^47. So the sum, which stays where it has passed 2^63, does not come round.
 */
static WEFT_APART void add_work(entry_t *c, const weft_op_t *op)
{
    const weft_tensor_t *over = c->over;
    weft_range_t rows = {0, over->h}; /* of BASE_MACS; then those of each step */
    uint64_t *sum = &c->sum.macs[1];
    uint64_t macs = 0; /* of a tap of a row */
    /* CONV2D, DWCONV2D, FULLY_CONNECTED */
    if (op != NULL && op->opcode <= WEFT_OP_FULLY_CONNECTED && (int64_t)c->sum.macs[0] >= 0) {
        uint32_t channels = c->made->c;
        if (!WEFT_IS(op, DWCONV2D)) {
            channels *= c->r.in->c / (WEFT_IS(op, CONV2D) ? (uint32_t)op->groups : 1u);
        }
        macs = (uint64_t)channels * taps(c, 1, 0, over->w);
    }
    for (int32_t i = 0;; i++) {
        if (macs != 0) {
            *sum += macs * taps(c, 0, rows.lo, rows.hi);
        }
        if (i == c->segment->row_steps) {
            break;
        }
        sum = &c->sum.macs[0];
        rows = weft_at(&c->rows, i, over->h);
        c->sum.elements += (uint32_t)(rows.hi - rows.lo) * over->w * over->c;
    }
}

/* ---------------------------------------------------------------- all entries */

/* Everything about an entry, and its figures. */
static WEFT_APART int check_entry(entry_t *c)
{
    const weft_plan_t *plan = c->r.plan;
    const weft_entry_t *e = c->r.entry;
    const weft_op_t *op = weft_is_input(e) ? NULL : weft_op_at(plan, e->op);
    c->made = weft_tensor_at(plan, weft_entry_tensor(plan, e));
    c->over = op != NULL && weft_consumes(op) ? weft_tensor_at(plan, op->input0) : c->made;
    c->rows = weft_new_rows(e);
    if (!suits(c, op)) {
        return BAD(POLICY);
    }
    for (uint32_t axis = 0; axis < 2; axis++) {
        const int bad = check_axis(c, op, axis);
        if (bad != 0) {
            return bad;
        }
    }
    c->r.end = e + 1;
    c->r.k = 0;
    while (weft_next_read(&c->r)) {
        const int bad = check_read(c);
        if (bad != 0) {
            return bad;
        }
    }
    c->r.entry = e; /* the reads have run out */
    if (!may_slice(c, op)) {
        return BAD(POLICY);
    }
    add_work(c, op);
    return 0;
}

const weft_entry_t *weft_io_entry(const weft_plan_t *plan, uint32_t io)
{
    return weft_entry_at(plan, weft_entry_of(plan, weft_io_tensor(plan, io)));
}

int weft_verify_regions(const weft_plan_t *plan, weft_place_t *place)
{
    const weft_stage_t *stage = weft_stage_at(plan, 0);
    const weft_segment_t *s = weft_segment_at(plan, 0);
    const weft_entry_t *e = weft_entry_at(plan, plan->placed_count);
    entry_t c;
    memset(&c, 0, sizeof c);
    c.r.plan = plan;
    for (uint32_t stages_left = plan->stage_count; stages_left > 0; stages_left--, stage++) {
        c.stage_first = e;
        for (uint32_t segments_left = stage->segment_count; segments_left > 0; s++) {
            segments_left--;
            c.segment = s;
            c.segment_first = e;
            c.channels = weft_tensor_at(plan, weft_entry_tensor(plan, e))->c;
            const uint64_t calls = (uint64_t)((uint32_t)s->row_steps * s->col_steps) *
                                       (s->entry_count * (e->slice != 0 ? c.channels / e->slice : 1u)) +
                                   c.sum.calls;
            c.sum.calls = (uint32_t)calls;
            c.sum.row_steps += s->row_steps; /* below 2^32 */
            place->at = plan->bytes + WEFT_HEADER_ROW_STEPS;
            /* Row steps, of which the caller limits what is declared, bound the time that all of this takes. */
            if (c.sum.row_steps > weft_rd32(place->at) || calls > UINT32_MAX) {
                return BAD(DECLARED);
            }
            for (uint32_t left = s->entry_count; left > 0; e++) {
                left--;
                c.behind = left + (segments_left << 16);
                place->at = c.r.entry = e;
                const int bad = check_entry(&c);
                if (bad != 0) {
                    return bad;
                }
            }
        }
    }
    for (uint32_t i = plan->input_count; i < plan->io_count; i++) {
        e = weft_io_entry(plan, i);
        place->at = e;
        if (e->policy != WEFT_POLICY_FULL) {
            return BAD(POLICY);
        }
    }
    const uint8_t *declared = plan->bytes + WEFT_HEADER_MACS;
    for (uint32_t i = 0; i < sizeof c.sum; i += 4, declared += 4) {
        place->at = declared;
        if (weft_rd32(declared) != weft_rd32((const uint8_t *)&c.sum + i)) {
            return BAD(DECLARED);
        }
    }
    return 0;
}
