/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors, operators and their parameters. After this, every kernel's arithmetic and every read of WEIGHTS is safe. */
#include "verify.h"

/* Whether [offset, offset + size) lies in WEIGHTS, 4-aligned. */
static bool in_weights(const weft_plan_t *plan, uint32_t offset, uint32_t size)
{
    return offset % 4u == 0 && offset <= plan->weights_len && size <= plan->weights_len - offset;
}

/* Of a tensor that has passed its check. */
static WEFT_APART uint32_t volume(const weft_tensor_t *t)
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
    for (uint32_t axis = 0; axis < 3; axis++) {
        if ((uint32_t)weft_size(t, axis) - 1u >= 32767u) {
            return BAD(SHAPE);
        }
    }
    return (uint32_t)t->h * t->w > INT32_MAX / 2u / t->c ? BAD(SHAPE) : t->flags > WEFT_TENSOR_CONST ? BAD(UNKNOWN) : 0;
}

int weft_check_const(const weft_plan_t *plan, const void *record, uint32_t i)
{
    const uint8_t *p = record;
    const uint32_t n = weft_rd16(p + WEFT_CONST_TENSOR);
    if (n >= plan->tensor_count || (i > 0 && n <= weft_rd16(p - WEFT_CONST_SIZE + WEFT_CONST_TENSOR))) {
        return BAD(INDEX);
    }
    const weft_tensor_t *t = weft_tensor_at(plan, n);
    return !is_const(t)                                                     ? BAD(GRAPH)
           : !in_weights(plan, weft_rd32(p + WEFT_CONST_OFFSET), volume(t)) ? BAD(WEIGHTS)
                                                                            : 0;
}

int weft_check_io(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)i;
    const uint8_t *p = record;
    const uint32_t n = weft_rd16(p + WEFT_IO_TENSOR);
    return n >= plan->tensor_count                                             ? BAD(INDEX)
           : is_const(weft_tensor_at(plan, n))                                 ? BAD(GRAPH)
           : p[WEFT_IO_DTYPE] > WEFT_DTYPE_FLOAT32 || p[WEFT_IO_RESERVED] != 0 ? BAD(UNKNOWN)
                                                                               : 0;
}

/* Multiplier at `p`, and its shift, which may be up to `most`. */
static bool good_scale(const uint8_t *p, int32_t shift, int32_t most)
{
    return (int32_t)weft_rd32(p) >= 0 && shift >= -31 && shift <= most;
}

/*
 * bias, multiplier, shift and weights of the operators that multiply; `taps` is the length of one dot product. Weights
 * in quads have 16 bits, and sums of any such fit.
 */
static int check_dense(const weft_plan_t *plan, const weft_op_t *op, uint32_t n, uint32_t taps)
{
    const bool quick = (op->flags & WEFT_OP_QUICK) != 0, quads = quick && WEFT_IS(op, DWCONV2D);
    const uint64_t weights = (uint64_t)taps * (quads ? 2u * ((n + 3u) & ~3u) : n);
    const uint32_t reach = quads ? 255u << 15 : 255u << 7, limit = quick ? 1u << 30 : INT32_MAX; /* of a product */
    const uint32_t scales = (op->flags & WEFT_OP_PER_TENSOR) != 0 ? 1 : n, shifts = (scales + 3u) & ~3u;
    if (weights > INT32_MAX || !in_weights(plan, op->params, 4u * n + 4u * scales + shifts + (uint32_t)weights)) {
        return BAD(WEIGHTS);
    }
    if (taps > limit / reach) {
        return BAD(OVERFLOW);
    }
    const uint8_t *p = plan->weights + op->params;
    const int32_t room = (int32_t)(limit - taps * reach);
    for (uint32_t i = n; i > 0; i--, p += 4) {
        const int32_t bias = (int32_t)weft_rd32(p);
        if (bias > room || bias < -room) {
            return BAD(OVERFLOW);
        }
    }
    const int8_t *shift = (const int8_t *)p + 4u * scales;
    for (uint32_t i = scales; i > 0; i--, p += 4) {
        if (!good_scale(p, *shift++, quick ? -1 : 30)) {
            return BAD(PARAM);
        }
    }
    return 0;
}

/*
 * Of each opcode, the flags that it may carry; which pairs of fields it uses: kernel, stride, dilation, padding (the
 * others are 1, padding 0); on which axes the output is as large as
 * each input: times the factor of a RESIZE, 1 where it is summed over, and an operand of 1 is broadcast.
 */
