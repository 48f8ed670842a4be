/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors, operators and their parameters. After this, every kernel's arithmetic and every read of WEIGHTS is safe. */
#include "verify.h"

/* Whether [offset, offset + size) lies in WEIGHTS, 4-aligned. */
static bool in_weights(const weft_plan_t *plan, uint32_t offset, uint32_t size)
{
    return offset % 4u == 0 && offset <= plan->weights_len && size <= plan->weights_len - offset;
}

/* Of a tensor that has passed its check. */
static uint32_t volume(const weft_tensor_t *t)
{
    return (uint32_t)t->h * t->w * t->c;
}

static bool is_const(const weft_tensor_t *t)
{
    return (t->flags & WEFT_TENSOR_CONST) != 0;
}

int weft_check_tensor(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)plan;
    (void)i;
    const weft_tensor_t *t = record;
    uint64_t product = 1;
    for (uint32_t axis = 0; axis < 3; axis++) {
        const uint32_t size = (uint32_t)weft_size(t, axis);
        if (size - 1u >= 32767u) {
            return WEFT_ERR_SHAPE;
        }
        product *= size;
    }
    return product > INT32_MAX / 2 ? WEFT_ERR_SHAPE : (t->flags & ~WEFT_TENSOR_CONST) != 0 ? WEFT_ERR_UNKNOWN : WEFT_OK;
}

int weft_check_const(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const uint8_t *p = record;
    const uint32_t n = weft_rd16(p + WEFT_CONST_TENSOR);
    if (n >= plan->tensor_count || (i > 0 && n <= weft_rd16(p - WEFT_CONST_SIZE + WEFT_CONST_TENSOR))) {
        return WEFT_ERR_INDEX;
    }
    const weft_tensor_t *t = weft_tensor_at(plan, n);
    return !is_const(t)                                                     ? WEFT_ERR_GRAPH
           : !in_weights(plan, weft_rd32(p + WEFT_CONST_OFFSET), volume(t)) ? WEFT_ERR_WEIGHTS
                                                                            : WEFT_OK;
}

int weft_check_io(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)i;
    const uint8_t *p = record;
    const uint32_t n = weft_rd16(p + WEFT_IO_TENSOR);
    return n >= plan->tensor_count                                             ? WEFT_ERR_INDEX
           : is_const(weft_tensor_at(plan, n))                                 ? WEFT_ERR_GRAPH
           : p[WEFT_IO_DTYPE] > WEFT_DTYPE_FLOAT32 || p[WEFT_IO_RESERVED] != 0 ? WEFT_ERR_UNKNOWN
                                                                               : WEFT_OK;
}

/* Multiplier at `p`, and its shift, which may be up to `most`. */
static bool good_scale(const uint8_t *p, int32_t shift, int32_t most)
{
    return (int32_t)weft_rd32(p) >= 0 && shift >= -31 && shift <= most;
}

/* bias, multiplier, shift and weights of the operators that multiply; `taps` is the length of one dot product. */
static WEFT_APART int check_dense(const weft_plan_t *plan, const weft_op_t *op, uint32_t n, uint32_t taps)
{
    const uint64_t weights = (uint64_t)taps * n;
    const uint32_t scales = (op->flags & WEFT_OP_PER_TENSOR) != 0 ? 1 : n, shifts = (scales + 3u) & ~3u;
    if (weights > INT32_MAX || !in_weights(plan, op->params, 4u * n + 4u * scales + shifts + (uint32_t)weights)) {
        return WEFT_ERR_WEIGHTS;
    }
    if (taps > (uint32_t)INT32_MAX / (255u * 128u)) {
        return WEFT_ERR_OVERFLOW;
    }
    const uint8_t *p = plan->weights + op->params;
    const int32_t room = INT32_MAX - (int32_t)(taps * 255u * 128u);
    for (uint32_t i = n; i > 0; i--, p += 4) {
        const int32_t bias = (int32_t)weft_rd32(p);
        if (bias > room || bias < -room) {
            return WEFT_ERR_OVERFLOW;
        }
    }
    const int8_t *shift = (const int8_t *)p + 4u * scales;
    for (uint32_t i = scales; i > 0; i--, p += 4) {
        if (!good_scale(p, *shift++, 30)) {
            return WEFT_ERR_PARAM;
        }
    }
    return WEFT_OK;
}

/* Every output position of a pooling operator has a tap inside the tensor, so the divisor is not zero. */
static WEFT_APART bool pool_has_taps(const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out,
                                     uint32_t axis)
{
    const int32_t dilation = weft_dilation(op, axis), pad = weft_pad_before(op, axis), size = weft_size(in, axis);
    return pad <= (weft_kernel(op, axis) - 1) * dilation &&
           (weft_size(out, axis) - 1) * weft_stride(op, axis) - pad < size &&
           (dilation == 1 || (size >= dilation && op->opcode == WEFT_OP_MAXPOOL));
}

