/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bare-metal test firmware: opens a plan that the emulator's loader has put into memory, runs it on the inputs beside
 * it, and reports one JSON line per event. The image knows no model: the same bytes run any plan. The job's layout is
 * in runner.py.
 */
#include <stdbool.h>
#include <string.h>

#include "port.h"
#include "weft/weft.h"
#include "weft/weft_config.h"

#if WEFT_KERNELS_MVE
#include "kernels_mve/copy.h"
#endif

#define JOB_MAGIC 0x424f4a57u
#define JOB_STAGES 1u  /* ticks per stage */
#define JOB_OPS 2u     /* ticks per operator */
#define JOB_DIGESTS 4u /* CRC-32 of every stage's output */

#define STAGES_MAX 1024u
#define OPS_MAX 4096u
#define INPUTS_MAX 8u
#define CANARY_BYTES 64u
#define CANARY 0xc5u
#define PAINT 0xa5a5a5a5u

typedef struct {
    uint32_t magic, flags, plan_offset, plan_len, input_offset, input_len, runs, reserved;
} job_t;

typedef struct {
    const weft_plan_t *plan;
    const int8_t *input[INPUTS_MAX];
    const uint8_t *arena;
    uint32_t flags;
    uint64_t begun;    /* ticks at the current stage's or operator's begin */
    uint64_t excluded; /* ticks that digests took */
} run_t;

static uint64_t stage_ticks[STAGES_MAX];
static uint32_t stage_digest[STAGES_MAX];
static uint64_t op_ticks[OPS_MAX];
static uint32_t op_count;

/* ---------------------------------------------------------------- output */

static char line[256];
static size_t line_len;

static void flush(void)
{
    line[line_len] = '\0';
    port_write(line);
    line_len = 0;
}

static void put_char(char c)
{
    if (line_len == sizeof line - 1u) {
        flush();
    }
    line[line_len++] = c;
}

static void put(const char *text)
{
    while (*text != '\0') {
        put_char(*text++);
    }
}

static void put_u64(uint64_t value)
{
    char digits[20];
    size_t n = 0;
    do {
        digits[n++] = (char)('0' + (int)(value % 10u));
        value /= 10u;
    } while (value != 0);
    while (n > 0) {
        put_char(digits[--n]);
    }
}

static void put_i32(int32_t value)
{
    if (value < 0) {
        put_char('-');
    }
    put_u64(value < 0 ? 0u - (uint32_t)value : (uint32_t)value);
}

static void put_hex(const uint8_t *bytes, size_t n)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        put_char(digit[bytes[i] >> 4]);
        put_char(digit[bytes[i] & 15u]);
    }
}

static void key(const char *name)
{
    put(", \"");
    put(name);
    put("\": ");
}

static void end_line(void)
{
    put("}\n");
    flush();
}

static void put_error(int code)
{
    key("name");
    put_char('"');
    put(weft_error_name(code));
    put_char('"');
}

void firmware_fault(uint32_t cause, uint32_t address)
{
    line_len = 0;
    put("\n{\"event\": \"fault\"");
    key("cause");
    put_u64(cause);
    key("address");
    put_u64(address);
    end_line();
    port_exit(1);
}

/* ---------------------------------------------------------------- measuring */

/* CRC-32 as zlib has it. */
static uint32_t crc32(const uint8_t *bytes, size_t n)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1u ? 0xedb88320u : 0u);
        }
    }
    return ~crc;
}

/* Fill the unused part of the stack; returns where the measured call's stack starts. */
static __attribute__((noinline)) uintptr_t paint_stack(void)
{
    uintptr_t sp = port_stack_pointer();
    for (volatile uint32_t *word = firmware_stack_limit; (uintptr_t)word < sp; word++) {
        *word = PAINT;
    }
    return sp;
}

static uint32_t stack_used(uintptr_t from)
{
    const volatile uint32_t *word = firmware_stack_limit;
    while ((uintptr_t)word < from && *word == PAINT) {
        word++;
    }
    return (uint32_t)(from - (uintptr_t)word);
}

