/* SPDX-License-Identifier: Apache-2.0 */
/* Slots, boot, runs: what the module promises, each on erased storage. A boot here is weft_service_boot() again. */
#include <string.h>

#include "embUnit.h"
#include "update/update_internal.h"
#include "weft/weft_service.h"
#include "weft/weft_upload.h"
#include "weft_params.h"

#define CHUNK 256u

extern const uint8_t test_plan[], test_plan_end[];

static weft_service_status_t status;

/* ---------------------------------------------------------------- storage */

static uint32_t plan_len(void)
{
    return (uint32_t)(test_plan_end - test_plan);
}

static uint32_t slot_offset(unsigned slot)
{
    return CONFIG_WEFT_MTD_OFFSET + slot * CONFIG_WEFT_SLOT_SIZE;
}

static void erase(uint32_t offset, uint32_t len)
{
    mtd_dev_t *dev = WEFT_PARAM_DEV;
    uint32_t sector = dev->page_size * dev->pages_per_sector;
    TEST_ASSERT_EQUAL_INT(0, mtd_erase_sector(dev, offset / sector, len / sector));
}

static uint32_t sector_bytes(void)
{
    mtd_dev_t *dev = WEFT_PARAM_DEV;
    return dev->page_size * dev->pages_per_sector;
}

/* Slot as the plan's bytes are, but `with` at `at`; bytes from `len` on stay erased. */
static void write_plan(unsigned slot, uint32_t len, uint32_t at, const void *with, uint32_t with_len)
{
    static uint8_t chunk[CHUNK] __attribute__((aligned(8)));
    mtd_dev_t *dev = WEFT_PARAM_DEV;
    erase(slot_offset(slot), CONFIG_WEFT_SLOT_SIZE);
    for (uint32_t i = 0; i < len; i += CHUNK) {
        uint32_t n = len - i < CHUNK ? len - i : CHUNK, to = slot_offset(slot) + i;
        memset(chunk, 0xff, sizeof chunk);
        memcpy(chunk, test_plan + i, n);
        for (uint32_t k = 0; k < with_len; k++) {
            if (at + k >= i && at + k < i + n) {
                chunk[at + k - i] = ((const uint8_t *)with)[k];
            }
        }
        TEST_ASSERT_EQUAL_INT(0, mtd_write_page_raw(dev, chunk, to / dev->page_size, to % dev->page_size, CHUNK));
    }
}

static void write_good(unsigned slot)
{
    write_plan(slot, plan_len(), 0, NULL, 0);
}

static void write_version(unsigned slot, uint8_t version)
{
    write_plan(slot, plan_len(), WEFT_HEADER_PLAN_VERSION, &version, 1);
}

static int boot(void)
{
    int r = weft_service_boot();
    weft_service_status(&status);
    return r;
}

static void set_up(void)
{
    (void)mtd_init(WEFT_PARAM_DEV);
    erase(slot_offset(0), CONFIG_WEFT_SLOT_SIZE);
    erase(slot_offset(1), CONFIG_WEFT_SLOT_SIZE);
    erase(CONFIG_WEFT_STATE_OFFSET, 2 * sector_bytes());
}

/* ---------------------------------------------------------------- boot */

static void test_empty_slots(void)
{
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, weft_service_run(&(weft_job_t){0}));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, weft_service_selftest());
}

static void test_plan_in_slot_a(void)
{
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(0, (int)status.slot);
    TEST_ASSERT_EQUAL_INT((int)plan_len(), (int)status.report.plan_bytes);
    TEST_ASSERT_EQUAL_INT(2, (int)status.report.plan_version);
    TEST_ASSERT(status.report.base_macs > 0 && status.report.macs >= status.report.base_macs);
    TEST_ASSERT(status.report.in_place == (WEFT_PARAM_ADDRESS != 0));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_selftest());
}

static void test_plan_in_slot_b_only(void)
{
    write_good(1);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(1, (int)status.slot);
}

