/* SPDX-License-Identifier: Apache-2.0 */
/* The open plan, its arena, and who may use them when. */
#include <string.h>
#include <zephyr/init.h>
#include <zephyr/kernel.h>
#include <zephyr/logging/log.h>
#include <zephyr/sys/byteorder.h>

#include "weft_zephyr.h"

#include "weft_format.h"

LOG_MODULE_REGISTER(weft, CONFIG_WEFT_LOG_LEVEL);

#define ARENA_ALIGN 64

#ifdef CONFIG_WEFT_ARENA_STATIC
static uint8_t arena_bytes[CONFIG_WEFT_ARENA_SIZE] __aligned(ARENA_ALIGN);
#endif

/* Everything below is the lock's, but `status`, which the spinlock guards, and the atomics. */
static K_MUTEX_DEFINE(lock);
static struct k_spinlock status_lock;
static struct weft_service_status status = {
	.report.error = {.code = WEFT_ERR_NO_PLAN, .record = 0xffff}};
static weft_plan_t plan;
static uint8_t *arena;
static size_t arena_len;
static k_tid_t runner;
static atomic_t abort_current;

static const weft_limits_t limits = {
#ifdef CONFIG_WEFT_ARENA_STATIC
	.arena_bytes = CONFIG_WEFT_ARENA_SIZE,
#else
	.arena_bytes = CONFIG_HEAP_MEM_POOL_SIZE,
#endif
	.row_steps = CONFIG_WEFT_ROW_STEPS_MAX,
	.macs = CONFIG_WEFT_MMACS_MAX * UINT64_C(1000000),
};

/* ---------------------------------------------------------------- slots */

static void describe(const weft_plan_t *of, struct weft_slot_report *report)
{
	weft_plan_info_t info;

	weft_plan_info(of, &info);
	memcpy(report->model_id, info.model_id, sizeof(report->model_id));
	report->plan_version = info.plan_version;
	report->plan_bytes = info.total_len;
	report->arena_bytes = info.arena_bytes;
	report->macs = info.macs;
	report->base_macs = info.base_macs;
}

/* Verify a slot's plan and say what it is. */
static int examine(unsigned int slot, weft_plan_t *into, struct weft_slot_report *report)
{
	const uint8_t *bytes;
	size_t len;

	memset(report, 0, sizeof(*report));
	report->error.record = 0xffff;
	report->error.code = weft_slots_bytes(slot, &bytes, &len);
	if (report->error.code == WEFT_OK) {
		report->error.code = weft_open(into, bytes, len, &limits, &report->error);
		report->in_place = weft_slots_hal()->mapped(NULL, slot) != NULL;
		if (report->error.code == WEFT_OK) {
			describe(into, report);
		} else if (report->error.code == WEFT_ERR_LIMIT) {
			report->arena_bytes = sys_get_le32(bytes + WEFT_HEADER_ARENA_BYTES);
		}
	}
	return report->error.code;
}

#ifndef CONFIG_WEFT_UPDATE

static int allocate(struct weft_slot_report *report)
{
#ifdef CONFIG_WEFT_ARENA_STATIC
	arena = arena_bytes;
	arena_len = sizeof(arena_bytes);
#else
	k_free(arena);
	arena_len = weft_arena_size(&plan);
	arena = k_aligned_alloc(ARENA_ALIGN, arena_len);
	if (arena == NULL) {
		report->error.code = WEFT_ERR_ARENA_SIZE;
	}
#endif
	if (weft_arena_align(&plan) > ARENA_ALIGN) {
		report->error.code = WEFT_ERR_ALIGN;
	}
	return report->error.code;
}

#endif

#ifdef CONFIG_WEFT_SELFTEST

/* The open plan's own test, in the arena; with the lock. */
static int selftest(void)
{
	const weft_update_config_t config = {
		.hal = weft_slots_hal(),
		.arena = arena,
		.arena_len = arena_len,
		.limits = limits,
	};

	return weft_update_selftest(&config, &plan);
}

#endif

