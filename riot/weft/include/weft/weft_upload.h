/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WEFT_UPLOAD_H
#define WEFT_UPLOAD_H

/**
 * @ingroup     weft
 * @{
 *
 * @file
 * @brief       A plan that arrives as a stream of bytes, for transports that know files and nothing of sessions.
 */

#include <stdbool.h>
#include <stdint.h>

#include "weft/weft_update.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief A stream. Set head, zero the rest. Use it with the update core's lock: in a weft_service_update_fn. */
typedef struct {
    uint32_t *head;  /**< WEFT_UPDATE_HEAD_MAX bytes, where the plan's head is collected */
    uint32_t have;   /**< private: bytes of the head that are there */
    uint32_t wanted; /**< private: of how many; 0: no head is collected */
    uint32_t token;  /**< private: of the session */
    uint8_t slot;    /**< where the plan is, or goes; valid once the head is complete */
    bool there;      /**< the device has this plan already: bytes are not looked at */
} weft_upload_t;

/**
 * @brief   Take @p len bytes from @p offset. Offset 0 begins anew; what came before is skipped.
 * @retval  WEFT_ERR_OFFSET bytes are missing before these; other errors are those of weft_update_begin() and
 *          weft_update_write(): the stream is over
 */
int weft_upload_write(weft_update_t *update, weft_upload_t *upload, uint32_t offset, const void *data, uint32_t len);

/** @brief   The stream is complete: read the plan back and verify it, as weft_update_finish(). */
int weft_upload_finish(weft_update_t *update, weft_upload_t *upload);

#ifdef __cplusplus
}
#endif

/** @} */
#endif /* WEFT_UPLOAD_H */
