# SPDX-License-Identifier: Apache-2.0
"""What ONNX tensors are while a model is imported: values (constant, quantised, dequantised, pending), views of memory,
windows. No operator is known here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner_service import arith
from planner_service.importers.onnx_read import Array, Edge, MalformedError, Node
from planner_service.importers.onnx_rules import LIMITS, MAX_SIDE
from planner_service.importers.rules import Operand
from planner_service.ir import Int8, valid_taps

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Shape3 = tuple[int, int, int]
#: The ONNX dimensions that make up height, width and channels.
Template = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

NCHW: Template = ((2,), (3,), (1,))
NHWC: Template = ((1,), (2,), (3,))
TEMPLATES: dict[int, tuple[Template, ...]] = {
    1: (((), (), (0,)),),
    2: (((), (), (1,)),),
    3: (((), (1,), (2,)), ((2,), (), (1,)), ((1,), (2,), ())),
    4: (NCHW, NHWC),
}
MAX_ELEMENTS = 1 << 31


#: Every int8 code.
CODES = np.arange(-128, 128, dtype=np.float64)


# ---------------------------------------------------------------- values


@dataclass(slots=True, kw_only=True)
class Cell:
    """Quantisation of one or more tensors; unknown until something declares it. ``zero_point`` is for int8."""

    scale: float | None = None
    zero_point: int = 0

    def same(self, other: Cell) -> bool:
        return self.scale is not None and self.scale == other.scale and self.zero_point == other.zero_point

    @property
    def known(self) -> float:
        assert self.scale is not None
        return self.scale


@dataclass(slots=True, kw_only=True)
class Draft:
    name: str
    shape: Shape3
    cell: Cell
    data: Int8 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An ONNX shape over a tensor. ``axes``: per dimension the memory axes (0 H, 1 W, 2 C) it consists of, major
    first; axes of size 1 are left out."""

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Const:
    array: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A dequantised constant: ``codes`` as the model stores them, scales per tensor or along ``axis``."""

    codes: Array
    scales: Float64
    zero_points: Int64
    axis: int
    dtype: str

    @property
    def real(self) -> Float64:
        spread = [1] * max(self.codes.ndim, 1)
        if self.scales.size > 1:
            spread[self.axis] = -1
        result: Float64 = (self.codes - self.zero_points.reshape(spread)) * self.scales.reshape(spread)
        return result.reshape(self.codes.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Quantised activations as they are. ``unsigned``: the model has them as uint8."""

    tensor: int
    view: View
    unsigned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """Dequantised activations, or an elementwise function of them: ``table`` holds its 256 real values."""

    tensor: int
    view: View
    table: Float64 | None = None
    function: str = ""
    layer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """How a pending result is to be quantised: clamps are int8, ``bias`` is real, per channel."""

    output: int
    cell: Cell
    act_min: int
    act_max: int
    bias: Float64 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A float operator whose result is not quantised yet. ``emit`` appends it; ``clamps``: it can bound its result;
    ``channels``: it can take a further bias of that many channels (0: cannot)."""

    view: View
    dims: Shape3
    emit: Callable[[Want], None]
    layer: str
    operator: str
    clamps: bool = True
    channels: int = 0
    low: float = -math.inf
    high: float = math.inf
    bias: Float64 | None = None
    natural: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """A float network input before it is quantised."""

    edge: Edge


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The result of something that was refused; the shape lets the import go on to find more."""

    shape: tuple[int, ...] | None


Value = Const | Stored | Codes | Real | Pending | Outside | Lost


class RefusedError(Exception):
    """An operator that goes beyond one of LIMITS; the text says what was found."""

    def __init__(self, limit: str, found: str) -> None:
        super().__init__(f"{LIMITS[limit].text}, found {found}")
        self.remedy = LIMITS[limit].remedy


# ---------------------------------------------------------------- layout


def prod(values: Sequence[int]) -> int:
    return math.prod(values)


