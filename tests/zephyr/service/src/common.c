/* SPDX-License-Identifier: Apache-2.0 */
#include "common.h"

#include <string.h>
#include <zephyr/drivers/flash.h>
#include <zephyr/storage/flash_map.h>
#include <zephyr/sys/byteorder.h>
#include <zephyr/sys/crc.h>

const uint8_t plan_a[] __aligned(WEFT_PLAN_ALIGN) = {
#include "plan_a.inc"
};
const uint8_t plan_b[] __aligned(WEFT_PLAN_ALIGN) = {
#include "plan_b.inc"
};
const size_t plan_a_len = sizeof(plan_a), plan_b_len = sizeof(plan_b);

static const struct flash_area *open_area(uint8_t id)
{
	const struct flash_area *area;

	zassert_ok(flash_area_open(id, &area));
	return area;
}

static const struct flash_area *slot_area(unsigned int slot)
{
	return open_area(slot == SLOT_A ? FIXED_PARTITION_ID(weft_plan_a)
					: FIXED_PARTITION_ID(weft_plan_b));
}

void erase_slot(unsigned int slot)
{
	const struct flash_area *area = slot_area(slot);

	zassert_ok(flash_area_erase(area, 0, area->fa_size));
	flash_area_close(area);
}

void write_slot(unsigned int slot, const uint8_t *bytes, size_t len)
{
	const struct flash_area *area = slot_area(slot);

	zassert_ok(flash_area_erase(area, 0, area->fa_size));
	zassert_ok(flash_area_write(area, 0, bytes, ROUND_DOWN(len, flash_area_align(area))));
	flash_area_close(area);
}

void write_state(uint8_t value)
{
	const struct flash_area *area = open_area(FIXED_PARTITION_ID(weft_state));
	uint8_t bytes[64];

	memset(bytes, value, sizeof(bytes));
	zassert_ok(flash_area_erase(area, 0, area->fa_size));
	zassert_ok(flash_area_write(area, 0, bytes, sizeof(bytes)));
	flash_area_close(area);
}

void boot_both(void)
{
	const struct flash_area *area = open_area(FIXED_PARTITION_ID(weft_state));

	zassert_ok(flash_area_erase(area, 0, area->fa_size));
	flash_area_close(area);
	write_slot(SLOT_A, plan_a, plan_a_len);
	write_slot(SLOT_B, plan_b, plan_b_len);
	zassert_ok(weft_service_boot());
}

static int generate(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	struct probe *probe = ctx;

	zassert_equal(input, 0);
	zassert_equal(row, probe->rows++);
	for (size_t i = 0; i < nbytes; i++) {
		probe->state = probe->state * 1664525u + 1013904223u;
		dst[i] = (int8_t)(uint8_t)(probe->state >> 24);
	}
	return 0;
}

static int begin(struct weft_job *job, const weft_plan_t *plan)
{
	struct probe *probe = CONTAINER_OF(job, struct probe, job);
	size_t len;

	probe->state =
		sys_get_le32(weft_section(plan, WEFT_SECTION_SELFTEST, &len) + WEFT_SELFTEST_SEED);
	probe->rows = 0;
	return 0;
}

static void done(struct weft_job *job, const struct weft_result *result)
{
	struct probe *probe = CONTAINER_OF(job, struct probe, job);
	weft_tensor_info_t info;
	const int8_t *values = weft_result_output(result, 0, &info);

	probe->crc = values != NULL
			     ? crc32_ieee((const uint8_t *)values, (size_t)info.h * info.w * info.c)
			     : 0;
	probe->status = result->status;
	probe->thread = k_current_get();
	probe->done++;
}

void probe_init(struct probe *probe)
{
	memset(probe, 0, sizeof(*probe));
	probe->job.ctx = probe;
	probe->job.begin = begin;
	probe->job.rows = generate;
	probe->job.done = done;
}

uint32_t expected_crc(const uint8_t *plan_bytes, size_t len)
{
	weft_plan_t plan;
	const uint8_t *selftest;

	zassert_ok(weft_open(&plan, plan_bytes, len, NULL, NULL));
	selftest = weft_section(&plan, WEFT_SECTION_SELFTEST, &len);
	zassert_not_null(selftest);
	return sys_get_le32(selftest + WEFT_SELFTEST_SIZE + 4U * weft_stage_count(&plan));
}
