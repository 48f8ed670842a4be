/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D: of each output pixel all channels in a row, four at a time. Many pixels of a 3x3 kernel whose taps are all
 * inside are done four channels after four, whose weights are gathered once, with the input's zero point in the bias.
 */
#include "portable.h"

#define SUMS 32    /* channels of one pixel at once */
#define CHANNELS 4 /* channels whose weights are gathered at once */
#define FEW 4      /* columns of a row that do not pay for the gathering; nor do so many more, in all rows together */

/* ---------------------------------------------------------------- one pixel */

/* Output pixels, rows [y0, y1) and columns [x0, x1); none if one of both is empty. */
typedef struct {
    int32_t y0, y1, x0, x1;
} region_t;

/* The taps of an output pixel that are inside. */
typedef struct {
    const int8_t *const *row; /* addresses of `rows` rows */
    int32_t rows, column;     /* bytes from there to the first tap */
    const int8_t *weights;    /* of the first tap */
    int32_t next_row;         /* bytes from there to those of the next row */
    int32_t step, n, zp;      /* bytes from tap to tap of inputs and weights */
} taps_t;

/* One tap of four channels; `least`: the zero point is INT8_MIN, which a word loses at once. */
#define QUAD_TAP(least, px)                                                                                            \
    do {                                                                                                               \
        if (PORTABLE_UNALIGNED && (least)) {                                                                           \
            const uint32_t x_ = portable_load(px) ^ 0x80808080u;                                                       \
            v0 += (int32_t)(x_ & 255u) * w[0];                                                                         \
            v1 += (int32_t)(x_ >> 8 & 255u) * w[1];                                                                    \
            v2 += (int32_t)(x_ >> 16 & 255u) * w[2];                                                                   \
            v3 += (int32_t)(x_ >> 24) * w[3];                                                                          \
        } else {                                                                                                       \
            const int8_t *const x_ = (px);                                                                             \
            v0 += (x_[0] - zp) * w[0];                                                                                 \
            v1 += (x_[1] - zp) * w[1];                                                                                 \
            v2 += (x_[2] - zp) * w[2];                                                                                 \
            v3 += (x_[3] - zp) * w[3];                                                                                 \
        }                                                                                                              \
        w += n;                                                                                                        \
        PORTABLE_KEEP(w);                                                                                              \
        PORTABLE_IN_ORDER();                                                                                           \
    } while (0)

/* Sums of channels o to o + count, a multiple of four, `width` columns of which are inside. */
PORTABLE_INLINE void quads(const taps_t *taps, portable_word_t *sum, const portable_word_t *from, int32_t o,
                           int32_t count, int32_t width, bool least)
{
    const int32_t step = taps->step, n = taps->n, zp = taps->zp;
    for (const int32_t end = o + count; o != end; o += 4, sum += 4, from += 4) {
        int32_t v0 = from[0], v1 = from[1], v2 = from[2], v3 = from[3];
        const int8_t *first = taps->weights + o, *const *row = taps->row;
        for (int32_t ky = taps->rows; ky > 0; ky--, row++, first += taps->next_row) {
            const int8_t *px = *row + taps->column + o, *w = first;
            for (int32_t k = width; k > 0; k--, px += step) {
                QUAD_TAP(least, px);
            }
        }
        sum[0] = v0;
        sum[1] = v1;
        sum[2] = v2;
        sum[3] = v3;
    }
}

