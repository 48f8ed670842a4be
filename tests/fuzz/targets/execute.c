/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a plan. What weft_open() accepts is executed and compared as check.c does. */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "fuzzer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static subject_t subject;
    /* One input is to take a millisecond or so. */
    subject.limits.arena_bytes = 1u << 16;
    subject.limits.row_steps = 1u << 11;
    subject.limits.calls = 1u << 13;
    subject.limits.macs = 1u << 16;
    subject.limits.elements = 1u << 16;
    uint8_t *bytes = block(size, WEFT_PLAN_ALIGN);
    memcpy(bytes, data, size);
    (void)attempt(&subject, bytes, (uint32_t)size, true);
    free(bytes);
    return 0;
}
