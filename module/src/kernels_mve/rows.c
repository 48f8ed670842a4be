/* SPDX-License-Identifier: Apache-2.0 */
/* Tap rows of a call, each from the one above: first those in the ring, then those in the tile. */
#include "mve.h"

#if WEFT_KERNELS_MVE

void mve_tap_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t dilation = op->dilation_h, first = y * op->stride_h - op->pad_top;
    const int32_t x = weft_clamp(call->x0 * op->stride_w - op->pad_left, 0, in->w - 1);
    const weft_taps_t taps = weft_taps(first, op->kernel_h, dilation, in->h);
    const int8_t **row = rows->row + taps.lo, **const end = rows->row + taps.hi;
    rows->taps = taps;
    rows->x = x;
    int32_t in_y = first + taps.lo * dilation;
    if (row != end && in_y < in->split) {
        const int8_t *px = weft_px_inline(in, in_y, x);
        const int32_t step = dilation * in->ring_stride, size = in->cap * in->ring_stride;
        const int8_t *const stop = in->ring + size;
        do {
            *row++ = px;
            in_y += dilation;
            px += step;
            px = px >= stop ? px - size : px;
        } while (row != end && in_y < in->split);
    }
    if (row != end) {
        const int8_t *px = weft_px_inline(in, in_y, x);
        const int32_t step = dilation * in->tile_stride;
        do {
            *row++ = px;
            px += step;
        } while (row != end);
    }
}

#endif
