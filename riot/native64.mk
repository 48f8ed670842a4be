# SPDX-License-Identifier: Apache-2.0
# RIOT's native64 interrupts a thread by a signal and then switches threads, but keeps neither the SSE registers nor the
# 128 bytes below the stack's end that belong to functions which call none. What is built so needs neither.
ifeq (native64,$(BOARD))
  CFLAGS += -mgeneral-regs-only -mno-red-zone
endif
