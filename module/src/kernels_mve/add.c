/* SPDX-License-Identifier: Apache-2.0 */
/* ADD of two tensors of the same shape. */
#include "mve.h"

#if WEFT_KERNELS_MVE

typedef struct {
    int32_t zp0, zp1, left;
    mve_scale_t scale0, scale1, scale;
    mve_range_t range;
} add_t;

MVE_INLINE int32x4_t add(const add_t *a, int32x4_t x0, int32x4_t x1)
{
    const int32x4_t v0 = mve_mbqm(vshlq_r_s32(vsubq_n_s32(x0, a->zp0), a->left), a->scale0);
    const int32x4_t v1 = mve_mbqm(vshlq_r_s32(vsubq_n_s32(x1, a->zp1), a->left), a->scale1);
    return mve_out(vaddq_s32(v0, v1), a->scale, a->range);
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
    a.left = s[3];
    a.scale0 = mve_scale_of(vdupq_n_s32(m[0]), vdupq_n_s32(s[0]));
    a.scale1 = mve_scale_of(vdupq_n_s32(m[1]), vdupq_n_s32(s[1]));
    a.scale = mve_scale_of(vdupq_n_s32(m[2]), vdupq_n_s32(s[2]));
    a.range = (mve_range_t){vdupq_n_s32(call->op->act_min - zp), vdupq_n_s32(call->op->act_max - zp), zp};
    const mve_pred16_t last = vctp32q((uint32_t)n & 3u);

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *x0 = weft_px(in0, y, call->x0), *x1 = weft_px(in1, y, call->x0);
        int8_t *to = weft_px(out, y, call->x0);
        for (int32_t k = n >> 2; k > 0; k--, x0 += 4, x1 += 4, to += 4) {
            vstrbq_s32(to, add(&a, vldrbq_s32(x0), vldrbq_s32(x1)));
        }
        vstrbq_p_s32(to, add(&a, vldrbq_z_s32(x0, last), vldrbq_z_s32(x1, last)), last);
    }
}

#endif
