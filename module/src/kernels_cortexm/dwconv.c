/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: four channels at once. Their weights are widened once for a few
 * output rows, doubled: so sums come out doubled, as SMMULR wants them. Nine taps fit on the stack, more take the
 * plan's scratch or, without it, are widened for every pixel.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"
#include "../plan.h"

#define STACK_TAPS 9
#define TAP_BYTES 8  /* twice the even and the odd pair of a tap */
#define FEW_PIXELS 2 /* for which widening once does not pay */

/* Four channels. */
typedef struct {
    int16x2_t weight[STACK_TAPS][2]; /* quad_3x3() knows the offsets of these two */
    const int8_t *row[3];
    const int8_t *const *tap_row; /* of an output row: what is under its taps at column x */
    int32_t x;
    const int16x2_t *wide; /* all taps */
    int32_t bias[4];
    struct {
        int32_t multiplier, right;
    } scale[4];
    int32_t zp;
} quad_t;

/* Twice the sums of four channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} acc_t;

/* Channels o to o + 3: `taps` taps, `n` weights apart, widened to `to`. */
static DSP_FAST void load_quad(quad_t *q, const weft_linear_t *p, int32_t o, int32_t n, int32_t taps, int16x2_t *to)
{
    const int32_t *bias = (const int32_t *)(const void *)p->bias + o;
    const int32_t *multiplier = (const int32_t *)(const void *)p->multiplier;
    const int8_t *w = p->weights + o;
    uint32_t shifts = (uint8_t)p->shift[0] * 0x01010101u;
    int32_t step = 0;
    if (!p->per_tensor) {
        shifts = dsp_load(p->shift + o);
        multiplier += o;
        step = 1;
    }
    q->wide = to;
    for (int16x2_t *end = to + 2 * taps; to != end; w += n) {
        const uint32_t v = dsp_load(w);
        const int16x2_t even = dsp_even(v), odd = dsp_odd(v);
        to = dsp_push(to, __sadd16(even, even), __sadd16(odd, odd));
    }
    const uint32_t right = (uint32_t)__ssub8(0, (int8x4_t)shifts);
#define SCALE(i)                                                                                                       \
    q->bias[i] = 2 * bias[i];                                                                                          \
    q->scale[i].multiplier = multiplier[(i)*step];                                                                     \
    q->scale[i].right = (int32_t)(right >> 8 * (i)) /* shifts take the low byte */
    SCALE(0);
    SCALE(1);
    SCALE(2);
    SCALE(3);
}

DSP_INLINE void store_quad(const quad_t *q, acc_t acc, int8_t *out)
{
    const int32_t zp = q->zp;
    out[0] = dsp_scale(acc.v0, q->scale[0].multiplier, q->scale[0].right, zp);
    out[1] = dsp_scale(acc.v1, q->scale[1].multiplier, q->scale[1].right, zp);
    out[2] = dsp_scale(acc.v2, q->scale[2].multiplier, q->scale[2].right, zp);
    out[3] = dsp_scale(acc.v3, q->scale[3].multiplier, q->scale[3].right, zp);
}

#if DSP_ASM
/* One tap: input at `address`, widened weights at `weights`. */
#define MAC_TAP(address, weights)                                                                                      \
    "ldr %[x], [%[px]" address "]\n\t"                                                                                 \
    "ldrd %[we], %[wo], [%[w], #" weights "]\n\t"                                                                      \
    "sxtab16 %[e], %[offset], %[x]\n\t"                                                                                \
    "sxtab16 %[x], %[offset], %[x], ror #8\n\t" DSP_TAP_SUMS

#define STEP_1 ", %[step]"
#define STEP_2 ", %[step], lsl #1"
#define STEP_4 ", %[step], lsl #2"
#define NEXT "add %[px], %[px], %[step]\n\t"

#define MAC_ROWS(taps) DSP_TAP_ROWS(taps, px, step, ends)
#endif

/* Most tap columns of `left` that mac_columns() takes. */
DSP_INLINE int32_t columns_of(int32_t left)
{
    return left >= 7 ? 7 : left >= 5 ? 5 : weft_min(left, 3);
}

/*
 * 7, 5, 3, 2 or 1 tap columns, `step` bytes apart, the first at `at`; rows [row, row_end), not none; `width` widened
 * taps from a row's weights to the next one's.
 */
