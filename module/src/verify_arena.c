/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 6 of docs/design.md: windows that are live together do not overlap and lie inside the arena. */
#include "verify.h"

/* A block of the arena that is live in one stage: in one of its segments, or in all of them. */
typedef struct {
    uint32_t begin, end;           /* UINT32_MAX if it lies beyond */
    const weft_segment_t *segment; /* NULL if live during the whole stage */
    const weft_entry_t *entry;     /* NULL for counters and scratch */
    bool window;                   /* the entry's window, not its line store or accumulators */
} block_t;

/* Blocks of a stage: counters, scratch, then two per entry. */
enum { STATE, SCRATCH, WINDOW, AUX };

/* Walks them. */
typedef struct {
    const weft_plan_t *plan;
    const weft_stage_t *stage;
    const weft_segment_t *segment;
    const weft_entry_t *entry;            /* the next one */
    uint32_t entries_left, segments_left; /* of the segment; segments with this one */
    uint32_t part;                        /* STATE, ... */
} walk_t;

/* Number of what comes before the first stage: the network inputs that are placed. */
#define PLACED (-1)

static void walk_begin(walk_t *w, const weft_plan_t *plan, int32_t stage)
{
    static const weft_segment_t placed = {0, 0, 1, 1};
    w->plan = plan;
    w->segment = &placed;
    w->entry = weft_entry_at(plan, 0);
    w->entries_left = plan->placed_count;
    w->segments_left = 1;
    w->part = WINDOW;
    if (stage != PLACED) {
        w->stage = weft_stage_at(plan, (uint32_t)stage);
        w->segment = weft_segment_at(plan, w->stage->first_segment);
        w->entry = weft_entry_at(plan, w->segment->first_entry);
        w->entries_left = w->segment->entry_count;
        w->segments_left = w->stage->segment_count;
        w->part = STATE;
    }
}

/* Bytes of the next entry's window, or of its line store or accumulators. */
static uint32_t entry_bytes(const walk_t *w)
{
    const weft_entry_t *e = w->entry;
    const weft_tensor_t *t = weft_tensor_at(w->plan, weft_entry_tensor(w->plan, e));
    if (w->part == WINDOW) {
        return weft_window_bytes(e, t);
    }
    uint32_t size = weft_line_bytes(e, t);
    if (!weft_is_input(e)) {
        size += weft_acc_bytes(w->plan, weft_op_at(w->plan, e->op), e, w->segment);
    }
    return size;
}

/* Next block that is not empty; false at the end. */
static bool walk_next(walk_t *w, block_t *b)
{
    uint32_t size;
    do {
        b->segment = NULL;
        b->entry = NULL;
        b->window = w->part == WINDOW;
        if (w->part < WINDOW) {
            b->begin = w->part == STATE ? w->stage->state : w->stage->scratch;
            size = w->part == STATE ? 4u * w->stage->segment_count : w->stage->scratch_len;
            w->part++;
            continue;
        }
        while (w->entries_left == 0) {
            if (--w->segments_left == 0) {
                return false;
            }
            w->segment++;
            w->entries_left = w->segment->entry_count;
        }
        size = entry_bytes(w);
        b->entry = w->entry;
        b->begin = b->window ? w->entry->offset : w->entry->aux;
        if (!b->window) {
            w->entry++;
            w->entries_left--;
        } else if (w->entry->policy == WEFT_POLICY_TILE) {
            b->segment = w->segment;
        }
        w->part = WINDOW + AUX - w->part;
    } while (size == 0);
    b->end = b->begin + size;
    if (b->end < size) {
        b->end = UINT32_MAX;
    }
    return true;
}

/* Nothing of the tile is kept from one column step to the next. */
static bool passes(const weft_entry_t *e)
{
    return e->policy == WEFT_POLICY_TILE && e->keep == 0 && e->col_ext == e->col_adv;
}

