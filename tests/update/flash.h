/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated flash for tests of the update core. Every erase and program is an operation at which power can be cut, in
 * any of the ways that flash is known to take it. Rules that real parts enforce or punish are checked here: units are
 * programmed once after a complete erase; whole units, whole sectors.
 */
#ifndef TEST_FLASH_H
#define TEST_FLASH_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "weft/weft_update.h"

enum { AREAS = 3 };

/* How power is cut at an operation. */
typedef enum {
    CUT_BEFORE, /* nothing happened */
    CUT_AFTER,  /* all of it happened */
    CUT_TORN,   /* program: some units, then one of random bits. erase: random bits everywhere */
    CUT_BLANK,  /* program: some units, then one that is weak but looks untouched. erase: looks blank, and is weak */
    CUT_WEAK,   /* program: some units, then one that reads right now and then. erase: the same of the old bytes */
    CUT_FAULT,  /* program: some units, then one whose reading fails. erase: units whose reading fails, or random */
    CUT_KINDS
} cut_t;

/* What is known of a write unit beyond its bytes. */
enum { UNIT_CLEAN = 1, UNIT_FAULT = 2, UNIT_WEAK = 4 };

typedef struct {
    weft_flash_t geometry;
    bool write_once; /* programming a unit that is not erased is an error of the part, not silent */
    uint32_t size;
    uint8_t *bytes;
    uint8_t *units;   /* UNIT_* by write unit */
    uint32_t *erases; /* by sector */
    uint32_t special; /* units that are FAULT or WEAK: 0 makes reads fast */
} area_t;

typedef struct flash {
    area_t area[AREAS];
    uint32_t random;
    uint32_t erases, programs; /* since flash_new() */
    unsigned cuts;             /* made so far */
    bool cut_now;              /* at the next operation, */
    cut_t cut;                 /* in this way */
    jmp_buf *power;            /* where the cut goes */
    const char *broken;        /* first rule that the core broke */
    unsigned locked;           /* bit mask of slots that must not be written: what runs, what is confirmed */
} flash_t;

int flash_new(flash_t *f, const weft_flash_t *slot, const weft_flash_t *state, bool write_once);
void flash_free(flash_t *f);
/* Bytes, units and erase counters of `from`, which has the same geometry. */
void flash_copy(flash_t *to, const flash_t *from);
/* All bytes random, no unit clean: a part of unknown past. */
void flash_scramble(flash_t *f);
uint32_t flash_random(flash_t *f);
/* An operation that is not one of flash's, such as a run; power may be cut at it. */
void flash_tick(flash_t *f);
void flash_broken(flash_t *f, const char *rule);

int flash_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len);
int flash_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len);
int flash_erase(void *ctx, unsigned area, uint32_t offset);
const void *flash_mapped(void *ctx, unsigned area);

#endif
