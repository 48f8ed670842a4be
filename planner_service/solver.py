# SPDX-License-Identifier: Apache-2.0
"""The search: fusion settings as paths through a graph of cut positions (after msf-CNN, arXiv 2505.11483), with a
window policy per tensor. It runs in C (``search/``); here a graph is handed over and schedules are read back.
docs/planner.md says what is searched and why the answer is exact.

The library is ``build/engine/libweft_search.so`` of the source tree (``make engine``) or what ``WEFT_SEARCH`` names."""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planner_service import layout
from planner_service.build import IllegalSpecError, InputMode, SegmentSpec, StageSpec, shape_segment, slices
from planner_service.costs import Model
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts, Field
from planner_service.schedule import SegmentShape

DEFAULT_LIBRARY = Path(__file__).resolve().parent.parent / "build" / "engine" / "libweft_search.so"
#: An advance that reaches every size: one step.
WHOLE = 0xFFFF

Tick = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Which schedules are searched. ``row_steps``: rows per step besides a single step, in units of what a resize
    allows; ``col_steps``: columns per step of segments of several operators where latency is searched for (where it is
    MACs, it is one column: ``variants`` widens steps afterwards); ``segment_ops``: most operators of a segment;
    ``partial``: overlaps may be kept in part, not just all or nothing; ``slice``: fewest channels that a sweep may
    make, 0 for always all (and where latency is searched for)."""

    row_steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    col_steps: tuple[int, ...] = (1, 3, 8, WHOLE)
    segment_ops: int = 14
    partial: bool = False
    slice: int = 4


class Aim(IntEnum):
    """What a run is for: any schedule within its limits, the one of fewest MACs, all of them, or those near the
    fewest."""

    ANY = 0
    FEWEST = 1
    ALL = 2
    NEAR = 3


#: Bytes that one search may take itself.
MEMORY_LIMIT = 3 << 30
_INT32_MAX = (1 << 31) - 1
#: MACs: no limit, more than any schedule has, and no schedule.
_ANY, _MOST, _NONE = -(1 << 63), 1 << 60, (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A whole schedule as the search sees it: its stages, its cost (exact MACs, or units of a latency model), and the
    bytes live at its peak. ``rooms``: by stage, the bytes that are live in it without its tiles."""

    stages: tuple[StageSpec, ...]
    rooms: tuple[int, ...]
    memory: int
    cost: int


class _Field(ct.Structure):
    _fields_ = (("stride", ct.c_int32), ("pad", ct.c_int32), ("span", ct.c_int32), ("factor", ct.c_int32))


class _Op(ct.Structure):
    _fields_ = (
        ("tensor", ct.c_int32),
        ("rows", ct.c_int32),
        ("cols", ct.c_int32),
        ("row_field", _Field),
        ("col_field", _Field),
        ("inputs_at", ct.c_int32),
        ("swept", ct.c_int32),
        ("whole", ct.c_int32),
        ("reduce_h", ct.c_int32),
        ("reduce_w", ct.c_int32),
        ("single", ct.c_int32),
        ("channelwise", ct.c_int32),
        ("leads", ct.c_int32),
        ("macs_at", ct.c_int64),
        ("line_cost", ct.c_int64),
        ("call_cost", ct.c_int64),
    )


class _Tensor(ct.Structure):
    _fields_ = tuple(
        (name, ct.c_int32)
        for name in (
            "height",
            "width",
            "channels",
            "bytes",
            "producer",
            "last_read",
            "last_use",
            "output",
            "resident",
            "streamed",
        )
    )


class _Graph(ct.Structure):
    _fields_ = (
        ("op_count", ct.c_int32),
        ("tensor_count", ct.c_int32),
        ("ops", ct.POINTER(_Op)),
        ("tensors", ct.POINTER(_Tensor)),
        ("inputs", ct.POINTER(ct.c_int32)),
        ("row_macs", ct.POINTER(ct.c_int64)),
    )


class _Around(ct.Structure):
    _fields_ = tuple((name, ct.c_int64) for name in ("visit", "call", "check", "move", "moved", "row_step", "stage"))


