/* SPDX-License-Identifier: Apache-2.0 */
/* Structure of the schedule and rules 1 to 3 and 5 of docs/design.md, and the declared figures (rule 7). */
#include "verify.h"

/* Largest |position| that a region may reach: keeps every product in 32 bits. */
#define FAR ((int64_t)1 << 30)

/* Where an entry is. */
typedef struct {
    uint32_t stage_first; /* first entry of its stage */
    uint32_t segment_first, segment_end;
    weft_segment_t segment;
} place_t;

static uint32_t entry_where(const weft_plan_t *plan, uint32_t entry)
{
    return weft_where(plan, plan->entries, entry, WEFT_ENTRY_SIZE);
}

/* Stages own consecutive segments, segments consecutive entries, and nothing is left over. */
static int check_structure(const weft_plan_t *plan, weft_error_t *err)
{
    uint32_t segment = 0, entry = plan->placed_count;
    for (uint32_t s = 0; s < plan->stage_count; s++) {
        weft_stage_t stage;
        weft_stage(plan, s, &stage);
        if (stage.first_segment != segment || stage.segment_count == 0 || stage.segment_count > WEFT_MAX_SEGMENTS ||
            stage.segment_count > plan->segment_count - segment) {
            return weft_fail(err, WEFT_ERR_INDEX, s, weft_where(plan, plan->stages, s, WEFT_STAGE_SIZE));
        }
        segment += stage.segment_count;
    }
    for (uint32_t s = 0; s < plan->segment_count; s++) {
        weft_segment_t g;
        weft_segment(plan, s, &g);
        if (g.first_entry != entry || g.entry_count == 0 || entry > plan->entry_count ||
            g.entry_count > plan->entry_count - entry || g.row_steps == 0 || g.col_steps == 0) {
            return weft_fail(err, WEFT_ERR_INDEX, s, weft_where(plan, plan->segments, s, WEFT_SEGMENT_SIZE));
        }
        entry += g.entry_count;
    }
    if (segment != plan->segment_count || entry != plan->entry_count) {
        return weft_fail(err, WEFT_ERR_INDEX, WEFT_NONE, weft_where(plan, plan->stages, 0, 0));
    }
    return WEFT_OK;
}

/* entry_of_tensor and the entries are inverse to each other, so that every tensor has exactly one producer. */
static int check_producers(const weft_plan_t *plan, weft_error_t *err)
{
    uint32_t where = (uint32_t)(plan->entry_of - plan->bytes);
    if (plan->entry_count != (uint32_t)plan->op_count + plan->input_count) {
        return weft_fail(err, WEFT_ERR_GRAPH, WEFT_NONE, where);
    }
    for (uint32_t n = 0; n < plan->entry_count; n++) {
        weft_entry_t e;
        weft_entry(plan, n, &e);
        uint32_t number = e.op & (WEFT_INPUT_BIT - 1u);
        if (number >= (weft_is_input(&e) ? plan->input_count : plan->op_count)) {
            return weft_fail(err, WEFT_ERR_INDEX, n, entry_where(plan, n));
        }
        if (weft_entry_of(plan, weft_entry_tensor(plan, &e)) != n) {
            return weft_fail(err, WEFT_ERR_GRAPH, n, entry_where(plan, n));
        }
    }
    uint32_t mapped = 0;
    for (uint32_t i = 0; i < plan->tensor_count; i++) {
        weft_tensor_t t;
        weft_tensor(plan, i, &t);
        uint32_t n = weft_entry_of(plan, i);
        if ((t.flags & WEFT_TENSOR_CONST) != 0 ? n != WEFT_NONE : n >= plan->entry_count) {
            return weft_fail(err, WEFT_ERR_GRAPH, i, where + 2u * i);
        }
        mapped += n != WEFT_NONE;
    }
    return mapped == plan->entry_count ? WEFT_OK : weft_fail(err, WEFT_ERR_GRAPH, WEFT_NONE, where);
}

/* Rule 1 and 5: every position of [0, size) is produced (or consumed) exactly once. */
static bool covers(int32_t adv, int32_t off, int32_t ext, int32_t steps, int32_t size)
{
    return ext == adv && off <= 0 && (int64_t)adv * steps + off >= size;
}

