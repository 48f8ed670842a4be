/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Zephyr module: slots and the choice between them. */
#ifndef WEFT_ZEPHYR_H
#define WEFT_ZEPHYR_H

#include "weft/weft_service.h"
#include "weft/weft_update.h"

/* Flash areas WEFT_AREA_* as the update core wants them. Its crypto members are not set. */
const weft_update_hal_t *weft_slots_hal(void);

/*
 * The bytes of a slot's plan: in place, or copied into the one RAM buffer, whose former plan is
 * void then. Returns WEFT_OK, WEFT_ERR_NO_PLAN for an empty slot, WEFT_ERR_SLOT, WEFT_ERR_FLASH.
 */
int weft_slots_bytes(unsigned int slot, const uint8_t **bytes, size_t *len);

/* The slot that was stored last, else CONFIG's first one; and store it: 0, or non-zero if it cannot
 * be. */
unsigned int weft_state_load(void);
int weft_state_store(unsigned int slot);

#endif
