/* SPDX-License-Identifier: Apache-2.0 */
/* The open plan, the arena, and whose turn it is. */
#include <inttypes.h>
#include <string.h>

#include "auto_init_utils.h"
#include "log.h"
#include "mutex.h"
#include "rmutex.h"
#include "thread.h"
#include "time_units.h"
#include "update/update_internal.h"
#include "weft_internal_riot.h"
#include "weft_params.h"
#include "ztimer.h"

#ifdef WEFT_PARAM_KEY_FILE
#include WEFT_PARAM_KEY_FILE
#endif

#if IS_USED(MODULE_AUTO_INIT_WEFT) && THREAD_STACKSIZE_MAIN < 2560
#error "Opening a plan takes up to 2 KiB of stack, and auto_init does it on main's: set \
CFLAGS += -DTHREAD_STACKSIZE_MAIN=3072, or DISABLE_MODULE += auto_init_weft"
#endif

/* After everything of RIOT's own. */
#define AUTO_INIT_PRIO_MOD_WEFT 1900

static uint8_t arena[CONFIG_WEFT_ARENA_SIZE] __attribute__((aligned(64)));
static uint8_t buffer[CONFIG_WEFT_BUFFER_SIZE] __attribute__((aligned(8)));

static weft_update_config_t config;
static weft_update_t update;
static weft_plan_t plan;
static weft_service_status_t now = {.arena_size = sizeof arena, .report.error.code = WEFT_ERR_NO_PLAN};

/* Of plan, arena and `now`. Who holds it may take update_lock, never the other way round. */
static mutex_t lock = MUTEX_INIT;
static kernel_pid_t owner = KERNEL_PID_UNDEF;
/* Of the update core and its buffer: a transfer goes on while a plan runs. */
static mutex_t update_lock = MUTEX_INIT;
/* Taken before any other, and not in callbacks of a run: while the application holds it, transports wait. */
static rmutex_t gate = RMUTEX_INIT;
static volatile uint8_t aborted;

__attribute__((weak)) void weft_service_feed(void)
{
}

static bool enter(void)
{
    if (owner == thread_getpid()) {
        return false;
    }
    mutex_lock(&lock);
    owner = thread_getpid();
    return true;
}

static void leave(void)
{
    owner = KERNEL_PID_UNDEF;
    mutex_unlock(&lock);
}

/* ---------------------------------------------------------------- boot */

static void fill_report(weft_slot_report_t *report, const weft_plan_t *of)
{
    weft_plan_info_t info;
    weft_plan_info(of, &info);
    memcpy(report->model_id, info.model_id, sizeof report->model_id);
    report->plan_version = info.plan_version;
    report->plan_bytes = info.total_len;
    report->arena_bytes = info.arena_bytes;
    report->macs = info.macs;
    report->base_macs = info.base_macs;
}

/* `r` is the outcome of opening `slot`, `where` of what was found wrong. */
static void make_report(weft_slot_report_t *report, unsigned slot, const weft_plan_t *of, int r,
                        const weft_error_t *where)
{
    memset(report, 0, sizeof *report);
    report->in_place = config.ram[slot] == NULL;
    report->error = *where;
    report->error.code = r;
    if (r == WEFT_OK) {
        fill_report(report, of);
        return;
    }
    if (r == WEFT_ERR_MAGIC && weft_storage_empty(config.hal, slot)) {
        report->error = (weft_error_t){.code = WEFT_ERR_NO_PLAN, .record = WEFT_NONE};
    }
    if (r == WEFT_ERR_LIMIT) {
        uint32_t head[WEFT_HEADER_SIZE / sizeof(uint32_t)];
        const uint8_t *bytes = (const uint8_t *)head;
        if (config.hal->read(config.hal->ctx, slot, 0, head, sizeof head) == 0) {
            memcpy(report->model_id, bytes + WEFT_HEADER_MODEL_ID, sizeof report->model_id);
            report->plan_version = weft_rd32(bytes + WEFT_HEADER_PLAN_VERSION);
            report->plan_bytes = weft_rd32(bytes + WEFT_HEADER_TOTAL_LEN);
            report->arena_bytes = weft_rd32(bytes + WEFT_HEADER_ARENA_BYTES);
        }
    }
}

