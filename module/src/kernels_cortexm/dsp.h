/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels for Cortex-M with the DSP extension (M4, M7, M33) share. Four int8 of a word are widened to two
 * pairs of int16, bytes 0 and 2 ("even") and bytes 1 and 3 ("odd"), so that one SMLAD does two MACs; the input's zero
 * point is taken off while widening (SXTAB16), at no cost.
 */
#ifndef WEFT_DSP_H
#define WEFT_DSP_H

#include "weft/weft_config.h"

#if WEFT_KERNELS_DSP

#include <arm_acle.h>

#include "../fixedpoint.h"
#include "../kernels_ref/linear.h"
#include "../weft_internal.h"

#ifndef __ARM_FEATURE_DSP
#error "WEFT_KERNELS_DSP needs a core with the DSP extension: compile with -mcpu=cortex-m4, -m7 or -m33"
#endif

/*
 * Inner loops are written out where the compiler would spill: they need all but one or two registers. Clang, builds
 * without optimisation and such that keep frame pointers have too few; they compile the same steps from intrinsics. So
 * do those with -mno-unaligned-access, for cores that trap words at odd addresses.
 */
#if WEFT_KERNELS_ASM && !defined(__clang__) && defined(__OPTIMIZE__) && defined(__ARM_FEATURE_UNALIGNED)
#define DSP_ASM 1
#else
#define DSP_ASM 0
#endif

#if DSP_ASM
/* One tap of four channels, inputs and weights widened: channels 0 and 2 in `e` and `we`, 1 and 3 in `x` and `wo`. */
#define DSP_TAP_SUMS                                                                                                   \
    "smlabb %[v0], %[e], %[we], %[v0]\n\t"                                                                             \
    "smlatt %[v2], %[e], %[we], %[v2]\n\t"                                                                             \
    "smlabb %[v1], %[x], %[wo], %[v1]\n\t"                                                                             \
    "smlatt %[v3], %[x], %[wo], %[v3]\n\t"

/*
 * Writes a sum, requantised, to where `out` points and moves that on: by multiplier `m` and the low byte of `right`,
 * with the zero point in `x`.
 */
#define DSP_OUT(v, m, right, out)                                                                                      \
    "lsls %[" v "], %[" v "], #1\n\t"                                                                                  \
    "smmulr %[" v "], %[" v "], %[" m "]\n\t"                                                                          \
    "add %[" v "], %[" v "], %[" v "], asr #31\n\t"                                                                    \
    "asrs %[" v "], %[" v "], %[" right "]\n\t"                                                                        \
    "adc %[" v "], %[" v "], %[x]\n\t"                                                                                 \
    "ssat %[" v "], #8, %[" v "]\n\t"                                                                                  \
    "strb %[" v "], [%[" out "]], #1\n\t"
#endif

#define DSP_INLINE static inline __attribute__((always_inline))

/* Code around the inner loops: few instructions of the whole, so the smaller the better. */
#define DSP_SMALL __attribute__((noinline, cold))
#define DSP_FAST __attribute__((noinline, hot))

/* Four int8 at any address: these cores load unaligned words. The builtin, as -ffreestanding makes memcpy a call. */
DSP_INLINE uint32_t dsp_load(const int8_t *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

DSP_INLINE void dsp_store(int8_t *p, uint32_t v)
{
    __builtin_memcpy(p, &v, sizeof v);
}

/* -zero_point in both halves, the `offset` of the functions below. */
DSP_INLINE uint32_t dsp_offset(int32_t zero_point)
{
    return ((uint32_t)-zero_point & 0xffffu) * 0x10001u;
}

DSP_INLINE int16x2_t dsp_even(uint32_t x)
{
    int16x2_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}

DSP_INLINE int16x2_t dsp_odd(uint32_t x)
{
    int16x2_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}

DSP_INLINE int16x2_t dsp_even_plus(uint32_t x, uint32_t offset)
{
    int16x2_t r;
    __asm__("sxtab16 %0, %1, %2" : "=r"(r) : "r"(offset), "r"(x));
    return r;
}

DSP_INLINE int16x2_t dsp_odd_plus(uint32_t x, uint32_t offset)
{
    int16x2_t r;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(r) : "r"(offset), "r"(x));
    return r;
}

/* Writes an even and an odd pair; where the next ones go. */
DSP_INLINE int16x2_t *dsp_push(int16x2_t *to, int16x2_t even, int16x2_t odd)
{
    __asm__ volatile("strd %1, %2, [%0], #8" : "+r"(to) : "r"(even), "r"(odd) : "memory");
    return to;
}

