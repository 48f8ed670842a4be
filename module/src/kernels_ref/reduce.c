/* SPDX-License-Identifier: Apache-2.0 */
/*
 * REDUCE over H, W or both: mean, average, maximum. The region is the part of the input that this call consumes.
 * Accumulators: [c] over H and W, [(y - y0) * c + channel] over W, [x * c + channel] over H.
 */
#include "../fixedpoint.h"
#include "../weft_internal.h"

typedef struct {
    bool over_h, over_w, average, maximum;
    int32_t zero, count;              /* value of an empty accumulator; elements in a full one */
    int32_t zp_in, multiplier, shift; /* mean */
} reduce_t;

static reduce_t reduce_params(const weft_call_t *call)
{
    const uint8_t flags = call->op->flags;
    reduce_t r = {0};
    r.over_h = (flags & WEFT_OP_REDUCE_H) != 0;
    r.over_w = (flags & WEFT_OP_REDUCE_W) != 0;
    r.average = (flags & WEFT_OP_REDUCE_AVG) != 0;
    r.maximum = (flags & WEFT_OP_REDUCE_MAX) != 0;
    r.zero = r.maximum ? INT8_MIN : 0;
    r.count = (r.over_h ? call->in0.h : 1) * (r.over_w ? call->in0.w : 1);
    if (!r.average && !r.maximum) {
        r.zp_in = call->in0.zero_point;
        r.multiplier = (int32_t)weft_rd32(call->params);
        r.shift = (int8_t)call->params[4];
    }
    return r;
}

/* n bytes at px, each to an accumulator of its own. */
static WEFT_NOINLINE void reduce_pixel(int32_t *acc, const int8_t *px, int32_t n, int32_t zp_in, bool maximum)
{
    for (const int8_t *const stop = px + n; px != stop; px++, acc++) {
        const int32_t sum = *acc + *px - zp_in;
        *acc = maximum ? weft_max(*acc, *px) : sum;
    }
}

/* acc and the bytes at px, px + step, ...: n of them. */
static int32_t reduce_run(const reduce_t *r, int32_t acc, const int8_t *px, int32_t n, int32_t step)
{
    if (r->maximum) {
        for (; n > 0; n--, px += step) {
            acc = weft_max(acc, *px);
        }
        return acc;
    }
    acc -= n * r->zp_in;
    for (; n > 0; n--, px += step) {
        acc += *px;
    }
    return acc;
}

static int8_t reduce_out(const reduce_t *r, const weft_call_t *call, int32_t acc)
{
    const weft_op_t *op = call->op;
    if (r->maximum) {
        return (int8_t)weft_clamp(acc, op->act_min, op->act_max);
    }
    if (r->average) {
        return (int8_t)weft_clamp(weft_div_round(acc, r->count), op->act_min, op->act_max);
    }
    const int32_t zp = call->out.zero_point;
    return (int8_t)(weft_clamp(weft_mbqm(acc, r->multiplier, r->shift), op->act_min - zp, op->act_max - zp) + zp);
}

/* The whole input at once: one output element after the other, nothing kept. */
static void reduce_whole(const weft_call_t *call, const reduce_t *r)
{
    const weft_view_t *in = &call->in0;
    const bool full = in->split == INT32_MAX && in->cap >= in->h;
    const int32_t out_y1 = r->over_h ? call->y0 + 1 : call->y1, out_x1 = r->over_w ? call->x0 + 1 : call->x1;

    for (int32_t y = call->y0; y < out_y1; y++) {
        const int32_t rows_end = r->over_h ? call->y1 : y + 1;
        for (int32_t x = call->x0; x < out_x1; x++) {
            const int32_t columns = r->over_w ? call->x1 - x : 1;
            int8_t *out = weft_px(&call->out, r->over_h ? 0 : y, r->over_w ? 0 : x);
            for (int32_t i = 0; i < in->c; i++) {
                int32_t acc = r->zero;
                const int8_t *px = weft_px(in, y, x) + i;
                for (int32_t row = y; row < rows_end; row++, px += in->ring_stride) {
                    px = full ? px : weft_px(in, row, x) + i;
                    acc = reduce_run(r, acc, px, columns, in->c);
                }
                out[i] = reduce_out(r, call, acc);
            }
        }
    }
}

/* A part of the input: into the accumulators, and out of them after the last part. */
static void reduce_part(const weft_call_t *call, const reduce_t *r)
{
    const weft_view_t *in = &call->in0;
    /* Accumulator pixels that the region touches: [first_px, first_px + pixels). */
    const int32_t first_px = r->over_h && !r->over_w ? call->x0 : 0;
    const int32_t pixels = r->over_h ? (r->over_w ? 1 : call->x1 - call->x0) : call->y1 - call->y0;
    int32_t *acc = call->acc + first_px * in->c;

    if (call->first) {
        for (int32_t i = 0; i < pixels * in->c; i++) {
            acc[i] = r->zero;
        }
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        int32_t *a = acc + (r->over_h ? 0 : (y - call->y0) * in->c);
        const int8_t *px = weft_px(in, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, px += in->c, a += r->over_w ? 0 : in->c) {
            reduce_pixel(a, px, in->c, r->zp_in, r->maximum);
        }
    }
    if (call->last) {
        for (int32_t k = 0; k < pixels; k++) {
            int8_t *out = weft_px(&call->out, r->over_h ? 0 : call->y0 + k, r->over_w ? 0 : call->x0 + k);
            for (int32_t i = 0; i < in->c; i++) {
                out[i] = reduce_out(r, call, acc[k * in->c + i]);
            }
        }
    }
}

void weft_reduce(const weft_call_t *call)
{
    const reduce_t r = reduce_params(call);
    if (call->acc == NULL) {
        reduce_whole(call, &r);
    } else {
        reduce_part(call, &r);
    }
}
