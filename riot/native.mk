# SPDX-License-Identifier: Apache-2.0
# RIOT's native boards interrupt a thread by a signal and then switch threads, but keep neither the SSE registers nor the
# 128 bytes below the stack's end that belong to functions which call none. What is built so needs neither.
ifneq (,$(filter native32 native64,$(BOARD)))
  CFLAGS += -mgeneral-regs-only -mno-red-zone
endif
