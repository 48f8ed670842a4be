/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Feeds the engine plans that are not what the planner made, in one process, under ASan and UBSan:
 *   fuzz bytes PLAN                 every byte set to every other value
 *   fuzz truncate PLAN              every length below the plan's, as declared and with the header saying so
 *   fuzz random SEED COUNT PLAN     records, fields and parameters changed at random; in most, the header's figures are
 *                                   then counted anew, so that the rest of the verifier is reached
 *
 * A plan that weft_open() accepts is executed in an arena of exactly weft_arena_size() bytes between red zones, once
 * over zeros and once over 0xa5, under limits that a caller would give. Both runs must give the same bytes, the bytes
 * that the same graph gives layer by layer, and do exactly the work that was declared. Anything else ends the program,
 * with the plan in fuzz-failure.weft.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* weft.h first: weft_format.h has macros with the names of its enumerators. */
#include "weft/weft.h"

#include "plan_bytes.h"

#define MAX_IOS 16
#define MAX_STAGES 64
/* More than the catalogue has. */
#define ERROR_CODES 64
/* Bytes of a network input or of a layer-by-layer arena beyond which an accepted plan is not executed. */
#define TOO_BIG (4u << 20)
/* Limits, as multiples of what the plan before mutation needs. */
#define LIMIT_FACTOR 4u
/* Accepted mutants become the next starting point now and then; after this many mutations it is the original again. */
#define GENERATIONS 200u

typedef struct {
    const char *name;
    const uint8_t *bytes; /* the original */
    uint32_t len;
    map_t map;
    weft_limits_t limits;
    weft_plan_info_t info;
} subject_t;

static struct {
    uint64_t mutations, accepted, executed, scheduled, overlapping, skipped;
    uint64_t errors[ERROR_CODES];
} tally;

static const uint8_t *culprit;
static uint32_t culprit_len;

static void fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n", what);
    FILE *file = fopen("fuzz-failure.weft", "wb");
    if (file != NULL) {
        fwrite(culprit, 1, culprit_len, file);
        fclose(file);
    }
    exit(1);
}

static uint64_t random_state;

static uint32_t rnd(uint32_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 16) % below);
}

/* A block of exactly `size` bytes: what lies before and behind it is a red zone. */
static void *block(size_t size, size_t align)
{
    void *p = NULL;
    if (posix_memalign(&p, align > sizeof(void *) ? align : sizeof(void *), size) != 0) {
        abort();
    }
    return p;
}

/* ---------------------------------------------------------------- execution */

typedef struct {
    const weft_plan_t *plan;
    const uint8_t *arena;
    const int8_t *inputs[MAX_IOS];
    size_t row_len[MAX_IOS];
    unsigned rows[MAX_IOS];
    unsigned next_row[MAX_IOS];
    uint32_t steps;
    uint64_t stages[MAX_STAGES];
} session_t;

static uint64_t digest(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 0x100000001b3u;
    }
    return h;
}

static int give_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    session_t *s = ctx;
    if (row != s->next_row[input] || row >= s->rows[input] || nbytes != s->row_len[input]) {
        fail("a streamed row was asked for out of order");
    }
    memcpy(dst, s->inputs[input] + row * nbytes, nbytes);
    s->next_row[input]++;
    return 0;
}

static int count_step(void *ctx)
{
    session_t *s = ctx;
    s->steps++;
    return 0;
}

static void stage_done(void *ctx, unsigned stage, int begin)
{
    session_t *s = ctx;
    size_t offset, nbytes;
    if (begin == 0 && stage < MAX_STAGES && weft_stage_output(s->plan, stage, &offset, &nbytes) == WEFT_OK) {
        s->stages[stage] = digest(s->arena + offset, nbytes);
    }
}

