/* SPDX-License-Identifier: Apache-2.0 */
/* AVGPOOL four channels at once, MAXPOOL sixteen. */
#include "mve.h"

#if WEFT_KERNELS_MVE

/* The taps of one output pixel: rows x columns of pixels, `step` bytes apart, from `column` on. */
typedef struct {
    const weft_rows_t *rows;
    int32_t column, columns, step;
} window_t;

static MVE_NOINLINE void max_pixel(const weft_call_t *call, const window_t *win, int8_t *out)
{
    const int8x16_t lo = vdupq_n_s8(call->op->act_min), hi = vdupq_n_s8(call->op->act_max);
    const int32_t c = call->in0.c;
    for (int32_t i = 0; i < c; i += 16) {
        const mve_pred16_t lanes = vctp8q((uint32_t)(c - i));
        int8x16_t best = vdupq_n_s8(INT8_MIN);
        for (int32_t ky = win->rows->taps.lo; ky < win->rows->taps.hi; ky++) {
            const int8_t *px = weft_row(win->rows, ky) + win->column + i;
            for (int32_t k = win->columns; k > 0; k--, px += win->step) {
                best = vmaxq_s8(best, vldrbq_z_s8(px, lanes));
            }
        }
        vstrbq_p_s8(out + i, vminq_s8(vmaxq_s8(best, lo), hi), lanes);
    }
}

static MVE_NOINLINE void average_pixel(const weft_call_t *call, const window_t *win, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, inside = (win->rows->taps.hi - win->rows->taps.lo) * win->columns;
    const bool count_pad = (op->flags & WEFT_OP_COUNT_PAD) != 0;
    const int32_t zp = count_pad ? call->in0.zero_point : 0;
    const int32_t count = count_pad ? op->kernel_h * op->kernel_w : inside;
    for (int32_t i = 0; i < c; i += 4) {
        const mve_pred16_t lanes = vctp32q((uint32_t)(c - i));
        int32x4_t acc = vdupq_n_s32(-inside * zp);
        for (int32_t ky = win->rows->taps.lo; ky < win->rows->taps.hi; ky++) {
            const int8_t *px = weft_row(win->rows, ky) + win->column + i;
            for (int32_t k = win->columns; k > 0; k--, px += win->step) {
                acc = vaddq_s32(acc, vldrbq_z_s32(px, lanes));
            }
        }
        int32_t sum[4];
        vstrwq_s32(sum, acc);
        for (int32_t k = 0; k < 4; k++) {
            sum[k] = weft_clamp(weft_div_round(sum[k], count) + zp, op->act_min, op->act_max);
        }
        vstrbq_p_s32(out + i, vldrwq_s32(sum), lanes);
    }
}

static void pool(const weft_call_t *call, void (*pixel)(const weft_call_t *, const window_t *, int8_t *))
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
            pixel(call, &win, out);
        }
    }
}

void weft_avgpool_mve(const weft_call_t *call)
{
    pool(call, average_pixel);
}

void weft_maxpool_mve(const weft_call_t *call)
{
    pool(call, max_pixel);
}

#endif
