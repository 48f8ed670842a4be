/* SPDX-License-Identifier: Apache-2.0 */
/* Header and section table, then the parts of the verifier in the order in which each relies on the last. */
#include "verify.h"

/* `count` bytes of the header from `at` on, each of which must lie in [least, most]. */
typedef struct {
    uint8_t at, count, least, most;
    uint8_t error;
} bytes_t;

static const bytes_t header_bytes[] = {
    {WEFT_HEADER_FORMAT_MAJOR, 1, WEFT_FORMAT_MAJOR, WEFT_FORMAT_MAJOR, BAD(VERSION)},
    {WEFT_HEADER_FORMAT_MINOR, 1, 0, WEFT_FORMAT_MINOR, BAD(VERSION)},
    {WEFT_HEADER_ABI_MAJOR, 1, WEFT_ABI_MAJOR, WEFT_ABI_MAJOR, BAD(ABI)},
    {WEFT_HEADER_ABI_MINOR, 1, 0, WEFT_ABI_MINOR, BAD(ABI)},
    {WEFT_HEADER_TOTAL_LEN + 3, 1, 0, 0x7f, BAD(TRUNCATED)},
    {WEFT_HEADER_SECTION_COUNT, 1, 3, 16, BAD(SECTION)},
    {WEFT_HEADER_CAPABILITIES, 4, 0, 0, BAD(UNKNOWN)},
    {WEFT_HEADER_FLAGS, 4, 0, 0, BAD(UNKNOWN)},
    {WEFT_HEADER_RESERVED, 8, 0, 0, BAD(UNKNOWN)}, /* and RESERVED2 */
    {WEFT_HEADER_ALIGN_LOG2, 1, 2, 6, BAD(ALIGN)},
    {WEFT_HEADER_ARENA_BYTES + 3, 1, 0, 0x7f, BAD(ARENA)},
    {WEFT_HEADER_MACS + 7, 1, 0, 0x7f, BAD(DECLARED)}, /* verify_regions.c counts no further */
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

/* Every field of the header, of which all must be readable, and the caller's limits. */
static WEFT_APART int check_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_place_t *place)
{
    place->at = p + len;
    if (len < WEFT_HEADER_SIZE) {
        return BAD(TRUNCATED);
    }
    place->at = p;
    if (weft_rd32(p + WEFT_HEADER_MAGIC) != WEFT_MAGIC) {
        return BAD(MAGIC);
    }
    for (const bytes_t *b = header_bytes; b != header_bytes + COUNT_OF(header_bytes); b++) {
        const uint8_t *field = p + b->at;
        place->at = field;
        for (uint32_t left = b->count; left > 0; left--, field++) {
            if (*field < b->least || *field > b->most) {
                return b->error;
            }
        }
    }
    const uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN);
    const uint32_t head_len = WEFT_HEADER_SIZE + p[WEFT_HEADER_SECTION_COUNT] * WEFT_SECTION_SIZE;
    place->at = p + WEFT_HEADER_TOTAL_LEN;
    if (total > len) {
        return BAD(TRUNCATED);
    }
    place->at = p + WEFT_HEADER_HEADER_LEN;
    if (weft_rd16(place->at) != head_len || head_len + WEFT_SIGNATURE_LEN > total) {
        return BAD(SECTION);
    }
    if (limits == NULL) {
        return 0;
    }
    for (const limited_t *f = limited; f != limited + COUNT_OF(limited); f++) {
        const uint8_t *limit = (const uint8_t *)limits + f->limit, *figure = p + f->at;
        const uint64_t most = f->wide ? weft_rd64(limit) : weft_rd32(limit);
        place->at = figure;
        if (most != 0 && (f->wide ? weft_rd64(figure) : weft_rd32(figure)) > most) {
            return BAD(LIMIT);
        }
    }
    return 0;
}

/* Tell the caller, who may not want to know. */
static int finish(const uint8_t *bytes, int bad, const weft_place_t *place, weft_error_t *err)
{
    if (err != NULL) {
        weft_fail(err, -bad, place->record, (uint32_t)((const uint8_t *)place->at - bytes));
        if (bad == BAD(OPCODE)) { /* it lies at an OP record */
            err->opcode = *(const uint8_t *)place->at;
        }
    }
    return -bad;
}

int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    weft_place_t place = {p, WEFT_NONE};
    const int bad = check_header(p, len, limits, &place);
    return bad != 0 ? finish(p, bad, &place, err) : WEFT_OK;
}

