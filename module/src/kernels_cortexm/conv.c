/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D: the patches under two output pixels are widened onto the stack, then multiplied with two output channels at a
 * time. Long patches go in chunks, for a block of channels whose sums are kept on the stack.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/linear.h"
#include "../kernels_ref/taps.h"

#define CHUNK 128        /* elements of a patch widened at once; 4 bytes of stack each */
#define CHUNK_STAGED 100 /* where bytes are gathered first: they take the end of the same memory */
#define BLOCK 16         /* output channels whose sums are kept between chunks */

/*
 * Two widened patches, interleaved by four elements: even and odd pair of one pixel, even and odd pair of the other.
 * Element k of a pixel is thus near pair[k].
 */
typedef struct {
    int16x2_t pair[CHUNK];
} patches_t;

/* An output pixel: the rows under it and where it is written. */
typedef struct {
    const weft_rows_t *rows;
    int32_t x;
    int8_t *out;
} pixel_t;

typedef struct {
    int32_t a0, a1, b0, b1; /* pixels a, b; channels 0, 1 */
} acc_t;

/* What does not change during a call. */
typedef struct {
    const weft_call_t *call;
    weft_linear_t p;
    int32_t depth, size; /* input channels of a group; elements of a patch */
    int32_t chunk;       /* elements at once */
    bool in_place;       /* a patch is one run of memory */
    bool joined;         /* a tap row is one run of memory */
    bool staged;         /* runs do not start at multiples of four elements */
    uint32_t offset;
} conv_t;

/* ---------------------------------------------------------------- gathering */

static __attribute__((noinline)) void widen(int16x2_t *pair, const int8_t *src, int32_t n, uint32_t offset)
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

DSP_INLINE void copy(int8_t *dst, const int8_t *src, int32_t n)
{
    for (; n >= 4; n -= 4, src += 4, dst += 4) {
        dsp_store(dst, dsp_load(src));
    }
    for (; n > 0; n--) {
        *dst++ = *src++;
    }
}

