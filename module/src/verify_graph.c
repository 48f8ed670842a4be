/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors, operators and their parameters. After this, every kernel's arithmetic and every read of WEIGHTS is safe. */
#include "verify.h"

/* Whether [offset, offset + size) lies in WEIGHTS, 4-aligned. */
static WEFT_APART bool in_weights(const weft_plan_t *plan, uint32_t offset, uint32_t size)
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
    const uint32_t h = t->h, w = t->w, c = t->c;
    if ((h | w | c) > 32767u || c == 0 || h * w - 1u >= INT32_MAX / 2u / c) {
        return BAD(SHAPE);
    }
    return t->flags > WEFT_TENSOR_CONST ? BAD(UNKNOWN) : 0;
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
    return n >= plan->tensor_count                             ? BAD(INDEX)
           : is_const(weft_tensor_at(plan, n))                 ? BAD(GRAPH)
           : weft_rd16(p + WEFT_IO_DTYPE) > WEFT_DTYPE_FLOAT32 ? BAD(UNKNOWN) /* type, or the byte behind it not 0 */
                                                               : 0;
}

/*
 * Of each opcode, the flags that it may carry; which pairs of fields it uses: kernel, stride, dilation, padding (the
 * others are 1, padding 0); on which axes the output is as large as each input: times the factor of a RESIZE, 1 where
 * it is summed over, and an operand of 1 is broadcast.
 */
#define USES_KERNEL 0x100u
#define USES_STRIDE 0x200u
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
    [WEFT_OP_AVGPOOL] = WEFT_OP_COUNT_PAD | USES_KERNEL | USES_STRIDE | USES_PADDING | CHANNELS_AGREE,
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
    if (concat &&
        (op->kernel_h > 2 || op->input1 - 1u >= WEFT_MAX_INPUTS || op->input0 + op->input1 > plan->list_count)) {
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
    return op->output >= plan->tensor_count ? BAD(INDEX) : is_const(weft_tensor_at(plan, op->output)) ? BAD(GRAPH) : 0;
}

