/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two models, two slots: `weft switch b` on the shell, or button 0 where the board has one, changes to the other plan
 * while the firmware goes on. `digits` reads the built-in images with whichever plan is open.
 */
#include <stdio.h>

#include "board.h"
#include "digits_input.h"
#include "periph/gpio.h"
#include "shell.h"
#include "thread.h"
#include "weft/weft_service.h"

static int digits_command(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    int right = digits_read_all();
    if (right < 0) {
        return 1;
    }
    printf("%d digits right\n", right);
    return 0;
}

SHELL_COMMAND(digits, "read the built-in images", digits_command);

#if IS_USED(MODULE_PERIPH_GPIO_IRQ) && defined(BTN0_PIN)

/* Opening a plan takes longer than an interrupt may. */
static char stack[THREAD_STACKSIZE_DEFAULT + 2048];
static kernel_pid_t changer;

static void *change(void *arg)
{
    (void)arg;
    while (1) {
        weft_service_status_t status;
        thread_sleep();
        weft_service_status(&status);
        (void)weft_service_select(1u - status.slot, NULL);
    }
    return NULL;
}

static void on_press(void *arg)
{
    (void)arg;
    thread_wakeup(changer);
}

static void watch_button(void)
{
    changer = thread_create(stack, sizeof stack, THREAD_PRIORITY_MAIN - 1, 0, change, NULL, "weft switch");
    /* Pressed or let go, as the board has it wired. */
    if (gpio_init_int(BTN0_PIN, BTN0_MODE, GPIO_FALLING, on_press, NULL) != 0) {
        puts("no button: use the shell");
    }
}

#else

static void watch_button(void)
{
}

#endif

int main(void)
{
    char line[SHELL_DEFAULT_BUFSIZE];
    watch_button();
    puts("switch: try `weft slots`, `digits`, `weft switch b`");
    shell_run(NULL, line, sizeof line);
    return 0;
}
