/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

void weft_fully_connected_dsp(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, inputs = in->h * in->w * in->c, run = (call->x1 - call->x0) * in->c;
    const uint32_t offset = dsp_offset(in->zero_point);
    const weft_linear_t p = weft_linear(call, n);
    const bool begin = call->acc == NULL || call->first, end = call->acc == NULL || call->last;
    int8_t *out = weft_px(&call->out, 0, 0);

    for (int32_t o = 0, count; o < n; o += count) {
        count = n - o >= 4 ? 4 : 1;
        const int32_t next = count == 4 ? 1 : 0;
        dsp_acc4_t acc;
        for (int32_t i = 0; i < 4; i++) {
            acc.v[i] = begin ? weft_linear_bias(&p, o + i * next) : call->acc[o + i * next];
        }
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs + (y * in->w + call->x0) * in->c;
            acc = dsp_mac_run(acc, weft_px(in, y, call->x0), w, next * inputs, run, offset);
        }
        for (int32_t i = 0; i < count; i++) {
            if (call->acc != NULL) {
                call->acc[o + i] = acc.v[i];
            }
            if (end) {
                const int32_t m = p.per_tensor ? 0 : o + i;
                const int32_t multiplier = (int32_t)weft_rd32(p.multiplier + 4 * m);
                out[o + i] = dsp_out(dsp_requant(acc.v[i], multiplier, p.shift[m]), p.zp_out);
            }
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
    if (end) {
        dsp_clamp(out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
