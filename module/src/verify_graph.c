/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors, operators and their parameters. After this, every kernel's arithmetic and every read of WEIGHTS is safe. */
#include "verify.h"

/* Whether [offset, offset + size) lies in WEIGHTS, 4-aligned. */
static bool in_weights(const weft_plan_t *plan, uint32_t offset, uint64_t size)
{
    return offset % 4u == 0 && offset <= plan->weights_len && size <= plan->weights_len - offset;
}

static uint64_t volume(const weft_tensor_t *t)
{
    return (uint64_t)t->h * (uint64_t)t->w * (uint64_t)t->c;
}

static bool same_shape(const weft_tensor_t *a, const weft_tensor_t *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

static int check_tensors(const weft_plan_t *plan, weft_error_t *err)
{
    for (uint32_t i = 0; i < plan->tensor_count; i++) {
        weft_tensor_t t;
        weft_tensor(plan, i, &t);
        uint32_t where = weft_where(plan, plan->graph, i, WEFT_TENSOR_SIZE);
        if (t.h < 1 || t.w < 1 || t.c < 1 || t.h > 32767 || t.w > 32767 || t.c > 32767 || volume(&t) > INT32_MAX / 2) {
            return weft_fail(err, WEFT_ERR_SHAPE, i, where);
        }
        if ((t.flags & ~WEFT_TENSOR_CONST) != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, where);
        }
    }
    uint32_t constants = 0;
    for (uint32_t i = 0; i < plan->tensor_count; i++) {
        weft_tensor_t t;
        weft_tensor(plan, i, &t);
        constants += (t.flags & WEFT_TENSOR_CONST) != 0;
    }
    uint32_t last = 0;
    for (uint32_t i = 0; i < plan->const_count; i++) {
        const uint8_t *p = plan->consts + i * WEFT_CONST_SIZE;
        uint32_t where = weft_where(plan, plan->consts, i, WEFT_CONST_SIZE);
        uint32_t n = weft_rd16(p + WEFT_CONST_TENSOR);
        if (n >= plan->tensor_count || (i > 0 && n <= last)) {
            return weft_fail(err, WEFT_ERR_INDEX, i, where);
        }
        last = n;
        weft_tensor_t t;
        weft_tensor(plan, n, &t);
        if ((t.flags & WEFT_TENSOR_CONST) == 0 || constants != plan->const_count) {
            return weft_fail(err, WEFT_ERR_GRAPH, i, where);
        }
        if (!in_weights(plan, weft_rd32(p + WEFT_CONST_OFFSET), volume(&t))) {
            return weft_fail(err, WEFT_ERR_WEIGHTS, i, where);
        }
    }
    return constants == plan->const_count
               ? WEFT_OK
               : weft_fail(err, WEFT_ERR_GRAPH, WEFT_NONE, weft_where(plan, plan->consts, 0, WEFT_CONST_SIZE));
}

static int check_ios(const weft_plan_t *plan, weft_error_t *err)
{
    for (uint32_t i = 0; i < (uint32_t)plan->input_count + plan->output_count; i++) {
        const uint8_t *p = plan->ios + i * WEFT_IO_SIZE;
        uint32_t where = weft_where(plan, plan->ios, i, WEFT_IO_SIZE);
        uint32_t n = weft_rd16(p + WEFT_IO_TENSOR);
        if (n >= plan->tensor_count) {
            return weft_fail(err, WEFT_ERR_INDEX, i, where);
        }
        weft_tensor_t t;
        weft_tensor(plan, n, &t);
        if ((t.flags & WEFT_TENSOR_CONST) != 0) {
            return weft_fail(err, WEFT_ERR_GRAPH, i, where);
        }
        if (p[WEFT_IO_DTYPE] > WEFT_DTYPE_FLOAT32 || p[WEFT_IO_RESERVED] != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, where);
        }
    }
    return WEFT_OK;
}

