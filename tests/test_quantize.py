# SPDX-License-Identifier: Apache-2.0
"""weft quantize: a float model becomes one that imports, and bad calibration data is explained."""

from __future__ import annotations

import builtins
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
        ((ROOT / "samples" / "models" / "digits_a.onnx").read_bytes(), Code.BAD_REQUEST),
        ((ROOT / "samples" / "models" / "digits_b.onnx").read_bytes(), Code.BAD_REQUEST),
    ],
    ids=["empty", "text", "cut", "quantised", "quantised too"],
)
def test_bad_model(data: bytes, code: Code) -> None:
    with pytest.raises(PlannerError) as caught:
        quantize_model(data, {"image": SAMPLES})
    assert caught.value.code is code


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
