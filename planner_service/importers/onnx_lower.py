# SPDX-License-Identifier: Apache-2.0
"""The frame of the ONNX import: edges, quantisers, QLinear operators written as float operators between quantisers,
constants. What each float operator becomes is in ``onnx``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from planner_service.format import DType
from planner_service.importers.onnx_read import MICROSOFT, Edge, MalformedError, Node, Source
from planner_service.importers.onnx_rules import MAX_SIDE, MAX_WEIGHTS, OTHERWISE, REFUSED
from planner_service.importers.onnx_values import (
    CODES,
    MAX_ELEMENTS,
    NHWC,
    TEMPLATES,
    Cell,
    Codes,
    Const,
    Draft,
    Float64,
    Lost,
    Outside,
    Pending,
    Real,
    RefusedError,
    Shape3,
    Stored,
    Template,
    Value,
    Want,
    at,
    check_dims,
    dims_of,
    in_memory_order,
    new_cell,
    new_shape,
    prod,
    quantised_constant,
    view_of,
)
from planner_service.importers.rules import Collector, Facts, Operand
from planner_service.ir import (
    Graph,
    Int8,
    Io,
    Lut,
    Op,
    Reshape,
    Tensor,
)

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
QUANTISED_FORM = (
    *_QUANTISERS,
    *_DESUGAR,
    "QLinearConcat",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
)


def float_operator(node: Node) -> str:
    """The float operator that a QLinear operator stands for; any other is its own."""
    return _DESUGAR[node.op][3] if node.op in _DESUGAR else node.op


# ---------------------------------------------------------------- lowering

#: What an operator that contradicts itself runs into; MalformedError is a ValueError.
_INCONSISTENT = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, AssertionError)


class Lowering:
    """One import: ``run`` fills tensors and operators, or the collector. Subclasses add the operators: ``handlers``
    names the method of each float operator, which gets the node and its values and returns the result's value."""

    handlers: ClassVar[Mapping[str, str]]

    def __init__(self, source: Source, collector: Collector) -> None:
        self._source = source
        self._found = collector
        self._tensors: list[Draft] = []
        self._ops: list[Op] = []
        self._inputs: list[Io] = []
        self._outputs: list[Io] = []
        self._weights = 0
        self._entered: dict[str, Codes] = {}
        self._values: dict[str, Value] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in source.nodes:
            for i in node.inputs:
                self._readers.setdefault(i, []).append(node)

    # ------------------------------------------------ the whole

    def run(self) -> None:
        for name, array in self._source.constants.items():
            self._values[name] = Const(array=array)
        for edge in self._source.inputs:
            self._values[edge.name] = self._enter(edge)
        for node in self._source.nodes:
            try:
                results = self._lower(node)
            except RefusedError as error:
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
                    self._values[name] = Lost(shape=self._source.shapes.get(name))
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

    def _enter(self, edge: Edge) -> Value:
        """A network input: shape and type are checked here, its tensor is made when it is quantised."""
        if edge.shape is None:
            self._found.add(edge.name, "input has no shape or is not a tensor", "export with fixed shapes")
            return Lost(shape=None)
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
            return Lost(shape=None)
        fixed = tuple(d for d in shape if d is not None)
        if not 2 <= len(fixed) <= 4:
            self._found.add(edge.name, f"input of rank {len(fixed)}", "use [1, features] up to [1, C, H, W]")
            return Lost(shape=None)
        if fixed[0] != 1:
            self._found.add(edge.name, f"batch of {fixed[0]}", "export with batch 1")
            return Lost(shape=None)
        if not all(1 <= d <= MAX_SIDE for d in fixed) or prod(fixed) >= MAX_ELEMENTS:
            self._found.add(edge.name, f"input of shape {list(fixed)}", f"every side is 1 to {MAX_SIDE}")
            return Lost(shape=None)
        if edge.dtype == "float32":
            # Keeps the place among the inputs until QuantizeLinear comes.
            self._inputs.append(Io(tensor=-1, name=edge.name, dtype=DType.FLOAT32))
            return Outside(edge=replace(edge, shape=fixed))
        if edge.dtype in ("int8", "uint8"):
            dtype = DType.UINT8 if edge.dtype == "uint8" else DType.INT8
            self._inputs.append(Io(tensor=-1, name=edge.name, dtype=dtype))
            return self._open(edge.name, fixed, Cell(), edge.dtype == "uint8")
        self._found.add(edge.name, f"input of type {edge.dtype}", "use float32, int8 or uint8")
        return Lost(shape=None)

    def _open(self, name: str, shape: tuple[int, ...], cell: Cell, unsigned: bool) -> Codes:
        """Make the tensor of a network input."""
        template = TEMPLATES[len(shape)][0]
        if len(shape) == 4 and self._channels_last(name):
            template = NHWC
        tensor = self._new(name, dims_of(shape, template), cell)
        self._inputs = [replace(io, tensor=tensor) if io.name == name else io for io in self._inputs]
        return Codes(tensor=tensor, view=view_of(shape, template), unsigned=unsigned)

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
            if isinstance(value, Pending):
                if value.natural is None:
                    raise RefusedError("output quantised", f"{value.operator} {value.layer}")
                value = self._dequantise_codes(self._quantise(value, new_cell(*value.natural), False, edge.name))
            if isinstance(value, Real) and value.table is not None:
                low, high = min(0.0, float(value.table.min())), max(0.0, float(value.table.max()))
                scale = max((high - low) / 255, 1e-8)
                cell = new_cell(scale, int(np.clip(np.rint(-low / scale) - 128, -128, 127)))
                value = self._dequantise_codes(self._quantise(value, cell, False, edge.name))
            if isinstance(value, Lost):
                return
            if not isinstance(value, Codes | Real):
                raise RefusedError("output computed", "a constant or an input as it is")
            if self._tensors[value.tensor].name in {io.name for io in self._inputs}:
                raise RefusedError("output computed", "an input as it is")
            long = [d for d in value.view.axes if len(d) > 1]
            if any(list(d) != sorted(d) for d in long) or (long and not in_memory_order(value.view)):
                raise RefusedError("output order", f"{list(value.view.shape)} flattened channels first")
            dtype = DType.FLOAT32
            if isinstance(value, Codes):
                dtype = DType.UINT8 if value.unsigned else DType.INT8
            self._outputs.append(Io(tensor=value.tensor, name=edge.name, dtype=dtype))
        except RefusedError as error:
            self._found.add(edge.name, str(error), error.remedy)
        except _INCONSISTENT as error:
            self._found.add(edge.name, f"inconsistent output: {error}", "check it with onnx.checker")

    # ------------------------------------------------ helpers

    def _new(self, name: str, dims: Shape3, cell: Cell, data: Int8 | None = None) -> int:
        check_dims(dims)
        self._tensors.append(Draft(name=name, shape=dims, cell=cell, data=data))
        return len(self._tensors) - 1

    def _charge(self, size: int) -> None:
        """Count ``size`` bytes of weights before they are made."""
        self._weights += size
        if self._weights > MAX_WEIGHTS:
            raise RefusedError("weights", f"{self._weights} bytes or more")

    def _cell_of(self, value: Real | Codes) -> Cell:
        return self._tensors[value.tensor].cell

    def _arrange(self, value: Real | Codes, template: Template, layer: str, *, copy: bool = True) -> int | None:
        """Tensor whose memory is exactly ``template``: the value's own, or a Reshape of it (where ``copy`` allows);
        None if data would have to move."""
        view, own = value.view, self._tensors[value.tensor]
        target = dims_of(view.shape, template)
        covered = sorted(d for dims in template for d in dims)
        if prod([view.shape[d] for d in covered]) != prod(view.shape):
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

    def _arranged(self, value: Real | Codes, template: Template, layer: str) -> int:
        tensor = self._arrange(value, template, layer)
        if tensor is None:
            raise RefusedError("layout", f"{list(value.view.shape)} transposed in memory")
        return tensor

    def _operand(self, name: str) -> Operand | None:
        value = self._values[name] if name else None
        if value is None:
            return None
        if isinstance(value, Const):
            return Operand(name=name, shape=value.array.shape, dtype=str(value.array.dtype), data=value.array)
        if isinstance(value, Stored):
            return Operand(
                name=name,
                shape=value.codes.shape,
                dtype=value.dtype,
                scales=tuple(value.scales.tolist()),
                zero_points=tuple(value.zero_points.tolist()),
                axis=value.axis,
                data=value.codes,
            )
        if isinstance(value, Codes | Real):
            cell = self._cell_of(value)
            plain = cell.scale is not None and not (isinstance(value, Real) and value.table is not None)
            raw = isinstance(value, Codes)
            return Operand(
                name=name,
                shape=value.view.shape,
                dtype="int8" if raw else "float32",
                scales=(cell.known,) if plain else (1.0,) if raw else (),
                zero_points=(cell.zero_point,) if plain else (),
            )
        if isinstance(value, Pending):
            return Operand(name=name, shape=value.view.shape, dtype="float32")
        if isinstance(value, Outside):
            return Operand(name=name, shape=tuple(d or 1 for d in value.edge.shape or ()), dtype="float32")
        return None

    def _quantisation(self, scale: str, zero_point: str, axis: int, unsigned: bool) -> Operand:
        """Scale and zero point operands as one Operand; empty scales where they are not constant. ``unsigned`` is the
        type without a zero point."""
        s = self._values[scale] if scale else None
        z = self._values[zero_point] if zero_point else None
        if not isinstance(s, Const) or s.array.dtype.kind != "f":
            return Operand(name=scale, shape=(), dtype="")
        if z is not None and not (isinstance(z, Const) and z.array.dtype.kind in "iu"):
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

    def _dequantise(self, name: str, q: Operand) -> Value:
        """DequantizeLinear of the tensor called ``name``."""
        value = self._values[name]
        if isinstance(value, Const):
            if value.array.dtype.kind not in "iu" or str(value.array.dtype) != (q.dtype or str(value.array.dtype)):
                raise MalformedError(f"{value.array.dtype} constant with a zero point of type {q.dtype}")
            axis = q.axis + value.array.ndim if q.axis < 0 else q.axis
            if len(q.scales) > 1 and not (axis < value.array.ndim and value.array.shape[axis] == len(q.scales)):
                raise MalformedError(f"{len(q.scales)} scales along axis {q.axis} of {list(value.array.shape)}")
            return Stored(
                codes=value.array,
                scales=np.array(q.scales),
                zero_points=np.array(q.zero_points, np.int64),
                axis=axis,
                dtype=str(value.array.dtype),
            )
        if isinstance(value, Lost):
            return value
        if not isinstance(value, Codes):
            raise MalformedError("dequantises a tensor that is not quantised")
        cell, wanted = self._cell_of(value), new_cell(q.scale, q.zero_point - (128 if value.unsigned else 0))
        if (q.dtype == "uint8") != value.unsigned:
            raise MalformedError(f"zero point of type {q.dtype} for a tensor of another type")
        if cell.scale is None:
            cell.scale, cell.zero_point = wanted.scale, wanted.zero_point
        if not cell.same(wanted):
            raise RefusedError("one meaning", f"{name} read with scale {wanted.scale}, zero point {q.zero_point}")
        return self._dequantise_codes(value)

    def _dequantise_codes(self, value: Codes) -> Real:
        return Real(tensor=value.tensor, view=value.view)

    def _reals(self, value: Real) -> Float64:
        """Real value of each of the 256 codes."""
        if value.table is not None:
            return value.table
        cell = self._cell_of(value)
        return (CODES - cell.zero_point) * cell.known

    def _requantised(self, value: Real, cell: Cell, layer: str, tensor_name: str) -> int:
        """Tensor of ``value`` under ``cell``: its own if nothing changes, else behind a table."""
        if value.table is None and self._cell_of(value).same(cell):
            return value.tensor
        table = np.clip(np.rint(self._reals(value) / cell.known) + cell.zero_point, -128, 127).astype(np.int8)
        tensor = self._new(tensor_name, self._tensors[value.tensor].shape, cell)
        self._ops.append(
            Lut(name=layer, inputs=(value.tensor,), output=tensor, table=table, function=value.function or "requantise")
        )
        return tensor

    def _quantise(self, value: Value, cell: Cell, unsigned: bool, name: str) -> Codes:
        """QuantizeLinear; ``name`` is what the result is called."""
        if isinstance(value, Real):
            layer = value.layer or name
            return Codes(tensor=self._requantised(value, cell, layer, name), view=value.view, unsigned=unsigned)
        if isinstance(value, Pending):
            tensor = self._new(name, value.dims, cell)
            low = -128 if value.low == -math.inf else self._code(value.low, cell)
            high = 127 if value.high == math.inf else self._code(value.high, cell)
            value.emit(Want(output=tensor, cell=cell, act_min=low, act_max=max(low, high), bias=value.bias))
            return Codes(tensor=tensor, view=value.view, unsigned=unsigned)
        if isinstance(value, Outside):
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
        if isinstance(value, Lost) and value.shape and len(value.shape) in TEMPLATES:
            template = TEMPLATES[len(value.shape)][0]
            tensor = self._new(name, dims_of(value.shape, template), cell)
            return Codes(tensor=tensor, view=view_of(value.shape, template), unsigned=unsigned)
        raise MalformedError("quantises something that is not an activation")

    @staticmethod
    def _code(real: float, cell: Cell) -> int:
        return int(np.clip(np.rint(real / cell.known) + cell.zero_point, -128, 127))

    # ------------------------------------------------ one node

    def _lower(self, node: Node) -> list[Value] | None:
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

    def _lower_quantiser(self, node: Node) -> list[Value] | None:
        if len(node.inputs) < 2 or node.integer("block_size", 0):
            raise RefusedError("blockwise", f"block_size {node.integer('block_size', 0)}")
        value = self._values[node.inputs[0]]
        zero_point = node.inputs[2] if len(node.inputs) > 2 else ""
        signed = isinstance(value, Const) and value.array.dtype != np.uint8
        q = self._quantisation(
            node.inputs[1],
            zero_point,
            node.integer("axis", 1),
            node.op == "QuantizeLinear" or (isinstance(value, Codes) and value.unsigned) or not signed,
        )
        if isinstance(value, Const) and node.op == "DequantizeLinear" and not zero_point:
            q = replace(q, dtype=str(value.array.dtype))
        if isinstance(value, Codes) and not zero_point:
            q = replace(q, dtype="uint8" if value.unsigned else "int8")
        if not zero_point and node.op == "QuantizeLinear" and node.integer("output_dtype", 0) == 3:
            q = replace(q, dtype="int8")
        constant = isinstance(value, Const)
        facts = self._facts(node, node.inputs[:1], (q,))
        if constant and node.op == "QuantizeLinear":  # float weights that are quantised in the graph
            facts = replace(facts, operator="DequantizeLinear", inputs=(self._operand(node.inputs[0]),))
        if isinstance(value, Lost):
            facts = replace(facts, inputs=(Operand(name=node.inputs[0], shape=(), dtype=""),))
        if isinstance(value, Pending | Outside | Lost) and node.op == "DequantizeLinear":
            if isinstance(value, Lost):
                return [value]
            raise MalformedError("dequantises a tensor that is not quantised")
        if not self._found.apply(facts):
            return None
        if node.op == "DequantizeLinear":
            return [self._dequantise(node.inputs[0], q)]
        if isinstance(value, Const):
            self._charge(value.array.size)
            return [Const(array=quantised_constant(value.array, q))]
        if isinstance(value, Lost) and value.shape is None:
            return [value]
        unsigned = q.dtype == "uint8"
        cell = new_cell(q.scale, q.zero_point - (128 if unsigned else 0))
        return [self._quantise(value, cell, unsigned, node.outputs[0])]

    def _lower_qlinear(self, node: Node) -> list[Value] | None:
        data, bias, out, base, _ = _DESUGAR[node.op]
        if len(node.inputs) <= out or not node.inputs[out]:
            raise RefusedError("output scale", "none")
        q = self._quantisation(node.inputs[out], at(node.inputs, out + 1), 0, True)
        entered = [self._dequantised_input(node, position) for position in data]
        names = [n for n in entered if n is not None]
        if len(names) != len(data):
            return None
        if bias >= 0 and at(node.inputs, bias):
            names.append(node.inputs[bias])
        return self._requantise_output(node, base, names, q)

    def _dequantised_input(self, node: Node, position: int) -> str | None:
        """Enter the dequantised (tensor, scale, zero point) at ``position`` as a value; None after a violation."""
        name = node.inputs[position]
        axis = 0 if node.op == "QLinearConv" else -1
        if node.op == "QGemm" and node.integer("transB", 0):
            axis = 0
        value = self._values[name]
        unsigned = isinstance(value, Codes) and value.unsigned
        q = self._quantisation(at(node.inputs, position + 1), at(node.inputs, position + 2), axis, unsigned)
        if not at(node.inputs, position + 2) and isinstance(value, Const):
            q = replace(q, dtype=str(value.array.dtype))
        if isinstance(value, Lost):
            return None
        seen = self._operand(name)
        facts = Facts(layer=node.name, operator="DequantizeLinear", inputs=(seen,), outputs=(q,))
        if not self._found.apply(facts):
            return None
        key = f"{node.name}/{position}/{name}/{len(self._values)}"
        self._values[key] = self._dequantise(name, q)
        return key

    def _requantise_output(self, node: Node, base: str, names: Sequence[str], q: Operand) -> list[Value] | None:
        layer = Facts(layer=node.name, operator="QuantizeLinear", inputs=(), outputs=(q,))
        if not self._found.apply(layer):
            return None
        results = self._lower_float(node, base, names)
        if results is None:
            return None
        unsigned = q.dtype == "uint8"
        cell = new_cell(q.scale, q.zero_point - (128 if unsigned else 0))
        return [self._quantise(results[0], cell, unsigned, node.outputs[0])]

    def _lower_qlinear_concat(self, node: Node) -> list[Value] | None:
        if len(node.inputs) < 5 or (len(node.inputs) - 2) % 3:
            raise MalformedError(f"{len(node.inputs)} inputs")
        q = self._quantisation(node.inputs[0], node.inputs[1], 0, True)
        names = [self._dequantised_input(node, p) for p in range(2, len(node.inputs), 3)]
        given = [n for n in names if n is not None]
        return self._requantise_output(node, "Concat", given, q) if len(given) == len(names) else None

    def _fold(self, node: Node) -> Value | None:
        """Constants computed from constants: what exporters leave of shape arithmetic and of turned weights."""
        values = [self._values[i] if i else None for i in node.inputs]
        first = values[0]
        if node.op == "Shape" and isinstance(first, Codes | Real | Pending):
            return Const(array=np.asarray(first.view.shape, np.int64))
        if node.op in ("Identity", "Dropout") and isinstance(first, Const | Stored):
            return first
        if not isinstance(first, Const | Stored):
            return None
        rest = [v.array for v in values[1:] if isinstance(v, Const)]
        if node.op == "Transpose":
            ndim = (first.array if isinstance(first, Const) else first.codes).ndim
            perm = node.integers("perm", range(ndim)[::-1]) or ()
            if isinstance(first, Const):
                return Const(array=first.array.transpose(perm))
            axis = perm.index(first.axis) if first.scales.size > 1 else 0
            return replace(first, codes=first.codes.transpose(perm), axis=axis)
        if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            array = first.array if isinstance(first, Const) else first.codes
            shape = new_shape(node, array.shape, [int(v) for v in rest[0].ravel()] if rest else None)
            if isinstance(first, Const):
                return Const(array=array.reshape(shape))
            if first.scales.size > 1:
                kept = [d for d, n in enumerate(shape) if n == first.scales.size]
                if len(kept) != 1:
                    raise RefusedError("weights reshaped", f"{list(array.shape)} to {list(shape)}")
                return replace(first, codes=array.reshape(shape), axis=kept[0])
            return replace(first, codes=array.reshape(shape))
        return None

    def _lower_float(self, node: Node, base: str, inputs: Sequence[str]) -> list[Value] | None:
        values = [self._values[i] if i else None for i in inputs]
        if any(isinstance(v, Lost) for v in values):
            return None
        if not self._found.apply(self._facts(node, inputs)):
            return None
        handler: Callable[[Node, list[Any]], Value] = getattr(self, self.handlers[base])
        return [handler(node, values)]
