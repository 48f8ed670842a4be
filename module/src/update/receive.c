/* SPDX-License-Identifier: Apache-2.0 */
/* From a transport into the other slot: begin, write, copy, finish. */
#include "update_internal.h"

/* The active slot is copied in pieces of so many bytes, so that a request of a transport never waits for long. */
#define COPY_STEP 4096u
/* Resume marks per transfer where the application does not say: what is sent again after a cut against journal wear. */
#define MARKS 8u

/* Every erase and program of a slot goes through these two: what runs, or is confirmed, cannot be written. */
static bool writable(const weft_update_t *u, unsigned slot)
{
    return slot != u->now.active && slot != u->running;
}

int weft_slot_erase(weft_update_t *u, unsigned slot, uint32_t offset)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    if (!writable(u, slot)) {
        return WEFT_ERR_STATE;
    }
    u->now.slot_erases++;
    weft_feed(u);
    return hal->erase(hal->ctx, slot, offset) == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

static int slot_program(weft_update_t *u, unsigned slot, uint32_t offset, const void *data, uint32_t len)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    if (!writable(u, slot)) {
        return WEFT_ERR_STATE;
    }
    weft_feed(u);
    return hal->program(hal->ctx, slot, offset, data, len) == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

/* A record in which the other slot is in `state`; with RECEIVING, `offset` bytes of the session's plan are complete. */
static int note(weft_update_t *u, uint8_t state, uint32_t offset)
{
    weft_journal_t next = u->now;
    next.state = state;
    next.offset = offset;
    next.tries = 0;
    next.reason = 0;
    if (state == WEFT_SLOT_EMPTY) {
        memset(next.digest, 0, sizeof next.digest);
    } else {
        memcpy(next.digest, u->digest, sizeof next.digest);
    }
    return weft_journal_append(u, &next);
}

/* ---------------------------------------------------------------- the stream into the slot */

/* Programs what the buffer holds. Every sector is erased right before its first byte, whatever it seems to hold. */
static int flush(weft_update_t *u)
{
    const weft_flash_t *flash = &u->cfg->hal->slot;
    uint8_t *buffer = u->cfg->buffer;
    uint32_t len = weft_up(u->fill, flash->write);
    if (u->fill == 0) {
        return WEFT_OK;
    }
    memset(buffer + u->fill, flash->erased, len - u->fill);
    int r = u->flushed % flash->sector == 0 ? weft_slot_erase(u, weft_other(u), u->flushed) : WEFT_OK;
    r = r != WEFT_OK ? r : slot_program(u, weft_other(u), u->flushed, buffer, len);
    if (r != WEFT_OK) {
        return r;
    }
    u->flushed += u->fill;
    u->fill = 0;
    if (u->flushed % flash->sector == 0 && u->flushed < u->total && u->flushed - u->marked >= u->mark) {
        u->marked = u->flushed;
        r = note(u, WEFT_SLOT_RECEIVING, u->flushed);
    }
    return r;
}

/* Room in the buffer up to its end or the sector's. */
static uint32_t room(const weft_update_t *u)
{
    uint32_t sector = u->cfg->hal->slot.sector, left = sector - u->flushed % sector;
    return (left < u->cfg->buffer_len ? left : u->cfg->buffer_len) - u->fill;
}

/* Takes bytes from RAM or, with `data` NULL, from the active slot. */
static int stream(weft_update_t *u, const uint8_t *data, uint32_t from, uint32_t len)
{
    const weft_source_t active = {NULL, u->now.active};
    int r = WEFT_OK;
    while (r == WEFT_OK && len > 0) {
        uint32_t n = room(u);
        n = n < len ? n : len;
        uint8_t *dst = (uint8_t *)u->cfg->buffer + u->fill;
        if (data != NULL) {
            memcpy(dst, data, n);
            data += n;
        } else {
            r = weft_source_read(u, &active, from, dst, n);
            from += n;
        }
        if (r == WEFT_OK) {
            u->fill += n;
            u->received += n;
            len -= n;
            r = room(u) == 0 ? flush(u) : WEFT_OK;
        }
    }
    return r;
}

/* ---------------------------------------------------------------- sections of the active plan */

