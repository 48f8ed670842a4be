/* SPDX-License-Identifier: Apache-2.0 */
#include "mutate.h"

#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

uint32_t rnd(uint32_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 16) % below);
}

void random_seed(uint64_t seed)
{
    random_state = 0x9e3779b97f4a7c15u ^ seed;
}

typedef struct {
    uint32_t offset, width;
} field_t;

#define FIELDS(...)                                                                                                    \
    (const field_t[])                                                                                                  \
    {                                                                                                                  \
        __VA_ARGS__,                                                                                                   \
        {                                                                                                              \
            0, 0                                                                                                       \
        }                                                                                                              \
    }

/* A kind of record and its fields; `share` is how often it is chosen. */
typedef struct {
    unsigned share;
    const records_t *records;
    const field_t *fields;
} kind_t;

static uint32_t other_value(uint32_t old, uint32_t width)
{
    static const uint32_t edges[] = {0,      1,      2,      3,      4,          0x7f,       0x80,       0xff,
                                     0x7fff, 0x8000, 0xfffe, 0xffff, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff};
    switch (rnd(8)) {
    case 0:
    case 1:
    case 2:
        return old + 1 + rnd(3) - (rnd(2) != 0 ? 4 : 0);
    case 3:
        return rnd(12);
    case 4:
        return edges[rnd(sizeof edges / sizeof edges[0])];
    case 5:
        return old ^ (1u << rnd(8 * width));
    case 6:
        return old + 4 * (rnd(33) - 16u);
    default:
        return rnd(UINT32_MAX);
    }
}

static void change_field(uint8_t *plan, const kind_t *kind)
{
    const records_t *r = kind->records;
    uint32_t n = 0;
    while (kind->fields[n].width != 0) {
        n++;
    }
    const field_t *f = &kind->fields[rnd(n)];
    uint8_t *p = plan + r->at + rnd(r->count) * r->size + f->offset;
    if (rnd(8) == 0) { /* as in another record */
        memcpy(p, plan + r->at + rnd(r->count) * r->size + f->offset, f->width);
    } else {
        put(p, f->width, other_value(get(p, f->width), f->width));
    }
}

static void swap_records(uint8_t *plan, const records_t *r)
{
    uint8_t saved[64];
    uint8_t *a = plan + r->at + rnd(r->count) * r->size, *b = plan + r->at + rnd(r->count) * r->size;
    memcpy(saved, a, r->size);
    memmove(a, b, r->size);
    memcpy(b, saved, r->size);
}

static uint8_t *some_entry(uint8_t *plan, const map_t *map)
{
    return plan + map->entries.at + rnd(map->entries.count) * WEFT_ENTRY_SIZE;
}

static void add16(uint8_t *p, uint32_t delta)
{
    put(p, 2, get(p, 2) + delta);
}

