/* SPDX-License-Identifier: Apache-2.0 */
#include "portable.h"

void portable_clamp_region(const weft_call_t *call)
{
    const int32_t lo = call->op->act_min, hi = call->op->act_max, n = call->channels;
    if (lo == INT8_MIN && hi == INT8_MAX) {
        return;
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *p = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, p += call->out.c - n) {
            for (const int8_t *const end = p + n; p != end; p++) {
                *p = (int8_t)weft_clamp(*p, lo, hi);
            }
        }
    }
}

void portable_outs(const weft_linear_t *p, int32_t o, const portable_word_t *sum, int32_t n, int8_t *out)
{
    const int32_t step = p->per_tensor ? 0 : 1, zp = p->zp_out;
    const uint8_t *multiplier = p->multiplier + 4 * step * o;
    const int8_t *shift = p->shift + step * o;
    for (const int8_t *const end = out + n; out != end; out++, sum++, multiplier += 4 * step, shift += step) {
        *out = (int8_t)portable_byte(*sum, (int32_t)weft_rd32(multiplier), *shift, zp);
    }
}

PORTABLE_NOINLINE int32_t portable_byte_left(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point)
{
    const int32_t v = weft_clamp(portable_mbqm(acc, multiplier, shift), 2 * INT8_MIN, 2 * INT8_MAX + 1);
    return weft_clamp(v + zero_point, INT8_MIN, INT8_MAX);
}
