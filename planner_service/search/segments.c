/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every way to run a run of operators as one segment. The operators in front of a segment's last one follow backward:
 * what a step reads of an operator's output decides the region of that operator (build.shape_segment; a test holds the
 * two together). Only rows are a choice: columns cost no MACs, so the search takes one at a time.
 */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

#define U16 0xFFFF
#define I16 0x7FFF

/* Rows at so many a step. */
typedef struct {
    int32_t rows, rate;
} pace_t;

/* What is read of a tensor, nothing from row `end` on. The first step of a reader makes rows in front of `first`, its
 * last one is that behind which no row of `left` is left. `torn`: readers take columns at different rates, so the
 * tensor cannot be made in the segment column by column. */
typedef struct {
    int32_t tensor;
    ws_span_t rows, cols;
    pace_t first, left;
    int32_t end;
    bool torn;
} read_t;

/* An operator in front of the last: its region, `local` if nothing outside the segment reads it. */
typedef struct {
    int32_t op, advance, offset, extent, keep;
    int32_t col_adv, col_end, col_ext;
    bool local;
} region_t;

/*
 * Tiles of a suffix: those that keep columns are there all the time, the others from the operator that makes them to
 * the last that reads them; `live` by operator, the last first.
 */
typedef struct {
    int32_t kept, live[WS_MAX_OPS], most;
} tiles_t;

/* Operators [i, j) without lag; regions of a path of the recursion lie in grow_t. */
typedef struct {
    int32_t lag, col_lag, held;
    tiles_t tiles, sliced; /* whole, and in slices of channels */
    bool may_slice;
    int32_t reads;
    read_t read[WS_MAX_NEEDS];
} suffix_t;

/* An option that was found, and its class among those found for the same operators. */
typedef struct {
    ws_option_t option;
    int32_t class;
    int32_t order;
} found_t;

/* Segments that end at j. */
typedef struct {
    ws_search_t *s;
    int32_t j, lowest;
    int32_t row_adv, col_adv;
    bool whole, col_whole;
    region_t region[WS_MAX_OPS]; /* last operator first */
    suffix_t suffix[WS_MAX_OPS];
    ws_vec_t found[WS_MAX_OPS];   /* found_t, by number of operators - 1 */
    ws_vec_t classes[WS_MAX_OPS]; /* ws_class_t, with needs in `needs` */
    ws_vec_t needs, keeps;
} grow_t;

static int32_t field_start(const ws_field_t *f, int32_t lo)
{
    return f->factor == 1 ? lo * f->stride - f->pad : lo / f->factor;
}

static int32_t field_end(const ws_field_t *f, int32_t hi)
{
    return f->factor == 1 ? (hi - 1) * f->stride - f->pad + f->span : (hi - 1) / f->factor + 1;
}

/* Sum over i < steps of sums[clamp(first + advance * i)]. */
static int64_t prefix(const int64_t *sums, int32_t size, int32_t first, int32_t advance, int32_t steps)
{
    int64_t total = 0;
    int32_t i = first < 0 ? ws_min(ws_div_up(-first, advance), steps) : 0;
    int32_t at = first + advance * i;
    for (; i < steps && at < size; i++, at += advance) {
        total += sums[at];
    }
    return total + (int64_t)(steps - i) * sums[size];
}

/* MACs of rows [lo, hi) of every step; false without memory. */
static bool sweep(ws_search_t *s, const ws_op_t *op, int32_t advance, int32_t lo, int32_t hi, int32_t steps,
                  int64_t *macs)
{
    if (op->macs_at < 0) {
        return true;
    }
    const int64_t *sums = s->graph.row_macs + op->macs_at;
    if (hi - lo == advance) { /* every row once */
        *macs += sums[ws_clamp(advance * (steps - 1) + hi, op->rows)] - sums[ws_clamp(lo, op->rows)];
        return true;
    }
    const int32_t key[6] = {(int32_t)(op - s->graph.ops), advance, lo, hi, steps, 0};
    ws_slot_t *slot = ws_memo(s, &s->sweeps, key);
    if (slot == NULL) {
        return false;
    }
    if (!slot->used) {
        slot->used = 1;
        slot->value = prefix(sums, op->rows, hi, advance, steps) - prefix(sums, op->rows, lo, advance, steps);
    }
    *macs += slot->value;
    return true;
}

