/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once; the last one, two or three as the reference kernel does them. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

void weft_fully_connected_dsp(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, row = in->w * in->c, inputs = in->h * row, run = (call->x1 - call->x0) * in->c;
    const bool end = call->acc == NULL || call->last;
    const weft_linear_t p = weft_linear(call, n, 0);
    const int32_t *start = call->acc;
    if (start == NULL || call->first) {
        start = (const int32_t *)(const void *)p.bias; /* blocks are aligned */
    }
    const int8_t *weights = p.weights + call->x0 * in->c;
    const uint32_t offset = dsp_offset(in->zero_point);
    int8_t *out = weft_px(&call->out, 0, 0);

    int32_t o = 0;
    for (; o + 4 <= n; o += 4) {
        dsp_acc4_t acc = {start[o], start[o + 1], start[o + 2], start[o + 3]};
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = weights + (size_t)o * (uint32_t)inputs + y * row;
            acc = dsp_mac_run(acc, weft_px(in, y, call->x0), w, inputs, run, offset);
        }
        if (call->acc != NULL) {
            call->acc[o] = acc.v0;
            call->acc[o + 1] = acc.v1;
            call->acc[o + 2] = acc.v2;
            call->acc[o + 3] = acc.v3;
        }
        if (end) {
            dsp_store_four(acc.v0, acc.v1, acc.v2, acc.v3, &p, o, out);
        }
    }
    for (; o < n; o++) {
        int32_t acc = start[o];
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = weights + (size_t)o * (uint32_t)inputs + y * row;
            acc += weft_dot(weft_px(in, y, call->x0), w, run, in->zero_point);
        }
        if (call->acc != NULL) {
            call->acc[o] = acc;
        }
        if (end) {
            out[o] = weft_linear_out(&p, o, acc);
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
    if (end) {
        dsp_clamp(out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
