/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: four channels at once, of which the plan has the weights in
 * quads, widened. Runs of pixels without a tap outside go quad by quad, all others pixel by pixel. Plans for other
 * cores have weights as they are.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"
#include "../plan.h"

#define QUAD_TAP 8 /* bytes of a tap of a quad: even pair, odd pair */
#define ALL_9 8
#define WIDEST 7 /* tap columns that pixel() takes */
#define RUN 4    /* pixels for which going quad by quad pays */

/* Sums of four channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} acc_t;

/* ---------------------------------------------------------------- pixel by pixel */

/* A pixel, and the quad of channels that is next; pixel() knows where members are. */
typedef struct {
    const int8_t *const *row; /* tap rows [row, row_end) */
    int32_t row_step;         /* bytes from a row's weights to the next one's */
    const int8_t *const *row_end;
    int32_t at;                     /* from a row's address to the first tap */
    const int32_t *bias, *bias_end; /* 16 */
    const int8_t *shift;            /* 24 */
    int32_t columns;                /* tap columns, 0 if there is no tap at all, ALL_9 for a whole 3x3 kernel */
    int8_t *out;                    /* 32 */
    const int32_t *multiplier;
    int32_t zp;
    int32_t rest; /* bytes from the end of the last row's weights to the next quad's */
} pixel_t;

#if DSP_ASM
/* One tap: input at `address`, weights at `weights`. */
#define MAC_TAP(address, weights)                                                                                      \
    "ldr %[x], [%[px]" address "]\n\t"                                                                                 \
    "ldrd %[we], %[wo], [%[w], #" weights "]\n\t"                                                                      \
    "sxtab16 %[e], %[offset], %[x]\n\t"                                                                                \
    "sxtab16 %[x], %[offset], %[x], ror #8\n\t" DSP_TAP_SUMS

#define STEP_1 ", %[step]"
#define STEP_2 ", %[step], lsl #1"
#define STEP_4 ", %[step], lsl #2"
#define NEXT "add %[px], %[px], %[step]\n\t"

#define ROW_BEGIN                                                                                                      \
    "ldr %[px], [%[row]], #4\n\t"                                                                                      \
    "ldr %[x], [%[pixel], #12]\n\t"                                                                                    \
    "add %[px], %[px], %[x]\n\t"
#define ROW_END(again)                                                                                                 \
    "ldrd %[x], %[e], [%[pixel], #4]\n\t"                                                                              \
    "add %[w], %[w], %[x]\n\t"                                                                                         \
    "cmp %[row], %[e]\n\t"                                                                                             \
    "bne " again "\n\t"

/* A row of a whole 3x3 kernel. */
#define MAC_ROW_OF_9(at, w0, w1, w2)                                                                                   \
    "ldr %[px], [%[row], #" at "]\n\t"                                                                                 \
    "ldr %[x], [%[pixel], #12]\n\t"                                                                                    \
    "add %[px], %[px], %[x]\n\t" MAC_TAP("", w0) MAC_TAP(STEP_1, w1) MAC_TAP(STEP_2, w2)

#define OUT(v, m) DSP_OUT(v, m, "e", "row")
#define OUT_NEXT "lsrs %[e], %[e], #8\n\t"
#endif

/*
 * All quads of a pixel; `w`: the first one's weights of the first tap that is inside. `step`: bytes from a tap column
 * to the next.
 */