static void tell(unsigned int slot, const struct weft_slot_report *report)
{
	const int code = report->error.code;

	if (code == WEFT_OK) {
		uint32_t overhead = (uint32_t)(report->macs * 1000U / MAX(report->base_macs, 1U));

		LOG_INF("slot %c: model %08x, plan version %u, %u bytes %s", "ab"[slot],
			sys_get_be32(report->model_id), report -> plan_version,
			report -> plan_bytes, report -> in_place ? "in place" : "copied to RAM");
		LOG_INF("arena %u of %zu bytes, F %u.%03u", report->arena_bytes, arena_len,
			overhead / 1000U, overhead % 1000U);
		return;
	}
	if (code == WEFT_ERR_NO_PLAN) {
		LOG_ERR("slot %c is empty; to do: write a plan made by `weft plan` into it",
			"ab"[slot]);
		return;
	}
	LOG_ERR("slot %c: %s (record %d, offset %u): %s", "ab"[slot], weft_error_name(code),
		report -> error.record == 0xffff ? -1 : report->error.record, report->error.offset,
		weft_error_message(code));
	if (code == WEFT_ERR_OPCODE && report->error.opcode != 0) {
		LOG_ERR("the build lacks %s: set CONFIG_WEFT_WITH_%s",
			weft_operator_name(report->error.opcode),
			weft_operator_name(report->error.opcode));
	}
	if (code == WEFT_ERR_LIMIT && report->arena_bytes > limits.arena_bytes) {
		LOG_ERR("the plan needs an arena of %u bytes, %s is %u", report->arena_bytes,
			IS_ENABLED(CONFIG_WEFT_ARENA_STATIC) ? "CONFIG_WEFT_ARENA_SIZE"
							     : "CONFIG_HEAP_MEM_POOL_SIZE",
			limits.arena_bytes);
	}
	LOG_ERR("to do: %s", weft_error_remedy(code));
}

static void publish(unsigned int slot, const struct weft_slot_report *report)
{
	tell(slot, report);
	K_SPINLOCK(&status_lock)
	{
		status.slot = slot;
		status.report = *report;
#ifdef CONFIG_WEFT_ARENA_STATIC
		status.arena_size = CONFIG_WEFT_ARENA_SIZE;
#endif
	}
}

#ifdef CONFIG_WEFT_UPDATE

/* Open what the update core's journal says; with the lock. */
static int open_active(void)
{
	struct weft_slot_report report = {.error.record = 0xffff};
	weft_boot_t boot;

	arena = arena_bytes;
	arena_len = sizeof(arena_bytes);
	report.error.code = weft_updates_boot(arena, arena_len, &limits, &plan, &boot);
	if (boot.trial_error != WEFT_OK) {
		LOG_ERR("the trial was reverted: %s: %s", weft_error_name(boot.trial_error),
			weft_error_message(boot.trial_error));
	}
	if (boot.active_error != WEFT_OK && report.error.code == WEFT_OK) {
		LOG_ERR("the active plan is damaged (%s), the one before it runs again",
			weft_error_name(boot.active_error));
	}
	if (report.error.code == WEFT_OK) {
		describe(&plan, &report);
		report.in_place = weft_slots_hal()->mapped(NULL, boot.slot) != NULL;
	} else if (boot.where.code == report.error.code) {
		report.error = boot.where;
	}
	report.trial = boot.trial != 0;
	publish(boot.slot == WEFT_SLOT_NONE ? 0 : boot.slot, &report);
	if (report.trial) {
		LOG_INF("on trial, run %u of %u; %u good inferences confirm it", boot.tries,
			WEFT_UPDATE_TRIES, CONFIG_WEFT_UPDATE_CONFIRM_AFTER);
	}
	return report.error.code;
}

#else

/* Open a slot's plan; with the lock. */
static int open_slot(unsigned int slot)
{
	struct weft_slot_report report;

	if (examine(slot, &plan, &report) == WEFT_OK) {
		(void)allocate(&report);
#ifdef CONFIG_WEFT_BOOT_SELFTEST
		/* The verifier knows the structure only; this is what notices weights that are
		 * damaged or missing. */
		if (report.error.code == WEFT_OK) {
			report.error.code = selftest();
		}
		if (report.error.code == WEFT_ERR_IO) {
			LOG_WRN("slot %c: no self-test, for the plan reads its input in place",
				"ab"[slot]);
			report.error.code = WEFT_OK;
		}
#endif
	}
	publish(slot, &report);
	return report.error.code;
}

static int open_active(void)
{
	return open_slot(weft_state_load());
}

#endif

/* A callback of a run must not take the arena from under it; the lock alone would let its own
 * thread in. */
static int take(void)
{
	if (k_is_in_isr()) {
		return WEFT_ERR_STATE;
	}
	if (runner == k_current_get()) {
		return WEFT_ERR_BUSY;
	}
	(void)k_mutex_lock(&lock, K_FOREVER);
	return WEFT_OK;
}

int weft_service_boot(void)
{
	int r = take();

	if (r == WEFT_OK) {
		r = open_active();
		k_mutex_unlock(&lock);
	}
	return r;
}

#ifdef CONFIG_WEFT_UPDATE

