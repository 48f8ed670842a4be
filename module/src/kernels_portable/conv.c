/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D: two output channels and two pixels at a time, 2 instructions per MAC where multiply-accumulate is one. Their
 * patches are gathered first, their zero point taken off; then edges are no different. Pixels without a second one, and
 * those of patches two of which are too long for the memory at hand, are done one by one for four channels, a part of
 * the patch after the other; if their zero point is the least byte, as after a ReLU, what is left are bytes again.
 */
#include "weft/weft_config.h"

#include "portable.h"

#define MEMORY 256 /* bytes on the stack: two patches of short ones, or sums and a part of the patch of one pixel */
#define SUMS 32    /* channels of one pixel at once */

typedef struct {
    const weft_call_t *call;
    const weft_linear_t *p;
    int32_t size;    /* elements of a patch */
    void *memory;    /* for two patches, or for sums and a part of one; 4-aligned */
    uint32_t length; /* of it, at least MEMORY bytes */
} conv_t;

/* ---------------------------------------------------------------- one pixel */

/*
 * Four channels, eight taps at a time until `at` is at the end; w0 to w3 move along. A compiler for Thumb-2 takes five
 * instructions more each time; where there is an FPU, GCC finds no registers for it.
 */
#if WEFT_KERNELS_ASM && defined(__thumb2__) && defined(__GNUC__) && !defined(__ARM_FP)
#define ONE_TAP(load, x, w)                                                                                            \
    load " %[t], [%[x]" x "\n"                                                                                         \
         "ldrsb %[u], [%[w0]" w "\n"                                                                                   \
         "mla %[v0], %[t], %[u], %[v0]\n"                                                                              \
         "ldrsb %[u], [%[w1]" w "\n"                                                                                   \
         "mla %[v1], %[t], %[u], %[v1]\n"                                                                              \
         "ldrsb %[u], [%[w2]" w "\n"                                                                                   \
         "mla %[v2], %[t], %[u], %[v2]\n"                                                                              \
         "ldrsb %[u], [%[w3]" w "\n"                                                                                   \
         "mla %[v3], %[t], %[u], %[v3]\n"
