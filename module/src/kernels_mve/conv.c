/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D: four output pixels and one channel at a time, 0.17 instructions per MAC and 10 per output; what is left of
 * them one by one, four channels at a time. Pointwise, pixels are read in place. Other patches are gathered if there is
 * memory for four: the plan's scratch, or the stack for short ones. Then there is one run, and taps outside are the
 * zero point. Else tap rows are read in place.
 */
#include "mve.h"

#if WEFT_KERNELS_MVE

#define PIXELS 4     /* at once */
#define PATCH_MAX 40 /* elements of a patch that is gathered on the stack */

/* A call, and up to four pixels that have the same taps inside. */
typedef struct {
    const weft_call_t *call;
    weft_linear_t p;
    int32_t depth;              /* input channels of a group */
    bool joined;                /* a tap row is one run of memory */
    mve_patch_t patch;          /* tap rows; its `at` is unused */
    int32_t runs, step, weight; /* runs in a row, bytes from one to the next; first weight */
    int32_t count, at[PIXELS];  /* pixels; bytes from a row's address to each pixel's first tap */
    int8_t *out[PIXELS];
} conv_t;

/* Sums of four pixels, and of the weights, over a run. Takes ten registers: its length comes from memory. */
#define FOUR_PIXELS                                                                                                    \
    "ldr lr, %[n]\n\t"                                                                                                 \
    "wlstp.8 lr, lr, 2f\n\t"                                                                                           \
    "1:\n\t"                                                                                                           \
    "vldrb.8 q0, [%[w]], #16\n\t"                                                                                      \
    "vldrb.8 q1, [%[x0]], #16\n\t"                                                                                     \
    "vaddva.s8 %[sum], q0\n\t"                                                                                         \
    "vmladava.s8 %[a0], q0, q1\n\t"                                                                                    \
    "vldrb.8 q2, [%[x1]], #16\n\t"                                                                                     \
    "vmladava.s8 %[a1], q0, q2\n\t"                                                                                    \
    "vldrb.8 q1, [%[x2]], #16\n\t"                                                                                     \
    "vmladava.s8 %[a2], q0, q1\n\t"                                                                                    \
    "vldrb.8 q2, [%[x3]], #16\n\t"                                                                                     \
    "vmladava.s8 %[a3], q0, q2\n\t"                                                                                    \
    "letp lr, 1b\n\t"                                                                                                  \
    "2:"

/*
 * All channels of four pixels; of fewer, the last one again. `single`: one run; else pixels are equally far apart.
 * Channels have multipliers of their own.
 */
MVE_INLINE void four_pixels(const conv_t *conv, bool single)
{
    /* Copies: bytes written could be members. */
    const weft_linear_t p = conv->p;
    const int32_t total = conv->call->total, zp = conv->call->in0.zero_point, zp_out = p.zp_out, run = conv->patch.run;
    const int32_t row_weights = conv->patch.row_weights, size = conv->patch.size, at = conv->at[0];
    const int8_t *const *const rows = conv->patch.row, *const *const rows_end = rows + conv->patch.rows;
    const int8_t *const px0 = *rows + at, *const px1 = *rows + conv->at[1], *const px2 = *rows + conv->at[2];
    const int8_t *const px3 = *rows + conv->at[3];
    const ptrdiff_t apart = px1 - px0;
    const int32_t *bias = mve_words(p.bias), *const bias_end = bias + conv->call->channels;
    const int8_t *shift = p.shift, *weights = p.weights + conv->weight;
    const int32x4_t lo = vdupq_n_s32(p.lo), hi = vdupq_n_s32(p.hi);
    int8_t *out = conv->out[0];
    const uint32x4_t to = {0, (uint32_t)(conv->out[1] - out), (uint32_t)(conv->out[2] - out),
                           (uint32_t)(conv->out[3] - out)};

    do {
        int32_t a0 = *bias, a1 = a0, a2 = a0, a3 = a0, sum = 0;
        const int8_t *const *row = rows, *w = weights;
        do {
            const int8_t *x0 = px0, *x1 = px1, *x2 = px2, *x3 = px3, *v = w;
            if (!single) {
                x0 = *row++ + at;
                x1 = x0 + apart;
                x2 = x1 + apart;
                x3 = x2 + apart;
            }
            __asm__ volatile(FOUR_PIXELS
                             : [a0] "+Te"(a0), [a1] "+Te"(a1), [a2] "+Te"(a2), [a3] "+Te"(a3), [sum] "+Te"(sum),
                               [x0] "+r"(x0), [x1] "+r"(x1), [x2] "+r"(x2), [x3] "+r"(x3), [w] "+r"(v)
                             : [n] "m"(run)
                             : "q0", "q1", "q2", "lr", "cc", "memory");
            w += row_weights;
        } while (!single && row != rows_end);
        weights += size;
        int32x4_t acc;
        __asm__("vmov %q0[2], %q0[0], %1, %2\n\tvmov %q0[3], %q0[1], %3, %4"
                : "=&w"(acc)
                : "r"(a0), "r"(a2), "r"(a1), "r"(a3));
        /* As mve_mbqm(). Multipliers come right behind all biases. */
        const int32_t left = weft_max(*shift, 0), right = *shift - left;
        acc = vqrdmulhq_n_s32(vshlq_r_s32(vaddq_n_s32(acc, -zp * sum), left), bias[total]);
        acc = vqaddq_s32(acc, vshrq_n_s32(vandq_s32(acc, vdupq_n_s32(right)), 31));
        acc = vaddq_n_s32(vminq_s32(vmaxq_s32(vrshlq_n_s32(acc, right), lo), hi), zp_out);
        vstrbq_scatter_offset_s32(out++, to, acc);
        shift++;
    } while (++bias != bias_end);
}

