/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D. With memory for it, the patches under two output pixels are widened, then multiplied with two output channels
 * at a time: 1 instruction per MAC. Without, four output channels read the pixels in place: 1.5 per MAC. Memory is the
 * plan's scratch, or the stack for short patches. Long patches go in chunks, for a block of channels whose sums are
 * kept.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/linear.h"
#include "../kernels_ref/taps.h"

#define CHUNK_MAX 128 /* elements of a patch widened at once */
#define CHUNK_MIN 16  /* shorter chunks are not worth it */
#define BLOCK 16      /* output channels whose sums are kept between chunks */
#define STACK_BYTES 200
#define SHORT_ROW 24 /* elements of a tap row up to which gathering is quicker */

typedef struct {
    int32_t a0, a1, b0, b1; /* pixels a, b; channels 0, 1 */
} acc_t;

/* An output pixel: its first tap, the taps that are inside and where it is written. */
typedef struct {
    int32_t y, x;
    const int8_t *patch; /* where the patch is one run of memory */
    int8_t *out;
} pixel_t;

/* Memory on the stack: patches, or the rows under a pixel in place. */
typedef union {
    int32_t patch[STACK_BYTES / 4];
    weft_rows_t rows;
} memory_t;

/* What does not change during a call. */
typedef struct {
    const weft_call_t *call;
    weft_linear_t p;
    int32_t depth, size; /* input channels of a group; elements of a patch */
    uint32_t offset;
    /*
     * Two widened patches, interleaved by four elements: even and odd pair of one pixel, even and odd pair of the
     * other. Element k of a pixel is thus near pair[k].
     */
    int16x2_t *pair;
    acc_t *sums;   /* of a block, if there are several chunks */
    int8_t *stage; /* bytes of a chunk whose runs do not start at multiples of four elements, or NULL */
    int32_t chunk; /* elements at once */
    bool in_place; /* a patch is one run of memory */
    bool joined;   /* a tap row is one run of memory */
    bool quick;
} conv_t;

/* ---------------------------------------------------------------- gathering */

static DSP_FAST void widen(int16x2_t *pair, const int8_t *src, int32_t n, uint32_t offset)
{
    for (; n >= 4; n -= 4, src += 4, pair += 4) {
        const uint32_t v = dsp_load(src);
        pair[0] = dsp_even_plus(v, offset);
        pair[1] = dsp_odd_plus(v, offset);
    }
    if (n > 0) {
        uint32_t v = 0;
        for (int32_t i = n; i > 0; i--) {
            v = v << 8 | (uint8_t)src[i - 1];
        }
        pair[0] = dsp_even_plus(v, offset);
        pair[1] = dsp_odd_plus(v, offset);
    }
}

/* A single patch, n a multiple of four, without gaps. */
static DSP_FAST void widen_one(int16x2_t *to, const int8_t *src, int32_t n, uint32_t offset)
{
    const int8_t *const stop = src + n;
    if ((n & 4) != 0) {
        const uint32_t v = dsp_load(src);
        to = dsp_push(to, dsp_even_plus(v, offset), dsp_odd_plus(v, offset));
        src += 4;
    }
    for (; src != stop; src += 8) {
        const uint32_t v = dsp_load(src), next = dsp_load(src + 4);
        to = dsp_push(to, dsp_even_plus(v, offset), dsp_odd_plus(v, offset));
        to = dsp_push(to, dsp_even_plus(next, offset), dsp_odd_plus(next, offset));
    }
}

/* Both patches at once, each one run of memory. */
static DSP_FAST void widen_two(int16x2_t *pair, const int8_t *a, const int8_t *b, int32_t n, uint32_t offset)
{
    const int8_t *stop = a + (n & ~3);
    for (; a != stop; a += 4, b += 4, pair += 4) {
        const uint32_t va = dsp_load(a), vb = dsp_load(b);
        pair[0] = dsp_even_plus(va, offset);
        pair[1] = dsp_odd_plus(va, offset);
        pair[2] = dsp_even_plus(vb, offset);
        pair[3] = dsp_odd_plus(vb, offset);
    }
    if (n & 3) {
        widen(pair, a, n & 3, offset);
        widen(pair + 2, b, n & 3, offset);
    }
}