#define USES_KERNEL 0x100u
#define USES_PADDING 0x800u
#define USES_WINDOW 0xf00u
#define CHANNELS_AGREE 0x1000u
#define COLUMNS_AGREE 0x2000u
#define ROWS_AGREE 0x4000u
#define ALL_AGREE 0x7000u

static const uint16_t uses[WEFT_OPCODE_MAX + 1u] = {
    [WEFT_OP_CONV2D] = WEFT_OP_PER_TENSOR | WEFT_OP_QUICK | USES_WINDOW,
    [WEFT_OP_DWCONV2D] = WEFT_OP_PER_TENSOR | WEFT_OP_QUICK | USES_WINDOW,
    [WEFT_OP_FULLY_CONNECTED] = WEFT_OP_PER_TENSOR | WEFT_OP_QUICK | ROWS_AGREE | COLUMNS_AGREE,
    [WEFT_OP_ADD] = ALL_AGREE,
    [WEFT_OP_SUB] = ALL_AGREE,
    [WEFT_OP_MUL] = ALL_AGREE,
    [WEFT_OP_CONCAT] = USES_KERNEL | ALL_AGREE,
    [WEFT_OP_PAD] = USES_PADDING | CHANNELS_AGREE,
    [WEFT_OP_AVGPOOL] = WEFT_OP_COUNT_PAD | USES_WINDOW | CHANNELS_AGREE,
    [WEFT_OP_MAXPOOL] = USES_WINDOW | CHANNELS_AGREE,
    [WEFT_OP_REDUCE] = WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W | WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX | ALL_AGREE,
    [WEFT_OP_LUT] = ALL_AGREE,
    [WEFT_OP_SOFTMAX] = ALL_AGREE,
    [WEFT_OP_RESIZE] = WEFT_OP_RESIZE_TABLE | USES_KERNEL | ALL_AGREE,
};

/* What is alike for all opcodes: fields and tensor numbers. */
static int check_fields(const weft_plan_t *plan, const weft_op_t *op)
{
    if (op->opcode > WEFT_OPCODE_MAX || weft_kernels[op->opcode] == NULL) {
        return BAD(OPCODE);
    }
    const uint32_t used = uses[op->opcode];
    if ((op->flags & ~used) != 0) {
        return BAD(UNKNOWN);
    }
    const bool concat = WEFT_IS(op, CONCAT);
    if (concat && (op->kernel_h > 2 || op->input1 - 1u >= WEFT_MAX_INPUTS || op->input0 > plan->list_count ||
                   op->input1 > plan->list_count - op->input0)) {
        return BAD(INDEX);
    }
    for (uint32_t i = concat ? 2 : 0; i < 8; i++) {
        const uint32_t field = ((const uint8_t *)op)[WEFT_OP_KERNEL_H + i], unused = i < 6;
        if (field < unused || (field > unused && (used >> i / 2u & USES_KERNEL) == 0)) {
            return BAD(PARAM);
        }
    }
    if (op->groups == 0 || (op->opcode != WEFT_OP_PAD && op->act_min > op->act_max)) {
        return BAD(PARAM);
    }
    for (uint32_t k = 0; k < weft_op_inputs(op); k++) {
        if (weft_op_input(plan, op, k) >= plan->tensor_count) {
            return BAD(INDEX);
        }
    }
    return op->output >= plan->tensor_count ? BAD(INDEX) : is_const(weft_tensor_at(plan, op->output)) ? BAD(GRAPH) : 0;
}

/* Whether the sizes of an input and the output on one axis suit the operator. */
static WEFT_APART bool axis_agrees(const weft_op_t *op, uint32_t axis, int32_t in, int32_t out)
{
    if (axis == 2) {
        if (WEFT_IS(op, CONV2D)) {
            return in % op->groups == 0 && out % op->groups == 0;
        }
        if (WEFT_IS(op, DWCONV2D)) {
            return out % in == 0;
        }
    } else if (WEFT_IS(op, AVGPOOL) || WEFT_IS(op, MAXPOOL)) {
        /* Every output position has a tap inside the tensor, so the divisor is not zero. */
        const int32_t dilation = weft_dilation(op, axis), pad = weft_pad_before(op, axis);
        return pad <= (weft_kernel(op, axis) - 1) * dilation && (out - 1) * weft_stride(op, axis) - pad < in &&
               (dilation == 1 || (in >= dilation && op->opcode == WEFT_OP_MAXPOOL));
    } else if (WEFT_IS(op, RESIZE)) {
        in *= weft_kernel(op, axis);
        if ((op->flags & WEFT_OP_RESIZE_TABLE) != 0) {
            return true;
        }
    } else if (WEFT_IS(op, FULLY_CONNECTED) || (WEFT_IS(op, REDUCE) && (op->flags & WEFT_OP_REDUCE_H << axis) != 0)) {
        in = 1;
    }
    return in == out || ((uint32_t)uses[op->opcode] << axis & ROWS_AGREE) == 0 || (weft_is_binary(op) && in == 1);
}

