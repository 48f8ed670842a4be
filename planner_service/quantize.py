# SPDX-License-Identifier: Apache-2.0
"""``weft quantize``: static int8 quantisation of a float ONNX model by onnxruntime's own quantiser, an optional extra.

Choices that suit the engine: int8 activations with zero points, symmetric int8 weights, per output channel by default;
activation functions that a zero point already implies (Relu at the bottom of the range) disappear."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from planner_service.errors import Code, PlannerError
from planner_service.importers import is_tflite

MIN_OPSET = 13
#: Larger models do not fit any board that Weft is for.
MAX_MODEL_BYTES = 256 << 20

#: What onnxruntime leaves float in QDQ form unless told: operators that Weft runs from a table or exactly.
_MORE_OPERATORS = (
    "Div",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "ReduceMean",
    "Sub",
    "Tanh",
)

Arrays = NDArray[Any]


def quantize_model(
    data: bytes,
    calibration: Mapping[str, Arrays],
    *,
    per_channel: bool = True,
    form: Literal["qdq", "qoperator"] = "qdq",
) -> bytes:
    """Return the int8 model of float ONNX model ``data``.

    ``calibration`` maps each input's name to an array (samples, \\*shape without batch) or (samples, 1, \\*shape...);
    arrays of other names are ignored, so that a labelled test set serves as it is. ``form`` is how the result writes
    quantisation: "qdq" (QuantizeLinear and DequantizeLinear around float operators) or "qoperator".

    Raises PlannerError: UNAVAILABLE without onnxruntime, BAD_MODEL, BAD_REQUEST (calibration data), UNSUPPORTED."""
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise PlannerError(
            Code.UNAVAILABLE, "quantisation needs onnxruntime", hint="pip install 'weft[quantize]'"
        ) from error

    if form not in ("qdq", "qoperator"):
        raise PlannerError(Code.BAD_REQUEST, f"unknown form {form!r}", hint="use qdq or qoperator")
    model = _parse(data)
    feeds = _feeds(model, calibration)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands the samples to onnxruntime one by one."""

        def __init__(self) -> None:
            self._rest: Iterator[dict[str, Arrays]] = iter(feeds)

        def get_next(self) -> dict[str, Arrays] | None:
            return next(self._rest, None)

    wanted = quantization.QuantFormat.QDQ if form == "qdq" else quantization.QuantFormat.QOperator
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry, *_MORE_OPERATORS})
    chatter = logging.getLogger()
    level = chatter.level
    with tempfile.TemporaryDirectory(prefix="weft-quantize-") as folder:
        source, prepared, result = (Path(folder, f"{n}.onnx") for n in ("float", "prepared", "int8"))
        try:
            chatter.setLevel(logging.CRITICAL)
            # As a file: given a ModelProto, onnxruntime 1.32 loses constants that shapes depend on.
            onnx.save(model, source)
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                result,
                Reader(),
                quant_format=wanted,
                per_channel=per_channel,
                op_types_to_quantize=operators if form == "qdq" else None,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            return result.read_bytes()
        except Exception as error:  # onnxruntime raises bare Exception, RuntimeError, ValueError and its own kinds
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise PlannerError(
                Code.UNSUPPORTED,
                f"onnxruntime cannot quantise this model: {first[0]}",
                hint="check that onnxruntime runs the float model on the calibration data",
            ) from error
        finally:
            chatter.setLevel(level)


def _parse(data: bytes) -> Any:
    """Parse, bring to opset 13 and check the float model."""
    if len(data) > MAX_MODEL_BYTES:
        raise PlannerError(Code.TOO_LARGE, f"model has {len(data)} bytes, the limit is {MAX_MODEL_BYTES}")
    if is_tflite(data):
        raise PlannerError(
            Code.BAD_MODEL,
            "this is a TFLite model; float ONNX models are quantised here",
            hint="a TFLite model is quantised by its converter: full integer quantisation, a representative_dataset",
        )
    try:
        model = onnx.load_model_from_string(data)
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
            raise PlannerError(
                Code.UNSUPPORTED, "weights are in an external file", hint="save the model with its weights inside"
            )
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if opset < MIN_OPSET:
            model = onnx.version_converter.convert_version(model, MIN_OPSET)
        onnx.checker.check_model(model)
    except PlannerError:
        raise
    except Exception as error:  # protobuf and the checker raise many unrelated kinds
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise PlannerError(
            Code.BAD_MODEL,
            f"not a valid ONNX model: {first[0]}",
            hint="export the model again; the file may be damaged",
        ) from error
    if any(n.op_type == "QuantizeLinear" or n.op_type.startswith("QLinear") for n in model.graph.node):
        raise PlannerError(Code.BAD_REQUEST, "the model is quantised already", hint="plan it as it is")
    return model


def _feeds(model: Any, calibration: Mapping[str, Arrays]) -> list[dict[str, Arrays]]:
    """Split the arrays into one feed of batch 1 per sample."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if missing := [i.name for i in inputs if i.name not in calibration]:
        raise PlannerError(
            Code.BAD_REQUEST,
            f"no calibration data for {', '.join(missing)}",
            hint=f"numpy.savez('data.npz', **{{{missing[0]!r}: samples}}); there is {', '.join(calibration) or 'none'}",
        )
    feeds: list[dict[str, Arrays]] = []
    counts = {len(calibration[i.name]) if calibration[i.name].ndim else 0 for i in inputs}
    if len(counts) != 1 or 0 in counts:
        raise PlannerError(Code.BAD_REQUEST, "inputs need the same number of calibration samples, at least one")
    arrays: dict[str, Arrays] = {}
    for i in inputs:
        shape = [d.dim_value or 1 for d in i.type.tensor_type.shape.dim]
        array = np.asarray(calibration[i.name])
        if array.dtype.kind not in "fiub" or not np.all(np.isfinite(array)):
            raise PlannerError(Code.BAD_REQUEST, f"calibration data of {i.name} holds something that is not a number")
        try:
            arrays[i.name] = array.astype(np.float32).reshape(len(array), *shape)
        except ValueError as error:
            raise PlannerError(
                Code.BAD_REQUEST, f"calibration data of {i.name} has shape {array.shape}, need (samples, *{shape})"
            ) from error
    for index in range(counts.pop()):
        feeds.append({name: array[index] for name, array in arrays.items()})
    return feeds
