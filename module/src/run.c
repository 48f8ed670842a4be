/* SPDX-License-Identifier: Apache-2.0 */
/* The executor: the one loop nest of docs/design.md section 2. Everything was proved by weft_open(). */
#include "plan.h"

#if WEFT_KERNELS_MVE
#include "kernels_mve/copy.h"
#endif

/* A run in progress. */
typedef struct {
    const weft_plan_t *plan;
    const weft_io_t *io;
    uint8_t *arena;
    const weft_stage_t *stage;
    const weft_segment_t *segment;
    int32_t i, j;    /* row step, column step */
    int32_t channel; /* first one of the sweep */
} run_t;

static const weft_io_t no_io;

/* A tile's first column at column step j. */
static inline int32_t tile_x(const weft_entry_t *e, int32_t j, int32_t w)
{
    return weft_clamp(e->col_adv * j + e->col_off, 0, w);
}

#if !WEFT_KERNELS_MVE
static inline uint32_t word_at(const int8_t *p)
{
    return weft_rd32((const uint8_t *)p);
}

static inline void put_word(int8_t *p, uint32_t word)
{
    __builtin_memcpy(__builtin_assume_aligned(p, 4), &word, sizeof word);
}

/* Four words from one place to another, all of them read before any is written; both pointers move on. */
static inline void copy_four_words(int8_t **dst, const int8_t **src)
{
#if defined(__thumb__)
    __asm__ volatile("ldmia %0!, {r3, r4, r5, r6}\n\tstmia %1!, {r3, r4, r5, r6}"
                     : "+l"(*src), "+l"(*dst)
                     :
                     : "r3", "r4", "r5", "r6", "memory");
#else
    const uint32_t a = word_at(*src), b = word_at(*src + 4), c = word_at(*src + 8), d = word_at(*src + 12);
    put_word(*dst, a);
    put_word(*dst + 4, b);
    put_word(*dst + 8, c);
    put_word(*dst + 12, d);
    *src += 16;
    *dst += 16;
#endif
}

/* Copy n bytes, by words where both ends allow: to anywhere else, or down within the same bytes. */
static void weft_copy_down(int8_t *dst, const int8_t *src, int32_t n)
{
    if ((((uintptr_t)dst | (uintptr_t)src) & 3u) == 0) {
        for (; n >= 16; n -= 16) {
            copy_four_words(&dst, &src);
        }
        for (; n >= 4; n -= 4, src += 4, dst += 4) {
            put_word(dst, word_at(src));
        }
    }
    for (; n > 0; n--) {
        *dst++ = *src++;
    }
}
#endif

/* How kernels see the tensor that an entry produces at the current step. */
static void view_of(const run_t *run, const weft_tensor_t *tensor, const weft_entry_t *e, weft_view_t *v)
{
    const int32_t h = tensor->h, w = tensor->w, c = tensor->c;
    v->c = c;
    v->h = h;
    v->w = w;
    v->zero_point = tensor->zero_point;
    v->ring_stride = w * c;
    v->cap = h;
    v->split = INT32_MAX;
    int8_t *window = (int8_t *)run->arena + e->offset;
    if (e->policy == WEFT_POLICY_TILE) {
        v->ring = (int8_t *)run->arena + e->aux;
        v->cap = e->keep;
        v->tile = window;
        v->split = v->tile_y = weft_clamp(e->row_adv * run->i + e->row_off + e->keep, 0, h);
        v->tile_x = tile_x(e, run->j, w);
        v->c = e->slice != 0 ? e->slice : c;
        v->tile_stride = weft_min(e->col_ext, w) * v->c;
        return;
    }
    v->ring = window;
    if (e->policy == WEFT_POLICY_ROWS) {
        v->cap = e->keep;
    } else if (e->policy == WEFT_POLICY_EXTERNAL) {
        v->ring = (int8_t *)(uintptr_t)run->io->external[e->op & (WEFT_INPUT_BIT - 1u)];
    }
}

/* The same of any tensor. */
static void view(const run_t *run, uint32_t t, weft_view_t *v)
{
    static const weft_entry_t whole = {.policy = WEFT_POLICY_FULL};
    const weft_plan_t *plan = run->plan;
    const uint32_t p = weft_entry_of(plan, t);
    const bool constant = p == WEFT_NONE;
    view_of(run, weft_tensor_at(plan, t), constant ? &whole : weft_entry_at(plan, p), v);
    if (constant) {
        v->ring = (int8_t *)(uintptr_t)weft_const(plan, t);
    }
}

/*
 * Copy the columns [from, to) of a tile whose first column is `first` to its line store: those of its rows [v->tile_y,
 * end) that the next row step keeps.
 */
