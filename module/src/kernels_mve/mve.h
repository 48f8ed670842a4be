/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels for Cortex-M with Helium (M55, M85) share. Products of int8 are summed 16 at once (VMLADAVA) with
 * the input as it is; sum(x - zp) * w = sum(x * w) - zp * sum(w), so weights are summed in the same loops, and taps
 * outside the tensor need nothing special. Loops are tail-predicated: no length is special either.
 */
#ifndef WEFT_MVE_H
#define WEFT_MVE_H

#include "weft/weft_config.h"

#if WEFT_KERNELS_MVE

#include <arm_mve.h>

#include "../fixedpoint.h"
#include "../kernels_ref/linear.h"
#include "../kernels_ref/taps.h"
#include "../weft_internal.h"

#if !defined(__ARM_FEATURE_MVE) || !(__ARM_FEATURE_MVE & 1)
#error "WEFT_KERNELS_MVE needs a core with Helium: compile with -mcpu=cortex-m55 or -m85"
#endif

#define MVE_INLINE static inline __attribute__((always_inline))
#define MVE_NOINLINE __attribute__((noinline))

/* int32 fields of a parameter block: blocks are aligned, these cores little-endian. */
MVE_INLINE const int32_t *mve_words(const uint8_t *p)
{
    return (const int32_t *)(const void *)p;
}

/* Multipliers and shifts of four output channels: shifts to the left and, negative, to the right. */
typedef struct {
    int32x4_t multiplier, left, right;
} mve_scale_t;

MVE_INLINE mve_scale_t mve_scale_of(int32x4_t multiplier, int32x4_t shift)
{
    const int32x4_t right = vandq_s32(shift, vshrq_n_s32(shift, 31));
    const mve_scale_t scale = {multiplier, vsubq_s32(shift, right), right};
    return scale;
}

/* Channels o and on; `lanes`: how many of them there are. */
MVE_INLINE mve_scale_t mve_scale(const weft_linear_t *p, int32_t o, mve_pred16_t lanes)
{
    if (p->per_tensor) {
        return mve_scale_of(vdupq_n_s32(mve_words(p->multiplier)[0]), vdupq_n_s32(p->shift[0]));
    }
    return mve_scale_of(vldrwq_z_s32(mve_words(p->multiplier) + o, lanes), vldrbq_z_s32(p->shift + o, lanes));
}

/* Of four channels that there are. */
MVE_INLINE mve_scale_t mve_scale_of_four(const weft_linear_t *p, int32_t o)
{
    if (p->per_tensor) {
        return mve_scale_of(vdupq_n_s32(mve_words(p->multiplier)[0]), vdupq_n_s32(p->shift[0]));
    }
    return mve_scale_of(vldrwq_s32(mve_words(p->multiplier) + o), vldrbq_s32(p->shift + o));
}

/* What outputs are clamped to before the zero point is added. */
typedef struct {
    int32x4_t lo, hi;
    int32_t zp;
} mve_range_t;

MVE_INLINE mve_range_t mve_range(const weft_linear_t *p)
{
    const mve_range_t range = {vdupq_n_s32(p->lo), vdupq_n_s32(p->hi), p->zp_out};
    return range;
}

/*
 * weft_mbqm() bit for bit. VQRDMULH is weft_mul_high(). VRSHL rounds halves up: one off negative values that are
 * shifted makes that away from zero, as weft_rounding_shr() has it; the saturating sum spares INT32_MIN, which has no
 * fraction.
 */
MVE_INLINE int32x4_t mve_mbqm(int32x4_t acc, mve_scale_t scale)
{
    const int32x4_t v = vqrdmulhq_s32(vshlq_s32(acc, scale.left), scale.multiplier);
    return vrshlq_s32(vqaddq_s32(v, vshrq_n_s32(vandq_s32(v, scale.right), 31)), scale.right);
}

/* Sums to outputs, still in words. */
MVE_INLINE int32x4_t mve_out(int32x4_t acc, mve_scale_t scale, mve_range_t range)
{
    return vaddq_n_s32(vminq_s32(vmaxq_s32(mve_mbqm(acc, scale), range.lo), range.hi), range.zp);
}

/* Inputs of an output: one or more rows, at whose addresses plus an offset runs of `run` elements start. */
typedef struct {
    const int8_t *const *row, *const *end;
    int32_t run, skip; /* skip: from where the loops are after a run of weights to the next row's */
    int32_t size;      /* weights of an output channel */
} mve_patch_t;

