/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels of a core against the reference kernels, on that core: random operators, regions, windows and amounts of
 * scratch must leave the same bytes in memory, accumulators and MAC counts included. KERNEL_CASES and KERNEL_SEED come
 * from the build. Then, one JSON line each, the instructions of the layers in `layers`.
 */
#include "port.h"
#include "weft/weft_config.h"
#include "weft_internal.h"

/* Operators that have kernels of their own. */
#define LINEAR(X)                                                                                                      \
    X(CONV2D, conv2d)                                                                                                  \
    X(DWCONV2D, dwconv2d)                                                                                              \
    X(FULLY_CONNECTED, fully_connected)                                                                                \
    X(ADD, add)
#define POOLS(X)                                                                                                       \
    X(AVGPOOL, avgpool)                                                                                                \
    X(MAXPOOL, maxpool)
#if WEFT_KERNELS_MVE
#define KERNELS(X) LINEAR(X) POOLS(X) X(REDUCE, reduce)
#define FAST(name) weft_##name##_mve
#elif WEFT_KERNELS_DSP
#define KERNELS(X) LINEAR(X) POOLS(X)
#define FAST(name) weft_##name##_dsp
#else
#define KERNELS(X) LINEAR(X)
#define FAST(name) weft_##name##_portable
#endif
#define DECLARE(id, name) void FAST(name)(const weft_call_t *call);
KERNELS(DECLARE)

typedef struct {
    const char *name;
    weft_kernel_fn reference, fast;
} kernel_t;

static const kernel_t kernels[WEFT_OPCODE_MAX + 1u] = {
#define ENTRY(id, kernel) [WEFT_OP_##id] = {#kernel, weft_##kernel, FAST(kernel)},
    KERNELS(ENTRY)};

/* Input and output shape, and how the one is made from the other. */
typedef struct {
    int32_t h, w, c, oh, ow, n;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, groups;
} shape_t;

#define AREA (768u << 10)
#define WEIGHTS_MAX (512 << 10)
#define SCRATCH_MAX 2560u
#define GUARD 0x5eed5eed

static int8_t *const area_in0 = (int8_t *)(uintptr_t)ARENA_ORIGIN;
static int8_t *const area_in1 = (int8_t *)(uintptr_t)(ARENA_ORIGIN + AREA);
static int8_t *const area_out = (int8_t *)(uintptr_t)(ARENA_ORIGIN + 2u * AREA);
static int8_t *const area_want = (int8_t *)(uintptr_t)(ARENA_ORIGIN + 3u * AREA);
static uint8_t *const area_params = (uint8_t *)(uintptr_t)(ARENA_ORIGIN + 4u * AREA);
static int32_t acc[512], want_acc[512];
static int32_t scratch[SCRATCH_MAX / 4u + 1u]; /* and a guard */

static weft_op_t op;
static weft_call_t call;
static weft_view_t second;
static size_t out_bytes;

/* ---------------------------------------------------------------- output */

static void put_i64(int64_t value)
{
    char text[24];
    char *p = text + sizeof text - 1;
    uint64_t left = value < 0 ? 0u - (uint64_t)value : (uint64_t)value;
    *p = '\0';
    do {
        *--p = (char)('0' + (int)(left % 10u));
        left /= 10u;
    } while (left != 0);
    if (value < 0) {
        *--p = '-';
    }
    port_write(p);
}

static void put_field(const char *name, int64_t value)
{
    port_write(", \"");
    port_write(name);
    port_write("\": ");
    put_i64(value);
}

static void put_call(const char *event, const shape_t *s)
{
    port_write("{\"event\": \"");
    port_write(event);
    port_write("\", \"kernel\": \"");
    port_write(kernels[op.opcode].name);
    port_write("\"");
    put_field("h", s->h);
    put_field("w", s->w);
    put_field("c", s->c);
    put_field("oh", s->oh);
    put_field("ow", s->ow);
    put_field("n", s->n);
    put_field("kernel_h", s->kernel_h);
    put_field("kernel_w", s->kernel_w);
    put_field("stride_h", s->stride_h);
    put_field("stride_w", s->stride_w);
    put_field("dilation_h", s->dilation_h);
    put_field("dilation_w", s->dilation_w);
    put_field("pad_top", s->pad_top);
    put_field("pad_left", s->pad_left);
    put_field("groups", s->groups);
    put_field("y0", call.y0);
    put_field("y1", call.y1);
    put_field("x0", call.x0);
    put_field("x1", call.x1);
    put_field("flags", op.flags);
    put_field("scratch", call.scratch_len);
}

