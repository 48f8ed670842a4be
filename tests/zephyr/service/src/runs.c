/* SPDX-License-Identifier: Apache-2.0 */
/* Runs: threads, the work queue, ends before the end. */
#include "common.h"

#define THREADS 3
#define ROUNDS 4
#define STACK 4096

static void *setup(void)
{
	boot_both();
	return NULL;
}

/* ---------------------------------------------------------------- how a run ends */

static int failing_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	ARG_UNUSED(ctx);
	ARG_UNUSED(input);
	ARG_UNUSED(dst);
	ARG_UNUSED(nbytes);
	return row == 3 ? -EIO : 0;
}

static int abort_now(void *ctx)
{
	ARG_UNUSED(ctx);
	weft_service_abort(NULL);
	return 0;
}

static int refuse_step(void *ctx)
{
	ARG_UNUSED(ctx);
	return 1;
}

static int refuse_begin(struct weft_job *job, const weft_plan_t *plan)
{
	ARG_UNUSED(job);
	ARG_UNUSED(plan);
	return 1;
}

ZTEST(weft_runs, test_ends)
{
	struct probe probe;

	probe_init(&probe);
	probe.job.rows = NULL;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_IO);
	probe_init(&probe);
	probe.job.rows = failing_row;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_INPUT);
	probe_init(&probe);
	probe.job.step = refuse_step;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_ABORTED);
	probe_init(&probe);
	probe.job.begin = refuse_begin;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_ABORTED);
	probe_init(&probe);
	probe.job.step = abort_now;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_ABORTED);
	zassert_equal(probe.done, 1);
	zassert_equal(probe.status, WEFT_ERR_ABORTED);
	/* And the next run is not touched by any of it. */
	probe_init(&probe);
	zassert_ok(weft_service_run(&probe.job));
	zassert_equal(probe.crc, expected_crc(plan_a, plan_a_len));
}

ZTEST(weft_runs, test_abort_before_the_run)
{
	struct probe probe;

	probe_init(&probe);
	weft_service_abort(&probe.job);
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_ABORTED);
	zassert_equal(probe.rows, 0);
	zassert_ok(weft_service_run(&probe.job));
}

static int nested(struct weft_job *job, const weft_plan_t *plan)
{
	struct probe inner;
	weft_error_t error;

	ARG_UNUSED(plan);
	probe_init(&inner);
	zassert_equal(weft_service_run(&inner.job), WEFT_ERR_BUSY);
	zassert_equal(weft_service_select(SLOT_B, false, &error), WEFT_ERR_BUSY);
	CONTAINER_OF(job, struct probe, job)->state = 1;
	return 1;
}

ZTEST(weft_runs, test_callbacks_cannot_take_the_arena)
{
	struct probe probe;

	probe_init(&probe);
	probe.job.begin = nested;
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_ABORTED);
	zassert_equal(probe.state, 1);
}

ZTEST(weft_runs, test_whole_inputs_by_pointer)
{
	static int8_t image[4096];
	static const int8_t *const inputs[] = {image};
	struct probe probe, pointed;
	weft_plan_t plan;
	weft_tensor_info_t info;

	zassert_ok(weft_open(&plan, plan_a, plan_a_len, NULL, NULL));
	zassert_ok(weft_input_info(&plan, 0, &info));
	zassert_true((size_t)info.h * info.w * info.c <= sizeof(image));
	probe_init(&probe);
	zassert_ok(probe.job.begin(&probe.job, &plan));
	for (unsigned int y = 0; y < info.h; y++) {
		size_t row = (size_t)info.w * info.c;

		zassert_ok(probe.job.rows(&probe, 0, y, image + y * row, row));
	}
	probe_init(&pointed);
	pointed.job.rows = NULL;
	pointed.job.inputs = inputs;
	zassert_ok(weft_service_run(&pointed.job));
	zassert_equal(pointed.crc, expected_crc(plan_a, plan_a_len));
}

