/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the Zephyr module: slots and the choice between them. */
#ifndef WEFT_ZEPHYR_H
#define WEFT_ZEPHYR_H

#include "weft/weft_service.h"
#include "weft/weft_update.h"

/* Bytes of RAM for a plan whose slot cannot be read in place, or 0; a plan is not longer than that.
 */
uint32_t weft_slots_copy_size(void);

/* Flash areas WEFT_AREA_* as the update core wants them. Its crypto members are not set. */
const weft_update_hal_t *weft_slots_hal(void);

/* A slot's RAM copy, or NULL where it is read in place. Without updates both slots share one. */
void *weft_slots_ram(unsigned int slot);

/* Whether a slot's beginning is erased, or WEFT_ERR_FLASH. */
int weft_slots_empty(unsigned int slot);

/*
 * The bytes of a slot's plan: in place, or copied into weft_slots_ram(), whose former plan is void
 * then. Returns WEFT_OK, WEFT_ERR_NO_PLAN for an empty slot, WEFT_ERR_SLOT, WEFT_ERR_FLASH.
 */
int weft_slots_bytes(unsigned int slot, const uint8_t **bytes, size_t *len);

/* Without CONFIG_WEFT_UPDATE: the slot that was chosen last, else the first one; and keep a choice:
 * 0, or non-zero if it cannot be kept. */
unsigned int weft_state_load(void);
int weft_state_store(unsigned int slot);

/*
 * With CONFIG_WEFT_UPDATE: the update core, behind a lock of its own, which is taken after the
 * service's. It decides what runs; `plan` is open on WEFT_OK.
 */
int weft_updates_boot(void *arena, size_t arena_len, const weft_limits_t *limits, weft_plan_t *plan,
		      weft_boot_t *boot);
/* A run of the open plan went well; never waits. */
void weft_updates_healthy(void);
/* Keep the core from the slots' RAM copies. */
void weft_updates_lock(void);
void weft_updates_unlock(void);
/* The open plan is another one now: from the service's work queue, once the running inference has
 * ended. */
void weft_service_reopen(void);

#endif