void firmware_fault(uint32_t cause, uint32_t address)
{
    port_write("\n{\"event\": \"fault\"");
    put_field("cause", cause);
    put_field("address", address);
    port_write("}\n");
    port_exit(1);
}

/* Reading at NULL faults: two regions of the MPU there, both of which apply to nothing. */
static void guard_null(void)
{
#if WEFT_KERNELS_MVE
    static volatile uint32_t *const mpu = (volatile uint32_t *)0xe000ed90;
    for (uint32_t n = 0; n < 2; n++) {
        mpu[2] = n;
        mpu[3] = 3u << 1;
        mpu[4] = 1;
    }
    mpu[1] = 5; /* elsewhere as without */
    __asm__ volatile("dsb\n isb" : : : "memory");
#endif
}

/* Words at odd addresses fault, as the core can be told to have it. */
static void trap_unaligned(void)
{
#if KERNEL_TRAP_UNALIGNED
    static volatile uint32_t *const ccr = (volatile uint32_t *)0xe000ed14;
    *ccr |= 1u << 3;
#endif
}

/* ---------------------------------------------------------------- chance */

static uint32_t state = KERNEL_SEED;

static uint32_t chance(uint32_t n)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % n;
}

static int32_t range(int32_t low, int32_t high)
{
    return low + (int32_t)chance((uint32_t)(high - low) + 1u);
}

static void noise(int8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        p[i] = (int8_t)chance(256);
    }
}

/* ---------------------------------------------------------------- setting up a call */

enum { FULL, RING, TILE, LINES, KINDS }; /* whole tensor, ring, tile, tile with line store */

/* A window of the kind at `base` that holds the region; returns its bytes. */
static size_t window(weft_view_t *v, int8_t *base, int32_t h, int32_t w, int32_t c, const int32_t region[4], int kind)
{
    const int32_t y0 = region[0], y1 = region[1], x0 = region[2], x1 = region[3];
    *v = (weft_view_t){.ring = base, .cap = h, .split = INT32_MAX, .ring_stride = w * c, .c = c, .h = h, .w = w};
    v->zero_point = chance(2) == 0 ? INT8_MIN : range(-128, 127); /* the former has quick ways */
    if (kind == RING) {
        v->cap = y1 - y0 + range(0, 2);
    } else if (kind == TILE) {
        v->cap = 0;
        v->split = y0;
    } else if (kind == LINES) {
        v->split = range(y0, y1);
        v->cap = weft_max(1, v->split - y0) + range(0, 1);
    }
    int32_t rows = 0;
    if (kind == TILE || kind == LINES) {
        rows = y1 - v->split;
        v->tile_y = v->split;
        v->tile_x = x0;
        v->tile_stride = (x1 - x0) * c;
    }
    const int32_t ring = v->cap * v->ring_stride;
    v->tile = base + ring + range(0, 5);
    return (size_t)(ring + 5 + rows * v->tile_stride);
}

static void put_i32(uint8_t *p, int32_t value)
{
    memcpy(p, &value, sizeof value);
}

/* `wild`: such as plans may have, but models do not. */
static int32_t any_multiplier(bool wild)
{
    static const int32_t ends[] = {0, 1, 1 << 30, INT32_MAX};
    return wild && chance(2) != 0 ? ends[chance(sizeof ends / sizeof *ends)] : range(1 << 30, INT32_MAX);
}

static int32_t wild_shift(void)
{
    static const int32_t ends[] = {-31, -2, -1, 0, 1, 31};
    return chance(2) != 0 ? ends[chance(sizeof ends / sizeof *ends)] : range(-31, 31);
}

