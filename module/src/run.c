/* SPDX-License-Identifier: Apache-2.0 */
/* The executor: the one loop nest of docs/design.md section 2. Everything was proved by weft_open(). */
#include "plan.h"

/* A run in progress. */
typedef struct {
    const weft_plan_t *plan;
    const weft_io_t *io;
    uint8_t *arena;
    weft_stage_t stage;
    weft_segment_t segment;
    int32_t i, j; /* row step, column step */
} run_t;

static const weft_io_t no_io;

/* Columns that a tile holds at column step j. */
static inline weft_range_t tile_cols(const weft_entry_t *e, int32_t j, int32_t w)
{
    weft_span_t span = {e->col_adv, e->col_off, e->col_off + e->col_ext};
    return weft_at(&span, j, w);
}

/* Copy n bytes, by words where both ends allow: to anywhere else, or down within the same bytes. */
static void copy_down(uint8_t *dst, const uint8_t *src, int32_t n)
{
    if ((((uintptr_t)dst | (uintptr_t)src) & 3u) == 0) {
        for (; n >= 16; n -= 16, dst += 16, src += 16) {
            uint32_t words[4];
            __builtin_memcpy(words, __builtin_assume_aligned(src, 4), sizeof words);
            __builtin_memcpy(__builtin_assume_aligned(dst, 4), words, sizeof words);
        }
        for (; n >= 4; n -= 4, dst += 4, src += 4) {
            uint32_t word;
            __builtin_memcpy(&word, __builtin_assume_aligned(src, 4), sizeof word);
            __builtin_memcpy(__builtin_assume_aligned(dst, 4), &word, sizeof word);
        }
    }
    for (; n > 0; n--) {
        *dst++ = *src++;
    }
}

/* How kernels see tensor t at the current step. */
static void view(const run_t *run, uint32_t t, weft_view_t *v)
{
    const weft_plan_t *plan = run->plan;
    weft_tensor_t tensor;
    weft_tensor(plan, t, &tensor);
    v->c = tensor.c;
    v->h = tensor.h;
    v->w = tensor.w;
    v->zero_point = tensor.zero_point;
    v->ring_stride = tensor.w * tensor.c;
    v->cap = tensor.h;
    v->split = INT32_MAX;
    uint32_t p = weft_entry_of(plan, t);
    if (p == WEFT_NONE) {
        v->ring = (int8_t *)(uintptr_t)weft_const(plan, t);
        return;
    }
    weft_entry_t e;
    weft_entry(plan, p, &e);
    if (e.policy == WEFT_POLICY_TILE) {
        weft_span_t rows = weft_new_rows(&e);
        v->ring = (int8_t *)run->arena + e.aux;
        v->cap = e.keep;
        v->tile = (int8_t *)run->arena + e.offset;
        v->split = v->tile_y = weft_at(&rows, run->i, tensor.h).lo;
        v->tile_x = tile_cols(&e, run->j, tensor.w).lo;
        v->tile_stride = weft_min(e.col_ext, tensor.w) * tensor.c;
        return;
    }
    v->ring = (int8_t *)run->arena + e.offset;
    if (e.policy == WEFT_POLICY_ROWS) {
        v->cap = e.keep;
    } else if (e.policy == WEFT_POLICY_EXTERNAL) {
        v->ring = (int8_t *)(uintptr_t)run->io->external[e.op & (WEFT_INPUT_BIT - 1u)];
    }
}

/* A tile's new rows at this row step, and where they are. */
typedef struct {
    const weft_entry_t *entry;
    weft_range_t rows;
    int32_t h, pixel, row, stride; /* tensor's rows; bytes: of a pixel, of the tensor's rows, of the tile's */
} tile_t;

static tile_t tile(const run_t *run, const weft_entry_t *e, const weft_tensor_t *t)
{
    weft_span_t span = weft_new_rows(e);
    tile_t tile = {e, weft_at(&span, run->i, t->h), t->h, t->c, t->w * t->c, weft_min(e->col_ext, t->w) * t->c};
    return tile;
}

/* Copy the columns [from, to) of a tile to its line store: those of its rows that the next row step keeps. */
static void save_lines(const run_t *run, const tile_t *t, int32_t tile_x, int32_t from, int32_t to)
{
    const weft_entry_t *e = t->entry;
    weft_span_t kept = {e->row_adv, e->row_off, e->row_off + e->keep};
    weft_range_t next = weft_at(&kept, run->i + 1, t->h);
    int32_t y = weft_max(t->rows.lo, next.lo), end = weft_min(t->rows.hi, next.hi);
    if (y >= end) {
        return;
    }
    const uint8_t *src = run->arena + e->offset + (from - tile_x) * t->pixel + (y - t->rows.lo) * t->stride;
    uint8_t *lines = run->arena + e->aux + from * t->pixel;
    int32_t slot = y % e->keep;
    for (; y < end; y++, src += t->stride) {
        copy_down(lines + slot * t->row, src, (to - from) * t->pixel);
        slot = slot + 1 == e->keep ? 0 : slot + 1;
    }
}

