/* SPDX-License-Identifier: Apache-2.0 */
/* Which slot is active: the newest of one-unit records, appended to the first sector of weft_state.
 */
#include <errno.h>
#include <string.h>

#include "weft_zephyr.h"

#define MAGIC "WEFTSLOT"
#define MAGIC_LEN 8u
#define UNIT_MAX 512u

/* Bytes of a record: the magic, the slot, its complement, filler up to whole write units. */
static uint32_t unit(const weft_flash_t *flash)
{
	return flash->write > 16u ? flash->write : 16u;
}

/* The newest record's slot and the place behind it; a record that was cut off ends the list and
 * costs an erase. */
static unsigned int scan(const weft_update_hal_t *hal, uint32_t *end)
{
	unsigned int slot = 0;
	uint8_t record[16];

	for (*end = 0; *end + unit(&hal->state) <= hal->state.sector; *end += unit(&hal->state)) {
		if (hal->read(NULL, WEFT_AREA_STATE, *end, record, sizeof(record)) != 0 ||
		    memcmp(record, MAGIC, MAGIC_LEN) != 0 || record[8] >= WEFT_SLOT_COUNT ||
		    record[9] != (uint8_t)~record[8]) {
			break;
		}
		slot = record[8];
	}
	return slot;
}

unsigned int weft_state_load(void)
{
	const weft_update_hal_t *hal = weft_slots_hal();
	uint32_t end;

	return hal->state.size == 0 ? 0 : scan(hal, &end);
}

int weft_state_store(unsigned int slot)
{
	const weft_update_hal_t *hal = weft_slots_hal();
	uint8_t record[UNIT_MAX], found[16];
	uint32_t end;
	int r = 0;

	if (hal->state.size == 0 || unit(&hal->state) > sizeof(record)) {
		return -ENOTSUP;
	}
	memset(record, hal->state.erased, sizeof(record));
	(void)scan(hal, &end);
	if (end + unit(&hal->state) > hal->state.sector ||
	    hal->read(NULL, WEFT_AREA_STATE, end, found, sizeof(found)) != 0 ||
	    memcmp(found, record, sizeof(found)) != 0) {
		r = hal->erase(NULL, WEFT_AREA_STATE, 0);
		end = 0;
	}
	memcpy(record, MAGIC, MAGIC_LEN);
	record[8] = (uint8_t)slot;
	record[9] = (uint8_t)~slot;
	return r != 0 ? r : hal->program(NULL, WEFT_AREA_STATE, end, record, unit(&hal->state));
}
