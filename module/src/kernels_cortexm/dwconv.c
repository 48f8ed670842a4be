/* SPDX-License-Identifier: Apache-2.0 */
/* DWCONV2D with one output channel per input channel: four channels at once, their weights widened once per row. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/linear.h"
#include "../kernels_ref/taps.h"

#define TAPS_MAX 49 /* 8 bytes of stack each */

typedef struct {
    int16x2_t weight[TAPS_MAX][2]; /* even and odd pair of every tap */
    int32_t bias[4], multiplier[4], shift[4];
} quad_t;

static void load_quad(quad_t *q, const weft_linear_t *p, int32_t o, int32_t n, int32_t first_tap, int32_t taps)
{
    const int8_t *w = p->weights + first_tap * n + o;
    for (int32_t t = 0; t < taps; t++, w += n) {
        const uint32_t v = dsp_load(w);
        q->weight[t][0] = dsp_even(v);
        q->weight[t][1] = dsp_odd(v);
    }
    for (int32_t i = 0; i < 4; i++) {
        const int32_t m = p->per_tensor ? 0 : o + i;
        q->bias[i] = weft_linear_bias(p, o + i);
        q->multiplier[i] = (int32_t)weft_rd32(p->multiplier + 4 * m);
        q->shift[i] = p->shift[m];
    }
}

typedef struct {
    int32_t v[4];
} acc_t;

/* `taps` neighbouring taps of a row. */
DSP_INLINE acc_t mac_row(acc_t acc, const int8_t *px, int32_t step, const int16x2_t (*w)[2], int32_t taps,
                         uint32_t offset)
{
#pragma GCC unroll 7
    for (int32_t k = 0; k < taps; k++, px += step, w++) {
        const uint32_t x = dsp_load(px);
        const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
        const int16x2_t we = w[0][0], wo = w[0][1];
        acc.v[0] = __smlabb(even, we, acc.v[0]);
        acc.v[1] = __smlabb(odd, wo, acc.v[1]);
        acc.v[2] = __smlatt(even, we, acc.v[2]);
        acc.v[3] = __smlatt(odd, wo, acc.v[3]);
    }
    return acc;
}

/* One output row, four channels from o on. `width` is the kernel's, as a constant where there is code of its own. */
DSP_INLINE void quad_row(const weft_call_t *call, const weft_rows_t *rows, const quad_t *q, int32_t o, int32_t width,
                         int32_t zp_out, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, step = op->dilation_w * c, last = call->in0.w - (width - 1) * op->dilation_w - 1;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    int32_t first = call->x0 * op->stride_w - op->pad_left;

    for (int32_t x = call->x0; x < call->x1; x++, first += op->stride_w, out += c) {
        acc_t acc = {{q->bias[0], q->bias[1], q->bias[2], q->bias[3]}};
        const int16x2_t(*w)[2] = q->weight;
        if (first >= 0 && first <= last) {
            const int32_t column = (first - rows->x) * c + o;
            for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += width) {
                acc = mac_row(acc, weft_row(rows, ky) + column, step, w, width, offset);
            }
        } else {
            const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * c + o;
            w += cols.lo;
            for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += width) {
                const int8_t *px = weft_row(rows, ky) + column;
                for (int32_t k = 0; k < cols.hi - cols.lo; k++, px += step) {
                    acc = mac_row(acc, px, step, w + k, 1, offset);
                }
            }
        }
        for (int32_t i = 0; i < 4; i++) {
            out[i] = dsp_out(dsp_requant(acc.v[i], q->multiplier[i], q->shift[i]), zp_out);
        }
    }
}

void weft_dwconv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->out.c, width = op->kernel_w;
    if (n != call->in0.c || n < 4 || op->kernel_h * width > TAPS_MAX) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, n);
    quad_t q;

    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t rows;
        weft_rows(&rows, call, y);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t next = 0; next < n; next += 4) {
            const int32_t o = weft_min(next, n - 4); /* the last channels overlap those before */
            load_quad(&q, &p, o, n, rows.taps.lo * width, (rows.taps.hi - rows.taps.lo) * width);
            if (width == 3) {
                quad_row(call, &rows, &q, o, 3, p.zp_out, out + o);
            } else if (width == 5) {
                quad_row(call, &rows, &q, o, 5, p.zp_out, out + o);
            } else if (width == 7) {
                quad_row(call, &rows, &q, o, 7, p.zp_out, out + o);
            } else {
                quad_row(call, &rows, &q, o, width, p.zp_out, out + o);
            }
        }
    }
    dsp_count_macs(call, n);
    dsp_clamp_region(call);
}

#endif
