/* SPDX-License-Identifier: Apache-2.0 */
/* From a stream of bytes to begin, write and finish. */
#include "weft/weft_upload.h"

#include "weft_format.h"

/* Takes the head's bytes; begins when all are there. */
static int collect(weft_update_t *update, weft_upload_t *up, uint32_t offset, const uint8_t *data, uint32_t len)
{
    uint8_t *head = (uint8_t *)up->head;
    while (offset <= up->have && offset + len > up->have && up->have < up->wanted) {
        head[up->have] = data[up->have - offset];
        if (up->have == WEFT_HEADER_SECTION_COUNT) {
            up->wanted = WEFT_UPDATE_HEAD_LEN((uint32_t)head[up->have]);
            if (up->wanted > WEFT_UPDATE_HEAD_MAX) {
                up->wanted = 0;
                return WEFT_ERR_ARG;
            }
        }
        up->have++;
    }
    if (up->wanted == 0 || offset > up->have) {
        return WEFT_ERR_OFFSET;
    }
    if (up->have < up->wanted) {
        return WEFT_OK;
    }
    weft_transfer_t t;
    int r = weft_update_begin(update, up->head, up->wanted, 0, &t, NULL);
    up->wanted = 0;
    up->token = t.token;
    up->slot = t.slot;
    up->there = r == WEFT_OK && t.token == 0;
    return r;
}

int weft_upload_write(weft_update_t *update, weft_upload_t *up, uint32_t offset, const void *data, uint32_t len)
{
    int r = WEFT_OK;
    if (offset == 0) {
        up->have = up->token = 0;
        up->there = false;
        up->wanted = WEFT_HEADER_SECTION_COUNT + 1u;
    }
    if (up->token == 0 && !up->there) {
        r = collect(update, up, offset, data, len);
    }
    if (r == WEFT_OK && up->token != 0) {
        weft_transfer_t t;
        r = weft_update_write(update, up->token, offset, data, len, &t);
    }
    if (r != WEFT_OK && r != WEFT_ERR_OFFSET) {
        up->token = 0;
    }
    return r;
}

int weft_upload_finish(weft_update_t *update, weft_upload_t *up)
{
    if (up->there) {
        return WEFT_OK;
    }
    int r = up->token != 0 ? weft_update_finish(update, up->token, NULL) : WEFT_ERR_TRUNCATED;
    up->token = up->wanted = 0;
    return r;
}