/* Notes which sections of the new plan the active one has, by length and hash. Hashing at the end proves the copy. */
static void find_copies(weft_update_t *u, const uint8_t *fresh, uint32_t count)
{
    const weft_source_t active = {NULL, u->now.active};
    uint32_t head[WEFT_HEADER_SIZE / 4u], have[WEFT_SECTION_SIZE / 4u];
    const uint8_t *old = (const uint8_t *)head, *a = fresh + WEFT_HEADER_SIZE, *b = (const uint8_t *)have;
    uint32_t size = u->cfg->hal->slot.size;
    if (u->now.active > 1 || weft_source_read(u, &active, 0, head, sizeof head) != WEFT_OK) {
        return;
    }
    for (uint32_t i = 0; i < count; i++, a += WEFT_SECTION_SIZE) {
        uint32_t length = weft_rd32(a + WEFT_SECTION_LENGTH), start = weft_rd32(a + WEFT_SECTION_OFFSET);
        for (uint32_t k = 0; k < old[WEFT_HEADER_SECTION_COUNT] && k < 16; k++) {
            if (weft_source_read(u, &active, WEFT_HEADER_SIZE + k * WEFT_SECTION_SIZE, have, sizeof have) != WEFT_OK) {
                return;
            }
            uint32_t from = weft_rd32(b + WEFT_SECTION_OFFSET);
            if (length > 0 && weft_rd32(b + WEFT_SECTION_LENGTH) == length && from <= size && length <= size - from &&
                memcmp(a + WEFT_SECTION_SHA256, b + WEFT_SECTION_SHA256, 32) == 0 &&
                u->copies < sizeof u->copy / sizeof u->copy[0]) {
                u->copy[u->copies].start = start;
                u->copy[u->copies].end = start + length;
                u->copy[u->copies].from = from;
                u->copies++;
                break;
            }
        }
    }
}

/* The copied section that `offset` lies in, or -1; `limit` is lowered to the start of the next one. */
static int copy_at(const weft_update_t *u, uint32_t offset, uint32_t *limit)
{
    for (unsigned i = 0; i < u->copies; i++) {
        if (offset >= u->copy[i].start && offset < u->copy[i].end) {
            return (int)i;
        }
        if (u->copy[i].start > offset && u->copy[i].start < *limit) {
            *limit = u->copy[i].start;
        }
    }
    return -1;
}

/* ---------------------------------------------------------------- sessions */

static void report(const weft_update_t *u, weft_transfer_t *transfer)
{
    uint32_t limit = u->total;
    int i = copy_at(u, u->received, &limit);
    memset(transfer, 0, sizeof *transfer);
    transfer->token = u->token;
    transfer->next = u->received;
    transfer->total = u->total;
    transfer->until = i >= 0 ? u->copy[i].end : limit;
    transfer->copying = i >= 0;
    transfer->state = u->now.state;
    transfer->slot = (uint8_t)weft_other(u);
}

static void touch(weft_update_t *u)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    u->touched = hal->seconds != NULL ? hal->seconds(hal->ctx) : 0;
}

static bool idle(const weft_update_t *u)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    return hal->seconds != NULL && u->cfg->idle_seconds != 0 &&
           hal->seconds(hal->ctx) - u->touched >= u->cfg->idle_seconds;
}

static void open_session(weft_update_t *u)
{
    u->last_token += u->last_token == UINT32_MAX ? 2u : 1u;
    u->token = u->last_token;
    touch(u);
}

int weft_update_begin(weft_update_t *u, const void *head, uint32_t len, uint32_t flags, weft_transfer_t *transfer,
                      weft_error_t *err)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    const weft_source_t source = {head, WEFT_SLOT_NONE};
    const uint8_t *p = head;
    uint8_t digest[32];
    weft_error_t ignored;
    err = err != NULL ? err : &ignored;
    memset(transfer, 0, sizeof *transfer);
    if (head == NULL || (uintptr_t)head % 4u != 0 || len < WEFT_UPDATE_HEAD_LEN(0) ||
        len != WEFT_UPDATE_HEAD_LEN((uint32_t)p[WEFT_HEADER_SECTION_COUNT])) {
        return weft_fail(err, WEFT_ERR_ARG, WEFT_NONE, len);
    }
    int r = weft_update_check(u, &source, WEFT_CHECK_SIGNATURE | WEFT_CHECK_POLICY, digest, err);
    if (r != WEFT_OK) {
        return r;
    }
    uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN), at = 0;
    bool same = memcmp(digest, u->now.digest, sizeof u->now.digest) == 0;
    if (u->now.active <= 1 && memcmp(digest, u->now.active_digest, sizeof u->now.active_digest) == 0) {
        transfer->active = 1;
        transfer->slot = u->now.active;
        transfer->next = transfer->until = transfer->total = total;
        return WEFT_OK;
    }
    if (same && (u->now.state == WEFT_SLOT_STAGED || u->now.state == WEFT_SLOT_TRIAL)) {
        transfer->state = u->now.state;
        transfer->slot = (uint8_t)weft_other(u);
        transfer->next = transfer->until = transfer->total = total;
        return WEFT_OK;
    }
    if (same && u->now.state == WEFT_SLOT_REVERTED) {
        return weft_fail(err, WEFT_ERR_TRIED, WEFT_NONE, 0);
    }
    if (u->now.state == WEFT_SLOT_TRIAL || !writable(u, weft_other(u))) {
        return weft_fail(err, WEFT_ERR_STATE, WEFT_NONE, 0);
    }
    if (u->token != 0 && memcmp(digest, u->digest, sizeof digest) == 0) {
        open_session(u);
        report(u, transfer);
        return WEFT_OK;
    }
    if (u->token != 0 && !idle(u)) {
        return weft_fail(err, WEFT_ERR_BUSY, WEFT_NONE, 0);
    }
    u->token = 0;
    if (same && u->now.state == WEFT_SLOT_RECEIVING && u->now.offset % hal->slot.sector == 0 && u->now.offset < total) {
        at = u->now.offset;
    }
    if (hal->may_erase != NULL &&
        hal->may_erase(hal->ctx, weft_up(total - at, hal->slot.sector) / hal->slot.sector) != 0) {
        return weft_fail(err, WEFT_ERR_BUDGET, WEFT_NONE, 0);
    }
    memcpy(u->digest, digest, sizeof digest);
    /*
     * Whatever the journal says of this slot must be unsaid before its first sector is erased; after a reset also where
     * it says just this, for a record that was cut might read as valid later on.
     */
    if (!same || u->now.state != WEFT_SLOT_RECEIVING || !u->fresh) {
        r = note(u, WEFT_SLOT_RECEIVING, at);
        if (r != WEFT_OK) {
            return weft_fail(err, r, WEFT_NONE, 0);
        }
    }
    u->total = total;
    u->received = u->flushed = u->marked = at;
    u->fill = 0;
    u->mark = u->cfg->mark_bytes != 0 ? u->cfg->mark_bytes : total / MARKS;
    u->copies = 0;
    if ((flags & WEFT_UPDATE_COPY) != 0) {
        find_copies(u, p, p[WEFT_HEADER_SECTION_COUNT]);
    }
    if (at < len) {
        r = stream(u, p + at, 0, len - at);
        if (r != WEFT_OK) {
            return weft_fail(err, r, WEFT_NONE, u->received);
        }
    }
    open_session(u);
    report(u, transfer);
    return WEFT_OK;
}

