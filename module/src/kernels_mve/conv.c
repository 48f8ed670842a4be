/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV2D: four output channels at a time, pixel after pixel: 0.17 instructions per MAC and 4 per output. Several pixels
 * with the same taps inside share the sums of the weights, which take the zero point off; a single one adds the zero
 * point's products as it goes, 0.23 per MAC. Pointwise, pixels are read in place. Patches of short tap rows are
 * gathered if there is memory for them: the plan's scratch, or the stack. Then there is one run, and taps outside are
 * the zero point. Else tap rows are read in place.
 */
#include "copy.h"
#include "mve.h"

#if WEFT_KERNELS_MVE

#define PIXELS 7     /* at once, as the stack allows */
#define SHORT_ROW 64 /* elements of a tap row shorter than which patches are gathered */
#define GATHERED 144 /* bytes of patches that are gathered on the stack */

typedef struct {
    const int8_t *px; /* first tap */
    int8_t *out;
} pixel_t;

/* A call, and up to PIXELS pixels that have the same taps inside. */
typedef struct {
    const weft_call_t *call;
    weft_linear_t p;
    mve_patch_t patch;          /* tap rows */
    int32_t depth;              /* input channels of a group */
    bool joined;                /* a tap row is one run of memory */
    int32_t runs, step, weight; /* runs in a row, bytes from one to the next; first weight */
    int32_t count, most;        /* pixels; at most */
    pixel_t pixel[PIXELS];
} conv_t;

/* All channels of a pixel, at least four, without groups, its tap rows one run each. */
static MVE_NOINLINE void one_patch(conv_t *conv)
{
    const weft_linear_t p = conv->p; /* a copy: bytes written could be its members */
    const mve_range_t range = mve_range(&p);
    const mve_zero_t zero = mve_zero(conv->call->in0.zero_point);
    const int32_t n = conv->call->channels;
    const int8_t *const px = conv->pixel[0].px;
    int8_t *const out = conv->pixel[0].out;
    conv->count = 0;
    const uint32x4_t weights = mve_weights(p.weights + conv->weight, conv->patch.size, 4);
    for (int32_t channel = 0; channel < n; channel += 4) {
        const int32_t o = weft_min(channel, n - 4); /* the last ones overlap those before */
        mve_channels_t channels;
        vstrwq_u32(channels.weights, vaddq_n_u32(weights, (uint32_t)(o * conv->patch.size)));
        vstrwq_s32(channels.start, vmulq_n_s32(vldrwq_s32(mve_words(p.bias) + o), zero.sign));
        const int32x4_t acc = vmulq_n_s32(mve_dot(&conv->patch, px, &channels, &zero, false), zero.sign);
        vstrbq_s32(out + o, mve_out(acc, mve_scale_of_four(&p, o), range));
    }
}

/* What the loop over channels of one_run() is about, four at a time. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    int8_t *out;
    const int8_t *weights;
    int32_t size;                /* weights of a channel */
    int32_t sign, zp, run, skip; /* skip: bytes from where a round leaves a channel's weights to the fourth one on */
    const int8_t *px;
    const int32_t *end; /* of biases */
} one_run_t;

/* As mve_mbqm(): shifts in q1 to both sides, or all to the right. */
#define BOTH_WAYS                                                                                                      \
    "vshr.s32 q2, q1, #31\n\t"                                                                                         \
    "vand q2, q2, q1\n\t"                                                                                              \
    "vsub.i32 q1, q1, q2\n\t"                                                                                          \
    "vshl.s32 q0, q0, q1\n\t"                                                                                          \
    "vqrdmulh.s32 q0, q0, q3\n\t"                                                                                      \
    "vand q1, q0, q2\n\t"                                                                                              \
    "vshr.s32 q1, q1, #31\n\t"                                                                                         \
    "vqadd.s32 q0, q0, q1\n\t"                                                                                         \
    "vrshl.s32 q0, q0, q2\n\t"
#define RIGHT_ONLY                                                                                                     \
    "vqrdmulh.s32 q0, q0, q3\n\t"                                                                                      \
    "vshr.s32 q2, q0, #31\n\t"                                                                                         \
    "vqadd.s32 q0, q0, q2\n\t"                                                                                         \
    "vrshl.s32 q0, q0, q1\n\t"