/* Elements [k0, k0 + n) of a pixel's patch, zero where the tap is outside; input channels from `channel` on. */
static __attribute__((noinline)) void gather(const conv_t *conv, const pixel_t *px, int32_t channel, int32_t k0,
                                             int32_t n, int16x2_t *pair, int8_t *stage)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const weft_rows_t *rows = px->rows;
    const int32_t first = px->x * op->stride_w - op->pad_left, tap_step = op->dilation_w * in->c;
    if (conv->in_place) {
        widen(pair, weft_row(rows, 0) + (first - rows->x) * in->c + channel + k0, n, conv->offset);
        return;
    }
    const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
    const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * in->c + channel;
    const int32_t row_size = op->kernel_w * conv->depth;
    const int32_t runs = conv->joined ? 1 : cols.hi - cols.lo;
    const int32_t run = conv->joined ? (cols.hi - cols.lo) * conv->depth : conv->depth;

    if ((rows->taps.hi - rows->taps.lo) * (cols.hi - cols.lo) != op->kernel_h * op->kernel_w) {
        if (conv->staged) {
            memset(stage, in->zero_point, (size_t)n);
        } else {
            for (int32_t k = 0; k < n; k += 4) {
                pair[k] = pair[k + 1] = 0;
            }
        }
    }
    for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++) {
        int32_t at = ky * row_size + cols.lo * conv->depth - k0; /* where the run starts in the chunk */
        if (at >= n) {
            break;
        }
        if (at + runs * run <= 0) {
            continue;
        }
        const int8_t *src = weft_row(rows, ky) + column;
        for (int32_t k = 0; k < runs; k++, src += tap_step, at += run) {
            const int32_t begin = weft_max(at, 0), end = weft_min(at + run, n);
            if (begin >= end) {
                continue;
            }
            if (conv->staged) {
                copy(stage + begin, src + (begin - at), end - begin);
            } else {
                widen(pair + begin, src + (begin - at), end - begin, conv->offset);
            }
        }
    }
    if (conv->staged) {
        widen(pair, stage, n, conv->offset);
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

#define MAC_QUAD                                                                                                       \
    "ldm %[pair]!, {r3, r4, r5, r8}\n\t"                                                                               \
    "ldr %[t], [%[w0]], #4\n\t"                                                                                        \
    "sxtb16 %[u], %[t]\n\t"                                                                                            \
    "sxtb16 %[t], %[t], ror #8\n\t"                                                                                    \
    "smlad %[a0], r3, %[u], %[a0]\n\t"                                                                                 \
    "smlad %[b0], r5, %[u], %[b0]\n\t"                                                                                 \
    "smlad %[a0], r4, %[t], %[a0]\n\t"                                                                                 \
    "smlad %[b0], r8, %[t], %[b0]\n\t"                                                                                 \
    "ldr %[t], [%[w1]], #4\n\t"                                                                                        \
    "sxtb16 %[u], %[t]\n\t"                                                                                            \
    "sxtb16 %[t], %[t], ror #8\n\t"                                                                                    \
    "smlad %[a1], r3, %[u], %[a1]\n\t"                                                                                 \
    "smlad %[b1], r5, %[u], %[b1]\n\t"                                                                                 \
    "smlad %[a1], r4, %[t], %[a1]\n\t"                                                                                 \
    "smlad %[b1], r8, %[t], %[b1]\n\t"

/* Two patches of n elements, two rows of weights. Written out, as it needs all but one register. */
DSP_INLINE acc_t mac_patches(acc_t acc, const int16x2_t *pair, const int8_t *w0, const int8_t *w1, int32_t n)
{
    if (n >= 8) {
        const int16x2_t *const stop = pair + (n & ~7);
        int32_t t, u;
        __asm__ volatile("1:\n\t" MAC_QUAD MAC_QUAD "ldr %[t], %[stop]\n\t"
                         "cmp %[t], %[pair]\n\t"
                         "bne 1b"
                         : [a0] "+r"(acc.a0), [a1] "+r"(acc.a1), [b0] "+r"(acc.b0), [b1] "+r"(acc.b1),
                           [pair] "+r"(pair), [w0] "+r"(w0), [w1] "+r"(w1), [t] "=&r"(t), [u] "=&r"(u)
                         : [stop] "m"(stop)
                         : "r3", "r4", "r5", "r8", "cc", "memory");
    }
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

/* Requantise and write channels o and o1 of two pixels. */
DSP_INLINE void store(const weft_linear_t *p, int32_t o, int32_t o1, const acc_t *acc, int8_t *out_a, int8_t *out_b)
{
    const int32_t i0 = p->per_tensor ? 0 : o, i1 = p->per_tensor ? 0 : o1, zp = p->zp_out;
    const int32_t m0 = (int32_t)weft_rd32(p->multiplier + 4 * i0), m1 = (int32_t)weft_rd32(p->multiplier + 4 * i1);
    const int32_t s0 = p->shift[i0], s1 = p->shift[i1];
    if (__builtin_expect(
            (s0 & s1 & ~(dsp_excess(acc->a0) | dsp_excess(acc->b0) | dsp_excess(acc->a1) | dsp_excess(acc->b1))) < 0,
            1)) {
        out_a[o] = dsp_out(dsp_requant_fast(acc->a0, m0, -s0), zp);
        out_b[o] = dsp_out(dsp_requant_fast(acc->b0, m0, -s0), zp);
        out_a[o1] = dsp_out(dsp_requant_fast(acc->a1, m1, -s1), zp);
        out_b[o1] = dsp_out(dsp_requant_fast(acc->b1, m1, -s1), zp);
    } else {
        out_a[o] = dsp_out(dsp_requant_any(acc->a0, m0, s0), zp);
        out_b[o] = dsp_out(dsp_requant_any(acc->b0, m0, s0), zp);
        out_a[o1] = dsp_out(dsp_requant_any(acc->a1, m1, s1), zp);
        out_b[o1] = dsp_out(dsp_requant_any(acc->b1, m1, s1), zp);
    }
}

/*
 * Output channels [o, end) of pixels a and b, from elements [k0, k0 + n) of their patches. Sums start from the bias, or
 * from `sums` where k0 > 0, and go there unless this is the end of the patch.
 */
static __attribute__((noinline)) void multiply(const conv_t *conv, const patches_t *patches, int32_t k0, int32_t n,
                                               int32_t o, int32_t end, acc_t *sums, int8_t *out_a, int8_t *out_b)
{
    const int32_t size = conv->size;
    const bool last = k0 + n == size;
    const int8_t *w = conv->p.weights + o * size + k0;
    for (; o < end; o += 2, sums++, w += 2 * size) {
        const bool odd = o + 1 == end; /* the last of an odd number is done twice */
        const int32_t o1 = odd ? o : o + 1;
        acc_t acc;
        if (k0 == 0) {
            acc.a0 = acc.b0 = weft_linear_bias(&conv->p, o);
            acc.a1 = acc.b1 = weft_linear_bias(&conv->p, o1);
        } else {
            acc = *sums;
        }
        acc = mac_patches(acc, patches->pair, w, odd ? w : w + size, n);
        if (last) {
            store(&conv->p, o, o1, &acc, out_a, out_b);
        } else {
            *sums = acc;
        }
    }
}

static void two_pixels(const conv_t *conv, const pixel_t *a, const pixel_t *b)
{
    const int32_t groups = conv->call->op->groups, per_group = conv->call->out.c / groups;
    const int32_t block = conv->chunk >= conv->size ? per_group : BLOCK;
    patches_t patches;
    acc_t sums[BLOCK / 2];
    int8_t *stage = (int8_t *)patches.pair + (sizeof patches - CHUNK_STAGED);

    for (int32_t group = 0; group < groups; group++) {
        const int32_t channel = group * conv->depth, group_end = (group + 1) * per_group;
        for (int32_t o = group * per_group; o < group_end; o += block) {
            for (int32_t k = 0; k < conv->size; k += conv->chunk) {
                const int32_t n = weft_min(conv->chunk, conv->size - k);
                gather(conv, a, channel, k, n, patches.pair, stage);
                gather(conv, b, channel, k, n, patches.pair + 2, stage);
                multiply(conv, &patches, k, n, o, weft_min(o + block, group_end), sums, a->out, b->out);
            }
        }
    }
}

/* ---------------------------------------------------------------- one pixel left over */

DSP_INLINE acc_t mac_run(acc_t acc, const int8_t *a, const int8_t *w0, const int8_t *w1, int32_t n, uint32_t offset)
{
    const int8_t *stop = a + (n & ~3);
    while (a != stop) {
        const uint32_t v = dsp_load(a), v0 = dsp_load(w0), v1 = dsp_load(w1);
        const int16x2_t even = dsp_even_plus(v, offset), odd = dsp_odd_plus(v, offset);
        acc.a0 = __smlad(even, dsp_even(v0), acc.a0);
        acc.a0 = __smlad(odd, dsp_odd(v0), acc.a0);
        acc.a1 = __smlad(even, dsp_even(v1), acc.a1);
        acc.a1 = __smlad(odd, dsp_odd(v1), acc.a1);
        a += 4;
        w0 += 4;
        w1 += 4;
    }
    for (int32_t i = 0; i < (n & 3); i++) {
        const int32_t x = a[i] + (int16_t)offset;
        acc.a0 += x * w0[i];
        acc.a1 += x * w1[i];
    }
    return acc;
}

/* A pixel by itself, its patch read in place; tap rows are runs of memory. */
static void one_pixel(const conv_t *conv, const pixel_t *px)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const weft_linear_t *p = &conv->p;
    const int32_t first = px->x * op->stride_w - op->pad_left, n = conv->call->out.c;
    const weft_taps_t cols = weft_taps(first, op->kernel_w, 1, in->w), rows = px->rows->taps;
    const int32_t column = (first + cols.lo - px->rows->x) * in->c, row_size = op->kernel_w * in->c;

    for (int32_t o = 0; o < n; o += 2) {
        const int32_t o1 = weft_min(o + 1, n - 1), other = (o1 - o) * conv->size;
        const int8_t *w = p->weights + o * conv->size + rows.lo * row_size + cols.lo * in->c;
        acc_t acc;
        acc.a0 = weft_linear_bias(p, o);
        acc.a1 = weft_linear_bias(p, o1);
        for (int32_t ky = rows.lo; ky < rows.hi; ky++, w += row_size) {
            acc =
                mac_run(acc, weft_row(px->rows, ky) + column, w, w + other, (cols.hi - cols.lo) * in->c, conv->offset);
        }
        acc.b0 = acc.a0;
        acc.b1 = acc.a1;
        store(p, o, o1, &acc, px->out, px->out);
    }
}

void weft_conv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t taps = op->kernel_h * op->kernel_w;
    conv_t conv;
    conv.call = call;
    conv.p = weft_linear(call, call->out.c);
    conv.depth = call->in0.c / op->groups;
    conv.size = taps * conv.depth;
    conv.in_place = taps == 1 && op->pad_top + op->pad_left == 0;
    conv.joined = op->groups == 1 && op->dilation_w == 1;
    conv.staged = !conv.in_place && (conv.depth & 3) != 0;
    conv.chunk = weft_min(conv.size, conv.staged ? CHUNK_STAGED : CHUNK);
    conv.offset = dsp_offset(call->in0.zero_point);

    /* Output pixels are paired as they come, across rows too. */
    weft_rows_t rows[2];
    pixel_t px[2];
    int32_t count = 0;
    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows_t *under = &rows[y & 1];
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(under, call, y);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            px[count].rows = under;
            px[count].x = x;
            px[count].out = out;
            if (++count == 2) {
                two_pixels(&conv, &px[0], &px[1]);
                count = 0;
            }
        }
    }
    if (count == 1 && conv.joined) {
        one_pixel(&conv, &px[0]);
    } else if (count == 1) {
        two_pixels(&conv, &px[0], &px[0]);
    }
    dsp_count_macs(call, conv.depth * call->out.c);
    dsp_clamp_region(call);
}

#endif
