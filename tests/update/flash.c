/* SPDX-License-Identifier: Apache-2.0 */
#include "flash.h"

#include <stdlib.h>
#include <string.h>

uint32_t flash_random(flash_t *f)
{
    uint32_t x = f->random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    f->random = x;
    return x;
}

void flash_broken(flash_t *f, const char *rule)
{
    if (f->broken == NULL) {
        f->broken = rule;
    }
}

static uint32_t units(const area_t *a)
{
    return a->size / a->geometry.write;
}

int flash_new(flash_t *f, const weft_flash_t *slot, const weft_flash_t *state, bool write_once)
{
    memset(f, 0, sizeof *f);
    f->random = 1;
    for (unsigned i = 0; i < AREAS; i++) {
        area_t *a = &f->area[i];
        a->geometry = i == WEFT_AREA_STATE ? *state : *slot;
        a->size = a->geometry.size;
        a->write_once = write_once;
        a->bytes = aligned_alloc(64, (a->size + 63u) / 64u * 64u);
        a->units = calloc(units(a), 1);
        a->erases = calloc(a->size / a->geometry.sector, sizeof *a->erases);
        if (a->bytes == NULL || a->units == NULL || a->erases == NULL) {
            return -1;
        }
        memset(a->bytes, a->geometry.erased, a->size);
        memset(a->units, UNIT_CLEAN, units(a));
    }
    return 0;
}

void flash_free(flash_t *f)
{
    for (unsigned i = 0; i < AREAS; i++) {
        free(f->area[i].bytes);
        free(f->area[i].units);
        free(f->area[i].erases);
    }
}

void flash_copy(flash_t *to, const flash_t *from)
{
    for (unsigned i = 0; i < AREAS; i++) {
        area_t *a = &to->area[i];
        const area_t *b = &from->area[i];
        memcpy(a->bytes, b->bytes, a->size);
        memcpy(a->units, b->units, units(a));
        memcpy(a->erases, b->erases, a->size / a->geometry.sector * sizeof *a->erases);
        a->special = b->special;
    }
}

void flash_scramble(flash_t *f)
{
    for (unsigned i = 0; i < AREAS; i++) {
        area_t *a = &f->area[i];
        for (uint32_t k = 0; k < a->size; k++) {
            a->bytes[k] = (uint8_t)(flash_random(f) >> 11);
        }
        memset(a->units, 0, units(a));
        a->special = 0;
    }
}

static void power_off(flash_t *f)
{
    f->cut_now = false;
    f->cuts++;
    longjmp(*f->power, 1);
}

void flash_tick(flash_t *f)
{
    if (f->cut_now) {
        power_off(f);
    }
}

static void mark(area_t *a, uint32_t unit, uint8_t flags)
{
    bool was = (a->units[unit] & (UNIT_FAULT | UNIT_WEAK)) != 0, is = (flags & (UNIT_FAULT | UNIT_WEAK)) != 0;
    a->special += (uint32_t)is - (uint32_t)was;
    a->units[unit] = flags;
}

static void scribble(flash_t *f, uint8_t *p, uint32_t len)
{
    while (len-- > 0) {
        *p++ = (uint8_t)(flash_random(f) >> 7);
    }
}

int flash_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len)
{
    flash_t *f = ctx;
    area_t *a = &f->area[area];
    if (offset > a->size || len > a->size - offset) {
        flash_broken(f, "reads outside the area");
        return -1;
    }
    memcpy(dst, a->bytes + offset, len);
    if (a->special == 0 || len == 0) {
        return 0;
    }
    uint32_t write = a->geometry.write;
    for (uint32_t unit = offset / write; unit <= (offset + len - 1u) / write; unit++) {
        if ((a->units[unit] & UNIT_FAULT) != 0) {
            return -1;
        }
        if ((a->units[unit] & UNIT_WEAK) != 0) {
            uint32_t luck = flash_random(f) >> 8, first = unit * write;
            switch (luck & 3u) {
            case 0:
                return -1;
            case 1:
                luck = first + (luck >> 2) % write;
                if (luck >= offset && luck < offset + len) {
                    ((uint8_t *)dst)[luck - offset] ^= 16u;
                }
                break;
            case 2: /* not at all programmed */
                for (uint32_t at = first; at < first + write; at++) {
                    if (at >= offset && at < offset + len) {
                        ((uint8_t *)dst)[at - offset] = a->geometry.erased;
                    }
                }
                break;
            default:
                break;
            }
        }
    }
    return 0;
}

