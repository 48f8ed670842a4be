/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once; the last one, two or three as the reference kernel does them. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

DSP_SMALL void weft_fully_connected_dsp(const weft_call_t *call)
{
    const weft_view_t *in = &call->in0;
    const int32_t n = call->out.c, row = in->w * in->c, inputs = in->h * row, run = (call->x1 - call->x0) * in->c;
    const bool end = call->acc == NULL || call->last;
    /* A call that does it all mostly has the whole input as one run. */
    const int32_t rows = call->acc == NULL ? call->y1 - call->y0 : 1;
    const weft_linear_t p = weft_linear(call, n, 0);
    const int8_t *weights = p.weights + call->x0 * in->c, *x;
    int8_t *out = weft_px(&call->out, 0, 0);
    const int32_t *start = call->acc;
    if (start == NULL || call->first) {
        start = (const int32_t *)(const void *)p.bias; /* blocks are aligned */
    }

    x = weft_px(in, call->y0, call->x0);
    int32_t o = weft_px(in, call->y0 + rows - 1, call->x0) - x == (rows - 1) * run ? n & ~3 : 0;
    dsp_pixel_t px;
    dsp_pixel_of(&px, &p, call->acc == NULL && (call->op->flags & WEFT_OP_QUICK) != 0);
    px.row = &x;
    px.row_end = &x + 1;
    px.start = start;
    px.out = out;
    px.at = px.row_step = px.columns = 0;
    px.step = rows * run;
    px.channel_step = inputs;
    px.offset = dsp_offset(in->zero_point);
    px.sums = call->acc;
    for (int32_t y = call->y0; o > 0 && y < call->y1; y += rows, px.start = call->acc) {
        x = weft_px(in, y, call->x0);
        px.weights = weights + y * row;
        dsp_pixel(&px, o);
    }
    if (o > 0 && end && call->acc != NULL) {
        px.sums = NULL;
        px.step = 0;
        dsp_pixel(&px, o);
    }
    for (; o < n; o++) {
        int32_t acc = start[o];
        for (int32_t y = call->y0; y < call->y1; y++) {
            const int8_t *w = weights + (size_t)o * (uint32_t)inputs + y * row;
            acc += weft_dot(weft_px(in, y, call->x0), w, run, in->zero_point);
        }
        if (call->acc != NULL) {
            call->acc[o] = acc;
        }
        if (end) {
            out[o] = weft_linear_out(&p, o, acc);
        }
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * run * n);
    if (end) {
        dsp_clamp(out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