/* One run over an arena filled with `fill`; digest of all outputs, and of every stage's in *stages. */
static uint64_t execute(const weft_plan_t *plan, uint8_t fill, uint64_t seed, uint64_t *stages)
{
    static weft_io_t io;
    session_t s;
    weft_plan_info_t info;
    weft_counts_t counts = {0, 0, 0, 0};
    int8_t *given[MAX_IOS];
    weft_plan_info(plan, &info);
    memset(&s, 0, sizeof s);
    size_t size = weft_arena_size(plan);
    uint8_t *arena = block(size, weft_arena_align(plan));
    memset(arena, fill, size);
    s.plan = plan;
    s.arena = arena;
    for (unsigned i = 0; i < weft_input_count(plan); i++) {
        weft_tensor_info_t t;
        weft_input_info(plan, i, &t);
        size_t n = (size_t)t.h * t.w * t.c;
        given[i] = block(n, 1);
        uint32_t state = (uint32_t)seed + i;
        for (size_t k = 0; k < n; k++) {
            state = state * 1664525u + 1013904223u;
            given[i][k] = (int8_t)(state >> 24);
        }
        s.inputs[i] = given[i];
        s.rows[i] = t.h;
        s.row_len[i] = (size_t)t.w * t.c;
        if (weft_input_mode(plan, i) == WEFT_INPUT_RESIDENT) {
            memcpy(arena + weft_input_offset(plan, i), given[i], n);
        }
    }
    io.ctx = &s;
    io.input_fn = give_row;
    io.external = s.inputs;
    io.step_fn = count_step;
    io.profile_fn = stage_done;
    io.counts = &counts;
    if (weft_run(plan, arena, size, &io) != WEFT_OK) {
        fail("weft_run() refused a plan that weft_open() accepted");
    }
    if (counts.macs != info.macs || counts.elements != info.elements || counts.row_steps != info.row_steps ||
        counts.calls > info.calls || s.steps != info.row_steps) {
        fail("the work done is not the work declared");
    }
    uint64_t h = 0;
    for (unsigned i = 0; i < weft_output_count(plan); i++) {
        weft_tensor_info_t t;
        weft_output_info(plan, i, &t);
        h = h * 31 + digest(arena + weft_output_offset(plan, i), (size_t)t.h * t.w * t.c);
    }
    for (unsigned i = 0; i < weft_input_count(plan); i++) {
        if (weft_input_mode(plan, i) == WEFT_INPUT_STREAMED && s.next_row[i] != s.rows[i]) {
            fail("not every streamed row was asked for");
        }
        free(given[i]);
    }
    memcpy(stages, s.stages, sizeof s.stages);
    free(arena);
    return h;
}

/* What the graph of an accepted plan gives layer by layer; false if that cannot be had. */
static bool expected(const subject_t *subject, const uint8_t *bytes, uint64_t seed, uint64_t *h)
{
    static const subject_t *known_for;
    static uint64_t known[4];
    const map_t *own = &subject->map;
    map_t map;
    uint64_t stages[MAX_STAGES];
    if (!map_plan(bytes, get(bytes + WEFT_HEADER_TOTAL_LEN, 4), &map)) {
        fail("an accepted plan has no sections");
    }
    bool original = map.graph_len == own->graph_len && map.weights_len == own->weights_len &&
                    memcmp(bytes + map.graph, subject->bytes + own->graph, own->graph_len) == 0 &&
                    memcmp(bytes + map.weights, subject->bytes + own->weights, own->weights_len) == 0;
    if (original && known_for == subject) {
        *h = known[seed & 3];
        return true;
    }
    uint32_t len;
    uint8_t *layers = layer_plan(bytes, &map, &len);
    if (layers == NULL) {
        return false;
    }
    weft_plan_t plan;
    weft_error_t err;
    if (weft_open(&plan, layers, len, NULL, &err) != WEFT_OK) {
        fprintf(stderr, "%s record %u offset %u\n", weft_error_name(err.code), err.record, (unsigned)err.offset);
        fail("the layer-by-layer plan of an accepted plan is refused");
    }
    bool small = weft_arena_size(&plan) <= TOO_BIG;
    if (small && original) {
        for (uint64_t i = 0; i < 4; i++) {
            known[i] = execute(&plan, 0x5a, i, stages);
        }
        known_for = subject;
        *h = known[seed & 3];
    } else if (small) {
        *h = execute(&plan, 0x5a, seed, stages);
    }
    free(layers);
    return small;
}

