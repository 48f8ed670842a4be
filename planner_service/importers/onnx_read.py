# SPDX-License-Identifier: Apache-2.0
"""ONNX bytes to plain data: nodes in topological order, constants as arrays, inputs and outputs. Nothing of the onnx
package's C++ code sees the bytes, only protobuf's parser; nothing is allocated because a shape claims it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from planner_service.errors import Code, PlannerError, Violation

#: Parsed protobuf takes up to some fifty times its bytes; no model for a microcontroller comes near the limit.
MAX_MODEL_BYTES = 32 << 20
MAX_NODES = 20000
MIN_OPSET = 13
STANDARD = ("", "ai.onnx")
MICROSOFT = "com.microsoft"

Array = NDArray[Any]

_P = onnx.TensorProto
_DTYPES: dict[int, str] = {
    _P.FLOAT: "float32",
    _P.DOUBLE: "float64",
    _P.FLOAT16: "float16",
    _P.INT8: "int8",
    _P.UINT8: "uint8",
    _P.INT16: "int16",
    _P.UINT16: "uint16",
    _P.INT32: "int32",
    _P.INT64: "int64",
    _P.BOOL: "bool",
}


class MalformedError(ValueError):
    """An operator or constant that contradicts the ONNX specification; the text says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator. ``op`` is its type; absent optional inputs are ''. ``attributes`` hold ints, floats, str, lists of
    ints or floats, and arrays."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def integer(self, key: str, default: int) -> int:
        value = self.attributes.get(key, default)
        if not isinstance(value, int):
            raise MalformedError(f"attribute {key} is not an integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.attributes.get(key, default)
        if not isinstance(value, float | int) or not math.isfinite(value):
            raise MalformedError(f"attribute {key} is not a finite number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self.attributes.get(key, default)
        if not isinstance(value, str):
            raise MalformedError(f"attribute {key} is not a string")
        return value

    def integers(self, key: str, default: Iterable[int] | None) -> tuple[int, ...] | None:
        value = self.attributes.get(key)
        if value is None:
            return None if default is None else tuple(default)
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise MalformedError(f"attribute {key} is not a list of integers")
        return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A network input or output: numpy name of its type, shape with None where it is symbolic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as read. ``nodes``: those that the outputs depend on, in topological order. ``shapes``: what the model
    says about intermediate tensors, believed only to go on after an error."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    shapes: dict[str, tuple[int, ...]]
    opset: int
    violations: tuple[Violation, ...]


def read_model(data: bytes) -> Source:
    """Parse ``data``. PlannerError: TOO_LARGE, BAD_MODEL. What is valid but not supported is in ``violations``."""
    if len(data) > MAX_MODEL_BYTES:
        raise PlannerError(
            Code.TOO_LARGE,
            f"the model has {len(data)} bytes, the limit for ONNX is {MAX_MODEL_BYTES}",
            hint="use a smaller model; one of this size does not fit a microcontroller",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError class depends on its backend
        raise _bad("the bytes are not an ONNX model: truncated or another format") from error
    graph = model.graph
    if not graph.node or not graph.output:
        raise _bad("the model has no operators or no outputs: truncated or not an ONNX model")
    if len(graph.node) > MAX_NODES:
        raise PlannerError(Code.TOO_LARGE, f"the model has {len(graph.node)} operators, the limit is {MAX_NODES}")

    found: list[Violation] = []
    opset = _opset(model, found)
    if len(model.functions):
        found.append(Violation("", "the model defines functions", "inline them: onnx.inliner.inline_local_functions"))
    if len(graph.sparse_initializer):
        name = graph.sparse_initializer[0].values.name
        found.append(Violation(name, "sparse initialisers are not supported", "store the weights densely"))

    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        _read_constant(tensor, tensor.name, constants, found)
    nodes = _read_nodes(graph.node, constants, found)
    inputs = tuple(_edge(i) for i in graph.input if i.name not in constants)
    outputs = tuple(_edge(o) for o in graph.output)
    shapes: dict[str, tuple[int, ...]] = {}
    for info in graph.value_info:
        edge = _edge(info)
        if edge.shape is not None and None not in edge.shape:
            shapes[edge.name] = tuple(d for d in edge.shape if d is not None)
    ordered = _order(nodes, {i.name for i in inputs} | set(constants), [o.name for o in outputs])
    return Source(
        nodes=ordered,
        constants=constants,
        inputs=inputs,
        outputs=outputs,
        shapes=shapes,
        opset=opset,
        violations=tuple(dict.fromkeys(found)),
    )


def _bad(message: str, layer: str = "") -> PlannerError:
    return PlannerError(Code.BAD_MODEL, message, layer=layer, hint="export the model again; onnx.checker shows details")


def _opset(model: onnx.ModelProto, found: list[Violation]) -> int:
    versions = [o.version for o in model.opset_import if o.domain in STANDARD]
    if not versions:
        raise _bad("the model names no ONNX operator set")
    if versions[0] < MIN_OPSET:
        found.append(
            Violation(
                "",
                f"operator set {versions[0]}, at least {MIN_OPSET} is needed",
                f"onnx.version_converter.convert_version(model, {MIN_OPSET}), then quantise again",
            )
        )
    return int(versions[0])


def _read_constant(tensor: onnx.TensorProto, name: str, into: dict[str, Array], found: list[Violation]) -> None:
    if tensor.data_location == _P.EXTERNAL or len(tensor.external_data):
        found.append(
            Violation(
                name,
                "the constant is in an external file",
                "save the model with its weights inside: onnx.save(model, path, save_as_external_data=False)",
            )
        )
        into[name] = np.zeros(0, np.float32)
        return
    kind = _DTYPES.get(tensor.data_type)
    if kind is None:
        found.append(Violation(name, f"constant of unsupported type {_type_name(tensor.data_type)}", "use int8"))
        into[name] = np.zeros(0, np.float32)
        return
    if name in into:
        raise _bad("the constant is defined twice", name)
    into[name] = _array(tensor, name, kind)


def _type_name(number: int) -> str:
    try:
        return str(_P.DataType.Name(number))
    except ValueError:
        return str(number)


def _array(tensor: onnx.TensorProto, name: str, kind: str) -> Array:
    """The constant's content; its size comes from the bytes that are there, not from the shape."""
    dims = tuple(tensor.dims)
    dtype = np.dtype(kind)
    if any(d < 0 for d in dims):
        raise _bad(f"negative dimension in shape {list(dims)}", name)
    count = math.prod(dims)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != count * dtype.itemsize:
            raise _bad(
                f"shape {list(dims)} of {kind} needs {count * dtype.itemsize} bytes, there are {len(tensor.raw_data)}",
                name,
            )
        array: Array = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype)
        return array.reshape(dims)
    stored: Any = {"float32": tensor.float_data, "float64": tensor.double_data, "int64": tensor.int64_data}.get(
        kind, tensor.int32_data
    )
    if len(stored) != count:
        raise _bad(f"shape {list(dims)} needs {count} values, there are {len(stored)}", name)
    if kind == "float16":
        return np.asarray(stored, np.int64).astype(np.uint16).view(np.float16).reshape(dims)
    return np.asarray(stored).astype(dtype).reshape(dims)


def _read_nodes(protos: Iterable[onnx.NodeProto], constants: dict[str, Array], found: list[Violation]) -> list[Node]:
    nodes = []
    for proto in protos:
        layer = proto.name or next(iter(proto.output), "") or proto.op_type
        attributes = _attributes(proto, layer, found)
        if proto.op_type == "Constant" and proto.domain in STANDARD:
            _read_constant_node(proto, layer, attributes, constants, found)
            continue
        nodes.append(
            Node(
                name=layer,
                op=proto.op_type,
                domain="" if proto.domain in STANDARD else proto.domain,
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes,
            )
        )
    return nodes


def _read_constant_node(
    proto: onnx.NodeProto, layer: str, attributes: dict[str, Any], into: dict[str, Array], found: list[Violation]
) -> None:
    name = next(iter(proto.output), "")
    if not name:
        raise _bad("Constant without output", layer)
    if name in into:
        raise _bad("the constant is defined twice", name)
    for key, kind in (
        ("value_int", "int64"),
        ("value_ints", "int64"),
        ("value_float", "float32"),
        ("value_floats", "float32"),
    ):
        if key in attributes:
            into[name] = np.asarray(attributes[key], kind)
            return
    tensor = attributes.get("value")
    if isinstance(tensor, onnx.TensorProto):
        _read_constant(tensor, name, into, found)
        return
    found.append(Violation(layer, "Constant holds something that is not a tensor of numbers", "use a dense tensor"))
    into[name] = np.zeros(0, np.float32)


def _attributes(proto: onnx.NodeProto, layer: str, found: list[Violation]) -> dict[str, Any]:
    kinds = onnx.AttributeProto
    result: dict[str, Any] = {}
    for a in proto.attribute:
        if a.type == kinds.INT:
            result[a.name] = int(a.i)
        elif a.type == kinds.FLOAT:
            result[a.name] = float(a.f)
        elif a.type == kinds.STRING:
            result[a.name] = a.s.decode("utf-8", "replace")
        elif a.type == kinds.INTS:
            result[a.name] = [int(i) for i in a.ints]
        elif a.type == kinds.FLOATS:
            result[a.name] = [float(f) for f in a.floats]
        elif a.type == kinds.TENSOR:
            result[a.name] = a.t
        elif a.type in (kinds.GRAPH, kinds.GRAPHS):
            found.append(
                Violation(
                    layer,
                    f"{proto.op_type}: control flow with a subgraph is not supported",
                    "export a model without loops and conditions",
                )
            )
        else:
            result[a.name] = None
    return result


def _edge(info: onnx.ValueInfoProto) -> Edge:
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return Edge(name=info.name, dtype=_DTYPES.get(kind.elem_type, "none"), shape=None)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    symbols = tuple(d.dim_param for d in kind.shape.dim)
    return Edge(name=info.name, dtype=_DTYPES.get(kind.elem_type, "none"), shape=tuple(dims), symbols=symbols)


def _order(nodes: list[Node], given: set[str], outputs: list[str]) -> tuple[Node, ...]:
    """Nodes that ``outputs`` need, producers first."""
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in maker or name in given:
                raise _bad(f"tensor {name!r} is produced twice", node.name)
            maker[name] = index
    for name in outputs:
        if name not in maker and name not in given:
            raise _bad(f"nothing produces the output {name!r}")
    needs: list[list[int]] = []
    for node in nodes:
        for name in filter(None, node.inputs):
            if name not in maker and name not in given:
                raise _bad(f"nothing produces the input {name!r}", node.name)
        needs.append(sorted({maker[i] for i in node.inputs if i in maker}))

    done: dict[int, None] = {}
    open_: set[int] = set()
    for root in sorted({maker[o] for o in outputs if o in maker}):
        stack = [(root, False)]
        while stack:
            index, leaving = stack.pop()
            if leaving:
                open_.discard(index)
                done[index] = None
            elif index not in done:
                if index in open_:
                    raise _bad("the graph has a cycle", nodes[index].name)
                open_.add(index)
                stack.append((index, True))
                for n in needs[index]:
                    if n in open_:
                        raise _bad("the graph has a cycle", nodes[index].name)
                    if n not in done:
                        stack.append((n, False))
    # Model order where it is topological anyway: layers then come out as the user wrote them.
    placed: set[int] = set()
    for index in sorted(done):
        if not placed.issuperset(needs[index]):
            return tuple(nodes[i] for i in done)
        placed.add(index)
    return tuple(nodes[i] for i in sorted(done))