static DSP_FAST void pixel(pixel_t *pixel, const uint8_t *w, int32_t step, uint32_t offset)
{
#if DSP_ASM
    const int32_t *we = pixel->bias;
    int32_t v0, v1, v2, v3, x, e, wo, px, row;
    if (pixel->columns > 3 && pixel->columns != ALL_9) { /* the loop for seven is entered later */
        pixel->at -= (WIDEST - pixel->columns) * step;
        w -= (WIDEST - pixel->columns) * QUAD_TAP;
    }
    __asm__ volatile(
        "0:\n\t"
        "ldrd %[v0], %[v1], [%[we]], #8\n\t"
        "ldrd %[v2], %[v3], [%[we]], #8\n\t"
        "str %[we], [%[pixel], #16]\n\t"
        "ldr %[row], [%[pixel]]\n\t"
        "ldr %[x], [%[pixel], #28]\n\t"
        "tbh [pc, %[x], lsl #1]\n"
        "10:\n\t"
        ".hword (19f - 10b) / 2, (11f - 10b) / 2, (12f - 10b) / 2, (13f - 10b) / 2, (14f - 10b) / 2\n\t"
        ".hword (14f - 10b) / 2, (14f - 10b) / 2, (14f - 10b) / 2, 9\n\t" MAC_ROW_OF_9("0", "0", "8", "16")
            MAC_ROW_OF_9("4", "24", "32", "40") MAC_ROW_OF_9(
                "8", "48", "56",
                "64") "add %[w], %[w], #72\n\t"
                      "b 19f\n"
                      "13:\n\t" ROW_BEGIN MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16") ROW_END(
                          "13b") "b 19f\n"
                                 "12:\n\t" ROW_BEGIN MAC_TAP("", "0") MAC_TAP(STEP_1, "8") ROW_END(
                                     "12b") "b 19f\n"
                                            "11:\n\t" ROW_BEGIN MAC_TAP("", "0") ROW_END(
                                                "11b") "b 19f\n"
                                                       "14:\n\t" ROW_BEGIN "ldr %[x], [%[pixel], #28]\n\t"
                                                       "subs %[x], %[x], #4\n\t"
                                                       "tbb [pc, %[x]]\n"
                                                       "15:\n\t"
                                                       ".byte (18f - 15b) / 2, (17f - 15b) / 2, (16f - 15b) / 2, "
                                                       "2\n\t" MAC_TAP("", "0") "16:\n\t" MAC_TAP(
                                                           STEP_1, "8") "17:\n\t" MAC_TAP(STEP_2, "16") "18:\n\t" NEXT
                                                           MAC_TAP(STEP_2, "24") MAC_TAP(STEP_4, "40")
                                                               NEXT MAC_TAP(STEP_2, "32") MAC_TAP(STEP_4, "48") ROW_END(
                                                                   "14b") "19:\n\t"
                                                                          "ldrd %[row], %[px], [%[pixel], #32]\n\t"
                                                                          "ldrd %[x], %[we], [%[pixel], #40]\n\t"
                                                                          "add %[w], %[w], %[we]\n\t"
                                                                          "ldr %[wo], [%[pixel], #24]\n\t"
                                                                          "ldr %[e], [%[wo]], #4\n\t"
                                                                          "str %[wo], [%[pixel], #24]\n\t"
                                                                          "mov %[we], #0\n\t"
                                                                          "ssub8 %[e], %[we], %[e]\n\t"
                                                                          "ldrd %[we], %[wo], [%[px]], #8\n\t" OUT("v0",
                                                                                                                   "we")
                                                                              OUT_NEXT OUT("v1", "wo") OUT_NEXT
        "ldrd %[we], %[wo], [%[px]], #8\n\t" OUT("v2", "we")
            OUT_NEXT OUT("v3", "wo") "strd %[row], %[px], [%[pixel], #32]\n\t"
                                     "ldrd %[x], %[we], [%[pixel], #12]\n\t"
                                     "adds %[x], %[x], #4\n\t"
                                     "str %[x], [%[pixel], #12]\n\t"
                                     "ldr %[e], [%[pixel], #20]\n\t"
                                     "cmp %[we], %[e]\n\t"
                                     "bne 0b"
        : [v0] "=&r"(v0), [v1] "=&r"(v1), [v2] "=&r"(v2), [v3] "=&r"(v3), [x] "=&r"(x), [e] "=&r"(e), [we] "+&r"(we),
          [wo] "=&r"(wo), [px] "=&r"(px), [row] "=&r"(row), [w] "+&r"(w)
        : [pixel] "r"(pixel), [step] "r"(step), [offset] "r"(offset)
        : "cc", "memory");
#else
    for (; pixel->bias != pixel->bias_end; pixel->bias += 4, pixel->at += 4, w += pixel->rest) {
        int32_t sum[4];
        memcpy(sum, pixel->bias, sizeof sum);
        const int8_t *const *row = pixel->columns > 0 ? pixel->row : pixel->row_end;
        const int32_t columns = pixel->columns == ALL_9 ? 3 : pixel->columns;
        for (; row != pixel->row_end; row++, w += pixel->row_step) {
            const int16x2_t *pair = (const int16x2_t *)(const void *)w;
            for (int32_t k = 0; k < columns; k++) {
                const uint32_t x = dsp_load(*row + pixel->at + k * step);
                const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
                sum[0] = __smlabb(even, pair[2 * k], sum[0]);
                sum[2] = __smlatt(even, pair[2 * k], sum[2]);
                sum[1] = __smlabb(odd, pair[2 * k + 1], sum[1]);
                sum[3] = __smlatt(odd, pair[2 * k + 1], sum[3]);
            }
        }
        for (int32_t i = 0; i < 4; i++) {
            *pixel->out++ = dsp_scale(sum[i] * 2, *pixel->multiplier++, -*pixel->shift++, pixel->zp);
        }
    }
#endif
}

