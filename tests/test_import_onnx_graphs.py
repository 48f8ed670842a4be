# SPDX-License-Identifier: Apache-2.0
"""The ONNX importer on whole graphs: layouts, edges, ways to write the same, and the sample models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper
from onnx_builder import MICROSOFT, Q, Writer, edge_difference, session, to_memory

from planner_service.format import DType
from planner_service.importers.onnx import import_onnx
from planner_service.ir import Binary, Conv2D, FullyConnected, Graph, Lut, Reduce, Reshape

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"

IN = Q(scale=np.float32(0.02), zero_point=7)
OUT = Q(scale=np.float32(0.05), zero_point=-11)
RNG = np.random.default_rng(3)


class Model(Writer):
    """Writer with the steps that the graphs below are made of; names of tensors are passed along."""

    def dq(self, x: str, q: Q = IN) -> str:
        return self.node("DequantizeLinear", [x, *self.parameters(q)])

    def q(self, x: str, q: Q = OUT) -> str:
        return self.node("QuantizeLinear", [x, *self.parameters(q)])

    def x(self, *shape: int, q: Q = IN) -> str:
        return self.dq(self.input(shape, q.dtype), q)

    def weights(self, *shape: int, scale: float = 0.01) -> str:
        codes = self.constant(RNG.integers(-127, 128, shape).astype(np.int8))
        return self.node("DequantizeLinear", [codes, self.constant(np.float32(scale)), self.constant(np.int8(0))])

    def done(self, y: str, q: Q | None = OUT) -> bytes:
        """Quantise ``y`` (as float if ``q`` is None) and make it the output."""
        self.output(y if q is None else self.q(y, q), "float32" if q is None else q.dtype)
        return self.bytes()


def _ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


# ---------------------------------------------------------------- layouts


def flatten_gemm(m: Model) -> bytes:
    return m.done(m.node("Gemm", [m.node("Flatten", [m.x(1, 3, 4, 5)]), m.weights(6, 60)], transB=1))


def flatten_codes_matmul(m: Model) -> bytes:
    flat = m.node("Flatten", [m.input((1, 3, 4, 5), "int8")])
    return m.done(m.node("MatMul", [m.dq(flat), m.weights(60, 6)]))


def reshape_gemm(m: Model) -> bytes:
    flat = m.node("Reshape", [m.x(1, 3, 4, 5), m.constant(_ints(0, -1))])
    return m.done(m.node("Gemm", [flat, m.weights(60, 6)]))


def channels_last_edges(m: Model) -> bytes:
    x = m.node("Transpose", [m.x(1, 4, 5, 3)], perm=[0, 3, 1, 2])
    y = m.node("Conv", [x, m.weights(6, 3, 3, 3)], pads=[1, 1, 1, 1])
    return m.done(m.node("Transpose", [y], perm=[0, 2, 3, 1]))


def channels_last_flatten(m: Model) -> bytes:
    x = m.node("Transpose", [m.x(1, 3, 4, 5)], perm=[0, 2, 3, 1])
    return m.done(m.node("Gemm", [m.node("Flatten", [x]), m.weights(60, 6)]))


def vector_to_picture(m: Model) -> bytes:
    x = m.node("Reshape", [m.x(1, 20), m.constant(_ints(1, 1, 4, 5))])
    return m.done(m.node("Conv", [x, m.weights(6, 1, 3, 3)]))


def sequence_to_picture(m: Model) -> bytes:
    x = m.node("Unsqueeze", [m.x(1, 4, 5), m.constant(_ints(1))])
    return m.done(m.node("Conv", [x, m.weights(6, 1, 3, 3)]))


def pool_then_flatten(m: Model) -> bytes:
    return m.done(m.node("Flatten", [m.node("GlobalAveragePool", [m.x(1, 3, 4, 5)])]))


def pool_then_squeeze(m: Model) -> bytes:
    return m.done(m.node("Squeeze", [m.node("GlobalAveragePool", [m.x(1, 3, 4, 5)]), m.constant(_ints(2, 3))]))


def squeeze_excite(m: Model) -> bytes:
    """A gate per channel: [1, C] from a dense layer, back to [1, C, 1, 1], times the tensor."""
    x = m.x(1, 3, 4, 5)
    gate = m.q(m.node("Sigmoid", [m.x(1, 3)]), Q(scale=np.float32(1 / 256), zero_point=-128))
    gate = m.node("Reshape", [m.dq(gate, Q(scale=np.float32(1 / 256), zero_point=-128)), m.constant(_ints(1, 3, 1, 1))])
    return m.done(m.node("Mul", [x, gate]))


def reshape_to_its_shape(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5)
    y = m.node("Reshape", [x, m.node("Shape", [x])])
    return m.done(m.node("Conv", [y, m.weights(6, 3, 1, 1)]))


def channels_last_pools(m: Model) -> bytes:
    q = m.parameters(IN)
    x = m.input((1, 4, 5, 3), "int8")
    y = m.node("QLinearAveragePool", [x, *q, *m.parameters(IN)], domain=MICROSOFT, channels_last=1, kernel_shape=[2, 2])
    z = m.node("QLinearGlobalAveragePool", [y, *q, *m.parameters(OUT)], domain=MICROSOFT, channels_last=1)
    m.output(z, "int8")
    return m.bytes()


# ---------------------------------------------------------------- ways to write the same


def float_edges(m: Model) -> bytes:
    m.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 5]))
    y = m.node("Conv", [m.dq(m.q("x", IN)), m.weights(6, 3, 3, 3)])
    return m.done(m.dq(m.q(y), OUT), None)


def unsigned_edges(m: Model) -> bytes:
    x, y = Q(scale=IN.scale, zero_point=131, dtype="uint8"), Q(scale=OUT.scale, zero_point=90, dtype="uint8")
    return m.done(m.node("Conv", [m.x(1, 3, 4, 5, q=x), m.weights(6, 3, 3, 3)]), y)


def zero_point_left_out(m: Model) -> bytes:
    x = m.node("DequantizeLinear", [m.input((1, 3, 4, 5), "uint8"), m.constant(IN.scale)])
    y = m.node("Conv", [x, m.weights(6, 3, 3, 3)])
    m.output(m.node("QuantizeLinear", [y, m.constant(OUT.scale)]), "uint8")
    return m.bytes()


def weights_quantised_in_the_graph(m: Model) -> bytes:
    w = m.constant(RNG.normal(0, 0.4, (6, 3, 3, 3)).astype(np.float32))
    q = Q(scale=np.full(6, 0.01, np.float32), zero_point=np.zeros(6))
    codes = m.node("QuantizeLinear", [w, *m.parameters(q)], axis=0)
    w = m.node("DequantizeLinear", [codes, *m.parameters(q)], axis=0)
    return m.done(m.node("Conv", [m.x(1, 3, 4, 5), w]))


def unsigned_weights(m: Model) -> bytes:
    codes = m.constant(RNG.integers(1, 256, (6, 3, 3, 3)).astype(np.uint8))
    w = m.node("DequantizeLinear", [codes, m.constant(np.float32(0.01)), m.constant(np.uint8(128))])
    return m.done(m.node("Conv", [m.x(1, 3, 4, 5), w]))


def turned_weights(m: Model) -> bytes:
    w = m.node("Transpose", [m.weights(6, 20)], perm=[1, 0])
    return m.done(m.node("MatMul", [m.x(1, 20), w]))


def bias_of_another_scale(m: Model) -> bytes:
    codes = m.constant(RNG.integers(-3000, 3000, 6).astype(np.int32))
    bias = m.node("DequantizeLinear", [codes, m.constant(np.float32(0.001))])
    return m.done(m.node("Conv", [m.x(1, 3, 4, 5), m.weights(6, 3, 3, 3), bias]))


def bias_that_fills_32_bits(m: Model) -> bytes:
    """What onnxruntime's quantiser makes of a channel whose weights are nearly 0."""
    scale = np.array([0.01, 4e-9, 0.01], np.float32)
    codes = m.constant(RNG.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8))
    w = m.node("DequantizeLinear", [codes, m.constant(scale), m.constant(np.zeros(3, np.int8))], axis=0)
    bias = m.constant(np.array([100, 2**31 - 1, -7], np.int32))
    b = m.node("DequantizeLinear", [bias, m.constant(scale * IN.scale)], axis=0)
    return m.done(m.node("Conv", [m.x(1, 3, 4, 5), w, b]))


