# SPDX-License-Identifier: Apache-2.0
"""Writes small quantised ONNX models for tests, runs them by onnxruntime, and compares with the graph's oracle.

A ``Case`` is one float operator with its quantised operands; ``qdq`` and ``qoperator`` write it in either form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import oracle
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from planner_service.format import DType
from planner_service.importers.onnx import import_onnx
from planner_service.ir import Graph

Array = NDArray[Any]

MICROSOFT = "com.microsoft"
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]


@dataclass(kw_only=True)
class Q:
    """Scale and zero point as the model stores them; per channel along ``axis`` if there are several."""

    scale: Any
    zero_point: Any = 0
    dtype: str = "int8"
    axis: int = 0


@dataclass(kw_only=True)
class Activation:
    """A network input of the operator."""

    shape: tuple[int, ...]
    q: Q


@dataclass(kw_only=True)
class Constant:
    """A quantised constant operand: codes."""

    codes: Array
    q: Q


@dataclass(kw_only=True)
class Case:
    """One operator. ``operands`` are Activation, Constant, or an Array (passed as it is); ``after`` is a list of
    (type, operands, attributes) between it and QuantizeLinear."""

    op: str
    operands: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    out: Q | None = None
    after: list[tuple[str, list[Array], dict[str, Any]]] = field(default_factory=list)
    label: str = ""


class Writer:
    """Collects nodes, constants and edges of a model."""

    def __init__(self, opsets: list[Any] | None = None) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._opsets = opsets or _OPSETS
        self._count = 0

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def constant(self, array: Any, stem: str = "c") -> str:
        name = self.name(stem)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        outputs = outputs or [self.name(op.lower())]
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", domain=domain, **attributes))
        return outputs[0]

    def parameters(self, q: Q) -> list[str]:
        return [
            self.constant(np.asarray(q.scale, np.float32), "scale"),
            self.constant(np.asarray(q.zero_point, q.dtype), "zero"),
        ]

    def input(self, shape: tuple[int, ...], dtype: str) -> str:
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        return name

    def output(self, name: str, dtype: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None))

    def bytes(self) -> bytes:
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=self._opsets)
        model.ir_version = 8
        data: bytes = model.SerializeToString()
        return data


def _operand(w: Writer, operand: Any) -> str:
    if operand is None:
        return ""
    if isinstance(operand, Activation):
        x = w.input(operand.shape, operand.q.dtype)
        return w.node("DequantizeLinear", [x, *w.parameters(operand.q)])
    if isinstance(operand, Constant):
        axis = {"axis": operand.q.axis} if np.ndim(operand.q.scale) else {}
        if operand.q.dtype == "int32":
            q = [w.constant(np.asarray(operand.q.scale, np.float32))]
        else:
            q = w.parameters(operand.q)
        return w.node("DequantizeLinear", [w.constant(operand.codes), *q], **axis)
    return w.constant(operand)


def _float_part(w: Writer, case: Case) -> str:
    y = w.node(case.op, [_operand(w, o) for o in case.operands], **case.attributes)
    for op, constants, attributes in case.after:
        y = w.node(op, [y, *(w.constant(c) for c in constants)], **attributes)
    return y


def floating(case: Case) -> bytes:
    """The case with a float output, to see its range."""
    w = Writer()
    w.output(_float_part(w, case), "float32")
    return w.bytes()


def qdq(case: Case) -> bytes:
    """DequantizeLinear, operator, QuantizeLinear; quantised edges."""
    assert case.out is not None
    w = Writer()
    y = w.node("QuantizeLinear", [_float_part(w, case), *w.parameters(case.out)])
    w.output(y, case.out.dtype)
    return w.bytes()


_QLINEAR = {
    "Conv": "QLinearConv",
    "MatMul": "QLinearMatMul",
    "Gemm": "QGemm",
    "Add": "QLinearAdd",
    "Mul": "QLinearMul",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
    "Softmax": "QLinearSoftmax",
    "Concat": "QLinearConcat",
}


def qoperator(case: Case) -> bytes | None:
    """The QLinear operator; None where there is none for the case."""
    assert case.out is not None
    kind = _QLINEAR.get(case.op)
    if kind is None or case.after:
        return None
    w = Writer()
    out = w.parameters(case.out)
    inputs: list[str] = list(out) if kind == "QLinearConcat" else []
    bias = ""
    for o in case.operands:
        if isinstance(o, Activation):
            inputs += [w.input(o.shape, o.q.dtype), *w.parameters(o.q)]
        elif isinstance(o, Constant) and o.q.dtype == "int32":
            bias = w.constant(o.codes)
        elif isinstance(o, Constant):
            inputs += [w.constant(o.codes), *w.parameters(o.q)]
        else:
            return None
    attributes = dict(case.attributes)
    if kind == "QGemm":
        inputs += [bias, *out]
        if "beta" in attributes:
            return None
    elif kind != "QLinearConcat":
        inputs += out
        inputs += [bias] if bias else []
    if kind not in ("QLinearConv", "QLinearMatMul"):
        attributes["domain"] = MICROSOFT
    if kind == "QLinearSoftmax":
        attributes["opset"] = 13
    w.output(w.node(kind, inputs, **attributes), case.out.dtype)
    return w.bytes()


def session(model: bytes) -> onnxruntime.InferenceSession:
    """onnxruntime without its graph rewriting: every operator as the standard says."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def random_inputs(case: Case, rng: np.random.Generator) -> list[Array]:
    result = []
    for o in case.operands:
        if isinstance(o, Activation):
            info = np.iinfo(o.q.dtype)
            result.append(rng.integers(info.min, info.max + 1, o.shape).astype(o.q.dtype))
    return result