int weft_update_write(weft_update_t *u, uint32_t token, uint32_t offset, const void *data, uint32_t len,
                      weft_transfer_t *transfer)
{
    memset(transfer, 0, sizeof *transfer);
    if (token == 0 || token != u->token) {
        return WEFT_ERR_TOKEN;
    }
    if (data == NULL && len > 0) {
        return WEFT_ERR_ARG;
    }
    touch(u);
    uint32_t limit = u->total;
    int i = copy_at(u, u->received, &limit), r = WEFT_OK;
    if (i >= 0) {
        uint32_t n = u->copy[i].end - u->received;
        n = n < COPY_STEP ? n : COPY_STEP;
        r = stream(u, NULL, u->copy[i].from + (u->received - u->copy[i].start), n);
    } else if (offset > u->received || len > u->total - offset) {
        r = WEFT_ERR_OFFSET;
    } else if (offset + len > u->received) {
        /* Bytes that came before are skipped, those of a section that will be copied are not needed. */
        uint32_t skip = u->received - offset, n = len - skip;
        n = n < limit - u->received ? n : limit - u->received;
        r = stream(u, (const uint8_t *)data + skip, 0, n);
    }
    if (r != WEFT_OK && r != WEFT_ERR_OFFSET) {
        u->token = 0;
    }
    report(u, transfer);
    return r;
}

int weft_update_finish(weft_update_t *u, uint32_t token, weft_error_t *err)
{
    weft_error_t ignored;
    weft_plan_t plan;
    uint8_t digest[32];
    err = err != NULL ? err : &ignored;
    if (token == 0 || token != u->token) {
        return weft_fail(err, WEFT_ERR_TOKEN, WEFT_NONE, 0);
    }
    touch(u);
    if (u->received != u->total) {
        return weft_fail(err, WEFT_ERR_TRUNCATED, WEFT_NONE, u->received);
    }
    u->token = 0;
    int r = flush(u);
    if (r != WEFT_OK) {
        return weft_fail(err, r, WEFT_NONE, u->flushed);
    }
    r = weft_update_verify(u, weft_other(u), WEFT_CHECK_ALL, u->digest, digest, &plan, err);
    /* Bytes that are wrong once are not resumed: they would be wrong again. */
    int noted = note(u, r == WEFT_OK ? WEFT_SLOT_STAGED : WEFT_SLOT_EMPTY, 0);
    return r != WEFT_OK ? r : noted != WEFT_OK ? weft_fail(err, noted, WEFT_NONE, 0) : WEFT_OK;
}

int weft_update_abort(weft_update_t *u, uint32_t token)
{
    if (token == 0 || token != u->token) {
        return WEFT_ERR_TOKEN;
    }
    u->token = 0;
    return WEFT_OK;
}

int weft_update_erase(weft_update_t *u)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    unsigned slot = weft_other(u);
    if (u->token != 0 && !idle(u)) {
        return WEFT_ERR_BUSY;
    }
    if (u->now.state == WEFT_SLOT_TRIAL || !writable(u, slot)) {
        return WEFT_ERR_STATE;
    }
    if (hal->may_erase != NULL && hal->may_erase(hal->ctx, hal->slot.size / hal->slot.sector) != 0) {
        return WEFT_ERR_BUDGET;
    }
    u->token = 0;
    int r = note(u, WEFT_SLOT_EMPTY, 0);
    for (uint32_t at = 0; r == WEFT_OK && at < hal->slot.size; at += hal->slot.sector) {
        r = weft_slot_erase(u, slot, at);
    }
    return r;
}