static void test_bad_slot_a_gives_way_to_b(void)
{
    static const uint8_t abi = 0x7f;
    write_plan(0, plan_len(), WEFT_HEADER_ABI_MAJOR, &abi, 1);
    write_good(1);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(1, (int)status.slot);
}

static void check_bad(int expected)
{
    weft_slot_report_t report;
    TEST_ASSERT_EQUAL_INT(expected, boot());
    TEST_ASSERT_EQUAL_INT(expected, status.report.error.code);
    TEST_ASSERT_EQUAL_INT(expected, weft_service_inspect(0, &report));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, weft_service_run(&(weft_job_t){0}));
    /* The same board, a good plan: it runs. */
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
}

static void test_not_a_plan(void)
{
    static const uint8_t noise[] = {1, 2, 3, 4};
    write_plan(0, CHUNK, 0, noise, sizeof noise);
    check_bad(WEFT_ERR_MAGIC);
}

static void test_truncated(void)
{
    write_plan(0, plan_len() / 2 / CHUNK * CHUNK, 0, NULL, 0);
    check_bad(WEFT_ERR_HASH);
}

static void test_corrupt_weights(void)
{
    static const uint8_t wrong[] = {0x5a, 0xa5, 0x5a, 0xa5};
    write_plan(0, plan_len(), plan_len() / 2, wrong, sizeof wrong);
    check_bad(WEFT_ERR_HASH);
}

static void test_other_abi(void)
{
    static const uint8_t abi = 0x7f;
    write_plan(0, plan_len(), WEFT_HEADER_ABI_MAJOR, &abi, 1);
    check_bad(WEFT_ERR_ABI);
}

static void test_arena_too_large(void)
{
    /* 1 MiB more than it says. */
    static const uint8_t more = 0x10;
    weft_slot_report_t report;
    write_plan(0, plan_len(), WEFT_HEADER_ARENA_BYTES + 2, &more, 1);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_LIMIT, weft_service_boot());
    weft_service_inspect(0, &report);
    TEST_ASSERT(report.arena_bytes >= 0x100000);
    check_bad(WEFT_ERR_LIMIT);
}

static void test_two_bad_slots_tell_of_the_filled_one(void)
{
    static const uint8_t noise[] = {1, 2, 3, 4};
    write_plan(1, CHUNK, 0, noise, sizeof noise);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_MAGIC, boot());
    TEST_ASSERT_EQUAL_INT(1, (int)status.slot);
}

static void test_changed_slot_runs(void)
{
    write_version(0, 7);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(7, (int)status.report.plan_version);
    /* Only the slot's bytes change, and the version goes down. */
    write_version(0, 3);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(3, (int)status.report.plan_version);
    TEST_ASSERT_EQUAL_INT(0, (int)status.slot);
}

static void test_active_slot_spoiled_later(void)
{
    static const uint8_t wrong[] = {0x5a, 0xa5};
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    write_plan(0, plan_len(), plan_len() / 2, wrong, sizeof wrong);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_HASH, boot());
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
}

/* ---------------------------------------------------------------- slots */

static void test_select_lasts(void)
{
    write_version(0, 5);
    write_version(1, 4);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(5, (int)status.report.plan_version);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_select(1, NULL));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(1, (int)status.slot);
    TEST_ASSERT_EQUAL_INT(4, (int)status.report.plan_version);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_select(0, NULL));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(0, (int)status.slot);
}

static void test_select_of_a_bad_slot_changes_nothing(void)
{
    weft_error_t error;
    static const uint8_t abi = 0x7f;
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, weft_service_select(1, &error));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_NO_PLAN, error.code);
    write_plan(1, plan_len(), WEFT_HEADER_ABI_MAJOR, &abi, 1);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_ABI, weft_service_select(1, &error));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_ARG, weft_service_select(2, &error));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_selftest());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(0, (int)status.slot);
}

/* ---------------------------------------------------------------- runs */

