/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * @brief Weft for Zephyr: opens the plan of the active slot and runs it for any number of threads.
 *
 * One plan is open and one run at a time uses the arena; callers wait for their turn. All functions
 * may be called from any supervisor-mode thread, those that say so from interrupts. User-mode
 * threads (CONFIG_USERSPACE) cannot call them: there are no system calls. Let a supervisor thread
 * run the plan and hand results over.
 */
#ifndef WEFT_SERVICE_H
#define WEFT_SERVICE_H

#include <stdbool.h>
#include <zephyr/kernel.h>

#include "weft/weft.h"
#include "weft/weft_update.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Number of slots; slot 0 is partition weft_plan_a, slot 1 is weft_plan_b. */
#define WEFT_SLOT_COUNT 2

/** What a slot holds. */
struct weft_slot_report {
	weft_error_t error;   /**< code WEFT_OK: a plan that may run; WEFT_ERR_NO_PLAN: the slot is
				 empty */
	uint8_t model_id[32]; /**< this and what follows only with WEFT_OK */
	uint32_t plan_version;
	uint32_t plan_bytes;
	uint32_t arena_bytes;     /**< with WEFT_ERR_LIMIT too: what the plan asks for */
	uint64_t macs, base_macs; /**< F = macs / base_macs */
	bool in_place;            /**< read where it stands; else a copy in RAM */
	bool trial;               /**< runs, but is not confirmed yet (CONFIG_WEFT_UPDATE) */
};

/** What the service does. */
struct weft_service_status {
	unsigned int slot;              /**< active slot */
	struct weft_slot_report report; /**< of its plan */
	uint32_t arena_size;            /**< bytes that a plan may have; 0: from the heap */
	uint32_t runs;                  /**< that gave a result */
	uint32_t failures;              /**< that ended with an error */
	uint32_t cycles;                /**< of the last run with a result, k_cycle_get_32() */
};

struct weft_job;

/** Handed to weft_job.done; valid until that returns. */
struct weft_result {
	int status;              /**< WEFT_OK or why there is no result */
	uint32_t cycles;         /**< k_cycle_get_32() spent in the engine */
	const weft_plan_t *plan; /**< for shapes and scales; NULL if no plan is open */
	const void *arena;       /**< private; see weft_result_output() */
};

/**
 * Called before a run, in its thread: read shapes and scales of the plan's inputs here, for another
 * plan may have been opened since the last run.
 * @return 0, or non-zero to end with WEFT_ERR_ABORTED
 */
typedef int (*weft_begin_fn)(struct weft_job *job, const weft_plan_t *plan);

/**
 * Called once per run, in the thread that ran. Copy what is of use: the next run overwrites the
 * outputs.
 * @param job the job that was run
 * @param result its outcome
 */
typedef void (*weft_done_fn)(struct weft_job *job, const struct weft_result *result);

/** One inference. Zero what is not used, and keep it in place until done was called. */
struct weft_job {
	void *ctx; /**< passed to rows and step */
	/** Called first, or NULL. */
	weft_begin_fn begin;
	/** Whole inputs (int8, HWC) by number, or NULL; needed for inputs that the plan reads in
	 * place. */
	const int8_t *const *inputs;
	/** Rows of all other inputs, each once and in order; non-zero ends the run with
	 * WEFT_ERR_INPUT. */
	weft_input_fn rows;
	/** Called after every row step, for a watchdog say; non-zero ends the run with
	 * WEFT_ERR_ABORTED. */
	weft_step_fn step;
	/** Takes the result. */
	weft_done_fn done;
	/** Cycles by stage are added to it; NULL: not measured. */
	uint32_t *stage_cycles;
	/** Its length. */
	unsigned int stage_count;

	/** @cond private */
	struct k_work work;
	atomic_t aborted;
	/** @endcond */
};

/**
 * Open the active slot's plan. Called at boot with CONFIG_WEFT_BOOT. With CONFIG_WEFT_UPDATE the
 * journal says which: a trial that is due is counted, verified, self-tested.
 * @retval WEFT_OK or the error that weft_service_status() tells too, which was logged with its
 * remedy
 */
