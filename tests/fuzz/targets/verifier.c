/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a plan, into weft_open() alone, under limits that only bound its time and under narrow ones. */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "fuzzer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const weft_limits_t given[] = {{0, 1u << 14, 1u << 16, 0, 0},
                                          {1u << 12, 1u << 9, 1u << 10, 1u << 14, 1u << 12}};
    weft_error_t err;
    weft_plan_t plan;
    uint8_t *bytes = block(size, WEFT_PLAN_ALIGN);
    memcpy(bytes, data, size);
    int results[2];
    for (unsigned i = 0; i < 2; i++) {
        results[i] = weft_open(&plan, bytes, size, &given[i], &err);
        if (results[i] != err.code || results[i] > 0 || (results[i] != WEFT_OK && err.offset > size)) {
            fail("weft_open() reports a code or place that does not exist");
        }
    }
    if (results[0] != WEFT_OK && results[1] == WEFT_OK) {
        fail("limits make a plan acceptable");
    }
    free(bytes);
    return 0;
}
