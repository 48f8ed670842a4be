/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

void weft_tensor(const weft_plan_t *plan, uint32_t tensor, weft_tensor_t *out)
{
    const uint8_t *p = plan->graph + tensor * WEFT_TENSOR_SIZE;
    out->h = weft_rd16(p + WEFT_TENSOR_H);
    out->w = weft_rd16(p + WEFT_TENSOR_W);
    out->c = weft_rd16(p + WEFT_TENSOR_C);
    out->zero_point = (int8_t)p[WEFT_TENSOR_ZERO_POINT];
    out->flags = p[WEFT_TENSOR_FLAGS];
}

void weft_op(const weft_plan_t *plan, uint32_t op, weft_op_t *restrict out)
{
    const uint8_t *p = __builtin_assume_aligned(plan->ops + op * WEFT_OP_SIZE, 4);
    out->opcode = p[WEFT_OP_OPCODE];
    out->flags = p[WEFT_OP_FLAGS];
    out->input0 = weft_rd16(p + WEFT_OP_INPUT0);
    out->input1 = weft_rd16(p + WEFT_OP_INPUT1);
    out->output = weft_rd16(p + WEFT_OP_OUTPUT);
    out->kernel_h = p[WEFT_OP_KERNEL_H];
    out->kernel_w = p[WEFT_OP_KERNEL_W];
    out->stride_h = p[WEFT_OP_STRIDE_H];
    out->stride_w = p[WEFT_OP_STRIDE_W];
    out->dilation_h = p[WEFT_OP_DILATION_H];
    out->dilation_w = p[WEFT_OP_DILATION_W];
    out->pad_top = p[WEFT_OP_PAD_TOP];
    out->pad_left = p[WEFT_OP_PAD_LEFT];
    out->act_min = (int8_t)p[WEFT_OP_ACT_MIN];
    out->act_max = (int8_t)p[WEFT_OP_ACT_MAX];
    out->groups = weft_rd16(p + WEFT_OP_GROUPS);
    out->params = weft_rd32(p + WEFT_OP_PARAMS);
}

void weft_stage(const weft_plan_t *plan, uint32_t stage, weft_stage_t *out)
{
    const uint8_t *p = plan->stages + stage * WEFT_STAGE_SIZE;
    out->first_segment = weft_rd16(p + WEFT_STAGE_FIRST_SEGMENT);
    out->segment_count = weft_rd16(p + WEFT_STAGE_SEGMENT_COUNT);
    out->state = weft_rd32(p + WEFT_STAGE_STATE);
    out->scratch = weft_rd32(p + WEFT_STAGE_SCRATCH);
    out->scratch_len = weft_rd32(p + WEFT_STAGE_SCRATCH_LEN);
}

void weft_segment(const weft_plan_t *plan, uint32_t segment, weft_segment_t *out)
{
    const uint8_t *p = plan->segments + segment * WEFT_SEGMENT_SIZE;
    out->first_entry = weft_rd16(p + WEFT_SEGMENT_FIRST_ENTRY);
    out->entry_count = weft_rd16(p + WEFT_SEGMENT_ENTRY_COUNT);
    out->row_steps = weft_rd16(p + WEFT_SEGMENT_ROW_STEPS);
    out->col_steps = weft_rd16(p + WEFT_SEGMENT_COL_STEPS);
}

void weft_entry(const weft_plan_t *plan, uint32_t entry, weft_entry_t *restrict out)
{
    const uint8_t *p = __builtin_assume_aligned(plan->entries + entry * WEFT_ENTRY_SIZE, 4);
    out->op = weft_rd16(p + WEFT_ENTRY_OP);
    out->policy = p[WEFT_ENTRY_POLICY];
    out->flags = p[WEFT_ENTRY_FLAGS];
    out->row_adv = weft_rd16(p + WEFT_ENTRY_ROW_ADV);
    out->row_off = (int16_t)weft_rd16(p + WEFT_ENTRY_ROW_OFF);
    out->row_ext = weft_rd16(p + WEFT_ENTRY_ROW_EXT);
    out->keep = weft_rd16(p + WEFT_ENTRY_KEEP);
    out->col_adv = weft_rd16(p + WEFT_ENTRY_COL_ADV);
    out->col_off = (int16_t)weft_rd16(p + WEFT_ENTRY_COL_OFF);
    out->col_ext = weft_rd16(p + WEFT_ENTRY_COL_EXT);
    out->reserved = weft_rd16(p + WEFT_ENTRY_RESERVED);
    out->offset = weft_rd32(p + WEFT_ENTRY_OFFSET);
    out->aux = weft_rd32(p + WEFT_ENTRY_AUX);
}

