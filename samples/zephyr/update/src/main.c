/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads ten built-in digits again and again, while plans arrive by MCUmgr: the first one comes over
 * the air as any other, and each changes the model between two rounds.
 */
#include <stdio.h>
#include <zephyr/kernel.h>

#include <weft/weft_service.h>

#include "digits_input.h"

#define ROUND_MS 200

struct reading {
	struct weft_job job;
	struct digits_input digits;
	unsigned int right;
	uint32_t version;
};

static int begin(struct weft_job *job, const weft_plan_t *plan)
{
	struct reading *reading = CONTAINER_OF(job, struct reading, job);
	weft_tensor_info_t info;
	weft_plan_info_t figures;
	int r = weft_input_info(plan, 0, &info);

	weft_plan_info(plan, &figures);
	reading->version = figures.plan_version;
	reading->digits.scale = info.scale;
	reading->digits.zero_point = info.zero_point;
	return r;
}

static void count(struct weft_job *job, const struct weft_result *result)
{
	struct reading *reading = CONTAINER_OF(job, struct reading, job);
	weft_tensor_info_t info;
	const int8_t *scores = weft_result_output(result, 0, &info);

	if (scores != NULL && digits_largest(scores, info.c) == (int)reading->digits.digit) {
		reading->right++;
	}
}

int main(void)
{
	static struct reading reading = {
		.job = {.begin = begin, .rows = digits_input_row, .done = count}};
	unsigned int round = 0;

	reading.job.ctx = &reading.digits;
	for (;; round++) {
		int r = WEFT_OK;

		reading.right = 0;
		for (reading.digits.digit = 0;
		     reading.digits.digit < DIGITS_INPUT_COUNT && r == WEFT_OK;
		     reading.digits.digit++) {
			r = weft_service_run(&reading.job);
		}
		if (r == WEFT_OK) {
			printf("round %u: plan version %u, %u of %u digits right\n", round,
			       reading.version, reading.right, DIGITS_INPUT_COUNT);
		} else {
			printf("round %u: %s\n", round, weft_error_message(r));
		}
		k_msleep(ROUND_MS);
	}
	return 0;
}
