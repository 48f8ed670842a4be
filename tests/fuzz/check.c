/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IOS 16
#define MAX_STAGES 64
/* Bytes of a network input or of a layer-by-layer arena beyond which an accepted plan is not executed. */
#define TOO_BIG (4u << 20)

tally_t tally;

static const uint8_t *culprit;
static uint32_t culprit_len;

void fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n", what);
    FILE *file = fopen("fuzz-failure.weft", "wb");
    if (file != NULL) {
        fwrite(culprit, 1, culprit_len, file);
        fclose(file);
    }
    abort();
}

void *block(size_t size, size_t align)
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

uint64_t digest(const uint8_t *p, size_t n)
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

bool attempt(const subject_t *subject, const uint8_t *bytes, uint32_t len, bool mutated)
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
