# SPDX-License-Identifier: Apache-2.0
"""TFLite bytes to plain records, through the published flatbuffer schema (package ``tflite``). Everything the file
claims is bounded here; nothing behind this module reads untrusted offsets."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray

from planner_service.errors import Code, PlannerError, Violation

#: Limits of the plan format (tensors, operators), of TFLite (rank) and against hostile files.
MAX_RECORDS = 4095
MAX_RANK = 8
MAX_OPERANDS = 65535
MAX_CONSTANT_BYTES = 256 << 20
MAX_NAME = 1024

#: What reading a damaged flatbuffer can raise; only caught around the reading itself.
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError, KeyError)

_DTYPES = {
    tflite.TensorType.FLOAT32: "float32",
    tflite.TensorType.FLOAT16: "float16",
    tflite.TensorType.INT32: "int32",
    tflite.TensorType.UINT8: "uint8",
    tflite.TensorType.INT64: "int64",
    tflite.TensorType.INT8: "int8",
    tflite.TensorType.INT16: "int16",
    tflite.TensorType.BOOL: "bool",
}
_ACTIVATIONS = {v: k for k, v in vars(tflite.ActivationFunctionType).items() if isinstance(v, int)}
_OPERATORS = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
_NO_DATA: NDArray[Any] = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """A tensor of the file. ``data`` is a view of the file's bytes in ``shape``, None unless constant."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    axis: int
    data: NDArray[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOperator:
    """An operator of the file; an absent optional input is -1. ``options`` by the schema's names in snake case."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The file's one subgraph. ``refused`` holds what is legal in a file but not supported, per tensor."""

    tensors: tuple[SourceTensor, ...]
    operators: tuple[SourceOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    refused: tuple[Violation, ...] = ()


def bad(message: str, layer: str = "") -> PlannerError:
    """BAD_MODEL with the remedy that fits a damaged file."""
    return PlannerError(Code.BAD_MODEL, message, layer=layer, hint="export the model again; the file may be damaged")


def read_model(data: bytes) -> SourceModel:
    """PlannerError: BAD_MODEL for damaged files, UNSUPPORTED for several subgraphs or data outside the file, TOO_LARGE
    beyond the limits."""
    try:
        return _read(data)
    except _DAMAGE as e:
        raise bad("this is not a well-formed TFLite model") from e


def _length(count: int, limit: int, what: str) -> int:
    if not 0 <= count <= limit:
        raise PlannerError(
            Code.TOO_LARGE, f"the model claims {count} {what}, the limit is {limit}", hint="use a smaller model"
        )
    return count


def _refuse(message: str, hint: str, layer: str = "") -> PlannerError:
    return PlannerError(Code.UNSUPPORTED, message, layer=layer, hint=hint)


def _read(data: bytes) -> SourceModel:
    model = tflite.Model.GetRootAs(data, 0)
    if model.Version() != 3:
        raise bad(f"TFLite schema version {model.Version()}, expected 3")
    subgraphs = model.SubgraphsLength()
    if subgraphs != 1:
        if subgraphs == 0:
            raise bad("the model has no subgraph")
        raise _refuse(f"the model has {subgraphs} subgraphs", "export a model with one function, without control flow")
    graph = model.Subgraphs(0)
    n_tensors = _length(graph.TensorsLength(), MAX_RECORDS, "tensors")
    n_operators = _length(graph.OperatorsLength(), MAX_RECORDS, "operators")
    n_buffers = _length(model.BuffersLength(), 0xFFFF, "buffers")
    n_codes = _length(model.OperatorCodesLength(), 0xFFFF, "operator codes")
    refused: list[Violation] = []
    tensors = [_tensor(model, n_buffers, graph.Tensors(i), i, refused) for i in range(n_tensors)]
    operators = []
    operands, budget = MAX_OPERANDS, MAX_CONSTANT_BYTES
    for i in range(n_operators):
        source = graph.Operators(i)
        operands -= _length(source.InputsLength() + source.OutputsLength(), operands, "operands")
        operator = _operator(model, n_codes, n_tensors, source, i)
        # Tensors are views of the file; what many operators read of one is what costs memory and time.
        budget -= sum(_weight(tensors[t]) for t in (*operator.inputs, *operator.outputs) if t >= 0)
        if budget < 0:
            raise PlannerError(
                Code.TOO_LARGE, f"constants of more than {MAX_CONSTANT_BYTES} bytes", hint="use a smaller model"
            )
        operators.append(operator)

    def ends(count: int, get: Callable[[int], int], what: str) -> tuple[int, ...]:
        if count == 0:
            raise bad(f"the model has no {what}")
        found = tuple(int(get(i)) for i in range(_length(count, 16, what)))
        if any(not 0 <= t < n_tensors for t in found):
            raise bad(f"the model's {what} name a tensor that does not exist")
        return found

    return SourceModel(
        tensors=tuple(tensors),
        operators=tuple(operators),
        inputs=ends(graph.InputsLength(), graph.Inputs, "inputs"),
        outputs=ends(graph.OutputsLength(), graph.Outputs, "outputs"),
        refused=tuple(refused),
    )


def _weight(tensor: SourceTensor) -> int:
    """Bytes that an operator's look at a tensor may take; a scale becomes a Python number."""
    return 64 * (len(tensor.scales) + len(tensor.zero_points)) + (tensor.data.nbytes if tensor.data is not None else 0)


def _vector(length: int, as_numpy: Callable[[], Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.asarray(as_numpy()) if length else np.zeros(0, dtype)


def _tensor(model: Any, n_buffers: int, source: Any, index: int, refused: list[Violation]) -> SourceTensor:
    name = (source.Name() or b"")[:MAX_NAME].decode("utf-8", "replace") or f"tensor_{index}"
    if source.IsVariable():
        refused.append(Violation(name, "variable tensors hold state between runs", "export the model without state"))
    if source.Sparsity() is not None:
        refused.append(Violation(name, "sparse tensors are not supported", "export the model without sparsity"))
    rank = _length(source.ShapeLength(), MAX_RANK, f"dimensions of {name}")
    shape = tuple(int(source.Shape(i)) for i in range(rank))
    dtype = _DTYPES.get(source.Type(), f"type {source.Type()}")
    quantization = source.Quantization()
    scales, zero_points, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    if quantization is not None:
        n_scales = _length(quantization.ScaleLength(), 0x7FFF, f"scales of {name}")
        n_zeros = _length(quantization.ZeroPointLength(), 0x7FFF, f"zero points of {name}")
        scales = _vector(n_scales, quantization.ScaleAsNumpy, np.float32)
        zero_points = _vector(n_zeros, quantization.ZeroPointAsNumpy, np.int64)
        axis = int(quantization.QuantizedDimension())
    buffer = source.Buffer()
    if not 0 <= buffer < n_buffers:
        raise bad(f"buffer {buffer} does not exist", name)
    content = model.Buffers(buffer)
    if content.Offset() > 1:
        raise _refuse(
            "constants outside the flatbuffer are not supported", "export a model below 2 GB with inline data", name
        )
    length = _length(content.DataLength(), MAX_CONSTANT_BYTES, f"bytes of {name}")
    values = None
    if length:
        values = _constant(content.DataAsNumpy(), length, dtype, shape, name)
    return SourceTensor(
        name=name, shape=shape, dtype=dtype, scales=scales, zero_points=zero_points, axis=axis, data=values
    )


def _constant(raw: NDArray[np.uint8], length: int, dtype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """The buffer in the tensor's type and shape; types that no operator reads stay bytes."""
    if dtype not in _DTYPES.values():
        return _NO_DATA
    wanted = np.dtype(dtype).newbyteorder("<")
    if any(d < 0 for d in shape) or math.prod(shape) * wanted.itemsize != length:
        raise bad(f"constant of shape {shape} and type {dtype} has {length} bytes", name)
    return raw.view(wanted).reshape(shape)


def _operator(model: Any, n_codes: int, n_tensors: int, source: Any, index: int) -> SourceOperator:
    code_index = source.OpcodeIndex()
    if not 0 <= code_index < n_codes:
        raise bad(f"operator {index} has code {code_index}, which does not exist")
    code = model.OperatorCodes(code_index)
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    kind = _OPERATORS.get(builtin, f"operator {builtin}")
    if kind == "CUSTOM":
        kind = f"CUSTOM {(code.CustomCode() or b'')[:MAX_NAME].decode('utf-8', 'replace')}"
    inputs = tuple(int(source.Inputs(i)) for i in range(source.InputsLength()))
    outputs = tuple(int(source.Outputs(i)) for i in range(source.OutputsLength()))
    if any(not -1 <= t < n_tensors for t in inputs) or any(not 0 <= t < n_tensors for t in outputs):
        raise bad(f"operator {index} ({kind}) names a tensor that does not exist")
    if not outputs:
        raise bad(f"operator {index} ({kind}) has no output")
    return SourceOperator(kind=kind, inputs=inputs, outputs=outputs, options=_options(kind, source))


def _options(kind: str, source: Any) -> dict[str, Any]:
    """The operator's options; those an absent table leaves out have the schema's defaults."""
    if kind not in _OPTIONS:
        return {}
    table_name, fields = _OPTIONS[kind]
    table = getattr(tflite, table_name)()
    union = source.BuiltinOptions()
    if union is None or source.BuiltinOptionsType() != getattr(tflite.BuiltinOptions, table_name):
        return {name: default for name, (_, default) in fields.items()}
    table.Init(union.Bytes, union.Pos)
    values = {name: getattr(table, method)() for name, (method, _) in fields.items()}
    if "activation" in values:
        values["activation"] = _ACTIVATIONS.get(values["activation"], f"activation {values['activation']}")
    return values


_Fields = dict[str, tuple[str, Any]]
_ACTIVATION: _Fields = {"activation": ("FusedActivationFunction", "NONE")}
_STRIDES: _Fields = {"padding": ("Padding", 0), "stride_h": ("StrideH", 0), "stride_w": ("StrideW", 0)}
_DILATIONS: _Fields = {"dilation_h": ("DilationHFactor", 1), "dilation_w": ("DilationWFactor", 1)}
_POOL: tuple[str, _Fields] = (
    "Pool2DOptions",
    {**_STRIDES, **_ACTIVATION, "kernel_h": ("FilterHeight", 0), "kernel_w": ("FilterWidth", 0)},
)
_REDUCER: tuple[str, _Fields] = ("ReducerOptions", {"keep_dims": ("KeepDims", False)})

#: operator: (options table, {our name: (accessor, default)}).
_OPTIONS: dict[str, tuple[str, _Fields]] = {
    "CONV_2D": ("Conv2DOptions", {**_STRIDES, **_DILATIONS, **_ACTIVATION}),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        {**_STRIDES, **_DILATIONS, **_ACTIVATION, "multiplier": ("DepthMultiplier", 0)},
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", {**_ACTIVATION, "weights_format": ("WeightsFormat", 0)}),
    "ADD": ("AddOptions", _ACTIVATION),
    "SUB": ("SubOptions", _ACTIVATION),
    "MUL": ("MulOptions", _ACTIVATION),
    "CONCATENATION": ("ConcatenationOptions", {"axis": ("Axis", 0), **_ACTIVATION}),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "MEAN": _REDUCER,
    "REDUCE_MAX": _REDUCER,
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": ("Alpha", 0.0)}),
    "SOFTMAX": ("SoftmaxOptions", {"beta": ("Beta", 0.0)}),
    "RESIZE_NEAREST_NEIGHBOR": (
        "ResizeNearestNeighborOptions",
        {"align_corners": ("AlignCorners", False), "half_pixel": ("HalfPixelCenters", False)},
    ),
}