#define FIRST_LESS_ZERO MVE_PRODUCTS("", "r12", MVE_FLIP, MVE_BESIDE)
#define LESS_ZERO MVE_PRODUCTS("a", "r12", MVE_FLIP, MVE_BESIDE)
#define AS_THEY_ARE MVE_PRODUCTS("a", "r12", "", MVE_NONE)
/* From `bias` on up to `end`. The first round of products makes the sums. */
#define ONE_RUN(scaled)                                                                                                \
    __asm__ volatile("ldrd r1, r8, [%[at], %[weights]]\n\t"                                                            \
                     "add r3, r1, r8\n\t"                                                                              \
                     "add r5, r3, r8\n\t"                                                                              \
                     "add r8, r5, r8\n\t"                                                                              \
                     "ldrd r10, r11, [%[at], %[run]]\n\t"                                                              \
                     "b 3f\n\t"                                                                                        \
                     "1:\n\t" LESS_ZERO "letp lr, 1b\n\t"                                                              \
                     "b 2f\n\t"                                                                                        \
                     "3:\n\t"                                                                                          \
                     "ldr r12, [%[at], %[px]]\n\t"                                                                     \
                     "dlstp.8 lr, r10\n\t" FIRST_LESS_ZERO "letp lr, 1b\n\t"                                           \
                     "2:\n\t"                                                                                          \
                     "vmov q3[2], q3[0], r0, r4\n\t"                                                                   \
                     "vmov q3[3], q3[1], r2, r6\n\t"                                                                   \
                     "ldm %[at], {r0, r2, r4, r6}\n\t"                                                                 \
                     "vldrw.32 q0, [r0], #16\n\t"                                                                      \
                     "ldrd r12, lr, [%[at], %[sign]]\n\t"                                                              \
                     "vmla.s32 q0, q3, r12\n\t"                                                                        \
                     "vldrb.s32 q1, [r4], #4\n\t"                                                                      \
                     "vldrw.32 q3, [r2], #16\n\t" scaled "vmax.s32 q0, q0, %q[lo]\n\t"                                 \
                     "vmin.s32 q0, q0, %q[hi]\n\t"                                                                     \
                     "vadd.i32 q0, q0, lr\n\t"                                                                         \
                     "vstrb.32 q0, [r6], #4\n\t"                                                                       \
                     "stm %[at], {r0, r2, r4, r6}\n\t"                                                                 \
                     "add r1, r1, r11\n\t"                                                                             \
                     "add r3, r3, r11\n\t"                                                                             \
                     "add r5, r5, r11\n\t"                                                                             \
                     "ldr r12, [%[at], %[end]]\n\t"                                                                    \
                     "add r8, r8, r11\n\t"                                                                             \
                     "cmp r0, r12\n\t"                                                                                 \
                     "bne 3b"                                                                                          \
                     :                                                                                                 \
                     : [at] "r"(at), [flip] "w"(zero.flip), [beside] "w"(zero.beside), [lo] "w"(range.lo),             \
                       [hi] "w"(range.hi), [weights] "i"(offsetof(one_run_t, weights)),                                \
                       [run] "i"(offsetof(one_run_t, run)), [px] "i"(offsetof(one_run_t, px)),                         \
                       [sign] "i"(offsetof(one_run_t, sign)), [end] "i"(offsetof(one_run_t, end))                      \
                     : MVE_REGISTERS, "q3", "r10", "r11", "r12")

/* As one_patch() for patches of one row, not empty, whose channels have multipliers of their own. */
static MVE_NOINLINE void one_run(conv_t *conv)
{
    const weft_linear_t *p = &conv->p;
    const int32_t n = conv->call->channels, size = conv->patch.size;
    const mve_zero_t zero = mve_zero(conv->call->in0.zero_point);
    const mve_range_t range = mve_range(p);
    const bool quick = (conv->call->op->flags & WEFT_OP_QUICK) != 0;
    one_run_t loop;
    register one_run_t *const at __asm__("r9") = &loop;
    conv->count = 0;
    loop.px = conv->pixel[0].px;
    loop.run = conv->patch.run;
    loop.skip = 4 * size - ((conv->patch.run + 15) & ~15);
    loop.size = size;
    loop.sign = zero.sign;
    loop.zp = range.zp;
    for (int32_t o = 0, end = n & ~3;; o = n - 4, end = n) { /* at last channels that overlap those before */
        loop.bias = mve_words(p->bias) + o;
        loop.multiplier = mve_words(p->multiplier) + o;
        loop.shift = p->shift + o;
        loop.out = conv->pixel[0].out + o;
        loop.end = mve_words(p->bias) + end;
        loop.weights = p->weights + conv->weight + o * size;
        if (quick) {
            ONE_RUN(RIGHT_ONLY);
        } else {
            ONE_RUN(BOTH_WAYS);
        }
        if (end == n) {
            break;
        }
    }
}

