# SPDX-License-Identifier: Apache-2.0
"""TFLite's quantised reference arithmetic, bit for bit, as far as it runs in the planner: fixed-point multipliers, the
parameters of softmax, and the tables of elementwise functions. Always gemmlowp's double rounding.

Paths in docstrings are in the tensorflow/tflite-micro repository below tensorflow/lite/; gemmlowp/fixedpoint.h is
fixedpoint/fixedpoint.h of google/gemmlowp. Scales are the model's float32 values; ``np.float32`` appears where the
reference computes in single precision."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]

INT32_MIN = -(1 << 31)
INT32_MAX = (1 << 31) - 1


# ---------------------------------------------------------------- fixed-point multipliers


def quantize_multiplier(real: float) -> tuple[int, int]:
    """(int32 multiplier, shift) with real ~ multiplier * 2^(shift - 31); shift > 0 is to the left.

    kernels/internal/quantization_util.cc, QuantizeMultiplier. ``real`` must be finite (ValueError otherwise)."""
    if not math.isfinite(real):
        raise ValueError(f"multiplier {real} is not finite")
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    scaled = fraction * (1 << 31)
    fixed = int(math.copysign(math.floor(abs(scaled) + 0.5), scaled))  # std::round: half away from zero
    if fixed == 1 << 31:
        fixed //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    return fixed, shift


def wrap32(x: ArrayLike) -> Int64:
    """The value as two's complement int32, held in int64."""
    wide = np.asarray(x, dtype=np.int64)
    return ((wide + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike, bits: int = 32) -> Int64:
    """gemmlowp/fixedpoint.h, SaturatingRoundingDoublingHighMul for int32 (or int16 with ``bits`` = 16)."""
    product = np.asarray(a, dtype=np.int64) * np.asarray(b, dtype=np.int64)
    half = 1 << (bits - 2)
    nudged = product + np.where(product >= 0, half, 1 - half)
    quotient = np.where(nudged >= 0, nudged >> (bits - 1), -((-nudged) >> (bits - 1)))  # C division truncates
    return np.minimum(quotient, (1 << (bits - 1)) - 1)  # only min * min exceeds the range


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> Int64:
    """gemmlowp/fixedpoint.h, RoundingDivideByPOT: x / 2^exponent, half away from zero."""
    wide = np.asarray(x, dtype=np.int64)
    power = np.asarray(exponent, dtype=np.int64)
    mask = (np.int64(1) << power) - 1
    threshold = (mask >> 1) + (wide < 0)
    return (wide >> power) + ((wide & mask) > threshold)


def mbqm(x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Int64:
    """kernels/internal/common.cc, MultiplyByQuantizedMultiplier with double rounding; broadcasts, result in int64."""
    s = np.asarray(shift, dtype=np.int64)
    shifted = wrap32(np.asarray(x, dtype=np.int64) << np.maximum(s, 0))
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(shifted, multiplier), np.maximum(-s, 0))


_FUSED: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def activation_range(activation: str, scale: float, zero_point: int) -> tuple[int, int]:
    """int8 clamp of a fused activation: "NONE", "RELU", "RELU6" or "RELU_N1_TO_1".

    kernels/kernel_util.cc, CalculateActivationRangeQuantizedImpl: bounds rounded in single precision."""
    low, high = _FUSED[activation]
    lo = -128 if low is None else max(-128, zero_point + _round_f32(low, scale))
    hi = 127 if high is None else min(127, zero_point + _round_f32(high, scale))
    return lo, hi


def _round_f32(value: float, scale: float) -> int:
    """roundf(value / scale) in single precision, half away from zero; saturated far outside int8."""
    with np.errstate(over="ignore"):
        quotient = float(np.float32(value) / np.float32(scale))
    return int(math.copysign(math.floor(min(abs(quotient), 1e6) + 0.5), quotient))


# ---------------------------------------------------------------- gemmlowp fixed-point functions (raw int32 values)


def _multiply_by_pot(x: Int64, exponent: int) -> Int64:
    """gemmlowp/fixedpoint.h, SaturatingRoundingMultiplyByPOT."""
    if exponent <= 0:
        return rounding_divide_by_pot(x, -exponent)
    saturated: Int64 = np.clip(x << exponent, INT32_MIN, INT32_MAX)
    return saturated


def _exp_just_below_zero(a: Int64) -> Int64:
    """gemmlowp/fixedpoint.h, exp_on_interval_between_negative_one_quarter_and_0_excl; Q0.31 to Q0.31."""
    mul = saturating_rounding_doubling_high_mul
    constant, third = 1895147668, 715827883  # exp(-1/8), 1/3
    x = wrap32(a + (1 << 28))
    x2 = mul(x, x)
    x3 = mul(x2, x)
    x4 = mul(x2, x2)
    tail = _multiply_by_pot(wrap32(mul(wrap32(_multiply_by_pot(x4, -2) + x3), third) + x2), -1)
    return wrap32(constant + mul(constant, wrap32(x + tail)))


def exp_on_negative_values(a: ArrayLike, integer_bits: int) -> Int64:
    """gemmlowp/fixedpoint.h, exp_on_negative_values: Q(integer_bits) <= 0 to Q0.31. ``integer_bits`` at most 5."""
    raw = np.asarray(a, dtype=np.int64)
    fractional = 31 - integer_bits
    quarter = 1 << (fractional - 2)
    below = (raw & (quarter - 1)) - quarter
    result = _exp_just_below_zero(_multiply_by_pot(below, integer_bits))
    remainder = wrap32(below - raw)
    steps = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))
    for exponent, factor in steps:
        if integer_bits > exponent:
            bit = (remainder & (1 << (fractional + exponent))) != 0
            result = np.where(bit, saturating_rounding_doubling_high_mul(result, factor), result)
    return np.where(raw == 0, INT32_MAX, result)