/* The same of 3x3 taps. */
PORTABLE_INLINE void quads_3x3(const taps_t *taps, portable_word_t *sum, const portable_word_t *from, int32_t o,
                               int32_t count, bool least)
{
    const int32_t step = taps->step, n = taps->n, zp = taps->zp, column = taps->column + o;
    const int8_t *a = taps->row[0] + column, *b = taps->row[1] + column, *d = taps->row[2] + column;
    const int8_t *w = taps->weights + o;
    for (const int8_t *const end = a + count; a != end; a += 4, b += 4, d += 4, sum += 4, from += 4) {
        int32_t v0 = from[0], v1 = from[1], v2 = from[2], v3 = from[3];
        QUAD_TAP(least, a);
        QUAD_TAP(least, a + step);
        QUAD_TAP(least, a + 2 * step);
        QUAD_TAP(least, b);
        QUAD_TAP(least, b + step);
        QUAD_TAP(least, b + 2 * step);
        QUAD_TAP(least, d);
        QUAD_TAP(least, d + step);
        QUAD_TAP(least, d + 2 * step);
        w += 4 - 9 * n;
        sum[0] = v0;
        sum[1] = v1;
        sum[2] = v2;
        sum[3] = v3;
    }
}

/* All channels of `count` output pixels in a row, `width` columns of whose taps are inside. */
static PORTABLE_NOINLINE void all_channels(taps_t *taps, const weft_call_t *call, const weft_linear_t *p, int32_t width,
                                           int32_t count, int8_t *out)
{
    portable_word_t sum[SUMS];
    const int32_t stride = call->op->stride_w * call->in0.c;
    const bool nine = width == 3 && taps->rows == 3 && call->op->kernel_w == 3;
    for (; count > 0; count--, taps->column += stride, out += call->out.c) {
        for (int32_t o = 0; o < call->channels; o += SUMS) {
            const int32_t n = weft_min(call->channels - o, SUMS), fours = n & ~3;
            const portable_word_t *from = (const portable_word_t *)(const void *)(p->bias + 4 * o);
            const bool least = PORTABLE_UNALIGNED && taps->zp == INT8_MIN;
            if (nine && least == PORTABLE_UNALIGNED) {
                quads_3x3(taps, sum, from, o, fours, PORTABLE_UNALIGNED);
            } else if (least) {
                quads(taps, sum, from, o, fours, width, true);
            } else {
                quads(taps, sum, from, o, fours, width, false);
            }
            for (int32_t q = fours; q < n; q++) {
                int32_t acc = from[q];
                for (int32_t ky = 0; ky < taps->rows; ky++) {
                    const int8_t *px = taps->row[ky] + taps->column + o + q;
                    const int8_t *w = taps->weights + ky * taps->next_row + o + q;
                    for (int32_t k = 0; k < width; k++) {
                        acc += (px[k * taps->step] - taps->zp) * w[k * taps->n];
                    }
                }
                sum[q] = acc;
            }
            portable_outs(p, o, sum, n, out + o);
        }
    }
}

/* All output pixels, but for those inside if they are `many`. */
static PORTABLE_NOINLINE void pixels(const weft_call_t *call, const weft_linear_t *p, weft_rows_t *rows,
                                     const region_t *inside, bool many)
{
    const weft_op_t *op = call->op;
    taps_t taps;
    taps.n = call->total;
    taps.next_row = op->kernel_w * taps.n;
    taps.step = op->dilation_w * call->in0.c;
    taps.zp = call->in0.zero_point;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(rows, call, y);
        taps.row = rows->row + rows->taps.lo;
        taps.rows = rows->taps.hi - rows->taps.lo;
        for (int32_t x = call->x0, count; x < call->x1; x += count, out += count * call->out.c) {
            count = x == inside->x0 ? weft_max(inside->x1 - x, 1) : 1;
            if (many && y >= inside->y0 && y < inside->y1 && x >= inside->x0 && x < inside->x1) {
                continue;
            }
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, call->in0.w);
            taps.column = (first + cols.lo * op->dilation_w - rows->x) * call->in0.c;
            taps.weights = p->weights + rows->taps.lo * taps.next_row + cols.lo * taps.n;
            all_channels(&taps, call, p, cols.hi - cols.lo, count, out);
        }
    }
}

/* ---------------------------------------------------------------- many pixels */

typedef struct {
    int32_t bias; /* less zero point times sum of the weights */
    portable_scale_t scale;
    int8_t weight[9];
} channel_t;

