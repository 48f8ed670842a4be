/* SPDX-License-Identifier: Apache-2.0 */
/* Header and section table, then the parts of the verifier in the order in which each relies on the last. */
#include "verify.h"

/* `count` bytes of the header from `at` on, each of which must lie in [least, most]. */
typedef struct {
    uint8_t at, count, least, most;
    int8_t error;
} bytes_t;

static const bytes_t header_bytes[] = {
    {WEFT_HEADER_MAGIC, 1, WEFT_MAGIC & 0xffu, WEFT_MAGIC & 0xffu, WEFT_ERR_MAGIC},
    {WEFT_HEADER_MAGIC + 1, 1, WEFT_MAGIC >> 8 & 0xffu, WEFT_MAGIC >> 8 & 0xffu, WEFT_ERR_MAGIC},
    {WEFT_HEADER_MAGIC + 2, 1, WEFT_MAGIC >> 16 & 0xffu, WEFT_MAGIC >> 16 & 0xffu, WEFT_ERR_MAGIC},
    {WEFT_HEADER_MAGIC + 3, 1, WEFT_MAGIC >> 24, WEFT_MAGIC >> 24, WEFT_ERR_MAGIC},
    {WEFT_HEADER_FORMAT_MAJOR, 1, WEFT_FORMAT_MAJOR, WEFT_FORMAT_MAJOR, WEFT_ERR_VERSION},
    {WEFT_HEADER_FORMAT_MINOR, 1, 0, WEFT_FORMAT_MINOR, WEFT_ERR_VERSION},
    {WEFT_HEADER_ABI_MAJOR, 1, WEFT_ABI_MAJOR, WEFT_ABI_MAJOR, WEFT_ERR_ABI},
    {WEFT_HEADER_ABI_MINOR, 1, 0, WEFT_ABI_MINOR, WEFT_ERR_ABI},
    {WEFT_HEADER_TOTAL_LEN + 3, 1, 0, 0x7f, WEFT_ERR_TRUNCATED},
    {WEFT_HEADER_SECTION_COUNT, 1, 3, 16, WEFT_ERR_SECTION},
    {WEFT_HEADER_CAPABILITIES, 4, 0, 0, WEFT_ERR_UNKNOWN},
    {WEFT_HEADER_FLAGS, 4, 0, 0, WEFT_ERR_UNKNOWN},
    {WEFT_HEADER_RESERVED, 8, 0, 0, WEFT_ERR_UNKNOWN}, /* and RESERVED2 */
    {WEFT_HEADER_ALIGN_LOG2, 1, 2, 6, WEFT_ERR_ALIGN},
    {WEFT_HEADER_ARENA_BYTES + 3, 1, 0, 0x7f, WEFT_ERR_ARENA},
};

/* A figure of the header that the caller may limit. */
typedef struct {
    uint8_t at, limit;
    bool wide; /* both have 64 bits, else 32 */
} limited_t;

static const limited_t limited[] = {
    {WEFT_HEADER_ARENA_BYTES, offsetof(weft_limits_t, arena_bytes), false},
    {WEFT_HEADER_ROW_STEPS, offsetof(weft_limits_t, row_steps), false},
    {WEFT_HEADER_CALLS, offsetof(weft_limits_t, calls), false},
    {WEFT_HEADER_MACS, offsetof(weft_limits_t, macs), true},
    {WEFT_HEADER_ELEMENTS, offsetof(weft_limits_t, elements), true},
};

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

/* Returns an error and where it lies. */
static int check_header(const uint8_t *p, size_t len, uint32_t *at)
{
    *at = (uint32_t)len;
    if (len < WEFT_HEADER_SIZE) {
        return WEFT_ERR_TRUNCATED;
    }
    for (const bytes_t *b = header_bytes; b != header_bytes + COUNT_OF(header_bytes); b++) {
        *at = b->at;
        for (uint32_t i = b->at; i < (uint32_t)b->at + b->count; i++) {
            if (p[i] < b->least || p[i] > b->most) {
                return b->error;
            }
        }
    }
    const uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN);
    const uint32_t head_len = WEFT_HEADER_SIZE + p[WEFT_HEADER_SECTION_COUNT] * WEFT_SECTION_SIZE;
    *at = WEFT_HEADER_TOTAL_LEN;
    if (total > len) {
        return WEFT_ERR_TRUNCATED;
    }
    *at = WEFT_HEADER_HEADER_LEN;
    return weft_rd16(p + WEFT_HEADER_HEADER_LEN) != head_len || head_len + WEFT_SIGNATURE_LEN > total ? WEFT_ERR_SECTION
                                                                                                      : WEFT_OK;
}

