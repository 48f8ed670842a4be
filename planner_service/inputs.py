# SPDX-License-Identifier: Apache-2.0
"""Input data for running plans: files or generated, brought to int8 (H, W, C) as the engine takes it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from planner_service.engine import generated_input
from planner_service.errors import Code, PlannerError
from planner_service.format import DType

Int8 = NDArray[np.int8]
Layout = Literal["hwc", "chw"]

GENERATED = "generated"
LABELS = ("label", "labels", "y")
#: Larger files are refused, not read.
MAX_FILE_BYTES = 1 << 30
#: Seed of the first generated input: the one that the plan's self-test uses.
SEED = 12345


class Port(Protocol):
    """What must be known of a network input or output: ``engine.IoInfo`` has it."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def scale(self) -> float: ...
    @property
    def zero_point(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """``arrays``: one per network input, int8 (N, H, W, C). ``labels``: (N,) class numbers, where the file has them."""

    arrays: tuple[Int8, ...]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.arrays[0])

    def first(self, count: int | None) -> Samples:
        """The first ``count`` of them; all for None."""
        return Samples(
            arrays=tuple(a[:count] for a in self.arrays), labels=None if self.labels is None else self.labels[:count]
        )

    def sample(self, index: int) -> list[Int8]:
        """What the engine takes for one run."""
        return [a[index] for a in self.arrays]


def generate(ports: Sequence[Port], *, count: int, seed: int = SEED) -> Samples:
    """``count`` pseudo-random samples; the generator runs on from input to input and sample to sample."""
    state = seed
    rows: list[list[Int8]] = []
    for _ in range(count):
        row = []
        for port in ports:
            array, state = generated_input(port.shape, state)
            row.append(array)
        rows.append(row)
    return Samples(arrays=tuple(np.stack([row[i] for row in rows]) for i in range(len(ports))))


def load(path: Path, ports: Sequence[Port], *, names: Sequence[str] = (), layout: Layout = "hwc") -> Samples:
    """Samples from a .npy file (one input) or a .npz archive (inputs by name, or in order; labels under LABELS).

    Arrays may have leading batch axes, ``layout`` first or the other one, and any numeric type: int8 is taken as it is,
    uint8 as the model's edge where that is uint8, all else as real values. PlannerError: NOT_FOUND, TOO_LARGE,
    BAD_REQUEST."""
    arrays = read_arrays(path)
    labels = next((arrays.pop(key) for key in LABELS if key in arrays), None)
    if len(names) == len(ports) and set(names) <= set(arrays):
        arrays = {name: arrays[name] for name in names}
    if len(arrays) != len(ports):
        raise PlannerError(
            Code.BAD_REQUEST,
            f"{path} has {len(arrays)} arrays, the model has {len(ports)} inputs",
            hint="name the arrays as the inputs are (numpy.savez)",
        )
    pairs = zip(arrays.items(), ports, strict=True)
    found = tuple(to_int8(a, p, layout=layout, name=name or str(path)) for (name, a), p in pairs)
    counts = {a.shape[0] for a in found} | ({labels.size} if labels is not None else set())
    if len(counts) != 1 or 0 in counts:
        raise PlannerError(Code.BAD_REQUEST, f"{path}: inputs and labels differ in number: {sorted(counts)}")
    return Samples(arrays=found, labels=None if labels is None else labels.reshape(-1).astype(np.int64))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, that of a .npy file under the empty name."""
    if not path.is_file():
        raise PlannerError(Code.NOT_FOUND, f"no file {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PlannerError(Code.TOO_LARGE, f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise PlannerError(
            Code.BAD_REQUEST, f"{path} is neither a .npy nor a .npz file of numbers", hint="write it with numpy.save"
        ) from error


def to_int8(array: NDArray[Any], port: Port, *, layout: Layout, name: str) -> Int8:
    """``array`` with any batch axes -> (N, H, W, C) int8 as ``port`` takes it."""
    if array.dtype.kind not in "iufb":
        raise PlannerError(Code.BAD_REQUEST, f"{name} holds {array.dtype}, not numbers")
    values = _to_nhwc(array, port.shape, layout, name)
    if values.dtype == np.int8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint8 and port.dtype is DType.UINT8:
        return np.ascontiguousarray((values.astype(np.int16) - 128).astype(np.int8))
    real = values.astype(np.float64)
    if not np.isfinite(real).all():
        raise PlannerError(Code.BAD_REQUEST, f"{name} holds numbers that are not finite")
    steps: Int8 = np.clip(np.rint(real / port.scale) + port.zero_point, -128, 127).astype(np.int8)
    return steps


def to_edge(array: Int8, port: Port) -> NDArray[Any]:
    """int8 values as the source model's edge has them: int8, uint8 or float32."""
    if port.dtype is DType.UINT8:
        return (array.astype(np.int16) + 128).astype(np.uint8)
    if port.dtype is DType.FLOAT32:
        return ((array.astype(np.float64) - port.zero_point) * port.scale).astype(np.float32)
    return array


def from_edge(array: NDArray[Any], port: Port) -> Int8:
    """The inverse of ``to_edge``: float32 is rounded to the nearest step."""
    if array.dtype == np.uint8:
        return (array.astype(np.int16) - 128).astype(np.int8)
    if array.dtype.kind == "f":
        steps = np.rint(array.astype(np.float64) / port.scale) + port.zero_point
        array = np.clip(np.nan_to_num(steps), -128, 127)
    result: Int8 = array.astype(np.int8)
    return result


def _to_nhwc(array: NDArray[Any], shape: tuple[int, int, int], layout: Layout, name: str) -> NDArray[Any]:
    h, w, c = shape
    shapes: Mapping[Layout, tuple[int, int, int]] = {"hwc": shape, "chw": (c, h, w)}
    for order in (layout, "chw" if layout == "hwc" else "hwc"):
        wanted = shapes[order]
        if array.shape[-3:] == wanted:
            batch = array.reshape(-1, *wanted)
            return batch if order == "hwc" else batch.transpose(0, 2, 3, 1)
    flat = tuple(d for d in shape if d != 1)
    if flat and array.shape[-len(flat) :] == flat:
        return array.reshape(-1, *shape)
    raise PlannerError(
        Code.BAD_REQUEST,
        f"{name} has shape {array.shape}, the input is (H, W, C) = {shape}",
        hint="batch axes come first",
    )