/* Every step's region is the whole axis. */
static bool whole(int32_t off, int32_t ext, int32_t steps, int32_t size)
{
    return steps == 1 && off <= 0 && off + ext >= size;
}

/* Placed entries: network inputs that are resident or external. */
static int check_placed(const weft_entry_t *e)
{
    bool policy = e->policy == WEFT_POLICY_FULL || e->policy == WEFT_POLICY_EXTERNAL;
    return weft_is_input(e) && policy && e->keep == 0 && e->flags == 0 ? WEFT_OK : WEFT_ERR_POLICY;
}

/* The entry's own regions and policy. `over` is the tensor that the regions are over. */
static int check_window(const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *over, const place_t *at)
{
    int32_t rows = at->segment.row_steps, cols = at->segment.col_steps;
    if (e->row_adv < 1 || e->row_ext < 1 || e->col_adv < 1 || e->col_ext < 1 || (int64_t)e->row_adv * rows > FAR ||
        (int64_t)e->col_adv * cols > FAR) {
        return WEFT_ERR_COVERAGE;
    }
    bool full = e->policy == WEFT_POLICY_FULL, ring = e->policy == WEFT_POLICY_ROWS;
    if (e->flags != 0 && (!full || op == NULL || weft_consumes(op))) {
        return WEFT_ERR_POLICY;
    }
    if (op == NULL) { /* streamed input: whole rows, alone in its segment */
        return (full || ring) && at->segment.entry_count == 1 && cols == 1 &&
                       covers(e->row_adv, e->row_off, e->row_ext, rows, over->h) &&
                       whole(e->col_off, e->col_ext, cols, over->w) &&
                       (full ? e->keep == 0 : e->keep >= 1 && e->keep <= over->h)
                   ? WEFT_OK
                   : WEFT_ERR_POLICY;
    }
    if (weft_consumes(op)) {
        if ((weft_ends_rows(op) && !full) || !(full || ring)) {
            return WEFT_ERR_POLICY;
        }
    }
    if (full || ring) {
        if (full ? e->keep != 0 : e->keep < 1 || e->keep > over->h) {
            return WEFT_ERR_POLICY;
        }
        if (!covers(e->row_adv, e->row_off, e->row_ext, rows, over->h) ||
            !covers(e->col_adv, e->col_off, e->col_ext, cols, over->w)) {
            return WEFT_ERR_COVERAGE;
        }
    } else if (e->policy == WEFT_POLICY_TILE) {
        if (e->keep >= e->row_ext || (e->keep > 0 && e->keep > e->row_ext - e->row_adv)) {
            return WEFT_ERR_POLICY;
        }
        if ((e->keep > 0 && e->row_off + e->keep > 0) || e->col_ext < e->col_adv ||
            e->col_off + e->col_ext > e->col_adv || e->col_adv * (cols - 1) + e->col_off + e->col_ext < over->w) {
            return WEFT_ERR_COVERAGE;
        }
    } else {
        return WEFT_ERR_POLICY;
    }
    if (weft_needs_whole(op) &&
        (!whole(e->row_off, e->row_ext, rows, over->h) || !whole(e->col_off, e->col_ext, cols, over->w))) {
        return WEFT_ERR_POLICY;
    }
    return WEFT_OK;
}

/* Receptive field of a span, as a span. False if it is not affine. */
static bool field_span(const weft_op_t *op, int axis, const weft_span_t *out, int32_t steps, weft_span_t *in)
{
    int32_t stride = 1;
    if (op->opcode == WEFT_OP_RESIZE) {
        int32_t factor = axis == 0 ? op->kernel_h : op->kernel_w;
        if (steps > 1 && out->adv % factor != 0) {
            return false;
        }
        in->adv = out->adv / factor;
    } else {
        stride = axis == 0 ? op->stride_h : op->stride_w;
        in->adv = (int64_t)out->adv * stride > FAR ? 0 : out->adv * stride;
    }
    weft_range_t range = {out->lo, out->hi};
    range = weft_field(op, axis, range);
    in->lo = range.lo;
    in->hi = range.hi;
    return true;
}

