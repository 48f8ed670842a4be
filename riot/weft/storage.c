/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots and state behind an mtd_dev_t, as the update core wants them.
 *
 * Where the processor can read the device, plans run from there; else the core copies the plan into a RAM buffer per
 * slot.
 */
#include <inttypes.h>
#include <string.h>

#include "hashes/sha256.h"
#include "macros/utils.h"
#include "mtd.h"
#include "time_units.h"
#include "weft_internal_riot.h"
#include "weft_params.h"
#include "ztimer.h"

#include "weft_format.h"

#if IS_USED(MODULE_WEFT_SIGNED_PSA)
#include "psa/crypto.h"
#elif IS_USED(MODULE_WEFT_SIGNED)
#include "uECC.h"
#elif !CONFIG_WEFT_ALLOW_UNSIGNED
#error                                                                                                                 \
    "Plans must be signed, but nothing checks signatures: use the module weft_signed and define WEFT_PARAM_KEY_0, or \
set CONFIG_WEFT_ALLOW_UNSIGNED=1 for development."
#endif

/* A record of the state takes 64 bytes, and a sector holds at least four. */
#define RAM_STATE_SECTOR 256u

/* Of P-256: the uncompressed point with its format byte, and r and s. */
#define KEY_LEN 65u
#define SIGNATURE_LEN 64u

static sha256_context_t sha;
static weft_update_hal_t hal;

/* A constant where the slots are in memory, so that the buffers drop out of the link. */
#define IN_PLACE (WEFT_PARAM_ADDRESS != 0)

static uint32_t size_of(unsigned area)
{
    return area == WEFT_AREA_STATE ? hal.state.size : hal.slot.size;
}

static bool outside(unsigned area, uint32_t offset, uint32_t len)
{
    return offset > size_of(area) || len > size_of(area) - offset;
}

static const void *mapped(void *ctx, unsigned area)
{
    (void)ctx;
    return IN_PLACE ? (const void *)((uintptr_t)WEFT_PARAM_ADDRESS + area * CONFIG_WEFT_SLOT_SIZE) : NULL;
}

#ifdef WEFT_PARAM_DEV

static uint32_t address_in_device(unsigned area, uint32_t offset)
{
    return offset +
           (area == WEFT_AREA_STATE ? CONFIG_WEFT_STATE_OFFSET : CONFIG_WEFT_MTD_OFFSET + area * CONFIG_WEFT_SLOT_SIZE);
}

static int area_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len)
{
    (void)ctx;
    return outside(area, offset, len) ? -1 : mtd_read(WEFT_PARAM_DEV, dst, address_in_device(area, offset), len);
}

static int area_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    (void)ctx;
    uint32_t page = WEFT_PARAM_DEV->page_size, at = address_in_device(area, offset);
    return outside(area, offset, len) ? -1 : mtd_write_page_raw(WEFT_PARAM_DEV, src, at / page, at % page, len);
}

static int area_erase(void *ctx, unsigned area, uint32_t offset)
{
    (void)ctx;
    uint32_t sector = hal.slot.sector;
    if (outside(area, offset, sector)) {
        return -1;
    }
    ztimer_acquire(ZTIMER_USEC);
    uint32_t begun = ztimer_now(ZTIMER_USEC);
    int r = mtd_erase_sector(WEFT_PARAM_DEV, address_in_device(area, offset) / sector, 1);
    if (IN_PLACE && CONFIG_WEFT_FLASH_STALLS) {
        hal.slot.stall_usec = MAX(hal.slot.stall_usec, ztimer_now(ZTIMER_USEC) - begun);
    }
    ztimer_release(ZTIMER_USEC);
    return r;
}

static const char *set_up(void)
{
    mtd_dev_t *dev = WEFT_PARAM_DEV;
    if (mtd_init(dev) < 0) {
        return "the storage device cannot be initialised";
    }
    uint32_t sector = dev->page_size * dev->pages_per_sector;
    uint64_t slots_end = CONFIG_WEFT_MTD_OFFSET + UINT64_C(2) * CONFIG_WEFT_SLOT_SIZE;
    uint64_t state_end = CONFIG_WEFT_STATE_OFFSET + UINT64_C(2) * sector;
    if (CONFIG_WEFT_SLOT_SIZE % sector != 0 || CONFIG_WEFT_MTD_OFFSET % sector != 0 ||
        CONFIG_WEFT_STATE_OFFSET % sector != 0) {
        return "CONFIG_WEFT_SLOT_SIZE, _MTD_OFFSET and _STATE_OFFSET must be multiples of the device's sector";
    }
    if ((uint64_t)sector * dev->sector_count < MAX(slots_end, state_end)) {
        return "the storage device is too small for two slots and two sectors of state: lower CONFIG_WEFT_SLOT_SIZE";
    }
    if (CONFIG_WEFT_STATE_OFFSET < slots_end && state_end > CONFIG_WEFT_MTD_OFFSET) {
        return "CONFIG_WEFT_STATE_OFFSET lies in a slot";
    }
    hal.slot = (weft_flash_t){.size = CONFIG_WEFT_SLOT_SIZE,
                              .sector = sector,
                              .write = MAX(dev->write_size, (uint32_t)WEFT_PARAM_WRITE_SIZE),
                              .erased = 0xff};
    hal.state = hal.slot;
    hal.state.size = 2 * sector;
    return NULL;
}