DSP_INLINE void copy(int8_t *dst, const int8_t *src, int32_t n)
{
    if (n < 4) {
        for (; n > 0; n--) {
            *dst++ = *src++;
        }
        return;
    }
    for (; n > 4; n -= 4, src += 4, dst += 4) {
        dsp_store(dst, dsp_load(src));
    }
    dsp_store(dst + n - 4, dsp_load(src + n - 4)); /* overlaps the word before */
}

/*
 * Elements [k0, k0 + n) of a pixel's patch, zero where the tap is outside; input channels from `channel` on. By way of
 * bytes in `stage` unless that is NULL; only so far if `pair` is.
 */
static DSP_SMALL void gather(const conv_t *conv, const pixel_t *px, int32_t channel, int32_t k0, int32_t n,
                             int16x2_t *pair, int8_t *stage)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const weft_taps_t rows = weft_taps(px->y, op->kernel_h, op->dilation_h, in->h);
    const weft_taps_t cols = weft_taps(px->x, op->kernel_w, op->dilation_w, in->w);
    const int32_t x = px->x + cols.lo * op->dilation_w;
    const int32_t row_size = op->kernel_w * conv->depth, tap_step = op->dilation_w * in->c;
    const int32_t runs = conv->joined ? 1 : cols.hi - cols.lo;
    const int32_t run = conv->joined ? (cols.hi - cols.lo) * conv->depth : conv->depth;

    if ((rows.hi - rows.lo) * (cols.hi - cols.lo) != op->kernel_h * op->kernel_w) {
        for (int32_t k = 0; k < n; k += 4) {
            if (stage != NULL) { /* there is room for whole words */
                dsp_store(stage + k, (uint32_t)(uint8_t)in->zero_point * 0x01010101u);
            } else {
                pair[k] = pair[k + 1] = 0;
            }
        }
    }
    for (int32_t ky = rows.lo; ky < rows.hi; ky++) {
        int32_t at = ky * row_size + cols.lo * conv->depth - k0; /* where the run starts in the chunk */
        if (at >= n) {
            break;
        }
        if (at + runs * run <= 0) {
            continue;
        }
        const int8_t *src = weft_px_inline(in, px->y + ky * op->dilation_h, x) + channel;
        for (int32_t k = 0; k < runs; k++, src += tap_step, at += run) {
            const int32_t begin = weft_max(at, 0), end = weft_min(at + run, n);
            if (begin >= end) {
                continue;
            }
            if (stage != NULL) {
                copy(stage + begin, src + (begin - at), end - begin);
            } else {
                widen(pair + begin, src + (begin - at), end - begin, conv->offset);
            }
        }
    }
    if (stage != NULL && pair != NULL) {
        widen(pair, stage, n, conv->offset);
    }
}

/* A whole patch whose tap rows are runs of memory; by way of `stage` and only so far as gather() does. */
static DSP_FAST void gather_whole(const conv_t *conv, const pixel_t *px, int16x2_t *pair, int8_t *stage)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const int32_t rows = op->dilation_h, run = op->kernel_w * conv->depth, end = px->y + op->kernel_h * rows;
    if (px->y < 0 || end - rows >= in->h || px->x < 0 || px->x + op->kernel_w > in->w) {
        gather(conv, px, 0, 0, conv->size, pair, stage);
        return;
    }
    const int8_t *src = weft_px_inline(in, px->y, px->x);
    for (int32_t y = px->y, at = 0;; at += run) {
        if (stage != NULL) {
            copy(stage + at, src, run);
        } else {
            widen(pair + at, src, run, conv->offset);
        }
        y += rows;
        if (y == end) {
            break;
        }
        src = weft_px_below(in, src, rows, y, px->x);
    }
    if (stage != NULL && pair != NULL) {
        widen(pair, stage, conv->size, conv->offset);
    }
}

