/* SPDX-License-Identifier: Apache-2.0 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

DSP_SMALL int8_t dsp_scale_any(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point)
{
    /* Far from overflow when the zero point is added, far outside of int8. */
    return dsp_saturate(weft_clamp(weft_mbqm(acc, multiplier, shift), -512, 511) + zero_point);
}

/* Sums of four output channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} acc_t;

#if DSP_ASM
#define RUN_ROW(address, v)                                                                                            \
    "ldr %[t], " address "\n\t"                                                                                        \
    "sxtb16 %[u], %[t]\n\t"                                                                                            \
    "sxtb16 %[t], %[t], ror #8\n\t"                                                                                    \
    "smlad %[" v "], %[even], %[u], %[" v "]\n\t"                                                                      \
    "smlad %[" v "], %[odd], %[t], %[" v "]\n\t"

#define RUN_QUAD                                                                                                       \
    "ldr %[odd], [%[x]], #4\n\t"                                                                                       \
    "sxtab16 %[even], %[offset], %[odd]\n\t"                                                                           \
    "sxtab16 %[odd], %[offset], %[odd], ror #8\n\t" RUN_ROW("[%[w], %[channel]]", "v1")                                \
        RUN_ROW("[%[w], %[channel], lsl #1]", "v2") RUN_ROW("[%[w], %[channel3]]", "v3") RUN_ROW("[%[w]], #4", "v0")

#define WIDE_QUAD                                                                                                      \
    "ldrd %[even], %[odd], [%[x]], #8\n\t" RUN_ROW("[%[w], %[channel]]", "v1")                                         \
        RUN_ROW("[%[w], %[channel], lsl #1]", "v2") RUN_ROW("[%[w], %[channel3]]", "v3") RUN_ROW("[%[w]], #4", "v0")

#endif

/* Rows of neighbouring inputs with four channels' weights. */
DSP_INLINE acc_t mac_rows(acc_t acc, const dsp_pixel_t *px, const int8_t *w)
{
    const int32_t channel_step = px->channel_step, quads = px->step & ~3;
    const int8_t *const *row = px->row;
    const uint32_t offset = px->offset;
#if DSP_ASM
    const int32_t skip = px->row_step - quads;
    const int8_t *const first = w, *stop, *x;
    int32_t t, u, even, odd;
    if (quads > 0) {
        /* Eight at once; an odd four comes first, in the second half. */
        __asm__ volatile(
            "0:\n\t"
            "ldr %[t], %[row]\n\t"
            "ldr %[u], %[at]\n\t"
            "ldr %[x], [%[t]], #4\n\t"
            "str %[t], %[row]\n\t"
            "add %[x], %[x], %[u]\n\t"
            "ldr %[t], %[quads]\n\t"
            "add %[u], %[x], %[t]\n\t"
            "str %[u], %[stop]\n\t"
            "lsls %[t], %[t], #29\n\t"
            "bmi 2f\n"
            "1:\n\t" RUN_QUAD "2:\n\t" RUN_QUAD "ldr %[t], %[stop]\n\t"
            "cmp %[t], %[x]\n\t"
            "bne 1b\n\t"
            "ldr %[u], %[skip]\n\t"
            "ldr %[t], %[row]\n\t"
            "add %[w], %[w], %[u]\n\t"
            "ldr %[u], %[row_end]\n\t"
            "cmp %[t], %[u]\n\t"
            "bne 0b"
            : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [w] "+r"(w), [x] "=&r"(x),
              [t] "=&r"(t), [u] "=&r"(u), [even] "=&r"(even), [odd] "=&r"(odd), [row] "+m"(row), [stop] "=m"(stop)
            : [channel] "r"(channel_step), [channel3] "r"(3 * channel_step), [offset] "r"(offset), [quads] "m"(quads),
              [skip] "m"(skip), [at] "m"(px->at), [row_end] "m"(px->row_end)
            : "cc", "memory");
        row = px->row;
        w = first;
    }
#else
    for (; row != px->row_end; row++, w += px->row_step) {
        const int8_t *x = *row + px->at, *const stop = x + quads;
        for (const int8_t *v = w; x != stop; x += 4, v += 4) {
            const uint32_t four = dsp_load(x), w0 = dsp_load(v), w1 = dsp_load(v + channel_step);
            const uint32_t w2 = dsp_load(v + 2 * channel_step), w3 = dsp_load(v + 3 * channel_step);
            const int16x2_t even = dsp_even_plus(four, offset), odd = dsp_odd_plus(four, offset);
            acc.v0 = __smlad(odd, dsp_odd(w0), __smlad(even, dsp_even(w0), acc.v0));
            acc.v1 = __smlad(odd, dsp_odd(w1), __smlad(even, dsp_even(w1), acc.v1));
            acc.v2 = __smlad(odd, dsp_odd(w2), __smlad(even, dsp_even(w2), acc.v2));
            acc.v3 = __smlad(odd, dsp_odd(w3), __smlad(even, dsp_even(w3), acc.v3));
        }
    }
    row = px->row;
    w -= (px->row_end - row) * px->row_step;
#endif
    if (quads == px->step) {
        return acc;
    }
    for (; row != px->row_end; row++, w += px->row_step) {
        for (int32_t i = quads; i < px->step; i++) {
            const int32_t value = (*row)[px->at + i] + (int16_t)offset;
            acc.v0 += value * w[i];
            acc.v1 += value * w[channel_step + i];
            acc.v2 += value * w[2 * channel_step + i];
            acc.v3 += value * w[3 * channel_step + i];
        }
    }
    return acc;
}