/* Fewest channels that a slice may have, a divisor of all; 0 if there is none. */
static int32_t slice_of(const ws_search_t *s, int32_t channels)
{
    for (int32_t n = s->limits.slice; n > 0 && n < channels; n++) {
        if (channels % n == 0) {
            return n;
        }
    }
    return 0;
}

/* Rows [lo, hi) of every step that are inside, counted. */
static bool count_rows(ws_search_t *s, const ws_op_t *op, ws_span_t rows, int32_t steps, int64_t *count)
{
    const int32_t key[6] = {(int32_t)(op - s->graph.ops), rows.advance, rows.lo, rows.hi, steps, 1};
    ws_slot_t *slot = ws_memo(s, &s->sweeps, key);
    if (slot == NULL) {
        return false;
    }
    if (!slot->used) {
        slot->used = 1;
        for (int32_t i = 0; i < steps; i++) {
            slot->value +=
                ws_clamp(rows.advance * i + rows.hi, op->rows) - ws_clamp(rows.advance * i + rows.lo, op->rows);
        }
    }
    *count = slot->value;
    return true;
}

/* Steps at which any of [lo, hi) is inside. */
static int32_t busy(ws_span_t span, int32_t steps, int32_t size)
{
    int32_t first = span.hi > 0 ? 0 : -span.hi / span.advance + 1;
    int32_t end = span.lo < size ? (size - 1 - span.lo) / span.advance + 1 : 0;
    return ws_max(ws_min(steps, end) - first, 0);
}

/* Cost of a region over all steps beyond its rows': costs.work and costs.moving. */
static bool add_calls(ws_search_t *s, const region_t *r, int32_t lag, int32_t steps, int32_t col_lag, int32_t col_steps,
                      int64_t *cost)
{
    const ws_op_t *op = &s->graph.ops[r->op];
    const ws_around_t *around = &s->limits.around;
    if (around->visit == 0) {
        return true;
    }
    const int32_t offset = r->offset - lag, begin = offset + r->keep, end = offset + r->extent;
    const int32_t col_end = r->col_end - col_lag;
    const ws_span_t rows = {r->advance, begin, end}, cols = {r->col_adv, col_end - r->col_adv, col_end};
    const int32_t columns = busy(cols, col_steps, op->cols);
    int64_t lines;
    if (!count_rows(s, op, rows, steps, &lines)) {
        return false;
    }
    *cost += lines * columns * op->line_cost +
             (int64_t)busy(rows, steps, op->rows) * columns * (op->call_cost + around->call) +
             (int64_t)steps * (col_steps * around->visit + around->check);
    if (!r->local) {
        return true;
    }
    const ws_tensor_t *t = &s->graph.tensors[op->tensor];
    const int32_t stays = columns > 1 ? r->col_ext - r->col_adv : 0;
    int64_t runs = stays > 0 ? lines * (columns - 1) : 0, moved = runs * stays * t->channels;
    const ws_span_t kept = {r->advance, ws_max(begin, r->advance + offset), ws_min(end, r->advance + begin)};
    if (kept.lo < kept.hi) {
        int64_t saved;
        if (!count_rows(s, op, kept, steps, &saved)) {
            return false;
        }
        runs += saved * columns;
        moved += saved * op->cols * t->channels;
    }
    *cost += runs * around->move + moved * around->moved;
    return true;
}

/* The larger one, in steps. */
static pace_t longer(pace_t a, pace_t b)
{
    return (int64_t)a.rows * b.rate < (int64_t)b.rows * a.rate ? b : a;
}

/* Behind the last row of a tensor that the operator reads. */
static int32_t read_end(const ws_search_t *s, const ws_op_t *op, int32_t tensor)
{
    return ws_min(field_end(&op->row_field, op->rows), s->graph.tensors[tensor].height);
}