#define TAP_OF(load, size, k) ONE_TAP(load, ", #" #size "*" #k "]", ", #" #k "]")
#define EIGHT_TAPS(load, size)                                                                                         \
    do {                                                                                                               \
        int32_t t_, u_;                                                                                                \
        __asm__ volatile("1:\n" TAP_OF(load, size, 1) TAP_OF(load, size, 2) TAP_OF(load, size, 3)                      \
                             TAP_OF(load, size, 4) TAP_OF(load, size, 5) TAP_OF(load, size, 6) TAP_OF(load, size, 7)   \
                                 ONE_TAP(load, "], #" #size "*8", "], #8") "cmp %[x], %[end]\n"                        \
                                                                           "bne 1b"                                    \
                         : [v0] "+r"(v0), [v1] "+r"(v1), [v2] "+r"(v2), [v3] "+r"(v3), [x] "+r"(at), [w0] "+r"(w0),    \
                           [w1] "+r"(w1), [w2] "+r"(w2), [w3] "+r"(w3), [t] "=&r"(t_), [u] "=&r"(u_)                   \
                         : [end] "r"(end)                                                                              \
                         : "cc", "memory");                                                                            \
    } while (0)
#else
#define EIGHT_TAPS(load, size)                                                                                         \
    do {                                                                                                               \
        ONE_TAP(0);                                                                                                    \
        ONE_TAP(1);                                                                                                    \
        ONE_TAP(2);                                                                                                    \
        ONE_TAP(3);                                                                                                    \
        ONE_TAP(4);                                                                                                    \
        ONE_TAP(5);                                                                                                    \
        ONE_TAP(6);                                                                                                    \
        ONE_TAP(7);                                                                                                    \
        at += 8;                                                                                                       \
        w0 += 8;                                                                                                       \
        w1 += 8;                                                                                                       \
        w2 += 8;                                                                                                       \
        w3 += 8;                                                                                                       \
    } while (at != end)
#define ONE_TAP(k)                                                                                                     \
    do {                                                                                                               \
        const int32_t x_ = at[k];                                                                                      \
        v0 += x_ * w0[k];                                                                                              \
        v1 += x_ * w1[k];                                                                                              \
        v2 += x_ * w2[k];                                                                                              \
        v3 += x_ * w3[k];                                                                                              \
        PORTABLE_IN_ORDER();                                                                                           \
    } while (0)
#endif

/* sum[] = from[] + products of n elements with the weights of each channel, `row` bytes from one to the next. */
#define DEFINE_DOT(name, type, load, size)                                                                             \
    static PORTABLE_NOINLINE void name(portable_word_t *sum, const portable_word_t *from, int32_t channels,            \
                                       const int8_t *w, int32_t row, const type *x, int32_t n)                         \
    {                                                                                                                  \
        const type *const end = x + (n & ~7), *const tail_end = x + n;                                                 \
        for (; channels >= 4; channels -= 4, sum += 4, from += 4, w += 4 * row) {                                      \
            const int8_t *w0 = w, *w1 = w0 + row, *w2 = w1 + row, *w3 = w2 + row;                                      \
            int32_t v0 = from[0], v1 = from[1], v2 = from[2], v3 = from[3];                                            \
            const type *at = x;                                                                                        \
            if (at != end) {                                                                                           \
                EIGHT_TAPS(load, size);                                                                                \
            }                                                                                                          \
            for (; at != tail_end; at++) {                                                                             \
                const int32_t x_ = *at;                                                                                \
                v0 += x_ * *w0++;                                                                                      \
                v1 += x_ * *w1++;                                                                                      \
                v2 += x_ * *w2++;                                                                                      \
                v3 += x_ * *w3++;                                                                                      \
            }                                                                                                          \
            sum[0] = v0;                                                                                               \
            sum[1] = v1;                                                                                               \
            sum[2] = v2;                                                                                               \
            sum[3] = v3;                                                                                               \
        }                                                                                                              \
        for (; channels > 0; channels--, w += row) {                                                                   \
            int32_t v = *from++;                                                                                       \
            for (int32_t k = 0; k < n; k++) {                                                                          \
                v += x[k] * w[k];                                                                                      \
            }                                                                                                          \
            *sum++ = v;                                                                                                \
        }                                                                                                              \
    }

DEFINE_DOT(dot_bytes, uint8_t, "ldrb", 1)
DEFINE_DOT(dot_halves, int16_t, "ldrsh", 2)

/* n bytes less their zero point, which is INT8_MIN. */
static PORTABLE_NOINLINE void widen_bytes(uint8_t *to, const int8_t *px, int32_t n)
{
    const int8_t *const end = px + n;
    if (PORTABLE_UNALIGNED || (((uintptr_t)px | (uintptr_t)to) & 3u) == 0) {
        for (const int8_t *const words = px + (n & ~3); px != words; px += 4, to += 4) {
            portable_store(to, portable_load(px) ^ 0x80808080u);
        }
    }
    while (px != end) {
        *to++ = (uint8_t)(*px++ - INT8_MIN);
    }
}

static PORTABLE_NOINLINE void widen_halves(int16_t *to, const int8_t *px, int32_t n, int32_t zp)
{
    for (const int8_t *const fours = px + (n & ~3); px != fours; px += 4, to += 4) {
        to[0] = (int16_t)(px[0] - zp);
        to[1] = (int16_t)(px[1] - zp);
        to[2] = (int16_t)(px[2] - zp);
        to[3] = (int16_t)(px[3] - zp);
    }
    for (int32_t k = n & 3; k > 0; k--) {
        *to++ = (int16_t)(*px++ - zp);
    }
}

/* The patch under output pixel (y, x); zero where taps are outside. */
static PORTABLE_NOINLINE void gather(const conv_t *conv, int32_t y, int32_t x, int16_t *patch)
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
        widen_halves(patch, weft_px(in, top + ky * op->dilation_h, left + cols.lo), run, zp);
    }
}

/* All channels of output pixel (y, x), from as much of its patch at once as there is room for. */
static PORTABLE_NOINLINE void one_pixel(const conv_t *conv, int32_t y, int32_t x, int8_t *out)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const weft_linear_t *p = conv->p;
    const int32_t size = conv->size, row = op->kernel_w * in->c;
    const int32_t top = y * op->stride_h - op->pad_top, left = x * op->stride_w - op->pad_left;
    const weft_taps_t rows = weft_taps(top, op->kernel_h, op->dilation_h, in->h);
    const weft_taps_t cols = weft_taps(left, op->kernel_w, 1, in->w);
    const int32_t run = (cols.hi - cols.lo) * in->c; /* of a row of taps */
    const int32_t last = run > 0 ? rows.hi : rows.lo;
    const bool bytes = in->zero_point == INT8_MIN;
    portable_word_t *const sum = conv->memory;
    void *const part = sum + weft_min(call->channels, SUMS);
    const int32_t room = ((int32_t)conv->length - 4 * weft_min(call->channels, SUMS)) >> !bytes;

    int32_t length = 0, at = rows.lo * row + cols.lo * in->c; /* of the part, and where in the patch it is */
    bool whole = false;                                       /* all of the patch is there */
    if (!bytes && size <= room) {
        gather(conv, y, x, part);
        length = size;
        at = 0;
        whole = true;
    }
    for (int32_t o = 0; o < call->channels; o += SUMS) {
        const int32_t n = weft_min(call->channels - o, SUMS);
        const portable_word_t *from = (const portable_word_t *)(const void *)(p->bias + 4 * o);
        const int8_t *w = p->weights + o * size + at;
        int32_t ky = whole ? last : rows.lo, done = 0;
        do { /* a part of a row, or several rows whose weights follow each other */
            for (length = whole ? length : 0; ky < last && length < room;) {
                const int32_t more = weft_min(run - done, room - length);
                const int8_t *px = weft_px(in, top + ky * op->dilation_h, left + cols.lo) + done;
                if (bytes) {
                    widen_bytes((uint8_t *)part + length, px, more);
                } else {
                    widen_halves((int16_t *)part + length, px, more, in->zero_point);
                }
                length += more;
                done += more;
                if (done < run) {
                    break;
                }
                done = 0;
                ky++;
                if (run < row) {
                    break;
                }
            }
            if (bytes) {
                dot_bytes(sum, from, n, w, size, part, length);
            } else {
                dot_halves(sum, from, n, w, size, part, length);
            }
            whole = ky == last && from != sum;
            from = sum;
            w += length + (done == 0 ? row - run : 0);
        } while (ky < last);
        portable_outs(p, o, sum, n, out + o);
    }
}

