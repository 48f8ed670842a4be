/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED, four outputs at a time. */
#include "portable.h"

void weft_fully_connected_portable(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, inputs = in->h * in->w * in->c, run = (call->x1 - call->x0) * in->c;
    const weft_linear_t p = weft_linear(call, n, 0);
    const bool begin = call->acc == NULL || call->first, end = call->acc == NULL || call->last;
    int8_t *out = weft_px(&call->out, 0, 0);

    for (int32_t o = 0; o < n; o += 4) {
        const int32_t left = weft_min(n - o, 4);
        const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs;
        portable_sums_t acc = {{0, 0, 0, 0}};
        for (int32_t q = 0; q < left; q++) {
            acc.v[q] = begin ? weft_linear_bias(&p, o + q) : call->acc[o + q];
        }
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *px = weft_px(in, y, call->x0);
            acc = portable_dot(acc, px, w + (y * in->w + call->x0) * in->c, inputs, left, run, in->zero_point);
        }
        for (int32_t q = 0; q < left; q++) {
            if (end) {
                const int32_t v = portable_out(&p, portable_scale(&p, o + q), acc.v[q]);
                out[o + q] = (int8_t)weft_clamp(v, call->op->act_min, call->op->act_max);
            }
            if (call->acc != NULL) {
                call->acc[o + q] = acc.v[q];
            }
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
}