/* A tap column of four channels, the first tap at `at`. */
DSP_INLINE acc_t mac_column(acc_t acc, const dsp_pixel_t *px, int32_t at, const int8_t *w)
{
    const int8_t *const *row = px->row;
    const uint32_t offset = px->offset;
#if DSP_ASM
    int32_t x, e, we, wo, tap;
    /* row_step and row_end are neighbours. */
    __asm__ volatile("1:\n\t"
                     "ldr %[tap], [%[row]], #4\n\t"
                     "ldr %[wo], [%[w]]\n\t"
                     "ldr %[x], [%[tap], %[at]]\n\t"
                     "sxtab16 %[e], %[offset], %[x]\n\t"
                     "sxtab16 %[x], %[offset], %[x], ror #8\n\t"
                     "sxtb16 %[we], %[wo]\n\t"
                     "sxtb16 %[wo], %[wo], ror #8\n\t" DSP_TAP_SUMS "ldrd %[x], %[e], %[stop]\n\t"
                     "add %[w], %[w], %[x]\n\t"
                     "cmp %[row], %[e]\n\t"
                     "bne 1b"
                     : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [tap] "=&r"(tap),
                       [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo), [w] "+r"(w), [row] "+r"(row)
                     : [offset] "r"(offset), [at] "r"(at), [stop] "m"(px->row_step)
                     : "cc", "memory");
#else
    for (; row != px->row_end; row++, w += px->row_step) {
        const uint32_t x = dsp_load(*row + at), v = dsp_load(w);
        const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
        const int16x2_t we = dsp_even(v), wo = dsp_odd(v);
        acc.v0 = __smlabb(even, we, acc.v0);
        acc.v2 = __smlatt(even, we, acc.v2);
        acc.v1 = __smlabb(odd, wo, acc.v1);
        acc.v3 = __smlatt(odd, wo, acc.v3);
    }
#endif
    return acc;
}

/* Saturate and write; the compiler would put four together first. */
DSP_INLINE void put(int8_t *out, int32_t doubled, int32_t multiplier, uint32_t right, int32_t zero_point)
{
    int32_t r = dsp_shift_right(dsp_mul_high(doubled, multiplier), (int32_t)right, zero_point);
    __asm__("ssat %0, #8, %0\n\tstrb %0, %1" : "+r"(r), "=m"(*out));
}

/* Requantise and write channels o to o + 3, whatever their sums and shifts. */
static DSP_SMALL void store_any(const dsp_pixel_t *px, const acc_t *acc, int32_t o)
{
    const int32_t at = o & px->each, *const sum = &acc->v0;
    for (int32_t i = 0; i < 4; i++) {
        px->out[o + i] = dsp_scale_any(sum[i], px->multiplier[at + i], px->shift[at + i], px->zp);
    }
}