/* Rule 3 on one axis: the held span contains the needed one at every step, both clamped to [0, size). */
static bool holds(const weft_span_t *held, const weft_span_t *need, int32_t steps, int32_t size)
{
    bool start = (held->adv == need->adv && held->lo <= need->lo) || (int64_t)held->adv * (steps - 1) + held->lo <= 0;
    bool end = (held->adv == need->adv && held->hi >= need->hi) || held->hi >= size;
    return start && end;
}

/* What operator `op` in entry `e` reads of tensor t, made by entry p. */
static int check_read(const weft_plan_t *plan, const weft_entry_t *e, const weft_op_t *op, const place_t *at,
                      uint32_t t, uint32_t p)
{
    weft_tensor_t in, out;
    weft_tensor(plan, t, &in);
    weft_tensor(plan, op->output, &out);
    weft_entry_t producer;
    weft_entry(plan, p, &producer);
    bool done = p < at->stage_first;
    if (done) {
        return producer.policy == WEFT_POLICY_FULL || producer.policy == WEFT_POLICY_EXTERNAL ? WEFT_OK
                                                                                              : WEFT_ERR_POLICY;
    }
    bool broadcast = !weft_consumes(op) && op->opcode >= WEFT_OP_ADD && op->opcode <= WEFT_OP_MUL &&
                     (in.h != out.h || in.w != out.w);
    if (weft_needs_whole(op) || broadcast) {
        return WEFT_ERR_POLICY;
    }
    bool same_segment = p >= at->segment_first;
    if (!weft_is_input(&producer)) {
        weft_op_t made_by;
        weft_op(plan, producer.op, &made_by);
        if (weft_ends_rows(&made_by) || (same_segment && weft_consumes(&made_by))) {
            return WEFT_ERR_POLICY;
        }
    }
    if (!same_segment) { /* rows are checked by the replay, columns are complete */
        return producer.policy == WEFT_POLICY_TILE ? WEFT_ERR_POLICY : WEFT_OK;
    }
    weft_span_t new_rows = weft_new_rows(e), new_cols = weft_new_cols(e), rows, cols;
    if (!field_span(op, 0, &new_rows, at->segment.row_steps, &rows) ||
        !field_span(op, 1, &new_cols, at->segment.col_steps, &cols)) {
        return WEFT_ERR_NEED;
    }
    weft_span_t held_rows = {producer.row_adv, producer.row_off, producer.row_off + producer.row_ext};
    weft_span_t held_cols = {producer.col_adv, producer.col_off, producer.col_off + producer.col_ext};
    if (producer.policy != WEFT_POLICY_TILE) { /* older columns, and older rows up to the ring's capacity, are there */
        held_cols.lo = -(int32_t)FAR;
        held_cols.adv = cols.adv == held_cols.adv ? held_cols.adv : 0;
        held_rows.lo =
            producer.policy == WEFT_POLICY_ROWS && producer.keep < in.h ? held_rows.hi - producer.keep : -(int32_t)FAR;
    }
    return holds(&held_rows, &rows, at->segment.row_steps, in.h) &&
                   holds(&held_cols, &cols, at->segment.col_steps, in.w)
               ? WEFT_OK
               : WEFT_ERR_NEED;
}

static int check_entry(const weft_plan_t *plan, uint32_t n, const place_t *at)
{
    weft_entry_t e;
    weft_entry(plan, n, &e);
    if (weft_is_input(&e)) {
        weft_tensor_t t;
        weft_tensor(plan, weft_entry_tensor(plan, &e), &t);
        return check_window(&e, NULL, &t, at);
    }
    weft_op_t op;
    weft_op(plan, e.op, &op);
    weft_tensor_t over;
    weft_tensor(plan, weft_consumes(&op) ? op.input0 : op.output, &over);
    int r = check_window(&e, &op, &over, at);
    for (uint32_t k = 0; r == WEFT_OK && k < weft_op_inputs(&op); k++) {
        uint32_t t = weft_op_input(plan, &op, k);
        uint32_t p = weft_entry_of(plan, t);
        if (p == WEFT_NONE) {
            continue;
        }
        r = p >= n ? WEFT_ERR_GRAPH : check_read(plan, &e, &op, at, t, p);
    }
    return r;
}

