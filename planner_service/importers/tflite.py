# SPDX-License-Identifier: Apache-2.0
"""TFLite models to ``ir.Graph``: rules first (``tflite_rules``), then one conversion per operator.

Source tensors become ``_Value``s: a graph tensor, the order in which the source's axes run over it, and the source's
shape. RESHAPE, SQUEEZE, EXPAND_DIMS and TRANSPOSE only change the value; a copy (``ir.Reshape``) appears where an
operator needs the other shape, and a transposition that no operator can absorb is reported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner_service import arith
from planner_service.errors import Code, PlannerError
from planner_service.format import DType
from planner_service.importers import tflite_rules
from planner_service.importers.rules import Collector, Facts, Operand
from planner_service.importers.tflite_file import SourceModel, SourceOperator, bad, read_model
from planner_service.importers.tflite_rules import RULES, pool_padding
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
)

__all__ = ["RULES", "import_tflite"]

_DTYPES = {"int8": DType.INT8, "uint8": DType.UINT8, "float32": DType.FLOAT32}
Shape3 = tuple[int, int, int]
Axes = tuple[int | None, ...]


def import_tflite(data: bytes, *, name: str) -> Graph:
    """Read a .tflite file. PlannerError: BAD_MODEL, TOO_LARGE, FLOAT_MODEL, UNSUPPORTED (all violations together)."""
    return _Importer(read_model(data), name).run()


class _LayoutError(Exception):
    """A layout that the operator cannot work on; the message goes to the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A source tensor: ``shape`` is the source's; its elements in row-major order run over ``tensor``'s axes longer
    than 1 in ``order``."""

    name: str
    tensor: int
    order: tuple[int, ...]
    shape: tuple[int, ...]


def _default_axes(shape: Sequence[int]) -> Axes:
    """Graph axis (0 H, 1 W, 2 C) of each source axis: the batch has none, trailing axes are W and C."""
    rank = len(shape)
    if rank == 4:
        return (None, 0, 1, 2)
    if rank == 3:
        return (None, 1, 2) if shape[0] == 1 else (0, 1, 2)
    if rank == 2:
        return (None, 2) if shape[0] == 1 else (1, 2)
    return (2,) * rank


def _graph_shape(shape: Sequence[int], axes: Axes) -> Shape3:
    dims = [1, 1, 1]
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None:
            dims[axis] = size
    return dims[0], dims[1], dims[2]


def _order(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    return tuple(a for size, a in zip(shape, axes, strict=True) if a is not None and size != 1)


class _Importer:
    def __init__(self, model: SourceModel, name: str) -> None:
        self._model = model
        self._name = name
        self._collector = Collector(RULES)
        self._tensors: list[Tensor] = []
        self._ops: list[Op] = []
        #: Source tensor to value; None where an unsupported operator made it.
        self._values: dict[int, _Value | None] = {}
        self._copies: dict[tuple[int, Shape3], int] = {}
        self._inputs: list[Io] = []
        #: Float network inputs, and float tensors made by DEQUANTIZE with the int8 source tensor.
        self._float_inputs: dict[int, str] = {}
        self._dequantized: dict[int, int] = {}
        self._convert: dict[str, Callable[[Facts, SourceOperator], None]] = {
            "CONV_2D": self._conv,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._fully_connected,
            "ADD": self._binary,
            "SUB": self._binary,
            "MUL": self._binary,
            "CONCATENATION": self._concat,
            "PAD": self._pad,
            "PADV2": self._pad,
            "AVERAGE_POOL_2D": self._pool,
            "MAX_POOL_2D": self._pool,
            "MEAN": self._reduce,
            "REDUCE_MAX": self._reduce,
            "SOFTMAX": self._softmax,
            "RESHAPE": self._view,
            "SQUEEZE": self._view,
            "EXPAND_DIMS": self._view,
            "TRANSPOSE": self._transpose,
            "RESIZE_NEAREST_NEIGHBOR": self._resize,
            **dict.fromkeys(tflite_rules.TABLES, self._lut),
        }

    # ------------------------------------------------------------ the walk

    def run(self) -> Graph:
        model = self._model
        self._refuse_float()
        for refused in model.refused:
            self._collector.add(refused.layer, refused.message, refused.hint)
        for source in dict.fromkeys(model.inputs):
            self._network_input(source)
        for operator in model.operators:
            self._operator(operator)
        outputs = [self._network_output(source) for source in model.outputs]
        self._collector.finish(self._name)
        return Graph(
            name=self._name,
            tensors=tuple(self._tensors),
            ops=tuple(self._ops),
            inputs=tuple(self._inputs),
            outputs=tuple(io for io in outputs if io is not None),
            source="tflite",
        )

    def _refuse_float(self) -> None:
        """FLOAT_MODEL if every operator that computes does so in float."""
        kinds = [o for o in self._model.operators if o.kind not in ("QUANTIZE", "DEQUANTIZE")]
        if kinds and all(self._model.tensors[o.outputs[0]].dtype == "float32" for o in kinds):
            raise PlannerError(
                Code.FLOAT_MODEL,
                f"{self._name}: the model computes in float32",
                hint="convert it again with full integer quantisation: optimizations = [tf.lite.Optimize.DEFAULT], "
                "a representative_dataset, and target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]",
            )

    def _operand(self, source: int) -> Operand:
        t = self._model.tensors[source]
        return Operand(
            name=t.name,
            shape=t.shape,
            dtype=t.dtype,
            scales=tuple(float(s) for s in t.scales),
            zero_points=tuple(int(z) for z in t.zero_points),
            axis=t.axis,
            data=t.data,
        )

    def _facts(self, operator: SourceOperator) -> Facts:
        return Facts(
            layer=self._model.tensors[operator.outputs[0]].name,
            operator=operator.kind,
            inputs=tuple(None if i < 0 else self._operand(i) for i in operator.inputs),
            outputs=tuple(self._operand(o) for o in operator.outputs),
            attributes=operator.options,
        )

    def _operator(self, operator: SourceOperator) -> None:
        facts = self._facts(operator)
        for i in operator.inputs:
            known = i < 0 or self._model.tensors[i].data is not None or i in self._values
            if not known and i not in self._float_inputs and i not in self._dequantized:
                raise bad(
                    f"reads {self._model.tensors[i].name} before it is produced: a cycle, or out of order", facts.layer
                )
        for o in operator.outputs:
            if o in self._values or o in self._dequantized or o in self._model.inputs:
                raise bad("is produced twice", self._model.tensors[o].name)
            if self._model.tensors[o].data is not None:
                raise bad("is constant and produced", self._model.tensors[o].name)
        if self._edge(facts, operator):
            return
        self._values.update(dict.fromkeys(operator.outputs))
        if not self._collector.knows(operator.kind):
            self._collector.add(
                facts.layer,
                f"{operator.kind}: Weft has no such operator",
                "replace it by supported ones; `weft ops` lists them",
            )
            return
        if not self._collector.apply(facts):
            return
        if any(i in self._values and self._values[i] is None for i in operator.inputs):
            return
        try:
            self._convert[operator.kind](facts, operator)
        except _LayoutError as e:
            self._collector.add(facts.layer, f"{operator.kind}: {e}", "export the model in channels-last layout")

    # ------------------------------------------------------------ the model's edge

    def _network_input(self, source: int) -> None:
        operand = self._operand(source)
        if operand.data is not None:
            raise bad("a network input is constant", operand.name)
        if operand.dtype == "float32":
            self._float_inputs[source] = operand.name
            return
        problem = tflite_rules.activation(operand)
        if problem is not True:
            self._values[source] = None
            self._collector.add(
                operand.name, f"network input: {tflite_rules.ACTIVATION_TEXT}, found {problem}", "quantise to int8"
            )
            return
        self._values[source] = self._produce(operand)
        self._add_input(source, operand.name, _DTYPES[operand.dtype])

    def _add_input(self, source: int, name: str, dtype: DType) -> None:
        value = self._values[source]
        assert value is not None
        self._inputs.append(Io(tensor=value.tensor, name=name, dtype=dtype))

    def _edge(self, facts: Facts, operator: SourceOperator) -> bool:
        """QUANTIZE of a float network input and DEQUANTIZE of a network output are part of the io description."""
        source, output = operator.inputs[0] if operator.inputs else -1, operator.outputs[0]
        if operator.kind == "QUANTIZE" and source in self._float_inputs:
            problem = tflite_rules.activation(facts.output)
            if problem is not True or len(operator.outputs) != 1 or facts.output.shape != facts.input(0).shape:
                self._values[output] = None
                self._collector.add(
                    facts.layer, f"QUANTIZE: {tflite_rules.ACTIVATION_TEXT}, found {problem}", "quantise to int8"
                )
                return True
            name = self._float_inputs[source]
            other = next((io for io in self._inputs if io.name == name and io.dtype == DType.FLOAT32), None)
            new = self._tensor(facts.output)
            if other is None:
                self._values[output] = self._produce(facts.output)
                self._add_input(output, name, DType.FLOAT32)
                return True
            old = self._tensors[other.tensor]
            if (old.scale, old.zero_point) != (new.scale, new.zero_point):
                self._values[output] = None
                self._collector.add(
                    facts.layer,
                    f"QUANTIZE: the float input {name} is quantised in two ways",
                    "give the consumers one common scale and zero point",
                )
                return True
            gshape_axes = _default_axes(facts.output.shape)
            self._values[output] = _Value(
                name=facts.output.name,
                tensor=other.tensor,
                order=_order(facts.output.shape, gshape_axes),
                shape=facts.output.shape,
            )
            return True
        if operator.kind == "DEQUANTIZE" and source in self._values and facts.output.dtype == "float32":
            self._dequantized[output] = source
            return True
        return False

    def _network_output(self, source: int) -> Io | None:
        operand = self._operand(source)
        dtype = _DTYPES.get(operand.dtype, DType.INT8)
        value_of = self._dequantized.get(source, source)
        if value_of not in self._values:
            if source in self._float_inputs or operand.data is not None:
                self._collector.add(
                    operand.name, "network output is not computed", "remove it from the model's outputs"
                )
                return None
            raise bad("network output is never produced", operand.name)
        value = self._values[value_of]
        if value is None:
            return None
        if any(io.tensor == value.tensor for io in self._inputs):
            self._collector.add(operand.name, "network output is a network input", "remove it from the model's outputs")
            return None
        if list(value.order) != sorted(value.order):
            self._collector.add(
                operand.name, "network output is transposed", "export the model in channels-last layout"
            )
            return None
        return Io(tensor=value.tensor, name=operand.name, dtype=dtype)

    # ------------------------------------------------------------ tensors and layouts

    def _tensor(self, operand: Operand, shape: Shape3 = (1, 1, 1), data: Int8 | None = None) -> Tensor:
        shift = 128 if operand.dtype == "uint8" else 0
        return Tensor(
            name=operand.name, shape=shape, scale=operand.scale, zero_point=operand.zero_point - shift, data=data
        )

    def _add(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _produce(self, operand: Operand) -> _Value:
        """A new graph tensor in default layout for ``operand``."""
        axes = _default_axes(operand.shape)
        index = self._add(self._tensor(operand, _graph_shape(operand.shape, axes)))
        return _Value(name=operand.name, tensor=index, order=_order(operand.shape, axes), shape=operand.shape)

    def _result(
        self, operator: SourceOperator, operand: Operand, shape: Shape3, order: tuple[int, ...] | None = None
    ) -> int:
        """A new graph tensor of ``shape`` as the operator's output; the source's order is row-major unless given."""
        index = self._add(self._tensor(operand, shape))
        if order is None:
            order = tuple(a for a in range(3) if shape[a] != 1)
        self._values[operator.outputs[0]] = _Value(name=operand.name, tensor=index, order=order, shape=operand.shape)
        return index

    def _value(self, source: int) -> _Value:
        value = self._values[source]
        assert value is not None
        return value

    def _axes(self, value: _Value) -> Axes | None:
        """Graph axis of each source axis (None for size 1), or None if the source's shape is not a view's."""
        sizes = [self._tensors[value.tensor].shape[a] for a in value.order]
        if [s for s in value.shape if s != 1] != sizes:
            return None
        remaining = iter(value.order)
        return tuple(None if s == 1 else next(remaining) for s in value.shape)

    def _canonical(self, value: _Value, axes: Axes | None = None) -> int:
        """The graph tensor that has the source's axes at ``axes`` (default: batch none, then H, W, C); a copy if only
        the shape differs. _LayoutError if the elements would have to be transposed."""
        axes = _default_axes(value.shape) if axes is None else axes
        shape, order = _graph_shape(value.shape, axes), _order(value.shape, axes)
        tensor = self._tensors[value.tensor]
        if tensor.shape == shape and value.order == order:
            return value.tensor
        if list(value.order) != sorted(value.order) or list(order) != sorted(order):
            raise _LayoutError("needs a transposition, which is more than a layout matter")
        key = (value.tensor, shape)
        if key not in self._copies:
            index = self._add(Tensor(name=value.name, shape=shape, scale=tensor.scale, zero_point=tensor.zero_point))
            self._ops.append(Reshape(name=value.name, inputs=(value.tensor,), output=index))
            self._copies[key] = index
        return self._copies[key]

    def _constant(self, operand: Operand, axes: Axes) -> int:
        """A constant tensor whose source axes lie at ``axes``."""
        data = operand.data
        assert data is not None
        kept = [k for k, size in enumerate(operand.shape) if size != 1]
        by_axis = sorted(kept, key=lambda k: axes[k] or 0)
        squeezed = data.reshape([operand.shape[k] for k in kept]).transpose([kept.index(k) for k in by_axis])
        shape = _graph_shape(operand.shape, tuple(axes[k] if k in kept else None for k in range(len(axes))))
        return self._add(self._tensor(operand, shape, _to_int8(squeezed, operand.dtype).reshape(shape)))

    # ------------------------------------------------------------ convolutions

    def _conv(self, facts: Facts, operator: SourceOperator) -> None:
        weights = tflite_rules.centred(facts.input(1))
        self._emit_conv(facts, operator, weights, facts.input(0).shape[3] // weights.shape[3])

    def _depthwise(self, facts: Facts, operator: SourceOperator) -> None:
        weights = tflite_rules.centred(facts.input(1)).transpose(3, 1, 2, 0)
        self._emit_conv(facts, operator, weights, facts.input(0).shape[3])

    def _emit_conv(self, facts: Facts, operator: SourceOperator, weights: Int8, groups: int) -> None:
        tensor = self._canonical(self._value(operator.inputs[0]))
        out_h, out_w, pad_h, pad_w = tflite_rules.window(facts)
        low, high = _clamp(facts)
        a = facts.attributes
        self._ops.append(
            Conv2D(
                name=facts.layer,
                inputs=(tensor,),
                output=self._result(operator, facts.output, (out_h, out_w, weights.shape[0])),
                kernel=(weights.shape[1], weights.shape[2]),
                stride=(a["stride_h"], a["stride_w"]),
                dilation=(a["dilation_h"], a["dilation_w"]),
                pads=(pad_h, pad_w),
                act_min=low,
                act_max=high,
                weights=np.ascontiguousarray(weights),
                bias=tflite_rules.bias(facts, weights.shape[0]),
                multipliers=tflite_rules.multipliers(facts),
                groups=groups,
            )
        )

    def _fully_connected(self, facts: Facts, operator: SourceOperator) -> None:
        weights = tflite_rules.centred(facts.input(1))
        n, k = weights.shape
        value = self._value(operator.inputs[0])
        low, high = _clamp(facts)
        bias, multipliers = tflite_rules.bias(facts, n), tflite_rules.multipliers(facts)
        if math.prod(value.shape) == k:
            sizes = [self._tensors[value.tensor].shape[a] for a in value.order]
            to_hwc = [0, *(1 + i for i in np.argsort(value.order))]
            self._ops.append(
                FullyConnected(
                    name=facts.layer,
                    inputs=(value.tensor,),
                    output=self._result(operator, facts.output, (1, 1, n)),
                    weights=np.ascontiguousarray(weights.reshape(n, *sizes).transpose(to_hwc).reshape(n, k)),
                    bias=bias,
                    multipliers=multipliers,
                    act_min=low,
                    act_max=high,
                )
            )
            return
        # Several rows share the weights: a 1x1 convolution over (H, W).
        tensor = self._canonical(value)
        h, w, c = self._tensors[tensor].shape
        if c != k:
            raise _LayoutError(f"the input's channels ({c}) are not the weights' ({k})")
        self._ops.append(
            Conv2D(
                name=facts.layer,
                inputs=(tensor,),
                output=self._result(operator, facts.output, (h, w, n)),
                kernel=(1, 1),
                act_min=low,
                act_max=high,
                weights=np.ascontiguousarray(weights.reshape(n, 1, 1, k)),
                bias=bias,
                multipliers=multipliers,
            )
        )

    # ------------------------------------------------------------ elementwise

    def _binary(self, facts: Facts, operator: SourceOperator) -> None:
        shape = facts.output.shape
        computed = [self._value(i) for i in operator.inputs if self._model.tensors[i].data is None]
        axes = self._common_axes(computed, shape)
        merged = axes is not None
        if axes is None:
            axes = _default_axes(shape)
        tensors = []
        for i, source in enumerate(operator.inputs):
            operand = facts.input(i)
            mine = axes[len(axes) - len(operand.shape) :]
            if operand.data is not None:
                tensors.append(self._constant(operand, mine))
            elif merged:
                tensors.append(self._value(source).tensor)
            else:
                tensors.append(self._canonical(self._value(source), mine))
        low, high = _clamp(facts)
        kind: dict[str, Literal["add", "sub", "mul"]] = {"ADD": "add", "SUB": "sub", "MUL": "mul"}
        self._ops.append(
            Binary(
                name=facts.layer,
                inputs=tuple(tensors),
                output=self._result(operator, facts.output, _graph_shape(shape, axes), _order(shape, axes)),
                kind=kind[facts.operator],
                act_min=low,
                act_max=high,
            )
        )

    def _common_axes(self, values: Sequence[_Value], shape: tuple[int, ...]) -> Axes | None:
        """Axes of the broadcast result if the operands' layouts agree as they are. An axis that only constants have
        takes its default place."""
        merged: list[int | None] = [None] * len(shape)
        for value in values:
            axes = self._axes(value)
            if axes is None:
                return None
            for k, axis in enumerate(axes, start=len(shape) - len(axes)):
                if axis is not None and merged[k] not in (None, axis):
                    return None
                merged[k] = axis if axis is not None else merged[k]
        for k, default in enumerate(_default_axes(shape)):
            if shape[k] != 1 and merged[k] is None:
                merged[k] = default
        used = [a for a in merged if a is not None]
        complete = all(a is not None for a, size in zip(merged, shape, strict=True) if size != 1)
        return tuple(merged) if complete and len(set(used)) == len(used) else None

    def _lut(self, facts: Facts, operator: SourceOperator) -> None:
        """Elementwise functions of one computed tensor; the layout stays."""
        source = next(i for i in operator.inputs if self._model.tensors[i].data is None)
        function, make = tflite_rules.TABLES[facts.operator]
        self._unary(
            facts,
            operator,
            self._value(source),
            lambda output: Lut(
                name=facts.layer,
                inputs=(self._value(source).tensor,),
                output=output,
                table=make(facts),
                function=function,
            ),
        )

    def _unary(self, facts: Facts, operator: SourceOperator, value: _Value, op: Callable[[int], Op]) -> None:
        shape = self._tensors[value.tensor].shape
        self._ops.append(op(self._result(operator, facts.output, shape, value.order)))

    def _softmax(self, facts: Facts, operator: SourceOperator) -> None:
        value = self._value(operator.inputs[0])
        axes = self._axes(value)
        channels = self._tensors[value.tensor].shape[2]
        if axes is None or not (axes[-1] == 2 or (axes[-1] is None and channels == 1)):
            tensor = self._canonical(value)
            shape = self._tensors[tensor].shape
            value = _Value(name=value.name, tensor=tensor, order=_order(shape, (0, 1, 2)), shape=value.shape)
        multiplier = arith.preprocess_softmax_scaling(facts.attributes["beta"], facts.input(0).scale)
        self._unary(
            facts,
            operator,
            value,
            lambda output: Softmax(name=facts.layer, inputs=(value.tensor,), output=output, multiplier=multiplier),
        )

    # ------------------------------------------------------------ windows, reductions, shapes

    def _pool(self, facts: Facts, operator: SourceOperator) -> None:
        tensor = self._canonical(self._value(operator.inputs[0]))
        out_h, out_w, pad_h, pad_w = pool_padding(facts)
        low, high = _clamp(facts)
        a = facts.attributes
        average = facts.operator == "AVERAGE_POOL_2D"
        shape = (out_h, out_w, self._tensors[tensor].shape[2])
        # The reference rounds halves up on uint8, but away from zero on int8. With zero point -128 the division that
        # counts padding rounds up too; a rule says that no window has padding then.
        upward = average and facts.output.dtype == "uint8"
        moved = upward and self._tensors[tensor].zero_point != -128
        if moved:
            old = self._tensors[tensor]
            copy = self._add(dataclasses.replace(old, name=f"{old.name} for {facts.layer}", zero_point=-128))
            self._ops.append(_copy(facts.layer, tensor, copy))
            tensor = copy
            new = self._tensor(facts.output, shape)
            pooled = self._add(dataclasses.replace(new, name=f"{new.name} before the copy", zero_point=-128))
        else:
            pooled = self._result(operator, facts.output, shape)
        self._ops.append(
            Pool(
                name=facts.layer,
                inputs=(tensor,),
                output=pooled,
                kernel=(a["kernel_h"], a["kernel_w"]),
                stride=(a["stride_h"], a["stride_w"]),
                pads=(pad_h, pad_w),
                act_min=low,
                act_max=high,
                kind="avg" if average else "max",
                count_pad=upward,
            )
        )
        if moved:
            self._ops.append(_copy(facts.layer, pooled, self._result(operator, facts.output, shape)))

    def _reduce(self, facts: Facts, operator: SourceOperator) -> None:
        value = self._value(operator.inputs[0])
        reduced = tflite_rules.reduced_axes(facts)
        axes = self._axes(value)
        if axes is None or any(axes[k] == 2 for k in reduced):
            tensor = self._canonical(value)
            shape = self._tensors[tensor].shape
            value = _Value(name=value.name, tensor=tensor, order=_order(shape, (0, 1, 2)), shape=value.shape)
            axes = self._axes(value)
            assert axes is not None
        over = sorted(a for a in {axes[k] for k in reduced} if a is not None)
        if 2 in over:
            raise _LayoutError("reduces over channels; only H, W or both can be reduced")
        shape = self._tensors[value.tensor].shape
        count = math.prod(shape[a] for a in over)
        mean = facts.operator == "MEAN"
        multiplier = arith.mean_multiplier(facts.input(0).scale, facts.output.scale, count) if mean else (0, 0)
        out_shape = (1 if 0 in over else shape[0], 1 if 1 in over else shape[1], shape[2])
        order = tuple(a for a in value.order if a not in over)
        output = self._result(operator, facts.output, out_shape, order)
        if not over:
            table = tflite_rules.requantize(facts)
            self._ops.append(
                Lut(name=facts.layer, inputs=(value.tensor,), output=output, table=table, function="requantize")
            )
            return
        self._ops.append(
            Reduce(
                name=facts.layer,
                inputs=(value.tensor,),
                output=output,
                axes=tuple(over),
                kind="mean" if mean else "max",
                multiplier=multiplier,
            )
        )

    def _view(self, facts: Facts, operator: SourceOperator) -> None:
        value = self._value(operator.inputs[0])
        self._values[operator.outputs[0]] = _Value(
            name=facts.output.name, tensor=value.tensor, order=value.order, shape=facts.output.shape
        )

    def _transpose(self, facts: Facts, operator: SourceOperator) -> None:
        value = self._value(operator.inputs[0])
        axes = self._axes(value)
        if axes is None:
            tensor = self._canonical(value)
            shape = self._tensors[tensor].shape
            value = _Value(name=value.name, tensor=tensor, order=_order(shape, (0, 1, 2)), shape=value.shape)
            axes = self._axes(value)
            assert axes is not None
        permuted = [axes[k] for k in tflite_rules.permutation(facts)]
        self._values[operator.outputs[0]] = _Value(
            name=facts.output.name,
            tensor=value.tensor,
            order=tuple(a for a in permuted if a is not None),
            shape=facts.output.shape,
        )

    def _concat(self, facts: Facts, operator: SourceOperator) -> None:
        axes = _default_axes(facts.output.shape)
        axis = axes[tflite_rules.concat_axis(facts)]
        if axis is None:
            raise _LayoutError("concatenates along the batch")
        tensors = [
            self._constant(facts.input(i), axes)
            if facts.input(i).data is not None
            else self._canonical(self._value(source), axes)
            for i, source in enumerate(operator.inputs)
        ]
        shape = _graph_shape(facts.output.shape, axes)
        self._ops.append(
            Concat(
                name=facts.layer,
                inputs=tuple(tensors),
                output=self._result(operator, facts.output, shape),
                axis=axis,
            )
        )

    def _pad(self, facts: Facts, operator: SourceOperator) -> None:
        value = self._value(operator.inputs[0])
        tensor = self._canonical(value)
        before, after = [0, 0, 0], [0, 0, 0]
        for axis, (first, last) in zip(_default_axes(value.shape), tflite_rules.paddings(facts), strict=True):
            if axis is not None:
                before[axis], after[axis] = first, last
            elif first or last:
                raise _LayoutError("pads the batch")
        if before[2] or after[2]:
            raise _LayoutError("pads channels; only H and W can be padded")
        h, w, c = self._tensors[tensor].shape
        self._ops.append(
            Pad(
                name=facts.layer,
                inputs=(tensor,),
                output=self._result(operator, facts.output, (h + before[0] + after[0], w + before[1] + after[1], c)),
                pads=(before[0], before[1]),
                value=tflite_rules.pad_value(facts),
            )
        )

    def _resize(self, facts: Facts, operator: SourceOperator) -> None:
        tensor = self._canonical(self._value(operator.inputs[0]))
        h, w, c = self._tensors[tensor].shape
        _, out_h, out_w, _ = facts.output.shape
        rows, cols = tflite_rules.resize_source(facts, h, out_h), tflite_rules.resize_source(facts, w, out_w)
        output = self._result(operator, facts.output, (out_h, out_w, c))
        factors = (out_h // h, out_w // w)
        by_factor = (
            out_h % h == 0
            and out_w % w == 0
            and max(factors) <= 255
            and rows == tuple(y // factors[0] for y in range(out_h))
            and cols == tuple(x // factors[1] for x in range(out_w))
        )
        self._ops.append(
            Resize(
                name=facts.layer,
                inputs=(tensor,),
                output=output,
                factors=factors if by_factor else None,
                rows=() if by_factor else rows,
                cols=() if by_factor else cols,
            )
        )


def _copy(name: str, source: int, output: int) -> Lut:
    """The same bytes under another zero point."""
    return Lut(name=name, inputs=(source,), output=output, table=np.arange(-128, 128, dtype=np.int8), function="copy")


def _clamp(facts: Facts) -> tuple[int, int]:
    """act_min, act_max of the fused activation, on the int8 output."""
    shift = 128 if facts.output.dtype == "uint8" else 0
    activation = facts.attributes["activation"]
    return arith.activation_range(activation, facts.output.scale, facts.output.zero_point - shift)


def _to_int8(data: NDArray[Any], dtype: str) -> Int8:
    shift = 128 if dtype == "uint8" else 0
    result: Int8 = np.ascontiguousarray((data.astype(np.int16) - shift).astype(np.int8))
    return result
