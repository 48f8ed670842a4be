/* SPDX-License-Identifier: Apache-2.0 */
/* What runs: configuration, boot, trial, confirm, revert. */
#include "update_internal.h"

static bool good_flash(const weft_flash_t *flash, uint32_t buffer_len)
{
    return flash->write != 0 && (flash->write & (flash->write - 1u)) == 0 && flash->write <= 512 &&
           buffer_len % flash->write == 0 && flash->sector != 0 && flash->sector % flash->write == 0 &&
           flash->sector % 8u == 0 && flash->size % flash->sector == 0 && flash->size <= INT32_MAX;
}

int weft_update_init(weft_update_t *u, const weft_update_config_t *cfg)
{
    memset(u, 0, sizeof *u);
    u->cfg = cfg;
    u->running = WEFT_SLOT_NONE;
    const weft_update_hal_t *hal = cfg->hal;
    if (hal == NULL || hal->read == NULL || hal->program == NULL || hal->erase == NULL || hal->sha256_init == NULL ||
        hal->sha256_update == NULL || hal->sha256_finish == NULL || hal->verify_p256 == NULL) {
        return WEFT_ERR_ARG;
    }
    if (!good_flash(&hal->slot, cfg->buffer_len) || !good_flash(&hal->state, cfg->buffer_len) ||
        hal->slot.size < WEFT_UPDATE_HEAD_MAX || hal->state.size < 2u * hal->state.sector ||
        hal->state.sector < 4u * weft_up(WEFT_STATE_SIZE, hal->state.write)) {
        return WEFT_ERR_ARG;
    }
    if (cfg->buffer == NULL || (uintptr_t)cfg->buffer % 8u != 0 || cfg->buffer_len < WEFT_STATE_SIZE ||
        cfg->arena == NULL || cfg->arena_len == 0 || (uintptr_t)cfg->arena % 64u != 0) {
        return WEFT_ERR_ARG;
    }
    weft_journal_mount(u);
    return WEFT_OK;
}

static int set_state(weft_update_t *u, uint8_t state, int reason)
{
    weft_journal_t next = u->now;
    next.state = state;
    next.reason = (uint8_t)-reason;
    return weft_journal_append(u, &next);
}

/* The trial's turn: counted first, so that a plan that hangs or crashes anything below has had it. */
static int run_trial(weft_update_t *u, weft_plan_t *plan, weft_boot_t *boot)
{
    unsigned slot = weft_other(u);
    uint8_t digest[32];
    int r = WEFT_ERR_TRIED;
    if (u->now.tries < WEFT_UPDATE_TRIES) {
        weft_journal_t next = u->now;
        next.tries++;
        r = weft_journal_append(u, &next);
        if (r != WEFT_OK) {
            return r; /* a run that is not counted must not be */
        }
        r = weft_update_verify(u, slot, WEFT_CHECK_SIGNATURE | WEFT_CHECK_HASHES, u->now.digest, digest, plan,
                               &boot->where);
        r = r != WEFT_OK ? r : weft_update_selftest(u->cfg, plan);
    }
    if (r != WEFT_OK) {
        /* If this cannot be written, the tries still end at WEFT_UPDATE_TRIES. */
        (void)set_state(u, WEFT_SLOT_REVERTED, r);
    }
    return r;
}

/* The plan before the active one takes its place, so that updates can go to the slot that failed. */
static int fall_back(weft_update_t *u, weft_plan_t *plan, weft_boot_t *boot)
{
    uint8_t slot = (uint8_t)weft_other(u), digest[32];
    int r = weft_update_verify(u, slot, WEFT_CHECK_SIGNATURE | WEFT_CHECK_HASHES, u->now.digest, digest, plan,
                               &boot->where);
    if (r == WEFT_OK) {
        weft_journal_t next = u->now;
        next.active = slot;
        memcpy(next.active_digest, u->now.digest, sizeof next.active_digest);
        memset(next.digest, 0, sizeof next.digest);
        next.state = WEFT_SLOT_EMPTY;
        /* Not written: the same is decided at the next boot. */
        (void)weft_journal_append(u, &next);
    }
    return r;
}