class _Limits(ct.Structure):
    _fields_ = (
        ("row_steps", ct.POINTER(ct.c_int32)),
        ("row_step_count", ct.c_int32),
        ("col_steps", ct.POINTER(ct.c_int32)),
        ("col_step_count", ct.c_int32),
        ("around", _Around),
        ("segment_ops", ct.c_int32),
        ("partial", ct.c_int32),
        ("slice", ct.c_int32),
        ("cap", ct.c_int32),
        ("spare", ct.c_int64),
        ("memory_limit", ct.c_int64),
    )


_PROGRESS_FN = ct.CFUNCTYPE(ct.c_int, ct.c_double)
_NO_MEMORY = 2


@cache
def _library() -> ct.CDLL:
    path = Path(os.environ.get("WEFT_SEARCH") or DEFAULT_LIBRARY)
    try:
        lib = ct.CDLL(str(path))
    except OSError as error:
        raise PlannerError(
            Code.UNAVAILABLE,
            "the search is not built for this host",
            hint="run `make engine` in the source tree, or set WEFT_SEARCH to the library",
        ) from error
    lib.ws_open.restype = ct.c_void_p
    lib.ws_open.argtypes = (ct.POINTER(_Graph), ct.POINTER(_Limits), _PROGRESS_FN, ct.POINTER(ct.c_int32))
    lib.ws_free.restype = None
    lib.ws_free.argtypes = (ct.c_void_p,)
    lib.ws_bound.argtypes = (ct.c_void_p, ct.c_int64)
    lib.ws_ahead.restype = ct.c_int64
    lib.ws_ahead.argtypes = (ct.c_void_p, ct.c_int32)
    lib.ws_run.argtypes = (ct.c_void_p, ct.c_int32, ct.c_int32, ct.c_int32, ct.c_int64, _PROGRESS_FN)
    lib.ws_least_macs.argtypes = (
        ct.c_void_p,
        ct.c_int32,
        ct.c_int32,
        ct.c_int64,
        ct.c_bool,
        ct.POINTER(ct.c_int64),
        ct.c_void_p,
        ct.c_int32,
    )
    lib.ws_next_memory.argtypes = (ct.c_void_p, ct.c_int32, ct.c_bool)
    lib.ws_exact.argtypes = (ct.c_void_p,)
    lib.ws_least_memory.argtypes = (ct.c_void_p, ct.c_int64, ct.c_bool)
    lib.ws_statistics.restype = None
    lib.ws_statistics.argtypes = (ct.c_void_p, ct.POINTER(ct.c_int64))
    return lib


class Problem:
    """A graph as the search takes it, under one input mode. ``excluded``: tensors whose bytes are not counted. With
    ``model`` schedules cost its units (1 / ``costs.UNITS`` instructions, kernels without scratch) instead of MACs.
    ``base``: what all rows of all operators cost once."""

    def __init__(
        self, facts: Facts, mode: InputMode, excluded: frozenset[int] = frozenset(), model: Model | None = None
    ) -> None:
        self.facts, self.model = facts, model
        graph, n = facts.graph, len(facts.graph.ops)
        self.count = n
        self.collected: list[int] = []  #: streamed inputs that a stage of their own collects at the start
        self.rows_of: dict[int, list[int]] = {}  #: by operator: network inputs whose rows it reads as they come
        resident: set[int] = set()
        for number, io in enumerate(graph.inputs):
            tensor, users = io.tensor, facts.consumers[io.tensor]
            if mode == "resident" or (mode == "external" and facts.is_output[tensor]):
                resident.add(tensor)
            elif mode == "streamed":
                if len(users) == 1 and not facts.is_output[tensor] and tensor in facts.nodes[users[0]].swept:
                    self.rows_of.setdefault(users[0], []).append(-1 - number)
                else:
                    self.collected.append(-1 - number)
                    resident.add(tensor)
        streamed = {facts.nodes[source].tensor for sources in self.rows_of.values() for source in sources}
        self._tensors = (_Tensor * len(graph.tensors))()
        for t, made in enumerate(graph.tensors):
            last_read = max(facts.consumers[t], default=-1) if made.data is None else -1
            producer = facts.producer[t]
            self._tensors[t] = _Tensor(
                *made.shape,
                0 if t in excluded else made.nbytes,
                -1 if producer is None else producer,
                last_read,
                n if facts.is_output[t] else last_read,
                facts.is_output[t],
                t in resident,
                t in streamed,
            )
        inputs: list[int] = []
        sums: list[tuple[int, ...]] = []
        at = 0
        self._ops = (_Op * n)()
        self.base = 0
        for op in range(n):
            node = facts.nodes[op]
            rows, line, call = (node.row_macs, 0, 0) if model is None else model.unit_costs(facts, op)
            self._ops[op] = _Op(
                node.tensor,
                *node.size,
                _field(node.rows),
                _field(node.cols),
                len(inputs),
                len(node.swept),
                len(node.whole),
                node.reduce_h,
                node.reduce_w,
                node.single,
                node.channelwise,
                node.leads,
                at if rows else -1,
                line,
                call,
            )
            inputs.extend((*node.swept, *node.whole))
            sums.append(rows)
            at += len(rows)
            self.base += rows[-1] if rows else 0
        self._inputs = np.asarray(inputs or [0], dtype=np.int32)
        self._sums = np.asarray([x for s in sums for x in s] or [0], dtype=np.int64)
        self.graph = _Graph(
            n,
            len(graph.tensors),
            self._ops,
            self._tensors,
            self._inputs.ctypes.data_as(ct.POINTER(ct.c_int32)),
            self._sums.ctypes.data_as(ct.POINTER(ct.c_int64)),
        )


