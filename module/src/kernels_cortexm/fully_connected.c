/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/linear.h"

typedef struct {
    int32_t v[4];
} acc_t;

/* n neighbouring inputs with the weights of outputs at w, w + at[1], ... */
DSP_INLINE acc_t mac_run(acc_t acc, const int8_t *x, const int8_t *w, const int32_t at[4], int32_t n, uint32_t offset)
{
    const int8_t *w1 = w + at[1], *w2 = w + at[2], *w3 = w + at[3], *stop = x + (n & ~3);
    while (x != stop) {
        const uint32_t v = dsp_load(x), v0 = dsp_load(w), v1 = dsp_load(w1), v2 = dsp_load(w2), v3 = dsp_load(w3);
        const int16x2_t even = dsp_even_plus(v, offset), odd = dsp_odd_plus(v, offset);
        acc.v[0] = __smlad(odd, dsp_odd(v0), __smlad(even, dsp_even(v0), acc.v[0]));
        acc.v[1] = __smlad(odd, dsp_odd(v1), __smlad(even, dsp_even(v1), acc.v[1]));
        acc.v[2] = __smlad(odd, dsp_odd(v2), __smlad(even, dsp_even(v2), acc.v[2]));
        acc.v[3] = __smlad(odd, dsp_odd(v3), __smlad(even, dsp_even(v3), acc.v[3]));
        x += 4;
        w += 4;
        w1 += 4;
        w2 += 4;
        w3 += 4;
    }
    for (int32_t i = 0; i < (n & 3); i++) {
        const int32_t value = x[i] + (int16_t)offset;
        acc.v[0] += value * w[i];
        acc.v[1] += value * w1[i];
        acc.v[2] += value * w2[i];
        acc.v[3] += value * w3[i];
    }
    return acc;
}

void weft_fully_connected_dsp(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, inputs = in->h * in->w * in->c, run = (call->x1 - call->x0) * in->c;
    const uint32_t offset = dsp_offset(in->zero_point);
    const weft_linear_t p = weft_linear(call, n);
    const bool whole = call->acc == NULL;
    int8_t *out = weft_px(&call->out, 0, 0);

    for (int32_t o = 0; o < n; o += 4) {
        int32_t channel[4], at[4];
        acc_t acc;
        for (int32_t i = 0; i < 4; i++) {
            channel[i] = weft_min(o + i, n - 1); /* the last one is done as often as it takes to fill four */
            at[i] = (channel[i] - o) * inputs;
            acc.v[i] = whole || call->first ? weft_linear_bias(&p, channel[i]) : call->acc[channel[i]];
        }
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs + (y * in->w + call->x0) * in->c;
            acc = mac_run(acc, weft_px(in, y, call->x0), w, at, run, offset);
        }
        for (int32_t i = 0; i < 4; i++) {
            if (!whole) {
                call->acc[channel[i]] = acc.v[i];
            }
            if (whole || call->last) {
                const int32_t m = p.per_tensor ? 0 : channel[i];
                const int32_t multiplier = (int32_t)weft_rd32(p.multiplier + 4 * m);
                out[channel[i]] = dsp_out(dsp_requant(acc.v[i], multiplier, p.shift[m]), p.zp_out);
            }
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
    if (whole || call->last) {
        dsp_clamp(out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