int weft_update_boot(weft_update_t *u, weft_plan_t *plan, weft_boot_t *boot)
{
    uint8_t digest[32];
    unsigned skip = (u->cfg->flags & WEFT_UPDATE_BOOT_SKIP_HASHES) != 0 ? WEFT_CHECK_HASHES : 0u;
    skip |= (u->cfg->flags & WEFT_UPDATE_BOOT_SKIP_SIGNATURE) != 0 ? WEFT_CHECK_SIGNATURE : 0u;
    memset(boot, 0, sizeof *boot);
    boot->slot = WEFT_SLOT_NONE;
    u->token = 0;
    u->running = WEFT_SLOT_NONE;
    u->healthy = 0;
    if (u->known && !u->settled) {
        /* Not written: what follows counts on this boot only, as any record that was cut. */
        weft_journal_t same = u->now;
        (void)weft_journal_append(u, &same);
    }
    if (u->now.state == WEFT_SLOT_TRIAL) {
        boot->trial_error = run_trial(u, plan, boot);
        if (boot->trial_error == WEFT_OK) {
            boot->trial = 1;
            boot->tries = u->now.tries;
            u->running = boot->slot = (uint8_t)weft_other(u);
            return WEFT_OK;
        }
    }
    if (u->now.active > 1) {
        return WEFT_ERR_NO_PLAN;
    }
    int r = weft_update_verify(u, u->now.active, (WEFT_CHECK_SIGNATURE | WEFT_CHECK_HASHES) & ~skip,
                               u->now.active_digest, digest, plan, &boot->where);
    boot->active_error = r;
    if (r == WEFT_OK) {
        u->running = boot->slot = u->now.active;
    } else if (u->now.state == WEFT_SLOT_OLD) {
        uint8_t old = (uint8_t)weft_other(u);
        r = fall_back(u, plan, boot);
        if (r == WEFT_OK) {
            u->running = boot->slot = old;
        }
    }
    return r;
}

int weft_update_adopt(weft_update_t *u, unsigned slot)
{
    uint32_t version;
    uint8_t digest[32];
    weft_plan_t plan;
    weft_error_t err;
    const weft_source_t source = {NULL, slot};
    if (slot > 1) {
        return WEFT_ERR_ARG;
    }
    if (u->known) {
        return WEFT_ERR_STATE;
    }
    int r = weft_update_verify(u, slot, WEFT_CHECK_ALL, NULL, digest, &plan, &err);
    r = r != WEFT_OK ? r : weft_source_read(u, &source, WEFT_HEADER_PLAN_VERSION, &version, sizeof version);
    if (r != WEFT_OK) {
        return r;
    }
    weft_journal_t next = u->now;
    next.active = (uint8_t)slot;
    next.floor = weft_rd32((const uint8_t *)&version);
    memcpy(next.active_digest, digest, sizeof next.active_digest);
    return weft_journal_append(u, &next);
}

int weft_update_test(weft_update_t *u)
{
    if (u->now.state == WEFT_SLOT_TRIAL) {
        return WEFT_OK;
    }
    return u->now.state == WEFT_SLOT_STAGED ? set_state(u, WEFT_SLOT_TRIAL, WEFT_OK) : WEFT_ERR_STATE;
}

int weft_update_confirm(weft_update_t *u)
{
    uint8_t slot = (uint8_t)weft_other(u);
    const weft_source_t source = {NULL, slot};
    uint32_t version;
    if (u->now.state != WEFT_SLOT_TRIAL || u->running != slot) {
        return WEFT_ERR_STATE;
    }
    int r = weft_source_read(u, &source, WEFT_HEADER_PLAN_VERSION, &version, sizeof version);
    if (r != WEFT_OK) {
        return r;
    }
    version = weft_rd32((const uint8_t *)&version);
    weft_journal_t next = u->now;
    next.state = u->now.active <= 1 ? WEFT_SLOT_OLD : WEFT_SLOT_EMPTY;
    next.tries = 0;
    next.active = slot;
    next.floor = version > u->now.floor ? version : u->now.floor;
    memcpy(next.active_digest, u->now.digest, sizeof next.active_digest);
    memcpy(next.digest, u->now.active_digest, sizeof next.digest);
    return weft_journal_append(u, &next);
}

int weft_update_healthy(weft_update_t *u)
{
    if (u->now.state != WEFT_SLOT_TRIAL || u->running != weft_other(u) || u->cfg->confirm_after == 0) {
        return WEFT_OK;
    }
    u->healthy++;
    return u->healthy >= u->cfg->confirm_after ? weft_update_confirm(u) : WEFT_OK;
}

int weft_update_revert(weft_update_t *u)
{
    if (u->now.state != WEFT_SLOT_STAGED && u->now.state != WEFT_SLOT_TRIAL) {
        return WEFT_ERR_STATE;
    }
    return set_state(u, WEFT_SLOT_REVERTED, WEFT_OK);
}

void weft_update_status(const weft_update_t *u, weft_update_status_t *status)
{
    memset(status, 0, sizeof *status);
    status->active = u->now.active;
    status->running = u->running;
    status->state = u->now.state;
    status->tries = u->now.tries;
    status->reason = -(int)u->now.reason;
    status->floor = u->now.floor;
    status->received = u->token != 0 ? u->received : 0;
    status->total = u->token != 0 ? u->total : 0;
    status->resume = u->now.state == WEFT_SLOT_RECEIVING ? u->now.offset : 0;
    status->slot_erases = u->now.slot_erases;
    status->state_erases = u->now.state_erases;
    status->records = u->now.seq;
    status->stall_usec = u->cfg->hal->slot.stall_usec;
    memcpy(status->active_digest, u->now.active_digest, sizeof status->active_digest);
    memcpy(status->digest, u->now.digest, sizeof status->digest);
}
