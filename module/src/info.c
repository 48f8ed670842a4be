/* SPDX-License-Identifier: Apache-2.0 */
/* Questions about an open plan. */
#include "plan.h"

size_t weft_arena_size(const weft_plan_t *plan)
{
    return weft_rd32(plan->bytes + WEFT_HEADER_ARENA_BYTES);
}

size_t weft_arena_align(const weft_plan_t *plan)
{
    return (size_t)1 << plan->bytes[WEFT_HEADER_ALIGN_LOG2];
}

void weft_plan_info(const weft_plan_t *plan, weft_plan_info_t *info)
{
    const uint8_t *p = plan->bytes;
    info->arena_bytes = weft_rd32(p + WEFT_HEADER_ARENA_BYTES);
    info->plan_version = weft_rd32(p + WEFT_HEADER_PLAN_VERSION);
    info->total_len = weft_rd32(p + WEFT_HEADER_TOTAL_LEN);
    info->row_steps = weft_rd32(p + WEFT_HEADER_ROW_STEPS);
    info->calls = weft_rd32(p + WEFT_HEADER_CALLS);
    info->macs = weft_rd64(p + WEFT_HEADER_MACS);
    info->base_macs = weft_rd64(p + WEFT_HEADER_BASE_MACS);
    info->elements = weft_rd64(p + WEFT_HEADER_ELEMENTS);
    info->model_id = p + WEFT_HEADER_MODEL_ID;
    info->vendor_id = p + WEFT_HEADER_VENDOR_ID;
    info->class_id = p + WEFT_HEADER_CLASS_ID;
}

unsigned weft_input_count(const weft_plan_t *plan)
{
    return plan->input_count;
}

unsigned weft_output_count(const weft_plan_t *plan)
{
    return plan->output_count;
}

static void io_info(const weft_plan_t *plan, uint32_t io, weft_tensor_info_t *info)
{
    const uint8_t *p = plan->ios + io * WEFT_IO_SIZE;
    weft_tensor_t t;
    weft_tensor(plan, weft_rd16(p + WEFT_IO_TENSOR), &t);
    info->h = (uint16_t)t.h;
    info->w = (uint16_t)t.w;
    info->c = (uint16_t)t.c;
    info->dtype = (weft_dtype_t)p[WEFT_IO_DTYPE];
    uint32_t bits = weft_rd32(p + WEFT_IO_SCALE);
    memcpy(&info->scale, &bits, sizeof info->scale);
    info->zero_point = (int8_t)t.zero_point;
}

int weft_input_info(const weft_plan_t *plan, unsigned input, weft_tensor_info_t *info)
{
    if (input >= plan->input_count) {
        return WEFT_ERR_ARG;
    }
    io_info(plan, input, info);
    return WEFT_OK;
}

int weft_output_info(const weft_plan_t *plan, unsigned output, weft_tensor_info_t *info)
{
    if (output >= plan->output_count) {
        return WEFT_ERR_ARG;
    }
    io_info(plan, (uint32_t)plan->input_count + output, info);
    return WEFT_OK;
}

static uint32_t io_entry(const weft_plan_t *plan, uint32_t io)
{
    return weft_entry_of(plan, weft_io_tensor(plan, io));
}

weft_input_mode_t weft_input_mode(const weft_plan_t *plan, unsigned input)
{
    uint32_t n = io_entry(plan, input);
    weft_entry_t e;
    weft_entry(plan, n, &e);
    return n >= plan->placed_count            ? WEFT_INPUT_STREAMED
           : e.policy == WEFT_POLICY_EXTERNAL ? WEFT_INPUT_EXTERNAL
                                              : WEFT_INPUT_RESIDENT;
}

size_t weft_input_offset(const weft_plan_t *plan, unsigned input)
{
    weft_entry_t e;
    weft_entry(plan, io_entry(plan, input), &e);
    return e.offset;
}

size_t weft_output_offset(const weft_plan_t *plan, unsigned output)
{
    weft_entry_t e;
    weft_entry(plan, io_entry(plan, plan->input_count + output), &e);
    return e.offset;
}

unsigned weft_stage_count(const weft_plan_t *plan)
{
    return plan->stage_count;
}

int weft_stage_output(const weft_plan_t *plan, unsigned stage, size_t *offset, size_t *nbytes)
{
    if (stage >= plan->stage_count) {
        return WEFT_ERR_ARG;
    }
    weft_stage_t s;
    weft_segment_t sink;
    weft_entry_t e;
    weft_tensor_t t;
    weft_stage(plan, stage, &s);
    weft_segment(plan, (uint32_t)s.first_segment + s.segment_count - 1u, &sink);
    weft_entry(plan, (uint32_t)sink.first_entry + sink.entry_count - 1u, &e);
    weft_tensor(plan, weft_entry_tensor(plan, &e), &t);
    *offset = e.offset;
    *nbytes = (size_t)t.h * t.w * t.c; /* it is FULL */
    return WEFT_OK;
}
