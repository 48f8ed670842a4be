/* SPDX-License-Identifier: Apache-2.0 */
/* A device with simulated flash: the update core with its surroundings. */
#ifndef TEST_DEVICE_H
#define TEST_DEVICE_H

#include "flash.h"

typedef int (*verify_fn)(const uint8_t *key, const uint8_t *hash, const uint8_t *signature);
typedef struct device device_t;

device_t *device_new(uint32_t slot, uint32_t sector, uint32_t write, uint8_t erased, int mapped, verify_fn verify);
void device_free(device_t *d);
void device_key(device_t *d, unsigned place, const uint8_t *key);
void device_set(device_t *d, uint32_t arena, uint32_t confirm_after, uint32_t idle, uint32_t flags);
void device_limits(device_t *d, uint32_t budget, uint32_t step_limit);
void device_pass(device_t *d, uint32_t seconds);
/* Calls of flash and hash, `call` from now and `count` of them, that fail. */
void device_fail(device_t *d, uint32_t call, uint32_t count);
/*
 * Power is cut at the erase or program that is the `operations`th from now, 0: it is not; by a jump to `power`, or with
 * NULL so that nothing reaches flash any more until device_init().
 */
void device_cut(device_t *d, uint32_t operations, cut_t kind, jmp_buf *power);
/* The self-test hangs: a watchdog resets the device, and device_boot() returns WEFT_ERR_ABORTED with nothing decided.
 */
void device_hang(device_t *d, int hangs);
/* So many records of the journal are programmed with a wrong bit, and the part says that all is well. */
void device_stick(device_t *d, uint32_t records);
void device_buffer(device_t *d, uint32_t len);
/* Without everything that is optional. */
void device_bare(device_t *d);
/* As if this slot ran, and so many sessions had been. */
void device_pretend(device_t *d, unsigned running, uint32_t last_token);
int device_misconfigure(device_t *d, unsigned how);
weft_update_t *device_update(device_t *d);
flash_t *device_flash(device_t *d);
weft_plan_t *device_plan(device_t *d);
int device_init(device_t *d);
int device_boot(device_t *d, weft_boot_t *boot);
int device_run(device_t *d, uint8_t *output, uint32_t len);
uint8_t *device_bytes(device_t *d, unsigned area);
uint32_t device_count(device_t *d, unsigned what);

#endif