/*
 * Biases, multipliers and shifts; `wild`: also such as models do not have; `quick`: what QUICK allows, with biases of
 * so much, or 0. Returns the bytes.
 */
static size_t put_linear(int32_t n, int32_t m, bool wild, int32_t quick)
{
    uint8_t *p = area_params;
    for (int32_t i = 0; i < n; i++, p += 4) {
        put_i32(p, quick != 0               ? range(0, 1) * 2 * quick - quick
                   : wild && chance(4) == 0 ? range(-2000000000, 2000000000)
                                            : range(-30000, 30000));
    }
    for (int32_t i = 0; i < m; i++, p += 4) {
        put_i32(p, any_multiplier(wild || quick != 0));
    }
    for (int32_t i = 0; i < m; i++) {
        p[i] = (uint8_t)(wild ? wild_shift() : quick != 0 ? range(-31, -1) : range(-12, -6));
    }
    return (size_t)(4 * n + 4 * m + ((m + 3) & ~3));
}

/* So many products with any weights of 16 bits stay below 2^30. */
#define QUADS_TAPS_MAX 100

static void put_add(bool wild, bool random)
{
    for (uint32_t i = 0; i < 3; i++) {
        put_i32(area_params + 4u * i, chance(2) != 0 ? 1 << 30 : range(1 << 30, INT32_MAX));
    }
    area_params[12] = (uint8_t)(wild ? wild_shift() : random ? range(-3, 0) : -1);
    area_params[13] = (uint8_t)(wild ? wild_shift() : random ? range(-3, 0) : 0);
    area_params[14] = (uint8_t)(wild ? wild_shift() : range(-20, -16));
    area_params[15] = (uint8_t)(wild ? range(0, 31) : 20);
}

static void field(int32_t *lo, int32_t *hi, int32_t from, int32_t to, int32_t kernel, int32_t stride, int32_t dilation,
                  int32_t pad, int32_t size)
{
    *lo = weft_clamp(from * stride - pad, 0, size - 1);
    *hi = weft_clamp((to - 1) * stride - pad + (kernel - 1) * dilation + 1, 1, size);
}

/* A whole operand of ADD, of the output's shape but for axes that are `broadcast`. */
static void operand(weft_view_t *view, int8_t *area, const shape_t *s, bool broadcast)
{
    const int32_t h = broadcast && chance(2) != 0 ? 1 : s->h, w = broadcast && chance(2) != 0 ? 1 : s->w;
    const int32_t c = broadcast && chance(2) != 0 ? 1 : s->c;
    const int32_t all[4] = {0, h, 0, w};
    noise(area, window(view, area, h, w, c, all, FULL));
}