/* What the loops over channels and pixels of some_pixels() are about. */
typedef struct {
    int32_t start[4]; /* of sums */
    const int8_t *weights[4];
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    int32_t lo, hi;
    int32_t zp, o, next; /* o: first channel; next: bytes of four channels' weights */
    int32_t zp_in, run;
    const pixel_t *pixel, *end_pixel;
    const int32_t *end; /* of biases */
    /* Of patches that are not one run. */
    const int8_t *const *row, *const *end_row;
    int32_t skip, px; /* px: bytes from a row's address to the pixel's first tap */
} some_t;

/* Multipliers are in q6; to both sides: shifts in q4 and q5; to the right only: shifts in q4, the upper bound in q5. */
#define PREPARE_BOTH                                                                                                   \
    "vshr.s32 q5, q4, #31\n\t"                                                                                         \
    "vand q5, q5, q4\n\t"                                                                                              \
    "vsub.i32 q4, q4, q5\n\t"
#define SCALE_BOTH                                                                                                     \
    "vshl.s32 q3, q3, q4\n\t"                                                                                          \
    "vqrdmulh.s32 q3, q3, q6\n\t"                                                                                      \
    "vand q0, q3, q5\n\t"                                                                                              \
    "vshr.s32 q0, q0, #31\n\t"                                                                                         \
    "ldr r3, [r9, %[hi]]\n\t"                                                                                          \
    "vqadd.s32 q3, q3, q0\n\t"                                                                                         \
    "vdup.32 q1, r3\n\t"                                                                                               \
    "vrshl.s32 q3, q3, q5\n\t"                                                                                         \
    "vmin.s32 q3, q3, q1\n\t"
#define PREPARE_RIGHT "ldr r6, [r9, %[hi]]\n\tvdup.32 q5, r6\n\t"
#define SCALE_RIGHT                                                                                                    \
    "vqrdmulh.s32 q3, q3, q6\n\t"                                                                                      \
    "vshr.s32 q0, q3, #31\n\t"                                                                                         \
    "vqadd.s32 q3, q3, q0\n\t"                                                                                         \
    "vrshl.s32 q3, q3, q4\n\t"                                                                                         \
    "vmin.s32 q3, q3, q5\n\t"
/* Weights of four channels, to be summed. */
#define FOUR_CHANNELS                                                                                                  \
    "add r8, r9, #16\n\t"                                                                                              \
    "ldm r8, {r1, r3, r5, r8}\n\t"                                                                                     \
    "movs r0, #0\n\t"                                                                                                  \
    "movs r2, #0\n\t"                                                                                                  \
    "movs r4, #0\n\t"                                                                                                  \
    "movs r6, #0\n\t"
/* Where sums start, given those of the weights; multipliers and shifts. */
#define START(prepare)                                                                                                 \
    "vmov q3[2], q3[0], r0, r4\n\t"                                                                                    \
    "vmov q3[3], q3[1], r2, r6\n\t"                                                                                    \
    "add r8, r9, #32\n\t"                                                                                              \
    "ldm r8, {r0, r2, r4}\n\t"                                                                                         \
    "ldr r6, [r9, %[zp_in]]\n\t"                                                                                       \
    "vldrw.32 q0, [r0], #16\n\t"                                                                                       \
    "vmla.s32 q0, q3, r6\n\t"                                                                                          \
    "vstrw.32 q0, [r9]\n\t"                                                                                            \
    "vldrw.32 q6, [r2], #16\n\t"                                                                                       \
    "vldrb.s32 q4, [r4], #4\n\t" prepare "stm r8, {r0, r2, r4}\n\t"                                                    \
    "ldrd r10, r11, [r9, %[pixel]]\n\t"
