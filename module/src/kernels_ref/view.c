/* SPDX-License-Identifier: Apache-2.0 */
/* Where rows and pixels are: once in the firmware, not in every kernel. */
#include "taps.h"

int8_t *weft_px(const weft_view_t *v, int32_t y, int32_t x)
{
    return weft_px_inline(v, y, x);
}

void weft_tap_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y, int32_t taps)
{
    const weft_op_t *op = call->op;
    rows->view = &call->in0;
    rows->dilation = op->dilation_h;
    rows->first = y * op->stride_h - op->pad_top;
    rows->taps = weft_taps(rows->first, taps, op->dilation_h, call->in0.h);
    rows->x = weft_clamp(call->x0 * op->stride_w - op->pad_left, 0, call->in0.w - 1);
    int32_t k = rows->taps.lo, in_y = rows->first + k * rows->dilation;
    if (k < rows->taps.hi && k < WEFT_HOISTED_ROWS) {
        rows->row[k] = weft_px_inline(&call->in0, in_y, rows->x);
        if (in_y >= call->in0.split) { /* so are all below */
            const int32_t step = rows->dilation * call->in0.tile_stride;
            while (++k < rows->taps.hi && k < WEFT_HOISTED_ROWS) {
                rows->row[k] = rows->row[k - 1] + step;
            }
        }
        while (++k < rows->taps.hi && k < WEFT_HOISTED_ROWS) {
            in_y += rows->dilation;
            rows->row[k] = weft_px_below(&call->in0, rows->row[k - 1], rows->dilation, in_y, rows->x);
        }
    }
}
