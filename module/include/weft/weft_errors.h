/* SPDX-License-Identifier: Apache-2.0 */
/* Generated from proto/plan.toml by planner_service/codegen.py; do not edit. */
/* clang-format off */
#ifndef WEFT_ERRORS_H
#define WEFT_ERRORS_H

/** X(name, positive code, message, remedy) for every error. */
#define WEFT_ERROR_LIST(X) \
    X(ARG, 1, "an argument is null or out of range", \
      "check the call against weft.h") \
    X(ALIGN, 2, "the plan or the arena is not aligned", \
      "align the plan to 8 bytes and the arena to weft_arena_align()") \
    X(TRUNCATED, 3, "the plan is shorter than it declares", \
      "write the whole file, then try again") \
    X(MAGIC, 4, "these bytes are not a plan", \
      "write a plan made by `weft plan` into the slot") \
    X(VERSION, 5, "the plan's format is newer than this engine or of another major version", \
      "plan for this engine's version or update the firmware") \
    X(ABI, 6, "the plan needs another engine ABI", \
      "plan for this engine's version or update the firmware") \
    X(SECTION, 7, "the section table is malformed, or a section is missing, doubled, misplaced or too short", \
      "the file is damaged: write it again") \
    X(UNKNOWN, 8, "a critical section, capability or flag is unknown to this engine", \
      "update the firmware or plan for this engine's version") \
    X(OPCODE, 9, "an operator is unknown to this engine or left out of this build", \
      "enable the operator in the build's op set") \
    X(INDEX, 10, "a tensor, operator, entry or segment number is out of range", \
      "the file is damaged or not made by the planner") \
    X(SHAPE, 11, "an operator's shapes do not agree", \
      "the file is damaged or not made by the planner") \
    X(PARAM, 12, "an operator's parameter is out of range", \
      "the file is damaged or not made by the planner") \
    X(WEIGHTS, 13, "a parameter block or constant lies outside WEIGHTS or is misaligned", \
      "the file is damaged or not made by the planner") \
    X(OVERFLOW, 14, "an accumulator could overflow 31 bits", \
      "reduce the layer's bias or kernel size") \
    X(GRAPH, 15, "a tensor is used before it is produced, or produced twice or never", \
      "the file is damaged or not made by the planner") \
    X(POLICY, 16, "a window's policy does not suit its tensor, its consumers or its place in the stage", \
      "the file is damaged or not made by the planner") \
    X(COVERAGE, 17, "the steps leave gaps in a tensor or do not reach its end", \
      "the file is damaged or not made by the planner") \
    X(NEED, 18, "an operator reads rows or columns that its input's window does not hold", \
      "the file is damaged or not made by the planner") \
    X(RING, 19, "a ring is too small: rows would be overwritten before they are read", \
      "the file is damaged or not made by the planner") \
    X(OVERLAP, 20, "two windows that are live together overlap", \
      "the file is damaged or not made by the planner") \
    X(ARENA, 21, "a window lies outside the arena or is misaligned", \
      "the file is damaged or not made by the planner") \
    X(DECLARED, 22, "a figure in the header differs from what the plan does", \
      "the file is damaged or not made by the planner") \
    X(LIMIT, 23, "the plan exceeds a limit of the caller's", \
      "plan with a smaller RAM or compute bound, or raise the limit") \
    X(ARENA_SIZE, 24, "the arena is smaller than the plan needs", \
      "give weft_run at least weft_arena_size() bytes") \
    X(IO, 25, "an input that the plan streams or reads in place was not supplied", \
      "set weft_io_t as weft_input_mode() says") \
    X(ABORTED, 26, "the run was ended by the step callback", \
      "none: the application asked for it") \
    X(INPUT, 27, "the input callback failed", \
      "see the camera's or sensor's own error") \
    X(SCRATCH, 28, "a kernel of this build needs more scratch than the plan gives", \
      "plan for this target (`weft plan --target`)") \
    X(FLASH, 40, "reading, programming or erasing flash failed", \
      "try again; if it stays, the flash is worn or its driver is at fault") \
    X(UNSIGNED, 41, "the plan is not signed, or by an algorithm that this build does not know", \
      "sign it (`weft sign`)") \
    X(KEY, 42, "the plan is signed with a key that this device does not hold", \
      "sign it with the device's key, or bring the new key with a firmware update") \
    X(SIGNATURE, 43, "the signature does not match", \
      "sign the plan again; do not install this file") \
    X(HASH, 44, "bytes differ from the digest in the header", \
      "send the plan again") \
    X(VENDOR, 45, "the plan is for another vendor or device class", \
      "plan with this device's vendor and class ids") \
    X(SLOT, 46, "the plan does not fit the slot", \
      "plan for this target, or make the slots larger") \
    X(FLOOR, 47, "the plan's version is below the floor that confirmed plans have set", \
      "plan with a higher version") \
    X(BUSY, 48, "another update is under way", \
      "wait, or abort the other update") \
    X(TOKEN, 49, "the session has ended or was taken over", \
      "begin again; the transfer resumes where it was") \
    X(OFFSET, 50, "bytes arrived out of order", \
      "go on at the offset that the reply gives") \
    X(STATE, 51, "the slots are not in a state that allows this", \
      "ask for the status; confirm or revert a running trial first") \
    X(TRIED, 52, "this plan was tried and reverted", \
      "erase first if it is to be tried again") \
    X(SELFTEST, 53, "the plan's self-test gave other results than planned", \
      "the plan was not made for this engine: plan again") \
    X(BUDGET, 54, "the erase budget is spent", \
      "wait until the device allows more erases") \
    X(NO_PLAN, 55, "no slot holds a plan that may run", \
      "send a plan")

