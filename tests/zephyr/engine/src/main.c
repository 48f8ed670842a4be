/* SPDX-License-Identifier: Apache-2.0 */
/* The engine alone, with a plan that is linked in. */
#include <zephyr/sys/byteorder.h>
#include <zephyr/sys/crc.h>
#include <zephyr/ztest.h>

#include <weft/weft.h>

#define ARENA 4096

/* A plan's section table and its SELFTEST record: docs/plan-format.md. */
#define SELFTEST 4
#define SELFTEST_SEED 0
#define SELFTEST_CRCS 8

static const uint8_t plan_bytes[] __aligned(WEFT_PLAN_ALIGN) = {
#include "plan.inc"
};
static uint8_t arena[ARENA] __aligned(64);

static int generate(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	uint32_t *state = ctx;

	ARG_UNUSED(input);
	ARG_UNUSED(row);
	for (size_t i = 0; i < nbytes; i++) {
		*state = *state * 1664525u + 1013904223u;
		dst[i] = (int8_t)(uint8_t)(*state >> 24);
	}
	return 0;
}

ZTEST(weft_engine, test_results_are_those_of_the_planner)
{
	weft_plan_t plan;
	weft_tensor_info_t info;
	weft_error_t error = {0};
	size_t len;
	uint32_t seed;

	zassert_ok(weft_open(&plan, plan_bytes, sizeof(plan_bytes), NULL, &error), "%s at %u",
		   weft_error_name(error.code), error.offset);
	zassert_true(weft_arena_size(&plan) <= sizeof(arena));

	const uint8_t *selftest = weft_section(&plan, SELFTEST, &len);

	zassert_not_null(selftest);
	seed = sys_get_le32(selftest + SELFTEST_SEED);

	const weft_io_t io = {.ctx = &seed, .input_fn = generate};

	zassert_ok(weft_run(&plan, arena, weft_arena_size(&plan), &io));
	zassert_ok(weft_output_info(&plan, 0, &info));
	zassert_equal(
		crc32_ieee(arena + weft_output_offset(&plan, 0), (size_t)info.h * info.w * info.c),
		sys_get_le32(selftest + SELFTEST_CRCS + 4U * weft_stage_count(&plan)));
}

ZTEST(weft_engine, test_one_byte_of_arena_less_is_refused)
{
	weft_plan_t plan;
	uint32_t seed = 0;
	const weft_io_t io = {.ctx = &seed, .input_fn = generate};

	zassert_ok(weft_open(&plan, plan_bytes, sizeof(plan_bytes), NULL, NULL));
	zassert_equal(weft_run(&plan, arena, weft_arena_size(&plan) - 1U, &io),
		      WEFT_ERR_ARENA_SIZE);
}

ZTEST(weft_engine, test_a_plan_cut_short_is_refused)
{
	weft_plan_t plan;

	zassert_equal(weft_open(&plan, plan_bytes, sizeof(plan_bytes) - 8U, NULL, NULL),
		      WEFT_ERR_TRUNCATED);
}

ZTEST_SUITE(weft_engine, NULL, NULL, NULL, NULL, NULL);
