/* SPDX-License-Identifier: Apache-2.0 */
/* Header and section table, then the parts of the verifier in the order in which each relies on the last. */
#include "verify.h"

/* Carves `count` records of `size` bytes off a section, in subtract form so that nothing can wrap. */
static const uint8_t *carve(const uint8_t **at, uint32_t *left, uint32_t count, uint32_t size)
{
    if (count > *left / size) {
        return NULL;
    }
    const uint8_t *p = *at;
    *at += count * size;
    *left -= count * size;
    return p;
}

static int check_header(const uint8_t *p, size_t len, weft_error_t *err)
{
    if (len < WEFT_HEADER_SIZE) {
        return weft_fail(err, WEFT_ERR_TRUNCATED, WEFT_NONE, (uint32_t)len);
    }
    if (weft_rd32(p + WEFT_HEADER_MAGIC) != WEFT_MAGIC) {
        return weft_fail(err, WEFT_ERR_MAGIC, WEFT_NONE, WEFT_HEADER_MAGIC);
    }
    if (p[WEFT_HEADER_FORMAT_MAJOR] != WEFT_FORMAT_MAJOR || p[WEFT_HEADER_FORMAT_MINOR] > WEFT_FORMAT_MINOR) {
        return weft_fail(err, WEFT_ERR_VERSION, WEFT_NONE, WEFT_HEADER_FORMAT_MAJOR);
    }
    if (p[WEFT_HEADER_ABI_MAJOR] != WEFT_ABI_MAJOR || p[WEFT_HEADER_ABI_MINOR] > WEFT_ABI_MINOR) {
        return weft_fail(err, WEFT_ERR_ABI, WEFT_NONE, WEFT_HEADER_ABI_MAJOR);
    }
    uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN), count = p[WEFT_HEADER_SECTION_COUNT];
    if (total > len || total > INT32_MAX) {
        return weft_fail(err, WEFT_ERR_TRUNCATED, WEFT_NONE, WEFT_HEADER_TOTAL_LEN);
    }
    if (count < 3 || count > 16 ||
        weft_rd16(p + WEFT_HEADER_HEADER_LEN) != WEFT_HEADER_SIZE + count * WEFT_SECTION_SIZE ||
        WEFT_HEADER_SIZE + count * WEFT_SECTION_SIZE + WEFT_SIGNATURE_LEN > total) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, WEFT_HEADER_HEADER_LEN);
    }
    if (weft_rd32(p + WEFT_HEADER_CAPABILITIES) != 0) {
        return weft_fail(err, WEFT_ERR_UNKNOWN, WEFT_NONE, WEFT_HEADER_CAPABILITIES);
    }
    if (weft_rd32(p + WEFT_HEADER_FLAGS) != 0) {
        return weft_fail(err, WEFT_ERR_UNKNOWN, WEFT_NONE, WEFT_HEADER_FLAGS);
    }
    if ((weft_rd32(p + WEFT_HEADER_RESERVED) | weft_rd32(p + WEFT_HEADER_RESERVED2)) != 0) {
        return weft_fail(err, WEFT_ERR_UNKNOWN, WEFT_NONE, WEFT_HEADER_RESERVED);
    }
    if (p[WEFT_HEADER_ALIGN_LOG2] < 2 || p[WEFT_HEADER_ALIGN_LOG2] > 6) {
        return weft_fail(err, WEFT_ERR_ALIGN, WEFT_NONE, WEFT_HEADER_ALIGN_LOG2);
    }
    return WEFT_OK;
}

static int check_limits(const uint8_t *p, const weft_limits_t *limits, weft_error_t *err)
{
    if (weft_rd32(p + WEFT_HEADER_ARENA_BYTES) > INT32_MAX) {
        return weft_fail(err, WEFT_ERR_ARENA, WEFT_NONE, WEFT_HEADER_ARENA_BYTES);
    }
    if (limits == NULL) {
        return WEFT_OK;
    }
    if (limits->arena_bytes != 0 && weft_rd32(p + WEFT_HEADER_ARENA_BYTES) > limits->arena_bytes) {
        return weft_fail(err, WEFT_ERR_LIMIT, WEFT_NONE, WEFT_HEADER_ARENA_BYTES);
    }
    if (limits->row_steps != 0 && weft_rd32(p + WEFT_HEADER_ROW_STEPS) > limits->row_steps) {
        return weft_fail(err, WEFT_ERR_LIMIT, WEFT_NONE, WEFT_HEADER_ROW_STEPS);
    }
    if (limits->calls != 0 && weft_rd32(p + WEFT_HEADER_CALLS) > limits->calls) {
        return weft_fail(err, WEFT_ERR_LIMIT, WEFT_NONE, WEFT_HEADER_CALLS);
    }
    if (limits->macs != 0 && weft_rd64(p + WEFT_HEADER_MACS) > limits->macs) {
        return weft_fail(err, WEFT_ERR_LIMIT, WEFT_NONE, WEFT_HEADER_MACS);
    }
    if (limits->elements != 0 && weft_rd64(p + WEFT_HEADER_ELEMENTS) > limits->elements) {
        return weft_fail(err, WEFT_ERR_LIMIT, WEFT_NONE, WEFT_HEADER_ELEMENTS);
    }
    return WEFT_OK;
}