/* ---------------------------------------------------------------- two pixels */

/* Tap k of two pixels and two channels. */
#define SQUARE(k)                                                                                                      \
    do {                                                                                                               \
        const int32_t xa_ = a[k], xb_ = b[k], x0_ = w0[k], x1_ = w1[k];                                                \
        a0 += xa_ * x0_;                                                                                               \
        a1 += xa_ * x1_;                                                                                               \
        b0 += xb_ * x0_;                                                                                               \
        b1 += xb_ * x1_;                                                                                               \
        PORTABLE_IN_ORDER();                                                                                           \
    } while (0)

/* All channels of two pixels. */
static PORTABLE_NOINLINE void two_pixels(const conv_t *conv, int8_t *out_a, int8_t *out_b)
{
    const int32_t n = conv->call->channels, size = conv->size;
    const weft_linear_t p = *conv->p; /* a copy: bytes written could be its members */
    const int8_t *w = p.weights;
    for (int32_t o = 0; o < n; o += 2) {
        const int32_t second = o + 1 < n;
        const int16_t *a = conv->memory, *b = a + size;
        const int16_t *const end = a + (size & ~7), *const tail_end = a + size;
        const int8_t *w0 = w, *w1 = w + second * size;
        int32_t a0 = weft_linear_bias(&p, o), a1 = weft_linear_bias(&p, o + second), b0 = a0, b1 = a1;
        for (; a != end; a += 8, b += 8, w0 += 8, w1 += 8) {
            SQUARE(0);
            SQUARE(1);
            SQUARE(2);
            SQUARE(3);
            SQUARE(4);
            SQUARE(5);
            SQUARE(6);
            SQUARE(7);
        }
        for (; a != tail_end; a++, b++, w0++, w1++) {
            SQUARE(0);
        }
        w = w1;
        const portable_scale_t scale0 = portable_scale(&p, o);
        out_a[o] = (int8_t)portable_out(&p, scale0, a0);
        out_b[o] = (int8_t)portable_out(&p, scale0, b0);
        const portable_scale_t scale1 = portable_scale(&p, o + second);
        out_a[o + second] = (int8_t)portable_out(&p, scale1, a1);
        out_b[o + second] = (int8_t)portable_out(&p, scale1, b1);
    }
}

/* Output pixels as they come, two by two if there is room for their patches. */
static PORTABLE_NOINLINE void all_pixels(const conv_t *conv)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const bool pairs = conv->size <= (int32_t)(conv->length / (2u * sizeof(int16_t)));
    const bool one_tap = weft_pointwise(call);
    int32_t left = (call->y1 - call->y0) * (call->x1 - call->x0);
    int16_t *const patch = conv->memory;
    int8_t *before = NULL;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        const int8_t *px = NULL;
        if (one_tap) {
            px = weft_px(in, y * op->stride_h, call->x0 * op->stride_w);
        }
        for (int32_t x = call->x0; x < call->x1; x++, left--, out += call->out.c) {
            if (before == NULL && (!pairs || left == 1)) {
                one_pixel(conv, y, x, out);
                continue;
            }
            int16_t *const to = before != NULL ? patch + conv->size : patch;
            if (one_tap) {
                widen_halves(to, px + (x - call->x0) * op->stride_w * in->c, conv->size, in->zero_point);
            } else {
                gather(conv, y, x, to);
            }
            if (before != NULL) {
                two_pixels(conv, before, out);
                before = NULL;
            } else {
                before = out;
            }
        }
    }
}

static PORTABLE_NOINLINE void on_the_stack(conv_t *conv)
{
    union {
        portable_word_t sum[SUMS];
        int16_t patch[MEMORY / 2];
    } memory;
    conv->memory = &memory;
    conv->length = sizeof memory;
    all_pixels(conv);
}

void weft_conv2d_portable(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    if (op->groups != 1 || op->dilation_w != 1) {
        weft_conv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, op->kernel_h * op->kernel_w * call->in0.c);
    conv_t conv;
    conv.call = call;
    conv.p = &p;
    conv.size = op->kernel_h * op->kernel_w * call->in0.c;
    conv.memory = call->scratch;
    conv.length = call->scratch_len;
    if (conv.length > MEMORY) {
        all_pixels(&conv);
    } else {
        on_the_stack(&conv);
    }
    portable_clamp_region(call);
    weft_count_macs(call, call->in0.c * call->channels);
}
