# SPDX-License-Identifier: Apache-2.0
"""What the ONNX importer refuses, how it says so, and that nothing else comes out of damaged bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builder import MICROSOFT, Q, Writer

from planner_service.errors import Code, PlannerError
from planner_service.importers.onnx import import_onnx

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
IN = Q(scale=np.float32(0.02), zero_point=7)


class Model(Writer):
    """Writer of models that are wrong in one way."""

    def dq(self, x: str, q: Q = IN) -> str:
        return self.node("DequantizeLinear", [x, *self.parameters(q)])

    def q(self, x: str, q: Q = IN) -> str:
        return self.node("QuantizeLinear", [x, *self.parameters(q)])

    def x(self, *shape: int, q: Q = IN) -> str:
        return self.dq(self.input(shape or (1, 3, 4, 5), q.dtype), q)

    def w(self, *shape: int, q: Q | None = None) -> str:
        q = q or Q(scale=np.float32(0.01))
        return self.dq(self.constant(np.ones(shape or (6, 3, 3, 3), q.dtype)), q)

    def done(self, y: str, q: Q = IN) -> bytes:
        self.output(self.q(y, q), q.dtype)
        return self.bytes()


def conv(m: Model, x: str | None = None, w: str | None = None, **attributes: Any) -> bytes:
    return m.done(m.node("Conv", [x or m.x(), w or m.w()], **attributes))


def proto(m: Model, change: Callable[[onnx.ModelProto], object]) -> bytes:
    """A good model, changed."""
    model = onnx.load_model_from_string(conv(m))
    change(model)
    return model.SerializeToString()


def _external(model: onnx.ModelProto) -> None:
    t = model.graph.initializer[2]
    t.data_location = TensorProto.EXTERNAL
    t.external_data.add(key="location", value="weights.bin")


def _shape(*dims: int | str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x1", TensorProto.INT8, dims))

    return change


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [], [])
    node = model.graph.node.add(op_type="Loop", name="loop", input=[model.graph.node[-1].output[0]], output=["looped"])
    node.attribute.append(helper.make_attribute("body", body))
    model.graph.output[0].name = "looped"


def _cycle(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Conv").input[0] = model.graph.output[0].name


def _huge(model: onnx.ModelProto) -> None:
    t = model.graph.initializer[0]
    t.ClearField("dims")
    t.dims.extend([1 << 16, 1 << 15])


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function(
            "own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )


def _sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def _scale(value: float) -> Callable[[Model], bytes]:
    return lambda m: conv(m, m.x(q=Q(scale=np.float32(value))))


def _float_model(m: Model) -> bytes:
    x = m.input((1, 3, 4, 5), "float32")
    y = m.node("Relu", [m.node("Conv", [x, m.constant(np.ones((6, 3, 3, 3), np.float32))])])
    m.output(y, "float32")
    return m.bytes()


def _two_wrong(m: Model) -> bytes:
    y = m.node("Conv", [m.x(), m.w(q=Q(scale=np.float32(0.01), zero_point=3))])
    z = m.node("LSTM", [m.x()])
    v = m.node("Resize", [m.x(), "", m.constant(np.array([1, 1, 2, 2], np.float32))], mode="linear")
    for t in (y, z, v):
        m.output(m.q(t), "int8")
    return m.bytes()


#: Name: (model, code, what the message must say, a remedy that must be there).
REFUSED: dict[str, tuple[Callable[[Model], bytes], Code, str, str]] = {
    # not a model, damaged
    "empty": (lambda m: b"", Code.BAD_MODEL, "truncated", ""),
    "zeros": (lambda m: bytes(100), Code.BAD_MODEL, "not an ONNX model", ""),
    "text": (lambda m: b"this is not a model, not at all", Code.BAD_MODEL, "not an ONNX model", ""),
    "cut": (lambda m: conv(m)[:-40], Code.BAD_MODEL, "truncated", ""),
    "cut early": (lambda m: conv(m)[:12], Code.BAD_MODEL, "truncated", ""),
    "2 GB in 1 kB": (lambda m: proto(m, _huge), Code.BAD_MODEL, "needs", ""),
    "cycle": (lambda m: proto(m, _cycle), Code.BAD_MODEL, "cycle", ""),
    "missing producer": (
        lambda m: proto(m, lambda p: p.graph.node[0].input.__setitem__(0, "gone")), Code.BAD_MODEL, "'gone'", "",
    ),
    "produced twice": (
        lambda m: proto(m, lambda p: p.graph.node[0].output.__setitem__(0, "x1")), Code.BAD_MODEL, "twice", "",
    ),
    "no operator set": (
        lambda m: proto(m, lambda p: p.ClearField("opset_import")), Code.BAD_MODEL, "operator set", "",
    ),
    # float
    "float": (_float_model, Code.FLOAT_MODEL, "float model", "weft quantize model.onnx --calibration data.npz"),
    # model level
    "external data": (lambda m: proto(m, _external), Code.UNSUPPORTED, "external file", "save_as_external_data=False"),
    "sparse": (lambda m: proto(m, _sparse), Code.UNSUPPORTED, "sparse", "densely"),
    "function": (lambda m: proto(m, _function), Code.UNSUPPORTED, "functions", "inline"),
    "loop": (lambda m: proto(m, _loop), Code.UNSUPPORTED, "subgraph", "without loops"),
    "old operator set": (
        lambda m: proto(m, lambda p: setattr(p.opset_import[0], "version", 12)), Code.UNSUPPORTED, "set 12",
        "convert_version",
    ),
    "dynamic": (
        lambda m: proto(m, _shape("N", 3, "H", "W")), Code.UNSUPPORTED, "dimension H", "make_dynamic_shape_fixed",
    ),
    "batch": (lambda m: proto(m, _shape(4, 3, 4, 5)), Code.UNSUPPORTED, "batch of 4", "batch 1"),
    "rank 5": (lambda m: proto(m, _shape(1, 3, 4, 5, 6)), Code.UNSUPPORTED, "rank 5", "[1, C, H, W]"),
    "huge input": (lambda m: proto(m, _shape(1, 3, 1 << 30, 5)), Code.UNSUPPORTED, "1073741824", "32767"),
    "zero size": (lambda m: proto(m, _shape(1, 3, 0, 5)), Code.UNSUPPORTED, "input of shape", "32767"),
    "output is an input": (lambda m: m.done(m.x()), Code.UNSUPPORTED, "input as it is", "remove"),
    "channels-first vector out": (
        lambda m: m.done(m.node("Flatten", [m.x()]), Q(scale=np.float32(0.5))), Code.UNSUPPORTED, "channels first",
        "Flatten",
    ),
    # quantisation
    "NaN scale": (_scale(float("nan")), Code.UNSUPPORTED, "scale nan", "calibrate"),
    "zero scale": (_scale(0.0), Code.UNSUPPORTED, "scale 0.0", "calibrate"),
    "negative scale": (_scale(-0.1), Code.UNSUPPORTED, "scale -0.1", "calibrate"),
    "infinite scale": (_scale(float("inf")), Code.UNSUPPORTED, "scale inf", "calibrate"),
    "16-bit activations": (
        lambda m: conv(m, m.x(q=Q(scale=np.float32(0.1), dtype="int16"))), Code.UNSUPPORTED, "type int16", "int8",
    ),
    "activations per channel": (
        lambda m: conv(m, m.x(q=Q(scale=np.full(3, 0.1, np.float32), zero_point=np.zeros(3)))), Code.UNSUPPORTED,
        "one per tensor", "per tensor",
    ),
    "asymmetric weights": (
        lambda m: conv(m, w=m.w(q=Q(scale=np.float32(0.1), zero_point=5))), Code.UNSUPPORTED, "zero point 5",
        "symmetrically",
    ),
    "unsigned asymmetric weights": (
        lambda m: conv(m, w=m.w(q=Q(scale=np.float32(0.1), zero_point=5, dtype="uint8"))), Code.UNSUPPORTED,
        "zero point 5", "symmetrically",
    ),
    "float weights": (
        lambda m: conv(m, w=m.constant(np.ones((6, 3, 3, 3), np.float32))), Code.UNSUPPORTED, "float32", "int8",
    ),
    "scales along inputs": (
        lambda m: conv(
            m, w=m.node(
                "DequantizeLinear", [m.constant(np.ones((6, 3, 3, 3), np.int8)), m.constant(np.ones(3, np.float32))],
                axis=1,
            )
        ),
        Code.UNSUPPORTED, "3 scales along axis 1", "axis 0",
    ),
    "scale that differs": (
        lambda m: m.done(m.node("Conv", [m.dq(m.q(m.node("Relu", [m.x()])), Q(scale=np.float32(1))), m.w()])),
        Code.UNSUPPORTED, "that it was made with", "quantise",
    ),
    "scale computed": (
        lambda m: m.done(
            m.node("Relu", [m.node("DequantizeLinear", [m.input((1, 3), "int8"), m.input((1, 1), "float32")])])
        ),
        Code.UNSUPPORTED, "constant", "per tensor",
    ),
    "dynamic quantisation": (
        lambda m: m.done(m.node("ConvInteger", [m.input((1, 3, 4, 5), "int8"), m.constant(np.ones(9, "b"))])),
        Code.UNSUPPORTED, "ConvInteger", "static quantisation",
    ),
    "not quantised between": (
        lambda m: m.done(m.node("Sigmoid", [m.node("Conv", [m.x(), m.w()])])), Code.UNSUPPORTED, "result of Conv",
        "QuantizeLinear",
    ),
    "sum of unquantised": (
        lambda m: m.done(m.node("Add", [m.node("Conv", [m.x(1, 3, 6, 7), m.w()]), m.x(1, 6, 4, 5)])), Code.UNSUPPORTED,
        "result of Conv", "QuantizeLinear",
    ),
    # operators
    "unknown operator": (lambda m: m.done(m.node("Einsum", [m.x()])), Code.UNSUPPORTED, "Einsum", "operators.md"),
    "other domain": (
        lambda m: m.done(m.node("Conv", [m.x(), m.w()], domain="org.example")), Code.UNSUPPORTED, "org.example.Conv",
        "operators.md",
    ),
    "microsoft domain": (
        lambda m: m.done(m.node("Conv", [m.x(), m.w()], domain=MICROSOFT)), Code.UNSUPPORTED, "com.microsoft.Conv", "",
    ),
    "recurrent": (lambda m: m.done(m.node("LSTM", [m.x()])), Code.UNSUPPORTED, "LSTM", "convolutions"),
    "convolution of a sequence": (lambda m: conv(m, m.x(1, 3, 9), m.w(6, 3, 3)), Code.UNSUPPORTED, "rank 3", "rank 4"),
    "weights computed": (
        lambda m: conv(m, w=m.x(1, 3, 3, 3)), Code.UNSUPPORTED, "computed", "symmetrically",
    ),
    "channels do not fit": (lambda m: conv(m, w=m.w(6, 4, 3, 3)), Code.UNSUPPORTED, "3 channels", "group"),
    "stride 0": (lambda m: conv(m, strides=[0, 1]), Code.UNSUPPORTED, "strides [0, 1]", ""),
    "negative pads": (lambda m: conv(m, pads=[-1, 0, 0, 0]), Code.UNSUPPORTED, "pads [-1", "Pad"),
    "kernel larger than input": (lambda m: conv(m, w=m.w(6, 3, 9, 9)), Code.UNSUPPORTED, "Conv", "shapes"),
    "attribute of another type": (lambda m: conv(m, strides="no"), Code.UNSUPPORTED, "strides no", ""),
    "Gemm with alpha": (
        lambda m: m.done(m.node("Gemm", [m.x(1, 9), m.w(9, 4)], alpha=0.5)), Code.UNSUPPORTED, "alpha", "fold",
    ),
    "two matrices computed": (
        lambda m: m.done(m.node("MatMul", [m.x(1, 9), m.x(1, 9)])), Code.UNSUPPORTED, "weights are constant", "",
    ),
    "divided by computed": (
        lambda m: m.done(m.node("Div", [m.x(), m.x()])), Code.UNSUPPORTED, "the divisor", "multiply",
    ),
    "float picture as operand": (
        lambda m: m.done(m.node("Mul", [m.x(), m.constant(np.ones((1, 1, 4, 5), np.float32))])), Code.UNSUPPORTED,
        "float constant", "quantise the constant",
    ),
    "mean of channels": (
        lambda m: m.done(m.node("ReduceMean", [m.x()], axes=[1])), Code.UNSUPPORTED, "axes [1]", "height",
    ),
    "softmax over batch": (lambda m: m.done(m.node("Softmax", [m.x()], axis=0)), Code.UNSUPPORTED, "axis 0", ""),
    "transposed picture": (
        lambda m: conv(m, m.node("Transpose", [m.x()], perm=[0, 1, 3, 2])), Code.UNSUPPORTED, "transposed in memory",
        "[1, C, H, W]",
    ),
    "reshape that moves": (
        lambda m: m.done(m.node("Reshape", [m.x(), m.constant(np.array([1, 5, 4, 3]))])), Code.UNSUPPORTED,
        "would move data", "channels",
    ),
    "impossible reshape": (
        lambda m: m.done(m.node("Reshape", [m.x(), m.constant(np.array([1, 7]))])), Code.UNSUPPORTED, "reshapes", "",
    ),
    "padded channels": (
        lambda m: m.done(m.node("Pad", [m.x(), m.constant(np.array([0, 1, 0, 0, 0, 0, 0, 0]))])), Code.UNSUPPORTED,
        "height and width only", "crop outside",
    ),
    "reflected edges": (
        lambda m: m.done(m.node("Pad", [m.x(), m.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))], mode="reflect")),
        Code.UNSUPPORTED, "reflect", "constant",
    ),
    "linear resize": (
        lambda m: m.done(
            m.node("Resize", [m.x(), "", m.constant(np.array([1, 1, 2, 2], np.float32))], mode="linear")
        ),
        Code.UNSUPPORTED, "mode linear", "nearest",
    ),
    "enormous resize": (
        lambda m: m.done(m.node("Resize", [m.x(), "", m.constant(np.array([1, 1, 30000, 30000], np.float32))])),
        Code.UNSUPPORTED, "a tensor's sides", "shapes",
    ),
    "enormous pad": (
        lambda m: m.done(m.node("Pad", [m.x(), m.constant(np.array([0, 0, 0, 0, 0, 0, 1 << 40, 0]))])),
        Code.UNSUPPORTED, "a tensor's sides", "shapes",
    ),
    "indices of a maximum": (
        lambda m: m.done(m.node("MaxPool", [m.x()], [m.name("v"), m.name("i")], kernel_shape=[2, 2])), Code.UNSUPPORTED,
        "Indices", "second output",
    ),
    "pool without kernel": (lambda m: m.done(m.node("MaxPool", [m.x()])), Code.UNSUPPORTED, "kernel_shape", ""),
}  # fmt: skip


def refusal(model: bytes) -> PlannerError:
    with pytest.raises(PlannerError) as caught:
        import_onnx(model, name="test")
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    build, code, says, remedy = REFUSED[name]
    error = refusal(build(Model()))
    text = str(error)
    assert error.code is code, text
    assert says in text
    assert remedy in text
    if code is Code.UNSUPPORTED:
        assert error.violations
        assert all(v.hint for v in error.violations)


def test_everything_at_once() -> None:
    """Every violation, each with its layer and remedy."""
    error = refusal(_two_wrong(Model()))
    layers = [v.layer.split("_")[0] for v in error.violations]
    assert layers == ["Conv", "LSTM", "Resize"]
    assert all(v.hint for v in error.violations)


def test_goes_on_behind_an_error() -> None:
    """With the shapes that the model states, operators behind one that is refused are checked too."""
    m = Model()
    y = m.node("Einsum", [m.x()])
    z = m.q(m.node("Conv", [m.dq(m.q(y)), m.w(q=Q(scale=np.float32(0.1), zero_point=9))]))
    m.output(z, "int8")
    model = onnx.load_model_from_string(m.bytes())
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 3, 4, 5]))
    error = refusal(model.SerializeToString())
    assert [v.message.split(":")[0] for v in error.violations] == ["Einsum", "Conv"]


def test_symbolic_batch_is_one() -> None:
    graph = import_onnx(proto(Model(), _shape("N", 3, 4, 5)), name="test")
    assert graph.tensors[graph.inputs[0].tensor].shape == (4, 5, 3)


def test_memory_is_bounded() -> None:
    """Shapes that claim gigabytes allocate nothing."""
    for build in (REFUSED["2 GB in 1 kB"][0], REFUSED["enormous resize"][0], REFUSED["huge input"][0]):
        model = build(Model())
        assert len(model) < 2048
        tracemalloc.start()
        refusal(model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


def _victims() -> list[bytes]:
    m = Model()
    y = m.q(m.node("Relu", [m.node("Conv", [m.x(), m.w(3, 3, 3, 3)], pads=[1, 1, 1, 1], strides=[1, 1])]))
    y = m.dq(y)
    y = m.q(m.node("Add", [y, m.x()]))
    y = m.q(m.node("MaxPool", [m.dq(y)], kernel_shape=[2, 2]))
    y = m.node("Gemm", [m.node("Flatten", [m.dq(y)]), m.w(36, 4), m.constant(np.ones(4, np.float32))])
    return [m.done(y), REFUSED["padded channels"][0](Model()), (MODELS / "digits_b.onnx").read_bytes()]


def _survives(model: bytes) -> bool:
    code = None
    try:
        import_onnx(model, name="fuzz")
    except PlannerError as error:
        code = error.code
    assert code is not Code.INTERNAL
    return code is None


def test_mutated_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """Random bytes changed, cut or doubled: a PlannerError or a consistent graph, nothing else."""
    rng = np.random.default_rng(11)
    tried = survived = 0
    for victim, rounds in zip(_victims(), (2500, 800, 150), strict=True):
        for _ in range(rounds):
            data = bytearray(victim)
            for _ in range(int(rng.integers(1, 4))):
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
            if rng.integers(8) == 0:
                at, size = int(rng.integers(len(data))), int(rng.integers(1, 64))
                data[at : at + size] = data[at : at + size] * int(rng.integers(0, 3))
            tried, survived = tried + 1, survived + _survives(bytes(data))
    for victim in _victims()[:1]:
        for length in range(0, len(victim), 7):
            tried, survived = tried + 1, survived + _survives(victim[:length])
    with capsys.disabled():
        print(f"\n{tried} mutated models, {survived} of them still valid")


def test_random_bytes() -> None:
    rng = np.random.default_rng(12)
    for _ in range(300):
        assert not _survives(rng.bytes(int(rng.integers(0, 400))))


def _twist(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """One change that leaves a parsable model: operands, attributes, shapes, types, contents."""
    graph = model.graph
    node = graph.node[int(rng.integers(len(graph.node)))]
    names = [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output] + [graph.input[0].name, ""]
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    kind = int(rng.integers(9))
    if kind == 0 and node.input:
        node.input[int(rng.integers(len(node.input)))] = str(rng.choice(names))
    elif kind == 1 and node.input:
        del node.input[-1]
    elif kind == 2:
        node.input.append(str(rng.choice(names)))
    elif kind == 3:
        node.op_type = str(rng.choice([n.op_type for n in graph.node] + ["Softmax", "Concat", "Resize", "Transpose"]))
    elif kind == 4:
        numbers = [-(1 << 62), -3, -1, 0, 1, 2, 3, 255, 256, 40000, 1 << 31, (1 << 63) - 1]
        key = str(rng.choice(["axis", "group", "strides", "pads", "dilations", "kernel_shape", "perm", "transB"]))
        value: Any = int(rng.choice(numbers))
        if key in ("strides", "pads", "dilations", "kernel_shape", "perm"):
            value = [int(v) for v in rng.choice(numbers, int(rng.integers(0, 6)))]
        keep = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend(keep)
        node.attribute.append(helper.make_attribute(key, value, attr_type=7 if isinstance(value, list) else None))
    elif kind == 5 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = int(rng.choice([0, 1, 2, -1, 1 << 40]))
    elif kind == 6:
        tensor.dims.append(1)
    elif kind == 7:
        tensor.data_type = int(rng.integers(0, 24))
    else:
        tensor.raw_data = rng.bytes(len(tensor.raw_data))


def test_twisted_models(capsys: pytest.CaptureFixture[str]) -> None:
    """Well-formed protobuf that says something else: a PlannerError or a consistent graph."""
    rng = np.random.default_rng(13)
    tried = survived = 0
    for victim, rounds in zip(_victims(), (3000, 600, 150), strict=True):
        for _ in range(rounds):
            model = onnx.load_model_from_string(victim)
            for _ in range(int(rng.integers(1, 4))):
                _twist(model, rng)
            tried, survived = tried + 1, survived + _survives(model.SerializeToString())
    with capsys.disabled():
        print(f"\n{tried} twisted models, {survived} of them still valid")
