/* SPDX-License-Identifier: Apache-2.0 */
/* FULLY_CONNECTED: four outputs at once. */
#include "dsp.h"

#if WEFT_KERNELS_DSP

typedef struct {
    const weft_call_t *call;
    weft_linear_t p;
    int32_t inputs, run;
    uint32_t offset;
    bool end;
    const int32_t *start; /* what sums start from */
    int8_t *out;
} dense_t;

/* Outputs o, o + next, o + 2 next, o + 3 next; `next` is 1, or 0 for one output done four times. */
DSP_INLINE void four_outputs(const dense_t *d, int32_t o, int32_t next)
{
    const weft_call_t *call = d->call;
    const int32_t *start = d->start + o;
    const int8_t *weights = d->p.weights + (size_t)o * (uint32_t)d->inputs + call->x0 * call->in0.c;
    dsp_acc4_t acc = {start[0], start[next], start[2 * next], start[3 * next]};
    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *w = weights + y * call->in0.w * call->in0.c;
        acc = dsp_mac_run(acc, weft_px(&call->in0, y, call->x0), w, next * d->inputs, d->run, d->offset);
    }
    if (call->acc != NULL) {
        int32_t *sum = call->acc + o;
        sum[0] = acc.v0;
        sum[next] = acc.v1;
        sum[2 * next] = acc.v2;
        sum[3 * next] = acc.v3;
    }
    if (d->end) {
        dsp_store_four(&d->p, false, o, next, acc, d->out);
    }
}

void weft_fully_connected_dsp(const weft_call_t *call)
{
    const int32_t n = call->out.c;
    dense_t d;
    d.call = call;
    d.p = weft_linear(call, n);
    d.inputs = call->in0.h * call->in0.w * call->in0.c;
    d.run = (call->x1 - call->x0) * call->in0.c;
    d.offset = dsp_offset(call->in0.zero_point);
    d.end = call->acc == NULL || call->last;
    d.start = call->acc == NULL || call->first ? (const int32_t *)(const void *)d.p.bias : call->acc;
    d.out = weft_px(&call->out, 0, 0);

    int32_t o = 0;
    for (; o + 4 <= n; o += 4) {
        four_outputs(&d, o, 1);
    }
    for (; o < n; o++) {
        four_outputs(&d, o, 0);
    }
    WEFT_COUNT_MACS(call, (int64_t)(call->y1 - call->y0) * d.run * n);
    if (d.end) {
        dsp_clamp(d.out, n, call->op->act_min, call->op->act_max);
    }
}

#endif
