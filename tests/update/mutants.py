# SPDX-License-Identifier: Apache-2.0
"""Bugs that update cores have had or could have, seeded into copies of ours: the power-cut simulator has to notice."""

from __future__ import annotations

Edit = tuple[str, str, str]

BUGS: dict[str, list[Edit]] = {
    "try counted after the run": [
        (
            "boot.c",
            "        r = weft_journal_append(u, &next);\n        if (r != WEFT_OK) {",
            "        r = WEFT_OK;\n        if (r != WEFT_OK) {",
        ),
        (
            "boot.c",
            "        r = r != WEFT_OK ? r : weft_update_selftest(u->cfg, plan);\n",
            "        r = r != WEFT_OK ? r : weft_update_selftest(u->cfg, plan);\n"
            "        r = r != WEFT_OK ? r : weft_journal_append(u, &next);\n",
        ),
    ],
    "four tries": [("boot.c", "u->now.tries < WEFT_UPDATE_TRIES", "u->now.tries <= WEFT_UPDATE_TRIES")],
    "no revert after the last try": [
        (
            "boot.c",
            "        (void)set_state(u, WEFT_SLOT_REVERTED, r);",
            "        (void)(r == WEFT_ERR_TRIED ? 0 : set_state(u, WEFT_SLOT_REVERTED, r));",
        )
    ],
    "no self-test": [("boot.c", "r = r != WEFT_OK ? r : weft_update_selftest(u->cfg, plan);", "")],
    "staged plan runs without a command": [
        (
            "boot.c",
            "    if (u->now.state == WEFT_SLOT_TRIAL) {\n        boot->trial_error",
            "    if (u->now.state == WEFT_SLOT_TRIAL || u->now.state == WEFT_SLOT_STAGED) {\n        boot->trial_error",
        )
    ],
    "slot contents decide": [
        (
            "boot.c",
            "    if (u->now.active > 1) {\n        return WEFT_ERR_NO_PLAN;",
            "    if (weft_update_verify(u, weft_other(u), WEFT_CHECK_ALL, NULL, digest, plan, &boot->where) == 0) {\n"
            "        u->running = boot->slot = (uint8_t)weft_other(u);\n"
            "        return WEFT_OK;\n    }\n"
            "    if (u->now.active > 1) {\n        return WEFT_ERR_NO_PLAN;",
        )
    ],
    "floor raised when tried": [("boot.c", "        next.tries++;", "        next.tries++;\n        next.floor++;")],
    "floor not raised": [
        ("boot.c", "    next.floor = version > u->now.floor ? version : u->now.floor;\n", ""),
    ],
    "journal sector not erased before reuse": [
        ("journal.c", "if (hal->erase(hal->ctx, WEFT_AREA_STATE, sector * hal->state.sector) != 0) {", "if (0) {")
    ],
    "the newest record's sector is erased": [("journal.c", "(uint8_t)(1u - u->sector) : 0", "u->sector : 0")],
    "places after the newest record count as free": [
        (
            "journal.c",
            "            u->settled = pair;\n",
            "            u->settled = pair;\n            u->fresh = 1;\n            u->place = place + 2u;\n",
        )
    ],
    "a single copy of a record counts": [("journal.c", "begun = next_begun, old;", "begun = true, old;")],
    "a record is not made whole before it is acted on": [("boot.c", "if (u->known && !u->settled) {", "if (0) {")],
    "records written once": [
        ("journal.c", "while (copies < 2 &&", "while (copies < 1 &&"),
        ("journal.c", "    if (copies < 2) {", "    if (copies < 1) {"),
    ],
    "CRC of records not checked": [
        ("journal.c", "weft_rd32(p + WEFT_STATE_CRC) != weft_crc32(p, WEFT_STATE_CRC, 0)", "0")
    ],
    "last record of the first sector wins": [
        ("journal.c", "old = *counts && weft_rd32(record + WEFT_STATE_SEQ) < u->now.seq;", "old = u->known;")
    ],
    "an unreadable place ends the search": [
        (
            "journal.c",
            "at, record, WEFT_STATE_SIZE) != 0) {\n            continue;",
            "at, record, WEFT_STATE_SIZE) != 0) {\n            break;",
        )
    ],
    "journal not told before the first erase": [
        ("receive.c", "if (!same || u->now.state != WEFT_SLOT_RECEIVING || !u->fresh) {", "if (0) {")
    ],
    "slot sector not erased before it is written": [
        ("receive.c", "u->flushed % flash->sector == 0 ? weft_slot_erase(u, weft_other(u), u->flushed) : WEFT_OK", "0")
    ],
    "sector in progress not erased on resume": [
        (
            "receive.c",
            "    u->received = u->flushed = u->marked = at;",
            "    u->received = u->flushed = u->marked = u->healthy = at;",
        ),
        (
            "receive.c",
            "int r = u->flushed % flash->sector == 0 ?",
            "int r = u->flushed % flash->sector == 0 && (u->flushed == 0 || u->flushed != u->healthy) ?",
        ),
    ],
    "resume mark before the bytes": [
        (
            "receive.c",
            "        r = note(u, WEFT_SLOT_RECEIVING, u->flushed);",
            "        r = note(u, WEFT_SLOT_RECEIVING, u->flushed + flash->sector);",
        )
    ],
    "resumes another plan's transfer": [
        (
            "receive.c",
            "    if (same && u->now.state == WEFT_SLOT_RECEIVING && u->now.offset %",
            "    if (u->now.state == WEFT_SLOT_RECEIVING && u->now.offset %",
        )
    ],
    "staged without reading back": [
        (
            "receive.c",
            "    r = weft_update_verify(u, weft_other(u), WEFT_CHECK_ALL, u->digest, digest, &plan, err);",
            "    (void)plan;\n    (void)digest;",
        )
    ],
    "staged although damaged": [("receive.c", "r == WEFT_OK ? WEFT_SLOT_STAGED : WEFT_SLOT_EMPTY", "WEFT_SLOT_STAGED")],
    "damaged bytes are resumed": [
        (
            "receive.c",
            "r == WEFT_OK ? WEFT_SLOT_STAGED : WEFT_SLOT_EMPTY, 0)",
            "r == WEFT_OK ? WEFT_SLOT_STAGED : WEFT_SLOT_RECEIVING, r == WEFT_OK ? 0 : hal_sector(u))",
        ),
        (
            "receive.c",
            "int weft_update_finish(",
            "static uint32_t hal_sector(const weft_update_t *u)\n{\n    return u->cfg->hal->slot.sector;\n}\n\n"
            "int weft_update_finish(",
        ),
    ],
    "updates go to the active slot": [
        ("update_internal.h", "return u->now.active == 0 ? 1u : 0u;", "return u->now.active == 1 ? 1u : 0u;"),
        ("receive.c", "    return slot != u->now.active && slot != u->running;", "    return slot <= 1;"),
    ],
    "confirmed plan keeps its place in the trial": [
        ("boot.c", "    next.state = u->now.active <= 1 ? WEFT_SLOT_OLD : WEFT_SLOT_EMPTY;\n", "")
    ],
    "copies from the wrong place": [
        ("receive.c", "u->copy[u->copies].from = from;", "u->copy[u->copies].from = from + 8u;")
    ],
    "tail of the plan not written": [("receive.c", "    int r = flush(u);\n", "    int r = WEFT_OK;\n")],
}