static void on_stage(void *ctx, unsigned stage, int begin)
{
    run_t *run = ctx;
    uint64_t now = port_ticks();
    size_t offset, nbytes;
    if (begin || stage >= STAGES_MAX) {
        run->begun = now;
        return;
    }
    stage_ticks[stage] = now - run->begun;
    if ((run->flags & JOB_DIGESTS) != 0 && weft_stage_output(run->plan, stage, &offset, &nbytes) == WEFT_OK) {
        stage_digest[stage] = crc32(run->arena + offset, nbytes);
        run->excluded += port_ticks() - now;
    }
}

static void on_op(void *ctx, unsigned op, int begin)
{
    run_t *run = ctx;
    uint64_t now = port_ticks();
    if (begin) {
        run->begun = now;
    } else if (op < OPS_MAX) {
        op_ticks[op] += now - run->begun;
        op_count = op >= op_count ? op + 1u : op_count;
    }
}

/* Hands a row over as an application would: many bytes at once. The C library's memcpy for size goes byte by byte. */
static int on_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    const run_t *run = ctx;
    const int8_t *src = run->input[input] + (size_t)row * nbytes;
#if WEFT_KERNELS_MVE
    weft_copy_down(dst, src, (int32_t)nbytes);
#else
    for (; nbytes >= 16; nbytes -= 16, src += 16, dst += 16) {
        uint32_t a, b, c, d;
        __builtin_memcpy(&a, src, 4);
        __builtin_memcpy(&b, src + 4, 4);
        __builtin_memcpy(&c, src + 8, 4);
        __builtin_memcpy(&d, src + 12, 4);
        __builtin_memcpy(dst, &a, 4);
        __builtin_memcpy(dst + 4, &b, 4);
        __builtin_memcpy(dst + 8, &c, 4);
        __builtin_memcpy(dst + 12, &d, 4);
    }
    while (nbytes-- > 0) {
        *dst++ = *src++;
    }
#endif
    return 0;
}

/* ---------------------------------------------------------------- job */

static void put_array_u64(const char *name, const uint64_t *values, size_t n)
{
    key(name);
    put_char('[');
    for (size_t i = 0; i < n; i++) {
        put(i > 0 ? ", " : "");
        put_u64(values[i]);
    }
    put_char(']');
}

static int open_plan(weft_plan_t *plan, const uint8_t *bytes, size_t len)
{
    const weft_limits_t limits = {.arena_bytes = ARENA_LENGTH - 3u * CANARY_BYTES};
    weft_plan_info_t info;
    weft_error_t error;
    uintptr_t sp = paint_stack();
    port_ticks_start();
    uint64_t started = port_ticks();
    int status = weft_open(plan, bytes, len, &limits, &error);
    uint64_t ticks = port_ticks() - started;
    uint32_t stack = stack_used(sp);

    put("{\"event\": \"open\"");
    key("status");
    put_i32(status);
    put_error(status);
    if (status != WEFT_OK) {
        key("record");
        put_u64(error.record);
        key("offset");
        put_u64(error.offset);
        key("operator");
        put_char('"');
        put(weft_operator_name(error.opcode));
        put_char('"');
    } else {
        weft_plan_info(plan, &info);
        key("model_id");
        put_char('"');
        put_hex(info.model_id, 32);
        put_char('"');
        key("plan_version");
        put_u64(info.plan_version);
        key("arena");
        put_u64(weft_arena_size(plan));
        key("macs");
        put_u64(info.macs);
    }
    key("ticks");
    put_u64(ticks);
    key("stack");
    put_u64(stack);
    end_line();
    return status;
}

static bool canaries_intact(const uint8_t *before, const uint8_t *after)
{
    for (size_t i = 0; i < CANARY_BYTES; i++) {
        if (before[i] != CANARY || after[i] != CANARY) {
            return false;
        }
    }
    return true;
}

