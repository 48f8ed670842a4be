/* SPDX-License-Identifier: Apache-2.0 */
/* Changes to plans that know the records: most plans stay ones that the verifier looks at to the end. */
#ifndef WEFT_FUZZ_MUTATE_H
#define WEFT_FUZZ_MUTATE_H

#include "plan_bytes.h"

/* Start the generator. */
void random_seed(uint64_t seed);
uint32_t rnd(uint32_t below);

/* Change some fields or records of a plan that `map` describes. */
void mutate(uint8_t *plan, const map_t *map);

/* Now and then not: count the header's figures anew, so that the rest of the verifier is reached. */
void repair(uint8_t *plan, uint32_t len);

#endif