def calibrated(case: Case, rng: np.random.Generator, dtype: str) -> Q:
    """An output quantisation that uses the range, saturating a little."""
    y = reference(floating(case), random_inputs(case, rng))[0]
    low, high = min(0.0, float(y.min())), max(0.0, float(y.max()))
    scale = np.float32(max((high - low) * rng.uniform(0.8, 1.1) / 255, 1e-4))
    info = np.iinfo(dtype)
    zero_point = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
    return Q(scale=scale, zero_point=zero_point, dtype=dtype)


def reference(model: bytes, inputs: list[Array]) -> list[Array]:
    s = session(model)
    result: list[Array] = s.run(None, {i.name: x for i, x in zip(s.get_inputs(), inputs, strict=True)})
    return result


def to_memory(x: Array, shape: tuple[int, int, int]) -> NDArray[np.int8]:
    """An ONNX array as the graph's int8 HWC tensor: NCHW, or NHWC where only that has the shape."""
    codes = (x.astype(np.int16) - 128).astype(np.int8) if x.dtype == np.uint8 else x.astype(np.int8)
    if codes.ndim == 4 and (codes.shape[2], codes.shape[3], codes.shape[1]) == shape:
        codes = codes[0].transpose(1, 2, 0)
    elif codes.ndim == 3 and codes.shape[1:] != shape[1:]:
        codes = codes[0].T
    return np.ascontiguousarray(codes).reshape(shape)


def run_graph(graph: Graph, inputs: list[Array]) -> list[NDArray[np.int8]]:
    fed = [to_memory(x, graph.tensors[io.tensor].shape) for io, x in zip(graph.inputs, inputs, strict=True)]
    values = oracle.run(graph, fed)
    return [values[io.tensor] for io in graph.outputs]


def difference(model: bytes, inputs: list[Array]) -> NDArray[np.int64]:
    """|oracle - onnxruntime| of every output value, in LSB."""
    graph = import_onnx(model, name="test")
    got = run_graph(graph, inputs)
    found = []
    for io, mine, theirs in zip(graph.outputs, got, reference(model, inputs), strict=True):
        other = to_memory(theirs, graph.tensors[io.tensor].shape)
        found.append(np.abs(mine.astype(np.int64) - other.astype(np.int64)).ravel())
    return np.concatenate(found)


def edges(model: bytes, rng: np.random.Generator) -> tuple[Graph, list[Array], list[NDArray[np.int8]]]:
    """Graph, random inputs as onnxruntime takes them (float, int8 or uint8), and the same as the graph takes them."""
    graph = import_onnx(model, name="test")
    theirs, mine = [], []
    for io, given in zip(graph.inputs, session(model).get_inputs(), strict=True):
        t = graph.tensors[io.tensor]
        codes = rng.integers(-128, 128, t.shape).astype(np.int8)
        shape = [d if isinstance(d, int) else 1 for d in given.shape]
        x = codes
        if len(shape) == 4 and (shape[2], shape[3], shape[1]) == t.shape:
            x = codes.transpose(2, 0, 1)
        if io.dtype is DType.FLOAT32:
            x = ((x.astype(np.int64) - t.zero_point) * np.float32(t.scale)).astype(np.float32)
        elif io.dtype is DType.UINT8:
            x = (x.astype(np.int16) + 128).astype(np.uint8)
        theirs.append(x.reshape(shape))
        mine.append(codes)
    return graph, theirs, mine


def edge_difference(model: bytes, rng: np.random.Generator) -> int:
    """Largest difference in LSB over all outputs of a model with any kind of edge."""
    graph, theirs, mine = edges(model, rng)
    values = oracle.run(graph, mine)
    worst = 0
    for io, y in zip(graph.outputs, reference(model, theirs), strict=True):
        t = graph.tensors[io.tensor]
        codes = y
        if io.dtype is DType.FLOAT32:
            codes = np.clip(np.rint(y.astype(np.float64) / t.scale) + t.zero_point, -128, 127).astype(np.int8)
        other = to_memory(codes, t.shape)
        worst = max(worst, int(np.abs(values[io.tensor].astype(np.int64) - other.astype(np.int64)).max()))
    return worst