DSP_INLINE void store(const dsp_pixel_t *px, acc_t acc, int32_t o)
{
    const int32_t zp = px->zp, *const m = px->multiplier + (o & px->each);
    const uint32_t shifts = dsp_load(px->shift + (o & px->each));
    int8_t *const out = px->out + o;
    const int32_t excess = dsp_excess(acc.v0) | dsp_excess(acc.v1) | dsp_excess(acc.v2) | dsp_excess(acc.v3);
    if (__builtin_expect((~shifts & 0x80808080u) == 0 && excess >= 0, 1)) {
        const uint32_t right = (uint32_t)__ssub8(0, (int8x4_t)shifts);
        put(out, acc.v0 * 2, m[0], right, zp);
        put(out + 1, acc.v1 * 2, m[1], right >> 8, zp);
        put(out + 2, acc.v2 * 2, m[2], right >> 16, zp);
        put(out + 3, acc.v3 * 2, m[3], right >> 24, zp);
    } else {
        const acc_t sums = acc; /* to have an address only here */
        store_any(px, &sums, o);
    }
}

DSP_SMALL void dsp_pixel_of(dsp_pixel_t *px, const weft_linear_t *p, bool quick)
{
    px->plain = quick && !p->per_tensor;
    px->start = (const int32_t *)(const void *)p->bias; /* blocks are aligned */
    px->sums = NULL;
    px->zp = p->zp_out;
    px->multiplier = (const int32_t *)(const void *)p->multiplier;
    px->shift = p->shift;
    px->each = -1;
    if (p->per_tensor) {
        px->all[0] = px->all[1] = px->all[2] = px->all[3] = px->multiplier[0];
        px->all_shifts = (uint8_t)p->shift[0] * 0x01010101u;
        px->multiplier = px->all;
        px->shift = (const int8_t *)&px->all_shifts;
        px->each = 0;
    }
}

#if DSP_ASM
/* What loops over quads of outputs have no registers for: of the next quad. */
typedef struct {
    const int32_t *start, *end;
    const int8_t *shift;
    int8_t *out;
    const int32_t *multiplier;
    int32_t zp;
} quads_t;

static quads_t quads_of(const dsp_pixel_t *px, int32_t n)
{
    const quads_t q = {px->start, px->start + n, px->shift, px->out, px->multiplier, px->zp};
    return q;
}

#define QUAD_BEGIN                                                                                                     \
    "ldr %[t], [%[quads]]\n\t"                                                                                         \
    "ldrd %[v0], %[v1], [%[t]], #8\n\t"                                                                                \
    "ldrd %[v2], %[v3], [%[t]], #8\n\t"                                                                                \
    "str %[t], [%[quads]]\n\t"

#define QUAD_OUT(v, m) DSP_OUT(v, m, "odd", "u")
#define QUAD_NEXT "lsrs %[odd], %[odd], #8\n\t"

#define QUAD_END                                                                                                       \
    "ldr %[even], [%[quads], #8]\n\t"                                                                                  \
    "ldr %[odd], [%[even]], #4\n\t"                                                                                    \
    "str %[even], [%[quads], #8]\n\t"                                                                                  \
    "mov %[u], #0\n\t"                                                                                                 \
    "ssub8 %[odd], %[u], %[odd]\n\t"                                                                                   \
    "ldrd %[u], %[even], [%[quads], #12]\n\t"                                                                          \
    "ldr %[x], [%[quads], #20]\n\t"                                                                                    \
    "ldr %[t], [%[even]], #4\n\t" QUAD_OUT("v0", "t") QUAD_NEXT                                                        \
        "ldrd %[t], %[v0], [%[even]], #8\n\t" QUAD_OUT("v1", "t") QUAD_NEXT QUAD_OUT("v2", "v0") QUAD_NEXT             \
        "ldr %[t], [%[even]], #4\n\t" QUAD_OUT("v3", "t") "strd %[u], %[even], [%[quads], #12]\n\t"                    \
                                                          "ldrd %[t], %[u], [%[quads]]\n\t"                            \
                                                          "cmp %[t], %[u]\n\t"                                         \
                                                          "bne 0b"

