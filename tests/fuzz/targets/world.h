/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that plans are sent to, and what must be true of it whatever is sent. Signatures are a toy that the targets
 * can make: fuzzing is to get past them. A plan is authentic if it was sealed and not changed since.
 */
#ifndef WEFT_FUZZ_WORLD_H
#define WEFT_FUZZ_WORLD_H

#include "../../update/device.h"

/* The build's: what plans.py writes for the simulator. */
extern const uint8_t fuzz_plans[];
extern const size_t fuzz_plans_len;

enum { PLANS = 6, PLAN_MAX = 8192, OLD = 1, NEXT = 4 };

typedef struct {
    device_t *device;
    weft_update_t *update;
    struct {
        _Alignas(8) uint8_t bytes[PLAN_MAX];
        uint32_t len;
    } plan[PLANS];
    bool rough;      /* flash failed or was changed from outside: only what is executed is still judged */
    bool confirming; /* the step may change what is active */
    bool booting;
    unsigned runs;              /* of a plan that is not confirmed, since its transfer began */
    uint32_t floor;             /* after the step before */
    uint8_t active, digest[16]; /* the same */
} world_t;

extern world_t world;

/* A device that runs the plan OLD from slot 0, or nothing yet; `setup` chooses geometry and configuration. */
void world_new(uint8_t setup);
/* Hashes and signature of a plan made good. */
void world_seal(unsigned plan);
/* Before and after each step. */
void world_before(bool confirming);
void world_after(void);
void world_boot(void);
/* Power came back: init and boot. */
void world_restart(void);
/* Whatever happened: the device has its plan, takes another one, and is released. */
void world_end(void);
/* Stops the fuzzer. */
void world_broken(const char *rule);

/* Bytes of a plan's head, at most what is there. */
uint32_t world_head_len(unsigned plan);

#endif