static void run_plan(const weft_plan_t *plan, const job_t *job, uint32_t number)
{
    const int8_t *input = (const int8_t *)job + job->input_offset + (size_t)number * job->input_len;
    size_t align = weft_arena_align(plan), size = weft_arena_size(plan);
    uint8_t *arena = (uint8_t *)((ARENA_ORIGIN + CANARY_BYTES + align - 1u) / align * align);
    run_t run = {.plan = plan, .arena = arena, .flags = job->flags};
    weft_io_t io = {.ctx = &run, .input_fn = on_row, .external = run.input};

    memset(arena - CANARY_BYTES, CANARY, size + 2u * CANARY_BYTES);
    for (unsigned i = 0; i < weft_input_count(plan); i++) {
        weft_tensor_info_t info;
        weft_input_info(plan, i, &info);
        size_t nbytes = (size_t)info.h * info.w * info.c;
        if (weft_input_mode(plan, i) == WEFT_INPUT_RESIDENT) {
            memcpy(arena + weft_input_offset(plan, i), input, nbytes);
        }
        run.input[i] = input;
        input += nbytes;
    }
    if ((job->flags & JOB_OPS) != 0) {
        memset(op_ticks, 0, sizeof op_ticks);
        op_count = 0;
        io.op_fn = on_op;
    } else if ((job->flags & (JOB_STAGES | JOB_DIGESTS)) != 0) {
        io.profile_fn = on_stage;
    }
    uintptr_t sp = paint_stack();
    port_ticks_start();
    uint64_t started = port_ticks();
    int status = weft_run(plan, arena, size, &io);
    uint64_t ticks = port_ticks() - started - run.excluded;
    uint32_t stack = stack_used(sp);

    put("{\"event\": \"run\"");
    key("status");
    put_i32(status);
    put_error(status);
    key("intact");
    put(canaries_intact(arena - CANARY_BYTES, arena + size) ? "true" : "false");
    key("ticks");
    put_u64(ticks);
    key("stack");
    put_u64(stack);
    key("digests");
    put_char('[');
    for (unsigned i = 0; status == WEFT_OK && i < weft_output_count(plan); i++) {
        weft_tensor_info_t info;
        weft_output_info(plan, i, &info);
        put(i > 0 ? ", " : "");
        put_u64(crc32(arena + weft_output_offset(plan, i), (size_t)info.h * info.w * info.c));
    }
    put_char(']');
    unsigned stages = weft_stage_count(plan);
    if ((job->flags & JOB_OPS) != 0) {
        put_array_u64("op_ticks", op_ticks, op_count);
    } else if ((job->flags & JOB_STAGES) != 0) {
        put_array_u64("stage_ticks", stage_ticks, stages);
    }
    if ((job->flags & JOB_OPS) == 0 && (job->flags & JOB_DIGESTS) != 0) {
        key("stage_digests");
        put_char('[');
        for (unsigned i = 0; i < stages; i++) {
            put(i > 0 ? ", " : "");
            put_u64(stage_digest[i]);
        }
        put_char(']');
    }
    end_line();
}

void firmware_main(void)
{
    const job_t *job = (const job_t *)JOB_ORIGIN;
    weft_plan_t plan;
    int failed = 1;

    if (job->magic != JOB_MAGIC) {
        put("{\"event\": \"no job\"");
        end_line();
    } else if (open_plan(&plan, (const uint8_t *)job + job->plan_offset, job->plan_len) == WEFT_OK) {
        if (weft_input_count(&plan) > INPUTS_MAX || weft_stage_count(&plan) > STAGES_MAX) {
            put("{\"event\": \"too large\"");
            end_line();
        } else {
            for (uint32_t number = 0; number < job->runs; number++) {
                run_plan(&plan, job, number);
            }
            failed = 0;
        }
    } else {
        failed = 0;
    }
    port_exit(failed);
}
