/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which slot was chosen last, in the update core's journal, for builds without updates: a record
 * that names the active slot and no digest. With CONFIG_WEFT_UPDATE the core itself keeps the
 * journal (update.c).
 */
#include <errno.h>

#include "weft_zephyr.h"

#include "update/update_internal.h"

#define WRITE_MAX 512u /* the largest write unit that the core knows */

struct journal {
	weft_update_t core;
	weft_update_config_t config;
	uint64_t buffer[WRITE_MAX / sizeof(uint64_t)];
};

static int mount(struct journal *journal)
{
	const weft_update_hal_t *hal = weft_slots_hal();

	memset(journal, 0, sizeof(*journal));
	if (hal->state.sector == 0 || hal->state.size < 2U * hal->state.sector ||
	    hal->state.write > WRITE_MAX) {
		return -ENOTSUP;
	}
	journal->config.hal = hal;
	journal->config.buffer = journal->buffer;
	journal->config.buffer_len = sizeof(journal->buffer);
	journal->core.cfg = &journal->config;
	weft_journal_mount(&journal->core);
	return 0;
}

unsigned int weft_state_load(void)
{
	struct journal journal;

	if (mount(&journal) != 0 || journal.core.now.active >= WEFT_SLOT_COUNT) {
		return 0;
	}
	return journal.core.now.active;
}

int weft_state_store(unsigned int slot)
{
	struct journal journal;
	weft_journal_t next;
	int r = mount(&journal);

	if (r != 0 || (journal.core.settled && journal.core.now.active == slot)) {
		return r;
	}
	/* Digests and trials of a firmware with updates mean nothing any more; its floor stays. */
	memset(&next, 0, sizeof(next));
	next.active = (uint8_t)slot;
	next.floor = journal.core.now.floor;
	return weft_journal_append(&journal.core, &next);
}
