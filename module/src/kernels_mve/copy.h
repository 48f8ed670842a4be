/* SPDX-License-Identifier: Apache-2.0 */
/* Copies by Helium, for the executor and the kernels. */
#ifndef WEFT_MVE_COPY_H
#define WEFT_MVE_COPY_H

#include <stdint.h>

/* Copy n bytes: to anywhere else, or down within the same bytes. */
static inline void weft_copy_down(int8_t *dst, const int8_t *src, int32_t n)
{
    __asm__ volatile("wlstp.8 lr, %[n], 2f\n\t"
                     "1:\n\t"
                     "vldrb.8 q0, [%[src]], #16\n\t"
                     "vstrb.8 q0, [%[dst]], #16\n\t"
                     "letp lr, 1b\n\t"
                     "2:"
                     : [src] "+r"(src), [dst] "+r"(dst)
                     : [n] "r"(n)
                     : "q0", "lr", "cc", "memory");
}

#endif
