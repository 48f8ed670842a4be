/* SPDX-License-Identifier: Apache-2.0 */
/* What a plan must be before its bytes are stored, and before they are run: signature, policy, hashes, structure. */
#include "update_internal.h"

#define KEY_LEN 65u
#define HASH_LEN 32u

int weft_source_read(const weft_update_t *u, const weft_source_t *source, uint32_t offset, void *dst, uint32_t len)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    if (source->head != NULL) {
        memcpy(dst, source->head + offset, len);
        return WEFT_OK;
    }
    return hal->read(hal->ctx, source->slot, offset, dst, len) == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

/* SHA-256 of plan bytes. Reads through the buffer, so that flash that cannot be read is an error and not a fault. */
static int hash(const weft_update_t *u, const weft_source_t *source, uint32_t offset, uint32_t len, uint8_t *out)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    int r = hal->sha256_init(hal->ctx);
    while (r == 0 && len > 0) {
        uint32_t n = len < u->cfg->buffer_len ? len : u->cfg->buffer_len;
        const void *part = u->cfg->buffer;
        if (source->head != NULL) {
            part = source->head + offset;
        } else {
            r = weft_source_read(u, source, offset, u->cfg->buffer, n);
        }
        if (r == 0) {
            r = hal->sha256_update(hal->ctx, part, n);
        }
        offset += n;
        len -= n;
        weft_feed(u);
    }
    return r == 0 && hal->sha256_finish(hal->ctx, out) == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

/* One of the device's keys must have made the signature; the key id only saves trying the other. */
static int check_signature(const weft_update_t *u, const uint8_t *record, const uint8_t *digest)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    int r = WEFT_ERR_KEY;
    if (weft_rd16(record + WEFT_SIGNATURE_RESERVED2) != 0 || record[WEFT_SIGNATURE_RESERVED] != 0) {
        return WEFT_ERR_SIGNATURE;
    }
    if (WEFT_UPDATE_ALLOW_UNSIGNED && record[WEFT_SIGNATURE_ALGORITHM] == 0) {
        return WEFT_OK;
    }
    if (record[WEFT_SIGNATURE_ALGORITHM] != 1) {
        return WEFT_ERR_UNSIGNED;
    }
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *key = u->cfg->key[i];
        uint8_t id[HASH_LEN];
        if (key == NULL || hal->sha256_init(hal->ctx) != 0 || hal->sha256_update(hal->ctx, key, KEY_LEN) != 0 ||
            hal->sha256_finish(hal->ctx, id) != 0 || memcmp(id, record + WEFT_SIGNATURE_KEY_ID, 4) != 0) {
            continue;
        }
        weft_feed(u);
        if (hal->verify_p256(hal->ctx, key, digest, record + WEFT_SIGNATURE_VALUE) == 0) {
            return WEFT_OK;
        }
        r = WEFT_ERR_SIGNATURE;
    }
    return r;
}

static int check_policy(const weft_update_t *u, const uint8_t *head, weft_error_t *err)
{
    const weft_update_config_t *cfg = u->cfg;
    uint64_t missing = weft_rd64(head + WEFT_HEADER_OP_MASK);
    if (cfg->vendor != NULL && memcmp(cfg->vendor, head + WEFT_HEADER_VENDOR_ID, 16) != 0) {
        return weft_fail(err, WEFT_ERR_VENDOR, WEFT_NONE, WEFT_HEADER_VENDOR_ID);
    }
    if (cfg->device != NULL && memcmp(cfg->device, head + WEFT_HEADER_CLASS_ID, 16) != 0) {
        return weft_fail(err, WEFT_ERR_VENDOR, WEFT_NONE, WEFT_HEADER_CLASS_ID);
    }
    for (uint32_t op = 0; op <= WEFT_OPCODE_MAX; op++) {
        missing &= ~((uint64_t)(weft_kernels[op] != NULL) << op);
    }
    if (missing != 0) {
        weft_fail(err, WEFT_ERR_OPCODE, WEFT_NONE, WEFT_HEADER_OP_MASK);
        while ((missing & 1u) == 0) {
            missing >>= 1;
            err->opcode++;
        }
        return WEFT_ERR_OPCODE;
    }
    if (weft_rd32(head + WEFT_HEADER_PLAN_VERSION) < u->now.floor) {
        return weft_fail(err, WEFT_ERR_FLOOR, WEFT_NONE, WEFT_HEADER_PLAN_VERSION);
    }
    return WEFT_OK;
}