/* dsp_pixel() with columns == 0 for `plain` channels, `step` a multiple of four and not 0. */
static DSP_FAST void plain_pixel(const dsp_pixel_t *px, int32_t n)
{
    const int32_t step = px->channel_step;
    struct {
        quads_t next;
        const int8_t *const *row, *const *row_end;
        int32_t at, length; /* 32 */
        const int8_t *stop; /* of the inputs of a row */
        int32_t skip,
            rest; /* 44: from the end of a row's weights to the next one's, of the last one to the next quad's */
        const int8_t *const *first_row;
    } q = {quads_of(px, n), NULL, px->row_end, px->at, px->step, NULL, px->row_step - px->step, 0, px->row};
    const int8_t *w = px->weights, *x;
    const uint32_t offset = px->offset;
    acc_t acc;
    int32_t t, u, even, odd;
    q.rest = 4 * step - (int32_t)(px->row_end - px->row) * px->row_step;
    __asm__ volatile("0:\n\t" QUAD_BEGIN "ldr %[t], [%[quads], #52]\n"
                     "1:\n\t"
                     "ldr %[x], [%[t]], #4\n\t"
                     "str %[t], [%[quads], #24]\n\t"
                     "ldrd %[u], %[t], [%[quads], #32]\n\t"
                     "add %[x], %[x], %[u]\n\t"
                     "add %[u], %[x], %[t]\n\t"
                     "str %[u], [%[quads], #40]\n\t"
                     "lsls %[t], %[t], #29\n\t"
                     "bmi 3f\n"
                     "2:\n\t" RUN_QUAD "3:\n\t" RUN_QUAD "ldr %[t], [%[quads], #40]\n\t"
                     "cmp %[t], %[x]\n\t"
                     "bne 2b\n\t"
                     "ldr %[u], [%[quads], #44]\n\t"
                     "add %[w], %[w], %[u]\n\t"
                     "ldrd %[t], %[u], [%[quads], #24]\n\t"
                     "cmp %[t], %[u]\n\t"
                     "bne 1b\n\t"
                     "ldr %[u], [%[quads], #48]\n\t"
                     "add %[w], %[w], %[u]\n\t" QUAD_END
                     : [v0] "=&r"(acc.v0), [v1] "=&r"(acc.v1), [v2] "=&r"(acc.v2), [v3] "=&r"(acc.v3), [x] "=&r"(x),
                       [w] "+r"(w), [t] "=&r"(t), [u] "=&r"(u), [even] "=&r"(even), [odd] "=&r"(odd)
                     : [channel] "r"(step), [channel3] "r"(3 * step), [offset] "r"(offset), [quads] "r"(&q)
                     : "cc", "memory");
}

void dsp_wide_pixel(const dsp_pixel_t *px, int32_t n)
{
    const int32_t step = px->channel_step;
    struct {
        quads_t next;
        const int8_t *x; /* 24 */
        uint32_t odd;    /* quads of inputs beyond a multiple of four, which come first */
    } q = {quads_of(px, n), *px->row, (uint32_t)px->step / 4 & 3};
    const int8_t *const stop = *px->row + 2 * px->step, *w = px->weights, *x;
    acc_t acc;
    int32_t t, u, even, odd;
    __asm__ volatile("0:\n\t" QUAD_BEGIN "ldrd %[x], %[t], [%[quads], #24]\n\t"
                     "cmp %[t], #0\n\t"
                     "beq 1f\n\t"
                     "cmp %[t], #2\n\t"
                     "bmi 6f\n\t"
                     "beq 5f\n\t"
                     "b 4f\n"
                     "1:\n\t" WIDE_QUAD "4:\n\t" WIDE_QUAD "5:\n\t" WIDE_QUAD "6:\n\t" WIDE_QUAD "cmp %[stop], %[x]\n\t"
                     "bne 1b\n\t"
                     "add %[w], %[w], %[channel3]\n\t" QUAD_END
                     : [v0] "=&r"(acc.v0), [v1] "=&r"(acc.v1), [v2] "=&r"(acc.v2), [v3] "=&r"(acc.v3), [x] "=&r"(x),
                       [w] "+r"(w), [t] "=&r"(t), [u] "=&r"(u), [even] "=&r"(even), [odd] "=&r"(odd)
                     : [channel] "r"(step), [channel3] "r"(3 * step), [stop] "r"(stop), [quads] "r"(&q)
                     : "cc", "memory");
}
#else
void dsp_wide_pixel(const dsp_pixel_t *px, int32_t n)
{
    const int32_t step = px->channel_step;
    for (int32_t o = 0; o < n; o += 4) {
        const int8_t *x = *px->row, *const stop = x + 2 * px->step, *w = px->weights + o * step;
        acc_t acc = {px->start[o], px->start[o + 1], px->start[o + 2], px->start[o + 3]};
        for (; x != stop; x += 8, w += 4) {
            const uint32_t w0 = dsp_load(w), w1 = dsp_load(w + step), w2 = dsp_load(w + 2 * step);
            const uint32_t w3 = dsp_load(w + 3 * step);
            const int16x2_t even = (int16x2_t)dsp_load(x), odd = (int16x2_t)dsp_load(x + 4);
            acc.v0 = __smlad(odd, dsp_odd(w0), __smlad(even, dsp_even(w0), acc.v0));
            acc.v1 = __smlad(odd, dsp_odd(w1), __smlad(even, dsp_even(w1), acc.v1));
            acc.v2 = __smlad(odd, dsp_odd(w2), __smlad(even, dsp_even(w2), acc.v2));
            acc.v3 = __smlad(odd, dsp_odd(w3), __smlad(even, dsp_even(w3), acc.v3));
        }
        store(px, acc, o);
    }
}
#endif

