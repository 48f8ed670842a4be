/* SPDX-License-Identifier: Apache-2.0 */
/* ADD of two tensors of one shape. */
#include "portable.h"

void weft_add_portable(const weft_call_t *call)
{
    const weft_view_t *a = &call->in0, *b = call->in1;
    const int32_t c = call->out.c;
    if (!weft_views_alike(a, b) || !weft_views_alike(a, &call->out)) {
        weft_add(call);
        return;
    }
    /* Block: i32 mult0, mult1, mult_out, i8 shift0, shift1, shift_out, left_shift. */
    const uint8_t *params = call->params;
    const int32_t m0 = (int32_t)weft_rd32(params), m1 = (int32_t)weft_rd32(params + 4);
    const int32_t m = (int32_t)weft_rd32(params + 8);
    const int32_t s0 = (int8_t)params[12], s1 = (int8_t)params[13], s = (int8_t)params[14], left = params[15];
    const int32_t zp0 = a->zero_point, zp1 = b->zero_point, zp = call->out.zero_point;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *pa = weft_px(a, y, call->x0), *pb = weft_px(b, y, call->x0);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (const int8_t *const end = out + (call->x1 - call->x0) * c; out != end; out++) {
            const int32_t v0 = portable_mbqm(weft_wrap_shl(*pa++ - zp0, left), m0, s0);
            const int32_t v1 = portable_mbqm(weft_wrap_shl(*pb++ - zp1, left), m1, s1);
            *out = (int8_t)portable_byte(weft_wrap_add(v0, v1), m, s, zp);
        }
    }
    portable_clamp_region(call);
}
