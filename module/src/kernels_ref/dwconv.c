/* SPDX-License-Identifier: Apache-2.0 */
/* DWCONV2D: weights KH, KW, O or, of 16 bits, in quads; output o reads input channel o / multiplier. */
#include "linear.h"
#include "taps.h"

/* Weights in quads: of tap k for output `o`, in a quad of channels 0, 2, 1, 3, of which there are `taps` each. */
static int32_t quad_weight(const uint8_t *quads, int32_t taps, int32_t k, int32_t o)
{
    const int32_t lane = ((o & 1) << 1) | ((o & 2) >> 1);
    return (int16_t)weft_rd16(quads + ((o >> 2) * taps + k) * 8 + lane * 2);
}

void weft_dwconv2d(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t n = call->channels, total = call->total, multiplier = weft_multiplier(call);
    const int32_t tap_step = op->dilation_w * in->c;
    const bool in_quads = weft_in_quads(op);
    const weft_linear_t p = weft_linear(call, total, in_quads ? 0 : 1);
    const uint8_t *const quads = (const uint8_t *)p.weights;

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
                    for (int32_t kx = cols.lo; kx < cols.hi; kx++, px += tap_step) {
                        const int32_t k = ky * op->kernel_w + kx;
                        acc += (*px - in->zero_point) *
                               (in_quads ? quad_weight(quads, op->kernel_h * op->kernel_w, k, call->channel + o)
                                         : p.weights[k * total + o]);
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