/* Changes that go together in a schedule that means something. */
static void change_schedule(uint8_t *plan, const map_t *map)
{
    uint8_t *e = some_entry(plan, map), *other = some_entry(plan, map);
    uint32_t delta = rnd(2) != 0 ? 1u + rnd(3) : 0u - 1u - rnd(3);
    bool rows = rnd(2) != 0;
    uint8_t *adv = e + (rows ? WEFT_ENTRY_ROW_ADV : WEFT_ENTRY_COL_ADV);
    uint8_t *off = e + (rows ? WEFT_ENTRY_ROW_OFF : WEFT_ENTRY_COL_OFF);
    uint8_t *ext = e + (rows ? WEFT_ENTRY_ROW_EXT : WEFT_ENTRY_COL_EXT);
    switch (rnd(9)) {
    case 0: /* one region longer or shorter on one side */
        add16(ext, delta);
        if (rnd(2) != 0) {
            add16(off, 0u - delta);
        }
        break;
    case 1: /* lag */
        add16(off, delta);
        break;
    case 2: /* capacity */
        add16(e + WEFT_ENTRY_KEEP, delta);
        if (rnd(2) != 0) {
            add16(e + WEFT_ENTRY_ROW_EXT, delta);
        }
        break;
    case 3: /* a tensor over another, or near it */
        for (int tries = 0; tries < 8 && e[WEFT_ENTRY_POLICY] != WEFT_POLICY_FULL; tries++) {
            e = some_entry(plan, map);
        }
        for (int tries = 0; tries < 8 && other[WEFT_ENTRY_POLICY] != WEFT_POLICY_FULL; tries++) {
            other = some_entry(plan, map);
        }
        put(e + WEFT_ENTRY_OFFSET, 4, get(other + WEFT_ENTRY_OFFSET, 4) + 4 * (rnd(9) - 4u));
        if (rnd(4) != 0) {
            e[WEFT_ENTRY_FLAGS] = WEFT_ENTRY_OVERLAP;
        }
        break;
    case 4: /* every entry of the plan one step on, with one step more */
        for (uint32_t i = map->placed; i < map->entries.count; i++) {
            uint8_t *p = plan + map->entries.at + i * WEFT_ENTRY_SIZE;
            add16(p + (rows ? WEFT_ENTRY_ROW_OFF : WEFT_ENTRY_COL_OFF),
                  0u - get(p + (rows ? WEFT_ENTRY_ROW_ADV : WEFT_ENTRY_COL_ADV), 2));
        }
        for (uint32_t i = 0; i < map->segments.count; i++) {
            add16(plan + map->segments.at + i * map->segments.size +
                      (rows ? WEFT_SEGMENT_ROW_STEPS : WEFT_SEGMENT_COL_STEPS),
                  1);
        }
        break;
    case 5: /* another step width */
        add16(adv, delta);
        add16(ext, delta);
        break;
    case 6: /* another policy, with what it wants */
        e[WEFT_ENTRY_POLICY] = (uint8_t)rnd(4);
        put(e + WEFT_ENTRY_KEEP, 2, e[WEFT_ENTRY_POLICY] == WEFT_POLICY_FULL ? 0 : rnd(6));
        if (e[WEFT_ENTRY_POLICY] != WEFT_POLICY_TILE) {
            memcpy(e + WEFT_ENTRY_ROW_EXT, e + WEFT_ENTRY_ROW_ADV, 2);
            memcpy(e + WEFT_ENTRY_COL_EXT, e + WEFT_ENTRY_COL_ADV, 2);
        }
        break;
    case 7: { /* a segment in other slices */
        const uint8_t *s = plan + map->segments.at + rnd(map->segments.count) * map->segments.size;
        uint32_t first = get(s + WEFT_SEGMENT_FIRST_ENTRY, 2), count = get(s + WEFT_SEGMENT_ENTRY_COUNT, 2);
        uint32_t slice = rnd(4);
        for (uint32_t n = first; n < first + count && n < map->entries.count; n++) {
            put(plan + map->entries.at + n * WEFT_ENTRY_SIZE + WEFT_ENTRY_SLICE, 2, slice);
        }
        break;
    }
    default: /* an operator and its window to another place among its neighbours */
        if (map->entries.count > map->placed + 1) {
            uint32_t n = map->placed + rnd(map->entries.count - map->placed - 1);
            uint8_t saved[WEFT_ENTRY_SIZE], *p = plan + map->entries.at + n * WEFT_ENTRY_SIZE;
            memcpy(saved, p, sizeof saved);
            memmove(p, p + sizeof saved, sizeof saved);
            memcpy(p + sizeof saved, saved, sizeof saved);
            for (uint32_t t = 0; t < map->entry_of.count; t++) {
                uint8_t *of = plan + map->entry_of.at + 2 * t;
                uint32_t at = get(of, 2);
                put(of, 2, at == n ? n + 1 : at == n + 1 ? n : at);
            }
        }
        break;
    }
}