static void save_lines(const run_t *run, const weft_entry_t *e, const weft_view_t *v, int32_t end, int32_t first,
                       int32_t from, int32_t to)
{
    const int32_t next = e->row_adv * (run->i + 1) + e->row_off;
    int32_t y = weft_max(v->tile_y, next);
    end = weft_min(end, next + e->keep);
    if (y >= end) {
        return;
    }
    const int8_t *src = v->tile + (from - first) * v->c + (y - v->tile_y) * v->tile_stride;
    int8_t *lines = v->ring + from * v->c;
    int32_t slot = y % e->keep;
    for (; y < end; y++, src += v->tile_stride) {
        weft_copy_down(lines + slot * v->ring_stride, src, (to - from) * v->c);
        slot = slot + 1 == e->keep ? 0 : slot + 1;
    }
}

/*
 * Move a tile of rows [v->tile_y, end) from column step j - 1 to j, which v shows: what leaves it goes to the line
 * store, what stays moves to its start.
 */
static void slide(const run_t *run, const weft_entry_t *e, const weft_view_t *v, int32_t end)
{
    const int32_t before = tile_x(e, run->j - 1, v->w), now = v->tile_x;
    const int32_t before_end = weft_clamp(e->col_adv * (run->j - 1) + e->col_off + e->col_ext, 0, v->w);
    const int32_t leaving = weft_min(now, before_end);
    if (leaving <= before) {
        return;
    }
    if (e->keep > 0) {
        save_lines(run, e, v, end, before, before, leaving);
    }
    if (before_end <= now) {
        return;
    }
    const int32_t gone = (now - before) * v->c, left = (before_end - now) * v->c;
    int8_t *row = v->tile;
    for (int32_t y = v->tile_y; y < end; y++, row += v->tile_stride) {
        weft_copy_down(row, row + gone, left);
    }
}

