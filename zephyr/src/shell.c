/* SPDX-License-Identifier: Apache-2.0 */
/* weft info|run|profile|slots|switch|update|selftest */
#include <stdlib.h>
#include <string.h>
#include <zephyr/shell/shell.h>
#include <zephyr/sys/crc.h>

#include "weft_zephyr.h"

#define SEED 12345u /* that of the plans' self-tests and of `weft run` on the host */
#define STAGES_MAX 64

static int fail(const struct shell *sh, int code, const weft_error_t *where)
{
	if (where != NULL && where->offset != 0) {
		shell_error(sh, "%s at byte %u: %s", weft_error_name(code), where->offset,
			    weft_error_message(code));
	} else {
		shell_error(sh, "%s: %s", weft_error_name(code), weft_error_message(code));
	}
	shell_print(sh, "to do: %s", weft_error_remedy(code));
	return -EIO;
}

static void show_plan(const struct shell *sh, const struct weft_slot_report *report)
{
	uint32_t overhead = (uint32_t)(report->macs * 1000U / MAX(report->base_macs, 1U));

	shell_fprintf(sh, SHELL_NORMAL, "  model ");
	for (size_t i = 0; i < 8; i++) {
		shell_fprintf(sh, SHELL_NORMAL, "%02x", report->model_id[i]);
	}
	shell_print(sh, ", plan version %u, %u bytes %s", report->plan_version, report->plan_bytes,
		    report->in_place ? "in place" : "copied to RAM");
	shell_print(sh, "  arena %u bytes, %u thousand MACs, F %u.%03u", report->arena_bytes,
		    (uint32_t)(report->macs / 1000U), overhead / 1000U, overhead % 1000U);
}

static int cmd_info(const struct shell *sh, size_t argc, char **argv)
{
	struct weft_service_status status;

	ARG_UNUSED(argc);
	ARG_UNUSED(argv);
	weft_service_status(&status);
	shell_print(sh, "slot %c is %s", "ab"[status.slot],
		    status.report.trial ? "on trial" : "active");
	if (status.report.error.code != WEFT_OK) {
		return fail(sh, status.report.error.code, &status.report.error);
	}
	show_plan(sh, &status.report);
	shell_print(sh, "  %u runs, %u failures, last run %u cycles (%u us)", status.runs,
		    status.failures, status.cycles, k_cyc_to_us_floor32(status.cycles));
	return 0;
}

static int cmd_slots(const struct shell *sh, size_t argc, char **argv)
{
	struct weft_service_status status;
	struct weft_slot_report report;

	ARG_UNUSED(argc);
	ARG_UNUSED(argv);
	weft_service_status(&status);
	for (unsigned int slot = 0; slot < WEFT_SLOT_COUNT; slot++) {
		shell_print(sh, "slot %c, %u bytes%s", "ab"[slot], weft_slots_hal() -> slot.size,
			    slot == status.slot ? ", active" : "");
		if (weft_service_inspect(slot, &report) == WEFT_OK) {
			show_plan(sh, &report);
		} else if (report.error.code == WEFT_ERR_NO_PLAN) {
			shell_print(sh, "  empty");
		} else {
			(void)fail(sh, report.error.code, &report.error);
		}
	}
	return 0;
}

/* ---------------------------------------------------------------- runs */

/* Generated inputs, one after the other from one generator: what `weft run` on the host takes. */
static int generate_row(void *ctx, unsigned int input, unsigned int row, int8_t *dst, size_t nbytes)
{
	uint32_t *state = ctx;

	ARG_UNUSED(input);
	ARG_UNUSED(row);
	for (size_t i = 0; i < nbytes; i++) {
		*state = *state * 1664525u + 1013904223u;
		dst[i] = (int8_t)(uint8_t)(*state >> 24);
	}
	return 0;
}

struct shell_job {
	struct weft_job job;
	const struct shell *sh;
	uint32_t seed;
};

