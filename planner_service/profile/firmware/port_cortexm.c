/* SPDX-License-Identifier: Apache-2.0 */
/* Cortex-M without an operating system: vectors, SysTick as counter, semihosting. Armv7-M and Armv8-M manuals. */
#include "port.h"

#define REG(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REG(0xe000e010u)
#define SYST_RVR REG(0xe000e014u)
#define SYST_CVR REG(0xe000e018u)
#define SCB_CFSR REG(0xe000ed28u)
#define SCB_CPACR REG(0xe000ed88u)

#define SYST_MAX 0xffffffu
#define SYST_ENABLE_TICKINT_CPUCLK 7u

#define SYS_WRITE0 0x04u
#define SYS_EXIT 0x18u
#define STOPPED_APPLICATION_EXIT 0x20026u
#define STOPPED_RUN_TIME_ERROR 0x20023u

extern uint32_t firmware_bss_start[], firmware_bss_end[];

static volatile uint32_t systick_wraps;

static void semihost(uint32_t operation, uintptr_t argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register uintptr_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void port_write(const char *text)
{
    semihost(SYS_WRITE0, (uintptr_t)text);
}

void port_exit(int failed)
{
    semihost(SYS_EXIT, failed ? STOPPED_RUN_TIME_ERROR : STOPPED_APPLICATION_EXIT);
    for (;;) {
    }
}

void port_ticks_start(void)
{
    SYST_CSR = 0;
    SYST_RVR = SYST_MAX;
    SYST_CVR = 0;
    systick_wraps = 0;
    SYST_CSR = SYST_ENABLE_TICKINT_CPUCLK;
    while (SYST_CVR == 0) {
    }
}

uint64_t port_ticks(void)
{
    uint32_t wraps, value;
    do {
        wraps = systick_wraps;
        value = SYST_CVR;
    } while (wraps != systick_wraps);
    return (uint64_t)wraps * (SYST_MAX + 1u) + (SYST_MAX - value);
}

static void systick_handler(void)
{
    systick_wraps++;
}

/* r0: the frame that the core stacked; its seventh word is the program counter. */
__attribute__((used)) static void fault(const uint32_t *frame)
{
    firmware_fault(SCB_CFSR, frame[6]);
}

__attribute__((naked)) static void fault_handler(void)
{
    __asm__ volatile("mov r0, sp\n b fault");
}

void firmware_entry(void);
void firmware_entry(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    SCB_CPACR |= 0xfu << 20;
    __asm__ volatile("dsb\n isb");
#endif
    for (uint32_t *word = firmware_bss_start; word < firmware_bss_end; word++) {
        *word = 0;
    }
    firmware_main();
}

typedef union {
    void (*handler)(void);
    uint32_t *stack;
} vector_t;

/* Every interrupt but SysTick is a fault here: none is enabled. */
__attribute__((section(".vectors"), used)) static const vector_t vectors[16] = {
    {.stack = firmware_stack_top}, {.handler = firmware_entry}, {.handler = fault_handler},
    {.handler = fault_handler},    {.handler = fault_handler},  {.handler = fault_handler},
    {.handler = fault_handler},    {.handler = fault_handler},  {.handler = fault_handler},
    {.handler = fault_handler},    {.handler = fault_handler},  {.handler = fault_handler},
    {.handler = fault_handler},    {.handler = fault_handler},  {.handler = fault_handler},
    {.handler = systick_handler},
};