int weft_verify_header(const uint8_t *p, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    int r = check_header(p, len, err);
    return r != WEFT_OK ? r : check_limits(p, limits, err);
}

/* Bounds every section; returns those that the engine reads. */
static int check_sections(const uint8_t *p, const uint8_t **section, uint32_t *section_len, weft_error_t *err)
{
    uint32_t total = weft_rd32(p + WEFT_HEADER_TOTAL_LEN), count = p[WEFT_HEADER_SECTION_COUNT];
    uint32_t first = WEFT_HEADER_SIZE + count * WEFT_SECTION_SIZE + WEFT_SIGNATURE_LEN;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = WEFT_HEADER_SIZE + i * WEFT_SECTION_SIZE;
        const uint8_t *s = p + at;
        uint32_t type = weft_rd16(s + WEFT_SECTION_TYPE), flags = weft_rd16(s + WEFT_SECTION_FLAGS);
        uint32_t offset = weft_rd32(s + WEFT_SECTION_OFFSET), length = weft_rd32(s + WEFT_SECTION_LENGTH);
        if (offset % 8u != 0 || offset < first || offset > total || length > total - offset) {
            return weft_fail(err, WEFT_ERR_SECTION, i, at + WEFT_SECTION_OFFSET);
        }
        if (flags > 1u || weft_rd32(s + WEFT_SECTION_RESERVED) != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, at + WEFT_SECTION_FLAGS);
        }
        if (type >= WEFT_SECTION_GRAPH && type <= WEFT_SECTION_NAMES) {
            if (section[type] != NULL) {
                return weft_fail(err, WEFT_ERR_SECTION, i, at);
            }
            section[type] = p + offset;
            section_len[type] = length;
        } else if (flags != 0) {
            return weft_fail(err, WEFT_ERR_UNKNOWN, i, at);
        }
    }
    if (section[WEFT_SECTION_GRAPH] == NULL || section[WEFT_SECTION_SCHEDULE] == NULL ||
        section[WEFT_SECTION_WEIGHTS] == NULL) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, WEFT_HEADER_SIZE);
    }
    return WEFT_OK;
}

static int carve_graph(weft_plan_t *plan, const uint8_t *at, uint32_t left, weft_error_t *err)
{
    uint32_t where = (uint32_t)(at - plan->bytes);
    const uint8_t *head = carve(&at, &left, 1, WEFT_GRAPH_SIZE);
    if (head == NULL) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, where);
    }
    plan->tensor_count = weft_rd16(head + WEFT_GRAPH_TENSOR_COUNT);
    plan->op_count = weft_rd16(head + WEFT_GRAPH_OP_COUNT);
    plan->const_count = weft_rd16(head + WEFT_GRAPH_CONST_COUNT);
    plan->input_count = head[WEFT_GRAPH_INPUT_COUNT];
    plan->output_count = head[WEFT_GRAPH_OUTPUT_COUNT];
    plan->list_count = weft_rd16(head + WEFT_GRAPH_LIST_COUNT);
    if (plan->tensor_count == 0 || plan->tensor_count > 4095 || plan->op_count == 0 || plan->op_count > 4095 ||
        plan->input_count == 0 || plan->input_count > 16 || plan->output_count == 0 || plan->output_count > 16 ||
        weft_rd16(head + WEFT_GRAPH_RESERVED) != 0) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, where);
    }
    plan->graph = carve(&at, &left, plan->tensor_count, WEFT_TENSOR_SIZE);
    plan->ops = carve(&at, &left, plan->op_count, WEFT_OP_SIZE);
    plan->consts = carve(&at, &left, plan->const_count, WEFT_CONST_SIZE);
    plan->ios = carve(&at, &left, (uint32_t)plan->input_count + plan->output_count, WEFT_IO_SIZE);
    plan->lists = carve(&at, &left, plan->list_count, 2);
    if (plan->graph == NULL || plan->ops == NULL || plan->consts == NULL || plan->ios == NULL || plan->lists == NULL ||
        left != 0) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, where);
    }
    return WEFT_OK;
}