/* Open `len` bytes (a heap block of exactly that size) and, when accepted, execute. Whether it was accepted. */
static bool attempt(const subject_t *subject, const uint8_t *bytes, uint32_t len, bool mutated)
{
    weft_plan_t plan;
    weft_error_t err;
    culprit = bytes;
    culprit_len = len;
    tally.mutations += mutated;
    int r = weft_open(&plan, bytes, len, mutated ? &subject->limits : NULL, &err);
    if (r != err.code || r > 0 || r <= -ERROR_CODES || err.offset > len) {
        fail("weft_open() reports a place or code that does not exist");
    }
    if (r != WEFT_OK) {
        tally.errors[-r] += mutated;
        return false;
    }
    weft_plan_info_t info;
    weft_plan_info(&plan, &info);
    if (mutated && (info.macs > subject->limits.macs || info.elements > subject->limits.elements ||
                    info.calls > subject->limits.calls || info.row_steps > subject->limits.row_steps ||
                    info.arena_bytes > subject->limits.arena_bytes)) {
        fail("a plan beyond the caller's limits was accepted");
    }
    size_t n, total = 0;
    for (unsigned type = 0; type < 8; type++) { /* every section that can be asked for lies in the plan */
        const uint8_t *section = weft_section(&plan, type, &n);
        total += section != NULL ? (size_t)digest(section, n) : 0;
    }
    (void)total;
    tally.accepted += mutated;
    for (unsigned i = 0; i < weft_input_count(&plan); i++) {
        weft_tensor_info_t t;
        weft_input_info(&plan, i, &t);
        if ((uint64_t)t.h * t.w * t.c > TOO_BIG) {
            tally.skipped += mutated;
            return true;
        }
    }
    uint64_t seed = tally.mutations & 3, zeros[MAX_STAGES], noise[MAX_STAGES], reference;
    uint64_t before = digest(bytes, len);
    uint64_t h = execute(&plan, 0x00, seed, zeros);
    if (h != execute(&plan, 0xa5, seed, noise) || memcmp(zeros, noise, sizeof zeros) != 0) {
        fail("the result depends on what the arena held before");
    }
    if (digest(bytes, len) != before) {
        fail("the plan was written to");
    }
    if (expected(subject, bytes, seed, &reference) && reference != h) {
        fail("the schedule changes the result");
    }
    tally.executed += mutated;
    map_t map;
    if (mutated && map_plan(bytes, get(bytes + WEFT_HEADER_TOTAL_LEN, 4), &map)) {
        const map_t *own = &subject->map;
        tally.scheduled += map.schedule_len != own->schedule_len ||
                           memcmp(bytes + map.schedule, subject->bytes + own->schedule, own->schedule_len) != 0;
        for (uint32_t i = 0; i < map.entries.count; i++) {
            if (bytes[map.entries.at + i * WEFT_ENTRY_SIZE + WEFT_ENTRY_FLAGS] != 0) {
                tally.overlapping++;
                break;
            }
        }
    }
    return true;
}

/* ---------------------------------------------------------------- mutation */

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

static void mutate(uint8_t *plan, const map_t *map)
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

static void fuzz_random(const subject_t *subject, uint64_t count)
{
    uint8_t *work = block(subject->len, WEFT_PLAN_ALIGN), *base = block(subject->len, 1);
    for (uint64_t i = 0; i < count; i++) {
        if (i % GENERATIONS == 0) {
            memcpy(base, subject->bytes, subject->len);
        }
        memcpy(work, base, subject->len);
        mutate(work, &subject->map);
        map_t map;
        counted_t counted;
        if (rnd(4) != 0 && map_plan(work, subject->len, &map) && count_plan(work, &map, &counted)) {
            declare(work, &counted, rnd(8) != 0);
        }
        /* Only plans whose records stand where they stood can be mutated further. */
        if (attempt(subject, work, subject->len, true) && rnd(4) == 0 &&
            memcmp(work + WEFT_HEADER_HEADER_LEN, base + WEFT_HEADER_HEADER_LEN, 6) == 0 &&
            memcmp(work + WEFT_HEADER_SIZE, base + WEFT_HEADER_SIZE, subject->map.graph - WEFT_HEADER_SIZE) == 0 &&
            memcmp(work + subject->map.graph, base + subject->map.graph, WEFT_GRAPH_SIZE) == 0 &&
            memcmp(work + subject->map.schedule, base + subject->map.schedule, WEFT_SCHEDULE_SIZE) == 0) {
            memcpy(base, work, subject->len);
        }
    }
    free(base);
    free(work);
}

static void fuzz_bytes(const subject_t *subject)
{
    uint8_t *work = block(subject->len, WEFT_PLAN_ALIGN);
    memcpy(work, subject->bytes, subject->len);
    for (uint32_t at = 0; at < subject->len; at++) {
        for (unsigned value = 1; value < 256; value++) {
            work[at] = (uint8_t)(subject->bytes[at] + value);
            attempt(subject, work, subject->len, true);
        }
        work[at] = subject->bytes[at];
    }
    free(work);
}

