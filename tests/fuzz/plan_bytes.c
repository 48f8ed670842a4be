/* SPDX-License-Identifier: Apache-2.0 */
#include "plan_bytes.h"

#include <stdlib.h>
#include <string.h>

/* Positions that one count may visit. */
#define COUNT_BUDGET 200000

uint32_t get(const uint8_t *p, unsigned width)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < width; i++) {
        v |= (uint32_t)p[i] << (8 * i);
    }
    return v;
}

void put(uint8_t *p, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++) {
        p[i] = (uint8_t)(value >> (8 * i));
    }
}

static bool take(records_t *r, uint32_t *at, uint32_t end, uint32_t count, uint32_t size)
{
    r->at = *at;
    r->count = count;
    r->size = size;
    if ((uint64_t)*at + (uint64_t)count * size > end) {
        return false;
    }
    *at += count * size;
    return true;
}

bool map_plan(const uint8_t *plan, uint32_t len, map_t *map)
{
    memset(map, 0, sizeof *map);
    if (len < WEFT_HEADER_SIZE) {
        return false;
    }
    for (uint32_t i = 0; i < plan[WEFT_HEADER_SECTION_COUNT]; i++) {
        uint32_t at = WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        if (at + WEFT_SECTION_SIZE > len) {
            return false;
        }
        uint32_t offset = get(plan + at + WEFT_SECTION_OFFSET, 4), length = get(plan + at + WEFT_SECTION_LENGTH, 4);
        if ((uint64_t)offset + length > len) {
            return false;
        }
        switch (get(plan + at + WEFT_SECTION_TYPE, 2)) {
        case WEFT_SECTION_GRAPH:
            map->graph = offset;
            map->graph_len = length;
            break;
        case WEFT_SECTION_SCHEDULE:
            map->schedule = offset;
            map->schedule_len = length;
            break;
        case WEFT_SECTION_WEIGHTS:
            map->weights = offset;
            map->weights_len = length;
            break;
        default:
            break;
        }
    }
    if (map->graph_len < WEFT_GRAPH_SIZE || map->schedule_len < WEFT_SCHEDULE_SIZE || map->weights == 0) {
        return false;
    }
    const uint8_t *g = plan + map->graph, *s = plan + map->schedule;
    uint32_t at = map->graph + WEFT_GRAPH_SIZE, end = map->graph + map->graph_len;
    map->inputs = g[WEFT_GRAPH_INPUT_COUNT];
    map->outputs = g[WEFT_GRAPH_OUTPUT_COUNT];
    map->placed = get(s + WEFT_SCHEDULE_PLACED_COUNT, 2);
    uint32_t tensors = get(g + WEFT_GRAPH_TENSOR_COUNT, 2);
    bool ok = take(&map->tensors, &at, end, tensors, WEFT_TENSOR_SIZE) &&
              take(&map->ops, &at, end, get(g + WEFT_GRAPH_OP_COUNT, 2), WEFT_OP_SIZE) &&
              take(&map->consts, &at, end, get(g + WEFT_GRAPH_CONST_COUNT, 2), WEFT_CONST_SIZE) &&
              take(&map->ios, &at, end, map->inputs + map->outputs, WEFT_IO_SIZE) &&
              take(&map->lists, &at, end, get(g + WEFT_GRAPH_LIST_COUNT, 2), 2);
    at = map->schedule + WEFT_SCHEDULE_SIZE;
    end = map->schedule + map->schedule_len;
    return ok && take(&map->stages, &at, end, get(s + WEFT_SCHEDULE_STAGE_COUNT, 2), WEFT_STAGE_SIZE) &&
           take(&map->segments, &at, end, get(s + WEFT_SCHEDULE_SEGMENT_COUNT, 2), WEFT_SEGMENT_SIZE) &&
           take(&map->entries, &at, end, get(s + WEFT_SCHEDULE_ENTRY_COUNT, 2), WEFT_ENTRY_SIZE) &&
           take(&map->entry_of, &at, end, tensors, 2);
}

/* ---------------------------------------------------------------- counting */

typedef struct {
    int64_t h, w, c;
} shape_t;

static bool shape_of(const uint8_t *plan, const map_t *map, uint32_t tensor, shape_t *shape)
{
    if (tensor >= map->tensors.count) {
        return false;
    }
    const uint8_t *t = plan + map->tensors.at + tensor * WEFT_TENSOR_SIZE;
    shape->h = get(t + WEFT_TENSOR_H, 2);
    shape->w = get(t + WEFT_TENSOR_W, 2);
    shape->c = get(t + WEFT_TENSOR_C, 2);
    return shape->h != 0 && shape->w != 0 && shape->c != 0 && shape->h * shape->w * shape->c < (1 << 30);
}

