/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../update/sha256.h"
#include "../plan_bytes.h"

enum { SLOT = 8192, ARENA = 4096, FIRST_PLAN = 80, KEY_LEN = 65, MAX_SECTIONS = 16 };

world_t world;

void world_broken(const char *rule)
{
    fprintf(stderr, "FAILED: %s\n", rule);
    abort();
}

/* ---------------------------------------------------------------- the toy signature */

static const uint8_t key[KEY_LEN] = {4, 'f', 'u', 'z', 'z'};

static void hash(const uint8_t *data, uint32_t len, uint8_t out[32])
{
    sha256_t sha;
    sha256_init(&sha);
    sha256_update(&sha, data, len);
    sha256_finish(&sha, out);
}

static int verify(const uint8_t *public, const uint8_t *digest, const uint8_t *signature)
{
    if (memcmp(public, key, KEY_LEN) != 0) {
        return -1;
    }
    for (unsigned i = 0; i < 32; i++) {
        if (signature[i] != digest[i] || signature[32 + i] != (uint8_t)~digest[i]) {
            return -1;
        }
    }
    return 0;
}

static uint32_t table_end(const uint8_t *plan)
{
    uint32_t count = plan[WEFT_HEADER_SECTION_COUNT];
    return WEFT_HEADER_SIZE + (count < MAX_SECTIONS ? count : MAX_SECTIONS) * WEFT_SECTION_SIZE;
}

uint32_t world_head_len(unsigned plan)
{
    return table_end(world.plan[plan].bytes) + WEFT_SIGNATURE_LEN;
}

void world_seal(unsigned which)
{
    uint8_t *plan = world.plan[which].bytes, id[32];
    uint32_t end = table_end(plan);
    for (uint32_t at = WEFT_HEADER_SIZE; at < end; at += WEFT_SECTION_SIZE) {
        uint32_t offset = get(plan + at + WEFT_SECTION_OFFSET, 4), length = get(plan + at + WEFT_SECTION_LENGTH, 4);
        if (offset <= PLAN_MAX && length <= PLAN_MAX - offset) {
            hash(plan + offset, length, plan + at + WEFT_SECTION_SHA256);
        }
    }
    uint8_t *record = plan + end;
    memset(record, 0, WEFT_SIGNATURE_LEN);
    record[WEFT_SIGNATURE_ALGORITHM] = 1;
    hash(key, KEY_LEN, id);
    memcpy(record + WEFT_SIGNATURE_KEY_ID, id, 4);
    hash(plan, end, record + WEFT_SIGNATURE_VALUE);
    for (unsigned i = 0; i < 32; i++) {
        record[WEFT_SIGNATURE_VALUE + 32 + i] = (uint8_t)~record[WEFT_SIGNATURE_VALUE + i];
    }
}

/* Signed, and every byte as signed or zero: by this file's own reading of the format. */
static bool authentic(const uint8_t *plan, uint8_t digest[32])
{
    uint32_t end = table_end(plan), total = get(plan + WEFT_HEADER_TOTAL_LEN, 4), covered = end + WEFT_SIGNATURE_LEN;
    hash(plan, end, digest);
    if (plan[WEFT_HEADER_SECTION_COUNT] > MAX_SECTIONS || total > SLOT ||
        verify(key, digest, plan + end + WEFT_SIGNATURE_VALUE) != 0) {
        return false;
    }
    for (uint32_t at = WEFT_HEADER_SIZE; at < end; at += WEFT_SECTION_SIZE) {
        uint32_t offset = get(plan + at + WEFT_SECTION_OFFSET, 4), length = get(plan + at + WEFT_SECTION_LENGTH, 4);
        uint8_t found[32];
        if (offset != covered || offset > total || length > total - offset) {
            return false;
        }
        hash(plan + offset, length, found);
        if (memcmp(found, plan + at + WEFT_SECTION_SHA256, 32) != 0) {
            return false;
        }
        for (covered = offset + length; covered % 8u != 0; covered++) {
            if (covered >= total || plan[covered] != 0) {
                return false;
            }
        }
    }
    return covered == total;
}

/* ---------------------------------------------------------------- what must be true */

int __real_weft_run(const weft_plan_t *plan, void *arena, size_t len, const weft_io_t *io);
int __wrap_weft_run(const weft_plan_t *plan, void *arena, size_t len, const weft_io_t *io);

int __wrap_weft_run(const weft_plan_t *plan, void *arena, size_t len, const weft_io_t *io)
{
    uint8_t digest[32];
    if (!authentic(plan->bytes, digest)) {
        world_broken("runs a plan that nobody signed");
    }
    if (get(plan->bytes + WEFT_HEADER_PLAN_VERSION, 4) < world.floor && !world.rough &&
        memcmp(digest, world.digest, sizeof world.digest) != 0) {
        world_broken("tries a plan below the floor");
    }
    world.runs += world.booting;
    if (world.runs > WEFT_UPDATE_TRIES && !world.rough) {
        world_broken("runs an unconfirmed plan more than three times");
    }
    return __real_weft_run(plan, arena, len, io);
}

void world_boot(void)
{
    weft_boot_t boot;
    uint8_t digest[32];
    world.booting = true;
    int r = device_boot(world.device, &boot);
    world.booting = false;
    if (r == WEFT_OK && !authentic(device_plan(world.device)->bytes, digest)) {
        world_broken("hands out a plan that nobody signed");
    }
    if (boot.tries > WEFT_UPDATE_TRIES) {
        world_broken("counts more than three tries");
    }
    if (r != WEFT_OK && world.active <= 1 && !world.rough) {
        world_broken("boots nothing although a plan is active");
    }
}