/* Streamed inputs are drawn from one generator each; their bytes must not depend on the order of
 * rows. */
static int one_input(struct weft_job *job, const weft_plan_t *plan)
{
	ARG_UNUSED(job);
	return weft_input_count(plan) == 1 ? 0 : -1;
}

static void show_outputs(struct weft_job *job, const struct weft_result *result)
{
	const struct shell *sh = CONTAINER_OF(job, struct shell_job, job)->sh;
	weft_tensor_info_t info;
	const int8_t *values;

	for (unsigned int i = 0; (values = weft_result_output(result, i, &info)) != NULL; i++) {
		size_t n = (size_t)info.h * info.w * info.c, top = 0;

		for (size_t k = 1; k < n; k++) {
			top = values[k] > values[top] ? k : top;
		}
		shell_print(sh, "output %u: %ux%ux%u, largest at %zu (%d), crc32 %08x", i, info.h,
			    info.w, info.c, top, values[top],
			    crc32_ieee((const uint8_t *)values, n));
	}
	if (result->status == WEFT_OK) {
		shell_print(sh, "%u cycles (%u us)", result->cycles,
			    k_cyc_to_us_floor32(result->cycles));
	}
}

static int run(const struct shell *sh, uint32_t seed, uint32_t *stage_cycles)
{
	struct shell_job own = {
		.job =
			{
				.begin = one_input,
				.rows = generate_row,
				.done = show_outputs,
				.stage_cycles = stage_cycles,
				.stage_count = STAGES_MAX,
			},
		.sh = sh,
		.seed = seed,
	};
	int r;

	own.job.ctx = &own.seed;
	r = weft_service_run(&own.job);
	if (r == WEFT_ERR_ABORTED) {
		shell_error(sh, "only plans with one input can be run on a generated one");
		return -ENOTSUP;
	}
	return r == WEFT_OK ? 0 : fail(sh, r, NULL);
}

static int cmd_run(const struct shell *sh, size_t argc, char **argv)
{
	return run(sh, argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : SEED, NULL);
}

static int cmd_profile(const struct shell *sh, size_t argc, char **argv)
{
	uint32_t cycles[STAGES_MAX] = {0};
	int r = run(sh, SEED, cycles);

	ARG_UNUSED(argc);
	ARG_UNUSED(argv);
	for (unsigned int stage = 0; r == 0 && stage < STAGES_MAX; stage++) {
		if (cycles[stage] != 0) {
			shell_print(sh, "stage %2u: %10u cycles", stage, cycles[stage]);
		}
	}
	return r;
}

static int cmd_selftest(const struct shell *sh, size_t argc, char **argv)
{
	int r = WEFT_ERR_ARG;

	ARG_UNUSED(argc);
	ARG_UNUSED(argv);
#ifdef CONFIG_WEFT_SELFTEST
	r = weft_service_selftest();
#endif
	if (r == WEFT_ERR_ARG) {
		shell_print(sh, "the plan carries no self-test, or CONFIG_WEFT_SELFTEST is off");
		return 0;
	}
	if (r != WEFT_OK) {
		return fail(sh, r, NULL);
	}
	shell_print(sh, "results are those that the planner computed");
	return 0;
}

static int cmd_switch(const struct shell *sh, size_t argc, char **argv)
{
	weft_error_t error;
	bool keep = argc > 2 && strcmp(argv[2], "keep") == 0;
	unsigned int slot = (unsigned int)(argv[1][0] - 'a');

	if (slot >= WEFT_SLOT_COUNT || argv[1][1] != '\0' || (argc > 2 && !keep)) {
		shell_error(sh, "weft switch a|b [keep]");
		return -EINVAL;
	}
	if (weft_service_select(slot, keep, &error) != WEFT_OK) {
		return fail(sh, error.code, &error);
	}
	return cmd_info(sh, 0, NULL);
}

#ifdef CONFIG_WEFT_UPDATE