MVE_INLINE void mve_rows(mve_patch_t *patch, const int8_t *const *row, int32_t rows, int32_t run, int32_t row_weights)
{
    patch->row = row;
    patch->end = row + rows;
    patch->run = run;
    patch->skip = row_weights - ((run + 15) & ~15);
}

/* Four output channels: where their sums start, the addresses of their weights, and bytes from rows' addresses. */
typedef struct {
    int32_t start[4];
    uint32_t weights[4];
    ptrdiff_t at;
} mve_channels_t;

/* The weights of `count` channels from w on; with fewer than four, the last one again. */
MVE_INLINE uint32x4_t mve_weights(const int8_t *w, int32_t size, int32_t count)
{
    const uint32x4_t lane = {0, 1, 2, 3};
    const uint32x4_t channel = vminq_u32(lane, vdupq_n_u32((uint32_t)count - 1u));
    return vmlaq_n_u32(vdupq_n_u32((uint32_t)(uintptr_t)w), channel, (uint32_t)size);
}

/*
 * How sums are rid of the input's zero point along with the products: x - zp is x with -zp beside it, each an int8, or
 * for -128, whose opposite is none, the opposite of ~x with -127 beside it.
 */
typedef struct {
    int8x16_t flip, beside;
    int32_t sign;
} mve_zero_t;

MVE_INLINE mve_zero_t mve_zero(int32_t zp)
{
    const bool least = zp == INT8_MIN;
    const mve_zero_t zero = {vdupq_n_s8(least ? -1 : 0), vdupq_n_s8((int8_t)(least ? -127 : -zp)), least ? -1 : 1};
    return zero;
}

/* The loops of four channels have their sums in r0, r2, r4, r6 and their weights in r1, r3, r5, r8. */
#define MVE_REGISTERS "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r8", "lr", "q0", "q1", "q2", "cc", "memory"
#define MVE_PATCH                                                                                                      \
    [patch] "r"(patch_), [end] "i"(offsetof(mve_patch_t, end)), [run] "i"(offsetof(mve_patch_t, run)),                 \
        [skip] "i"(offsetof(mve_patch_t, skip)), [channels] "r"(channels_),                                            \
        [weights] "i"(offsetof(mve_channels_t, weights)), [at] "i"(offsetof(mve_channels_t, at))
/* Compilers do not find registers for them on their own. */
#define MVE_OPERANDS(patch, channels)                                                                                  \
    register const mve_patch_t *patch_ __asm__("r9") = (patch);                                                        \
    register const mve_channels_t *channels_ __asm__("r10") = (channels)
#define MVE_RUN "ldr lr, [%[patch], %[run]]\n\twlstp.8 lr, lr, 2f\n\t1:\n\t"
#define MVE_RUN_END "letp lr, 1b\n\t2:\n\t"
/* On with the next row unless it was the last. */
#define MVE_NEXT                                                                                                       \
    "ldr lr, [%[patch], %[end]]\n\t"                                                                                   \
    "cmp %[row], lr\n\t"                                                                                               \
    "beq 4f\n\t"                                                                                                       \
    "ldr lr, [%[patch], %[skip]]\n\t"                                                                                  \
    "add r1, r1, lr\n\t"                                                                                               \
    "add r3, r3, lr\n\t"                                                                                               \
    "add r5, r5, lr\n\t"                                                                                               \
    "add r8, r8, lr\n\t"                                                                                               \
    "b 3b\n\t"                                                                                                         \
    "4:\n\t"
#define MVE_SUMS "vmov %q[acc][2], %q[acc][0], r0, r4\n\tvmov %q[acc][3], %q[acc][1], r2, r6"

/*
 * A round of a run of inputs times the weights, added to the sums or, with `a` empty, as what these start from; `flip`
 * changes the inputs, `beside` adds to each sum.
 */
#define MVE_PRODUCTS(a, x, flip, beside)                                                                               \
    "vldrb.8 q0, [" x "], #16\n\t" flip "vldrb.8 q1, [r1], #16\n\t"                                                    \
    "vmladav" a                                                                                                        \
    ".s8 r0, q0, q1\n\t" beside("r0", "q1") "vldrb.8 q2, [r3], #16\n\t"                                                \
                                            "vmladav" a ".s8 r2, q0, q2\n\t" beside(                                   \
                                                "r2", "q2") "vldrb.8 q1, [r5], #16\n\t"                                \
                                                            "vmladav" a ".s8 r4, q0, q1\n\t" beside(                   \
                                                                "r4", "q1") "vldrb.8 q2, [r8], #16\n\t"                \
                                                                            "vmladav" a                                \
                                                                            ".s8 r6, q0, q2\n\t" beside("r6", "q2")