int weft_service_boot(void);

/**
 * Open another slot's plan, after the running inference has ended. If it cannot be used, the one
 * before stays.
 * @param slot 0 or 1
 * @param keep also after a reset: writes the state partition
 * @param error what is wrong with the slot's plan, or NULL
 * @retval WEFT_OK the slot's plan is open
 * @retval WEFT_ERR_BUSY called from a callback of a run
 * @retval WEFT_ERR_FLASH the plan is open, but the choice could not be kept
 * @retval WEFT_ERR_STATE CONFIG_WEFT_UPDATE: the journal decides, see weft_service_test()
 */
int weft_service_select(unsigned int slot, bool keep, weft_error_t *error);

/** Read what the service does. Does not wait for runs. */
void weft_service_status(struct weft_service_status *status);

/**
 * Verify a slot's plan without running it. Waits for the running inference where the slot cannot be
 * read in place.
 * @retval WEFT_OK, or report->error.code
 */
int weft_service_inspect(unsigned int slot, struct weft_slot_report *report);

/**
 * Run the open plan in the caller's thread.
 * @return the status that done got; WEFT_ERR_NO_PLAN without a plan, WEFT_ERR_BUSY from a callback
 * of a run
 */
int weft_service_run(struct weft_job *job);

/**
 * Run it on the work queue; returns at once. May be called from interrupts.
 * @retval WEFT_OK done will be called; WEFT_ERR_BUSY the job is waiting already
 */
int weft_service_submit(struct weft_job *job);

/**
 * End a job at its next row step, or before it begins, with WEFT_ERR_ABORTED. May be called from
 * interrupts.
 * @param job the job, or NULL for the one that runs
 */
void weft_service_abort(struct weft_job *job);

/**
 * Run the self-test that the open plan carries.
 * @retval WEFT_OK results are those that the planner computed; WEFT_ERR_SELFTEST they are not;
 * WEFT_ERR_ARG the plan carries none
 */
int weft_service_selftest(void);

/**
 * @name Updates
 * With CONFIG_WEFT_UPDATE. Transports write plans into the slot that is not active
 * (weft/weft_update.h has the states); these are for applications that want to decide themselves.
 * They wait for the transfer's current step.
 * @{
 */
/** Try the staged plan: between two runs with CONFIG_WEFT_UPDATE_AT_ONCE, else at the next reset.
 */
int weft_service_test(void);
/** Make the plan on trial the active one; CONFIG_WEFT_UPDATE_CONFIRM_AFTER good runs do the same.
 */
int weft_service_confirm(void);
/** Give up the staged plan or the one on trial; the plan before it is opened after the current run.
 */
int weft_service_revert(void);
/** Erase the slot that is not active. */
int weft_service_erase(void);
/**
 * Keep transports waiting until weft_service_release_updates(), which the same thread calls:
 * nothing of a plan is received meanwhile, so nothing erased. For what must not stall where flash
 * cannot be read then. Waits for the step of a transfer that is under way. Runs go on; hosts repeat
 * their requests, for ten seconds if not told otherwise. May be nested.
 */
void weft_service_hold_updates(void);
/** Let updates go on. */
void weft_service_release_updates(void);
/** @retval WEFT_ERR_STATE the update core did not start, the log says why */
int weft_service_update_status(weft_update_status_t *out);
/**
 * Watchdog hook: define it in the application. Called at least once per flash sector or buffer of
 * an update's work, and after every row step of a trial's self-test.
 */
void weft_service_feed(void);
/**
 * With CONFIG_WEFT_SMP: handle an SMP packet of a transport of your own; CONFIG_WEFT_MCUMGR does so
 * for MCUmgr's.
 * @return bytes of the reply at @p out, 0: none
 */
size_t weft_service_smp(const uint8_t *packet, size_t len, uint8_t *out, size_t room);
/** @} */

/** Output @p output of a result, int8 HWC; @p info gets its shape and scale. NULL if there is none.
 */
const int8_t *weft_result_output(const struct weft_result *result, unsigned int output,
				 weft_tensor_info_t *info);

#ifdef __cplusplus
}
#endif

#endif
