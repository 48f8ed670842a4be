/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every stage that begins at a position: forward over the positions at which it may be cut into segments. A partial
 * stage costs extra MACs, bytes held by its segments so far, and the bytes of its widest tile; those that go on in the
 * same way are compared in these three, and dominated ones dropped.
 *
 * What its output may overwrite at the end depends on how far its segments lag behind each other. Partial stages are
 * only compared if they agree in that too: in their profile, the first row that is still to be read of each tensor
 * that the stage may be the last to read, for every step of the last segment.
 */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

#define GONE INT32_MAX /* no row is read any more */

typedef struct {
    int64_t extra;
    int32_t held, tile, calls;
    int32_t option, before;
    int32_t segments;
} state_t;

/* Partial stages that go on in the same way: what a row step gives, and the profile. */
typedef struct {
    int32_t advance, offset, profile;
    ws_vec_t states; /* candidates until the position's turn has come, then the best, fewest MACs first */
    size_t settled;  /* of them compared with each other */
    int32_t held;    /* fewest bytes that a state holds, once the position's turn has come */
} group_t;

/* A finished stage; `before` and `option` lead to its segments. */
typedef struct {
    int64_t extra;
    int32_t memory, tile, calls;
    int32_t option, before, segments, overlap;
    int32_t under, below, saved;
} end_t;

/* What the output of a stage overlaps: `under`, `below` which it starts so many bytes, and the bytes that they share.
 */
typedef struct {
    int64_t saved;
    int32_t under, below;
} share_t;

typedef struct {
    ws_search_t *s;
    int32_t start;
    int64_t base;    /* bytes of whole tensors from before that are needed in the stage or later */
    int64_t cap;     /* most bytes of the stage */
    int64_t rest;    /* extra MACs to the end that are known to do */
    int64_t prefix;  /* fewest extra MACs of the stages before */
    int32_t tracked; /* tensors that the stage may be the last to read */
    int32_t *track;
    ws_vec_t *groups;  /* group_t, by position */
    ws_vec_t *ends;    /* end_t, by 2 * end + overlap: ascending memory, descending MACs */
    ws_vec_t states;   /* state_t: everything that a kept state came from */
    ws_vec_t stairs;   /* pairs of int32_t, for settle() */
    ws_vec_t shares;   /* share_t, of the group and class that are being joined */
    ws_vec_t rings;    /* int32_t rows by group of the position and what is read of it; 0: not known yet */
    ws_vec_t profiles; /* int32_t offsets into rows */
    ws_vec_t rows;     /* int32_t: count of steps, then rows by tracked tensor and step */
} scan_t;

/* What joining segments at `i` and ending the next one at `j` means. */
typedef struct {
    int32_t i, j, inlet;
    bool ends, cuts;       /* the stage may end at j, or be cut there */
    int64_t full, carried; /* bytes of whole tensors at j if it ends, and without the last if it is cut */
    int64_t room;          /* bytes for what the stage holds besides them, at most */
    int64_t spare;         /* extra MACs of the stage, at most */
} link_t;

int32_t ws_ring_rows(int32_t height, int32_t advance, int32_t offset, const ws_need_t *reader)
{
    const ws_span_t need = reader->span;
    int32_t most = 1, done = 0, produced = ws_clamp(offset, height);
    for (int32_t step = reader->begin; step < reader->steps; step++) {
        int32_t lo = need.advance * step + need.lo, first = ws_max(lo, 0);
        int32_t end = ws_min(need.advance * step + need.hi, reader->end);
        if (produced < end) {
            done = ws_max(done, ws_div_up(end - offset, advance));
            produced = ws_clamp(advance * done + offset, height);
        }
        if (end > first) {
            most = ws_max(most, produced - first);
        }
        if (end >= reader->end || lo >= reader->end) {
            break;
        }
    }
    return ws_min(most, height);
}

/* ------------------------------------------------------------ profiles */

static const ws_need_t *need_of(const ws_search_t *s, const ws_class_t *class, int32_t tensor)
{
    for (int32_t k = 0; k < class->needs_count; k++) {
        const ws_need_t *need = WS_AT(s->needs, ws_need_t, class->needs_at + k);
        if (need->tensor == tensor) {
            return need;
        }
    }
    return NULL;
}

/* Whether an operator of the segment needs the tensor whole, and so reads all of it at every step. */
static bool reads_whole(const ws_search_t *s, const link_t *link, int32_t tensor)
{
    for (int32_t n = link->i; n < link->j; n++) {
        const ws_op_t *op = &s->graph.ops[n];
        for (int32_t k = op->swept; k < op->swept + op->whole; k++) {
            if (s->graph.inputs[op->inputs_at + k] == tensor) {
                return true;
            }
        }
    }
    return false;
}