/* A section's bytes and the zeros up to the next one. */
static int check_bytes(const weft_update_t *u, const weft_source_t *source, const uint8_t *row)
{
    static const uint8_t zeros[8] = {0};
    uint32_t offset = weft_rd32(row + WEFT_SECTION_OFFSET), length = weft_rd32(row + WEFT_SECTION_LENGTH);
    uint8_t found[HASH_LEN], padding[8];
    uint32_t pad = weft_up(length, 8) - length;
    int r = hash(u, source, offset, length, found);
    if (r == WEFT_OK && memcmp(found, row + WEFT_SECTION_SHA256, HASH_LEN) != 0) {
        r = WEFT_ERR_HASH;
    }
    if (r == WEFT_OK && pad > 0) {
        r = weft_source_read(u, source, offset + length, padding, pad);
        if (r == WEFT_OK && memcmp(padding, zeros, pad) != 0) {
            r = WEFT_ERR_HASH;
        }
    }
    return r;
}

/*
 * Sections must follow each other without a gap, as the planner writes them: every byte of the plan is then either
 * hashed or known to be zero. weft_open() would accept more.
 */
static int check_sections(const weft_update_t *u, const weft_source_t *source, const uint8_t *head, unsigned checks,
                          weft_error_t *err)
{
    uint32_t total = weft_rd32(head + WEFT_HEADER_TOTAL_LEN), count = head[WEFT_HEADER_SECTION_COUNT];
    uint32_t at = WEFT_HEADER_SIZE + count * WEFT_SECTION_SIZE + WEFT_SIGNATURE_LEN, known = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t words[WEFT_SECTION_SIZE / 4u], where = WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        const uint8_t *row = (const uint8_t *)words;
        int r = weft_source_read(u, source, where, words, sizeof words);
        if (r != WEFT_OK) {
            return weft_fail(err, r, i, where);
        }
        uint32_t type = weft_rd16(row + WEFT_SECTION_TYPE), flags = weft_rd16(row + WEFT_SECTION_FLAGS);
        uint32_t length = weft_rd32(row + WEFT_SECTION_LENGTH);
        if (weft_rd32(row + WEFT_SECTION_OFFSET) != at || at > total || length > total - at) {
            return weft_fail(err, WEFT_ERR_SECTION, i, where + WEFT_SECTION_OFFSET);
        }
        if (type >= WEFT_SECTION_GRAPH && type <= WEFT_SECTION_NAMES) {
            if ((known & 1u << type) != 0) {
                return weft_fail(err, WEFT_ERR_SECTION, i, where);
            }
            known |= 1u << type;
        } else if (flags != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, where);
        }
        r = (checks & WEFT_CHECK_HASHES) != 0 ? check_bytes(u, source, row) : WEFT_OK;
        if (r != WEFT_OK) {
            return weft_fail(err, r, i, at);
        }
        at = weft_up(at + length, 8);
    }
    uint32_t needed = 1u << WEFT_SECTION_GRAPH | 1u << WEFT_SECTION_SCHEDULE | 1u << WEFT_SECTION_WEIGHTS;
    if (at != total || (known & needed) != needed) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, WEFT_HEADER_SIZE);
    }
    return WEFT_OK;
}

