/* SPDX-License-Identifier: Apache-2.0 */
/* Rules 1 to 3 and 5 of docs/design.md, entry by entry, and the declared figures (rule 7). */
#include "verify.h"

/* Largest |position| that a region may reach: keeps every sum and product of positions in 32 bits. */
#define FAR (1 << 30)

bool weft_same_shape(const weft_tensor_t *a, const weft_tensor_t *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

/* Where an entry is: its segment, and the first entries of that and of the stage. */
typedef struct {
    const weft_segment_t *segment;
    const weft_entry_t *segment_first, *stage_first;
} place_t;

/* The policy suits the operator (NULL: a streamed input) and its place, and keeps as many rows as it may of `h`. */
static bool suits(const weft_entry_t *e, const weft_op_t *op, const weft_segment_t *segment, int32_t h)
{
    const bool full = e->policy == WEFT_POLICY_FULL, ring = e->policy == WEFT_POLICY_ROWS;
    if (e->flags != 0 && (!full || op == NULL || weft_consumes(op))) {
        return false;
    }
    if (op == NULL && (segment->entry_count != 1 || segment->col_steps != 1)) { /* whole rows, alone in its segment */
        return false;
    }
    if (full) {
        return e->keep == 0;
    }
    if (op != NULL && weft_ends_rows(op)) {
        return false;
    }
    if (ring) {
        return e->keep >= 1 && e->keep <= h;
    }
    return e->policy == WEFT_POLICY_TILE && op != NULL && !weft_consumes(op) && e->keep < e->row_ext &&
           (e->keep == 0 || e->keep + e->row_adv <= e->row_ext);
}

/* Rules 1, 2 and 5 on one axis: every position of the tensor that the regions are over is produced (or consumed). */
static WEFT_APART int check_axis(const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *over,
                                 const weft_segment_t *segment, uint32_t axis)
{
    const weft_region_t *a = weft_region(e, axis);
    const int32_t steps = weft_steps(segment, axis), size = weft_size(over, axis), end = a->off + a->ext;
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
        return op == NULL ? WEFT_ERR_POLICY : WEFT_ERR_COVERAGE;
    }
    /* Every step's region is the whole axis. */
    return op == NULL || !weft_needs_whole(op) || (steps == 1 && a->off <= 0 && end >= size) ? WEFT_OK
                                                                                             : WEFT_ERR_POLICY;
}

/*
 * Rule 3 on one axis: the window of tensor `in`, made by `producer` of the same segment, holds at every step what the
 * operator reads to produce what is new of its output; both clamped to the tensor.
 */