#define PIXEL                                                                                                          \
    "ldm r9, {r0, r2, r4, r6}\n\t"                                                                                     \
    "add r8, r9, #16\n\t"                                                                                              \
    "ldm r8, {r1, r3, r5, r8}\n\t"                                                                                     \
    "ldr r12, [r10], #4\n\t"
#define OUTPUTS(scale)                                                                                                 \
    "vmov q3[2], q3[0], r0, r4\n\t"                                                                                    \
    "vmov q3[3], q3[1], r2, r6\n\t"                                                                                    \
    "ldrd r0, r1, [r9, %[zp]]\n\t"                                                                                     \
    "ldr r2, [r10], #4\n\t" scale "vmax.s32 q3, q3, q7\n\t"                                                            \
    "add r2, r2, r1\n\t"                                                                                               \
    "vadd.i32 q3, q3, r0\n\t"                                                                                          \
    "cmp r10, r11\n\t"                                                                                                 \
    "vstrb.32 q3, [r2]\n\t"
#define NEXT_FOUR                                                                                                      \
    "vldrw.32 q0, [r9, #16]\n\t"                                                                                       \
    "ldrd r1, r2, [r9, %[o]]\n\t"                                                                                      \
    "vadd.i32 q0, q0, r2\n\t"                                                                                          \
    "adds r1, #4\n\t"                                                                                                  \
    "str r1, [r9, %[o]]\n\t"                                                                                           \
    "ldr r0, [r9, #32]\n\t"                                                                                            \
    "ldr r2, [r9, %[end]]\n\t"                                                                                         \
    "vstrw.32 q0, [r9, #16]\n\t"                                                                                       \
    "cmp r0, r2\n\t"
#define SOME(loops)                                                                                                    \
    __asm__ volatile(                                                                                                  \
        "ldr r0, [r9, %[lo]]\n\t"                                                                                      \
        "vdup.32 q7, r0\n\t" loops                                                                                     \
        :                                                                                                              \
        : "r"(at), [lo] "i"(offsetof(some_t, lo)), [hi] "i"(offsetof(some_t, hi)), [zp] "i"(offsetof(some_t, zp)),     \
          [o] "i"(offsetof(some_t, o)), [zp_in] "i"(offsetof(some_t, zp_in)), [run] "i"(offsetof(some_t, run)),        \
          [pixel] "i"(offsetof(some_t, pixel)), [end] "i"(offsetof(some_t, end)), [row] "i"(offsetof(some_t, row)),    \
          [end_row] "i"(offsetof(some_t, end_row)), [skip] "i"(offsetof(some_t, skip)),                                \
          [px] "i"(offsetof(some_t, px)), [end_pixel] "i"(offsetof(some_t, end_pixel))                                 \
        : MVE_REGISTERS, "q3", "q4", "q5", "q6", "q7", "r10", "r11", "r12")
#define SOME_RUNS(prepare, scale)                                                                                      \
    "3:\n\t" FOUR_CHANNELS "ldr lr, [r9, %[run]]\n\t"                                                                  \
    "wlstp.8 lr, lr, 2f\n\t"                                                                                           \
    "1:\n\t" MVE_ADD_WEIGHTS "letp lr, 1b\n\t"                                                                         \
    "2:\n\t" START(prepare) "4:\n\t" PIXEL "ldr lr, [r9, %[run]]\n\t"                                                  \
                            "wlstp.8 lr, lr, 2f\n\t"                                                                   \
                            "1:\n\t" AS_THEY_ARE "letp lr, 1b\n\t"                                                     \
                            "2:\n\t" OUTPUTS(scale) "bne 4b\n\t" NEXT_FOUR "bne 3b"
#define NEXT_ROW                                                                                                       \
    "ldr lr, [r9, %[skip]]\n\t"                                                                                        \
    "add r1, r1, lr\n\t"                                                                                               \
    "add r3, r3, lr\n\t"                                                                                               \
    "add r5, r5, lr\n\t"                                                                                               \
    "add r8, r8, lr\n\t"