def _field(field: Field) -> _Field:
    return _Field(field.stride, field.pad, field.span, field.factor)


@contextmanager
def _ticking(tick: Tick) -> Iterator[Any]:
    """``tick`` as the search's callback. What it raises ends the search and is raised again behind it."""
    raised: list[BaseException] = []

    def progress(done: float) -> int:
        try:
            tick(done)
        except BaseException as error:
            raised.append(error)
        return len(raised)

    yield _PROGRESS_FN(progress)
    if raised:
        raise raised[0]


class Search:
    """Every way to run a segment with at most ``cap`` bytes and ``spare`` MACs beyond the unfused ones (None: any
    number); after ``run``, the best paths through the stages of such segments. ``tick`` may raise to end the search."""

    def __init__(
        self,
        problem: Problem,
        space: Space,
        cap: int,
        spare: int | None = None,
        tick: Tick = lambda _done: None,
    ) -> None:
        self._problem, self._lib = problem, _library()
        steps = np.asarray(space.row_steps, dtype=np.int32)
        columns = np.asarray((1,) if problem.model is None else space.col_steps, dtype=np.int32)
        limits = _Limits(
            steps.ctypes.data_as(ct.POINTER(ct.c_int32)),
            len(steps),
            columns.ctypes.data_as(ct.POINTER(ct.c_int32)),
            len(columns),
            _Around() if problem.model is None else _Around(*problem.model.unit_around),
            space.segment_ops,
            space.partial,
            0 if problem.model else space.slice,
            min(cap, _INT32_MAX),
            _ANY if spare is None else spare,
            MEMORY_LIMIT,
        )
        status = ct.c_int32()
        with _ticking(tick) as progress:
            self._handle = self._lib.ws_open(problem.graph, limits, progress, status)
        self._check(status.value)

    def _check(self, status: int) -> None:
        if status == _NO_MEMORY:
            self.close()
            raise PlannerError(
                Code.TOO_LARGE,
                f"the search needs more than {MEMORY_LIMIT >> 20} MiB",
                hint="ask for less RAM or a smaller overhead factor",
            )

    def run(
        self,
        cap: int,
        spare: int | None = None,
        tick: Tick = lambda _done: None,
        *,
        aim: Aim = Aim.FEWEST,
        layers_cap: int = 0,
    ) -> bool:
        """Find the stages of at most ``cap`` bytes on paths with at most ``spare`` extra MACs, and stages of one
        operator and one step up to ``layers_cap``; those found before are dropped. Stages that are of no use for
        ``aim`` may be left out. Whether none were."""
        with _ticking(tick) as progress:
            status = self._lib.ws_run(
                self._handle,
                min(cap, _INT32_MAX),
                aim,
                min(layers_cap, _INT32_MAX),
                _ANY if spare is None else spare,
                progress,
            )
        self._check(status)
        return bool(self._lib.ws_exact(self._handle))

    def least_bytes(self, spare: int | None) -> int | None:
        """A lower bound, without looking at stages, of the bytes that schedules of at most ``spare`` extra MACs need.
        None if there are none within the search's limits."""
        found = self._lib.ws_bound(self._handle, _MOST if spare is None else spare)
        return None if found < 0 else int(found)

    def least_extra(self, cap: int) -> int | None:
        """A lower bound, without looking at stages, of the extra MACs of schedules of at most ``cap`` bytes. None if
        there are none within the search's limits."""
        found = self._lib.ws_ahead(self._handle, min(cap, _INT32_MAX))
        return None if found == _NONE else int(found)

    def close(self) -> None:
        """Free what the search holds; also done when it is dropped."""
        if self._handle:
            self._lib.ws_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def statistics(self) -> tuple[int, int, int, int]:
        """Options of segments, partial stages kept and tried, stages."""
        counts = (ct.c_int64 * 4)()
        self._lib.ws_statistics(self._handle, counts)
        return counts[0], counts[1], counts[2], counts[3]

    def least_memory(self, spare: int | None, *, deep: bool = False) -> int | None:
        """P1: the least bytes with at most ``spare`` extra MACs. None if nothing that was found fits. ``deep``: see
        ``least_macs``."""
        found = self._lib.ws_least_memory(self._handle, _MOST if spare is None else spare, deep)
        return None if found < 0 else int(found)

    def next_memory(self, limit: int, *, deep: bool = False) -> int:
        """The smallest limit above ``limit`` at which fewer MACs may do; a huge number if there is none."""
        return int(self._lib.ws_next_memory(self._handle, min(limit, _INT32_MAX), deep))

    def least_macs(self, cap: int, tight: int = 0, weight: int = 0, *, deep: bool = False) -> Solution | None:
        """P2: fewest MACs with at most ``cap`` bytes, then the fewest steps, then the least memory. None if nothing
        that was found fits. A stage of more than ``tight`` bytes whose output overlaps its input counts as ``weight``
        MACs more: such stages are hard to pack. ``deep``: outputs that overlap each other in a row, each starting
        below the one before, have to fit too."""
        extra = ct.c_int64()
        words = np.zeros(13 * self._problem.count + 1, dtype=np.int32)
        count = self._lib.ws_least_macs(
            self._handle, min(cap, _INT32_MAX), tight, weight, deep, ct.byref(extra), words.ctypes.data, len(words)
        )
        if count < 0:
            raise PlannerError(Code.INTERNAL, "the search could not write its schedule down")
        if count == 0:
            return None
        return self._solution(words[:count].tolist(), extra.value)

    def _solution(self, words: list[int], extra: int) -> Solution:
        problem = self._problem
        stages: list[StageSpec] = []
        rooms: list[int] = []
        memory = 0
        at = 1
        for _ in range(words[0]):
            begin, _, overlap, peak, tile, count = words[at : at + 6]
            at += 6
            if begin == 0:
                stages += [
                    StageSpec(segments=(SegmentSpec(ops=(source,), row_adv=1, col_adv=WHOLE),))
                    for source in problem.collected
                ]
                rooms += [peak - tile] * len(problem.collected)
            segments: list[SegmentSpec] = []
            for _ in range(count):
                i, j, row_adv, col_adv, cut = words[at : at + 5]
                at += 5
                segments += [
                    SegmentSpec(ops=(source,), row_adv=1, col_adv=WHOLE)
                    for op in range(i, j)
                    for source in problem.rows_of.get(op, ())
                ]
                segments.append(self._segment(range(i, j), row_adv, col_adv, cut, words[at : at + j - i]))
                at += j - i
            stages.append(StageSpec(segments=tuple(segments), overlap=bool(overlap)))
            rooms.append(peak - tile)
            memory = max(memory, peak)
        return Solution(stages=tuple(stages), rooms=tuple(rooms), memory=memory, cost=problem.base + extra)

    def _segment(self, ops: range, row_adv: int, col_adv: int, cut: int, keeps: list[int]) -> SegmentSpec:
        nodes = self._problem.facts.nodes
        columns = len(ops) > 1 and nodes[ops[-1]].size[1] > 1
        return SegmentSpec(
            ops=tuple(ops),
            row_adv=row_adv,
            col_adv=col_adv if columns else WHOLE,
            keep={nodes[op].tensor: keep for op, keep in zip(ops, keeps, strict=True) if keep},
            slice=cut,
        )