/* bias, multiplier, shift and weights of the operators that multiply; `taps` is the length of one dot product. */
static int check_dense(const weft_plan_t *plan, const weft_op_t *op, uint64_t n, uint64_t taps, uint64_t weights)
{
    uint64_t scales = (op->flags & WEFT_OP_PER_TENSOR) != 0 ? 1 : n;
    uint64_t shifts = (scales + 3u) & ~(uint64_t)3;
    if (weights > INT32_MAX || !in_weights(plan, op->params, 4u * n + 4u * scales + shifts + weights)) {
        return WEFT_ERR_WEIGHTS;
    }
    const uint8_t *p = plan->weights + op->params;
    if (taps > (uint64_t)INT32_MAX / (255u * 128u)) {
        return WEFT_ERR_OVERFLOW;
    }
    int64_t room = (int64_t)INT32_MAX - (int64_t)(taps * 255u * 128u);
    for (uint64_t i = 0; i < n; i++) {
        int64_t bias = (int32_t)weft_rd32(p + 4u * i);
        if (bias > room || -bias > room) {
            return WEFT_ERR_OVERFLOW;
        }
    }
    p += 4u * n;
    for (uint64_t i = 0; i < scales; i++) {
        int shift = (int8_t)p[4u * scales + i];
        if ((int32_t)weft_rd32(p + 4u * i) < 0 || shift < -31 || shift > 30) {
            return WEFT_ERR_PARAM;
        }
    }
    return WEFT_OK;
}

static int check_binary(const weft_plan_t *plan, const weft_op_t *op)
{
    if (!in_weights(plan, op->params, 16)) {
        return WEFT_ERR_WEIGHTS;
    }
    const uint8_t *p = plan->weights + op->params;
    for (uint32_t i = 0; i < 3; i++) {
        if ((int32_t)weft_rd32(p + 4u * i) < 0) {
            return WEFT_ERR_PARAM;
        }
    }
    int shift0 = (int8_t)p[12], shift1 = (int8_t)p[13], shift_out = (int8_t)p[14], left = (int8_t)p[15];
    if (shift0 < -31 || shift0 > 0 || shift1 < -31 || shift1 > 0 || shift_out < -31 || shift_out > 30 || left < 0 ||
        left > 20) {
        return WEFT_ERR_PARAM;
    }
    return WEFT_OK;
}

/* Every output position of a pooling operator has a tap inside the tensor, so the divisor is not zero. */
static bool pool_has_tap(int32_t in, int32_t out, int32_t kernel, int32_t stride, int32_t dilation, int32_t pad)
{
    return pad <= (kernel - 1) * dilation && (out - 1) * stride - pad < in && (dilation == 1 || in >= dilation);
}

static int check_resize(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out)
{
    if (in->c != out->c) {
        return WEFT_ERR_SHAPE;
    }
    if ((op->flags & WEFT_OP_RESIZE_TABLE) == 0) {
        return in->h * op->kernel_h == out->h && in->w * op->kernel_w == out->w ? WEFT_OK : WEFT_ERR_SHAPE;
    }
    uint32_t n = (uint32_t)(out->h + out->w);
    if (!in_weights(plan, op->params, 2u * (uint64_t)((n + 1u) & ~1u))) {
        return WEFT_ERR_WEIGHTS;
    }
    for (uint32_t i = 0; i < n; i++) {
        int32_t source = weft_rd16(plan->weights + op->params + 2u * i);
        if (source >= (i < (uint32_t)out->h ? in->h : in->w)) {
            return WEFT_ERR_PARAM;
        }
    }
    return WEFT_OK;
}

static int check_reduce(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out)
{
    uint32_t axes = op->flags & (WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W);
    if (axes == 0 || out->c != in->c || out->h != ((axes & WEFT_OP_REDUCE_H) != 0 ? 1 : in->h) ||
        out->w != ((axes & WEFT_OP_REDUCE_W) != 0 ? 1 : in->w)) {
        return WEFT_ERR_SHAPE;
    }
    if ((int64_t)in->h * in->w > INT32_MAX / 256) {
        return WEFT_ERR_OVERFLOW;
    }
    if ((op->flags & (WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX)) == 0) {
        if (!in_weights(plan, op->params, 8)) {
            return WEFT_ERR_WEIGHTS;
        }
        const uint8_t *p = plan->weights + op->params;
        int32_t shift = (int32_t)weft_rd32(p + 4);
        if ((int32_t)weft_rd32(p) < 0 || shift < -31 || shift > 30) {
            return WEFT_ERR_PARAM;
        }
    }
    return WEFT_OK;
}