def check_dims(dims: Sequence[int]) -> None:
    if not all(1 <= d <= MAX_SIDE for d in dims) or prod(dims) >= MAX_ELEMENTS:
        raise RefusedError("size", str(list(dims)))


def view_of(shape: Sequence[int], template: Template) -> View:
    axes: list[tuple[int, ...]] = [()] * len(shape)
    for axis, dims in enumerate(template):
        for d in dims:
            if shape[d] != 1:
                axes[d] = (axis,)
    return View(shape=tuple(shape), axes=tuple(axes))


def dims_of(shape: Sequence[int], template: Template) -> Shape3:
    h, w, c = (prod([shape[d] for d in dims]) for dims in template)
    return h, w, c


def regroup(view: View, dims: Shape3, shape: Sequence[int]) -> View | None:
    """The view after a reshape, if its dimensions are runs of the old ones' axes."""
    atoms = [a for d in view.axes for a in d]
    axes: list[tuple[int, ...]] = []
    for size in shape:
        taken: list[int] = []
        while prod([dims[a] for a in taken]) < size and atoms:
            taken.append(atoms.pop(0))
        if prod([dims[a] for a in taken]) != size:
            return None
        axes.append(tuple(taken))
    return View(shape=tuple(shape), axes=tuple(axes)) if not atoms else None


def in_memory_order(view: View) -> bool:
    atoms = [a for d in view.axes for a in d]
    return atoms == sorted(atoms)


def home_of(shape: Sequence[int]) -> tuple[Shape3, View] | None:
    """Memory for a shape whose elements are in row-major order, and the view that says so."""
    wide = [d for d, size in enumerate(shape) if size != 1]
    if len(wide) > 3:
        return None
    places = {0: (), 1: (2,), 2: (1, 2), 3: (0, 1, 2)}[len(wide)]
    if len(shape) == 4 and wide in ([2, 3], [2], [3]):  # one channel: height and width
        places = tuple(d - 2 for d in wide)
    axes: list[tuple[int, ...]] = [()] * len(shape)
    dims = [1, 1, 1]
    for d, axis in zip(wide, places, strict=True):
        axes[d] = (axis,)
        dims[axis] = shape[d]
    return (dims[0], dims[1], dims[2]), View(shape=tuple(shape), axes=tuple(axes))


# ---------------------------------------------------------------- windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    out: tuple[int, int]

    def overruns(self, size: tuple[int, int]) -> bool:
        """Whether a window reaches beyond the padding (ceil_mode)."""
        return any(
            (self.out[i] - 1) * self.stride[i] + (self.kernel[i] - 1) * self.dilation[i] + 1
            > size[i] + self.before[i] + self.after[i]
            for i in (0, 1)
        )

    def clipped(self, size: tuple[int, int]) -> bool:
        """Whether some window has taps outside the tensor."""
        return any(t != self.kernel[i] for i in (0, 1) for t in self.taps(size, i))

    def taps(self, size: tuple[int, int], i: int) -> list[int]:
        return [
            valid_taps(o, size[i], self.kernel[i], self.stride[i], self.dilation[i], self.before[i])
            for o in range(self.out[i])
        ]