/* Output columns [x, x1) of row y, whose tap rows are `rows` from `row` on. */
static DSP_SMALL void pixels(const weft_call_t *call, const weft_linear_t *p, const uint8_t *quads,
                             const weft_rows_t *rows, const int8_t *const *row, int32_t y, int32_t x, int32_t x1)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, in_w = call->in0.w, width = op->kernel_w, dilation = op->dilation_w;
    const int32_t inside = in_w - (width - 1) * dilation; /* columns from which no tap is outside on the right */
    const int32_t stride = op->stride_w, out_c = call->out.c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const weft_taps_t taps = weft_taps(y * op->stride_h - op->pad_top, op->kernel_h, op->dilation_h, call->in0.h);
    const int32_t height = taps.hi - taps.lo;
    const int32_t all = width == 3 && height == 3 && op->kernel_h == 3 ? ALL_9 : width;
    int32_t first = x * stride - op->pad_left;
    pixel_t px;
    px.row = row + taps.lo;
    px.row_end = row + taps.hi;
    px.row_step = width * QUAD_TAP;
    px.zp = p->zp_out;
    px.bias_end = (const int32_t *)(const void *)p->bias + call->channels;
    const int32_t rest = (op->kernel_h - height) * px.row_step;
    quads += taps.lo * px.row_step;
    int8_t *out = weft_px(&call->out, y, x);
    for (; x < x1; x++, first += stride, out += out_c) {
        const uint8_t *w = quads;
        px.at = (first - rows->x) * c;
        px.columns = all;
        px.rest = rest;
        px.bias = (const int32_t *)(const void *)p->bias;
        px.multiplier = (const int32_t *)(const void *)p->multiplier;
        px.shift = p->shift;
        px.out = out;
        if (first < 0 || first >= inside || height == 0) {
            const weft_taps_t cols = weft_taps(first, width, dilation, in_w);
            px.at += cols.lo * dilation * c;
            px.columns = cols.hi - cols.lo;
            if (height == 0 || px.columns == 0) {
                px.columns = 0;
                px.rest = op->kernel_h * px.row_step;
            }
            w += cols.lo * QUAD_TAP;
        }
        pixel(&px, w, dilation * c, offset);
    }
}

/* ---------------------------------------------------------------- quad by quad */

/* Four channels. */
typedef struct {
    const int8_t *row[3];
    const uint8_t *weights; /* 12 */
    int32_t bias[4];
    struct {
        int32_t multiplier, right;
    } scale[4];
    int32_t zp;
} quad_t;

/* Channels o to o + 3. */
static DSP_FAST void load_quad(quad_t *q, const weft_linear_t *p, int32_t o)
{
    const int32_t *bias = (const int32_t *)(const void *)p->bias + o;
    const int32_t *multiplier = (const int32_t *)(const void *)p->multiplier + o;
    const uint32_t right = (uint32_t)__ssub8(0, (int8x4_t)dsp_load(p->shift + o));
#define SCALE(i)                                                                                                       \
    q->bias[i] = bias[i];                                                                                              \
    q->scale[i].multiplier = multiplier[i];                                                                            \
    q->scale[i].right = (int32_t)(right >> 8 * (i)) /* shifts take the low byte */
    SCALE(0);
    SCALE(1);
    SCALE(2);
    SCALE(3);
}

#if DSP_ASM
#define RUN_ROW_OF_9(row, w0, w1, w2)                                                                                  \
    "ldr %[px], %[" row "]\n\t"                                                                                        \
    "add %[px], %[px], %[column]\n\t" MAC_TAP("", w0) MAC_TAP(STEP_1, w1) MAC_TAP(STEP_2, w2)
#endif

/* `count` pixels of which no tap of a 3x3 kernel is outside; `column` is the offset of the first from q->row. */
static DSP_FAST void quad_3x3(const weft_call_t *call, const quad_t *q, int32_t column, int32_t count, int8_t *out)
{
    const int32_t c = call->in0.c, pixel = call->out.c, zp = q->zp;
    const int32_t step = call->op->dilation_w * c, stride = call->op->stride_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const uint8_t *const w = q->weights;
#if DSP_ASM
    const int8_t *const row0 = q->row[0], *const row1 = q->row[1], *const row2 = q->row[2];
#endif
    for (; count > 0; count--, column += stride, out += pixel) {
        acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
#if DSP_ASM
        int32_t x, e, we, wo, px;
        __asm__ volatile(RUN_ROW_OF_9("row0", "0", "8", "16") RUN_ROW_OF_9("row1", "24", "32", "40")
                             RUN_ROW_OF_9("row2", "48", "56", "64")
                         : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "=&r"(px),
                           [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo)
                         : [w] "r"(w), [column] "r"(column), [step] "r"(step), [offset] "r"(offset), [row0] "m"(row0),
                           [row1] "m"(row1), [row2] "m"(row2)
                         : "memory");
#else
        const int16x2_t *pair = (const int16x2_t *)(const void *)w;
        for (int32_t k = 0; k < 9; k++, pair += 2) {
            const uint32_t x = dsp_load(q->row[k / 3] + column + k % 3 * step);
            const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
            acc.v0 = __smlabb(even, pair[0], acc.v0);
            acc.v2 = __smlatt(even, pair[0], acc.v2);
            acc.v1 = __smlabb(odd, pair[1], acc.v1);
            acc.v3 = __smlatt(odd, pair[1], acc.v3);
        }
#endif
        out[0] = dsp_scale(acc.v0 * 2, q->scale[0].multiplier, q->scale[0].right, zp);
        out[1] = dsp_scale(acc.v1 * 2, q->scale[1].multiplier, q->scale[1].right, zp);
        out[2] = dsp_scale(acc.v2 * 2, q->scale[2].multiplier, q->scale[2].right, zp);
        out[3] = dsp_scale(acc.v3 * 2, q->scale[3].multiplier, q->scale[3].right, zp);
    }
}

