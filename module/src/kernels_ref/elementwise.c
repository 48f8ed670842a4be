/* SPDX-License-Identifier: Apache-2.0 */
/* ADD, SUB, MUL of two tensors; an operand's axis of size 1 is read at 0 for the whole of the output's. */
#include "../fixedpoint.h"
#include "../weft_internal.h"

/* Bytes of the parameter block. */
enum { MULT0 = 0, MULT1 = 4, MULT_OUT = 8, SHIFT0 = 12, SHIFT1 = 13, SHIFT_OUT = 14, LEFT_SHIFT = 15 };

typedef struct {
    int32_t zero_point, multiplier, shift, left_shift;
    int32_t px_step, ch_step; /* bytes to the next pixel and channel; 0 where the axis is broadcast */
} operand_t;

static operand_t operand(const weft_view_t *view, const uint8_t *params, uint32_t mult, uint32_t shift)
{
    operand_t a;
    a.zero_point = view->zero_point;
    a.multiplier = (int32_t)weft_rd32(params + mult);
    a.shift = (int8_t)params[shift];
    a.left_shift = params[LEFT_SHIFT];
    a.px_step = view->w == 1 ? 0 : view->c;
    a.ch_step = view->c == 1 ? 0 : 1;
    return a;
}

static const int8_t *operand_row(const weft_view_t *view, int32_t y, int32_t x)
{
    return weft_px(view, view->h == 1 ? 0 : y, view->w == 1 ? 0 : x);
}

static int32_t scaled(const operand_t *a, int32_t value)
{
    return weft_mbqm(weft_wrap_shl(value - a->zero_point, a->left_shift), a->multiplier, a->shift);
}

typedef int32_t (*combine_fn)(const operand_t *a, int32_t x, const operand_t *b, int32_t y);

static int32_t combine_add(const operand_t *a, int32_t x, const operand_t *b, int32_t y)
{
    return weft_wrap_add(scaled(a, x), scaled(b, y));
}

static int32_t combine_sub(const operand_t *a, int32_t x, const operand_t *b, int32_t y)
{
    return weft_wrap_sub(scaled(a, x), scaled(b, y));
}

static int32_t combine_mul(const operand_t *a, int32_t x, const operand_t *b, int32_t y)
{
    return (x - a->zero_point) * (y - b->zero_point);
}

static void elementwise(const weft_call_t *call, combine_fn combine)
{
    const operand_t a = operand(&call->in0, call->params, MULT0, SHIFT0);
    const operand_t b = operand(call->in1, call->params, MULT1, SHIFT1);
    const int32_t multiplier = (int32_t)weft_rd32(call->params + MULT_OUT), shift = (int8_t)call->params[SHIFT_OUT];
    const int32_t zp_out = call->out.zero_point, c = call->out.c;
    const int32_t lo = call->op->act_min - zp_out, hi = call->op->act_max - zp_out;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *pa = operand_row(&call->in0, y, call->x0);
        const int8_t *pb = operand_row(call->in1, y, call->x0);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, pa += a.px_step, pb += b.px_step, out += c) {
            for (int32_t i = 0; i < c; i++) {
                int32_t v = weft_mbqm(combine(&a, pa[i * a.ch_step], &b, pb[i * b.ch_step]), multiplier, shift);
                out[i] = (int8_t)(weft_clamp(v, lo, hi) + zp_out);
            }
        }
    }
}

void weft_add(const weft_call_t *call)
{
    elementwise(call, combine_add);
}

void weft_sub(const weft_call_t *call)
{
    elementwise(call, combine_sub);
}

void weft_mul(const weft_call_t *call)
{
    elementwise(call, combine_mul);
}