/* ---------------------------------------------------------------- multiplying */

/* The last n % 4 weights of n, zeros above them. */
DSP_INLINE uint32_t tail(const int8_t *w, int32_t n)
{
    const int32_t left = n & 3;
    if (n > 4) {
        return dsp_load(w + left - 4) >> (32 - 8 * left);
    }
    uint32_t v = 0;
    for (int32_t i = left; i > 0; i--) {
        v = v << 8 | (uint8_t)w[i - 1];
    }
    return v;
}

DSP_INLINE acc_t mac_quad(acc_t acc, const int16x2_t *pair, uint32_t w0, uint32_t w1)
{
    const int16x2_t ae = pair[0], ao = pair[1], be = pair[2], bo = pair[3];
    int16x2_t w = dsp_even(w0);
    acc.a0 = __smlad(ae, w, acc.a0);
    acc.b0 = __smlad(be, w, acc.b0);
    w = dsp_odd(w0);
    acc.a0 = __smlad(ao, w, acc.a0);
    acc.b0 = __smlad(bo, w, acc.b0);
    w = dsp_even(w1);
    acc.a1 = __smlad(ae, w, acc.a1);
    acc.b1 = __smlad(be, w, acc.b1);
    w = dsp_odd(w1);
    acc.a1 = __smlad(ao, w, acc.a1);
    acc.b1 = __smlad(bo, w, acc.b1);
    return acc;
}

#if DSP_ASM
#define MAC_QUAD                                                                                                       \
    "ldr %[e0], [%[w0]], #4\n\t"                                                                                       \
    "ldr %[e1], [%[w1]], #4\n\t"                                                                                       \
    "ldrd %[xe], %[xo], [%[pair]], #8\n\t"                                                                             \
    "sxtb16 %[o0], %[e0], ror #8\n\t"                                                                                  \
    "sxtb16 %[e0], %[e0]\n\t"                                                                                          \
    "sxtb16 %[o1], %[e1], ror #8\n\t"                                                                                  \
    "sxtb16 %[e1], %[e1]\n\t"                                                                                          \
    "smlad %[a0], %[xe], %[e0], %[a0]\n\t"                                                                             \
    "smlad %[a1], %[xe], %[e1], %[a1]\n\t"                                                                             \
    "smlad %[a0], %[xo], %[o0], %[a0]\n\t"                                                                             \
    "smlad %[a1], %[xo], %[o1], %[a1]\n\t"                                                                             \
    "ldrd %[xe], %[xo], [%[pair]], #8\n\t"                                                                             \
    "smlad %[b0], %[xe], %[e0], %[b0]\n\t"                                                                             \
    "smlad %[b1], %[xe], %[e1], %[b1]\n\t"                                                                             \
    "smlad %[b0], %[xo], %[o0], %[b0]\n\t"                                                                             \
    "smlad %[b1], %[xo], %[o1], %[b1]\n\t"
#endif

/* At least eight elements of two patches, two rows of weights. Written out, as it needs all but one register. */
DSP_INLINE acc_t mac_eights(acc_t acc, const int16x2_t **pairs, const int8_t **row0, const int8_t **row1, int32_t n)
{
    const int16x2_t *pair = *pairs, *const stop = pair + (n & ~7);
    const int8_t *w0 = *row0, *w1 = *row1;
#if DSP_ASM
    int32_t xe, xo, e0, o0, e1, o1;
    __asm__ volatile(
        "1:\n\t" MAC_QUAD MAC_QUAD "ldr %[xe], %[stop]\n\t"
        "cmp %[xe], %[pair]\n\t"
        "bne 1b"
        : [a0] "+r"(acc.a0), [a1] "+r"(acc.a1), [b0] "+r"(acc.b0), [b1] "+r"(acc.b1), [pair] "+r"(pair), [w0] "+r"(w0),
          [w1] "+r"(w1), [xe] "=&r"(xe), [xo] "=&r"(xo), [e0] "=&r"(e0), [o0] "=&r"(o0), [e1] "=&r"(e1), [o1] "=&r"(o1)
        : [stop] "m"(stop)
        : "cc", "memory");
#else
    for (; pair != stop; pair += 4, w0 += 4, w1 += 4) {
        acc = mac_quad(acc, pair, dsp_load(w0), dsp_load(w1));
    }
#endif
    *pairs = pair;
    *row0 = w0;
    *row1 = w1;
    return acc;
}

