/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Updates over CoAP: the commands of weft_smp.h as resources, and a plan as one block-wise PUT for clients that know
 * nothing of Weft. nanoCoAP neither orders nor counts requests: every one may come twice or late.
 */
#include <stdio.h>
#include <string.h>

#include "kernel_defines.h"
#include "net/nanocoap.h"
#include "weft/weft_service.h"
#include "weft/weft_smp.h"
#include "weft/weft_upload.h"

/* The longest reply is that of `state`. */
#define REPLY_MAX 256u
/* Content-Format and Block1, each with its first byte, and the payload marker. */
#define OPTIONS_MAX 8u

/* All are used with the update core's lock only. */
static weft_smp_t smp;
static weft_upload_t upload = {.head = smp.head};
static uint32_t upload_end; /* offset behind the last block of a plan that is done with; 0: none is */
static int upload_result;   /* of that plan */

/* ---------------------------------------------------------------- replies */

static unsigned response_code(int result)
{
    switch (result) {
    case WEFT_OK:
        return COAP_CODE_CHANGED;
    case WEFT_ERR_ARG:
        return COAP_CODE_BAD_REQUEST;
    case WEFT_ERR_UNSIGNED:
    case WEFT_ERR_KEY:
    case WEFT_ERR_SIGNATURE:
    case WEFT_ERR_VENDOR:
    case WEFT_ERR_FLOOR:
        return COAP_CODE_FORBIDDEN;
    case WEFT_ERR_OFFSET:
    case WEFT_ERR_TRUNCATED:
        return COAP_CODE_REQUEST_ENTITY_INCOMPLETE;
    case WEFT_ERR_STATE:
    case WEFT_ERR_TOKEN:
    case WEFT_ERR_TRIED:
        return COAP_CODE_CONFLICT;
    case WEFT_ERR_SLOT:
        return COAP_CODE_REQUEST_ENTITY_TOO_LARGE;
    case WEFT_ERR_BUSY:
    case WEFT_ERR_BUDGET:
        return COAP_CODE_SERVICE_UNAVAILABLE;
    case WEFT_ERR_FLASH:
        return COAP_CODE_INTERNAL_SERVER_ERROR;
    default:
        return COAP_CODE_UNPROCESSABLE_ENTITY;
    }
}

/*
 * Written by hand, for what nanoCoAP offers to do it changed between RIOT 2025 and 2026. `block`: the value of the
 * Block1 option, or NULL.
 */
static ssize_t reply(coap_pkt_t *pkt, uint8_t *buf, size_t len, unsigned code, uint8_t format, const uint32_t *block,
                     const void *payload, size_t payload_len)
{
    uint8_t options[OPTIONS_MAX];
    size_t n = 0;
    unsigned last = 0;
    if (payload_len > 0) {
        options[n++] = (uint8_t)(COAP_OPT_CONTENT_FORMAT << 4 | 1u);
        options[n++] = format;
        last = COAP_OPT_CONTENT_FORMAT;
    }
    if (block != NULL) {
        /* A delta of 13 and more goes into a byte of its own, less 13. */
        uint8_t size = *block == 0 ? 0 : *block < 1u << 8 ? 1 : *block < 1u << 16 ? 2 : 3;
        options[n++] = (uint8_t)(13u << 4 | size);
        options[n++] = (uint8_t)(COAP_OPT_BLOCK1 - last - 13u);
        for (unsigned i = size; i-- > 0;) {
            options[n++] = (uint8_t)(*block >> 8 * i);
        }
    }
    if (payload_len > 0) {
        options[n++] = 0xff;
    }
    ssize_t total = coap_build_reply(pkt, code, buf, len, n + payload_len);
    if (total > 0) {
        uint8_t *at = buf + total - n - payload_len;
        memcpy(at, options, n);
        memcpy(at + n, payload, payload_len);
    }
    return total;
}

/* ---------------------------------------------------------------- commands */

typedef struct {
    unsigned command;
    bool write;
    const uint8_t *body;
    size_t body_len;
    size_t reply_len;
    int failed; /* as weft_smp_handle() returns it */
} request_t;

static uint8_t answer[REPLY_MAX];

