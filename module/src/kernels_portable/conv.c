/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D: two output channels and two pixels at a time, 2 instructions per MAC where multiply-accumulate is one.
 * Patches that fit the memory at hand are gathered first, their zero point taken off; then edges are no different.
 * Longer ones are read in place, with the zero point in the bias; pixels with taps outside, and few pixels, which are
 * not worth the sum over the weights, are done one by one for four channels.
 */
#include "portable.h"

#define FEW 4          /* pixels that are not worth the sum over the weights */
#define STACK_PATCH 64 /* elements of a patch that are gathered on the stack */

typedef struct {
    int32_t a0, a1, b0, b1; /* pixels a, b; channels 0, 1 */
} square_t;

/* Products of two pixels, int8_t or int16_t, with the weights of two channels. */
#define SQUARE_MAC(acc, a, b, w0, w1)                                                                                  \
    do {                                                                                                               \
        const int32_t xa_ = (a), xb_ = (b), x0_ = (w0), x1_ = (w1);                                                    \
        (acc).a0 += xa_ * x0_;                                                                                         \
        (acc).a1 += xa_ * x1_;                                                                                         \
        (acc).b0 += xb_ * x0_;                                                                                         \
        (acc).b1 += xb_ * x1_;                                                                                         \
    } while (0)

#define SQUARE_FOUR(acc, a, b, w0, w1)                                                                                 \
    do {                                                                                                               \
        SQUARE_MAC(acc, (a)[0], (b)[0], (w0)[0], (w1)[0]);                                                             \
        SQUARE_MAC(acc, (a)[1], (b)[1], (w0)[1], (w1)[1]);                                                             \
        SQUARE_MAC(acc, (a)[2], (b)[2], (w0)[2], (w1)[2]);                                                             \
        SQUARE_MAC(acc, (a)[3], (b)[3], (w0)[3], (w1)[3]);                                                             \
    } while (0)

/* The same over n taps; the pointers move on. */
#define SQUARE_DOT(acc, a, b, w0, w1, n)                                                                               \
    do {                                                                                                               \
        const int32_t steps_ = (n) / PORTABLE_STEP * PORTABLE_STEP;                                                    \
        for (int32_t k_ = 0; k_ < steps_;                                                                              \
             k_ += PORTABLE_STEP, a += PORTABLE_STEP, b += PORTABLE_STEP, w0 += PORTABLE_STEP, w1 += PORTABLE_STEP) {  \
            SQUARE_FOUR(acc, a, b, w0, w1);                                                                            \
            if (PORTABLE_STEP == 8) {                                                                                  \
                SQUARE_FOUR(acc, (a) + 4, (b) + 4, (w0) + 4, (w1) + 4);                                                \
            }                                                                                                          \
        }                                                                                                              \
        for (int32_t k_ = steps_; k_ < (n); k_++, a++, b++, w0++, w1++) {                                              \
            SQUARE_MAC(acc, *a, *b, *w0, *w1);                                                                         \
        }                                                                                                              \
    } while (0)

/* ---------------------------------------------------------------- gathered */

typedef struct {
    const weft_call_t *call;
    const weft_linear_t *p;
    int32_t size;   /* elements of a patch */
    int16_t *patch; /* two of them */
} gathered_t;

/* The patch under output pixel (y, x); zero where taps are outside. */
static PORTABLE_NOINLINE void gather(const gathered_t *conv, int32_t y, int32_t x, int16_t *patch)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const int32_t zp = in->zero_point, row_size = op->kernel_w * in->c;
    const int32_t top = y * op->stride_h - op->pad_top, left = x * op->stride_w - op->pad_left;
    const weft_taps_t rows = weft_taps(top, op->kernel_h, op->dilation_h, in->h);
    const weft_taps_t cols = weft_taps(left, op->kernel_w, 1, in->w);
    const int32_t run = (cols.hi - cols.lo) * in->c;
    if ((rows.hi - rows.lo) * run != conv->size) {
        memset(patch, 0, (size_t)conv->size * sizeof *patch);
    }
    patch += rows.lo * row_size + cols.lo * in->c;
    for (int32_t ky = rows.lo; ky < rows.hi; ky++, patch += row_size) {
        const int8_t *px = weft_px(in, top + ky * op->dilation_h, left + cols.lo);
        int16_t *to = patch;
        for (const int8_t *const fours = px + (run & ~3); px != fours; px += 4, to += 4) {
            to[0] = (int16_t)(px[0] - zp);
            to[1] = (int16_t)(px[1] - zp);
            to[2] = (int16_t)(px[2] - zp);
            to[3] = (int16_t)(px[3] - zp);
        }
        for (int32_t k = run & 3; k > 0; k--) {
            *to++ = (int16_t)(*px++ - zp);
        }
    }
}