/* Add what rows [lo, hi) and columns [clo, chi) of a step read, by tensor and rate of rows; false if it is too much. */
static bool add_reads(const grow_t *g, suffix_t *x, const ws_op_t *op, ws_span_t rows, ws_span_t cols)
{
    ws_span_t row = {rows.advance * op->row_field.stride, field_start(&op->row_field, rows.lo),
                     field_end(&op->row_field, rows.hi)};
    ws_span_t col = {cols.advance * op->col_field.stride, field_start(&op->col_field, cols.lo),
                     field_end(&op->col_field, cols.hi)};
    const pace_t first = {rows.hi, rows.advance}, left = {op->rows - rows.lo, rows.advance};
    for (int32_t k = 0; k < op->swept; k++) {
        int32_t tensor = g->s->graph.inputs[op->inputs_at + k];
        int32_t end = read_end(g->s, op, tensor), n = 0;
        while (n < x->reads && (x->read[n].tensor != tensor || x->read[n].rows.advance != row.advance)) {
            n++;
        }
        read_t *read = &x->read[n];
        if (n == x->reads) {
            if (n == WS_MAX_NEEDS) {
                return false;
            }
            x->reads++;
            *read = (read_t){tensor, row, col, first, left, end, false};
            continue;
        }
        read->torn = read->torn || read->cols.advance != col.advance;
        read->end = ws_max(read->end, end);
        read->first = longer(read->first, first);
        read->left = longer(read->left, left);
        read->rows.lo = ws_min(read->rows.lo, row.lo);
        read->rows.hi = ws_max(read->rows.hi, row.hi);
        read->cols.lo = ws_min(read->cols.lo, col.lo);
        read->cols.hi = ws_max(read->cols.hi, col.hi);
    }
    return true;
}

/* The class with these spans, a new one if there is none yet; -1 without memory. Sorts `needs`. */
static int32_t class_of(grow_t *g, int32_t ops, ws_class_t class, ws_need_t *needs)
{
    for (int32_t a = 1; a < class.needs_count; a++) {
        ws_need_t moved = needs[a];
        int32_t b = a;
        for (; b > 0 && needs[b - 1].tensor > moved.tensor; b--) {
            needs[b] = needs[b - 1];
        }
        needs[b] = moved;
    }
    ws_vec_t *classes = &g->classes[ops - 1];
    for (size_t n = 0; n < classes->count; n++) {
        const ws_class_t *known = WS_AT(*classes, ws_class_t, n);
        if (known->advance == class.advance && known->offset == class.offset && known->steps == class.steps &&
            known->needs_count == class.needs_count &&
            memcmp(WS_AT(g->needs, ws_need_t, known->needs_at), needs, (size_t) class.needs_count * sizeof(*needs)) ==
                0) {
            return (int32_t)n;
        }
    }
    class.needs_at = (int32_t)g->needs.count;
    if (!ws_append(g->s, &g->needs, needs, (size_t) class.needs_count) || !ws_push(g->s, classes, &class)) {
        return WS_NONE;
    }
    return (int32_t)classes->count - 1;
}

/* Note an option of the last `ops` operators, unless it is over the limits. `x` holds what it reads. */
static bool note(grow_t *g, int32_t ops, const suffix_t *x, int64_t extra, int32_t held, int32_t steps, int32_t slice)
{
    ws_search_t *s = g->s;
    const int32_t tile = slice > 0 ? x->sliced.most : x->tiles.most;
    if ((int64_t)held + tile > s->limits.cap || extra > s->limits.spare) {
        return true;
    }
    int32_t advance = g->region[0].advance, delay = x->lag / advance;
    ws_class_t class = {advance, x->lag % advance ? -(x->lag % advance) : 0, steps - delay, 0, x->reads, 0, 0, 0, 0, 0,
                        WS_NONE};
    ws_need_t needs[WS_MAX_NEEDS];
    for (int32_t n = 0; n < x->reads; n++) {
        ws_span_t span = x->read[n].rows;
        int32_t shift = delay * span.advance - (g->whole ? 0 : x->lag * (span.advance / g->row_adv));
        const pace_t first = x->read[n].first, left = x->read[n].left;
        const int32_t before = g->whole ? 0 : x->lag * (first.rate / g->row_adv),
                      behind = g->whole ? 0 : x->lag * (left.rate / g->row_adv);
        needs[n] = (ws_need_t){x->read[n].tensor,
                               {span.advance, span.lo + shift, span.hi + shift},
                               ws_max(ws_div_up(before - first.rows + 1, first.rate), 0) - delay,
                               ws_min(ws_div_up(left.rows + behind, left.rate), steps) - delay,
                               x->read[n].end};
    }
    int32_t at = class_of(g, ops, class, needs);
    if (at < 0) {
        return false;
    }
    found_t found = {{extra, held, tile, steps * ops, g->j - ops, g->j, g->whole ? WS_WHOLE : g->row_adv,
                      ops == 1 || g->col_whole ? WS_WHOLE : g->col_adv, slice, (int32_t)g->keeps.count},
                     at,
                     (int32_t)g->found[ops - 1].count};
    for (int32_t n = ops - 1; n >= 0; n--) {
        uint16_t keep = (uint16_t)g->region[n].keep;
        if (!ws_push(s, &g->keeps, &keep)) {
            return false;
        }
    }
    return ws_push(s, &g->found[ops - 1], &found);
}

