/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WEFT_SERVICE_H
#define WEFT_SERVICE_H

/**
 * @ingroup     weft
 * @brief       Opens the plan of the active slot at boot and runs it for any number of threads.
 *
 * One plan is open and one run at a time uses the arena; callers wait for their turn. doc.md is the overview.
 * @{
 *
 * @file
 */

#include <stdbool.h>
#include <stdint.h>

#include "weft/weft.h"
#include "weft/weft_update.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * @defgroup    weft_conf Weft compile time configuration
 * @ingroup     config
 * @{
 */
/** @brief Largest arena, bytes. A plan that needs more is refused with WEFT_ERR_LIMIT. */
#ifndef CONFIG_WEFT_ARENA_SIZE
#define CONFIG_WEFT_ARENA_SIZE 16384
#endif
/** @brief Most row steps of a plan: bounds the time of opening it. 0: no limit. */
#ifndef CONFIG_WEFT_ROW_STEPS_MAX
#define CONFIG_WEFT_ROW_STEPS_MAX 1000000
#endif
/** @brief Most multiply-accumulates of a plan, in millions: bounds the time of one run. 0: no limit. */
#ifndef CONFIG_WEFT_MMACS_MAX
#define CONFIG_WEFT_MMACS_MAX 0
#endif
/** @brief Bytes of the buffer that flash is read and written through: a multiple of 64, and of the write unit. */
#ifndef CONFIG_WEFT_BUFFER_SIZE
#define CONFIG_WEFT_BUFFER_SIZE 256
#endif
/**
 * @brief 1: plans need no signature. For development only: whoever reaches the slots runs what he likes.
 *
 * With 0, application or board define @ref WEFT_PARAM_KEY_0 in `weft_params.h` and use the module `weft_signed`.
 */
#ifndef CONFIG_WEFT_ALLOW_UNSIGNED
#define CONFIG_WEFT_ALLOW_UNSIGNED 0
#endif
/**
 * @brief 1: only an update changes what runs, once a plan has been taken into service.
 *
 * With 0, a plan that was written into a slot by debug probe or as a file may run as well, and weft_service_select()
 * may choose it; but only where plans need no signature.
 */
#ifndef CONFIG_WEFT_UPDATES_ONLY
#define CONFIG_WEFT_UPDATES_ONLY 0
#endif
/** @brief Runs with a result that confirm a plan on trial; 0: only a command does. */
#ifndef CONFIG_WEFT_CONFIRM_AFTER
#define CONFIG_WEFT_CONFIRM_AFTER 3
#endif
/**
 * @brief 1: a plan that weft_update_test() was called for is tried as soon as no plan runs; 0: at the next
 * weft_service_boot() or reset, when the application thinks fit.
 */
#ifndef CONFIG_WEFT_TRY_AT_ONCE
#define CONFIG_WEFT_TRY_AT_ONCE 1
#endif
/** @brief A transfer without a write for so many seconds may be replaced by another one; 0: never. */
#ifndef CONFIG_WEFT_IDLE_SECONDS
#define CONFIG_WEFT_IDLE_SECONDS 60
#endif
/** @brief Milliseconds after which a trial's self-test has failed; 0: never. */
#ifndef CONFIG_WEFT_SELFTEST_MS
#define CONFIG_WEFT_SELFTEST_MS 0
#endif
/**
 * @brief 1: nothing can be read from the slots' flash while a sector is erased, so that inference waits; how long is
 * measured and shown by `weft status`. 0: flash of two banks. Of no matter where plans are copied to RAM.
 */
#ifndef CONFIG_WEFT_FLASH_STALLS
#define CONFIG_WEFT_FLASH_STALLS 1
#endif
/** @} */

/** @brief Number of slots; 0 is slot a, 1 is slot b. */
#define WEFT_SLOT_COUNT 2

/** @brief What a slot holds. */
typedef struct {
    weft_error_t error;       /**< code WEFT_OK: a plan that may run; WEFT_ERR_NO_PLAN: the slot is empty */
    uint8_t model_id[32];     /**< this and what follows only with WEFT_OK, and with WEFT_ERR_LIMIT as declared */
    uint32_t plan_version;    /**< as planned */
    uint32_t plan_bytes;      /**< of the file */
    uint32_t arena_bytes;     /**< RAM that it runs in */
    uint64_t macs, base_macs; /**< F = macs / base_macs */
    bool in_place;            /**< read where it stands; else a copy in RAM */
} weft_slot_report_t;

/** @brief What the service does. */
typedef struct {
    unsigned slot;             /**< that the open plan is in; without a plan, the one that report is about */
    bool trial;                /**< the plan must be confirmed yet */
    weft_slot_report_t report; /**< of the plan, or why there is none */
    uint32_t arena_size;       /**< bytes that a plan may have */
    uint32_t runs;             /**< that gave a result */
    uint32_t failures;         /**< that ended with an error */
    uint32_t usec;             /**< of the last run with a result */
} weft_service_status_t;

typedef struct weft_job weft_job_t;

/** @brief Handed to weft_job_t.done; valid until that returns. */
typedef struct {
    int status;              /**< WEFT_OK or why there is no result */
    uint32_t usec;           /**< spent in the engine */
    const weft_plan_t *plan; /**< for shapes and scales; NULL if no plan is open */
    const int8_t *arena;     /**< private; see weft_result_output() */
} weft_result_t;

/**
 * @brief   Called before a run, as the plan may have been switched since the last one: look at its shapes and scales.
 * @return  0, or non-zero to end with WEFT_ERR_ABORTED
 */
typedef int (*weft_begin_fn)(weft_job_t *job, const weft_plan_t *plan);

/**
 * @brief   Called once per run, in the thread that ran. Copy what is of use: the next run overwrites the outputs.
 */
typedef void (*weft_done_fn)(weft_job_t *job, const weft_result_t *result);

/** @brief One inference. Zero what is not used. */
struct weft_job {
    void *ctx;           /**< passed to rows and step */
    weft_begin_fn begin; /**< called first */
    const int8_t *const
        *inputs;          /**< whole inputs (int8, HWC) by number, or NULL; needed where the plan reads in place */
    weft_input_fn rows;   /**< rows of all other inputs; non-zero ends the run with WEFT_ERR_INPUT */
    weft_step_fn step;    /**< after every row step; non-zero ends the run with WEFT_ERR_ABORTED */
    weft_done_fn done;    /**< takes the result */
    uint32_t *stage_usec; /**< microseconds by stage are added to it; NULL: not measured */
    unsigned stage_count; /**< its length */
};

/**
 * @brief   Open the active slot's plan. Called by auto_init; with `DISABLE_MODULE += auto_init_weft`, call it yourself.
 * @return  WEFT_OK, or the error that weft_service_status() tells too and that was printed with its remedy
 */
int weft_service_boot(void);

/**
 * @brief   Make another slot's plan the active one, now and after a reset; waits for the running inference.
 *
 * If it cannot be used, the one before stays. For builds with @ref CONFIG_WEFT_ALLOW_UNSIGNED.
 *
 * @param[in]  slot     0 or 1
 * @param[out] error    what is wrong with the slot's plan, or NULL
 * @retval  WEFT_OK the slot's plan is open
 * @retval  WEFT_ERR_BUSY called from a callback of a run
 * @retval  WEFT_ERR_STATE only updates change the plan
 */
int weft_service_select(unsigned slot, weft_error_t *error);

/** @brief   Read what the service does. Waits for the running inference. */
void weft_service_status(weft_service_status_t *status);

/**
 * @brief   Verify a slot's plan (signature, hashes, structure) without running it.
 * @return  WEFT_OK, or report->error.code
 */
int weft_service_inspect(unsigned slot, weft_slot_report_t *report);

/**
 * @brief   Run the open plan in the caller's thread; other threads of its priority get their turn after every row step.
 * @return  the status that done got; WEFT_ERR_NO_PLAN without a plan; WEFT_ERR_BUSY from a callback of a run
 */
int weft_service_run(weft_job_t *job);

/** @brief   End the running inference at its next row step with WEFT_ERR_ABORTED. May be called from interrupts. */
void weft_service_abort(void);

/**
 * @brief   Run the self-test that the open plan carries.
 * @retval  WEFT_OK results are those that the planner computed
 * @retval  WEFT_ERR_SELFTEST they are not
 * @retval  WEFT_ERR_ARG the plan carries none
 */
int weft_service_selftest(void);

/**
 * @brief   What weft_service_update() calls.
 * @param[in,out] update   the update core: every function of weft_update.h but weft_update_init() and
 *                         weft_update_boot() may be called on it
 */
typedef int (*weft_service_update_fn)(weft_update_t *update, void *ctx);

/**
 * @brief   Use the update core: what transports of updates are built on.
 *
 * One caller at a time, while plans run on. What was decided takes effect before this returns, or at the end of the
 * running inference: after weft_update_test() the plan on trial is open (@ref CONFIG_WEFT_TRY_AT_ONCE), after
 * weft_update_revert() the one before.
 *
 * @return  what @p fn returned; WEFT_ERR_FLASH without storage, or before weft_service_boot()
 */
int weft_service_update(weft_service_update_fn fn, void *ctx);

/**
 * @brief   Keep transports waiting until weft_service_release_updates(), which the same thread calls: nothing of a plan
 *          is received meanwhile, so nothing erased. For what must not stall where flash cannot be read then.
 *
 * Waits for the step of a transfer that is under way. Runs go on, in every thread. Hosts repeat their requests, for ten
 * seconds if not told otherwise. May be nested.
 */
void weft_service_hold_updates(void);

/** @brief   Let updates go on. */
void weft_service_release_updates(void);

/**
 * @brief   Watchdog hook: define it in the application. Called at least once per sector or buffer of an update's work
 *          and of boot, and after every row step of a trial's self-test.
 */
void weft_service_feed(void);

/** @brief   Output of a result, int8 HWC; @p info gets its shape and scale. NULL if there is none. */
const int8_t *weft_result_output(const weft_result_t *result, unsigned output, weft_tensor_info_t *info);

#ifdef __cplusplus
}
#endif

/** @} */
#endif /* WEFT_SERVICE_H */
