/* SPDX-License-Identifier: Apache-2.0 */
/* The search as a whole, and the best paths through the stages that it found. */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

/* Near the fewest MACs: within one of so many parts of the unfused ones. */
#define NEAR_SHARE 100

ws_search_t *ws_open(const ws_graph_t *graph, const ws_limits_t *limits, ws_progress_t progress, int32_t *status)
{
    ws_search_t *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        *status = WS_NO_MEMORY;
        return NULL;
    }
    s->graph = *graph;
    s->limits = *limits;
    s->limits.spare = limits->spare == WS_ANY_EXTRA ? WS_MAX_EXTRA : (limits->spare > 0 ? limits->spare : 0);
    s->limits.segment_ops = ws_clamp(limits->segment_ops, WS_MAX_OPS - 1);
    s->progress = progress;
    s->needs.size = sizeof(ws_need_t);
    s->classes.size = sizeof(ws_class_t);
    s->options.size = sizeof(ws_option_t);
    s->keeps.size = sizeof(uint16_t);
    s->stages.size = sizeof(ws_stage_t);
    s->chains.size = sizeof(int32_t);
    size_t places = (size_t)graph->op_count + 1;
    s->macs_before = ws_alloc(s, places, sizeof(*s->macs_before));
    s->ahead = ws_alloc(s, places, sizeof(*s->ahead));
    s->stages_at = ws_alloc(s, places, sizeof(*s->stages_at));
    s->stages_end = ws_alloc(s, places, sizeof(*s->stages_end));
    s->rest = ws_alloc(s, places, sizeof(*s->rest));
    s->tried_room = ws_alloc(s, places, sizeof(*s->tried_room));
    s->segments = ws_alloc(s, places * (size_t)s->limits.segment_ops, sizeof(*s->segments));
    s->inlets = ws_alloc(s, places, sizeof(*s->inlets));
    if (s->status == WS_OK) {
        for (int32_t i = 0; i < graph->op_count; i++) {
            s->inlets[i].size = sizeof(ws_need_t);
            const ws_op_t *op = &graph->ops[i];
            s->macs_before[i + 1] = s->macs_before[i] + (op->macs_at < 0 ? 0 : graph->row_macs[op->macs_at + op->rows]);
        }
        ws_grow_segments(s);
    }
    *status = s->status;
    return s;
}

void ws_free(ws_search_t *s)
{
    if (s == NULL) {
        return;
    }
    size_t places = (size_t)s->graph.op_count + 1;
    ws_memo_free(s, &s->sweeps);
    ws_vec_free(s, &s->needs);
    ws_vec_free(s, &s->classes);
    ws_vec_free(s, &s->options);
    ws_vec_free(s, &s->keeps);
    ws_vec_free(s, &s->stages);
    ws_vec_free(s, &s->chains);
    for (size_t i = 0; s->inlets != NULL && i < places; i++) {
        ws_vec_free(s, &s->inlets[i]);
    }
    ws_release(s, s->inlets, places, sizeof(*s->inlets));
    ws_release(s, s->macs_before, places, sizeof(*s->macs_before));
    ws_release(s, s->ahead, places, sizeof(*s->ahead));
    ws_release(s, s->stages_at, places, sizeof(*s->stages_at));
    ws_release(s, s->stages_end, places, sizeof(*s->stages_end));
    ws_release(s, s->rest, places, sizeof(*s->rest));
    ws_release(s, s->tried_room, places, sizeof(*s->tried_room));
    ws_release(s, s->segments, places * (size_t)s->limits.segment_ops, sizeof(*s->segments));
    free(s);
}

int32_t ws_bound(ws_search_t *s, int64_t spare)
{
    int32_t lo = 0, hi = s->limits.cap;
    ws_look_ahead(s, hi);
    if (s->ahead[0] > spare) {
        return WS_NONE;
    }
    while (lo < hi) {
        int32_t middle = lo + (hi - lo) / 2;
        ws_look_ahead(s, middle);
        if (s->ahead[0] <= spare) {
            hi = middle;
        } else {
            lo = middle + 1;
        }
    }
    return lo;
}

int64_t ws_ahead(ws_search_t *s, int32_t cap)
{
    ws_look_ahead(s, cap);
    return s->ahead[0] < WS_MAX_EXTRA ? s->ahead[0] : WS_NO_EXTRA;
}

