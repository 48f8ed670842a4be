/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a byte for the device, then commands of 8 bytes each, to the core's API: transfers whole, in pieces and out of
 * order, changed plans, every verb, resets, power cuts, failing flash, time, bytes that change behind the core's back.
 */
#include <stdlib.h>
#include <string.h>

#include "../mutate.h"
#include "fuzzer.h"
#include "world.h"

enum { COMMAND = 8, COMMANDS_MAX = 40 };

typedef enum {
    BEGIN,
    SEND,  /* what the device wants, up to a part of the plan */
    WRITE, /* any bytes of the plan to any offset */
    FINISH,
    ABORT,
    TEST,
    CONFIRM,
    REVERT,
    ERASE,
    HEALTHY,
    BOOT,
    RESTART,
    CUT,    /* power, at one of the next operations, in some way */
    FAIL,   /* flash or hash, from some call on */
    WAIT,   /* seconds */
    EDIT,   /* a field of a plan, sealed again */
    FLIP,   /* a byte of a plan that was sealed */
    POKE,   /* a byte of flash */
    BUDGET, /* of erases, and of a self-test's steps */
    INFER,
    VERBS
} verb_t;

typedef struct {
    uint8_t verb, plan, flags, part;
    uint16_t offset, value;
} command_t;

static weft_transfer_t transfer;
static uint32_t token;
static uint8_t *given; /* to the core, in a block of its own; outlives a power cut */

static void begin(const command_t *c)
{
    flash_t *flash = device_flash(world.device);
    uint32_t erases = flash->erases, programs = flash->programs, len = world_head_len(c->plan);
    if ((c->flags & 2u) != 0) {
        len = c->value; /* of a head that is as long as it says, or not */
    }
    len = len < WEFT_UPDATE_HEAD_MAX + 8u ? len : WEFT_UPDATE_HEAD_MAX + 8u;
    given = malloc(len + 1u);
    if (given == NULL) {
        abort();
    }
    memcpy(given, world.plan[c->plan].bytes, len);
    int r = weft_update_begin(world.update, given, len, c->flags & WEFT_UPDATE_COPY, &transfer, NULL);
    if (r == WEFT_OK && transfer.token != 0) {
        token = transfer.token;
        world.runs = 0;
    } else if (r != WEFT_ERR_FLASH && (flash->erases != erases || flash->programs != programs)) {
        world_broken("flash was touched for a plan that was refused or is there");
    }
}

static void write(uint32_t offset, unsigned plan, uint32_t from, uint32_t len)
{
    free(given);
    given = malloc(len + 1u);
    if (given == NULL) {
        abort();
    }
    memcpy(given, world.plan[plan].bytes + from, len);
    (void)weft_update_write(world.update, token, offset, given, len, &transfer);
}

static void send_part(const command_t *c)
{
    uint32_t stop = (uint32_t)(((uint64_t)transfer.total * (c->part + 1u)) >> 8), chunk = 64u + c->value % 1024u;
    for (unsigned i = 0; i < 200 && transfer.token != 0 && transfer.next < stop; i++) {
        uint32_t at = transfer.next, n = transfer.copying != 0 ? 0 : transfer.until - at;
        n = n < chunk ? n : chunk;
        if (at > PLAN_MAX || n > PLAN_MAX - at) {
            return;
        }
        write(at, c->plan, at, n);
    }
}

static void perform(const command_t *c)
{
    uint8_t *bytes = world.plan[c->plan].bytes, output[36];
    device_t *d = world.device;
    switch ((verb_t)c->verb) {
    case BEGIN:
        begin(c);
        break;
    case SEND:
        send_part(c);
        break;
    case WRITE:
        write((c->flags & 1u) != 0 ? transfer.next + c->offset - 0x8000u : c->offset, c->plan, c->value % PLAN_MAX,
              c->part < PLAN_MAX - c->value % PLAN_MAX ? c->part : 0);
        break;
    case FINISH:
        (void)weft_update_finish(world.update, token + (c->flags & 1u), NULL);
        break;
    case ABORT:
        (void)weft_update_abort(world.update, token + (c->flags & 1u));
        break;
    case TEST:
        (void)weft_update_test(world.update);
        break;
    case CONFIRM:
        (void)weft_update_confirm(world.update);
        break;
    case REVERT:
        (void)weft_update_revert(world.update);
        break;
    case ERASE:
        (void)weft_update_erase(world.update);
        break;
    case HEALTHY:
        (void)weft_update_healthy(world.update);
        break;
    case BOOT:
        world_boot();
        break;
    case RESTART:
        world_restart();
        break;
    case FAIL:
        device_fail(d, c->offset % 256u, c->value);
        world.rough = world.rough || c->value != 0;
        break;
    case WAIT:
        device_pass(d, c->value);
        break;
    case EDIT:
        put(bytes + c->offset % world.plan[c->plan].len, 1u << c->part % 3u, c->value * 0x10001u);
        world_seal(c->plan);
        break;
    case FLIP:
        bytes[c->offset % world.plan[c->plan].len] ^= (uint8_t)(c->value | 1u);
        break;
    case POKE:
        device_bytes(d, c->plan % 2u)[c->offset % PLAN_MAX] ^= (uint8_t)(c->value | 1u);
        world.rough = true;
        break;
    case BUDGET:
        device_limits(d, c->flags != 0 ? c->part : UINT32_MAX, (c->flags & 2u) != 0 ? c->value % 64u : UINT32_MAX);
        break;
    case INFER: {
        weft_update_status_t status;
        weft_update_status(world.update, &status);
        if (status.running <= 1 && !world.rough) {
            (void)device_run(d, output, sizeof output);
        }
        break;
    }
    case CUT:
    default:
        break;
    }
}

