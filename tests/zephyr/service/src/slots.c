/* SPDX-License-Identifier: Apache-2.0 */
/* Slots: good, bad, empty; which one is active. */
#include <string.h>
#include <zephyr/sys/byteorder.h>

#include "common.h"
#include "weft_zephyr.h"

static uint8_t damaged[24576] __aligned(4);

static void boots(unsigned int slot, uint32_t version, const uint8_t *plan_bytes, size_t len)
{
	struct weft_service_status status;
	struct probe probe;

	weft_service_status(&status);
	zassert_equal(status.slot, slot);
	zassert_ok(status.report.error.code);
	zassert_equal(status.report.plan_version, version);
	zassert_equal(status.report.plan_bytes, len);
	probe_init(&probe);
	zassert_ok(weft_service_run(&probe.job));
	zassert_equal(probe.crc, expected_crc(plan_bytes, len));
}

ZTEST(weft_slots, test_boots_slot_a_first)
{
	boot_both();
	boots(SLOT_A, 1, plan_a, plan_a_len);
}

ZTEST(weft_slots, test_other_bytes_are_another_model)
{
	boot_both();
	write_slot(SLOT_A, plan_b, plan_b_len);
	zassert_ok(weft_service_boot());
	boots(SLOT_A, 2, plan_b, plan_b_len);
}

/* One bad slot: plan_a with a 32-bit word changed. */
static const struct bad {
	const char *what;
	uint32_t offset; /* of the word */
	uint32_t value;
	int code;
} bad_slots[] = {
	{"not a plan", WEFT_HEADER_MAGIC, 0x31415926, WEFT_ERR_MAGIC},
	{"longer than the slot", WEFT_HEADER_TOTAL_LEN, 0x7ffffff8, WEFT_ERR_TRUNCATED},
	{"another ABI", WEFT_HEADER_ABI_MAJOR, 0x030000ff, WEFT_ERR_ABI},
	{"another format", WEFT_HEADER_FORMAT_MAJOR & ~3U, 0, WEFT_ERR_VERSION},
	{"too large an arena", WEFT_HEADER_ARENA_BYTES, 1U << 20, WEFT_ERR_LIMIT},
	{"arena smaller than the plan needs", WEFT_HEADER_ARENA_BYTES, 64, WEFT_ERR_ARENA},
	{"unknown capability", WEFT_HEADER_CAPABILITIES, 0x80000000, WEFT_ERR_UNKNOWN},
	{"a section elsewhere", WEFT_HEADER_SIZE + WEFT_SECTION_OFFSET, 0x7ffffff8,
	 WEFT_ERR_SECTION},
};

static void refuse(const char *what, int code)
{
	struct weft_service_status status;
	struct probe probe;

	zassert_not_equal(weft_service_boot(), WEFT_OK, "%s", what);
	weft_service_status(&status);
	zassert_equal(status.report.error.code, code, "%s: %s instead of %s", what,
		      weft_error_name(status.report.error.code), weft_error_name(code));
	zassert_true(strlen(weft_error_remedy(code)) > 0);
	/* The application goes on and is told. */
	probe_init(&probe);
	zassert_equal(weft_service_run(&probe.job), WEFT_ERR_NO_PLAN);
	zassert_equal(probe.done, 1);
	zassert_equal(probe.status, WEFT_ERR_NO_PLAN);
}

ZTEST(weft_slots, test_bad_slots_name_their_cause)
{
	boot_both();
	for (size_t i = 0; i < ARRAY_SIZE(bad_slots); i++) {
		const struct bad *bad = &bad_slots[i];

		zassert_true(plan_a_len <= sizeof(damaged));
		memcpy(damaged, plan_a, plan_a_len);
		sys_put_le32(bad->value, damaged + bad->offset);
		write_slot(SLOT_A, damaged, plan_a_len);
		refuse(bad->what, bad->code);
	}
}

