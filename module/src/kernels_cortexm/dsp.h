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
 * without optimisation and such that keep frame pointers have too few; they compile the same steps from intrinsics.
 */
#if WEFT_KERNELS_ASM && !defined(__clang__) && defined(__OPTIMIZE__)
#define DSP_ASM 1
#else
#define DSP_ASM 0
#endif

#define DSP_INLINE static inline __attribute__((always_inline))

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

/* Sums of `size` products from any bias have no excess, and every shift is a right shift: dsp_scale() will do. */
bool dsp_quick(const weft_linear_t *p, int32_t n, int32_t size);

/* Sums of four output channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} dsp_acc4_t;

#if DSP_ASM
#define DSP_MAC_ROW(address, v)                                                                                        \
    "ldr %[t], " address "\n\t"                                                                                        \
    "sxtb16 %[u], %[t]\n\t"                                                                                            \
    "sxtb16 %[t], %[t], ror #8\n\t"                                                                                    \
    "smlad %[" v "], %[even], %[u], %[" v "]\n\t"                                                                      \
    "smlad %[" v "], %[odd], %[t], %[" v "]\n\t"

#define DSP_MAC_QUAD                                                                                                   \
    "ldr %[odd], [%[x]], #4\n\t"                                                                                       \
    "sxtab16 %[even], %[offset], %[odd]\n\t"                                                                           \
    "sxtab16 %[odd], %[offset], %[odd], ror #8\n\t" DSP_MAC_ROW("[%[w], %[row]]", "v1")                                \
        DSP_MAC_ROW("[%[w], %[row], lsl #1]", "v2") DSP_MAC_ROW("[%[w], %[row3]]", "v3")                               \
            DSP_MAC_ROW("[%[w]], #4", "v0")

#define DSP_MAC_ASM(text)                                                                                              \
    __asm__ volatile(text                                                                                              \
                     : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [x] "+r"(x),        \
                       [w] "+r"(w), [t] "=&r"(t), [u] "=&r"(u), [even] "=&r"(even), [odd] "=&r"(odd)                   \
                     : [row] "r"(row), [row3] "r"(3 * row), [offset] "r"(offset), [stop] "m"(stop)                     \
                     : "cc", "memory")
#endif

/* n neighbouring inputs with four rows of weights, `row` bytes apart. */
DSP_INLINE dsp_acc4_t dsp_mac_run(dsp_acc4_t acc, const int8_t *x, const int8_t *w, int32_t row, int32_t n,
                                  uint32_t offset)
{
#if DSP_ASM
    const int8_t *const stop = x + (n & ~7);
    int32_t t, u, even, odd;
    if (x != stop) {
        DSP_MAC_ASM("1:\n\t" DSP_MAC_QUAD DSP_MAC_QUAD "ldr %[t], %[stop]\n\t"
                    "cmp %[t], %[x]\n\t"
                    "bne 1b");
    }
    if (n & 4) {
        DSP_MAC_ASM(DSP_MAC_QUAD);
    }
#else
    for (const int8_t *const stop = x + (n & ~3); x != stop; x += 4, w += 4) {
        const uint32_t v = dsp_load(x), w0 = dsp_load(w), w1 = dsp_load(w + row), w2 = dsp_load(w + 2 * row);
        const uint32_t w3 = dsp_load(w + 3 * row);
        const int16x2_t even = dsp_even_plus(v, offset), odd = dsp_odd_plus(v, offset);
        acc.v0 = __smlad(odd, dsp_odd(w0), __smlad(even, dsp_even(w0), acc.v0));
        acc.v1 = __smlad(odd, dsp_odd(w1), __smlad(even, dsp_even(w1), acc.v1));
        acc.v2 = __smlad(odd, dsp_odd(w2), __smlad(even, dsp_even(w2), acc.v2));
        acc.v3 = __smlad(odd, dsp_odd(w3), __smlad(even, dsp_even(w3), acc.v3));
    }
#endif
    for (int32_t i = 0; i < (n & 3); i++) {
        const int32_t value = x[i] + (int16_t)offset;
        acc.v0 += value * w[i];
        acc.v1 += value * w[row + i];
        acc.v2 += value * w[2 * row + i];
        acc.v3 += value * w[3 * row + i];
    }
    return acc;
}

/* Requantise and write channels o to o + 3. */
void dsp_store_four(int32_t v0, int32_t v1, int32_t v2, int32_t v3, const weft_linear_t *p, int32_t o, int8_t *out);

/* Clamp n bytes to [lo, hi], four at a time; kernels saturate to int8 and come here if that is not the clamp. */
void dsp_clamp(int8_t *p, int32_t n, int32_t lo, int32_t hi);

/* The same for what a call wrote, where the operator's clamp is not all of int8. */
void dsp_clamp_region(const weft_call_t *call);

/* Kernels of this folder; what they have no quick way for they hand to the reference kernels. */
void weft_conv2d_dsp(const weft_call_t *call);
void weft_dwconv2d_dsp(const weft_call_t *call);
void weft_fully_connected_dsp(const weft_call_t *call);
void weft_add_dsp(const weft_call_t *call);
void weft_avgpool_dsp(const weft_call_t *call);
void weft_maxpool_dsp(const weft_call_t *call);

#endif
#endif