/* Two neighbouring stages become one; its counters go behind everything. False if there is one stage only. */
static bool merge_stages(uint8_t *plan, const map_t *map)
{
    if (map->stages.count < 2) {
        return false;
    }
    uint8_t *stage = plan + map->stages.at + rnd(map->stages.count - 1) * WEFT_STAGE_SIZE;
    uint8_t *next = stage + WEFT_STAGE_SIZE, *end = plan + map->schedule + map->schedule_len;
    add16(stage + WEFT_STAGE_SEGMENT_COUNT, get(next + WEFT_STAGE_SEGMENT_COUNT, 2));
    put(stage + WEFT_STAGE_STATE, 4, get(plan + WEFT_HEADER_ARENA_BYTES, 4));
    memmove(next, next + WEFT_STAGE_SIZE, (size_t)(end - next) - WEFT_STAGE_SIZE);
    put(plan + map->schedule + WEFT_SCHEDULE_STAGE_COUNT, 2, map->stages.count - 1);
    for (uint32_t i = 0; i < plan[WEFT_HEADER_SECTION_COUNT]; i++) {
        uint8_t *section = plan + WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        if (get(section + WEFT_SECTION_OFFSET, 4) == map->schedule) {
            put(section + WEFT_SECTION_LENGTH, 4, map->schedule_len - WEFT_STAGE_SIZE);
        }
    }
    return true;
}

static void change_weights(uint8_t *plan, const map_t *map)
{
    if (map->weights_len == 0) {
        return;
    }
    uint32_t width = 1u << rnd(3), at = rnd(map->weights_len) / width * width;
    if (at + width <= map->weights_len) {
        put(plan + map->weights + at, width, other_value(get(plan + map->weights + at, width), width));
    }
}

