/* SPDX-License-Identifier: Apache-2.0 */
/* DWCONV2D: weights KH, KW, O; output o reads input channel o / multiplier. */
#include "linear.h"
#include "taps.h"

void weft_dwconv2d(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t n = call->channels, total = call->total, multiplier = weft_multiplier(call);
    const int32_t tap_step = op->dilation_w * in->c;
    const weft_linear_t p = weft_linear(call, total, 1);

    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            for (int32_t o = 0, channel = 0, left = multiplier; o < n; o++) {
                int32_t acc = weft_linear_bias(&p, o);
                for (int32_t ky = rows.taps.lo; ky < rows.taps.hi; ky++) {
                    const int8_t *px = weft_row(&rows, ky) + column + channel;
                    const int8_t *w = p.weights + (ky * op->kernel_w + cols.lo) * total + o;
                    for (int32_t kx = cols.lo; kx < cols.hi; kx++, px += tap_step, w += total) {
                        acc += (*px - in->zero_point) * *w;
                    }
                }
                out[o] = weft_linear_out(&p, o, acc);
                if (--left == 0) {
                    left = multiplier;
                    channel++;
                }
            }
            WEFT_COUNT_MACS(call, (int64_t)(rows.taps.hi - rows.taps.lo) * (cols.hi - cols.lo) * n);
        }
    }
}
