/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once. */
#include "mve.h"

#if WEFT_KERNELS_MVE

void weft_fully_connected_mve(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, row = in->w * in->c, inputs = in->h * row, run = (call->x1 - call->x0) * in->c;
    const weft_linear_t p = weft_linear(call, n, 0);
    const int32_t *start = call->acc;
    if (start == NULL || call->first) {
        start = mve_words(p.bias);
    }
    const int8_t *px;
    const mve_patch_t patch = {&px, 1, 0, run, 0, inputs, in->zero_point};
    int8_t *out = weft_px(&call->out, 0, 0);

    for (int32_t o = 0; o < n; o += 4) {
        const int32_t count = weft_min(n - o, 4);
        const mve_pred16_t lanes = vctp32q((uint32_t)count);
        const int8_t *w = p.weights + (size_t)o * (uint32_t)inputs + call->x0 * in->c;
        int32x4_t acc = vldrwq_z_s32(start + o, lanes);
        for (int32_t y = call->y0; y < call->y1; y++) {
            px = weft_px(in, y, call->x0);
            acc = mve_dot(acc, &patch, w + y * row, count);
        }
        if (call->acc != NULL) {
            vstrwq_p_s32(call->acc + o, acc, lanes);
        }
        if (call->acc == NULL || call->last) {
            vstrbq_p_s32(out + o, mve_out(acc, mve_scale(&p, o, lanes), mve_range(&p)), lanes);
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
}

#endif
