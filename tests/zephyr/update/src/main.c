/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans over SMP through the service, with PSA's signatures and the board's flash. A reset is a
 * call of weft_service_boot(), which takes what runs from the journal.
 */
#include <string.h>
#include <zcbor_common.h>
#include <zcbor_decode.h>
#include <zcbor_encode.h>
#include <zephyr/storage/flash_map.h>
#include <zephyr/sys/byteorder.h>
#include <zephyr/ztest.h>

#include <weft/weft_service.h>
#include <weft/weft_smp.h>

#include "weft_format.h"

#define CHUNK 512U
#define PACKET (CHUNK + 128U)
#define WRITE_OP 2
#define VERSION_2 (1 << 3)

static const uint8_t first[] = {
#include "first.inc"
};
static const uint8_t second[] = {
#include "second.inc"
};
static const uint8_t third[] = {
#include "third.inc"
};
static const uint8_t unsigned_plan[] = {
#include "unsigned.inc"
};

static uint8_t packet[PACKET], reply[PACKET];

static bool is(const struct zcbor_string *name, const char *text)
{
	return name->len == strlen(text) && memcmp(name->value, text, name->len) == 0;
}

/* What the reply's map says; members that are not there stay 0. */
struct answer {
	uint32_t token, off, rc;
};

static void decode(const uint8_t *body, size_t len, struct answer *answer)
{
	ZCBOR_STATE_D(state, 4, body, len, 1, 0);
	struct zcbor_string name;

	memset(answer, 0, sizeof(*answer));
	zassert_true(zcbor_map_start_decode(state));
	while (!zcbor_array_at_end(state)) {
		zassert_true(zcbor_tstr_decode(state, &name));
		if (is(&name, "token")) {
			zassert_true(zcbor_uint32_decode(state, &answer->token));
		} else if (is(&name, "off")) {
			zassert_true(zcbor_uint32_decode(state, &answer->off));
		} else if (is(&name, "err")) {
			zassert_true(zcbor_map_start_decode(state));
			zassert_true(zcbor_tstr_decode(state, &name) && is(&name, "group"));
			zassert_true(zcbor_any_skip(state, NULL));
			zassert_true(zcbor_tstr_decode(state, &name) && is(&name, "rc"));
			zassert_true(zcbor_uint32_decode(state, &answer->rc));
			zassert_true(zcbor_map_end_decode(state));
		} else {
			zassert_true(zcbor_any_skip(state, NULL));
		}
	}
}

/* One request; returns WEFT_OK or the error of the update core. */
static int ask(uint8_t command, uint32_t token, uint32_t off, uint32_t total, const uint8_t *data,
	       size_t len, struct answer *answer)
{
	ZCBOR_STATE_E(state, 4, packet + WEFT_SMP_HEADER, sizeof(packet) - WEFT_SMP_HEADER, 1);
	size_t body, n;

	zassert_true(zcbor_map_start_encode(state, 4));
	zassert_true(zcbor_tstr_put_lit(state, "token") && zcbor_uint32_put(state, token));
	zassert_true(zcbor_tstr_put_lit(state, "off") && zcbor_uint32_put(state, off));
	zassert_true(zcbor_tstr_put_lit(state, "len") && zcbor_uint32_put(state, total));
	zassert_true(zcbor_tstr_put_lit(state, "data") &&
		     zcbor_bstr_encode_ptr(state, (const char *)data, len));
	zassert_true(zcbor_map_end_encode(state, 4));
	body = (size_t)(state->payload - packet) - WEFT_SMP_HEADER;
	memset(packet, 0, WEFT_SMP_HEADER);
	packet[0] = WRITE_OP | VERSION_2;
	sys_put_be16((uint16_t)body, packet + 2);
	sys_put_be16(WEFT_SMP_GROUP, packet + 4);
	packet[7] = command;
	n = weft_service_smp(packet, WEFT_SMP_HEADER + body, reply, sizeof(reply));
	zassert_true(n > WEFT_SMP_HEADER);
	decode(reply + WEFT_SMP_HEADER, n - WEFT_SMP_HEADER, answer);
	return -(int)answer->rc;
}

static int push(const uint8_t *plan, size_t len)
{
	uint32_t head = WEFT_UPDATE_HEAD_LEN(plan[WEFT_HEADER_SECTION_COUNT]), token;
	struct answer answer;
	int r = WEFT_OK;

	for (uint32_t at = 0; at < head && r == WEFT_OK; at += CHUNK) {
		r = ask(WEFT_SMP_BEGIN, 0, at, head, plan + at, MIN(CHUNK, head - at), &answer);
	}
	token = answer.token;
	while (r == WEFT_OK && answer.off < len) {
		uint32_t at = answer.off;

		r = ask(WEFT_SMP_WRITE, token, at, 0, plan + at, MIN(CHUNK, len - at), &answer);
	}
	return r != WEFT_OK ? r : ask(WEFT_SMP_FINISH, token, 0, 0, plan, 0, &answer);
}

