/* SPDX-License-Identifier: Apache-2.0 */
/* LUT: any function of one int8, from a table. */
#include "../weft_internal.h"

void weft_lut(const weft_call_t *call)
{
    const int8_t *middle = (const int8_t *)call->params + 128;
    const int32_t n = (call->x1 - call->x0) * call->out.c;

    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *in = weft_px(&call->in0, y, call->x0);
        int8_t *out = weft_px(&call->out, y, call->x0);
        for (int32_t i = 0; i < n; i++) {
            out[i] = middle[in[i]];
        }
    }
}