/* `count` output columns of a channel; `column`: bytes from the rows' addresses to the first tap. */
static PORTABLE_NOINLINE void columns(const weft_call_t *call, const weft_rows_t *rows, const channel_t *ch,
                                      int32_t column, int32_t count, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, step = op->dilation_w * c, stride = op->stride_w * c, zp = call->out.zero_point;
    const int8_t *a = rows->row[0] + column, *b = rows->row[1] + column, *d = rows->row[2] + column;
    const int8_t *const w = ch->weight;
    for (; count > 0; count--, a += stride, b += stride, d += stride, out += call->out.c) {
        int32_t acc = a[0] * w[0] + a[step] * w[1] + a[2 * step] * w[2];
        acc += b[0] * w[3] + b[step] * w[4] + b[2 * step] * w[5];
        acc += d[0] * w[6] + d[step] * w[7] + d[2 * step] * w[8];
        *out = (int8_t)portable_byte(weft_wrap_add(acc, ch->bias), ch->scale.multiplier, ch->scale.shift, zp);
    }
}

static PORTABLE_NOINLINE void many_pixels(const weft_call_t *call, const weft_linear_t *p, weft_rows_t *rows,
                                          const region_t *inside)
{
    const int32_t n = call->total, count = inside->x1 - inside->x0;
    const int32_t first = inside->x0 * call->op->stride_w - call->op->pad_left;
    for (int32_t o = 0; o < call->channels; o += CHANNELS) {
        const int32_t left = weft_min(call->channels - o, CHANNELS);
        channel_t channel[CHANNELS];
        for (int32_t q = 0; q < left; q++) {
            const int8_t *w = p->weights + o + q;
            int32_t sum = 0;
            for (int32_t k = 0; k < 9; k++, w += n) {
                channel[q].weight[k] = *w;
                sum += *w;
            }
            channel[q].bias = weft_wrap_sub(weft_linear_bias(p, o + q), call->in0.zero_point * sum);
            channel[q].scale = portable_scale(p, o + q);
        }
        for (int32_t y = inside->y0; y < inside->y1; y++) {
            int8_t *out = weft_px(&call->out, y, inside->x0) + o;
            weft_rows(rows, call, y);
            const int32_t column = (first - rows->x) * call->in0.c + o;
            for (int32_t q = 0; q < left; q++) {
                columns(call, rows, &channel[q], column + q, count, out + q);
            }
        }
    }
}

/* Clips [begin, end) to where taps are inside along one axis. */
static void clip(int32_t *begin, int32_t *end, int32_t kernel, int32_t stride, int32_t dilation, int32_t pad,
                 int32_t size)
{
    const int32_t last = size - 1 - (kernel - 1) * dilation + pad;
    const int32_t first = weft_clamp((pad + stride - 1) / stride, *begin, *end);
    *end = last < 0 ? first : weft_clamp(last / stride + 1, first, *end);
    *begin = first;
}

/* Output pixels of a call all of whose taps are inside. */
static region_t all_inside(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    region_t region = {call->y0, call->y1, call->x0, call->x1};
    clip(&region.y0, &region.y1, op->kernel_h, op->stride_h, op->dilation_h, op->pad_top, call->in0.h);
    clip(&region.x0, &region.x1, op->kernel_w, op->stride_w, op->dilation_w, op->pad_left, call->in0.w);
    return region;
}

void weft_dwconv2d_portable(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    if (weft_multiplier(call) != 1 || op->kernel_h > WEFT_HOISTED_ROWS || weft_in_quads(op)) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    weft_rows_t rows;
    const region_t inside = all_inside(call);
    const bool many =
        op->kernel_h == 3 && op->kernel_w == 3 && (inside.y1 - inside.y0) * (inside.x1 - inside.x0 - FEW) >= FEW;
    pixels(call, &p, &rows, &inside, many);
    if (many) {
        many_pixels(call, &p, &rows, &inside);
    }
    portable_clamp_region(call);
    weft_count_macs(call, call->channels);
}