static void set_up(uint32_t opcode, const shape_t *s, const int32_t region[4], bool random)
{
    const bool linear = opcode <= WEFT_OP_FULLY_CONNECTED, wild = random && chance(4) == 0;
    op =
        (weft_op_t){.opcode = (uint8_t)opcode, .act_min = INT8_MIN, .act_max = INT8_MAX, .groups = (uint16_t)s->groups};
    op.kernel_h = (uint8_t)s->kernel_h;
    op.kernel_w = (uint8_t)s->kernel_w;
    op.stride_h = (uint8_t)s->stride_h;
    op.stride_w = (uint8_t)s->stride_w;
    op.dilation_h = (uint8_t)s->dilation_h;
    op.dilation_w = (uint8_t)s->dilation_w;
    op.pad_top = (uint8_t)s->pad_top;
    op.pad_left = (uint8_t)s->pad_left;
    if (random && chance(3) == 0) {
        op.act_min = (int8_t)range(-128, 127);
        op.act_max = (int8_t)range(op.act_min, 127);
    }
    int32_t m = s->n;
    if (random && linear && chance(2) != 0) {
        op.flags |= WEFT_OP_PER_TENSOR;
        m = 1;
    }
    if (random && opcode == WEFT_OP_AVGPOOL && chance(3) == 0) {
        op.flags |= WEFT_OP_COUNT_PAD;
    }
    call = (weft_call_t){.op = &op, .params = area_params, .scratch = scratch, .scratch_len = SCRATCH_MAX};
    call.total = call.channels = s->n;
    call.y0 = region[0];
    call.y1 = region[1];
    call.x0 = region[2];
    call.x1 = region[3];
    if (random && chance(2) != 0) {
        static const uint32_t few[] = {0, 4, 255, 256, 257, 511, 512, 1000};
        call.scratch_len = chance(2) != 0 ? few[chance(sizeof few / sizeof *few)] : chance(SCRATCH_MAX);
    }

    if (linear) {
        const int32_t taps = s->kernel_h * s->kernel_w,
                      each = opcode == WEFT_OP_CONV2D ? taps * (s->c / s->groups) : taps;
        const bool depthwise = opcode == WEFT_OP_DWCONV2D;
        int32_t weights = s->n * (opcode == WEFT_OP_FULLY_CONNECTED ? s->h * s->w * s->c : each);
        if (!wild && !(depthwise && taps > QUADS_TAPS_MAX) &&
            (random ? chance(2) != 0 : WEFT_KERNELS_DSP || !depthwise)) {
            op.flags |= WEFT_OP_QUICK;
            weights = depthwise ? 2 * taps * ((s->n + 3) & ~3) : weights;
        }
        int32_t quick = 0;
        if (random && (op.flags & WEFT_OP_QUICK) != 0 && chance(3) == 0) {
            const int32_t length = opcode == WEFT_OP_FULLY_CONNECTED ? s->h * s->w * s->c : each;
            quick = (1 << 30) - 1 - length * 255 * (depthwise ? 1 << 15 : 1 << 7);
        }
        const size_t head = put_linear(s->n, m, wild, quick);
        noise((int8_t *)area_params + head, (size_t)weights);
    } else if (opcode == WEFT_OP_ADD) {
        put_add(wild, random);
    } else if (opcode == WEFT_OP_REDUCE) {
        static const uint8_t axes[] = {WEFT_OP_REDUCE_H, WEFT_OP_REDUCE_W, WEFT_OP_REDUCE_H | WEFT_OP_REDUCE_W};
        static const uint8_t how[] = {0, WEFT_OP_REDUCE_AVG, WEFT_OP_REDUCE_MAX};
        op.flags = (uint8_t)(axes[chance(sizeof axes)] | how[chance(sizeof how)]);
        (void)put_linear(0, 1, wild, 0);
    }

    int32_t in_c = s->c, out_c = s->n;
    const bool leads = opcode == WEFT_OP_CONV2D && s->groups == 1, follows = opcode == WEFT_OP_DWCONV2D && s->n == s->c;
    if (random && (leads || follows) && chance(3) == 0) {
        do {
            call.channels = range(1, s->n);
        } while (s->n % call.channels != 0);
        call.channel = call.channels * (int32_t)chance((uint32_t)(s->n / call.channels));
        in_c = follows && chance(2) != 0 ? call.channels : in_c;
        out_c = leads || chance(2) != 0 ? call.channels : out_c;
    }

    int32_t need[4] = {call.y0, call.y1, call.x0, call.x1};
    const int32_t vector[4] = {0, 1, 0, 1};
    const bool dense = opcode == WEFT_OP_FULLY_CONNECTED;
    if (!dense) {
        field(&need[0], &need[1], call.y0, call.y1, s->kernel_h, s->stride_h, s->dilation_h, s->pad_top, s->h);
        field(&need[2], &need[3], call.x0, call.x1, s->kernel_w, s->stride_w, s->dilation_w, s->pad_left, s->w);
    }
    if (opcode == WEFT_OP_ADD) {
        operand(&call.in0, area_in0, s, random && chance(6) == 0);
        operand(&second, area_in1, s, random && chance(3) == 0);
        call.in1 = &second;
        if (random && chance(2) != 0 && call.in0.h == s->h && call.in0.w == s->w && call.in0.c == s->c) {
            noise(area_in0, window(&call.in0, area_in0, s->h, s->w, s->c, need, (int)chance(KINDS)));
        }
    } else {
        noise(area_in0, window(&call.in0, area_in0, s->h, s->w, in_c, need, random ? (int)chance(KINDS) : FULL));
    }
    const bool reduce = opcode == WEFT_OP_REDUCE, over_h = (op.flags & WEFT_OP_REDUCE_H) != 0;
    const bool over_w = (op.flags & WEFT_OP_REDUCE_W) != 0;
    out_bytes = reduce  ? window(&call.out, area_out, over_h ? 1 : s->h, over_w ? 1 : s->w, s->c,
                                 (const int32_t[4]){0, over_h ? 1 : s->h, 0, over_w ? 1 : s->w}, FULL)
                : dense ? window(&call.out, area_out, 1, 1, s->n, vector, FULL)
                        : window(&call.out, area_out, s->oh, s->ow, out_c, region, random ? (int)chance(KINDS) : FULL);
    out_bytes += 16u;
    if (follows && in_c == s->c) {
        call.in0.ring += call.channel;
        call.in0.tile += call.channel;
    }
    if (out_c == s->n) {
        call.out.ring += call.channel;
        call.out.tile += call.channel;
    }
}

