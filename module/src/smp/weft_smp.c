/* SPDX-License-Identifier: Apache-2.0 */
/* SMP group of the update core. Requests are untrusted: zcbor bounds every read, the core checks every value. */
#include "weft/weft_smp.h"

#include <string.h>
#include <zcbor_common.h>
#include <zcbor_decode.h>
#include <zcbor_encode.h>

/* MCUmgr's general error codes. */
enum { NO_ROOM = 2, MALFORMED = 3, NO_COMMAND = 8 };
enum { READ = 0, READ_REPLY = 1, WRITE = 2, WRITE_REPLY = 3 };
/* Maps nest once; unknown values are skipped to this depth. */
#define DEPTH 4

typedef struct {
    uint32_t token, offset, length;
    struct zcbor_string data;
    bool copy;
} request_t;

static bool is(const struct zcbor_string *key, const char *name)
{
    return key->len == strlen(name) && memcmp(key->value, name, key->len) == 0;
}

static bool decode(const uint8_t *body, size_t len, request_t *r)
{
    static const uint8_t empty_map[] = {0xa0};
    ZCBOR_STATE_D(state, DEPTH, len > 0 ? body : empty_map, len > 0 ? len : sizeof empty_map, 1, 0);
    memset(r, 0, sizeof *r);
    bool good = zcbor_map_start_decode(state);
    while (good && !zcbor_array_at_end(state)) {
        struct zcbor_string key;
        good = zcbor_tstr_decode(state, &key);
        if (!good) {
            break;
        }
        if (is(&key, "token")) {
            good = zcbor_uint32_decode(state, &r->token);
        } else if (is(&key, "off")) {
            good = zcbor_uint32_decode(state, &r->offset);
        } else if (is(&key, "len")) {
            good = zcbor_uint32_decode(state, &r->length);
        } else if (is(&key, "data")) {
            good = zcbor_bstr_decode(state, &r->data);
        } else if (is(&key, "copy")) {
            good = zcbor_bool_decode(state, &r->copy);
        } else {
            good = zcbor_any_skip(state, NULL);
        }
    }
    return good && zcbor_map_end_decode(state);
}

static bool put_name(zcbor_state_t *out, const char *name)
{
    struct zcbor_string text = {(const uint8_t *)name, strlen(name)};
    return zcbor_tstr_encode(out, &text);
}

static bool put(zcbor_state_t *out, const char *name, uint32_t value)
{
    return put_name(out, name) && zcbor_uint32_put(out, value);
}

static bool put_bytes(zcbor_state_t *out, const char *name, const uint8_t *data, size_t len)
{
    struct zcbor_string bytes = {data, len};
    return put_name(out, name) && zcbor_bstr_encode(out, &bytes);
}

static bool put_transfer(zcbor_state_t *out, const weft_transfer_t *t)
{
    return put(out, "off", t->next) && put(out, "until", t->until) && put(out, "copying", t->copying) &&
           put(out, "total", t->total) && put(out, "state", t->state) && put(out, "slot", t->slot);
}

/* A begin carries the whole head or a part of it: transports with small packets send several. */
static bool begin(weft_smp_t *smp, const request_t *r, zcbor_state_t *out, int *result)
{
    weft_transfer_t t;
    if (r->offset == 0) {
        smp->head_len = 0;
        smp->head_total = r->length != 0 ? r->length : (uint32_t)r->data.len;
    }
    bool last = r->offset <= smp->head_len && r->data.len > 0 && r->data.len == smp->head_total - r->offset;
    if (smp->head_total > sizeof smp->head || r->data.len > sizeof smp->head) {
        smp->head_len = smp->head_total = 0;
        *result = WEFT_ERR_ARG;
        return true;
    }
    if (r->data.len > 0 && r->offset <= smp->head_total && r->data.len <= smp->head_total - r->offset &&
        r->offset <= smp->head_len) {
        uint32_t end = r->offset + (uint32_t)r->data.len;
        memcpy((uint8_t *)smp->head + r->offset, r->data.value, r->data.len);
        smp->head_len = end > smp->head_len ? end : smp->head_len;
    }
    if (!last) {
        return put(out, "head", smp->head_len);
    }
    *result = weft_update_begin(smp->update, smp->head, smp->head_total, r->copy ? WEFT_UPDATE_COPY : 0, &t, NULL);
    smp->head_len = smp->head_total = 0;
    return *result != WEFT_OK || (put(out, "token", t.token) && put(out, "active", t.active) && put_transfer(out, &t));
}

static bool write_data(weft_smp_t *smp, const request_t *r, zcbor_state_t *out, int *result)
{
    weft_transfer_t t;
    *result = weft_update_write(smp->update, r->token, r->offset, r->data.value, (uint32_t)r->data.len, &t);
    if (*result == WEFT_ERR_OFFSET) {
        *result = WEFT_OK; /* the reply says where to go on */
    }
    return *result != WEFT_OK || put_transfer(out, &t);
}

static bool put_state(const weft_smp_t *smp, zcbor_state_t *out)
{
    weft_update_status_t s;
    weft_update_status(smp->update, &s);
    return put(out, "active", s.active) && put(out, "running", s.running) && put(out, "state", s.state) &&
           put(out, "tries", s.tries) && put(out, "reason", (uint32_t)-s.reason) && put(out, "floor", s.floor) &&
           put(out, "received", s.received) && put(out, "total", s.total) && put(out, "resume", s.resume) &&
           put_bytes(out, "active_digest", s.active_digest, sizeof s.active_digest) &&
           put_bytes(out, "digest", s.digest, sizeof s.digest);
}