/* First row that a segment is still to read of a tensor when it has done `steps` steps; `whole`: see reads_whole(). */
static int32_t next_row(const ws_search_t *s, const ws_class_t *class, int32_t tensor, bool whole, int32_t steps)
{
    if (whole && steps < class->steps) {
        return 0;
    }
    int32_t row = GONE;
    for (int32_t k = 0; k < class->needs_count; k++) {
        const ws_need_t *need = WS_AT(s->needs, ws_need_t, class->needs_at + k);
        const int32_t first = ws_max(need->span.advance * steps + need->span.lo, 0);
        if (need->tensor == tensor && steps < need->steps && first < s->graph.tensors[tensor].height) {
            row = ws_min(row, first);
        }
    }
    return row;
}

/* Steps that the segment before has done when this one does its step. */
static int32_t pulled(const group_t *g, const ws_need_t *inlet, int32_t step)
{
    int32_t last = inlet ? ws_min(step, inlet->steps - 1) : 0;
    int32_t end = inlet && last >= inlet->begin ? ws_min(inlet->span.advance * last + inlet->span.hi, inlet->end) : 0;
    return end > 0 ? ws_div_up(end - g->offset, g->advance) : 0;
}

/* The profile after a segment of `class` behind group `g`; -1 without memory. */
static int32_t compose(scan_t *c, const group_t *g, const ws_class_t *class, const link_t *link)
{
    ws_search_t *s = c->s;
    if (c->tracked == 0) {
        return 0;
    }
    int32_t inlet = link->inlet;
    const ws_need_t *pull = inlet >= 0 ? need_of(s, class, inlet) : NULL;
    int32_t steps = class->steps + 1, at = (int32_t)c->rows.count;
    if (!ws_push(s, &c->rows, &steps)) {
        return WS_NONE;
    }
    for (int32_t k = 0; k < c->tracked; k++) {
        const bool whole = reads_whole(s, link, c->track[k]);
        int32_t old = *WS_AT(c->profiles, int32_t, g->profile);
        int32_t old_steps = *WS_AT(c->rows, int32_t, old);
        for (int32_t m = 0; m < steps; m++) {
            int32_t row = next_row(s, class, c->track[k], whole, m);
            int32_t done = m > 0 ? pulled(g, pull, m - 1) : 0;
            int32_t before = *WS_AT(c->rows, int32_t, old + 1 + k * old_steps + ws_min(done, old_steps - 1));
            row = ws_min(row, before);
            if (!ws_push(s, &c->rows, &row)) {
                return WS_NONE;
            }
        }
    }
    size_t words = c->rows.count - (size_t)at;
    const int32_t *made = WS_AT(c->rows, int32_t, at);
    for (size_t n = 0; n < c->profiles.count; n++) {
        int32_t known = *WS_AT(c->profiles, int32_t, n);
        if (*WS_AT(c->rows, int32_t, known) == steps &&
            memcmp(WS_AT(c->rows, int32_t, known), made, words * sizeof(int32_t)) == 0) {
            c->rows.count = (size_t)at;
            return (int32_t)n;
        }
    }
    if (!ws_push(s, &c->profiles, &at)) {
        return WS_NONE;
    }
    return (int32_t)c->profiles.count - 1;
}

/* How far below a tracked tensor the output of a stage that ends with `class` has to start to overwrite dead rows only,
 * in bytes: replay.overlap_distances. */
static int64_t distance(const scan_t *c, const group_t *g, const ws_class_t *class, const link_t *link, int32_t k,
                        const ws_tensor_t *out)
{
    const ws_search_t *s = c->s;
    int32_t inlet = link->inlet;
    const ws_need_t *pull = inlet >= 0 ? need_of(s, class, inlet) : NULL;
    const ws_tensor_t *t = &s->graph.tensors[c->track[k]];
    int32_t old = *WS_AT(c->profiles, int32_t, g->profile);
    int32_t old_steps = *WS_AT(c->rows, int32_t, old);
    const bool whole = reads_whole(s, link, c->track[k]);
    int64_t most = 0;
    for (int32_t i = 0; i < class->steps; i++) {
        int32_t written = ws_clamp(class->advance * (i + 1) + class->offset, out->height);
        int32_t done = pulled(g, pull, i);
        int32_t row = *WS_AT(c->rows, int32_t, old + 1 + k * old_steps + ws_min(done, old_steps - 1));
        row = ws_min(row, next_row(s, class, c->track[k], whole, i));
        if (written > 0 && row != GONE) {
            int64_t bytes = (int64_t)written * out->width * out->channels - (int64_t)row * t->width * t->channels;
            most = bytes > most ? bytes : most;
        }
    }
    return ws_up(most);
}

/* ------------------------------------------------------------ what lives where */

static bool made_since(const scan_t *c, int32_t tensor)
{
    return c->s->graph.tensors[tensor].producer >= c->start;
}

/* Bytes of whole tensors at the end of a stage's part up to j: those made in it that are needed later, but `inlet`
 * (which is counted as a ring) and, for `carried`, the last one. */
