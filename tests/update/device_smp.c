/* SPDX-License-Identifier: Apache-2.0 */
/* The SMP handler over the device of device.c. */
#include <stdlib.h>

#include "weft/weft_smp.h"

weft_smp_t *smp_new(weft_update_t *update);
size_t smp_packet(weft_smp_t *smp, const uint8_t *packet, size_t len, uint8_t *out, size_t room);

weft_smp_t *smp_new(weft_update_t *update)
{
    weft_smp_t *smp = calloc(1, sizeof *smp);
    if (smp != NULL) {
        smp->update = update;
    }
    return smp;
}

/* Through blocks of their exact sizes, so that a sanitizer sees every byte too far. */
size_t smp_packet(weft_smp_t *smp, const uint8_t *packet, size_t len, uint8_t *out, size_t room)
{
    uint8_t *in = malloc(len + 1u), *reply = malloc(room + 1u);
    size_t n = 0;
    if (in != NULL && reply != NULL) {
        for (size_t i = 0; i < len; i++) {
            in[i] = packet[i];
        }
        n = weft_smp_packet(smp, in, len, reply, room);
        for (size_t i = 0; i < n; i++) {
            out[i] = reply[i];
        }
    }
    free(in);
    free(reply);
    return n;
}
