/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flash of the host board: its three areas are files. As on a part, bytes become what they were erased to a sector at a
 * time, and whole write units are programmed once after that; anything else fails. What is read is a copy in RAM that
 * every erase and program is written through from: a file that somebody else changes is noticed at the next start.
 */
#ifndef WEFT_HOST_FLASH_H
#define WEFT_HOST_FLASH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "weft/weft_update.h"

#define HOST_FLASH_AREAS 3u

typedef struct {
    weft_flash_t geometry;
    uint8_t *bytes; /* geometry.size of them, 64-aligned */
    int file;
} host_area_t;

/* Whoever waits is served in turn: a plain mutex may go to the same thread again and again. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t left;
    uint32_t next, serving; /* tickets */
} host_bus_t;

typedef struct {
    host_area_t area[HOST_FLASH_AREAS]; /* WEFT_AREA_* */
    uint32_t erase_us;                  /* how long the erase of a sector takes */
    bool stalls;                        /* nothing can be read meanwhile, as on parts with one bank */
    host_bus_t bus;                     /* where it stalls: held by erases, and while a plan is read from its slot */
    uint32_t stall_us;                  /* the longest erase since the start, where it stalls */
} host_flash_t;

/* Opens an area's file, which other processes then cannot open here; one that is absent or short is erased there.
 * Returns 0, or -1 with errno set: EWOULDBLOCK where another board has the file. */
int host_flash_open(host_flash_t *flash, unsigned area, const char *path, const weft_flash_t *geometry);
void host_flash_close(host_flash_t *flash);

void host_bus_init(host_bus_t *bus);
void host_bus_enter(host_bus_t *bus);
void host_bus_leave(host_bus_t *bus);

/* weft_update_hal_t; ctx is the host_flash_t. */
int host_flash_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len);
int host_flash_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len);
int host_flash_erase(void *ctx, unsigned area, uint32_t offset);
const void *host_flash_mapped(void *ctx, unsigned area);

#endif
