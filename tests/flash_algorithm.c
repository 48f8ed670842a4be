/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flash algorithm of the emulated board, as pyOCD loads it into RAM and runs it on the core (CMSIS-Pack's interface).
 * The memory behind it is RAM; here it is treated as NOR flash: erasing makes 0xff, programming only clears bits and
 * refuses bytes that would need others. One cell is worn out, one sector write-protected.
 */
#include <stdint.h>

int Init(uint32_t address, uint32_t clock, uint32_t operation);
int UnInit(uint32_t operation);
int EraseSector(uint32_t address);
int ProgramPage(uint32_t address, uint32_t size, const uint8_t *data);

int Init(uint32_t address, uint32_t clock, uint32_t operation)
{
    (void)address, (void)clock, (void)operation;
    return 0;
}

int UnInit(uint32_t operation)
{
    (void)operation;
    return 0;
}

int EraseSector(uint32_t address)
{
    volatile uint8_t *flash = (volatile uint8_t *)address;
    if (address == PROTECTED_SECTOR) {
        return 1;
    }
    for (uint32_t i = 0; i < SECTOR_BYTES; i++) {
        flash[i] = 0xff;
    }
    return 0;
}

int ProgramPage(uint32_t address, uint32_t size, const uint8_t *data)
{
    volatile uint8_t *flash = (volatile uint8_t *)address;
    for (uint32_t i = 0; i < size; i++) {
        if ((flash[i] & data[i]) != data[i]) {
            return 1;
        }
        flash[i] = data[i];
        if (&flash[i] == (volatile uint8_t *)WORN_CELL) {
            flash[i] = (uint8_t)(data[i] ^ 1u);
        }
    }
    return 0;
}
