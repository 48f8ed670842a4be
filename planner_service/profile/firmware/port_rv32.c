/* SPDX-License-Identifier: Apache-2.0 */
/* RISC-V in machine mode without an operating system: minstret as counter, semihosting. */
#include "port.h"

#define SYS_WRITE0 0x04u
#define SYS_EXIT 0x18u
#define STOPPED_APPLICATION_EXIT 0x20026u
#define STOPPED_RUN_TIME_ERROR 0x20023u

extern uint32_t firmware_bss_start[], firmware_bss_end[];

static uint64_t started_at;

/* The three instructions have to be uncompressed and within one page: that is how a debugger tells them. */
static void semihost(uint32_t operation, uintptr_t argument)
{
    register uint32_t a0 __asm__("a0") = operation;
    register uintptr_t a1 __asm__("a1") = argument;
    __asm__ volatile(".option push\n"
                     ".option norvc\n"
                     ".balign 16\n"
                     "slli x0, x0, 0x1f\n"
                     "ebreak\n"
                     "srai x0, x0, 7\n"
                     ".option pop\n"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
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

static uint64_t retired(void)
{
    uint32_t high, low, again;
    do {
        __asm__ volatile("csrr %0, minstreth\n csrr %1, minstret\n csrr %2, minstreth"
                         : "=r"(high), "=r"(low), "=r"(again));
    } while (high != again);
    return (uint64_t)high << 32 | low;
}

void port_ticks_start(void)
{
    started_at = retired();
}

uint64_t port_ticks(void)
{
    return retired() - started_at;
}

__attribute__((aligned(4), used)) static void trap(void)
{
    uint32_t cause, address;
    __asm__ volatile("csrr %0, mcause\n csrr %1, mepc" : "=r"(cause), "=r"(address));
    firmware_fault(cause, address);
}

__attribute__((used)) static void start(void)
{
    for (uint32_t *word = firmware_bss_start; word < firmware_bss_end; word++) {
        *word = 0;
    }
    firmware_main();
}

__attribute__((naked, section(".vectors"), used)) void firmware_entry(void)
{
    __asm__ volatile(".option push\n"
                     ".option norelax\n"
                     "la gp, __global_pointer$\n"
                     ".option pop\n"
                     "la sp, firmware_stack_top\n"
                     "la t0, trap\n"
                     "csrw mtvec, t0\n"
                     "j start\n");
}
