# SPDX-License-Identifier: Apache-2.0
"""ONNX to the graph: QDQ and QOperator forms, NCHW to NHWC.

Both forms become one: a QLinear operator is read as DequantizeLinear, the float operator, QuantizeLinear. A float
operator between those is *pending* until QuantizeLinear says how its result is quantised. Layout is never data
movement: a ``View`` says which memory axes (height, width, channels) each ONNX dimension is made of, so Transpose and
Flatten change views only, and what reads a view in another order than memory's permutes its weights, or is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from planner_service import arith
from planner_service.errors import Code, PlannerError
from planner_service.importers.onnx_lower import QUANTISED_FORM, Lowering, float_operator
from planner_service.importers.onnx_read import MalformedError, Node, read_model
from planner_service.importers.onnx_rules import MAX_SIDE, RULES
from planner_service.importers.onnx_values import (
    CODES,
    NCHW,
    NHWC,
    TEMPLATES,
    Codes,
    Const,
    Float64,
    Int64,
    Outside,
    Pending,
    Real,
    RefusedError,
    Shape3,
    Stored,
    Template,
    Value,
    View,
    Want,
    Window,
    along_channels,
    apply_binary,
    as_value,
    at,
    check_dims,
    check_multipliers,
    clamped,
    dims_of,
    fit_accumulator,
    home_of,
    in_memory_order,
    nearest_sources,
    new_cell,
    new_shape,
    prod,
    raised,
    real_constant,
    regroup,
    view_of,
    window_of,
)
from planner_service.importers.rules import Collector
from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Int8,
    Lut,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
)

__all__ = ["RULES", "import_onnx"]

# ---------------------------------------------------------------- entry


def import_onnx(data: bytes, *, name: str) -> Graph:
    """Read an ONNX model. PlannerError: TOO_LARGE, BAD_MODEL, FLOAT_MODEL (the hint is the command that quantises), or
    UNSUPPORTED with everything that is in the way."""
    source = read_model(data)
    collector = Collector(RULES)
    for v in source.violations:
        collector.add(v.layer, v.message, v.hint)
    if not any(n.op in QUANTISED_FORM for n in source.nodes):
        raise PlannerError(
            Code.FLOAT_MODEL,
            f"{name} is a float model: Weft runs int8 models",
            hint="weft quantize model.onnx --calibration data.npz",
            violations=collector.found,
        )
    lowering = _Operators(source, collector)
    lowering.run()
    collector.finish(name)
    graph = lowering.graph(name)
    graph.check()
    return graph


# ---------------------------------------------------------------- operators


def _sigmoid(x: Float64) -> Float64:
    with np.errstate(over="ignore"):
        result: Float64 = 1.0 / (1.0 + np.exp(-x))
    return result


class _Operators(Lowering):
    """What each float operator becomes."""

    handlers: ClassVar[Mapping[str, str]] = {
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

    # ------------------------------------------------ convolution, dense

    def _conv(self, node: Node, values: list[Any]) -> Value:
        x, w, b = values[0], values[1], at(values, 2)
        template = NHWC if node.integer("channels_last", 0) else NCHW
        tensor = self._arranged(x, template, node.name)
        h, wd, _ = self._tensors[tensor].shape
        o, _, kh, kw = w.codes.shape
        window = window_of(node, (h, wd), (kh, kw))
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
        bias: Stored | Const | None,
        dims: Shape3,
        template: Template | None,
        window: Window | None,
        groups: int = 1,
        view: View | None = None,
    ) -> Pending:
        """A pending Conv2D, or FullyConnected where ``window`` is None."""
        o = weights.shape[0]
        if view is None:
            assert template is not None
            shape = [1] * 4
            for axis in (0, 1, 2):
                shape[template[axis][0]] = dims[axis]
            view = view_of(shape, template)
        in_scale = self._tensors[tensor].cell.known
        steps = in_scale * scales

        def emit(want: Want) -> None:
            codes, units, factors = fit_accumulator(weights, self._bias(bias, steps, o, want.bias))
            multipliers = steps * factors / want.cell.known
            check_multipliers(units, weights[0].size, multipliers)
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

        return Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op, channels=o)

    @staticmethod
    def _bias(bias: Stored | Const | None, steps: Float64, count: int, extra: Float64 | None) -> Int64:
        """Bias in accumulator units: as stored if its scale is the accumulator's, else rounded to it."""
        units = np.zeros(count)
        if isinstance(bias, Stored):
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

    def _centred(self, w: Stored) -> Int8:
        """Symmetric weights as int8."""
        self._charge(w.codes.size)
        return w.codes if w.dtype == "int8" else (w.codes ^ 128).view(np.int8)

    def _gemm(self, node: Node, values: list[Any]) -> Value:
        w: Stored = values[1]
        turned = bool(node.integer("transB", 0))
        codes = self._centred(w) if turned else self._centred(w).T
        bias = at(values, 2)
        if bias is not None:
            size = (bias.array if isinstance(bias, Const) else bias.codes).size
            if size not in (1, codes.shape[0]):
                raise MalformedError(f"bias of {size} for {codes.shape[0]} outputs")
            if size == 1 and codes.shape[0] != 1:
                real = bias.real if isinstance(bias, Stored) else bias.array
                bias = Const(array=np.full(codes.shape[0], real.reshape(-1)[0], real.dtype))
        return self._dense(node, values[0], codes, w.scales, bias)

    def _dense(self, node: Node, x: Real, codes: Int8, scales: Float64, bias: Stored | Const | None) -> Value:
        """``codes`` (N, K) over the last dimension of ``x``."""
        n, shape = codes.shape[0], x.view.shape
        if prod(shape[:-1]) == 1:
            sizes = [self._tensors[x.tensor].shape[a] for a in x.view.axes[-1]]
            back = np.argsort(x.view.axes[-1], kind="stable")
            weights = codes.reshape(n, *sizes).transpose(0, *(int(i) + 1 for i in back)).reshape(n, -1)
            out = (*shape[:-1], n)
            view = View(shape=out, axes=(*((),) * (len(shape) - 1), (2,) if n > 1 else ()))
            return self._linear(node, x.tensor, weights, scales, bias, (1, 1, n), None, None, view=view)
        h, w, c = self._tensors[x.tensor].shape
        if c != shape[-1] or x.view.axes[-1] not in ((), (2,)):
            raise RefusedError("dense input", str(list(shape)))
        # A matrix at every position: a 1x1 convolution, whatever the other dimensions are called.
        one = Window(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(h, w))
        view = View(shape=(*shape[:-1], n), axes=(*x.view.axes[:-1], (2,) if n > 1 else ()))
        return self._linear(node, x.tensor, codes[:, None, None], scales, bias, (h, w, n), None, one, view=view)

    def _per_channel(self, node: Node, x: Real, factor: Float64, offset: Float64) -> Value:
        """factor[c] * x + offset[c] as a depthwise 1x1 convolution: exact up to its one rounding."""
        templates = TEMPLATES.get(len(x.view.shape), ())
        if all(self._arrange(x, t, node.name, copy=False) is None for t in templates):
            raise RefusedError("channel constant", f"operand {list(x.view.shape)} transposed in memory")
        dims = self._tensors[x.tensor].shape
        magnitude = np.where(factor == 0, 1.0, np.abs(factor))
        weights = (127 * np.sign(factor)).astype(np.int8).reshape(-1, 1, 1, 1)
        one = Window(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(dims[0], dims[1]))
        return self._linear(
            node, x.tensor, weights, magnitude / 127, Const(array=offset), dims, None, one, dims[2], view=x.view
        )

    def _batch_normalization(self, node: Node, values: list[Any]) -> Value:
        gamma, beta, mean, variance = (real_constant(v).reshape(-1) for v in values[1:5])
        x: Real = values[0]
        channels = x.view.shape[1] if len(x.view.shape) > 1 else 0
        if any(p.size != channels for p in (gamma, beta, mean, variance)):
            raise MalformedError("parameters do not have one value per channel")
        factor = gamma / np.sqrt(np.maximum(variance, 0) + node.number("epsilon", 1e-5))
        return self._scaled(node, x, 1, factor, beta - mean * factor)

    def _scaled(self, node: Node, x: Real, dim: int, factor: Float64, offset: Float64) -> Value:
        if x.view.shape[dim] != 1 and x.view.axes[dim] != (2,):
            raise RefusedError("channel constant", "one along another dimension")
        return self._per_channel(node, x, factor, offset)

    # ------------------------------------------------ elementwise

    def _binary(self, node: Node, values: list[Any]) -> Value:
        base = float_operator(node)
        a, b = values
        constants = [isinstance(v, Const | Stored) for v in (a, b)]
        if all(constants):
            raise RefusedError("one computed", "two constants")
        if any(constants):
            x, c, swapped = (b, a, True) if constants[0] else (a, b, False)
            return self._with_constant(node, base, x, c, swapped)
        for v in (a, b):
            if not isinstance(v, Real):
                raise self._unquantised(v)
        same = a.tensor == b.tensor and a.view == b.view
        if same:
            table = apply_binary(base, self._reals(a), self._reals(b))
            return as_value(replace(a, table=table, function=base.lower(), layer=node.name))
        for v in (a, b):
            if v.table is not None:
                raise self._unquantised(v)
        if base == "Div":
            raise RefusedError("divisor", "a computed one")
        rank = max(len(a.view.shape), len(b.view.shape))
        a, b = (replace(v, view=raised(v.view, rank)) for v in (a, b))
        if a.view.axes == b.view.axes and a.view.shape == b.view.shape:
            return self._two(node, base, (a.tensor, b.tensor), self._tensors[a.tensor].shape, a.view)
        shape = np.broadcast_shapes(a.view.shape, b.view.shape)
        for copy in (False, True):
            for template in TEMPLATES.get(rank, ()):
                made = [self._arrangeable(v, template, copy) for v in (a, b)]
                if all(made) and shape[0] == 1:
                    pair = tuple(self._arranged(v, template, node.name) for v in (a, b))
                    dims, view = dims_of(shape, template), view_of(shape, template)
                    return self._two(node, base, (pair[0], pair[1]), dims, view)
        raise RefusedError("layout", f"{list(a.view.shape)} and {list(b.view.shape)} in different orders")

    def _arrangeable(self, value: Real | Codes, template: Template, copy: bool) -> bool:
        atoms = [a for dims in template for d in dims for a in value.view.axes[d]]
        if atoms != sorted(atoms) or prod(dims_of(value.view.shape, template)) != prod(value.view.shape):
            return False
        return copy or self._tensors[value.tensor].shape == dims_of(value.view.shape, template)

    def _two(self, node: Node, base: str, inputs: tuple[int, int], dims: Shape3, view: View) -> Value:
        kinds: dict[str, Literal["add", "sub", "mul"]] = {"Add": "add", "Sub": "sub", "Mul": "mul"}
        kind = kinds[base]
        scales = [self._tensors[i].cell.known for i in inputs]

        def emit(want: Want) -> None:
            if kind == "mul":
                multiplier, bound = scales[0] * scales[1] / want.cell.known, 255.0 * 255
            else:
                multiplier, bound = 2 * max(scales) / (2.0**20 * want.cell.known), 1.0
            if multiplier * bound >= 2.0**30 or (kind != "mul" and multiplier >= 1):
                raise RefusedError("output scale range", f"{want.cell.known:.3g}")
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

        return Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op)

    def _with_constant(self, node: Node, base: str, x: Any, c: Const | Stored, swapped: bool) -> Value:
        """One operand is constant. A number becomes part of a table, a vector per channel part of a convolution."""
        real = real_constant(c)
        if base == "Div" and (swapped or not real.all()):
            raise RefusedError("divisor", "a computed one" if swapped else "0")
        if isinstance(x, Pending):
            vector = along_channels(real, x.view)
            if base in ("Add", "Sub") and not swapped and x.channels and vector is not None and not clamped(x):
                extra = np.broadcast_to(vector if base == "Add" else -vector, (x.channels,))
                return replace(x, bias=extra + (0 if x.bias is None else x.bias))
            raise self._unquantised(x)
        if not isinstance(x, Real):
            raise self._unquantised(x)
        x = replace(x, view=raised(x.view, real.ndim))
        if real.size == 1:
            pair = (real.reshape(-1), self._reals(x)) if swapped else (self._reals(x), real.reshape(-1))
            return as_value(replace(x, table=apply_binary(base, *pair), function=base.lower(), layer=node.name))
        if x.table is not None:
            raise self._unquantised(x)
        if isinstance(c, Stored) and c.scales.size == 1 and c.dtype in ("int8", "uint8") and base != "Div":
            return self._with_stored(node, base, x, c, swapped)
        vector = along_channels(real, x.view)
        if vector is None:
            raise RefusedError("channel constant", f"float constant of shape {list(real.shape)}")
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

    def _with_stored(self, node: Node, base: str, x: Real, c: Stored, swapped: bool) -> Value:
        rank = len(x.view.shape)
        shape = (*(1,) * (rank - c.codes.ndim), *c.codes.shape)
        out = np.broadcast_shapes(shape, x.view.shape)
        for copy in (False, True):
            for template in TEMPLATES.get(rank, ()):
                if not self._arrangeable(x, template, copy):
                    continue
                tensor = self._arranged(x, template, node.name)
                order = [d for dims in template for d in dims]
                rest = [d for d in range(rank) if d not in order]
                if any(out[d] != 1 for d in rest):
                    continue
                codes = c.codes.astype(np.int64) - (128 if c.dtype == "uint8" else 0)
                data = codes.reshape(shape).transpose(*rest, *order).reshape(dims_of(shape, template)).astype(np.int8)
                cell = new_cell(float(c.scales[0]), int(c.zero_points[0]) - (128 if c.dtype == "uint8" else 0))
                constant = self._new(f"{node.name}/constant", data.shape, cell, np.ascontiguousarray(data))
                pair = (constant, tensor) if swapped else (tensor, constant)
                return self._two(node, base, pair, dims_of(out, template), view_of(out, template))
        raise RefusedError("layout", f"constant {list(shape)} and {list(x.view.shape)} in different orders")

    @staticmethod
    def _unquantised(value: Any) -> RefusedError:
        if isinstance(value, Pending):
            what = f"the result of {value.operator} {value.layer}"
        elif isinstance(value, Real):
            what = f"the result of {value.layer}"
        elif isinstance(value, Outside):
            what = f"input {value.edge.name}"
        else:
            what = "an operand"
        return RefusedError("quantised", f"{what}, which is not")

    def _unary(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        if not isinstance(x, Real):
            raise self._unquantised(x)
        base = float_operator(node)
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

    def _clip(self, node: Node, values: list[Any]) -> Value:
        low, high = -math.inf, math.inf
        if node.op == "Relu":
            low = 0.0
        else:
            for index, bound in ((1, at(values, 1)), (2, at(values, 2))):
                if bound is not None:
                    real = real_constant(bound)
                    if real.size != 1 or np.isnan(real).any():
                        raise MalformedError("a bound is not one number")
                    low, high = (float(real.reshape(-1)[0]), high) if index == 1 else (low, float(real.reshape(-1)[0]))
        x = values[0]
        if isinstance(x, Pending) and x.clamps:
            return replace(x, low=min(max(x.low, low), high), high=min(max(x.high, low), high))
        if not isinstance(x, Real):
            raise self._unquantised(x)
        table = np.minimum(np.maximum(self._reals(x), low), high)
        return replace(x, table=table, function=node.op.lower(), layer=node.name)

    # ------------------------------------------------ pooling, reductions

    def _pool_input(self, node: Node, x: Any) -> tuple[int, Window, Template]:
        template = NHWC if node.integer("channels_last", 0) else NCHW
        tensor = self._arranged(x, template, node.name)
        h, w, _ = self._tensors[tensor].shape
        kernel = node.integers("kernel_shape", None) or ()
        window = window_of(node, (h, w), (kernel[0], kernel[1]))
        if any(t == 0 for i in (0, 1) for t in window.taps((h, w), i)):
            raise RefusedError("empty window", f"pads {list(window.before)} and {list(window.after)}")
        return tensor, window, template

    def _max_pool(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        tensor, window, template = self._pool_input(node, x)
        c = self._tensors[tensor].shape[2]
        out = self._new(node.outputs[0], (*window.out, c), self._tensors[tensor].cell)
        self._ops.append(self._pool(node, "max", tensor, out, window))
        shape = [1] * 4
        for axis, size in enumerate((*window.out, c)):
            shape[template[axis][0]] = size
        return as_value(replace(x, tensor=out, view=view_of(shape, template)))

    @staticmethod
    def _pool(
        node: Node,
        kind: Literal["avg", "max"],
        tensor: int,
        out: int,
        window: Window,
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

    def _average_pool(self, node: Node, values: list[Any]) -> Value:
        tensor, window, template = self._pool_input(node, values[0])
        h, w, c = self._tensors[tensor].shape
        clipped = window.clipped((h, w))
        counted = bool(node.integer("count_include_pad", 0)) and clipped
        if counted and window.overruns((h, w)):
            raise RefusedError("ceil and count", "one that does")
        cell = self._tensors[tensor].cell
        taps = window.kernel[0] * window.kernel[1]
        shape = [1] * 4
        for axis, size in enumerate((*window.out, c)):
            shape[template[axis][0]] = size

        def emit(want: Want) -> None:
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
                raise RefusedError("uncounted padding", f"{want.cell.known:.4g} and {cell.known:.4g}")
            else:
                middle = self._new(f"{node.outputs[0]}/average", (*window.out, c), cell)
                self._ops.append(self._pool(node, "avg", tensor, middle, window))
                real = (CODES - cell.zero_point) * cell.known
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

        return Pending(
            view=view_of(shape, template), dims=(*window.out, c), emit=emit, layer=node.name, operator=node.op
        )

    def _global_pool(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        rank = len(x.view.shape)
        last = bool(node.integer("channels_last", 0))
        template = (NHWC if last else NCHW) if rank == 4 else TEMPLATES[3][0 if last else 1]
        spatial = [d for d in range(1, rank) if d not in template[2]]
        kind: Literal["mean", "max"] = "max" if node.op == "GlobalMaxPool" else "mean"
        return self._reduced(node, x, template, spatial, keep=True, kind=kind)

    def _reduce_mean(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        rank = len(x.view.shape)
        given = at(values, 1)
        axes = [int(v) for v in given.array.ravel()] if given is not None else list(node.integers("axes", ()) or ())
        if not axes:
            if node.integer("noop_with_empty_axes", 0):
                return as_value(x)
            axes = list(range(rank))
        if any(not -rank <= a < rank for a in axes):
            raise MalformedError(f"axes {axes} of rank {rank}")
        dims = sorted({a % rank for a in axes})
        keep = bool(node.integer("keepdims", 1))
        for template in TEMPLATES.get(rank, ()):
            moved = [d for d in dims if x.view.shape[d] != 1]
            if all(d in (*template[0], *template[1]) for d in moved) and self._arrangeable(x, template, True):
                return self._reduced(node, x, template, dims, keep=keep, kind="mean")
        raise RefusedError("mean axes", f"axes {axes} of {list(x.view.shape)}")

    def _reduced(
        self, node: Node, x: Any, template: Template, dims: Sequence[int], *, keep: bool, kind: Literal["mean", "max"]
    ) -> Value:
        """``dims`` of the view reduced; they lie in height and width of ``template``."""
        tensor = self._arranged(x, template, node.name)
        own, cell = self._tensors[tensor].shape, self._tensors[tensor].cell
        axes = tuple(a for a in (0, 1) if any(d in template[a] for d in dims) and own[a] > 1)
        out: Shape3 = (1 if 0 in axes else own[0], 1 if 1 in axes else own[1], own[2])
        full = view_of([1 if d in dims else n for d, n in enumerate(x.view.shape)], template)
        kept = [d for d in range(len(full.shape)) if keep or d not in dims]
        view = View(shape=tuple(full.shape[d] for d in kept), axes=tuple(full.axes[d] for d in kept))
        if not axes:
            return as_value(replace(x, tensor=tensor, view=view))
        if kind == "max":
            result = self._new(node.outputs[0], out, cell)
            self._ops.append(Reduce(name=node.name, inputs=(tensor,), output=result, axes=axes, kind="max"))
            return as_value(replace(x, tensor=result, view=view))
        count = prod([own[a] for a in axes])

        def emit(want: Want) -> None:
            if cell.known / want.cell.known >= 2.0**15:
                raise RefusedError("output scale range", f"{want.cell.known:.3g}")
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

        return Pending(view=view, dims=out, emit=emit, layer=node.name, operator=node.op)

    def _softmax(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        rank = len(x.view.shape)
        axis = node.integer("axis", -1)
        if not -rank <= axis < rank:
            raise MalformedError(f"axis {axis} of rank {rank}")
        axis %= rank
        if x.view.shape[0] != 1 or axis == 0:
            raise RefusedError("softmax axis", f"axis {axis} of {list(x.view.shape)}")
        others = [d for d in range(1, rank) if d != axis]
        template: Template = (tuple(others[:-1]), tuple(others[-1:]), (axis,))
        tensor = self._arranged(x, template, node.name)
        own = self._tensors[tensor]
        cell = own.cell
        natural = new_cell(1 / 256, -128)

        def emit(want: Want) -> None:
            try:
                multiplier = arith.preprocess_softmax_scaling(1.0, cell.known)
            except ValueError as error:
                raise RefusedError("softmax scale", str(cell.known)) from error
            plain = want.cell.same(natural)
            out = want.output if plain else self._new(f"{node.outputs[0]}/softmax", own.shape, natural)
            self._ops.append(Softmax(name=node.name, inputs=(tensor,), output=out, multiplier=multiplier))
            if not plain:
                real = (CODES + 128) / 256
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

        return Pending(
            view=view_of(x.view.shape, template),
            dims=own.shape,
            emit=emit,
            layer=node.name,
            operator=node.op,
            clamps=False,
            natural=(1 / 256, -128),
        )

    # ------------------------------------------------ joining, layout

    def _concat(self, node: Node, values: list[Any]) -> Value:
        if not all(isinstance(v, Codes | Real) for v in values):
            raise self._unquantised(next(v for v in values if not isinstance(v, Codes | Real)))
        rank = len(values[0].view.shape)
        axis = node.integer("axis", 1)
        if any(len(v.view.shape) != rank for v in values) or not -rank <= axis < rank:
            raise MalformedError(f"axis {axis} of operands of other ranks")
        axis %= rank
        for v in values:
            if any(v.view.shape[d] != values[0].view.shape[d] for d in range(rank) if d != axis):
                raise MalformedError(f"operands {[list(v.view.shape) for v in values]} along axis {axis}")
        if len(values) == 1:
            return as_value(values[0])
        shape = list(values[0].view.shape)
        shape[axis] = sum(v.view.shape[axis] for v in values)
        found = None
        for copy in (False, True):
            for template in TEMPLATES.get(rank, ()):
                if found is None and all(self._arrangeable(v, template, copy) for v in values):
                    found = template
        if found is None or axis not in [d for dims in found for d in dims] or shape[0] != 1:
            raise RefusedError("layout", f"{[list(v.view.shape) for v in values]} joined along axis {axis}")
        template = found
        place = next(a for a, dims in enumerate(template) if axis in dims)
        parts = [replace(v, tensor=self._arranged(v, template, node.name)) for v in values]
        dims, view = dims_of(shape, template), view_of(shape, template)

        def emit(want: Want) -> None:
            inputs = tuple(
                self._requantised(p, want.cell, f"{node.name}/requantise{i}", f"{node.outputs[0]}/{i}")
                for i, p in enumerate(parts)
            )
            self._ops.append(Concat(name=node.name, inputs=inputs, output=want.output, axis=place))

        if all(isinstance(p, Codes) for p in parts):
            cell = self._cell_of(parts[0])
            if any(self._cell_of(p) is not cell and not self._cell_of(p).same(cell) for p in parts):
                raise RefusedError("joined codes", "several")
            out = self._new(node.outputs[0], dims, cell)
            self._ops.append(Concat(name=node.name, inputs=tuple(p.tensor for p in parts), output=out, axis=place))
            return Codes(tensor=out, view=view, unsigned=parts[0].unsigned)
        if not all(isinstance(p, Real) for p in parts):
            raise MalformedError("operands of different types")
        return Pending(view=view, dims=dims, emit=emit, layer=node.name, operator=node.op, clamps=False)

    def _pad(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        if not isinstance(x, Codes | Real) or (isinstance(x, Real) and x.table is not None):
            raise self._unquantised(x)
        rank = len(x.view.shape)
        if not isinstance(at(values, 1), Const):
            raise MalformedError("no pads")
        pads = [int(v) for v in values[1].array.ravel()]
        axes = at(values, 3)
        dims = [int(v) % rank for v in axes.array.ravel()] if axes is not None else list(range(rank))
        if len(pads) != 2 * len(dims):
            raise MalformedError(f"{len(pads)} pads for {len(dims)} axes")
        before, after = [0] * rank, [0] * rank
        for i, d in enumerate(dims):
            before[d], after[d] = pads[i], pads[i + len(dims)]
        if min(pads, default=0) < 0:
            raise RefusedError("pads", str(pads))
        value = at(values, 2)
        real = 0.0 if value is None or not real_constant(value).size else float(real_constant(value).reshape(-1)[0])
        cell = self._cell_of(x)
        if isinstance(x, Codes):
            code = int(real) - (128 if x.unsigned else 0)
        else:
            exact = real / cell.known + cell.zero_point
            code = int(np.rint(np.clip(exact, -(2.0**20), 2.0**20)))
            if abs(code - exact) > 1e-3:
                raise RefusedError("pad value", str(real))
        if not -128 <= code <= 127:
            raise RefusedError("pad value", str(real))
        for template in TEMPLATES.get(rank, ()):
            if any((before[d] or after[d]) and d not in (*template[0], *template[1]) for d in range(rank)):
                continue
            if not self._arrangeable(x, template, True):
                continue
            tensor = self._arranged(x, template, node.name)
            shape = [n + before[d] + after[d] for d, n in enumerate(x.view.shape)]
            start = [before[dims_[0]] if dims_ else 0 for dims_ in template[:2]]
            if max(start) > 255:
                raise RefusedError("pads", str(pads))
            if not any(before) and not any(after):
                return as_value(x)
            out = self._new(node.outputs[0], dims_of(shape, template), cell)
            self._ops.append(Pad(name=node.name, inputs=(tensor,), output=out, pads=(start[0], start[1]), value=code))
            return as_value(replace(x, tensor=out, view=view_of(shape, template)))
        raise RefusedError("pads", f"{pads} for {list(x.view.shape)}")

    def _resize(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        shape = x.view.shape
        scales, sizes = at(values, 2), at(values, 3)
        axes = node.integers("axes", None)
        dims = list(range(4)) if axes is None else [a % 4 for a in axes]
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise RefusedError("resize mode", "keep_aspect_ratio_policy")
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
            raise RefusedError("resize axes", f"{list(shape)} to {out}")
        check_dims(out[1:])
        tensor = self._arranged(x, NCHW, node.name)
        mode = node.text("coordinate_transformation_mode", "half_pixel")
        nearest = node.text("nearest_mode", "round_prefer_floor")
        rows, cols = (nearest_sources(shape[d], out[d], factor[d], mode, nearest) for d in (2, 3))
        view = view_of(out, NCHW)
        if rows == tuple(range(shape[2])) and cols == tuple(range(shape[3])):
            return as_value(replace(x, tensor=tensor, view=view))
        made = self._new(node.outputs[0], dims_of(out, NCHW), self._tensors[tensor].cell)
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
        return as_value(replace(x, tensor=made, view=view))

    def _reshape(self, node: Node, values: list[Any]) -> Value:
        x, given = values[0], at(values, 1)
        if isinstance(x, Outside):
            raise self._unquantised(x)
        if given is not None and not isinstance(given, Const):
            raise MalformedError("computed shape")
        wanted = [int(v) for v in given.array.ravel()] if given is not None else None
        shape = new_shape(node, x.view.shape, wanted)
        dims = x.dims if isinstance(x, Pending) else self._tensors[x.tensor].shape
        view = regroup(x.view, dims, shape)
        if view is not None:
            return as_value(replace(x, view=view))
        home = home_of(shape)
        if isinstance(x, Pending) or home is None or not in_memory_order(x.view):
            raise RefusedError("reshape", f"{list(x.view.shape)} to {list(shape)}")
        tensor = self._new(node.outputs[0], home[0], self._tensors[x.tensor].cell)
        self._ops.append(Reshape(name=node.name, inputs=(x.tensor,), output=tensor))
        return as_value(replace(x, tensor=tensor, view=home[1]))

    def _transpose(self, node: Node, values: list[Any]) -> Value:
        x = values[0]
        if isinstance(x, Outside):
            raise self._unquantised(x)
        rank = len(x.view.shape)
        perm = node.integers("perm", range(rank)[::-1]) or ()
        if sorted(perm) != list(range(rank)):
            raise MalformedError(f"perm {list(perm)} of rank {rank}")
        view = View(shape=tuple(x.view.shape[p] for p in perm), axes=tuple(x.view.axes[p] for p in perm))
        return as_value(replace(x, view=view))

    def _pass(self, node: Node, values: list[Any]) -> Value:
        if isinstance(values[0], Codes | Real | Pending | Outside | Const | Stored):
            return values[0]
        raise MalformedError("no input")

    def _shape(self, node: Node, values: list[Any]) -> Value:
        raise RefusedError("shape", "something without one")
