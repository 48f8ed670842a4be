/* SPDX-License-Identifier: Apache-2.0 */
    .section .rodata
    .balign 8
    .global test_plan
test_plan:
    .incbin PLAN_FILE
    .global test_plan_end
test_plan_end:
    .byte 0
    .section .note.GNU-stack,""