static void count_kept(const scan_t *c, int32_t j, int32_t inlet, int64_t *full, int64_t *carried)
{
    const ws_graph_t *graph = &c->s->graph;
    int32_t last = graph->ops[j - 1].tensor;
    *full = c->base;
    *carried = c->base;
    for (int32_t op = c->start; op < j; op++) {
        int32_t tensor = graph->ops[op].tensor;
        const ws_tensor_t *t = &graph->tensors[tensor];
        if (t->last_use >= j && (tensor != inlet || t->output)) {
            *full += ws_up(t->bytes);
            if (tensor != last || t->output) {
                *carried += ws_up(t->bytes);
            }
        }
    }
}

/* Whether the stage may be cut into segments at j: only the last tensor is read later. */
static bool may_cut(const scan_t *c, int32_t j)
{
    const ws_graph_t *graph = &c->s->graph;
    if (j == graph->op_count || graph->ops[j - 1].reduce_h) {
        return false;
    }
    for (int32_t op = c->start; op < j; op++) {
        bool read = graph->tensors[graph->ops[op].tensor].last_read >= j;
        if (read != (op == j - 1)) {
            return false;
        }
    }
    return true;
}

/* Whether nothing after j reads a tracked tensor, and the output at j may overlap something. */
static bool dies(const scan_t *c, int32_t j, int32_t k)
{
    const ws_op_t *last = &c->s->graph.ops[j - 1];
    return !last->reduce_h && !last->reduce_w && c->s->graph.tensors[c->track[k]].last_use < j;
}

/* Bytes of the tensor between two segments: a ring, or all of it if something later reads it too. `known`: the ring's
 * rows, 0 if they are still to be found. */
static int64_t link_bytes(const scan_t *c, const group_t *g, const ws_class_t *class, const link_t *link,
                          int32_t *known)
{
    if (link->inlet < 0 || c->s->graph.tensors[link->inlet].output) {
        return 0;
    }
    const ws_tensor_t *t = &c->s->graph.tensors[link->inlet];
    int32_t rows = t->height;
    if (t->last_use < link->j) {
        if (*known == 0) {
            const ws_need_t *need = WS_AT(c->s->inlets[link->i], ws_need_t, class->inlet);
            *known = ws_ring_rows(t->height, g->advance, g->offset, need);
        }
        rows = *known;
    }
    return ws_up((int64_t)rows * t->width * t->channels);
}

/* ------------------------------------------------------------ dominance */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static int by_cost(const void *a, const void *b)
{
    const state_t *x = a, *y = b;
    if (x->extra != y->extra) {
        return x->extra < y->extra ? -1 : 1;
    }
    if (x->held != y->held) {
        return x->held < y->held ? -1 : 1;
    }
    if (x->tile != y->tile) {
        return x->tile < y->tile ? -1 : 1;
    }
    if (x->calls != y->calls) {
        return x->calls < y->calls ? -1 : 1;
    }
    if (x->before != y->before) {
        return x->before < y->before ? -1 : 1;
    }
    return x->option < y->option ? -1 : x->option > y->option;
}

/* Drop what another one beats in MACs, held and tile bytes. In order of MACs, the best held and tile bytes so far form
 * a staircase: more held bytes, narrower tiles. */
static bool settle(scan_t *c, group_t *g)
{
    ws_vec_t *stairs = &c->stairs;
    state_t *states = g->states.items;
    size_t kept = 0;
    if (g->states.count > 1) {
        qsort(states, g->states.count, sizeof(*states), by_cost);
    }
    stairs->count = 0;
    for (size_t n = 0; n < g->states.count; n++) {
        const int32_t step[2] = {states[n].held, states[n].tile};
        size_t lo = 0, hi = stairs->count;
        while (lo < hi) { /* first step that holds more */
            size_t middle = (lo + hi) / 2;
            if (WS_AT(*stairs, int32_t, 2 * middle)[0] <= step[0]) {
                lo = middle + 1;
            } else {
                hi = middle;
            }
        }
        if (lo > 0 && WS_AT(*stairs, int32_t, 2 * (lo - 1))[1] <= step[1]) {
            continue;
        }
        size_t end = lo;
        while (end < stairs->count && WS_AT(*stairs, int32_t, 2 * end)[1] >= step[1]) {
            end++;
        }
        if (lo > 0 && WS_AT(*stairs, int32_t, 2 * (lo - 1))[0] == step[0]) {
            lo--; /* as much held, wider tile */
        }
        if (end == lo && !ws_push(c->s, stairs, step)) {
            return false;
        }
        int32_t *at = WS_AT(*stairs, int32_t, 2 * lo);
        size_t behind = stairs->count - larger(end, lo + 1);
        memmove(at + 2, WS_AT(*stairs, int32_t, 2 * end), behind * sizeof(step));
        stairs->count = lo + 1 + behind;
        at[0] = step[0];
        at[1] = step[1];
        states[kept++] = states[n];
    }
    g->states.count = g->settled = kept;
    return ws_work(c->s, (int64_t)kept * 16);
}

/* ------------------------------------------------------------ the scan */

