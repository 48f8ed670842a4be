/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state journal: two sectors, records appended, the valid one with the highest number holds.
 *
 * Whether a place is free is never read from flash: a torn write or an interrupted erase may look blank. Only places
 * after the last write in a sector that was erased since the last reset count as free, so the first record after a
 * reset erases the sector that does not hold the newest one.
 *
 * Every record is written twice, one after the other, because a torn write may read right today and not tomorrow.
 * If the second copy was begun, the first is complete and will be read for ever. A record behind which flash is still
 * blank was cut, nobody has acted on it, and the one before it holds. Where the second copy is begun but not valid,
 * boot writes the record anew before it acts on it, for that trace may fade.
 */
#include "update_internal.h"

#define STATE_MAGIC 0x5357u

static uint32_t place_size(const weft_update_t *u)
{
    return weft_up(WEFT_STATE_SIZE, u->cfg->hal->state.write);
}

static void put32(uint8_t *p, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> 8 * i);
    }
}

static void encode(const weft_journal_t *s, uint8_t *p)
{
    memset(p, 0, WEFT_STATE_SIZE);
    p[WEFT_STATE_MAGIC] = STATE_MAGIC & 0xffu;
    p[WEFT_STATE_MAGIC + 1] = STATE_MAGIC >> 8;
    p[WEFT_STATE_STATE] = s->state;
    p[WEFT_STATE_ACTIVE] = s->active;
    p[WEFT_STATE_TRIES] = s->tries;
    p[WEFT_STATE_REASON] = s->reason;
    put32(p + WEFT_STATE_SEQ, s->seq);
    put32(p + WEFT_STATE_FLOOR, s->floor);
    put32(p + WEFT_STATE_OFFSET, s->offset);
    put32(p + WEFT_STATE_SLOT_ERASES, s->slot_erases);
    put32(p + WEFT_STATE_STATE_ERASES, s->state_erases);
    memcpy(p + WEFT_STATE_ACTIVE_DIGEST, s->active_digest, sizeof s->active_digest);
    memcpy(p + WEFT_STATE_DIGEST, s->digest, sizeof s->digest);
    put32(p + WEFT_STATE_CRC, weft_crc32(p, WEFT_STATE_CRC, 0));
}

static bool decode(const uint8_t *p, weft_journal_t *s)
{
    if (weft_rd16(p + WEFT_STATE_MAGIC) != STATE_MAGIC ||
        weft_rd32(p + WEFT_STATE_CRC) != weft_crc32(p, WEFT_STATE_CRC, 0)) {
        return false;
    }
    s->state = p[WEFT_STATE_STATE];
    s->active = p[WEFT_STATE_ACTIVE];
    s->tries = p[WEFT_STATE_TRIES];
    s->reason = p[WEFT_STATE_REASON];
    s->seq = weft_rd32(p + WEFT_STATE_SEQ);
    s->floor = weft_rd32(p + WEFT_STATE_FLOOR);
    s->offset = weft_rd32(p + WEFT_STATE_OFFSET);
    s->slot_erases = weft_rd32(p + WEFT_STATE_SLOT_ERASES);
    s->state_erases = weft_rd32(p + WEFT_STATE_STATE_ERASES);
    memcpy(s->active_digest, p + WEFT_STATE_ACTIVE_DIGEST, sizeof s->active_digest);
    memcpy(s->digest, p + WEFT_STATE_DIGEST, sizeof s->digest);
    /* A later version of the core may know more: what this one does not know is no record. */
    return s->state <= WEFT_SLOT_OLD && (s->active <= 1 || s->active == WEFT_SLOT_NONE);
}

static void begin_unknown(weft_update_t *u)
{
    memset(&u->now, 0, sizeof u->now);
    u->now.active = WEFT_SLOT_NONE;
    u->known = 0;
    u->settled = 0;
    u->fresh = 0;
    u->sector = 0;
    u->place = 0;
}

static bool is_blank(const weft_update_t *u, const uint8_t *record)
{
    for (uint32_t i = 0; i < WEFT_STATE_SIZE; i++) {
        if (record[i] != u->cfg->hal->state.erased) {
            return false;
        }
    }
    return true;
}