int32_t ws_run(ws_search_t *s, int32_t cap, int32_t aim, int32_t layers_cap, int64_t spare, ws_progress_t progress)
{
    s->cap = ws_min(cap, s->limits.cap);
    s->aim = aim;
    s->slack = 1 + s->macs_before[s->graph.op_count] / NEAR_SHARE;
    s->layers_cap = ws_min(layers_cap, s->limits.cap);
    s->spare = spare == WS_ANY_EXTRA ? WS_MAX_EXTRA : spare;
    s->progress = progress;
    s->done = 0;
    ws_look_ahead(s, s->cap);
    ws_find_stages(s);
    return s->status;
}

int32_t ws_exact(const ws_search_t *s)
{
    return s->exact;
}

/* A way to a position. `cost`: extra MACs and weights; `depth`: how far below the arena's end the last tensor has to
 * start, at least; `before`: of the ways to `from`. */
typedef struct {
    int64_t cost, extra, calls;
    int32_t memory, depth;
    int32_t stage, from, before;
} way_t;

/* What is asked of a path. Stages of more than `tight` bytes whose output overlaps something count as `weight` MACs
 * more. `deep`: a row of outputs, each overlapping the one before and starting below it, fits too. */
typedef struct {
    int32_t cap, tight;
    int64_t weight;
    bool deep;
} ask_t;

static bool better(const way_t *a, const way_t *b)
{
    if (a->cost != b->cost) {
        return a->cost < b->cost;
    }
    return a->calls != b->calls ? a->calls < b->calls : a->memory < b->memory;
}

/* Note a way unless another one is better and no deeper. */
static bool note_way(ws_search_t *s, ws_vec_t *known, const way_t *way)
{
    size_t kept = 0;
    for (size_t n = 0; n < known->count; n++) {
        const way_t *other = WS_AT(*known, way_t, n);
        if (other->depth <= way->depth && !better(way, other)) {
            return true;
        }
    }
    for (size_t n = 0; n < known->count; n++) {
        way_t other = *WS_AT(*known, way_t, n);
        if (way->depth > other.depth || !better(way, &other)) {
            *WS_AT(*known, way_t, kept++) = other;
        }
    }
    known->count = kept;
    return ws_push(s, known, way);
}

static void free_ways(ws_search_t *s, ws_vec_t *ways)
{
    for (int32_t i = 0; ways != NULL && i <= s->graph.op_count; i++) {
        ws_vec_free(s, &ways[i]);
    }
    ws_release(s, ways, (size_t)s->graph.op_count + 1, sizeof(*ways));
}

/* How deep the stage's output has to lie if what was made before it lies at `depth`: where there is room for both, it
 * need not overlap. */
static int32_t depth_of(const ws_search_t *s, const ws_stage_t *stage, int32_t start, int32_t depth, int32_t cap)
{
    const ws_tensor_t *out = &s->graph.tensors[s->graph.ops[stage->end - 1].tensor];
    int32_t own = (int32_t)ws_up(out->bytes);
    if (!stage->overlap || stage->memory <= cap - stage->saved) {
        return own;
    }
    const ws_tensor_t *under = &s->graph.tensors[stage->under];
    return ws_max(own,
                  (under->producer == start - 1 && start > 0 ? depth : (int32_t)ws_up(under->bytes)) + stage->below);
}

/* The best ways to all positions, by position; NULL without memory. */
static ws_vec_t *find_ways(ws_search_t *s, const ask_t *ask)
{
    int32_t n = s->graph.op_count;
    ws_vec_t *ways = ws_alloc(s, (size_t)n + 1, sizeof(*ways));
    for (int32_t i = 0; ways != NULL && i <= n; i++) {
        ways[i].size = sizeof(way_t);
    }
    way_t none = {0, 0, 0, 0, 0, WS_NONE, WS_NONE, WS_NONE};
    bool good = ways != NULL && ws_push(s, &ways[0], &none);
    for (int32_t i = 0; good && i < n; i++) {
        for (size_t w = 0; good && w < ways[i].count; w++) {
            const way_t *from = WS_AT(ways[i], way_t, w);
            for (int32_t k = s->stages_at[i]; good && k < s->stages_end[i]; k++) {
                const ws_stage_t *stage = WS_AT(s->stages, ws_stage_t, k);
                if (stage->memory > ask->cap) {
                    continue;
                }
                int64_t weight = stage->overlap && stage->memory > ask->tight ? ask->weight : 0;
                way_t way = {from->cost + stage->extra + weight,
                             from->extra + stage->extra,
                             from->calls + stage->calls,
                             ws_max(from->memory, stage->memory),
                             ask->deep ? depth_of(s, stage, i, from->depth, ask->cap) : 0,
                             k,
                             i,
                             (int32_t)w};
                good = way.depth > ask->cap || note_way(s, &ways[stage->end], &way);
            }
        }
    }
    if (!good) {
        free_ways(s, ways);
        return NULL;
    }
    return ways;
}

