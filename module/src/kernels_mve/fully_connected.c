/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once. */
#include "mve.h"

#if WEFT_KERNELS_MVE

/* Outputs [o, end): four at once and, with `full` unset, what is left of four. */
MVE_INLINE void outputs(const weft_call_t *call, const weft_linear_t *linear, int32_t o, int32_t end, bool full)
{
    const weft_view_t *in = &call->in0;
    const weft_linear_t p = *linear; /* a copy: bytes written could be its members */
    const mve_range_t range = mve_range(&p);
    const mve_zero_t zero = mve_zero(in->zero_point);
    const int32_t row = in->w * in->c, inputs = in->h * row, count = full ? 4 : end - o, y0 = call->y0;
    const bool write = call->acc == NULL || call->last;
    const mve_pred16_t lanes = vctp32q((uint32_t)count);
    const int8_t *const first = weft_px(in, y0, call->x0);
    int32_t *const sums = call->acc;
    const int32_t *const start = sums != NULL && !call->first ? sums : mve_words(p.bias);
    int8_t *const out = weft_px(&call->out, 0, 0);
    uint32x4_t weights = mve_weights(p.weights + o * inputs + y0 * row + call->x0 * in->c, inputs, count);
    mve_patch_t patch;
    mve_rows(&patch, NULL, 1, (call->x1 - call->x0) * in->c, 0);
    for (; o < end; o += 4, weights = vaddq_n_u32(weights, 4u * (uint32_t)inputs)) {
        int32x4_t acc = vmulq_n_s32(full ? vldrwq_s32(start + o) : vldrwq_z_s32(start + o, lanes), zero.sign);
        uint32x4_t at = weights;
        const int8_t *px = first;
        for (int32_t y = y0;;) {
            mve_channels_t channels;
            vstrwq_s32(channels.start, acc);
            vstrwq_u32(channels.weights, at);
            acc = mve_dot(&patch, px, &channels, &zero, true);
            if (++y == call->y1) {
                break;
            }
            at = vaddq_n_u32(at, (uint32_t)row);
            px = weft_px(in, y, call->x0);
        }
        acc = vmulq_n_s32(acc, zero.sign);
        if (sums != NULL) {
            vstrwq_p_s32(sums + o, acc, lanes);
        }
        if (write && full) {
            vstrbq_s32(out + o, mve_out(acc, mve_scale_of_four(&p, o), range));
        } else if (write) {
            vstrbq_p_s32(out + o, mve_out(acc, mve_scale(&p, o, lanes), range), lanes);
        }
    }
}

void weft_fully_connected_mve(const weft_call_t *call)
{
    const int32_t n = call->out.c, fours = n & ~3;
    const weft_linear_t p = weft_linear(call, n, 0);
    if (fours > 0) {
        outputs(call, &p, 0, fours, true);
    }
    if (fours < n) {
        outputs(call, &p, fours, n, false);
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * (call->x1 - call->x0) * call->in0.c * n);
}

#endif