/* Rows of the accumulators of a reduction over several steps, as the engine keeps them. */
static int32_t accumulators(const ws_search_t *s, const ws_op_t *op, int32_t advance, int32_t steps, bool columns)
{
    if (!(op->reduce_h && steps > 1) && !(op->reduce_w && columns)) {
        return 0;
    }
    int32_t channels = s->graph.tensors[op->tensor].channels;
    int32_t count = op->reduce_h && op->reduce_w ? 1 : op->reduce_w ? ws_min(advance, op->rows) : op->cols;
    return (int32_t)ws_up((int64_t)4 * count * channels);
}

/* The suffix as a whole segment of `ops` operators. */
static bool finish(grow_t *g, int32_t ops)
{
    ws_search_t *s = g->s;
    const suffix_t *x = &g->suffix[ops - 1];
    const ws_op_t *last = &s->graph.ops[g->j - 1];
    int32_t steps = 1, col_steps = 1;
    for (int32_t n = 0; n < ops; n++) {
        const region_t *r = &g->region[n];
        int32_t lag = g->whole ? 0 : x->lag * (r->advance / g->row_adv);
        if (r->offset - lag < -I16 - 1) {
            return true;
        }
        if (!g->col_whole) {
            int32_t end = r->col_end - x->col_lag * (r->col_adv / g->col_adv);
            col_steps = ws_max(col_steps, ws_div_up(s->graph.ops[r->op].cols - end + r->col_adv, r->col_adv));
        }
        if (!r->local) {
            steps = ws_max(steps, ws_div_up(s->graph.ops[r->op].rows - r->offset + lag, r->advance));
        }
    }
    if (steps > U16) {
        return true;
    }
    int64_t macs = steps * s->limits.around.row_step;
    for (int32_t n = 0; n < ops; n++) {
        const region_t *r = &g->region[n];
        int32_t lag = g->whole ? 0 : x->lag * (r->advance / g->row_adv);
        int32_t col_lag = g->col_whole ? 0 : x->col_lag * (r->col_adv / g->col_adv);
        if (!add_calls(s, r, lag, steps, col_lag, col_steps, &macs) ||
            !sweep(s, &s->graph.ops[r->op], r->advance, r->offset - lag + r->keep, r->offset - lag + r->extent, steps,
                   &macs)) {
            return false;
        }
    }
    int32_t held = x->held + accumulators(s, last, g->region[0].advance, steps, !g->col_whole && last->cols > 1);
    int64_t extra = macs - (s->macs_before[g->j] - s->macs_before[g->j - ops]);
    const ws_op_t *first = &s->graph.ops[g->j - ops];
    int32_t slice = ops > 1 && x->may_slice && (first->leads || first->channelwise)
                        ? slice_of(s, s->graph.tensors[first->tensor].channels)
                        : 0;
    return note(g, ops, x, extra, held, steps, 0) && (slice == 0 || note(g, ops, x, extra, held, steps, slice));
}

/* The tile that operator number `n` from the end makes, which number `until` is the last to read. */
static void add_tile(tiles_t *tiles, int32_t n, int32_t until, bool passing, int64_t bytes)
{
    const int32_t size = (int32_t)ws_min64(bytes, INT32_MAX / (2 * WS_MAX_OPS));
    int32_t most = 0;
    tiles->kept += passing ? 0 : size;
    tiles->live[n] = 0;
    for (int32_t k = 0; k <= n; k++) {
        tiles->live[k] += passing && k >= until ? size : 0;
        most = ws_max(most, tiles->live[k]);
    }
    tiles->most = tiles->kept + most;
}

