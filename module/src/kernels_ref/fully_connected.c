/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: weights N, H * W * C. The region is the part of the input that this call consumes. */
#include "linear.h"

void weft_fully_connected(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, inputs = in->h * in->w * in->c;
    const int32_t run = (call->x1 - call->x0) * in->c;
    const weft_linear_t p = weft_linear(call, n, 0);
    const bool whole = call->acc == NULL;
    int8_t *out = weft_px(&call->out, 0, 0);

    for (int32_t o = 0; o < n; o++) {
        int32_t acc = whole || call->first ? weft_linear_bias(&p, o) : call->acc[o];
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs + (y * in->w + call->x0) * in->c;
            acc += weft_dot(weft_px(in, y, call->x0), w, run, in->zero_point);
        }
        if (!whole) {
            call->acc[o] = acc;
        }
        if (whole || call->last) {
            out[o] = weft_linear_out(&p, o, acc);
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
}
