/* SPDX-License-Identifier: Apache-2.0 */
/* Sliding windows: which taps lie inside the tensor, and where their rows are. */
#ifndef WEFT_TAPS_H
#define WEFT_TAPS_H

#include "../weft_internal.h"

/* Taps [lo, hi) of a kernel whose tap 0 is at coordinate `first`; hi == lo if all are outside. */
typedef struct {
    int32_t lo, hi;
} weft_taps_t;

WEFT_INLINE weft_taps_t weft_taps(int32_t first, int32_t kernel, int32_t dilation, int32_t size)
{
    weft_taps_t taps = {0, kernel};
    if (first < 0) {
        taps.lo = weft_min((dilation - 1 - first) / dilation, kernel);
    }
    if (first + (kernel - 1) * dilation >= size) {
        taps.hi = weft_max((size - first + dilation - 1) / dilation, taps.lo);
    }
    return taps;
}

/* Whether each output pixel of a call is made of one input pixel, which is there: outputs may lie behind the tensor. */
WEFT_INLINE bool weft_pointwise(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    return op->kernel_h * op->kernel_w == 1 && op->pad_top + op->pad_left == 0 &&
           (call->y1 - 1) * op->stride_h < call->in0.h && (call->x1 - 1) * op->stride_w < call->in0.w;
}

/* Kernels taller than this have the addresses of their further rows computed on use: bounds the stack. */
#define WEFT_HOISTED_ROWS 12

/* The input rows under one output row; addresses are those of column `x`. */
typedef struct {
    const weft_view_t *view;
    weft_taps_t taps;
    int32_t first, dilation, x;
    const int8_t *row[WEFT_HOISTED_ROWS];
} weft_rows_t;

/* Rows under `taps` taps from the first one of output row y on; the call's output columns start at call->x0. */
void weft_tap_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y, int32_t taps);

/* Rows under output row y. */
static inline void weft_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y)
{
    weft_tap_rows(rows, call, y, call->op->kernel_h);
}

/* Address of column rows->x under tap row k, taps.lo <= k < taps.hi. */
static inline const int8_t *weft_row(const weft_rows_t *rows, int32_t k)
{
    return k < WEFT_HOISTED_ROWS ? rows->row[k] : weft_px(rows->view, rows->first + k * rows->dilation, rows->x);
}

/* WEFT_COUNT_MACS for a call with `depth` MACs per tap and output pixel. */
static inline void weft_count_macs(const weft_call_t *call, int32_t depth)
{
#if WEFT_COUNT
    const weft_op_t *op = call->op;
    int64_t columns = 0, rows = 0;
    for (int32_t x = call->x0; x < call->x1; x++) {
        const weft_taps_t taps = weft_taps(x * op->stride_w - op->pad_left, op->kernel_w, op->dilation_w, call->in0.w);
        columns += taps.hi - taps.lo;
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        const weft_taps_t taps = weft_taps(y * op->stride_h - op->pad_top, op->kernel_h, op->dilation_h, call->in0.h);
        rows += taps.hi - taps.lo;
    }
    WEFT_COUNT_MACS(call, rows * columns * depth);
#else
    (void)call;
    (void)depth;
#endif
}

#endif
