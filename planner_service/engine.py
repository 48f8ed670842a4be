# SPDX-License-Identifier: Apache-2.0
"""The C engine, built for the host, called through ctypes: the same source that runs on the boards.

The library is ``build/engine/libweft.so`` of the source tree (``make engine``) or what ``WEFT_ENGINE`` names.
"""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner_service.errors import Code, PlannerError, Violation
from planner_service.format import ERROR_TEXT, DType, EngineError

DEFAULT_LIBRARY = Path(__file__).resolve().parent.parent / "build" / "engine" / "libweft.so"
GUARD = 64  #: canary bytes on each side of the arena
CANARY = 0xA5


class _Error(ct.Structure):
    _fields_ = (("code", ct.c_int), ("record", ct.c_uint16), ("opcode", ct.c_uint8), ("offset", ct.c_uint32))


class _Limits(ct.Structure):
    _fields_ = (
        ("arena_bytes", ct.c_uint32),
        ("row_steps", ct.c_uint32),
        ("calls", ct.c_uint32),
        ("macs", ct.c_uint64),
        ("elements", ct.c_uint64),
    )


class _Plan(ct.Structure):
    _fields_ = (("counts", ct.c_uint16 * 11), ("pointers", ct.c_void_p * 11), ("weights_len", ct.c_uint32))


class _Info(ct.Structure):
    _fields_ = (
        ("arena_bytes", ct.c_uint32),
        ("plan_version", ct.c_uint32),
        ("total_len", ct.c_uint32),
        ("row_steps", ct.c_uint32),
        ("calls", ct.c_uint32),
        ("macs", ct.c_uint64),
        ("base_macs", ct.c_uint64),
        ("elements", ct.c_uint64),
        ("model_id", ct.POINTER(ct.c_uint8)),
        ("vendor_id", ct.POINTER(ct.c_uint8)),
        ("class_id", ct.POINTER(ct.c_uint8)),
    )


class _TensorInfo(ct.Structure):
    _fields_ = (
        ("h", ct.c_uint16),
        ("w", ct.c_uint16),
        ("c", ct.c_uint16),
        ("dtype", ct.c_int),
        ("scale", ct.c_float),
        ("zero_point", ct.c_int8),
    )


class _Counts(ct.Structure):
    _fields_ = (
        ("macs", ct.c_uint64),
        ("elements", ct.c_uint64),
        ("calls", ct.c_uint32),
        ("row_steps", ct.c_uint32),
    )


_INPUT_FN = ct.CFUNCTYPE(ct.c_int, ct.c_void_p, ct.c_uint, ct.c_uint, ct.c_void_p, ct.c_size_t)
_STEP_FN = ct.CFUNCTYPE(ct.c_int, ct.c_void_p)
_PROFILE_FN = ct.CFUNCTYPE(None, ct.c_void_p, ct.c_uint, ct.c_int)


class _Io(ct.Structure):
    _fields_ = (
        ("ctx", ct.c_void_p),
        ("input_fn", _INPUT_FN),
        ("external", ct.POINTER(ct.c_void_p)),
        ("step_fn", _STEP_FN),
        ("profile_fn", _PROFILE_FN),
        ("op_fn", _PROFILE_FN),
        ("counts", ct.POINTER(_Counts)),
    )


class InputMode(IntEnum):
    """``weft_input_mode_t``."""

    RESIDENT = 0
    STREAMED = 1
    EXTERNAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``weft_limits_t``: what the caller lets a plan use; 0 is no limit."""

    arena_bytes: int = 0
    row_steps: int = 0
    calls: int = 0
    macs: int = 0
    elements: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the kernels did, counted while they ran."""

    macs: int
    elements: int
    calls: int
    row_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IoInfo:
    """Shape (H, W, C) and quantisation of a network input or output."""

    shape: tuple[int, int, int]
    dtype: DType
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Outputs as int8 (H, W, C), what was counted, and the bytes each stage ended in (if asked for)."""

    outputs: list[NDArray[np.int8]]
    counts: Counts
    stages: list[bytes]


def bad_plan(code: int, record: int = 0xFFFF, offset: int = 0) -> PlannerError:
    """The engine's error as a PlannerError; ``code`` is negative as the engine returns it."""
    try:
        error = EngineError(-code)
    except ValueError:
        return PlannerError(Code.INTERNAL, f"the engine returned the unknown code {code}")
    message, remedy = ERROR_TEXT[error]
    where = f"record {record}, " if record != 0xFFFF else ""
    return PlannerError(
        Code.BAD_PLAN,
        f"the engine refuses the plan: {message}",
        hint=remedy,
        violations=[Violation("", f"WEFT_ERR_{error.name} at {where}byte offset {offset}")],
    )


