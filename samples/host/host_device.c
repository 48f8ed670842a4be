/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "host_device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zcbor_common.h>
#include <zcbor_encode.h>

/* What this board accepts of a plan's work: bounds the time of boot and of one inference. */
#define ROW_STEPS_MAX 1000000u
#define CALLS_MAX 100000000u
#define MACS_MAX UINT64_C(20000000000)
#define ELEMENTS_MAX UINT64_C(2000000000)
#define ALIGN 64u
#define INPUTS_MAX 255u
#define EXTERNAL_BYTES (4u << 20)

/* ---------------------------------------------------------------- the plan that runs */

static size_t tensor_bytes(const weft_tensor_info_t *info)
{
    return (size_t)info->h * info->w * info->c;
}

/* Both locks are held. Notes what boot decided. */
static void booted(host_device_t *d, int result)
{
    weft_tensor_info_t tensor;
    d->input_bytes = d->output_bytes = 0;
    if (result != WEFT_OK) {
        if (d->boot.where.code != result) {
            d->where = (weft_error_t){.code = result, .record = 0xffff};
        } else {
            d->where = d->boot.where;
        }
        return;
    }
    memset(&d->where, 0, sizeof d->where);
    for (unsigned i = 0; i < weft_input_count(&d->plan); i++) {
        weft_input_info(&d->plan, i, &tensor);
        d->input_bytes += tensor_bytes(&tensor);
    }
    for (unsigned i = 0; i < weft_output_count(&d->plan); i++) {
        weft_output_info(&d->plan, i, &tensor);
        d->output_bytes += tensor_bytes(&tensor);
    }
}

static bool is_erased(const host_area_t *area)
{
    for (uint32_t i = 0; i < area->geometry.size; i++) {
        if (area->bytes[i] != area->geometry.erased) {
            return false;
        }
    }
    return true;
}

/* The place in a plan that could not be adopted, where the verifier knows it. */
static void locate(host_device_t *d, unsigned slot, int result)
{
    const host_area_t *area = &d->flash.area[slot];
    weft_limits_t limits = d->config.limits;
    limits.arena_bytes = (uint32_t)d->config.arena_len;
    if (weft_open(&d->plan, area->bytes, area->geometry.size, &limits, &d->boot.where) != result) {
        d->boot.where = (weft_error_t){.code = result, .record = 0xffff};
    }
}

/* With an empty journal: what was flashed with the firmware. Returns why nothing was adopted. */
static int adopt(host_device_t *d)
{
    int result = WEFT_ERR_NO_PLAN;
    for (unsigned slot = 0; slot < 2; slot++) {
        if (is_erased(&d->flash.area[slot])) {
            continue;
        }
        int r = weft_update_adopt(&d->update, slot);
        if (r == WEFT_OK || r == WEFT_ERR_STATE) {
            return r;
        }
        if (result == WEFT_ERR_NO_PLAN) {
            result = r;
            locate(d, slot, r);
        }
    }
    return result;
}

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* After every row step of a self-test. */
static int in_time(void *ctx)
{
    const host_device_t *d = ctx;
    return milliseconds() >= d->selftest_end;
}

static void boot(host_device_t *d)
{
    pthread_mutex_lock(&d->run);
    d->selftest_end = milliseconds() + d->selftest_ms;
    int r = weft_update_boot(&d->update, &d->plan, &d->boot);
    if (r == WEFT_ERR_NO_PLAN) {
        r = adopt(d);
        if (r == WEFT_OK) {
            r = weft_update_boot(&d->update, &d->plan, &d->boot);
        } else if (r == WEFT_ERR_STATE) {
            r = WEFT_ERR_NO_PLAN; /* the journal knows of other plans, none of which is active */
        }
    }
    booted(d, r);
    pthread_mutex_unlock(&d->run);
}

void host_device_settle(host_device_t *d)
{
    weft_update_status_t status;
    pthread_mutex_lock(&d->core);
    weft_update_status(&d->update, &status);
    bool on_trial = status.running != WEFT_SLOT_NONE && status.running != status.active;
    if ((status.state == WEFT_SLOT_TRIAL) != on_trial) {
        boot(d);
    } else if (!on_trial && d->boot.trial != 0) {
        pthread_mutex_lock(&d->run);
        d->boot.trial = 0; /* it was confirmed */
        pthread_mutex_unlock(&d->run);
    }
    pthread_mutex_unlock(&d->core);
}

