/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels for cores without SIMD (M0+, M3, RISC-V, any host) share: plain C99 that keeps sums, weights and
 * pointers in registers. Same bytes as kernels_ref.
 */
#ifndef WEFT_PORTABLE_H
#define WEFT_PORTABLE_H

#include "../fixedpoint.h"
#include "../kernels_ref/linear.h"
#include "../kernels_ref/taps.h"
#include "../weft_internal.h"

#if defined(__GNUC__)
#define PORTABLE_INLINE static inline __attribute__((always_inline))
#define PORTABLE_NOINLINE __attribute__((noinline))
#else
#define PORTABLE_INLINE static inline
#define PORTABLE_NOINLINE
#endif

/* Keeps compilers for RISC-V from loading so early that they run out of registers. */
#if defined(__GNUC__) && defined(__riscv)
#define PORTABLE_IN_ORDER() __asm__ volatile("" : : : "memory")
#else
#define PORTABLE_IN_ORDER() ((void)0)
#endif

/* Keeps compilers from a pointer of its own for each of several addresses. */
#if defined(__GNUC__)
#define PORTABLE_KEEP(pointer) __asm__("" : "+r"(pointer))
#else
#define PORTABLE_KEEP(pointer) ((void)0)
#endif

/* weft_mul_high(); RISC-V multiplies signed with unsigned, and need not shift the upper half. */
PORTABLE_INLINE int32_t portable_mul_high(int32_t a, int32_t b)
{
#if defined(__riscv)
    const int64_t twice = (int64_t)a * (int64_t)((uint32_t)b << 1);
    return (int32_t)(twice >> 32) + (int32_t)((uint32_t)twice >> 31);
#else
    return weft_mul_high(a, b);
#endif
}

/*
 * weft_mbqm() with the right shift written for speed. t takes one off negative values, so that halves go away from
 * zero; the sum with the last bit shifted out cannot exceed 32 bits, as no product of weft_mul_high() is INT32_MAX.
 */
PORTABLE_INLINE int32_t portable_mbqm(int32_t x, int32_t multiplier, int32_t shift)
{
    if (shift >= 0) {
        return portable_mul_high(weft_wrap_shl(x, shift), multiplier);
    }
    const int32_t v = portable_mul_high(x, multiplier), t = v + (v >> 31);
    return ((t >> (-shift - 1)) + 1) >> 1;
}

/* Multiplier and shift of an output channel. */
typedef struct {
    int32_t multiplier, shift;
} portable_scale_t;

PORTABLE_INLINE portable_scale_t portable_scale(const weft_linear_t *p, int32_t o)
{
    const int32_t m = p->per_tensor ? 0 : o;
    portable_scale_t scale;
    scale.multiplier = (int32_t)weft_rd32(p->multiplier + (size_t)4 * (uint32_t)m);
    scale.shift = p->shift[m];
    return scale;
}

/* The next function where the shift is to the left or by one bit. */
int32_t portable_byte_left(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point);

/*
 * From a sum to its byte, saturated: portable_clamp_region() clamps further where need be. The zero point is added
 * before the last bit is shifted out, which cannot overflow after a shift.
 */
PORTABLE_INLINE int32_t portable_byte(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point)
{
    if (shift >= -1) {
        return portable_byte_left(acc, multiplier, shift, zero_point);
    }
    int32_t v = portable_mul_high(acc, multiplier);
    v = (((v + (v >> 31)) >> (-shift - 1)) + (2 * zero_point + 1)) >> 1;
#if defined(__GNUC__) && defined(__ARM_FEATURE_SAT)
    __asm__("ssat %0, #8, %0" : "+r"(v));
    return v;
#else
    return weft_clamp(v, INT8_MIN, INT8_MAX);
#endif
}

PORTABLE_INLINE int32_t portable_out(const weft_linear_t *p, portable_scale_t scale, int32_t acc)
{
    return portable_byte(acc, scale.multiplier, scale.shift, p->zp_out);
}

/* Clamps what a call wrote where the operator's range is not all of int8. */
void portable_clamp_region(const weft_call_t *call);

/* Words among bytes: sums in scratch, biases. */
typedef WEFT_RECORD int32_t portable_word_t;

/* The same of sums of output channels o to o + n, n > 0. */
void portable_outs(const weft_linear_t *p, int32_t o, const portable_word_t *sum, int32_t n, int8_t *out);

/* Sums of four output channels. */
typedef struct {
    int32_t v[4];
} portable_sums_t;

/* One tap of four channels. */
#define PORTABLE_MAC4(k)                                                                                               \
    do {                                                                                                               \
        const int32_t value = x[k] - zp;                                                                               \
        v0 += value * w0[k];                                                                                           \
        v1 += value * w1[k];                                                                                           \
        v2 += value * w2[k];                                                                                           \
        v3 += value * w3[k];                                                                                           \
        PORTABLE_IN_ORDER();                                                                                           \
    } while (0)

/*
 * Adds the products of n neighbouring inputs with four rows of weights from w0 on: `row` bytes apart but for the last
 * ones, which are the same where fewer than four channels are `left`.
 */
PORTABLE_INLINE portable_sums_t portable_dot(portable_sums_t acc, const int8_t *x, const int8_t *w0, int32_t row,
                                             int32_t left, int32_t n, int32_t zp)
{
    const int8_t *w1 = w0 + (left > 1 ? row : 0), *w2 = w1 + (left > 2 ? row : 0), *w3 = w2 + (left > 3 ? row : 0);
    int32_t v0 = acc.v[0], v1 = acc.v[1], v2 = acc.v[2], v3 = acc.v[3];
    const int8_t *const end = x + n, *const steps_end = x + (n & ~7);
    while (x != steps_end) {
        PORTABLE_MAC4(0);
        PORTABLE_MAC4(1);
        PORTABLE_MAC4(2);
        PORTABLE_MAC4(3);
        PORTABLE_MAC4(4);
        PORTABLE_MAC4(5);
        PORTABLE_MAC4(6);
        PORTABLE_MAC4(7);
        x += 8;
        w0 += 8;
        w1 += 8;
        w2 += 8;
        w3 += 8;
    }
    for (; x != end; x++, w0++, w1++, w2++, w3++) {
        PORTABLE_MAC4(0);
    }
    return (portable_sums_t){{v0, v1, v2, v3}};
}

/* Cores that load and store words at any address. */
#if defined(__ARM_FEATURE_UNALIGNED) && defined(__GNUC__)
#define PORTABLE_UNALIGNED 1
#else
#define PORTABLE_UNALIGNED 0
#endif

/* Four bytes, which are aligned unless PORTABLE_UNALIGNED. */
PORTABLE_INLINE uint32_t portable_load(const int8_t *p)
{
#if PORTABLE_UNALIGNED
    uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
#else
    return weft_rd32((const uint8_t *)p);
#endif
}

PORTABLE_INLINE void portable_store(uint8_t *p, uint32_t v)
{
#if PORTABLE_UNALIGNED
    __builtin_memcpy(p, &v, sizeof v);
#elif defined(__GNUC__)
    __builtin_memcpy(__builtin_assume_aligned(p, 4), &v, sizeof v);
#else
    memcpy(p, &v, sizeof v);
#endif
}

/* Kernels of this folder; what they have no quick way for they hand to the reference kernels. */
void weft_conv2d_portable(const weft_call_t *call);
void weft_dwconv2d_portable(const weft_call_t *call);
void weft_fully_connected_portable(const weft_call_t *call);
void weft_add_portable(const weft_call_t *call);

#endif