static group_t *group_of(scan_t *c, int32_t j, int32_t advance, int32_t offset, int32_t profile)
{
    ws_vec_t *groups = &c->groups[j];
    for (size_t n = 0; n < groups->count; n++) {
        group_t *g = WS_AT(*groups, group_t, n);
        if (g->advance == advance && g->offset == offset && g->profile == profile) {
            return g;
        }
    }
    group_t fresh = {advance, offset, profile, {NULL, 0, 0, sizeof(state_t)}, 0, 0};
    return ws_push(c->s, groups, &fresh) ? WS_AT(*groups, group_t, groups->count - 1) : NULL;
}

/* Whether a stage is no worse than another one in all that decides how outputs that overlap in a row are packed. */
static bool no_worse(const end_t *x, const end_t *y)
{
    return x->memory <= y->memory && x->extra <= y->extra && x->under == y->under && x->below <= y->below &&
           (x->memory < y->memory || x->extra < y->extra || x->below < y->below || x->calls <= y->calls);
}

/* Note a finished stage with an overlap where all are asked for: those that overlap in another way are no match. */
static bool note_overlap(scan_t *c, int32_t j, const end_t *end)
{
    ws_vec_t *ends = &c->ends[2 * j + 1];
    size_t kept = 0;
    for (size_t n = 0; n < ends->count; n++) {
        if (no_worse(WS_AT(*ends, end_t, n), end)) {
            return true;
        }
    }
    for (size_t n = 0; n < ends->count; n++) {
        const end_t known = *WS_AT(*ends, end_t, n);
        if (!no_worse(end, &known)) {
            *WS_AT(*ends, end_t, kept++) = known;
        }
    }
    ends->count = kept;
    return ws_push(c->s, ends, end);
}

/* Note a finished stage if none needs both less memory and fewer MACs, of those that overlap and of the others. */
static bool note_end(scan_t *c, int32_t j, const end_t *end)
{
    if (end->overlap && c->s->aim == WS_ALL) {
        return note_overlap(c, j, end);
    }
    ws_vec_t *ends = &c->ends[2 * j + end->overlap];
    size_t lo = 0, hi = ends->count;
    while (lo < hi) { /* first that needs more memory */
        size_t middle = (lo + hi) / 2;
        if (WS_AT(*ends, end_t, middle)->memory <= end->memory) {
            lo = middle + 1;
        } else {
            hi = middle;
        }
    }
    if (lo > 0) {
        const end_t *known = WS_AT(*ends, end_t, lo - 1);
        if (known->extra < end->extra ||
            (known->extra == end->extra && (known->memory < end->memory || known->calls <= end->calls))) {
            return true;
        }
        if (known->memory == end->memory) {
            lo--;
        }
    }
    size_t beaten = lo;
    while (beaten < ends->count && WS_AT(*ends, end_t, beaten)->extra >= end->extra) {
        beaten++;
    }
    if (beaten == lo && !ws_push(c->s, ends, end)) {
        return false;
    }
    size_t behind = ends->count - larger(beaten, lo + 1);
    memmove(WS_AT(*ends, end_t, lo + 1), WS_AT(*ends, end_t, beaten), behind * sizeof(*end));
    ends->count = lo + 1 + behind;
    *WS_AT(*ends, end_t, lo) = *end;
    return true;
}

/* Candidates of a group are compared whenever they have become this many times as many as were left. */
#define CROWDED 4
#define CROWD (1 << 14)

/* Where the states of one group, followed by the options of one class, end up: settled once the first of them fits. */
typedef struct {
    bool known;
    group_t *target;
} joint_t;

/* Also finds what the output may overlap if the stage ends here: what saves most, or all where all is asked for. */
static bool join(scan_t *c, joint_t *joint, const group_t *g, const ws_class_t *class, const link_t *link)
{
    ws_search_t *s = c->s;
    const ws_tensor_t *out = &s->graph.tensors[s->graph.ops[link->j - 1].tensor];
    joint->known = true;
    for (int32_t k = 0; link->ends && k < c->tracked; k++) {
        if (dies(c, link->j, k)) {
            int64_t size = ws_up(s->graph.tensors[c->track[k]].bytes), own = ws_up(out->bytes);
            int64_t below = distance(c, g, class, link, k, out);
            int64_t saving = size + own - (own > size + below ? own : size + below);
            const share_t share = {saving, c->track[k], (int32_t)below};
            if (saving > 0 && (c->shares.count == 0 || s->aim == WS_ALL)) {
                if (!ws_push(s, &c->shares, &share)) {
                    return false;
                }
            } else if (saving > 0 && saving > WS_AT(c->shares, share_t, 0)->saved) {
                *WS_AT(c->shares, share_t, 0) = share;
            }
        }
    }
    if (link->cuts) {
        int32_t profile = compose(c, g, class, link);
        joint->target = profile < 0 ? NULL : group_of(c, link->j, class->advance, class->offset, profile);
        return joint->target != NULL;
    }
    return true;
}