uint16_t weft_entry_tensor(const weft_plan_t *plan, const weft_entry_t *entry)
{
    if (weft_is_input(entry)) {
        return weft_io_tensor(plan, entry->op & (WEFT_INPUT_BIT - 1u));
    }
    return weft_rd16(plan->ops + entry->op * WEFT_OP_SIZE + WEFT_OP_OUTPUT);
}

uint32_t weft_op_inputs(const weft_op_t *op)
{
    switch (op->opcode) {
    case WEFT_OP_CONCAT:
        return op->input1;
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL:
        return 2;
    default:
        return 1;
    }
}

uint16_t weft_op_input(const weft_plan_t *plan, const weft_op_t *op, uint32_t k)
{
    if (op->opcode == WEFT_OP_CONCAT) {
        return weft_rd16(plan->lists + 2u * (op->input0 + k));
    }
    return k == 0 ? op->input0 : op->input1;
}

const uint8_t *weft_const(const weft_plan_t *plan, uint32_t tensor)
{
    for (uint32_t i = 0; i < plan->const_count; i++) {
        const uint8_t *p = plan->consts + i * WEFT_CONST_SIZE;
        if (weft_rd16(p + WEFT_CONST_TENSOR) == tensor) {
            return plan->weights + weft_rd32(p + WEFT_CONST_OFFSET);
        }
    }
    return NULL;
}

bool weft_needs_whole(const weft_op_t *op)
{
    return op->opcode == WEFT_OP_RESHAPE || (op->opcode == WEFT_OP_RESIZE && (op->flags & WEFT_OP_RESIZE_TABLE) != 0) ||
           (op->opcode == WEFT_OP_CONCAT && op->kernel_h != 2);
}

weft_range_t weft_field(const weft_op_t *op, int axis, weft_range_t out)
{
    switch (op->opcode) {
    case WEFT_OP_CONV2D:
    case WEFT_OP_DWCONV2D:
    case WEFT_OP_AVGPOOL:
    case WEFT_OP_MAXPOOL:
    case WEFT_OP_PAD: {
        int32_t kernel = axis == 0 ? op->kernel_h : op->kernel_w;
        int32_t stride = axis == 0 ? op->stride_h : op->stride_w;
        int32_t dilation = axis == 0 ? op->dilation_h : op->dilation_w;
        int32_t pad = axis == 0 ? op->pad_top : op->pad_left;
        weft_range_t in = {out.lo * stride - pad, (out.hi - 1) * stride - pad + (kernel - 1) * dilation + 1};
        return in;
    }
    case WEFT_OP_RESIZE: {
        int32_t factor = axis == 0 ? op->kernel_h : op->kernel_w;
        /* Floor division: positions before the tensor are negative. */
        weft_range_t in = {(out.lo >= 0 ? out.lo : out.lo - factor + 1) / factor,
                           (out.hi > 0 ? out.hi - 1 : out.hi - factor) / factor + 1};
        return in;
    }
    default:
        return out;
    }
}

uint32_t weft_acc_bytes(const weft_op_t *op, const weft_tensor_t *in, const weft_tensor_t *out, const weft_entry_t *e,
                        const weft_segment_t *segment)
{
    bool rows = segment->row_steps > 1, cols = segment->col_steps > 1;
    if (op->opcode == WEFT_OP_FULLY_CONNECTED) {
        return rows || cols ? 4u * (uint32_t)out->c : 0;
    }
    if (op->opcode != WEFT_OP_REDUCE) {
        return 0;
    }
    switch (op->flags & (WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W)) {
    case WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W:
        return rows || cols ? 4u * (uint32_t)in->c : 0;
    case WEFT_OP_REDUCE_W:
        return cols ? 4u * (uint32_t)(weft_min(e->row_adv, in->h) * in->c) : 0;
    default:
        return rows ? 4u * (uint32_t)(in->w * in->c) : 0;
    }
}

uint32_t weft_window_bytes(const weft_entry_t *e, const weft_tensor_t *t)
{
    switch (e->policy) {
    case WEFT_POLICY_FULL:
        return (uint32_t)(t->h * t->w * t->c);
    case WEFT_POLICY_ROWS:
        return (uint32_t)(e->keep * t->w * t->c);
    case WEFT_POLICY_TILE:
        return (uint32_t)(weft_min(e->row_ext - e->keep, t->h) * weft_min(e->col_ext, t->w) * t->c);
    default:
        return 0;
    }
}

