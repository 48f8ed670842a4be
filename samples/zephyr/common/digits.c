/* SPDX-License-Identifier: Apache-2.0 */
#include "digits_input.h"

#include <zephyr/sys/util.h>

#include "digits.h"

#define INK 255.0f

BUILD_ASSERT(DIGIT_COUNT == DIGITS_INPUT_COUNT);

int digits_input_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	const struct digits_input *digits = ctx;

	if (input != 0 || row >= DIGIT_SIDE || nbytes != DIGIT_SIDE) {
		return -1; /* a plan for other images */
	}
	for (unsigned int x = 0; x < DIGIT_SIDE; x++) {
		float ink = (float)digit_image[digits->digit][row * DIGIT_SIDE + x] /
			    (INK * digits->scale);

		dst[x] = (int8_t)CLAMP((int)(ink + 0.5f) + digits->zero_point, INT8_MIN, INT8_MAX);
	}
	return 0;
}

int digits_largest(const int8_t *scores, unsigned int count)
{
	unsigned int best = 0;

	for (unsigned int i = 1; i < count; i++) {
		best = scores[i] > scores[best] ? i : best;
	}
	return (int)best;
}