/* ---------------------------------------------------------------- start */

static uint32_t seconds(void *ctx)
{
    (void)ctx;
    return (uint32_t)(milliseconds() / 1000u);
}

static const char *open_flash(host_device_t *d, const host_options_t *o)
{
    const weft_flash_t slot = {
        .size = o->slot_bytes, .sector = o->sector_bytes, .write = o->write_bytes, .erased = 0xff};
    weft_flash_t state = slot;
    state.size = 2u * o->sector_bytes;
    d->flash.erase_us = o->erase_us;
    d->flash.stalls = o->stall != 0;
    host_bus_init(&d->flash.bus);
    if (host_flash_open(&d->flash, WEFT_AREA_SLOT_A, o->slot_path[0], &slot) != 0 ||
        host_flash_open(&d->flash, WEFT_AREA_SLOT_B, o->slot_path[1], &slot) != 0 ||
        host_flash_open(&d->flash, WEFT_AREA_STATE, o->state_path, &state) != 0) {
        return errno == EWOULDBLOCK ? "another board uses these files" : strerror(errno);
    }
    d->hal = (weft_update_hal_t){.ctx = &d->flash,
                                 .slot = slot,
                                 .state = state,
                                 .read = host_flash_read,
                                 .program = host_flash_program,
                                 .erase = host_flash_erase,
                                 .mapped = host_flash_mapped,
                                 .sha256_init = host_sha256_init,
                                 .sha256_update = host_sha256_update,
                                 .sha256_finish = host_sha256_finish,
                                 .verify_p256 = host_verify_p256,
                                 .seconds = seconds};
    return NULL;
}

static uint8_t *allocate(size_t size)
{
    void *memory = NULL;
    return posix_memalign(&memory, ALIGN, size) == 0 ? memory : NULL;
}

const char *host_device_start(host_device_t *d, const host_options_t *o)
{
    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->core, NULL);
    pthread_mutex_init(&d->run, NULL);
    d->selftest_ms = o->selftest_ms;
    if (host_crypto_init() != 0) {
        return "Mbed TLS does not start";
    }
    const char *wrong = open_flash(d, o);
    if (wrong != NULL) {
        return wrong;
    }
    d->arena = allocate(o->ram_bytes > 0 ? o->ram_bytes : 1u);
    d->external = allocate(EXTERNAL_BYTES);
    if (d->arena == NULL || d->external == NULL) {
        return "not enough memory";
    }
    d->config = (weft_update_config_t){
        .hal = &d->hal,
        .buffer = d->buffer,
        .buffer_len = sizeof d->buffer,
        .arena = d->arena,
        .arena_len = o->ram_bytes,
        .external = d->external,
        .external_len = EXTERNAL_BYTES,
        .vendor = o->has_vendor ? o->vendor_id : NULL,
        .device = o->has_class ? o->class_id : NULL,
        .step = o->selftest_ms > 0 ? in_time : NULL,
        .step_ctx = d,
        .limits = {.row_steps = ROW_STEPS_MAX, .calls = CALLS_MAX, .macs = MACS_MAX, .elements = ELEMENTS_MAX},
        .confirm_after = o->confirm_after,
        .idle_seconds = o->idle_seconds};
    for (unsigned i = 0; i < HOST_KEYS; i++) {
        if (o->key_path[i] != NULL) {
            if (host_crypto_load_key(o->key_path[i], d->key[i]) != 0) {
                return "--key is no PEM file with a public key on P-256";
            }
            d->config.key[i] = d->key[i];
        }
    }
    if (weft_update_init(&d->update, &d->config) != WEFT_OK) {
        return "the flash's geometry is none that the update core takes";
    }
    d->smp.update = &d->update;
    boot(d);
    return NULL;
}

void host_device_stop(host_device_t *d)
{
    host_flash_close(&d->flash);
    free(d->arena);
    free(d->external);
}

/* ---------------------------------------------------------------- updates */