/* The last n % 8 elements of n. */
DSP_INLINE acc_t mac_rest(acc_t acc, const int16x2_t *pair, const int8_t *w0, const int8_t *w1, int32_t n)
{
    if (n & 4) {
        acc = mac_quad(acc, pair, dsp_load(w0), dsp_load(w1));
        pair += 4;
        w0 += 4;
        w1 += 4;
    }
    if (n & 3) {
        acc = mac_quad(acc, pair, tail(w0, n), tail(w1, n));
    }
    return acc;
}

/* Requantise and write channel o of two pixels, whatever their sums and its shift. */
static DSP_FAST void store_any(int32_t a, int32_t b, const weft_linear_t *p, int32_t o, int8_t *out_a, int8_t *out_b)
{
    const int32_t multiplier = ((const int32_t *)(const void *)p->multiplier)[o], shift = p->shift[o];
    if ((shift & ~(dsp_excess(a) | dsp_excess(b))) < 0) {
        out_a[o] = dsp_scale(a * 2, multiplier, -shift, p->zp_out);
        out_b[o] = dsp_scale(b * 2, multiplier, -shift, p->zp_out);
    } else {
        out_a[o] = dsp_scale_any(a, multiplier, shift, p->zp_out);
        out_b[o] = dsp_scale_any(b, multiplier, shift, p->zp_out);
    }
}

/*
 * Output channels [o, end), an even number, of pixels a and b, from elements [k0, k0 + n), at least eight, of their
 * patches. Sums start from the bias, or from conv->sums where k0 > 0, and go there unless this is the end of the patch.
 * `whole`: the elements are the patch.
 */
DSP_INLINE void multiply(const conv_t *conv, int32_t k0, int32_t n, int32_t o, int32_t end, int8_t *out_a,
                         int8_t *out_b, bool whole)
{
    const int32_t size = conv->size, zp = conv->p.zp_out;
    const int32_t *const bias = (const int32_t *)(const void *)conv->p.bias; /* blocks are aligned */
    const int32_t *const multiplier = (const int32_t *)(const void *)conv->p.multiplier;
    const int8_t *const shift = conv->p.shift, *w = conv->p.weights + o * size + k0;
    acc_t *sums = conv->sums;
    for (; o < end; o += 2, sums++) {
        acc_t acc;
        if (whole || k0 == 0) {
            acc.a0 = acc.b0 = bias[o];
            acc.a1 = acc.b1 = bias[o + 1];
        } else {
            acc = *sums;
        }
        const int8_t *w1 = w + size;
        const int16x2_t *pair = conv->pair;
        acc = mac_eights(acc, &pair, &w, &w1, n);
        if (n & 7) {
            acc = mac_rest(acc, pair, w, w1, n);
        }
        w = w1 + (whole ? n & 7 : size - (n & ~7));
        if (!whole && k0 + n != size) {
            *sums = acc;
            continue;
        }
        if (!conv->quick) {
            store_any(acc.a0, acc.b0, &conv->p, o, out_a, out_b);
            store_any(acc.a1, acc.b1, &conv->p, o + 1, out_a, out_b);
            continue;
        }
        const int32_t m0 = multiplier[o], m1 = multiplier[o + 1], s0 = -shift[o], s1 = -shift[o + 1];
        out_a[o] = dsp_scale(acc.a0 * 2, m0, s0, zp);
        out_b[o] = dsp_scale(acc.b0 * 2, m0, s0, zp);
        out_a[o + 1] = dsp_scale(acc.a1 * 2, m1, s1, zp);
        out_b[o + 1] = dsp_scale(acc.b1 * 2, m1, s1, zp);
    }
}

