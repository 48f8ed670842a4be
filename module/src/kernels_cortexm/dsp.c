/* SPDX-License-Identifier: Apache-2.0 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

__attribute__((noinline)) int8_t dsp_scale_any(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point)
{
    /* Far from overflow when the zero point is added, far outside of int8. */
    return dsp_saturate(weft_clamp(weft_mbqm(acc, multiplier, shift), -512, 511) + zero_point);
}

void dsp_store_four(int32_t v0, int32_t v1, int32_t v2, int32_t v3, const weft_linear_t *p, int32_t o, int8_t *out)
{
    const int32_t zp = p->zp_out, *m = (const int32_t *)(const void *)p->multiplier;
    uint32_t shifts;
    int32_t m0 = m[0], m1 = m0, m2 = m0, m3 = m0;
    out += o;
    if (p->per_tensor) {
        shifts = (uint8_t)p->shift[0] * 0x01010101u;
    } else {
        shifts = dsp_load(p->shift + o);
        m0 = m[o];
        m1 = m[o + 1];
        m2 = m[o + 2];
        m3 = m[o + 3];
    }
    if (__builtin_expect((~shifts & 0x80808080u) == 0 &&
                             (dsp_excess(v0) | dsp_excess(v1) | dsp_excess(v2) | dsp_excess(v3)) >= 0,
                         1)) {
        const uint32_t right = (uint32_t)__ssub8(0, (int8x4_t)shifts);
        out[0] = dsp_scale(v0 * 2, m0, (int32_t)right, zp);
        out[1] = dsp_scale(v1 * 2, m1, (int32_t)(right >> 8), zp);
        out[2] = dsp_scale(v2 * 2, m2, (int32_t)(right >> 16), zp);
        out[3] = dsp_scale(v3 * 2, m3, (int32_t)(right >> 24), zp);
        return;
    }
    out[0] = dsp_scale_any(v0, m0, (int8_t)shifts, zp);
    out[1] = dsp_scale_any(v1, m1, (int8_t)(shifts >> 8), zp);
    out[2] = dsp_scale_any(v2, m2, (int8_t)(shifts >> 16), zp);
    out[3] = dsp_scale_any(v3, m3, (int8_t)(shifts >> 24), zp);
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
        int8_t *p = weft_px(&call->out, y, call->x0);
        const int32_t pixels = call->x1 - call->x0;
        if (call->channels == call->out.c) {
            dsp_clamp(p, pixels * call->channels, lo, hi);
            continue;
        }
        for (int32_t x = 0; x < pixels; x++, p += call->out.c) {
            dsp_clamp(p, call->channels, lo, hi);
        }
    }
}

#endif
