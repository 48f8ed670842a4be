# SPDX-License-Identifier: Apache-2.0
"""An interpreter of ``ir.Graph`` in NumPy, written from docs/plan-format.md alone: TFLite's int8 reference arithmetic
with double rounding everywhere. It shares no arithmetic with the planner or the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
)

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]


def run(graph: Graph, inputs: Sequence[Int8]) -> dict[int, Int8]:
    """Every tensor by its index, for int8 (H, W, C) ``inputs`` in the order of ``graph.inputs``."""
    values: dict[int, Int8] = {i: t.data for i, t in enumerate(graph.tensors) if t.data is not None}
    for io, x in zip(graph.inputs, inputs, strict=True):
        assert x.dtype == np.int8, io.name
        assert x.shape == graph.tensors[io.tensor].shape, io.name
        values[io.tensor] = x
    for op in graph.ops:
        values[op.output] = evaluate(graph, op, [values[i] for i in op.inputs])
    return values


def evaluate(graph: Graph, op: Op, inputs: Sequence[Int8]) -> Int8:
    """The output of one operator for its int8 (H, W, C) inputs."""
    out = _KERNELS[type(op)](graph, op, list(inputs))
    assert out.shape == graph.tensors[op.output].shape, op.name
    assert out.min() >= -128, op.name
    assert out.max() <= 127, op.name
    result: Int8 = out.astype(np.int8)
    return result


def advance(seed: int, steps: int) -> int:
    """The generator's state after ``steps``."""
    for _ in range(steps):
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
    return seed


def generated(graph: Graph, seed: int = 12345) -> list[Int8]:
    """The pseudo-random input: x = (int8)(s >> 24) after s = s * 1664525 + 1013904223, inputs in order."""
    result = []
    s = seed
    for io in graph.inputs:
        shape = graph.tensors[io.tensor].shape
        states = np.empty(math.prod(shape), np.uint32)
        for i in range(states.size):
            s = (s * 1664525 + 1013904223) & 0xFFFFFFFF
            states[i] = s
        result.append((states >> 24).astype(np.uint8).view(np.int8).reshape(shape))
    return result


# ---------------------------------------------------------------- fixed point


def fixed_point(real: float) -> tuple[int, int]:
    """(multiplier, shift) of a positive real."""
    fraction, shift = math.frexp(real)
    q = math.floor(fraction * 2**31 + 0.5)
    if q == 2**31:
        q, shift = q // 2, shift + 1
    return (0, 0) if shift < -31 else (q, shift)


