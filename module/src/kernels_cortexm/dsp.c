/* SPDX-License-Identifier: Apache-2.0 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"

int8_t dsp_scale_any(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point)
{
    /* Far from overflow when the zero point is added, far outside of int8. */
    return dsp_saturate(weft_clamp(weft_mbqm(acc, multiplier, shift), -512, 511) + zero_point);
}

bool dsp_quick(const weft_linear_t *p, int32_t n, int32_t size)
{
    if (size >= (1 << 30) / (255 * 128)) {
        return false;
    }
    const int32_t room = (1 << 30) - size * 255 * 128;
    const int32_t *bias = (const int32_t *)(const void *)p->bias;
    int32_t shifts = -1, sums = 0; /* sign bits: all shifts negative; a bias beyond +-room */
    for (int32_t o = 0; o < n; o++) {
        const int32_t b = bias[o];
        sums |= (room - 1 - b) | (room + b);
    }
    for (int32_t m = 0; m < (p->per_tensor ? 1 : n); m++) {
        shifts &= p->shift[m];
    }
    return (shifts & ~sums) < 0;
}

void dsp_clamp(int8_t *p, int32_t n, int32_t lo, int32_t hi)
{
    const uint32_t low = (uint32_t)(uint8_t)lo * 0x01010101u, high = (uint32_t)(uint8_t)hi * 0x01010101u;
    for (; n >= 4; n -= 4, p += 4) {
        uint32_t v = dsp_load(p);
        __ssub8((int8x4_t)v, (int8x4_t)low);
        v = (uint32_t)__sel(v, low);
        __ssub8((int8x4_t)high, (int8x4_t)v);
        v = (uint32_t)__sel(v, high);
        dsp_store(p, v);
    }
    for (; n > 0; n--, p++) {
        *p = (int8_t)weft_clamp(*p, lo, hi);
    }
}

void dsp_clamp_region(const weft_call_t *call)
{
    const int32_t lo = call->op->act_min, hi = call->op->act_max;
    if (lo == INT8_MIN && hi == INT8_MAX) {
        return;
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        dsp_clamp(weft_px(&call->out, y, call->x0), (call->x1 - call->x0) * call->out.c, lo, hi);
    }
}

void dsp_count_macs(const weft_call_t *call, int32_t depth)
{
#if WEFT_COUNT
    const weft_op_t *op = call->op;
    int64_t rows = 0, cols = 0;
    for (int32_t y = call->y0; y < call->y1; y++) {
        const weft_taps_t t = weft_taps(y * op->stride_h - op->pad_top, op->kernel_h, op->dilation_h, call->in0.h);
        rows += t.hi - t.lo;
    }
    for (int32_t x = call->x0; x < call->x1; x++) {
        const weft_taps_t t = weft_taps(x * op->stride_w - op->pad_left, op->kernel_w, op->dilation_w, call->in0.w);
        cols += t.hi - t.lo;
    }
    WEFT_COUNT_MACS(call, rows * cols * depth);
#else
    (void)call;
    (void)depth;
#endif
}

#endif
