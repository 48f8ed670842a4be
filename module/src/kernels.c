/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel table. An operator that is left out is not named here, so its kernel drops out of the link. */
#include "weft/weft_config.h"
#include "weft_internal.h"

#if WEFT_KERNELS_MVE
#include "kernels_mve/mve.h"
#define FAST(kernel) kernel##_mve
#define FAST_POOL(kernel) kernel##_mve
#define FAST_REDUCE(kernel) kernel##_mve
#elif WEFT_KERNELS_DSP
#include "kernels_cortexm/dsp.h"
#define FAST(kernel) kernel##_dsp
#define FAST_POOL(kernel) kernel##_dsp
#elif WEFT_KERNELS_PORTABLE
#include "kernels_portable/portable.h"
#define FAST(kernel) kernel##_portable
#define FAST_POOL(kernel) kernel
#else
#define FAST(kernel) kernel
#define FAST_POOL(kernel) kernel
#endif
#ifndef FAST_REDUCE
#define FAST_REDUCE(kernel) kernel
#endif

const weft_kernel_fn weft_kernels[WEFT_OPCODE_MAX + 1u] = {
#if WEFT_WITH_CONV2D
    [WEFT_OP_CONV2D] = FAST(weft_conv2d),
#endif
#if WEFT_WITH_DWCONV2D
    [WEFT_OP_DWCONV2D] = FAST(weft_dwconv2d),
#endif
#if WEFT_WITH_FULLY_CONNECTED
    [WEFT_OP_FULLY_CONNECTED] = FAST(weft_fully_connected),
#endif
#if WEFT_WITH_ADD
    [WEFT_OP_ADD] = FAST(weft_add),
#endif
#if WEFT_WITH_SUB
    [WEFT_OP_SUB] = weft_sub,
#endif
#if WEFT_WITH_MUL
    [WEFT_OP_MUL] = weft_mul,
#endif
#if WEFT_WITH_CONCAT
    [WEFT_OP_CONCAT] = weft_concat,
#endif
#if WEFT_WITH_PAD
    [WEFT_OP_PAD] = weft_pad,
#endif
#if WEFT_WITH_AVGPOOL
    [WEFT_OP_AVGPOOL] = FAST_POOL(weft_avgpool),
#endif
#if WEFT_WITH_MAXPOOL
    [WEFT_OP_MAXPOOL] = FAST_POOL(weft_maxpool),
#endif
#if WEFT_WITH_REDUCE
    [WEFT_OP_REDUCE] = FAST_REDUCE(weft_reduce),
#endif
#if WEFT_WITH_LUT
    [WEFT_OP_LUT] = weft_lut,
#endif
#if WEFT_WITH_SOFTMAX
    [WEFT_OP_SOFTMAX] = weft_softmax,
#endif
#if WEFT_WITH_RESHAPE
    [WEFT_OP_RESHAPE] = weft_reshape,
#endif
#if WEFT_WITH_RESIZE
    [WEFT_OP_RESIZE] = weft_resize,
#endif
};
