/* SPDX-License-Identifier: Apache-2.0 */
/* Gives the files named on the command line to a fuzzing target, without libFuzzer: for coverage. */
#include <stdio.h>
#include <stdlib.h>

#include "fuzzer.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size)
{
    (void)data;
    (void)max_size;
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t input[1u << 16];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 2;
        }
        size_t len = fread(input, 1, sizeof input, file);
        fclose(file);
        (void)LLVMFuzzerTestOneInput(input, len);
    }
    return 0;
}