/* Whether the shapes of inputs and output suit the operator. Inputs of a CONCAT add up to the output along its axis. */
static bool agrees(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *out)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < weft_op_inputs(op); k++) {
        const weft_tensor_t *in = weft_tensor_at(plan, weft_op_input(plan, op, k));
        for (uint32_t axis = 0; axis < 3; axis++) {
            const int32_t size = weft_size(in, axis);
            if (WEFT_IS(op, CONCAT) && axis == op->kernel_h) {
                sum += size;
            } else if (!axis_agrees(op, axis, size, weft_size(out, axis))) {
                return false;
            }
        }
    }
    return !WEFT_IS(op, CONCAT) || sum == weft_size(out, op->kernel_h);
}

/* Parameters other than check_dense()'s, at `p`. */
static WEFT_APART int check_params(const weft_op_t *op, const uint8_t *p, const weft_tensor_t *in,
                                   const weft_tensor_t *out)
{
    bool good = true;
    if (weft_is_binary(op)) {
        good = good_scale(p, (int8_t)p[12], 0) && good_scale(p + 4, (int8_t)p[13], 0) &&
               good_scale(p + 8, (int8_t)p[14], 30) && p[15] <= 20;
    } else if (WEFT_IS(op, RESIZE)) {
        for (uint32_t i = 0; good && i < (uint32_t)out->h + out->w; i++, p += 2) {
            good = weft_rd16(p) < (i < out->h ? in->h : in->w);
        }
    } else if (WEFT_IS(op, REDUCE) || WEFT_IS(op, SOFTMAX)) {
        const int32_t shift = (int32_t)weft_rd32(p + 4);
        good = good_scale(p, shift, 30);
        if (WEFT_IS(op, SOFTMAX)) {
            const int32_t diff_min = (int32_t)weft_rd32(p + 8);
            good = good && shift >= 0 && diff_min <= 0;
            /* Differences down to diff_min, at most 255, are shifted left; exponentials are Q12.19 sums over C. */
            if (good && ((diff_min < -255 ? 255 : -diff_min) > INT32_MAX >> shift || in->c >= 4096)) {
                return BAD(OVERFLOW);
            }
        }
    }
    return good ? 0 : BAD(PARAM);
}

int weft_check_op(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)i;
    const weft_op_t *op = record;
    const int bad = check_fields(plan, op);
    if (bad != 0) {
        return bad;
    }
    const weft_tensor_t *in = weft_tensor_at(plan, weft_op_input(plan, op, 0)), *out = weft_tensor_at(plan, op->output);
    if (!agrees(plan, op, out) || (WEFT_IS(op, RESHAPE) && volume(in) != volume(out)) ||
        (WEFT_IS(op, REDUCE) && (op->flags & (WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W)) == 0)) {
        return BAD(SHAPE);
    }
    if (WEFT_IS(op, CONV2D) || WEFT_IS(op, DWCONV2D) || WEFT_IS(op, FULLY_CONNECTED)) {
        const uint32_t channels = WEFT_IS(op, CONV2D)            ? in->c / (uint32_t)op->groups
                                  : WEFT_IS(op, FULLY_CONNECTED) ? volume(in)
                                                                 : 1;
        return check_dense(plan, op, out->c, (uint32_t)op->kernel_h * op->kernel_w * channels);
    }
    uint32_t size = weft_is_binary(op) ? 16 : 0; /* bytes of parameters */
    if (WEFT_IS(op, LUT)) {
        size = 256;
    }
    if (WEFT_IS(op, SOFTMAX)) {
        size = 12;
    }
    if (WEFT_IS(op, REDUCE)) {
        size = 8;
        if (in->h * in->w > INT32_MAX / 256) {
            return BAD(OVERFLOW);
        }
        if ((op->flags & (WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX)) != 0) {
            return 0;
        }
    }
    if (WEFT_IS(op, RESIZE) && (op->flags & WEFT_OP_RESIZE_TABLE) != 0) {
        size = 2u * (((uint32_t)out->h + out->w + 1u) & ~1u);
    }
    if (size == 0) {
        return 0;
    }
    return in_weights(plan, op->params, size) ? check_params(op, plan->weights + op->params, in, out) : BAD(WEIGHTS);
}