DSP_INLINE acc_t mac_columns(acc_t acc, const int8_t *const *row, const int8_t *const *row_end, int32_t at,
                             const int16x2_t *w, int32_t width, int32_t columns, int32_t step, uint32_t offset)
{
#if DSP_ASM
    const uintptr_t ends[2] = {(uintptr_t)width * TAP_BYTES, (uintptr_t)row_end};
    int32_t x, e, we, wo, px;
    switch (columns) {
    case 7:
        MAC_ROWS(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16") MAC_TAP(STEP_4, "32")
                     NEXT MAC_TAP(STEP_2, "24") MAC_TAP(STEP_4, "40") NEXT MAC_TAP(STEP_4, "48"));
        break;
    case 5:
        MAC_ROWS(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16") MAC_TAP(STEP_4, "32")
                     NEXT MAC_TAP(STEP_2, "24"));
        break;
    case 3:
        MAC_ROWS(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16"));
        break;
    case 2:
        MAC_ROWS(MAC_TAP("", "0") MAC_TAP(STEP_1, "8"));
        break;
    default:
        MAC_ROWS(MAC_TAP("", "0"));
    }
#else
    for (; row != row_end; row++, w += 2 * width) {
        for (int32_t k = 0; k < columns; k++) {
            const uint32_t x = dsp_load(*row + at + k * step);
            const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
            acc.v0 = __smlabb(even, w[2 * k], acc.v0);
            acc.v2 = __smlatt(even, w[2 * k], acc.v2);
            acc.v1 = __smlabb(odd, w[2 * k + 1], acc.v1);
            acc.v3 = __smlatt(odd, w[2 * k + 1], acc.v3);
        }
    }
#endif
    return acc;
}

#if DSP_ASM
#define MAC_ROW_OF_9(row, w0, w1, w2)                                                                                  \
    "ldr %[px], [%[w], #" row "]\n\t"                                                                                  \
    "add %[px], %[px], %[column]\n\t" MAC_TAP("", w0) MAC_TAP(STEP_1, w1) MAC_TAP(STEP_2, w2)
#endif

/* All nine taps of a 3x3 kernel; `column` is the offset of the first from q->row. */
DSP_INLINE acc_t mac_3x3(const quad_t *q, int32_t column, int32_t step, uint32_t offset)
{
    acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
#if DSP_ASM
    int32_t x, e, we, wo, px;
    __asm__ volatile(MAC_ROW_OF_9("72", "0", "8", "16") MAC_ROW_OF_9("76", "24", "32", "40")
                         MAC_ROW_OF_9("80", "48", "56", "64")
                     : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "=&r"(px),
                       [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo)
                     : [w] "r"(q), [column] "r"(column), [step] "r"(step), [offset] "r"(offset)
                     : "memory");
#else
    acc = mac_columns(acc, q->row, q->row + 3, column, q->weight[0], 3, 3, step, offset);
#endif
    return acc;
}

/* Four channels from o on of output columns [x, x1) of row y. */
static DSP_FAST void quad_columns(const weft_call_t *call, const quad_t *q, int32_t o, int32_t y, int32_t x, int32_t x1,
                                  int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, pixel = call->out.c, width = op->kernel_w, step = op->dilation_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const weft_taps_t taps = weft_taps(y * op->stride_h - op->pad_top, op->kernel_h, op->dilation_h, call->in0.h);
    const int8_t *const *const row = q->tap_row + taps.lo, *const *const row_end = q->tap_row + taps.hi;
    int32_t first = x * op->stride_w - op->pad_left;

    for (; x < x1; x++, first += op->stride_w, out += pixel) {
        const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
        int32_t at = (first + cols.lo * op->dilation_w - q->x) * c + o;
        const int16x2_t *w = q->wide + 2 * (taps.lo * width + cols.lo);
        acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
        for (int32_t left = row != row_end ? cols.hi - cols.lo : 0; left > 0;) {
            const int32_t columns = columns_of(left);
            acc = mac_columns(acc, row, row_end, at, w, width, columns, step, offset);
            left -= columns;
            at += columns * step;
            w += 2 * columns;
        }
        store_quad(q, acc, out);
    }
}

/* quad_columns() where no tap of a 3x3 kernel is outside. */
static DSP_FAST void quad_3x3(const weft_call_t *call, const quad_t *q, int32_t column, int32_t count, int8_t *out)
{
    const int32_t c = call->in0.c, pixel = call->out.c;
    const int32_t step = call->op->dilation_w * c, stride = call->op->stride_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    for (; count > 0; count--, column += stride, out += pixel) {
        store_quad(q, mac_3x3(q, column, step, offset), out);
    }
}

/* Pixel by pixel, with weights as they are. */
static DSP_SMALL void narrow_region(const weft_call_t *call, const weft_linear_t *p)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->total, c = call->in0.c, width = op->kernel_w;
    weft_rows_t rows;
    dsp_pixel_t px;
    dsp_pixel_of(&px, p);
    px.row_step = width * n;
    px.channel_step = n;
    px.offset = dsp_offset(call->in0.zero_point);
    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows(&rows, call, y);
        px.out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, px.out += call->out.c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
            px.row = rows.row + rows.taps.lo;
            px.row_end = rows.row + rows.taps.hi;
            px.at = (first + cols.lo * op->dilation_w - rows.x) * c;
            px.weights = p->weights + (rows.taps.lo * width + cols.lo) * n;
            px.columns = cols.hi - cols.lo;
            px.step = op->dilation_w * c;
            if (px.columns == 0 || px.row == px.row_end) { /* a run of none, at any address */
                px.row = &p->weights;
                px.row_end = px.row + 1;
                px.at = px.columns = px.step = 0;
            }
            dsp_pixel(&px, call->channels);
        }
    }
}