void mutate(uint8_t *plan, const map_t *map)
{
    const records_t header = {0, 1, WEFT_HEADER_SIZE};
    const records_t table = {WEFT_HEADER_SIZE, plan[WEFT_HEADER_SECTION_COUNT], WEFT_SECTION_SIZE};
    const records_t graph = {map->graph, 1, WEFT_GRAPH_SIZE}, schedule = {map->schedule, 1, WEFT_SCHEDULE_SIZE};
    const kind_t kinds[] = {
        {380, &map->entries,
         FIELDS({WEFT_ENTRY_OP, 2}, {WEFT_ENTRY_POLICY, 1}, {WEFT_ENTRY_FLAGS, 1}, {WEFT_ENTRY_ROW_ADV, 2},
                {WEFT_ENTRY_ROW_OFF, 2}, {WEFT_ENTRY_ROW_EXT, 2}, {WEFT_ENTRY_KEEP, 2}, {WEFT_ENTRY_COL_ADV, 2},
                {WEFT_ENTRY_COL_OFF, 2}, {WEFT_ENTRY_COL_EXT, 2}, {WEFT_ENTRY_SLICE, 2}, {WEFT_ENTRY_OFFSET, 4},
                {WEFT_ENTRY_AUX, 4})},
        {90, &map->segments,
         FIELDS({WEFT_SEGMENT_FIRST_ENTRY, 2}, {WEFT_SEGMENT_ENTRY_COUNT, 2}, {WEFT_SEGMENT_ROW_STEPS, 2},
                {WEFT_SEGMENT_COL_STEPS, 2})},
        {40, &map->stages,
         FIELDS({WEFT_STAGE_FIRST_SEGMENT, 2}, {WEFT_STAGE_SEGMENT_COUNT, 2}, {WEFT_STAGE_STATE, 4},
                {WEFT_STAGE_SCRATCH, 4}, {WEFT_STAGE_SCRATCH_LEN, 4})},
        {10, &map->entry_of, FIELDS({0, 2})},
        {10, &schedule,
         FIELDS({WEFT_SCHEDULE_STAGE_COUNT, 2}, {WEFT_SCHEDULE_SEGMENT_COUNT, 2}, {WEFT_SCHEDULE_ENTRY_COUNT, 2},
                {WEFT_SCHEDULE_PLACED_COUNT, 2})},
        {100, &map->ops,
         FIELDS({WEFT_OP_OPCODE, 1}, {WEFT_OP_FLAGS, 1}, {WEFT_OP_INPUT0, 2}, {WEFT_OP_INPUT1, 2}, {WEFT_OP_OUTPUT, 2},
                {WEFT_OP_KERNEL_H, 1}, {WEFT_OP_KERNEL_W, 1}, {WEFT_OP_STRIDE_H, 1}, {WEFT_OP_STRIDE_W, 1},
                {WEFT_OP_DILATION_H, 1}, {WEFT_OP_DILATION_W, 1}, {WEFT_OP_PAD_TOP, 1}, {WEFT_OP_PAD_LEFT, 1},
                {WEFT_OP_ACT_MIN, 1}, {WEFT_OP_ACT_MAX, 1}, {WEFT_OP_GROUPS, 2}, {WEFT_OP_PARAMS, 4})},
        {50, &map->tensors,
         FIELDS({WEFT_TENSOR_H, 2}, {WEFT_TENSOR_W, 2}, {WEFT_TENSOR_C, 2}, {WEFT_TENSOR_ZERO_POINT, 1},
                {WEFT_TENSOR_FLAGS, 1})},
        {10, &map->consts, FIELDS({WEFT_CONST_TENSOR, 2}, {WEFT_CONST_RESERVED, 2}, {WEFT_CONST_OFFSET, 4})},
        {10, &map->ios, FIELDS({WEFT_IO_TENSOR, 2}, {WEFT_IO_DTYPE, 1}, {WEFT_IO_RESERVED, 1}, {WEFT_IO_SCALE, 4})},
        {10, &map->lists, FIELDS({0, 2})},
        {10, &graph,
         FIELDS({WEFT_GRAPH_TENSOR_COUNT, 2}, {WEFT_GRAPH_OP_COUNT, 2}, {WEFT_GRAPH_CONST_COUNT, 2},
                {WEFT_GRAPH_INPUT_COUNT, 1}, {WEFT_GRAPH_OUTPUT_COUNT, 1}, {WEFT_GRAPH_LIST_COUNT, 2},
                {WEFT_GRAPH_RESERVED, 2})},
        {20, &header,
         FIELDS({WEFT_HEADER_MAGIC, 4}, {WEFT_HEADER_FORMAT_MAJOR, 1}, {WEFT_HEADER_FORMAT_MINOR, 1},
                {WEFT_HEADER_HEADER_LEN, 2}, {WEFT_HEADER_TOTAL_LEN, 4}, {WEFT_HEADER_ABI_MAJOR, 1},
                {WEFT_HEADER_ABI_MINOR, 1}, {WEFT_HEADER_ALIGN_LOG2, 1}, {WEFT_HEADER_SECTION_COUNT, 1},
                {WEFT_HEADER_OP_MASK, 4}, {WEFT_HEADER_CAPABILITIES, 4}, {WEFT_HEADER_ARENA_BYTES, 4},
                {WEFT_HEADER_MACS, 4}, {WEFT_HEADER_BASE_MACS, 4}, {WEFT_HEADER_ELEMENTS, 4},
                {WEFT_HEADER_ROW_STEPS, 4}, {WEFT_HEADER_CALLS, 4}, {WEFT_HEADER_FLAGS, 4}, {WEFT_HEADER_RESERVED, 4})},
        {10, &table,
         FIELDS({WEFT_SECTION_TYPE, 2}, {WEFT_SECTION_FLAGS, 2}, {WEFT_SECTION_OFFSET, 4}, {WEFT_SECTION_LENGTH, 4},
                {WEFT_SECTION_RESERVED, 4})},
    };
    const unsigned n = sizeof kinds / sizeof kinds[0];
    if (rnd(50) == 0 && merge_stages(plan, map)) { /* nothing stands where the map says now */
        return;
    }
    unsigned changes = 1 + (rnd(3) == 0 ? rnd(4) : 0);
    while (changes-- > 0) {
        unsigned dice = rnd(1000);
        unsigned k = 0;
        while (k < n && dice >= kinds[k].share) {
            dice -= kinds[k++].share;
        }
        if (k == n) {
            dice < 30 ? change_weights(plan, map) : change_schedule(plan, map);
        } else if (kinds[k].records->count > 0) {
            rnd(30) == 0 ? swap_records(plan, rnd(2) != 0 ? &map->entries : &map->ops) : change_field(plan, &kinds[k]);
        }
    }
}

void repair(uint8_t *plan, uint32_t len)
{
    map_t map;
    counted_t counted;
    if (rnd(4) != 0 && map_plan(plan, len, &map) && count_plan(plan, &map, &counted)) {
        declare(plan, &counted, rnd(8) != 0);
    }
}
