/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: 16 channels of a pixel, or eight, in one block of assembly from
 * biases to outputs. Fewer channels, as slices have, and those that share a multiplier go four at a time with two
 * neighbouring taps.
 */
#include "mve.h"

#if WEFT_KERNELS_MVE

/* All channels of a pixel: what does not stay in registers. */
typedef struct {
    const int8_t *const *row, *const *end; /* tap rows, at least one */
    const int8_t *w;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    int8_t *out, *stop; /* stop: after the last channel */
    int32_t zp_out, skip, column, columns;
    int16_t lo[8], hi[8];
    const int32_t *first_bias, *first_multiplier; /* as for every pixel */
    const int8_t *first_shift;
} pixel_t;

/* A tap of eight channels, `at` bytes on: q0 to q2 are free. Sums of even channels and of odd ones. */
#define TAP(even, odd, at)                                                                                             \
    "vldrb.s16 q0, [r4" at "]\n\t"                                                                                     \
    "vldrb.s16 q1, [r5" at "]\n\t"                                                                                     \
    "vsub.i16 q0, q0, r6\n\t"                                                                                          \
    "vmullb.s16 q2, q0, q1\n\t"                                                                                        \
    "vadd.i32 " even ", " even ", q2\n\t"                                                                              \
    "vmullt.s16 q2, q0, q1\n\t"                                                                                        \
    "vadd.i32 " odd ", " odd ", q2\n\t"
/* As mve_mbqm(), with sums and shifts of the same channels. */
#define SCALED(sum, shift)                                                                                             \
    "vand q2, " sum ", " shift "\n\t"                                                                                  \
    "vshr.s32 q2, q2, #31\n\t"                                                                                         \
    "vqadd.s32 " sum ", " sum ", q2\n\t"                                                                               \
    "vrshl.s32 " sum ", " sum ", " shift "\n\t"
/* Sums of eight channels to outputs in int16, yet to be clamped; q7 is zero. */
#define OUT(even, odd)                                                                                                 \
    "vldrb.s16 q0, [r4], #8\n\t"                                                                                       \
    "vmax.s16 q1, q0, q7\n\t"                                                                                          \
    "vmovlb.s16 q2, q1\n\t"                                                                                            \
    "vshl.s32 " even ", " even ", q2\n\t"                                                                              \
    "vmovlt.s16 q2, q1\n\t"                                                                                            \
    "vshl.s32 " odd ", " odd ", q2\n\t"                                                                                \
    "vmin.s16 q0, q0, q7\n\t"                                                                                          \
    "vld20.32 {q1, q2}, [r1]\n\t"                                                                                      \
    "vld21.32 {q1, q2}, [r1]!\n\t"                                                                                     \
    "vqrdmulh.s32 " even ", " even ", q1\n\t"                                                                          \
    "vqrdmulh.s32 " odd ", " odd ", q2\n\t"                                                                            \
    "vmovlb.s16 q1, q0\n\t" SCALED(even, "q1") "vmovlt.s16 q1, q0\n\t" SCALED(odd, "q1") "vqmovnb.s32 " even ", " even \
                                                                                         "\n\t"                        \
                                                                                         "vqmovnt.s32 " even ", " odd  \
                                                                                         "\n\t"                        \
                                                                                         "vqadd.s16 " even ", " even   \
                                                                                         ", r0\n\t"
#define PUT(v)                                                                                                         \
    "vmax.s16 " v ", " v ", q0\n\t"                                                                                    \
    "vmin.s16 " v ", " v ", q1\n\t"                                                                                    \
    "vstrb.16 " v ", [r5], #8\n\t"
#define START(even, odd) "vld20.32 {" even ", " odd "}, [r1]\n\tvld21.32 {" even ", " odd "}, [r1]!\n\t"
/* A round of channels, `bytes` of them. */
#define CHANNELS(bytes, start, tap, out, put)                                                                          \
    "4:\n\t"                                                                                                           \
    "ldr r5, [r9, %[w]]\n\t"                                                                                           \
    "add r1, r5, #" bytes "\n\t"                                                                                       \
    "str r1, [r9, %[w]]\n\t"                                                                                           \
    "ldr r1, [r9, %[bias]]\n\t" start "str r1, [r9, %[bias]]\n\t"                                                      \
    "ldrd r0, r1, [r9]\n\t"                                                                                            \
    "3:\n\t"                                                                                                           \
    "ldr r4, [r0], #4\n\t"                                                                                             \
    "add r4, r4, r10\n\t"                                                                                              \
    "wls lr, r11, 2f\n\t"                                                                                              \
    "1:\n\t" tap "add r5, r5, r2\n\t"                                                                                  \
    "add r4, r4, r3\n\t"                                                                                               \
    "le lr, 1b\n\t"                                                                                                    \
    "2:\n\t"                                                                                                           \
    "cmp r0, r1\n\t"                                                                                                   \
    "add r5, r5, r8\n\t"                                                                                               \
    "bne 3b\n\t"                                                                                                       \
    "ldm r12, {r1, r4, r5}\n\t"                                                                                        \
    "ldr r0, [r9, %[zp_out]]\n\t" out "vldrw.32 q0, [r9, %[lo]]\n\t"                                                   \
    "vldrw.32 q1, [r9, %[hi]]\n\t" put "stm r12, {r1, r4, r5}\n\t"                                                     \
    "add r10, r10, #" bytes "\n\t"                                                                                     \
    "ldr r1, [r9, %[stop]]\n\t"                                                                                        \
    "cmp r5, r1\n\t"                                                                                                   \
    "bne 4b"
