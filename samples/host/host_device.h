/* SPDX-License-Identifier: Apache-2.0 */
/* The host board's device: the update core over its flash, and the plan that runs. Safe to use from several threads. */
#ifndef WEFT_HOST_DEVICE_H
#define WEFT_HOST_DEVICE_H

#include <pthread.h>
#include <stdbool.h>

#include "host_crypto.h"
#include "host_flash.h"
#include "weft/weft_smp.h"

#define HOST_KEYS 2u
#define HOST_ID_BYTES 16u
/* A packet of SMP, as MCUmgr's parameters tell it. */
#define HOST_PACKET_BYTES 1024u

typedef struct {
    const char *slot_path[2], *state_path, *key_path[HOST_KEYS];
    uint32_t slot_bytes, sector_bytes, write_bytes, ram_bytes, erase_us, confirm_after, idle_seconds, selftest_ms,
        stall;
    bool has_vendor, has_class;
    uint8_t vendor_id[HOST_ID_BYTES], class_id[HOST_ID_BYTES];
} host_options_t;

typedef struct {
    /* core: everything but the group below; run: that group. Where both are held, core was taken first. */
    pthread_mutex_t core, run;
    host_flash_t flash;
    weft_update_hal_t hal;
    weft_update_config_t config;
    weft_update_t update;
    weft_smp_t smp;
    uint32_t selftest_ms;  /* that a self-test may take; 0: as long as it likes */
    uint64_t selftest_end; /* milliseconds of the monotonic clock */
    uint8_t key[HOST_KEYS][HOST_KEY_BYTES];
    uint64_t buffer[512]; /* a chunk of the update core */

    weft_plan_t plan; /* open where where.code is WEFT_OK */
    weft_error_t where;
    weft_boot_t boot;
    uint8_t *arena;
    uint8_t *external;
    size_t input_bytes, output_bytes;
    uint32_t runs;
} host_device_t;

/* Opens the flash and boots; a device without a plan starts too. Returns NULL, or what cannot be used and why. */
const char *host_device_start(host_device_t *device, const host_options_t *options);
void host_device_stop(host_device_t *device);

/* Handles a packet of SMP; weft_smp_packet(). */
size_t host_device_packet(host_device_t *device, const uint8_t *packet, size_t len, uint8_t *out, size_t room);
/* Boots if what should run is not what runs: a plan on trial, or after it was given up the one before. */
void host_device_settle(host_device_t *device);

/*
 * One inference. input: int8 values of all inputs, one after the other; *output gets those of the outputs, freshly
 * allocated. Returns 0, a WEFT_ERR_, or WEFT_ERR_ARG where the running plan takes another number of bytes.
 */
int host_device_infer(host_device_t *device, const int8_t *input, size_t input_bytes, int8_t **output,
                      size_t *output_bytes);

#endif