/* All states of `g`, at `first` of the kept ones, followed by all options of `class`. `known`: see link_bytes(). */
static bool follow(scan_t *c, const group_t *g, int32_t first, const ws_class_t *class, const link_t *link,
                   int32_t *known)
{
    ws_search_t *s = c->s;
    if (g->states.count == 0 ||
        WS_AT(g->states, state_t, 0)->extra + WS_AT(s->options, ws_option_t, class->first)->extra > link->spare) {
        return true;
    }
    int64_t add = link_bytes(c, g, class, link, known) + class->fixed + WS_COUNTERS;
    int64_t room = link->room, spare = link->spare;
    if (g->held + add + class->least > room) {
        return true;
    }
    joint_t joint = {false, NULL};
    c->shares.count = 0;
    const state_t *states = g->states.items;
    size_t count = g->states.count;
    for (int32_t o = class->first; o < class->first + class->count; o++) {
        const ws_option_t *option = WS_AT(s->options, ws_option_t, o);
        int64_t option_add = add + option->held, least = INT64_MAX;
        for (size_t n = 0; n < count; n++) {
            const state_t *state = &states[n];
            int64_t extra = state->extra + option->extra, held = state->held + option_add;
            if (extra > spare) {
                break;
            }
            int32_t tile = ws_max(state->tile, option->tile);
            if (held >= least) {
                continue; /* an earlier one whose tile is no wider holds no more */
            }
            least = state->tile <= option->tile ? held : least;
            if (held + tile > room || state->segments + class->segments >= WS_MAX_SEGMENTS) {
                continue;
            }
            if (!joint.known && !join(c, &joint, g, class, link)) {
                return false;
            }
            s->tried++;
            state_t next = {extra,
                            (int32_t)held,
                            tile,
                            state->calls + option->calls,
                            o,
                            first + (int32_t)n,
                            state->segments + 1 + class->segments};
            int64_t memory = link->full + held + tile;
            for (size_t over = 0; link->ends && over <= c->shares.count; over++) {
                const share_t share = over > 0 ? *WS_AT(c->shares, share_t, over - 1) : (share_t){0, WS_NONE, 0};
                end_t end = {extra + s->limits.around.stage,
                             (int32_t)(memory - share.saved),
                             tile,
                             next.calls,
                             o,
                             next.before,
                             next.segments,
                             over > 0,
                             share.under,
                             share.below,
                             (int32_t)share.saved};
                if (memory - share.saved <= c->cap && !note_end(c, link->j, &end)) {
                    return false;
                }
            }
            if (link->cuts && held + tile <= c->cap - link->carried && !ws_push(s, &joint.target->states, &next)) {
                return false;
            }
        }
        group_t *target = joint.target;
        if (target != NULL && target->states.count > target->settled * CROWDED + CROWD && !settle(c, target)) {
            return false;
        }
    }
    return ws_work(s, (int64_t) class->count * (int64_t)count + 64);
}

/* Keep the group's states for those that follow; the number of the first, -1 without memory. */
static int32_t keep_states(scan_t *c, const group_t *g)
{
    int32_t first = (int32_t)c->states.count;
    c->s->kept += (int64_t)g->states.count;
    return ws_append(c->s, &c->states, g->states.items, g->states.count) ? first : WS_NONE;
}

static bool reads_new_whole(const scan_t *c, int32_t i, int32_t j)
{
    for (int32_t n = i; n < j; n++) {
        const ws_op_t *op = &c->s->graph.ops[n];
        for (int32_t k = op->swept; k < op->swept + op->whole; k++) {
            if (made_since(c, c->s->graph.inputs[op->inputs_at + k])) {
                return true;
            }
        }
    }
    return false;
}