def _newton_reciprocal(a: Int64) -> Int64:
    """x ~ 1 / ((1 + a) / 2) in Q2.29: the iteration of gemmlowp's one_over_one_plus_x_for_x_in_0_1."""
    mul = saturating_rounding_doubling_high_mul
    half_denominator = (a + INT32_MAX + 1) >> 1  # RoundingHalfSum of non-negative values
    x = wrap32(1515870810 + mul(half_denominator, -1010580540))  # 48/17 - 32/17 * d
    for _ in range(3):
        error = wrap32((1 << 29) - mul(half_denominator, x))
        x = wrap32(x + _multiply_by_pot(mul(x, error), 2))
    return x


def one_over_one_plus_x(a: ArrayLike) -> Int64:
    """gemmlowp/fixedpoint.h, one_over_one_plus_x_for_x_in_0_1: Q0.31 to Q0.31."""
    return _multiply_by_pot(_newton_reciprocal(np.asarray(a, dtype=np.int64)), 1)


def logistic_fixed(a: ArrayLike, integer_bits: int) -> Int64:
    """gemmlowp/fixedpoint.h, logistic: Q(integer_bits) to Q0.31."""
    raw = np.asarray(a, dtype=np.int64)
    positive = one_over_one_plus_x(exp_on_negative_values(-np.abs(raw), integer_bits))
    result = np.where(raw > 0, positive, INT32_MAX - positive)
    return np.where(raw == 0, 1 << 30, result)


def tanh_fixed(a: ArrayLike, integer_bits: int) -> Int64:
    """gemmlowp/fixedpoint.h, tanh: Q(integer_bits) to Q0.31."""
    raw = np.asarray(a, dtype=np.int64)
    # ExactMulByPot<1> doubles the argument by moving the binary point, not the bits.
    e = exp_on_negative_values(-np.abs(raw), integer_bits + 1)
    magnitude = _multiply_by_pot(wrap32(_newton_reciprocal(e) - (1 << 29)), 2)
    return np.where(raw == 0, 0, np.where(raw < 0, -magnitude, magnitude))