/* Put the operator before them in front of the last `ops` ones, with each amount of overlap kept, and so on. */
static bool extend(grow_t *g, int32_t ops)
{
    ws_search_t *s = g->s;
    int32_t i = g->j - 1 - ops;
    if (i < g->lowest) {
        return true;
    }
    const ws_op_t *op = &s->graph.ops[i];
    const ws_tensor_t *t = &s->graph.tensors[op->tensor];
    const suffix_t *x = &g->suffix[ops - 1];
    const read_t *read = NULL;
    for (int32_t n = 0; n < x->reads; n++) {
        if (x->read[n].tensor == op->tensor) {
            if ((read != NULL && !g->whole) || (x->read[n].torn && !g->col_whole)) {
                return true; /* its readers take rows or columns at different rates */
            }
            read = &x->read[n];
        }
    }
    if (read == NULL) {
        return true;
    }
    ws_span_t rows = read->rows, cols = read->cols;
    if (g->whole) {
        rows = (ws_span_t){op->rows, 0, op->rows};
    }
    if (g->col_whole) {
        cols = (ws_span_t){op->cols, 0, op->cols};
    }
    bool local = !t->output && t->last_read < g->j;
    int32_t overlap = local && !g->whole ? ws_max(rows.hi - rows.lo - rows.advance, 0) : 0;
    int32_t width = local ? ws_min(ws_max(cols.hi - cols.lo, cols.advance), t->width) : 0;
    int32_t offset = local ? rows.lo : rows.hi - rows.advance;
    int32_t extent = rows.hi - offset;
    if (rows.advance > U16 || extent > U16 || extent < 1) {
        return true;
    }
    int32_t step = s->limits.partial ? 1 : ws_max(overlap, 1);
    for (int32_t keep = overlap; keep >= 0; keep -= step) {
        int64_t held = x->held + ws_up((int64_t)ws_min(keep, t->height) * t->width * t->channels);
        const int64_t pixels = (int64_t)ws_min(extent - keep, t->height) * width;
        const int32_t slice = slice_of(s, t->channels);
        const bool passing = keep == 0 && (g->col_whole || cols.hi - cols.lo <= cols.advance);
        const int32_t until = local && passing ? g->j - 1 - t->last_read : 0;
        suffix_t *longer = &g->suffix[ops];
        longer->tiles = x->tiles;
        longer->may_slice = x->may_slice && local && keep == 0 && slice > 0 && s->graph.ops[i + 1].channelwise;
        add_tile(&longer->tiles, ops, until, passing, ws_up(pixels * t->channels));
        if (longer->may_slice) {
            longer->sliced = x->sliced;
            add_tile(&longer->sliced, ops, until, passing, ws_up(pixels * slice));
        }
        if (held + (longer->may_slice ? longer->sliced.most : longer->tiles.most) > s->limits.cap) {
            continue;
        }
        g->region[ops] = (region_t){i,    rows.advance, offset,  extent,
                                    keep, cols.advance, cols.hi, ws_max(cols.hi - cols.lo, cols.advance),
                                    local};
        longer->lag = x->lag;
        longer->col_lag = x->col_lag;
        if (!g->col_whole && cols.hi > cols.advance) {
            longer->col_lag = ws_max(x->col_lag, ws_div_up(cols.hi - cols.advance, cols.advance / g->col_adv));
        }
        int32_t bound = !local ? rows.advance : keep ? extent - keep : rows.hi;
        if (rows.hi > bound) {
            int32_t rate = rows.advance / g->row_adv; /* a multiple: strides only */
            longer->lag = ws_max(x->lag, ws_div_up(rows.hi - bound, rate));
        }
        longer->held = (int32_t)held;
        longer->reads = 0;
        for (int32_t n = 0; n < x->reads; n++) {
            if (x->read[n].tensor != op->tensor) {
                longer->read[longer->reads++] = x->read[n];
            }
        }
        if (add_reads(g, longer, op, (ws_span_t){rows.advance, offset + keep, rows.hi},
                      (ws_span_t){cols.advance, cols.hi - cols.advance, cols.hi}) &&
            (!finish(g, ops + 1) || !extend(g, ops + 1))) {
            return false;
        }
    }
    return true;
}

