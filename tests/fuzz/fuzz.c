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

#include "check.h"
#include "mutate.h"

/* Limits, as multiples of what the plan before mutation needs. */
#define LIMIT_FACTOR 4u
/* Accepted mutants become the next starting point now and then; after this many mutations it is the original again. */
#define GENERATIONS 200u

static void fuzz_random(const subject_t *subject, uint64_t count)
{
    uint8_t *work = block(subject->len, WEFT_PLAN_ALIGN), *base = block(subject->len, 1);
    for (uint64_t i = 0; i < count; i++) {
        if (i % GENERATIONS == 0) {
            memcpy(base, subject->bytes, subject->len);
        }
        memcpy(work, base, subject->len);
        mutate(work, &subject->map);
        repair(work, subject->len);
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
        random_seed(strtoull(argv[2], NULL, 10));
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
