/* SPDX-License-Identifier: Apache-2.0 */
/* A board whose model is changed over the network, by CoAP: `weft push plan.weft --to coap://[its address]`. */
#include <stdio.h>

#include "digits_input.h"
#include "msg.h"
#include "shell.h"

#if IS_USED(MODULE_WEFT_SUIT)
#include "suit/storage.h"
#endif

/* The shell's network commands get packets by messages. */
#define QUEUE 8

static int digits_command(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    int right = digits_read_all();
    printf("%d digits right\n", right > 0 ? right : 0);
    return right < 0;
}

SHELL_COMMAND(digits, "read the built-in images", digits_command);

int main(void)
{
    static msg_t queue[QUEUE];
    char line[SHELL_DEFAULT_BUFSIZE];
    msg_init_queue(queue, QUEUE);
#if IS_USED(MODULE_WEFT_SUIT)
    suit_storage_init_all();
#endif
    puts("update: try `ifconfig`, `weft slots`, `digits`; plans are taken by CoAP");
    shell_run(NULL, line, sizeof line);
    return 0;
}
