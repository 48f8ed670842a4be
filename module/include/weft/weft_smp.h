/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * @brief The update core as a group of MCUmgr's Simple Management Protocol: the same C handler under Zephyr's MCUmgr
 * and under any transport that carries SMP packets. Needs zcbor (0.8 or newer) and nothing else.
 *
 * docs/update.md lists requests and replies. Every request may arrive twice or not at all: hosts repeat it.
 */
#ifndef WEFT_WEFT_SMP_H
#define WEFT_WEFT_SMP_H

#include "weft/weft_update.h"

#ifdef __cplusplus
extern "C" {
#endif

/** 0: the commands revert and erase are no part of the build, for devices that are reached by others than their
 * owner. Nothing but these two undoes what was installed; a plan that fails is given up by the device itself. */
#ifndef WEFT_SMP_REVERT_ERASE
#define WEFT_SMP_REVERT_ERASE 1
#endif

/** Group number: the first of those left to users. */
#define WEFT_SMP_GROUP 64u
/** Bytes of the SMP header. */
#define WEFT_SMP_HEADER 8u

/** Commands. STATE and STATS are read, the others written. */
enum {
    WEFT_SMP_STATE = 0,
    WEFT_SMP_BEGIN = 1,
    WEFT_SMP_WRITE = 2,
    WEFT_SMP_FINISH = 3,
    WEFT_SMP_TEST = 4,
    WEFT_SMP_CONFIRM = 5,
    WEFT_SMP_REVERT = 6,
    WEFT_SMP_ERASE = 7,
    WEFT_SMP_STATS = 8,
    WEFT_SMP_ABORT = 9
};

/** A handler's memory. Zero it, then set update. */
typedef struct {
    weft_update_t *update;
    int result;                                      /**< of the last command: WEFT_OK or a WEFT_ERR_* */
    uint32_t head_len, head_total;                   /* private: bytes of the head that are there, of how many */
    uint32_t head[(WEFT_UPDATE_HEAD_MAX + 3u) / 4u]; /* private: the head, collected over several begins */
} weft_smp_t;

/**
 * Handle the body of a request.
 * @param command WEFT_SMP_*
 * @param write 1: a write request
 * @param version SMP version of the request: 0 errors as "rc", 1 as "err" with group and rc
 * @param body CBOR map, @p len bytes
 * @param out gets the CBOR map of the reply
 * @param out_len room at @p out, then the bytes used
 * @return 0, or an MGMT_ERR_* for the reply's "rc": 2 no room, 3 malformed, 8 no such command
 */
int weft_smp_handle(weft_smp_t *smp, unsigned command, int write, unsigned version, const uint8_t *body, size_t len,
                    uint8_t *out, size_t *out_len);

/**
 * Handle a packet with its header, for systems without MCUmgr.
 * @return bytes of the reply at @p out, 0 if there is none: not a request, or no room for an answer
 */
size_t weft_smp_packet(weft_smp_t *smp, const uint8_t *packet, size_t len, uint8_t *out, size_t room);

#ifdef __cplusplus
}
#endif

#endif