/* The unit that power is cut in: the first and the last more often than others. */
static uint32_t torn_at(flash_t *f, uint32_t count)
{
    uint32_t luck = flash_random(f) >> 8;
    return (luck & 3u) == 0 ? 0 : (luck & 3u) == 1 ? count - 1u : (luck >> 2) % count;
}

/* A unit in which programming was interrupted. */
static void tear(flash_t *f, area_t *a, uint32_t unit, const uint8_t *src)
{
    uint8_t *p = a->bytes + unit * a->geometry.write;
    if (f->cut == CUT_TORN) {
        mark(a, unit, 0);
        for (uint32_t i = 0; i < a->geometry.write; i++) {
            uint8_t mixed = (uint8_t)(flash_random(f) >> 9);
            p[i] = (uint8_t)((p[i] & mixed) | (src[i] & ~mixed));
        }
    } else if (f->cut == CUT_WEAK) {
        mark(a, unit, UNIT_WEAK);
        memcpy(p, src, a->geometry.write);
    } else {
        mark(a, unit, f->cut == CUT_FAULT ? UNIT_FAULT : 0);
    }
}

int flash_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    flash_t *f = ctx;
    area_t *a = &f->area[area];
    uint32_t write = a->geometry.write, first = offset / write, count = len / write, done = count;
    if (offset % write != 0 || len % write != 0 || offset > a->size || len > a->size - offset) {
        flash_broken(f, "programs outside the area or not by units");
        return -1;
    }
    if ((f->locked >> area & 1u) != 0) {
        flash_broken(f, "programs the slot that runs or is confirmed");
    }
    f->programs++;
    bool cut = f->cut_now;
    if (cut) {
        done = f->cut == CUT_BEFORE ? 0 : f->cut == CUT_AFTER ? count : torn_at(f, count);
    }
    for (uint32_t i = 0; i < done; i++) {
        if ((a->units[first + i] & UNIT_CLEAN) == 0) {
            flash_broken(f, "programs a unit that was not erased");
            if (a->write_once) {
                mark(a, first + i, UNIT_FAULT);
                return -1;
            }
        }
        mark(a, first + i, 0);
        memcpy(a->bytes + (first + i) * write, (const uint8_t *)src + i * write, write);
    }
    if (cut) {
        if (f->cut != CUT_BEFORE && f->cut != CUT_AFTER) {
            tear(f, a, first + done, (const uint8_t *)src + done * write);
        }
        power_off(f);
    }
    return 0;
}

int flash_erase(void *ctx, unsigned area, uint32_t offset)
{
    flash_t *f = ctx;
    area_t *a = &f->area[area];
    uint32_t sector = a->geometry.sector, write = a->geometry.write;
    if (offset % sector != 0 || offset >= a->size) {
        flash_broken(f, "erases outside the area or not by sectors");
        return -1;
    }
    if ((f->locked >> area & 1u) != 0) {
        flash_broken(f, "erases the slot that runs or is confirmed");
    }
    f->erases++;
    a->erases[offset / sector]++;
    bool cut = f->cut_now;
    if (cut && f->cut == CUT_BEFORE) {
        power_off(f);
    }
    bool whole = !cut || f->cut == CUT_AFTER;
    if (whole || f->cut == CUT_BLANK) {
        memset(a->bytes + offset, a->geometry.erased, sector);
    } else if (f->cut == CUT_TORN) {
        scribble(f, a->bytes + offset, sector);
    } else if (f->cut == CUT_FAULT && (flash_random(f) & 1u) != 0) {
        scribble(f, a->bytes + offset, sector);
    }
    for (uint32_t unit = offset / write; unit < (offset + sector) / write; unit++) {
        uint8_t flags = whole ? UNIT_CLEAN : 0;
        if (cut && f->cut == CUT_FAULT && (flash_random(f) & 1u) != 0) {
            flags = UNIT_FAULT;
        } else if (cut && f->cut == CUT_WEAK) {
            flags = UNIT_WEAK;
        }
        mark(a, unit, flags);
    }
    if (cut) {
        power_off(f);
    }
    return 0;
}

const void *flash_mapped(void *ctx, unsigned area)
{
    flash_t *f = ctx;
    return f->area[area].bytes;
}
