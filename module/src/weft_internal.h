/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the engine: decoded records, views of windows, the kernel interface. */
#ifndef WEFT_INTERNAL_H
#define WEFT_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "weft/weft.h"
#include "weft_format.h"

/* Records are at least 4-byte aligned where they hold 32-bit fields and 2-byte aligned where they hold 16-bit ones. */
static inline uint16_t weft_rd16(const uint8_t *p)
{
#if defined(__GNUC__)
    uint16_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 2), sizeof v);
    return v;
#else
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
#endif
}

static inline uint32_t weft_rd32(const uint8_t *p)
{
#if defined(__GNUC__)
    uint32_t v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4), sizeof v);
    return v;
#else
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}

static inline uint64_t weft_rd64(const uint8_t *p)
{
    return weft_rd32(p) | (uint64_t)weft_rd32(p + 4) << 32;
}

#if defined(__GNUC__)
#define WEFT_NOINLINE __attribute__((noinline))
#define WEFT_INLINE static inline __attribute__((always_inline))
#else
#define WEFT_NOINLINE
#define WEFT_INLINE static inline
#endif

/*
 * Records are read where they are: these structures are the records of docs/plan-format.md, byte for byte. The bytes
 * may be accessed as anything.
 */
#if defined(__GNUC__)
#define WEFT_RECORD __attribute__((may_alias))
#else
#define WEFT_RECORD
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "plans are little-endian and read in place: this core is not"
#endif

typedef struct WEFT_RECORD {
    uint16_t h, w, c;
    int8_t zero_point;
    uint8_t flags;
} weft_tensor_t;

typedef struct WEFT_RECORD {
    uint8_t opcode, flags;
    uint16_t input0, input1, output;
    uint8_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int8_t act_min, act_max;
    uint16_t groups;
    uint32_t params; /* offset in WEIGHTS */
} weft_op_t;

/*
 * The part of a tensor that is in memory, as kernels see it. Row y (absolute, clamped to the tensor) starts
 *   at or after `split`: at tile + (y - tile_y) * tile_stride, whose first pixel is column tile_x
 *   before `split`:      in a ring of `cap` full-width rows at `ring`, row y in slot y mod cap.
 * FULL is a ring with cap = h and split = INT32_MAX. Use weft_px(), never the members.
 */
typedef struct {
    int8_t *ring, *tile;
    int32_t cap, split;
    int32_t tile_y, tile_x;
    int32_t ring_stride, tile_stride; /* bytes per row */
    int32_t c;                        /* bytes from pixel to pixel */
    int32_t zero_point;
    int32_t h, w; /* the whole tensor */
} weft_view_t;

/* Address of pixel (y, x); pixels (y, x+1), ... of the same row follow at view->c bytes each. */
int8_t *weft_px(const weft_view_t *v, int32_t y, int32_t x);

/* The same, where a call would take longer than what is done with the pixel. */
WEFT_INLINE int8_t *weft_px_inline(const weft_view_t *v, int32_t y, int32_t x)
{
    if (y >= v->split) {
        return v->tile + (y - v->tile_y) * v->tile_stride + (x - v->tile_x) * v->c;
    }
    int32_t slot = y < v->cap ? y : y % v->cap;
    return v->ring + slot * v->ring_stride + x * v->c;
}

/* The same of pixel (y, x) from that of pixel (y - rows, x), `above`: without a division. */
WEFT_INLINE int8_t *weft_px_below(const weft_view_t *v, const int8_t *above, int32_t rows, int32_t y, int32_t x)
{
    int8_t *px = (int8_t *)(uintptr_t)above;
    if (y >= v->split) {
        return y - rows >= v->split ? px + rows * v->tile_stride : weft_px(v, y, x);
    }
    px += rows * v->ring_stride;
    return px >= v->ring + v->cap * v->ring_stride ? px - v->cap * v->ring_stride : px;
}

