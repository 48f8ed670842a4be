/* SPDX-License-Identifier: Apache-2.0 */
/* A device with simulated flash that tests drive from Python (device.py): the update core with its surroundings. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include "sha256.h"

enum { BUFFER = 512 };

struct device {
    weft_update_t u;
    weft_update_config_t cfg;
    weft_update_hal_t hal;
    flash_t flash;
    sha256_t sha;
    verify_fn verify;
    uint8_t key[2][65], vendor[16], device[16];
    uint32_t verifications, feeds, budget, asked, seconds, steps, step_limit;
    uint32_t calls, fail_at, fail_count; /* calls of flash and hash that fail */
    uint32_t cut_in;                     /* erases and programs until power is cut; 0: it is not */
    bool dead;                           /* power is off: nothing reaches flash until the next init */
    bool hangs;                          /* the self-test never ends by itself */
    jmp_buf watchdog;
    uint32_t stuck; /* records of the journal that will read back with a wrong bit */
    weft_plan_t plan;
    _Alignas(8) uint8_t buffer[BUFFER];
    _Alignas(64) uint8_t arena[1u << 16];
    uint8_t external[1u << 12];
};

static int fails(device_t *d)
{
    uint32_t call = d->calls++;
    return d->dead || (call >= d->fail_at && call - d->fail_at < d->fail_count);
}

static int hash_init(void *ctx)
{
    sha256_init(&((device_t *)ctx)->sha);
    return fails(ctx);
}

static int hash_update(void *ctx, const void *data, uint32_t len)
{
    sha256_update(&((device_t *)ctx)->sha, data, len);
    return fails(ctx);
}

static int hash_finish(void *ctx, uint8_t hash[32])
{
    sha256_finish(&((device_t *)ctx)->sha, hash);
    return fails(ctx);
}

static int verify(void *ctx, const uint8_t *key, const uint8_t *hash, const uint8_t *signature)
{
    device_t *d = ctx;
    d->verifications++;
    return d->verify(key, hash, signature);
}

static int read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len)
{
    return fails(ctx) ? -1 : flash_read(&((device_t *)ctx)->flash, area, offset, dst, len);
}

/* Whether power is cut in the operation that is about to begin. */
static bool cut_now(device_t *d)
{
    d->flash.cut_now = d->cut_in == 1;
    d->cut_in -= d->cut_in > 0;
    return d->flash.cut_now;
}

static int operate(device_t *d, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    return src != NULL ? flash_program(&d->flash, area, offset, src, len) : flash_erase(&d->flash, area, offset);
}

/* Without a place to jump to, the core goes on without power: it cannot change anything any more. */
static int die(device_t *d, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    jmp_buf off;
    d->flash.power = &off;
    if (setjmp(off) == 0) {
        (void)operate(d, area, offset, src, len);
    }
    d->flash.power = NULL;
    d->dead = true;
    return -1;
}

static int change(device_t *d, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    if (fails(d)) {
        return -1;
    }
    if (cut_now(d) && d->flash.power == NULL) {
        return die(d, area, offset, src, len);
    }
    int r = operate(d, area, offset, src, len);
    if (d->stuck > 0 && area == WEFT_AREA_STATE && src != NULL) {
        d->stuck--;
        d->flash.area[area].bytes[offset] ^= 1u;
    }
    return r;
}

static int program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    return change(ctx, area, offset, src, len);
}

static int erase(void *ctx, unsigned area, uint32_t offset)
{
    return change(ctx, area, offset, NULL, 0);
}

static const void *mapped_at(void *ctx, unsigned area)
{
    return flash_mapped(&((device_t *)ctx)->flash, area);
}

static void feed(void *ctx)
{
    ((device_t *)ctx)->feeds++;
}

static int may_erase(void *ctx, uint32_t sectors)
{
    device_t *d = ctx;
    d->asked = sectors;
    return sectors > d->budget;
}

static uint32_t seconds(void *ctx)
{
    return ((device_t *)ctx)->seconds;
}

static int step(void *ctx)
{
    device_t *d = ctx;
    if (d->hangs) {
        longjmp(d->watchdog, 1); /* nobody feeds it here */
    }
    return ++d->steps > d->step_limit;
}