static bool scan_from(scan_t *c, int32_t i)
{
    ws_search_t *s = c->s;
    int32_t inlet = i > c->start ? s->graph.ops[i - 1].tensor : WS_NONE;
    for (size_t n = 0; n < c->groups[i].count; n++) {
        group_t *g = WS_AT(c->groups[i], group_t, n);
        if (!settle(c, g)) {
            return false;
        }
    }
    int32_t first = (int32_t)c->states.count;
    int64_t extra = WS_MAX_EXTRA, held = INT32_MAX;
    for (size_t n = 0; n < c->groups[i].count; n++) {
        group_t *g = WS_AT(c->groups[i], group_t, n);
        if (keep_states(c, g) < 0) {
            return false;
        }
        g->held = INT32_MAX;
        for (size_t k = 0; k < g->states.count; k++) {
            const state_t *state = WS_AT(g->states, state_t, k);
            g->held = ws_min(g->held, state->held);
            extra = ws_min64(extra, state->extra);
        }
        held = ws_min64(held, g->held);
    }
    const size_t spans = s->inlets[i].count;
    c->rings.count = 0;
    for (size_t n = 0; n < c->groups[i].count * spans; n++) {
        const int32_t unknown = 0;
        if (!ws_push(s, &c->rings, &unknown)) {
            return false;
        }
    }
    for (int32_t j = i + 1; j <= ws_min(i + s->limits.segment_ops, s->graph.op_count); j++) {
        if (reads_new_whole(c, j - 1, j)) {
            break;
        }
        const ws_segment_t *segment = ws_segment(s, i, j);
        link_t link = {i, j, inlet, s->graph.tensors[s->graph.ops[j - 1].tensor].last_use >= j, may_cut(c, j), 0,
                       0, 0, 0};
        if (segment->count == 0 || (!link.ends && !link.cuts) || s->ahead[j] >= WS_MAX_EXTRA) {
            continue;
        }
        count_kept(c, j, inlet, &link.full, &link.carried);
        /* An output of the network is carried on if the stage is cut there, but may overlap something if it ends. */
        const ws_tensor_t *last = &s->graph.tensors[s->graph.ops[j - 1].tensor];
        link.room = c->cap - (link.ends ? link.full - ws_up(last->bytes) : link.carried);
        link.spare = ws_min64(s->spare - c->prefix, c->rest - 1) - s->ahead[j];
        for (int32_t k = segment->first; k < segment->first + segment->count; k++) {
            const ws_class_t *class = WS_AT(s->classes, ws_class_t, k);
            if (inlet >= 0 && class->inlet < 0) {
                continue; /* a segment that does not read the one before it (a branch) takes part in no sweep with it */
            }
            if (class->count == 0 || extra + WS_AT(s->options, ws_option_t, class->first)->extra > link.spare ||
                held + class->fixed + WS_COUNTERS + class->least > link.room) {
                continue;
            }
            int32_t at = first;
            for (size_t n = 0; n < c->groups[i].count; n++) {
                const group_t *g = WS_AT(c->groups[i], group_t, n);
                int32_t *known = inlet >= 0 ? WS_AT(c->rings, int32_t, n * spans + (size_t) class->inlet) : NULL;
                if (!follow(c, g, at, class, &link, known)) {
                    return false;
                }
                at += (int32_t)g->states.count;
            }
        }
        if (!ws_work(s, (int64_t)segment->count * 16)) {
            return false;
        }
    }
    return true;
}

/* Move the finished stages into the search's tables. */
static bool keep_ends(scan_t *c)
{
    ws_search_t *s = c->s;
    for (int32_t at = 2 * c->start; at < 2 * (s->graph.op_count + 1); at++) {
        int32_t j = at / 2;
        for (size_t n = 0; n < c->ends[at].count; n++) {
            const end_t *end = WS_AT(c->ends[at], end_t, n);
            ws_stage_t stage = {end->extra, end->memory,  end->calls, j,          end->tile, (int32_t)s->chains.count,
                                0,          end->overlap, end->under, end->below, end->saved};
            int32_t chain[WS_MAX_SEGMENTS];
            int32_t first = WS_MAX_SEGMENTS;
            chain[--first] = end->option;
            for (int32_t b = end->before; WS_AT(c->states, state_t, b)->option >= 0;) {
                const state_t *state = WS_AT(c->states, state_t, b);
                chain[--first] = state->option;
                b = state->before;
            }
            stage.chain_count = WS_MAX_SEGMENTS - first;
            if (!ws_append(s, &s->chains, chain + first, (size_t)stage.chain_count) ||
                !ws_push(s, &s->stages, &stage)) {
                return false;
            }
        }
    }
    return true;
}

/* Whole tensors from before `start`, and which of them the stage may be the last to read. */
static void look_back(scan_t *c)
{
    ws_search_t *s = c->s;
    c->base = 0;
    c->tracked = 0;
    for (int32_t tensor = 0; tensor < s->graph.tensor_count; tensor++) {
        const ws_tensor_t *t = &s->graph.tensors[tensor];
        bool there = t->resident || (t->producer >= 0 && t->producer < c->start);
        if (there && t->last_use >= c->start) {
            c->base += ws_up(t->bytes);
            if (t->last_use < s->graph.op_count && t->bytes > 0) {
                c->track[c->tracked++] = tensor;
            }
        }
    }
}

static bool scan(scan_t *c)
{
    ws_search_t *s = c->s;
    c->cap = c->base + s->room < s->cap ? c->base + s->room : s->cap;
    if (c->base > c->cap) {
        return true;
    }
    /* Nothing has been read: no row is out of use, and every step of "the segment before" has been done. */
    int32_t at = 0, steps = 1, row = GONE;
    bool good = ws_push(s, &c->profiles, &at) && ws_push(s, &c->rows, &steps);
    for (int32_t k = 0; good && k < c->tracked; k++) {
        good = ws_push(s, &c->rows, &row);
    }
    group_t *root = good ? group_of(c, c->start, 1, 0, 0) : NULL;
    state_t none = {0, 0, 0, 0, WS_NONE, WS_NONE, 0};
    good = root != NULL && ws_push(s, &root->states, &none);
    for (int32_t i = c->start; good && i < s->graph.op_count; i++) {
        if (c->groups[i].count > 0) {
            good = scan_from(c, i);
        }
    }
    good = good && keep_ends(c);
    return good;
}

