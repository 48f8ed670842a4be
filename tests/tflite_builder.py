# SPDX-License-Identifier: Apache-2.0
"""Writes small TFLite models for tests, through the published flatbuffer schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

_TYPES = {
    "float32": tflite.TensorType.FLOAT32,
    "int32": tflite.TensorType.INT32,
    "int64": tflite.TensorType.INT64,
    "uint8": tflite.TensorType.UINT8,
    "int8": tflite.TensorType.INT8,
    "int16": tflite.TensorType.INT16,
}


class TfliteBuilder:
    """Tensors and operators are added in order; ``build`` returns the file's bytes."""

    def __init__(self) -> None:
        self._b = flatbuffers.Builder(4096)
        self._tensors: list[int] = []
        self._buffers: list[bytes] = [b""]
        self._codes: list[tuple[str, str]] = []
        self._operators: list[int] = []

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str = "int8",
        *,
        scale: float | Sequence[float] | NDArray[Any] | None = None,
        zero_point: int | Sequence[int] = 0,
        axis: int = 0,
        data: NDArray[Any] | None = None,
        name: str | None = None,
        buffer: int | None = None,
        variable: bool = False,
    ) -> int:
        """Index of a new tensor; constant if it has ``data``. ``buffer`` overrides the buffer's number."""
        b = self._b
        label = b.CreateString(f"t{len(self._tensors)}" if name is None else name)
        dims = b.CreateNumpyVector(np.array(shape, np.int32))
        quantization = None
        if scale is not None:
            scales = b.CreateNumpyVector(np.atleast_1d(np.array(scale, np.float32)))
            points = np.broadcast_to(np.array(zero_point, np.int64), np.atleast_1d(np.array(scale)).shape)
            zeros = b.CreateNumpyVector(np.ascontiguousarray(points))
            tflite.QuantizationParametersStart(b)
            tflite.QuantizationParametersAddScale(b, scales)
            tflite.QuantizationParametersAddZeroPoint(b, zeros)
            tflite.QuantizationParametersAddQuantizedDimension(b, axis)
            quantization = tflite.QuantizationParametersEnd(b)
        if data is not None:
            self._buffers.append(np.ascontiguousarray(data).tobytes())
        number = (len(self._buffers) - 1 if data is not None else 0) if buffer is None else buffer
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, dims)
        tflite.TensorAddType(b, _TYPES[dtype])
        tflite.TensorAddBuffer(b, number)
        tflite.TensorAddName(b, label)
        tflite.TensorAddIsVariable(b, variable)
        if quantization is not None:
            tflite.TensorAddQuantization(b, quantization)
        self._tensors.append(tflite.TensorEnd(b))
        return len(self._tensors) - 1

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        table: str = "",
        custom: str = "",
        **options: Any,
    ) -> None:
        """``options`` are fields of the schema's options ``table`` in snake case; lists become int32 vectors."""
        b = self._b
        vectors = {
            k: b.CreateNumpyVector(np.array(v, np.int32)) if isinstance(v, list | tuple) else v
            for k, v in options.items()
        }
        union = 0
        if table:
            getattr(tflite, f"{table}Start")(b)
            for field, value in vectors.items():
                camel = re.sub(r"(^|_)(\w)", lambda m: m.group(2).upper(), field)
                getattr(tflite, f"{table}Add{camel}")(b, value)
            union = getattr(tflite, f"{table}End")(b)
        ins, outs = b.CreateNumpyVector(np.array(inputs, np.int32)), b.CreateNumpyVector(np.array(outputs, np.int32))
        if (kind, custom) not in self._codes:
            self._codes.append((kind, custom))
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, self._codes.index((kind, custom)))
        tflite.OperatorAddInputs(b, ins)
        tflite.OperatorAddOutputs(b, outs)
        if table:
            tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, table))
            tflite.OperatorAddBuiltinOptions(b, union)
        self._operators.append(tflite.OperatorEnd(b))

    def build(
        self, inputs: Sequence[int], outputs: Sequence[int], *, subgraphs: int = 1, external: int = 0, version: int = 3
    ) -> bytes:
        """The file. ``subgraphs`` repeats the graph; ``external`` is the offset every constant's buffer claims."""
        b = self._b
        tensors, operators = self._offsets(self._tensors), self._offsets(self._operators)
        ins, outs = b.CreateNumpyVector(np.array(inputs, np.int32)), b.CreateNumpyVector(np.array(outputs, np.int32))
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddInputs(b, ins)
        tflite.SubGraphAddOutputs(b, outs)
        tflite.SubGraphAddOperators(b, operators)
        graph = tflite.SubGraphEnd(b)
        graphs = self._offsets([graph] * subgraphs)
        buffers = self._offsets([self._buffer(data, external) for data in self._buffers])
        codes = self._offsets([self._code(kind, custom) for kind, custom in self._codes])
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, version)
        tflite.ModelAddOperatorCodes(b, codes)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddBuffers(b, buffers)
        b.Finish(tflite.ModelEnd(b), b"TFL3")
        return bytes(b.Output())

    def _offsets(self, offsets: Sequence[int]) -> int:
        self._b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._b.PrependUOffsetTRelative(offset)
        return int(self._b.EndVector())

    def _buffer(self, data: bytes, external: int) -> int:
        b = self._b
        content = 0
        if data:
            b.StartVector(1, len(data), 16)
            b.head -= len(data)
            b.Bytes[b.head : b.head + len(data)] = data
            content = b.EndVector()
        tflite.BufferStart(b)
        if data:
            tflite.BufferAddData(b, content)
            if external:
                tflite.BufferAddOffset(b, external)
                tflite.BufferAddSize(b, len(data))
        return int(tflite.BufferEnd(b))

    def _code(self, kind: str, custom: str) -> int:
        b = self._b
        number = getattr(tflite.BuiltinOperator, kind)
        label = b.CreateString(custom) if custom else 0
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(number, 127))
        tflite.OperatorCodeAddBuiltinCode(b, number)
        tflite.OperatorCodeAddVersion(b, 1)
        if custom:
            tflite.OperatorCodeAddCustomCode(b, label)
        return int(tflite.OperatorCodeEnd(b))


def single(
    kind: str,
    inputs: Sequence[Mapping[str, Any]],
    output: Mapping[str, Any],
    table: str = "",
    **options: Any,
) -> bytes:
    """A model of one operator; operands are the arguments of ``TfliteBuilder.tensor``, those without data are the
    network's inputs."""
    b = TfliteBuilder()
    indices = [b.tensor(**operand) for operand in inputs]
    result = b.tensor(**output)
    b.operator(kind, indices, [result], table, **options)
    return b.build([i for i, operand in zip(indices, inputs, strict=True) if operand.get("data") is None], [result])
