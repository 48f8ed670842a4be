# SPDX-License-Identifier: Apache-2.0
"""ONNX to the graph: QDQ and QOperator forms, NCHW to NHWC.

Both forms become one: a QLinear operator is read as DequantizeLinear, the float operator, QuantizeLinear. A float
operator between those is *pending* until QuantizeLinear says how its result is quantised. Layout is never data
movement: a ``View`` says which memory axes (height, width, channels) each ONNX dimension is made of, so Transpose and
Flatten change views only, and what reads a view in another order than memory's permutes its weights, or is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner_service import arith
from planner_service.errors import Code, PlannerError
from planner_service.format import DType
from planner_service.importers.onnx_read import MICROSOFT, Array, Edge, MalformedError, Node, Source, read_model
from planner_service.importers.onnx_rules import LIMITS, MAX_SIDE, MAX_WEIGHTS, OTHERWISE, REFUSED, RULES
from planner_service.importers.rules import Collector, Facts, Operand
from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Int8,
    Io,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
    Tensor,
    valid_taps,
)

__all__ = ["RULES", "import_onnx"]

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Shape3 = tuple[int, int, int]
#: The ONNX dimensions that make up height, width and channels.
Template = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

NCHW: Template = ((2,), (3,), (1,))
NHWC: Template = ((1,), (2,), (3,))
_TEMPLATES: dict[int, tuple[Template, ...]] = {
    1: (((), (), (0,)),),
    2: (((), (), (1,)),),
    3: (((), (1,), (2,)), ((2,), (), (1,)), ((1,), (2,), ())),
    4: (NCHW, NHWC),
}
MAX_ELEMENTS = 1 << 31

#: QLinear operators: positions of (tensor, scale, zero point) of the data inputs, of the bias, and of the output's
#: (scale, zero point); the float operator they stand for; their domain.
_DESUGAR: dict[str, tuple[tuple[int, ...], int, int, str, str]] = {
    "QLinearConv": ((0, 3), 8, 6, "Conv", ""),
    "QLinearMatMul": ((0, 3), -1, 6, "MatMul", ""),
    "QGemm": ((0, 3), 6, 7, "Gemm", MICROSOFT),
    "QLinearAdd": ((0, 3), -1, 6, "Add", MICROSOFT),
    "QLinearMul": ((0, 3), -1, 6, "Mul", MICROSOFT),
    "QLinearAveragePool": ((0,), -1, 3, "AveragePool", MICROSOFT),
    "QLinearGlobalAveragePool": ((0,), -1, 3, "GlobalAveragePool", MICROSOFT),
    "QLinearReduceMean": ((0,), -1, 3, "ReduceMean", MICROSOFT),
    "QLinearSigmoid": ((0,), -1, 3, "Sigmoid", MICROSOFT),
    "QLinearLeakyRelu": ((0,), -1, 3, "LeakyRelu", MICROSOFT),
    "QLinearSoftmax": ((0,), -1, 3, "Softmax", MICROSOFT),
}
#: Operators that either domain may hold.
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_QUANTISED_FORM = (
    *_QUANTISERS,
    *_DESUGAR,
    "QLinearConcat",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
)


# ---------------------------------------------------------------- values


@dataclass(slots=True, kw_only=True)
class _Cell:
    """Quantisation of one or more tensors; unknown until something declares it. ``zero_point`` is for int8."""

    scale: float | None = None
    zero_point: int = 0

    def same(self, other: _Cell) -> bool:
        return self.scale is not None and self.scale == other.scale and self.zero_point == other.zero_point

    @property
    def known(self) -> float:
        assert self.scale is not None
        return self.scale


@dataclass(slots=True, kw_only=True)
class _Tensor:
    name: str
    shape: Shape3
    cell: _Cell
    data: Int8 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """An ONNX shape over a tensor. ``axes``: per dimension the memory axes (0 H, 1 W, 2 C) it consists of, major
    first; axes of size 1 are left out."""

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Const:
    array: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
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
class _Codes:
    """Quantised activations as they are. ``unsigned``: the model has them as uint8."""

    tensor: int
    view: _View
    unsigned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Real:
    """Dequantised activations, or an elementwise function of them: ``table`` holds its 256 real values."""

    tensor: int
    view: _View
    table: Float64 | None = None
    function: str = ""
    layer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Want:
    """How a pending result is to be quantised: clamps are int8, ``bias`` is real, per channel."""

    output: int
    cell: _Cell
    act_min: int
    act_max: int
    bias: Float64 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A float operator whose result is not quantised yet. ``emit`` appends it; ``clamps``: it can bound its result;
    ``channels``: it can take a further bias of that many channels (0: cannot)."""

    view: _View
    dims: Shape3
    emit: Callable[[_Want], None]
    layer: str
    operator: str
    clamps: bool = True
    channels: int = 0
    low: float = -math.inf
    high: float = math.inf
    bias: Float64 | None = None
    natural: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outside:
    """A float network input before it is quantised."""

    edge: Edge


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """The result of something that was refused; the shape lets the import go on to find more."""

    shape: tuple[int, ...] | None


_Value = _Const | _Stored | _Codes | _Real | _Pending | _Outside | _Lost


class _RefusedError(Exception):
    """An operator that goes beyond one of LIMITS; the text says what was found."""

    def __init__(self, limit: str, found: str) -> None:
        super().__init__(f"{LIMITS[limit].text}, found {found}")
        self.remedy = LIMITS[limit].remedy


# ---------------------------------------------------------------- entry


def import_onnx(data: bytes, *, name: str) -> Graph:
    """Read an ONNX model. PlannerError: TOO_LARGE, BAD_MODEL, FLOAT_MODEL (the hint is the command that quantises), or
    UNSUPPORTED with everything that is in the way."""
    source = read_model(data)
    collector = Collector(RULES)
    for v in source.violations:
        collector.add(v.layer, v.message, v.hint)
    if not any(n.op in _QUANTISED_FORM for n in source.nodes):
        raise PlannerError(
            Code.FLOAT_MODEL,
            f"{name} is a float model: Weft runs int8 models",
            hint="weft quantize model.onnx --calibration data.npz",
            violations=collector.found,
        )
    lowering = _Lowering(source, collector)
    lowering.run()
    collector.finish(name)
    graph = lowering.graph(name)
    graph.check()
    return graph


# ---------------------------------------------------------------- layout


def _prod(values: Sequence[int]) -> int:
    return math.prod(values)


def _check_dims(dims: Sequence[int]) -> None:
    if not all(1 <= d <= MAX_SIDE for d in dims) or _prod(dims) >= MAX_ELEMENTS:
        raise _RefusedError("size", str(list(dims)))


def _view_of(shape: Sequence[int], template: Template) -> _View:
    axes: list[tuple[int, ...]] = [()] * len(shape)
    for axis, dims in enumerate(template):
        for d in dims:
            if shape[d] != 1:
                axes[d] = (axis,)
    return _View(shape=tuple(shape), axes=tuple(axes))


def _dims_of(shape: Sequence[int], template: Template) -> Shape3:
    h, w, c = (_prod([shape[d] for d in dims]) for dims in template)
    return h, w, c


def _regroup(view: _View, dims: Shape3, shape: Sequence[int]) -> _View | None:
    """The view after a reshape, if its dimensions are runs of the old ones' axes."""
    atoms = [a for d in view.axes for a in d]
    axes: list[tuple[int, ...]] = []
    for size in shape:
        taken: list[int] = []
        while _prod([dims[a] for a in taken]) < size and atoms:
            taken.append(atoms.pop(0))
        if _prod([dims[a] for a in taken]) != size:
            return None
        axes.append(tuple(taken))
    return _View(shape=tuple(shape), axes=tuple(axes)) if not atoms else None


def _in_memory_order(view: _View) -> bool:
    atoms = [a for d in view.axes for a in d]
    return atoms == sorted(atoms)


def _home(shape: Sequence[int]) -> tuple[Shape3, _View] | None:
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
    return (dims[0], dims[1], dims[2]), _View(shape=tuple(shape), axes=tuple(axes))


# ---------------------------------------------------------------- windows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
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


def _window(node: Node, size: tuple[int, int], kernel: tuple[int, int]) -> _Window:
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
    _check_dims(out)
    if max(before) > 255:
        raise _RefusedError("padding", str(max(before)))
    return _Window(
        kernel=kernel,
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        before=(before[0], before[1]),
        after=(after[0], after[1]),
        out=(out[0], out[1]),
    )


def _nearest_sources(size: int, out: int, scale: float, mode: str, nearest: str) -> tuple[int, ...]:
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
        raise _RefusedError("resize mode", mode)
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


# ---------------------------------------------------------------- lowering

_CODES = np.arange(-128, 128, dtype=np.float64)
#: What an operator that contradicts itself runs into; MalformedError is a ValueError.
_INCONSISTENT = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, AssertionError)


def _sigmoid(x: Float64) -> Float64:
    with np.errstate(over="ignore"):
        result: Float64 = 1.0 / (1.0 + np.exp(-x))
    return result


