/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: four channels at once. Their weights are widened onto the stack
 * once per output row, doubled: so sums come out doubled, as SMMULR wants them.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"

#define TAPS_MAX 49 /* 8 bytes of stack each */

typedef struct {
    int16x2_t weight[TAPS_MAX][2]; /* twice the even and the odd pair of every tap */
    int32_t bias[4], multiplier[4], right[4];
} quad_t;

/* Twice the sums of four channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} acc_t;

static __attribute__((noinline)) void load_quad(quad_t *q, const weft_linear_t *p, int32_t o, int32_t n,
                                                int32_t first_tap, int32_t taps)
{
    const int8_t *w = p->weights + first_tap * n + o;
    for (int16x2_t *to = q->weight[0], *end = q->weight[taps]; to != end; to += 2, w += n) {
        const uint32_t v = dsp_load(w);
        to[0] = __sadd16(dsp_even(v), dsp_even(v));
        to[1] = __sadd16(dsp_odd(v), dsp_odd(v));
    }
    for (int32_t i = 0; i < 4; i++) {
        const int32_t m = p->per_tensor ? 0 : o + i;
        q->bias[i] = 2 * weft_linear_bias(p, o + i);
        q->multiplier[i] = (int32_t)weft_rd32(p->multiplier + 4 * m);
        q->right[i] = -p->shift[m];
    }
}

#define MAC_TAP(address)                                                                                               \
    "ldr %[x], " address "\n\t"                                                                                        \
    "ldrd %[we], %[wo], [%[w]], #8\n\t"                                                                                \
    "sxtab16 %[e], %[offset], %[x]\n\t"                                                                                \
    "sxtab16 %[x], %[offset], %[x], ror #8\n\t"                                                                        \
    "smlabb %[v0], %[e], %[we], %[v0]\n\t"                                                                             \
    "smlatt %[v2], %[e], %[we], %[v2]\n\t"                                                                             \
    "smlabb %[v1], %[x], %[wo], %[v1]\n\t"                                                                             \
    "smlatt %[v3], %[x], %[wo], %[v3]\n\t"

#define MAC_OPERANDS                                                                                                   \
    [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "+r"(px), [w] "+r"(w),            \
        [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo)

/* `taps` neighbouring taps of a row, `step` bytes apart; returns through w where the next row's weights are. */
DSP_INLINE acc_t mac_row(acc_t acc, const int8_t *px, int32_t step, const int16x2_t **weights, int32_t taps,
                         uint32_t offset)
{
    const int16x2_t *w = *weights;
    int32_t x, e, we, wo;
    for (; taps >= 3; taps -= 3) {
        __asm__ volatile(MAC_TAP("[%[px]]") MAC_TAP("[%[px], %[step]]") MAC_TAP("[%[px], %[step], lsl #1]")
                         : MAC_OPERANDS
                         : [step] "r"(step), [offset] "r"(offset)
                         : "memory");
        px += 3 * step;
    }
    for (; taps > 0; taps--) {
        __asm__ volatile(MAC_TAP("[%[px]]") : MAC_OPERANDS : [offset] "r"(offset) : "memory");
        px += step;
    }
    *weights = w;
    return acc;
}

/* One output row, four channels from o on; `width` is the kernel's, a constant where there is code of its own. */
DSP_INLINE void quad_row(const weft_call_t *call, const weft_rows_t *rows, const quad_t *q, int32_t o, int32_t width,
                         int32_t zp, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, step = op->dilation_w * c, last = call->in0.w - (width - 1) * op->dilation_w - 1;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const int8_t *const *row = rows->row + rows->taps.lo, *const *row_end = rows->row + rows->taps.hi;
    int32_t first = call->x0 * op->stride_w - op->pad_left;

    for (int32_t x = call->x0; x < call->x1; x++, first += op->stride_w, out += c) {
        acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
        const int16x2_t *w = q->weight[0];
        if (first >= 0 && first <= last) {
            const int32_t column = (first - rows->x) * c + o;
            for (const int8_t *const *r = row; r != row_end; r++) {
                acc = mac_row(acc, *r + column, step, &w, width, offset);
            }
        } else {
            const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * c + o;
            for (const int8_t *const *r = row; r != row_end; r++) {
                w += 2 * cols.lo;
                acc = mac_row(acc, *r + column, step, &w, cols.hi - cols.lo, offset);
                w += 2 * (width - cols.hi);
            }
        }
        out[0] = dsp_out(dsp_requant_doubled(acc.v0, q->multiplier[0], q->right[0]), zp);
        out[1] = dsp_out(dsp_requant_doubled(acc.v1, q->multiplier[1], q->right[1]), zp);
        out[2] = dsp_out(dsp_requant_doubled(acc.v2, q->multiplier[2], q->right[2]), zp);
        out[3] = dsp_out(dsp_requant_doubled(acc.v3, q->multiplier[3], q->right[3]), zp);
    }
}

static __attribute__((noinline)) void quad_row_3(const weft_call_t *call, const weft_rows_t *rows, const quad_t *q,
                                                 int32_t o, int32_t zp, int8_t *out)
{
    quad_row(call, rows, q, o, 3, zp, out);
}

static __attribute__((noinline)) void quad_row_any(const weft_call_t *call, const weft_rows_t *rows, const quad_t *q,
                                                   int32_t o, int32_t zp, int8_t *out)
{
    quad_row(call, rows, q, o, call->op->kernel_w, zp, out);
}

void weft_dwconv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->out.c, width = op->kernel_w, taps = op->kernel_h * width;
    const weft_linear_t p = weft_linear(call, n);
    if (n != call->in0.c || n < 4 || taps > TAPS_MAX || op->kernel_h > WEFT_HOISTED_ROWS || !dsp_quick(&p, n, taps)) {
        weft_dwconv2d(call);
        return;
    }
    quad_t q;
    weft_rows_t rows;

    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(&rows, call, y);
        for (int32_t next = 0; next < n; next += 4) {
            const int32_t o = weft_min(next, n - 4); /* the last channels overlap those before */
            load_quad(&q, &p, o, n, rows.taps.lo * width, (rows.taps.hi - rows.taps.lo) * width);
            if (width == 3) {
                quad_row_3(call, &rows, &q, o, p.zp_out, out + o);
            } else {
                quad_row_any(call, &rows, &q, o, p.zp_out, out + o);
            }
        }
    }
    dsp_count_macs(call, n);
    dsp_clamp_region(call);
}

#endif
