/* SPDX-License-Identifier: Apache-2.0 */
/* Rule 6 of docs/design.md: windows that are live together do not overlap and lie inside the arena. */
#include "verify.h"

/* A block of the arena that is live in one stage: in one of its segments, or in all of them. */
typedef struct {
    uint64_t begin, end;
    uint32_t segment; /* EVERY if live during the whole stage */
    uint32_t entry;   /* for errors; WEFT_NONE for counters and scratch */
    bool overlaps;    /* may overwrite dead rows of what its stage is the last to read */
} block_t;

#define EVERY UINT32_MAX

/* Walks the blocks of one stage: counters, scratch, then two per entry. */
typedef struct {
    const weft_plan_t *plan;
    weft_stage_t stage;
    weft_segment_t segment;
    uint32_t g, n, part;
} walk_t;

static void walk_begin(walk_t *w, const weft_plan_t *plan, uint32_t stage)
{
    w->plan = plan;
    weft_stage(plan, stage, &w->stage);
    weft_segment(plan, w->stage.first_segment, &w->segment);
    w->g = 0;
    w->n = w->segment.first_entry;
    w->part = 0;
}

static void entry_block(const weft_plan_t *plan, uint32_t n, const weft_segment_t *segment, uint32_t g, bool aux,
                        block_t *b)
{
    weft_entry_t e;
    weft_entry(plan, n, &e);
    weft_tensor_t t;
    weft_tensor(plan, weft_entry_tensor(plan, &e), &t);
    uint32_t size;
    if (!aux) {
        size = weft_window_bytes(&e, &t);
    } else {
        size = weft_line_bytes(&e, &t);
        if (!weft_is_input(&e)) {
            weft_op_t op;
            weft_tensor_t in;
            weft_op(plan, e.op, &op);
            weft_tensor(plan, weft_op_input(plan, &op, 0), &in);
            size += weft_acc_bytes(&op, &in, &t, &e, segment);
        }
    }
    b->begin = aux ? e.aux : e.offset;
    b->end = b->begin + size;
    b->segment = !aux && e.policy == WEFT_POLICY_TILE ? g : EVERY;
    b->entry = n;
    b->overlaps = !aux && (e.flags & WEFT_ENTRY_OVERLAP) != 0;
}

/* Next block that is not empty; false at the end. */
static bool walk_next(walk_t *w, block_t *b)
{
    for (;;) {
        if (w->part < 2) {
            bool state = w->part == 0;
            b->begin = state ? w->stage.state : w->stage.scratch;
            b->end = b->begin + (state ? 4u * (uint64_t)w->stage.segment_count : w->stage.scratch_len);
            b->segment = EVERY;
            b->entry = WEFT_NONE;
            b->overlaps = false;
            w->part++;
        } else {
            if (w->n == (uint32_t)w->segment.first_entry + w->segment.entry_count) {
                if (++w->g == w->stage.segment_count) {
                    return false;
                }
                weft_segment(w->plan, w->stage.first_segment + w->g, &w->segment);
            }
            entry_block(w->plan, w->n, &w->segment, w->g, w->part == 3, b);
            if (w->part == 3) {
                w->n++;
            }
            w->part = 5u - w->part; /* 2, 3, 2, 3... */
        }
        if (b->end > b->begin) {
            return true;
        }
    }
}

static bool apart(const block_t *a, const block_t *b)
{
    return a->end <= b->begin || b->end <= a->begin ||
           (a->segment != EVERY && b->segment != EVERY && a->segment != b->segment);
}

static int fail_at(const weft_plan_t *plan, int code, const block_t *b, weft_error_t *err)
{
    return weft_fail(err, code, b->entry,
                     weft_where(plan, plan->entries, b->entry == WEFT_NONE ? 0 : b->entry, WEFT_ENTRY_SIZE));
}