static int perform(weft_update_t *update, void *ctx)
{
    request_t *r = ctx;
    smp.update = update;
    r->reply_len = sizeof answer;
    r->failed = weft_smp_handle(&smp, r->command, r->write, 1, r->body, r->body_len, answer, &r->reply_len);
    return r->failed == 0 ? smp.result : WEFT_ERR_ARG;
}

static ssize_t handle_command(coap_pkt_t *pkt, uint8_t *buf, size_t len, coap_request_ctx_t *context)
{
    request_t r = {
        .command = (unsigned)(uintptr_t)coap_request_ctx_get_context(context),
        .write = coap_get_code_raw(pkt) != COAP_METHOD_GET,
        .body = pkt->payload,
        .body_len = pkt->payload_len,
    };
    int result = weft_service_update(perform, &r);
    unsigned code = response_code(result);
    if (result == WEFT_OK && !r.write) {
        code = COAP_CODE_CONTENT;
    }
    return reply(pkt, buf, len, code, COAP_FORMAT_CBOR, NULL, answer, r.failed == 0 ? r.reply_len : 0);
}

#define COMMAND(name, method, number)                                                                                  \
    NANOCOAP_RESOURCE(weft_##name)                                                                                     \
    {                                                                                                                  \
        .path = "/weft/" #name, .methods = method, .handler = handle_command, .context = (void *)(uintptr_t)(number)   \
    }

COMMAND(abort, COAP_POST, WEFT_SMP_ABORT);
COMMAND(begin, COAP_POST, WEFT_SMP_BEGIN);
COMMAND(confirm, COAP_POST, WEFT_SMP_CONFIRM);
COMMAND(finish, COAP_POST, WEFT_SMP_FINISH);
COMMAND(state, COAP_GET, WEFT_SMP_STATE);
COMMAND(stats, COAP_GET, WEFT_SMP_STATS);
COMMAND(test, COAP_POST, WEFT_SMP_TEST);
COMMAND(write, COAP_POST, WEFT_SMP_WRITE);
#if !IS_ACTIVE(CONFIG_WEFT_COAP_NO_REVERT_ERASE)
COMMAND(erase, COAP_POST, WEFT_SMP_ERASE);
COMMAND(revert, COAP_POST, WEFT_SMP_REVERT);
#endif

/* ---------------------------------------------------------------- a plan as a file */

typedef struct {
    uint32_t offset;
    const uint8_t *data;
    uint32_t len;
    bool last;
} block_t;

static int take_block(weft_update_t *update, void *ctx)
{
    const block_t *b = ctx;
    uint32_t end = b->offset + b->len;
    if (b->last && upload_end != 0 && end == upload_end) {
        return upload_result; /* the reply was lost */
    }
    /* A head that commands were collecting is lost; they begin it anew. */
    smp.head_len = smp.head_total = 0;
    upload_end = 0;
    int r = weft_upload_write(update, &upload, b->offset, b->data, b->len);
    if (r == WEFT_OK && b->last) {
        upload_result = weft_upload_finish(update, &upload);
        upload_end = end;
        r = upload_result;
    }
    return r;
}

static ssize_t handle_plan(coap_pkt_t *pkt, uint8_t *buf, size_t len, coap_request_ctx_t *context)
{
    (void)context;
    coap_block1_t block;
    bool in_blocks = coap_get_block1(pkt, &block) != 0;
    block_t b = {
        .offset = (uint32_t)block.offset, .data = pkt->payload, .len = pkt->payload_len, .last = block.more != 1};
    /* The option's value, as it came. */
    uint32_t value = block.blknum << 4 | (b.last ? 0u : 8u) | block.szx;
    int r = weft_service_update(take_block, &b);
    unsigned code = r == WEFT_OK && !b.last ? COAP_CODE_CONTINUE : response_code(r);
    int n = r == WEFT_OK ? 0
                         : snprintf((char *)answer, sizeof answer, "%s: %s; %s", weft_error_name(r),
                                    weft_error_message(r), weft_error_remedy(r));
    n = n < (int)sizeof answer ? n : (int)sizeof answer - 1;
    /* With the option, clients take an error for that of one block and go on. */
    return reply(pkt, buf, len, code, COAP_FORMAT_TEXT, in_blocks && r == WEFT_OK ? &value : NULL, answer, (size_t)n);
}

NANOCOAP_RESOURCE(weft_plan){.path = "/weft/plan", .methods = COAP_PUT, .handler = handle_plan};