/* Inputs of a CONCAT agree with the output, the axis excepted, along which they add up to it. */
static bool adds_up(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *out)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < op->input1; k++) {
        const weft_tensor_t *in = weft_tensor_at(plan, weft_op_input(plan, op, k));
        for (uint32_t axis = 0; axis < 3; axis++) {
            if (axis == op->kernel_h) {
                sum += weft_size(in, axis);
            } else if (weft_size(in, axis) != weft_size(out, axis)) {
                return false;
            }
        }
    }
    return sum == weft_size(out, op->kernel_h);
}

/* Each axis of an operand of ADD, SUB, MUL is the output's or 1. */
static bool broadcasts(const weft_tensor_t *in, const weft_tensor_t *out)
{
    for (uint32_t axis = 0; axis < 3; axis++) {
        if (weft_size(in, axis) != weft_size(out, axis) && weft_size(in, axis) != 1) {
            return false;
        }
    }
    return true;
}

/*
 * Of each opcode, the flags that it may carry; which pairs of fields it uses: kernel, stride, dilation, padding (the
 * others are 1, padding 0); whether input and output have the same channels, the same rows and columns.
 */
#define USES_KERNEL 0x100u
#define USES_PADDING 0x800u
#define USES_WINDOW 0xf00u
#define SAME_CHANNELS 0x1000u
#define SAME_PLANE 0x2000u

static const uint16_t uses[WEFT_OPCODE_MAX + 1u] = {
    [WEFT_OP_CONV2D] = WEFT_OP_PER_TENSOR | USES_WINDOW,
    [WEFT_OP_DWCONV2D] = WEFT_OP_PER_TENSOR | USES_WINDOW,
    [WEFT_OP_FULLY_CONNECTED] = WEFT_OP_PER_TENSOR,
    [WEFT_OP_CONCAT] = USES_KERNEL,
    [WEFT_OP_PAD] = USES_PADDING | SAME_CHANNELS,
    [WEFT_OP_AVGPOOL] = WEFT_OP_COUNT_PAD | USES_WINDOW | SAME_CHANNELS,
    [WEFT_OP_MAXPOOL] = USES_WINDOW | SAME_CHANNELS,
    [WEFT_OP_REDUCE] = WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W | WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX | SAME_CHANNELS,
    [WEFT_OP_LUT] = SAME_CHANNELS | SAME_PLANE,
    [WEFT_OP_SOFTMAX] = SAME_CHANNELS | SAME_PLANE,
    [WEFT_OP_RESIZE] = WEFT_OP_RESIZE_TABLE | USES_KERNEL | SAME_CHANNELS,
};

/* What is alike for all opcodes: fields and tensor numbers. */
static WEFT_APART int check_fields(const weft_plan_t *plan, const weft_op_t *op)
{
    if (op->opcode > WEFT_OPCODE_MAX || weft_kernels[op->opcode] == NULL) {
        return WEFT_ERR_OPCODE;
    }
    const uint32_t used = uses[op->opcode];
    if ((op->flags & ~used) != 0) {
        return WEFT_ERR_UNKNOWN;
    }
    const bool concat = WEFT_IS(op, CONCAT);
    if (concat && (op->kernel_h > 2 || op->input1 - 1u >= WEFT_MAX_INPUTS || op->input0 > plan->list_count ||
                   op->input1 > plan->list_count - op->input0)) {
        return WEFT_ERR_INDEX;
    }
    for (uint32_t i = concat ? 2 : 0; i < 8; i++) {
        const uint32_t field = ((const uint8_t *)op)[WEFT_OP_KERNEL_H + i], unused = i < 6;
        if (field < unused || (field > unused && (used >> i / 2u & USES_KERNEL) == 0)) {
            return WEFT_ERR_PARAM;
        }
    }
    if (op->groups == 0 || (op->opcode != WEFT_OP_PAD && op->act_min > op->act_max)) {
        return WEFT_ERR_PARAM;
    }
    for (uint32_t k = 0; k < weft_op_inputs(op); k++) {
        if (weft_op_input(plan, op, k) >= plan->tensor_count) {
            return WEFT_ERR_INDEX;
        }
    }
    return op->output >= plan->tensor_count             ? WEFT_ERR_INDEX
           : is_const(weft_tensor_at(plan, op->output)) ? WEFT_ERR_GRAPH
                                                        : WEFT_OK;
}