static uint32_t input_of(const uint8_t *plan, const map_t *map, const uint8_t *op)
{
    uint32_t n = get(op + WEFT_OP_INPUT0, 2);
    if (op[WEFT_OP_OPCODE] != WEFT_OP_CONCAT) {
        return n;
    }
    return n < map->lists.count ? get(plan + map->lists.at + 2 * n, 2) : UINT32_MAX;
}

/* Taps of output position `at` that lie inside [0, size). */
static int64_t taps_inside(const uint8_t *op, unsigned axis, int64_t at, int64_t size)
{
    int64_t kernel = op[axis ? WEFT_OP_KERNEL_W : WEFT_OP_KERNEL_H];
    int64_t first = at * op[axis ? WEFT_OP_STRIDE_W : WEFT_OP_STRIDE_H] - op[axis ? WEFT_OP_PAD_LEFT : WEFT_OP_PAD_TOP];
    int64_t n = 0;
    for (int64_t k = 0; k < kernel; k++) {
        int64_t tap = first + k * op[axis ? WEFT_OP_DILATION_W : WEFT_OP_DILATION_H];
        n += tap >= 0 && tap < size;
    }
    return n;
}

static int64_t clamp(int64_t v, int64_t lo, int64_t hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Arena bytes that an entry's two blocks reach to. */
static uint64_t reach(const uint8_t *e, const uint8_t *op, shape_t out, shape_t over, uint32_t rows, uint32_t cols)
{
    int64_t keep = get(e + WEFT_ENTRY_KEEP, 2), ext = get(e + WEFT_ENTRY_ROW_EXT, 2);
    int64_t wide = clamp(get(e + WEFT_ENTRY_COL_EXT, 2), 0, out.w), size = 0, aux = 0;
    int64_t slice = get(e + WEFT_ENTRY_SLICE, 2);
    switch (e[WEFT_ENTRY_POLICY]) {
    case WEFT_POLICY_FULL:
        size = out.h * out.w * out.c;
        break;
    case WEFT_POLICY_ROWS:
        size = keep * out.w * out.c;
        break;
    case WEFT_POLICY_TILE:
        size = clamp(ext - keep, 0, out.h) * wide * (slice != 0 ? slice : out.c);
        aux = clamp(keep, 0, out.h) * out.w * out.c;
        break;
    default:
        break;
    }
    if (op != NULL && op[WEFT_OP_OPCODE] == WEFT_OP_FULLY_CONNECTED) {
        aux = rows * (uint64_t)cols > 1 ? 4 * out.c : 0;
    } else if (op != NULL && op[WEFT_OP_OPCODE] == WEFT_OP_REDUCE) {
        bool h = (op[WEFT_OP_FLAGS] & WEFT_OP_REDUCE_H) != 0, w = (op[WEFT_OP_FLAGS] & WEFT_OP_REDUCE_W) != 0;
        if ((h && rows > 1) || (w && cols > 1)) {
            aux = 4 * over.c * (h ? 1 : clamp(get(e + WEFT_ENTRY_ROW_ADV, 2), 0, over.h)) * (w ? 1 : over.w);
        }
    }
    uint64_t end = size > 0 ? get(e + WEFT_ENTRY_OFFSET, 4) + (uint64_t)size : 0;
    return aux > 0 ? larger(end, get(e + WEFT_ENTRY_AUX, 4) + (uint64_t)aux) : end;
}

static bool count_entry(const uint8_t *plan, const map_t *map, const uint8_t *e, uint32_t rows, uint32_t cols,
                        int64_t *budget, counted_t *n)
{
    uint32_t number = get(e + WEFT_ENTRY_OP, 2);
    shape_t out, in;
    if (number & WEFT_INPUT_BIT) {
        number &= WEFT_INPUT_BIT - 1u;
        if (number >= map->inputs ||
            !shape_of(plan, map, get(plan + map->ios.at + number * WEFT_IO_SIZE + WEFT_IO_TENSOR, 2), &out)) {
            return false;
        }
        n->elements += rows != 0 ? (uint64_t)(out.h * out.w * out.c) : 0; /* placed inputs cost nothing */
        n->arena = larger(n->arena, reach(e, NULL, out, out, rows, cols));
        return true;
    }
    if (number >= map->ops.count) {
        return false;
    }
    const uint8_t *op = plan + map->ops.at + number * WEFT_OP_SIZE;
    if (!shape_of(plan, map, get(op + WEFT_OP_OUTPUT, 2), &out) || !shape_of(plan, map, input_of(plan, map, op), &in)) {
        return false;
    }
    uint8_t opcode = op[WEFT_OP_OPCODE];
    bool consumes = opcode == WEFT_OP_REDUCE || opcode == WEFT_OP_FULLY_CONNECTED;
    n->arena = larger(n->arena, reach(e, op, out, consumes ? in : out, rows, cols));
    if (opcode < 64) {
        n->op_mask |= (uint64_t)1 << opcode;
    }
    if (consumes) {
        uint64_t size = (uint64_t)(in.h * in.w * in.c);
        n->elements += size;
        n->macs += opcode == WEFT_OP_FULLY_CONNECTED ? size * (uint64_t)out.c : 0;
        n->base_macs += opcode == WEFT_OP_FULLY_CONNECTED ? size * (uint64_t)out.c : 0;
        return true;
    }
    int64_t across = 0, depth = 0;
    if (opcode == WEFT_OP_CONV2D || opcode == WEFT_OP_DWCONV2D) {
        int64_t groups = get(op + WEFT_OP_GROUPS, 2);
        depth = opcode == WEFT_OP_DWCONV2D ? 1 : groups != 0 ? in.c / groups : 0;
        *budget -= out.w * op[WEFT_OP_KERNEL_W] + out.h * op[WEFT_OP_KERNEL_H];
        if (*budget < 0) {
            return false;
        }
        for (int64_t x = 0; x < out.w; x++) {
            across += taps_inside(op, 1, x, in.w);
        }
        for (int64_t y = 0; y < out.h; y++) {
            n->base_macs += (uint64_t)(taps_inside(op, 0, y, in.h) * across * depth * out.c);
        }
    }
    int64_t adv = get(e + WEFT_ENTRY_ROW_ADV, 2), off = (int16_t)get(e + WEFT_ENTRY_ROW_OFF, 2);
    int64_t ext = get(e + WEFT_ENTRY_ROW_EXT, 2);
    int64_t keep = e[WEFT_ENTRY_POLICY] == WEFT_POLICY_TILE ? (int64_t)get(e + WEFT_ENTRY_KEEP, 2) : 0;
    for (int64_t i = 0; i < rows; i++) {
        int64_t lo = clamp(adv * i + off + keep, 0, out.h), hi = clamp(adv * i + off + ext, 0, out.h);
        *budget -= 1 + (hi > lo ? (hi - lo) * (depth != 0 ? op[WEFT_OP_KERNEL_H] : 1) : 0);
        if (*budget < 0) {
            return false;
        }
        for (int64_t y = lo; y < hi; y++) {
            n->elements += (uint64_t)(out.w * out.c);
            n->macs += depth != 0 ? (uint64_t)(taps_inside(op, 0, y, in.h) * across * depth * out.c) : 0;
        }
    }
    return true;
}

/* Of a row step of the segment that begins with this entry. */
static uint32_t sweeps(const uint8_t *plan, const map_t *map, const uint8_t *e)
{
    uint32_t number = get(e + WEFT_ENTRY_OP, 2), slice = get(e + WEFT_ENTRY_SLICE, 2);
    shape_t out;
    if (slice == 0 || number >= map->ops.count ||
        !shape_of(plan, map, get(plan + map->ops.at + number * WEFT_OP_SIZE + WEFT_OP_OUTPUT, 2), &out)) {
        return 1;
    }
    return (uint32_t)out.c / slice;
}

bool count_plan(const uint8_t *plan, const map_t *map, counted_t *n)
{
    int64_t budget = COUNT_BUDGET;
    memset(n, 0, sizeof *n);
    const uint8_t *entries = plan + map->entries.at;
    if (map->placed > map->entries.count) {
        return false;
    }
    for (uint32_t i = 0; i < map->placed; i++) {
        if (!count_entry(plan, map, entries + i * WEFT_ENTRY_SIZE, 0, 0, &budget, n)) {
            return false;
        }
    }
    for (uint32_t g = 0; g < map->segments.count; g++) {
        const uint8_t *s = plan + map->segments.at + g * WEFT_SEGMENT_SIZE;
        uint32_t first = get(s + WEFT_SEGMENT_FIRST_ENTRY, 2), count = get(s + WEFT_SEGMENT_ENTRY_COUNT, 2);
        uint32_t rows = get(s + WEFT_SEGMENT_ROW_STEPS, 2), cols = get(s + WEFT_SEGMENT_COL_STEPS, 2);
        if (first + count > map->entries.count || rows == 0) {
            return false;
        }
        n->row_steps += rows;
        n->calls += (uint64_t)rows * cols * count * sweeps(plan, map, entries + first * WEFT_ENTRY_SIZE);
        for (uint32_t k = first; k < first + count; k++) {
            if (!count_entry(plan, map, entries + k * WEFT_ENTRY_SIZE, rows, cols, &budget, n)) {
                return false;
            }
        }
    }
    for (uint32_t s = 0; s < map->stages.count; s++) {
        const uint8_t *stage = plan + map->stages.at + s * WEFT_STAGE_SIZE;
        uint64_t scratch = get(stage + WEFT_STAGE_SCRATCH_LEN, 4);
        n->arena = larger(n->arena, get(stage + WEFT_STAGE_STATE, 4) + 4ull * get(stage + WEFT_STAGE_SEGMENT_COUNT, 2));
        n->arena = scratch != 0 ? larger(n->arena, get(stage + WEFT_STAGE_SCRATCH, 4) + scratch) : n->arena;
    }
    return true;
}

void declare(uint8_t *plan, const counted_t *n, bool arena)
{
    put(plan + WEFT_HEADER_OP_MASK, 8, n->op_mask);
    put(plan + WEFT_HEADER_MACS, 8, n->macs);
    put(plan + WEFT_HEADER_BASE_MACS, 8, n->base_macs);
    put(plan + WEFT_HEADER_ELEMENTS, 8, n->elements);
    put(plan + WEFT_HEADER_ROW_STEPS, 4, n->row_steps);
    put(plan + WEFT_HEADER_CALLS, 4, n->calls);
    if (arena) {
        uint64_t align = 1ull << (plan[WEFT_HEADER_ALIGN_LOG2] & 7u);
        put(plan + WEFT_HEADER_ARENA_BYTES, 4, (n->arena + align - 1) / align * align);
    }
}

/* ---------------------------------------------------------------- layer by layer */

static uint32_t up(uint32_t n, uint32_t align)
{
    return (n + align - 1) / align * align;
}

static void whole_axis(uint8_t *e, uint32_t adv, uint32_t off, uint32_t ext, int64_t size)
{
    put(e + adv, 2, (uint64_t)size);
    put(e + off, 2, 0);
    put(e + ext, 2, (uint64_t)size);
}

uint8_t *layer_plan(const uint8_t *plan, const map_t *map, uint32_t *len)
{
    uint32_t ops = map->ops.count, inputs = map->inputs, tensors = map->tensors.count;
    uint32_t head = WEFT_HEADER_SIZE + 3 * WEFT_SECTION_SIZE;
    uint32_t schedule_len = WEFT_SCHEDULE_SIZE + ops * (WEFT_STAGE_SIZE + WEFT_SEGMENT_SIZE) +
                            (ops + inputs) * WEFT_ENTRY_SIZE + 2 * tensors;
    uint32_t graph = up(head + WEFT_SIGNATURE_LEN, 8), schedule = up(graph + map->graph_len, 8);
    uint32_t weights = up(schedule + schedule_len, 8);
    *len = up(weights + map->weights_len, 8);
    uint8_t *p = calloc(1, *len);
    if (p == NULL) {
        abort();
    }
    memcpy(p, plan, WEFT_HEADER_SIZE);
    put(p + WEFT_HEADER_HEADER_LEN, 2, head);
    put(p + WEFT_HEADER_TOTAL_LEN, 4, *len);
    put(p + WEFT_HEADER_SECTION_COUNT, 1, 3);
    const uint32_t sections[3][3] = {{WEFT_SECTION_GRAPH, graph, map->graph_len},
                                     {WEFT_SECTION_SCHEDULE, schedule, schedule_len},
                                     {WEFT_SECTION_WEIGHTS, weights, map->weights_len}};
    for (uint32_t i = 0; i < 3; i++) {
        uint8_t *s = p + WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        put(s + WEFT_SECTION_TYPE, 2, sections[i][0]);
        put(s + WEFT_SECTION_FLAGS, 2, 1);
        put(s + WEFT_SECTION_OFFSET, 4, sections[i][1]);
        put(s + WEFT_SECTION_LENGTH, 4, sections[i][2]);
    }
    memcpy(p + graph, plan + map->graph, map->graph_len);
    if (map->weights_len != 0) {
        memcpy(p + weights, plan + map->weights, map->weights_len);
    }
    uint8_t *s = p + schedule;
    put(s + WEFT_SCHEDULE_STAGE_COUNT, 2, ops);
    put(s + WEFT_SCHEDULE_SEGMENT_COUNT, 2, ops);
    put(s + WEFT_SCHEDULE_ENTRY_COUNT, 2, ops + inputs);
    put(s + WEFT_SCHEDULE_PLACED_COUNT, 2, inputs);
    uint8_t *stage = s + WEFT_SCHEDULE_SIZE, *segment = stage + ops * WEFT_STAGE_SIZE;
    uint8_t *entry = segment + ops * WEFT_SEGMENT_SIZE, *entry_of = entry + (ops + inputs) * WEFT_ENTRY_SIZE;
    memset(entry_of, 0xff, (size_t)2 * tensors);

    uint32_t scratch = 0, offset = 4, n = 0; /* the counters of every stage at 0 */
    for (uint32_t i = 0; i < map->stages.count; i++) {
        const uint8_t *old = plan + map->stages.at + i * WEFT_STAGE_SIZE;
        scratch = (uint32_t)larger(scratch, get(old + WEFT_STAGE_SCRATCH_LEN, 4));
    }
    offset += up(scratch, 4);
    for (int pass = 0; pass < 2; pass++) { /* inputs first, then operators */
        for (uint32_t i = 0; i < map->entries.count; i++) {
            const uint8_t *old = plan + map->entries.at + i * WEFT_ENTRY_SIZE;
            uint32_t number = get(old + WEFT_ENTRY_OP, 2);
            bool input = (number & WEFT_INPUT_BIT) != 0;
            if (input != (pass == 0)) {
                continue;
            }
            shape_t out, over;
            uint32_t tensor;
            if (input) {
                const uint8_t *io = plan + map->ios.at + (number & (WEFT_INPUT_BIT - 1u)) * WEFT_IO_SIZE;
                tensor = get(io + WEFT_IO_TENSOR, 2);
            } else {
                tensor = get(plan + map->ops.at + number * WEFT_OP_SIZE + WEFT_OP_OUTPUT, 2);
            }
            if (n >= ops + inputs || !shape_of(plan, map, tensor, &out)) {
                free(p);
                return NULL;
            }
            over = out;
            if (!input) {
                const uint8_t *op = plan + map->ops.at + number * WEFT_OP_SIZE;
                if (op[WEFT_OP_OPCODE] == WEFT_OP_REDUCE || op[WEFT_OP_OPCODE] == WEFT_OP_FULLY_CONNECTED) {
                    shape_of(plan, map, input_of(plan, map, op), &over);
                }
                uint32_t at = n - inputs;
                put(stage + at * WEFT_STAGE_SIZE + WEFT_STAGE_FIRST_SEGMENT, 2, at);
                put(stage + at * WEFT_STAGE_SIZE + WEFT_STAGE_SEGMENT_COUNT, 2, 1);
                put(stage + at * WEFT_STAGE_SIZE + WEFT_STAGE_SCRATCH, 4, scratch != 0 ? 4 : 0);
                put(stage + at * WEFT_STAGE_SIZE + WEFT_STAGE_SCRATCH_LEN, 4, scratch);
                put(segment + at * WEFT_SEGMENT_SIZE + WEFT_SEGMENT_FIRST_ENTRY, 2, n);
                put(segment + at * WEFT_SEGMENT_SIZE + WEFT_SEGMENT_ENTRY_COUNT, 2, 1);
                put(segment + at * WEFT_SEGMENT_SIZE + WEFT_SEGMENT_ROW_STEPS, 2, 1);
                put(segment + at * WEFT_SEGMENT_SIZE + WEFT_SEGMENT_COL_STEPS, 2, 1);
            }
            uint8_t *e = entry + n * WEFT_ENTRY_SIZE;
            bool external = input && old[WEFT_ENTRY_POLICY] == WEFT_POLICY_EXTERNAL;
            put(e + WEFT_ENTRY_OP, 2, number);
            put(e + WEFT_ENTRY_POLICY, 1, external ? WEFT_POLICY_EXTERNAL : WEFT_POLICY_FULL);
            whole_axis(e, WEFT_ENTRY_ROW_ADV, WEFT_ENTRY_ROW_OFF, WEFT_ENTRY_ROW_EXT, over.h);
            whole_axis(e, WEFT_ENTRY_COL_ADV, WEFT_ENTRY_COL_OFF, WEFT_ENTRY_COL_EXT, over.w);
            if (!external) {
                put(e + WEFT_ENTRY_OFFSET, 4, offset);
                offset = up(offset + (uint32_t)(out.h * out.w * out.c), 4);
            }
            put(entry_of + 2 * tensor, 2, n);
            n++;
        }
    }
    map_t layers;
    counted_t counted;
    if (!map_plan(p, *len, &layers) || !count_plan(p, &layers, &counted)) {
        free(p);
        return NULL;
    }
    declare(p, &counted, true);
    return p;
}
