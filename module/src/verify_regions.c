/* SPDX-License-Identifier: Apache-2.0 */
/* Rules 1 to 3 and 5 of docs/design.md, entry by entry, and the declared figures (rule 7). */
#include "verify.h"

/* Largest |position| that a region may reach: keeps every sum and product of positions in 32 bits. */
#define FAR (1 << 30)

/* In the order of the header's fields, of which the first three have 64 bits. */
enum { MACS, BASE_MACS, ELEMENTS, ROW_STEPS, CALLS, FIGURES };

/* The entry that is looked at, and where it is. */
typedef struct {
    weft_reads_t r;                   /* what it reads */
    const weft_tensor_t *made, *over; /* what it makes, what its regions are over */
    weft_span_t rows;                 /* that a step makes */
    const weft_segment_t *segment;
    const weft_entry_t *segment_first, *stage_first;
    uint32_t channels;     /* of what the segment's first entry makes */
    bool sink;             /* the stage's last entry */
    uint64_t sum[FIGURES]; /* of all entries so far */
} entry_t;

/* The policy suits the operator (NULL: a streamed input) and its place, and keeps as many rows as it may. */
static WEFT_APART bool suits(const entry_t *c, const weft_op_t *op)
{
    const weft_entry_t *e = c->r.entry;
    const uint32_t keep = e->keep;
    const bool consumes = op != NULL && weft_consumes(op);
    if (op == NULL && (c->segment->entry_count != 1 || c->segment->col_steps != 1)) {
        return false; /* whole rows, alone in its segment */
    }
    if (e->policy == WEFT_POLICY_FULL) {
        return keep == 0 && (e->flags == 0 || (c->sink && op != NULL && !consumes));
    }
    if (c->sink || e->flags != 0) {
        return false;
    }
    if (e->policy == WEFT_POLICY_ROWS) {
        return keep - 1u < c->over->h && !(consumes && weft_ends_rows(op));
    }
    return e->policy == WEFT_POLICY_TILE && op != NULL && !consumes && keep < e->row_ext &&
           (keep == 0 || keep + e->row_adv <= e->row_ext);
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
    bool good = a->adv != 0 && a->ext != 0 && far <= FAR;
    if (e->policy != WEFT_POLICY_TILE) { /* exactly once */
        good = good && a->ext == a->adv && a->off <= 0 && last + end >= size;
    } else if (axis == 0) { /* what is kept has been produced; without, rows that nobody reads may be left out */
        good = good && (e->keep == 0 || a->off + e->keep <= 0);
    } else {
        good = good && a->ext >= a->adv && end <= a->adv && last + end >= size;
    }
    if (!good) {
        return op == NULL ? BAD(POLICY) : BAD(COVERAGE);
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
    if (WEFT_IS(op, RESIZE)) {
        const int32_t factor = weft_kernel(op, axis);
        if (steps > 1 && need.adv % factor != 0) {
            return false;
        }
        need.adv /= factor;
    } else {
        need.adv *= WEFT_IS(op, CONCAT) ? 1 : weft_stride(op, axis);
    }
    const weft_region_t *a = weft_region(producer, axis);
    int32_t lo = a->off;
    const int32_t hi = a->off + a->ext;
    if (producer->policy != WEFT_POLICY_TILE) { /* older columns, and older rows up to the ring's capacity, are there */
        lo = axis == 0 && producer->policy == WEFT_POLICY_ROWS && producer->keep < size ? hi - producer->keep : -FAR;
    }
    const bool along = a->adv == need.adv;
    return ((along && lo <= need.lo) || a->adv * (steps - 1) + lo <= 0) && ((along && hi >= need.hi) || hi >= size);
}

/* What an operator reads of a tensor. */
static WEFT_APART int check_read(const entry_t *c)
{
    const weft_op_t *op = c->r.op;
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
    const weft_tensor_t *in = c->r.in, *out = c->made;
    if ((weft_is_binary(op) && (in->h != out->h || in->w != out->w)) || weft_needs_whole(op)) {
        return BAD(POLICY);
    }
    const bool same_segment = producer >= c->segment_first;
    if (!weft_is_input(producer)) {
        const weft_op_t *made_by = weft_op_at(c->r.plan, producer->op);
        if (same_segment ? weft_consumes(made_by) : weft_ends_rows(made_by)) {
            return BAD(POLICY);
        }
    }
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

/* *sum += a * b, UINT64_MAX if that is too much. */
static WEFT_APART void add_product(uint64_t *sum, uint32_t a, uint64_t b)
{
    uint64_t product;
    if (__builtin_mul_overflow(b, a, &product) || __builtin_add_overflow(*sum, product, sum)) {
        *sum = UINT64_MAX;
    }
}

/*
 * Sum over row steps i of max(adv*i + c, 0), in closed form, modulo 2^32: what is asked for are differences of such
 * sums, which are below 2^31. 32-bit divisions spare the firmware the routine for 64 bits.
 */
static WEFT_APART uint32_t sum_above(const entry_t *e, int32_t c)
{
    const int32_t adv = e->rows.adv, n = e->segment->row_steps, low = c > 0 ? 0 : -c / adv + 1;
    if (low >= n) {
        return 0;
    }
    const uint32_t ends = (uint32_t)adv * (uint32_t)(low + n - 1) + 2u * (uint32_t)c;
    return (uint32_t)((uint64_t)ends * (uint32_t)(n - low) / 2);
}

/* Rows of [first, end) that are made, with repetition. */
static WEFT_APART uint32_t covered(const entry_t *c, int32_t first, int32_t end)
{
    return sum_above(c, c->rows.hi - first) - sum_above(c, c->rows.hi - end) - sum_above(c, c->rows.lo - first) +
           sum_above(c, c->rows.lo - end);
}

/*
 * Taps inside the input of the rows that are made, with repetition; `once`: of all positions on an axis. An operator
 * that consumes has one tap at each position of its input.
 */
static WEFT_APART uint64_t taps(const entry_t *c, uint32_t axis, bool once)
{
    const weft_op_t *op = c->r.op;
    const int32_t in = weft_size(c->r.in, axis), over = weft_size(c->over, axis), stride = weft_stride(op, axis);
    int32_t shift = weft_pad_before(op, axis);
    uint64_t sum = 0;
    for (int32_t k = weft_kernel(op, axis); k > 0; k--, shift -= weft_dilation(op, axis)) {
        /* Positions whose tap is inside: first <= y < end. */
        const int32_t first = shift <= 0 ? 0 : (shift + stride - 1) / stride;
        const int32_t end = in + shift <= 0 ? 0 : weft_min((in + shift + stride - 1) / stride, over);
        if (first < end) {
            sum += once ? (uint32_t)(end - first) : covered(c, first, end);
        }
    }
    return sum;
}

/* Multiply-accumulates of an operator of which `in` is the only input: those of a tap are channels times channels. */
static WEFT_APART void add_macs(entry_t *c, uint32_t figure)
{
    const weft_op_t *op = c->r.op;
    uint32_t channels = c->made->c;
    if (!WEFT_IS(op, DWCONV2D)) {
        channels *= c->r.in->c / (WEFT_IS(op, CONV2D) ? (uint32_t)op->groups : 1u);
    }
    add_product(&c->sum[figure], channels, taps(c, 0, figure == BASE_MACS) * (uint32_t)taps(c, 1, true));
}

static int check_figures(const weft_plan_t *plan, const uint64_t *sum, weft_place_t *place)
{
    const uint8_t *p = plan->bytes + WEFT_HEADER_MACS;
    for (uint32_t i = 0; i < FIGURES; i++) {
        const uint64_t declared = i < ROW_STEPS ? weft_rd64(p) : weft_rd32(p);
        place->at = p;
        if (sum[i] != declared || sum[i] == UINT64_MAX) {
            return BAD(DECLARED);
        }
        p += i < ROW_STEPS ? 8 : 4;
    }
    return 0;
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
    add_product(&c->sum[ELEMENTS], covered(c, 0, c->over->h), (uint32_t)c->over->w * c->over->c);
    if (op != NULL && op->opcode <= WEFT_OP_FULLY_CONNECTED) { /* CONV2D, DWCONV2D or this one */
        add_macs(c, MACS);
        add_macs(c, BASE_MACS);
    }
    return 0;
}

int weft_verify_regions(const weft_plan_t *plan, weft_place_t *place)
{
    const weft_stage_t *stage = weft_stage_at(plan, 0);
    const weft_segment_t *s = weft_segment_at(plan, 0);
    const weft_entry_t *e = weft_entry_at(plan, plan->placed_count);
    uint32_t segments_left = 0;
    entry_t c;
    memset(&c, 0, sizeof c);
    c.r.plan = plan;
    for (uint32_t i = plan->segment_count; i > 0; i--, s++) {
        if (segments_left == 0) {
            segments_left = stage->segment_count;
            stage++;
            c.stage_first = e;
        }
        segments_left--;
        c.segment = s;
        c.segment_first = e;
        c.channels = weft_tensor_at(plan, weft_entry_tensor(plan, e))->c;
        c.sum[ROW_STEPS] += s->row_steps;
        add_product(&c.sum[CALLS], (uint32_t)s->row_steps * s->col_steps,
                    s->entry_count * (e->slice != 0 ? c.channels / e->slice : 1u));
        for (uint32_t left = s->entry_count; left > 0; left--, e++) {
            c.sink = left == 1 && segments_left == 0;
            place->at = c.r.entry = e;
            const int bad = check_entry(&c);
            if (bad != 0) {
                return bad;
            }
        }
    }
    for (uint32_t i = plan->input_count; i < plan->io_count; i++) {
        e = weft_entry_at(plan, weft_entry_of(plan, weft_io_tensor(plan, i)));
        place->at = e;
        if (e->policy != WEFT_POLICY_FULL) {
            return BAD(POLICY);
        }
    }
    return check_figures(plan, c.sum, place);
}