static int check_softmax(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *in,
                         const weft_tensor_t *out)
{
    if (!same_shape(in, out)) {
        return WEFT_ERR_SHAPE;
    }
    if (!in_weights(plan, op->params, 12)) {
        return WEFT_ERR_WEIGHTS;
    }
    const uint8_t *p = plan->weights + op->params;
    int32_t shift = (int32_t)weft_rd32(p + 4), diff_min = (int32_t)weft_rd32(p + 8);
    if ((int32_t)weft_rd32(p) < 0 || shift < 0 || shift > 30 || diff_min > 0) {
        return WEFT_ERR_PARAM;
    }
    /* Differences down to diff_min, at most 255, are shifted left; exponentials are Q12.19 sums over C. */
    int64_t deepest = diff_min < -255 ? 255 : -(int64_t)diff_min;
    return (deepest << shift) <= INT32_MAX && in->c < 4096 ? WEFT_OK : WEFT_ERR_OVERFLOW;
}

static int check_concat(const weft_plan_t *plan, const weft_op_t *op, const weft_tensor_t *out)
{
    int32_t sum = 0;
    for (uint32_t k = 0; k < op->input1; k++) {
        weft_tensor_t in;
        weft_tensor(plan, weft_op_input(plan, op, k), &in);
        int32_t along = op->kernel_h == 0 ? in.h : op->kernel_h == 1 ? in.w : in.c;
        if ((op->kernel_h != 0 && in.h != out->h) || (op->kernel_h != 1 && in.w != out->w) ||
            (op->kernel_h != 2 && in.c != out->c)) {
            return WEFT_ERR_SHAPE;
        }
        sum += along;
    }
    return sum == (op->kernel_h == 0 ? out->h : op->kernel_h == 1 ? out->w : out->c) ? WEFT_OK : WEFT_ERR_SHAPE;
}

/* Which flags an opcode may carry. */
static uint32_t allowed_flags(uint8_t opcode)
{
    switch (opcode) {
    case WEFT_OP_CONV2D:
    case WEFT_OP_DWCONV2D:
    case WEFT_OP_FULLY_CONNECTED:
        return WEFT_OP_PER_TENSOR;
    case WEFT_OP_AVGPOOL:
        return WEFT_OP_COUNT_PAD;
    case WEFT_OP_REDUCE:
        return WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W | WEFT_OP_REDUCE_AVG | WEFT_OP_REDUCE_MAX;
    case WEFT_OP_RESIZE:
        return WEFT_OP_RESIZE_TABLE;
    default:
        return 0;
    }
}

static bool has_kernel(uint8_t opcode)
{
    return opcode == WEFT_OP_CONV2D || opcode == WEFT_OP_DWCONV2D || opcode == WEFT_OP_AVGPOOL ||
           opcode == WEFT_OP_MAXPOOL;
}

