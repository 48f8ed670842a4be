/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * @brief Weft engine: verifies a plan and executes it in place from flash.
 *
 * No heap, no globals, no recursion, no operating system. The caller owns every byte: the plan (flash), the
 * arena (RAM) and the handle. Any number of plans can be open and running at once.
 *
 * Plan bytes are untrusted. weft_open() proves everything once: a plan that it accepts cannot read or write
 * outside its buffers and does exactly the work that its header declares. docs/security.md lists the invariants.
 */
#ifndef WEFT_WEFT_H
#define WEFT_WEFT_H

#include <stddef.h>
#include <stdint.h>

#include "weft/weft_errors.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Alignment in bytes that the plan's first byte must have. */
#define WEFT_PLAN_ALIGN 8

/** Where an error lies. The first one found wins. */
typedef struct {
    int code;        /**< WEFT_OK or a WEFT_ERR_* */
    uint16_t record; /**< number of the record (operator, entry, stage...), 0xffff if none */
    uint8_t opcode;  /**< WEFT_ERR_OPCODE: of the operator that this build lacks; otherwise 0 */
    uint32_t offset; /**< byte offset in the plan */
} weft_error_t;

/** Limits that the caller imposes on a plan; checked before anything else is believed. Zero: no limit. */
typedef struct {
    uint32_t arena_bytes; /**< largest arena, bytes */
    uint32_t row_steps;   /**< most row steps, bounds the verifier's and the executor's loops */
    uint32_t calls;       /**< most kernel calls */
    uint64_t macs;        /**< most multiply-accumulates */
    uint64_t elements;    /**< most output elements */
} weft_limits_t;

/** An open plan. Members are private; the plan's bytes must stay in place and unchanged while it is in use. */
typedef struct {
    /* The heads of GRAPH and SCHEDULE, as stored. First, where short instructions reach them. */
    uint16_t tensor_count, op_count, const_count;
    uint8_t input_count, output_count;
    uint16_t list_count, reserved;
    uint16_t stage_count, segment_count, entry_count, placed_count;
    uint16_t io_count; /* inputs and outputs */
    const uint8_t *bytes;
    const uint8_t *graph;    /* TENSOR records */
    const uint8_t *ops;      /* OP records */
    const uint8_t *consts;   /* CONST records */
    const uint8_t *ios;      /* IO records, inputs then outputs */
    const uint8_t *lists;    /* u16 list pool */
    const uint8_t *stages;   /* STAGE records */
    const uint8_t *segments; /* SEGMENT records */
    const uint8_t *entries;  /* ENTRY records */
    const uint8_t *entry_of; /* u16 entry of tensor */
    const uint8_t *weights;
    uint32_t weights_len;
} weft_plan_t;

/** How a network input reaches the engine; the plan decides. */
typedef enum {
    WEFT_INPUT_RESIDENT, /**< the caller writes it into the arena at weft_input_offset() before weft_run() */
    WEFT_INPUT_STREAMED, /**< weft_io_t.input_fn hands over each row once, in order */
    WEFT_INPUT_EXTERNAL  /**< weft_io_t.external points at it; read only */
} weft_input_mode_t;

/** Data type at the edge of the source model; the engine itself always takes and gives int8. */
typedef enum { WEFT_DTYPE_INT8, WEFT_DTYPE_UINT8, WEFT_DTYPE_FLOAT32 } weft_dtype_t;

/** Shape and quantisation of a network input or output. real = scale * (q - zero_point). */
typedef struct {
    uint16_t h, w, c;   /**< rows, columns, channels; HWC in memory */
    weft_dtype_t dtype; /**< uint8: q + 128; float32: the real value */
    float scale;
    int8_t zero_point;
} weft_tensor_info_t;

/** Figures of a plan. */
typedef struct {
    uint32_t arena_bytes;
    uint32_t plan_version;
    uint32_t total_len;
    uint32_t row_steps, calls;
    uint64_t macs, base_macs; /**< overhead factor F = macs / base_macs */
    uint64_t elements;
    const uint8_t *model_id;  /**< 32 bytes */
    const uint8_t *vendor_id; /**< 16 bytes */
    const uint8_t *class_id;  /**< 16 bytes */
} weft_plan_info_t;

/**
 * Hand over one row of a streamed input.
 * @param ctx weft_io_t.ctx
 * @param input number of the network input
 * @param row 0 .. h-1, each once, in order
 * @param dst where to write the row's w*c int8 values
 * @param nbytes w*c
 * @return 0, or non-zero to end the run with WEFT_ERR_INPUT
 */
typedef int (*weft_input_fn)(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes);

