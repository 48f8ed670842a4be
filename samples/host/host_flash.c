/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE

#include "host_flash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static bool transfer(int file, uint8_t *bytes, size_t size, size_t at, bool out)
{
    while (at < size) {
        ssize_t n =
            out ? pwrite(file, bytes + at, size - at, (off_t)at) : pread(file, bytes + at, size - at, (off_t)at);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n == 0) {
            break;
        }
        at += n > 0 ? (size_t)n : 0u;
    }
    return true;
}

int host_flash_open(host_flash_t *flash, unsigned area, const char *path, const weft_flash_t *geometry)
{
    host_area_t *a = &flash->area[area];
    void *memory;
    a->geometry = *geometry;
    a->file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (a->file < 0 || flock(a->file, LOCK_EX | LOCK_NB) != 0) {
        return -1;
    }
    errno = posix_memalign(&memory, 64, geometry->size);
    if (errno != 0) {
        return -1;
    }
    a->bytes = memory;
    memset(a->bytes, geometry->erased, geometry->size);
    off_t have = lseek(a->file, 0, SEEK_END);
    if (have < 0 || !transfer(a->file, a->bytes, geometry->size, 0, false)) {
        return -1;
    }
    return transfer(a->file, a->bytes, geometry->size, (size_t)have, true) ? 0 : -1;
}

void host_flash_close(host_flash_t *flash)
{
    for (unsigned i = 0; i < HOST_FLASH_AREAS; i++) {
        close(flash->area[i].file);
        free(flash->area[i].bytes);
    }
}

/* The area, if the range lies inside. */
static host_area_t *inside(host_flash_t *flash, unsigned area, uint32_t offset, uint32_t len)
{
    host_area_t *a = area < HOST_FLASH_AREAS ? &flash->area[area] : NULL;
    return a != NULL && offset <= a->geometry.size && len <= a->geometry.size - offset ? a : NULL;
}

int host_flash_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len)
{
    const host_area_t *a = inside(ctx, area, offset, len);
    if (a == NULL) {
        return -1;
    }
    memcpy(dst, a->bytes + offset, len);
    return 0;
}

/* Write unit by write unit: a process that is killed leaves some of them, as a part that loses power does. */
int host_flash_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    host_area_t *a = inside(ctx, area, offset, len);
    const uint8_t *from = src;
    if (a == NULL || offset % a->geometry.write != 0 || len % a->geometry.write != 0) {
        return -1;
    }
    for (uint32_t at = offset; at < offset + len; at++) {
        if (a->bytes[at] != a->geometry.erased) {
            return -1;
        }
    }
    for (uint32_t done = 0; done < len; done += a->geometry.write) {
        uint32_t at = offset + done;
        memcpy(a->bytes + at, from + done, a->geometry.write);
        if (!transfer(a->file, a->bytes, at + a->geometry.write, at, true)) {
            return -1;
        }
    }
    return 0;
}

/* In eight steps, for the same reason. */
static int erase(host_flash_t *flash, unsigned area, uint32_t offset)
{
    enum { STEPS = 8 };
    host_area_t *a = inside(flash, area, offset, 1);
    const struct timespec busy = {.tv_sec = flash->erase_us / STEPS / 1000000u,
                                  .tv_nsec = flash->erase_us / STEPS % 1000000u * 1000};
    if (a == NULL || offset % a->geometry.sector != 0) {
        return -1;
    }
    for (unsigned step = 0; step < STEPS; step++) {
        uint32_t begin = offset + a->geometry.sector / STEPS * step;
        uint32_t end = step + 1u < STEPS ? begin + a->geometry.sector / STEPS : offset + a->geometry.sector;
        if (flash->erase_us > 0) {
            nanosleep(&busy, NULL);
        }
        memset(a->bytes + begin, a->geometry.erased, end - begin);
        if (!transfer(a->file, a->bytes, end, begin, true)) {
            return -1;
        }
    }
    return 0;
}

void host_bus_init(host_bus_t *bus)
{
    pthread_mutex_init(&bus->lock, NULL);
    pthread_cond_init(&bus->left, NULL);
    bus->next = bus->serving = 0;
}

void host_bus_enter(host_bus_t *bus)
{
    pthread_mutex_lock(&bus->lock);
    uint32_t ticket = bus->next++;
    while (bus->serving != ticket) {
        pthread_cond_wait(&bus->left, &bus->lock);
    }
    pthread_mutex_unlock(&bus->lock);
}

void host_bus_leave(host_bus_t *bus)
{
    pthread_mutex_lock(&bus->lock);
    bus->serving++;
    pthread_cond_broadcast(&bus->left);
    pthread_mutex_unlock(&bus->lock);
}

static uint64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

int host_flash_erase(void *ctx, unsigned area, uint32_t offset)
{
    host_flash_t *flash = ctx;
    if (!flash->stalls) {
        return erase(flash, area, offset);
    }
    host_bus_enter(&flash->bus);
    uint64_t begun = microseconds();
    int r = erase(flash, area, offset);
    uint64_t took = microseconds() - begun;
    host_bus_leave(&flash->bus);
    flash->stall_us = took > flash->stall_us ? (uint32_t)took : flash->stall_us;
    return r;
}

const void *host_flash_mapped(void *ctx, unsigned area)
{
    return area < HOST_FLASH_AREAS ? ((host_flash_t *)ctx)->area[area].bytes : NULL;
}