/* dsp_pixel() of any kind. */
static DSP_SMALL void any_pixel(const dsp_pixel_t *px, int32_t n)
{
    for (int32_t o = 0;; o = weft_min(o + 4, n - 4)) {
        const int32_t *const start = px->start + o;
        acc_t acc = {start[0], start[1], start[2], start[3]};
        const int8_t *w = px->weights + o * (px->columns > 0 ? 1 : px->channel_step);
        if (px->columns == 0) {
            acc = mac_rows(acc, px, w);
        } else {
            int32_t at = px->at + o;
            for (int32_t left = px->columns; left > 0; left--, at += px->step, w += px->channel_step) {
                acc = mac_column(acc, px, at, w);
            }
        }
        if (px->sums != NULL) {
            int32_t *const sums = px->sums + o;
            sums[0] = acc.v0;
            sums[1] = acc.v1;
            sums[2] = acc.v2;
            sums[3] = acc.v3;
        } else {
            store(px, acc, o);
        }
        if (o == n - 4) {
            return;
        }
    }
}

void dsp_pixel(const dsp_pixel_t *px, int32_t n)
{
#if DSP_ASM
    if (px->plain && px->columns == 0 && px->step > 0 && ((px->step | n) & 3) == 0) {
        plain_pixel(px, n);
        return;
    }
#endif
    any_pixel(px, n);
}

void dsp_clamp(int8_t *p, int32_t n, int32_t lo, int32_t hi)
{
    const uint32_t low = (uint32_t)(uint8_t)lo * 0x01010101u, high = (uint32_t)(uint8_t)hi * 0x01010101u;
    for (; n >= 4; n -= 4, p += 4) {
        uint32_t v = dsp_load(p);
        __ssub8((int8x4_t)v, (int8x4_t)low);
        v = (uint32_t)__sel(v, low);
        __ssub8((int8x4_t)high, (int8x4_t)v);
        v = (uint32_t)__sel(v, high);
        dsp_store(p, v);
    }
    for (; n > 0; n--, p++) {
        *p = (int8_t)weft_clamp(*p, lo, hi);
    }
}

DSP_SMALL void dsp_clamp_written(const weft_call_t *call)
{
    const int32_t lo = call->op->act_min, hi = call->op->act_max;
    for (int32_t y = call->y0; y < call->y1; y++) {
        int8_t *p = weft_px(&call->out, y, call->x0);
        const int32_t pixels = call->x1 - call->x0;
        if (call->channels == call->out.c) {
            dsp_clamp(p, pixels * call->channels, lo, hi);
            continue;
        }
        for (int32_t x = 0; x < pixels; x++, p += call->out.c) {
            dsp_clamp(p, call->channels, lo, hi);
        }
    }
}

#endif