/* Of the last operator alone, which makes no tile. */
static void start(suffix_t *x)
{
    x->lag = x->col_lag = x->held = x->reads = 0;
    x->tiles = x->sliced = (tiles_t){0, {0}, 0};
    x->may_slice = true;
}

/* The last operator alone: whole rows, nothing computed twice. */
static bool alone(grow_t *g, const ws_op_t *op, int32_t advance)
{
    suffix_t *x = &g->suffix[0];
    g->region[0] = (region_t){g->j - 1, advance, 0, advance, 0, op->cols, op->cols, op->cols, false};
    start(x);
    int32_t step = op->row_field.factor == 1 ? advance * op->row_field.stride : advance / op->row_field.factor;
    ws_span_t span = {ws_max(step, 1), field_start(&op->row_field, 0), field_end(&op->row_field, advance)};
    for (int32_t k = 0; k < op->swept; k++) {
        int32_t tensor = g->s->graph.inputs[op->inputs_at + k];
        x->read[x->reads++] = (read_t){
            tensor, span, {1, 0, 1}, {advance, advance}, {op->rows, advance}, read_end(g->s, op, tensor), false};
    }
    int32_t steps = ws_div_up(op->rows, advance);
    int64_t extra = steps * g->s->limits.around.row_step;
    if (!add_calls(g->s, &g->region[0], 0, steps, 0, 1, &extra)) {
        return false;
    }
    return note(g, 1, x, extra, accumulators(g->s, op, advance, steps, false), steps, 0);
}

/* A resize stands alone: its steps are multiples of its factors. */
static bool resizes(const ws_op_t *op)
{
    return op->row_field.factor > 1 || op->col_field.factor > 1;
}

/* Whether the operator may stand in front of others in the segment that ends at j. */
static bool may_lead(const ws_search_t *s, int32_t i, int32_t j)
{
    const ws_op_t *op = &s->graph.ops[i];
    if (op->reduce_h || op->reduce_w || op->single || resizes(op)) {
        return false;
    }
    for (int32_t n = i + 1; n < j; n++) {
        const ws_op_t *user = &s->graph.ops[n];
        for (int32_t k = 0; k < user->whole; k++) {
            if (s->graph.inputs[user->inputs_at + user->swept + k] == op->tensor) {
                return false;
            }
        }
    }
    return true;
}

static bool grow_from(grow_t *g, int32_t row_adv)
{
    ws_search_t *s = g->s;
    const ws_op_t *op = &s->graph.ops[g->j - 1];
    g->whole = row_adv >= op->rows;
    int32_t advance = g->whole ? op->rows : row_adv;
    g->row_adv = advance;
    if (advance > U16 || (op->row_field.factor > 1 && !g->whole && advance % op->row_field.factor != 0)) {
        return true;
    }
    if (!alone(g, op, advance)) {
        return false;
    }
    if (op->single || resizes(op)) {
        return true;
    }
    for (int32_t c = 0; c < s->limits.col_step_count; c++) {
        int32_t columns = s->limits.col_steps[c];
        g->col_whole = columns >= op->cols;
        g->col_adv = g->col_whole ? op->cols : columns;
        suffix_t *x = &g->suffix[0];
        g->region[0] = (region_t){g->j - 1, advance, 0, advance, 0, g->col_adv, g->col_adv, g->col_adv, false};
        start(x);
        if (add_reads(g, x, op, (ws_span_t){advance, 0, advance}, (ws_span_t){g->col_adv, 0, g->col_adv}) &&
            !extend(g, 1)) {
            return false;
        }
        if (g->col_whole) {
            break; /* nothing is wider */
        }
    }
    return true;
}

static int by_cost(const void *a, const void *b)
{
    const found_t *x = a, *y = b;
#define WS_ORDER(p, q)                                                                                                 \
    if ((p) != (q)) {                                                                                                  \
        return (p) < (q) ? -1 : 1;                                                                                     \
    }
    WS_ORDER(x->class, y->class)
    WS_ORDER(x->option.extra, y->option.extra)
    WS_ORDER(x->option.held, y->option.held)
    WS_ORDER(x->option.tile, y->option.tile)
    WS_ORDER(x->option.calls, y->option.calls)
    WS_ORDER(x->order, y->order)
    return 0;
}

