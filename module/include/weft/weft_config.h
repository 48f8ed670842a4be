/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * @brief What a build of the engine contains. Set macros on the compiler's command line, or name a header of your own
 * in WEFT_CONFIG_FILE that defines them.
 *
 * Op set: all operators by default. With WEFT_OP_SET_CUSTOM defined, only those with WEFT_WITH_<OPCODE> set to 1 are in
 * the kernel table; the others drop out of the link, and weft_open() refuses a plan that needs one (WEFT_ERR_OPCODE).
 */
#ifndef WEFT_WEFT_CONFIG_H
#define WEFT_WEFT_CONFIG_H

#ifdef WEFT_CONFIG_FILE
#include WEFT_CONFIG_FILE
#endif

#ifdef WEFT_OP_SET_CUSTOM
#define WEFT_OPS_ALL 0 /**< 1: every operator is in the build */
#else
#define WEFT_OPS_ALL 1
#endif

#ifndef WEFT_WITH_CONV2D
#define WEFT_WITH_CONV2D WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_DWCONV2D
#define WEFT_WITH_DWCONV2D WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_FULLY_CONNECTED
#define WEFT_WITH_FULLY_CONNECTED WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_ADD
#define WEFT_WITH_ADD WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_SUB
#define WEFT_WITH_SUB WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_MUL
#define WEFT_WITH_MUL WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_CONCAT
#define WEFT_WITH_CONCAT WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_PAD
#define WEFT_WITH_PAD WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_AVGPOOL
#define WEFT_WITH_AVGPOOL WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_MAXPOOL
#define WEFT_WITH_MAXPOOL WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_REDUCE
#define WEFT_WITH_REDUCE WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_LUT
#define WEFT_WITH_LUT WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_SOFTMAX
#define WEFT_WITH_SOFTMAX WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_RESHAPE
#define WEFT_WITH_RESHAPE WEFT_OPS_ALL
#endif
#ifndef WEFT_WITH_RESIZE
#define WEFT_WITH_RESIZE WEFT_OPS_ALL
#endif

/**
 * Faster kernels, same bytes. Those of the core that is compiled for are the default where the compiler tells of it;
 * the folder has to be in the build. Set 0 for the reference kernels. If several are set, the first one here holds.
 *
 * 1: Cortex-M with Helium (M55, M85), from src/kernels_mve.
 */
#ifndef WEFT_KERNELS_MVE
#if defined(__ARM_FEATURE_MVE) && __ARM_ARCH_PROFILE == 'M'
#define WEFT_KERNELS_MVE 1
#else
#define WEFT_KERNELS_MVE 0
#endif
#endif

/** 1: Cortex-M with the DSP extension (M4, M7, M33), from src/kernels_cortexm. */
#ifndef WEFT_KERNELS_DSP
#if defined(__ARM_FEATURE_DSP) && __ARM_ARCH_PROFILE == 'M' && !WEFT_KERNELS_MVE
#define WEFT_KERNELS_DSP 1
#else
#define WEFT_KERNELS_DSP 0
#endif
#endif

/**
 * 0: inner loops without assembly; those of the DSP kernels need that where a register is taken from them
 * (-fno-omit-frame-pointer, -ffixed-r9, -msingle-pic-base).
 */
#ifndef WEFT_KERNELS_ASM
#define WEFT_KERNELS_ASM 1
#endif

/** 1: cores without SIMD (M0+, M3, RISC-V, hosts), from src/kernels_portable; never by default. */
#ifndef WEFT_KERNELS_PORTABLE
#define WEFT_KERNELS_PORTABLE 0
#endif

#endif
