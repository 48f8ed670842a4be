/* SPDX-License-Identifier: Apache-2.0 */
/* Reads ten built-in digits with whatever plan stands in the active slot; then the shell is yours. */
#include <stdio.h>

#include "digits_input.h"
#include "shell.h"

int main(void)
{
    char line[SHELL_DEFAULT_BUFSIZE];
    int right = digits_read_all();
    printf("hello_plan: %d digits right, the application goes on\n", right > 0 ? right : 0);
    shell_run(NULL, line, sizeof line);
    return 0;
}