int weft_update_check(weft_update_t *u, const weft_source_t *source, unsigned checks, uint8_t digest[32],
                      weft_error_t *err)
{
    uint32_t words[WEFT_HEADER_SIZE / 4u];
    const uint8_t *head = (const uint8_t *)words;
    weft_limits_t limits = u->cfg->limits;
    limits.arena_bytes = u->cfg->arena_len < INT32_MAX ? (uint32_t)u->cfg->arena_len : INT32_MAX;
    int r = weft_source_read(u, source, 0, words, sizeof words);
    if (r != WEFT_OK) {
        return weft_fail(err, r, WEFT_NONE, 0);
    }
    if (weft_rd32(head + WEFT_HEADER_MAGIC) != WEFT_MAGIC) {
        return weft_fail(err, WEFT_ERR_MAGIC, WEFT_NONE, 0);
    }
    /* Nothing but the number of sections is believed before the signature is known to be good; a slot has room for 16.
     */
    uint32_t table = head[WEFT_HEADER_SECTION_COUNT] * WEFT_SECTION_SIZE, head_len = WEFT_HEADER_SIZE + table;
    if (head[WEFT_HEADER_SECTION_COUNT] > 16 || weft_rd16(head + WEFT_HEADER_HEADER_LEN) != head_len) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, WEFT_HEADER_HEADER_LEN);
    }
    r = hash(u, source, 0, head_len, digest);
    if (r == WEFT_OK && (checks & WEFT_CHECK_SIGNATURE) != 0) {
        uint32_t record[WEFT_SIGNATURE_LEN / 4u];
        r = weft_source_read(u, source, head_len, record, sizeof record);
        r = r != WEFT_OK ? r : check_signature(u, (const uint8_t *)record, digest);
    }
    if (r != WEFT_OK) {
        return weft_fail(err, r, WEFT_NONE, head_len);
    }
    if (weft_rd32(head + WEFT_HEADER_TOTAL_LEN) > u->cfg->hal->slot.size) {
        return weft_fail(err, WEFT_ERR_SLOT, WEFT_NONE, WEFT_HEADER_TOTAL_LEN);
    }
    r = weft_verify_header(head, u->cfg->hal->slot.size, &limits, err);
    if (r == WEFT_OK && (checks & WEFT_CHECK_POLICY) != 0) {
        r = check_policy(u, head, err);
    }
    return r != WEFT_OK ? r : check_sections(u, source, head, checks, err);
}

int weft_update_verify(weft_update_t *u, unsigned slot, unsigned checks, const uint8_t *expected, uint8_t digest[32],
                       weft_plan_t *plan, weft_error_t *err)
{
    const weft_update_hal_t *hal = u->cfg->hal;
    const weft_source_t source = {NULL, slot};
    int r = weft_update_check(u, &source, checks, digest, err);
    if (r == WEFT_OK && expected != NULL && memcmp(digest, expected, sizeof u->now.digest) != 0) {
        r = weft_fail(err, WEFT_ERR_HASH, WEFT_NONE, 0);
    }
    if (r != WEFT_OK) {
        return r;
    }
    const void *bytes = hal->mapped != NULL ? hal->mapped(hal->ctx, slot) : NULL;
    if (bytes == NULL) {
        uint32_t total;
        r = weft_source_read(u, &source, WEFT_HEADER_TOTAL_LEN, &total, sizeof total);
        total = weft_rd32((const uint8_t *)&total);
        bytes = u->cfg->ram[slot];
        if (r != WEFT_OK || bytes == NULL || total > hal->slot.size ||
            weft_source_read(u, &source, 0, u->cfg->ram[slot], total) != WEFT_OK) {
            return weft_fail(err, WEFT_ERR_FLASH, WEFT_NONE, 0);
        }
    }
    weft_limits_t limits = u->cfg->limits;
    limits.arena_bytes = u->cfg->arena_len < INT32_MAX ? (uint32_t)u->cfg->arena_len : INT32_MAX;
    weft_feed(u);
    return weft_open(plan, bytes, hal->slot.size, &limits, err);
}