/* Both kernels on the same call; instructions' ticks of the fast one, or -1 if they differ. */
static int64_t compare(uint64_t *macs)
{
    uint64_t counted = 0;
    weft_call_t reference = call;
    const ptrdiff_t shift = area_want - area_out;
    noise(area_out, out_bytes);
    memcpy(area_want, area_out, out_bytes);
    memcpy(want_acc, acc, sizeof acc);
    reference.out.ring += shift;
    reference.out.tile += shift;
    reference.acc = call.acc != NULL ? want_acc : NULL;
    reference.macs = macs;
    call.macs = &counted;
    *macs = 0;
    scratch[(call.scratch_len + 3u) / 4u] = GUARD;

    kernels[op.opcode].reference(&reference);
    const uint64_t begin = port_ticks();
    kernels[op.opcode].fast(&call);
    const uint64_t end = port_ticks();
    const bool same = memcmp(area_out, area_want, out_bytes) == 0 && memcmp(acc, want_acc, sizeof acc) == 0 &&
                      counted == *macs && scratch[(call.scratch_len + 3u) / 4u] == GUARD;
    return same ? (int64_t)(end - begin) : -1;
}

/* ---------------------------------------------------------------- random calls */

/* Output positions along an axis whose windows have a tap inside; 0 if position 0 has none. `some`: all but a few. */
static int32_t positions(int32_t size, int32_t kernel, int32_t stride, int32_t dilation, int32_t pad, bool some)
{
    int32_t count = 0;
    for (int32_t first = -pad; first < size; first += stride, count++) {
        bool inside = false;
        for (int32_t k = 0; k < kernel; k++) {
            inside |= first + k * dilation >= 0 && first + k * dilation < size;
        }
        if (!inside && (!some || first >= size - 1)) {
            break;
        }
    }
    return count;
}

