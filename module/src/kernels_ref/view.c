/* SPDX-License-Identifier: Apache-2.0 */
/* Where rows and pixels are: once in the firmware, not in every kernel. */
#include "taps.h"

int8_t *weft_px(const weft_view_t *v, int32_t y, int32_t x)
{
    return weft_px_inline(v, y, x);
}

void weft_tap_rows(weft_rows_t *rows, const weft_call_t *call, int32_t y, int32_t taps)
{
    weft_tap_rows_inline(rows, call, y, taps);
}