static MVE_NOINLINE void four_runs(const conv_t *conv)
{
    four_pixels(conv, true);
}

static MVE_NOINLINE void four_patches(const conv_t *conv)
{
    four_pixels(conv, false);
}

/* All channels of pixel k. */
static MVE_NOINLINE void one_pixel(const conv_t *conv, int32_t k)
{
    const weft_call_t *call = conv->call;
    const mve_range_t range = mve_range(&conv->p);
    const int32_t n = call->channels, per_group = call->op->groups == 1 ? n : n / call->op->groups;
    const int8_t *weights = conv->p.weights + conv->weight;
    int32_t at = conv->at[k], group_end = per_group;
    mve_patch_t patch = conv->patch;
    for (int32_t o = 0, count; o < n; o += count, weights += count * patch.size) {
        count = weft_min(group_end - o, 4);
        const mve_pred16_t lanes = vctp32q((uint32_t)count);
        int32x4_t acc = vldrwq_z_s32(mve_words(conv->p.bias) + o, lanes);
        patch.at = at;
        for (int32_t run = 0; run < conv->runs; run++, patch.at += conv->step) {
            acc = mve_dot(acc, &patch, weights + run * conv->depth, count);
        }
        vstrbq_p_s32(conv->out[k] + o, mve_out(acc, mve_scale(&conv->p, o, lanes), range), lanes);
        if (o + count == group_end) {
            group_end += per_group;
            at += conv->depth;
        }
    }
}

/* The pixels at hand. */
static void flush(conv_t *conv)
{
    const bool single = conv->patch.rows == 1;
    if (conv->count < (single ? PIXELS - 1 : PIXELS) || !conv->joined || conv->p.per_tensor) {
        for (int32_t k = 0; k < conv->count; k++) {
            one_pixel(conv, k);
        }
    } else if (single) {
        conv->at[3] = conv->at[conv->count - 1];
        conv->out[3] = conv->out[conv->count - 1];
        four_runs(conv);
    } else {
        four_patches(conv);
    }
    conv->count = 0;
}

/* The patch under output pixel (y, x): input rows are runs of memory. */
static void gather(const conv_t *conv, int32_t y, int32_t x, int8_t *patch)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const int32_t top = y * op->stride_h - op->pad_top, first = x * op->stride_w - op->pad_left;
    const weft_taps_t rows = weft_taps(top, op->kernel_h, op->dilation_h, in->h);
    const weft_taps_t cols = weft_taps(first, op->kernel_w, 1, in->w);
    const int32_t run = (cols.hi - cols.lo) * in->c;
    if ((rows.hi - rows.lo) * run != conv->patch.size) {
        memset(patch, in->zero_point, (size_t)conv->patch.size);
    }
    patch += (rows.lo * op->kernel_w + cols.lo) * in->c;
    for (int32_t ky = rows.lo; ky < rows.hi; ky++, patch += conv->patch.row_weights) {
        const int8_t *from = weft_px(in, top + ky * op->dilation_h, first + cols.lo);
        int8_t *to = patch;
        __asm__ volatile("wlstp.8 lr, %[n], 2f\n\t"
                         "1:\n\t"
                         "vldrb.8 q0, [%[from]], #16\n\t"
                         "vstrb.8 q0, [%[to]], #16\n\t"
                         "letp lr, 1b\n\t"
                         "2:"
                         : [from] "+r"(from), [to] "+r"(to)
                         : [n] "r"(run)
                         : "q0", "lr", "cc", "memory");
    }
}

