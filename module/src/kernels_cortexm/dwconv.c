/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV2D with one output channel per input channel: four channels at once. Their weights are widened once per output
 * row, doubled: so sums come out doubled, as SMMULR wants them. Nine taps fit on the stack, more take the plan's
 * scratch or, without it, are widened for every pixel.
 */
#include "dsp.h"

#if WEFT_KERNELS_DSP

#include "../kernels_ref/taps.h"

#define STACK_TAPS 9
#define TAP_BYTES 8  /* twice the even and the odd pair of a tap */
#define FEW_PIXELS 4 /* for which widening once does not pay */

/* Four channels of a row. */
typedef struct {
    int16x2_t weight[STACK_TAPS][2]; /* quad_3x3() knows the offsets of these two */
    const int8_t *row[3];
    const int16x2_t *wide; /* all taps */
    int32_t bias[4];
    struct {
        int32_t multiplier, right;
    } scale[4];
    int32_t zp;
} quad_t;

/* Twice the sums of four channels. */
typedef struct {
    int32_t v0, v1, v2, v3;
} acc_t;

/* Channels o to o + 3: `taps` taps, `n` weights apart, widened to `to`. */
static __attribute__((noinline)) void load_quad(quad_t *q, const weft_linear_t *p, int32_t o, int32_t n, int32_t taps,
                                                int16x2_t *to)
{
    const int32_t step = p->per_tensor ? 0 : 1;
    const int32_t *bias = (const int32_t *)(const void *)p->bias + o;
    const int32_t *multiplier = (const int32_t *)(const void *)p->multiplier + o * step;
    const int8_t *shift = p->shift + o * step, *w = p->weights + o;
    q->wide = to;
    for (int16x2_t *end = to + 2 * taps; to != end; to += 2, w += n) {
        const uint32_t v = dsp_load(w);
        const int16x2_t even = dsp_even(v), odd = dsp_odd(v);
        to[0] = __sadd16(even, even);
        to[1] = __sadd16(odd, odd);
    }
    for (int32_t i = 0; i < 4; i++, multiplier += step, shift += step) {
        q->bias[i] = 2 * bias[i];
        q->scale[i].multiplier = *multiplier;
        q->scale[i].right = -*shift;
    }
}

DSP_INLINE void store_quad(const quad_t *q, acc_t acc, int8_t *out)
{
    const int32_t zp = q->zp;
    out[0] = dsp_scale(acc.v0, q->scale[0].multiplier, q->scale[0].right, zp);
    out[1] = dsp_scale(acc.v1, q->scale[1].multiplier, q->scale[1].right, zp);
    out[2] = dsp_scale(acc.v2, q->scale[2].multiplier, q->scale[2].right, zp);
    out[3] = dsp_scale(acc.v3, q->scale[3].multiplier, q->scale[3].right, zp);
}

#if DSP_ASM
/* One tap: input at `address`, widened weights at `weights`. */
#define MAC_TAP(address, weights)                                                                                      \
    "ldr %[x], [%[px]" address "]\n\t"                                                                                 \
    "ldrd %[we], %[wo], [%[w], #" weights "]\n\t"                                                                      \
    "sxtab16 %[e], %[offset], %[x]\n\t"                                                                                \
    "sxtab16 %[x], %[offset], %[x], ror #8\n\t"                                                                        \
    "smlabb %[v0], %[e], %[we], %[v0]\n\t"                                                                             \
    "smlatt %[v2], %[e], %[we], %[v2]\n\t"                                                                             \
    "smlabb %[v1], %[x], %[wo], %[v1]\n\t"                                                                             \
    "smlatt %[v3], %[x], %[wo], %[v3]\n\t"

#define STEP_1 ", %[step]"
#define STEP_2 ", %[step], lsl #1"
#define STEP_4 ", %[step], lsl #2"
#define NEXT "add %[px], %[px], %[step]\n\t"