def swish(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5)
    return m.done(m.node("Mul", [x, m.node("Sigmoid", [x])]))


def hard_swish_in_pieces(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5, q=Q(scale=np.float32(0.05), zero_point=3))
    y = m.node("Add", [x, m.constant(np.float32(3))])
    y = m.node("Clip", [y, m.constant(np.float32(0)), m.constant(np.float32(6))])
    return m.done(m.node("Div", [m.node("Mul", [x, y]), m.constant(np.float32(6))]))


def doubled(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5)
    return m.done(m.node("Add", [x, x]))


def residual(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5)
    y = m.dq(m.q(m.node("Relu", [m.x(1, 3, 4, 5, q=OUT)]), OUT), OUT)
    return m.done(m.node("Relu", [m.node("Add", [x, y])]), Q(scale=np.float32(0.03), zero_point=-128))


def nothing_in_between(m: Model) -> bytes:
    x = m.node("Dropout", [m.node("Identity", [m.x(1, 3, 4, 5)])])
    return m.done(m.node("Conv", [x, m.node("Identity", [m.weights(6, 3, 1, 1)])]))


def joined_codes(m: Model) -> bytes:
    a, b = (m.node("MaxPool", [m.input((1, c, 4, 5), "uint8")], kernel_shape=[2, 2]) for c in (2, 3))
    q = Q(scale=IN.scale, zero_point=100, dtype="uint8")
    # Only what is declared behind it says what the codes mean.
    a, b = (m.q(m.dq(v, q), q) for v in (a, b))
    m.output(m.node("Concat", [a, b], axis=1), "uint8")
    return m.bytes()