/* Pixels whose patches are one run of memory, or are gathered if there is `memory`, as they come, across rows too. */
static MVE_NOINLINE void conv_runs(conv_t *conv, int8_t *memory)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const int8_t *base = memory;
    conv->patch.row = &base;
    conv->patch.rows = conv->runs = 1;
    conv->patch.run = conv->patch.size;
    conv->weight = 0;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        const int8_t *px = memory != NULL ? memory : weft_px(&call->in0, y * op->stride_h, call->x0 * op->stride_w);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            const int32_t k = conv->count++;
            conv->out[k] = out;
            if (memory != NULL) {
                conv->at[k] = k * conv->patch.size;
                gather(conv, y, x, memory + conv->at[k]);
            } else {
                base = k == 0 ? px : base;
                conv->at[k] = (int32_t)(px - base);
                px += op->stride_w * call->in0.c;
            }
            if (conv->count == PIXELS) {
                flush(conv);
            }
        }
    }
    flush(conv);
}

static MVE_NOINLINE void conv_gathered(conv_t *conv)
{
    int8_t memory[PIXELS * PATCH_MAX];
    conv_runs(conv, memory);
}

/* Pixels in place, neighbours with the same taps together. */
static MVE_NOINLINE void conv_rows(conv_t *conv)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const bool joined = conv->joined;
    weft_rows_t rows;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_taps_t last = {0, 0};
        weft_rows(&rows, call, y);
        conv->patch.row = rows.row + rows.taps.lo;
        conv->patch.rows = rows.taps.hi - rows.taps.lo;
        if (conv->patch.rows == 0) {
            conv->patch.row = &conv->p.weights; /* any address: runs of none */
            conv->patch.rows = 1;
        }
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            if (conv->count == PIXELS || cols.lo != last.lo || cols.hi != last.hi) {
                flush(conv);
            }
            last = cols;
            conv->runs = joined ? 1 : cols.hi - cols.lo;
            conv->patch.run = joined ? (cols.hi - cols.lo) * conv->depth : conv->depth;
            conv->patch.run = rows.taps.lo < rows.taps.hi ? conv->patch.run : 0;
            conv->weight = (rows.taps.lo * op->kernel_w + cols.lo) * conv->depth;
            conv->at[conv->count] = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            conv->out[conv->count++] = out;
        }
        flush(conv);
    }
}

void weft_conv2d_mve(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    if (op->kernel_h > WEFT_HOISTED_ROWS) {
        weft_conv2d(call);
        return;
    }
    conv_t conv;
    conv.call = call;
    conv.depth = op->groups == 1 ? call->in0.c : call->in0.c / op->groups;
    conv.patch.row_weights = op->kernel_w * conv.depth;
    conv.patch.size = op->kernel_h * conv.patch.row_weights;
    conv.p = weft_linear(call, call->total, conv.patch.size);
    conv.patch.zp = call->in0.zero_point;
    conv.step = op->dilation_w * call->in0.c;
    conv.count = 0;
    conv.joined = op->groups == 1 && (op->dilation_w == 1 || op->kernel_w == 1);
    if (op->groups == 1 && conv.patch.size == conv.depth && op->pad_top + op->pad_left == 0) {
        conv_runs(&conv, NULL);
    } else if (conv.joined && call->scratch_len / PIXELS >= (uint32_t)conv.patch.size) {
        conv_runs(&conv, call->scratch);
    } else if (conv.joined && conv.patch.size <= PATCH_MAX) {
        conv_gathered(&conv);
    } else {
        conv_rows(&conv);
    }
    weft_count_macs(call, conv.depth * call->channels);
}

#endif