# ---------------------------------------------------------------- softmax


def preprocess_softmax_scaling(beta: float, input_scale: float, integer_bits: int = 5) -> tuple[int, int]:
    """(int32 multiplier, left shift) that takes an int8 difference to Q(integer_bits).

    kernels/internal/quantization_util.cc, PreprocessSoftmaxScaling; ``beta`` and ``input_scale`` are float32 values.
    ValueError where the reference aborts (the product must exceed 1)."""
    real = min(beta * input_scale * (1 << (31 - integer_bits)), (1 << 31) - 1.0)
    if not real > 1.0:
        raise ValueError(f"beta * scale = {beta * input_scale} is too small")
    return quantize_multiplier(real)


def calculate_input_radius(integer_bits: int, left_shift: int, total_signed_bits: int = 31) -> int:
    """kernels/internal/quantization_util.cc, CalculateInputRadius: beyond it the function is saturated.
    ``left_shift`` < 0 (undefined there) gives the mathematical value."""
    rescaled = ((1 << integer_bits) - 1) * 2.0 ** (total_signed_bits - integer_bits - left_shift)
    return math.floor(rescaled)


# ---------------------------------------------------------------- tables: int8 (256,), out = table[in + 128]

_CODES = np.arange(-128, 128, dtype=np.int64)


def _saturate(values: Int64, low: int = -128, high: int = 127) -> Int8:
    return np.clip(values, low, high).astype(np.int8)


def requantize_table(in_scale: float, in_zp: int, out_scale: float, out_zp: int) -> Int8:
    """QUANTIZE from int8 to int8. kernels/internal/reference/requantize.h, Requantize; uint8 on either side is the
    same with its zero point moved by 128."""
    multiplier, shift = quantize_multiplier(in_scale / out_scale)
    return _saturate(mbqm(_CODES - in_zp, multiplier, shift) + out_zp)


def relu_table(
    in_scale: float, in_zp: int, out_scale: float, out_zp: int, low: float = 0.0, high: float | None = None
) -> Int8:
    """RELU, RELU6 (``high`` = 6), RELU_N1_TO_1 (``low`` = -1, ``high`` = 1) with their own output quantisation.
    micro/kernels/activations_common.cc, CalculateReluOpData, and activations.h, ReluQuantized."""
    multiplier, shift = quantize_multiplier(float(np.float32(in_scale) / np.float32(out_scale)))
    lo = max(-128, out_zp + _round_f32(low, out_scale))
    hi = 127 if high is None else min(127, out_zp + _round_f32(high, out_scale))
    values = mbqm(_CODES - in_zp, multiplier, shift) + out_zp
    return np.minimum(np.maximum(values, lo), hi).astype(np.int8)


def leaky_relu_table(alpha: float, in_scale: float, in_zp: int, out_scale: float, out_zp: int) -> Int8:
    """LEAKY_RELU. micro/kernels/leaky_relu_common.cc and kernels/internal/reference/leaky_relu.h."""
    f_in, f_out = np.float32(in_scale), np.float32(out_scale)
    multiplier_a, shift_a = quantize_multiplier(float(f_in * np.float32(alpha) / f_out))
    multiplier_1, shift_1 = quantize_multiplier(float(f_in / f_out))
    x = _CODES - in_zp
    scaled = mbqm(x, abs(multiplier_a), shift_a)
    negative = -scaled if multiplier_a < 0 else scaled
    return _saturate(np.where(x >= 0, mbqm(x, multiplier_1, shift_1), negative) + out_zp)