/* Streamed inputs that the class reads: their rings and segments. */
static void add_streams(const ws_search_t *s, ws_class_t *class, const ws_need_t *needs)
{
    for (int32_t n = 0; n < class->needs_count; n++) {
        const ws_tensor_t *t = &s->graph.tensors[needs[n].tensor];
        if (t->streamed) {
            int64_t rows = ws_ring_rows(t->height, 1, 0, &needs[n]);
            class->fixed += (int32_t)ws_up(rows * t->width * t->channels) + WS_COUNTERS;
            class->segments++;
        }
    }
}

/* The number of what the class reads of the tensor in front of operator `i`, in `number`; false without memory. */
static bool number_inlet(ws_search_t *s, int32_t i, const ws_class_t *class, const ws_need_t *needs, int32_t *number)
{
    *number = WS_NONE;
    for (int32_t k = 0; i > 0 && k < class->needs_count; k++) {
        if (needs[k].tensor == s->graph.ops[i - 1].tensor) {
            if (k + 1 < class->needs_count && needs[k + 1].tensor == needs[k].tensor) {
                return true; /* a ring is read at one rate */
            }
            ws_vec_t *inlets = &s->inlets[i];
            int32_t n = 0;
            while (n < (int32_t)inlets->count &&
                   memcmp(WS_AT(*inlets, ws_need_t, n), &needs[k], sizeof(ws_need_t)) != 0) {
                n++;
            }
            *number = n;
            return n < (int32_t)inlets->count || ws_push(s, inlets, &needs[k]);
        }
    }
    return true;
}

/* Store the options of the last `ops` operators, dominated ones left out. */
static bool store(grow_t *g, int32_t ops)
{
    ws_search_t *s = g->s;
    ws_vec_t *found = &g->found[ops - 1], *classes = &g->classes[ops - 1];
    ws_segment_t *segment = ws_segment(s, g->j - ops, g->j);
    segment->first = (int32_t)s->classes.count;
    segment->count = (int32_t)classes->count;
    if (found->count > 0) {
        qsort(found->items, found->count, sizeof(found_t), by_cost);
    }
    size_t n = 0;
    for (size_t c = 0; c < classes->count; c++) {
        ws_class_t class = *WS_AT(*classes, ws_class_t, c);
        const ws_need_t *needs = WS_AT(g->needs, ws_need_t, class.needs_at);
        add_streams(s, &class, needs);
        class.needs_at = (int32_t)s->needs.count;
        class.first = (int32_t)s->options.count;
        class.least = INT32_MAX;
        if (!number_inlet(s, g->j - ops, &class, needs, &class.inlet) ||
            !ws_append(s, &s->needs, needs, (size_t) class.needs_count)) {
            return false;
        }
        for (; n < found->count && WS_AT(*found, found_t, n)->class == (int32_t)c; n++) {
            ws_option_t option = WS_AT(*found, found_t, n)->option;
            bool beaten = false;
            for (size_t k = (size_t) class.first; k < s->options.count && !beaten; k++) {
                const ws_option_t *better = WS_AT(s->options, ws_option_t, k);
                beaten = better->held <= option.held && better->tile <= option.tile;
            }
            if (!beaten) {
                const uint16_t *keeps = WS_AT(g->keeps, uint16_t, option.keep_at);
                option.keep_at = (int32_t)s->keeps.count;
                class.least = ws_min(class.least, option.held + option.tile);
                if (!ws_append(s, &s->keeps, keeps, (size_t)ops) || !ws_push(s, &s->options, &option)) {
                    return false;
                }
            }
        }
        class.count = (int32_t)s->options.count - class.first;
        if (!ws_push(s, &s->classes, &class)) {
            return false;
        }
    }
    return true;
}