#else

/* Slots in memory that this program does not write; the state is forgotten at a reset. */
static uint8_t *ram_state(void)
{
    static uint8_t bytes[2 * RAM_STATE_SECTOR];
    return bytes;
}

static int area_read(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len)
{
    if (outside(area, offset, len)) {
        return -1;
    }
    const uint8_t *from = area == WEFT_AREA_STATE ? ram_state() : mapped(ctx, area);
    memcpy(dst, from + offset, len);
    return 0;
}

static int area_program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    (void)ctx;
    if (area != WEFT_AREA_STATE || outside(area, offset, len)) {
        return -1;
    }
    memcpy(ram_state() + offset, src, len);
    return 0;
}

static int area_erase(void *ctx, unsigned area, uint32_t offset)
{
    (void)ctx;
    if (area != WEFT_AREA_STATE || outside(area, offset, RAM_STATE_SECTOR)) {
        return -1;
    }
    memset(ram_state() + offset, 0xff, RAM_STATE_SECTOR);
    return 0;
}

static const char *set_up(void)
{
    hal.slot = (weft_flash_t){.size = CONFIG_WEFT_SLOT_SIZE, .sector = CONFIG_WEFT_SLOT_SIZE, .write = 1};
    hal.state = (weft_flash_t){.size = 2 * RAM_STATE_SECTOR, .sector = RAM_STATE_SECTOR, .write = 1};
    return NULL;
}

#endif

static int hash_init(void *ctx)
{
    (void)ctx;
    sha256_init(&sha);
    return 0;
}

static int hash_update(void *ctx, const void *data, uint32_t len)
{
    (void)ctx;
    sha256_update(&sha, data, len);
    return 0;
}

static int hash_finish(void *ctx, uint8_t hash[32])
{
    (void)ctx;
    sha256_final(&sha, hash);
    return 0;
}

static int verify_p256(void *ctx, const uint8_t *key, const uint8_t *hash, const uint8_t *signature)
{
    (void)ctx;
#if IS_USED(MODULE_WEFT_SIGNED_PSA)
    const psa_algorithm_t ecdsa = PSA_ALG_ECDSA(PSA_ALG_SHA_256);
    psa_key_attributes_t attributes = psa_key_attributes_init();
    psa_key_id_t id;
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_VERIFY_HASH);
    psa_set_key_algorithm(&attributes, ecdsa);
    if (psa_crypto_init() != PSA_SUCCESS || psa_import_key(&attributes, key, KEY_LEN, &id) != PSA_SUCCESS) {
        return -1;
    }
    psa_status_t r = psa_verify_hash(id, ecdsa, hash, SHA256_DIGEST_LENGTH, signature, SIGNATURE_LEN);
    psa_destroy_key(id);
    return r == PSA_SUCCESS ? 0 : -1;
#elif IS_USED(MODULE_WEFT_SIGNED)
    /* The point without its format byte. */
    return uECC_verify(key + 1, hash, SHA256_DIGEST_LENGTH, signature, uECC_secp256r1()) == 1 ? 0 : -1;
#else
    (void)key;
    (void)hash;
    (void)signature;
    return -1;
#endif
}

static void feed(void *ctx)
{
    (void)ctx;
    weft_service_feed();
}

#if IS_USED(MODULE_ZTIMER_MSEC)
static uint32_t seconds(void *ctx)
{
    (void)ctx;
    return ztimer_now(ZTIMER_MSEC) / MS_PER_SEC;
}
#endif

/* Without read() until the storage is set up. */
static weft_update_hal_t hal = {
    .program = area_program,
    .erase = area_erase,
    .mapped = mapped,
    .sha256_init = hash_init,
    .sha256_update = hash_update,
    .sha256_finish = hash_finish,
    .verify_p256 = verify_p256,
    .feed = feed,
#if IS_USED(MODULE_ZTIMER_MSEC)
    .seconds = seconds,
#endif
};

const weft_update_hal_t *weft_storage(const char **why)
{
    *why = NULL;
    if (hal.read == NULL) {
        *why = set_up();
        hal.read = *why == NULL ? area_read : NULL;
#if IS_USED(MODULE_ZTIMER_MSEC)
        /* For ever: where clocks stop when nobody needs them, a session would never look idle. */
        ztimer_acquire(ZTIMER_MSEC);
#endif
    }
    return *why == NULL ? &hal : NULL;
}

void *weft_storage_ram(unsigned slot)
{
    static uint8_t ram[WEFT_SLOT_COUNT][CONFIG_WEFT_SLOT_SIZE] __attribute__((aligned(WEFT_PLAN_ALIGN)));
    return IN_PLACE ? NULL : ram[slot];
}

bool weft_storage_empty(const weft_update_hal_t *storage, unsigned slot)
{
    uint32_t head[WEFT_HEADER_SIZE / sizeof(uint32_t)];
    if (storage->read(storage->ctx, slot, 0, head, sizeof head) != 0) {
        return false;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(head); i++) {
        if (head[i] != head[0] || (head[0] != 0 && head[0] != UINT32_MAX)) {
            return false;
        }
    }
    return true;
}