#define SOME_PATCHES(prepare, scale)                                                                                   \
    "3:\n\t" FOUR_CHANNELS "ldrd r10, r11, [r9, %[row]]\n\t"                                                           \
    "5:\n\t"                                                                                                           \
    "ldr lr, [r9, %[run]]\n\t"                                                                                         \
    "wlstp.8 lr, lr, 2f\n\t"                                                                                           \
    "1:\n\t" MVE_ADD_WEIGHTS "letp lr, 1b\n\t"                                                                         \
    "2:\n\t" NEXT_ROW "add r10, r10, #4\n\t"                                                                           \
    "cmp r10, r11\n\t"                                                                                                 \
    "bne 5b\n\t" START(prepare) "4:\n\t" PIXEL "ldr r11, [r9, %[row]]\n\t"                                             \
                                "ldr lr, [r11]\n\t"                                                                    \
                                "sub r12, r12, lr\n\t"                                                                 \
                                "str r12, [r9, %[px]]\n\t"                                                             \
                                "5:\n\t"                                                                               \
                                "ldr r12, [r11], #4\n\t"                                                               \
                                "ldr lr, [r9, %[px]]\n\t"                                                              \
                                "add r12, r12, lr\n\t"                                                                 \
                                "ldr lr, [r9, %[run]]\n\t"                                                             \
                                "wlstp.8 lr, lr, 2f\n\t"                                                               \
                                "1:\n\t" AS_THEY_ARE "letp lr, 1b\n\t"                                                 \
                                "2:\n\t" NEXT_ROW "ldr lr, [r9, %[end_row]]\n\t"                                       \
                                "cmp r11, lr\n\t"                                                                      \
                                "bne 5b\n\t"                                                                           \
                                "ldr r11, [r9, %[end_pixel]]\n\t" OUTPUTS(scale) "bne 4b\n\t" NEXT_FOUR "bne 3b"

/* Several pixels, whose channels have multipliers of their own; `single`: of one row, not empty. */
MVE_INLINE void some_pixels(conv_t *conv, bool single)
{
    const weft_linear_t *p = &conv->p;
    const int32_t n = conv->call->channels, size = conv->patch.size;
    const bool quick = (conv->call->op->flags & WEFT_OP_QUICK) != 0;
    some_t loop;
    register some_t *const at __asm__("r9") = &loop;
    loop.lo = p->lo;
    loop.hi = p->hi;
    loop.zp = p->zp_out;
    loop.next = 4 * size;
    loop.zp_in = -conv->call->in0.zero_point;
    loop.run = conv->patch.run;
    loop.pixel = conv->pixel;
    loop.end_pixel = loop.pixel + conv->count;
    if (!single) {
        loop.row = conv->patch.row;
        loop.end_row = conv->patch.end;
        loop.skip = conv->patch.skip;
    }
    conv->count = 0;
    loop.bias = mve_words(p->bias);
    loop.multiplier = mve_words(p->multiplier);
    loop.shift = p->shift;
    loop.o = 0;
    loop.end = loop.bias + (n & ~3);
    loop.weights[0] = p->weights + conv->weight;
    for (int32_t k = 1; k < 4; k++) {
        loop.weights[k] = loop.weights[k - 1] + size;
    }
    for (int32_t rest = n & 3;; rest = 0) {
        if (single && quick) {
            SOME(SOME_RUNS(PREPARE_RIGHT, SCALE_RIGHT));
        } else if (single) {
            SOME(SOME_RUNS(PREPARE_BOTH, SCALE_BOTH));
        } else if (quick) {
            SOME(SOME_PATCHES(PREPARE_RIGHT, SCALE_RIGHT));
        } else {
            SOME(SOME_PATCHES(PREPARE_BOTH, SCALE_BOTH));
        }
        if (rest == 0) {
            break;
        }
        const int32_t back = 4 - rest; /* the last channels overlap those before */
        loop.bias -= back;
        loop.multiplier -= back;
        loop.shift -= back;
        loop.o -= back;
        loop.end += rest;
        for (int32_t k = 0; k < 4; k++) {
            loop.weights[k] -= back * conv->patch.size;
        }
    }
}

static MVE_NOINLINE void some_runs(conv_t *conv)
{
    some_pixels(conv, true);
}

static MVE_NOINLINE void some_patches(conv_t *conv)
{
    some_pixels(conv, false);
}