static shape_t random_shape(uint32_t opcode)
{
    const int32_t c = range(1, chance(2) != 0 ? 12 : 40), n = range(1, chance(4) != 0 ? 20 : 70);
    shape_t s = {range(1, 10), range(1, 10), c, 1, 1, n, 1, 1, 1, 1, 1, 1, 0, 0, 1};
    if (opcode != WEFT_OP_FULLY_CONNECTED && opcode != WEFT_OP_ADD && opcode != WEFT_OP_REDUCE && chance(3) != 0) {
        s.kernel_h = range(1, chance(4) != 0 ? 4 : 14);
        s.kernel_w = range(1, chance(4) != 0 ? 3 : 7);
        if (opcode == WEFT_OP_DWCONV2D && chance(2) != 0) {
            s.kernel_h = s.kernel_w = 1 + 2 * range(1, 3);
        }
        s.stride_h = range(1, 3);
        s.stride_w = range(1, 3);
        if (chance(4) == 0) {
            s.dilation_h = range(1, 3);
            s.dilation_w = range(1, 3);
        }
        /* Windows of convolutions may lie in the padding altogether. */
        const int32_t more = opcode <= WEFT_OP_DWCONV2D && chance(6) == 0 ? 2 : 0;
        s.pad_top = range(0, (s.kernel_h - 1) * s.dilation_h + more);
        s.pad_left = range(0, (s.kernel_w - 1) * s.dilation_w + more);
    }
    if (opcode == WEFT_OP_CONV2D && chance(4) == 0) {
        s.groups = range(2, 3);
        s.n *= s.groups;
    }
    if (opcode == WEFT_OP_CONV2D) {
        s.c = s.groups * (chance(8) == 0 ? range(120, 300) : s.c);
    } else if (opcode == WEFT_OP_DWCONV2D) {
        s.n = s.c * (chance(8) == 0 ? range(2, 3) : 1);
    } else if (opcode != WEFT_OP_FULLY_CONNECTED) {
        s.n = s.c;
    }
    s.oh = positions(s.h, s.kernel_h, s.stride_h, s.dilation_h, s.pad_top, opcode <= WEFT_OP_DWCONV2D);
    s.ow = positions(s.w, s.kernel_w, s.stride_w, s.dilation_w, s.pad_left, opcode <= WEFT_OP_DWCONV2D);
    if (opcode <= WEFT_OP_DWCONV2D && chance(6) == 0) { /* behind the tensor too */
        s.oh += range(0, 3);
        s.ow += range(0, 3);
    }
    return s;
}

static void random_part(int32_t *from, int32_t *to, int32_t size)
{
    *from = range(0, size - 1);
    *to = range(*from + 1, size);
    if (chance(3) == 0) {
        *from = 0;
        *to = size;
    }
}

static void random_calls(int32_t cases)
{
    static const uint8_t opcodes[] = {WEFT_OP_CONV2D,   WEFT_OP_CONV2D,          WEFT_OP_CONV2D, WEFT_OP_DWCONV2D,
                                      WEFT_OP_DWCONV2D, WEFT_OP_FULLY_CONNECTED, WEFT_OP_ADD,    WEFT_OP_AVGPOOL,
                                      WEFT_OP_MAXPOOL,  WEFT_OP_REDUCE};
    int32_t done = 0;
    while (done < cases) {
        const uint32_t opcode = opcodes[chance(sizeof opcodes)];
        if (kernels[opcode].fast == NULL) {
            continue;
        }
        const shape_t s = random_shape(opcode);
        const bool dense = opcode == WEFT_OP_FULLY_CONNECTED, parts = dense || opcode == WEFT_OP_REDUCE;
        if (s.oh == 0 || s.ow == 0 || s.kernel_h * s.kernel_w * (s.c / s.groups) * s.n > WEIGHTS_MAX) {
            continue;
        }
        int32_t region[4];
        uint64_t macs;
        random_part(&region[0], &region[1], dense ? s.h : s.oh);
        random_part(&region[2], &region[3], dense ? s.w : s.ow);
        set_up(opcode, &s, region, true);
        if (parts && (chance(2) != 0 || (region[1] - region[0]) * (region[3] - region[2]) != s.h * s.w)) {
            call.acc = acc;
            call.first = chance(2) != 0;
            call.last = chance(2) != 0;
            for (uint32_t i = 0; i < sizeof acc / sizeof *acc; i++) {
                acc[i] = range(-100000, 100000);
            }
        }
        if (compare(&macs) < 0) {
            put_call("differs", &s);
            port_write("}\n");
            port_exit(1);
        }
        done++;
    }
    port_write("{\"event\": \"same\"");
    put_field("cases", done);
    port_write("}\n");
}

/* ---------------------------------------------------------------- chosen layers */

typedef struct {
    uint8_t opcode;
    shape_t shape;
} layer_t;

#define POINTWISE(size, c, n)                                                                                          \
    {                                                                                                                  \
        WEFT_OP_CONV2D,                                                                                                \
        {                                                                                                              \
            size, size, c, size, size, n, 1, 1, 1, 1, 1, 1, 0, 0, 1                                                    \
        }                                                                                                              \
    }
