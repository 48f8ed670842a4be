/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D: a few channels at a time. Their weights are gathered once for all their pixels, and the input's zero point
 * is in the bias where no tap is outside. That does not pay for a few pixels, of which all channels are done in a row.
 */
#include "portable.h"

#define TAPS_MAX 49 /* taps of a kernel whose weights fit the stack */
#define CHANNELS 4  /* channels at a time if their weights fit the same memory */
#define FEW 4       /* pixels that are not worth the gathering */
#define FEW_NINE 8  /* the same with 3x3 taps */
#define FEW_WIDE 40 /* the same where channels go one at a time, for each of which rows are looked up */

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
PORTABLE_INLINE int32_t dot_row(int32_t acc, const int8_t *x, const int8_t *w, int32_t taps, int32_t step, int32_t zp)
{
    for (; taps > 0; taps--, x += step) {
        acc += (*x - zp) * *w++;
    }
    return acc;
}

/* The tap rows of one output pixel of a channel. */
PORTABLE_INLINE int32_t dot_rows(const weft_rows_t *rows, int32_t column, const int8_t *w, int32_t width, int32_t taps,
                                 int32_t step, int32_t zp)
{
    int32_t acc = 0;
    for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += width) {
        acc = dot_row(acc, rows->row[ky] + column, w, taps, step, zp);
    }
    return acc;
}

/* One pixel of a few, from the weights in place; `n` bytes from a tap's weights to the next's. */
PORTABLE_INLINE int8_t direct(const channels_t *group, weft_taps_t cols, int32_t column, int32_t o, int32_t taps)
{
    const weft_op_t *op = group->call->op;
    const weft_rows_t *rows = group->rows;
    const int32_t n = group->call->total, step = op->dilation_w * group->call->in0.c, zp = group->call->in0.zero_point;
    const int8_t *w = group->p->weights + (rows->taps.lo * op->kernel_w + cols.lo) * n + o;
    int32_t acc = weft_linear_bias(group->p, o);
    for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += op->kernel_w * n) {
        const int8_t *px = rows->row[ky] + column + o;
        for (int32_t k = 0; k < taps; k++) {
            acc += (px[k * step] - zp) * w[k * n];
        }
    }
    return portable_out(group->p, portable_scale(group->p, o), acc);
}

/* All channels of one pixel, 3x3 taps all of which are inside. */
static PORTABLE_NOINLINE void nine_taps(const channels_t *group, int32_t column, int8_t *out)
{
    const weft_call_t *call = group->call;
    const weft_linear_t p = *group->p; /* a copy: bytes written could be its members */
    const int32_t n = call->total, step = call->op->dilation_w * call->in0.c, zp = call->in0.zero_point;
    const int32_t channels = call->channels;
    const int8_t *const *row = group->rows->row;
    const int8_t *a = row[0] + column, *b = row[1] + column, *d = row[2] + column;
    const int8_t *u = p.weights, *v = u + 3 * n, *w = v + 3 * n;
    for (int32_t o = 0; o < channels; o++, a++, b++, d++, u++, v++, w++) {
        int32_t acc = weft_linear_bias(&p, o);
        acc += (a[0] - zp) * u[0] + (a[step] - zp) * u[n] + (a[2 * step] - zp) * u[2 * n];
        acc += (b[0] - zp) * v[0] + (b[step] - zp) * v[n] + (b[2 * step] - zp) * v[2 * n];
        acc += (d[0] - zp) * w[0] + (d[step] - zp) * w[n] + (d[2 * step] - zp) * w[2 * n];
        out[o] = portable_out(&p, portable_scale(&p, o), acc);
    }
}

static PORTABLE_NOINLINE void few_pixels(channels_t *group, weft_rows_t *rows)
{
    const weft_call_t *call = group->call;
    const weft_op_t *op = call->op;
    const int32_t n = call->channels;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(rows, call, y);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, call->in0.w);
            const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * call->in0.c, taps = cols.hi - cols.lo;
            if (rows->taps.hi - rows->taps.lo == 3 && taps == 3 && op->kernel_h == 3 && op->kernel_w == 3) {
                nine_taps(group, column, out);
                continue;
            }
            for (int32_t o = 0; o < n; o++) {
                out[o] = direct(group, cols, column, o, taps);
            }
        }
    }
}

/* Output columns [x, x1), taps of which may be outside. */
static PORTABLE_NOINLINE void edge(const channels_t *group, int32_t x, int32_t x1, int8_t *out)
{
    const weft_op_t *op = group->call->op;
    const weft_view_t *in = &group->call->in0;
    const weft_rows_t *rows = group->rows;
    const int32_t step = op->dilation_w * in->c, zp = in->zero_point, width = op->kernel_w;
    for (; x < x1; x++, out += group->call->out.c) {
        const int32_t first = x * op->stride_w - op->pad_left;
        const weft_taps_t cols = weft_taps(first, width, op->dilation_w, in->w);
        const int32_t taps = cols.hi - cols.lo, at = rows->taps.lo * width + cols.lo;
        int32_t column = (first + cols.lo * op->dilation_w - rows->x) * in->c + group->o;
        const channel_t *ch = group->channel;
        for (int32_t q = 0; q < group->count; q++, ch++, column++) {
            const int8_t *w = ch->weight + at;
            const int32_t acc = taps == 2 ? dot_rows(rows, column, w, width, 2, step, zp)
                                          : dot_rows(rows, column, w, width, taps, step, zp);
            out[q] = portable_out(group->p, ch->scale, acc + ch->bias);
        }
    }
}

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
        const int32_t acc = dot_rows(group->rows, column, w, width, width, step, 0);
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

static PORTABLE_NOINLINE void all_pixels(channels_t *group, weft_rows_t *rows, int32_t taps)
{
    const weft_call_t *call = group->call;
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, pixel = call->out.c;
    const portable_span_t span = portable_inside(call);
    const int32_t at_once = CHANNELS * taps <= TAPS_MAX ? CHANNELS : 1;
    const bool nine = op->kernel_h == 3 && op->kernel_w == 3;

    for (group->o = 0; group->o < n; group->o += at_once) {
        group->count = weft_min(at_once, n - group->o);
        load_channels(group, taps);
        for (int32_t y = call->y0; y < call->y1; y++) {
            int8_t *out = weft_px(&call->out, y, call->x0) + group->o;
            weft_rows(rows, call, y);
            const bool all = nine && rows->taps.hi - rows->taps.lo == 3;
            edge(group, call->x0, span.begin, out);
            edge(group, span.end, call->x1, out + (span.end - call->x0) * pixel);
            const int32_t column = (span.begin * op->stride_w - op->pad_left - rows->x) * call->in0.c + group->o;
            out += (span.begin - call->x0) * pixel;
            for (int32_t q = 0; q < group->count; q++) {
                (all ? columns_3x3 : columns_any)(group, &group->channel[q], column + q, span.end - span.begin,
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
    channels_t group;
    group.call = call;
    group.p = &p;
    group.rows = &rows;

    const bool nine = op->kernel_h == 3 && op->kernel_w == 3;
    const int32_t few = nine ? FEW_NINE : CHANNELS * taps > TAPS_MAX ? FEW_WIDE : FEW;
    if ((call->y1 - call->y0) * (call->x1 - call->x0) < few) {
        few_pixels(&group, &rows);
    } else {
        all_pixels(&group, &rows, taps);
    }
    portable_clamp_region(call);
    weft_count_macs(call, call->channels);
}