/* Pixel by pixel, with weights as they are. */
static DSP_SMALL void narrow_region(const weft_call_t *call, const weft_linear_t *p)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->total, c = call->in0.c, width = op->kernel_w;
    weft_rows_t rows;
    dsp_pixel_t px;
    dsp_pixel_of(&px, p, false);
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

/* Weights in quads. */
static DSP_SMALL void quads_region(const weft_call_t *call, const weft_linear_t *p)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, x0 = call->x0, x1 = call->x1, quad = op->kernel_h * op->kernel_w * QUAD_TAP;
    const uint8_t *const quads = (const uint8_t *)p->weights + (call->channel >> 2) * quad;
    weft_rows_t rows;
    if (call->y1 - call->y0 == 1 && x1 - x0 < RUN) {
        weft_rows(&rows, call, call->y0);
        pixels(call, p, quads, &rows, rows.row, call->y0, x0, x1);
        return;
    }
    int32_t left = x0, right = x0, top = 0, bottom = 0;
    if (op->kernel_h == 3 && op->kernel_w == 3 && x1 - x0 >= RUN) {
        interior(call, 1, x0, x1, &left, &right);
        if (right - left >= RUN) {
            interior(call, 0, call->y0, call->y1, &top, &bottom);
        }
    }
    /* Output rows whose taps are those of the first one further on, as many as fit. */
    int32_t block = 1;
    if (op->dilation_h == 1) {
        block = (WEFT_HOISTED_ROWS - op->kernel_h) / op->stride_h + 1;
    }
    for (int32_t y0 = call->y0, y1; y0 < call->y1; y0 = y1) {
        y1 = weft_min(y0 + block, call->y1);
        weft_tap_rows(&rows, call, y0, (y1 - 1 - y0) * op->stride_h + op->kernel_h);
        const int32_t begin = weft_max(y0, top), end = weft_min(y1, bottom);
        if (begin < end) {
            const int32_t column = (left * op->stride_w - op->pad_left - rows.x) * call->in0.c;
            quad_t q;
            q.zp = p->zp_out;
            q.weights = quads;
            int8_t *first = weft_px(&call->out, begin, left);
            for (int32_t o = 0; o < n; o += 4, q.weights += quad, first += 4) {
                load_quad(&q, p, o);
                const int8_t *const *row = rows.row + (begin - y0) * op->stride_h;
                int8_t *out = first;
                for (int32_t y = begin;; row += op->stride_h) {
                    q.row[0] = row[0];
                    q.row[1] = row[1];
                    q.row[2] = row[2];
                    quad_3x3(call, &q, column + o, right - left, out);
                    if (++y == end) {
                        break;
                    }
                    out = weft_px_below(&call->out, out - o, 1, y, left) + o;
                }
            }
        }
        const int8_t *const *row = rows.row;
        for (int32_t y = y0; y < y1; y++, row += op->stride_h) {
            if (y < begin || y >= end) {
                pixels(call, p, quads, &rows, row, y, x0, x1);
                continue;
            }
            if (x0 < left) {
                pixels(call, p, quads, &rows, row, y, x0, left);
            }
            if (right < x1) {
                pixels(call, p, quads, &rows, row, y, right, x1);
            }
        }
    }
}

DSP_SMALL void weft_dwconv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels;
    const bool in_quads = weft_in_quads(op);
    const weft_linear_t p = weft_linear(call, call->total, in_quads ? 0 : 1);
    if (weft_multiplier(call) != 1 || op->kernel_h > WEFT_HOISTED_ROWS ||
        (in_quads ? p.per_tensor || op->kernel_w > WIDEST || ((n | call->channel) & 3) != 0 : n < 4)) {
        weft_dwconv2d(call);
        return;
    }
    (in_quads ? quads_region : narrow_region)(call, &p);
    weft_count_macs(call, n);
    dsp_clamp_region(call);
}

#endif