static int carve_schedule(weft_plan_t *plan, const uint8_t *at, uint32_t left, weft_error_t *err)
{
    uint32_t where = (uint32_t)(at - plan->bytes);
    const uint8_t *head = carve(&at, &left, 1, WEFT_SCHEDULE_SIZE);
    if (head == NULL) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, where);
    }
    plan->stage_count = weft_rd16(head + WEFT_SCHEDULE_STAGE_COUNT);
    plan->segment_count = weft_rd16(head + WEFT_SCHEDULE_SEGMENT_COUNT);
    plan->entry_count = weft_rd16(head + WEFT_SCHEDULE_ENTRY_COUNT);
    plan->placed_count = weft_rd16(head + WEFT_SCHEDULE_PLACED_COUNT);
    plan->stages = carve(&at, &left, plan->stage_count, WEFT_STAGE_SIZE);
    plan->segments = carve(&at, &left, plan->segment_count, WEFT_SEGMENT_SIZE);
    plan->entries = carve(&at, &left, plan->entry_count, WEFT_ENTRY_SIZE);
    plan->entry_of = carve(&at, &left, plan->tensor_count, 2);
    if (plan->stages == NULL || plan->segments == NULL || plan->entries == NULL || plan->entry_of == NULL ||
        left != 0 || plan->stage_count == 0) {
        return weft_fail(err, WEFT_ERR_SECTION, WEFT_NONE, where);
    }
    return WEFT_OK;
}

/* Header, section table and the bounds of every record: fills the plan. */
static WEFT_APART int parse(weft_plan_t *plan, const uint8_t *p, size_t len, const weft_limits_t *limits,
                            weft_error_t *err)
{
    const uint8_t *section[WEFT_SECTION_NAMES + 1u] = {NULL};
    uint32_t section_len[WEFT_SECTION_NAMES + 1u] = {0};

    int r = weft_verify_header(p, len, limits, err);
    r = r != WEFT_OK ? r : check_sections(p, section, section_len, err);
    if (r != WEFT_OK) {
        return r;
    }
    memset(plan, 0, sizeof *plan);
    plan->bytes = p;
    plan->weights = section[WEFT_SECTION_WEIGHTS];
    plan->weights_len = section_len[WEFT_SECTION_WEIGHTS];
    r = carve_graph(plan, section[WEFT_SECTION_GRAPH], section_len[WEFT_SECTION_GRAPH], err);
    return r != WEFT_OK ? r
                        : carve_schedule(plan, section[WEFT_SECTION_SCHEDULE], section_len[WEFT_SECTION_SCHEDULE], err);
}

int weft_open(weft_plan_t *plan, const void *bytes, size_t len, const weft_limits_t *limits, weft_error_t *err)
{
    weft_error_t ignored;
    err = err != NULL ? err : &ignored;
    err->code = WEFT_OK;
    err->record = WEFT_NONE;
    err->offset = 0;
    if (plan == NULL || bytes == NULL) {
        return weft_fail(err, WEFT_ERR_ARG, WEFT_NONE, 0);
    }
    if ((uintptr_t)bytes % WEFT_PLAN_ALIGN != 0) {
        return weft_fail(err, WEFT_ERR_ALIGN, WEFT_NONE, 0);
    }
    const uint8_t *p = bytes;
    uint64_t op_mask = 0;
    int r = parse(plan, p, len, limits, err);
    r = r != WEFT_OK ? r : weft_verify_graph(plan, &op_mask, err);
    if (r == WEFT_OK && op_mask != weft_rd64(p + WEFT_HEADER_OP_MASK)) {
        r = weft_fail(err, WEFT_ERR_DECLARED, WEFT_NONE, WEFT_HEADER_OP_MASK);
    }
    r = r != WEFT_OK ? r : weft_verify_regions(plan, err);
    r = r != WEFT_OK ? r : weft_verify_figures(plan, err);
    r = r != WEFT_OK ? r : weft_verify_arena(plan, weft_rd32(p + WEFT_HEADER_ARENA_BYTES), err);
    r = r != WEFT_OK ? r : weft_verify_replay(plan, err);
    return r;
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