/* A round of a run of weights, added to the sums. */
#define MVE_ADD_WEIGHTS                                                                                                \
    "vldrb.8 q0, [r1], #16\n\t"                                                                                        \
    "vaddva.s8 r0, q0\n\t"                                                                                             \
    "vldrb.8 q1, [r3], #16\n\t"                                                                                        \
    "vaddva.s8 r2, q1\n\t"                                                                                             \
    "vldrb.8 q0, [r5], #16\n\t"                                                                                        \
    "vaddva.s8 r4, q0\n\t"                                                                                             \
    "vldrb.8 q1, [r8], #16\n\t"                                                                                        \
    "vaddva.s8 r6, q1\n\t"
#define MVE_LOAD "ldm %[channels], {r0, r2, r4, r6}\n\tadd r8, %[channels], %[weights]\n\tldm r8, {r1, r3, r5, r8}\n\t"
#define MVE_ONE_ROW(flip, beside)                                                                                      \
    MVE_LOAD MVE_RUN MVE_PRODUCTS("a", "%[x]", flip, beside)                                                           \
    MVE_RUN_END MVE_SUMS
#define MVE_ROWS(flip, beside)                                                                                         \
    MVE_LOAD                                                                                                           \
    "3:\n\tldr %[x], [%[row]], #4\n\tldr lr, [%[channels], %[at]]\n\tadd %[x], %[x], lr\n\t" MVE_RUN MVE_PRODUCTS(     \
        "a", "%[x]", flip, beside)                                                                                     \
    MVE_RUN_END MVE_NEXT MVE_SUMS
#define MVE_FLIP "veor q0, q0, %q[flip]\n\t"
#define MVE_BESIDE(sum, weights) "vmladava.s8 " sum ", " weights ", %q[beside]\n\t"
#define MVE_NONE(sum, weights)

/*
 * Sums of four channels over a patch whose first tap is at px, of the inputs less their zero point; both ends of it are
 * to be multiplied by zero->sign. `single`: it has one row.
 */
MVE_INLINE int32x4_t mve_dot(const mve_patch_t *patch, const int8_t *px, mve_channels_t *channels,
                             const mve_zero_t *zero, bool single)
{
    if (!single) {
        channels->at = px - *patch->row;
    }
    MVE_OPERANDS(patch, channels);
    int32x4_t acc;
    if (single) {
        register const int8_t *x __asm__("r12") = px;
        __asm__ volatile(MVE_ONE_ROW(MVE_FLIP, MVE_BESIDE)
                         : [acc] "=w"(acc), [x] "+r"(x)
                         : MVE_PATCH, [flip] "w"(zero->flip), [beside] "w"(zero->beside)
                         : MVE_REGISTERS);
        return acc;
    }
    register const int8_t *const *row __asm__("r11") = patch->row;
    register const int8_t *x __asm__("r12");
    __asm__ volatile(MVE_ROWS(MVE_FLIP, MVE_BESIDE)
                     : [acc] "=w"(acc), [row] "+r"(row), [x] "=&r"(x)
                     : MVE_PATCH, [flip] "w"(zero->flip), [beside] "w"(zero->beside)
                     : MVE_REGISTERS);
    return acc;
}

/* As weft_rows(), quicker: for at most WEFT_HOISTED_ROWS rows; fills in `row`, `taps` and `x`. */
void mve_tap_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y);

/*
 * How many of the call's pixels from column x on have all columns of taps inside, the first of them at `first`; if the
 * taps `cols` of the first one are not all: itself.
 */
MVE_INLINE int32_t mve_alike(const weft_call_t *call, int32_t x, int32_t first, weft_taps_t cols)
{
    const weft_op_t *op = call->op;
    if (x + 1 == call->x1 || cols.hi - cols.lo != op->kernel_w) {
        return 1;
    }
    const int32_t left = call->in0.w - 1 - first - (op->kernel_w - 1) * op->dilation_w;
    return weft_min(left / op->stride_w + 1, call->x1 - x);
}

/* Kernels of this folder; what they have no quick way for they hand to the reference kernels. */
void weft_conv2d_mve(const weft_call_t *call);
void weft_dwconv2d_mve(const weft_call_t *call);
void weft_fully_connected_mve(const weft_call_t *call);
void weft_add_mve(const weft_call_t *call);
void weft_avgpool_mve(const weft_call_t *call);
void weft_maxpool_mve(const weft_call_t *call);
void weft_reduce_mve(const weft_call_t *call);

#endif
#endif