def padded_codes(m: Model) -> bytes:
    x = m.node("Pad", [m.input((1, 3, 4, 5), "uint8"), m.constant(_ints(0, 0, 1, 1, 0, 0, 1, 1))])
    q = Q(scale=IN.scale, zero_point=100, dtype="uint8")
    return m.done(m.node("Conv", [m.dq(x, q), m.weights(6, 3, 3, 3)]))


def two_outputs(m: Model) -> bytes:
    x = m.x(1, 3, 4, 5)
    m.output(m.q(m.node("Tanh", [x]), Q(scale=np.float32(1 / 128), zero_point=0)), "int8")
    return m.done(m.node("Conv", [x, m.weights(6, 3, 3, 3)]))


def softmax_left_float(m: Model) -> bytes:
    return m.done(m.node("Softmax", [m.x(1, 12)], axis=1), None)


def sigmoid_left_float(m: Model) -> bytes:
    return m.done(m.node("Sigmoid", [m.x(1, 12)]), None)


def quantised_again(m: Model) -> bytes:
    return m.done(m.x(1, 3, 4, 5), Q(scale=np.float32(0.011), zero_point=90))


def quantisers_of_microsoft(m: Model) -> bytes:
    x = m.node("DequantizeLinear", [m.input((1, 3, 4, 5), "int8"), *m.parameters(IN)], domain=MICROSOFT)
    y = m.node("Conv", [x, m.weights(6, 3, 3, 3)])
    m.output(m.node("QuantizeLinear", [y, *m.parameters(OUT)], domain=MICROSOFT), "int8")
    return m.bytes()


GRAPHS: tuple[Callable[[Model], bytes], ...] = (
    flatten_gemm,
    flatten_codes_matmul,
    reshape_gemm,
    channels_last_edges,
    channels_last_flatten,
    vector_to_picture,
    sequence_to_picture,
    pool_then_flatten,
    pool_then_squeeze,
    squeeze_excite,
    reshape_to_its_shape,
    float_edges,
    unsigned_edges,
    zero_point_left_out,
    weights_quantised_in_the_graph,
    unsigned_weights,
    turned_weights,
    bias_of_another_scale,
    bias_that_fills_32_bits,
    swish,
    hard_swish_in_pieces,
    doubled,
    residual,
    nothing_in_between,
    joined_codes,
    padded_codes,
    two_outputs,
    softmax_left_float,
    sigmoid_left_float,
    quantised_again,
    quantisers_of_microsoft,
)


@pytest.mark.parametrize("build", GRAPHS, ids=lambda b: b.__name__)
def test_graph_agrees_with_onnxruntime(build: Callable[[Model], bytes]) -> None:
    model = build(Model())
    assert edge_difference(model, np.random.default_rng(5)) <= 1


def test_channels_last_pools() -> None:
    """Two operators, one rounding each."""
    assert edge_difference(channels_last_pools(Model()), np.random.default_rng(5)) <= 2