device_t *device_new(uint32_t slot, uint32_t sector, uint32_t write, uint8_t erased, int mapped, verify_fn check)
{
    device_t *d = aligned_alloc(64, (sizeof *d + 63u) / 64u * 64u);
    weft_flash_t slots = {.size = slot, .sector = sector, .write = write, .erased = erased}, state = slots;
    state.size = 2u * sector;
    if (d == NULL) {
        return NULL;
    }
    memset(d, 0, sizeof *d);
    if (flash_new(&d->flash, &slots, &state, true) != 0) {
        return NULL;
    }
    d->verify = check;
    d->budget = d->step_limit = d->fail_at = UINT32_MAX;
    d->hal.ctx = d;
    d->hal.slot = slots;
    d->hal.state = state;
    d->hal.read = read;
    d->hal.program = program;
    d->hal.erase = erase;
    d->hal.mapped = mapped != 0 ? mapped_at : NULL;
    d->hal.sha256_init = hash_init;
    d->hal.sha256_update = hash_update;
    d->hal.sha256_finish = hash_finish;
    d->hal.verify_p256 = verify;
    d->hal.feed = feed;
    d->hal.may_erase = may_erase;
    d->hal.seconds = seconds;
    d->cfg.hal = &d->hal;
    d->cfg.buffer = d->buffer;
    d->cfg.buffer_len = BUFFER;
    d->cfg.arena = d->arena;
    d->cfg.external = d->external;
    d->cfg.external_len = sizeof d->external;
    d->cfg.ram[0] = mapped != 0 ? NULL : aligned_alloc(64, slot);
    d->cfg.ram[1] = mapped != 0 ? NULL : aligned_alloc(64, slot);
    for (unsigned i = 0; i < 16; i++) {
        d->vendor[i] = (uint8_t)i;
        d->device[i] = (uint8_t)(16u + i);
    }
    d->cfg.vendor = d->vendor;
    d->cfg.device = d->device;
    d->cfg.step = step;
    d->cfg.step_ctx = d;
    return d;
}

void device_free(device_t *d)
{
    flash_free(&d->flash);
    free(d->cfg.ram[0]);
    free(d->cfg.ram[1]);
    free(d);
}

void device_key(device_t *d, unsigned place, const uint8_t *key)
{
    d->cfg.key[place] = NULL;
    if (key != NULL) {
        memcpy(d->key[place], key, sizeof d->key[place]);
        d->cfg.key[place] = d->key[place];
    }
}

void device_set(device_t *d, uint32_t arena, uint32_t confirm_after, uint32_t idle, uint32_t flags)
{
    d->cfg.arena_len = arena;
    d->cfg.confirm_after = confirm_after;
    d->cfg.idle_seconds = idle;
    d->cfg.flags = flags;
}

void device_limits(device_t *d, uint32_t budget, uint32_t step_limit)
{
    d->budget = budget;
    d->step_limit = step_limit;
}

void device_pass(device_t *d, uint32_t time)
{
    d->seconds += time;
}

void device_fail(device_t *d, uint32_t call, uint32_t count)
{
    d->calls = 0;
    d->fail_count = count;
    d->fail_at = call;
}

void device_cut(device_t *d, uint32_t operations, cut_t kind, jmp_buf *power)
{
    d->cut_in = operations;
    d->flash.cut = kind;
    d->flash.power = power;
}

void device_stick(device_t *d, uint32_t records)
{
    d->stuck = records;
}

void device_buffer(device_t *d, uint32_t len)
{
    d->cfg.buffer_len = len;
}

void device_bare(device_t *d)
{
    d->hal.feed = NULL;
    d->hal.may_erase = NULL;
    d->hal.seconds = NULL;
    d->cfg.vendor = d->cfg.device = NULL;
    d->cfg.step = NULL;
    d->cfg.external = NULL;
    free(d->cfg.ram[0]);
    free(d->cfg.ram[1]);
    d->cfg.ram[0] = d->cfg.ram[1] = NULL;
}

void device_pretend(device_t *d, unsigned running, uint32_t last_token)
{
    d->u.running = (uint8_t)running;
    d->u.last_token = last_token;
}

