/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 6 of docs/design.md: windows that are live together do not overlap and lie inside the arena. */
#include "verify.h"

/*
 * Blocks of a stage: counters, scratch, then two per entry, of which the second is its line store or accumulators.
 * Their offsets are words that follow one another in STAGE and ENTRY.
 */
enum { STATE, SCRATCH, WINDOW, AUX };

/* Tiles are live in their segment only. Of some, nothing is kept from one column step to the next. */
enum { OTHER, KEEPS = 1, PASSES = 2 };

/* A block of the arena. They are walked in the order of the plan: inputs that are placed, then stage by stage. */
typedef struct {
    const weft_plan_t *plan;
    const weft_entry_t *entry;       /* of counters and scratch: the stage's first one */
    const weft_entry_t *stage_first; /* the stage's first one */
    const weft_segment_t *segment;
    const weft_stage_t *stage;
    uint32_t part;
    uint32_t entries_left, segments_left, stages_left; /* of the segment, the stage, the plan; with this one */
    const uint8_t *record;                             /* that tells its offset */
    uint32_t begin, end;                               /* less than `begin` if it lies beyond 2^32 */
    uint32_t tile;
} block_t;

/* Bytes of the block, and where it begins. */
static uint32_t extent(block_t *b)
{
    const weft_plan_t *plan = b->plan;
    const weft_entry_t *e = b->entry;
    const bool window = b->part >= WINDOW;
    b->tile = OTHER;
    b->record = window ? (const uint8_t *)e : (const uint8_t *)b->stage;
    b->begin = weft_rd32(b->record + (window ? WEFT_ENTRY_OFFSET - 4 * WINDOW : WEFT_STAGE_STATE) + 4 * b->part);
    if (!window) {
        return b->part == STATE ? 4u * b->stage->segment_count : b->stage->scratch_len;
    }
    const weft_tensor_t *t = weft_tensor_at(plan, weft_entry_tensor(plan, e));
    int32_t rows = t->h, columns = t->w, channels = t->c;
    const uint32_t policy = e->policy;
    if (b->part == AUX && policy != WEFT_POLICY_TILE) {
        return weft_is_input(e) ? 0 : weft_acc_bytes(plan, weft_op_at(plan, e->op), e, b->segment);
    }
    if (b->part == AUX || policy == WEFT_POLICY_ROWS) {
        rows = weft_min(e->keep, rows);
    } else if (policy == WEFT_POLICY_TILE) {
        rows = weft_min(e->row_ext - e->keep, rows);
        columns = weft_min(e->col_ext, columns);
        channels = e->slice != 0 ? e->slice : channels;
        b->tile = e->keep == 0 && e->col_ext == e->col_adv ? PASSES : KEEPS;
    } else if (policy == WEFT_POLICY_EXTERNAL) {
        return 0;
    }
    return (uint32_t)(rows * columns * channels);
}

/* Next block that is not empty; false at the end. */
static bool next(block_t *b)
{
    uint32_t size;
    do {
        if (++b->part > AUX) {
            b->part = WINDOW;
            b->entry++;
            if (--b->entries_left == 0) {
                b->segment++;
                if (--b->segments_left == 0) {
                    if (--b->stages_left == 0) {
                        return false;
                    }
                    b->stage++;
                    b->segments_left = b->stage->segment_count;
                    b->stage_first = b->entry;
                    b->part = STATE;
                }
                b->entries_left = b->segment->entry_count;
            }
        }
        size = extent(b);
    } while (size == 0);
    b->end = b->begin + size;
    return true;
}

/* Last entry that reads what `e` makes: `e` if there is none, the end of all entries for a network output. */
static const weft_entry_t *last_reader(const weft_plan_t *plan, const weft_entry_t *e)
{
    const weft_entry_t *last = e;
    weft_reads_t r = weft_reads(plan, e, weft_entry_at(plan, plan->entry_count));
    while (weft_next_read(&r)) {
        if (r.producer == e) {
            last = r.entry;
        }
    }
    for (uint32_t i = plan->input_count; i < plan->io_count; i++) {
        if (weft_io_entry(plan, i) == e) {
            last = r.end;
        }
    }
    return last;
}

/*
 * Blocks x and, behind it in the walk, y are never live together, or do not overlap. `last`: the last entry that reads
 * x. Of tiles of one segment it is enough that at each column step x is last read before y is made. What may overlap
 * what earlier stages made, and does not start above it, is left to the replay.
 */
static bool apart(const block_t *x, const block_t *y, const weft_entry_t *last)
{
    const weft_entry_t *e = y->entry;
    if (x->end <= y->begin || y->end <= x->begin) {
        return true;
    }
    if (x->tile != OTHER && y->tile != OTHER) {
        return x->segment != y->segment || ((x->tile & y->tile) == PASSES && last < e);
    }
    return x->stage != y->stage && y->part == WINDOW && e->flags != 0 && last <= e && y->begin <= x->begin;
}

int weft_verify_arena(const weft_plan_t *plan, weft_place_t *place)
{
    const uint8_t *declared = plan->bytes + WEFT_HEADER_ARENA_BYTES;
    const uint32_t arena_bytes = weft_rd32(declared);
    uint32_t top = 0;
    block_t x;
    x.plan = plan;
    x.stage = weft_stage_at(plan, 0) - 1;
    x.segment = weft_segment_at(plan, 0) - 1;
    x.stage_first = x.entry = weft_entry_at(plan, 0) - 1;
    x.part = AUX;
    x.entries_left = plan->placed_count + 1u;
    x.segments_left = 1;
    x.stages_left = plan->stage_count + 1u;
    while (next(&x)) {
        block_t y = x;
        int r = x.begin % 4u == 0 && x.begin <= x.end && x.end <= arena_bytes ? 0 : BAD(ARENA);
        const weft_entry_t *last = x.part == WINDOW ? last_reader(plan, x.entry) : x.entry;
        while (r == 0 && next(&y) && y.stage_first <= last) {
            if (!apart(&x, &y, last)) {
                r = BAD(OVERLAP);
            }
        }
        if (r != 0) {
            place->at = y.record;
            return r;
        }
        top = x.end > top ? x.end : top;
    }
    /* Exactly what the blocks need, in units of the arena's alignment. */
    place->at = declared;
    return arena_bytes - top < weft_arena_align(plan) ? 0 : BAD(DECLARED);
}