/* Of the ways to the end, the best; NULL if there is none. */
static const way_t *best_way(const ws_search_t *s, const ws_vec_t *ways)
{
    const ws_vec_t *ends = &ways[s->graph.op_count];
    const way_t *best = NULL;
    for (size_t n = 0; n < ends->count; n++) {
        const way_t *way = WS_AT(*ends, way_t, n);
        best = best == NULL || better(way, best) ? way : best;
    }
    return best;
}

/* A schedule as words; counts those that do not fit too. */
typedef struct {
    int32_t *words;
    int32_t room, count;
} writer_t;

static void put(writer_t *w, int32_t word)
{
    if (w->count < w->room) {
        w->words[w->count] = word;
    }
    w->count++;
}

static void put_stage(const ws_search_t *s, writer_t *w, int32_t begin, const ws_stage_t *stage)
{
    put(w, begin);
    put(w, stage->end);
    put(w, stage->overlap);
    put(w, stage->memory);
    put(w, stage->tile);
    put(w, stage->chain_count);
    for (int32_t k = 0; k < stage->chain_count; k++) {
        const ws_option_t *o = WS_AT(s->options, ws_option_t, *WS_AT(s->chains, int32_t, stage->chain_at + k));
        put(w, o->begin);
        put(w, o->end);
        put(w, o->row_adv);
        put(w, o->col_adv);
        put(w, o->slice);
        for (int32_t n = 0; n < o->end - o->begin; n++) {
            put(w, *WS_AT(s->keeps, uint16_t, o->keep_at + n));
        }
    }
}

int32_t ws_least_macs(ws_search_t *s, int32_t cap, int32_t tight, int64_t weight, bool deep, int64_t *extra,
                      int32_t *out, int32_t room)
{
    const ask_t ask = {cap, tight, weight, deep};
    int32_t n = s->graph.op_count, count = 0;
    ws_vec_t *ways = find_ways(s, &ask);
    if (ways == NULL) {
        return -1;
    }
    const way_t *best = best_way(s, ways);
    if (best != NULL) {
        *extra = best->extra;
        const way_t **path = ws_alloc(s, (size_t)n, sizeof(*path));
        writer_t w = {out, room, 0};
        for (const way_t *way = best; path != NULL && way->from >= 0;
             way = WS_AT(ways[way->from], way_t, way->before)) {
            path[count++] = way;
        }
        put(&w, count);
        for (int32_t k = count - 1; path != NULL && k >= 0; k--) {
            put_stage(s, &w, path[k]->from, WS_AT(s->stages, ws_stage_t, path[k]->stage));
        }
        count = path == NULL || w.count > room ? -1 : w.count;
        ws_release(s, path, (size_t)n, sizeof(*path));
    }
    free_ways(s, ways);
    return count;
}

/* Fewest extra MACs with at most `cap` bytes; WS_MAX_EXTRA if there is no way, or no memory. */
static int64_t fewest_extra(ws_search_t *s, int32_t cap, bool deep)
{
    const ask_t ask = {cap, 0, 0, deep};
    ws_vec_t *ways = find_ways(s, &ask);
    const way_t *best = ways == NULL ? NULL : best_way(s, ways);
    int64_t extra = best == NULL ? WS_MAX_EXTRA : best->extra;
    free_ways(s, ways);
    return extra;
}

/* The least bytes, a multiple of 4, with at most `extra` MACs; `none` if there are none. */
static int32_t least_peak(ws_search_t *s, int64_t extra, bool deep, int32_t none)
{
    int32_t lo = 0, hi = INT32_MAX / 4;
    if (fewest_extra(s, 4 * hi, deep) > extra) {
        return none;
    }
    while (lo < hi) {
        int32_t middle = lo + (hi - lo) / 2;
        if (fewest_extra(s, 4 * middle, deep) <= extra) {
            hi = middle;
        } else {
            lo = middle + 1;
        }
    }
    return 4 * hi;
}

int32_t ws_least_memory(ws_search_t *s, int64_t extra, bool deep)
{
    return least_peak(s, extra, deep, WS_NONE);
}

int32_t ws_next_memory(ws_search_t *s, int32_t cap, bool deep)
{
    return least_peak(s, fewest_extra(s, cap, deep) - 1, deep, INT32_MAX);
}

void ws_statistics(const ws_search_t *s, int64_t counts[4])
{
    counts[0] = (int64_t)s->options.count;
    counts[1] = s->kept;
    counts[2] = s->tried;
    counts[3] = (int64_t)s->stages.count;
}