#: Of the room that a stage has for wider tiles, these shares are tried: wider ones may not pack.
WIDEN_SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)


class Widths:
    """Faster ways to run a segment that was found with one-column steps: wider column steps, fewer slices of channels,
    the fewest calls first, among them the fewest sweeps."""

    def __init__(self, facts: Facts, segment: SegmentSpec) -> None:
        self.facts, self.segment = facts, segment
        self._waiting = self._all()
        self._known: list[tuple[int, SegmentSpec]] = []

    def _all(self) -> Iterator[tuple[int, SegmentSpec]]:
        """Bytes of tiles and ways; the way it is comes last."""
        facts, segment = self.facts, self.segment
        width, channels = facts.nodes[segment.ops[-1]].size[1], facts.nodes[segment.ops[-1]].shape[2]
        cuts = [(1, 0)]
        if segment.slice:  # in quads if they were found so: that is what kernels like
            step = 4 if segment.slice % 4 == 0 else 1
            cuts += [(channels // n, n) for n in slices(facts, segment) if n >= segment.slice and n % step == 0]
        columns = [(1, WHOLE), *((steps, -(-width // steps)) for steps in range(2, width))]
        if len(segment.ops) == 1 or segment.col_adv == WHOLE:
            columns = []
        columns.append((width, segment.col_adv))
        for _, _, col_adv, cut in sorted(
            (steps * sweeps, sweeps, a, cut) for steps, a in columns for sweeps, cut in cuts
        ):
            spec = replace(segment, col_adv=col_adv, slice=cut)
            try:
                yield _tile_bytes(facts, shape_segment(facts, spec)), spec
            except IllegalSpecError:
                continue

    def within(self, room: int) -> SegmentSpec:
        """The first one whose tiles fit into ``room`` bytes; as it is if none do."""
        for size, spec in self._known:
            if size <= room:
                return spec
        for size, spec in self._waiting:
            self._known.append((size, spec))
            if size <= room:
                return spec
        return self.segment


def variants(
    facts: Facts, stage: StageSpec, spare: int, scratches: Sequence[int], known: dict[tuple[object, ...], Widths]
) -> list[StageSpec]:
    """Faster ways to run a stage that was found with one-column steps and no scratch: ``Widths``, each amount of
    scratch in ``scratches``, with at most ``spare`` bytes of tiles and scratch together. MACs are the same. Most
    scratch first, then the fewest calls; the stage as it is comes last. ``known``: of earlier calls, by segment."""
    found: list[StageSpec] = []
    widths: list[Widths] = []
    for segment in stage.segments:
        key = (segment.ops, segment.row_adv, segment.col_adv, segment.slice, *sorted(segment.keep.items()))
        widths.append(known.get(key) or known.setdefault(key, Widths(facts, segment)))
    tiles = _tiles(facts, stage)
    for scratch in (*scratches, 0):
        for share in WIDEN_SHARES:
            segments = tuple(each.within(int((spare - scratch) * share)) for each in widths)
            made = replace(stage, segments=segments, scratch=scratch)
            if made not in found and (scratch == 0 or scratch + tiles <= spare):
                found.append(made)
    return [*(made for made in found if made != stage), stage]


def _tiles(facts: Facts, stage: StageSpec) -> int:
    return max(_tile_bytes(facts, shape_segment(facts, segment)) for segment in stage.segments)


def _tile_bytes(facts: Facts, shape: SegmentShape) -> int:
    tiles: list[layout.Tile] = []
    for n, (op, local, (_, _, extent, keep), (advance, _, columns, _)) in enumerate(
        zip(shape.ops, shape.tile, shape.rows, shape.cols, strict=True)
    ):
        if local:
            h, w, c = facts.nodes[op].shape
            size = min(extent - keep, h) * min(columns, w) * (shape.slice or c)
            tiles.append(layout.tile_of(facts, shape.ops, n, size, keep == 0 and columns == advance))
    return layout.tile_bytes(facts, tiles)
