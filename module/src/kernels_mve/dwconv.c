/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: eight channels of one output pixel, or of two neighbours, whose
 * weights are loaded once. The weights' sum goes along, for the zero point. Fewer channels, as slices have, go four at
 * a time with two neighbouring taps.
 */
#include "mve.h"

#if WEFT_KERNELS_MVE

#define TAPS_MAX 255 /* sums of as many weights fit int16 */

/* Neighbouring output pixels that have the same taps inside. */
typedef struct {
    const weft_call_t *call;
    const weft_linear_t *p;
    const int8_t *const *row; /* tap rows */
    int32_t rows, columns;
    int32_t column, weight; /* bytes: from a row's address to the first tap; to the first weight */
} window_t;

/* Sums of eight channels, even ones and odd ones: products of pairs of int16 come out like that. */
typedef struct {
    int32x4_t even, odd;
} sums_t;

/* A row of taps; written out, as it needs all vector registers. */
#define TAPS(neighbour, next)                                                                                          \
    "wls lr, %[columns], 2f\n\t"                                                                                       \
    "1:\n\t"                                                                                                           \
    "vldrb.s16 q0, [%[w]]\n\t"                                                                                         \
    "vldrb.s16 q1, [%[px]]\n\t"                                                                                        \
    "vadd.i16 %q[sum], %q[sum], q0\n\t"                                                                                \
    "vmullb.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[ae], %q[ae], q2\n\t"                                                                                  \
    "vmullt.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[ao], %q[ao], q2\n\t" neighbour "add %[w], %[w], %[n]\n\t"                                             \
    "add %[px], %[px], %[step]\n\t" next "le lr, 1b\n\t"                                                               \
    "2:"
#define NEIGHBOUR                                                                                                      \
    "vldrb.s16 q1, [%[neighbour]]\n\t"                                                                                 \
    "vmullb.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[be], %q[be], q2\n\t"                                                                                  \
    "vmullt.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[bo], %q[bo], q2\n\t"

/* What every second channel from o on needs: where sums start, given those of the weights, and their scale. */
typedef struct {
    int32x4_t start;
    mve_scale_t scale;
} half_t;

MVE_INLINE half_t half_of(const weft_linear_t *p, int32_t o, int32x4_t weights, int32_t zp)
{
    const uint32x4_t second = {0, 2, 4, 6};
    half_t half;
    half.start = vmlaq_n_s32(vldrwq_gather_shifted_offset_s32(mve_words(p->bias) + o, second), weights, zp);
    if (p->per_tensor) {
        half.scale = mve_scale_of(vdupq_n_s32(*mve_words(p->multiplier)), vdupq_n_s32(*p->shift));
    } else {
        half.scale = mve_scale_of(vldrwq_gather_shifted_offset_s32(mve_words(p->multiplier) + o, second),
                                  vldrbq_gather_offset_s32(p->shift + o, second));
    }
    return half;
}