int weft_verify_regions(const weft_plan_t *plan, weft_error_t *err)
{
    int r = check_structure(plan, err);
    r = r != WEFT_OK ? r : check_producers(plan, err);
    if (r != WEFT_OK) {
        return r;
    }
    for (uint32_t n = 0; n < plan->entry_count; n++) {
        weft_entry_t e;
        weft_entry(plan, n, &e);
        if ((e.flags & ~WEFT_ENTRY_OVERLAP) != 0 ||
            weft_rd16(plan->entries + n * WEFT_ENTRY_SIZE + WEFT_ENTRY_RESERVED) != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, n, entry_where(plan, n));
        }
        r = n < plan->placed_count ? check_placed(&e) : WEFT_OK;
        if (r != WEFT_OK) {
            return weft_fail(err, r, n, entry_where(plan, n));
        }
    }
    for (uint32_t s = 0; s < plan->stage_count; s++) {
        weft_stage_t stage;
        weft_stage(plan, s, &stage);
        place_t at = {0};
        for (uint32_t g = 0; g < stage.segment_count; g++) {
            weft_segment(plan, stage.first_segment + g, &at.segment);
            at.segment_first = at.segment.first_entry;
            at.segment_end = at.segment_first + at.segment.entry_count;
            at.stage_first = g == 0 ? at.segment_first : at.stage_first;
            for (uint32_t n = at.segment_first; n < at.segment_end; n++) {
                bool sink_ends = g + 1u == stage.segment_count && n + 1u == at.segment_end;
                bool may_overlap = (plan->entries[n * WEFT_ENTRY_SIZE + WEFT_ENTRY_FLAGS] & WEFT_ENTRY_OVERLAP) != 0;
                r = may_overlap && !sink_ends ? WEFT_ERR_POLICY : check_entry(plan, n, &at);
                if (r != WEFT_OK) {
                    return weft_fail(err, r, n, entry_where(plan, n));
                }
            }
        }
        weft_entry_t sink;
        weft_entry(plan, at.segment_end - 1u, &sink);
        if (sink.policy != WEFT_POLICY_FULL) {
            return weft_fail(err, WEFT_ERR_POLICY, at.segment_end - 1u, entry_where(plan, at.segment_end - 1u));
        }
    }
    for (uint32_t i = 0; i < plan->output_count; i++) {
        uint32_t n = weft_entry_of(plan, weft_io_tensor(plan, plan->input_count + i));
        weft_entry_t e;
        weft_entry(plan, n, &e);
        if (e.policy != WEFT_POLICY_FULL) {
            return weft_fail(err, WEFT_ERR_POLICY, n, entry_where(plan, n));
        }
    }
    return WEFT_OK;
}

/* First row of `in` that an entry still reads, at row step `step` or later; `in->h` if none. */
static int32_t next_read(const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *over,
                         int32_t step, int32_t steps)
{
    if (step >= steps) {
        return in->h;
    }
    if (weft_needs_whole(op) ||
        (!weft_consumes(op) && op->opcode >= WEFT_OP_ADD && op->opcode <= WEFT_OP_MUL && in->h != over->h)) {
        return 0;
    }
    weft_span_t span = weft_new_rows(e);
    weft_range_t rows = weft_at(&span, step, over->h);
    if (rows.lo >= over->h) {
        return in->h;
    }
    rows.hi = rows.lo + 1;
    return weft_clamp(weft_field(op, 0, rows).lo, 0, in->h);
}

/* Kernels that read each element before they write it at the same place. */
static bool in_place(const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out)
{
    bool same = in->h == out->h && in->w == out->w && in->c == out->c;
    return same && (op->opcode == WEFT_OP_LUT || (op->opcode >= WEFT_OP_ADD && op->opcode <= WEFT_OP_MUL));
}

/*
 * Row step `cur` of the stage is about to write rows of y (entry n, which may overlap): whether every row that is still
 * to be read of tensors of earlier stages lies above them.
 */