/* Move a tile from column step j - 1 to j: what leaves it goes to the line store, what stays moves to its start. */
static void slide(const run_t *run, const weft_entry_t *e, const weft_tensor_t *over)
{
    const weft_range_t before = tile_cols(e, run->j - 1, over->w), now = tile_cols(e, run->j, over->w);
    const int32_t leaving = weft_min(now.lo, before.hi);
    if (leaving <= before.lo) {
        return;
    }
    const tile_t t = tile(run, e, over);
    if (e->keep > 0) {
        save_lines(run, &t, before.lo, before.lo, leaving);
    }
    if (before.hi <= now.lo) {
        return;
    }
    uint8_t *row = run->arena + e->offset;
    const int32_t gone = (now.lo - before.lo) * t.pixel, left = (before.hi - now.lo) * t.pixel;
    for (int32_t y = t.rows.lo; y < t.rows.hi; y++, row += t.stride) {
        copy_down(row, row + gone, left);
    }
}

/* CONCAT: one kernel call per input. */
static void call_concat(const run_t *run, const weft_op_t *op, weft_call_t *call)
{
    for (uint32_t k = 0; k < op->input1; k++) {
        view(run, weft_op_input(run->plan, op, k), &call->in0);
        if (op->kernel_h != 2) { /* whole inputs along H or W: the region is the input's */
            call->y0 = call->x0 = 0;
            call->y1 = call->in0.h;
            call->x1 = call->in0.w;
        }
        weft_kernels[WEFT_OP_CONCAT](call);
        call->axis_offset += op->kernel_h == 0 ? call->in0.h : op->kernel_h == 1 ? call->in0.w : call->in0.c;
    }
}

static void call_kernel(const run_t *run, const weft_op_t *op, weft_call_t *call)
{
    view(run, op->output, &call->out);
    if (op->opcode == WEFT_OP_CONCAT) {
        call_concat(run, op, call);
        return;
    }
    view(run, op->input0, &call->in0);
    if (weft_op_inputs(op) == 2) {
        view(run, op->input1, &call->in1);
    }
    weft_kernels[op->opcode](call);
}

/* Accumulators of a REDUCE or FULLY_CONNECTED: where, and whether this call is the first or last for its output. */
static void accumulate(const run_t *run, const weft_entry_t *e, const weft_op_t *op, const weft_tensor_t *in,
                       weft_call_t *call)
{
    weft_tensor_t out;
    weft_tensor(run->plan, op->output, &out);
    bool h = op->opcode == WEFT_OP_FULLY_CONNECTED || (op->flags & WEFT_OP_REDUCE_H) != 0;
    bool w = op->opcode == WEFT_OP_FULLY_CONNECTED || (op->flags & WEFT_OP_REDUCE_W) != 0;
    call->first = (!h || call->y0 == 0) && (!w || call->x0 == 0);
    call->last = (!h || call->y1 == in->h) && (!w || call->x1 == in->w);
    if (weft_acc_bytes(op, in, &out, e, &run->segment) != 0) {
        call->acc = (int32_t *)(void *)(run->arena + e->aux);
    }
}

static void produce(const run_t *run, uint32_t n)
{
    weft_entry_t e;
    weft_op_t op;
    weft_tensor_t over;
    weft_entry(run->plan, n, &e);
    weft_op(run->plan, e.op, &op);
    weft_tensor(run->plan, weft_consumes(&op) ? op.input0 : op.output, &over);
    if (e.policy == WEFT_POLICY_TILE && run->j > 0) {
        slide(run, &e, &over);
    }
    weft_span_t row_span = weft_new_rows(&e), col_span = weft_new_cols(&e);
    weft_range_t rows = weft_at(&row_span, run->i, over.h), cols = weft_at(&col_span, run->j, over.w);
    if (rows.lo >= rows.hi || cols.lo >= cols.hi) {
        return;
    }
    /* Views are filled in where they are used: the whole call is too much to clear every time. */
    weft_call_t call;
    call.op = &op;
    call.params = op.params == UINT32_MAX ? NULL : run->plan->weights + op.params;
    call.y0 = rows.lo;
    call.y1 = rows.hi;
    call.x0 = cols.lo;
    call.x1 = cols.hi;
    call.axis_offset = 0;
    call.acc = NULL;
    call.first = call.last = false;
    call.scratch = run->stage.scratch_len != 0 ? run->arena + run->stage.scratch : NULL;
    call.scratch_len = run->stage.scratch_len;
    call.macs = NULL;
    if (weft_consumes(&op)) {
        accumulate(run, &e, &op, &over, &call);
    }
#if WEFT_COUNT
    if (run->io->counts != NULL) {
        call.macs = &run->io->counts->macs;
        run->io->counts->calls++;
        run->io->counts->elements += (uint64_t)((rows.hi - rows.lo) * (cols.hi - cols.lo) * over.c);
    }
#endif
    if (run->io->op_fn != NULL) {
        run->io->op_fn(run->io->ctx, e.op, 1);
    }
    call_kernel(run, &op, &call);
    if (run->io->op_fn != NULL) {
        run->io->op_fn(run->io->ctx, e.op, 0);
    }
}