static void log_report(unsigned slot, const weft_slot_report_t *report)
{
    int code = report->error.code;
    if (code == WEFT_OK) {
        /* Thousandths, for a printf without floating point and 64 bits. */
        uint32_t f = (uint32_t)((report->macs * 1000u + report->base_macs / 2u) / report->base_macs);
        LOG_INFO("weft: slot %c: model %02x%02x%02x%02x version %" PRIu32 ", %" PRIu32 " bytes %s, arena %" PRIu32
                 " of %u bytes, F = %" PRIu32 ".%03" PRIu32 "\n",
                 "ab"[slot], report -> model_id[0], report -> model_id[1], report -> model_id[2], report -> model_id[3],
                 report -> plan_version, report -> plan_bytes, report -> in_place ? "in place" : "copied to RAM",
                 report->arena_bytes, (unsigned)sizeof arena, f / 1000u, f % 1000u);
        return;
    }
    LOG_ERROR("weft: slot %c: %s: %s", "ab"[slot], weft_error_name(code), weft_error_message(code));
    if (report->error.record != WEFT_NONE) {
        LOG_ERROR(" (record %u, offset %" PRIu32 ")", report->error.record, report->error.offset);
    }
    LOG_ERROR("\n");
    if (code == WEFT_ERR_OPCODE && report->error.opcode != 0) {
        LOG_ERROR("weft: the build lacks %s: add it to WEFT_OPS\n", weft_operator_name(report->error.opcode));
    }
    if (code == WEFT_ERR_LIMIT && report->arena_bytes > sizeof arena) {
        LOG_ERROR("weft: the plan's arena takes %" PRIu32 " bytes, CONFIG_WEFT_ARENA_SIZE is %u\n", report->arena_bytes,
                  (unsigned)sizeof arena);
    }
    LOG_ERROR("weft: try: %s\n", weft_error_remedy(code));
}

#if CONFIG_WEFT_SELFTEST_MS > 0
/* Deadline of a self-test; it begins anew whenever a plan is opened. */
static uint32_t selftest_begun;

static int in_time(void *ctx)
{
    (void)ctx;
    return ztimer_now(ZTIMER_USEC) - selftest_begun > CONFIG_WEFT_SELFTEST_MS * US_PER_MS;
}
#endif

static int configure(void)
{
    const char *why;
    config.hal = weft_storage(&why);
    if (config.hal == NULL) {
        LOG_ERROR("weft: %s\n", why);
        return WEFT_ERR_FLASH;
    }
    config.buffer = buffer;
    config.buffer_len = sizeof buffer;
    config.arena = arena;
    config.arena_len = sizeof arena;
    config.ram[0] = weft_storage_ram(0);
    config.ram[1] = weft_storage_ram(1);
    config.key[0] = WEFT_PARAM_KEY_0;
    config.key[1] = WEFT_PARAM_KEY_1;
    config.vendor = WEFT_PARAM_VENDOR;
    config.device = WEFT_PARAM_CLASS;
    config.limits.row_steps = CONFIG_WEFT_ROW_STEPS_MAX;
    config.limits.macs = UINT64_C(1000000) * CONFIG_WEFT_MMACS_MAX;
    config.confirm_after = CONFIG_WEFT_CONFIRM_AFTER;
    config.idle_seconds = CONFIG_WEFT_IDLE_SECONDS;
#if CONFIG_WEFT_SELFTEST_MS > 0
    config.step = in_time;
#endif
    int r = weft_update_init(&update, &config);
    if (r != WEFT_OK) {
        LOG_ERROR("weft: CONFIG_WEFT_BUFFER_SIZE or CONFIG_WEFT_SLOT_SIZE does not suit the storage device\n");
    }
    return r;
}

/* Decide what runs and open it; with both locks. `r` is what configuring ended with. */
static void open_active(int r)
{
    weft_boot_t boot = {0};
    unsigned slot = 0;
    if (r == WEFT_OK) {
        ztimer_acquire(ZTIMER_USEC);
#if CONFIG_WEFT_SELFTEST_MS > 0
        selftest_begun = ztimer_now(ZTIMER_USEC);
#endif
        r = weft_activation_boot(&update, &plan, &boot, &slot);
        ztimer_release(ZTIMER_USEC);
        make_report(&now.report, slot, &plan, r, &boot.where);
        log_report(slot, &now.report);
    } else {
        now.report.error = (weft_error_t){.code = r, .record = WEFT_NONE};
    }
    if (boot.trial_error != WEFT_OK) {
        LOG_ERROR("weft: the plan on trial was reverted: %s: %s\n", weft_error_name(boot.trial_error),
                  weft_error_message(boot.trial_error));
    }
    now.slot = slot;
}

int weft_service_boot(void)
{
    if (!enter()) {
        return WEFT_ERR_BUSY;
    }
    if (IS_ACTIVE(CONFIG_WEFT_ALLOW_UNSIGNED)) {
        LOG_WARNING("weft: plans need no signature (CONFIG_WEFT_ALLOW_UNSIGNED)\n");
    }
    mutex_lock(&update_lock);
    open_active(configure());
    mutex_unlock(&update_lock);
    int r = now.report.error.code;
    leave();
    return r;
}