static void clear(scan_t *c)
{
    for (int32_t i = c->start; i <= c->s->graph.op_count; i++) {
        for (size_t n = 0; n < c->groups[i].count; n++) {
            ws_vec_free(c->s, &WS_AT(c->groups[i], group_t, n)->states);
        }
        c->groups[i].count = c->ends[2 * i].count = c->ends[2 * i + 1].count = 0;
    }
    c->states.count = c->profiles.count = c->rows.count = 0;
}

/* Whether the stage is one operator in one step. */
static bool is_layer(const ws_stage_t *stage, int32_t start)
{
    return stage->end == start + 1 && stage->calls == 1;
}

/* Whether the run may use the stage: it fits, or it is an unfused operator that does. */
static bool fits(const ws_search_t *s, const ws_stage_t *stage, int32_t start)
{
    return stage->memory <= s->cap || (stage->memory <= s->layers_cap && is_layer(stage, start));
}

/* The stage of the operator at `start` alone in one step, if it fits where only such stages may. */
static bool add_layer(scan_t *c)
{
    ws_search_t *s = c->s;
    int32_t j = c->start + 1;
    const ws_segment_t *segment = ws_segment(s, c->start, j);
    for (int32_t k = s->stages_at[c->start]; k < s->stages_end[c->start]; k++) {
        if (is_layer(WS_AT(s->stages, ws_stage_t, k), c->start)) {
            return true;
        }
    }
    for (int32_t k = segment->first; k < segment->first + segment->count; k++) {
        const ws_class_t *class = WS_AT(s->classes, ws_class_t, k);
        for (int32_t o = class->first; class->steps == 1 && o < class->first + class->count; o++) {
            int64_t full, carried;
            count_kept(c, j, WS_NONE, &full, &carried);
            int64_t memory = full + class->fixed + WS_COUNTERS + WS_AT(s->options, ws_option_t, o)->held;
            int64_t extra = WS_AT(s->options, ws_option_t, o)->extra + s->limits.around.stage;
            ws_stage_t stage = {extra, (int32_t)memory, 1, j, 0, (int32_t)s->chains.count, 1, 0, WS_NONE, 0, 0};
            if (memory > s->cap && memory <= s->layers_cap) {
                return ws_push(s, &s->chains, &o) && ws_push(s, &s->stages, &stage);
            }
        }
    }
    return true;
}

/* Fewest extra MACs from `start` to the end with the stages found so far. */
static void note_rest(ws_search_t *s, int32_t start)
{
    for (int32_t k = s->stages_at[start]; k < s->stages_end[start]; k++) {
        const ws_stage_t *stage = WS_AT(s->stages, ws_stage_t, k);
        int64_t rest = s->rest[stage->end];
        if (fits(s, stage, start) && rest < WS_MAX_EXTRA && stage->extra + rest < s->rest[start]) {
            s->rest[start] = stage->extra + rest;
        }
    }
}

/* Add the stages of at most `room` bytes that begin at `start`, have at most as many extra MACs as `prefix` leaves, and
 * are better than what is known; `layer`: and the operator alone. */
static bool scan_start(scan_t *c, int32_t start, int32_t room, int64_t prefix, bool layer)
{
    ws_search_t *s = c->s;
    int32_t begin = s->stages_at[start], end = s->stages_end[start];
    s->stages_at[start] = (int32_t)s->stages.count;
    for (int32_t k = begin; k < end; k++) {
        ws_stage_t stage = *WS_AT(s->stages, ws_stage_t, k);
        if (!ws_push(s, &s->stages, &stage)) {
            return false;
        }
    }
    s->stages_end[start] = (int32_t)s->stages.count;
    s->room = room;
    c->start = start;
    c->prefix = prefix;
    c->rest = s->aim == WS_NEAR ? s->rest[start] + s->slack : s->rest[start];
    look_back(c);
    bool good = layer ? add_layer(c) : scan(c);
    clear(c);
    s->stages_end[start] = (int32_t)s->stages.count;
    note_rest(s, start);
    return good;
}

/* Stages that begin at `from` and behind, of at most `room` bytes beyond the whole tensors from before them. The last
 * ones first: what can follow a stage is known then. */
static bool sweep_back(scan_t *c, int32_t from, int32_t room)
{
    ws_search_t *s = c->s;
    for (int32_t start = s->graph.op_count - 1; start >= from; start--) {
        note_rest(s, start);
        if (s->rest[start] > s->ahead[start] && room > s->tried_room[start]) {
            if (!scan_start(c, start, room, 0, false)) {
                return false;
            }
            if (s->rest[start] < WS_MAX_EXTRA) { /* otherwise a larger limit may let something follow */
                s->tried_room[start] = ws_min(room, s->cap - (int32_t)c->base);
            }
        }
    }
    return true;
}

/* With how many 48ths of the limit stages are searched first, to know what can follow before all is searched. */
static const int32_t room_shares[] = {3, 6, 9, 12, 16, 20, 24, 32};

/*
 * Forward, `reached` being the fewest extra MACs up to each position: only stages that can be reached are looked for,
 * and only those that improve on `rest`; where `ahead` says that nothing can, none are.
 */
