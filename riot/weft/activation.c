/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which slot's plan runs: the update core's journal says it.
 *
 * Plans also come by debug probe or as a file, past the core. Where that is allowed, such a plan is
 * taken into service: the journal is erased and begun anew with it. With an empty journal, slot a is tried before b.
 */
#include "update/update_internal.h"
#include "weft_internal_riot.h"

static int forget(weft_update_t *update)
{
    const weft_update_config_t *cfg = update->cfg;
    const weft_update_hal_t *hal = cfg->hal;
    for (uint32_t sector = 0; sector < 2; sector++) {
        if (hal->erase(hal->ctx, WEFT_AREA_STATE, sector * hal->state.sector) != 0) {
            return WEFT_ERR_FLASH;
        }
    }
    return weft_update_init(update, cfg);
}

/* The journal names a plan, and in its slot stands another one. */
static bool is_other_plan(int r, const weft_boot_t *boot)
{
    return r == WEFT_ERR_HASH && boot->where.record == WEFT_NONE && boot->where.offset == 0;
}

int weft_activation_boot(weft_update_t *update, weft_plan_t *plan, weft_boot_t *boot, unsigned *asked)
{
    const weft_update_hal_t *hal = update->cfg->hal;
    weft_update_status_t status;
    int r = weft_update_boot(update, plan, boot);
    weft_update_status(update, &status);
    *asked = r == WEFT_OK ? boot->slot : status.active != WEFT_SLOT_NONE ? status.active : 0u;
    if (TRUST_SLOTS && is_other_plan(r, boot)) {
        return weft_activation_select(update, *asked, plan, &boot->where) == WEFT_OK
                   ? weft_update_boot(update, plan, boot)
                   : boot->where.code;
    }
    if (r != WEFT_ERR_NO_PLAN || status.records != 0) {
        return r;
    }
    for (unsigned slot = 0; slot < WEFT_SLOT_COUNT; slot++) {
        uint8_t digest[32];
        weft_error_t where;
        r = weft_update_verify(update, slot, WEFT_CHECK_ALL, NULL, digest, plan, &where);
        r = r != WEFT_OK ? r : weft_update_adopt(update, slot);
        if (r == WEFT_OK) {
            *asked = slot;
            return weft_update_boot(update, plan, boot);
        }
        /* Of two bad slots, tell of the one that holds something. */
        if (slot == 0 || (weft_storage_empty(hal, 0) && !weft_storage_empty(hal, 1))) {
            boot->where = where;
            *asked = slot;
        }
    }
    return boot->where.code;
}

int weft_activation_select(weft_update_t *update, unsigned slot, weft_plan_t *plan, weft_error_t *error)
{
    uint8_t digest[32];
    weft_boot_t boot;
    if (!TRUST_SLOTS) {
        return weft_fail(error, WEFT_ERR_STATE, WEFT_NONE, 0);
    }
    /* Versions may go down here: the floor goes with the journal. */
    uint32_t floor = update->now.floor;
    update->now.floor = 0;
    int r = weft_update_verify(update, slot, WEFT_CHECK_ALL, NULL, digest, plan, error);
    update->now.floor = floor;
    if (r == WEFT_OK) {
        r = forget(update);
        r = r != WEFT_OK ? r : weft_update_adopt(update, slot);
        r = r != WEFT_OK ? r : weft_update_boot(update, plan, &boot);
        return r != WEFT_OK ? weft_fail(error, r, WEFT_NONE, 0) : WEFT_OK;
    }
    return r;
}
