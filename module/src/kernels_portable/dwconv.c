/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D: a few channels at a time. Their weights are gathered once for all their pixels, and the input's zero point
 * is in the bias where no tap is outside. That does not pay for a few pixels: of those, and of the others with taps
 * outside to the left or right, all channels are done in a row, four at a time.
 */
#include "portable.h"

#define TAPS_MAX 49 /* taps of a kernel whose weights fit the stack */
#define CHANNELS 4  /* channels at a time if their weights fit the same memory */
#define FEW 8       /* pixels that are not worth the gathering */
#define FEW_WIDE 40 /* the same where channels go one at a time, for each of which rows are looked up */
#define SUMS 32     /* channels of one pixel at once */

typedef struct {
    int32_t bias, full_bias; /* full_bias: less zero point times sum of the weights */
    portable_scale_t scale;
    const int8_t *weight;
} channel_t;

typedef struct {
    const weft_call_t *call;
    const weft_linear_t *p;
    const weft_rows_t *rows;
    int32_t o, count; /* channels */
    channel_t channel[CHANNELS];
    int8_t weight[TAPS_MAX + 3];
} channels_t;

/* `taps` pixels, `step` bytes apart. */
PORTABLE_INLINE int32_t dot_row(int32_t acc, const int8_t *x, const int8_t *w, int32_t taps, int32_t step)
{
    for (; taps > 0; taps--, x += step) {
        acc += *x * *w++;
    }
    return acc;
}

/* The tap rows of one output pixel of a channel. */
PORTABLE_INLINE int32_t dot_rows(const weft_rows_t *rows, int32_t column, const int8_t *w, int32_t width, int32_t step)
{
    int32_t acc = 0;
    for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += width) {
        acc = dot_row(acc, rows->row[ky] + column, w, width, step);
    }
    return acc;
}

/* ---------------------------------------------------------------- one pixel */

/* The taps of an output pixel that are inside. */
typedef struct {
    const int8_t *const *row; /* addresses of `rows` rows */
    int32_t rows, column;     /* bytes from there to the first tap */
    const int8_t *weights;    /* of the first tap */
    int32_t next_row;         /* bytes from there to those of the next row */
    int32_t step, n, zp;      /* bytes from tap to tap of inputs and weights */
} taps_t;

/* One tap of four channels; `least`: the zero point is INT8_MIN, which a word loses at once. */
#define QUAD_TAP(least)                                                                                                \
    do {                                                                                                               \
        if (PORTABLE_UNALIGNED && (least)) {                                                                           \
            const uint32_t x_ = portable_load(px) ^ 0x80808080u;                                                       \
            v0 += (int32_t)(x_ & 255u) * w[0];                                                                         \
            v1 += (int32_t)(x_ >> 8 & 255u) * w[1];                                                                    \
            v2 += (int32_t)(x_ >> 16 & 255u) * w[2];                                                                   \
            v3 += (int32_t)(x_ >> 24) * w[3];                                                                          \
        } else {                                                                                                       \
            v0 += (px[0] - zp) * w[0];                                                                                 \
            v1 += (px[1] - zp) * w[1];                                                                                 \
            v2 += (px[2] - zp) * w[2];                                                                                 \
            v3 += (px[3] - zp) * w[3];                                                                                 \
        }                                                                                                              \
        px += step;                                                                                                    \
        w += n;                                                                                                        \
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
            if (width == 3) {
                QUAD_TAP(least);
                QUAD_TAP(least);
                QUAD_TAP(least);
            } else {
                for (int32_t k = width; k > 0; k--) {
                    QUAD_TAP(least);
                }
            }
        }
        sum[0] = v0;
        sum[1] = v1;
        sum[2] = v2;
        sum[3] = v3;
    }
}

/* All channels of output column x. */
static PORTABLE_NOINLINE void one_pixel(const weft_call_t *call, const weft_linear_t *p, const weft_rows_t *rows,
                                        int32_t x, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t first = x * op->stride_w - op->pad_left;
    const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, call->in0.w);
    const int32_t width = cols.hi - cols.lo;
    portable_word_t sum[SUMS];
    taps_t taps;
    taps.row = rows->row + rows->taps.lo;
    taps.rows = rows->taps.hi - rows->taps.lo;
    taps.column = (first + cols.lo * op->dilation_w - rows->x) * call->in0.c;
    taps.n = call->total;
    taps.next_row = op->kernel_w * taps.n;
    taps.weights = p->weights + rows->taps.lo * taps.next_row + cols.lo * taps.n;
    taps.step = op->dilation_w * call->in0.c;
    taps.zp = call->in0.zero_point;
    for (int32_t o = 0; o < call->channels; o += SUMS) {
        const int32_t count = weft_min(call->channels - o, SUMS), fours = count & ~3;
        const portable_word_t *from = (const portable_word_t *)(const void *)(p->bias + 4 * o);
        const bool least = PORTABLE_UNALIGNED && taps.zp == INT8_MIN;
        if (width == 3) {
            least ? quads(&taps, sum, from, o, fours, 3, true) : quads(&taps, sum, from, o, fours, 3, false);
        } else {
            least ? quads(&taps, sum, from, o, fours, width, true) : quads(&taps, sum, from, o, fours, width, false);
        }
        for (int32_t q = fours; q < count; q++) {
            int32_t acc = from[q];
            for (int32_t ky = 0; ky < taps.rows; ky++) {
                const int8_t *px = taps.row[ky] + taps.column + o + q, *w = taps.weights + ky * taps.next_row + o + q;
                for (int32_t k = 0; k < width; k++) {
                    acc += (px[k * taps.step] - taps.zp) * w[k * taps.n];
                }
            }
            sum[q] = acc;
        }
        portable_outs(p, o, sum, count, out + o);
    }
}