static bool writes_dead(const weft_plan_t *plan, const weft_stage_t *stage, const uint16_t *state, uint32_t cur,
                        uint32_t n, const weft_entry_t *y)
{
    weft_tensor_t out;
    weft_tensor(plan, weft_entry_tensor(plan, y), &out);
    int64_t row = (int64_t)out.w * out.c;
    int64_t end = y->offset + row * weft_clamp(y->row_adv * (WEFT_STATE_DONE(state, cur) + 1) + y->row_off, 0, out.h);
    weft_segment_t segment;
    weft_segment(plan, stage->first_segment, &segment);
    uint32_t stage_first = segment.first_entry;
    for (uint32_t g = 0; g < stage->segment_count; g++) {
        weft_segment(plan, stage->first_segment + g, &segment);
        for (uint32_t m = segment.first_entry; m < (uint32_t)segment.first_entry + segment.entry_count; m++) {
            weft_entry_t e;
            weft_entry(plan, m, &e);
            if (weft_is_input(&e)) {
                continue;
            }
            weft_op_t op;
            weft_op(plan, e.op, &op);
            for (uint32_t k = 0; k < weft_op_inputs(&op); k++) {
                uint32_t t = weft_op_input(plan, &op, k), p = weft_entry_of(plan, t);
                if (p == WEFT_NONE || p >= stage_first) {
                    continue;
                }
                weft_entry_t x;
                weft_tensor_t in, over;
                weft_entry(plan, p, &x);
                weft_tensor(plan, t, &in);
                weft_tensor(plan, weft_consumes(&op) ? t : op.output, &over);
                if (x.policy != WEFT_POLICY_FULL || x.offset >= y->offset + (uint64_t)(row * out.h) ||
                    y->offset >= x.offset + (uint64_t)((int64_t)in.h * in.w * in.c) ||
                    (m == n && x.offset == y->offset && in_place(&op, &in, &out))) {
                    continue;
                }
                int32_t first = next_read(&e, &op, &in, &over, WEFT_STATE_DONE(state, g), segment.row_steps);
                if (first < in.h && end > x.offset + (int64_t)first * in.w * in.c) {
                    return false;
                }
            }
        }
    }
    return true;
}

/* The stage's output, if it may overlap, is written over dead rows only. */
static WEFT_APART int check_overlap(const weft_plan_t *plan, const weft_stage_t *stage, const uint16_t *state,
                                    weft_error_t *err)
{
    uint32_t sink = stage->segment_count - 1u;
    weft_segment_t segment;
    weft_segment(plan, stage->first_segment + sink, &segment);
    uint32_t n = segment.first_entry + segment.entry_count - 1u;
    weft_entry_t e;
    weft_entry(plan, n, &e);
    if ((e.flags & WEFT_ENTRY_OVERLAP) != 0 && !writes_dead(plan, stage, state, sink, n, &e)) {
        return weft_fail(err, WEFT_ERR_OVERLAP, n, entry_where(plan, n));
    }
    return WEFT_OK;
}