def window_of(node: Node, size: tuple[int, int], kernel: tuple[int, int]) -> Window:
    stride, dilation = (node.integers(k, (1, 1)) or (1, 1) for k in ("strides", "dilations"))
    pads = node.integers("pads", (0, 0, 0, 0)) or (0, 0, 0, 0)
    mode = node.text("auto_pad", "NOTSET") or "NOTSET"
    ceil = bool(node.integer("ceil_mode", 0))
    before, after, out = [0, 0], [0, 0], [0, 0]
    for i in (0, 1):
        reach = (kernel[i] - 1) * dilation[i] + 1
        if mode.startswith("SAME"):
            out[i] = -(-size[i] // stride[i])
            total = max(0, (out[i] - 1) * stride[i] + reach - size[i])
            small, large = total // 2, total - total // 2
            before[i], after[i] = (small, large) if mode == "SAME_UPPER" else (large, small)
            continue
        if mode == "NOTSET":
            before[i], after[i] = pads[i], pads[i + 2]
        room = size[i] + before[i] + after[i] - reach
        out[i] = (-(-room // stride[i]) if ceil else room // stride[i]) + 1
        if ceil and (out[i] - 1) * stride[i] >= size[i] + before[i]:
            out[i] -= 1  # a window that would start in the padding behind the tensor
    check_dims(out)
    if max(before) > 255:
        raise RefusedError("padding", str(max(before)))
    return Window(
        kernel=kernel,
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        before=(before[0], before[1]),
        after=(after[0], after[1]),
        out=(out[0], out[1]),
    )


def nearest_sources(size: int, out: int, scale: float, mode: str, nearest: str) -> tuple[int, ...]:
    """Source index of every output index: ONNX Resize, single precision as onnxruntime computes it."""
    f = np.float32
    y = np.arange(out).astype(f)
    s = f(scale)
    if mode == "asymmetric":
        x = y / s
    elif mode == "align_corners":
        x = y * f(size - 1) / f(out - 1) if out > 1 else np.zeros(out, f)
    elif mode == "pytorch_half_pixel":
        x = (y + f(0.5)) / s - f(0.5) if out > 1 else np.zeros(out, f)
    elif mode == "half_pixel_symmetric":
        adjust = f(out) / (s * f(size))
        x = f(size) / f(2) * (f(1) - adjust) + (y + f(0.5)) / s - f(0.5)
    elif mode == "half_pixel":
        x = (y + f(0.5)) / s - f(0.5)
    else:
        raise RefusedError("resize mode", mode)
    if nearest == "floor":
        index = np.floor(x)
    elif nearest == "ceil":
        index = np.ceil(x)
    elif nearest == "round_prefer_ceil":
        index = np.floor(x + f(0.5))
    elif nearest == "round_prefer_floor":
        index = np.ceil(x - f(0.5))
    else:
        raise MalformedError(f"nearest_mode {nearest}")
    return tuple(int(i) for i in np.clip(index, 0, size - 1))


# ---------------------------------------------------------------- small things


def fit_accumulator(weights: Int8, bias: Int64) -> tuple[Int8, Int64, Float64]:
    """Weights, bias, and what each channel's step grows by, so that |bias| + taps * 255 * 128 fits 32 bits.

    onnxruntime's quantiser gives channels of tiny weights so small a step that their bias just fits. Such a channel is
    its bias: all taps together are less than taps / 2^16 of it, so a coarser step changes nothing that 8 bits show."""
    room = arith.INT32_MAX - weights[0].size * 255 * 128
    if room <= 0:
        raise RefusedError("taps", str(weights[0].size))
    over = np.abs(bias) / room
    if over.max() <= 1:
        return weights, bias, np.ones(1)
    shift = np.where(over > 1, np.ceil(np.log2(np.maximum(over, 1)) + 1e-9), 0)
    factors = np.exp2(shift)
    spread = factors.reshape(-1, *(1,) * (weights.ndim - 1))
    return np.rint(weights / spread).astype(np.int8), np.rint(bias / factors).astype(np.int64), factors


def check_multipliers(bias: Int64, taps: int, multipliers: Float64) -> None:
    """A left shift must not push an accumulator out of 32 bits."""
    bound = arith.accumulator_bound(bias, taps)
    largest = float(multipliers.max())
    if not largest < 1.0 and bound * 2.0 ** (math.floor(math.log2(largest)) + 1) > arith.INT32_MAX:
        raise RefusedError("output scale range", f"{largest:.3g} times the accumulator's step")


def new_cell(scale: float, zero_point: int) -> Cell:
    return Cell(scale=scale, zero_point=zero_point)


def at(values: Sequence[Any], index: int) -> Any:
    """Optional operand: None or '' where it is absent."""
    return values[index] if index < len(values) else None


def as_value(value: Any) -> Value:
    assert isinstance(value, Const | Stored | Codes | Real | Pending | Outside | Lost)
    return value


def clamped(value: Pending) -> bool:
    return value.low != -math.inf or value.high != math.inf


def raised(view: View, rank: int) -> View:
    """With leading dimensions of 1, as broadcasting adds them."""
    more = max(0, rank - len(view.shape))
    return View(shape=(1,) * more + view.shape, axes=((),) * more + view.axes)


def real_constant(value: Any) -> Float64:
    if isinstance(value, Stored):
        return value.real
    if isinstance(value, Const):
        return value.array.astype(np.float64)
    raise MalformedError("not a constant")


def along_channels(real: Float64, view: View) -> Float64 | None:
    """``real`` as a vector over the channels of ``view``, a single number as one; None if it is neither."""
    if real.size == 1:
        return real.reshape(1)
    wide = [d for d, n in enumerate(real.shape) if n != 1]
    dim = wide[0] + len(view.shape) - real.ndim
    if len(wide) != 1 or dim < 0 or view.axes[dim] != (2,) or view.shape[dim] != real.size:
        return None
    return real.reshape(-1)


def apply_binary(base: str, a: Float64, b: Float64) -> Float64:
    if base == "Add":
        return a + b
    if base == "Sub":
        return a - b
    return a * b if base == "Mul" else a / b


def quantised_constant(array: Array, q: Operand) -> Array:
    """QuantizeLinear of a constant: round half to even, saturate."""
    if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
        raise MalformedError("quantises a constant that is not of finite floats")
    if q.dtype not in ("int8", "uint8"):
        raise MalformedError(f"quantises a constant to {q.dtype}")
    spread = [1] * max(array.ndim, 1)
    if len(q.scales) > 1:
        spread[q.axis] = -1
    low, high = (0, 255) if q.dtype == "uint8" else (-128, 127)
    scales, zeros = np.array(q.scales).reshape(spread), np.array(q.zero_points).reshape(spread)
    codes = np.clip(np.rint(array.astype(np.float64) / scales) + zeros, low, high)
    result: Array = codes.reshape(array.shape).astype(q.dtype)
    return result


def new_shape(node: Node, old: tuple[int, ...], given: list[int] | None) -> tuple[int, ...]:
    """Shape after Reshape, Flatten, Squeeze or Unsqueeze; ``given`` is their second operand."""
    rank = len(old)
    if node.op == "Flatten":
        axis = node.integer("axis", 1)
        if not -rank <= axis <= rank:
            raise MalformedError(f"axis {axis} of rank {rank}")
        axis = axis + rank if axis < 0 else axis
        return prod(old[:axis]), prod(old[axis:])
    if node.op == "Squeeze":
        gone = {a % rank for a in given} if given else {d for d in range(rank) if old[d] == 1}
        if any(old[d] != 1 for d in gone):
            raise MalformedError(f"squeezes axes {sorted(gone)} of {list(old)}")
        return tuple(n for d, n in enumerate(old) if d not in gone)
    if given is None:
        raise MalformedError("no shape")
    if node.op == "Unsqueeze":
        wide = rank + len(given)
        added = {a % wide for a in given}
        if len(added) != len(given) or wide > 16:
            raise MalformedError(f"axes {given}")
        rest = iter(old)
        return tuple(1 if d in added else next(rest) for d in range(wide))
    if len(given) > 16 or any(n < -1 for n in given) or given.count(-1) > 1:
        raise MalformedError(f"shape {given}")
    zero = bool(node.integer("allowzero", 0))
    shape = [old[d] if n == 0 and not zero and d < rank else n for d, n in enumerate(given)]
    known = prod([n for n in shape if n != -1])
    if -1 in shape and known > 0:
        shape[shape.index(-1)] = prod(old) // known
    if prod(shape) != prod(old) or any(n < 1 for n in shape):
        raise MalformedError(f"reshapes {list(old)} to {given}")
    return tuple(shape)