static void show_digest(const struct shell *sh, const char *what, const uint8_t *digest)
{
	shell_fprintf(sh, SHELL_NORMAL, "  %s ", what);
	for (size_t i = 0; i < 8; i++) {
		shell_fprintf(sh, SHELL_NORMAL, "%02x", digest[i]);
	}
	shell_print(sh, "");
}

static int show_update(const struct shell *sh)
{
	static const char *const states[] = {"empty",    "receiving", "staged",
					     "on trial", "reverted",  "old"};
	weft_update_status_t now;
	int r = weft_service_update_status(&now);

	if (r != WEFT_OK) {
		return fail(sh, r, NULL);
	}
	if (now.active < WEFT_SLOT_COUNT) {
		shell_print(sh, "slot %c is active, least version %u", "ab"[now.active], now.floor);
		show_digest(sh, "digest", now.active_digest);
	} else {
		shell_print(sh, "no slot is active");
	}
	shell_print(sh, "slot %c: %s", "ab"[now.active == 0 ? 1 : 0], states[now.state]);
	switch (now.state) {
	case WEFT_SLOT_RECEIVING:
		shell_print(sh, "  %u of %u bytes, resumes at %u", now.received, now.total,
			    now.resume);
		break;
	case WEFT_SLOT_TRIAL:
		shell_print(sh, "  run %u of %u", now.tries, WEFT_UPDATE_TRIES);
		break;
	case WEFT_SLOT_REVERTED:
		shell_print(sh, "  %s",
			    now.reason == WEFT_OK ? "by command" : weft_error_message(now.reason));
		break;
	default:
		break;
	}
	if (now.state != WEFT_SLOT_EMPTY) {
		show_digest(sh, "digest", now.digest);
	}
	shell_print(sh, "erased so far: %u sectors of slots, %u of the journal", now.slot_erases,
		    now.state_erases);
	return 0;
}

static int cmd_update(const struct shell *sh, size_t argc, char **argv)
{
	static const struct {
		const char *name;
		int (*function)(void);
	} commands[] = {
		{"test", weft_service_test},
		{"confirm", weft_service_confirm},
		{"revert", weft_service_revert},
		{"erase", weft_service_erase},
	};

	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(commands); i++) {
		if (strcmp(argv[1], commands[i].name) == 0) {
			int r = commands[i].function();

			return r == WEFT_OK ? show_update(sh) : fail(sh, r, NULL);
		}
	}
	if (argc > 1) {
		shell_error(sh, "weft update [test|confirm|revert|erase]");
		return -EINVAL;
	}
	return show_update(sh);
}

#endif

SHELL_STATIC_SUBCMD_SET_CREATE(
	weft_commands, SHELL_CMD_ARG(info, NULL, "the active plan", cmd_info, 1, 0),
	SHELL_CMD_ARG(run, NULL, "[SEED]: one inference on a generated input", cmd_run, 1, 1),
	SHELL_CMD_ARG(profile, NULL, "cycles of each stage", cmd_profile, 1, 0),
	SHELL_CMD_ARG(slots, NULL, "what the slots hold", cmd_slots, 1, 0),
	SHELL_CMD_ARG(switch, NULL,
		      "a|b [keep]: open the other slot's plan; keep: also after a reset",
		      cmd_switch, 2, 1),
	COND_CODE_1(CONFIG_WEFT_UPDATE,
		    (SHELL_CMD_ARG(update, NULL,
				   "[test|confirm|revert|erase]: what the journal says; decide on "
				   "the new plan",
				   cmd_update, 1, 1), ),
		    ()) SHELL_CMD_ARG(selftest, NULL, "run the self-test that the plan carries",
				      cmd_selftest, 1, 0),
	SHELL_SUBCMD_SET_END);

SHELL_CMD_REGISTER(weft, &weft_commands, "Weft: small CNNs from plans in flash", NULL);