/* weft_rounding_shr() by 1 to 31, plus `more`: one off negative values, and the last bit shifted out is added. */
DSP_INLINE int32_t dsp_shift_right(int32_t x, int32_t bits, int32_t more)
{
    x += x >> 31;
    __asm__("asrs %0, %0, %1\n\tadc %0, %0, %2" : "+r"(x) : "r"(bits), "r"(more) : "cc");
    return x;
}

DSP_INLINE int32_t dsp_mul_high(int32_t doubled, int32_t multiplier)
{
    int32_t t;
    __asm__("smmulr %0, %1, %2" : "=r"(t) : "r"(doubled), "r"(multiplier));
    return t;
}

DSP_INLINE int8_t dsp_saturate(int32_t x)
{
    int32_t r;
    __asm__("ssat %0, #8, %1" : "=r"(r) : "r"(x));
    return (int8_t)r;
}

/*
 * Output for half of `doubled`: weft_mbqm() with a right shift by 1 to 31, plus zero point, saturated.
 * (doubled * m + 2^31) >> 32 is SMMULR.
 */
DSP_INLINE int8_t dsp_scale(int32_t doubled, int32_t multiplier, int32_t right, int32_t zero_point)
{
    return dsp_saturate(dsp_shift_right(dsp_mul_high(doubled, multiplier), right, zero_point));
}

/* Negative if acc is not in -2^30 .. 2^30 - 1, where doubling overflows. */
DSP_INLINE int32_t dsp_excess(int32_t acc)
{
    return (int32_t)((uint32_t)acc + 0x40000000u);
}

/* Output for any accumulator and shift. */
int8_t dsp_scale_any(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point);

/*
 * One output pixel, or fully connected outputs, four channels at a time. Inputs are rows of memory as they are: row
 * pointers [row, row_end), not none, `at` bytes from there to the first tap, whose weight of channel 0 is at `weights`;
 * `row_step` bytes to the weights of the next row.
 *   columns > 0:     depthwise, so many tap columns, `step` bytes apart, their weights `channel_step` bytes
 *   columns == 0:    `step` neighbouring inputs a row, `channel_step` bytes from a channel's weights to the next one's
 */
typedef struct {
    const int8_t *const *row;
    int32_t row_step;
    const int8_t *const *row_end;
    int32_t at, columns, step, channel_step;
    const int8_t *weights;
    const int32_t *start; /* sums so far: the bias at first */
    int32_t *sums;        /* where they are kept, or NULL: they are complete and go to `out` */
    int8_t *out;
    uint32_t offset; /* dsp_offset() of the input */
    bool plain;      /* the operator is QUICK, channels have shifts of their own, sums are complete */
    int32_t zp;      /* from here on by dsp_pixel_of() */
    const int32_t *multiplier;
    const int8_t *shift;
    int32_t each; /* -1; 0 if multiplier and shift are `all` */
    int32_t all[4];
    uint32_t all_shifts;
} dsp_pixel_t;

/* Requantisation and start of a pixel whose sums are complete; `quick`: so is the operator. */
void dsp_pixel_of(dsp_pixel_t *px, const weft_linear_t *p, bool quick);

/* n channels, at least four; if that is no multiple of four, the last ones overlap those before. */
void dsp_pixel(const dsp_pixel_t *px, int32_t n);

/*
 * The same of columns == 0 and a single row, whose inputs are widened to even and odd pairs, for an operator that is
 * QUICK and channels with shifts of their own; `step` and n are multiples of four, `at` is 0.
 */
void dsp_wide_pixel(const dsp_pixel_t *px, int32_t n);

/* Clamp n bytes to [lo, hi], four at a time; kernels saturate to int8 and come here if that is not the clamp. */
void dsp_clamp(int8_t *p, int32_t n, int32_t lo, int32_t hi);

/* The same for what a call wrote. */
void dsp_clamp_written(const weft_call_t *call);

/* Where the operator's clamp is not all of int8. */
DSP_INLINE void dsp_clamp_region(const weft_call_t *call)
{
    if (call->op->act_min != INT8_MIN || call->op->act_max != INT8_MAX) {
        dsp_clamp_written(call);
    }
}

/* Kernels of this folder; what they have no quick way for they hand to the reference kernels. */
void weft_conv2d_dsp(const weft_call_t *call);
void weft_dwconv2d_dsp(const weft_call_t *call);
void weft_fully_connected_dsp(const weft_call_t *call);
void weft_add_dsp(const weft_call_t *call);
void weft_avgpool_dsp(const weft_call_t *call);
void weft_maxpool_dsp(const weft_call_t *call);

#endif
#endif
