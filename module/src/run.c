/* SPDX-License-Identifier: Apache-2.0 */
/* The executor: the one loop nest of docs/design.md section 2. Everything was proved by weft_open(). */
#include "plan.h"

/* A run in progress. */
typedef struct {
    const weft_plan_t *plan;
    const weft_io_t *io;
    uint8_t *arena;
    weft_segment_t segment;
    int32_t i, j; /* row step, column step */
} run_t;

static const weft_io_t no_io;

/* Columns that a tile holds at column step j. */
static weft_range_t tile_cols(const weft_entry_t *e, int32_t j, int32_t w)
{
    weft_span_t span = {e->col_adv, e->col_off, e->col_off + e->col_ext};
    return weft_at(&span, j, w);
}

/* How kernels see tensor t, made by entry p, at the current step. */
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
    v->tile = NULL;
    v->tile_y = v->tile_x = v->tile_stride = 0;
    uint32_t p = weft_entry_of(plan, t);
    if (p == WEFT_NONE) {
        v->ring = (int8_t *)(uintptr_t)weft_const(plan, t);
        return;
    }
    weft_entry_t e;
    weft_entry(plan, p, &e);
    if (e.policy == WEFT_POLICY_EXTERNAL) {
        v->ring = (int8_t *)(uintptr_t)run->io->external[e.op & (WEFT_INPUT_BIT - 1u)];
        return;
    }
    v->ring = (int8_t *)run->arena + e.offset;
    if (e.policy == WEFT_POLICY_ROWS) {
        v->cap = e.keep;
    } else if (e.policy == WEFT_POLICY_TILE) {
        weft_span_t rows = weft_new_rows(&e);
        v->ring = (int8_t *)run->arena + e.aux;
        v->cap = e.keep;
        v->tile = (int8_t *)run->arena + e.offset;
        v->split = v->tile_y = weft_at(&rows, run->i, tensor.h).lo;
        v->tile_x = tile_cols(&e, run->j, tensor.w).lo;
        v->tile_stride = weft_min(e.col_ext, tensor.w) * tensor.c;
    }
}

/* Copy the columns [from, to) of a tile to its line store: those of its rows that the next row step keeps. */
static void save_lines(const run_t *run, const weft_entry_t *e, const weft_tensor_t *t, int32_t tile_x, int32_t from,
                       int32_t to)
{
    weft_span_t new_rows = weft_new_rows(e), kept = {e->row_adv, e->row_off, e->row_off + e->keep};
    weft_range_t rows = weft_at(&new_rows, run->i, t->h), next = weft_at(&kept, run->i + 1, t->h);
    int32_t stride = weft_min(e->col_ext, t->w) * t->c;
    const uint8_t *tile = run->arena + e->offset + (from - tile_x) * t->c;
    for (int32_t y = weft_max(rows.lo, next.lo); y < weft_min(rows.hi, next.hi); y++) {
        memcpy(run->arena + e->aux + ((y % e->keep) * t->w + from) * t->c, tile + (y - rows.lo) * stride,
               (size_t)((to - from) * t->c));
    }
}

/* Move a tile from column step j - 1 to j: what leaves it goes to the line store, what stays moves to its start. */
static void slide(const run_t *run, const weft_entry_t *e, const weft_tensor_t *t)
{
    weft_span_t new_rows = weft_new_rows(e);
    weft_range_t rows = weft_at(&new_rows, run->i, t->h);
    weft_range_t before = tile_cols(e, run->j - 1, t->w), now = tile_cols(e, run->j, t->w);
    int32_t leaving = weft_min(now.lo, before.hi);
    if (leaving > before.lo && e->keep > 0) {
        save_lines(run, e, t, before.lo, before.lo, leaving);
    }
    if (now.lo == before.lo || before.hi <= now.lo) {
        return;
    }
    int32_t stride = weft_min(e->col_ext, t->w) * t->c;
    uint8_t *tile = run->arena + e->offset;
    for (int32_t y = rows.lo; y < rows.hi; y++, tile += stride) {
        memmove(tile, tile + (now.lo - before.lo) * t->c, (size_t)((before.hi - now.lo) * t->c));
    }
}

static void call_kernel(const run_t *run, const weft_op_t *op, weft_call_t *call)
{
    weft_kernel_fn kernel = weft_kernels[op->opcode];
    uint32_t inputs = weft_op_inputs(op);
    view(run, op->output, &call->out);
    for (uint32_t k = 0; k < (op->opcode == WEFT_OP_CONCAT ? inputs : 1u); k++) {
        view(run, weft_op_input(run->plan, op, k), &call->in0);
        if (op->opcode == WEFT_OP_CONCAT) {
            if (op->kernel_h != 2) { /* whole inputs along H or W: the region is the input's */
                call->y0 = call->x0 = 0;
                call->y1 = call->in0.h;
                call->x1 = call->in0.w;
            }
        } else if (inputs == 2) {
            view(run, op->input1, &call->in1);
        }
        kernel(call);
        call->axis_offset += op->kernel_h == 0 ? call->in0.h : op->kernel_h == 1 ? call->in0.w : call->in0.c;
    }
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
    weft_call_t call;
    memset(&call, 0, sizeof call);
    call.op = &op;
    call.params = op.params == UINT32_MAX ? NULL : run->plan->weights + op.params;
    call.y0 = rows.lo;
    call.y1 = rows.hi;
    call.x0 = cols.lo;
    call.x1 = cols.hi;
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
            save_lines(run, &e, &t, cols.lo, cols.lo, cols.hi);
        }
    }
    return WEFT_OK;
}

static int run_stage(run_t *run, uint32_t s)
{
    weft_stage_t stage;
    weft_stage(run->plan, s, &stage);
    uint16_t *state = (uint16_t *)(void *)(run->arena + stage.state);
    memset(state, 0, 4u * (size_t)stage.segment_count);
    uint32_t cur = stage.segment_count, entry = 0;
    for (;;) {
        int next = weft_pull(run->plan, &stage, state, cur, &entry);
        if (next < 0) {
            return next; /* not reached with a verified plan */
        }
        cur = (uint32_t)next;
        if (cur == stage.segment_count) {
            return WEFT_OK;
        }
        weft_segment(run->plan, stage.first_segment + cur, &run->segment);
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
