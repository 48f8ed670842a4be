/* SPDX-License-Identifier: Apache-2.0 */
/* The least that an application does with the engine: what firmware.py measures the runtime's flash with. */
#include "weft/weft.h"

extern const uint8_t application_plan[];

volatile uint32_t application_result;
int8_t *volatile application_arena;

const uint8_t application_plan[8] __attribute__((aligned(8))) = {0};

#if APPLICATION_OPENS || APPLICATION_RUNS || APPLICATION_NAMES_KERNELS
/* Parts of the engine alone. */
#include "weft_internal.h"

weft_plan_t application_handle;
weft_error_t application_error;

static uint32_t infer(void)
{
    int r = 0;
#if APPLICATION_NAMES_KERNELS
    r += weft_kernels[application_plan[0]] != NULL;
#endif
#if APPLICATION_OPENS
    r += weft_open(&application_handle, application_plan, sizeof application_plan, NULL, &application_error);
#endif
#if APPLICATION_RUNS
    r += weft_run(&application_handle, application_arena, sizeof application_plan, NULL);
#endif
    return (uint32_t)r;
}
#elif APPLICATION_HAS_ENGINE
static int rows(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    (void)ctx;
    (void)input;
    (void)row;
    (void)nbytes;
    dst[0] = 0;
    return 0;
}

static uint32_t infer(void)
{
    const weft_limits_t limits = {.arena_bytes = 65536};
    weft_plan_t plan;
    weft_error_t error;
    if (weft_open(&plan, application_plan, sizeof application_plan, &limits, &error) != WEFT_OK) {
        return error.offset;
    }
    weft_tensor_info_t in, out;
    weft_input_info(&plan, 0, &in);
    weft_output_info(&plan, 0, &out);
    const int8_t *external[1] = {application_arena};
    const weft_io_t io = {.input_fn = rows, .external = external};
    int8_t *arena = application_arena;
    if (weft_input_mode(&plan, 0) == WEFT_INPUT_RESIDENT) {
        arena[weft_input_offset(&plan, 0)] = in.zero_point;
    }
    if (weft_run(&plan, arena, weft_arena_size(&plan), &io) != WEFT_OK) {
        return 1;
    }
    return (uint32_t)arena[weft_output_offset(&plan, 0)] + out.w;
}
#else
static uint32_t infer(void)
{
    return application_plan[0];
}
#endif

void firmware_entry(void);
void firmware_entry(void)
{
    application_result = infer();
    for (;;) {
    }
}