void world_restart(void)
{
    if (device_init(world.device) != WEFT_OK) {
        world_broken("init fails");
    }
    world_boot();
}

void world_before(bool confirming)
{
    weft_update_status_t status;
    flash_t *flash = device_flash(world.device);
    weft_update_status(world.update, &status);
    flash->locked = (status.active <= 1 ? 1u << status.active : 0u) | (status.running <= 1 ? 1u << status.running : 0u);
    world.confirming = confirming;
    world.floor = status.floor;
    world.active = status.active;
    memcpy(world.digest, status.active_digest, sizeof world.digest);
}

void world_after(void)
{
    weft_update_status_t status;
    weft_update_status(world.update, &status);
    if (device_flash(world.device)->broken != NULL) {
        world_broken(device_flash(world.device)->broken);
    }
    if (world.rough) {
        return;
    }
    if (status.floor < world.floor) {
        world_broken("the version floor falls");
    }
    if (!world.confirming &&
        (status.active != world.active || memcmp(status.active_digest, world.digest, sizeof world.digest) != 0)) {
        world_broken("another plan is active although nobody confirmed it");
    }
    if (status.active != world.active) {
        world.runs = 0;
    }
}

/* ---------------------------------------------------------------- beginning and end */

/* A plan as it was built, whatever was done to the copy; sealed. */
static void restore(unsigned which)
{
    static uint8_t sealed[PLANS][PLAN_MAX];
    static uint32_t lens[PLANS];
    if (lens[which] == 0) {
        size_t at = FIRST_PLAN;
        for (unsigned i = 0; i < which; i++) {
            at += 8u + (get(fuzz_plans + at, 4) + 7u) / 8u * 8u;
        }
        lens[which] = get(fuzz_plans + at, 4);
        memcpy(world.plan[which].bytes, fuzz_plans + at + 8, lens[which]);
        world_seal(which);
        memcpy(sealed[which], world.plan[which].bytes, PLAN_MAX);
    }
    world.plan[which].len = lens[which];
    memcpy(world.plan[which].bytes, sealed[which], PLAN_MAX);
}

void world_new(uint8_t setup)
{
    static const struct {
        uint32_t sector, write;
        uint8_t erased;
    } geometries[] = {{2048, 8, 0xff}, {512, 4, 0}, {8192, 32, 0xff}, {512, 64, 0xff}};
    unsigned g = setup & 3u;
    memset(&world, 0, sizeof world);
    world.device =
        device_new(SLOT, geometries[g].sector, geometries[g].write, geometries[g].erased, (setup & 4u) == 0, verify);
    if (world.device == NULL) {
        abort();
    }
    world.update = device_update(world.device);
    device_set(world.device, ARENA, (setup & 8u) != 0 ? 2 : 0, (setup & 16u) != 0 ? 60 : 0, 0);
    device_key(world.device, (setup & 32u) != 0, key);
    for (unsigned i = 0; i < PLANS; i++) {
        restore(i);
    }
    if (device_init(world.device) != WEFT_OK) {
        world_broken("init fails");
    }
    if ((setup & 64u) == 0) {
        memcpy(device_bytes(world.device, 0), world.plan[OLD].bytes, world.plan[OLD].len);
        if (weft_update_adopt(world.update, 0) != WEFT_OK) {
            world_broken("a good plan is not adopted");
        }
    }
    world_before(true);
    world_restart();
}

static void expect(int r, const char *rule)
{
    if (r != WEFT_OK) {
        fprintf(stderr, "%s: ", weft_error_name(r));
        world_broken(rule);
    }
}

/* A plan with the floor's version is sent, tried and confirmed. */
static void further_update(void)
{
    uint8_t *bytes = world.plan[NEXT].bytes;
    weft_transfer_t t;
    weft_update_status_t status;
    weft_boot_t boot;
    weft_update_status(world.update, &status);
    if (status.state == WEFT_SLOT_TRIAL || status.state == WEFT_SLOT_STAGED) {
        expect(weft_update_revert(world.update), "a plan cannot be given up");
        world_boot();
        world_before(true);
    }
    put(bytes + WEFT_HEADER_PLAN_VERSION, 4, status.floor);
    world_seal(NEXT);
    uint32_t head = world_head_len(NEXT), len = world.plan[NEXT].len;
    int r = weft_update_begin(world.update, bytes, head, 0, &t, NULL);
    if (r == WEFT_ERR_TRIED) {
        expect(weft_update_erase(world.update), "a reverted plan cannot be erased");
        r = weft_update_begin(world.update, bytes, head, 0, &t, NULL);
    }
    expect(r, "a good plan is not accepted");
    if (t.active != 0) {
        return;
    }
    expect(weft_update_write(world.update, t.token, t.next, bytes + t.next, len - t.next, &t),
           "a good plan is not taken");
    expect(weft_update_finish(world.update, t.token, NULL), "a good plan is not finished");
    expect(weft_update_test(world.update), "a staged plan cannot be tried");
    expect(device_boot(world.device, &boot), "a good plan does not boot");
    if (boot.trial == 0) {
        world_broken("a good plan is not tried");
    }
    world.confirming = true;
    expect(weft_update_confirm(world.update), "a trial cannot be confirmed");
}

void world_end(void)
{
    device_fail(world.device, 0, 0);
    device_cut(world.device, 0, CUT_BEFORE, NULL);
    device_limits(world.device, UINT32_MAX, UINT32_MAX);
    restore(NEXT);
    world_before(true);
    world_restart();
    world_before(true);
    further_update();
    world_after();
    device_free(world.device);
}
