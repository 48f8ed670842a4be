/* SPDX-License-Identifier: Apache-2.0 */
/* The search as a whole, and the best paths through the stages that it found. */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

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
    if (s->status == WS_OK) {
        for (int32_t i = 0; i < graph->op_count; i++) {
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
    ws_memo_free(s, &s->rings);
    ws_vec_free(s, &s->needs);
    ws_vec_free(s, &s->classes);
    ws_vec_free(s, &s->options);
    ws_vec_free(s, &s->keeps);
    ws_vec_free(s, &s->stages);
    ws_vec_free(s, &s->chains);
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

/* The best way to a position. */
typedef struct {
    int64_t cost, extra, calls; /* cost: extra MACs and weights */
    int32_t memory;
    int32_t stage, from;
} way_t;

static bool better(const way_t *a, const way_t *b)
{
    if (a->cost != b->cost) {
        return a->cost < b->cost;
    }
    return a->calls != b->calls ? a->calls < b->calls : a->memory < b->memory;
}

/* The best ways to all positions through stages of at most `cap` bytes; NULL without memory. */
static way_t *ways(ws_search_t *s, int32_t cap, int32_t tight, int64_t weight)
{
    int32_t n = s->graph.op_count;
    way_t *best = ws_alloc(s, (size_t)n + 1, sizeof(*best));
    if (best == NULL) {
        return NULL;
    }
    for (int32_t i = 1; i <= n; i++) {
        best[i].cost = best[i].extra = WS_MAX_EXTRA;
    }
    for (int32_t i = 0; i < n; i++) {
        if (best[i].extra >= WS_MAX_EXTRA) {
            continue;
        }
        for (int32_t k = s->stages_at[i]; k < s->stages_end[i]; k++) {
            const ws_stage_t *stage = WS_AT(s->stages, ws_stage_t, k);
            int64_t cost = stage->extra + (stage->overlap && stage->memory > tight ? weight : 0);
            way_t way = {best[i].cost + cost,
                         best[i].extra + stage->extra,
                         best[i].calls + stage->calls,
                         ws_max(best[i].memory, stage->memory),
                         k,
                         i};
            if (stage->memory <= cap && better(&way, &best[stage->end])) {
                best[stage->end] = way;
            }
        }
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
        for (int32_t n = 0; n < o->end - o->begin; n++) {
            put(w, *WS_AT(s->keeps, uint16_t, o->keep_at + n));
        }
    }
}

int32_t ws_least_macs(ws_search_t *s, int32_t cap, int32_t tight, int64_t weight, int64_t *extra, int32_t *out,
                      int32_t room)
{
    int32_t n = s->graph.op_count, count = 0;
    way_t *best = ways(s, cap, tight, weight);
    if (best == NULL) {
        return -1;
    }
    *extra = best[n].extra;
    if (best[n].extra < WS_MAX_EXTRA) {
        int32_t *path = ws_alloc(s, (size_t)n, sizeof(*path));
        writer_t w = {out, room, 0};
        for (int32_t i = n; path != NULL && i > 0; i = best[i].from) {
            path[count++] = i;
        }
        put(&w, count);
        for (int32_t k = count - 1; path != NULL && k >= 0; k--) {
            const way_t *way = &best[path[k]];
            put_stage(s, &w, way->from, WS_AT(s->stages, ws_stage_t, way->stage));
        }
        count = path == NULL || w.count > room ? -1 : w.count;
        ws_release(s, path, (size_t)n, sizeof(*path));
    }
    ws_release(s, best, (size_t)n + 1, sizeof(*best));
    return count;
}

static int ascending(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* The peaks of all stages, ascending; NULL without memory. */
static int32_t *sorted_peaks(ws_search_t *s)
{
    int32_t *peaks = ws_alloc(s, s->stages.count, sizeof(*peaks));
    for (size_t k = 0; peaks != NULL && k < s->stages.count; k++) {
        peaks[k] = WS_AT(s->stages, ws_stage_t, k)->memory;
    }
    if (peaks != NULL) {
        qsort(peaks, s->stages.count, sizeof(*peaks), ascending);
    }
    return peaks;
}

/* The least peak with at most `extra` MACs; `none` if there is none. */
static int32_t least_peak(ws_search_t *s, int64_t extra, int32_t none)
{
    int32_t found = none;
    size_t lo = 0, hi = s->stages.count;
    int32_t *peaks = sorted_peaks(s);
    while (peaks != NULL && lo < hi) {
        size_t middle = (lo + hi) / 2;
        way_t *best = ways(s, peaks[middle], 0, 0);
        if (best == NULL) {
            break;
        }
        if (best[s->graph.op_count].extra <= extra) {
            found = peaks[middle];
            hi = middle;
        } else {
            lo = middle + 1;
        }
        ws_release(s, best, (size_t)s->graph.op_count + 1, sizeof(*best));
    }
    ws_release(s, peaks, s->stages.count, sizeof(*peaks));
    return found;
}

int32_t ws_least_memory(ws_search_t *s, int64_t extra)
{
    return least_peak(s, extra, WS_NONE);
}

int32_t ws_next_memory(ws_search_t *s, int32_t cap)
{
    way_t *best = ways(s, cap, 0, 0);
    if (best == NULL) {
        return INT32_MAX;
    }
    int64_t extra = best[s->graph.op_count].extra;
    ws_release(s, best, (size_t)s->graph.op_count + 1, sizeof(*best));
    return least_peak(s, extra - 1, INT32_MAX);
}

void ws_statistics(const ws_search_t *s, int64_t counts[4])
{
    counts[0] = (int64_t)s->options.count;
    counts[1] = s->kept;
    counts[2] = s->tried;
    counts[3] = (int64_t)s->stages.count;
}