/* MCUmgr's own group has one request that matters here: how long a packet may be. */
static size_t parameters(const uint8_t *packet, size_t len, uint8_t *out, size_t room)
{
    enum { READ = 0, REPLY = 1, OS_GROUP = 0, PARAMETERS = 6 };
    if (len < WEFT_SMP_HEADER || room < WEFT_SMP_HEADER || (packet[0] & 7u) != READ ||
        (packet[4] << 8 | packet[5]) != OS_GROUP || packet[7] != PARAMETERS) {
        return 0;
    }
    ZCBOR_STATE_E(state, 1, out + WEFT_SMP_HEADER, room - WEFT_SMP_HEADER, 1);
    if (!zcbor_map_start_encode(state, 2) || !zcbor_tstr_put_lit(state, "buf_size") ||
        !zcbor_uint32_put(state, HOST_PACKET_BYTES) || !zcbor_tstr_put_lit(state, "buf_count") ||
        !zcbor_uint32_put(state, 1) || !zcbor_map_end_encode(state, 2)) {
        return 0;
    }
    size_t body = (size_t)(state->payload - out) - WEFT_SMP_HEADER;
    memcpy(out, packet, WEFT_SMP_HEADER);
    out[0] |= REPLY;
    out[2] = (uint8_t)(body >> 8);
    out[3] = (uint8_t)body;
    return WEFT_SMP_HEADER + body;
}

size_t host_device_packet(host_device_t *d, const uint8_t *packet, size_t len, uint8_t *out, size_t room)
{
    size_t used = parameters(packet, len, out, room);
    if (used == 0) {
        pthread_mutex_lock(&d->core);
        d->hal.slot.stall_usec = d->flash.stall_us;
        used = weft_smp_packet(&d->smp, packet, len, out, room);
        pthread_mutex_unlock(&d->core);
    }
    return used;
}

/* ---------------------------------------------------------------- inference */

typedef struct {
    const int8_t *input[INPUTS_MAX];
} feed_t;

static int hand_over_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    const feed_t *feed = ctx;
    memcpy(dst, feed->input[input] + (size_t)row * nbytes, nbytes);
    return 0;
}

/* With the run lock. */
static int run(host_device_t *d, const int8_t *next, int8_t *output)
{
    feed_t feed;
    const weft_io_t io = {.ctx = &feed, .input_fn = hand_over_row, .external = feed.input};
    weft_tensor_info_t tensor;

    for (unsigned i = 0; i < weft_input_count(&d->plan); i++) {
        weft_input_info(&d->plan, i, &tensor);
        if (weft_input_mode(&d->plan, i) == WEFT_INPUT_RESIDENT) {
            memcpy(d->arena + weft_input_offset(&d->plan, i), next, tensor_bytes(&tensor));
        }
        feed.input[i] = next;
        next += tensor_bytes(&tensor);
    }
    if (d->flash.stalls) {
        host_bus_enter(&d->flash.bus);
    }
    int r = weft_run(&d->plan, d->arena, weft_arena_size(&d->plan), &io);
    if (d->flash.stalls) {
        host_bus_leave(&d->flash.bus);
    }
    for (unsigned i = 0; r == WEFT_OK && i < weft_output_count(&d->plan); i++) {
        weft_output_info(&d->plan, i, &tensor);
        memcpy(output, d->arena + weft_output_offset(&d->plan, i), tensor_bytes(&tensor));
        output += tensor_bytes(&tensor);
    }
    return r;
}

int host_device_infer(host_device_t *d, const int8_t *input, size_t input_bytes, int8_t **output, size_t *output_bytes)
{
    pthread_mutex_lock(&d->run);
    int r = d->where.code;
    r = r == WEFT_OK && input_bytes != d->input_bytes ? WEFT_ERR_ARG : r;
    *output = r == WEFT_OK ? malloc(d->output_bytes > 0 ? d->output_bytes : 1u) : NULL;
    if (*output != NULL) {
        *output_bytes = d->output_bytes;
        r = run(d, input, *output);
        d->runs += r == WEFT_OK;
    }
    bool on_trial = d->boot.trial != 0;
    pthread_mutex_unlock(&d->run);
    if (r == WEFT_OK && on_trial && d->config.confirm_after > 0) {
        pthread_mutex_lock(&d->core);
        (void)weft_update_healthy(&d->update);
        pthread_mutex_unlock(&d->core);
        host_device_settle(d);
    }
    return r;
}
