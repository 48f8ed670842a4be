/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second reading of the plan format, for the fuzzer: nothing of it is shared with the engine but the generated
 * constants. Figures are counted position by position instead of in closed form.
 */
#ifndef WEFT_FUZZ_PLAN_BYTES_H
#define WEFT_FUZZ_PLAN_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* weft.h first: weft_format.h has macros with the names of its enumerators. */
#include "weft/weft.h"

#include "weft_format.h"

uint32_t get(const uint8_t *p, unsigned width);
void put(uint8_t *p, unsigned width, uint64_t value);

/* Records of one kind. */
typedef struct {
    uint32_t at, count, size;
} records_t;

/* Where everything is. Sections are found through the section table, sizes through the heads. */
typedef struct {
    uint32_t graph, graph_len, schedule, schedule_len, weights, weights_len;
    records_t tensors, ops, consts, ios, lists, stages, segments, entries, entry_of;
    uint32_t inputs, outputs, placed;
} map_t;

/* False if a section is missing or shorter than its heads say. */
bool map_plan(const uint8_t *plan, uint32_t len, map_t *map);

typedef struct {
    uint64_t op_mask, macs, base_macs, elements;
    uint64_t row_steps, calls, arena;
} counted_t;

/* False if an index is out of range or counting would take long; nothing is known then. */
bool count_plan(const uint8_t *plan, const map_t *map, counted_t *counted);

/* Write what was counted into the header. */
void declare(uint8_t *plan, const counted_t *counted, bool arena);

/*
 * The same graph, executed layer by layer: every tensor FULL at an offset of its own, one step per operator. Operators
 * in the order of the plan's entries; external inputs stay external, others become resident. NULL if it cannot be
 * counted; free() it.
 */
uint8_t *layer_plan(const uint8_t *plan, const map_t *map, uint32_t *len);

#endif