def hard_swish_table(in_scale: float, in_zp: int, out_scale: float, out_zp: int) -> Int8:
    """HARD_SWISH. micro/kernels/hard_swish_common.cc and kernels/internal/reference/hard_swish.h. ValueError where the
    reference refuses: in_scale / (128 * out_scale) must be below 1."""
    hires = np.float32(1.0 / 128.0) * np.float32(in_scale)
    out_multiplier, out_exponent = quantize_multiplier(float(hires / np.float32(out_scale)))
    reluish_scale = np.float32(3.0) / np.float32(32768.0)
    reluish_multiplier, reluish_exponent = quantize_multiplier(float(hires / reluish_scale))
    if out_exponent > 0:
        raise ValueError("the output scale is too small for the input scale")

    def sat16(v: Int64) -> Int64:
        return np.clip(v, -32768, 32767)

    def mul16(v: Int64, m: int) -> Int64:
        return saturating_rounding_doubling_high_mul(v, m, bits=16)

    value = (_CODES - in_zp) * 128
    preshift = mul16(value, _to_int16(out_multiplier))
    relu = value
    if reluish_exponent > 0:
        relu = sat16(relu << (reluish_exponent - 1))
    relu = mul16(relu, _to_int16(reluish_multiplier))
    if reluish_exponent > 0:
        relu = sat16(relu << 1)
    if reluish_exponent < 0:
        relu = rounding_divide_by_pot(relu, -reluish_exponent)
    relu = (relu + 32768) >> 1
    product = relu * preshift  # SaturatingDoublingHighMul rounds to zero
    product = np.where(product >= 0, product >> 15, -((-product) >> 15))
    return _saturate(rounding_divide_by_pot(product, -out_exponent) + out_zp)


def _to_int16(multiplier: int) -> int:
    """kernels/internal/common.h, DownScaleInt32ToInt16Multiplier."""
    return 32767 if multiplier >= INT32_MAX - (1 << 15) else (multiplier + (1 << 15)) >> 16


def _q4_argument(in_scale: float, in_zp: int) -> tuple[Int64, Int64, int]:
    """(x - zero point, the same in Q4.27, saturation radius). micro/kernels/{logistic_common,tanh}.cc."""
    multiplier, shift = quantize_multiplier(in_scale * (1 << 27))
    radius = calculate_input_radius(4, shift)
    x = _CODES - in_zp
    inside = np.abs(x) < radius
    return x, mbqm(np.where(inside, x, 0), multiplier, shift), radius


def logistic_table(in_scale: float, in_zp: int) -> Int8:
    """LOGISTIC; output scale 1/256 and zero point -128. kernels/internal/reference/integer_ops/logistic.h."""
    x, q4, radius = _q4_argument(in_scale, in_zp)
    values = rounding_divide_by_pot(logistic_fixed(q4, 4), 23) - 128
    return _saturate(np.where(x <= -radius, -128, np.where(x >= radius, 127, values)))


def tanh_table(in_scale: float, in_zp: int) -> Int8:
    """TANH; output scale 1/128 and zero point 0. kernels/internal/reference/integer_ops/tanh.h."""
    x, q4, radius = _q4_argument(in_scale, in_zp)
    values = rounding_divide_by_pot(tanh_fixed(q4, 4), 24)
    return _saturate(np.where(x <= -radius, -128, np.where(x >= radius, 127, values)))


# ---------------------------------------------------------------- reductions and bounds


def mean_multiplier(in_scale: float, out_scale: float, count: int) -> tuple[int, int]:
    """(int32 multiplier, shift) of MEAN over ``count`` elements: the division is folded into the multiplier.
    kernels/internal/reference/reduce.h, QuantizedMeanOrSumExtraArgs."""
    multiplier, shift = quantize_multiplier(in_scale / out_scale)
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra


def accumulator_bound(bias: ArrayLike, taps: int) -> int:
    """|bias| + taps * 255 * 128: no partial sum of the layer exceeds it."""
    largest = int(np.max(np.abs(np.asarray(bias, dtype=np.int64)), initial=0))
    return largest + taps * 255 * 128