static bool holds(const weft_reads_t *r, const weft_entry_t *producer, const weft_tensor_t *in, uint32_t axis,
                  int32_t steps)
{
    const weft_op_t *op = r->op;
    const int32_t size = weft_size(in, axis);
    weft_span_t need = axis == 0 ? weft_new_rows(r->entry) : weft_new_cols(r->entry);
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

/* The entry's own regions and policy. `over` is the tensor that the regions are over. */
static WEFT_APART int check_window(const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *over,
                                   const weft_segment_t *segment)
{
    if (!suits(e, op, segment, over->h)) {
        return WEFT_ERR_POLICY;
    }
    const int r = check_axis(e, op, over, segment, 0);
    return r != WEFT_OK ? r : check_axis(e, op, over, segment, 1);
}

/* What an operator reads of a tensor. */
static int check_read(const weft_reads_t *r, const place_t *at)
{
    const weft_plan_t *plan = r->plan;
    if (r->producer == WEFT_NONE) {
        return WEFT_OK;
    }
    const weft_entry_t *producer = weft_entry_at(plan, r->producer);
    if (producer >= r->entry) {
        return WEFT_ERR_GRAPH;
    }
    const uint32_t policy = producer->policy;
    if (producer < at->stage_first) { /* done */
        return policy == WEFT_POLICY_FULL || policy == WEFT_POLICY_EXTERNAL ? WEFT_OK : WEFT_ERR_POLICY;
    }
    const weft_tensor_t *in = weft_tensor_at(plan, r->tensor), *out = weft_tensor_at(plan, r->op->output);
    const bool broadcast = weft_is_binary(r->op) && (in->h != out->h || in->w != out->w);
    if (broadcast || weft_needs_whole(r->op)) {
        return WEFT_ERR_POLICY;
    }
    const bool same_segment = producer >= at->segment_first;
    if (!weft_is_input(producer)) {
        const weft_op_t *made_by = weft_op_at(plan, producer->op);
        if (same_segment ? weft_consumes(made_by) : weft_ends_rows(made_by)) {
            return WEFT_ERR_POLICY;
        }
    }
    if (!same_segment) { /* rows are checked by the replay, columns are complete */
        return policy == WEFT_POLICY_TILE ? WEFT_ERR_POLICY : WEFT_OK;
    }
    return holds(r, producer, in, 0, at->segment->row_steps) && holds(r, producer, in, 1, at->segment->col_steps)
               ? WEFT_OK
               : WEFT_ERR_NEED;
}

/*
 * Rule 8: a segment may make its tensors in slices of channels if it is a convolution that reads nothing of the
 * segment, and depthwise ones, all with as many channels, of which nothing is kept. `op`: NULL if e is an input.
 */
static bool may_slice(const weft_plan_t *plan, const weft_entry_t *e, const weft_op_t *op, const weft_entry_t *first)
{
    if (e->slice == 0 || op == NULL || e->slice != first->slice) {
        return e->slice == 0 && first->slice == 0;
    }
    const uint32_t channels = weft_tensor_at(plan, op->output)->c, p = weft_entry_of(plan, op->input0);
    const bool tile = e->policy == WEFT_POLICY_TILE, inner = p != WEFT_NONE && weft_entry_at(plan, p) >= first;
    const bool leads = WEFT_IS(op, CONV2D) && op->groups == 1 && !inner && tile;
    const bool follows = WEFT_IS(op, DWCONV2D) && weft_tensor_at(plan, op->input0)->c == channels;
    return (leads || follows) && !(tile && e->keep != 0) && e->slice < channels && channels % e->slice == 0 &&
           weft_tensor_at(plan, weft_entry_tensor(plan, first))->c == channels;
}

/* Sweeps along the columns that a row step of a segment with this first entry takes. */
static uint32_t sweeps(const weft_plan_t *plan, const weft_entry_t *first)
{
    return first->slice != 0 ? (uint32_t)weft_tensor_at(plan, weft_entry_tensor(plan, first))->c / first->slice : 1u;
}

/* ---------------------------------------------------------------- figures */

/* In the order of the header's fields, of which the first three have 64 bits. */
enum { MACS, BASE_MACS, ELEMENTS, ROW_STEPS, CALLS, FIGURES };

/* *sum += a * b, UINT64_MAX if that is too much. */
static WEFT_APART void add_product(uint64_t *sum, uint32_t a, uint64_t b)
{
    uint64_t product;
    if (__builtin_mul_overflow(b, a, &product) || __builtin_add_overflow(*sum, product, sum)) {
        *sum = UINT64_MAX;
    }
}

/*
 * Sum over i in [0, n) of clamp(adv*i + c, 0, m), in closed form. It is below 2^31, as n has 16 bits and m 15: what
 * wraps on the way does no harm, and 32-bit divisions spare the firmware the routine for 64 bits.
 */
static WEFT_APART uint32_t sum_clamped(int32_t adv, int32_t c, int32_t m, int32_t n)
{
    int32_t low = c > 0 ? 0 : -c / adv + 1;
    int32_t high = c >= m ? 0 : (m - c + adv - 1) / adv;
    low = weft_min(low, n);
    high = weft_max(weft_min(high, n), low);
    const uint32_t count = (uint32_t)(high - low), inner = (uint32_t)((uint64_t)(uint32_t)(low + high - 1) * count / 2);
    return (uint32_t)adv * inner + (uint32_t)c * count + (uint32_t)(n - high) * (uint32_t)m;
}

/* Positions of [first, end) that a span covers in `steps` steps, with repetition. */
static uint32_t covered(const weft_span_t *span, int32_t steps, int32_t first, int32_t end)
{
    return sum_clamped(span->adv, span->hi - first, end - first, steps) -
           sum_clamped(span->adv, span->lo - first, end - first, steps);
}

/*
 * Add to *sum `factor` times the taps inside [0, in) of the output positions, below `out`, that a span covers, with
 * repetition; NULL: of all of them, once.
 */
static WEFT_APART void add_taps(uint64_t *sum, const weft_reads_t *r, uint32_t axis, const weft_span_t *span,
                                int32_t steps, uint64_t factor)
{
    const int32_t in = weft_size(weft_tensor_at(r->plan, r->op->input0), axis);
    const int32_t out = weft_size(weft_tensor_at(r->plan, r->op->output), axis);
    const int32_t stride = weft_stride(r->op, axis);
    int32_t shift = weft_pad_before(r->op, axis);
    for (int32_t k = weft_kernel(r->op, axis); k > 0; k--, shift -= weft_dilation(r->op, axis)) {
        /* Output positions whose tap is inside: first <= y < end. */
        const int32_t first = shift <= 0 ? 0 : (shift + stride - 1) / stride;
        const int32_t end = in + shift <= 0 ? 0 : weft_min((in + shift + stride - 1) / stride, out);
        if (first < end) {
            add_product(sum, span == NULL ? (uint32_t)(end - first) : covered(span, steps, first, end), factor);
        }
    }
}

/* Of an operator, r its last read. */
static WEFT_APART void add_figures(const weft_reads_t *r, int32_t row_steps, uint64_t *sum)
{
    const weft_tensor_t *in = weft_tensor_at(r->plan, r->tensor), *out = weft_tensor_at(r->plan, r->op->output);
    const bool conv = WEFT_IS(r->op, CONV2D);
    const weft_span_t rows = weft_new_rows(r->entry);
    uint64_t across = 0;
    if (weft_consumes(r->op)) {
        add_product(&sum[ELEMENTS], (uint32_t)in->h * in->w, in->c);
    } else {
        add_product(&sum[ELEMENTS], covered(&rows, row_steps, 0, out->h), (uint32_t)out->w * out->c);
    }
    if (conv || WEFT_IS(r->op, DWCONV2D)) {
        add_taps(&across, r, 1, NULL, 0, (conv ? in->c / (uint32_t)r->op->groups : 1u) * out->c);
    }
    for (uint32_t i = MACS; i <= BASE_MACS; i++) {
        if (WEFT_IS(r->op, FULLY_CONNECTED)) {
            add_product(&sum[i], (uint32_t)in->h * in->w * in->c, out->c);
        } else if (across != 0) {
            add_taps(&sum[i], r, 0, i == MACS ? &rows : NULL, row_steps, across);
        }
    }
}

static int check_figures(const weft_plan_t *plan, const uint64_t *sum, weft_error_t *err)
{
    const uint8_t *p = plan->bytes + WEFT_HEADER_MACS;
    for (uint32_t i = 0; i < FIGURES; i++) {
        const uint64_t declared = i < ROW_STEPS ? weft_rd64(p) : weft_rd32(p);
        if (sum[i] != declared || sum[i] == UINT64_MAX) {
            weft_locate(plan, WEFT_NONE, p, err);
            return WEFT_ERR_DECLARED;
        }
        p += i < ROW_STEPS ? 8 : 4;
    }
    return WEFT_OK;
}

/* ---------------------------------------------------------------- all entries */

/* Everything about an entry, and its figures. */
static WEFT_APART int check_entry(const weft_plan_t *plan, const weft_entry_t *e, const place_t *at, uint64_t *sum)
{
    const weft_tensor_t *t = weft_tensor_at(plan, weft_entry_tensor(plan, e));
    const weft_op_t *op = weft_is_input(e) ? NULL : weft_op_at(plan, e->op);
    const weft_tensor_t *over = op != NULL && weft_consumes(op) ? weft_tensor_at(plan, op->input0) : t;
    int result = check_window(e, op, over, at->segment);
    if (result == WEFT_OK && !may_slice(plan, e, op, at->segment_first)) {
        result = WEFT_ERR_POLICY;
    }
    if (op == NULL) {
        add_product(&sum[ELEMENTS], (uint32_t)t->h * t->w, t->c);
        return result;
    }
    weft_reads_t r = {plan, e, e + 1, op, 0, 0, 0};
    while (result == WEFT_OK && weft_next_read(&r)) {
        result = check_read(&r, at);
    }
    if (result == WEFT_OK) {
        r.entry = e; /* the reads have run out */
        add_figures(&r, at->segment->row_steps, sum);
    }
    return result;
}

static int check_stage(const weft_plan_t *plan, const weft_stage_t *stage, uint64_t *sum, weft_error_t *err)
{
    const weft_segment_t *s = weft_segment_at(plan, stage->first_segment), *const end = s + stage->segment_count;
    const weft_entry_t *e = weft_entry_at(plan, s->first_entry);
    place_t at = {s, e, e};
    for (; at.segment != end; at.segment = ++s) {
        add_product(&sum[ROW_STEPS], s->row_steps, 1);
        add_product(&sum[CALLS], (uint32_t)s->row_steps * s->col_steps, s->entry_count * sweeps(plan, e));
        at.segment_first = e;
        for (uint32_t left = s->entry_count; left > 0; left--, e++) {
            const bool sink = left == 1 && s + 1 == end;
            weft_locate_entry(plan, e, err);
            const int r = e->flags != 0 && !sink ? WEFT_ERR_POLICY : check_entry(plan, e, &at, sum);
            if (r != WEFT_OK) {
                return r;
            }
            if (sink && e->policy != WEFT_POLICY_FULL) {
                return WEFT_ERR_POLICY;
            }
        }
    }
    return WEFT_OK;
}

int weft_verify_regions(const weft_plan_t *plan, weft_error_t *err)
{
    uint64_t sum[FIGURES] = {0};
    for (uint32_t i = 0; i < plan->stage_count; i++) {
        const int r = check_stage(plan, weft_stage_at(plan, i), sum, err);
        if (r != WEFT_OK) {
            return r;
        }
    }
    for (uint32_t i = plan->input_count; i < plan->io_count; i++) {
        const weft_entry_t *e = weft_entry_at(plan, weft_entry_of(plan, weft_io_tensor(plan, i)));
        weft_locate_entry(plan, e, err);
        if (e->policy != WEFT_POLICY_FULL) {
            return WEFT_ERR_POLICY;
        }
    }
    return check_figures(plan, sum, err);
}
