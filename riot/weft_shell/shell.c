/* SPDX-License-Identifier: Apache-2.0 */
/* The shell command `weft`. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shell.h"
#include "update/update_internal.h"
#include "weft/weft_service.h"

#define STAGES_MAX 64
/* Seed of the inputs that `weft run` of the host and the planner's measurements use. */
#define SEED 12345u

static void print_error(const char *what, int code)
{
    printf("%s: %s: %s\n  try: %s\n", what, weft_error_name(code), weft_error_message(code), weft_error_remedy(code));
}

static void print_report(unsigned slot, const weft_slot_report_t *report, bool active)
{
    int code = report->error.code;
    printf("slot %c%s: ", "ab"[slot], active ? " (active)" : "");
    if (code == WEFT_ERR_NO_PLAN) {
        puts("empty");
        return;
    }
    if (code != WEFT_OK) {
        printf("%s: %s", weft_error_name(code), weft_error_message(code));
        if (report->error.record != WEFT_NONE) {
            printf(" (record %u, offset %" PRIu32 ")", report->error.record, report->error.offset);
        }
        puts("");
        if (code == WEFT_ERR_LIMIT) {
            printf("  the plan's arena takes %" PRIu32 " bytes, this board has %u\n", report->arena_bytes,
                   (unsigned)CONFIG_WEFT_ARENA_SIZE);
        }
        printf("  try: %s\n", weft_error_remedy(code));
        return;
    }
    /* Thousandths and thousands: printf has neither floating point nor 64 bits everywhere. */
    uint32_t f = (uint32_t)((report->macs * 1000u + report->base_macs / 2u) / report->base_macs);
    printf("version %" PRIu32 ", %" PRIu32 " bytes, %s, arena %" PRIu32 " bytes, %" PRIu32 " kMAC, F = %" PRIu32
           ".%03" PRIu32 "\n  model ",
           report->plan_version, report->plan_bytes, report->in_place ? "in place" : "copied to RAM",
           report->arena_bytes, (uint32_t)(report->macs / 1000u), f / 1000u, f % 1000u);
    for (unsigned i = 0; i < sizeof report->model_id; i++) {
        printf("%02x", report->model_id[i]);
    }
    puts("");
}

static int info(void)
{
    weft_service_status_t status;
    weft_service_status(&status);
    print_report(status.slot, &status.report, status.report.error.code == WEFT_OK);
    printf("arena %" PRIu32 " bytes; %" PRIu32 " runs, %" PRIu32 " failures, last run %" PRIu32 " us%s\n",
           status.arena_size, status.runs, status.failures, status.usec, status.trial ? "; on trial" : "");
    return status.report.error.code == WEFT_OK ? 0 : 1;
}

static int slots(void)
{
    weft_service_status_t status;
    weft_slot_report_t report;
    weft_service_status(&status);
    for (unsigned slot = 0; slot < WEFT_SLOT_COUNT; slot++) {
        weft_service_inspect(slot, &report);
        print_report(slot, &report, slot == status.slot && status.report.error.code == WEFT_OK);
    }
    return 0;
}

static int random_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    uint32_t s = *(uint32_t *)ctx;
    (void)input;
    (void)row;
    while (nbytes-- > 0) {
        s = s * 1664525u + 1013904223u;
        *dst++ = (int8_t)(uint8_t)(s >> 24);
    }
    *(uint32_t *)ctx = s;
    return 0;
}

static void print_outputs(weft_job_t *job, const weft_result_t *result)
{
    (void)job;
    weft_tensor_info_t tensor;
    const int8_t *values;
    for (unsigned i = 0; (values = weft_result_output(result, i, &tensor)) != NULL; i++) {
        size_t count = (size_t)tensor.h * tensor.w * tensor.c, largest = 0;
        for (size_t k = 1; k < count; k++) {
            largest = values[k] > values[largest] ? k : largest;
        }
        printf("output %u: largest at %u, crc32 %08" PRIx32 "\n", i, (unsigned)largest, weft_crc32(values, count, 0));
    }
    if (result->status == WEFT_OK) {
        printf("%" PRIu32 " us\n", result->usec);
    }
}

static int run(uint32_t seed, uint32_t *stage_usec, weft_done_fn done)
{
    weft_job_t job = {
        .ctx = &seed, .rows = random_row, .done = done, .stage_usec = stage_usec, .stage_count = STAGES_MAX};
    int r = weft_service_run(&job);
    if (r == WEFT_ERR_IO) {
        puts("this plan reads its input in place: `weft run` makes inputs by rows; plan with --input streamed");
    } else if (r != WEFT_OK) {
        print_error("weft run", r);
    }
    return r == WEFT_OK ? 0 : 1;
}

static unsigned stages_seen;

static void count_stages(weft_job_t *job, const weft_result_t *result)
{
    (void)job;
    stages_seen = result->plan != NULL ? weft_stage_count(result->plan) : 0;
}

static int profile(void)
{
    static uint32_t usec[STAGES_MAX];
    memset(usec, 0, sizeof usec);
    if (run(SEED, usec, count_stages) != 0) {
        return 1;
    }
    uint32_t sum = 0;
    for (unsigned i = 0; i < stages_seen && i < STAGES_MAX; i++) {
        printf("stage %u: %" PRIu32 " us\n", i, usec[i]);
        sum += usec[i];
    }
    printf("%u stages: %" PRIu32 " us\n", stages_seen, sum);
    return 0;
}

static int selftest(void)
{
    int r = weft_service_selftest();
    if (r == WEFT_ERR_ARG) {
        puts("the plan carries no self-test");
    } else if (r != WEFT_OK) {
        print_error("weft selftest", r);
    } else {
        puts("self-test passed");
    }
    return r == WEFT_OK ? 0 : 1;
}

static int switch_slot(const char *name)
{
    weft_error_t error;
    int r = weft_service_select((unsigned)(name[0] - 'a'), &error);
    if (r != WEFT_OK) {
        print_error("weft switch", r);
        return 1;
    }
    return info();
}

static int weft_command(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (argc == 2 && strcmp(verb, "info") == 0) {
        return info();
    }
    if (argc == 2 && strcmp(verb, "slots") == 0) {
        return slots();
    }
    if (argc <= 3 && strcmp(verb, "run") == 0) {
        return run(argc == 3 ? (uint32_t)strtoul(argv[2], NULL, 0) : SEED, NULL, print_outputs);
    }
    if (argc == 2 && strcmp(verb, "profile") == 0) {
        return profile();
    }
    if (argc == 2 && strcmp(verb, "selftest") == 0) {
        return selftest();
    }
    if (argc == 3 && strcmp(verb, "switch") == 0 && (strcmp(argv[2], "a") == 0 || strcmp(argv[2], "b") == 0)) {
        return switch_slot(argv[2]);
    }
    puts("usage: weft info            what runs, or why nothing does\n"
         "       weft slots           what the slots hold, verified\n"
         "       weft run [SEED]      one inference on generated input\n"
         "       weft profile         microseconds by stage\n"
         "       weft selftest        the test that the plan carries\n"
         "       weft switch a|b      run the other slot's plan, also after a reset");
    return 1;
}

SHELL_COMMAND(weft, "plans: info, slots, run, profile, selftest, switch", weft_command);
