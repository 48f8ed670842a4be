/* SPDX-License-Identifier: Apache-2.0 */
/* The plan's own test: generated inputs, CRC-32 of every stage's output and of the network's. */
#include "update_internal.h"

typedef struct {
    const weft_update_config_t *cfg;
    const weft_plan_t *plan;
    const uint8_t *crc;  /* of stages, then of outputs */
    uint32_t random[16]; /* the generator's state where each input starts, then as far as its rows were asked for */
    bool differs;
} test_t;

static void generate(uint32_t *state, int8_t *dst, size_t nbytes)
{
    uint32_t s = *state;
    while (nbytes-- > 0) {
        s = s * 1664525u + 1013904223u;
        *dst++ = (int8_t)(uint8_t)(s >> 24);
    }
    *state = s;
}

static int row_of_input(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    test_t *test = ctx;
    (void)row; /* rows are asked for once and in order */
    generate(&test->random[input], dst, nbytes);
    return 0;
}

static void after_stage(void *ctx, unsigned stage, int begin)
{
    test_t *test = ctx;
    size_t offset, nbytes;
    if (begin != 0 || weft_stage_output(test->plan, stage, &offset, &nbytes) != WEFT_OK) {
        return;
    }
    uint32_t crc = weft_crc32((const uint8_t *)test->cfg->arena + offset, nbytes, 0);
    test->differs = test->differs || crc != weft_rd32(test->crc + 4u * stage);
}

static int after_step(void *ctx)
{
    const test_t *test = ctx;
    const weft_update_config_t *cfg = test->cfg;
    if (cfg->hal->feed != NULL) {
        cfg->hal->feed(cfg->hal->ctx);
    }
    return cfg->step != NULL ? cfg->step(cfg->step_ctx) : 0;
}

static size_t input_bytes(const weft_plan_t *plan, unsigned input)
{
    weft_tensor_info_t info;
    (void)weft_input_info(plan, input, &info);
    return (size_t)info.h * info.w * info.c;
}

/* Writes resident and external inputs, and notes where each streamed one's generator starts. */
static int place_inputs(test_t *test, uint32_t seed, const int8_t **external)
{
    size_t used = 0;
    for (unsigned i = 0; i < weft_input_count(test->plan); i++) {
        size_t nbytes = input_bytes(test->plan, i);
        weft_input_mode_t mode = weft_input_mode(test->plan, i);
        int8_t *dst = (int8_t *)test->cfg->arena + weft_input_offset(test->plan, i);
        test->random[i] = seed;
        if (mode == WEFT_INPUT_STREAMED) {
            for (size_t k = 0; k < nbytes; k++) {
                seed = seed * 1664525u + 1013904223u;
            }
            continue;
        }
        if (mode == WEFT_INPUT_EXTERNAL) {
            if (test->cfg->external == NULL || nbytes > test->cfg->external_len - used) {
                return WEFT_ERR_IO;
            }
            dst = (int8_t *)test->cfg->external + used;
            external[i] = dst;
            used += nbytes;
        }
        generate(&seed, dst, nbytes);
    }
    return WEFT_OK;
}

static int check_outputs(test_t *test)
{
    const uint8_t *crc = test->crc + 4u * weft_stage_count(test->plan);
    for (unsigned i = 0; i < weft_output_count(test->plan); i++) {
        weft_tensor_info_t info;
        (void)weft_output_info(test->plan, i, &info);
        const uint8_t *bytes = (const uint8_t *)test->cfg->arena + weft_output_offset(test->plan, i);
        if (weft_crc32(bytes, (size_t)info.h * info.w * info.c, 0) != weft_rd32(crc + 4u * i)) {
            return WEFT_ERR_SELFTEST;
        }
    }
    return test->differs ? WEFT_ERR_SELFTEST : WEFT_OK;
}

int weft_update_selftest(const weft_update_config_t *cfg, const weft_plan_t *plan)
{
    test_t test = {cfg, plan, NULL, {0}, false};
    const int8_t *external[16] = {NULL};
    size_t len;
    const uint8_t *section = weft_section(plan, WEFT_SECTION_SELFTEST, &len);
    if (section == NULL) {
        return WEFT_OK;
    }
    unsigned stages = weft_stage_count(plan), outputs = weft_output_count(plan);
    if (len != WEFT_SELFTEST_SIZE + 4u * ((size_t)stages + outputs) ||
        weft_rd16(section + WEFT_SELFTEST_STAGE_COUNT) != stages ||
        weft_rd16(section + WEFT_SELFTEST_OUTPUT_COUNT) != outputs) {
        return WEFT_ERR_SELFTEST;
    }
    test.crc = section + WEFT_SELFTEST_SIZE;
    weft_io_t io = {0};
    io.ctx = &test;
    io.input_fn = row_of_input;
    io.external = external;
    io.step_fn = after_step;
    io.profile_fn = after_stage;
    int r = place_inputs(&test, weft_rd32(section + WEFT_SELFTEST_SEED), external);
    r = r != WEFT_OK ? r : weft_run(plan, cfg->arena, cfg->arena_len, &io);
    return r != WEFT_OK ? r : check_outputs(&test);
}