/* Backwards, so that a place's successor is known, and of old records no more than the number is looked at. */
static void mount_sector(weft_update_t *u, uint8_t sector, bool *counts, uint32_t *last)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    uint8_t *record = u->cfg->buffer;
    uint32_t size = place_size(u), next_seq = 0;
    bool next_valid = false, next_begun = false;
    for (uint32_t place = hal->state.sector / size; place-- > 0;) {
        weft_journal_t found;
        uint32_t at = sector * hal->state.sector + place * size;
        bool begun = next_begun, old;
        next_begun = true;
        if (hal->read(hal->ctx, WEFT_AREA_STATE, at, record, WEFT_STATE_SIZE) != 0) {
            continue;
        }
        old = *counts && weft_rd32(record + WEFT_STATE_SEQ) < u->now.seq;
        if (old || !decode(record, &found)) {
            next_begun = !is_blank(u, record);
            continue;
        }
        bool pair = next_valid && next_seq == found.seq;
        next_valid = true;
        next_seq = found.seq;
        *last = found.seq > *last ? found.seq : *last;
        if (!u->known || ((pair || begun) && !*counts) || ((pair || begun) >= *counts && found.seq > u->now.seq)) {
            u->now = found;
            u->known = 1;
            u->settled = pair;
            u->sector = sector;
            *counts = pair || begun;
        } else if (found.seq == u->now.seq && pair) {
            u->settled = 1;
        }
    }
    weft_feed(u);
}

void weft_journal_mount(weft_update_t *u)
{
    bool counts = false;
    uint32_t last = 0;
    begin_unknown(u);
    mount_sector(u, 0, &counts, &last);
    mount_sector(u, 1, &counts, &last);
    u->now.seq = last;
}

/* Programs a place and reads it back. */
static int write_place(const weft_update_t *u, uint32_t sector, uint32_t place, const weft_journal_t *next)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    uint32_t size = place_size(u), at = sector * hal->state.sector + place * size;
    uint8_t *record = u->cfg->buffer;
    uint32_t check[WEFT_STATE_SIZE / 4u];
    encode(next, record);
    memset(record + WEFT_STATE_SIZE, hal->state.erased, size - WEFT_STATE_SIZE);
    if (hal->program(hal->ctx, WEFT_AREA_STATE, at, record, size) != 0 ||
        hal->read(hal->ctx, WEFT_AREA_STATE, at, check, sizeof check) != 0) {
        return WEFT_ERR_FLASH;
    }
    return memcmp(check, record, sizeof check) == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

/* Two copies from `place` on; places that fail are left behind. */
static bool write_copies(weft_update_t *u, uint8_t sector, uint32_t *place, const weft_journal_t *next)
{
    uint32_t places = u->cfg->hal->state.sector / place_size(u);
    unsigned copies = 0;
    if (*place + 2u > places) {
        return false;
    }
    while (copies < 2 && *place < places) {
        copies += write_place(u, sector, (*place)++, next) == WEFT_OK ? 1u : 0u;
    }
    if (copies < 2) {
        return false;
    }
    u->now = *next;
    u->known = u->fresh = u->settled = 1;
    u->sector = sector;
    u->place = *place;
    return true;
}

int weft_journal_append(weft_update_t *u, const weft_journal_t *next)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    weft_journal_t s = *next;
    /* A failed append may have left its number in flash: none is given twice. */
    u->now.seq++;
    s.seq = u->now.seq;
    s.slot_erases = u->now.slot_erases;
    s.state_erases = u->now.state_erases;
    if (u->fresh && write_copies(u, u->sector, &u->place, &s)) {
        return WEFT_OK;
    }
    /* The sector that holds the newest record stays as it is until the next one is written. */
    uint8_t sector = u->known ? (uint8_t)(1u - u->sector) : 0;
    u->fresh = 0;
    u->now.state_erases++;
    s.state_erases++;
    weft_feed(u);
    if (hal->erase(hal->ctx, WEFT_AREA_STATE, sector * hal->state.sector) != 0) {
        return WEFT_ERR_FLASH;
    }
    uint32_t place = 0;
    return write_copies(u, sector, &place, &s) ? WEFT_OK : WEFT_ERR_FLASH;
}
