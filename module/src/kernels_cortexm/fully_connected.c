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
    const bool quick = dsp_quick(&p, n, inputs);
    const int32_t *const start = begin ? (const int32_t *)(const void *)p.bias : call->acc;
    int8_t *out = weft_px(&call->out, 0, 0);

    /* What four do not divide is done four times. */
    for (int32_t o = 0, next = 1; o < n; o += 4 * next + (1 - next)) {
        next = n - o >= 4;
        dsp_acc4_t acc = {start[o], start[o + next], start[o + 2 * next], start[o + 3 * next]};
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs + (y * in->w + call->x0) * in->c;
            acc = dsp_mac_run(acc, weft_px(in, y, call->x0), w, next * inputs, run, offset);
        }
        if (call->acc != NULL) {
            call->acc[o] = acc.v0;
            call->acc[o + next] = acc.v1;
            call->acc[o + 2 * next] = acc.v2;
            call->acc[o + 3 * next] = acc.v3;
        }
        if (end) {
            dsp_store_four(&p, quick, o, next, acc, out);
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
    if (end) {
        dsp_clamp(out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