/* All channels of one pixel, or of `two` neighbours. */
MVE_INLINE void pixels(const window_t *win, bool two, int8_t *out)
{
    const weft_call_t *call = win->call;
    const weft_linear_t p = *win->p; /* a copy: bytes written could be its members */
    const int16x8_t lo = vdupq_n_s16(call->op->act_min), hi = vdupq_n_s16(call->op->act_max);
    const int16_t zp_out = (int16_t)p.zp_out;
    const int32_t n = call->total, step = call->op->dilation_w * call->in0.c, next = call->op->stride_w * call->in0.c;
    const int32_t pixel = call->out.c, channels = call->channels;
    const int32_t columns = win->columns, row_weights = (call->op->kernel_w - columns) * n, column = win->column;
    const int32_t zp = -call->in0.zero_point;
    const int8_t *const weights = p.weights + win->weight;
    const int8_t *const *const begin = win->row, *const *const end = begin + win->rows;
    for (int32_t channel = 0; channel < channels; channel += 8) {
        const int32_t o = weft_min(channel, channels - 8); /* the last channels overlap those before */
        const int8_t *w = weights + o;
        sums_t a, b;
        int16x8_t sum = vdupq_n_s16(0);
        a.even = a.odd = b.even = b.odd = vdupq_n_s32(0);
        for (const int8_t *const *row = begin; row != end; row++, w += row_weights) {
            const int8_t *px = *row + column + o;
            const int8_t *neighbour = px + next;
            if (two) {
                __asm__ volatile(TAPS(NEIGHBOUR, "add %[neighbour], %[neighbour], %[step]\n\t")
                                 : [sum] "+w"(sum), [ae] "+w"(a.even), [ao] "+w"(a.odd), [be] "+w"(b.even),
                                   [bo] "+w"(b.odd), [px] "+l"(px), [neighbour] "+l"(neighbour), [w] "+l"(w)
                                 : [columns] "r"(columns), [step] "r"(step), [n] "r"(n)
                                 : "q0", "q1", "q2", "lr", "cc", "memory");
            } else {
                __asm__ volatile(TAPS("", "")
                                 : [sum] "+w"(sum), [ae] "+w"(a.even), [ao] "+w"(a.odd), [px] "+l"(px), [w] "+l"(w)
                                 : [columns] "r"(columns), [step] "r"(step), [n] "r"(n)
                                 : "q0", "q1", "q2", "lr", "cc", "memory");
            }
        }
        half_t half = half_of(&p, o, vmovlbq_s16(sum), zp);
        int16x8_t out_a = vqmovnbq_s32(sum, mve_mbqm(vaddq_s32(a.even, half.start), half.scale)), out_b = out_a;
        if (two) {
            out_b = vqmovnbq_s32(sum, mve_mbqm(vaddq_s32(b.even, half.start), half.scale));
        }
        half = half_of(&p, o + 1, vmovltq_s16(sum), zp);
        out_a = vqmovntq_s32(out_a, mve_mbqm(vaddq_s32(a.odd, half.start), half.scale));
        vstrbq_s16(out + o, vminq_s16(vmaxq_s16(vqaddq_n_s16(out_a, zp_out), lo), hi));
        if (two) {
            out_b = vqmovntq_s32(out_b, mve_mbqm(vaddq_s32(b.odd, half.start), half.scale));
            vstrbq_s16(out + pixel + o, vminq_s16(vmaxq_s16(vqaddq_n_s16(out_b, zp_out), lo), hi));
        }
    }
}

static MVE_NOINLINE void one_pixel(const window_t *win, int8_t *out)
{
    pixels(win, false, out);
}

static MVE_NOINLINE void two_pixels(const window_t *win, int8_t *out)
{
    pixels(win, true, out);
}

/* Two taps of four channels a round: those of the first are the even halfwords. */
#define TWO_TAPS                                                                                                       \
    "wls lr, %[pairs], 2f\n\t"                                                                                         \
    "1:\n\t"                                                                                                           \
    "vldrb.s16 q0, [%[w], %q[w_at]]\n\t"                                                                               \
    "vldrb.s16 q1, [%[px], %q[px_at]]\n\t"                                                                             \
    "vsub.i16 q1, q1, %[zp]\n\t"                                                                                       \
    "vmullb.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[acc], %q[acc], q2\n\t"                                                                                \
    "vmullt.s16 q2, q1, q0\n\t"                                                                                        \
    "vadd.i32 %q[acc], %q[acc], q2\n\t"                                                                                \
    "add %[w], %[w], %[w_next]\n\t"                                                                                    \
    "add %[px], %[px], %[px_next]\n\t"                                                                                 \
    "le lr, 1b\n\t"                                                                                                    \
    "2:"

