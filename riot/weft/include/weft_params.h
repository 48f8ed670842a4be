/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WEFT_PARAMS_H
#define WEFT_PARAMS_H

/**
 * @ingroup     weft
 * @{
 *
 * @file
 * @brief       Where plans are stored, and who may sign them. A board or an application may bring its own file of this
 *              name; each macro may also be set alone.
 *
 * Slot a, slot b behind it, and the state lie in one MTD device: the file of native, or the flash
 * that the application reserved by `SLOT_AUX_LEN`. Without either, slots are read from memory at
 * `CONFIG_WEFT_ROM_ADDR`: somebody else writes them, and the state is kept in RAM.
 */

#include "board.h"
#include "kernel_defines.h"
#include "mtd.h"

#if IS_USED(MODULE_MTD_FLASHPAGE)
#include "mtd_flashpage.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** @brief Bytes of a slot: a multiple of the device's sector. */
#ifndef CONFIG_WEFT_SLOT_SIZE
#define CONFIG_WEFT_SLOT_SIZE 65536
#endif
/** @brief Offset of slot a in the device. */
#ifndef CONFIG_WEFT_MTD_OFFSET
#define CONFIG_WEFT_MTD_OFFSET 0
#endif
/** @brief Offset of the state's two sectors in the device. */
#ifndef CONFIG_WEFT_STATE_OFFSET
#define CONFIG_WEFT_STATE_OFFSET (CONFIG_WEFT_MTD_OFFSET + 2 * CONFIG_WEFT_SLOT_SIZE)
#endif

#if !defined(WEFT_PARAM_DEV) && IS_USED(MODULE_MTD_NATIVE)
#define WEFT_PARAM_DEV mtd_dev_get(0)
#elif !defined(WEFT_PARAM_DEV) && defined(CONFIG_SLOT_AUX_LEN) && CONFIG_SLOT_AUX_LEN > 0
#define WEFT_PARAM_DEV mtd_aux
#define WEFT_PARAM_ADDRESS ((uintptr_t)CPU_FLASH_BASE + CONFIG_SLOT_AUX_OFFSET + CONFIG_WEFT_MTD_OFFSET)
#define WEFT_PARAM_WRITE_SIZE FLASHPAGE_WRITE_BLOCK_SIZE
#elif !defined(WEFT_PARAM_DEV) && defined(CONFIG_WEFT_ROM_ADDR)
#define WEFT_PARAM_ADDRESS ((uintptr_t)CONFIG_WEFT_ROM_ADDR)
#elif !defined(WEFT_PARAM_DEV)
#error "Weft has no storage on this board. Reserve flash with SLOT_AUX_LEN and `FEATURES_REQUIRED += \
periph_flashpage_aux`, name memory with CONFIG_WEFT_ROM_ADDR, or bring a weft_params.h: see docs/riot.md."
#endif

/** @brief Device of slots and state; undefined: memory that this program does not write. */
#ifdef DOXYGEN
#define WEFT_PARAM_DEV
#endif
/** @brief Address where the processor reads slot a; slot b follows. 0: it cannot, plans are copied to RAM. */
#ifndef WEFT_PARAM_ADDRESS
#define WEFT_PARAM_ADDRESS 0
#endif
/** @brief Bytes that the device programs at once, where its MTD driver understates them (it then reads, and writes
 * twice) */
#ifndef WEFT_PARAM_WRITE_SIZE
#define WEFT_PARAM_WRITE_SIZE 1
#endif
/** @brief File with the arrays that the next two name, in quotes; undefined: they are declared otherwise. */
#ifdef DOXYGEN
#define WEFT_PARAM_KEY_FILE
#endif
/** @brief Public keys (65 bytes, X9.62 uncompressed) whose signatures count; NULL: none. */
#ifndef WEFT_PARAM_KEY_0
#define WEFT_PARAM_KEY_0 NULL
#endif
#ifndef WEFT_PARAM_KEY_1
#define WEFT_PARAM_KEY_1 NULL
#endif
/** @brief Vendor and class id (16 bytes) that plans must name; NULL: any. */
#ifndef WEFT_PARAM_VENDOR
#define WEFT_PARAM_VENDOR NULL
#endif
#ifndef WEFT_PARAM_CLASS
#define WEFT_PARAM_CLASS NULL
#endif

#ifdef __cplusplus
}
#endif

/** @} */
#endif /* WEFT_PARAMS_H */