class _Lowering:
    """One import. ``run`` fills tensors and operators, or the collector."""

    def __init__(self, source: Source, collector: Collector) -> None:
        self._source = source
        self._found = collector
        self._tensors: list[_Tensor] = []
        self._ops: list[Op] = []
        self._inputs: list[Io] = []
        self._outputs: list[Io] = []
        self._weights = 0
        self._entered: dict[str, _Codes] = {}
        self._values: dict[str, _Value] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in source.nodes:
            for i in node.inputs:
                self._readers.setdefault(i, []).append(node)

    # ------------------------------------------------ the whole

    def run(self) -> None:
        for name, array in self._source.constants.items():
            self._values[name] = _Const(array=array)
        for edge in self._source.inputs:
            self._values[edge.name] = self._enter(edge)
        for node in self._source.nodes:
            try:
                results = self._lower(node)
            except _RefusedError as error:
                self._found.add(node.name, f"{node.op}: {error}", error.remedy)
                results = None
            except _INCONSISTENT as error:
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._found.add(node.name, f"{node.op}: inconsistent operator: {text}", "check it with onnx.checker")
                results = None
            for index, name in enumerate(node.outputs):
                if results is not None and index < len(results):
                    self._values[name] = results[index]
                else:
                    self._values[name] = _Lost(shape=self._source.shapes.get(name))
        for edge in self._source.outputs:
            self._leave(edge)
        for io in self._inputs:
            if io.tensor < 0:
                self._found.add(io.name, "input is not used", "remove it from the model")
        if len(self._inputs) > 16 or len(self._outputs) > 16:
            self._found.add("", "more than 16 inputs or outputs", "concatenate them")
        if max(len(self._tensors), len(self._ops)) > 4095:
            self._found.add("", f"{len(self._ops)} operators, at most 4095", "use a smaller model")

    def graph(self, name: str) -> Graph:
        return Graph(
            name=name,
            tensors=tuple(
                Tensor(
                    name=t.name,
                    shape=t.shape,
                    scale=1.0 if t.cell.scale is None else t.cell.scale,
                    zero_point=t.cell.zero_point,
                    data=t.data,
                )
                for t in self._tensors
            ),
            ops=tuple(self._ops),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            source="onnx",
        )

    def _enter(self, edge: Edge) -> _Value:
        """A network input: shape and type are checked here, its tensor is made when it is quantised."""
        if edge.shape is None:
            self._found.add(edge.name, "input has no shape or is not a tensor", "export with fixed shapes")
            return _Lost(shape=None)
        shape = list(edge.shape)
        if shape and shape[0] is None:
            shape[0] = 1
        free = [s or "?" for d, s in zip(shape, edge.symbols, strict=True) if d is None]
        if free:
            self._found.add(
                edge.name,
                f"dimension {free[0]} of the input is not fixed",
                f"python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {edge.name} "
                f"--input_shape {','.join('1' if i == 0 else str(d or 'N') for i, d in enumerate(shape))} "
                "model.onnx fixed.onnx",
            )
            return _Lost(shape=None)
        fixed = tuple(d for d in shape if d is not None)
        if not 2 <= len(fixed) <= 4:
            self._found.add(edge.name, f"input of rank {len(fixed)}", "use [1, features] up to [1, C, H, W]")
            return _Lost(shape=None)
        if fixed[0] != 1:
            self._found.add(edge.name, f"batch of {fixed[0]}", "export with batch 1")
            return _Lost(shape=None)
        if not all(1 <= d <= MAX_SIDE for d in fixed) or _prod(fixed) >= MAX_ELEMENTS:
            self._found.add(edge.name, f"input of shape {list(fixed)}", f"every side is 1 to {MAX_SIDE}")
            return _Lost(shape=None)
        if edge.dtype == "float32":
            # Keeps the place among the inputs until QuantizeLinear comes.
            self._inputs.append(Io(tensor=-1, name=edge.name, dtype=DType.FLOAT32))
            return _Outside(edge=replace(edge, shape=fixed))
        if edge.dtype in ("int8", "uint8"):
            dtype = DType.UINT8 if edge.dtype == "uint8" else DType.INT8
            self._inputs.append(Io(tensor=-1, name=edge.name, dtype=dtype))
            return self._open(edge.name, fixed, _Cell(), edge.dtype == "uint8")
        self._found.add(edge.name, f"input of type {edge.dtype}", "use float32, int8 or uint8")
        return _Lost(shape=None)

    def _open(self, name: str, shape: tuple[int, ...], cell: _Cell, unsigned: bool) -> _Codes:
        """Make the tensor of a network input."""
        template = _TEMPLATES[len(shape)][0]
        if len(shape) == 4 and self._channels_last(name):
            template = NHWC
        tensor = self._new(name, _dims_of(shape, template), cell)
        self._inputs = [replace(io, tensor=tensor) if io.name == name else io for io in self._inputs]
        return _Codes(tensor=tensor, view=_view_of(shape, template), unsigned=unsigned)

    def _channels_last(self, name: str) -> bool:
        """Whether the first operator that an input meets makes NHWC to NCHW of it, or has its channels last."""
        for _ in range(8):
            readers = self._readers.get(name, [])
            if not readers:
                return False
            if all(r.op == "Transpose" and r.attributes.get("perm") == [0, 3, 1, 2] for r in readers):
                return True
            if all(r.attributes.get("channels_last") == 1 or r.op in ("MatMul", "QLinearMatMul") for r in readers):
                return True
            if len(readers) != 1 or readers[0].op not in (*_QUANTISERS, "Identity") or not readers[0].outputs:
                return False
            name = readers[0].outputs[0]
        return False

    def _leave(self, edge: Edge) -> None:
        """A network output: make sure that it is quantised and in an order that the user knows."""
        value = self._values[edge.name]
        try:
            if isinstance(value, _Pending):
                if value.natural is None:
                    raise _RefusedError("output quantised", f"{value.operator} {value.layer}")
                value = self._dequantise_codes(self._quantise(value, _cell(*value.natural), False, edge.name))
            if isinstance(value, _Real) and value.table is not None:
                low, high = min(0.0, float(value.table.min())), max(0.0, float(value.table.max()))
                scale = max((high - low) / 255, 1e-8)
                cell = _cell(scale, int(np.clip(np.rint(-low / scale) - 128, -128, 127)))
                value = self._dequantise_codes(self._quantise(value, cell, False, edge.name))
            if isinstance(value, _Lost):
                return
            if not isinstance(value, _Codes | _Real):
                raise _RefusedError("output computed", "a constant or an input as it is")
            if self._tensors[value.tensor].name in {io.name for io in self._inputs}:
                raise _RefusedError("output computed", "an input as it is")
            long = [d for d in value.view.axes if len(d) > 1]
            if any(list(d) != sorted(d) for d in long) or (long and not _in_memory_order(value.view)):
                raise _RefusedError("output order", f"{list(value.view.shape)} flattened channels first")
            dtype = DType.FLOAT32
            if isinstance(value, _Codes):
                dtype = DType.UINT8 if value.unsigned else DType.INT8
            self._outputs.append(Io(tensor=value.tensor, name=edge.name, dtype=dtype))
        except _RefusedError as error:
            self._found.add(edge.name, str(error), error.remedy)
        except _INCONSISTENT as error:
            self._found.add(edge.name, f"inconsistent output: {error}", "check it with onnx.checker")

    # ------------------------------------------------ helpers

    def _new(self, name: str, dims: Shape3, cell: _Cell, data: Int8 | None = None) -> int:
        _check_dims(dims)
        self._tensors.append(_Tensor(name=name, shape=dims, cell=cell, data=data))
        return len(self._tensors) - 1

    def _charge(self, size: int) -> None:
        """Count ``size`` bytes of weights before they are made."""
        self._weights += size
        if self._weights > MAX_WEIGHTS:
            raise _RefusedError("weights", f"{self._weights} bytes or more")

    def _cell_of(self, value: _Real | _Codes) -> _Cell:
        return self._tensors[value.tensor].cell

    def _arrange(self, value: _Real | _Codes, template: Template, layer: str, *, copy: bool = True) -> int | None:
        """Tensor whose memory is exactly ``template``: the value's own, or a Reshape of it (where ``copy`` allows);
        None if data would have to move."""
        view, own = value.view, self._tensors[value.tensor]
        target = _dims_of(view.shape, template)
        covered = sorted(d for dims in template for d in dims)
        if _prod([view.shape[d] for d in covered]) != _prod(view.shape):
            return None
        atoms = [a for dims in template for d in dims for a in view.axes[d]]
        if atoms != sorted(atoms):
            return None
        if own.shape == target:
            return value.tensor
        if not copy:
            return None
        tensor = self._new(f"{own.name}/reshape{len(self._tensors)}", target, own.cell)
        self._ops.append(Reshape(name=f"{layer}/reshape", inputs=(value.tensor,), output=tensor))
        return tensor

    def _arranged(self, value: _Real | _Codes, template: Template, layer: str) -> int:
        tensor = self._arrange(value, template, layer)
        if tensor is None:
            raise _RefusedError("layout", f"{list(value.view.shape)} transposed in memory")
        return tensor

    def _operand(self, name: str) -> Operand | None:
        value = self._values[name] if name else None
        if value is None:
            return None
        if isinstance(value, _Const):
            return Operand(name=name, shape=value.array.shape, dtype=str(value.array.dtype), data=value.array)
        if isinstance(value, _Stored):
            return Operand(
                name=name,
                shape=value.codes.shape,
                dtype=value.dtype,
                scales=tuple(value.scales.tolist()),
                zero_points=tuple(value.zero_points.tolist()),
                axis=value.axis,
                data=value.codes,
            )
        if isinstance(value, _Codes | _Real):
            cell = self._cell_of(value)
            plain = cell.scale is not None and not (isinstance(value, _Real) and value.table is not None)
            raw = isinstance(value, _Codes)
            return Operand(
                name=name,
                shape=value.view.shape,
                dtype="int8" if raw else "float32",
                scales=(cell.known,) if plain else (1.0,) if raw else (),
                zero_points=(cell.zero_point,) if plain else (),
            )
        if isinstance(value, _Pending):
            return Operand(name=name, shape=value.view.shape, dtype="float32")
        if isinstance(value, _Outside):
            return Operand(name=name, shape=tuple(d or 1 for d in value.edge.shape or ()), dtype="float32")
        return None

    def _quantisation(self, scale: str, zero_point: str, axis: int, unsigned: bool) -> Operand:
        """Scale and zero point operands as one Operand; empty scales where they are not constant. ``unsigned`` is the
        type without a zero point."""
        s = self._values[scale] if scale else None
        z = self._values[zero_point] if zero_point else None
        if not isinstance(s, _Const) or s.array.dtype.kind != "f":
            return Operand(name=scale, shape=(), dtype="")
        if z is not None and not (isinstance(z, _Const) and z.array.dtype.kind in "iu"):
            return Operand(name=scale, shape=(), dtype="")
        with np.errstate(invalid="ignore"):  # signalling NaNs; a rule refuses them
            scales = s.array.astype(np.float64).ravel()
        if z is None:
            zeros, dtype = np.zeros(scales.size, np.int64), "uint8" if unsigned else "int8"
        else:
            zeros, dtype = z.array.astype(np.int64).ravel(), str(z.array.dtype)
        if zeros.size != scales.size:
            raise MalformedError(f"{scales.size} scales and {zeros.size} zero points")
        return Operand(
            name=scale,
            shape=(),
            dtype=dtype,
            scales=tuple(scales.tolist()),
            zero_points=tuple(zeros.tolist()),
            axis=axis,
        )

    # ------------------------------------------------ quantise, dequantise

    def _dequantise(self, name: str, q: Operand) -> _Value:
        """DequantizeLinear of the tensor called ``name``."""
        value = self._values[name]
        if isinstance(value, _Const):
            if value.array.dtype.kind not in "iu" or str(value.array.dtype) != (q.dtype or str(value.array.dtype)):
                raise MalformedError(f"{value.array.dtype} constant with a zero point of type {q.dtype}")
            axis = q.axis + value.array.ndim if q.axis < 0 else q.axis
            if len(q.scales) > 1 and not (axis < value.array.ndim and value.array.shape[axis] == len(q.scales)):
                raise MalformedError(f"{len(q.scales)} scales along axis {q.axis} of {list(value.array.shape)}")
            return _Stored(
                codes=value.array,
                scales=np.array(q.scales),
                zero_points=np.array(q.zero_points, np.int64),
                axis=axis,
                dtype=str(value.array.dtype),
            )
        if isinstance(value, _Lost):
            return value
        if not isinstance(value, _Codes):
            raise MalformedError("dequantises a tensor that is not quantised")
        cell, wanted = self._cell_of(value), _cell(q.scale, q.zero_point - (128 if value.unsigned else 0))
        if (q.dtype == "uint8") != value.unsigned:
            raise MalformedError(f"zero point of type {q.dtype} for a tensor of another type")
        if cell.scale is None:
            cell.scale, cell.zero_point = wanted.scale, wanted.zero_point
        if not cell.same(wanted):
            raise _RefusedError("one meaning", f"{name} read with scale {wanted.scale}, zero point {q.zero_point}")
        return self._dequantise_codes(value)

    def _dequantise_codes(self, value: _Codes) -> _Real:
        return _Real(tensor=value.tensor, view=value.view)

    def _reals(self, value: _Real) -> Float64:
        """Real value of each of the 256 codes."""
        if value.table is not None:
            return value.table
        cell = self._cell_of(value)
        return (_CODES - cell.zero_point) * cell.known

    def _requantised(self, value: _Real, cell: _Cell, layer: str, tensor_name: str) -> int:
        """Tensor of ``value`` under ``cell``: its own if nothing changes, else behind a table."""
        if value.table is None and self._cell_of(value).same(cell):
            return value.tensor
        table = np.clip(np.rint(self._reals(value) / cell.known) + cell.zero_point, -128, 127).astype(np.int8)
        tensor = self._new(tensor_name, self._tensors[value.tensor].shape, cell)
        self._ops.append(
            Lut(name=layer, inputs=(value.tensor,), output=tensor, table=table, function=value.function or "requantise")
        )
        return tensor

    def _quantise(self, value: _Value, cell: _Cell, unsigned: bool, name: str) -> _Codes:
        """QuantizeLinear; ``name`` is what the result is called."""
        if isinstance(value, _Real):
            layer = value.layer or name
            return _Codes(tensor=self._requantised(value, cell, layer, name), view=value.view, unsigned=unsigned)
        if isinstance(value, _Pending):
            tensor = self._new(name, value.dims, cell)
            low = -128 if value.low == -math.inf else self._code(value.low, cell)
            high = 127 if value.high == math.inf else self._code(value.high, cell)
            value.emit(_Want(output=tensor, cell=cell, act_min=low, act_max=max(low, high), bias=value.bias))
            return _Codes(tensor=tensor, view=value.view, unsigned=unsigned)
        if isinstance(value, _Outside):
            edge = value.edge
            known = self._entered.get(edge.name)
            if known is not None:
                return replace(
                    known,
                    tensor=self._requantised(self._dequantise_codes(known), cell, name, name),
                    unsigned=unsigned,
                )
            opened = self._open(edge.name, tuple(d or 1 for d in edge.shape or ()), cell, unsigned)
            self._entered[edge.name] = opened
            return opened
        if isinstance(value, _Lost) and value.shape and len(value.shape) in _TEMPLATES:
            template = _TEMPLATES[len(value.shape)][0]
            tensor = self._new(name, _dims_of(value.shape, template), cell)
            return _Codes(tensor=tensor, view=_view_of(value.shape, template), unsigned=unsigned)
        raise MalformedError("quantises something that is not an activation")

    @staticmethod
    def _code(real: float, cell: _Cell) -> int:
        return int(np.clip(np.rint(real / cell.known) + cell.zero_point, -128, 127))

    # ------------------------------------------------ one node

    def _lower(self, node: Node) -> list[_Value] | None:
        """Values of the node's outputs; None after a violation that is noted already."""
        known = self._found.knows(node.op) and node.domain == self._domain(node)
        if not known:
            where = f"{node.domain}." if node.domain else ""
            self._found.add(
                node.name,
                f"{where}{node.op}: operator is not supported",
                REFUSED.get(node.op, OTHERWISE),
            )
            return None
        if not node.inputs or not node.inputs[0]:
            raise MalformedError("no input")
        if node.op in _QUANTISERS:
            return self._lower_quantiser(node)
        if node.op == "QLinearConcat":
            return self._lower_qlinear_concat(node)
        if node.op in _DESUGAR:
            return self._lower_qlinear(node)
        folded = self._fold(node)
        if folded is not None:
            return [folded]
        return self._lower_float(node, node.op, node.inputs)

    @staticmethod
    def _domain(node: Node) -> str:
        if node.op in _DESUGAR:
            return _DESUGAR[node.op][4]
        if node.op == "QLinearConcat" or (node.op in _QUANTISERS and node.domain == MICROSOFT):
            return MICROSOFT
        return ""

    def _facts(self, node: Node, inputs: Sequence[str], outputs: tuple[Operand, ...] | None = None) -> Facts:
        made = tuple(Operand(name=o, shape=(), dtype="float32") for o in node.outputs if o)
        return Facts(
            layer=node.name,
            operator=node.op,
            inputs=tuple(self._operand(i) for i in inputs),
            outputs=made if outputs is None else outputs,
            attributes=node.attributes,
        )

    def _lower_quantiser(self, node: Node) -> list[_Value] | None:
        if len(node.inputs) < 2 or node.integer("block_size", 0):
            raise _RefusedError("blockwise", f"block_size {node.integer('block_size', 0)}")
        value = self._values[node.inputs[0]]
        zero_point = node.inputs[2] if len(node.inputs) > 2 else ""
        signed = isinstance(value, _Const) and value.array.dtype != np.uint8
        q = self._quantisation(
            node.inputs[1],
            zero_point,
            node.integer("axis", 1),
            node.op == "QuantizeLinear" or (isinstance(value, _Codes) and value.unsigned) or not signed,
        )
        if isinstance(value, _Const) and node.op == "DequantizeLinear" and not zero_point:
            q = replace(q, dtype=str(value.array.dtype))
        if isinstance(value, _Codes) and not zero_point:
            q = replace(q, dtype="uint8" if value.unsigned else "int8")
        if not zero_point and node.op == "QuantizeLinear" and node.integer("output_dtype", 0) == 3:
            q = replace(q, dtype="int8")
        constant = isinstance(value, _Const)
        facts = self._facts(node, node.inputs[:1], (q,))
        if constant and node.op == "QuantizeLinear":  # float weights that are quantised in the graph
            facts = replace(facts, operator="DequantizeLinear", inputs=(self._operand(node.inputs[0]),))
        if isinstance(value, _Lost):
            facts = replace(facts, inputs=(Operand(name=node.inputs[0], shape=(), dtype=""),))
        if isinstance(value, _Pending | _Outside | _Lost) and node.op == "DequantizeLinear":
            if isinstance(value, _Lost):
                return [value]
            raise MalformedError("dequantises a tensor that is not quantised")
        if not self._found.apply(facts):
            return None
        if node.op == "DequantizeLinear":
            return [self._dequantise(node.inputs[0], q)]
        if isinstance(value, _Const):
            self._charge(value.array.size)
            return [_Const(array=_quantised_constant(value.array, q))]
        if isinstance(value, _Lost) and value.shape is None:
            return [value]
        unsigned = q.dtype == "uint8"
        cell = _cell(q.scale, q.zero_point - (128 if unsigned else 0))
        return [self._quantise(value, cell, unsigned, node.outputs[0])]

    def _lower_qlinear(self, node: Node) -> list[_Value] | None:
        data, bias, out, base, _ = _DESUGAR[node.op]
        if len(node.inputs) <= out or not node.inputs[out]:
            raise _RefusedError("output scale", "none")
        q = self._quantisation(node.inputs[out], _at(node.inputs, out + 1), 0, True)
        entered = [self._dequantised_input(node, position) for position in data]
        names = [n for n in entered if n is not None]
        if len(names) != len(data):
            return None
        if bias >= 0 and _at(node.inputs, bias):
            names.append(node.inputs[bias])
        return self._requantise_output(node, base, names, q)

    def _dequantised_input(self, node: Node, position: int) -> str | None:
        """Enter the dequantised (tensor, scale, zero point) at ``position`` as a value; None after a violation."""
        name = node.inputs[position]
        axis = 0 if node.op == "QLinearConv" else -1
        if node.op == "QGemm" and node.integer("transB", 0):
            axis = 0
        value = self._values[name]
        unsigned = isinstance(value, _Codes) and value.unsigned
        q = self._quantisation(_at(node.inputs, position + 1), _at(node.inputs, position + 2), axis, unsigned)
        if not _at(node.inputs, position + 2) and isinstance(value, _Const):
            q = replace(q, dtype=str(value.array.dtype))
        if isinstance(value, _Lost):
            return None
        seen = self._operand(name)
        facts = Facts(layer=node.name, operator="DequantizeLinear", inputs=(seen,), outputs=(q,))
        if not self._found.apply(facts):
            return None
        key = f"{node.name}/{position}/{name}/{len(self._values)}"
        self._values[key] = self._dequantise(name, q)
        return key

    def _requantise_output(self, node: Node, base: str, names: Sequence[str], q: Operand) -> list[_Value] | None:
        layer = Facts(layer=node.name, operator="QuantizeLinear", inputs=(), outputs=(q,))
        if not self._found.apply(layer):
            return None
        results = self._lower_float(node, base, names)
        if results is None:
            return None
        unsigned = q.dtype == "uint8"
        cell = _cell(q.scale, q.zero_point - (128 if unsigned else 0))
        return [self._quantise(results[0], cell, unsigned, node.outputs[0])]

    def _lower_qlinear_concat(self, node: Node) -> list[_Value] | None:
        if len(node.inputs) < 5 or (len(node.inputs) - 2) % 3:
            raise MalformedError(f"{len(node.inputs)} inputs")
        q = self._quantisation(node.inputs[0], node.inputs[1], 0, True)
        names = [self._dequantised_input(node, p) for p in range(2, len(node.inputs), 3)]
        given = [n for n in names if n is not None]
        return self._requantise_output(node, "Concat", given, q) if len(given) == len(names) else None

    def _fold(self, node: Node) -> _Value | None:
        """Constants computed from constants: what exporters leave of shape arithmetic and of turned weights."""
        values = [self._values[i] if i else None for i in node.inputs]
        first = values[0]
        if node.op == "Shape" and isinstance(first, _Codes | _Real | _Pending):
            return _Const(array=np.asarray(first.view.shape, np.int64))
        if node.op in ("Identity", "Dropout") and isinstance(first, _Const | _Stored):
            return first
        if not isinstance(first, _Const | _Stored):
            return None
        rest = [v.array for v in values[1:] if isinstance(v, _Const)]
        if node.op == "Transpose":
            ndim = (first.array if isinstance(first, _Const) else first.codes).ndim
            perm = node.integers("perm", range(ndim)[::-1]) or ()
            if isinstance(first, _Const):
                return _Const(array=first.array.transpose(perm))
            axis = perm.index(first.axis) if first.scales.size > 1 else 0
            return replace(first, codes=first.codes.transpose(perm), axis=axis)
        if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            array = first.array if isinstance(first, _Const) else first.codes
            shape = self._new_shape(node, array.shape, [int(v) for v in rest[0].ravel()] if rest else None)
            if isinstance(first, _Const):
                return _Const(array=array.reshape(shape))
            if first.scales.size > 1:
                kept = [d for d, n in enumerate(shape) if n == first.scales.size]
                if len(kept) != 1:
                    raise _RefusedError("weights reshaped", f"{list(array.shape)} to {list(shape)}")
                return replace(first, codes=array.reshape(shape), axis=kept[0])
            return replace(first, codes=array.reshape(shape))
        return None

    def _lower_float(self, node: Node, base: str, inputs: Sequence[str]) -> list[_Value] | None:
        values = [self._values[i] if i else None for i in inputs]
        if any(isinstance(v, _Lost) for v in values):
            return None
        if not self._found.apply(self._facts(node, inputs)):
            return None
        handler: Callable[[Node, list[Any]], _Value] = getattr(self, _HANDLERS[base])
        return [handler(node, values)]

    # ------------------------------------------------ convolution, dense

    def _conv(self, node: Node, values: list[Any]) -> _Value:
        x, w, b = values[0], values[1], _at(values, 2)
        template = NHWC if node.integer("channels_last", 0) else NCHW
        tensor = self._arranged(x, template, node.name)
        h, wd, _ = self._tensors[tensor].shape
        o, _, kh, kw = w.codes.shape
        window = _window(node, (h, wd), (kh, kw))
        codes = self._centred(w).transpose(0, 2, 3, 1)
        return self._linear(
            node, tensor, codes, w.scales, b, (*window.out, o), template, window, node.integer("group", 1)
        )

    def _linear(
        self,
        node: Node,
        tensor: int,
        weights: Int8,
        scales: Float64,
        bias: _Stored | _Const | None,
        dims: Shape3,
        template: Template | None,
        window: _Window | None,
        groups: int = 1,
        view: _View | None = None,
    ) -> _Pending:
        """A pending Conv2D, or FullyConnected where ``window`` is None."""
        o = weights.shape[0]
        if view is None:
            assert template is not None
            shape = [1] * 4
            for axis in (0, 1, 2):
                shape[template[axis][0]] = dims[axis]
            view = _view_of(shape, template)
        in_scale = self._tensors[tensor].cell.known
        steps = in_scale * scales

        def emit(want: _Want) -> None:
            codes, units, factors = _fit_accumulator(weights, self._bias(bias, steps, o, want.bias))
            multipliers = steps * factors / want.cell.known
            _check_multipliers(units, weights[0].size, multipliers)
            shared: dict[str, Any] = {
                "name": node.name,
                "inputs": (tensor,),
                "output": want.output,
                "act_min": want.act_min,
                "act_max": want.act_max,
                "weights": np.ascontiguousarray(codes),
                "bias": units.astype(np.int32),
                "multipliers": multipliers,
            }
            if window is None:
                self._ops.append(FullyConnected(**shared))
                return
            self._ops.append(
                Conv2D(
                    **shared,
                    kernel=window.kernel,
                    stride=window.stride,
                    dilation=window.dilation,
                    pads=window.before,
                    groups=groups,
                )
            )

        return _Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op, channels=o)

    @staticmethod
    def _bias(bias: _Stored | _Const | None, steps: Float64, count: int, extra: Float64 | None) -> Int64:
        """Bias in accumulator units: as stored if its scale is the accumulator's, else rounded to it."""
        units = np.zeros(count)
        if isinstance(bias, _Stored):
            if np.allclose(bias.scales, steps, rtol=1e-5, atol=0) and not bias.zero_points.any():
                units = units + bias.codes.reshape(-1)
            else:
                units = units + np.rint(bias.real.reshape(-1) / steps)
        elif bias is not None:
            stored = bias.array.reshape(-1)
            units = units + (stored if stored.dtype.kind in "iu" else np.rint(stored.astype(np.float64) / steps))
        if extra is not None:
            units = units + np.rint(extra / steps)
        result: Int64 = np.clip(units, -(2.0**60), 2.0**60).astype(np.int64)
        return result

    def _centred(self, w: _Stored) -> Int8:
        """Symmetric weights as int8."""
        self._charge(w.codes.size)
        return w.codes if w.dtype == "int8" else (w.codes ^ 128).view(np.int8)

    def _gemm(self, node: Node, values: list[Any]) -> _Value:
        w: _Stored = values[1]
        turned = bool(node.integer("transB", 0))
        codes = self._centred(w) if turned else self._centred(w).T
        bias = _at(values, 2)
        if bias is not None:
            size = (bias.array if isinstance(bias, _Const) else bias.codes).size
            if size not in (1, codes.shape[0]):
                raise MalformedError(f"bias of {size} for {codes.shape[0]} outputs")
            if size == 1 and codes.shape[0] != 1:
                real = bias.real if isinstance(bias, _Stored) else bias.array
                bias = _Const(array=np.full(codes.shape[0], real.reshape(-1)[0], real.dtype))
        return self._dense(node, values[0], codes, w.scales, bias)

    def _dense(self, node: Node, x: _Real, codes: Int8, scales: Float64, bias: _Stored | _Const | None) -> _Value:
        """``codes`` (N, K) over the last dimension of ``x``."""
        n, shape = codes.shape[0], x.view.shape
        if _prod(shape[:-1]) == 1:
            sizes = [self._tensors[x.tensor].shape[a] for a in x.view.axes[-1]]
            back = np.argsort(x.view.axes[-1], kind="stable")
            weights = codes.reshape(n, *sizes).transpose(0, *(int(i) + 1 for i in back)).reshape(n, -1)
            out = (*shape[:-1], n)
            view = _View(shape=out, axes=(*((),) * (len(shape) - 1), (2,) if n > 1 else ()))
            return self._linear(node, x.tensor, weights, scales, bias, (1, 1, n), None, None, view=view)
        if len(shape) not in (3, 4) or shape[0] != 1:
            raise _RefusedError("dense input", str(list(shape)))
        template = _TEMPLATES[3][0] if len(shape) == 3 else NHWC
        tensor = self._arranged(x, template, node.name)
        h, w, _ = self._tensors[tensor].shape
        one = _Window(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(h, w))
        return self._linear(
            node,
            tensor,
            codes[:, None, None],
            scales,
            bias,
            (h, w, n),
            None,
            one,
            view=_view_of((*shape[:-1], n), template),
        )

    def _per_channel(self, node: Node, x: _Real, factor: Float64, offset: Float64) -> _Value:
        """factor[c] * x + offset[c] as a depthwise 1x1 convolution: exact up to its one rounding."""
        templates = _TEMPLATES.get(len(x.view.shape), ())
        if all(self._arrange(x, t, node.name, copy=False) is None for t in templates):
            raise _RefusedError("channel constant", f"operand {list(x.view.shape)} transposed in memory")
        dims = self._tensors[x.tensor].shape
        magnitude = np.where(factor == 0, 1.0, np.abs(factor))
        weights = (127 * np.sign(factor)).astype(np.int8).reshape(-1, 1, 1, 1)
        one = _Window(
            kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(dims[0], dims[1])
        )
        return self._linear(
            node, x.tensor, weights, magnitude / 127, _Const(array=offset), dims, None, one, dims[2], view=x.view
        )

    def _batch_normalization(self, node: Node, values: list[Any]) -> _Value:
        gamma, beta, mean, variance = (_real_constant(v).reshape(-1) for v in values[1:5])
        x: _Real = values[0]
        channels = x.view.shape[1] if len(x.view.shape) > 1 else 0
        if any(p.size != channels for p in (gamma, beta, mean, variance)):
            raise MalformedError("parameters do not have one value per channel")
        factor = gamma / np.sqrt(np.maximum(variance, 0) + node.number("epsilon", 1e-5))
        return self._scaled(node, x, 1, factor, beta - mean * factor)

    def _scaled(self, node: Node, x: _Real, dim: int, factor: Float64, offset: Float64) -> _Value:
        if x.view.shape[dim] != 1 and x.view.axes[dim] != (2,):
            raise _RefusedError("channel constant", "one along another dimension")
        return self._per_channel(node, x, factor, offset)

    # ------------------------------------------------ elementwise

    def _binary(self, node: Node, values: list[Any]) -> _Value:
        base = _DESUGAR[node.op][3] if node.op in _DESUGAR else node.op
        a, b = values
        constants = [isinstance(v, _Const | _Stored) for v in (a, b)]
        if all(constants):
            raise _RefusedError("one computed", "two constants")
        if any(constants):
            x, c, swapped = (b, a, True) if constants[0] else (a, b, False)
            return self._with_constant(node, base, x, c, swapped)
        for v in (a, b):
            if not isinstance(v, _Real):
                raise self._unquantised(v)
        same = a.tensor == b.tensor and a.view == b.view
        if same:
            table = _apply(base, self._reals(a), self._reals(b))
            return _as_value(replace(a, table=table, function=base.lower(), layer=node.name))
        for v in (a, b):
            if v.table is not None:
                raise self._unquantised(v)
        if base == "Div":
            raise _RefusedError("divisor", "a computed one")
        rank = max(len(a.view.shape), len(b.view.shape))
        a, b = (replace(v, view=_raised(v.view, rank)) for v in (a, b))
        if a.view.axes == b.view.axes and a.view.shape == b.view.shape:
            return self._two(node, base, (a.tensor, b.tensor), self._tensors[a.tensor].shape, a.view)
        shape = np.broadcast_shapes(a.view.shape, b.view.shape)
        for copy in (False, True):
            for template in _TEMPLATES.get(rank, ()):
                made = [self._arrangeable(v, template, copy) for v in (a, b)]
                if all(made) and shape[0] == 1:
                    pair = tuple(self._arranged(v, template, node.name) for v in (a, b))
                    dims, view = _dims_of(shape, template), _view_of(shape, template)
                    return self._two(node, base, (pair[0], pair[1]), dims, view)
        raise _RefusedError("layout", f"{list(a.view.shape)} and {list(b.view.shape)} in different orders")

    def _arrangeable(self, value: _Real | _Codes, template: Template, copy: bool) -> bool:
        atoms = [a for dims in template for d in dims for a in value.view.axes[d]]
        if atoms != sorted(atoms) or _prod(_dims_of(value.view.shape, template)) != _prod(value.view.shape):
            return False
        return copy or self._tensors[value.tensor].shape == _dims_of(value.view.shape, template)

    def _two(self, node: Node, base: str, inputs: tuple[int, int], dims: Shape3, view: _View) -> _Value:
        kinds: dict[str, Literal["add", "sub", "mul"]] = {"Add": "add", "Sub": "sub", "Mul": "mul"}
        kind = kinds[base]
        scales = [self._tensors[i].cell.known for i in inputs]

        def emit(want: _Want) -> None:
            if kind == "mul":
                multiplier, bound = scales[0] * scales[1] / want.cell.known, 255.0 * 255
            else:
                multiplier, bound = 2 * max(scales) / (2.0**20 * want.cell.known), 1.0
            if multiplier * bound >= 2.0**30 or (kind != "mul" and multiplier >= 1):
                raise _RefusedError("output scale range", f"{want.cell.known:.3g}")
            self._ops.append(
                Binary(
                    name=node.name,
                    inputs=inputs,
                    output=want.output,
                    kind=kind,
                    act_min=want.act_min,
                    act_max=want.act_max,
                )
            )

        return _Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op)

    def _with_constant(self, node: Node, base: str, x: Any, c: _Const | _Stored, swapped: bool) -> _Value:
        """One operand is constant. A number becomes part of a table, a vector per channel part of a convolution."""
        real = _real_constant(c)
        if base == "Div" and (swapped or not real.all()):
            raise _RefusedError("divisor", "a computed one" if swapped else "0")
        if isinstance(x, _Pending):
            vector = _along_channels(real, x.view)
            if base in ("Add", "Sub") and not swapped and x.channels and vector is not None and not _clamped(x):
                extra = np.broadcast_to(vector if base == "Add" else -vector, (x.channels,))
                return replace(x, bias=extra + (0 if x.bias is None else x.bias))
            raise self._unquantised(x)
        if not isinstance(x, _Real):
            raise self._unquantised(x)
        x = replace(x, view=_raised(x.view, real.ndim))
        if real.size == 1:
            pair = (real.reshape(-1), self._reals(x)) if swapped else (self._reals(x), real.reshape(-1))
            return _as_value(replace(x, table=_apply(base, *pair), function=base.lower(), layer=node.name))
        if x.table is not None:
            raise self._unquantised(x)
        if isinstance(c, _Stored) and c.scales.size == 1 and c.dtype in ("int8", "uint8") and base != "Div":
            return self._with_stored(node, base, x, c, swapped)
        vector = _along_channels(real, x.view)
        if vector is None:
            raise _RefusedError("channel constant", f"float constant of shape {list(real.shape)}")
        dim = next(d for d, axes in enumerate(x.view.axes) if axes == (2,))
        ones = np.ones(x.view.shape[dim])
        full = np.broadcast_to(vector, ones.shape).astype(np.float64)
        if base == "Mul":
            return self._scaled(node, x, dim, full, 0 * ones)
        if base == "Div":
            return self._scaled(node, x, dim, 1 / full, 0 * ones)
        if base == "Add":
            return self._scaled(node, x, dim, ones, full)
        return self._scaled(node, x, dim, -ones if swapped else ones, full if swapped else -full)

    def _with_stored(self, node: Node, base: str, x: _Real, c: _Stored, swapped: bool) -> _Value:
        rank = len(x.view.shape)
        shape = (*(1,) * (rank - c.codes.ndim), *c.codes.shape)
        out = np.broadcast_shapes(shape, x.view.shape)
        for copy in (False, True):
            for template in _TEMPLATES.get(rank, ()):
                if not self._arrangeable(x, template, copy):
                    continue
                tensor = self._arranged(x, template, node.name)
                order = [d for dims in template for d in dims]
                rest = [d for d in range(rank) if d not in order]
                if any(out[d] != 1 for d in rest):
                    continue
                codes = c.codes.astype(np.int64) - (128 if c.dtype == "uint8" else 0)
                data = codes.reshape(shape).transpose(*rest, *order).reshape(_dims_of(shape, template)).astype(np.int8)
                cell = _cell(float(c.scales[0]), int(c.zero_points[0]) - (128 if c.dtype == "uint8" else 0))
                constant = self._new(f"{node.name}/constant", data.shape, cell, np.ascontiguousarray(data))
                pair = (constant, tensor) if swapped else (tensor, constant)
                return self._two(node, base, pair, _dims_of(out, template), _view_of(out, template))
        raise _RefusedError("layout", f"constant {list(shape)} and {list(x.view.shape)} in different orders")

    @staticmethod
    def _unquantised(value: Any) -> _RefusedError:
        if isinstance(value, _Pending):
            what = f"the result of {value.operator} {value.layer}"
        elif isinstance(value, _Real):
            what = f"the result of {value.layer}"
        elif isinstance(value, _Outside):
            what = f"input {value.edge.name}"
        else:
            what = "an operand"
        return _RefusedError("quantised", f"{what}, which is not")

    def _unary(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        if not isinstance(x, _Real):
            raise self._unquantised(x)
        base = _DESUGAR[node.op][3] if node.op in _DESUGAR else node.op
        real = self._reals(x)
        if base == "Sigmoid":
            table = _sigmoid(real)
        elif base == "Tanh":
            table = np.tanh(real)
        elif base == "LeakyRelu":
            table = np.where(real < 0, real * node.number("alpha", 0.01), real)
        elif base == "HardSwish":
            table = real * np.clip(real / 6 + 0.5, 0, 1)
        else:
            table = np.clip(node.number("alpha", 0.2) * real + node.number("beta", 0.5), 0, 1)
        return replace(x, table=table, function=base.lower(), layer=node.name)

    def _clip(self, node: Node, values: list[Any]) -> _Value:
        low, high = -math.inf, math.inf
        if node.op == "Relu":
            low = 0.0
        else:
            for index, bound in ((1, _at(values, 1)), (2, _at(values, 2))):
                if bound is not None:
                    real = _real_constant(bound)
                    if real.size != 1 or np.isnan(real).any():
                        raise MalformedError("a bound is not one number")
                    low, high = (float(real.reshape(-1)[0]), high) if index == 1 else (low, float(real.reshape(-1)[0]))
        x = values[0]
        if isinstance(x, _Pending) and x.clamps:
            return replace(x, low=min(max(x.low, low), high), high=min(max(x.high, low), high))
        if not isinstance(x, _Real):
            raise self._unquantised(x)
        table = np.minimum(np.maximum(self._reals(x), low), high)
        return replace(x, table=table, function=node.op.lower(), layer=node.name)

    # ------------------------------------------------ pooling, reductions

    def _pool_input(self, node: Node, x: Any) -> tuple[int, _Window, Template]:
        template = NHWC if node.integer("channels_last", 0) else NCHW
        tensor = self._arranged(x, template, node.name)
        h, w, _ = self._tensors[tensor].shape
        kernel = node.integers("kernel_shape", None) or ()
        window = _window(node, (h, w), (kernel[0], kernel[1]))
        if any(t == 0 for i in (0, 1) for t in window.taps((h, w), i)):
            raise _RefusedError("empty window", f"pads {list(window.before)} and {list(window.after)}")
        return tensor, window, template

    def _max_pool(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        tensor, window, template = self._pool_input(node, x)
        c = self._tensors[tensor].shape[2]
        out = self._new(node.outputs[0], (*window.out, c), self._tensors[tensor].cell)
        self._ops.append(self._pool(node, "max", tensor, out, window))
        shape = [1] * 4
        for axis, size in enumerate((*window.out, c)):
            shape[template[axis][0]] = size
        return _as_value(replace(x, tensor=out, view=_view_of(shape, template)))

    @staticmethod
    def _pool(
        node: Node,
        kind: Literal["avg", "max"],
        tensor: int,
        out: int,
        window: _Window,
        *,
        count_pad: bool = False,
        act: tuple[int, int] = (-128, 127),
    ) -> Pool:
        return Pool(
            name=node.name,
            inputs=(tensor,),
            output=out,
            kind=kind,
            kernel=window.kernel,
            stride=window.stride,
            dilation=window.dilation,
            pads=window.before,
            count_pad=count_pad,
            act_min=act[0],
            act_max=act[1],
        )

    def _average_pool(self, node: Node, values: list[Any]) -> _Value:
        tensor, window, template = self._pool_input(node, values[0])
        h, w, c = self._tensors[tensor].shape
        clipped = window.clipped((h, w))
        counted = bool(node.integer("count_include_pad", 0)) and clipped
        if counted and window.overruns((h, w)):
            raise _RefusedError("ceil and count", "one that does")
        cell = self._tensors[tensor].cell
        taps = window.kernel[0] * window.kernel[1]
        shape = [1] * 4
        for axis, size in enumerate((*window.out, c)):
            shape[template[axis][0]] = size

        def emit(want: _Want) -> None:
            act = (want.act_min, want.act_max)
            if want.cell.same(cell):
                self._ops.append(self._pool(node, "avg", tensor, want.output, window, count_pad=counted, act=act))
            elif counted or not clipped:  # one divisor: a depthwise convolution rounds once
                self._charge(c * taps)
                self._ops.append(
                    Conv2D(
                        name=node.name,
                        inputs=(tensor,),
                        output=want.output,
                        kernel=window.kernel,
                        stride=window.stride,
                        dilation=window.dilation,
                        pads=window.before,
                        act_min=act[0],
                        act_max=act[1],
                        # Not ones: the larger the accumulator, the less its two-step requantisation rounds twice.
                        weights=np.full((c, *window.kernel, 1), 64, np.int8),
                        bias=np.zeros(c, np.int32),
                        multipliers=np.array([cell.known / (64 * taps * want.cell.known)]),
                        groups=c,
                    )
                )
            elif cell.known >= 2 * want.cell.known:
                raise _RefusedError("uncounted padding", f"{want.cell.known:.4g} and {cell.known:.4g}")
            else:
                middle = self._new(f"{node.outputs[0]}/average", (*window.out, c), cell)
                self._ops.append(self._pool(node, "avg", tensor, middle, window))
                real = (_CODES - cell.zero_point) * cell.known
                table = np.clip(np.rint(real / want.cell.known) + want.cell.zero_point, *act).astype(np.int8)
                self._ops.append(
                    Lut(
                        name=f"{node.name}/requantise",
                        inputs=(middle,),
                        output=want.output,
                        table=table,
                        function="requantise",
                    )
                )

        return _Pending(
            view=_view_of(shape, template), dims=(*window.out, c), emit=emit, layer=node.name, operator=node.op
        )

    def _global_pool(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        rank = len(x.view.shape)
        last = bool(node.integer("channels_last", 0))
        template = (NHWC if last else NCHW) if rank == 4 else _TEMPLATES[3][0 if last else 1]
        spatial = [d for d in range(1, rank) if d not in template[2]]
        kind: Literal["mean", "max"] = "max" if node.op == "GlobalMaxPool" else "mean"
        return self._reduced(node, x, template, spatial, keep=True, kind=kind)

    def _reduce_mean(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        rank = len(x.view.shape)
        given = _at(values, 1)
        axes = [int(v) for v in given.array.ravel()] if given is not None else list(node.integers("axes", ()) or ())
        if not axes:
            if node.integer("noop_with_empty_axes", 0):
                return _as_value(x)
            axes = list(range(rank))
        if any(not -rank <= a < rank for a in axes):
            raise MalformedError(f"axes {axes} of rank {rank}")
        dims = sorted({a % rank for a in axes})
        keep = bool(node.integer("keepdims", 1))
        for template in _TEMPLATES.get(rank, ()):
            moved = [d for d in dims if x.view.shape[d] != 1]
            if all(d in (*template[0], *template[1]) for d in moved) and self._arrangeable(x, template, True):
                return self._reduced(node, x, template, dims, keep=keep, kind="mean")
        raise _RefusedError("mean axes", f"axes {axes} of {list(x.view.shape)}")

    def _reduced(
        self, node: Node, x: Any, template: Template, dims: Sequence[int], *, keep: bool, kind: Literal["mean", "max"]
    ) -> _Value:
        """``dims`` of the view reduced; they lie in height and width of ``template``."""
        tensor = self._arranged(x, template, node.name)
        own, cell = self._tensors[tensor].shape, self._tensors[tensor].cell
        axes = tuple(a for a in (0, 1) if any(d in template[a] for d in dims) and own[a] > 1)
        out: Shape3 = (1 if 0 in axes else own[0], 1 if 1 in axes else own[1], own[2])
        full = _view_of([1 if d in dims else n for d, n in enumerate(x.view.shape)], template)
        kept = [d for d in range(len(full.shape)) if keep or d not in dims]
        view = _View(shape=tuple(full.shape[d] for d in kept), axes=tuple(full.axes[d] for d in kept))
        if not axes:
            return _as_value(replace(x, tensor=tensor, view=view))
        if kind == "max":
            result = self._new(node.outputs[0], out, cell)
            self._ops.append(Reduce(name=node.name, inputs=(tensor,), output=result, axes=axes, kind="max"))
            return _as_value(replace(x, tensor=result, view=view))
        count = _prod([own[a] for a in axes])

        def emit(want: _Want) -> None:
            if cell.known / want.cell.known >= 2.0**15:
                raise _RefusedError("output scale range", f"{want.cell.known:.3g}")
            self._ops.append(
                Reduce(
                    name=node.name,
                    inputs=(tensor,),
                    output=want.output,
                    axes=axes,
                    kind="mean",
                    multiplier=arith.mean_multiplier(cell.known, want.cell.known, count),
                    act_min=want.act_min,
                    act_max=want.act_max,
                )
            )

        return _Pending(view=view, dims=out, emit=emit, layer=node.name, operator=node.op)

    def _softmax(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        rank = len(x.view.shape)
        axis = node.integer("axis", -1)
        if not -rank <= axis < rank:
            raise MalformedError(f"axis {axis} of rank {rank}")
        axis %= rank
        if x.view.shape[0] != 1 or axis == 0:
            raise _RefusedError("softmax axis", f"axis {axis} of {list(x.view.shape)}")
        others = [d for d in range(1, rank) if d != axis]
        template: Template = (tuple(others[:-1]), tuple(others[-1:]), (axis,))
        tensor = self._arranged(x, template, node.name)
        own = self._tensors[tensor]
        cell = own.cell
        natural = _cell(1 / 256, -128)

        def emit(want: _Want) -> None:
            try:
                multiplier, diff_min = arith.softmax_parameters(1.0, cell.known)
            except ValueError as error:
                raise _RefusedError("softmax scale", str(cell.known)) from error
            plain = want.cell.same(natural)
            out = want.output if plain else self._new(f"{node.outputs[0]}/softmax", own.shape, natural)
            self._ops.append(
                Softmax(name=node.name, inputs=(tensor,), output=out, multiplier=multiplier, diff_min=diff_min)
            )
            if not plain:
                real = (_CODES + 128) / 256
                table = np.clip(np.rint(real / want.cell.known) + want.cell.zero_point, -128, 127).astype(np.int8)
                self._ops.append(
                    Lut(
                        name=f"{node.name}/requantise",
                        inputs=(out,),
                        output=want.output,
                        table=table,
                        function="requantise",
                    )
                )

        return _Pending(
            view=_view_of(x.view.shape, template),
            dims=own.shape,
            emit=emit,
            layer=node.name,
            operator=node.op,
            clamps=False,
            natural=(1 / 256, -128),
        )

    # ------------------------------------------------ joining, layout

    def _concat(self, node: Node, values: list[Any]) -> _Value:
        if not all(isinstance(v, _Codes | _Real) for v in values):
            raise self._unquantised(next(v for v in values if not isinstance(v, _Codes | _Real)))
        rank = len(values[0].view.shape)
        axis = node.integer("axis", 1)
        if any(len(v.view.shape) != rank for v in values) or not -rank <= axis < rank:
            raise MalformedError(f"axis {axis} of operands of other ranks")
        axis %= rank
        for v in values:
            if any(v.view.shape[d] != values[0].view.shape[d] for d in range(rank) if d != axis):
                raise MalformedError(f"operands {[list(v.view.shape) for v in values]} along axis {axis}")
        if len(values) == 1:
            return _as_value(values[0])
        shape = list(values[0].view.shape)
        shape[axis] = sum(v.view.shape[axis] for v in values)
        found = None
        for copy in (False, True):
            for template in _TEMPLATES.get(rank, ()):
                if found is None and all(self._arrangeable(v, template, copy) for v in values):
                    found = template
        if found is None or axis not in [d for dims in found for d in dims] or shape[0] != 1:
            raise _RefusedError("layout", f"{[list(v.view.shape) for v in values]} joined along axis {axis}")
        template = found
        place = next(a for a, dims in enumerate(template) if axis in dims)
        parts = [replace(v, tensor=self._arranged(v, template, node.name)) for v in values]
        dims, view = _dims_of(shape, template), _view_of(shape, template)

        def emit(want: _Want) -> None:
            inputs = tuple(
                self._requantised(p, want.cell, f"{node.name}/requantise{i}", f"{node.outputs[0]}/{i}")
                for i, p in enumerate(parts)
            )
            self._ops.append(Concat(name=node.name, inputs=inputs, output=want.output, axis=place))

        if all(isinstance(p, _Codes) for p in parts):
            cell = self._cell_of(parts[0])
            if any(self._cell_of(p) is not cell and not self._cell_of(p).same(cell) for p in parts):
                raise _RefusedError("joined codes", "several")
            out = self._new(node.outputs[0], dims, cell)
            self._ops.append(Concat(name=node.name, inputs=tuple(p.tensor for p in parts), output=out, axis=place))
            return _Codes(tensor=out, view=view, unsigned=parts[0].unsigned)
        if not all(isinstance(p, _Real) for p in parts):
            raise MalformedError("operands of different types")
        return _Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op, clamps=False)

    def _pad(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        if not isinstance(x, _Codes | _Real) or (isinstance(x, _Real) and x.table is not None):
            raise self._unquantised(x)
        rank = len(x.view.shape)
        if not isinstance(_at(values, 1), _Const):
            raise MalformedError("no pads")
        pads = [int(v) for v in values[1].array.ravel()]
        axes = _at(values, 3)
        dims = [int(v) % rank for v in axes.array.ravel()] if axes is not None else list(range(rank))
        if len(pads) != 2 * len(dims):
            raise MalformedError(f"{len(pads)} pads for {len(dims)} axes")
        before, after = [0] * rank, [0] * rank
        for i, d in enumerate(dims):
            before[d], after[d] = pads[i], pads[i + len(dims)]
        if min(pads, default=0) < 0:
            raise _RefusedError("pads", str(pads))
        value = _at(values, 2)
        real = 0.0 if value is None or not _real_constant(value).size else float(_real_constant(value).reshape(-1)[0])
        cell = self._cell_of(x)
        if isinstance(x, _Codes):
            code = int(real) - (128 if x.unsigned else 0)
        else:
            exact = real / cell.known + cell.zero_point
            code = int(np.rint(np.clip(exact, -(2.0**20), 2.0**20)))
            if abs(code - exact) > 1e-3:
                raise _RefusedError("pad value", str(real))
        if not -128 <= code <= 127:
            raise _RefusedError("pad value", str(real))
        for template in _TEMPLATES.get(rank, ()):
            if any((before[d] or after[d]) and d not in (*template[0], *template[1]) for d in range(rank)):
                continue
            if not self._arrangeable(x, template, True):
                continue
            tensor = self._arranged(x, template, node.name)
            shape = [n + before[d] + after[d] for d, n in enumerate(x.view.shape)]
            start = [before[dims_[0]] if dims_ else 0 for dims_ in template[:2]]
            if max(start) > 255:
                raise _RefusedError("pads", str(pads))
            if not any(before) and not any(after):
                return _as_value(x)
            out = self._new(node.outputs[0], _dims_of(shape, template), cell)
            self._ops.append(Pad(name=node.name, inputs=(tensor,), output=out, pads=(start[0], start[1]), value=code))
            return _as_value(replace(x, tensor=out, view=_view_of(shape, template)))
        raise _RefusedError("pads", f"{pads} for {list(x.view.shape)}")

    def _resize(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        shape = x.view.shape
        scales, sizes = _at(values, 2), _at(values, 3)
        axes = node.integers("axes", None)
        dims = list(range(4)) if axes is None else [a % 4 for a in axes]
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise _RefusedError("resize mode", "keep_aspect_ratio_policy")
        factor, out = [1.0] * 4, list(shape)
        if scales is not None and scales.array.size:
            if scales.array.size != len(dims):
                raise MalformedError(f"{scales.array.size} scales")
            for d, s in zip(dims, scales.array.ravel(), strict=True):
                if not 0 < float(s) <= MAX_SIDE:
                    raise MalformedError(f"scale {s}")
                factor[d], out[d] = float(s), math.floor(float(np.float32(s)) * shape[d])
        elif sizes is not None and sizes.array.size == len(dims):
            for d, n in zip(dims, sizes.array.ravel(), strict=True):
                out[d] = int(n)
                factor[d] = float(np.float32(out[d]) / np.float32(shape[d]))
        else:
            raise MalformedError("neither scales nor sizes")
        if out[0] != shape[0] or out[1] != shape[1]:
            raise _RefusedError("resize axes", f"{list(shape)} to {out}")
        _check_dims(out[1:])
        tensor = self._arranged(x, NCHW, node.name)
        mode = node.text("coordinate_transformation_mode", "half_pixel")
        nearest = node.text("nearest_mode", "round_prefer_floor")
        rows, cols = (_nearest_sources(shape[d], out[d], factor[d], mode, nearest) for d in (2, 3))
        view = _view_of(out, NCHW)
        if rows == tuple(range(shape[2])) and cols == tuple(range(shape[3])):
            return _as_value(replace(x, tensor=tensor, view=view))
        made = self._new(node.outputs[0], _dims_of(out, NCHW), self._tensors[tensor].cell)
        whole = (out[2] // shape[2], out[3] // shape[3])
        plain = all(
            out[d] == f * shape[d] and source == tuple(i // f for i in range(out[d])) and 1 <= f <= 255
            for d, f, source in ((2, whole[0], rows), (3, whole[1], cols))
        )
        self._ops.append(
            Resize(
                name=node.name,
                inputs=(tensor,),
                output=made,
                factors=whole if plain else None,
                rows=() if plain else rows,
                cols=() if plain else cols,
            )
        )
        return _as_value(replace(x, tensor=made, view=view))

    @staticmethod
    def _new_shape(node: Node, old: tuple[int, ...], given: list[int] | None) -> tuple[int, ...]:
        """Shape after Reshape, Flatten, Squeeze or Unsqueeze; ``given`` is their second operand."""
        rank = len(old)
        if node.op == "Flatten":
            axis = node.integer("axis", 1)
            if not -rank <= axis <= rank:
                raise MalformedError(f"axis {axis} of rank {rank}")
            axis = axis + rank if axis < 0 else axis
            return _prod(old[:axis]), _prod(old[axis:])
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
        known = _prod([n for n in shape if n != -1])
        if -1 in shape and known > 0:
            shape[shape.index(-1)] = _prod(old) // known
        if _prod(shape) != _prod(old) or any(n < 1 for n in shape):
            raise MalformedError(f"reshapes {list(old)} to {given}")
        return tuple(shape)

    def _reshape(self, node: Node, values: list[Any]) -> _Value:
        x, given = values[0], _at(values, 1)
        if isinstance(x, _Outside):
            raise self._unquantised(x)
        if given is not None and not isinstance(given, _Const):
            raise MalformedError("computed shape")
        wanted = [int(v) for v in given.array.ravel()] if given is not None else None
        shape = self._new_shape(node, x.view.shape, wanted)
        dims = x.dims if isinstance(x, _Pending) else self._tensors[x.tensor].shape
        view = _regroup(x.view, dims, shape)
        if view is not None:
            return _as_value(replace(x, view=view))
        home = _home(shape)
        if isinstance(x, _Pending) or home is None or not _in_memory_order(x.view):
            raise _RefusedError("reshape", f"{list(x.view.shape)} to {list(shape)}")
        tensor = self._new(node.outputs[0], home[0], self._tensors[x.tensor].cell)
        self._ops.append(Reshape(name=node.name, inputs=(x.tensor,), output=tensor))
        return _as_value(replace(x, tensor=tensor, view=home[1]))

    def _transpose(self, node: Node, values: list[Any]) -> _Value:
        x = values[0]
        if isinstance(x, _Outside):
            raise self._unquantised(x)
        rank = len(x.view.shape)
        perm = node.integers("perm", range(rank)[::-1]) or ()
        if sorted(perm) != list(range(rank)):
            raise MalformedError(f"perm {list(perm)} of rank {rank}")
        view = _View(shape=tuple(x.view.shape[p] for p in perm), axes=tuple(x.view.axes[p] for p in perm))
        return _as_value(replace(x, view=view))

    def _pass(self, node: Node, values: list[Any]) -> _Value:
        if isinstance(values[0], _Codes | _Real | _Pending | _Outside | _Const | _Stored):
            return values[0]
        raise MalformedError("no input")

    def _shape(self, node: Node, values: list[Any]) -> _Value:
        raise _RefusedError("shape", "something without one")


_HANDLERS: dict[str, str] = {
    "Conv": "_conv",
    "Gemm": "_gemm",
    "MatMul": "_gemm",
    "BatchNormalization": "_batch_normalization",
    "Add": "_binary",
    "Sub": "_binary",
    "Mul": "_binary",
    "Div": "_binary",
    "Sigmoid": "_unary",
    "Tanh": "_unary",
    "LeakyRelu": "_unary",
    "HardSwish": "_unary",
    "HardSigmoid": "_unary",
    "Relu": "_clip",
    "Clip": "_clip",
    "MaxPool": "_max_pool",
    "AveragePool": "_average_pool",
    "GlobalAveragePool": "_global_pool",
    "GlobalMaxPool": "_global_pool",
    "ReduceMean": "_reduce_mean",
    "Softmax": "_softmax",
    "Concat": "_concat",
    "Pad": "_pad",
    "Resize": "_resize",
    "Reshape": "_reshape",
    "Flatten": "_reshape",
    "Squeeze": "_reshape",
    "Unsqueeze": "_reshape",
    "Transpose": "_transpose",
    "Identity": "_pass",
    "Dropout": "_pass",
    "Shape": "_shape",
}


# ---------------------------------------------------------------- small things


def _fit_accumulator(weights: Int8, bias: Int64) -> tuple[Int8, Int64, Float64]:
    """Weights, bias, and what each channel's step grows by, so that |bias| + taps * 255 * 128 fits 32 bits.

    onnxruntime's quantiser gives channels of tiny weights so small a step that their bias just fits. Such a channel is
    its bias: all taps together are less than taps / 2^16 of it, so a coarser step changes nothing that 8 bits show."""
    room = arith.INT32_MAX - weights[0].size * 255 * 128
    if room <= 0:
        raise _RefusedError("taps", str(weights[0].size))
    over = np.abs(bias) / room
    if over.max() <= 1:
        return weights, bias, np.ones(1)
    shift = np.where(over > 1, np.ceil(np.log2(np.maximum(over, 1)) + 1e-9), 0)
    factors = np.exp2(shift)
    spread = factors.reshape(-1, *(1,) * (weights.ndim - 1))
    return np.rint(weights / spread).astype(np.int8), np.rint(bias / factors).astype(np.int64), factors


def _check_multipliers(bias: Int64, taps: int, multipliers: Float64) -> None:
    """A left shift must not push an accumulator out of 32 bits."""
    bound = arith.accumulator_bound(bias, taps)
    largest = float(multipliers.max())
    if not largest < 1.0 and bound * 2.0 ** (math.floor(math.log2(largest)) + 1) > arith.INT32_MAX:
        raise _RefusedError("output scale range", f"{largest:.3g} times the accumulator's step")


def _cell(scale: float, zero_point: int) -> _Cell:
    return _Cell(scale=scale, zero_point=zero_point)


def _at(values: Sequence[Any], index: int) -> Any:
    """Optional operand: None or '' where it is absent."""
    return values[index] if index < len(values) else None


def _as_value(value: Any) -> _Value:
    assert isinstance(value, _Const | _Stored | _Codes | _Real | _Pending | _Outside | _Lost)
    return value


def _clamped(value: _Pending) -> bool:
    return value.low != -math.inf or value.high != math.inf


def _raised(view: _View, rank: int) -> _View:
    """With leading dimensions of 1, as broadcasting adds them."""
    more = max(0, rank - len(view.shape))
    return _View(shape=(1,) * more + view.shape, axes=((),) * more + view.axes)


def _real_constant(value: Any) -> Float64:
    if isinstance(value, _Stored):
        return value.real
    if isinstance(value, _Const):
        return value.array.astype(np.float64)
    raise MalformedError("not a constant")


def _along_channels(real: Float64, view: _View) -> Float64 | None:
    """``real`` as a vector over the channels of ``view``, a single number as one; None if it is neither."""
    if real.size == 1:
        return real.reshape(1)
    wide = [d for d, n in enumerate(real.shape) if n != 1]
    dim = wide[0] + len(view.shape) - real.ndim
    if len(wide) != 1 or dim < 0 or view.axes[dim] != (2,) or view.shape[dim] != real.size:
        return None
    return real.reshape(-1)


def _apply(base: str, a: Float64, b: Float64) -> Float64:
    if base == "Add":
        return a + b
    if base == "Sub":
        return a - b
    return a * b if base == "Mul" else a / b


def _quantised_constant(array: Array, q: Operand) -> Array:
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
