/* SPDX-License-Identifier: Apache-2.0 */
/* RESIZE, nearest neighbour: by integer factors (kernel_h, kernel_w) or by tables of source rows and columns. */
#include "../weft_internal.h"

static void resize_by_table(const weft_call_t *call)
{
    const uint8_t *row_of = call->params, *column_of = call->params + (size_t)2 * (uint32_t)call->out.h;
    const int32_t c = call->out.c;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *in = weft_px(&call->in0, weft_rd16(row_of + (size_t)2 * (uint32_t)y), 0);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0; x < call->x1; x++, out += c) {
            memcpy(out, in + weft_rd16(column_of + (size_t)2 * (uint32_t)x) * c, (size_t)c);
        }
    }
}

static void resize_by_factor(const weft_call_t *call)
{
    const int32_t fh = call->op->kernel_h, fw = call->op->kernel_w, c = call->out.c;
    const int32_t column = call->x0 / fw, phase = call->x0 % fw;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *in = weft_px(&call->in0, y / fh, column);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t x = call->x0, copies = phase; x < call->x1; x++, out += c) {
            memcpy(out, in, (size_t)c);
            if (++copies == fw) {
                copies = 0;
                in += c;
            }
        }
    }
}

void weft_resize(const weft_call_t *call)
{
    if (call->op->flags & WEFT_OP_RESIZE_TABLE) {
        resize_by_table(call);
    } else {
        resize_by_factor(call);
    }
}
