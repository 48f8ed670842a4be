/* SPDX-License-Identifier: Apache-2.0 */
/* REDUCE over several calls: those before the last one add pixels to accumulators of 32 bits, four at a
 * time. */
#include "mve.h"

#if WEFT_KERNELS_MVE

/* n bytes at px, each to an accumulator of its own: its sum, less `zp`, or the greater one. */
#define EACH(operation)                                                                                                \
    __asm__ volatile("wlstp.32 lr, %[n], 2f\n\t"                                                                       \
                     "1:\n\t"                                                                                          \
                     "vldrb.s32 q0, [%[px]], #4\n\t"                                                                   \
                     "vldrw.32 q1, [%[acc]]\n\t" operation "vstrw.32 q0, [%[acc]], #16\n\t"                            \
                     "letp lr, 1b\n\t"                                                                                 \
                     "2:"                                                                                              \
                     : [px] "+l"(px), [acc] "+r"(acc)                                                                  \
                     : [n] "r"(n), [zp] "r"(zp)                                                                        \
                     : "q0", "q1", "lr", "cc", "memory")

void weft_reduce_mve(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    if (call->acc == NULL || call->last) {
        weft_reduce(call);
        return;
    }
    const bool over_h = (op->flags & WEFT_OP_REDUCE_H) != 0, over_w = (op->flags & WEFT_OP_REDUCE_W) != 0;
    const bool maximum = (op->flags & WEFT_OP_REDUCE_MAX) != 0;
    const int32_t zp = (op->flags & WEFT_OP_REDUCE_AVG) != 0 ? 0 : in->zero_point, n = in->c;
    int32_t *const accumulators = call->acc + (over_h && !over_w ? call->x0 * n : 0);
    if (call->first) {
        const int32_t pixels = over_h ? over_w ? 1 : call->x1 - call->x0 : call->y1 - call->y0;
        const int32x4_t zero = vdupq_n_s32(maximum ? INT8_MIN : 0);
        for (int32_t left = pixels * n, *acc = accumulators; left > 0; left -= 4, acc += 4) {
            vstrwq_p_s32(acc, zero, vctp32q((uint32_t)left));
        }
    }
    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *from = weft_px(in, y, call->x0);
        int32_t *to = accumulators + (over_h ? 0 : (y - call->y0) * n);
        for (int32_t x = call->x0; x < call->x1; x++, from += n, to += over_w ? 0 : n) {
            const int8_t *px = from;
            int32_t *acc = to;
            if (maximum) {
                EACH("vmax.s32 q0, q0, q1\n\t");
            } else {
                EACH("vadd.i32 q0, q0, q1\n\tvsub.i32 q0, q0, %[zp]\n\t");
            }
        }
    }
}

#endif