static int check_limits(const uint8_t *p, const weft_limits_t *limits, uint32_t *at)
{
    for (const limited_t *f = limited; f != limited + COUNT_OF(limited); f++) {
        const uint8_t *limit = (const uint8_t *)limits + f->limit, *figure = p + f->at;
        const uint64_t most = f->wide ? weft_rd64(limit) : weft_rd32(limit);
        *at = f->at;
        if (most != 0 && (f->wide ? weft_rd64(figure) : weft_rd32(figure)) > most) {
            return WEFT_ERR_LIMIT;
        }
    }
    return WEFT_OK;
}

int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    uint32_t at;
    int r = check_header(p, len, &at);
    if (r == WEFT_OK && limits != NULL) {
        r = check_limits(p, limits, &at);
    }
    return r != WEFT_OK ? weft_fail(err, r, WEFT_NONE, at) : WEFT_OK;
}

void weft_locate(const weft_plan_t *plan, uint32_t record, const void *at, weft_error_t *err)
{
    err->record = (uint16_t)record;
    err->offset = (uint32_t)((const uint8_t *)at - plan->bytes);
}

void weft_locate_entry(const weft_plan_t *plan, const weft_entry_t *entry, weft_error_t *err)
{
    weft_locate(plan, (uint32_t)(entry - weft_entry_at(plan, 0)), entry, err);
}

/* Bounds every section, of which those that the engine knows come once. */
static int check_sections(const weft_plan_t *plan, weft_error_t *err)
{
    const uint8_t *p = plan->bytes, *s = p + WEFT_HEADER_SIZE;
    const uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN), count = p[WEFT_HEADER_SECTION_COUNT];
    const uint32_t first = WEFT_HEADER_SIZE + count * WEFT_SECTION_SIZE + WEFT_SIGNATURE_LEN;
    for (uint32_t i = 0; i < count; i++, s += WEFT_SECTION_SIZE) {
        const uint32_t type = weft_rd16(s + WEFT_SECTION_TYPE), flags = weft_rd16(s + WEFT_SECTION_FLAGS);
        const uint32_t offset = weft_rd32(s + WEFT_SECTION_OFFSET), length = weft_rd32(s + WEFT_SECTION_LENGTH);
        weft_locate(plan, i, s, err);
        if (offset % 8u != 0 || offset < first || offset > total || length > total - offset) {
            return WEFT_ERR_SECTION;
        }
        const bool known = type >= WEFT_SECTION_GRAPH && type <= WEFT_SECTION_NAMES;
        if (flags > known || weft_rd32(s + WEFT_SECTION_RESERVED) != 0) {
            return WEFT_ERR_UNKNOWN;
        }
        for (const uint8_t *before = p + WEFT_HEADER_SIZE; known && before != s; before += WEFT_SECTION_SIZE) {
            if (weft_rd16(before + WEFT_SECTION_TYPE) == type) {
                return WEFT_ERR_SECTION;
            }
        }
    }
    return WEFT_OK;
}

/* Start and bytes of a section that has to be there. */
static int find(const weft_plan_t *plan, unsigned type, const uint8_t **at, uint32_t *left, weft_error_t *err)
{
    size_t len;
    *at = weft_section(plan, type, &len);
    *left = (uint32_t)len;
    weft_locate(plan, WEFT_NONE, *at != NULL ? *at : plan->bytes + WEFT_HEADER_SIZE, err);
    return *at != NULL ? WEFT_OK : WEFT_ERR_SECTION;
}

/* A section that begins with `head_len` bytes of counts, for the plan's members from `head` on; then come `kinds` of
 * records, without a rest. */