static int check_op(const weft_plan_t *plan, const weft_op_t *op)
{
    if (op->opcode == WEFT_OP_CONCAT) {
        if (op->kernel_h > 2 || op->input1 == 0 || op->input1 > WEFT_MAX_INPUTS || op->input0 > plan->list_count ||
            op->input1 > plan->list_count - op->input0) {
            return WEFT_ERR_INDEX;
        }
    } else if (op->kernel_h == 0 || op->kernel_w == 0) {
        return WEFT_ERR_PARAM;
    }
    for (uint32_t k = 0; k < weft_op_inputs(op); k++) {
        if (weft_op_input(plan, op, k) >= plan->tensor_count) {
            return WEFT_ERR_INDEX;
        }
    }
    if (op->output >= plan->tensor_count) {
        return WEFT_ERR_INDEX;
    }
    if (op->stride_h == 0 || op->stride_w == 0 || op->dilation_h == 0 || op->dilation_w == 0 || op->groups == 0 ||
        (op->opcode != WEFT_OP_PAD && op->act_min > op->act_max)) {
        return WEFT_ERR_PARAM;
    }
    if (!has_kernel(op->opcode) && (op->stride_h | op->stride_w | op->dilation_h | op->dilation_w) != 1) {
        return WEFT_ERR_PARAM;
    }
    if (!has_kernel(op->opcode) && op->opcode != WEFT_OP_PAD && (op->pad_top | op->pad_left) != 0) {
        return WEFT_ERR_PARAM;
    }
    if (!has_kernel(op->opcode) && op->opcode != WEFT_OP_RESIZE && op->opcode != WEFT_OP_CONCAT &&
        (op->kernel_h != 1 || op->kernel_w != 1)) {
        return WEFT_ERR_PARAM;
    }
    weft_tensor_t in, out;
    weft_tensor(plan, weft_op_input(plan, op, 0), &in);
    weft_tensor(plan, op->output, &out);
    if ((out.flags & WEFT_TENSOR_CONST) != 0) {
        return WEFT_ERR_GRAPH;
    }
    uint64_t area = (uint64_t)op->kernel_h * op->kernel_w;
    switch (op->opcode) {
    case WEFT_OP_CONV2D: {
        if (in.c % op->groups != 0 || out.c % op->groups != 0) {
            return WEFT_ERR_SHAPE;
        }
        uint64_t taps = area * (uint64_t)(in.c / op->groups);
        return check_dense(plan, op, (uint64_t)out.c, taps, weft_mul_sat(taps, (uint64_t)out.c));
    }
    case WEFT_OP_DWCONV2D:
        return out.c % in.c != 0 ? WEFT_ERR_SHAPE
                                 : check_dense(plan, op, (uint64_t)out.c, area, area * (uint64_t)out.c);
    case WEFT_OP_FULLY_CONNECTED:
        return out.h != 1 || out.w != 1
                   ? WEFT_ERR_SHAPE
                   : check_dense(plan, op, (uint64_t)out.c, volume(&in), weft_mul_sat(volume(&in), (uint64_t)out.c));
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL: {
        weft_tensor_t in1;
        weft_tensor(plan, op->input1, &in1);
        if ((in.h != out.h && in.h != 1) || (in.w != out.w && in.w != 1) || (in.c != out.c && in.c != 1) ||
            (in1.h != out.h && in1.h != 1) || (in1.w != out.w && in1.w != 1) || (in1.c != out.c && in1.c != 1)) {
            return WEFT_ERR_SHAPE;
        }
        return check_binary(plan, op);
    }
    case WEFT_OP_CONCAT:
        return check_concat(plan, op, &out);
    case WEFT_OP_PAD:
        return in.c == out.c ? WEFT_OK : WEFT_ERR_SHAPE;
    case WEFT_OP_AVGPOOL:
    case WEFT_OP_MAXPOOL:
        return in.c == out.c && (op->opcode == WEFT_OP_MAXPOOL || (op->dilation_h == 1 && op->dilation_w == 1)) &&
                       pool_has_tap(in.h, out.h, op->kernel_h, op->stride_h, op->dilation_h, op->pad_top) &&
                       pool_has_tap(in.w, out.w, op->kernel_w, op->stride_w, op->dilation_w, op->pad_left)
                   ? WEFT_OK
                   : WEFT_ERR_SHAPE;
    case WEFT_OP_REDUCE:
        return check_reduce(plan, op, &in, &out);
    case WEFT_OP_LUT:
        return !same_shape(&in, &out) ? WEFT_ERR_SHAPE : in_weights(plan, op->params, 256) ? WEFT_OK : WEFT_ERR_WEIGHTS;
    case WEFT_OP_SOFTMAX:
        return check_softmax(plan, op, &in, &out);
    case WEFT_OP_RESHAPE:
        return volume(&in) == volume(&out) ? WEFT_OK : WEFT_ERR_SHAPE;
    case WEFT_OP_RESIZE:
        return check_resize(plan, op, &in, &out);
    default:
        return WEFT_ERR_OPCODE;
    }
}

int weft_verify_graph(const weft_plan_t *plan, uint64_t *op_mask, weft_error_t *err)
{
    int r = check_tensors(plan, err);
    r = r != WEFT_OK ? r : check_ios(plan, err);
    if (r != WEFT_OK) {
        return r;
    }
    *op_mask = 0;
    for (uint32_t i = 0; i < plan->op_count; i++) {
        weft_op_t op;
        weft_op(plan, i, &op);
        uint32_t where = weft_where(plan, plan->ops, i, WEFT_OP_SIZE);
        if (op.opcode > WEFT_OPCODE_MAX || weft_kernels[op.opcode] == NULL) {
            return weft_fail(err, WEFT_ERR_OPCODE, i, where);
        }
        if ((op.flags & ~allowed_flags(op.opcode)) != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, where + WEFT_OP_FLAGS);
        }
        r = check_op(plan, &op);
        if (r != WEFT_OK) {
            return weft_fail(err, r, i, where);
        }
        *op_mask |= (uint64_t)1 << op.opcode;
    }
    return WEFT_OK;
}