/** Results of the engine's functions: zero or a negative error. */
enum {
    WEFT_OK = 0,
    /** an argument is null or out of range */
    WEFT_ERR_ARG = -1,
    /** the plan or the arena is not aligned */
    WEFT_ERR_ALIGN = -2,
    /** the plan is shorter than it declares */
    WEFT_ERR_TRUNCATED = -3,
    /** these bytes are not a plan */
    WEFT_ERR_MAGIC = -4,
    /** the plan's format is newer than this engine or of another major version */
    WEFT_ERR_VERSION = -5,
    /** the plan needs another engine ABI */
    WEFT_ERR_ABI = -6,
    /** the section table is malformed, or a section is missing, doubled, misplaced or too short */
    WEFT_ERR_SECTION = -7,
    /** a critical section, capability or flag is unknown to this engine */
    WEFT_ERR_UNKNOWN = -8,
    /** an operator is unknown to this engine or left out of this build */
    WEFT_ERR_OPCODE = -9,
    /** a tensor, operator, entry or segment number is out of range */
    WEFT_ERR_INDEX = -10,
    /** an operator's shapes do not agree */
    WEFT_ERR_SHAPE = -11,
    /** an operator's parameter is out of range */
    WEFT_ERR_PARAM = -12,
    /** a parameter block or constant lies outside WEIGHTS or is misaligned */
    WEFT_ERR_WEIGHTS = -13,
    /** an accumulator could overflow 31 bits */
    WEFT_ERR_OVERFLOW = -14,
    /** a tensor is used before it is produced, or produced twice or never */
    WEFT_ERR_GRAPH = -15,
    /** a window's policy does not suit its tensor, its consumers or its place in the stage */
    WEFT_ERR_POLICY = -16,
    /** the steps leave gaps in a tensor or do not reach its end */
    WEFT_ERR_COVERAGE = -17,
    /** an operator reads rows or columns that its input's window does not hold */
    WEFT_ERR_NEED = -18,
    /** a ring is too small: rows would be overwritten before they are read */
    WEFT_ERR_RING = -19,
    /** two windows that are live together overlap */
    WEFT_ERR_OVERLAP = -20,
    /** a window lies outside the arena or is misaligned */
    WEFT_ERR_ARENA = -21,
    /** a figure in the header differs from what the plan does */
    WEFT_ERR_DECLARED = -22,
    /** the plan exceeds a limit of the caller's */
    WEFT_ERR_LIMIT = -23,
    /** the arena is smaller than the plan needs */
    WEFT_ERR_ARENA_SIZE = -24,
    /** an input that the plan streams or reads in place was not supplied */
    WEFT_ERR_IO = -25,
    /** the run was ended by the step callback */
    WEFT_ERR_ABORTED = -26,
    /** the input callback failed */
    WEFT_ERR_INPUT = -27,
    /** a kernel of this build needs more scratch than the plan gives */
    WEFT_ERR_SCRATCH = -28,
    /** reading, programming or erasing flash failed */
    WEFT_ERR_FLASH = -40,
    /** the plan is not signed, or by an algorithm that this build does not know */
    WEFT_ERR_UNSIGNED = -41,
    /** the plan is signed with a key that this device does not hold */
    WEFT_ERR_KEY = -42,
    /** the signature does not match */
    WEFT_ERR_SIGNATURE = -43,
    /** bytes differ from the digest in the header */
    WEFT_ERR_HASH = -44,
    /** the plan is for another vendor or device class */
    WEFT_ERR_VENDOR = -45,
    /** the plan does not fit the slot */
    WEFT_ERR_SLOT = -46,
    /** the plan's version is below the floor that confirmed plans have set */
    WEFT_ERR_FLOOR = -47,
    /** another update is under way */
    WEFT_ERR_BUSY = -48,
    /** the session has ended or was taken over */
    WEFT_ERR_TOKEN = -49,
    /** bytes arrived out of order */
    WEFT_ERR_OFFSET = -50,
    /** the slots are not in a state that allows this */
    WEFT_ERR_STATE = -51,
    /** this plan was tried and reverted */
    WEFT_ERR_TRIED = -52,
    /** the plan's self-test gave other results than planned */
    WEFT_ERR_SELFTEST = -53,
    /** the erase budget is spent */
    WEFT_ERR_BUDGET = -54,
    /** no slot holds a plan that may run */
    WEFT_ERR_NO_PLAN = -55,
};

/** Update: states of the slot that is not active. */
enum {
    /** Nothing of use. */
    WEFT_SLOT_EMPTY = 0,
    /** A transfer was begun; `offset` bytes are complete. */
    WEFT_SLOT_RECEIVING = 1,
    /** A complete, verified plan that waits for the command to try it. */
    WEFT_SLOT_STAGED = 2,
    /** Run at the next boot, at most three times, until confirmed. */
    WEFT_SLOT_TRIAL = 3,
    /** Tried without success, or given up by command; not accepted again before an erase. */
    WEFT_SLOT_REVERTED = 4,
    /** The plan that was confirmed before the active one; boot falls back to it. */
    WEFT_SLOT_OLD = 5,
};

#endif
