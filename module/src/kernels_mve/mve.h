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
    const int32x4_t zero = vdupq_n_s32(0);
    const mve_scale_t scale = {multiplier, vmaxq_s32(shift, zero), vminq_s32(shift, zero)};
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

/* Inputs of an output: one or more `rows`, at whose addresses plus `at` runs of `run` elements start. */
typedef struct {
    const int8_t *const *row;
    int32_t rows, at, run;
    int32_t row_weights, size; /* weights from a row to the next, and of an output channel */
    int32_t zp;
} mve_patch_t;

/* acc, of `count` output channels, plus the products of inputs with as many channels' weights from w on; count 1 to 4.
 */
MVE_INLINE int32x4_t mve_dot(int32x4_t acc, const mve_patch_t *patch, const int8_t *w, int32_t count)
{
    const int8_t *const *const end = patch->row + patch->rows;
    const int32_t at = patch->at, run = patch->run, row_weights = patch->row_weights, zp = patch->zp;
    int32_t sum[4] = {0, 0, 0, 0};
    for (int32_t k = 0; k < count; k += 2, w += 2 * patch->size) {
        const int8_t *const *row = patch->row, *v = w;
        const int32_t second = k + 1 < count ? patch->size : 0;
        int32_t v0 = 0, v1 = 0, s0 = 0, s1 = 0;
        do {
            const int8_t *x = *row++ + at, *w0 = v, *w1 = v + second;
            __asm__ volatile("wlstp.8 lr, %[n], 2f\n\t"
                             "1:\n\t"
                             "vldrb.8 q0, [%[x]], #16\n\t"
                             "vldrb.8 q1, [%[w0]], #16\n\t"
                             "vldrb.8 q2, [%[w1]], #16\n\t"
                             "vmladava.s8 %[v0], q0, q1\n\t"
                             "vmladava.s8 %[v1], q0, q2\n\t"
                             "vaddva.s8 %[s0], q1\n\t"
                             "vaddva.s8 %[s1], q2\n\t"
                             "letp lr, 1b\n\t"
                             "2:"
                             : [v0] "+Te"(v0), [v1] "+Te"(v1), [s0] "+Te"(s0), [s1] "+Te"(s1), [x] "+r"(x),
                               [w0] "+r"(w0), [w1] "+r"(w1)
                             : [n] "r"(run)
                             : "q0", "q1", "q2", "lr", "cc", "memory");
            v += row_weights;
        } while (row != end);
        sum[k] = v0 - zp * s0;
        sum[k + 1] = v1 - zp * s1;
    }
    return vaddq_s32(acc, vldrwq_s32(sum));
}

/* Kernels of this folder; what they have no quick way for they hand to the reference kernels. */
void weft_conv2d_mve(const weft_call_t *call);
void weft_dwconv2d_mve(const weft_call_t *call);
void weft_fully_connected_mve(const weft_call_t *call);
void weft_add_mve(const weft_call_t *call);
void weft_avgpool_mve(const weft_call_t *call);
void weft_maxpool_mve(const weft_call_t *call);

#endif
#endif