typedef char
    graph_head[offsetof(weft_plan_t, reserved) + 2 == offsetof(weft_plan_t, tensor_count) + WEFT_GRAPH_SIZE &&
                       offsetof(weft_plan_t, list_count) == offsetof(weft_plan_t, tensor_count) + WEFT_GRAPH_LIST_COUNT
                   ? 1
                   : -1];

/* Section table, in the order of types, and the bounds of every record: fills the plan. */
static WEFT_APART int parse(weft_plan_t *plan, weft_place_t *place)
{
    const uint8_t *p = plan->bytes, *s = p + WEFT_HEADER_SIZE;
    const uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN), count = p[WEFT_HEADER_SECTION_COUNT];
    const uint32_t first = weft_rd16(p + WEFT_HEADER_HEADER_LEN) + WEFT_SIGNATURE_LEN;
    const weft_kind_t *kind = weft_kinds;
    uint32_t last = 0; /* type */
    for (uint32_t i = 0; i < count; i++, s += WEFT_SECTION_SIZE) {
        const uint32_t type = weft_rd16(s + WEFT_SECTION_TYPE), offset = weft_rd32(s + WEFT_SECTION_OFFSET);
        uint32_t left = weft_rd32(s + WEFT_SECTION_LENGTH);
        place->at = s;
        place->record = i;
        if (offset % 8u != 0 || offset < first || offset > total || left > total - offset || type <= last ||
            (i < WEFT_SECTION_WEIGHTS && type != i + 1u)) {
            return BAD(SECTION);
        }
        if (weft_rd16(s + WEFT_SECTION_FLAGS) > (type <= WEFT_SECTION_NAMES) ||
            weft_rd32(s + WEFT_SECTION_RESERVED) != 0) {
            return BAD(UNKNOWN);
        }
        last = type;
        const uint8_t *at = p + offset;
        place->at = at;
        place->record = WEFT_NONE;
        if (i < 3) { /* of WEIGHTS in the end */
            plan->weights = at;
            plan->weights_len = left;
        }
        if (i >= 2) {
            continue;
        }
        /* GRAPH and SCHEDULE begin with counts, for the plan's first members; then come records, without a rest. */
        uint32_t bytes = WEFT_GRAPH_SIZE - i * (WEFT_GRAPH_SIZE - WEFT_SCHEDULE_SIZE);
        if (bytes > left) {
            return BAD(SECTION);
        }
        memcpy((uint8_t *)plan + i * WEFT_GRAPH_SIZE, at, bytes);
        plan->io_count = (uint16_t)(plan->input_count + plan->output_count);
        for (;; kind++) {
            at += bytes;
            left -= bytes;
            if (kind == weft_kinds + WEFT_GRAPH_KINDS + i * (WEFT_KINDS - WEFT_GRAPH_KINDS)) {
                break;
            }
            memcpy((uint8_t *)plan + kind->base, &at, sizeof at);
            bytes = (uint32_t)kind->size * weft_rd16((const uint8_t *)plan + kind->count); /* counts have 16 bits */
            if (bytes > left) {
                return BAD(SECTION);
            }
        }
        if (left != 0 || ((plan->tensor_count - 1u) | (plan->op_count - 1u)) >= 4096u ||
            ((plan->input_count - 1u) | (plan->output_count - 1u)) >= 16u || plan->reserved != 0 ||
            (i > 0 && plan->stage_count == 0)) {
            return BAD(SECTION);
        }
    }
    return 0;
}

int weft_open(weft_plan_t *plan, const void *bytes, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    weft_place_t place = {bytes, WEFT_NONE};
    int bad = BAD(ARG);
    if (plan != NULL && bytes != NULL) {
        bad = (uintptr_t)bytes % WEFT_PLAN_ALIGN != 0 ? BAD(ALIGN) : check_header(bytes, len, limits, &place);
    }
    if (bad == 0) {
        plan->bytes = bytes;
        bad = parse(plan, &place);
    }
    if (bad == 0) {
        bad = weft_verify_records(plan, &place);
    }
    if (bad == 0) {
        bad = weft_verify_regions(plan, &place);
        bad = bad != 0 ? bad : weft_verify_arena(plan, &place);
        bad = bad != 0 ? bad : weft_verify_replay(plan, &place);
        const uint32_t entry = (uint32_t)((const uint8_t *)place.at - plan->entries) / WEFT_ENTRY_SIZE;
        if (entry < plan->entry_count) {
            place.record = entry;
        }
    }
    return finish(bytes, bad, &place, err);
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
