/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the update core: the parts that its files share. docs/update.md argues for the order of every step. */
#ifndef WEFT_UPDATE_INTERNAL_H
#define WEFT_UPDATE_INTERNAL_H

#include "../verify.h"
#include "weft/weft_update.h"

/* Where a plan's header is read from: RAM before anything is stored, a slot afterwards. */
typedef struct {
    const uint8_t *head; /* NULL: the slot */
    unsigned slot;
} weft_source_t;

/* What to check of a plan beyond its structure. */
enum {
    WEFT_CHECK_SIGNATURE = 1,
    WEFT_CHECK_POLICY = 2, /* vendor, class, version floor */
    WEFT_CHECK_HASHES = 4, /* of a slot's sections, and that padding is zero */
    WEFT_CHECK_ALL = 7
};

uint32_t weft_crc32(const void *data, size_t len, uint32_t crc);

static inline uint32_t weft_up(uint32_t value, uint32_t step)
{
    return (value + step - 1u) / step * step;
}

static inline void weft_feed(const weft_update_t *u)
{
    if (u->cfg->hal->feed != NULL) {
        u->cfg->hal->feed(u->cfg->hal->ctx);
    }
}

/* The slot that updates go to. */
static inline unsigned weft_other(const weft_update_t *u)
{
    return u->now.active == 0 ? 1u : 0u;
}

/* Read the newest record. */
void weft_journal_mount(weft_update_t *u);
/* Make `next` the newest record (its seq and erase counters are filled in); on WEFT_ERR_FLASH u->now is as it was. */
int weft_journal_append(weft_update_t *u, const weft_journal_t *next);

/* Header, section table and, as `checks` says, more; `digest` gets SHA-256 of header and table. */
int weft_update_check(weft_update_t *u, const weft_source_t *source, unsigned checks, uint8_t digest[32],
                      weft_error_t *err);
/* All of weft_update_check(), that the digest starts with `expected` (NULL: any), and weft_open(). */
int weft_update_verify(weft_update_t *u, unsigned slot, unsigned checks, const uint8_t *expected, uint8_t digest[32],
                       weft_plan_t *plan, weft_error_t *err);
/* Read plan bytes. */
int weft_source_read(const weft_update_t *u, const weft_source_t *source, uint32_t offset, void *dst, uint32_t len);

/* Erase a sector of the other slot; refuses the active slot and the one that runs. */
int weft_slot_erase(weft_update_t *u, unsigned slot, uint32_t offset);

#endif
