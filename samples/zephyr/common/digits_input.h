/* SPDX-License-Identifier: Apache-2.0 */
/* Built-in images of handwritten digits, handed over row by row in the quantisation that the plan's
 * model wants. */
#ifndef DIGITS_INPUT_H
#define DIGITS_INPUT_H

#include <stddef.h>
#include <stdint.h>

#define DIGITS_INPUT_COUNT 10

struct digits_input {
	unsigned int digit;
	float scale; /* of the network's input, as weft_input_info() tells */
	int zero_point;
};

/* A weft_input_fn; ctx is a struct digits_input. */
int digits_input_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes);

/* The index of the largest score. */
int digits_largest(const int8_t *scores, unsigned int count);

#endif