/* ---------------------------------------------------------------- slots */

static void erase(uint8_t id)
{
	const struct flash_area *area;

	zassert_ok(flash_area_open(id, &area));
	zassert_ok(flash_area_erase(area, 0, area->fa_size));
	flash_area_close(area);
}

static void flash_first(void)
{
	const struct flash_area *area;

	zassert_ok(flash_area_open(FIXED_PARTITION_ID(weft_plan_a), &area));
	zassert_ok(flash_area_write(area, 0, first, ROUND_DOWN(sizeof(first), 8)));
	flash_area_close(area);
}

static int row(void *ctx, unsigned int input, unsigned int y, int8_t *dst, size_t nbytes)
{
	ARG_UNUSED(ctx);
	ARG_UNUSED(input);
	memset(dst, (int)y, nbytes);
	return 0;
}

static void runs(uint32_t version, bool trial)
{
	struct weft_job job = {.rows = row};
	struct weft_service_status now;

	weft_service_status(&now);
	zassert_ok(now.report.error.code, "%s", weft_error_name(now.report.error.code));
	zassert_equal(now.report.plan_version, version);
	zassert_equal(now.report.trial, trial);
	zassert_ok(weft_service_run(&job));
}

/* Until the work queue has opened the plan before: a signature takes an emulated core seconds. */
static void waits_for(uint32_t version)
{
	struct weft_service_status now;

	for (unsigned int tries = 0; tries < 600; tries++) {
		weft_service_status(&now);
		if (now.report.plan_version == version && now.report.error.code == WEFT_OK) {
			return;
		}
		k_msleep(100);
	}
}

static weft_update_status_t status(void)
{
	weft_update_status_t now;

	zassert_ok(weft_service_update_status(&now));
	return now;
}

/* ---------------------------------------------------------------- the life of plans */

ZTEST(weft_update, test_life_of_plans)
{
	weft_update_status_t before;

	erase(FIXED_PARTITION_ID(weft_state));
	erase(FIXED_PARTITION_ID(weft_plan_a));
	erase(FIXED_PARTITION_ID(weft_plan_b));

	/* Nothing there; then a signed plan that was flashed with the firmware. */
	zassert_equal(weft_service_boot(), WEFT_ERR_NO_PLAN);
	flash_first();
	zassert_ok(weft_service_boot());
	runs(1, false);
	zassert_equal(status().active, 0);

	/* What is not signed by our key, or cut short, costs no erase. */
	before = status();
	zassert_equal(push(unsigned_plan, sizeof(unsigned_plan)), WEFT_ERR_UNSIGNED);
	zassert_equal(weft_service_test(), WEFT_ERR_STATE);
	zassert_equal(status().slot_erases, before.slot_erases);
	zassert_equal(status().records, before.records);

	/* Another model: staged, on trial, confirmed by good runs. */
	zassert_ok(push(second, sizeof(second)));
	zassert_equal(status().state, WEFT_SLOT_STAGED);
	runs(1, false);
	zassert_ok(weft_service_test());
	runs(1, false);
	zassert_ok(weft_service_boot());
	runs(2, true);
	runs(2, true);
	zassert_equal(status().floor, 1);
	runs(2, true);
	zassert_equal(status().state, WEFT_SLOT_OLD);
	zassert_equal(status().active, 1);
	zassert_equal(status().floor, 2);
	zassert_equal(push(first, sizeof(first)), WEFT_ERR_FLOOR);
	zassert_ok(weft_service_boot());
	runs(2, false);

	/* A trial that is given up, and one that nobody confirms. */
	zassert_ok(push(third, sizeof(third)));
	zassert_ok(weft_service_test());
	zassert_ok(weft_service_boot());
	runs(3, true);
	zassert_ok(weft_service_revert());
	waits_for(2);
	runs(2, false);
	zassert_equal(push(third, sizeof(third)), WEFT_ERR_TRIED);
	zassert_ok(weft_service_erase());
	zassert_ok(push(third, sizeof(third)));
	zassert_ok(weft_service_test());
	for (unsigned int i = 0; i < WEFT_UPDATE_TRIES; i++) {
		zassert_ok(weft_service_boot());
		zassert_equal(status().tries, i + 1);
	}
	zassert_ok(weft_service_boot());
	zassert_equal(status().state, WEFT_SLOT_REVERTED);
	runs(2, false);

	/* The journal decides, not whoever selects. */
	zassert_equal(weft_service_select(0, true, NULL), WEFT_ERR_STATE);
}

ZTEST_SUITE(weft_update, NULL, NULL, NULL, NULL, NULL);
