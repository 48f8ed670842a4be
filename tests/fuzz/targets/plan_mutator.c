/* SPDX-License-Identifier: Apache-2.0 */
/* For targets whose input is a plan: records change as records, and the header's figures are counted anew. */
#include "../mutate.h"
#include "fuzzer.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    map_t map;
    random_seed(seed);
    bool known = map_plan(data, (uint32_t)size, &map) && map.ops.count > 0 && map.tensors.count > 0 &&
                 map.entries.count > 0 && map.stages.count > 0 && map.segments.count > 0;
    if (known && rnd(8) != 0) {
        mutate(data, &map);
    } else {
        size = LLVMFuzzerMutate(data, size, max_size);
    }
    repair(data, (uint32_t)size);
    return size;
}
