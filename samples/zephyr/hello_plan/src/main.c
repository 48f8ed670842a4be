/* SPDX-License-Identifier: Apache-2.0 */
/* Reads ten built-in digits with the plan of slot a. */
#include <stdio.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/crc.h>

#include <weft/weft_service.h>

#include "digits_input.h"

static int begin(struct weft_job *job, const weft_plan_t *plan)
{
	struct digits_input *digits = job->ctx;
	weft_tensor_info_t info;
	int r = weft_input_info(plan, 0, &info);

	digits->scale = info.scale;
	digits->zero_point = info.zero_point;
	return r;
}

static void show(struct weft_job *job, const struct weft_result *result)
{
	const struct digits_input *digits = job->ctx;
	weft_tensor_info_t info;
	const int8_t *scores = weft_result_output(result, 0, &info);

	if (scores == NULL) {
		printf("digit %u: %s: %s\n", digits->digit, weft_error_message(result->status),
		       weft_error_remedy(result->status));
		return;
	}
	printf("digit %u: read as %d, crc32 %08x\n", digits->digit, digits_largest(scores, info.c),
	       crc32_ieee((const uint8_t *)scores, (size_t)info.h * info.w * info.c));
}

int main(void)
{
	struct digits_input digits = {0};
	struct weft_job job = {
		.ctx = &digits, .begin = begin, .rows = digits_input_row, .done = show};

	while (digits.digit < DIGITS_INPUT_COUNT && weft_service_run(&job) == WEFT_OK) {
		digits.digit++;
	}
	printf("hello_plan: %u digits read, the application goes on\n", digits.digit);
	return 0;
}