int weft_service_select(unsigned int slot, bool keep, weft_error_t *error)
{
	weft_error_t found = {.code = WEFT_ERR_STATE, .record = 0xffff};
	struct weft_service_status now;

	ARG_UNUSED(keep);
	weft_service_status(&now);
	if (slot >= WEFT_SLOT_COUNT) {
		found.code = WEFT_ERR_ARG;
	} else if (now.slot == slot && now.report.error.code == WEFT_OK) {
		found.code = WEFT_OK;
	}
	if (error != NULL) {
		*error = found;
	}
	return found.code;
}

#else

int weft_service_select(unsigned int slot, bool keep, weft_error_t *error)
{
	weft_error_t found = {.code = WEFT_ERR_ARG, .record = 0xffff};

	if (slot < WEFT_SLOT_COUNT) {
		found.code = take();
	}
	if (found.code == WEFT_OK) {
		unsigned int before = status.slot;

		if (open_slot(slot) != WEFT_OK) {
			found = status.report.error;
			(void)open_slot(before);
		} else if (keep && weft_state_store(slot) != 0) {
			found.code = WEFT_ERR_FLASH;
		}
		k_mutex_unlock(&lock);
	}
	if (error != NULL) {
		*error = found;
	}
	return found.code;
}

#endif

int weft_service_inspect(unsigned int slot, struct weft_slot_report *report)
{
	weft_plan_t other;
	int r = slot < WEFT_SLOT_COUNT ? take() : WEFT_ERR_ARG;

	if (r != WEFT_OK) {
		memset(report, 0, sizeof(*report));
		report->error.code = r;
		return r;
	}
#ifdef CONFIG_WEFT_UPDATE
	/* An update is verified in the other slot's copy. */
	weft_updates_lock();
	r = examine(slot, &other, report);
	weft_updates_unlock();
#else
	r = examine(slot, &other, report);
	/* The one copy in RAM may hold the other slot's bytes now. */
	if (weft_slots_ram(slot) != NULL && status.report.error.code == WEFT_OK) {
		struct weft_slot_report again;

		status.report.error.code = examine(status.slot, &plan, &again);
	}
#endif
	k_mutex_unlock(&lock);
	return r;
}

void weft_service_status(struct weft_service_status *out)
{
	K_SPINLOCK(&status_lock)
	{
		*out = status;
	}
}

/* ---------------------------------------------------------------- runs */

/* A run as the engine's callbacks see it. */
struct run {
	struct weft_job *job;
	uint32_t stage_began;
};

static int next_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	const struct weft_job *job = ((struct run *)ctx)->job;

	if (job->inputs != NULL && job->inputs[input] != NULL) {
		memcpy(dst, job->inputs[input] + (size_t)row * nbytes, nbytes);
		return 0;
	}
	return job->rows != NULL ? job->rows(job->ctx, input, row, dst, nbytes) : WEFT_ERR_IO;
}

static int after_step(void *ctx)
{
	struct weft_job *job = ((struct run *)ctx)->job;

	if (atomic_get(&abort_current) != 0 || atomic_get(&job->aborted) != 0) {
		return WEFT_ERR_ABORTED;
	}
	if (IS_ENABLED(CONFIG_WEFT_YIELD)) {
		k_yield();
	}
	return job->step != NULL ? job->step(job->ctx) : 0;
}

static void at_stage(void *ctx, unsigned int stage, int begin)
{
	struct run *run = ctx;

	if (begin != 0) {
		run->stage_began = k_cycle_get_32();
	} else if (stage < run->job->stage_count) {
		run->job->stage_cycles[stage] += k_cycle_get_32() - run->stage_began;
	}
}

/* Resident inputs go into the arena, row by row from wherever they come. */
static int place_inputs(struct run *run)
{
	weft_tensor_info_t info;

	for (unsigned int i = 0; i < weft_input_count(&plan); i++) {
		weft_input_mode_t mode = weft_input_mode(&plan, i);
		bool whole = run->job->inputs != NULL && run->job->inputs[i] != NULL;

		if (!whole && (mode == WEFT_INPUT_EXTERNAL || run->job->rows == NULL)) {
			return WEFT_ERR_IO;
		}
		if (mode != WEFT_INPUT_RESIDENT) {
			continue;
		}
		(void)weft_input_info(&plan, i, &info);
		for (unsigned int y = 0; y < info.h; y++) {
			size_t nbytes = (size_t)info.w * info.c;
			int8_t *dst = (int8_t *)arena + weft_input_offset(&plan, i) + y * nbytes;

			if (next_row(run, i, y, dst, nbytes) != 0) {
				return WEFT_ERR_INPUT;
			}
		}
	}
	return WEFT_OK;
}