ZTEST(weft_slots, test_empty_slot)
{
	boot_both();
	erase_slot(SLOT_A);
	refuse("erased", WEFT_ERR_NO_PLAN);
	memset(damaged, 0, 256);
	write_slot(SLOT_A, damaged, 256);
	refuse("zeros", WEFT_ERR_NO_PLAN);
	memset(damaged, 0xff, 256);
	write_slot(SLOT_A, damaged, 256);
	refuse("ones", WEFT_ERR_NO_PLAN);
}

ZTEST(weft_slots, test_plan_cut_short)
{
	boot_both();
	for (size_t len = 1024; len < plan_a_len; len += 1024) {
		struct weft_service_status status;

		write_slot(SLOT_A, plan_a, len);
		zassert_not_equal(weft_service_boot(), WEFT_OK, "%zu bytes", len);
		weft_service_status(&status);
		zassert_true(status.report.error.code < 0);
	}
}

ZTEST(weft_slots, test_damaged_weights)
{
	boot_both();
	memcpy(damaged, plan_a, plan_a_len);
	damaged[plan_a_len / 2] ^= 0x40;
	write_slot(SLOT_A, damaged, plan_a_len);
	refuse("weights", WEFT_ERR_SELFTEST);
}

ZTEST(weft_slots, test_select)
{
	weft_error_t error;

	boot_both();
	zassert_ok(weft_service_select(SLOT_B, false, &error));
	boots(SLOT_B, 2, plan_b, plan_b_len);
	zassert_ok(weft_service_boot());
	boots(SLOT_A, 1, plan_a, plan_a_len);
	zassert_ok(weft_service_select(SLOT_B, true, NULL));
	zassert_ok(weft_service_boot());
	boots(SLOT_B, 2, plan_b, plan_b_len);
	zassert_equal(weft_service_select(2, false, NULL), WEFT_ERR_ARG);
}

ZTEST(weft_slots, test_select_a_bad_slot_keeps_the_plan)
{
	weft_error_t error;

	boot_both();
	erase_slot(SLOT_B);
	zassert_equal(weft_service_select(SLOT_B, true, &error), WEFT_ERR_NO_PLAN);
	zassert_equal(error.code, WEFT_ERR_NO_PLAN);
	boots(SLOT_A, 1, plan_a, plan_a_len);
	zassert_ok(weft_service_boot());
	boots(SLOT_A, 1, plan_a, plan_a_len);
}

ZTEST(weft_slots, test_inspect_does_not_disturb)
{
	struct weft_slot_report report;

	boot_both();
	zassert_ok(weft_service_inspect(SLOT_B, &report));
	zassert_equal(report.plan_version, 2);
	erase_slot(SLOT_B);
	zassert_equal(weft_service_inspect(SLOT_B, &report), WEFT_ERR_NO_PLAN);
	boots(SLOT_A, 1, plan_a, plan_a_len);
}

ZTEST(weft_slots, test_choice_outlives_full_sectors)
{
	boot_both();
	for (unsigned int i = 0; i < 1000; i++) {
		zassert_ok(weft_state_store(i % 2U));
		zassert_equal(weft_state_load(), i % 2U);
	}
	zassert_ok(weft_service_boot());
	boots(SLOT_B, 2, plan_b, plan_b_len);
}

ZTEST(weft_slots, test_unreadable_choice_is_slot_a)
{
	boot_both();
	write_state(0x5a);
	zassert_ok(weft_service_boot());
	boots(SLOT_A, 1, plan_a, plan_a_len);
	zassert_ok(weft_service_select(SLOT_B, true, NULL));
	zassert_ok(weft_service_boot());
	boots(SLOT_B, 2, plan_b, plan_b_len);
}

ZTEST(weft_slots, test_selftest)
{
	boot_both();
	zassert_ok(weft_service_selftest());
	zassert_ok(weft_service_select(SLOT_B, false, NULL));
	zassert_ok(weft_service_selftest());
	erase_slot(SLOT_A);
	zassert_not_equal(weft_service_boot(), WEFT_OK);
	zassert_equal(weft_service_selftest(), WEFT_ERR_NO_PLAN);
}

ZTEST_SUITE(weft_slots, NULL, NULL, NULL, NULL, NULL);