static bool find_forward(scan_t *c, int64_t *reached)
{
    ws_search_t *s = c->s;
    int32_t n = s->graph.op_count;
    size_t swept = 0;
    for (int32_t start = 0; start < n; start++) {
        s->done = (double)start / n;
        if (reached[start] >= WS_MAX_EXTRA) {
            continue;
        }
        int64_t enough = s->aim == WS_ANY ? s->spare - reached[start] : s->ahead[start];
        bool done = s->rest[start] <= enough && s->rest[start] < WS_MAX_EXTRA;
        for (; s->aim != WS_ALL && !done && swept < sizeof(room_shares) / sizeof(*room_shares); swept++) {
            if (!sweep_back(c, start, (int32_t)((int64_t)s->cap * room_shares[swept] / 48))) {
                return false;
            }
            done = s->rest[start] <= enough && s->rest[start] < WS_MAX_EXTRA;
        }
        s->exact = s->exact && s->rest[start] >= WS_MAX_EXTRA;
        if (s->aim == WS_ANY && done) {
            return true;
        }
        if ((s->rest[start] > s->ahead[start] || s->aim == WS_NEAR) &&
            !scan_start(c, start, s->cap, reached[start], false)) {
            return false;
        }
        for (int32_t k = s->stages_at[start]; k < s->stages_end[start]; k++) {
            const ws_stage_t *stage = WS_AT(s->stages, ws_stage_t, k);
            if (fits(s, stage, start)) {
                reached[stage->end] = ws_min64(reached[stage->end], reached[start] + stage->extra);
            }
        }
    }
    return true;
}

/* Put the stages that are known together by start, see how far they lead, and add unfused operators. */
static bool keep_known(scan_t *c)
{
    ws_search_t *s = c->s;
    ws_vec_t known = s->stages;
    s->stages = (ws_vec_t){.size = sizeof(ws_stage_t)};
    bool good = true;
    for (int32_t start = s->graph.op_count - 1; good && start >= 0; start--) {
        int32_t begin = s->stages_at[start], end = s->stages_end[start];
        s->stages_at[start] = (int32_t)s->stages.count;
        for (int32_t k = begin; good && s->aim != WS_ALL && k < end; k++) {
            good = ws_push(s, &s->stages, WS_AT(known, ws_stage_t, k));
        }
        s->stages_end[start] = (int32_t)s->stages.count;
        s->rest[start] = WS_MAX_EXTRA;
        if (s->cap < s->tried_cap) { /* what is known may be too large now */
            s->tried_room[start] = 0;
        }
        note_rest(s, start);
        if (good && s->layers_cap > s->cap) {
            good = scan_start(c, start, 0, 0, true);
        }
    }
    s->tried_cap = s->cap;
    ws_vec_free(s, &known);
    return good;
}

bool ws_find_stages(ws_search_t *s)
{
    int32_t n = s->graph.op_count;
    size_t places = (size_t)n + 1, tensors = (size_t)s->graph.tensor_count;
    scan_t c = {.s = s,
                .states = {.size = sizeof(state_t)},
                .stairs = {.size = 2 * sizeof(int32_t)},
                .shares = {.size = sizeof(share_t)},
                .rings = {.size = sizeof(int32_t)},
                .profiles = {.size = sizeof(int32_t)},
                .rows = {.size = sizeof(int32_t)}};
    int64_t *reached = ws_alloc(s, places, sizeof(*reached));
    c.track = ws_alloc(s, tensors, sizeof(*c.track));
    c.groups = ws_alloc(s, places, sizeof(*c.groups));
    c.ends = ws_alloc(s, 2 * places, sizeof(*c.ends));
    bool good = reached != NULL && c.track != NULL && c.groups != NULL && c.ends != NULL;
    for (int32_t i = 0; good && i <= n; i++) {
        reached[i] = i > 0 ? WS_MAX_EXTRA : 0;
        c.groups[i].size = sizeof(group_t);
        c.ends[2 * i].size = c.ends[2 * i + 1].size = sizeof(end_t);
    }
    s->exact = true;
    s->rest[n] = 0;
    good = good && keep_known(&c) && find_forward(&c, reached);
    for (int32_t i = 0; c.groups != NULL && c.ends != NULL && i <= n; i++) {
        ws_vec_free(s, &c.groups[i]);
        ws_vec_free(s, &c.ends[2 * i]);
        ws_vec_free(s, &c.ends[2 * i + 1]);
    }
    ws_vec_free(s, &c.states);
    ws_vec_free(s, &c.stairs);
    ws_vec_free(s, &c.shares);
    ws_vec_free(s, &c.rings);
    ws_vec_free(s, &c.profiles);
    ws_vec_free(s, &c.rows);
    ws_release(s, reached, places, sizeof(*reached));
    ws_release(s, c.track, tensors, sizeof(*c.track));
    ws_release(s, c.groups, places, sizeof(*c.groups));
    ws_release(s, c.ends, 2 * places, sizeof(*c.ends));
    return good;
}
