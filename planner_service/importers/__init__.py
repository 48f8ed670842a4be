# SPDX-License-Identifier: Apache-2.0
"""Models in, graphs out. Formats' own libraries stop here."""

from __future__ import annotations

from planner_service.errors import Code, PlannerError
from planner_service.ir import Graph

MAX_MODEL_BYTES = 256 << 20
_TFLITE_IDENTIFIER = b"TFL3"


def import_model(data: bytes, *, name: str) -> Graph:
    """Read a TFLite or ONNX model, told apart by its bytes, and run the passes over it.

    PlannerError: TOO_LARGE, BAD_MODEL (not a model, damaged), FLOAT_MODEL, or UNSUPPORTED with every violation."""
    if len(data) > MAX_MODEL_BYTES:
        raise PlannerError(
            Code.TOO_LARGE,
            f"the model has {len(data)} bytes, the limit is {MAX_MODEL_BYTES}",
            hint="such a model will not fit a microcontroller: use a smaller one",
        )
    if not data:
        raise PlannerError(Code.BAD_MODEL, "the model is empty", hint="give a .tflite or .onnx file")
    from planner_service.passes import run_passes

    if is_tflite(data):
        from planner_service.importers.tflite import import_tflite

        graph = import_tflite(data, name=name)
    elif _looks_like_onnx(data):
        from planner_service.importers.onnx import import_onnx

        graph = import_onnx(data, name=name)
    else:
        raise PlannerError(
            Code.BAD_MODEL, "these bytes are neither a TFLite nor an ONNX model", hint="give a .tflite or .onnx file"
        )
    graph.check()
    graph = run_passes(graph)
    graph.check()
    return graph


def is_tflite(data: bytes) -> bool:
    """Whether a file says that it is a TFLite model."""
    return data[4:8] == _TFLITE_IDENTIFIER


def _looks_like_onnx(data: bytes) -> bool:
    """Whether the first byte is a protobuf tag of a field of ONNX's ModelProto (1 to 8, 14, 20, 25 with its type)."""
    varint, length = 0, 2
    tags = {(1, varint), (5, varint)} | {(n, length) for n in (2, 3, 4, 6, 7, 8, 14)}
    return (data[0] >> 3, data[0] & 7) in tags