static DSP_FAST void multiply_whole(const conv_t *conv, int32_t o, int32_t end, int8_t *out_a, int8_t *out_b)
{
    multiply(conv, 0, conv->size, o, end, out_a, out_b, true);
}

static DSP_FAST void multiply_part(const conv_t *conv, int32_t k0, int32_t n, int32_t o, int32_t end, int8_t *out_a,
                                   int8_t *out_b)
{
    multiply(conv, k0, n, o, end, out_a, out_b, false);
}

static void two_pixels(const conv_t *conv, const pixel_t *a, const pixel_t *b)
{
    if (conv->joined && conv->chunk == conv->size) { /* in place, it is conv_pairs_in_place()'s */
        gather_whole(conv, a, conv->pair, conv->stage);
        gather_whole(conv, b, conv->pair + 2, conv->stage);
        multiply_whole(conv, 0, conv->call->channels, a->out, b->out);
        return;
    }
    const int32_t groups = conv->call->op->groups, per_group = conv->call->channels / groups;
    const bool whole = conv->chunk == conv->size;

    for (int32_t channel = 0, o = 0, group_end = per_group; channel < conv->call->in0.c; channel += conv->depth) {
        for (int32_t end; o < group_end; o = end) {
            end = whole ? group_end : weft_min(o + BLOCK, group_end);
            for (int32_t k = 0; k < conv->size; k += conv->chunk) {
                const int32_t n = weft_min(conv->chunk, conv->size - k);
                if (conv->in_place) {
                    widen_two(conv->pair, a->patch + channel + k, b->patch + channel + k, n, conv->offset);
                } else {
                    gather(conv, a, channel, k, n, conv->pair, conv->stage);
                    gather(conv, b, channel, k, n, conv->pair + 2, conv->stage);
                }
                if (whole) {
                    multiply_whole(conv, o, end, a->out, b->out);
                } else {
                    multiply_part(conv, k, n, o, end, a->out, b->out);
                }
            }
        }
        group_end += per_group;
    }
}

/* ---------------------------------------------------------------- in place */

/* What pixels of a call have in common: a single row, its run the whole patch. */
static void single(const conv_t *conv, dsp_pixel_t *px)
{
    dsp_pixel_of(px, &conv->p, conv->quick);
    px->weights = conv->p.weights;
    px->at = 0;
    px->row_step = conv->call->op->kernel_w * conv->depth;
    px->columns = 0;
    px->step = px->channel_step = conv->size;
    px->offset = conv->offset;
}

/* The same where tap rows are several or lie apart; none may be inside. */
static void rows_single(const conv_t *conv, const weft_rows_t *rows, int32_t x, dsp_pixel_t *px)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const int32_t lo = rows->taps.lo, first = x * op->stride_w - op->pad_left;
    const weft_taps_t cols = weft_taps(first, op->kernel_w, 1, in->w);
    px->row = rows->row + lo;
    px->row_end = rows->row + rows->taps.hi;
    px->at = (first + cols.lo - rows->x) * in->c;
    px->step = (cols.hi - cols.lo) * in->c;
    px->weights = conv->p.weights + (lo * op->kernel_w + cols.lo) * in->c;
    if (lo == rows->taps.hi || px->step == 0) { /* a run of none, at any address */
        px->row = &px->weights;
        px->row_end = px->row + 1;
        px->at = px->step = 0;
    }
}

/*
 * Pixels from (y, x) to the end of the region, each in place or, if it fits `memory` of STACK_BYTES and its tap rows
 * are short, gathered there, so that there is one run. A run that fits is widened.
 */