typedef struct {
    unsigned rows, steps, dones;
    int abort_at, fail_at;
    bool call_back;
    int inner;
    uint32_t crc;
} trace_t;

static int trace_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    trace_t *trace = ctx;
    (void)input;
    memset(dst, (int)row, nbytes);
    return trace->fail_at >= 0 && (int)trace->rows++ == trace->fail_at ? -1 : 0;
}

static int trace_step(void *ctx)
{
    trace_t *trace = ctx;
    if (trace->call_back) {
        trace->inner = weft_service_run(&(weft_job_t){0});
    }
    if ((int)trace->steps++ == trace->abort_at) {
        weft_service_abort();
    }
    return 0;
}

static void trace_done(weft_job_t *job, const weft_result_t *result)
{
    trace_t *trace = job->ctx;
    weft_tensor_info_t info;
    const int8_t *values = weft_result_output(result, 0, &info);
    trace->dones++;
    trace->crc = values != NULL ? weft_crc32(values, (size_t)info.h * info.w * info.c, 0) : 0;
}

static int traced_run(trace_t *trace)
{
    weft_job_t job = {.ctx = trace, .rows = trace_row, .step = trace_step, .done = trace_done};
    trace->rows = trace->steps = trace->dones = 0;
    return weft_service_run(&job);
}

static void test_runs_are_repeatable_and_end_early(void)
{
    trace_t trace = {.abort_at = -1, .fail_at = -1};
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, traced_run(&trace));
    uint32_t crc = trace.crc;
    TEST_ASSERT(trace.steps > 1 && trace.dones == 1);
    trace.abort_at = 1;
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_ABORTED, traced_run(&trace));
    TEST_ASSERT_EQUAL_INT(1, (int)trace.dones);
    trace.abort_at = -1;
    trace.fail_at = 2;
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_INPUT, traced_run(&trace));
    trace.fail_at = -1;
    trace.call_back = true;
    TEST_ASSERT_EQUAL_INT(WEFT_OK, traced_run(&trace));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_BUSY, trace.inner);
    TEST_ASSERT(trace.crc == crc);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_IO, weft_service_run(&(weft_job_t){0}));
    weft_service_status(&status);
    TEST_ASSERT_EQUAL_INT(2, (int)status.runs);
    TEST_ASSERT_EQUAL_INT(3, (int)status.failures);
}

static void test_stages_are_timed(void)
{
    uint32_t usec[16] = {0};
    trace_t trace = {.abort_at = -1, .fail_at = -1};
    weft_job_t job = {
        .ctx = &trace, .rows = trace_row, .done = trace_done, .stage_usec = usec, .stage_count = ARRAY_SIZE(usec)};
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_run(&job));
    weft_service_status(&status);
    uint32_t sum = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(usec); i++) {
        sum += usec[i];
    }
    TEST_ASSERT(sum > 0 && sum <= status.usec);
}

/* ---------------------------------------------------------------- updates */

static uint32_t head[(WEFT_UPDATE_HEAD_MAX + 3u) / 4u];
static weft_upload_t upload = {.head = head};

typedef struct {
    uint32_t offset, len;
    uint8_t version; /* that the plan claims */
} part_t;

/* Bytes of the plan, through RAM, for the core takes them from there only. */
static int write_part(weft_update_t *update, void *ctx)
{
    static uint8_t chunk[CHUNK];
    const part_t *part = ctx;
    memcpy(chunk, test_plan + part->offset, part->len);
    if (part->offset == 0) {
        chunk[WEFT_HEADER_PLAN_VERSION] = part->version;
    }
    return weft_upload_write(update, &upload, part->offset, chunk, part->len);
}

static int finish_upload(weft_update_t *update, void *ctx)
{
    (void)ctx;
    return weft_upload_finish(update, &upload);
}

static int order_test(weft_update_t *update, void *ctx)
{
    (void)ctx;
    return weft_update_test(update);
}

static int order_revert(weft_update_t *update, void *ctx)
{
    (void)ctx;
    return weft_update_revert(update);
}

