/* SPDX-License-Identifier: Apache-2.0 */
/* ADD of two tensors of the same shape. */
#include "mve.h"

#if WEFT_KERNELS_MVE

/* A scale that is the same for all channels, as mve_scale_t; `down`: whether it shifts to the right, in all bits. */
typedef struct {
    int32_t multiplier, left, right;
    int32x4_t down;
} scale_t;

typedef struct {
    int32_t zp0, zp1;
    scale_t scale0, scale1, scale;
    mve_range_t range;
} add_t;

MVE_INLINE scale_t scale_of(int32_t multiplier, int32_t shift, int32_t before)
{
    const scale_t scale = {multiplier, before + weft_max(shift, 0), weft_min(shift, 0),
                           vdupq_n_s32(shift < 0 ? -1 : 0)};
    return scale;
}

/* As mve_mbqm(). */
MVE_INLINE int32x4_t scaled(int32x4_t acc, const scale_t *scale)
{
    const int32x4_t v = vqrdmulhq_n_s32(vshlq_r_s32(acc, scale->left), scale->multiplier);
    return vrshlq_n_s32(vqaddq_s32(v, vshrq_n_s32(vandq_s32(v, scale->down), 31)), scale->right);
}

MVE_INLINE int32x4_t add(const add_t *a, int32x4_t x0, int32x4_t x1)
{
    const int32x4_t v0 = scaled(vsubq_n_s32(x0, a->zp0), &a->scale0);
    const int32x4_t v1 = scaled(vsubq_n_s32(x1, a->zp1), &a->scale1);
    const int32x4_t v = scaled(vaddq_s32(v0, v1), &a->scale);
    return vaddq_n_s32(vminq_s32(vmaxq_s32(v, a->range.lo), a->range.hi), a->range.zp);
}

void weft_add_mve(const weft_call_t *call)
{
    const weft_view_t *in0 = &call->in0, *in1 = call->in1, *out = &call->out;
    if (!weft_views_alike(in0, in1) || !weft_views_alike(in0, out)) {
        weft_add(call);
        return;
    }
    /* Block: i32 mult0, mult1, mult_out, i8 shift0, shift1, shift_out, left_shift. */
    const int32_t *m = mve_words(call->params);
    const int8_t *s = (const int8_t *)call->params + 12;
    const int32_t zp = out->zero_point, n = (call->x1 - call->x0) * out->c;
    add_t a;
    a.zp0 = in0->zero_point;
    a.zp1 = in1->zero_point;
    a.scale0 = scale_of(m[0], s[0], s[3]);
    a.scale1 = scale_of(m[1], s[1], s[3]);
    a.scale = scale_of(m[2], s[2], 0);
    a.range = (mve_range_t){vdupq_n_s32(call->op->act_min - zp), vdupq_n_s32(call->op->act_max - zp), zp};
    const mve_pred16_t last = vctp32q((uint32_t)n & 3u);

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *x0 = weft_px(in0, y, call->x0), *x1 = weft_px(in1, y, call->x0);
        int8_t *to = weft_px(out, y, call->x0);
        for (int32_t k = n >> 2; k > 0; k--, x0 += 4, x1 += 4, to += 4) {
            vstrbq_s32(to, add(&a, vldrbq_s32(x0), vldrbq_s32(x1)));
        }
        if ((n & 3) != 0) {
            vstrbq_p_s32(to, add(&a, vldrbq_z_s32(x0, last), vldrbq_z_s32(x1, last)), last);
        }
    }
}

#endif