/* Fewer than eight channels of all pixels. */
static MVE_NOINLINE void few_channels(const weft_call_t *call, const weft_linear_t *linear)
{
    const weft_op_t *op = call->op;
    const weft_linear_t p = *linear;
    const mve_range_t range = mve_range(&p);
    const int32_t n = call->total, c = call->in0.c, step = op->dilation_w * c, zp = call->in0.zero_point;
    const int32_t channels = call->channels, count = weft_min(channels, 4);
    const mve_pred16_t lanes = vctp32q((uint32_t)count);
    const uint16x8_t lane = {0, 0, 1, 1, 2, 2, 3, 3}, second = {0, 1, 0, 1, 0, 1, 0, 1};
    const uint16x8_t channel_of = vminq_u16(lane, vdupq_n_u16((uint16_t)(count - 1)));
    const uint16x8_t px_at = vmlaq_n_u16(channel_of, second, (uint16_t)step);
    const uint16x8_t w_at = vmlaq_n_u16(channel_of, second, (uint16_t)n);
    const uint32x4_t at = vmovlbq_u16(channel_of);
    weft_rows_t rows;
    for (int32_t channel = 0; channel < channels; channel += 4) {
        const int32_t o = weft_min(channel, channels - count); /* the last channels overlap those before */
        const mve_scale_t scale = mve_scale(&p, o, lanes);
        const int32x4_t bias = vldrwq_z_s32(mve_words(p.bias) + o, lanes);
        for (int32_t y = call->y0; y < call->y1; y++) {
            int8_t *out = weft_px(&call->out, y, call->x0) + o;
            weft_rows(&rows, call, y);
            for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
                const int32_t first = x * op->stride_w - op->pad_left;
                const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, call->in0.w);
                const int32_t column = (first + cols.lo * op->dilation_w - rows.x) * c + o, taps = cols.hi - cols.lo;
                const int32_t pairs = taps >> 1, row_weights = (op->kernel_w - taps) * n;
                const int8_t *w = p.weights + (rows.taps.lo * op->kernel_w + cols.lo) * n + o;
                int32x4_t acc = bias;
                for (int32_t ky = rows.taps.lo; ky < rows.taps.hi; ky++, w += row_weights) {
                    const int8_t *px = rows.row[ky] + column;
                    __asm__ volatile(TWO_TAPS
                                     : [acc] "+w"(acc), [px] "+r"(px), [w] "+r"(w)
                                     : [pairs] "r"(pairs), [px_next] "r"(2 * step), [w_next] "r"(2 * n), [zp] "r"(zp),
                                       [px_at] "w"(px_at), [w_at] "w"(w_at)
                                     : "q0", "q1", "q2", "lr", "cc", "memory");
                    if ((taps & 1) != 0) {
                        const int32x4_t last = vsubq_n_s32(vldrbq_gather_offset_s32(px, at), zp);
                        acc = vaddq_s32(acc, vmulq_s32(last, vldrbq_gather_offset_s32(w, at)));
                        w += n;
                    }
                }
                vstrbq_p_s32(out, mve_out(acc, scale, range), lanes);
            }
        }
    }
    weft_count_macs(call, channels);
}

void weft_dwconv2d_mve(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const int32_t pixel = call->out.c;
    const int32_t apart = weft_max(op->dilation_w * in->c, call->total); /* bytes between taps */
    const bool few = call->channels < 8;
    if (weft_multiplier(call) != 1 || op->kernel_h > WEFT_HOISTED_ROWS || op->kernel_h * op->kernel_w > TAPS_MAX ||
        weft_in_quads(op) || (few && apart > UINT16_MAX - 3)) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    if (few) {
        few_channels(call, &p);
        return;
    }
    weft_rows_t rows;
    window_t win;
    win.call = call;
    win.p = &p;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        weft_rows(&rows, call, y);
        win.row = rows.row + rows.taps.lo;
        win.rows = rows.taps.hi - rows.taps.lo;
        for (int32_t x = call->x0; x < call->x1; x++, out += pixel) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const weft_taps_t then = weft_taps(first + op->stride_w, op->kernel_w, op->dilation_w, in->w);
            win.columns = cols.hi - cols.lo;
            win.column = (first + cols.lo * op->dilation_w - rows.x) * in->c;
            win.weight = (rows.taps.lo * op->kernel_w + cols.lo) * call->total;
            if (x + 1 < call->x1 && then.lo == cols.lo && then.hi == cols.hi) {
                two_pixels(&win, out);
                x++;
                out += pixel;
            } else {
                one_pixel(&win, out);
            }
        }
    }
    weft_count_macs(call, call->channels);
}

#endif