static int order_confirm(weft_update_t *update, void *ctx)
{
    (void)ctx;
    return weft_update_confirm(update);
}

static int read_core(weft_update_t *update, void *ctx)
{
    weft_update_status(update, ctx);
    return WEFT_OK;
}

static int send_part(uint32_t offset, uint8_t version)
{
    uint32_t left = plan_len() - offset;
    part_t part = {.offset = offset, .len = left < CHUNK ? left : CHUNK, .version = version};
    return weft_service_update(write_part, &part);
}

static void send_plan(uint8_t version)
{
    for (uint32_t at = 0; at < plan_len(); at += CHUNK) {
        TEST_ASSERT_EQUAL_INT(WEFT_OK, send_part(at, version));
    }
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_update(finish_upload, NULL));
}

static uint32_t running_version(void)
{
    weft_service_status(&status);
    return status.report.error.code == WEFT_OK ? status.report.plan_version : 0;
}

static void start_update(void)
{
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    send_plan(9);
    TEST_ASSERT_EQUAL_INT(2, (int)running_version());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_update(order_test, NULL));
}

static void test_no_updates_before_boot(void)
{
    /* The first of its suite, before anything was booted. */
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_FLASH, weft_service_update(order_test, NULL));
}

static void test_trial_runs_at_once_and_is_confirmed_by_runs(void)
{
    trace_t trace = {.abort_at = -1, .fail_at = -1};
    weft_update_status_t core;
    start_update();
    TEST_ASSERT_EQUAL_INT(9, (int)running_version());
    TEST_ASSERT(status.trial && status.slot == 1);
    for (unsigned i = 0; i < CONFIG_WEFT_CONFIRM_AFTER; i++) {
        TEST_ASSERT_EQUAL_INT(WEFT_OK, traced_run(&trace));
    }
    weft_service_update(read_core, &core);
    TEST_ASSERT(core.active == 1 && core.floor == 9);
    TEST_ASSERT_EQUAL_INT(9, (int)running_version());
    TEST_ASSERT(!status.trial);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(9, (int)running_version());
}

static void test_revert_goes_back_at_once(void)
{
    start_update();
    TEST_ASSERT_EQUAL_INT(9, (int)running_version());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_update(order_revert, NULL));
    TEST_ASSERT_EQUAL_INT(2, (int)running_version());
    TEST_ASSERT(!status.trial && status.slot == 0);
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_STATE, weft_service_update(order_confirm, NULL));
    /* The same plan again is refused as soon as its head is there. */
    int r = WEFT_OK;
    for (uint32_t at = 0; at < sizeof head && r == WEFT_OK; at += CHUNK) {
        r = send_part(at, 9);
    }
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_TRIED, r);
}

static void test_trial_ends_after_three_boots(void)
{
    start_update();
    for (unsigned i = 1; i < WEFT_UPDATE_TRIES; i++) {
        TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
        TEST_ASSERT_EQUAL_INT(9, (int)running_version());
    }
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(2, (int)running_version());
}

static void test_stream_with_gaps_and_repetitions(void)
{
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_OFFSET, send_part(CHUNK, 9));
    TEST_ASSERT_EQUAL_INT(WEFT_ERR_TRUNCATED, weft_service_update(finish_upload, NULL));
    for (uint32_t at = 0; at < plan_len(); at += CHUNK) {
        TEST_ASSERT_EQUAL_INT(WEFT_OK, send_part(at, 9));
        if (at >= 4 * CHUNK) {
            TEST_ASSERT_EQUAL_INT(WEFT_OK, send_part(at - CHUNK, 9));
            TEST_ASSERT(at + 2 * CHUNK >= plan_len() || send_part(at + 2 * CHUNK, 9) == WEFT_ERR_OFFSET);
        }
    }
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_update(finish_upload, NULL));
    weft_slot_report_t report;
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_inspect(1, &report));
    TEST_ASSERT_EQUAL_INT(9, (int)report.plan_version);
}