/* A command, and the way back from it if power was cut. */
static void step(const command_t *c)
{
    static jmp_buf power;
    world_before(c->verb == CONFIRM || c->verb == HEALTHY);
    if (setjmp(power) != 0) {
        memset(&transfer, 0, sizeof transfer);
        world_restart();
    } else if (c->verb == CUT) {
        device_cut(world.device, 1u + c->offset % 64u, (cut_t)(c->flags % CUT_KINDS), &power);
    } else {
        perform(c);
    }
    free(given);
    given = NULL;
    world_after();
}

static command_t decode(const uint8_t *p)
{
    command_t c = {p[0] % VERBS, p[1] % PLANS, p[2], p[3], (uint16_t)get(p + 4, 2), (uint16_t)get(p + 6, 2)};
    return c;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    memset(&transfer, 0, sizeof transfer);
    token = 0;
    world_new(data[0]);
    for (size_t at = 1, n = 0; at + COMMAND <= size && n < COMMANDS_MAX; at += COMMAND, n++) {
        const command_t c = decode(data + at);
        step(&c);
    }
    world_end();
    return 0;
}

/* Commands are put in, taken out, exchanged, repeated; or a field changes. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    random_seed(seed);
    uint32_t count = size > 0 ? (uint32_t)(size - 1u) / COMMAND : 0, most = (uint32_t)(max_size - 1u) / COMMAND;
    uint8_t *first = data + 1;
    if (size == 0 || rnd(6) == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    switch (rnd(6)) {
    case 0:
    case 1: /* a command more, often with sensible arguments */
        if (count < most && count < COMMANDS_MAX) {
            uint8_t *p = first + rnd(count + 1u) * COMMAND;
            memmove(p + COMMAND, p, (size_t)(first + count * COMMAND - p));
            for (unsigned i = 0; i < COMMAND; i++) {
                p[i] = (uint8_t)rnd(256);
            }
            p[3] = rnd(2) != 0 ? 255 : p[3];
            p[2] = rnd(2) != 0 ? (uint8_t)rnd(2) : p[2];
            count++;
        }
        break;
    case 2: /* one less */
        if (count > 1) {
            uint8_t *p = first + rnd(count) * COMMAND;
            memmove(p, p + COMMAND, (size_t)(first + count * COMMAND - p) - COMMAND);
            count--;
        }
        break;
    case 3: /* an update as hosts do it: begin, all bytes, finish, test, restart, confirm */
        if (count + 6u <= most && count + 6u <= COMMANDS_MAX) {
            static const uint8_t verbs[] = {BEGIN, SEND, FINISH, TEST, RESTART, CONFIRM};
            uint8_t *p = first + rnd(count + 1u) * COMMAND, plan = (uint8_t)rnd(PLANS);
            memmove(p + 6 * COMMAND, p, (size_t)(first + count * COMMAND - p));
            memset(p, 0, (size_t)6 * COMMAND);
            for (unsigned i = 0; i < 6; i++) {
                p[i * COMMAND] = verbs[i];
                p[i * COMMAND + 1] = plan;
                p[i * COMMAND + 3] = 255;
            }
            count += 6;
        }
        break;
    case 4: /* as another one */
        if (count > 1) {
            memmove(first + rnd(count) * COMMAND, first + rnd(count) * COMMAND, COMMAND);
        }
        break;
    default:
        if (count > 0) {
            first[rnd(count * COMMAND)] = (uint8_t)rnd(256);
        }
        break;
    }
    return 1u + count * COMMAND;
}