/* ---------------------------------------------------------------- many pixels */

/*
 * `count` output columns of a channel, no tap outside to the left or right; `column`: bytes from the rows' addresses to
 * the first tap, `bias` less the zero point's share.
 */
PORTABLE_INLINE void columns(const channels_t *group, const channel_t *ch, int32_t bias, int32_t column, int32_t count,
                             int8_t *out, int32_t width)
{
    const weft_op_t *op = group->call->op;
    const int32_t c = group->call->in0.c, step = op->dilation_w * c, stride = op->stride_w * c;
    const int8_t *const w = ch->weight + group->rows->taps.lo * width;
    for (; count > 0; count--, column += stride, out += group->call->out.c) {
        const int32_t acc = dot_rows(group->rows, column, w, width, step);
        *out = portable_out(group->p, ch->scale, weft_wrap_add(acc, bias));
    }
}

/* No tap outside at all. */
static PORTABLE_NOINLINE void columns_3x3(const channels_t *group, const channel_t *ch, int32_t column, int32_t count,
                                          int8_t *out)
{
    const weft_op_t *op = group->call->op;
    const int32_t c = group->call->in0.c, step = op->dilation_w * c, stride = op->stride_w * c;
    const int8_t *const *row = group->rows->row;
    const int8_t *a = row[0] + column, *b = row[1] + column, *d = row[2] + column, *const w = ch->weight;
    for (; count > 0; count--, a += stride, b += stride, d += stride, out += group->call->out.c) {
        int32_t acc = a[0] * w[0] + a[step] * w[1] + a[2 * step] * w[2];
        acc += b[0] * w[3] + b[step] * w[4] + b[2 * step] * w[5];
        acc += d[0] * w[6] + d[step] * w[7] + d[2 * step] * w[8];
        *out = portable_out(group->p, ch->scale, weft_wrap_add(acc, ch->full_bias));
    }
}

static PORTABLE_NOINLINE void columns_any(const channels_t *group, const channel_t *ch, int32_t column, int32_t count,
                                          int8_t *out)
{
    const weft_op_t *op = group->call->op;
    const weft_taps_t rows = group->rows->taps;
    const int32_t width = op->kernel_w;
    int32_t bias = ch->full_bias;
    if (rows.hi - rows.lo < op->kernel_h) {
        const int32_t sum = portable_sum(ch->weight + rows.lo * width, (rows.hi - rows.lo) * width, 1);
        bias = weft_wrap_sub(ch->bias, group->call->in0.zero_point * sum);
    }
    switch (width) {
    case 5:
        columns(group, ch, bias, column, count, out, 5);
        break;
    case 7:
        columns(group, ch, bias, column, count, out, 7);
        break;
    default:
        columns(group, ch, bias, column, count, out, width);
        break;
    }
}

static void load_channels(channels_t *group, int32_t taps)
{
    const weft_linear_t *p = group->p;
    const int32_t n = group->call->total, zp = group->call->in0.zero_point;
    int8_t *to = group->weight;
    channel_t *ch = group->channel;
    for (int32_t o = group->o; o < group->o + group->count; o++, ch++) {
        const int8_t *w = p->weights + o;
        ch->bias = weft_linear_bias(p, o);
        ch->full_bias = weft_wrap_sub(ch->bias, zp * portable_sum(w, taps, n));
        ch->scale = portable_scale(p, o);
        ch->weight = to;
        for (int32_t k = 0; k < taps; k++, w += n) {
            *to++ = *w;
        }
    }
}

/* Output columns [span.begin, span.end), no taps of which are outside to the left or right. */
static PORTABLE_NOINLINE void many_pixels(const weft_call_t *call, const weft_linear_t *p, weft_rows_t *rows,
                                          portable_span_t span)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, taps = op->kernel_h * op->kernel_w;
    const int32_t at_once = CHANNELS * taps <= TAPS_MAX ? CHANNELS : 1;
    const bool nine = op->kernel_h == 3 && op->kernel_w == 3;
    channels_t group;
    group.call = call;
    group.p = p;
    group.rows = rows;

    for (group.o = 0; group.o < n; group.o += at_once) {
        group.count = weft_min(at_once, n - group.o);
        load_channels(&group, taps);
        for (int32_t y = call->y0; y < call->y1; y++) {
            int8_t *out = weft_px(&call->out, y, span.begin) + group.o;
            weft_rows(rows, call, y);
            const bool all = nine && rows->taps.hi - rows->taps.lo == 3;
            const int32_t column = (span.begin * op->stride_w - op->pad_left - rows->x) * call->in0.c + group.o;
            for (int32_t q = 0; q < group.count; q++) {
                (all ? columns_3x3 : columns_any)(&group, &group.channel[q], column + q, span.end - span.begin,
                                                  out + q);
            }
        }
    }
}

void weft_dwconv2d_portable(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t taps = op->kernel_h * op->kernel_w;
    if (weft_multiplier(call) != 1 || taps > TAPS_MAX || op->kernel_h > WEFT_HOISTED_ROWS || weft_in_quads(op)) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    weft_rows_t rows;
    portable_span_t span = portable_inside(call);
    if ((call->y1 - call->y0) * (span.end - span.begin) < (CHANNELS * taps > TAPS_MAX ? FEW_WIDE : FEW)) {
        span.end = span.begin;
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(&rows, call, y);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            if (x < span.begin || x >= span.end) {
                one_pixel(call, &p, &rows, x, out);
            }
        }
    }
    if (span.begin < span.end) {
        many_pixels(call, &p, &rows, span);
    }
    portable_clamp_region(call);
    weft_count_macs(call, call->channels);
}
