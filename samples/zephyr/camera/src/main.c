/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No frame buffer: a camera hands over one row at a time, inference consumes it as it comes. The
 * camera here is a thread that exposes a built-in image every FRAME_MS and sends its rows at the
 * pace of a sensor; a real one would fill the same queue from its line interrupt. Inference runs on
 * Weft's work queue, main() only counts results.
 */
#include <stdio.h>
#include <zephyr/kernel.h>

#include <weft/weft_service.h>

#include "digits_input.h"

#define ROW_BYTES 16
#define ROWS_QUEUED 4 /* all that is ever kept of a frame outside the arena */
#define ROW_MS 1
#define FRAME_MS 50
#define ROW_TIMEOUT K_MSEC(500)
#define FRAMES 10

K_MSGQ_DEFINE(rows, ROW_BYTES, ROWS_QUEUED, 1);
K_SEM_DEFINE(expose, 0, 1);
K_SEM_DEFINE(finished, 0, 1);

static struct digits_input sensor; /* what the camera sees */

static void camera(void *a, void *b, void *c)
{
	int8_t row[ROW_BYTES];

	ARG_UNUSED(a);
	ARG_UNUSED(b);
	ARG_UNUSED(c);
	for (;;) {
		(void)k_sem_take(&expose, K_FOREVER);
		for (unsigned int y = 0; y < ROW_BYTES; y++) {
			(void)digits_input_row(&sensor, 0, y, row, sizeof(row));
			k_msleep(ROW_MS);
			(void)k_msgq_put(&rows, row, ROW_TIMEOUT);
		}
	}
}

K_THREAD_DEFINE(camera_thread, 1024, camera, NULL, NULL, NULL, 5, 0, 0);

/* The plan is about to run: start a frame in its quantisation. */
static int start_frame(struct weft_job *job, const weft_plan_t *plan)
{
	weft_tensor_info_t info;
	int r = weft_input_info(plan, 0, &info);

	ARG_UNUSED(job);
	if (r != WEFT_OK || info.w * info.c != ROW_BYTES || info.h != ROW_BYTES) {
		return -1;
	}
	sensor.scale = info.scale;
	sensor.zero_point = info.zero_point;
	k_msgq_purge(&rows);
	k_sem_give(&expose);
	return 0;
}

/* The engine wants the next row: wait for the sensor. */
static int take_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	ARG_UNUSED(ctx);
	ARG_UNUSED(input);
	ARG_UNUSED(row);
	ARG_UNUSED(nbytes);
	return k_msgq_get(&rows, dst, ROW_TIMEOUT);
}

static void show(struct weft_job *job, const struct weft_result *result)
{
	weft_tensor_info_t info;
	const int8_t *scores = weft_result_output(result, 0, &info);

	ARG_UNUSED(job);
	if (scores == NULL) {
		printf("frame %u: %s: %s\n", sensor.digit, weft_error_message(result->status),
		       weft_error_remedy(result->status));
	} else {
		printf("frame %u: shows a %d\n", sensor.digit, digits_largest(scores, info.c));
	}
	k_sem_give(&finished);
}

int main(void)
{
	static struct weft_job job = {.begin = start_frame, .rows = take_row, .done = show};

	for (sensor.digit = 0; sensor.digit < FRAMES; sensor.digit++) {
		if (weft_service_submit(&job) != WEFT_OK) {
			printf("frame %u: dropped\n", sensor.digit);
			continue;
		}
		(void)k_sem_take(&finished, K_FOREVER);
		k_msleep(FRAME_MS);
	}
	printf("camera: %u frames\n", sensor.digit);
	return 0;
}