/* Tiles of one segment, a's entry before b's, of which at each column step the first is last read before b is made. */
static bool in_turn(const weft_plan_t *plan, const block_t *a, const block_t *b)
{
    if (!a->window || !b->window || !passes(a->entry) || !passes(b->entry)) {
        return false;
    }
    const uint32_t tensor = weft_entry_tensor(plan, a->entry),
                   end = (uint32_t)a->segment->first_entry + a->segment->entry_count;
    const uint32_t n = (uint32_t)(b->entry - weft_entry_at(plan, 0));
    weft_reads_t r = weft_reads(plan, n, end - n);
    while (weft_next_read(&r)) {
        if (r.tensor == tensor) {
            return false;
        }
    }
    return true;
}

/* a comes before b. */
static bool apart(const weft_plan_t *plan, const block_t *a, const block_t *b)
{
    return a->end <= b->begin || b->end <= a->begin ||
           (a->segment != NULL && b->segment != NULL && (a->segment != b->segment || in_turn(plan, a, b)));
}

/* Stage of the last reader of a FULL tensor; `born` if there is none; stage_count for a network output. */
static int32_t death(const weft_plan_t *plan, uint32_t tensor, int32_t born)
{
    for (uint32_t i = plan->input_count; i < plan->io_count; i++) {
        if (weft_io_tensor(plan, i) == tensor) {
            return plan->stage_count;
        }
    }
    const weft_entry_t *last = NULL;
    weft_reads_t r = weft_reads(plan, 0, plan->entry_count);
    while (weft_next_read(&r)) {
        if (r.tensor == tensor) {
            last = r.entry;
        }
    }
    int32_t stage = weft_max(born, 0);
    if (last != NULL) {
        stage = plan->stage_count;
        do {
            stage--;
        } while (weft_entry_at(plan, weft_first_entry(plan, weft_stage_at(plan, (uint32_t)stage))) > last);
    }
    return stage;
}

/*
 * A block of a stage against those behind it; a FULL tensor also against everything until its last stage. What may
 * overlap it there, and does not start above it, is left to the replay.
 */
static bool check_block(const walk_t *rest, int32_t stage, const block_t *x, block_t *y)
{
    const weft_plan_t *plan = rest->plan;
    int32_t until = stage;
    if (x->window && x->entry->policy == WEFT_POLICY_FULL) {
        until = death(plan, weft_entry_tensor(plan, x->entry), stage);
    }
    walk_t w = *rest;
    for (int32_t s = stage;;) {
        while (walk_next(&w, y)) {
            const bool may = s != stage && s == until && y->window && y->entry->flags != 0 && y->begin <= x->begin;
            if (!may && !apart(plan, x, y)) {
                return false;
            }
        }
        if (++s > until || s == plan->stage_count) {
            return true;
        }
        walk_begin(&w, plan, s);
    }
}

int weft_verify_arena(const weft_plan_t *plan, weft_error_t *err)
{
    const uint8_t *declared = plan->bytes + WEFT_HEADER_ARENA_BYTES;
    const uint32_t arena_bytes = weft_rd32(declared);
    uint32_t top = 0;
    for (int32_t s = PLACED; s < plan->stage_count; s++) {
        walk_t w;
        block_t x, y;
        walk_begin(&w, plan, s);
        while (walk_next(&w, &x)) {
            const bool inside = x.begin % 4u == 0 && x.end <= arena_bytes;
            const block_t *at = inside ? &y : &x;
            if (!inside || !check_block(&w, s, &x, &y)) {
                weft_locate(plan, WEFT_NONE, plan->entries, err);
                if (at->entry != NULL) {
                    weft_locate_entry(plan, at->entry, err);
                }
                return inside ? WEFT_ERR_OVERLAP : WEFT_ERR_ARENA;
            }
            top = x.end > top ? x.end : top;
        }
    }
    /* Exactly what the blocks need, in units of the arena's alignment. */
    weft_locate(plan, WEFT_NONE, declared, err);
    return arena_bytes - top < weft_arena_align(plan) ? WEFT_OK : WEFT_ERR_DECLARED;
}
