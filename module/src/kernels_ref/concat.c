/* SPDX-License-Identifier: Apache-2.0 */
/* CONCAT: copies one input to its place; called once per input. */
#include "../weft_internal.h"

enum { AXIS_H, AXIS_W, AXIS_C };

void weft_concat(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t axis = call->op->kernel_h;
    const int32_t dy = axis == AXIS_H ? call->axis_offset : 0, dx = axis == AXIS_W ? call->axis_offset : 0;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *src = weft_px(in, y, call->x0);
        int8_t *dst = weft_px(&call->out, y + dy, call->x0 + dx);
        if (axis != AXIS_C) {
            memcpy(dst, src, (size_t)((call->x1 - call->x0) * in->c));
            continue;
        }
        dst += call->axis_offset;
        for (int32_t x = call->x0; x < call->x1; x++, src += in->c, dst += call->out.c) {
            memcpy(dst, src, (size_t)in->c);
        }
    }
}