int weft_verify_replay(const weft_plan_t *plan, weft_error_t *err)
{
    for (uint32_t s = 0; s < plan->stage_count; s++) {
        weft_stage_t stage;
        weft_stage(plan, s, &stage);
        uint16_t state[2u * WEFT_MAX_SEGMENTS] = {0};
        uint32_t cur = stage.segment_count, entry = WEFT_NONE;
        for (;;) {
            int next = weft_pull(plan, &stage, state, cur, &entry);
            if (next < 0) {
                return weft_fail(err, next, entry, entry_where(plan, entry));
            }
            cur = (uint32_t)next;
            if (cur == stage.segment_count) {
                break;
            }
            int r = cur + 1u == stage.segment_count ? check_overlap(plan, &stage, state, err) : WEFT_OK;
            if (r != WEFT_OK) {
                return r;
            }
            WEFT_STATE_DONE(state, cur)++;
        }
    }
    return WEFT_OK;
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

/* Sum of the taps inside [0, in) of the output positions that a span produces over `steps`, with repetition. */
static uint64_t taps(const weft_span_t *span, int32_t steps, int32_t out, int32_t in, int32_t kernel, int32_t stride,
                     int32_t dilation, int32_t pad)
{
    uint64_t sum = 0;
    for (int32_t k = 0; k < kernel; k++) {
        /* Output positions whose tap k is inside: first <= y < end. */
        int32_t shift = pad - k * dilation;
        int32_t first = shift <= 0 ? 0 : (shift + stride - 1) / stride;
        int32_t end = in + shift <= 0 ? 0 : (in + shift + stride - 1) / stride;
        first = weft_min(first, out);
        end = weft_min(end, out);
        if (end <= first) {
            continue;
        }
        sum += sum_clamped(span->adv, span->hi - first, end - first, steps) -
               sum_clamped(span->adv, span->lo - first, end - first, steps);
    }
    return sum;
}

typedef struct {
    uint64_t macs, base_macs, elements;
} figures_t;

static void add_figures(const weft_plan_t *plan, const weft_entry_t *e, const weft_segment_t *segment, figures_t *sum)
{
    weft_tensor_t out, in;
    weft_span_t once = {1, 0, 0}, rows = weft_new_rows(e);
    if (weft_is_input(e)) {
        weft_tensor(plan, weft_entry_tensor(plan, e), &out);
        sum->elements = weft_add_sat(sum->elements, (uint64_t)(out.h * out.w * out.c));
        return;
    }
    weft_op_t op;
    weft_op(plan, e->op, &op);
    weft_tensor(plan, op.output, &out);
    weft_tensor(plan, weft_op_input(plan, &op, 0), &in);
    if (weft_consumes(&op)) {
        uint64_t size = (uint64_t)(in.h * in.w * in.c);
        sum->elements = weft_add_sat(sum->elements, size);
        if (op.opcode == WEFT_OP_FULLY_CONNECTED) {
            sum->macs = weft_add_sat(sum->macs, size * (uint64_t)out.c);
            sum->base_macs = weft_add_sat(sum->base_macs, size * (uint64_t)out.c);
        }
        return;
    }
    uint64_t produced = taps(&rows, segment->row_steps, out.h, out.h, 1, 1, 1, 0);
    sum->elements = weft_add_sat(sum->elements, weft_mul_sat(produced, (uint64_t)(out.w * out.c)));
    if (op.opcode == WEFT_OP_CONV2D || op.opcode == WEFT_OP_DWCONV2D) {
        uint64_t depth = op.opcode == WEFT_OP_CONV2D ? (uint64_t)(in.c / op.groups) : 1;
        once.hi = out.w;
        uint64_t across =
            taps(&once, 1, out.w, in.w, op.kernel_w, op.stride_w, op.dilation_w, op.pad_left) * depth * (uint64_t)out.c;
        once.hi = out.h;
        uint64_t down = taps(&once, 1, out.h, in.h, op.kernel_h, op.stride_h, op.dilation_h, op.pad_top);
        uint64_t executed =
            taps(&rows, segment->row_steps, out.h, in.h, op.kernel_h, op.stride_h, op.dilation_h, op.pad_top);
        sum->macs = weft_add_sat(sum->macs, weft_mul_sat(executed, across));
        sum->base_macs = weft_add_sat(sum->base_macs, weft_mul_sat(down, across));
    }
}

int weft_verify_figures(const weft_plan_t *plan, weft_error_t *err)
{
    figures_t sum = {0, 0, 0};
    uint64_t row_steps = 0, calls = 0;
    for (uint32_t g = 0; g < plan->segment_count; g++) {
        weft_segment_t segment;
        weft_segment(plan, g, &segment);
        row_steps += segment.row_steps;
        calls = weft_add_sat(calls, (uint64_t)segment.row_steps * segment.col_steps * segment.entry_count);
        for (uint32_t n = segment.first_entry; n < (uint32_t)segment.first_entry + segment.entry_count; n++) {
            weft_entry_t e;
            weft_entry(plan, n, &e);
            add_figures(plan, &e, &segment, &sum);
        }
    }
    const uint8_t *p = plan->bytes;
    if (row_steps != weft_rd32(p + WEFT_HEADER_ROW_STEPS)) {
        return weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_ROW_STEPS);
    }
    if (calls != weft_rd32(p + WEFT_HEADER_CALLS)) {
        return weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_CALLS);
    }
    if (sum.macs != weft_rd64(p + WEFT_HEADER_MACS) || sum.macs == UINT64_MAX) {
        return weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_MACS);
    }
    if (sum.base_macs != weft_rd64(p + WEFT_HEADER_BASE_MACS) || sum.base_macs == UINT64_MAX) {
        return weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_BASE_MACS);
    }
    if (sum.elements != weft_rd64(p + WEFT_HEADER_ELEMENTS) || sum.elements == UINT64_MAX) {
        return weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_ELEMENTS);
    }
    return WEFT_OK;
}
