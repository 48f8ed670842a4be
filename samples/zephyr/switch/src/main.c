/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two models, two slots: `weft switch b` on the shell, or button sw0 where the board has one,
 * changes to the other plan while the firmware goes on. `digits` reads the built-in images with
 * whichever plan is open.
 */
#include <zephyr/drivers/gpio.h>
#include <zephyr/kernel.h>
#include <zephyr/shell/shell.h>

#include <weft/weft_service.h>

#include "digits_input.h"

struct reading {
	struct weft_job job;
	struct digits_input digits;
	unsigned int right;
};

static int begin(struct weft_job *job, const weft_plan_t *plan)
{
	struct reading *reading = CONTAINER_OF(job, struct reading, job);
	weft_tensor_info_t info;
	int r = weft_input_info(plan, 0, &info);

	reading->digits.scale = info.scale;
	reading->digits.zero_point = info.zero_point;
	return r;
}

static void count(struct weft_job *job, const struct weft_result *result)
{
	struct reading *reading = CONTAINER_OF(job, struct reading, job);
	weft_tensor_info_t info;
	const int8_t *scores = weft_result_output(result, 0, &info);

	if (scores != NULL && digits_largest(scores, info.c) == (int)reading->digits.digit) {
		reading->right++;
	}
}

static int cmd_digits(const struct shell *sh, size_t argc, char **argv)
{
	struct reading reading = {.job = {.begin = begin, .rows = digits_input_row, .done = count}};
	int r = WEFT_OK;

	ARG_UNUSED(argc);
	ARG_UNUSED(argv);
	reading.job.ctx = &reading.digits;
	for (; reading.digits.digit < DIGITS_INPUT_COUNT && r == WEFT_OK; reading.digits.digit++) {
		r = weft_service_run(&reading.job);
	}
	if (r != WEFT_OK) {
		shell_error(sh, "%s: %s", weft_error_message(r), weft_error_remedy(r));
		return -EIO;
	}
	shell_print(sh, "%u of %u digits right", reading.right, DIGITS_INPUT_COUNT);
	return 0;
}

SHELL_CMD_REGISTER(digits, NULL, "read the built-in images", cmd_digits);

#if DT_NODE_EXISTS(DT_ALIAS(sw0)) && defined(CONFIG_GPIO)

static const struct gpio_dt_spec button = GPIO_DT_SPEC_GET(DT_ALIAS(sw0), gpios);
static struct gpio_callback pressed;

/* Opening a plan takes longer than an interrupt may. */
static void change(struct k_work *work)
{
	struct weft_service_status status;

	ARG_UNUSED(work);
	weft_service_status(&status);
	(void)weft_service_select(1U - status.slot, true, NULL);
}

static K_WORK_DEFINE(change_work, change);

static void on_press(const struct device *port, struct gpio_callback *callback,
		     gpio_port_pins_t pins)
{
	ARG_UNUSED(port);
	ARG_UNUSED(callback);
	ARG_UNUSED(pins);
	(void)k_work_submit(&change_work);
}

static void watch_button(void)
{
	if (!gpio_is_ready_dt(&button) || gpio_pin_configure_dt(&button, GPIO_INPUT) != 0 ||
	    gpio_pin_interrupt_configure_dt(&button, GPIO_INT_EDGE_TO_ACTIVE) != 0) {
		printk("no button: use the shell\n");
		return;
	}
	gpio_init_callback(&pressed, on_press, BIT(button.pin));
	(void)gpio_add_callback_dt(&button, &pressed);
}

#else

static void watch_button(void)
{
}

#endif

int main(void)
{
	watch_button();
	printk("switch: try `weft slots`, `digits`, `weft switch b`\n");
	return 0;
}
