/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: a byte for the device, then packets: a length, a byte of options and the bytes. Options let the length and the
 * group in the packet's header be made good, and name the plan that is sent next where a request asks for it: a packet
 * that ends in a text "data" gets the bytes that the device wants, so that sessions get as far as they do in life.
 */
#include <stdlib.h>
#include <string.h>

#include "../mutate.h"
#include "fuzzer.h"
#include "weft/weft_smp.h"
#include "world.h"

enum { PACKETS_MAX = 40, ROOM = 600, DATA_MAX = 400, REPAIR = 1, SHORT_OF_ROOM = 2, RESTART = 4, PLAN_SHIFT = 4 };

static weft_smp_t smp;

/* A text of CBOR with its head, and an argument of a type, as zcbor's other side writes them. */
static uint8_t *text(uint8_t *p, const char *name)
{
    size_t n = strlen(name);
    *p++ = (uint8_t)(0x60u | n);
    memcpy(p, name, n);
    return p + n;
}

static uint8_t *argument(uint8_t *p, uint8_t type, uint32_t value)
{
    *p++ = (uint8_t)((unsigned)type << 5 | 26u);
    for (unsigned i = 0; i < 4; i++) {
        *p++ = (uint8_t)(value >> (24u - 8u * i));
    }
    return p;
}

/* What a host sends next: the plan's head, then what the device wants of it; test and so on are as in the input. */
static size_t request(uint8_t command, unsigned plan, uint8_t *out)
{
    weft_update_status_t status;
    weft_update_status(world.update, &status);
    uint32_t at = command == WEFT_SMP_BEGIN ? smp.head_len : status.received;
    uint32_t end = command == WEFT_SMP_BEGIN ? world_head_len(plan) : world.plan[plan].len;
    at = at < end ? at : 0;
    uint32_t n = end - at < DATA_MAX ? end - at : DATA_MAX;
    uint8_t *p = out + WEFT_SMP_HEADER;
    *p++ = 0xa5;
    p = argument(text(p, "token"), 0, world.update->token);
    p = argument(text(p, "off"), 0, at);
    p = argument(text(p, "len"), 0, end);
    p = text(p, "copy");
    *p++ = 0xf5;
    p = argument(text(p, "data"), 2, n);
    memcpy(p, world.plan[plan].bytes + at, n);
    memset(out, 0, WEFT_SMP_HEADER);
    out[0] = 0x0a;
    out[7] = command;
    return (size_t)(p + n - out);
}

static void frame(uint8_t *packet, size_t len)
{
    if (len >= WEFT_SMP_HEADER) {
        packet[2] = (uint8_t)((len - WEFT_SMP_HEADER) >> 8);
        packet[3] = (uint8_t)(len - WEFT_SMP_HEADER);
        packet[4] = 0;
        packet[5] = WEFT_SMP_GROUP;
    }
}

static void give(const uint8_t *packet, size_t len, size_t room)
{
    /* Blocks of their exact sizes, so that a byte too far is seen. */
    uint8_t *in = malloc(len + (len == 0)), *out = malloc(room + (room == 0));
    if (in == NULL || out == NULL) {
        abort();
    }
    memcpy(in, packet, len);
    size_t n = weft_smp_packet(&smp, in, len, out, room);
    if (n > room || (n != 0 && (n < WEFT_SMP_HEADER || out[6] != in[6] || out[7] != in[7] ||
                                n - WEFT_SMP_HEADER != (size_t)(out[2] << 8 | out[3])))) {
        world_broken("a reply that is none");
    }
    free(in);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    world_new(data[0]);
    memset(&smp, 0, sizeof smp);
    smp.update = world.update;
    unsigned packets = 0;
    for (size_t at = 1; at + 2 <= size && packets < PACKETS_MAX; packets++) {
        static uint8_t packet[ROOM + 256];
        uint8_t options = data[at + 1];
        size_t len = data[at] < size - at - 2 ? data[at] : size - at - 2, room = ROOM;
        memcpy(packet, data + at + 2, len);
        at += 2 + len;
        if (len == 1) {
            uint8_t command = packet[0];
            world.runs = command == WEFT_SMP_BEGIN ? 0 : world.runs;
            len = request(command, (options >> PLAN_SHIFT) % PLANS, packet);
            options |= REPAIR;
        }
        if ((options & REPAIR) != 0) {
            frame(packet, len);
        }
        if ((options & SHORT_OF_ROOM) != 0) {
            room = len % 128u;
        }
        world_before(true);
        give(packet, len, room);
        if ((options & RESTART) != 0) {
            world_restart();
        }
        world_after();
    }
    world_end();
    return 0;
}

/* Bytes as libFuzzer changes them; packets that are requests of a host are put in. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    random_seed(seed);
    if (size > 0 && rnd(3) == 0 && size + 3 <= max_size) {
        size_t at = 1;
        for (uint32_t skip = rnd(PACKETS_MAX); skip > 0 && at + 2 <= size && at + 2 + data[at] <= size; skip--) {
            at += 2u + data[at];
        }
        memmove(data + at + 3, data + at, size - at);
        data[at] = 1;
        data[at + 1] = (uint8_t)(rnd(PLANS) << PLAN_SHIFT | (rnd(4) == 0 ? RESTART : 0));
        data[at + 2] = (uint8_t)rnd(10);
        return size + 3;
    }
    return LLVMFuzzerMutate(data, size, max_size);
}
