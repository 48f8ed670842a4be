/* SPDX-License-Identifier: Apache-2.0 */
/* AVGPOOL, MAXPOOL. */
#include "../fixedpoint.h"
#include "taps.h"

void weft_avgpool(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const bool count_pad = (op->flags & WEFT_OP_COUNT_PAD) != 0;
    /* Padding is worth the zero point: it counts nothing in a sum of differences to it. */
    const int32_t zp = count_pad ? in->zero_point : 0;

    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += in->c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            const int32_t inside = (rows.taps.hi - rows.taps.lo) * (cols.hi - cols.lo);
            const int32_t count = count_pad ? op->kernel_h * op->kernel_w : inside;
            for (int32_t i = 0; i < in->c; i++) {
                int32_t acc = -inside * zp;
                for (int32_t ky = rows.taps.lo; ky < rows.taps.hi; ky++) {
                    const int8_t *px = weft_row(&rows, ky) + column + i;
                    for (int32_t kx = cols.lo; kx < cols.hi; kx++, px += op->dilation_w * in->c) {
                        acc += *px;
                    }
                }
                out[i] = (int8_t)weft_clamp(weft_div_round(acc, count) + zp, op->act_min, op->act_max);
            }
        }
    }
}

void weft_maxpool(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;

    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += in->c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            for (int32_t i = 0; i < in->c; i++) {
                int32_t best = INT8_MIN;
                for (int32_t ky = rows.taps.lo; ky < rows.taps.hi; ky++) {
                    const int8_t *px = weft_row(&rows, ky) + column + i;
                    for (int32_t kx = cols.lo; kx < cols.hi; kx++, px += op->dilation_w * in->c) {
                        best = weft_max(best, *px);
                    }
                }
                out[i] = (int8_t)weft_clamp(best, op->act_min, op->act_max);
            }
        }
    }
}