uint32_t weft_line_bytes(const weft_entry_t *e, const weft_tensor_t *t)
{
    return e->policy == WEFT_POLICY_TILE ? (uint32_t)(weft_min(e->keep, t->h) * t->w * t->c) : 0;
}

static int32_t tensor_h(const weft_plan_t *plan, uint32_t tensor)
{
    return weft_rd16(plan->graph + tensor * WEFT_TENSOR_SIZE + WEFT_TENSOR_H);
}

/* Whether segment s of the stage can do its next row step: 1, 0 with the producer to run first in *wait_for, or an
 * error. */
static int ready(const weft_plan_t *plan, const weft_stage_t *stage, const uint16_t *state, uint32_t s,
                 uint32_t *wait_for, uint32_t *at)
{
    weft_segment_t segment;
    weft_segment(plan, stage->first_segment + s, &segment);
    int32_t step = WEFT_STATE_DONE(state, s);
    uint32_t first_entry =
        weft_rd16(plan->segments + stage->first_segment * WEFT_SEGMENT_SIZE + WEFT_SEGMENT_FIRST_ENTRY);

    for (uint32_t n = segment.first_entry; n < (uint32_t)segment.first_entry + segment.entry_count; n++) {
        weft_entry_t e;
        weft_entry(plan, n, &e);
        if (weft_is_input(&e)) {
            continue;
        }
        weft_op_t op;
        weft_op(plan, e.op, &op);
        for (uint32_t k = 0; k < weft_op_inputs(&op); k++) {
            uint16_t t = weft_op_input(plan, &op, k);
            uint32_t p = weft_entry_of(plan, t);
            if (p == WEFT_NONE || p < first_entry || p >= segment.first_entry) {
                continue; /* constant, complete before this stage, or of this segment */
            }
            int32_t in_h = tensor_h(plan, t), out_h = weft_consumes(&op) ? in_h : tensor_h(plan, op.output);
            weft_span_t span = weft_new_rows(&e);
            weft_range_t rows = weft_at(&span, step, out_h);
            if (rows.lo >= rows.hi) {
                continue;
            }
            rows = weft_field(&op, 0, rows);
            rows.lo = weft_clamp(rows.lo, 0, in_h);
            rows.hi = weft_clamp(rows.hi, 0, in_h);
            const uint8_t *producer = plan->entries + p * WEFT_ENTRY_SIZE;
            uint32_t q = s;
            weft_segment_t made_by;
            do {
                q--;
                weft_segment(plan, stage->first_segment + q, &made_by);
            } while (made_by.first_entry > p);
            int32_t produced = weft_rd16(producer + WEFT_ENTRY_ROW_ADV) * (int32_t)WEFT_STATE_DONE(state, q) +
                               (int16_t)weft_rd16(producer + WEFT_ENTRY_ROW_OFF);
            produced = weft_clamp(produced, 0, in_h);
            if (produced < rows.hi) {
                *wait_for = q;
                *at = n;
                return WEFT_STATE_DONE(state, q) < made_by.row_steps ? 0 : WEFT_ERR_NEED;
            }
            if (producer[WEFT_ENTRY_POLICY] == WEFT_POLICY_ROWS && rows.lo < rows.hi &&
                rows.lo < produced - weft_rd16(producer + WEFT_ENTRY_KEEP)) {
                *at = n;
                return WEFT_ERR_RING;
            }
        }
    }
    return 1;
}

int weft_pull(const weft_plan_t *plan, const weft_stage_t *stage, uint16_t *state, uint32_t cur, uint32_t *entry)
{
    uint32_t next = cur < stage->segment_count ? WEFT_STATE_ASKED_BY(state, cur) : stage->segment_count;
    if (next >= stage->segment_count) { /* nobody asked: the last segment that has steps left drives */
        weft_segment_t segment;
        next = stage->segment_count;
        do {
            if (next == 0) {
                return stage->segment_count;
            }
            next--;
            weft_segment(plan, stage->first_segment + next, &segment);
        } while (WEFT_STATE_DONE(state, next) >= segment.row_steps);
        WEFT_STATE_ASKED_BY(state, next) = stage->segment_count;
    }
    for (;;) {
        uint32_t wait_for = 0;
        int r = ready(plan, stage, state, next, &wait_for, entry);
        if (r < 0) {
            return r;
        }
        if (r > 0) {
            return (int)next;
        }
        WEFT_STATE_ASKED_BY(state, wait_for) = (uint16_t)next;
        next = wait_for;
    }
}
