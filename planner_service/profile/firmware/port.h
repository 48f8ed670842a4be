/* SPDX-License-Identifier: Apache-2.0 */
/* What main.c needs of a core: one port file implements it. Memory map: macros from runner.py. */
#ifndef WEFT_BAREMETAL_PORT_H
#define WEFT_BAREMETAL_PORT_H

#include <stdint.h>

/* Bounds of the stack, from firmware.ld. The stack lies at the bottom of RAM: an overflow faults. */
extern uint32_t firmware_stack_limit[], firmware_stack_top[];

/* Start counting; port_ticks() then gives the ticks since, monotonic over counter wraps. */
void port_ticks_start(void);
uint64_t port_ticks(void);

/* Write a NUL-terminated string to the semihosting console. */
void port_write(const char *text);

/* End the emulation. */
void port_exit(int failed) __attribute__((noreturn));

/* Implemented by main.c. A fault is reported with the core's cause register and the faulting address. */
void firmware_main(void) __attribute__((noreturn));
void firmware_fault(uint32_t cause, uint32_t address) __attribute__((noreturn));

static inline uintptr_t port_stack_pointer(void)
{
    uintptr_t sp;
#if defined(__riscv)
    __asm__ volatile("mv %0, sp" : "=r"(sp));
#else
    __asm__ volatile("mov %0, sp" : "=r"(sp));
#endif
    return sp;
}

#endif