/* All channels of two pixels. */
static PORTABLE_NOINLINE void two_pixels(const gathered_t *conv, int8_t *out_a, int8_t *out_b)
{
    const int32_t n = conv->call->channels, size = conv->size;
    const weft_linear_t p = *conv->p; /* a copy: bytes written could be its members */
    const int8_t *w = p.weights;
    for (int32_t o = 0; o < n; o += 2) {
        const int32_t second = o + 1 < n;
        const int16_t *a = conv->patch, *b = a + size;
        const int8_t *w0 = w, *w1 = w + second * size;
        square_t acc;
        acc.a0 = acc.b0 = weft_linear_bias(&p, o);
        acc.a1 = acc.b1 = weft_linear_bias(&p, o + second);
        SQUARE_DOT(acc, a, b, w0, w1, size);
        w = w1;
        const portable_scale_t scale0 = portable_scale(&p, o);
        out_a[o] = portable_out(&p, scale0, acc.a0);
        out_b[o] = portable_out(&p, scale0, acc.b0);
        const portable_scale_t scale1 = portable_scale(&p, o + second);
        out_a[o + second] = portable_out(&p, scale1, acc.a1);
        out_b[o + second] = portable_out(&p, scale1, acc.b1);
    }
}

/* All channels of one pixel. */
static PORTABLE_NOINLINE void one_pixel(const gathered_t *conv, int8_t *out)
{
    const int32_t n = conv->call->channels, size = conv->size;
    const weft_linear_t p = *conv->p;
    for (int32_t o = 0; o < n; o += 4) {
        const int32_t left = weft_min(n - o, 4);
        portable_sums_t acc = {{0, 0, 0, 0}};
        acc = portable_dot_wide(acc, conv->patch, p.weights + o * size, size, left, size, 0);
        for (int32_t q = 0; q < left; q++) {
            out[o + q] = portable_out(&p, portable_scale(&p, o + q), acc.v[q] + weft_linear_bias(&p, o + q));
        }
    }
}

/* Output pixels two by two, as they come. */
static PORTABLE_NOINLINE void conv_gathered(const gathered_t *conv)
{
    const weft_call_t *call = conv->call;
    int8_t *before = NULL;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            gather(conv, y, x, conv->patch + (before != NULL ? conv->size : 0));
            if (before != NULL) {
                two_pixels(conv, before, out);
                before = NULL;
            } else {
                before = out;
            }
        }
    }
    if (before != NULL) {
        one_pixel(conv, before);
    }
}

/* ---------------------------------------------------------------- in place */

/* Four output channels, or what is left of them, and what the loops over pixels need. */
typedef struct {
    const weft_call_t *call;
    const weft_linear_t *p;
    const weft_rows_t *rows;
    int32_t o, left;   /* first channel, number of channels */
    int32_t run, size; /* bytes of a row of taps, and of all of them */
    int32_t bias[4];   /* less zero point times sum of the weights */
    portable_scale_t scale[4];
} channels_t;

/* Output columns [x, x1), one after the other. */
static PORTABLE_NOINLINE void singles(const channels_t *ch, int32_t x, int32_t x1, int8_t *out)
{
    const weft_op_t *op = ch->call->op;
    const weft_view_t *in = &ch->call->in0;
    const weft_rows_t *rows = ch->rows;
    const int32_t depth = in->c, n = ch->call->out.c;
    for (; x < x1; x++, out += n) {
        const int32_t first = x * op->stride_w - op->pad_left;
        const weft_taps_t cols = weft_taps(first, op->kernel_w, 1, in->w);
        const int32_t column = (first + cols.lo - rows->x) * depth, run = (cols.hi - cols.lo) * depth;
        const int8_t *w = ch->p->weights + ch->o * ch->size + rows->taps.lo * ch->run + cols.lo * depth;
        portable_sums_t acc = {{0, 0, 0, 0}};
        for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, w += ch->run) {
            acc = portable_dot(acc, rows->row[ky] + column, w, ch->size, ch->left, run, in->zero_point);
        }
        for (int32_t q = 0; q < ch->left; q++) {
            out[q] = portable_out(ch->p, ch->scale[q], acc.v[q] + weft_linear_bias(ch->p, ch->o + q));
        }
    }
}

/*
 * Channels q and, if there is one, q + 1 of `count` output columns, an even number, all of whose taps are inside;
 * `column`: bytes to the first tap.
 */
