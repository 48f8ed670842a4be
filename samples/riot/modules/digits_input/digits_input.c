/* SPDX-License-Identifier: Apache-2.0 */
#include "digits_input.h"

#include <inttypes.h>
#include <stdio.h>

#include "digits.h"
#include "macros/utils.h"
#include "update/update_internal.h"
#include "weft/weft_service.h"

#define INK 255.0f

typedef struct {
    unsigned digit, right;
    float scale; /* of the network's input */
    int zero_point;
} reading_t;

static int begin(weft_job_t *job, const weft_plan_t *plan)
{
    reading_t *reading = job->ctx;
    weft_tensor_info_t info;
    int r = weft_input_info(plan, 0, &info);
    reading->scale = info.scale;
    reading->zero_point = info.zero_point;
    return r;
}

static int row_of_image(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    const reading_t *reading = ctx;
    if (input != 0 || row >= DIGIT_SIDE || nbytes != DIGIT_SIDE) {
        return -1; /* a plan for other images */
    }
    for (unsigned x = 0; x < DIGIT_SIDE; x++) {
        float ink = (float)digit_image[reading->digit][row * DIGIT_SIDE + x] / (INK * reading->scale);
        int value = (int)(ink + 0.5f) + reading->zero_point;
        dst[x] = (int8_t)MAX(INT8_MIN, MIN(INT8_MAX, value));
    }
    return 0;
}

static void show(weft_job_t *job, const weft_result_t *result)
{
    reading_t *reading = job->ctx;
    weft_tensor_info_t info;
    const int8_t *scores = weft_result_output(result, 0, &info);
    if (scores == NULL) {
        printf("digit %u: %s: %s\n", reading->digit, weft_error_message(result->status),
               weft_error_remedy(result->status));
        return;
    }
    unsigned best = 0;
    for (unsigned i = 1; i < info.c; i++) {
        best = scores[i] > scores[best] ? i : best;
    }
    reading->right += best == reading->digit;
    printf("digit %u: read as %u, crc32 %08" PRIx32 ", %" PRIu32 " us\n", reading->digit, best,
           weft_crc32(scores, (size_t)info.h * info.w * info.c, 0), result->usec);
}

int digits_read_all(void)
{
    reading_t reading = {0};
    weft_job_t job = {.ctx = &reading, .begin = begin, .rows = row_of_image, .done = show};
    for (; reading.digit < DIGIT_COUNT; reading.digit++) {
        int r = weft_service_run(&job);
        if (r != WEFT_OK) {
            return r;
        }
    }
    return (int)reading.right;
}