/** Called after every row step: yield here, feed a watchdog, or return non-zero to end with WEFT_ERR_ABORTED. */
typedef int (*weft_step_fn)(void *ctx);

/** Called before (@p begin 1) and after (0) every stage; read a cycle counter here. */
typedef void (*weft_profile_fn)(void *ctx, unsigned stage, int begin);

/** Called before (@p begin 1) and after (0) every operator's column step: finer than weft_profile_fn. */
typedef void (*weft_op_fn)(void *ctx, unsigned op, int begin);

/** Counts of what kernels did, for tests: filled when the engine is built with WEFT_COUNT=1. */
typedef struct {
    uint64_t macs;
    uint64_t elements;
    uint32_t calls;
    uint32_t row_steps;
} weft_counts_t;

/** What a run is given. All members may be zero unless the plan needs them. */
typedef struct {
    void *ctx;                     /**< passed to every callback */
    weft_input_fn input_fn;        /**< for streamed inputs */
    const int8_t *const *external; /**< array by network input; used for external inputs */
    weft_step_fn step_fn;
    weft_profile_fn profile_fn;
    weft_op_fn op_fn;
    weft_counts_t *counts;
} weft_io_t;

/**
 * Verify a plan and open it.
 * @param plan filled on success
 * @param bytes the plan, aligned to WEFT_PLAN_ALIGN
 * @param len bytes readable at @p bytes (a slot may be longer than its plan)
 * @param limits the caller's limits, or NULL for none
 * @param err where it went wrong, or NULL
 * @retval WEFT_OK the plan can be run; otherwise a WEFT_ERR_*, and @p plan is not usable
 *
 * Time is bounded by the number of records, the square of the windows of a stage, and the row steps that the
 * header declares (at most limits->row_steps), each times its operators' kernel rows.
 */
int weft_open(weft_plan_t *plan, const void *bytes, size_t len, const weft_limits_t *limits, weft_error_t *err);

/** Bytes of RAM that weft_run() needs, exactly. */
size_t weft_arena_size(const weft_plan_t *plan);
/** Alignment in bytes that the arena's first byte must have. */
size_t weft_arena_align(const weft_plan_t *plan);

/**
 * Run the plan once.
 * @param arena weft_arena_size() bytes; resident inputs are already in it, outputs are in it afterwards
 * @param io callbacks and pointers, or NULL if the plan needs none
 * @retval WEFT_OK outputs are at weft_output_offset()
 * @retval WEFT_ERR_ARENA_SIZE, WEFT_ERR_ALIGN, WEFT_ERR_IO nothing was touched
 * @retval WEFT_ERR_INPUT, WEFT_ERR_ABORTED ended by a callback
 */
int weft_run(const weft_plan_t *plan, void *arena, size_t arena_len, const weft_io_t *io);

/** Figures of an open plan. */
void weft_plan_info(const weft_plan_t *plan, weft_plan_info_t *info);

unsigned weft_input_count(const weft_plan_t *plan);
unsigned weft_output_count(const weft_plan_t *plan);
/** @retval WEFT_OK or WEFT_ERR_ARG if there is no such input */
int weft_input_info(const weft_plan_t *plan, unsigned input, weft_tensor_info_t *info);
int weft_output_info(const weft_plan_t *plan, unsigned output, weft_tensor_info_t *info);
weft_input_mode_t weft_input_mode(const weft_plan_t *plan, unsigned input);
/** Arena offset of a resident input; its bytes may be overwritten during the run. */
size_t weft_input_offset(const weft_plan_t *plan, unsigned input);
/** Arena offset of an output, valid after a run. */
size_t weft_output_offset(const weft_plan_t *plan, unsigned output);

unsigned weft_stage_count(const weft_plan_t *plan);
/** Arena offset and bytes of the tensor that a stage ends in (valid right after that stage). */
int weft_stage_output(const weft_plan_t *plan, unsigned stage, size_t *offset, size_t *nbytes);

/** The section of type @p type (WEFT_SECTION_*), or NULL; @p len gets its bytes. */
const uint8_t *weft_section(const weft_plan_t *plan, unsigned type, size_t *len);

/** Short name of an error code ("WEFT_ERR_RING"), its message and what to do about it. Never NULL. */
const char *weft_error_name(int code);
const char *weft_error_message(int code);
const char *weft_error_remedy(int code);
/** Name of an operator by weft_error_t.opcode ("DWCONV2D"), as in WEFT_WITH_DWCONV2D; "" if there is none. Never NULL.
 */
const char *weft_operator_name(unsigned opcode);

#ifdef __cplusplus
}
#endif

#endif