static int infer(struct weft_job *job)
{
	struct run run = {.job = job};
	const weft_io_t io = {
		.ctx = &run,
		.input_fn = next_row,
		.external = job->inputs,
		.step_fn = after_step,
		.profile_fn = job->stage_cycles != NULL ? at_stage : NULL,
	};
	int r = status.report.error.code == WEFT_OK ? WEFT_OK : WEFT_ERR_NO_PLAN;

	if (r == WEFT_OK && atomic_get(&job->aborted) != 0) {
		r = WEFT_ERR_ABORTED;
	}
	if (r == WEFT_OK && job->begin != NULL && job->begin(job, &plan) != 0) {
		r = WEFT_ERR_ABORTED;
	}
	r = r != WEFT_OK ? r : place_inputs(&run);
	return r != WEFT_OK ? r : weft_run(&plan, arena, arena_len, &io);
}

int weft_service_run(struct weft_job *job)
{
	struct weft_result result = {0};
	uint32_t began;

	result.status = take();
	if (result.status != WEFT_OK) {
		return result.status;
	}
	runner = k_current_get();
	(void)atomic_clear(&abort_current);
	began = k_cycle_get_32();
	result.status = infer(job);
	result.cycles = k_cycle_get_32() - began;
	result.plan = status.report.error.code == WEFT_OK ? &plan : NULL;
	result.arena = arena;
	(void)atomic_clear(&job->aborted);
#ifdef CONFIG_WEFT_UPDATE
	if (result.status == WEFT_OK) {
		weft_updates_healthy();
	}
#endif
	K_SPINLOCK(&status_lock)
	{
		if (result.status == WEFT_OK) {
			status.runs++;
			status.cycles = result.cycles;
		} else {
			status.failures++;
		}
	}
	if (job->done != NULL) {
		job->done(job, &result);
	}
	runner = NULL;
	k_mutex_unlock(&lock);
	return result.status;
}

void weft_service_abort(struct weft_job *job)
{
	(void)atomic_set(job != NULL ? &job->aborted : &abort_current, 1);
}

const int8_t *weft_result_output(const struct weft_result *result, unsigned int output,
				 weft_tensor_info_t *info)
{
	if (result->status != WEFT_OK || weft_output_info(result->plan, output, info) != WEFT_OK) {
		return NULL;
	}
	return (const int8_t *)result->arena + weft_output_offset(result->plan, output);
}

#ifdef CONFIG_WEFT_SELFTEST

int weft_service_selftest(void)
{
	size_t len;
	int r = take();

	if (r != WEFT_OK) {
		return r;
	}
	if (status.report.error.code != WEFT_OK) {
		r = WEFT_ERR_NO_PLAN;
	} else if (weft_section(&plan, WEFT_SECTION_SELFTEST, &len) == NULL) {
		r = WEFT_ERR_ARG;
	} else {
		r = selftest();
	}
	k_mutex_unlock(&lock);
	return r;
}

#endif

#ifdef CONFIG_WEFT_WORKQUEUE

static K_THREAD_STACK_DEFINE(queue_stack, CONFIG_WEFT_WORKQUEUE_STACK_SIZE);
static struct k_work_q queue;

static void run_work(struct k_work *work)
{
	(void)weft_service_run(CONTAINER_OF(work, struct weft_job, work));
}

int weft_service_submit(struct weft_job *job)
{
	if (job->work.handler == NULL) {
		k_work_init(&job->work, run_work);
	}
	return k_work_submit_to_queue(&queue, &job->work) > 0 ? WEFT_OK : WEFT_ERR_BUSY;
}

#ifdef CONFIG_WEFT_UPDATE

static void reopen(struct k_work *work)
{
	ARG_UNUSED(work);
	(void)weft_service_boot();
}

static K_WORK_DEFINE(reopen_work, reopen);

void weft_service_reopen(void)
{
	(void)k_work_submit_to_queue(&queue, &reopen_work);
}

#endif

#endif

/* ---------------------------------------------------------------- start */

#if defined(CONFIG_WEFT_WORKQUEUE) || defined(CONFIG_WEFT_BOOT)

static int start(void)
{
#ifdef CONFIG_WEFT_WORKQUEUE
	const struct k_work_queue_config config = {.name = "weft"};

	k_work_queue_start(&queue, queue_stack, K_THREAD_STACK_SIZEOF(queue_stack),
			   CONFIG_WEFT_WORKQUEUE_PRIORITY, &config);
#endif
#ifdef CONFIG_WEFT_BOOT
	(void)weft_service_boot(); /* what is wrong was logged; the application goes on without a
				      plan */
#endif
	return 0;
}

SYS_INIT(start, APPLICATION, CONFIG_WEFT_INIT_PRIORITY);

#endif