class Engine:
    """The engine's library. Instances are cheap to share; plans keep a reference."""

    def __init__(self, library: Path | None = None) -> None:
        path = library or Path(os.environ.get("WEFT_ENGINE") or DEFAULT_LIBRARY)
        try:
            lib = ct.CDLL(str(path))
        except OSError as error:
            raise PlannerError(
                Code.UNAVAILABLE,
                "the engine is not built for this host",
                hint="run `make engine` in the source tree, or set WEFT_ENGINE to the library",
            ) from error
        lib.weft_open.argtypes = (ct.POINTER(_Plan), ct.c_void_p, ct.c_size_t, ct.POINTER(_Limits), ct.POINTER(_Error))
        lib.weft_run.argtypes = (ct.POINTER(_Plan), ct.c_void_p, ct.c_size_t, ct.POINTER(_Io))
        for name in ("weft_arena_size", "weft_arena_align", "weft_input_offset", "weft_output_offset"):
            getattr(lib, name).restype = ct.c_size_t
        self._lib = lib

    def open(self, plan: bytes, limits: Limits | None = None) -> EnginePlan:
        """Verify ``plan``; PlannerError(BAD_PLAN) says what the engine found and where."""
        return EnginePlan(self._lib, plan, limits or Limits())


class EnginePlan:
    """A verified plan, ready to run."""

    def __init__(self, lib: ct.CDLL, plan: bytes, limits: Limits) -> None:
        self._lib = lib
        words = np.zeros(len(plan) // 8 + 1, dtype=np.uint64)  # 8-aligned storage
        words.view(np.uint8)[: len(plan)] = np.frombuffer(plan, dtype=np.uint8)
        self._storage = words
        self._plan = _Plan()
        error = _Error()
        bounds = _Limits(limits.arena_bytes, limits.row_steps, limits.calls, limits.macs, limits.elements)
        code = lib.weft_open(self._plan, words.ctypes.data, len(plan), bounds, error)
        if code:
            raise bad_plan(code, error.record, error.offset)
        self.arena_size = int(lib.weft_arena_size(ct.byref(self._plan)))
        self.arena_align = int(lib.weft_arena_align(ct.byref(self._plan)))

    @cached_property
    def info(self) -> dict[str, int | str]:
        """``weft_plan_info``: figures and ids (hex)."""
        raw = _Info()
        self._lib.weft_plan_info(ct.byref(self._plan), ct.byref(raw))
        names = ("arena_bytes", "plan_version", "total_len", "row_steps", "calls", "macs", "base_macs", "elements")
        result: dict[str, int | str] = {name: int(getattr(raw, name)) for name in names}
        result["model_id"] = bytes(raw.model_id[:32]).hex()
        result["vendor_id"] = bytes(raw.vendor_id[:16]).hex()
        result["class_id"] = bytes(raw.class_id[:16]).hex()
        return result

    @cached_property
    def inputs(self) -> list[IoInfo]:
        """Network inputs."""
        return [self._io("input", i) for i in range(self._lib.weft_input_count(ct.byref(self._plan)))]

    @cached_property
    def outputs(self) -> list[IoInfo]:
        """Network outputs."""
        return [self._io("output", i) for i in range(self._lib.weft_output_count(ct.byref(self._plan)))]

    def _io(self, kind: str, number: int) -> IoInfo:
        raw = _TensorInfo()
        getattr(self._lib, f"weft_{kind}_info")(ct.byref(self._plan), number, ct.byref(raw))
        return IoInfo(
            shape=(raw.h, raw.w, raw.c), dtype=DType(raw.dtype), scale=float(raw.scale), zero_point=raw.zero_point
        )

    def input_mode(self, number: int) -> InputMode:
        """How network input ``number`` reaches the engine."""
        return InputMode(self._lib.weft_input_mode(ct.byref(self._plan), number))

    def run(
        self,
        inputs: Sequence[NDArray[np.int8]],
        *,
        arena_bytes: int | None = None,
        keep_stages: bool = False,
        step: Callable[[], bool] | None = None,
    ) -> RunResult:
        """Run once on int8 ``inputs`` (H, W, C).

        The arena has exactly ``weft_arena_size()`` bytes (or ``arena_bytes``) between canaries; one that changed is
        PlannerError(INTERNAL). ``step`` is called after every row step and ends the run by returning True.
        """
        if [i.shape for i in self.inputs] != [a.shape for a in inputs] or any(a.dtype != np.int8 for a in inputs):
            wanted = ", ".join(f"int8 {i.shape}" for i in self.inputs)
            given = ", ".join(f"{a.dtype} {a.shape}" for a in inputs)
            raise PlannerError(Code.BAD_REQUEST, f"the plan takes {wanted}; given: {given or 'nothing'}")
        arrays = [np.ascontiguousarray(a) for a in inputs]
        size = self.arena_size if arena_bytes is None else arena_bytes
        align = max(self.arena_align, GUARD)
        block = np.full(size + 2 * GUARD + align, CANARY, dtype=np.uint8)
        start = GUARD + (-(block.ctypes.data + GUARD)) % align
        arena = block[start : start + size]
        for i, array in enumerate(arrays):
            if self.input_mode(i) is InputMode.RESIDENT and size >= self.arena_size:
                at = int(self._lib.weft_input_offset(ct.byref(self._plan), i))
                arena[at : at + array.size] = array.reshape(-1).view(np.uint8)

        next_row = [0] * len(arrays)

        def rows(_ctx: int, number: int, row: int, dst: int, nbytes: int) -> int:
            if row != next_row[number] or nbytes != arrays[number][row].size:
                return 1
            next_row[number] += 1
            ct.memmove(dst, arrays[number][row].ctypes.data, nbytes)
            return 0

        stages: list[bytes] = []

        def profile(_ctx: int, stage: int, begin: int) -> None:
            if not begin:
                offset, nbytes = ct.c_size_t(), ct.c_size_t()
                self._lib.weft_stage_output(ct.byref(self._plan), stage, ct.byref(offset), ct.byref(nbytes))
                stages.append(arena[offset.value : offset.value + nbytes.value].tobytes())

        counts = _Counts()
        external = (ct.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        io = _Io(
            None,
            _INPUT_FN(rows),
            ct.cast(external, ct.POINTER(ct.c_void_p)),
            _STEP_FN(lambda _ctx: int(step())) if step else _STEP_FN(),
            _PROFILE_FN(profile) if keep_stages else _PROFILE_FN(),
            _PROFILE_FN(),
            ct.pointer(counts),
        )
        before = block.copy() if size < self.arena_size else None
        code = self._lib.weft_run(ct.byref(self._plan), arena.ctypes.data, size, ct.byref(io))
        outside = np.concatenate([block[:start], block[start + size :]])
        if (outside != CANARY).any() or (before is not None and (block != before).any()):
            raise PlannerError(Code.INTERNAL, "the engine wrote outside its arena")
        if code:
            raise bad_plan(code)
        outputs = []
        for i, out in enumerate(self.outputs):
            at = int(self._lib.weft_output_offset(ct.byref(self._plan), i))
            count = out.shape[0] * out.shape[1] * out.shape[2]
            outputs.append(arena[at : at + count].copy().view(np.int8).reshape(out.shape))
        return RunResult(
            outputs=outputs,
            counts=Counts(macs=counts.macs, elements=counts.elements, calls=counts.calls, row_steps=counts.row_steps),
            stages=stages,
        )


def generated_input(shape: tuple[int, int, int], seed: int = 12345) -> tuple[NDArray[np.int8], int]:
    """Pseudo-random int8 input and the generator's state after it: s = s*1664525 + 1013904223; x = int8(s >> 24)."""
    count = shape[0] * shape[1] * shape[2]
    a, c = 1664525, 1013904223
    state = seed & 0xFFFFFFFF
    # Blockwise: s[k+B] follows from s[k] by one affine step, so B values are computed at a time.
    block = min(count, 1024)
    mul, add = np.ones(block, np.uint64), np.zeros(block, np.uint64)
    m, b = 1, 0
    for k in range(block):
        m, b = (m * a) & 0xFFFFFFFF, (b * a + c) & 0xFFFFFFFF
        mul[k], add[k] = m, b
    out = np.empty(count, np.uint8)
    for start in range(0, count, block):
        states = (mul * np.uint64(state) + add) & np.uint64(0xFFFFFFFF)
        n = min(block, count - start)
        out[start : start + n] = (states[:n] >> np.uint64(24)).astype(np.uint8)
        state = int(states[n - 1])
    return out.view(np.int8).reshape(shape), state