static PORTABLE_NOINLINE void squares(const channels_t *ch, int32_t q, int32_t column, int32_t count, int8_t *out)
{
    const weft_rows_t *rows = ch->rows;
    const weft_linear_t *p = ch->p;
    const int32_t n = ch->call->out.c, stride = ch->call->op->stride_w * ch->call->in0.c;
    const int32_t second = q + 1 < ch->left;
    for (; count > 0; count -= 2, column += 2 * stride, out += 2 * n) {
        const int8_t *w0 = p->weights + (ch->o + q) * ch->size, *w1 = w0 + second * ch->size;
        square_t acc = {0, 0, 0, 0};
        for (int32_t ky = 0; ky < rows->taps.hi; ky++) {
            const int8_t *a = rows->row[ky] + column, *b = a + stride;
            SQUARE_DOT(acc, a, b, w0, w1, ch->run);
        }
        out[q] = portable_out(p, ch->scale[q], weft_wrap_add(acc.a0, ch->bias[q]));
        out[n + q] = portable_out(p, ch->scale[q], weft_wrap_add(acc.b0, ch->bias[q]));
        if (second) {
            out[q + 1] = portable_out(p, ch->scale[q + 1], weft_wrap_add(acc.a1, ch->bias[q + 1]));
            out[n + q + 1] = portable_out(p, ch->scale[q + 1], weft_wrap_add(acc.b1, ch->bias[q + 1]));
        }
    }
}

/* Sum of n weights, four at once as bytes from 0 to 255, in two halves of a word. */
static PORTABLE_NOINLINE int32_t sum_weights(const int8_t *w, int32_t n)
{
    int32_t sum = 0;
    if ((((uintptr_t)w | (uintptr_t)n) & 3u) == 0) {
        sum = -128 * n;
        while (n > 0) {
            const int8_t *const end = w + weft_min(n, 512); /* so that no half overflows */
            uint32_t halves = 0;
            for (n -= 512; w != end; w += 4) {
                const uint32_t bytes = weft_rd32((const uint8_t *)w) ^ 0x80808080u;
                halves += (bytes & 0xff00ffu) + (bytes >> 8 & 0xff00ffu);
            }
            sum += (int32_t)((halves & 0xffffu) + (halves >> 16));
        }
        return sum;
    }
    return portable_sum(w, n, 1);
}

static PORTABLE_NOINLINE void conv_in_place(const weft_call_t *call, const weft_linear_t *p, int32_t size)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t n = call->channels, pixel = call->out.c;
    const portable_span_t span = portable_inside(call);
    const int32_t even = (span.end - span.begin) & ~1;
    const bool few = even * (call->y1 - call->y0) < FEW;
    weft_rows_t rows;
    channels_t ch;
    ch.call = call;
    ch.p = p;
    ch.rows = &rows;
    ch.run = op->kernel_w * in->c;
    ch.size = size;

    for (ch.o = 0; ch.o < n; ch.o += 4) {
        ch.left = weft_min(n - ch.o, 4);
        for (int32_t q = 0; q < ch.left; q++) {
            const int32_t o = ch.o + q;
            const int32_t sum = few ? 0 : sum_weights(p->weights + o * size, size);
            ch.bias[q] = weft_wrap_sub(weft_linear_bias(p, o), in->zero_point * sum);
            ch.scale[q] = portable_scale(p, o);
        }
        for (int32_t y = call->y0; y < call->y1; y++) {
            int8_t *out = weft_px(&call->out, y, call->x0) + ch.o;
            weft_rows(&rows, call, y);
            if (few || rows.taps.hi - rows.taps.lo < op->kernel_h) {
                singles(&ch, call->x0, call->x1, out);
                continue;
            }
            singles(&ch, call->x0, span.begin, out);
            singles(&ch, span.begin + even, call->x1, out + (span.begin + even - call->x0) * pixel);
            const int32_t column = (span.begin * op->stride_w - op->pad_left - rows.x) * in->c;
            for (int32_t q = 0; q < ch.left; q += 2) {
                squares(&ch, q, column, even, out + (span.begin - call->x0) * pixel);
            }
        }
    }
}

/* Patches on the stack. */
static PORTABLE_NOINLINE void conv_short(gathered_t *conv)
{
    int16_t patches[2 * STACK_PATCH];
    conv->patch = patches;
    conv_gathered(conv);
}

void weft_conv2d_portable(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    if (op->groups != 1 || op->dilation_w != 1 || op->kernel_h > WEFT_HOISTED_ROWS) {
        weft_conv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, op->kernel_h * op->kernel_w * call->in0.c);
    gathered_t conv;
    conv.call = call;
    conv.p = &p;
    conv.size = op->kernel_h * op->kernel_w * call->in0.c;
    if (conv.size <= STACK_PATCH) {
        conv_short(&conv);
    } else if ((uint32_t)conv.size <= call->scratch_len / (2u * sizeof *conv.patch)) {
        conv.patch = call->scratch;
        conv_gathered(&conv);
    } else {
        conv_in_place(call, &p, conv.size);
    }
    portable_clamp_region(call);
    weft_count_macs(call, call->in0.c * call->channels);
}