ZTEST(weft_runs, test_stage_cycles)
{
	uint32_t cycles[64] = {0};
	struct weft_service_status status;
	struct probe probe;
	uint64_t sum = 0;

	probe_init(&probe);
	probe.job.stage_cycles = cycles;
	probe.job.stage_count = ARRAY_SIZE(cycles);
	zassert_ok(weft_service_run(&probe.job));
	weft_service_status(&status);
	for (size_t i = 0; i < ARRAY_SIZE(cycles); i++) {
		sum += cycles[i];
	}
	zassert_true(sum <= status.cycles);
	/* On native_sim no time passes while code runs. */
	zassert_true(IS_ENABLED(CONFIG_ARCH_POSIX) || sum > 0);
}

/* ---------------------------------------------------------------- threads */

K_THREAD_STACK_ARRAY_DEFINE(stacks, THREADS, STACK);
static struct k_thread threads[THREADS];
static struct probe probes[THREADS];
static unsigned int wrong[THREADS];

static void work(void *number, void *expected, void *unused)
{
	unsigned int i = POINTER_TO_UINT(number);

	ARG_UNUSED(unused);
	for (unsigned int round = 0; round < ROUNDS; round++) {
		probe_init(&probes[i]);
		wrong[i] += weft_service_run(&probes[i].job) != WEFT_OK;
		wrong[i] += probes[i].crc != POINTER_TO_UINT(expected);
	}
}

ZTEST(weft_runs, test_threads_take_turns)
{
	uint32_t expected = expected_crc(plan_a, plan_a_len);

	for (unsigned int i = 0; i < THREADS; i++) {
		wrong[i] = 0;
		(void)k_thread_create(&threads[i], stacks[i], STACK, work, UINT_TO_POINTER(i),
				      UINT_TO_POINTER(expected), NULL, K_PRIO_PREEMPT(1), 0,
				      K_NO_WAIT);
	}
	for (unsigned int i = 0; i < THREADS; i++) {
		zassert_ok(k_thread_join(&threads[i], K_SECONDS(60)));
		zassert_equal(wrong[i], 0, "thread %u", i);
	}
}

static volatile unsigned int counted;
static unsigned int counted_during;
static volatile bool counting;

static void count(void *a, void *b, void *c)
{
	ARG_UNUSED(a);
	ARG_UNUSED(b);
	ARG_UNUSED(c);
	while (counting) {
		counted++;
		k_yield();
	}
}

/* Without time slices, a thread of the same priority runs only because the engine lets it. */
ZTEST(weft_runs, test_yields_between_steps)
{
	struct probe probe;

	counting = true;
	counted = 0;
	(void)k_thread_create(&threads[0], stacks[0], STACK, count, NULL, NULL, NULL,
			      k_thread_priority_get(k_current_get()), 0, K_NO_WAIT);
	probe_init(&probe);
	zassert_ok(weft_service_run(&probe.job));
	counted_during = counted;
	counting = false;
	zassert_ok(k_thread_join(&threads[0], K_SECONDS(10)));
	zassert_true(counted_during > 10, "%u turns", counted_during);
}

ZTEST(weft_runs, test_work_queue)
{
	static struct probe first, second;

	probe_init(&first);
	probe_init(&second);
	zassert_ok(weft_service_submit(&first.job));
	zassert_equal(weft_service_submit(&first.job), WEFT_ERR_BUSY);
	zassert_ok(weft_service_submit(&second.job));
	weft_service_abort(&second.job);
	for (unsigned int i = 0; i < 100 && second.done == 0; i++) {
		k_msleep(100);
	}
	zassert_equal(first.done, 1);
	zassert_ok(first.status);
	zassert_equal(first.crc, expected_crc(plan_a, plan_a_len));
	zassert_not_equal(first.thread, k_current_get());
	zassert_equal(second.done, 1);
	zassert_equal(second.status, WEFT_ERR_ABORTED);
	/* A job may be used again once it is done. */
	zassert_ok(weft_service_submit(&second.job));
	for (unsigned int i = 0; i < 100 && second.done == 1; i++) {
		k_msleep(100);
	}
	zassert_ok(second.status);
}

ZTEST_SUITE(weft_runs, NULL, setup, NULL, NULL, NULL);
