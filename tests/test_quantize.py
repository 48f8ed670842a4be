# SPDX-License-Identifier: Apache-2.0
"""weft quantize: a float model becomes one that imports, and bad calibration data is explained."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_builder import Writer, edge_difference

from planner_service.errors import Code, PlannerError
from planner_service.importers.onnx import import_onnx
from planner_service.ir import Conv2D
from planner_service.quantize import quantize_model

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(9)
SAMPLES = RNG.normal(0, 1, (16, 1, 3, 8, 8)).astype(np.float32)


def float_model(opset: int = 17) -> bytes:
    """Convolution, depthwise, sum, pooling, dense; batch symbolic."""
    w = Writer([helper.make_opsetid("", opset)])
    x = "image"
    w.inputs.append(helper.make_tensor_value_info(x, 1, ["N", 3, 8, 8]))

    def weights(*shape: int) -> str:
        return w.constant(RNG.normal(0, 0.3, shape).astype(np.float32))

    a = w.node("Relu", [w.node("Conv", [x, weights(8, 3, 3, 3), weights(8)], pads=[1] * 4)])
    b = w.node("Relu", [w.node("Conv", [a, weights(8, 1, 3, 3), weights(8)], pads=[1] * 4, group=8)])
    c = w.node("MaxPool", [w.node("Add", [a, b])], kernel_shape=[2, 2], strides=[2, 2])
    d = w.node("Flatten", [w.node("GlobalAveragePool", [c])])
    w.outputs.append(
        helper.make_tensor_value_info(w.node("Gemm", [d, weights(5, 8), weights(5)], transB=1), 1, ["N", 5])
    )
    return w.bytes()


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_result_imports(form: Literal["qdq", "qoperator"], per_channel: bool, opset: int) -> None:
    quantised = quantize_model(float_model(opset), {"image": SAMPLES}, per_channel=per_channel, form=form)
    graph = import_onnx(quantised, name="quantised")
    convolution = next(op for op in graph.ops if isinstance(op, Conv2D))
    assert convolution.multipliers.size == (8 if per_channel else 1)
    # Six operators in a row, each at most 1 LSB off.
    assert edge_difference(quantised, np.random.default_rng(2)) <= 4


class Network(Writer):
    """Writer of float networks on [1, 3, 16, 16]."""

    def w(self, *shape: int) -> str:
        return self.constant(RNG.normal(0, 0.25, shape).astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))


def activations(m: Network, x: str) -> str:
    a = m.node("HardSwish", [m.node("Conv", [x, m.w(8, 3, 3, 3), m.w(8)], pads=[1] * 4)])
    b = m.node("LeakyRelu", [m.node("Conv", [a, m.w(8, 1, 3, 3)], pads=[1] * 4, group=8)], alpha=0.1)
    c = m.node("AveragePool", [m.node("Concat", [a, b], axis=1)], kernel_shape=[2, 2], strides=[2, 2])
    d = m.node("Sigmoid", [m.node("Conv", [c, m.w(6, 16, 1, 1), m.w(6)])])
    e = m.node("ReduceMean", [d], axes=[2, 3], keepdims=0)
    return m.node("Softmax", [m.node("Gemm", [e, m.w(6, 4), m.w(4)])], axis=1)


def gated(m: Network, x: str) -> str:
    """Squeeze and excite, resizing, padding, Tanh, a flattened picture into MatMul."""
    a = m.node("Conv", [x, m.w(8, 3, 3, 3), m.w(8)], strides=[2, 2], pads=[1] * 4)
    a = m.node("Clip", [a, m.number(0), m.number(6)])
    g = m.node("Relu", [m.node("Conv", [m.node("GlobalAveragePool", [a]), m.w(4, 8, 1, 1), m.w(4)])])
    g = m.node("HardSigmoid", [m.node("Conv", [g, m.w(8, 4, 1, 1), m.w(8)])], alpha=1 / 6)
    a = m.node("Mul", [a, g])
    scales = m.constant(np.array([1, 1, 2, 2], np.float32))
    a = m.node("Resize", [a, "", scales], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    a = m.node("Pad", [a, m.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))])
    a = m.node("Tanh", [m.node("Conv", [a, m.w(4, 8, 3, 3)])])
    a = m.node("MaxPool", [a], kernel_shape=[3, 3], strides=[2, 2])
    return m.node("MatMul", [m.node("Reshape", [a, m.constant(np.array([1, -1]))]), m.w(196, 5)])


def unfolded(m: Network, x: str) -> str:
    """Normalisation and swish in pieces, MatMul over channels between transpositions."""
    a = m.node("Conv", [x, m.w(8, 3, 3, 3)], pads=[1] * 4)
    parameters = [m.constant(RNG.uniform(0.5, 1.5, 8).astype(np.float32)) for _ in range(4)]
    a = m.node("Relu", [m.node("BatchNormalization", [a, *parameters])])
    a = m.node("Sub", [m.node("Mul", [a, m.node("Sigmoid", [a])]), m.number(0.5)])
    a = m.node("Mul", [a, m.constant(RNG.uniform(0.5, 2, (8, 1, 1)).astype(np.float32))])
    a = m.node("MatMul", [m.node("Transpose", [a], perm=[0, 2, 3, 1]), m.w(8, 6)])
    a = m.node("Transpose", [m.node("Add", [a, m.w(6)])], perm=[0, 3, 1, 2])
    return m.node("Flatten", [m.node("GlobalMaxPool", [a])])


@pytest.mark.parametrize("build", [activations, gated, unfolded], ids=lambda b: b.__name__)
def test_networks(build: Callable[[Network, str], str]) -> None:
    """Everything that common networks are made of survives quantisation and import."""
    m = Network()
    m.inputs.append(helper.make_tensor_value_info("image", 1, [1, 3, 16, 16]))
    m.outputs.append(helper.make_tensor_value_info(build(m, "image"), 1, ["batch", "classes"]))
    samples = RNG.normal(0, 1, (12, 3, 16, 16)).astype(np.float32)
    quantised = quantize_model(m.bytes(), {"image": samples})
    assert edge_difference(quantised, np.random.default_rng(4)) <= 3


def test_samples_without_batch() -> None:
    """(samples, C, H, W) is as good as (samples, 1, C, H, W); other arrays, such as labels, are ignored."""
    model = float_model()
    one = quantize_model(model, {"image": SAMPLES})
    two = quantize_model(model, {"image": SAMPLES[:, 0], "label": np.arange(16)})
    assert one == two


def test_float_model_names_the_command() -> None:
    with pytest.raises(PlannerError) as caught:
        import_onnx(float_model(), name="model.onnx")
    assert caught.value.code is Code.FLOAT_MODEL
    assert caught.value.hint == "weft quantize model.onnx --calibration data.npz"


BAD: dict[str, tuple[dict[str, Any], Code, str]] = {
    "no data": ({}, Code.BAD_REQUEST, "no calibration data for image"),
    "other name": ({"x": SAMPLES}, Code.BAD_REQUEST, "no calibration data for image"),
    "no samples": ({"image": SAMPLES[:0]}, Code.BAD_REQUEST, "at least one"),
    "a number": ({"image": np.float32(3)}, Code.BAD_REQUEST, "at least one"),
    "other shape": ({"image": SAMPLES[:, :, :2]}, Code.BAD_REQUEST, "need (samples"),
    "NaN": ({"image": np.full_like(SAMPLES, np.nan)}, Code.BAD_REQUEST, "not a number"),
    "text": ({"image": np.full((4, 192), "a")}, Code.BAD_REQUEST, "not a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calibration(name: str) -> None:
    data, code, says = BAD[name]
    with pytest.raises(PlannerError) as caught:
        quantize_model(float_model(), data)
    assert caught.value.code is code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", Code.BAD_MODEL),
        (b"nonsense", Code.BAD_MODEL),
        (float_model()[:-9], Code.BAD_MODEL),
        (b"\x1c\0\0\0TFL3" + bytes(24), Code.BAD_MODEL),
        ((ROOT / "samples" / "models" / "digits_a.onnx").read_bytes(), Code.BAD_REQUEST),
        ((ROOT / "samples" / "models" / "digits_b.onnx").read_bytes(), Code.BAD_REQUEST),
    ],
    ids=["empty", "text", "cut", "tflite", "quantised", "quantised too"],
)
def test_bad_model(data: bytes, code: Code) -> None:
    with pytest.raises(PlannerError) as caught:
        quantize_model(data, {"image": SAMPLES})
    assert caught.value.code is code
    assert caught.value.hint


def test_external_weights() -> None:
    model = onnx.load_model_from_string(float_model())
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    with pytest.raises(PlannerError) as caught:
        quantize_model(model.SerializeToString(), {"image": SAMPLES})
    assert caught.value.code is Code.UNSUPPORTED


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("onnxruntime"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PlannerError) as caught:
        quantize_model(float_model(), {"image": SAMPLES})
    assert caught.value.code is Code.UNAVAILABLE
    assert "pip install" in caught.value.hint