@pytest.mark.parametrize("opset", [13, 15, 18, 21, 22])
def test_operator_sets(opset: int) -> None:
    """Axes as attribute or operand, and quantisers as each set has them."""
    m = Model([helper.make_opsetid("", opset)])
    y = m.node("Conv", [m.x(1, 3, 4, 5), m.weights(6, 3, 3, 3), m.constant(np.ones(6, np.float32))])
    y = m.dq(m.q(y), OUT)
    axes = {} if opset >= 18 else {"axes": [2, 3]}
    mean = m.node("ReduceMean", [y, m.constant(_ints(2, 3))] if opset >= 18 else [y], keepdims=0, **axes)
    model = m.done(mean)
    graph = import_onnx(model, name="test")
    assert [type(op) for op in graph.ops] == [Conv2D, Reduce]
    assert edge_difference(model, np.random.default_rng(1)) <= 1


def test_edges_are_described() -> None:
    graph = import_onnx(float_edges(Model()), name="test")
    assert [(io.name, io.dtype) for io in graph.inputs] == [("x", DType.FLOAT32)]
    assert graph.tensors[graph.inputs[0].tensor].shape == (4, 5, 3)
    assert graph.tensors[graph.inputs[0].tensor].scale == pytest.approx(0.02)
    assert graph.source == "onnx"
    unsigned = import_onnx(unsigned_edges(Model()), name="test")
    assert [io.dtype for io in (*unsigned.inputs, *unsigned.outputs)] == [DType.UINT8, DType.UINT8]
    assert unsigned.tensors[0].zero_point == 131 - 128


def _kinds(graph: Graph) -> list[type]:
    return [type(op) for op in graph.ops]


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (flatten_gemm, [FullyConnected]),
        (channels_last_edges, [Conv2D]),
        (channels_last_flatten, [FullyConnected]),
        (vector_to_picture, [Reshape, Conv2D]),
        (pool_then_flatten, [Reduce]),
        (hard_swish_in_pieces, [Lut]),
        (doubled, [Lut]),
        (nothing_in_between, [Conv2D]),
        (residual, [Lut, Binary]),
    ],
    ids=lambda v: v.__name__ if callable(v) and not isinstance(v, list) else "",
)
def test_no_operator_for_layout(build: Callable[[Model], bytes], kinds: list[type]) -> None:
    """Transpose and Flatten leave nothing behind, activations are one table or a clamp."""
    assert _kinds(import_onnx(build(Model()), name="test")) == kinds


# ---------------------------------------------------------------- sample models


@pytest.mark.parametrize("name", ["digits_a", "digits_b"])
def test_digits(name: str) -> None:
    """Class of every test image equals onnxruntime's, accuracy is what was measured."""
    data = (MODELS / f"{name}.onnx").read_bytes()
    assert len(data) < 100_000
    graph = import_onnx(data, name=name)
    test = np.load(MODELS / "digits_test.npz")
    runtime = session(data)
    source, result = (graph.tensors[io.tensor] for io in (graph.inputs[0], graph.outputs[0]))
    right = 0
    for image, label in zip(test["image"], test["label"], strict=True):
        codes = np.clip(np.rint(image / np.float32(source.scale)) + source.zero_point, -128, 127)
        mine = oracle.run(graph, [to_memory(codes[None], source.shape)])[graph.outputs[0].tensor].ravel()
        theirs = runtime.run(None, {"image": image[None]})[0].ravel()
        assert int(mine.argmax()) == int(theirs.argmax())
        right += int(mine.argmax()) == label
    measured = json.loads((MODELS / "accuracy.json").read_text())["models"][name]["int8_accuracy"]
    assert right / len(test["label"]) == pytest.approx(measured, abs=1e-4)
    assert measured > 0.98
    assert result.shape == (1, 1, 10)


def test_digits_differ() -> None:
    """The two are visibly different networks for one input."""
    a, b = (onnx.load_model_from_string((MODELS / f"{n}.onnx").read_bytes()) for n in ("digits_a", "digits_b"))
    assert any(n.op_type == "DequantizeLinear" for n in a.graph.node)
    assert any(n.op_type == "QLinearConv" for n in b.graph.node)
    assert [d.dim_value for d in a.graph.input[0].type.tensor_type.shape.dim] == [
        d.dim_value for d in b.graph.input[0].type.tensor_type.shape.dim
    ]