#define MAC_OPERANDS                                                                                                   \
    [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "+r"(px), [x] "=&r"(x),           \
        [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo)

#define MAC_ASM(taps)                                                                                                  \
    __asm__ volatile(taps:MAC_OPERANDS : [w] "r"(w), [step] "r"(step), [offset] "r"(offset) : "memory")

/* `taps` taps of a row, `step` bytes apart. */
DSP_INLINE acc_t mac_row(acc_t acc, const int8_t *px, const int16x2_t *w, int32_t taps, int32_t step, uint32_t offset)
{
    int32_t x, e, we, wo;
    if (taps == 7) {
        MAC_ASM(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16") MAC_TAP(STEP_4, "32")
                    NEXT MAC_TAP(STEP_2, "24") MAC_TAP(STEP_4, "40") NEXT MAC_TAP(STEP_4, "48"));
    } else if (taps == 5) {
        MAC_ASM(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16") MAC_TAP(STEP_4, "32")
                    NEXT MAC_TAP(STEP_2, "24"));
    } else if (taps == 3) {
        MAC_ASM(MAC_TAP("", "0") MAC_TAP(STEP_1, "8") MAC_TAP(STEP_2, "16"));
    } else {
        for (; taps >= 2; taps -= 2, px += step, w += 4) {
            MAC_ASM(MAC_TAP("", "0") NEXT MAC_TAP("", "8"));
        }
        if (taps > 0) {
            MAC_ASM(MAC_TAP("", "0"));
        }
    }
    return acc;
}
#else
/* `taps` taps of a row, `step` bytes apart. */
DSP_INLINE acc_t mac_row(acc_t acc, const int8_t *px, const int16x2_t *w, int32_t taps, int32_t step, uint32_t offset)
{
    for (; taps > 0; taps--, px += step, w += 2) {
        const uint32_t x = dsp_load(px);
        const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
        acc.v0 = __smlabb(even, w[0], acc.v0);
        acc.v2 = __smlatt(even, w[0], acc.v2);
        acc.v1 = __smlabb(odd, w[1], acc.v1);
        acc.v3 = __smlatt(odd, w[1], acc.v3);
    }
    return acc;
}
#endif

#if DSP_ASM
#define MAC_ROW_OF_9(row, w0, w1, w2)                                                                                  \
    "ldr %[px], [%[w], #" row "]\n\t"                                                                                  \
    "add %[px], %[px], %[column]\n\t" MAC_TAP("", w0) MAC_TAP(STEP_1, w1) MAC_TAP(STEP_2, w2)
#endif

/* All nine taps of a 3x3 kernel; `column` is the offset of the first from q->row. */
DSP_INLINE acc_t mac_3x3(const quad_t *q, int32_t column, int32_t step, uint32_t offset)
{
    acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
#if DSP_ASM
    int32_t x, e, we, wo, px;
    __asm__ volatile(MAC_ROW_OF_9("72", "0", "8", "16") MAC_ROW_OF_9("76", "24", "32", "40")
                         MAC_ROW_OF_9("80", "48", "56", "64")
                     : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "=&r"(px),
                       [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo)
                     : [w] "r"(q), [column] "r"(column), [step] "r"(step), [offset] "r"(offset)
                     : "memory");
#else
    for (int32_t ky = 0; ky < 3; ky++) {
        acc = mac_row(acc, q->row[ky] + column, q->weight[3 * ky], 3, step, offset);
    }
#endif
    return acc;
}

#define MAC_ROWS(taps)                                                                                                 \
    for (; row != row_end; row++, w += 2 * width) {                                                                    \
        acc = mac_row(acc, *row + column, w, taps, step, offset);                                                      \
    }                                                                                                                  \
    break

/* Four channels from o on of output columns [x, x1) of a row. */
static __attribute__((noinline)) void quad_columns(const weft_call_t *call, const weft_rows_t *rows, const quad_t *q,
                                                   int32_t o, int32_t x, int32_t x1, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t c = call->in0.c, pixel = call->out.c, width = op->kernel_w, step = op->dilation_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const int8_t *const *const row_end = rows->row + rows->taps.hi;
    int32_t first = x * op->stride_w - op->pad_left;

    for (; x < x1; x++, first += op->stride_w, out += pixel) {
        const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
        const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * c + o;
        const int32_t tap = rows->taps.lo * width + cols.lo;
        const int8_t *const *row = rows->row + rows->taps.lo;
        acc_t acc = {q->bias[0], q->bias[1], q->bias[2], q->bias[3]};
        const int16x2_t *w = q->wide + 2 * tap;
        switch (cols.hi - cols.lo) {
        case 7:
            MAC_ROWS(7);
        case 5:
            MAC_ROWS(5);
        case 3:
            MAC_ROWS(3);
        default:
            MAC_ROWS(cols.hi - cols.lo);
        }
        store_quad(q, acc, out);
    }
}

/* quad_columns() where no tap of a 3x3 kernel is outside. */
static __attribute__((noinline)) void quad_3x3(const weft_call_t *call, const quad_t *q, int32_t column, int32_t count,
                                               int8_t *out)
{
    const int32_t c = call->in0.c, pixel = call->out.c;
    const int32_t step = call->op->dilation_w * c, stride = call->op->stride_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    for (; count > 0; count--, column += stride, out += pixel) {
        store_quad(q, mac_3x3(q, column, step, offset), out);
    }
}

#if DSP_ASM
#define NARROW_TAP(address)                                                                                            \
    "ldr %[x], [%[px]" address "]\n\t"                                                                                 \
    "ldr %[wo], [%[w]" address "]\n\t"                                                                                 \
    "sxtab16 %[e], %[offset], %[x]\n\t"                                                                                \
    "sxtab16 %[x], %[offset], %[x], ror #8\n\t"                                                                        \
    "sxtb16 %[we], %[wo]\n\t"                                                                                          \
    "sxtb16 %[wo], %[wo], ror #8\n\t"                                                                                  \
    "smlabb %[v0], %[e], %[we], %[v0]\n\t"                                                                             \
    "smlatt %[v2], %[e], %[we], %[v2]\n\t"                                                                             \
    "smlabb %[v1], %[x], %[wo], %[v1]\n\t"                                                                             \
    "smlatt %[v3], %[x], %[wo], %[v3]\n\t"

#define NARROW_ROWS(taps)                                                                                              \
    __asm__ volatile("1:\n\t"                                                                                          \
                     "ldr %[px], [%[row]], #4\n\t"                                                                     \
                     "ldr %[x], %[at]\n\t"                                                                             \
                     "add %[px], %[px], %[x]\n\t" taps "ldrd %[x], %[e], %[ends]\n\t"                                  \
                     "add %[w], %[w], %[x]\n\t"                                                                        \
                     "cmp %[row], %[e]\n\t"                                                                            \
                     "bne 1b"                                                                                          \
                     : [v0] "+r"(acc.v0), [v1] "+r"(acc.v1), [v2] "+r"(acc.v2), [v3] "+r"(acc.v3), [px] "=&r"(px),     \
                       [x] "=&r"(x), [e] "=&r"(e), [we] "=&r"(we), [wo] "=&r"(wo), [w] "+r"(w), [row] "+r"(row)        \
                     : [n] "r"(n), [offset] "r"(offset), [at] "m"(at), [ends] "m"(ends)                                \
                     : "cc", "memory")
#endif

/*
 * One tap column of four channels, or three or two neighbouring ones: `rows` rows from `row` on, first taps at `at`.
 * `n` bytes from a tap's weights to the next one's, and if several columns from its inputs to the next one's.
 */
DSP_INLINE dsp_acc4_t narrow_columns(dsp_acc4_t acc, const int8_t *const *row, int32_t rows, int32_t at,
                                     const int8_t *w, int32_t row_step, int32_t columns, int32_t n, uint32_t offset)
{
#if DSP_ASM
    const uintptr_t ends[2] = {(uintptr_t)row_step, (uintptr_t)(row + rows)};
    int32_t x, e, we, wo, px;
    if (columns == 3) {
        NARROW_ROWS(NARROW_TAP("") NARROW_TAP(", %[n]") NARROW_TAP(", %[n], lsl #1"));
    } else if (columns == 2) {
        NARROW_ROWS(NARROW_TAP("") NARROW_TAP(", %[n]"));
    } else {
        NARROW_ROWS(NARROW_TAP(""));
    }
#else
    for (; rows > 0; rows--, row++, w += row_step) {
        for (int32_t k = 0; k < columns; k++) {
            const uint32_t x = dsp_load(*row + at + k * n), v = dsp_load(w + k * n);
            const int16x2_t even = dsp_even_plus(x, offset), odd = dsp_odd_plus(x, offset);
            const int16x2_t we = dsp_even(v), wo = dsp_odd(v);
            acc.v0 = __smlabb(even, we, acc.v0);
            acc.v2 = __smlatt(even, we, acc.v2);
            acc.v1 = __smlabb(odd, wo, acc.v1);
            acc.v3 = __smlatt(odd, wo, acc.v3);
        }
    }
#endif
    return acc;
}

/* All channels of an output pixel. */
static __attribute__((noinline)) void narrow_pixel(const weft_call_t *call, const weft_rows_t *rows,
                                                   const weft_linear_t *p, int32_t x, int8_t *out)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->total, c = call->in0.c, width = op->kernel_w, row_step = width * n;
    const int32_t step = op->dilation_w * c;
    const uint32_t offset = dsp_offset(call->in0.zero_point);
    const int32_t first = x * op->stride_w - op->pad_left;
    const weft_taps_t cols = weft_taps(first, width, op->dilation_w, call->in0.w);
    const int32_t column = (first + cols.lo * op->dilation_w - rows->x) * c;
    const int8_t *weights = p->weights + (rows->taps.lo * width + cols.lo) * n;
    const int8_t *const *const row = rows->row + rows->taps.lo;
    const int32_t height = rows->taps.hi - rows->taps.lo, group = step == n ? 3 : 1;

    for (int32_t next = 0; next < call->channels; next += 4) {
        const int32_t o = weft_min(next, call->channels - 4); /* the last channels overlap those before */
        const int32_t *bias = (const int32_t *)(const void *)p->bias + o;
        const int8_t *w = weights + o;
        dsp_acc4_t acc = {bias[0], bias[1], bias[2], bias[3]};
        int32_t at = column + o;
        for (int32_t left = height > 0 ? cols.hi - cols.lo : 0; left > 0;
             left -= group, at += group * step, w += group * n) {
            acc = narrow_columns(acc, row, height, at, w, row_step, weft_min(left, group), n, offset);
        }
        dsp_store_four(acc.v0, acc.v1, acc.v2, acc.v3, p, o, out);
    }
}