/* Of output rows or columns [lo, hi) those whose taps are all inside are [*begin, *end); none: *begin == *end. */
static DSP_SMALL void interior(const weft_call_t *call, uint32_t axis, int32_t lo, int32_t hi, int32_t *begin,
                               int32_t *end)
{
    const weft_op_t *op = call->op;
    const int32_t stride = weft_stride(op, axis), pad = weft_pad_before(op, axis);
    const int32_t size = axis == 0 ? call->in0.h : call->in0.w;
    const int32_t last = size - 1 - (weft_kernel(op, axis) - 1) * weft_dilation(op, axis) + pad;
    *begin = weft_clamp((pad + stride - 1) / stride, lo, hi);
    *end = last < 0 ? *begin : weft_clamp(last / stride + 1, *begin, hi);
}

/* Widened weights of `taps` taps in `memory`, or in a quad_t if that is NULL. */
static DSP_FAST void wide_region(const weft_call_t *call, const weft_linear_t *p, int32_t taps, int16x2_t *memory)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, pixel = call->out.c, x0 = call->x0, x1 = call->x1;
    quad_t q;
    weft_rows_t rows;
    int32_t left, right, top, bottom;
    interior(call, 0, call->y0, call->y1, &top, &bottom);
    interior(call, 1, x0, x1, &left, &right);
    if (op->kernel_h != 3 || op->kernel_w != 3 || left == right) {
        bottom = top;
    }
    /* Output rows whose taps are those of the first one further on, as many as fit. */
    const int32_t block = op->dilation_h == 1 ? (WEFT_HOISTED_ROWS - op->kernel_h) / op->stride_h + 1 : 1;
    q.zp = p->zp_out;

    for (int32_t y0 = call->y0, y1; y0 < call->y1; y0 = y1) {
        y1 = weft_min(y0 + block, call->y1);
        weft_tap_rows(&rows, call, y0, (y1 - 1 - y0) * op->stride_h + op->kernel_h);
        q.x = rows.x;
        const int32_t column = (left * op->stride_w - op->pad_left - rows.x) * call->in0.c;
        for (int32_t next = 0; next < n; next += 4) {
            const int32_t o = weft_min(next, n - 4); /* the last channels overlap those before */
            load_quad(&q, p, o, call->total, taps, memory != NULL ? memory : q.weight[0]);
            const int8_t *const *row = rows.row;
            for (int32_t y = y0; y < y1; y++, row += op->stride_h) {
                int8_t *out = weft_px(&call->out, y, x0) + o;
                q.tap_row = row;
                if (y < top || y >= bottom) {
                    quad_columns(call, &q, o, y, x0, x1, out);
                    continue;
                }
                if (x0 < left) {
                    quad_columns(call, &q, o, y, x0, left, out);
                    out += (left - x0) * pixel;
                }
                q.row[0] = row[0];
                q.row[1] = row[1];
                q.row[2] = row[2];
                quad_3x3(call, &q, column + o, right - left, out);
                if (right < x1) {
                    quad_columns(call, &q, o, y, right, x1, out + (right - left) * pixel);
                }
            }
        }
    }
}

DSP_SMALL void weft_dwconv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, taps = op->kernel_h * op->kernel_w;
    if (weft_multiplier(call) != 1 || n < 4 || op->kernel_h > WEFT_HOISTED_ROWS) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    const bool memory = taps <= STACK_TAPS || (int32_t)call->scratch_len >= taps * TAP_BYTES;
    if (memory && (call->y1 - call->y0) * (call->x1 - call->x0) > FEW_PIXELS && dsp_quick(&p, n, taps)) {
        wide_region(call, &p, taps, taps <= STACK_TAPS ? NULL : call->scratch);
    } else {
        narrow_region(call, &p);
    }
    weft_count_macs(call, n);
    dsp_clamp_region(call);
}

#endif