#define EIGHT CHANNELS("8", START("q3", "q4"), TAP("q3", "q4", ""), OUT("q3", "q4"), PUT("q3"))
#define SIXTEEN                                                                                                        \
    CHANNELS("16", START("q3", "q4") START("q5", "q6"), TAP("q3", "q4", "") TAP("q5", "q6", ", #8"),                   \
             OUT("q3", "q4") OUT("q5", "q6"), PUT("q3") PUT("q5"))
/* Written out, as it needs all vector registers. */
#define ROUNDS(rounds)                                                                                                 \
    __asm__ volatile(                                                                                                  \
        "vmov.i32 q7, #0\n\t"                                                                                          \
        "add r12, r9, %[multiplier]\n\t"                                                                               \
        "ldrd r10, r11, [r9, %[column]]\n\t"                                                                           \
        "ldr r8, [r9, %[skip]]\n\t" rounds                                                                             \
        :                                                                                                              \
        : "r"(at), "r"(n), "r"(step), "r"(zp), [w] "i"(offsetof(pixel_t, w)), [bias] "i"(offsetof(pixel_t, bias)),     \
          [multiplier] "i"(offsetof(pixel_t, multiplier)), [stop] "i"(offsetof(pixel_t, stop)),                        \
          [zp_out] "i"(offsetof(pixel_t, zp_out)), [skip] "i"(offsetof(pixel_t, skip)),                                \
          [column] "i"(offsetof(pixel_t, column)), [lo] "i"(offsetof(pixel_t, lo)), [hi] "i"(offsetof(pixel_t, hi))    \
        : "r0", "r1", "r4", "r5", "r8", "r10", "r11", "r12", "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7",     \
          "cc", "memory")

/* `count` neighbours with the same taps inside: as many channels as go by rounds of 16, then by eight. */
static MVE_NOINLINE void some_pixels(const weft_call_t *call, pixel_t *px, int8_t *out, int32_t count)
{
    register pixel_t *const at __asm__("r9") = px;
    register const int32_t n __asm__("r2") = call->total;
    register const int32_t step __asm__("r3") = call->op->dilation_w * call->in0.c;
    register const int32_t zp __asm__("r6") = call->in0.zero_point;
    const int32_t channels = call->channels, rounds = channels & ~15;
    const int8_t *const w = px->w;
    for (;;) {
        px->bias = px->first_bias;
        px->multiplier = px->first_multiplier;
        px->shift = px->first_shift;
        px->out = out;
        px->stop = out + rounds;
        if (rounds != 0) {
            ROUNDS(SIXTEEN);
        }
        if (rounds != channels) {
            px->column += rounds; /* not kept up to date above */
            for (int32_t left = channels - rounds; left > 0; left -= 8) {
                if (left < 8) { /* the last channels overlap those before */
                    px->column -= 8 - left;
                    px->w -= 8 - left;
                    px->bias -= 8 - left;
                    px->multiplier -= 8 - left;
                    px->shift -= 8 - left;
                    px->out -= 8 - left;
                }
                px->stop = px->out + 8;
                ROUNDS(EIGHT);
                px->column += 8;
            }
            px->column -= channels;
        }
        if (--count == 0) {
            break;
        }
        out += call->out.c;
        px->w = w;
        px->column += call->op->stride_w * call->in0.c;
    }
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
static MVE_NOINLINE void few_channels(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_linear_t p = weft_linear(call, call->total, 1);
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
            mve_tap_rows(&rows, call, y);
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
    const bool few = call->channels < 8 || (op->flags & WEFT_OP_PER_TENSOR) != 0;
    if (weft_multiplier(call) != 1 || op->kernel_h > WEFT_HOISTED_ROWS || weft_in_quads(op) ||
        (few && apart > UINT16_MAX - 3)) {
        weft_dwconv2d(call);
        return;
    }
    if (few) {
        few_channels(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    const int32_t n = call->total, kernel_w = op->kernel_w, c = in->c;
    weft_rows_t rows;
    pixel_t px;
    px.zp_out = p.zp_out;
    px.first_bias = mve_words(p.bias);
    px.first_multiplier = mve_words(p.multiplier);
    px.first_shift = p.shift;
    vstrhq_s16(px.lo, vdupq_n_s16(op->act_min));
    vstrhq_s16(px.hi, vdupq_n_s16(op->act_max));
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px_inline(&call->out, y, call->x0);
        mve_tap_rows(&rows, call, y);
        const bool none = rows.taps.lo == rows.taps.hi; /* then no columns from any address */
        px.row = none ? &px.w : rows.row + rows.taps.lo;
        px.end = none ? px.row + 1 : rows.row + rows.taps.hi;
        const int8_t *const w = p.weights + rows.taps.lo * kernel_w * n;
        for (int32_t x = call->x0, count = 1; x < call->x1; x += count, out += count * pixel) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, kernel_w, op->dilation_w, in->w);
            count = mve_alike(call, x, first, cols);
            px.columns = none ? 0 : cols.hi - cols.lo;
            px.column = (first + cols.lo * op->dilation_w - rows.x) * c;
            px.skip = (kernel_w - px.columns) * n;
            px.w = w + cols.lo * n;
            some_pixels(call, &px, out, count);
        }
    }
    weft_count_macs(call, call->channels);
}

#endif