/* What weft_update_init() says of one mistake in the configuration; WEFT_ERR_NO_PLAN: there is no such mistake. */
int device_misconfigure(device_t *d, unsigned how)
{
    weft_update_hal_t hal = d->hal, good = d->hal;
    weft_update_config_t cfg = d->cfg;
    weft_update_t u;
    unsigned n = 0;
    cfg.hal = &hal;
#define MISTAKE(what)                                                                                                  \
    if (n++ == how) {                                                                                                  \
        what;                                                                                                          \
        return weft_update_init(&u, &cfg);                                                                             \
    }
#define IN_FLASH(area)                                                                                                 \
    MISTAKE(hal.area.write = 0)                                                                                        \
    MISTAKE(hal.area.write = 12)                                                                                       \
    MISTAKE(hal.area.write = 1024)                                                                                     \
    MISTAKE(hal.area.write = 512; cfg.buffer_len = 256)                                                                \
    MISTAKE(hal.area.sector = 0)                                                                                       \
    MISTAKE(hal.area.sector = good.area.write + 4)                                                                     \
    MISTAKE(hal.area.write = 4; hal.area.sector = 1020; hal.area.size = 8160)                                          \
    MISTAKE(hal.area.size += 8)                                                                                        \
    MISTAKE(hal.area.size = 1u << 31)
    MISTAKE(cfg.hal = NULL)
    MISTAKE(hal.read = NULL)
    MISTAKE(hal.program = NULL)
    MISTAKE(hal.erase = NULL)
    MISTAKE(hal.sha256_init = NULL)
    MISTAKE(hal.sha256_update = NULL)
    MISTAKE(hal.sha256_finish = NULL)
    MISTAKE(hal.verify_p256 = NULL)
    IN_FLASH(slot)
    IN_FLASH(state)
    MISTAKE(hal.slot.sector = hal.slot.size = 512)
    MISTAKE(hal.state.size = hal.state.sector)
    MISTAKE(hal.state.sector = 128)
    MISTAKE(cfg.buffer = NULL)
    MISTAKE(cfg.buffer = d->buffer + 4)
    MISTAKE(cfg.buffer_len = 56)
    MISTAKE(cfg.arena = NULL)
    MISTAKE(cfg.arena_len = 0)
    MISTAKE(cfg.arena = d->arena + 8)
#undef MISTAKE
#undef IN_FLASH
    return WEFT_ERR_NO_PLAN;
}

flash_t *device_flash(device_t *d)
{
    return &d->flash;
}

weft_plan_t *device_plan(device_t *d)
{
    return &d->plan;
}

weft_update_t *device_update(device_t *d)
{
    return &d->u;
}

int device_init(device_t *d)
{
    d->dead = false;
    return weft_update_init(&d->u, &d->cfg);
}

void device_hang(device_t *d, int hangs)
{
    d->hangs = hangs != 0;
}

int device_boot(device_t *d, weft_boot_t *boot)
{
    d->steps = 0;
    if (setjmp(d->watchdog) != 0) {
        memset(boot, 0, sizeof *boot);
        boot->slot = WEFT_SLOT_NONE;
        return WEFT_ERR_ABORTED; /* a reset */
    }
    return weft_update_boot(&d->u, &d->plan, boot);
}

static int zeros(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    (void)ctx;
    (void)input;
    (void)row;
    memset(dst, 0, nbytes);
    return 0;
}

/* One inference of the plan that was booted, on zeros. */
int device_run(device_t *d, uint8_t *output, uint32_t len)
{
    weft_io_t io = {0};
    io.input_fn = zeros;
    int r = weft_run(&d->plan, d->arena, d->cfg.arena_len, &io);
    memcpy(output, d->arena + weft_output_offset(&d->plan, 0), len);
    return r;
}

uint8_t *device_bytes(device_t *d, unsigned area)
{
    return d->flash.area[area].bytes;
}

uint32_t device_count(device_t *d, unsigned what)
{
    const uint32_t counts[] = {d->flash.erases, d->flash.programs, d->verifications, d->feeds, d->asked, 0,
                               d->calls,        d->flash.cuts};
    return what == 5 ? d->flash.broken != NULL : counts[what];
}