static bool put_stats(const weft_smp_t *smp, zcbor_state_t *out)
{
    weft_update_status_t s;
    weft_update_status(smp->update, &s);
    return put(out, "slot_erases", s.slot_erases) && put(out, "state_erases", s.state_erases) &&
           put(out, "records", s.records) && put(out, "stall_us", s.stall_usec);
}

static bool put_error(zcbor_state_t *out, unsigned version, int result)
{
    if (version == 0) {
        return put(out, "rc", (uint32_t)-result);
    }
    return put_name(out, "err") && zcbor_map_start_encode(out, 2) && put(out, "group", WEFT_SMP_GROUP) &&
           put(out, "rc", (uint32_t)-result) && zcbor_map_end_encode(out, 2);
}

/* What there is to do; results go to `result`, the reply's members to `out`. Returns an MGMT_ERR_*. */
static int perform(weft_smp_t *smp, unsigned command, int write, const request_t *r, zcbor_state_t *out, int *result)
{
    bool room = true;
    if (write == 0) {
        switch (command) {
        case WEFT_SMP_STATE:
            room = put_state(smp, out);
            break;
        case WEFT_SMP_STATS:
            room = put_stats(smp, out);
            break;
        default:
            return NO_COMMAND;
        }
        return room ? 0 : NO_ROOM;
    }
    switch (command) {
    case WEFT_SMP_BEGIN:
        room = begin(smp, r, out, result);
        break;
    case WEFT_SMP_WRITE:
        room = write_data(smp, r, out, result);
        break;
    case WEFT_SMP_FINISH:
        *result = weft_update_finish(smp->update, r->token, NULL);
        break;
    case WEFT_SMP_TEST:
        *result = weft_update_test(smp->update);
        break;
    case WEFT_SMP_CONFIRM:
        *result = weft_update_confirm(smp->update);
        break;
    case WEFT_SMP_REVERT:
    case WEFT_SMP_ERASE:
        if (!WEFT_SMP_REVERT_ERASE) {
            return NO_COMMAND;
        }
        *result = command == WEFT_SMP_REVERT ? weft_update_revert(smp->update) : weft_update_erase(smp->update);
        break;
    case WEFT_SMP_ABORT:
        *result = weft_update_abort(smp->update, r->token);
        break;
    default:
        return NO_COMMAND;
    }
    return room ? 0 : NO_ROOM;
}

int weft_smp_handle(weft_smp_t *smp, unsigned command, int write, unsigned version, const uint8_t *body, size_t len,
                    uint8_t *out, size_t *out_len)
{
    /* Members of the reply's map at most; zcbor writes a map of unknown length where it is not canonical. */
    enum { MEMBERS = 12 };
    request_t request;
    int result = WEFT_OK;
    smp->result = WEFT_ERR_ARG;
    if (!decode(body, len, &request)) {
        return MALFORMED;
    }
    ZCBOR_STATE_E(state, DEPTH, out, *out_len, 1);
    if (!zcbor_map_start_encode(state, MEMBERS)) {
        return NO_ROOM;
    }
    int failed = perform(smp, command, write, &request, state, &result);
    if (failed != 0) {
        return failed;
    }
    smp->result = result;
    if ((result != WEFT_OK && !put_error(state, version, result)) || !zcbor_map_end_encode(state, MEMBERS)) {
        return NO_ROOM;
    }
    *out_len = (size_t)(state->payload - out);
    return 0;
}

static uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

size_t weft_smp_packet(weft_smp_t *smp, const uint8_t *packet, size_t len, uint8_t *out, size_t room)
{
    /* {"rc": n}, n below 24 */
    static const uint8_t rc[] = {0xa1, 0x62, 'r', 'c', 0};
    if (len < WEFT_SMP_HEADER || room < WEFT_SMP_HEADER + sizeof rc) {
        return 0;
    }
    unsigned op = packet[0] & 7u, version = packet[0] >> 3 & 3u;
    if ((op != READ && op != WRITE) || be16(packet + 2) != len - WEFT_SMP_HEADER) {
        return 0;
    }
    size_t body = room - WEFT_SMP_HEADER;
    body = body < UINT16_MAX ? body : UINT16_MAX;
    int r = NO_COMMAND;
    if (be16(packet + 4) == WEFT_SMP_GROUP) {
        r = weft_smp_handle(smp, packet[7], op == WRITE, version, packet + WEFT_SMP_HEADER, len - WEFT_SMP_HEADER,
                            out + WEFT_SMP_HEADER, &body);
    }
    if (r != 0) {
        memcpy(out + WEFT_SMP_HEADER, rc, sizeof rc);
        out[WEFT_SMP_HEADER + sizeof rc - 1u] = (uint8_t)r;
        body = sizeof rc;
    }
    memcpy(out, packet, WEFT_SMP_HEADER);
    out[0] = (uint8_t)(packet[0] & ~7u) | (uint8_t)(op + 1u);
    out[2] = (uint8_t)(body >> 8);
    out[3] = (uint8_t)body;
    return WEFT_SMP_HEADER + body;
}
