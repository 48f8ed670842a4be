/* SPDX-License-Identifier: Apache-2.0 */
/* Rules 1 to 3 and 5 of docs/design.md, entry by entry, and the declared figures (rule 7). */
#include "verify.h"

/* Largest |position| that a region may reach: keeps every sum and product of positions in 32 bits. */
#define FAR (1 << 30)

bool weft_same_shape(const weft_tensor_t *a, const weft_tensor_t *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

/* Where an entry is. */
typedef struct {
    const weft_segment_t *segment;
    uint32_t stage_first; /* first entry of its stage */
    uint32_t n;           /* its number */
} place_t;

/* Every step's region is the whole axis. */
static bool whole(const weft_region_t *a, int32_t steps, int32_t size)
{
    return steps == 1 && a->off <= 0 && a->off + a->ext >= size;
}

/* Rules 1, 2 and 5 on one axis: every position of [0, size) is produced (or consumed). */
static bool covers(const weft_entry_t *e, uint32_t axis, int32_t steps, int32_t size)
{
    const weft_region_t *a = weft_region(e, axis);
    if (e->policy != WEFT_POLICY_TILE) { /* exactly once */
        return a->ext == a->adv && a->off <= 0 && a->adv * steps + a->off >= size;
    }
    if (axis == 0) { /* what is kept has been produced; without, rows that nobody reads may be left out */
        return e->keep == 0 || a->off + e->keep <= 0;
    }
    return a->ext >= a->adv && a->off + a->ext <= a->adv && a->adv * (steps - 1) + a->off + a->ext >= size;
}

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

/* The entry's own regions and policy. `over` is the tensor that the regions are over. */
static int check_window(const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *over,
                        const weft_segment_t *segment)
{
    for (uint32_t axis = 0; axis < 2; axis++) {
        const weft_region_t *a = weft_region(e, axis);
        if (a->adv == 0 || a->ext == 0 || (uint32_t)a->adv * (uint32_t)weft_steps(segment, axis) > FAR) {
            return WEFT_ERR_COVERAGE;
        }
    }
    if (!suits(e, op, segment, over->h)) {
        return WEFT_ERR_POLICY;
    }
    for (uint32_t axis = 0; axis < 2; axis++) {
        const int32_t steps = weft_steps(segment, axis), size = weft_size(over, axis);
        if (!covers(e, axis, steps, size)) {
            return op == NULL ? WEFT_ERR_POLICY : WEFT_ERR_COVERAGE;
        }
        if (op != NULL && weft_needs_whole(op) && !whole(weft_region(e, axis), steps, size)) {
            return WEFT_ERR_POLICY;
        }
    }
    return WEFT_OK;
}

/*
 * Rule 3 on one axis: the window of tensor `in`, made by `producer` of the same segment, holds at every step what the
 * operator reads to produce what is new of e; both clamped to the tensor.
 */
static bool holds(const weft_entry_t *e, const weft_op_t *op, const weft_entry_t *producer, const weft_tensor_t *in,
                  uint32_t axis, int32_t steps)
{
    const int32_t size = weft_size(in, axis);
    weft_span_t need = axis == 0 ? weft_new_rows(e) : weft_new_cols(e);
    weft_field(op, axis, &need.lo, &need.hi);
    if (op->opcode == WEFT_OP_RESIZE) {
        const int32_t factor = weft_kernel(op, axis);
        if (steps > 1 && need.adv % factor != 0) {
            return false;
        }
        need.adv /= factor;
    } else {
        need.adv *= op->opcode == WEFT_OP_CONCAT ? 1 : weft_stride(op, axis);
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

/* What an operator in entry `e` reads of tensor t, made by entry p. */
static int check_read(const weft_plan_t *plan, const weft_reads_t *r, const place_t *at)
{
    if (r->producer == WEFT_NONE) {
        return WEFT_OK;
    }
    if (r->producer >= at->n) {
        return WEFT_ERR_GRAPH;
    }
    const weft_entry_t *producer = weft_entry_at(plan, r->producer);
    const uint32_t policy = producer->policy;
    if (r->producer < at->stage_first) { /* done */
        return policy == WEFT_POLICY_FULL || policy == WEFT_POLICY_EXTERNAL ? WEFT_OK : WEFT_ERR_POLICY;
    }
    const weft_tensor_t *in = weft_tensor_at(plan, r->tensor), *out = weft_tensor_at(plan, r->op->output);
    const bool broadcast = weft_is_binary(r->op) && (in->h != out->h || in->w != out->w);
    if (broadcast || weft_needs_whole(r->op)) {
        return WEFT_ERR_POLICY;
    }
    const bool same_segment = r->producer >= at->segment->first_entry;
    if (!weft_is_input(producer)) {
        const weft_op_t *made_by = weft_op_at(plan, producer->op);
        if (weft_ends_rows(made_by) || (same_segment && weft_consumes(made_by))) {
            return WEFT_ERR_POLICY;
        }
    }
    if (!same_segment) { /* rows are checked by the replay, columns are complete */
        return policy == WEFT_POLICY_TILE ? WEFT_ERR_POLICY : WEFT_OK;
    }
    return holds(r->entry, r->op, producer, in, 0, at->segment->row_steps) &&
                   holds(r->entry, r->op, producer, in, 1, at->segment->col_steps)
               ? WEFT_OK
               : WEFT_ERR_NEED;
}

/*
 * Rule 8: a segment may make its tensors in slices of channels if it is a convolution that reads nothing of the
 * segment, and depthwise ones, all with as many channels, of which nothing is kept.
 */
static bool may_slice(const weft_plan_t *plan, const weft_entry_t *e, const weft_op_t *op, const place_t *at)
{
    const weft_entry_t *first = weft_entry_at(plan, at->segment->first_entry);
    if (e->slice == 0 || op == NULL || e->slice != first->slice) {
        return e->slice == 0 && first->slice == 0;
    }
    const weft_tensor_t *out = weft_tensor_at(plan, op->output);
    const uint32_t p = weft_entry_of(plan, op->input0);
    const bool tile = e->policy == WEFT_POLICY_TILE, inner = p != WEFT_NONE && p >= at->segment->first_entry;
    const bool leads = op->opcode == WEFT_OP_CONV2D && op->groups == 1 && !inner && tile;
    const bool follows = op->opcode == WEFT_OP_DWCONV2D && weft_tensor_at(plan, op->input0)->c == out->c;
    return (leads || follows) && !(tile && e->keep != 0) && e->slice < out->c && out->c % e->slice == 0 &&
           weft_tensor_at(plan, weft_entry_tensor(plan, first))->c == out->c;
}

/* Sweeps along the columns that a row step takes. */
static uint32_t sweeps(const weft_plan_t *plan, const weft_segment_t *segment)
{
    const weft_entry_t *e = weft_entry_at(plan, segment->first_entry);
    return e->slice != 0 ? (uint32_t)weft_tensor_at(plan, weft_entry_tensor(plan, e))->c / e->slice : 1u;
}

static int check_entry(const weft_plan_t *plan, const place_t *at)
{
    const weft_entry_t *e = weft_entry_at(plan, at->n);
    const weft_op_t *op = weft_is_input(e) ? NULL : weft_op_at(plan, e->op);
    const uint32_t over = op != NULL && weft_consumes(op) ? op->input0 : weft_entry_tensor(plan, e);
    int r = check_window(e, op, weft_tensor_at(plan, over), at->segment);
    r = r == WEFT_OK && !may_slice(plan, e, op, at) ? WEFT_ERR_POLICY : r;
    weft_reads_t reads = weft_reads(plan, at->n, 1);
    while (r == WEFT_OK && weft_next_read(&reads)) {
        r = check_read(plan, &reads, at);
    }
    return r;
}

/* ---------------------------------------------------------------- figures */

/* In the order of the header's fields, of which the first three have 64 bits. */
enum { MACS, BASE_MACS, ELEMENTS, ROW_STEPS, CALLS, FIGURES };

void weft_add_product(uint64_t *sum, uint64_t a, uint64_t b)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(*sum, product, sum)) {
        *sum = UINT64_MAX;
    }
}

/*
 * Sum over i in [0, n) of clamp(adv*i + c, 0, m), m >= 0, in closed form. Offsets, extents and tensors have 16 bits, so
 * that 32-bit divisions will do: they spare the firmware the routine for 64 bits.
 */
static uint64_t sum_clamped(int32_t adv, int32_t c, int32_t m, int32_t n)
{
    int32_t low = c > 0 ? 0 : -c / adv + 1;
    int32_t high = c >= m ? 0 : (m - c + adv - 1) / adv;
    low = weft_min(low, n);
    high = weft_max(weft_min(high, n), low);
    const int64_t count = high - low, twice = (int64_t)(low + high - 1) * count;
    return (uint64_t)(adv * (twice / 2) + c * count + (int64_t)(n - high) * m);
}

/* Positions of [first, end) that a span covers in `steps` steps, with repetition. */
static uint64_t covered(const weft_span_t *span, int32_t steps, int32_t first, int32_t end)
{
    return sum_clamped(span->adv, span->hi - first, end - first, steps) -
           sum_clamped(span->adv, span->lo - first, end - first, steps);
}

/* Sum of the taps inside [0, in) of the output positions, below `out`, that a span covers, with repetition. */
static uint64_t taps(const weft_op_t *op, uint32_t axis, const weft_span_t *span, int32_t steps, int32_t out,
                     int32_t in)
{
    const int32_t stride = weft_stride(op, axis);
    int32_t shift = weft_pad_before(op, axis);
    uint64_t sum = 0;
    for (int32_t k = weft_kernel(op, axis); k > 0; k--, shift -= weft_dilation(op, axis)) {
        /* Output positions whose tap is inside: first <= y < end. */
        int32_t first = shift <= 0 ? 0 : (shift + stride - 1) / stride;
        int32_t end = in + shift <= 0 ? 0 : (in + shift + stride - 1) / stride;
        end = weft_min(end, out);
        if (first < end) {
            sum += covered(span, steps, first, end);
        }
    }
    return sum;
}

static void add_figures(const weft_plan_t *plan, const weft_entry_t *e, int32_t row_steps, uint64_t *sum)
{
    const weft_tensor_t *out = weft_tensor_at(plan, weft_entry_tensor(plan, e));
    const uint32_t row = (uint32_t)out->w * out->c;
    if (weft_is_input(e)) {
        weft_add_product(&sum[ELEMENTS], row, out->h);
        return;
    }
    const weft_op_t *op = weft_op_at(plan, e->op);
    const weft_tensor_t *in = weft_tensor_at(plan, weft_op_input(plan, op, 0));
    if (weft_consumes(op)) {
        const uint32_t size = (uint32_t)in->h * in->w * in->c;
        weft_add_product(&sum[ELEMENTS], size, 1);
        if (op->opcode == WEFT_OP_FULLY_CONNECTED) {
            weft_add_product(&sum[MACS], size, out->c);
            weft_add_product(&sum[BASE_MACS], size, out->c);
        }
        return;
    }
    const weft_span_t rows = weft_new_rows(e);
    weft_add_product(&sum[ELEMENTS], covered(&rows, row_steps, 0, out->h), row);
    if (op->opcode == WEFT_OP_CONV2D || op->opcode == WEFT_OP_DWCONV2D) {
        const weft_span_t height = {1, 0, out->h}, width = {1, 0, out->w};
        const uint32_t depth = op->opcode == WEFT_OP_CONV2D ? in->c / (uint32_t)op->groups : 1;
        const uint64_t across = taps(op, 1, &width, 1, out->w, in->w) * depth * out->c;
        weft_add_product(&sum[MACS], taps(op, 0, &rows, row_steps, out->h, in->h), across);
        weft_add_product(&sum[BASE_MACS], taps(op, 0, &height, 1, out->h, in->h), across);
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

static int check_stage(const weft_plan_t *plan, const weft_stage_t *stage, uint64_t *sum, weft_error_t *err)
{
    const weft_segment_t *s = weft_segment_at(plan, stage->first_segment), *const end = s + stage->segment_count;
    place_t at = {s, s->first_entry, s->first_entry};
    for (; at.segment != end; at.segment++) {
        s = at.segment;
        weft_add_product(&sum[ROW_STEPS], s->row_steps, 1);
        weft_add_product(&sum[CALLS], (uint32_t)s->row_steps * s->col_steps, s->entry_count * sweeps(plan, s));
        for (uint32_t left = s->entry_count; left > 0; left--, at.n++) {
            const weft_entry_t *e = weft_entry_at(plan, at.n);
            const bool sink = left == 1 && s + 1 == end;
            weft_locate(plan, at.n, e, err);
            const int r = e->flags != 0 && !sink ? WEFT_ERR_POLICY : check_entry(plan, &at);
            if (r != WEFT_OK) {
                return r;
            }
            if (sink && e->policy != WEFT_POLICY_FULL) {
                return WEFT_ERR_POLICY;
            }
            add_figures(plan, e, s->row_steps, sum);
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
        const uint32_t n = weft_entry_of(plan, weft_io_tensor(plan, i));
        const weft_entry_t *e = weft_entry_at(plan, n);
        if (e->policy != WEFT_POLICY_FULL) {
            weft_locate(plan, n, e, err);
            return WEFT_ERR_POLICY;
        }
    }
    return check_figures(plan, sum, err);
}