static DSP_SMALL void conv_singles(const conv_t *conv, int32_t y, int32_t x, memory_t *memory)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const bool gathered = op->kernel_h > 1 && conv->size <= STACK_BYTES && op->kernel_w * conv->depth <= SHORT_ROW;
    const bool wide = (gathered || conv->in_place) && 2 * conv->size <= STACK_BYTES && (conv->size & 3) == 0 &&
                      (call->channels & 3) == 0 && !conv->p.per_tensor && conv->quick;
    dsp_pixel_t one;
    int8_t *const stage = (int8_t *)memory->patch + (wide ? STACK_BYTES - conv->size : 0);
    const int8_t *patch = stage;
    single(conv, &one);
    one.row = &patch;
    one.row_end = &patch + 1;
    for (; y < call->y1; y++, x = call->x0) {
        one.out = weft_px(&call->out, y, x);
        if (!gathered && !conv->in_place) {
            weft_rows(&memory->rows, call, y);
        }
        for (; x < call->x1; x++, one.out += call->out.c) {
            if (conv->in_place) {
                patch = weft_px(&call->in0, y * op->stride_h, x * op->stride_w);
            } else if (gathered) {
                const pixel_t px = {.y = y * op->stride_h - op->pad_top, .x = x * op->stride_w - op->pad_left};
                gather_whole(conv, &px, NULL, stage);
                patch = stage;
            } else {
                rows_single(conv, &memory->rows, x, &one);
            }
            if (wide) { /* over itself where it was gathered: what is written ends before what is to be read */
                widen_one((int16x2_t *)memory->patch, patch, conv->size, conv->offset);
                patch = (const int8_t *)memory->patch;
            }
            (wide ? dsp_wide_pixel : dsp_pixel)(&one, call->channels);
        }
    }
}

/* ---------------------------------------------------------------- two by two */

/* conv_pairs() of whole patches in place. */
static DSP_FAST bool conv_pairs_in_place(const conv_t *conv, bool singles)
{
    const weft_call_t *call = conv->call;
    const int32_t stride_h = call->op->stride_h, stride_w = call->op->stride_w, c = call->out.c;
    const int32_t columns = call->x1 - call->x0, step = stride_w * call->in0.c;
    int8_t *out = weft_px(&call->out, call->y0, call->x0), *first_out = NULL;
    const int8_t *patch = weft_px(&call->in0, call->y0 * stride_h, call->x0 * stride_w), *first = NULL;
    for (int32_t y = call->y0;;) {
        int8_t *to = out;
        const int8_t *from = patch, *const stop = patch + columns * step;
        for (; from != stop; from += step, to += c) {
            if (first == NULL) {
                first = from;
                first_out = to;
                if (singles || y != call->y1 - 1 || from + step != stop) { /* the last one may go with itself */
                    continue;
                }
            }
            widen_two(conv->pair, first, from, conv->size, conv->offset);
            multiply_whole(conv, 0, call->channels, first_out, to);
            first = NULL;
        }
        if (++y == call->y1) {
            return first != NULL;
        }
        out = weft_px_below(&call->out, out, 1, y, call->x0);
        patch = weft_px_below(&call->in0, patch, stride_h, y * stride_h, call->x0 * stride_w);
    }
}

/* Output pixels two by two, as they come, across rows too. Whether one is left over for conv_singles(), if it can. */
static DSP_SMALL bool conv_pairs(const conv_t *conv, bool singles)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    pixel_t px[2];
    bool second = false;
    for (int32_t y = call->y0; y < call->y1; y++) {
        pixel_t at = {.y = y * op->stride_h - op->pad_top, .x = call->x0 * op->stride_w - op->pad_left};
        at.out = weft_px(&call->out, y, call->x0);
        at.patch = conv->in_place ? weft_px(&call->in0, at.y, at.x) : at.out;
        for (int32_t x = call->x0; x < call->x1; x++) {
            px[second] = at;
            if (second || (!singles && y == call->y1 - 1 && x == call->x1 - 1)) { /* the last one may go with itself */
                two_pixels(conv, &px[0], &px[second]);
            }
            second = !second;
            at.x += op->stride_w;
            at.patch += op->stride_w * call->in0.c;
            at.out += call->out.c;
        }
    }
    return second && singles;
}