#if IS_USED(MODULE_AUTO_INIT_WEFT)
static void boot_by_auto_init(void)
{
    (void)weft_service_boot();
}
AUTO_INIT(boot_by_auto_init, AUTO_INIT_PRIO_MOD_WEFT);
#endif

/* ---------------------------------------------------------------- slots */

int weft_service_select(unsigned slot, weft_error_t *error)
{
    weft_error_t ignored;
    weft_plan_t next;
    error = error != NULL ? error : &ignored;
    *error = (weft_error_t){.code = WEFT_OK, .record = WEFT_NONE};
    if (slot >= WEFT_SLOT_COUNT) {
        return weft_fail(error, WEFT_ERR_ARG, WEFT_NONE, 0);
    }
    if (!enter()) {
        return weft_fail(error, WEFT_ERR_BUSY, WEFT_NONE, 0);
    }
    mutex_lock(&update_lock);
    int r = config.hal == NULL ? weft_fail(error, WEFT_ERR_FLASH, WEFT_NONE, 0)
                               : weft_activation_select(&update, slot, &next, error);
    if (r == WEFT_OK) {
        plan = next;
        now.slot = slot;
        make_report(&now.report, slot, &plan, r, error);
    } else if (r == WEFT_ERR_MAGIC && weft_storage_empty(config.hal, slot)) {
        r = weft_fail(error, WEFT_ERR_NO_PLAN, WEFT_NONE, 0);
    }
    mutex_unlock(&update_lock);
    leave();
    return r;
}

/* The plan on trial runs: true once weft_update_boot() handed it out, until it is confirmed or given up. */
static bool trial_runs(const weft_update_status_t *status)
{
    return status->running < WEFT_SLOT_COUNT && status->running != status->active;
}

void weft_service_status(weft_service_status_t *status)
{
    weft_update_status_t core;
    bool entered = enter();
    *status = now;
    if (entered) {
        leave();
    }
    mutex_lock(&update_lock);
    weft_update_status(&update, &core);
    mutex_unlock(&update_lock);
    status->trial = core.state == WEFT_SLOT_TRIAL && trial_runs(&core);
}

/* What was decided asks for another plan to be opened. With update_lock. */
static bool outdated(void)
{
    weft_update_status_t status;
    weft_update_status(&update, &status);
    return trial_runs(&status) ? status.state != WEFT_SLOT_TRIAL
                               : IS_ACTIVE(CONFIG_WEFT_TRY_AT_ONCE) && status.state == WEFT_SLOT_TRIAL;
}

/* With both locks. */
static void catch_up(void)
{
    if (config.hal != NULL && outdated()) {
        open_active(WEFT_OK);
    }
}

int weft_service_update(weft_service_update_fn fn, void *ctx)
{
    bool waits = owner != thread_getpid();
    if (waits) {
        rmutex_lock(&gate);
    }
    mutex_lock(&update_lock);
    int r = config.hal == NULL ? WEFT_ERR_FLASH : fn(&update, ctx);
    bool late = config.hal != NULL && outdated();
    mutex_unlock(&update_lock);
    if (waits) {
        rmutex_unlock(&gate);
    }
    /* In a callback of a run, the end of the run does it. */
    if (late && enter()) {
        mutex_lock(&update_lock);
        catch_up();
        mutex_unlock(&update_lock);
        leave();
    }
    return r;
}

void weft_service_hold_updates(void)
{
    rmutex_lock(&gate);
}

void weft_service_release_updates(void)
{
    rmutex_unlock(&gate);
}

int weft_service_inspect(unsigned slot, weft_slot_report_t *report)
{
    uint8_t digest[32];
    weft_plan_t other;
    weft_error_t where = {.record = WEFT_NONE};
    memset(report, 0, sizeof *report);
    report->error.record = WEFT_NONE;
    if (slot >= WEFT_SLOT_COUNT || !enter()) {
        return report->error.code = slot >= WEFT_SLOT_COUNT ? WEFT_ERR_ARG : WEFT_ERR_BUSY;
    }
    if (config.hal == NULL) {
        report->error.code = WEFT_ERR_FLASH;
    } else if (slot == now.slot && now.report.error.code == WEFT_OK) {
        *report = now.report;
    } else {
        mutex_lock(&update_lock);
        int r =
            weft_update_verify(&update, slot, WEFT_CHECK_SIGNATURE | WEFT_CHECK_HASHES, NULL, digest, &other, &where);
        make_report(report, slot, &other, r, &where);
        mutex_unlock(&update_lock);
    }
    leave();
    return report->error.code;
}

/* ---------------------------------------------------------------- runs */