/* Whether the sizes of an input and the output on one axis suit the operator. */
static WEFT_APART bool axis_agrees(const weft_op_t *op, uint32_t axis, int32_t in, int32_t out)
{
    if (axis == 2) {
        if (WEFT_IS(op, CONV2D)) {
            return in % op->groups + out % op->groups == 0;
        }
        if (WEFT_IS(op, DWCONV2D)) {
            return out % in == 0;
        }
    } else if (WEFT_IS(op, AVGPOOL) || WEFT_IS(op, MAXPOOL)) {
        /* Every output position has a tap inside the tensor, so the divisor is not zero. */
        const int32_t dilation = weft_dilation(op, axis), pad = weft_pad_before(op, axis);
        return pad <= (weft_kernel(op, axis) - 1) * dilation && (out - 1) * weft_stride(op, axis) - pad < in &&
               dilation <= in;
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

/*
 * Of each opcode, what its parameters are made of: a multiple of 8 bytes, and in the two lowest bits, how many
 * multipliers are among them. Nothing here for those whose parameters depend on shapes.
 */
static const uint8_t blocks[WEFT_OPCODE_MAX + 1u] = {
    [WEFT_OP_ADD] = 16 / 2 | 3, [WEFT_OP_SUB] = 16 / 2 | 3,    [WEFT_OP_MUL] = 16 / 2 | 3,
    [WEFT_OP_LUT] = 256 / 2,    [WEFT_OP_SOFTMAX] = 8 / 2 | 1, [WEFT_OP_REDUCE] = 8 / 2 | 1,
};

/* Parameters, of which none lie outside WEIGHTS; `in`: the first input. */
static WEFT_APART int check_params(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *in,
                                   const weft_tensor_t *out)
{
    const uint32_t quick = op->flags / WEFT_OP_QUICK; /* the highest bit */
    int32_t room = 0;
    uint32_t size = blocks[op->opcode], scales = size & 3u, biases = 0;
    size = (size & ~3u) * 2u;
    if (WEFT_IS(op, CONV2D) || WEFT_IS(op, DWCONV2D) || WEFT_IS(op, FULLY_CONNECTED)) {
        uint32_t taps = (uint32_t)op->kernel_h * op->kernel_w; /* the length of one dot product */
        if (WEFT_IS(op, CONV2D)) {
            taps *= in->c / (uint32_t)op->groups;
        }
        if (WEFT_IS(op, FULLY_CONNECTED)) {
            taps = volume(in);
        }
        uint32_t limit = INT32_MAX >> quick, reach = 255u << 7, columns = biases = out->c;
        if (quick != 0 && WEFT_IS(op, DWCONV2D)) { /* in quads, with 16 bits */
            reach = 255u << 15;
            columns = 2u * ((columns + 3u) & ~3u);
        }
        if (taps > limit / reach) {
            return BAD(OVERFLOW);
        }
        room = (int32_t)(limit - taps * reach);
        scales = (op->flags & WEFT_OP_PER_TENSOR) != 0 ? 1 : biases;
        size = 4u * biases + taps * columns + 4u * scales + ((scales + 3u) & ~3u); /* below 2^32; WEIGHTS, below 2^31 */
    }
    /* Exponentials are Q12.19 sums over C. */
    if ((WEFT_IS(op, SOFTMAX) && in->c >= 4096) || (WEFT_IS(op, REDUCE) && in->h * in->w > INT32_MAX / 256)) {
        return BAD(OVERFLOW);
    }
    if (WEFT_IS(op, REDUCE) && (op->flags & (WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX)) != 0) {
        return 0;
    }
    if (WEFT_IS(op, RESIZE) && (op->flags & WEFT_OP_RESIZE_TABLE) != 0) {
        size = 2u * (((uint32_t)out->h + out->w + 1u) & ~1u);
    }
    if (size == 0) {
        return 0;
    }
    if (!in_weights(plan, op->params, size)) {
        return BAD(WEIGHTS);
    }
    const uint8_t *p = plan->weights + op->params;
    for (; biases > 0; biases--, p += 4) {
        const int32_t bias = (int32_t)weft_rd32(p);
        if ((uint32_t)bias + (uint32_t)room > 2u * (uint32_t)room) {
            return BAD(OVERFLOW);
        }
    }
    const int8_t *shift = (const int8_t *)p + 4u * scales; /* behind the multipliers, one byte each */
    for (; scales > 0; scales--, p += 4, shift++) {
        if ((int32_t)weft_rd32(p) < 0 || *shift < -31 || *shift > 30 - 31 * (int32_t)quick) {
            return BAD(PARAM);
        }
    }
    if ((WEFT_IS(op, SOFTMAX) && shift[-1] < 0) ||
        (weft_is_binary(op) && (shift[-3] > 0 || shift[-2] > 0 || (uint8_t)shift[0] > 20))) {
        return BAD(PARAM);
    }
    if (WEFT_IS(op, RESIZE)) {
        for (uint32_t n = 0; n < (uint32_t)out->h + out->w; n++, p += 2) {
            if (weft_rd16(p) >= (n < out->h ? in->h : in->w)) {
                return BAD(PARAM);
            }
        }
    }
    return 0;
}

int weft_check_op(const weft_plan_t *plan, const void *record, uint32_t i)
{
    (void)i;
    const weft_op_t *op = record;
    const int bad = check_fields(plan, op);
    if (bad != 0) {
        return bad;
    }
    const bool concat = WEFT_IS(op, CONCAT);
    const weft_tensor_t *in, *const out = weft_tensor_at(plan, op->output);
    int32_t rest = concat ? weft_size(out, op->kernel_h) : 0; /* of the output, that the inputs make up along an axis */
    uint32_t k = weft_op_inputs(op);
    do { /* the first one comes last */
        const uint32_t n = weft_op_input(plan, op, --k);
        if (n >= plan->tensor_count) {
            return BAD(INDEX);
        }
        in = weft_tensor_at(plan, n);
        for (uint32_t axis = 0; axis < 3; axis++) {
            if (concat && axis == op->kernel_h) {
                rest -= weft_size(in, axis);
            } else if (!axis_agrees(op, axis, weft_size(in, axis), weft_size(out, axis))) {
                return BAD(SHAPE);
            }
        }
    } while (k > 0);
    if (rest != 0 || (WEFT_IS(op, RESHAPE) && volume(in) != volume(out)) ||
        (WEFT_IS(op, REDUCE) && (op->flags & (WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W)) == 0)) {
        return BAD(SHAPE);
    }
    return check_params(plan, op, in, out);
}
