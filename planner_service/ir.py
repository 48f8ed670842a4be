# SPDX-License-Identifier: Apache-2.0
"""The graph: a model's imported form. Frozen data, int8 NHWC, one batch; quantisation already reduced to what the
engine's arithmetic needs (real multipliers are turned into fixed point by ``encode``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner_service.format import DType

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An int8 tensor of shape (H, W, C); a vector of N is (1, 1, N). ``data`` is set for constants only."""

    name: str
    shape: tuple[int, int, int]
    scale: float
    zero_point: int
    data: Int8 | None = None

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """Base of all operators. ``inputs`` and ``output`` index ``Graph.tensors``. ``name`` is the source layer's."""

    name: str
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window2D(Op):
    """Operators with a sliding kernel. ``pads`` is (top, left); bottom and right follow from the output's shape:
    taps beyond the tensor are clipped."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    act_min: int = -128
    act_max: int = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2D(Window2D):
    """Convolution of any group count. ``weights`` int8 (O, KH, KW, I / groups); ``bias`` int32 (O,);
    ``multipliers`` float64 (O,) or (1,): input scale * weight scale / output scale, computed as the source does.
    Depthwise is groups == input channels; output channel o then reads input channel o // (O / groups)."""

    weights: Int8
    bias: Int32
    multipliers: Float64
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.weights.shape[3] == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyConnected(Op):
    """``weights`` int8 (N, H*W*C) over the flattened HWC input; ``bias`` int32 (N,); ``multipliers`` (N,) or (1,)."""

    weights: Int8
    bias: Int32
    multipliers: Float64
    act_min: int = -128
    act_max: int = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Op):
    """ADD, SUB, MUL of two tensors; each axis of an input equals the output's or is 1. TFLite's arithmetic
    (reference/integer_ops add.h, sub.h, mul.h; left shift 20 for ADD and SUB) from the three tensors' scales."""

    kind: Literal["add", "sub", "mul"]
    act_min: int = -128
    act_max: int = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Op):
    """Along ``axis`` 0 (H), 1 (W) or 2 (C). Inputs have the output's scale and zero point."""

    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Op):
    """``pads`` is (top, left); bottom and right follow from the output's shape. ``value`` is the int8 padded with."""

    pads: tuple[int, int]
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Window2D):
    """Average (round half away from zero, TFLite's AveragePool) or max; input and output share scale and zero point.
    ``count_pad``: padding counts in the divisor, valued at the zero point (average: the sum is of q - zero_point,
    the zero point is added back after the division)."""

    kind: Literal["avg", "max"]
    count_pad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Op):
    """Over H, W or both (``axes`` holds 0 and/or 1), kept as size 1.

    mean: acc = sum(q - zp_in); out = MultiplyByQuantizedMultiplier(acc, multiplier) + zp_out, where ``multiplier`` is
    the fixed-point (int32, shift) pair with the count folded in as TFLM's reduce_common.cc does.
    avg: acc = sum(q); out = acc / n rounded half away from zero (AveragePool's arithmetic); same scale and zero point.
    max: maximum; same scale and zero point."""

    axes: tuple[int, ...]
    kind: Literal["mean", "avg", "max"]
    multiplier: tuple[int, int] = (0, 0)
    act_min: int = -128
    act_max: int = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Lut(Op):
    """out = table[in + 128]; ``table`` int8 (256,). ``function`` names what it came from (for reports)."""

    table: Int8
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Op):
    """Over C. TFLite's fixed-point int8 softmax (reference/softmax.h); output scale 1/256, zero point -128.
    ``multiplier`` is the (int32, left shift) of PreprocessSoftmaxScaling; CalculateInputRadius follows from it."""

    multiplier: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape(Op):
    """Copy of the whole tensor under another shape (row-major HWC order)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Op):
    """Nearest neighbour: by integer ``factors`` (H, W), source = destination // factor, or, when ``factors`` is None,
    by source ``rows`` (out H,) and ``cols`` (out W,)."""

    factors: tuple[int, int] | None = None
    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """A network input or output as the model's user sees it: int8 q is uint8 q + 128 or float scale * (q - zp)."""

    tensor: int
    name: str
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Operators in topological order; every tensor is a constant, a network input, or the output of one operator."""

    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[Io, ...]
    outputs: tuple[Io, ...]
    #: Where it came from, for reports and ``weft compare``: "tflite", "onnx" or "generated".
    source: str = field(default="tflite")

    def check(self) -> None:
        """Raise PlannerError(INTERNAL) with every broken invariant; importers and passes call it on their results."""
        from planner_service.ir_check import check_graph

        check_graph(self)


def macs(graph: Graph, op: Op) -> int:
    """MACs of the unfused operator: taps that lie inside the tensor (taps on padding are not executed)."""
    if isinstance(op, Conv2D):
        (h, w, _), (oh, ow, oc) = graph.tensors[op.inputs[0]].shape, graph.tensors[op.output].shape
        rows = sum(valid_taps(y, h, op.kernel[0], op.stride[0], op.dilation[0], op.pads[0]) for y in range(oh))
        cols = sum(valid_taps(x, w, op.kernel[1], op.stride[1], op.dilation[1], op.pads[1]) for x in range(ow))
        return rows * cols * oc * int(op.weights.shape[3])
    if isinstance(op, FullyConnected):
        return int(op.weights.size)
    return 0


def valid_taps(out: int, size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    """How many of ``kernel`` taps of output position ``out`` lie inside [0, size)."""
    first = out * stride - pad
    return sum(0 <= first + k * dilation < size for k in range(kernel))