/* ---------------------------------------------------------------- the call */

/* Divides `bytes` of memory; false if that is too little, for `whole` patches if there have to be such. */
static DSP_SMALL bool divide(conv_t *conv, void *memory, uint32_t bytes, bool whole)
{
    const bool staged = !conv->in_place && (conv->depth & 3) != 0;
    const int32_t element = staged ? 5 : 4, available = (int32_t)weft_min((int32_t)(bytes & 0xffffu), 8192);
    int32_t most = weft_min(available / element / 4 * 4, CHUNK_MAX);
    conv->sums = NULL;
    if (conv->size > most) {
        const int32_t sums = BLOCK / 2 * (int32_t)sizeof(acc_t);
        most = weft_min((available - sums) / element / 8 * 8, CHUNK_MAX);
        if (whole || most < CHUNK_MIN) {
            return false;
        }
        /* As few chunks as can be, and those alike. */
        const int32_t chunks = (conv->size + most - 1) / most;
        conv->chunk = weft_min((conv->size + 8 * chunks - 1) / (8 * chunks) * 8, most);
        conv->sums = memory;
        conv->pair = (int16x2_t *)memory + sums / 4;
    } else {
        conv->chunk = conv->size;
        conv->pair = memory;
    }
    conv->stage = staged ? (int8_t *)(conv->pair + ((conv->chunk + 3) & ~3)) : NULL;
    const int32_t last = conv->size % conv->chunk; /* 0: all chunks are alike */
    return conv->chunk >= 8 && (last == 0 || last >= 8);
}

/*
 * Whether pixels can go two by two: an even number of channels with multipliers of their own, memory. Several tap rows
 * in place are quicker than in chunks.
 */
static bool in_pairs(conv_t *conv, void *stack)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const int32_t channels = call->channels;
    if ((call->y1 - call->y0) * (call->x1 - call->x0) <= 1 || conv->p.per_tensor || (channels / op->groups & 1) != 0) {
        return false;
    }
    const bool plain = op->kernel_h > 1 && op->kernel_h <= WEFT_HOISTED_ROWS && conv->joined && conv->quick &&
                       ((op->kernel_w * conv->depth) | channels) % 4 == 0;
    if (plain && 4 * conv->size > STACK_BYTES && 4 * conv->size > (int32_t)call->scratch_len) {
        return false;
    }
    return divide(conv, stack, STACK_BYTES, true) || divide(conv, call->scratch, call->scratch_len, plain);
}

DSP_SMALL void weft_conv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t taps = op->kernel_h * op->kernel_w;
    memory_t memory;
    conv_t conv;
    conv.call = call;
    conv.depth = op->groups == 1 ? call->in0.c : call->in0.c / op->groups;
    conv.size = taps * conv.depth;
    conv.p = weft_linear(call, call->total, conv.size);
    conv.in_place = weft_pointwise(call);
    conv.joined = op->groups == 1 && op->dilation_w == 1;
    conv.offset = dsp_offset(call->in0.zero_point);
    conv.quick = (op->flags & WEFT_OP_QUICK) != 0;
    const bool singles = conv.joined && call->channels >= 4 && op->kernel_h <= WEFT_HOISTED_ROWS;
    int32_t y = call->y0, x = call->x0;
    bool left = singles;

    if (in_pairs(&conv, memory.patch)) {
        left = (conv.in_place && conv.joined && conv.chunk == conv.size ? conv_pairs_in_place : conv_pairs)(&conv,
                                                                                                            singles);
        y = call->y1 - 1;
        x = call->x1 - 1;
    } else if (!singles) {
        weft_conv2d(call);
        return;
    }
    if (left) { /* here, as conv_pairs() and it would take more stack in a row */
        conv_singles(&conv, y, x, &memory);
    }
    weft_count_macs(call, conv.depth * call->channels);
    dsp_clamp_region(call);
}

#endif