static void fuzz_truncate(const subject_t *subject)
{
    for (uint32_t len = 0; len < subject->len; len++) {
        for (int told = 0; told < 2; told++) {
            uint8_t *work = block(len, WEFT_PLAN_ALIGN);
            memcpy(work, subject->bytes, len);
            if (told && len >= WEFT_HEADER_SIZE) {
                put(work + WEFT_HEADER_TOTAL_LEN, 4, len);
            }
            bool padding = told && len + 8 > subject->len; /* the last section's padding may go */
            if (attempt(subject, work, len, true) && !padding) {
                fail("a truncated plan was accepted");
            }
            free(work);
        }
    }
}

static void load(subject_t *subject, const char *name)
{
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(name);
        exit(2);
    }
    long len = ftell(file);
    rewind(file);
    uint8_t *bytes = block(len > 0 ? (size_t)len : 1, WEFT_PLAN_ALIGN);
    if (len <= 0 || fread(bytes, 1, (size_t)len, file) != (size_t)len) {
        perror(name);
        exit(2);
    }
    fclose(file);
    memset(subject, 0, sizeof *subject);
    subject->name = name;
    subject->bytes = bytes;
    subject->len = (uint32_t)len;
    weft_plan_t plan;
    weft_error_t err;
    counted_t counted;
    if (weft_open(&plan, bytes, (size_t)len, NULL, &err) != WEFT_OK) {
        fprintf(stderr, "%s: %s\n", name, weft_error_name(err.code));
        exit(2);
    }
    weft_plan_info(&plan, &subject->info);
    subject->limits.arena_bytes = LIMIT_FACTOR * subject->info.arena_bytes;
    subject->limits.row_steps = LIMIT_FACTOR * subject->info.row_steps;
    subject->limits.calls = LIMIT_FACTOR * subject->info.calls;
    subject->limits.macs = LIMIT_FACTOR * subject->info.macs;
    subject->limits.elements = LIMIT_FACTOR * subject->info.elements;
    if (!map_plan(subject->bytes, subject->len, &subject->map) ||
        !count_plan(subject->bytes, &subject->map, &counted) || counted.macs != subject->info.macs ||
        counted.base_macs != subject->info.base_macs || counted.elements != subject->info.elements ||
        counted.row_steps != subject->info.row_steps || counted.calls != subject->info.calls) {
        fprintf(stderr, "%s: the figures counted are not those declared\n", name);
        exit(2);
    }
    attempt(subject, subject->bytes, subject->len, false);
}

int main(int argc, char **argv)
{
    subject_t subject;
    if (argc == 3 && strcmp(argv[1], "bytes") == 0) {
        load(&subject, argv[2]);
        fuzz_bytes(&subject);
    } else if (argc == 3 && strcmp(argv[1], "truncate") == 0) {
        load(&subject, argv[2]);
        fuzz_truncate(&subject);
    } else if (argc == 5 && strcmp(argv[1], "random") == 0) {
        random_state = 0x9e3779b97f4a7c15u ^ strtoull(argv[2], NULL, 10);
        load(&subject, argv[4]);
        fuzz_random(&subject, strtoull(argv[3], NULL, 10));
    } else {
        fprintf(stderr, "usage: fuzz bytes|truncate PLAN, or fuzz random SEED COUNT PLAN\n");
        return 2;
    }
    printf("plan_bytes %u\nmacs %llu\nmutations %llu\naccepted %llu\nexecuted %llu\n", (unsigned)subject.len,
           (unsigned long long)subject.info.macs, (unsigned long long)tally.mutations,
           (unsigned long long)tally.accepted, (unsigned long long)tally.executed);
    printf("other_schedule %llu\noverlapping %llu\ntoo_big %llu\n", (unsigned long long)tally.scheduled,
           (unsigned long long)tally.overlapping, (unsigned long long)tally.skipped);
    for (unsigned i = 1; i < ERROR_CODES; i++) {
        if (tally.errors[i] != 0) {
            printf("%s %llu\n", weft_error_name(-(int)i), (unsigned long long)tally.errors[i]);
        }
    }
    free((void *)(uintptr_t)subject.bytes);
    return 0;
}
