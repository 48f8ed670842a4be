/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans as SUIT payloads. Every call of SUIT's is one look into the update core, which decides; the sequence number is
 * the core's version floor, so that nothing else has to be kept.
 */
#include <inttypes.h>
#include <string.h>

#include "log.h"
#include "suit.h"
#include "suit/storage.h"
#include "weft/weft_service.h"
#include "weft/weft_upload.h"
#include "weft_params.h"
#include "xfa.h"

#ifndef CONFIG_WEFT_SUIT_COMPONENT
#define CONFIG_WEFT_SUIT_COMPONENT "/weft_model"
#endif

XFA_USE(suit_storage_t *, suit_storage_reg);

static uint32_t head[(WEFT_UPDATE_HEAD_MAX + 3u) / 4u];
static weft_upload_t upload = {.head = head};

typedef struct {
    size_t offset, len;
    const uint8_t *data;
    uint8_t *dst;
} span_t;

static int tell(const char *doing, int r)
{
    if (r == WEFT_OK) {
        return SUIT_OK;
    }
    LOG_ERROR("weft: %s: %s: %s; %s\n", doing, weft_error_name(r), weft_error_message(r), weft_error_remedy(r));
    return SUIT_ERR_STORAGE;
}

static int write_span(weft_update_t *update, void *ctx)
{
    const span_t *span = ctx;
    return weft_upload_write(update, &upload, (uint32_t)span->offset, span->data, (uint32_t)span->len);
}

static int finish_upload(weft_update_t *update, void *ctx)
{
    (void)ctx;
    return weft_upload_finish(update, &upload);
}

static int read_span(weft_update_t *update, void *ctx)
{
    const span_t *span = ctx;
    const weft_update_hal_t *hal = update->cfg->hal;
    if (span->offset > hal->slot.size || span->len > hal->slot.size - span->offset) {
        return WEFT_ERR_SLOT;
    }
    int r = hal->read(hal->ctx, upload.slot, (uint32_t)span->offset, span->dst, (uint32_t)span->len);
    return r == 0 ? WEFT_OK : WEFT_ERR_FLASH;
}

/* The plan that is active already needs no trial. */
static int try_plan(weft_update_t *update, void *ctx)
{
    weft_update_status_t status;
    (void)ctx;
    weft_update_status(update, &status);
    return upload.slot == status.active ? WEFT_OK : weft_update_test(update);
}

static int give_up(weft_update_t *update, void *ctx)
{
    weft_update_status_t status;
    (void)ctx;
    weft_update_status(update, &status);
    return upload.slot == status.active ? WEFT_OK : weft_update_erase(update);
}

static int read_floor(weft_update_t *update, void *ctx)
{
    weft_update_status_t status;
    weft_update_status(update, &status);
    *(uint32_t *)ctx = status.floor;
    return WEFT_OK;
}

/* ---------------------------------------------------------------- the driver */

static int suit_init(suit_storage_t *storage)
{
    (void)storage;
    return SUIT_OK;
}

static int suit_start(suit_storage_t *storage, const suit_manifest_t *manifest, size_t len)
{
    (void)storage;
    (void)manifest;
    return len > CONFIG_WEFT_SLOT_SIZE ? tell("fetching a plan", WEFT_ERR_SLOT) : SUIT_OK;
}

static int suit_write(suit_storage_t *storage, const suit_manifest_t *manifest, const uint8_t *buf, size_t offset,
                      size_t len)
{
    (void)storage;
    (void)manifest;
    span_t span = {.offset = offset, .len = len, .data = buf};
    return tell("fetching a plan", weft_service_update(write_span, &span));
}

static int suit_finish(suit_storage_t *storage, const suit_manifest_t *manifest)
{
    (void)storage;
    (void)manifest;
    return tell("verifying a plan", weft_service_update(finish_upload, NULL));
}

static int suit_read(suit_storage_t *storage, uint8_t *buf, size_t offset, size_t len)
{
    (void)storage;
    span_t span = {.offset = offset, .len = len, .dst = buf};
    return tell("reading a plan", weft_service_update(read_span, &span));
}

static int suit_install(suit_storage_t *storage, const suit_manifest_t *manifest)
{
    (void)storage;
    (void)manifest;
    return tell("trying a plan", weft_service_update(try_plan, NULL));
}

static int suit_erase(suit_storage_t *storage)
{
    (void)storage;
    return tell("erasing a plan", weft_service_update(give_up, NULL));
}

static bool suit_has_location(const suit_storage_t *storage, const char *location)
{
    (void)storage;
    return strcmp(location, CONFIG_WEFT_SUIT_COMPONENT) == 0;
}

static int suit_set_active_location(suit_storage_t *storage, const char *location)
{
    return suit_has_location(storage, location) ? SUIT_OK : SUIT_ERR_STORAGE_UNAVAILABLE;
}

static int suit_get_seq_no(const suit_storage_t *storage, uint32_t *seq_no)
{
    (void)storage;
    *seq_no = 0;
    return tell("reading the version floor", weft_service_update(read_floor, seq_no));
}

/* The floor rises when the plan is confirmed. */
static int suit_set_seq_no(suit_storage_t *storage, uint32_t seq_no)
{
    (void)storage;
    (void)seq_no;
    return SUIT_OK;
}

static const suit_storage_driver_t driver = {
    .init = suit_init,
    .start = suit_start,
    .write = suit_write,
    .finish = suit_finish,
    .read = suit_read,
    .install = suit_install,
    .erase = suit_erase,
    .has_location = suit_has_location,
    .set_active_location = suit_set_active_location,
    .get_seq_no = suit_get_seq_no,
    .set_seq_no = suit_set_seq_no,
    .separator = '/',
};

static suit_storage_t storage_of_plans = {.driver = &driver};

XFA(suit_storage_t *, suit_storage_reg, 0) suit_storage_weft_ptr = &storage_of_plans;
