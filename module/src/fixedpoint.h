/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fixed-point arithmetic of TFLite's int8 kernels, bit for bit (gemmlowp's double rounding). Right shifts of negative
 * numbers are arithmetic on every compiler the engine supports. Sums that a hostile plan could push past 32 bits wrap
 * through unsigned: a wrong number, never undefined behaviour.
 */
#ifndef WEFT_FIXEDPOINT_H
#define WEFT_FIXEDPOINT_H

#include <stdint.h>

static inline int32_t weft_wrap_add(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

static inline int32_t weft_wrap_sub(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a - (uint32_t)b);
}

static inline int32_t weft_wrap_shl(int32_t a, int32_t bits)
{
    return (int32_t)((uint32_t)a << bits);
}

/*
 * SaturatingRoundingDoublingHighMul: a * b / 2^31, ties away from zero below and up above, as gemmlowp's truncating
 * division of a nudged product comes out. Flooring (a * b + 2^30) / 2^31 is the same number for either sign. The one
 * case that saturates, INT32_MIN squared, cannot occur: no multiplier is negative.
 */
static inline int32_t weft_mul_high(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* RoundingDivideByPOT: x / 2^exponent, ties away from zero; exponent 0 to 31. */
static inline int32_t weft_rounding_shr(int32_t x, int32_t exponent)
{
    int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1u);
    int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> exponent) + ((x & mask) > threshold);
}

/* MultiplyByQuantizedMultiplier: x * multiplier * 2^(shift - 31); multiplier >= 0, shift -31 to 31. */
static inline int32_t weft_mbqm(int32_t x, int32_t multiplier, int32_t shift)
{
    if (shift > 0) {
        return weft_mul_high(weft_wrap_shl(x, shift), multiplier);
    }
    return weft_rounding_shr(weft_mul_high(x, multiplier), -shift);
}

/* x / n rounded half away from zero; n > 0. */
static inline int32_t weft_div_round(int32_t x, int32_t n)
{
    return (x > 0 ? x + n / 2 : x - n / 2) / n;
}

#endif