/* Parameters other than check_dense()'s, at `p`. */
static WEFT_APART int check_params(const weft_op_t *op, const uint8_t *p, const weft_tensor_t *in,
                                   const weft_tensor_t *out)
{
    bool good = true;
    if (weft_is_binary(op)) {
        good = good_scale(p, (int8_t)p[12], 0) && good_scale(p + 4, (int8_t)p[13], 0) &&
               good_scale(p + 8, (int8_t)p[14], 30) && p[15] <= 20;
    } else if (WEFT_IS(op, REDUCE)) {
        good = good_scale(p, (int32_t)weft_rd32(p + 4), 30);
    } else if (WEFT_IS(op, RESIZE)) {
        for (uint32_t i = 0; good && i < (uint32_t)out->h + out->w; i++, p += 2) {
            good = weft_rd16(p) < (i < out->h ? in->h : in->w);
        }
    } else if (WEFT_IS(op, SOFTMAX)) {
        const int32_t shift = (int32_t)weft_rd32(p + 4), diff_min = (int32_t)weft_rd32(p + 8);
        good = good_scale(p, shift, 30) && shift >= 0 && diff_min <= 0;
        /* Differences down to diff_min, at most 255, are shifted left; exponentials are Q12.19 sums over C. */
        if (good && ((diff_min < -255 ? 255 : -diff_min) > INT32_MAX >> shift || in->c >= 4096)) {
            return WEFT_ERR_OVERFLOW;
        }
    }
    return good ? WEFT_OK : WEFT_ERR_PARAM;
}

int weft_check_op(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)i;
    const weft_op_t *op = record;
    const int r = check_fields(plan, op);
    if (r != WEFT_OK) {
        return r;
    }
    const weft_tensor_t *in = weft_tensor_at(plan, weft_op_input(plan, op, 0)), *out = weft_tensor_at(plan, op->output);
    const uint32_t used = uses[op->opcode], area = (uint32_t)op->kernel_h * op->kernel_w;
    bool agree = ((used & SAME_CHANNELS) == 0 || in->c == out->c) &&
                 ((used & SAME_PLANE) == 0 || (in->h == out->h && in->w == out->w));
    uint32_t size = 0; /* bytes of parameters other than check_dense()'s */
    uint32_t taps = 0; /* length of a dot product, if there is one */
    if (WEFT_IS(op, CONV2D)) {
        agree = in->c % op->groups == 0 && out->c % op->groups == 0;
        taps = area * (uint32_t)(in->c / op->groups);
    } else if (WEFT_IS(op, DWCONV2D)) {
        agree = out->c % in->c == 0;
        taps = area;
    } else if (WEFT_IS(op, FULLY_CONNECTED)) {
        agree = out->h == 1 && out->w == 1;
        taps = volume(in);
    } else if (weft_is_binary(op)) {
        agree = broadcasts(in, out) && broadcasts(weft_tensor_at(plan, op->input1), out);
        size = 16;
    } else if (WEFT_IS(op, CONCAT)) {
        agree = adds_up(plan, op, out);
    } else if (WEFT_IS(op, AVGPOOL) || WEFT_IS(op, MAXPOOL)) {
        agree = agree && pool_has_taps(op, in, out, 0) && pool_has_taps(op, in, out, 1);
    } else if (WEFT_IS(op, REDUCE)) {
        const bool h = (op->flags & WEFT_OP_REDUCE_H) != 0, w = (op->flags & WEFT_OP_REDUCE_W) != 0;
        agree = agree && (h || w) && out->h == (h ? 1 : in->h) && out->w == (w ? 1 : in->w);
        size = (op->flags & (WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX)) == 0 ? 8 : 0;
        if (agree && in->h * in->w > INT32_MAX / 256) {
            return WEFT_ERR_OVERFLOW;
        }
    } else if (WEFT_IS(op, LUT)) {
        size = 256;
    } else if (WEFT_IS(op, SOFTMAX)) {
        size = 12;
    } else if (WEFT_IS(op, RESHAPE)) {
        agree = volume(in) == volume(out);
    } else if (WEFT_IS(op, RESIZE) && (op->flags & WEFT_OP_RESIZE_TABLE) != 0) {
        size = 2u * (((uint32_t)out->h + out->w + 1u) & ~1u);
    } else if (WEFT_IS(op, RESIZE)) {
        agree = agree && in->h * op->kernel_h == out->h && in->w * op->kernel_w == out->w;
    } else { /* check_fields() lets no other through */
        agree = agree && WEFT_IS(op, PAD);
    }
    if (!agree) {
        return WEFT_ERR_SHAPE;
    }
    if (taps != 0) {
        return check_dense(plan, op, out->c, taps);
    }
    if (size == 0) {
        return WEFT_OK;
    }
    return in_weights(plan, op->params, size) ? check_params(op, plan->weights + op->params, in, out)
                                              : WEFT_ERR_WEIGHTS;
}
