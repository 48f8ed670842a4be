/* SPDX-License-Identifier: Apache-2.0 */
/* Parameter block, accumulation and requantisation of CONV2D, DWCONV2D and FULLY_CONNECTED. */
#ifndef WEFT_LINEAR_H
#define WEFT_LINEAR_H

#include "../fixedpoint.h"
#include "../weft_internal.h"

typedef struct {
    const uint8_t *bias, *multiplier; /* int32, little-endian */
    const int8_t *shift, *weights;
    bool per_tensor;
    int32_t zp_out, lo, hi; /* clamp before zp_out is added */
} weft_linear_t;

/* The block of `n` output channels, from the call's first on, whose weights are `step` bytes apart. */
static inline weft_linear_t weft_linear(const weft_call_t *call, int32_t n, int32_t step)
{
    weft_linear_t p;
    p.per_tensor = (call->op->flags & WEFT_OP_PER_TENSOR) != 0;
    uint32_t multipliers = p.per_tensor ? 1u : (uint32_t)n;
    p.bias = call->params;
    p.multiplier = p.bias + (size_t)4 * (uint32_t)n;
    p.shift = (const int8_t *)(p.multiplier + (size_t)4 * multipliers);
    p.weights = p.shift + ((multipliers + 3u) & ~(size_t)3);
    p.bias += (size_t)4 * (uint32_t)call->channel;
    if (!p.per_tensor) {
        p.multiplier += (size_t)4 * (uint32_t)call->channel;
        p.shift += call->channel;
    }
    p.weights += call->channel * step;
    p.zp_out = call->out.zero_point;
    p.lo = call->op->act_min - p.zp_out;
    p.hi = call->op->act_max - p.zp_out;
    return p;
}

static inline int32_t weft_linear_bias(const weft_linear_t *p, int32_t o)
{
    return (int32_t)weft_rd32(p->bias + (size_t)4 * (uint32_t)o);
}

static inline int8_t weft_linear_out(const weft_linear_t *p, int32_t o, int32_t acc)
{
    int32_t m = p->per_tensor ? 0 : o;
    int32_t scaled = weft_mbqm(acc, (int32_t)weft_rd32(p->multiplier + (size_t)4 * (uint32_t)m), p->shift[m]);
    return (int8_t)(weft_clamp(scaled, p->lo, p->hi) + p->zp_out);
}

/* DWCONV2D: output channels of an input channel. */
static inline int32_t weft_multiplier(const weft_call_t *call)
{
    return call->channels < call->total ? 1 : call->total / call->in0.c;
}

/* DWCONV2D: weights lie in quads. */
static inline bool weft_in_quads(const weft_op_t *op)
{
    return (op->flags & WEFT_OP_QUICK) != 0;
}

/* sum((x - zp) * w) over n neighbours. */
static inline int32_t weft_dot(const int8_t *x, const int8_t *w, int32_t n, int32_t zp)
{
    int32_t acc = 0;
    for (int32_t i = 0; i < n; i++) {
        acc += (x[i] - zp) * w[i];
    }
    return acc;
}

#endif
