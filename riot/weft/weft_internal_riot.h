/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the RIOT module: storage, and what decides which slot runs. */
#ifndef WEFT_INTERNAL_RIOT_H
#define WEFT_INTERNAL_RIOT_H

#include <stdbool.h>

#include "kernel_defines.h"
#include "weft/weft_service.h"
#include "weft/weft_update.h"

/* A plan that came past the update core may run. */
#define TRUST_SLOTS (IS_ACTIVE(CONFIG_WEFT_ALLOW_UNSIGNED) && !IS_ACTIVE(CONFIG_WEFT_UPDATES_ONLY))

/*
 * Flash as the update core wants it, with SHA-256 and, in signed builds, ECDSA. Prepares the devices once; on failure
 * NULL, and `why` says what is wrong in words.
 */
const weft_update_hal_t *weft_storage(const char **why);

/* RAM for plans that cannot be read in place, by slot; NULL where they can. */
void *weft_storage_ram(unsigned slot);

/* The slot's header reads all ones or all zeros. */
bool weft_storage_empty(const weft_update_hal_t *hal, unsigned slot);

/*
 * Which plan runs. `boot` is as of weft_update_boot(), `asked` the slot whose error is returned.
 * Both leave `plan` open on WEFT_OK. Selecting a slot that cannot run leaves everything as it was, but for `plan`.
 */
int weft_activation_boot(weft_update_t *update, weft_plan_t *plan, weft_boot_t *boot, unsigned *asked);
int weft_activation_select(weft_update_t *update, unsigned slot, weft_plan_t *plan, weft_error_t *error);

#endif