/* All channels of pixels, whatever their number, groups and dilation. */
static MVE_NOINLINE void any_pixels(conv_t *conv)
{
    const weft_call_t *call = conv->call;
    const weft_linear_t *const p = &conv->p;
    const mve_zero_t zero = mve_zero(call->in0.zero_point);
    const int32_t n = call->channels, per_group = call->op->groups == 1 ? n : n / call->op->groups;
    const int32_t count = weft_min(per_group, 4), size = conv->patch.size;
    const mve_pred16_t lanes = vctp32q((uint32_t)count);
    for (; conv->count > 0; conv->count--) {
        const int8_t *from = conv->pixel[conv->count - 1].px;
        for (int32_t group = 0; group < n; group += per_group, from += conv->depth) {
            for (int32_t channel = 0; channel < per_group; channel += 4) {
                const int32_t o = group + weft_min(channel, per_group - count);
                const int8_t *px = from, *w = p->weights + conv->weight + o * size;
                int32x4_t acc = vmulq_n_s32(vldrwq_z_s32(mve_words(p->bias) + o, lanes), zero.sign);
                for (int32_t run = 0; run < conv->runs; run++, px += conv->step, w += conv->depth) {
                    mve_channels_t channels;
                    vstrwq_s32(channels.start, acc);
                    vstrwq_u32(channels.weights, mve_weights(w, size, count));
                    acc = mve_dot(&conv->patch, px, &channels, &zero, false);
                }
                acc = mve_out(vmulq_n_s32(acc, zero.sign), mve_scale(p, o, lanes), mve_range(p));
                vstrbq_p_s32(conv->pixel[conv->count - 1].out + o, acc, lanes);
            }
        }
    }
}

/* The pixels at hand; the last thing a function does, as the stack is deepest there. */
static void flush(conv_t *conv)
{
    const bool single = conv->patch.end - conv->patch.row == 1 && conv->patch.run > 0;
    if (!conv->joined || conv->call->channels < 4 || (conv->p.per_tensor && conv->count > 1)) {
        any_pixels(conv);
    } else if (conv->count > 1) {
        (single ? some_runs : some_patches)(conv);
    } else if (conv->count == 1) {
        (single && !conv->p.per_tensor ? one_run : one_patch)(conv);
    }
}

static void add_pixel(conv_t *conv, const int8_t *px, int8_t *out)
{
    conv->pixel[conv->count].px = px;
    conv->pixel[conv->count++].out = out;
    if (conv->count == conv->most) {
        flush(conv);
    }
}

/* The patch under the pixel in column x of an output row: input rows are runs of memory. */
static void gather(const conv_t *conv, const weft_rows_t *rows, int32_t x, int8_t *patch)
{
    const weft_op_t *op = conv->call->op;
    const weft_view_t *in = &conv->call->in0;
    const int32_t first = x * op->stride_w - op->pad_left;
    const weft_taps_t cols = weft_taps(first, op->kernel_w, 1, in->w);
    const int32_t run = (cols.hi - cols.lo) * in->c, column = (first + cols.lo - rows->x) * in->c;
    if ((rows->taps.hi - rows->taps.lo) * run != conv->patch.size) {
        memset(patch, in->zero_point, (size_t)conv->patch.size);
    }
    patch += (rows->taps.lo * op->kernel_w + cols.lo) * in->c;
    for (int32_t ky = rows->taps.lo; ky < rows->taps.hi; ky++, patch += op->kernel_w * in->c) {
        weft_copy_down(patch, rows->row[ky] + column, run);
    }
}

/* Patches one behind the other in `memory`, as they come, across rows too. */
MVE_INLINE void conv_patches(conv_t *conv, int8_t *memory, uint32_t length)
{
    const weft_call_t *call = conv->call;
    weft_rows_t rows;
    mve_rows(&conv->patch, &conv->p.weights, 1, conv->patch.size, 0); /* from any address */
    conv->most = (int32_t)weft_min((int32_t)length / conv->patch.size, PIXELS);
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        mve_tap_rows(&rows, call, y);
        for (int32_t x = call->x0; x < call->x1; x++, out += call->out.c) {
            int8_t *patch = memory + conv->count * conv->patch.size;
            gather(conv, &rows, x, patch);
            add_pixel(conv, patch, out);
        }
    }
    flush(conv);
}

static MVE_NOINLINE void conv_scratch(conv_t *conv)
{
    conv_patches(conv, conv->call->scratch, conv->call->scratch_len);
}