#define CONV(h, w, c, oh, ow, n, kh, kw, stride, top, left)                                                            \
    {                                                                                                                  \
        WEFT_OP_CONV2D,                                                                                                \
        {                                                                                                              \
            h, w, c, oh, ow, n, kh, kw, stride, stride, 1, 1, top, left, 1                                             \
        }                                                                                                              \
    }
#define DEPTHWISE(size, c, out, kernel, stride, pad)                                                                   \
    {                                                                                                                  \
        WEFT_OP_DWCONV2D,                                                                                              \
        {                                                                                                              \
            size, size, c, out, out, c, kernel, kernel, stride, stride, 1, 1, pad, pad, 1                              \
        }                                                                                                              \
    }
#define DENSE(c, n)                                                                                                    \
    {                                                                                                                  \
        WEFT_OP_FULLY_CONNECTED,                                                                                       \
        {                                                                                                              \
            1, 1, c, 1, 1, n, 1, 1, 1, 1, 1, 1, 0, 0, 1                                                                \
        }                                                                                                              \
    }
#define POOL(opcode, size, c, out, kernel)                                                                             \
    {                                                                                                                  \
        opcode,                                                                                                        \
        {                                                                                                              \
            size, size, c, out, out, c, kernel, kernel, kernel, kernel, 1, 1, 0, 0, 1                                  \
        }                                                                                                              \
    }

/* Layers as they occur in networks for microcontrollers. */
static const layer_t layers[] = {
    POINTWISE(48, 8, 16),
    POINTWISE(24, 16, 32),
    POINTWISE(12, 64, 64),
    POINTWISE(6, 128, 128),
    POINTWISE(3, 256, 256),
    POINTWISE(20, 144, 24),
    CONV(96, 96, 3, 48, 48, 8, 3, 3, 2, 0, 0),
    CONV(49, 10, 1, 25, 5, 64, 10, 4, 2, 4, 1),
    CONV(32, 32, 3, 32, 32, 16, 3, 3, 1, 1, 1),
    CONV(32, 32, 16, 32, 32, 16, 3, 3, 1, 1, 1),
    CONV(8, 8, 64, 8, 8, 64, 3, 3, 1, 1, 1),
    DEPTHWISE(48, 8, 48, 3, 1, 1),
    DEPTHWISE(24, 32, 24, 3, 1, 1),
    DEPTHWISE(6, 128, 6, 3, 1, 1),
    DEPTHWISE(48, 16, 24, 3, 2, 0),
    DEPTHWISE(20, 48, 20, 5, 1, 2),
    DEPTHWISE(20, 96, 20, 7, 1, 3),
    DEPTHWISE(20, 4, 20, 7, 1, 3),
    DENSE(640, 128),
    DENSE(128, 128),
    {WEFT_OP_ADD, {32, 32, 16, 32, 32, 16, 1, 1, 1, 1, 1, 1, 0, 0, 1}},
    POOL(WEFT_OP_AVGPOOL, 8, 64, 1, 8),
    POOL(WEFT_OP_MAXPOOL, 24, 32, 12, 2),
};

static void chosen_layers(void)
{
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        const shape_t *s = &layers[i].shape;
        if (kernels[layers[i].opcode].fast == NULL) {
            continue;
        }
        const bool dense = layers[i].opcode == WEFT_OP_FULLY_CONNECTED;
        const int32_t region[4] = {0, dense ? s->h : s->oh, 0, dense ? s->w : s->ow};
        uint64_t macs;
        set_up(layers[i].opcode, s, region, false);
        const int64_t ticks = compare(&macs);
        put_call(ticks < 0 ? "differs" : "layer", s);
        put_field("ticks", ticks);
        put_field("macs", (int64_t)macs);
        port_write("}\n");
        if (ticks < 0) {
            port_exit(1);
        }
    }
}

void firmware_main(void)
{
    port_ticks_start();
    chosen_layers();
    guard_null();
    trap_unaligned();
    random_calls(KERNEL_CASES);
    port_exit(0);
}