/* A transfer goes on while a plan runs, and what it leads to waits for the run's end. */
static int update_in_a_step(void *ctx)
{
    trace_t *trace = ctx;
    if (trace->steps == 0) {
        send_plan(9);
        trace->inner = weft_service_update(order_test, NULL);
    }
    return trace_step(ctx);
}

static void test_update_amid_a_run(void)
{
    trace_t trace = {.abort_at = -1, .fail_at = -1}, alone = {.abort_at = -1, .fail_at = -1};
    weft_job_t job = {.ctx = &trace, .rows = trace_row, .step = update_in_a_step, .done = trace_done};
    write_good(0);
    TEST_ASSERT_EQUAL_INT(WEFT_OK, boot());
    TEST_ASSERT_EQUAL_INT(WEFT_OK, traced_run(&alone));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, weft_service_run(&job));
    TEST_ASSERT_EQUAL_INT(WEFT_OK, trace.inner);
    TEST_ASSERT(trace.crc == alone.crc);
    TEST_ASSERT_EQUAL_INT(9, (int)running_version());
}

static Test *tests_boot(void)
{
    EMB_UNIT_TESTFIXTURES(fixtures){
        new_TestFixture(test_empty_slots),         new_TestFixture(test_plan_in_slot_a),
        new_TestFixture(test_plan_in_slot_b_only), new_TestFixture(test_bad_slot_a_gives_way_to_b),
        new_TestFixture(test_not_a_plan),          new_TestFixture(test_truncated),
        new_TestFixture(test_corrupt_weights),     new_TestFixture(test_other_abi),
        new_TestFixture(test_arena_too_large),     new_TestFixture(test_two_bad_slots_tell_of_the_filled_one),
        new_TestFixture(test_changed_slot_runs),   new_TestFixture(test_active_slot_spoiled_later),
    };
    EMB_UNIT_TESTCALLER(boot_tests, set_up, NULL, fixtures);
    return (Test *)&boot_tests;
}

static Test *tests_slots(void)
{
    EMB_UNIT_TESTFIXTURES(fixtures){
        new_TestFixture(test_select_lasts),
        new_TestFixture(test_select_of_a_bad_slot_changes_nothing),
    };
    EMB_UNIT_TESTCALLER(slot_tests, set_up, NULL, fixtures);
    return (Test *)&slot_tests;
}

static Test *tests_runs(void)
{
    EMB_UNIT_TESTFIXTURES(fixtures){
        new_TestFixture(test_runs_are_repeatable_and_end_early),
        new_TestFixture(test_stages_are_timed),
    };
    EMB_UNIT_TESTCALLER(run_tests, set_up, NULL, fixtures);
    return (Test *)&run_tests;
}

static Test *tests_before_boot(void)
{
    EMB_UNIT_TESTFIXTURES(fixtures){new_TestFixture(test_no_updates_before_boot)};
    EMB_UNIT_TESTCALLER(before_tests, NULL, NULL, fixtures);
    return (Test *)&before_tests;
}

static Test *tests_updates(void)
{
    EMB_UNIT_TESTFIXTURES(fixtures){
        new_TestFixture(test_trial_runs_at_once_and_is_confirmed_by_runs),
        new_TestFixture(test_revert_goes_back_at_once),
        new_TestFixture(test_trial_ends_after_three_boots),
        new_TestFixture(test_stream_with_gaps_and_repetitions),
        new_TestFixture(test_update_amid_a_run),
    };
    EMB_UNIT_TESTCALLER(update_tests, set_up, NULL, fixtures);
    return (Test *)&update_tests;
}

int main(void)
{
    TESTS_START();
    TESTS_RUN(tests_before_boot());
    TESTS_RUN(tests_boot());
    TESTS_RUN(tests_slots());
    TESTS_RUN(tests_runs());
    TESTS_RUN(tests_updates());
    TESTS_END();
    return 0;
}