static inline bool weft_views_alike(const weft_view_t *a, const weft_view_t *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

/*
 * One kernel call: produce rows [y0, y1) and columns [x0, x1) of the output, never empty. For REDUCE and
 * FULLY_CONNECTED the region is over the input that is consumed (region of the whole input, each pixel once).
 * Everything was proved by weft_open(): kernels check nothing and cannot fail.
 */
typedef struct {
    const weft_op_t *op;
    const uint8_t *params;  /* parameter block (docs/plan-format.md), if the opcode has one */
    const weft_view_t *in1; /* second operand of ADD, SUB, MUL */
    weft_view_t in0;
    weft_view_t out;
    int32_t y0, y1, x0, x1;
    /* CONV2D, DWCONV2D: output channels [channel, channel + channels) of `total`; views start at the first of them. */
    int32_t channel, channels, total;
    int32_t axis_offset; /* CONCAT: where this input starts along the axis */
    int32_t *acc;        /* REDUCE, FULLY_CONNECTED over several calls: accumulators; NULL if one call does it all */
    bool first, last;    /* with acc: first call (clear it), last call (requantise into out) */
    void *scratch;       /* scratch_len bytes, 4-aligned; kernels do with any amount, none included */
    uint32_t scratch_len;
    uint64_t *macs; /* WEFT_COUNT: add every executed MAC */
} weft_call_t;

typedef void (*weft_kernel_fn)(const weft_call_t *call);

/* One entry per opcode, NULL where the build leaves it out (weft_config.h). Defined in kernels.c. */
extern const weft_kernel_fn weft_kernels[WEFT_OPCODE_MAX + 1u];

/* Kernels; each family in its own file under kernels_ref/ and, for fast paths, kernels_<core>/. */
void weft_conv2d(const weft_call_t *call);
void weft_dwconv2d(const weft_call_t *call);
void weft_fully_connected(const weft_call_t *call);
void weft_add(const weft_call_t *call);
void weft_sub(const weft_call_t *call);
void weft_mul(const weft_call_t *call);
void weft_concat(const weft_call_t *call);
void weft_pad(const weft_call_t *call);
void weft_avgpool(const weft_call_t *call);
void weft_maxpool(const weft_call_t *call);
void weft_reduce(const weft_call_t *call);
void weft_lut(const weft_call_t *call);
void weft_softmax(const weft_call_t *call);
void weft_reshape(const weft_call_t *call);
void weft_resize(const weft_call_t *call);

#if WEFT_COUNT
#define WEFT_COUNT_MACS(call, n)                                                                                       \
    do {                                                                                                               \
        if ((call)->macs != NULL) {                                                                                    \
            *(call)->macs += (uint64_t)(n);                                                                            \
        }                                                                                                              \
    } while (0)
#else
#define WEFT_COUNT_MACS(call, n) ((void)0)
#endif

/* Records that weft_open() has bounded. */
static inline const weft_tensor_t *weft_tensor_at(const weft_plan_t *plan, uint32_t tensor)
{
    return (const weft_tensor_t *)(const void *)plan->graph + tensor;
}
static inline const weft_op_t *weft_op_at(const weft_plan_t *plan, uint32_t op)
{
    return (const weft_op_t *)(const void *)plan->ops + op;
}
/* Copies of them. */
static inline void weft_tensor(const weft_plan_t *plan, uint32_t tensor, weft_tensor_t *out)
{
    *out = *weft_tensor_at(plan, tensor);
}
static inline void weft_op(const weft_plan_t *plan, uint32_t op, weft_op_t *out)
{
    *out = *weft_op_at(plan, op);
}

static inline int32_t weft_min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}
static inline int32_t weft_max(int32_t a, int32_t b)
{
    return a > b ? a : b;
}
static inline int32_t weft_clamp(int32_t v, int32_t lo, int32_t hi)
{
    return weft_min(weft_max(v, lo), hi);
}

#endif