/* Ask the caller for the rows of a streamed input. */
static int receive(const run_t *run, const weft_entry_t *e)
{
    weft_view_t v;
    uint16_t t = weft_entry_tensor(run->plan, e);
    view(run, t, &v);
    weft_span_t span = weft_new_rows(e);
    weft_range_t rows = weft_at(&span, run->i, v.h);
    for (int32_t y = rows.lo; y < rows.hi; y++) {
        if (run->io->input_fn(run->io->ctx, e->op & (WEFT_INPUT_BIT - 1u), (unsigned)y, weft_px(&v, y, 0),
                              (size_t)v.ring_stride) != 0) {
            return WEFT_ERR_INPUT;
        }
#if WEFT_COUNT
        if (run->io->counts != NULL) {
            run->io->counts->elements += (uint64_t)v.ring_stride;
        }
#endif
    }
    return WEFT_OK;
}

static int run_row_step(run_t *run)
{
    uint32_t first = run->segment.first_entry, end = first + run->segment.entry_count;
    weft_entry_t e;
    weft_entry(run->plan, first, &e);
    if (weft_is_input(&e)) {
        return receive(run, &e);
    }
    for (run->j = 0; run->j < run->segment.col_steps; run->j++) {
        for (uint32_t n = first; n < end; n++) {
            produce(run, n);
        }
    }
    run->j = run->segment.col_steps - 1;
    for (uint32_t n = first; n < end; n++) {
        weft_entry(run->plan, n, &e);
        if (e.policy == WEFT_POLICY_TILE && e.keep > 0) {
            weft_tensor_t t;
            weft_tensor(run->plan, weft_entry_tensor(run->plan, &e), &t);
            weft_range_t cols = tile_cols(&e, run->j, t.w);
            tile_t last = tile(run, &e, &t);
            save_lines(run, &last, cols.lo, cols.lo, cols.hi);
        }
    }
    return WEFT_OK;
}

static int run_stage(run_t *run, uint32_t s)
{
    const weft_stage_t *stage = &run->stage;
    weft_stage(run->plan, s, &run->stage);
    uint16_t *state = (uint16_t *)(void *)(run->arena + stage->state);
    memset(state, 0, 4u * (size_t)stage->segment_count);
    uint32_t cur = stage->segment_count, entry = 0;
    for (;;) {
        int next = weft_pull(run->plan, stage, state, cur, &entry);
        if (next < 0) {
            return next; /* not reached with a verified plan */
        }
        cur = (uint32_t)next;
        if (cur == stage->segment_count) {
            return WEFT_OK;
        }
        weft_segment(run->plan, stage->first_segment + cur, &run->segment);
        run->i = WEFT_STATE_DONE(state, cur);
        int r = run_row_step(run);
        if (r != WEFT_OK) {
            return r;
        }
        WEFT_STATE_DONE(state, cur)++;
#if WEFT_COUNT
        if (run->io->counts != NULL) {
            run->io->counts->row_steps++;
        }
#endif
        if (run->io->step_fn != NULL && run->io->step_fn(run->io->ctx) != 0) {
            return WEFT_ERR_ABORTED;
        }
    }
}

/* Whether the caller supplied what every input needs. */
static int check_io(const weft_plan_t *plan, const weft_io_t *io)
{
    for (unsigned i = 0; i < plan->input_count; i++) {
        weft_input_mode_t mode = weft_input_mode(plan, i);
        if ((mode == WEFT_INPUT_STREAMED && io->input_fn == NULL) ||
            (mode == WEFT_INPUT_EXTERNAL && (io->external == NULL || io->external[i] == NULL))) {
            return WEFT_ERR_IO;
        }
    }
    return WEFT_OK;
}

int weft_run(const weft_plan_t *plan, void *arena, size_t arena_len, const weft_io_t *io)
{
    if (plan == NULL || arena == NULL) {
        return WEFT_ERR_ARG;
    }
    if (arena_len < weft_arena_size(plan)) {
        return WEFT_ERR_ARENA_SIZE;
    }
    if ((uintptr_t)arena % weft_arena_align(plan) != 0) {
        return WEFT_ERR_ALIGN;
    }
    run_t run;
    memset(&run, 0, sizeof run);
    run.plan = plan;
    run.io = io != NULL ? io : &no_io;
    run.arena = arena;
    int r = check_io(plan, run.io);
    for (uint32_t s = 0; r == WEFT_OK && s < plan->stage_count; s++) {
        if (run.io->profile_fn != NULL) {
            run.io->profile_fn(run.io->ctx, s, 1);
        }
        r = run_stage(&run, s);
        if (run.io->profile_fn != NULL) {
            run.io->profile_fn(run.io->ctx, s, 0);
        }
    }
    return r;
}
