/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SOFTMAX over the channels of every pixel, in TFLite's fixed point: exp() and 1/(1 + x) as gemmlowp defines them.
 * Qm is a number with m integer bits and 31 - m fraction bits.
 */
#include "../fixedpoint.h"
#include "../weft_internal.h"

#define DIFF_BITS 5 /* differences to the maximum are Q5 */
#define SUM_BITS 12 /* the sum of exponentials is Q12 */

static int32_t saturating_shl(int32_t x, int32_t bits)
{
    const int32_t limit = INT32_MAX >> bits;
    return x > limit ? INT32_MAX : x < -limit - 1 ? INT32_MIN : weft_wrap_shl(x, bits);
}

/* exp(a) in Q0 for a in Q0, -1/4 <= a < 0: Taylor's series around -1/8. */
static int32_t exp_quarter(int32_t a)
{
    const int32_t exp_minus_eighth = 1895147668, third = 715827883;
    const int32_t x = a + (1 << 28);
    const int32_t x2 = weft_mul_high(x, x), x3 = weft_mul_high(x2, x), x4 = weft_mul_high(x2, x2);
    const int32_t cubic = weft_mul_high(weft_rounding_shr(x4, 2) + x3, third);
    const int32_t tail = weft_rounding_shr(cubic + x2, 1);
    return exp_minus_eighth + weft_mul_high(exp_minus_eighth, x + tail);
}

/* exp(a) in Q0 for a <= 0 in Q5: the last quarter by series, the rest as product of exp(-2^k), k = -2 .. 4. */
static int32_t exp_negative(int32_t a)
{
    static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter_bits = 31 - DIFF_BITS - 2;
    if (a == 0) {
        return INT32_MAX;
    }
    const int32_t rest = (a & ((1 << quarter_bits) - 1)) - (1 << quarter_bits);
    const uint32_t quarters = ((uint32_t)rest - (uint32_t)a) >> quarter_bits;
    int32_t result = exp_quarter(saturating_shl(rest, DIFF_BITS));
    for (uint32_t k = 0; k < sizeof powers / sizeof powers[0]; k++) {
        if (quarters >> k & 1u) {
            result = weft_mul_high(result, powers[k]);
        }
    }
    return result;
}

/* 1 / (1 + a) in Q0 for 0 <= a < 1 in Q0: three Newton-Raphson steps on half the denominator, in Q2. */
static int32_t reciprocal_one_plus(int32_t a)
{
    const int32_t c48_over_17 = 1515870810, c32_over_17 = 1010580540, one = 1 << 29;
    const int32_t half = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2);
    int32_t x = c48_over_17 + weft_mul_high(half, -c32_over_17);
    for (int step = 0; step < 3; step++) {
        const int32_t error = one - weft_mul_high(half, x);
        x = weft_wrap_add(x, saturating_shl(weft_mul_high(x, error), 2));
    }
    return saturating_shl(x, 1);
}

static int32_t leading_zeros(uint32_t x)
{
    int32_t n = 0;
    for (; (x & 0x80000000u) == 0; x <<= 1) {
        n++;
    }
    return n;
}

void weft_softmax(const weft_call_t *call)
{
    const int32_t multiplier = (int32_t)weft_rd32(call->params);
    const int32_t left_shift = (int8_t)call->params[4];
    /* What is further from the maximum is zero; the rest, shifted, fits. */
    const int32_t diff_min = -((((1 << DIFF_BITS) - 1) << (31 - DIFF_BITS)) >> left_shift);
    const int32_t c = call->out.c;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *in = weft_px(&call->in0, y, call->x0);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, in += c, out += c) {
            int32_t top = INT8_MIN;
            for (int32_t i = 0; i < c; i++) {
                top = weft_max(top, in[i]);
            }
            uint32_t sum = 0;
            for (int32_t i = 0; i < c; i++) {
                if (in[i] - top >= diff_min) {
                    const int32_t e = exp_negative(weft_mbqm(in[i] - top, multiplier, left_shift));
                    sum += (uint32_t)weft_rounding_shr(e, SUM_BITS);
                }
            }
            const int32_t headroom = leading_zeros(sum);
            const int32_t scale = reciprocal_one_plus((int32_t)((sum << headroom) - 0x80000000u));
            const int32_t exponent = SUM_BITS - headroom + 31 - 8;
            for (int32_t i = 0; i < c; i++) {
                int32_t v = 0;
                if (in[i] - top >= diff_min && exponent <= 31) {
                    const int32_t e = exp_negative(weft_mbqm(in[i] - top, multiplier, left_shift));
                    v = weft_rounding_shr(weft_mul_high(scale, e), exponent);
                }
                out[i] = (int8_t)(weft_min(v, 255) - 128);
            }
        }
    }
}