static MVE_NOINLINE void conv_stack(conv_t *conv)
{
    int8_t memory[GATHERED];
    conv_patches(conv, memory, sizeof memory);
}

/* Pointwise: pixels in place, as they come. */
static MVE_NOINLINE void conv_pointwise(conv_t *conv)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const int32_t step = op->stride_w * call->in0.c, pixel = call->out.c;
    pixel_t *next = conv->pixel, *const end = next + PIXELS;
    mve_rows(&conv->patch, &conv->p.weights, 1, conv->patch.size, 0); /* from any address */
    for (int32_t y = call->y0; y < call->y1; y++) {
        const int8_t *px = weft_px_inline(&call->in0, y * op->stride_h, call->x0 * op->stride_w);
        int8_t *out = weft_px_inline(&call->out, y, call->x0);
        for (int32_t left = call->x1 - call->x0; left > 0; left--, px += step, out += pixel) {
            if (next == end) {
                conv->count = PIXELS;
                flush(conv);
                next = conv->pixel;
            }
            next->px = px;
            next->out = out;
            next++;
        }
    }
    conv->count = next - conv->pixel;
    flush(conv);
}

/* Pixels in place, neighbours with the same taps together. */
static MVE_NOINLINE void conv_rows(conv_t *conv)
{
    const weft_call_t *call = conv->call;
    const weft_op_t *op = call->op;
    const weft_view_t *in = &call->in0;
    const bool joined = conv->joined;
    const int32_t step = op->stride_w * in->c, pixel = call->out.c;
    weft_rows_t rows;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *out = weft_px(&call->out, y, call->x0);
        mve_tap_rows(&rows, call, y);
        const bool none = rows.taps.lo == rows.taps.hi; /* then runs of none from any address */
        const int8_t *const *row = none ? &conv->p.weights : rows.row + rows.taps.lo;
        for (int32_t x = call->x0, count = 1; x < call->x1; x += count) {
            const int32_t first = x * op->stride_w - op->pad_left;
            const weft_taps_t cols = weft_taps(first, op->kernel_w, op->dilation_w, in->w);
            count = mve_alike(call, x, first, cols);
            conv->runs = joined ? 1 : cols.hi - cols.lo;
            const int32_t run = none ? 0 : joined ? (cols.hi - cols.lo) * conv->depth : conv->depth;
            mve_rows(&conv->patch, row, none ? 1 : rows.taps.hi - rows.taps.lo, run, op->kernel_w * conv->depth);
            conv->weight = (rows.taps.lo * op->kernel_w + cols.lo) * conv->depth;
            const int8_t *px = *row + (first + cols.lo * op->dilation_w - rows.x) * in->c;
            for (int32_t k = count; k > 0; k--, px += step, out += pixel) {
                add_pixel(conv, px, out);
            }
            flush(conv);
        }
    }
}

void weft_conv2d_mve(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    if (op->kernel_h > WEFT_HOISTED_ROWS) {
        weft_conv2d(call);
        return;
    }
    conv_t conv;
    conv.call = call;
    conv.depth = op->groups == 1 ? call->in0.c : call->in0.c / op->groups;
    conv.patch.size = op->kernel_h * op->kernel_w * conv.depth;
    conv.p = weft_linear(call, call->total, conv.patch.size);
    conv.step = op->dilation_w * call->in0.c;
    conv.runs = 1;
    conv.weight = conv.count = 0;
    conv.most = PIXELS;
    conv.joined = op->groups == 1 && (op->dilation_w == 1 || op->kernel_w == 1);
    if (op->groups == 1 && weft_pointwise(call)) {
        conv_pointwise(&conv);
    } else if (conv.joined && conv.patch.size <= GATHERED / 2) {
        conv_stack(&conv);
    } else if (conv.joined && op->kernel_w * conv.depth < SHORT_ROW &&
               call->scratch_len / 4 >= (uint32_t)conv.patch.size) {
        conv_scratch(&conv);
    } else if (conv.joined && conv.patch.size <= GATHERED && call->x1 - call->x0 <= 2) {
        conv_stack(&conv);
    } else {
        conv_rows(&conv);
    }
    weft_count_macs(call, conv.depth * call->channels);
}

#endif
