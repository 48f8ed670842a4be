/* SPDX-License-Identifier: Apache-2.0 */
/* CONV2D: weights O, KH, KW, C_in / groups. */
#include "linear.h"
#include "taps.h"

void weft_conv2d(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t n = call->channels, depth = in->c / op->groups, per_group = n / op->groups;
    const int32_t kernel_row = op->kernel_w * depth, kernel_size = op->kernel_h * kernel_row;
    const weft_linear_t p = weft_linear(call, call->total, kernel_size);
    /* Neighbouring taps of all channels lie one behind the other, in the input as in the weights: one long dot. */
    const bool joined = op->groups == 1 && op->dilation_w == 1;

    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            const int32_t taps = cols.hi - cols.lo;
            for (int32_t o = 0; o < n; o++) {
                const int32_t channel = joined ? 0 : o / per_group * depth;
                int32_t acc = weft_linear_bias(&p, o);
                for (int32_t ky = rows.taps.lo; ky < rows.taps.hi; ky++) {
                    const int8_t *px = weft_row(&rows, ky) + column + channel;
                    const int8_t *w = p.weights + o * kernel_size + ky * kernel_row + cols.lo * depth;
                    if (joined) {
                        acc += weft_dot(px, w, taps * depth, in->zero_point);
                        continue;
                    }
                    for (int32_t k = 0; k < taps; k++, px += op->dilation_w * in->c, w += depth) {
                        acc += weft_dot(px, w, depth, in->zero_point);
                    }
                }
                out[o] = weft_linear_out(&p, o, acc);
            }
            WEFT_COUNT_MACS(call, (int64_t)(rows.taps.hi - rows.taps.lo) * taps * depth * n);
        }
    }
}
