/* SPDX-License-Identifier: Apache-2.0 */
/* ADD of two tensors of the same shape. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

/* Bytes of the parameter block. */
enum { MULT0 = 0, MULT1 = 4, MULT_OUT = 8, SHIFT0 = 12, SHIFT1 = 13, SHIFT_OUT = 14, LEFT_SHIFT = 15 };

typedef struct {
    int32_t zero, left, multiplier, right; /* zero point already shifted left */
} operand_t;

/* weft_mbqm((x - zp) << left_shift) for right shifts by `right`; `rounded`: it is not 0. */
DSP_INLINE int32_t scaled(int32_t x, const operand_t *a, bool rounded)
{
    const int32_t t = dsp_mul_high((int32_t)((uint32_t)x << a->left) - a->zero, a->multiplier);
    return rounded ? dsp_shift_right(t, a->right, 0) : t;
}

DSP_INLINE void add_row(const int8_t *x0, const int8_t *x1, int8_t *out, int32_t n, const operand_t *a,
                        const operand_t *b, bool round_a, bool round_b, const operand_t *r)
{
    const int8_t *stop = out + n;
    while (out != stop) {
        const int32_t sum = scaled(*x0++, a, round_a) + scaled(*x1++, b, round_b);
        *out++ = dsp_scale(sum * 2, r->multiplier, r->right, r->zero);
    }
}

static operand_t operand(const uint8_t *params, int32_t zero_point, uint32_t mult, uint32_t shift)
{
    operand_t a;
    a.left = params[LEFT_SHIFT] + 1; /* one more for SMMULR */
    a.zero = zero_point * (1 << a.left);
    a.multiplier = (int32_t)weft_rd32(params + mult);
    a.right = -(int8_t)params[shift];
    return a;
}

void weft_add_dsp(const weft_call_t *call)
{
    const weft_view_t *in0 = &call->in0, *in1 = call->in1, *out = &call->out;
    const bool alike = weft_views_alike(in0, in1) && weft_views_alike(in0, out);
    /* 9 bits of difference to the zero point, shifted left by at most 20, and the sum of two stay below 2^30. */
    if (!alike || call->params[LEFT_SHIFT] > 20 || (int8_t)call->params[SHIFT0] > 0 ||
        (int8_t)call->params[SHIFT1] > 0 || (int8_t)call->params[SHIFT_OUT] >= 0) {
        weft_add(call);
        return;
    }
    const operand_t a = operand(call->params, in0->zero_point, MULT0, SHIFT0);
    const operand_t b = operand(call->params, in1->zero_point, MULT1, SHIFT1);
    operand_t r = operand(call->params, 0, MULT_OUT, SHIFT_OUT);
    r.zero = out->zero_point;
    const int32_t n = (call->x1 - call->x0) * out->c;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *x0 = weft_px(in0, y, call->x0), *x1 = weft_px(in1, y, call->x0);
        int8_t *to = weft_px(out, y, call->x0);
        /* The operand with the larger scale needs no right shift. */
        if (a.right == 0) {
            add_row(x0, x1, to, n, &a, &b, false, b.right != 0, &r);
        } else if (b.right == 0) {
            add_row(x0, x1, to, n, &a, &b, true, false, &r);
        } else {
            add_row(x0, x1, to, n, &a, &b, true, true, &r);
        }
    }
    dsp_clamp_region(call);
}

#endif