/* Stage of the last reader of a FULL tensor; `born` if there is none; stage_count for a network output. */
static uint32_t death(const weft_plan_t *plan, uint32_t tensor, uint32_t born)
{
    for (uint32_t i = 0; i < plan->output_count; i++) {
        if (weft_io_tensor(plan, plan->input_count + i) == tensor) {
            return plan->stage_count;
        }
    }
    for (uint32_t s = plan->stage_count; s-- > born;) {
        weft_stage_t stage;
        weft_segment_t segment;
        weft_stage(plan, s, &stage);
        weft_segment(plan, stage.first_segment, &segment);
        uint32_t n = segment.first_entry;
        weft_segment(plan, (uint32_t)stage.first_segment + stage.segment_count - 1u, &segment);
        for (; n < (uint32_t)segment.first_entry + segment.entry_count; n++) {
            weft_entry_t e;
            weft_entry(plan, n, &e);
            if (weft_is_input(&e)) {
                continue;
            }
            weft_op_t op;
            weft_op(plan, e.op, &op);
            for (uint32_t k = 0; k < weft_op_inputs(&op); k++) {
                if (weft_op_input(plan, &op, k) == tensor) {
                    return s;
                }
            }
        }
    }
    return born;
}

/* A FULL tensor against everything in the stages [from, until]. What may overlap it in its last stage, and does not
 * start above it, is left to the replay. */
static int check_full(const weft_plan_t *plan, const block_t *full, uint32_t from, uint32_t until, weft_error_t *err)
{
    for (uint32_t s = from; s <= until && s < plan->stage_count; s++) {
        walk_t w;
        block_t b;
        walk_begin(&w, plan, s);
        while (walk_next(&w, &b)) {
            if (!apart(full, &b) && !(s == until && b.overlaps && b.begin <= full->begin)) {
                return fail_at(plan, WEFT_ERR_OVERLAP, &b, err);
            }
        }
    }
    return WEFT_OK;
}

/* Inside the arena; *top becomes the highest end of all blocks. */
static int check_bounds(const weft_plan_t *plan, const block_t *b, uint32_t arena_bytes, uint32_t *top,
                        weft_error_t *err)
{
    *top = b->end > *top && b->end <= arena_bytes ? (uint32_t)b->end : *top;
    return b->begin % 4u == 0 && b->end <= arena_bytes ? WEFT_OK : fail_at(plan, WEFT_ERR_ARENA, b, err);
}

static int check_placed(const weft_plan_t *plan, uint32_t arena_bytes, uint32_t *top, weft_error_t *err)
{
    static const weft_segment_t none = {0, 0, 1, 1};
    for (uint32_t n = 0; n < plan->placed_count; n++) {
        weft_entry_t e;
        block_t full, other;
        weft_entry(plan, n, &e);
        entry_block(plan, n, &none, 0, false, &full);
        if (full.begin == full.end) {
            continue; /* external */
        }
        int r = check_bounds(plan, &full, arena_bytes, top, err);
        for (uint32_t m = n + 1; r == WEFT_OK && m < plan->placed_count; m++) {
            entry_block(plan, m, &none, 0, false, &other);
            if (other.begin != other.end && !apart(&full, &other)) {
                r = fail_at(plan, WEFT_ERR_OVERLAP, &other, err);
            }
        }
        r = r != WEFT_OK ? r : check_full(plan, &full, 0, death(plan, weft_entry_tensor(plan, &e), 0), err);
        if (r != WEFT_OK) {
            return r;
        }
    }
    return WEFT_OK;
}

int weft_verify_arena(const weft_plan_t *plan, uint32_t arena_bytes, weft_error_t *err)
{
    uint32_t top = 0;
    int r = check_placed(plan, arena_bytes, &top, err);
    for (uint32_t s = 0; s < plan->stage_count; s++) {
        walk_t a;
        block_t x, y;
        walk_begin(&a, plan, s);
        while (r == WEFT_OK && walk_next(&a, &x)) {
            r = check_bounds(plan, &x, arena_bytes, &top, err);
            walk_t b = a;
            while (r == WEFT_OK && walk_next(&b, &y)) {
                if (!apart(&x, &y)) {
                    r = fail_at(plan, WEFT_ERR_OVERLAP, &y, err);
                }
            }
            if (r != WEFT_OK || x.entry == WEFT_NONE || x.segment != EVERY) {
                continue;
            }
            weft_entry_t e;
            weft_entry(plan, x.entry, &e);
            if (e.policy == WEFT_POLICY_FULL && x.begin == e.offset) {
                r = check_full(plan, &x, s + 1, death(plan, weft_entry_tensor(plan, &e), s), err);
            }
        }
        if (r != WEFT_OK) {
            return r;
        }
    }
    /* Exactly what the blocks need, in units of the arena's alignment. */
    return arena_bytes - top < weft_arena_align(plan)
               ? WEFT_OK
               : weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_ARENA_BYTES);
}
