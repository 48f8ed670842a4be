/* SPDX-License-Identifier: Apache-2.0 */
/* Two plans with different models, and slots to put them into. */
#ifndef COMMON_H
#define COMMON_H

#include <weft/weft_service.h>
#include <zephyr/ztest.h>

#include "weft_format.h"

enum { SLOT_A, SLOT_B };

extern const uint8_t plan_a[], plan_b[];
extern const size_t plan_a_len, plan_b_len;

/* Erase a slot. */
void erase_slot(unsigned int slot);
/* Erase a slot and write bytes to its start. */
void write_slot(unsigned int slot, const uint8_t *bytes, size_t len);
/* Write plan_a and plan_b to their slots, forget the stored choice, boot. */
void boot_both(void);
/* Fill the state partition's beginning. */
void write_state(uint8_t value);

/* A run on the self-test's input; `crc` gets the CRC-32 of the first output. */
struct probe {
	struct weft_job job;
	uint32_t state, crc;
	unsigned int rows, done;
	int status;
	k_tid_t thread;
};

void probe_init(struct probe *probe);
/* What `crc` must be with plan_a, plan_b: from the plans' SELFTEST sections. */
uint32_t expected_crc(const uint8_t *plan_bytes, size_t len);

#endif
