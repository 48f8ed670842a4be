/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the search share. Functions that allocate return false once memory has run out. */
#ifndef WEFT_SEARCH_INTERNAL_H
#define WEFT_SEARCH_INTERNAL_H

#include "search.h"
#include <stddef.h>

#define WS_NONE (-1)
#define WS_MAX_EXTRA (INT64_MAX / 4)
/* Bytes of a segment's counters in the arena. */
#define WS_COUNTERS 4
/* Most tensors that one segment reads, most operators in one, most segments in a stage. */
#define WS_MAX_NEEDS 72
#define WS_MAX_OPS 32
#define WS_MAX_SEGMENTS 64

/* A growing array. */
typedef struct {
    void *items;
    size_t count, room, size;
} ws_vec_t;

#define WS_AT(vec, type, n) ((type *)(vec).items + (n))

/* From six numbers to one. */
typedef struct {
    int32_t key[6];
    int32_t used;
    int64_t value;
} ws_slot_t;

typedef struct {
    ws_slot_t *slots;
    size_t count, room;
} ws_memo_t;

/* Rows [lo, hi) at step 0, `advance` further at each step. */
typedef struct {
    int32_t advance, lo, hi;
} ws_span_t;

/* Rows of a tensor that are read, in steps [begin, steps) (its readers may begin later and be done before others of the
 * segment), none from row `end` on. `begin` is below 0 where steps of delay read too. */
typedef struct {
    int32_t tensor;
    ws_span_t span;
    int32_t begin, steps, end;
} ws_need_t;

/*
 * Options of one segment that fit in the same way to what is before and behind it: a row step adds `advance` rows to
 * its last tensor, the first one ends at advance + offset, -advance < offset <= 0 (whole steps of delay change
 * nothing and are left out of all spans).
 */
typedef struct {
    int32_t advance, offset, steps;
    int32_t needs_at, needs_count;
    int32_t fixed, segments; /* bytes and number of the streamed inputs' segments */
    int32_t first, count;    /* options, fewest MACs first */
    int32_t least;           /* fewest bytes that an option takes, held ones and tiles */
    int32_t inlet;           /* what it reads of the tensor in front of it, of ws_search.inlets; -1 if nothing */
} ws_class_t;

/* One way to run a segment. `held` bytes are live during the stage, `tile` during the segment. */
typedef struct {
    int64_t extra;
    int32_t held, tile;
    int32_t calls;
    int32_t begin, end, row_adv, col_adv;
    int32_t slice; /* channels that a sweep makes, 0 for all */
    int32_t keep_at;
} ws_option_t;

/* Classes of the segment of operators [i, j). */
typedef struct {
    int32_t first, count;
} ws_segment_t;

/* A stage of operators up to `end`: segments are options[chain_at ...]. */
typedef struct {
    int64_t extra;
    int32_t memory, calls;
    int32_t end, tile;
    int32_t chain_at, chain_count;
    int32_t overlap;
    /* With an overlap: the tensor that is overlapped, how far below it the output starts, and what that saves. */
    int32_t under, below, saved;
} ws_stage_t;

struct ws_search {
    ws_graph_t graph;
    ws_limits_t limits;
    int32_t cap, room, layers_cap; /* of the run */
    int64_t spare;
    ws_progress_t progress;
    int status;
    double done;
    int64_t work;
    size_t allocated;
    int64_t tried, kept;
    int64_t *macs_before; /* of operators before a position */
    int64_t *ahead;       /* fewest extra MACs behind a position, at least */
    ws_memo_t sweeps;
    ws_vec_t needs, classes, options, keeps; /* ws_need_t, ws_class_t, ws_option_t, uint16_t */
    ws_segment_t *segments;                  /* by begin and end - begin - 1 */
    ws_vec_t *inlets;                        /* ws_need_t of the tensor in front of segments, by their begin */
    ws_vec_t stages, chains;                 /* ws_stage_t, int32_t */
    int32_t *stages_at, *stages_end;         /* by begin */
    int64_t *rest;                           /* fewest extra MACs behind a position with the stages found */
    int32_t tried_cap;                       /* of the run before */
    int32_t *tried_room;                     /* by begin: the most room that stages were searched with */
    int32_t aim;
    int64_t slack; /* of WS_NEAR: extra MACs above the fewest, and one */
    bool exact;
};

static inline int32_t ws_min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int64_t ws_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int32_t ws_max(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static inline int32_t ws_clamp(int32_t x, int32_t most)
{
    return x < 0 ? 0 : ws_min(x, most);
}

/* Division rounded up; b > 0. */
static inline int32_t ws_div_up(int32_t a, int32_t b)
{
    return a > 0 ? (a - 1) / b + 1 : -(-a / b);
}

/* Bytes of a window as the arena counts them. */
static inline int64_t ws_up(int64_t size)
{
    return (size + 3) / 4 * 4;
}

static inline ws_segment_t *ws_segment(const ws_search_t *s, int32_t i, int32_t j)
{
    return &s->segments[i * s->limits.segment_ops + (j - i - 1)];
}

void *ws_alloc(ws_search_t *s, size_t count, size_t size);
void ws_release(ws_search_t *s, void *block, size_t count, size_t size);
bool ws_push(ws_search_t *s, ws_vec_t *vec, const void *item);
bool ws_append(ws_search_t *s, ws_vec_t *vec, const void *items, size_t count);
void ws_vec_free(ws_search_t *s, ws_vec_t *vec);
/* The slot of a key, new ones with `used` 0; NULL without memory. */
ws_slot_t *ws_memo(ws_search_t *s, ws_memo_t *memo, const int32_t key[6]);
void ws_memo_free(ws_search_t *s, ws_memo_t *memo);

/* Count work; false if the search was cancelled. */
bool ws_work(ws_search_t *s, int64_t amount);

/* Rows of a ring that one segment fills by `advance` rows a step and another one empties by what it needs, in pull
 * order. */
int32_t ws_ring_rows(int32_t height, int32_t advance, int32_t offset, const ws_need_t *reader);
/* All options of all segments. */
bool ws_grow_segments(ws_search_t *s);
/* Fewest extra MACs from each position on, at least, with at most `cap` bytes, into `ahead`. */
void ws_look_ahead(ws_search_t *s, int32_t cap);
/* All stages. */
bool ws_find_stages(ws_search_t *s);

#endif