def high_mul(a: Any, b: Any) -> Int64:
    """SaturatingRoundingDoublingHighMul: a * b / 2^31, halves up."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.minimum((product + 2**30) >> 31, 2**31 - 1)


def divide_by_pot(x: Any, exponent: Any) -> Int64:
    """RoundingDivideByPOT: halves away from zero."""
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    half = np.where(exponent > 0, np.int64(1) << np.maximum(exponent - 1, 0), 0)
    return np.sign(x) * ((np.abs(x) + half) >> exponent)


def mbqm(x: Any, multiplier: Any, shift: Any) -> Int64:
    """MultiplyByQuantizedMultiplier, double rounding."""
    shift = np.asarray(shift, np.int64)
    left = np.asarray(x, np.int64) << np.maximum(shift, 0)
    assert np.all(np.abs(left) < 2**31), "left shift overflows"
    return divide_by_pot(high_mul(left, multiplier), np.maximum(-shift, 0))


def _requantise(acc: Int64, reals: NDArray[np.float64], zero_point: int, low: int, high: int) -> Int64:
    pairs = [fixed_point(float(r)) for r in reals]
    multiplier, shift = np.array([m for m, _ in pairs]), np.array([s for _, s in pairs])
    return np.clip(mbqm(acc, multiplier, shift) + zero_point, low, high)


# ---------------------------------------------------------------- kernels


def _conv(graph: Graph, op: Conv2D, ins: list[Int8]) -> Int64:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    oh, ow, oc = out.shape
    taps = _padded(ins[0].astype(np.float64) - source.zero_point, op, out.shape, 0.0)
    groups, per = op.groups, op.weights.shape[3]
    acc = np.zeros((oh, ow, oc))
    # Sums stay below 2^31, so float64 holds them exactly.
    for ky in range(op.kernel[0]):
        for kx in range(op.kernel[1]):
            x = _tap(taps, op, ky, kx, oh, ow)
            w = op.weights[:, ky, kx, :].astype(np.float64)
            if per == 1:
                acc += np.repeat(x, oc // x.shape[2], axis=2) * w[:, 0]
            elif groups == 1:
                acc += (x.reshape(-1, per) @ w.T).reshape(oh, ow, oc)
            else:
                split = x.reshape(oh * ow, groups, per).transpose(1, 0, 2)
                part = split @ w.reshape(groups, oc // groups, per).transpose(0, 2, 1)
                acc += part.transpose(1, 0, 2).reshape(oh, ow, oc)
    total = acc.astype(np.int64) + op.bias
    return _requantise(total, op.multipliers, out.zero_point, op.act_min, op.act_max)


def _padded(x: NDArray[Any], op: Conv2D | Pool, out: tuple[int, int, int], value: float) -> NDArray[Any]:
    pads = []
    for a in (0, 1):
        reach = (out[a] - 1) * op.stride[a] + (op.kernel[a] - 1) * op.dilation[a] + 1
        pads.append((op.pads[a], max(0, reach - op.pads[a] - x.shape[a])))
    return np.pad(x, [*pads, (0, 0)], constant_values=value)


def _tap(x: NDArray[Any], op: Conv2D | Pool, ky: int, kx: int, oh: int, ow: int) -> NDArray[Any]:
    y0, x0 = ky * op.dilation[0], kx * op.dilation[1]
    sy, sx = op.stride
    return x[y0 : y0 + (oh - 1) * sy + 1 : sy, x0 : x0 + (ow - 1) * sx + 1 : sx]


def _fully_connected(graph: Graph, op: FullyConnected, ins: list[Int8]) -> Int64:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = ins[0].reshape(-1).astype(np.int64) - source.zero_point
    acc = op.weights.astype(np.int64) @ x + op.bias
    return _requantise(acc, op.multipliers, out.zero_point, op.act_min, op.act_max).reshape(1, 1, -1)


def _binary(graph: Graph, op: Binary, ins: list[Int8]) -> Int64:
    a, b, out = (graph.tensors[i] for i in (*op.inputs, op.output))
    x, y = ins[0].astype(np.int64) - a.zero_point, ins[1].astype(np.int64) - b.zero_point
    if op.kind == "mul":
        raw = mbqm(x * y, *fixed_point(a.scale * b.scale / out.scale))
    else:
        twice = 2 * max(a.scale, b.scale)
        x = mbqm(x << 20, *fixed_point(a.scale / twice))
        y = mbqm(y << 20, *fixed_point(b.scale / twice))
        raw = mbqm(x + y if op.kind == "add" else x - y, *fixed_point(twice / (2**20 * out.scale)))
    return np.broadcast_to(np.clip(raw + out.zero_point, op.act_min, op.act_max), out.shape)


def _divide(total: Int64, n: Any) -> Int64:
    """Half away from zero."""
    return np.sign(total) * ((np.abs(total) + np.asarray(n) // 2) // n)


def _pool(graph: Graph, op: Pool, ins: list[Int8]) -> Int64:
    out = graph.tensors[op.output]
    oh, ow, _ = out.shape
    taps = [(ky, kx) for ky in range(op.kernel[0]) for kx in range(op.kernel[1])]
    if op.kind == "max":
        x = _padded(ins[0].astype(np.int64), op, out.shape, -128)
        raw = np.max([_tap(x, op, ky, kx, oh, ow) for ky, kx in taps], axis=0)
    else:
        zero = out.zero_point if op.count_pad else 0
        x = _padded(ins[0].astype(np.int64) - zero, op, out.shape, 0)
        inside = _padded(np.ones_like(ins[0], np.int64), op, out.shape, 1 if op.count_pad else 0)
        total = sum(_tap(x, op, ky, kx, oh, ow) for ky, kx in taps)
        count = sum(_tap(inside, op, ky, kx, oh, ow) for ky, kx in taps)
        raw = _divide(total, count) + zero
    return np.clip(raw, op.act_min, op.act_max)


def _reduce(graph: Graph, op: Reduce, ins: list[Int8]) -> Int64:
    source, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    x = ins[0].astype(np.int64)
    n = math.prod(x.shape[a] for a in op.axes)
    if op.kind == "max":
        raw = x.max(axis=op.axes, keepdims=True)
    elif op.kind == "avg":
        raw = _divide(x.sum(axis=op.axes, keepdims=True), n)
    else:
        total = x.sum(axis=op.axes, keepdims=True) - n * source.zero_point
        raw = mbqm(total, *op.multiplier) + out.zero_point
    return np.clip(raw, op.act_min, op.act_max)


def _softmax(graph: Graph, op: Softmax, ins: list[Int8]) -> Int64:
    x = ins[0].astype(np.int64)
    diff = x - x.max(axis=2, keepdims=True)
    multiplier, shift = op.multiplier
    used = diff >= -(31 * 2**26 >> shift)
    exps = _exp(high_mul(np.where(used, diff, 0) << shift, multiplier))
    total = np.where(used, divide_by_pot(exps, 12), 0).sum(axis=2, keepdims=True)
    headroom = 32 - np.vectorize(lambda v: int(v).bit_length(), otypes=[np.int64])(total)
    scale = _reciprocal((total << headroom) - 2**31)
    out = divide_by_pot(high_mul(scale, exps), 12 - headroom + 31 - 8) - 128
    return np.where(used, np.clip(out, -128, 127), -128)


def _exp(a: Int64) -> Int64:
    """exp of Q5.26 <= 0 in Q0.31: a Taylor polynomial around -1/8 on the last quarter, then one factor per bit."""
    quarter = 2**24
    low = (a & (quarter - 1)) - quarter
    x = (low << 5) + 2**28
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    tail = divide_by_pot(high_mul(divide_by_pot(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + high_mul(1895147668, x + tail)
    for bit in range(7):
        factor = round(math.exp(-(2.0 ** (bit - 2))) * 2**31)
        result = np.where((low - a) >> (24 + bit) & 1, high_mul(result, factor), result)
    return np.where(a == 0, 2**31 - 1, result)


def _reciprocal(a: Int64) -> Int64:
    """1 / (1 + a) for a in [0, 1), Q0.31: three Newton steps in Q2.29."""
    d = (a + 2**31) >> 1
    x = 1515870810 + high_mul(d, -1010580540)
    for _ in range(3):
        x = x + high_mul(x, 2**29 - high_mul(d, x)) * 4
    return np.minimum(x * 2, 2**31 - 1)


def _resize(graph: Graph, op: Resize, ins: list[Int8]) -> Int8:
    h, w, _ = graph.tensors[op.output].shape
    if op.factors is not None:
        rows, cols = np.arange(h) // op.factors[0], np.arange(w) // op.factors[1]
    else:
        rows, cols = np.array(op.rows), np.array(op.cols)
    return ins[0][rows][:, cols]


def _pad(graph: Graph, op: Pad, ins: list[Int8]) -> Int8:
    shape = graph.tensors[op.output].shape
    after = [(op.pads[a], shape[a] - op.pads[a] - ins[0].shape[a]) for a in (0, 1)]
    return np.pad(ins[0], [*after, (0, 0)], constant_values=op.value)


def _concat(graph: Graph, op: Concat, ins: list[Int8]) -> Int8:
    return np.concatenate(ins, axis=op.axis)


def _lut(graph: Graph, op: Lut, ins: list[Int8]) -> Int8:
    return op.table[ins[0].astype(np.int64) + 128]


def _reshape(graph: Graph, op: Reshape, ins: list[Int8]) -> Int8:
    return np.ascontiguousarray(ins[0]).reshape(graph.tensors[op.output].shape)


_KERNELS: dict[type[Op], Any] = {
    Conv2D: _conv,
    FullyConnected: _fully_connected,
    Binary: _binary,
    Concat: _concat,
    Pad: _pad,
    Pool: _pool,
    Reduce: _reduce,
    Lut: _lut,
    Softmax: _softmax,
    Reshape: _reshape,
    Resize: _resize,
}
