/* SPDX-License-Identifier: Apache-2.0 */
/* ADD of two tensors of the same shape. */
#include "mve.h"

#if WEFT_KERNELS_MVE

void weft_add_mve(const weft_call_t *call)
{
    const weft_view_t *in0 = &call->in0, *in1 = &call->in1, *out = &call->out;
    if (in0->h != in1->h || in0->w != in1->w || in0->c != in1->c) {
        weft_add(call);
        return;
    }
    /* Block: i32 mult0, mult1, mult_out, i8 shift0, shift1, shift_out, left_shift. */
    const int32_t *m = mve_words(call->params);
    const int8_t *s = (const int8_t *)call->params + 12;
    const mve_scale_t scale0 = mve_scale_of(vdupq_n_s32(m[0]), vdupq_n_s32(s[0]));
    const mve_scale_t scale1 = mve_scale_of(vdupq_n_s32(m[1]), vdupq_n_s32(s[1]));
    const mve_scale_t scale = mve_scale_of(vdupq_n_s32(m[2]), vdupq_n_s32(s[2]));
    const int32_t zp = out->zero_point, zp0 = in0->zero_point, zp1 = in1->zero_point, left = s[3];
    const mve_range_t range = {vdupq_n_s32(call->op->act_min - zp), vdupq_n_s32(call->op->act_max - zp), zp};

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *x0 = weft_px(in0, y, call->x0), *x1 = weft_px(in1, y, call->x0);
        int8_t *to = weft_px(out, y, call->x0);
        for (int32_t n = (call->x1 - call->x0) * out->c; n > 0; n -= 4, x0 += 4, x1 += 4, to += 4) {
            const mve_pred16_t lanes = vctp32q((uint32_t)n);
            const int32x4_t a = vsubq_n_s32(vldrbq_z_s32(x0, lanes), zp0);
            const int32x4_t b = vsubq_n_s32(vldrbq_z_s32(x1, lanes), zp1);
            const int32x4_t sum =
                vaddq_s32(mve_mbqm(vshlq_r_s32(a, left), scale0), mve_mbqm(vshlq_r_s32(b, left), scale1));
            vstrbq_p_s32(to, mve_out(sum, scale, range), lanes);
        }
    }
}

#endif