static int next_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    const weft_job_t *job = ctx;
    if (job->inputs != NULL && job->inputs[input] != NULL) {
        memcpy(dst, job->inputs[input] + (size_t)row * nbytes, nbytes);
        return 0;
    }
    return job->rows == NULL ? -1 : job->rows(job->ctx, input, row, dst, nbytes);
}

static int after_step(void *ctx)
{
    const weft_job_t *job = ctx;
    thread_yield();
    return aborted || (job->step != NULL && job->step(job->ctx) != 0);
}

static void around_stage(void *ctx, unsigned stage, int begin)
{
    const weft_job_t *job = ctx;
    if (stage < job->stage_count) {
        uint32_t usec = ztimer_now(ZTIMER_USEC);
        job->stage_usec[stage] += begin ? -usec : usec;
    }
}

static int place_inputs(weft_job_t *job)
{
    for (unsigned i = 0; i < weft_input_count(&plan); i++) {
        weft_tensor_info_t info;
        weft_input_info(&plan, i, &info);
        size_t row = (size_t)info.w * info.c;
        int8_t *at = (int8_t *)arena + weft_input_offset(&plan, i);
        bool whole = job->inputs != NULL && job->inputs[i] != NULL;
        switch (weft_input_mode(&plan, i)) {
        case WEFT_INPUT_RESIDENT:
            for (unsigned y = 0; y < info.h; y++) {
                if (next_row(job, i, y, at + y * row, row) != 0) {
                    return whole || job->rows != NULL ? WEFT_ERR_INPUT : WEFT_ERR_IO;
                }
            }
            break;
        case WEFT_INPUT_STREAMED:
            if (!whole && job->rows == NULL) {
                return WEFT_ERR_IO;
            }
            break;
        case WEFT_INPUT_EXTERNAL:
            if (!whole) {
                return WEFT_ERR_IO;
            }
            break;
        }
    }
    return WEFT_OK;
}

static int run(weft_job_t *job, uint32_t *usec)
{
    const weft_io_t io = {
        .ctx = job,
        .input_fn = next_row,
        .external = job->inputs,
        .step_fn = after_step,
        .profile_fn = job->stage_usec != NULL ? around_stage : NULL,
    };
    int r = job->begin != NULL && job->begin(job, &plan) != 0 ? WEFT_ERR_ABORTED : place_inputs(job);
    uint32_t begun = ztimer_now(ZTIMER_USEC);
    r = r != WEFT_OK ? r : weft_run(&plan, arena, sizeof arena, &io);
    *usec = ztimer_now(ZTIMER_USEC) - begun;
    if (r == WEFT_OK) {
        now.runs++;
        now.usec = *usec;
        /*
         * A transfer's step, which may erase or read back a slot, must not make inference wait: this run just does not
         * count then. If a confirmation cannot be written, the plan stays on trial.
         */
        if (mutex_trylock(&update_lock) == 1) {
            (void)weft_update_healthy(&update);
            mutex_unlock(&update_lock);
        }
    } else {
        now.failures++;
    }
    return r;
}

int weft_service_run(weft_job_t *job)
{
    if (!enter()) {
        return WEFT_ERR_BUSY;
    }
    aborted = 0;
    weft_result_t result = {.status = WEFT_ERR_NO_PLAN};
    ztimer_acquire(ZTIMER_USEC);
    if (now.report.error.code == WEFT_OK) {
        result.plan = &plan;
        result.arena = (const int8_t *)arena;
        result.status = run(job, &result.usec);
    }
    if (job->done != NULL) {
        job->done(job, &result);
    }
    ztimer_release(ZTIMER_USEC);
    /* Who has the lock looks himself afterwards. */
    if (mutex_trylock(&update_lock) == 1) {
        catch_up();
        mutex_unlock(&update_lock);
    }
    leave();
    return result.status;
}

void weft_service_abort(void)
{
    aborted = 1;
}

int weft_service_selftest(void)
{
    size_t len;
    if (!enter()) {
        return WEFT_ERR_BUSY;
    }
#if CONFIG_WEFT_SELFTEST_MS > 0
    selftest_begun = ztimer_now(ZTIMER_USEC);
#endif
    int r = now.report.error.code != WEFT_OK                           ? WEFT_ERR_NO_PLAN
            : weft_section(&plan, WEFT_SECTION_SELFTEST, &len) == NULL ? WEFT_ERR_ARG
                                                                       : weft_update_selftest(&config, &plan);
    leave();
    return r;
}

const int8_t *weft_result_output(const weft_result_t *result, unsigned output, weft_tensor_info_t *info)
{
    if (result->status != WEFT_OK || weft_output_info(result->plan, output, info) != WEFT_OK) {
        return NULL;
    }
    return result->arena + weft_output_offset(result->plan, output);
}