static bool grow_to(grow_t *g, int32_t j)
{
    ws_search_t *s = g->s;
    g->j = j;
    g->lowest = j - 1;
    int32_t least = ws_max(j - s->limits.segment_ops, 0);
    while (g->lowest > least && may_lead(s, g->lowest - 1, j)) {
        g->lowest--;
    }
    const ws_op_t *last = &s->graph.ops[j - 1];
    bool good = true;
    for (int32_t r = 0; good && r < s->limits.row_step_count && !last->single; r++) {
        int32_t advance = s->limits.row_steps[r] * last->row_field.factor;
        good = advance >= last->rows || grow_from(g, advance);
    }
    good = good && grow_from(g, last->rows);
    int64_t work = 0;
    for (int32_t ops = 1; ops <= j - g->lowest; ops++) {
        work += (int64_t)g->found[ops - 1].count * 64;
        good = good && store(g, ops);
        g->found[ops - 1].count = g->classes[ops - 1].count = 0;
    }
    g->needs.count = g->keeps.count = 0;
    return good && ws_work(s, work);
}

/* Most rows that one of the first steps reads. */
static int32_t rows_read(const ws_need_t *need)
{
    const ws_span_t *span = &need->span;
    int32_t most = 0;
    for (int32_t i = ws_max(need->begin, 0); i < ws_min(need->steps, 4); i++) {
        int32_t lo = ws_clamp(span->lo + i * span->advance, need->end),
                hi = ws_clamp(span->hi + i * span->advance, need->end);
        most = ws_max(most, hi - lo);
    }
    return most;
}

/*
 * Fewest extra MACs from each position on, at least: a shortest path over segments as if what joins them cost no RAM
 * but the rows that a step reads.
 */
void ws_look_ahead(ws_search_t *s, int32_t cap)
{
    int32_t n = s->graph.op_count;
    s->ahead[n] = 0;
    for (int32_t i = n - 1; i >= 0; i--) {
        s->ahead[i] = WS_MAX_EXTRA;
        const ws_tensor_t *inlet = i > 0 ? &s->graph.tensors[s->graph.ops[i - 1].tensor] : NULL;
        for (int32_t j = i + 1; j <= ws_min(i + s->limits.segment_ops, n); j++) {
            const ws_segment_t *segment = ws_segment(s, i, j);
            for (int32_t c = segment->first; c < segment->first + segment->count && s->ahead[j] < WS_MAX_EXTRA; c++) {
                const ws_class_t *class = WS_AT(s->classes, ws_class_t, c);
                int64_t least = class->fixed;
                int32_t rows = 0;
                for (int32_t k = 0; inlet != NULL && k < class->needs_count; k++) {
                    const ws_need_t *need = WS_AT(s->needs, ws_need_t, class->needs_at + k);
                    if (need->tensor == s->graph.ops[i - 1].tensor && inlet->bytes > 0) {
                        rows = ws_max(rows, rows_read(need));
                    }
                }
                least += inlet == NULL ? 0 : (int64_t)rows * inlet->width * inlet->channels;
                for (int32_t k = class->first; k < class->first + class->count; k++) {
                    const ws_option_t *o = WS_AT(s->options, ws_option_t, k);
                    if (least + o->held + o->tile <= cap && o->extra + s->ahead[j] < s->ahead[i]) {
                        s->ahead[i] = o->extra + s->ahead[j];
                    }
                }
            }
        }
    }
}

bool ws_grow_segments(ws_search_t *s)
{
    grow_t *g = ws_alloc(s, 1, sizeof(*g));
    if (g == NULL) {
        return false;
    }
    g->s = s;
    for (int32_t n = 0; n < WS_MAX_OPS; n++) {
        g->found[n].size = sizeof(found_t);
        g->classes[n].size = sizeof(ws_class_t);
    }
    g->needs.size = sizeof(ws_need_t);
    g->keeps.size = sizeof(uint16_t);
    bool good = true;
    for (int32_t j = 1; good && j <= s->graph.op_count; j++) {
        good = grow_to(g, j);
        s->done = (double)j / s->graph.op_count;
    }
    for (int32_t n = 0; n < WS_MAX_OPS; n++) {
        ws_vec_free(s, &g->found[n]);
        ws_vec_free(s, &g->classes[n]);
    }
    ws_vec_free(s, &g->needs);
    ws_vec_free(s, &g->keeps);
    ws_release(s, g, 1, sizeof(*g));
    return good;
}