/* CONCAT: one kernel call per input. */
static void call_concat(const run_t *run, const weft_op_t *op, weft_call_t *call)
{
    call->axis_offset = 0;
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

/* ADD, SUB, MUL: the second operand is here and not on the stack of all others. */
static WEFT_NOINLINE void call_binary(const run_t *run, weft_call_t *call)
{
    weft_view_t in1;
    view(run, call->op->input1, &in1);
    call->in1 = &in1;
    weft_kernels[call->op->opcode](call);
}

static void call_kernel(const run_t *run, weft_call_t *call)
{
    if (weft_is_binary(call->op)) {
        call_binary(run, call);
    } else {
        weft_kernels[call->op->opcode](call);
    }
}

/* Accumulators of a REDUCE or FULLY_CONNECTED: where, and whether this call is the first or last for its output. */
static void accumulate(const run_t *run, const weft_entry_t *e, weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const bool h = weft_ends_rows(op), w = op->opcode == WEFT_OP_FULLY_CONNECTED || (op->flags & WEFT_OP_REDUCE_W) != 0;
    call->acc = NULL;
    call->first = (!h || call->y0 == 0) && (!w || call->x0 == 0);
    call->last = (!h || call->y1 == in->h) && (!w || call->x1 == in->w);
    if (weft_acc_bytes(run->plan, op, e, run->segment) != 0) {
        call->acc = (int32_t *)(void *)(run->arena + e->aux);
    }
}

/* A sweep makes some channels of its tensors: where whole pixels are read or written, from the first of them on. */
static void slice_views(const weft_op_t *op, weft_call_t *call)
{
    if (op->opcode == WEFT_OP_DWCONV2D && call->in0.c == call->total) {
        call->in0.ring += call->channel;
    }
    if (call->out.c == call->total) {
        call->out.ring += call->channel;
    }
}

/* `call`: of the entry before, which mostly makes what this one reads; its `op` is NULL if it made nothing. */
static void produce(const run_t *run, const weft_entry_t *e, weft_call_t *call)
{
    const weft_io_t *io = run->io;
    const weft_op_t *op = weft_op_at(run->plan, e->op);
    const bool consumes = weft_consumes(op);
    const weft_tensor_t *out = weft_tensor_at(run->plan, op->output);
    const weft_tensor_t *over = consumes ? weft_tensor_at(run->plan, op->input0) : out;
    const weft_span_t row_span = weft_new_rows(e), col_span = weft_new_cols(e);
    const weft_range_t rows = weft_at(&row_span, run->i, over->h), cols = weft_at(&col_span, run->j, over->w);
    const bool slides = run->j > 0 && e->policy == WEFT_POLICY_TILE && (e->keep != 0 || e->col_ext != e->col_adv);
    const bool some = cols.lo < cols.hi;
    if (rows.lo >= rows.hi || !(some || slides)) {
        call->op = NULL;
        return;
    }
    if (call->op != NULL && call->op->output == op->input0 && e->slice == 0) {
        call->in0 = call->out;
    } else if (op->opcode != WEFT_OP_CONCAT) {
        view(run, op->input0, &call->in0);
    }
    call->op = op;
    view_of(run, out, e, &call->out);
    if (slides) {
        slide(run, e, &call->out, rows.hi);
    }
    if (!some) {
        return;
    }
    call->params = (const uint8_t *)((uintptr_t)run->plan->weights + op->params);
    call->y0 = rows.lo;
    call->y1 = rows.hi;
    call->x0 = cols.lo;
    call->x1 = cols.hi;
    call->channel = run->channel;
    call->total = call->channels = call->out.c;
    if (e->slice != 0) {
        call->total = weft_tensor_at(run->plan, op->output)->c;
        call->channels = e->slice;
        slice_views(op, call);
    }
    if (consumes) {
        accumulate(run, e, call);
    }
#if WEFT_COUNT
    call->macs = NULL;
    if (io->counts != NULL) {
        call->macs = &io->counts->macs;
        io->counts->calls++;
        io->counts->elements +=
            (uint64_t)((rows.hi - rows.lo) * (cols.hi - cols.lo) * (consumes ? over->c : call->channels));
    }
#endif
    if (io->op_fn != NULL) {
        io->op_fn(io->ctx, e->op, 1);
    }
    if (op->opcode == WEFT_OP_CONCAT) {
        call_concat(run, op, call);
    } else {
        call_kernel(run, call);
    }
    if (io->op_fn != NULL) {
        io->op_fn(io->ctx, e->op, 0);
    }
}

/* Ask the caller for the rows of a streamed input. */
static int receive(const run_t *run, const weft_entry_t *e)
{
    weft_view_t v;
    uint16_t t = weft_entry_tensor(run->plan, e);
    view_of(run, weft_tensor_at(run->plan, t), e, &v);
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

/* After a row step: what the next one keeps of a tile's last columns goes to its line store. */
static void keep_lines(const run_t *run, const weft_entry_t *e)
{
    weft_view_t v;
    view_of(run, weft_tensor_at(run->plan, weft_op_at(run->plan, e->op)->output), e, &v);
    const int32_t rows_end = weft_clamp(e->row_adv * run->i + e->row_off + e->row_ext, 0, v.h);
    const int32_t cols_end = weft_clamp(e->col_adv * run->j + e->col_off + e->col_ext, 0, v.w);
    save_lines(run, e, &v, rows_end, v.tile_x, v.tile_x, cols_end);
}

/* A row step's sweeps along the columns; `first`: of the segment's entries. */
static void sweep(run_t *run, const weft_entry_t *first)
{
    const int32_t channels = weft_tensor_at(run->plan, weft_entry_tensor(run->plan, first))->c;
    const int32_t slice = first->slice != 0 ? first->slice : channels;
    weft_call_t call;
    call.op = NULL; /* the rest is filled in where it is used: it is too much to clear every time */
    call.scratch = run->arena + run->stage->scratch;
    call.scratch_len = run->stage->scratch_len;
    for (run->channel = 0; run->channel < channels; run->channel += slice) {
        for (run->j = 0; run->j < run->segment->col_steps; run->j++) {
            const weft_entry_t *e = first;
            for (uint32_t n = run->segment->entry_count; n > 0; n--) {
                produce(run, e++, &call);
            }
        }
    }
    run->channel = 0;
    run->j--;
}

static int run_row_step(run_t *run)
{
    const weft_entry_t *e = weft_entry_at(run->plan, run->segment->first_entry);
    run->j = 0;
    if (weft_is_input(e)) {
        return receive(run, e);
    }
    sweep(run, e);
    for (uint32_t n = run->segment->entry_count; n > 0; n--, e++) {
        if (e->policy == WEFT_POLICY_TILE && e->keep > 0) {
            keep_lines(run, e);
        }
    }
    return WEFT_OK;
}

static int run_stage(run_t *run, uint32_t s)
{
    const weft_stage_t *stage = weft_stage_at(run->plan, s);
    run->stage = stage;
    weft_pull_t pull = {run->plan, stage, (weft_state_t *)(void *)(run->arena + stage->state), 0, stage->segment_count,
                        NULL};
    memset(pull.state, 0, sizeof *pull.state * stage->segment_count);
    for (;;) {
        const int next = weft_pull(&pull);
        if (next <= 0) {
            return next; /* errors are not reached with a verified plan */
        }
        run->segment = weft_segment_at(run->plan, stage->first_segment + pull.segment);
        run->i = pull.state[pull.segment].done;
        int r = run_row_step(run);
        if (r != WEFT_OK) {
            return r;
        }
        pull.state[pull.segment].done++;
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