static int take(weft_plan_t *plan, unsigned type, void *head, uint32_t head_len, const weft_kind_t *kinds,
                const weft_kind_t *end, weft_error_t *err)
{
    const uint8_t *at;
    uint32_t left, bytes = head_len;
    int r = find(plan, type, &at, &left, err);
    if (r != WEFT_OK || bytes > left) {
        return WEFT_ERR_SECTION;
    }
    memcpy(head, at, head_len);
    plan->io_count = (uint16_t)(plan->input_count + plan->output_count);
    for (;; kinds++) {
        at += bytes;
        left -= bytes;
        if (kinds == end) {
            return left == 0 ? WEFT_OK : WEFT_ERR_SECTION;
        }
        memcpy((uint8_t *)plan + kinds->base, &at, sizeof at);
        bytes = (uint32_t)kinds->size * weft_rd16((const uint8_t *)plan + kinds->count); /* counts have 16 bits */
        if (bytes > left) {
            return WEFT_ERR_SECTION;
        }
    }
}

typedef char
    graph_head[offsetof(weft_plan_t, reserved) + 2 == offsetof(weft_plan_t, tensor_count) + WEFT_GRAPH_SIZE &&
                       offsetof(weft_plan_t, list_count) == offsetof(weft_plan_t, tensor_count) + WEFT_GRAPH_LIST_COUNT
                   ? 1
                   : -1];

/* Section table and the bounds of every record: fills the plan. */
static WEFT_APART int parse(weft_plan_t *plan, weft_error_t *err)
{
    int r = check_sections(plan, err);
    if (r != WEFT_OK) {
        return r;
    }
    r = take(plan, WEFT_SECTION_GRAPH, &plan->tensor_count, WEFT_GRAPH_SIZE, weft_kinds, weft_kinds + WEFT_GRAPH_KINDS,
             err);
    if (r != WEFT_OK || plan->tensor_count - 1u >= 4095u || plan->op_count - 1u >= 4095u ||
        plan->input_count - 1u >= 16u || plan->output_count - 1u >= 16u || plan->reserved != 0) {
        return WEFT_ERR_SECTION;
    }
    r = take(plan, WEFT_SECTION_SCHEDULE, &plan->stage_count, WEFT_SCHEDULE_SIZE, weft_kinds + WEFT_GRAPH_KINDS,
             weft_kinds + WEFT_KINDS, err);
    if (r != WEFT_OK || plan->stage_count == 0) {
        return WEFT_ERR_SECTION;
    }
    return find(plan, WEFT_SECTION_WEIGHTS, &plan->weights, &plan->weights_len, err);
}

int weft_open(weft_plan_t *plan, const void *bytes, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    weft_error_t ignored;
    err = err != NULL ? err : &ignored;
    weft_fail(err, WEFT_OK, WEFT_NONE, 0);
    if (plan == NULL || bytes == NULL) {
        return err->code = WEFT_ERR_ARG;
    }
    if ((uintptr_t)bytes % WEFT_PLAN_ALIGN != 0) {
        return err->code = WEFT_ERR_ALIGN;
    }
    int r = weft_verify_header(bytes, len, limits, err);
    if (r != WEFT_OK) {
        return r;
    }
    memset(plan, 0, sizeof *plan);
    plan->bytes = bytes;
    r = parse(plan, err);
    r = r != WEFT_OK ? r : weft_verify_records(plan, err);
    r = r != WEFT_OK ? r : weft_verify_regions(plan, err);
    r = r != WEFT_OK ? r : weft_verify_arena(plan, err);
    r = r != WEFT_OK ? r : weft_verify_replay(plan, err);
    if (r == WEFT_OK) {
        return weft_fail(err, WEFT_OK, WEFT_NONE, 0);
    }
    if (r == WEFT_ERR_OPCODE) { /* it lies at an OP record */
        err->opcode = plan->bytes[err->offset + WEFT_OP_OPCODE];
    }
    return err->code = r;
}

const uint8_t *weft_section(const weft_plan_t *plan, unsigned type, size_t *len)
{
    const uint8_t *p = plan->bytes;
    for (uint32_t i = 0; i < p[WEFT_HEADER_SECTION_COUNT]; i++) {
        const uint8_t *s = p + WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        if (weft_rd16(s + WEFT_SECTION_TYPE) == type) {
            *len = weft_rd32(s + WEFT_SECTION_LENGTH);
            return p + weft_rd32(s + WEFT_SECTION_OFFSET);
        }
    }
    *len = 0;
    return NULL;
}
