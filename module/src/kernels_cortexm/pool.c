/* SPDX-License-Identifier: Apache-2.0 */
/* AVGPOOL, MAXPOOL: four channels at once. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"

#define TAPS_MAX 255 /* sums of as many int8 fit int16 */

/* The taps of one output pixel: rows x columns of channels at `column`. */
typedef struct {
    const weft_rows_t *rows;
    int32_t column, columns, step;
} window_t;

static uint32_t max_quad(const window_t *win, int32_t channel)
{
    uint32_t best = 0x80808080u;
    for (int32_t ky = win->rows->taps.lo; ky < win->rows->taps.hi; ky++) {
        const int8_t *px = weft_row(win->rows, ky) + win->column + channel;
        for (int32_t k = win->columns; k > 0; k--, px += win->step) {
            const uint32_t v = dsp_load(px);
            __ssub8((int8x4_t)v, (int8x4_t)best);
            best = (uint32_t)__sel(v, best);
        }
    }
    return best;
}

/* Sums of four channels: even pair, odd pair. */
static void sum_quad(const window_t *win, int32_t channel, int16_t sum[4])
{
    uint32_t even = 0, odd = 0;
    for (int32_t ky = win->rows->taps.lo; ky < win->rows->taps.hi; ky++) {
        const int8_t *px = weft_row(win->rows, ky) + win->column + channel;
        for (int32_t k = win->columns; k > 0; k--, px += win->step) {
            const uint32_t v = dsp_load(px);
            even = (uint32_t)dsp_even_plus(v, even);
            odd = (uint32_t)dsp_odd_plus(v, odd);
        }
    }
    sum[0] = (int16_t)even;
    sum[1] = (int16_t)odd;
    sum[2] = (int16_t)(even >> 16);
    sum[3] = (int16_t)(odd >> 16);
}

static void average_quad(const weft_call_t *call, const window_t *win, int32_t channel, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t inside = (win->rows->taps.hi - win->rows->taps.lo) * win->columns;
    const bool count_pad = (op->flags & WEFT_OP_COUNT_PAD) != 0;
    const int32_t zp = count_pad ? call->in0.zero_point : 0;
    const int32_t count = count_pad ? op->kernel_h * op->kernel_w : inside;
    int16_t sum[4];
    sum_quad(win, channel, sum);
    for (int32_t i = 0; i < 4; i++) {
        out[i] = dsp_saturate(weft_div_round(sum[i] - inside * zp, count) + zp);
    }
}

DSP_INLINE void pool(const weft_call_t *call, bool average)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c;
    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, call->in0.w);
            const window_t win = {&rows, (first + cols.lo * op->dilation_w - rows.x) * c, cols.hi - cols.lo,
                                  op->dilation_w * c};
            for (int32_t next = 0; next < c; next += 4) {
                const int32_t channel = weft_min(next, c - 4); /* the last channels overlap those before */
                if (average) {
                    average_quad(call, &win, channel, out + channel);
                } else {
                    dsp_store(out + channel, max_quad(&win, channel));
                }
            }
        }
    }
    dsp_clamp_region(call);
}

void weft_avgpool_dsp(const weft_call_t *call)
{
    if (call->in0.c < 4 || call->op->kernel_h * call->op->kernel_w > TAPS_MAX) {
        weft_avgpool(call);
        return;
    }
    pool(call, true);
}

void weft_maxpool_dsp(const weft_call_t *call)
{
    if (call->in0.c < 4) {
        weft_maxpool(call);
        return;
    }
    pool(call, false);
}

#endif
