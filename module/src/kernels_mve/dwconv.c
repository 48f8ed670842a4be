/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: 16 channels of a pixel, or eight, in one block of assembly from
 * biases to outputs. Fewer channels, as slices have, and those that share a multiplier go four at a time with
 * eight neighbouring taps.
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

/* What the loops over taps of few_channels() are about. */
typedef struct {
    int32_t sums[4];
    int32_t column, columns; /* bytes from a row's address to the first tap; taps */
    int32_t skip;            /* bytes from where a row's last round leaves the weights to the next row's */
    const int8_t *const *end;
    int32_t px_next, w_next; /* from the last channel to the first of the next eight taps */
    int32_t zp;
} few_t;

/* Eight taps of a channel. */
#define CHANNEL(sum)                                                                                                   \
    "vldrb.s16 q0, [r1, %q[px_at]]\n\t"                                                                                \
    "vldrb.s16 q1, [r3, %q[w_at]]\n\t"                                                                                 \
    "vsub.i16 q0, q0, r12\n\t"                                                                                         \
    "vmladava.s16 " sum ", q0, q1\n\t"
#define NEXT_CHANNEL                                                                                                   \
    "add r1, r1, #1\n\t"                                                                                               \
    "add r3, r3, #1\n\t"
#define TAP_ROWS(clear, channels, put)                                                                                 \
    __asm__ volatile(                                                                                                  \
        "ldrd r8, r10, [r9, %[px_next]]\n\t"                                                                           \
        "ldr r12, [r9, %[zp]]\n\t" clear "3:\n\t"                                                                      \
        "ldr r1, [r5], #4\n\t"                                                                                         \
        "ldrd r11, lr, [r9, %[column]]\n\t"                                                                            \
        "add r1, r1, r11\n\t"                                                                                          \
        "wlstp.16 lr, lr, 2f\n\t"                                                                                      \
        "1:\n\t" channels "add r1, r1, r8\n\t"                                                                         \
        "add r3, r3, r10\n\t"                                                                                          \
        "letp lr, 1b\n\t"                                                                                              \
        "2:\n\t"                                                                                                       \
        "ldrd r11, lr, [r9, %[skip]]\n\t"                                                                              \
        "add r3, r3, r11\n\t"                                                                                          \
        "cmp r5, lr\n\t"                                                                                               \
        "bne 3b\n\t" put                                                                                               \
        : "+r"(row), "+r"(w)                                                                                           \
        : "r"(at), [px_at] "w"(px_at), [w_at] "w"(w_at), [column] "i"(offsetof(few_t, column)),                        \
          [skip] "i"(offsetof(few_t, skip)), [px_next] "i"(offsetof(few_t, px_next)), [zp] "i"(offsetof(few_t, zp))    \
        : "r0", "r1", "r2", "r4", "r6", "r8", "r10", "r11", "r12", "lr", "q0", "q1", "cc", "memory")

/* `count` channels from o on, four or one, of all pixels. */
MVE_INLINE void few_channels_from(const weft_call_t *call, const weft_linear_t *linear, int32_t o, int32_t count)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const weft_linear_t p = *linear; /* a copy: bytes written could be its members */
    const int32_t n = call->total, step = op->dilation_w * in->c, next = op->stride_w * in->c;
    const mve_range_t range = mve_range(&p);
    const mve_pred16_t lanes = vctp32q((uint32_t)count);
    const mve_scale_t scale = mve_scale(&p, o, lanes);
    const int32x4_t bias = vldrwq_z_s32(mve_words(p.bias) + o, lanes);
    const uint16x8_t lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint16x8_t px_at = vmulq_n_u16(lane, (uint16_t)step), w_at = vmulq_n_u16(lane, (uint16_t)n);
    weft_rows_t rows;
    few_t few;
    few.px_next = 8 * step - (count - 1);
    few.w_next = 8 * n - (count - 1);
    few.zp = in->zero_point;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0) + o;
        mve_tap_rows(&rows, call, y);
        const bool none = rows.taps.lo == rows.taps.hi; /* then no columns from any address */
        const int8_t *const *const from = none ? &linear->weights : rows.row + rows.taps.lo;
        few.end = none ? from + 1 : rows.row + rows.taps.hi;
        for (int32_t x = call->x0, alike = 1; x < call->x1; x += alike) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            const int8_t *const weights = p.weights + (rows.taps.lo * op->kernel_w + cols.lo) * n + o;
            alike = mve_alike(call, x, first, cols);
            few.columns = none ? 0 : cols.hi - cols.lo;
            few.column = (first + cols.lo * op->dilation_w - rows.x) * in->c + o;
            few.skip = (op->kernel_w - ((few.columns + 7) & ~7)) * n;
            for (int32_t left = alike; left > 0; left--, few.column += next, out += call->out.c) {
                register few_t *const at __asm__("r9") = &few;
                register const int8_t *const *row __asm__("r5") = from;
                register const int8_t *w __asm__("r3") = weights;
                if (count == 4) {
                    TAP_ROWS("movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\t",
                             CHANNEL("r0") NEXT_CHANNEL CHANNEL("r2") NEXT_CHANNEL CHANNEL("r4")
                                 NEXT_CHANNEL CHANNEL("r6"),
                             "stm r9, {r0, r2, r4, r6}");
                    vstrbq_s32(out, mve_out(vaddq_s32(vldrwq_s32(few.sums), bias), scale, range));
                } else {
                    TAP_ROWS("movs r0, #0\n\t", CHANNEL("r0"), "str r0, [r9]");
                    const int32x4_t acc = vaddq_s32(vldrwq_z_s32(few.sums, lanes), bias);
                    vstrbq_p_s32(out, mve_out(acc, scale, range), lanes);
                }
            }
        }
    }
}

static MVE_NOINLINE void four_channels(const weft_call_t *call, const weft_linear_t *p, int32_t o)
{
    few_channels_from(call, p, o, 4);
}

static MVE_NOINLINE void one_channel(const weft_call_t *call, const weft_linear_t *p, int32_t o)
{
    few_channels_from(call, p, o, 1);
}

/* Fewer than eight channels, or a multiplier for all: four channels at a time, or one, and eight taps of a row. */
static MVE_NOINLINE void few_channels(const weft_call_t *call)
{
    const weft_linear_t p = weft_linear(call, call->total, 1);
    const int32_t channels = call->channels, fours = channels & ~3;
    for (int32_t o = 0; o < channels; o += o < fours ? 4 : 1) {
        (o < fours ? four_channels : one_channel)(call, &p, o);
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
        (few && apart > UINT16_MAX / 7)) {
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
