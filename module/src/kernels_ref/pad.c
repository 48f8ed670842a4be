/* SPDX-License-Identifier: Apache-2.0 */
/* PAD: act_min is the value padded with. */
#include "../weft_internal.h"

void weft_pad(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    /* Output columns [left, right) hold input. */
    const int32_t left = weft_clamp(op->pad_left, call->x0, call->x1);
    const int32_t right = weft_clamp(op->pad_left + in->w, left, call->x1);

    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        const int32_t row = y - op->pad_top;
        if (row < 0 || row >= in->h || left == right) {
            memset(out, op->act_min, (size_t)((call->x1 - call->x0) * in->c));
            continue;
        }
        const size_t before = (size_t)((left - call->x0) * in->c), inside = (size_t)((right - left) * in->c);
        memset(out, op->act_min, before);
        memcpy(out + before, weft_px(in, row, left - op->pad_left), inside);
        memset(out + before + inside, op->act_min, (size_t)((call->x1 - right) * in->c));
    }
}