static __attribute__((noinline)) void narrow_region(const weft_call_t *call, const weft_linear_t *p)
{
    weft_rows_t rows;
    for (int32_t y = call->y0; y < call->y1; y++) {
        weft_rows(&rows, call, y);
        for (int32_t x = call->x0; x < call->x1; x++) {
            narrow_pixel(call, &rows, p, x, weft_px(&call->out, y, x));
        }
    }
}

/* Output columns [*begin, *end) are those of the call's whose taps are all inside; none: *begin == *end. */
static void interior(const weft_call_t *call, int32_t *begin, int32_t *end)
{
    const weft_op_t *op = call->op;
    const int32_t last = call->in0.w - 1 - (op->kernel_w - 1) * op->dilation_w + op->pad_left;
    *begin = weft_clamp((op->pad_left + op->stride_w - 1) / op->stride_w, call->x0, call->x1);
    *end = last < 0 ? *begin : weft_clamp(last / op->stride_w + 1, *begin, call->x1);
}

/* Widened weights of `taps` taps in `memory`, or in a quad_t if that is NULL. */
static __attribute__((noinline)) void wide_region(const weft_call_t *call, const weft_linear_t *p, int32_t taps,
                                                  int16x2_t *memory)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, pixel = call->out.c;
    quad_t q;
    weft_rows_t rows;
    int32_t begin, end;
    interior(call, &begin, &end);
    const bool nine = op->kernel_h == 3 && op->kernel_w == 3 && begin < end;
    q.zp = p->zp_out;

    for (int32_t next = 0; next < n; next += 4) {
        const int32_t o = weft_min(next, n - 4); /* the last channels overlap those before */
        load_quad(&q, p, o, call->total, taps, memory != NULL ? memory : q.weight[0]);
        for (int32_t y = call->y0; y < call->y1; y++) {
            int8_t *out = weft_px(&call->out, y, call->x0) + o;
            weft_rows(&rows, call, y);
            if (!nine || rows.taps.hi - rows.taps.lo < 3) {
                quad_columns(call, &rows, &q, o, call->x0, call->x1, out);
                continue;
            }
            for (int32_t k = 0; k < 3; k++) {
                q.row[k] = rows.row[k] + o;
            }
            if (call->x0 < begin) {
                quad_columns(call, &rows, &q, o, call->x0, begin, out);
                out += (begin - call->x0) * pixel;
            }
            quad_3x3(call, &q, (begin * op->stride_w - op->pad_left - rows.x) * call->in0.c, end - begin, out);
            if (end < call->x1) {
                out += (end - begin) * pixel;
                quad_columns(call, &rows, &q, o, end, call->x1, out);
            }
        }
    }
}

void weft_dwconv2d_dsp(const weft_call_t *call)
{
    const weft_op_t *op = call->op;
    const int32_t n = call->channels, taps = op->kernel_h * op->kernel_w;
    if (weft_multiplier(call) != 1 || n < 4 || op->kernel_h > WEFT_HOISTED_ROWS) {
        weft_dwconv2d(call);
        return;
    }
    const weft_linear_t p = weft_linear(call, call->total, 1);
    const bool memory = taps <= STACK_TAPS || (int32_t)call->scratch_len >= taps * TAP_BYTES;
    if (memory && (call->y1 - call->y0) * (call->x1 - call->x0) > FEW_PIXELS && dsp_quick(&p, n, taps)) {
        wide_region(call, &p, taps, taps <= STACK_TAPS ? NULL : call->scratch);
    } else {
        narrow_region(call, &p);
    }
    weft_count_macs(call, n);
    dsp_clamp_region(call);
}

#endif
