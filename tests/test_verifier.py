# SPDX-License-Identifier: Apache-2.0
"""The engine's verifier: one bad plan per rule, each refused with the code and the record that are at fault; and
random, exhaustive and truncating mutation under sanitizers (tests/fuzz)."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner_service import build, format, ir
from planner_service.build import SegmentSpec, StageSpec
from planner_service.encode import encode
from planner_service.engine import Engine, Limits
from planner_service.errors import PlannerError
from planner_service.facts import Facts
from planner_service.format import EngineError, Opcode, OpFlag, Policy, SectionId
from planner_service.layout import place
from planner_service.schedule import Axis, Entry, Placement, Schedule, Segment
from tests.fuzz import subjects
from tests.schedule_graphs import Maker

ROOT = Path(__file__).resolve().parent.parent
NO_RECORD = 0xFFFF
MUTATIONS = 1_000_000


def refusal(plan: bytes, limits: Limits | None = None) -> tuple[EngineError | None, int]:
    """What weft_open() returns for ``plan``, and the record it names; (None, ...) if it accepts."""
    try:
        Engine().open(plan, limits)
    except PlannerError as error:
        message = error.violations[0].message
    else:
        return None, NO_RECORD
    found = re.match(r"WEFT_ERR_(\w+) at (?:record (\d+), )?byte", message)
    assert found, message
    return EngineError[found[1]], int(found[2] or NO_RECORD)


# ---------------------------------------------------------------- plans whose schedule breaks a rule


@functools.cache
def block() -> tuple[ir.Graph, Schedule]:
    """Entries: 0 streamed input (ROWS), 1 conv (TILE, line store), 2 depthwise, 3 pointwise (TILE), 4 add (ROWS),
    5 pool (FULL) | 6 mean with accumulators | 7 dense."""
    m = Maker(5, [(8, 6, 2)])
    a = m.conv(m.inputs[0], 5)
    b = m.depthwise(a)
    c = m.conv(b, 5, kernel=(1, 1), pads=(0, 0, 0, 0))
    d = m.pool(m.binary(a, c), "max", (2, 2), (2, 2), (0, 0, 0, 0))
    graph = m.graph([m.dense(m.reduce(d, (0, 1)), 3)])
    specs = [
        StageSpec(
            segments=(
                SegmentSpec(ops=(-1,), row_adv=1, col_adv=6),
                SegmentSpec(ops=(0, 1, 2, 3), row_adv=1, col_adv=2, keep={a: 2}),
                SegmentSpec(ops=(4,), row_adv=1, col_adv=3),
            )
        ),
        StageSpec(segments=(SegmentSpec(ops=(5,), row_adv=2, col_adv=3),)),
        StageSpec(segments=(SegmentSpec(ops=(6,), row_adv=1, col_adv=1),)),
    ]
    schedule = build.build_schedule(Facts(graph), specs, "streamed")
    policies = [e.policy.name for stage in schedule.stages for g in stage.segments for e in g.entries]
    assert policies == ["ROWS", "TILE", "TILE", "TILE", "ROWS", "FULL", "FULL", "FULL"]
    return graph, schedule


@functools.cache
def residents() -> tuple[ir.Graph, Schedule]:
    """Entries: 0 resident input | 1 table lookup (FULL) | 2 reshape (FULL) | 3 resize by table (FULL)."""
    m = Maker(6, [(4, 4, 3)])
    graph = m.graph([m.resize_table(m.reshape(m.lut(m.inputs[0]), (2, 8, 3)), (3, 5))])
    specs = [StageSpec(segments=(SegmentSpec(ops=(op,), row_adv=9, col_adv=9),)) for op in range(3)]
    return graph, build.build_schedule(Facts(graph), specs, "resident")


Key = tuple[int, int, int]
KEYS: list[Key] = [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 1, 3), (0, 2, 0), (1, 0, 0), (2, 0, 0)]
INPUT, CONV, DEPTHWISE, POINTWISE, ADD, POOL, MEAN, DENSE = range(8)


def change(schedule: Schedule, n: int, **changes: Any) -> Schedule:
    """Entry ``n`` of ``block()`` with other fields; rows and cols take (advance, offset, extent) differences."""
    s, g, k = KEYS[n]
    entry = schedule.stages[s].segments[g].entries[k]
    for axis in ("rows", "cols"):
        if axis in changes:
            old: Axis = getattr(entry, axis)
            advance, offset, extent = changes[axis]
            changes[axis] = Axis(advance=old.advance + advance, offset=old.offset + offset, extent=old.extent + extent)
    entries = list(schedule.stages[s].segments[g].entries)
    entries[k] = replace(entry, **changes)
    return with_segment(schedule, s, g, entries=tuple(entries))


def with_segment(schedule: Schedule, s: int, g: int, **changes: Any) -> Schedule:
    segments = list(schedule.stages[s].segments)
    segments[g] = replace(segments[g], **changes)
    stages = list(schedule.stages)
    stages[s] = replace(stages[s], segments=tuple(segments))
    return replace(schedule, stages=tuple(stages))


def segment(schedule: Schedule, s: int, g: int) -> Segment:
    return schedule.stages[s].segments[g]


def entry(schedule: Schedule, n: int) -> Entry:
    s, g, k = KEYS[n]
    return schedule.stages[s].segments[g].entries[k]


def swapped(schedule: Schedule) -> Schedule:
    """Depthwise and pointwise change places."""
    a, b, c, d = segment(schedule, 0, 1).entries
    return with_segment(schedule, 0, 1, entries=(a, c, b, d))


def joined(schedule: Schedule, first: int) -> Schedule:
    """Stages ``first`` and the next become one."""
    stages = list(schedule.stages)
    both = replace(stages[first], segments=(*stages[first].segments, *stages[first + 1].segments))
    return replace(schedule, stages=(*stages[:first], both, *stages[first + 2 :]))


def input_with_columns(schedule: Schedule) -> Schedule:
    return with_segment(change(schedule, INPUT, cols=(-3, 0, -3)), 0, 0, col_steps=2)


def lagless(schedule: Schedule) -> Schedule:
    """The operators behind the line store no longer lag behind it."""
    for n in (DEPTHWISE, POINTWISE, ADD):
        schedule = change(schedule, n, rows=(0, 1, 0))
    return schedule


def too_far(schedule: Schedule) -> Schedule:
    """Positions beyond 2^30."""
    return with_segment(change(schedule, POOL, rows=(65000, 0, 65000)), 0, 2, row_steps=65535)


C, P, N, R = EngineError.COVERAGE, EngineError.POLICY, EngineError.NEED, EngineError.RING
SCHEDULES: dict[str, tuple[Callable[[Schedule], Schedule], EngineError, int]] = {
    # rule 1
    "ring: extent is not advance": (lambda s: change(s, ADD, rows=(0, 0, 1)), C, ADD),
    "ring: columns start behind the first": (lambda s: change(s, ADD, cols=(0, 3, 0)), C, ADD),
    "ring: rows start behind the first": (lambda s: change(s, INPUT, rows=(0, 1, 0)), C, INPUT),
    "ring: holds no row": (lambda s: change(s, ADD, keep=0), P, ADD),
    "ring: holds more than the tensor": (lambda s: change(s, ADD, keep=9), P, ADD),
    "full: keeps rows": (lambda s: change(s, POOL, keep=1), P, POOL),
    "full: last row is not reached": (lambda s: with_segment(s, 0, 2, row_steps=3), C, POOL),
    "full: last columns are not reached": (lambda s: change(s, POOL, cols=(-1, 0, -1)), C, POOL),
    "region beyond 2^30": (too_far, C, POOL),
    # rule 2
    "tile: keeps more than overlaps": (lambda s: change(s, CONV, keep=3), P, CONV),
    "tile: keeps its whole extent": (lambda s: change(s, POINTWISE, keep=1), P, POINTWISE),
    "tile: rows expected from before the first step": (lambda s: change(s, CONV, rows=(0, 2, 0)), C, CONV),
    "tile: columns expected from before the first step": (lambda s: change(s, CONV, cols=(0, 2, 0)), C, CONV),
    "tile: extent below advance": (lambda s: change(s, POINTWISE, cols=(0, 0, -1)), C, POINTWISE),
    "tile: last columns are not reached": (lambda s: change(s, POINTWISE, cols=(0, -4, 0)), C, POINTWISE),
    "tile: read from another segment": (lambda s: change(s, ADD, policy=Policy.TILE, keep=0), P, POOL),
    "tile: is the sink": (lambda s: change(s, POOL, policy=Policy.TILE), P, POOL),
    "external: made by an operator": (lambda s: change(s, ADD, policy=Policy.EXTERNAL, keep=0), P, ADD),
    # rule 3
    "tile: one row too few": (lambda s: change(s, CONV, rows=(0, 0, -1), keep=1), N, DEPTHWISE),
    "tile: one row late": (lambda s: change(s, CONV, rows=(0, -1, 0)), N, DEPTHWISE),
    "tile: lag missing": (lagless, N, DEPTHWISE),
    "tile: one column too few": (lambda s: change(s, CONV, cols=(0, 1, -1)), N, DEPTHWISE),
    "tile: one column late": (lambda s: change(s, CONV, cols=(0, -1, 0)), N, DEPTHWISE),
    "tile: another pace": (lambda s: change(s, POINTWISE, cols=(1, 0, 1)), N, POINTWISE),
    # rule 4
    "ring: one row too few": (lambda s: change(s, INPUT, keep=entry(s, INPUT).keep - 1), R, CONV),
    "ring: one row too few for a pool": (lambda s: change(s, ADD, keep=entry(s, ADD).keep - 1), R, POOL),
    "ring: is the sink": (lambda s: change(s, POOL, policy=Policy.ROWS, keep=4), P, POOL),
    "reads what the same stage only ends": (lambda s: joined(s, 1), P, MEAN),
    "order of entries": (swapped, EngineError.GRAPH, DEPTHWISE),
    "streamed input in column steps": (input_with_columns, P, INPUT),
    # rule 5
    "mean: rows are consumed twice": (lambda s: change(s, MEAN, rows=(0, 0, 1)), C, MEAN),
    "mean: rows are left out": (lambda s: with_segment(s, 1, 0, row_steps=1), C, MEAN),
    "mean: not FULL": (lambda s: change(s, MEAN, policy=Policy.ROWS, keep=1), P, MEAN),
    # rule 6, flags
    "overlap: a ring": (lambda s: change(s, ADD, overlap=True), P, ADD),
    "overlap: not the stage's output": (lambda s: joined(change(s, POOL, overlap=True), 0), P, POOL),
    "overlap: a reduction": (lambda s: change(s, MEAN, overlap=True), P, MEAN),
}  # fmt: skip


def placed(graph: ir.Graph, schedule: Schedule, edit: Callable[[Placement], Placement] | None = None) -> bytes:
    """Plan bytes with the offsets that ``edit`` makes of good ones, and an arena that ends with the last window."""
    placement = place(Facts(graph), schedule)
    return encode(graph, schedule, edit(placement) if edit else placement)


def test_the_plans_to_spoil_are_good() -> None:
    for graph, schedule in (block(), residents()):
        assert refusal(placed(graph, schedule)) == (None, NO_RECORD)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_refused(name: str) -> None:
    edit, code, record = SCHEDULES[name]
    graph, schedule = block()
    assert refusal(placed(graph, edit(schedule))) == (code, record)


@functools.cache
def sliced() -> tuple[ir.Graph, Schedule]:
    """Entries: 0 streamed input (ROWS), 1 conv, 2 depthwise (TILE), 3 depthwise (ROWS), two of their six channels at a
    time, 4 pointwise (FULL)."""
    m = Maker(7, [(8, 6, 2)])
    graph = m.graph([m.conv(m.depthwise(m.depthwise(m.conv(m.inputs[0], 6))), 4, kernel=(1, 1), pads=(0, 0, 0, 0))])
    segments = (
        SegmentSpec(ops=(-1,), row_adv=1, col_adv=6),
        SegmentSpec(ops=(0, 1, 2), row_adv=2, col_adv=2, slice=2),
        SegmentSpec(ops=(3,), row_adv=1, col_adv=6),
    )
    return graph, build.build_schedule(Facts(graph), [StageSpec(segments=segments)], "streamed")


def cut(schedule: Schedule, g: int, **changes: int) -> Schedule:
    """Entries of a segment of ``sliced()`` with other slices: by letter, ``a`` is the first."""
    entries = list(segment(schedule, 0, g).entries)
    for letter, size in changes.items():
        entries[ord(letter) - ord("a")] = replace(entries[ord(letter) - ord("a")], slice=size)
    return with_segment(schedule, 0, g, entries=tuple(entries))


def keeping(schedule: Schedule) -> Schedule:
    first, *rest = segment(schedule, 0, 1).entries
    return with_segment(schedule, 0, 1, entries=(replace(first, keep=2), *rest))


SLICES: dict[str, tuple[Callable[[Schedule], Schedule], EngineError, int]] = {
    "different slices": (lambda s: cut(s, 1, b=3), P, 2),
    "a slice after none": (lambda s: cut(s, 1, a=0), P, 2),
    "no divisor": (lambda s: cut(s, 1, a=4, b=4, c=4), P, 1),
    "all channels": (lambda s: cut(s, 1, a=6, b=6, c=6), P, 1),
    "more than all": (lambda s: cut(s, 1, a=12, b=12, c=12), P, 1),
    "fewer slices than declared": (lambda s: cut(s, 1, a=3, b=3, c=3), EngineError.DECLARED, NO_RECORD),
    "rows are kept": (keeping, P, 1),
    "a convolution whose output is whole": (lambda s: cut(s, 2, a=2), P, 4),
    "an input": (lambda s: cut(s, 0, a=1), P, 0),
}


def test_slices_are_run() -> None:
    """The bytes of the plan that makes all channels at once, from a smaller arena."""
    graph, schedule = sliced()
    plans = [placed(graph, schedule)]
    assert refusal(plans[0]) == (None, NO_RECORD)
    whole = with_segment(cut(schedule, 1, a=0, b=0, c=0), 0, 1, sweeps=1)
    plans.append(placed(graph, whole))
    rows = np.random.default_rng(3).integers(-128, 128, (8, 6, 2)).astype(np.int8)
    runs = [Engine().open(plan).run([rows]) for plan in plans]
    np.testing.assert_array_equal(runs[0].outputs[0], runs[1].outputs[0])
    assert place(Facts(graph), schedule).arena_bytes < place(Facts(graph), whole).arena_bytes


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_refused(name: str) -> None:
    edit, code, record = SLICES[name]
    graph, schedule = sliced()
    assert refusal(placed(graph, edit(schedule))) == (code, record)


def test_slices_of_a_joint_tensor_only() -> None:
    """A convolution inside the segment needs all channels of what it reads; others have other numbers of channels."""
    graph, schedule = sliced()
    a, b, c = segment(schedule, 0, 1).entries
    (pointwise,) = segment(schedule, 0, 2).entries
    inner = with_segment(schedule, 0, 1, entries=(a, b, replace(c, policy=Policy.TILE, keep=0)))
    stages = inner.stages[0].segments
    joint = replace(stages[1], entries=(*stages[1].entries, replace(pointwise, rows=c.rows, cols=c.cols, slice=2)))
    schedule = replace(schedule, stages=(replace(inner.stages[0], segments=(stages[0], joint)),))
    assert refusal(placed(graph, schedule)) == (P, 4)


def moved(n: int, offset: int | None = None, aux: int | None = None, by: int = 0) -> Callable[[Placement], Placement]:
    """Entry ``n`` of ``block()`` elsewhere: at ``offset``, or ``by`` bytes from where it was."""

    def edit(p: Placement) -> Placement:
        key = KEYS[n]
        offsets, auxes = dict(p.offset), dict(p.aux)
        if aux is not None:
            auxes[key] = aux
        else:
            offsets[key] = offsets[key] + by if offset is None else offset
        return replace(p, offset=offsets, aux=auxes)

    return edit


def onto(n: int, other: int, by: int = 0) -> Callable[[Placement], Placement]:
    """Entry ``n`` where ``other`` is, and ``by`` bytes further."""
    return lambda p: moved(n, p.offset[KEYS[other]] + by)(p)


def larger(p: Placement) -> Placement:
    return replace(p, arena_bytes=p.arena_bytes + 512)


def one_byte(p: Placement) -> Placement:
    """The mean's five bytes behind everything else, the dense layer's three from the fifth on."""
    offset = {**p.offset, KEYS[MEAN]: p.arena_bytes, KEYS[DENSE]: p.arena_bytes + 4}
    return larger(replace(p, offset=offset))


A, V = EngineError.ARENA, EngineError.OVERLAP
PLACEMENTS: dict[str, tuple[Callable[[Placement], Placement], EngineError, int]] = {
    "misaligned": (lambda p: larger(moved(POOL, p.arena_bytes + 2)(p)), A, POOL),
    "misaligned accumulators": (lambda p: larger(moved(MEAN, aux=p.arena_bytes + 2)(p)), A, MEAN),
    "misaligned counters": (lambda p: replace(p, state=(p.state[0] + 1, *p.state[1:])), A, NO_RECORD),
    "behind the arena": (lambda p: moved(POOL, p.arena_bytes)(p), A, POOL),
    "partly behind the arena": (lambda p: moved(INPUT, p.arena_bytes - 4)(p), A, INPUT),
    "line store behind the arena": (lambda p: moved(CONV, aux=p.arena_bytes)(p), A, CONV),
    "offset near 2^32": (moved(POOL, 0xFFFFFFFC), A, POOL),
    "counters behind the arena": (lambda p: replace(p, state=(p.arena_bytes, *p.state[1:])), A, NO_RECORD),
    "ring on ring": (onto(ADD, INPUT), V, ADD),
    "tile on tile": (onto(POINTWISE, DEPTHWISE), V, POINTWISE),
    "tile on a line store": (lambda p: moved(DEPTHWISE, p.aux[KEYS[CONV]])(p), V, DEPTHWISE),
    "tile on the counters": (lambda p: moved(CONV, p.state[0])(p), V, CONV),
    "sink on a ring": (onto(POOL, ADD), V, POOL),
    "accumulators on what they sum": (lambda p: moved(MEAN, aux=p.offset[KEYS[POOL]])(p), V, MEAN),
    "output on its accumulators": (lambda p: moved(MEAN, p.aux[KEYS[MEAN]])(p), V, MEAN),
    "one byte in common": (one_byte, V, DENSE),
    "a later stage on a tensor it still reads": (onto(MEAN, POOL), V, MEAN),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placement_is_refused(name: str) -> None:
    edit, code, record = PLACEMENTS[name]
    graph, schedule = block()
    schedule = change(schedule, DENSE, overlap=False)
    assert refusal(placed(graph, schedule, edit)) == (code, record)


def test_tiles_of_other_segments_share_bytes() -> None:
    m = Maker(16, [(6, 6, 2)])
    t = m.inputs[0]
    for _ in range(4):
        t = m.conv(t, 2)
    graph = m.graph([t])
    spec = StageSpec(segments=tuple(SegmentSpec(ops=ops, row_adv=1, col_adv=2) for ops in ((0, 1), (2, 3))))
    schedule = build.build_schedule(Facts(graph), [spec], "resident")
    offset = place(Facts(graph), schedule).offset
    assert offset[0, 0, 0] == offset[0, 1, 0]
    assert refusal(placed(graph, schedule)) == (None, NO_RECORD)


def test_tiles_in_turn() -> None:
    """Four pointwise convolutions of one segment: the third tile may lie where the first was, not where the second is,
    and nowhere if columns of the first are kept."""
    m = Maker(9, [(4, 6, 3)])
    t = m.inputs[0]
    for _ in range(4):
        t = m.conv(t, 3, kernel=(1, 1), pads=(0, 0, 0, 0))
    graph = m.graph([t])
    spec = StageSpec(segments=(SegmentSpec(ops=(0, 1, 2, 3), row_adv=1, col_adv=2),))
    schedule = build.build_schedule(Facts(graph), [spec], "resident")
    placement = place(Facts(graph), schedule)
    first, second, third = ((0, 0, n) for n in range(3))

    def moved_third(to: Key) -> Callable[[Placement], Placement]:
        return lambda p: replace(p, offset={**p.offset, third: p.offset[to]})

    assert placement.offset[third] == placement.offset[first] != placement.offset[second]
    plain = replace(placement, offset={**placement.offset, third: placement.arena_bytes})
    plain = replace(plain, arena_bytes=placement.arena_bytes + 8)
    plans = [encode(graph, schedule, p) for p in (placement, plain)]
    rows = np.arange(72, dtype=np.int8).reshape(4, 6, 3)
    runs = [Engine().open(plan).run([rows]).outputs[0] for plan in plans]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert refusal(placed(graph, schedule, moved_third(second))) == (V, 3)
    wide = list(segment(schedule, 0, 0).entries)
    wide[0] = replace(wide[0], cols=Axis(advance=2, offset=wide[0].cols.offset - 1, extent=3))
    kept = with_segment(schedule, 0, 0, entries=tuple(wide))
    assert refusal(placed(graph, kept)) == (None, NO_RECORD)
    assert refusal(placed(graph, kept, moved_third(first))) == (V, 3)


def resident_schedule(flags: Sequence[bool]) -> Schedule:
    _, schedule = residents()
    for s, overlap in enumerate(flags):
        first = segment(schedule, s, 0).entries[0]
        schedule = with_segment(schedule, s, 0, entries=(replace(first, overlap=overlap),))
    return schedule


@pytest.mark.parametrize(
    ("flags", "offsets", "expected"),
    [
        ((True, False, False), (0, 0, 48, 0), (None, NO_RECORD)),  # LUT in place
        ((False, False, False), (0, 0, 48, 0), (V, 1)),  # not marked
        ((True, False, False), (0, 4, 52, 0), (V, 1)),  # starts above what it overwrites
        ((True, False, False), (4, 0, 52, 0), (V, 1)),  # would overtake: LUT in one step, but not exactly in place
        ((False, True, False), (0, 48, 48, 0), (V, 2)),  # a copy is not made in place
        ((True, True, True), (0, 48, 0, 48), (None, NO_RECORD)),  # dead tensors may be overwritten in any case
        ((False, False, True), (0, 48, 0, 0), (V, 3)),  # a table lookup over its input
    ],
)
def test_overlap_in_place(
    flags: Sequence[bool], offsets: Sequence[int], expected: tuple[EngineError | None, int]
) -> None:
    """Offsets of input, LUT, reshape and resize; counters behind everything."""
    graph, _ = residents()
    schedule = resident_schedule(flags)

    def edit(p: Placement) -> Placement:
        keys = [(-1, 0, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)]
        end = max(offsets) + 48
        return replace(p, offset=dict(zip(keys, offsets, strict=True)), state=(end,) * 3, arena_bytes=end + 4)

    plan = placed(graph, schedule, edit)
    assert refusal(plan) == expected
    if expected[0] is None:
        ours, plain = (Engine().open(p) for p in (plan, placed(graph, resident_schedule((False,) * 3))))
        rows = np.arange(48, dtype=np.int8).reshape(4, 4, 3)
        np.testing.assert_array_equal(ours.run([rows]).outputs[0], plain.run([rows]).outputs[0])


def test_row_means_are_read_by_other_segments_only() -> None:
    """A row of a mean over W exists after the last column step."""
    m = Maker(8, [(6, 5, 2)])
    graph = m.graph([m.lut(m.reduce(m.inputs[0], (1,), "avg"))])
    own = tuple(SegmentSpec(ops=(op,), row_adv=1, col_adv=2) for op in (0, 1))
    schedule = build.build_schedule(Facts(graph), [StageSpec(segments=own)], "resident")
    assert refusal(placed(graph, schedule)) == (None, NO_RECORD)
    first, second = (segment(schedule, 0, g) for g in (0, 1))
    whole = Axis(advance=2, offset=0, extent=2)
    both = replace(first, entries=(first.entries[0], replace(second.entries[0], cols=whole)))
    joint = replace(schedule, stages=(replace(schedule.stages[0], segments=(both,)),))
    assert refusal(placed(graph, joint)) == (EngineError.POLICY, 1)


def test_whole_tensors_are_read_from_earlier_stages_only() -> None:
    graph, schedule = residents()
    assert refusal(placed(graph, joined(schedule, 0))) == (EngineError.POLICY, 2)


def test_whole_tensors_are_read_in_one_step() -> None:
    graph, schedule = residents()
    (reshape,) = segment(schedule, 1, 0).entries
    halves = with_segment(
        schedule, 1, 0, row_steps=2, entries=(replace(reshape, rows=Axis(advance=1, offset=0, extent=1)),)
    )
    assert refusal(placed(graph, halves)) == (EngineError.POLICY, 2)


def test_broadcast_operands_come_from_earlier_stages_only() -> None:
    m = Maker(9, [(4, 4, 2)])
    factor = m.conv(m.inputs[0], 2, kernel=(4, 4), pads=(0, 0, 0, 0))
    graph = m.graph([m.binary(m.inputs[0], factor, "mul")])
    specs = [StageSpec(segments=(SegmentSpec(ops=(op,), row_adv=9, col_adv=9),)) for op in (0, 1)]
    schedule = build.build_schedule(Facts(graph), specs, "resident")
    assert refusal(placed(graph, schedule)) == (None, NO_RECORD)
    assert refusal(placed(graph, joined(schedule, 0))) == (EngineError.POLICY, 2)


def test_a_resize_steps_by_whole_source_rows() -> None:
    m = Maker(10, [(4, 4, 2)])
    graph = m.graph([m.resize(m.lut(m.inputs[0]), (2, 1))])
    specs = [StageSpec(segments=(SegmentSpec(ops=(0, 1), row_adv=2, col_adv=9),))]
    schedule = build.build_schedule(Facts(graph), specs, "resident")
    assert refusal(placed(graph, schedule)) == (None, NO_RECORD)
    first, second = segment(schedule, 0, 0).entries
    odd = replace(second, rows=Axis(advance=3, offset=0, extent=3))
    assert refusal(placed(graph, with_segment(schedule, 0, 0, entries=(first, odd)))) == (EngineError.NEED, 2)


# ---------------------------------------------------------------- plans whose records are wrong


class Records:
    """A plan taken apart into records that can be replaced; ``pack`` puts it together as it was."""

    def __init__(self, plan: bytes) -> None:
        self.plan = plan
        self.header = format.HeaderRecord.unpack(plan)
        self.table = [
            format.SectionRecord.unpack(plan, format.HeaderRecord.SIZE + i * format.SectionRecord.SIZE)
            for i in range(self.header.section_count)
        ]
        self.at = {SectionId(t.type): t.offset for t in self.table}
        self.lists: dict[str, list[Any]] = {}
        self.places: dict[str, int] = {}
        at = self.at[SectionId.GRAPH]
        self._take("graph", format.GraphRecord, 1, at)
        head = self.lists["graph"][0]
        at += format.GraphRecord.SIZE
        at = self._take("tensor", format.TensorRecord, head.tensor_count, at)
        at = self._take("op", format.OpRecord, head.op_count, at)
        at = self._take("const", format.ConstRecord, head.const_count, at)
        at = self._take("io", format.IoRecord, head.input_count + head.output_count, at)
        self.pool = at
        at = self.at[SectionId.SCHEDULE]
        at = self._take("schedule", format.ScheduleRecord, 1, at)
        counts = self.lists["schedule"][0]
        at = self._take("stage", format.StageRecord, counts.stage_count, at)
        at = self._take("segment", format.SegmentRecord, counts.segment_count, at)
        at = self._take("entry", format.EntryRecord, counts.entry_count, at)
        self.entry_of = at

    def _take(self, name: str, record: Any, count: int, at: int) -> int:
        self.places[name] = at
        self.lists[name] = [record.unpack(self.plan, at + i * record.SIZE) for i in range(count)]
        return at + count * int(record.SIZE)

    def set(self, name: str, n: int, **changes: Any) -> bytes:
        """The plan with fields of record ``n`` of one kind replaced."""
        if name == "header":
            return replace(self.header, **changes).pack() + self.plan[format.HeaderRecord.SIZE :]
        if name == "section":
            size = format.SectionRecord.SIZE
            at = format.HeaderRecord.SIZE + n * size
            return self.plan[:at] + replace(self.table[n], **changes).pack() + self.plan[at + size :]
        record = self.lists[name][n]
        at = self.places[name] + n * record.SIZE
        return self.plan[:at] + replace(record, **changes).pack() + self.plan[at + record.SIZE :]

    def find(self, opcode: Opcode, having: int = 0) -> int:
        """First operator of a kind that has all the flags ``having``."""
        return next(i for i, o in enumerate(self.lists["op"]) if o.opcode == opcode and o.flags & having == having)

    def poke(self, at: int, data: bytes) -> bytes:
        return self.plan[:at] + data + self.plan[at + len(data) :]

    def parameter(self, n: int, at: int, layout: str, value: int) -> bytes:
        """The plan with one value of operator ``n``'s parameter block replaced."""
        start = self.at[SectionId.WEIGHTS] + self.lists["op"][n].params + at
        return self.poke(start, struct.pack(f"<{layout}", value))


@functools.cache
def every_operator() -> Records:
    """One stage per operator; every opcode, a constant operand, all three forms of REDUCE, both of RESIZE."""
    m = Maker(7, [(6, 6, 2)])
    a = m.conv(m.inputs[0], 4)
    b = m.depthwise(a, 2)
    c = m.pool(m.pool(b, "avg", (3, 3), (2, 2), (1, 1, 1, 1)), "max", (2, 2), (1, 1), (1, 1, 0, 0))
    d = m.binary(m.binary(m.binary(c, m.constant((1, 1, 8))), c, "sub"), c, "mul")
    e = m.pad(m.concat([d, c]), (1, 1, 1, 1))
    f = m.resize(m.lut(e), (2, 1))
    g = m.resize_table(f, (5, 4))
    h = m.reshape(m.concat([g, g], 0), (4, 10, 16))
    means = [m.reduce(h, (0, 1)), m.reduce(h, (0, 1), "avg"), m.reduce(h, (0, 1), "max")]
    graph = m.graph([m.softmax(m.dense(m.concat(means), 5)), m.reduce(h, (0,)), m.reduce(h, (1,))])
    facts = Facts(graph)
    schedule = build.build_schedule(facts, build.layer_specs(facts, "resident"), "resident")
    records = Records(encode(graph, schedule, place(facts, schedule), names=True))
    assert {o.opcode for o in records.lists["op"]} == set(Opcode)
    return records


@functools.cache
def two_reads() -> Records:
    """Streamed, with a segment of several operators."""
    return Records(placed(*block()))


E = EngineError
Case = tuple[Callable[[], bytes], EngineError, int]


def case(
    code: EngineError,
    name: str,
    n: int | Callable[[Records], int] = 0,
    record: int | None = None,
    of: Callable[[], Records] = every_operator,
    **changes: Any,
) -> Case:
    """Record ``n`` of kind ``name`` with fields replaced is refused with ``code`` at ``record`` (default: ``n``)."""

    def make() -> bytes:
        records = of()
        return records.set(name, n if isinstance(n, int) else n(records), **changes)

    if record is None:
        record = (n if isinstance(n, int) else n(of())) if name not in ("header", "graph", "schedule") else NO_RECORD
    return make, code, record


def op(code: EngineError, opcode: Opcode, having: int = 0, **changes: Any) -> Case:
    return case(code, "op", lambda r: r.find(opcode, having), **changes)


def parameter(code: EngineError, opcode: Opcode, at: int, layout: str, value: int) -> Case:
    n = every_operator().find(opcode)
    return (lambda: every_operator().parameter(n, at, layout, value)), code, n


def doubled(what: SectionId) -> bytes:
    """NAMES becomes a second section of type ``what``."""
    records = every_operator()
    n = next(i for i, t in enumerate(records.table) if t.type == SectionId.NAMES)
    return records.set("section", n, type=what)


def missing(what: SectionId) -> bytes:
    """``what`` becomes a section of a type unknown and not critical."""
    records = every_operator()
    n = next(i for i, t in enumerate(records.table) if t.type == what)
    return records.set("section", n, type=99, flags=0)


def exchanged(one: int, other: int) -> bytes:
    """Two rows of the section table change places."""
    records = every_operator()
    changed = Records(records.plan)
    changed.plan = records.set("section", one, **asdict(records.table[other]))
    return changed.set("section", other, **asdict(records.table[one]))


def calls_beyond_32_bits() -> bytes:
    """A declared figure that is right modulo 2^32."""
    records = two_reads()
    head = records.header
    segment = records.lists["segment"][1]
    plan = Records(records.set("segment", 1, row_steps=65535, col_steps=65535))
    more = (65535 * 65535 - segment.row_steps * segment.col_steps) * segment.entry_count
    return plan.set("header", 0, row_steps=2**32 - 1, calls=(head.calls + more) % 2**32)


def entry_of(tensor: int, value: int) -> bytes:
    records = every_operator()
    return records.poke(records.entry_of + 2 * tensor, struct.pack("<H", value))


def list_pool(value: int) -> bytes:
    records = every_operator()
    return records.poke(records.pool, struct.pack("<H", value))


def last_in_weights() -> int:
    """The CONST record whose bytes end WEIGHTS: constants come last, and tensors are checked before operators."""
    return len(every_operator().lists["const"]) - 1


def constant_without_record() -> bytes:
    """A tensor that says it is constant, and no CONST record names it."""
    return every_operator().set("tensor", 0, flags=1)


def moved_sections(records: Records, **contents: bytes) -> bytes:
    """Sections GRAPH, SCHEDULE, WEIGHTS with other contents, of any length, behind the rest of the plan."""
    plan, table = records.plan, list(records.table)
    for name, content in contents.items():
        n = next(i for i, row in enumerate(table) if row.type == SectionId[name])
        plan += bytes(-len(plan) % 8)
        table[n] = replace(table[n], offset=len(plan), length=len(content))
        plan += content
    plan += bytes(-len(plan) % 8)
    head = replace(records.header, total_len=len(plan)).pack() + b"".join(row.pack() for row in table)
    return head + plan[len(head) :]


def graph_with(
    records: Records, tensor: Sequence[Any] = (), op: Sequence[Any] = (), const: Sequence[Any] = ()
) -> bytes:
    """The GRAPH section with more records."""
    lists = records.lists
    counts = replace(
        lists["graph"][0],
        tensor_count=len(lists["tensor"]) + len(tensor),
        op_count=len(lists["op"]) + len(op),
        const_count=len(lists["const"]) + len(const),
    )
    rows = (counts, *lists["tensor"], *tensor, *lists["op"], *op, *lists["const"], *const, *lists["io"])
    end = records.at[SectionId.GRAPH] + records.table[0].length
    return b"".join(row.pack() for row in rows) + records.plan[records.pool : end]


def schedule_with(records: Records, *entry_of: int) -> bytes:
    """The SCHEDULE section with entries of more tensors."""
    start = records.at[SectionId.SCHEDULE]
    return records.plan[start : start + records.table[1].length] + struct.pack(f"<{len(entry_of)}H", *entry_of)


def counts(**changes: int) -> Case:
    """A graph of so many records, all of them there, all of them zero."""

    def make() -> bytes:
        head = replace(every_operator().lists["graph"][0], **changes)
        size = head.tensor_count * format.TensorRecord.SIZE + head.op_count * format.OpRecord.SIZE
        size += head.const_count * format.ConstRecord.SIZE + 2 * head.list_count
        size += (head.input_count + head.output_count) * format.IoRecord.SIZE
        return moved_sections(every_operator(), GRAPH=head.pack() + bytes(size))

    return make, E.SECTION, NO_RECORD


def no_stages() -> bytes:
    records = every_operator()
    head = replace(records.lists["schedule"][0], stage_count=0)
    rest = schedule_with(records)[records.places["segment"] - records.at[SectionId.SCHEDULE] :]
    return moved_sections(records, SCHEDULE=head.pack() + rest)


def one_more_tensor(entry: int, flags: int = 0) -> bytes:
    """That no entry produces, whatever it is mapped to."""
    records = every_operator()
    tensor = replace(records.lists["tensor"][1], flags=flags)
    return moved_sections(records, GRAPH=graph_with(records, tensor=[tensor]), SCHEDULE=schedule_with(records, entry))


def one_more_operator() -> bytes:
    """That is in no stage, and produces what another one produces."""
    records = every_operator()
    return moved_sections(records, GRAPH=graph_with(records, op=[records.lists["op"][0]]))


def one_more_constant() -> bytes:
    records = every_operator()
    return moved_sections(records, GRAPH=graph_with(records, const=[records.lists["const"][-1]]))


def grown(make: Callable[[Maker], int], shape: tuple[int, int, int], weights: int = 0, **changes: int) -> bytes:
    """A plan of one operator whose input is declared larger than it was, with so many bytes of weights more."""
    m = Maker(12, [shape])
    graph = m.graph([make(m)])
    facts = Facts(graph)
    schedule = build.build_schedule(facts, build.layer_specs(facts, "resident"), "resident")
    records = Records(encode(graph, schedule, place(facts, schedule)))
    for n in range(len(records.lists["tensor"])):
        if n == records.lists["op"][0].input0 or "c" in changes:
            records = Records(records.set("tensor", n, **changes))
    start = records.at[SectionId.WEIGHTS]
    return moved_sections(records, WEIGHTS=records.plan[start : start + records.table[2].length] + bytes(weights))


def wide() -> bytes:
    return grown(lambda m: m.depthwise(m.inputs[0], 1), (3, 3, 4), weights=2000)


def cases() -> dict[str, Case]:
    records = every_operator()
    header, ops, tensors = records.header, len(records.lists["op"]), len(records.lists["tensor"])
    const = records.lists["const"][0].tensor
    conv = records.find(Opcode.CONV2D)
    outputs = records.lists["op"][conv].output
    pooled = records.lists["op"][records.find(Opcode.MAXPOOL)].output
    weights = records.table[2].length
    first_list_op = records.find(Opcode.CONCAT)
    far_bias = 2**31 - 1
    fc = 4 * 5 * 2  # bias and multipliers of the dense layer
    depthwise = (4 + 4 + 1 + 9) * 8  # its block, not in quads
    return {
        # header
        "magic": case(E.MAGIC, "header", magic=header.magic ^ 1),
        "major": case(E.VERSION, "header", format_major=2),
        "older major": case(E.VERSION, "header", format_major=0),
        "minor": case(E.VERSION, "header", format_minor=1),
        "abi": case(E.ABI, "header", abi_major=2),
        "abi minor": case(E.ABI, "header", abi_minor=1),
        "header length": case(E.SECTION, "header", header_len=header.header_len + 48),
        "two sections": case(E.SECTION, "header", section_count=2),
        "17 sections": case(E.SECTION, "header", section_count=17, header_len=144 + 17 * 48),
        "longer than the file": case(E.TRUNCATED, "header", total_len=header.total_len + 1),
        "no room for the table": case(E.SECTION, "header", total_len=200),
        "capabilities": case(E.UNKNOWN, "header", capabilities=1),
        "opcode 32": case(E.DECLARED, "header", op_mask=header.op_mask | 1 << 32),
        "header flags": case(E.UNKNOWN, "header", flags=1),
        "header reserved": case(E.UNKNOWN, "header", reserved2=1),
        "alignment of 2": case(E.ALIGN, "header", align_log2=1),
        "alignment of 128": case(E.ALIGN, "header", align_log2=7),
        "arena of 2 GiB": case(E.ARENA, "header", arena_bytes=2**31),
        # declared figures
        "op mask": case(E.DECLARED, "header", op_mask=header.op_mask ^ 2),
        "arena too large": case(E.DECLARED, "header", arena_bytes=header.arena_bytes + 4),
        "macs + 1": case(E.DECLARED, "header", macs=header.macs + 1),
        "macs - 1": case(E.DECLARED, "header", macs=header.macs - 1),
        "base macs": case(E.DECLARED, "header", base_macs=header.base_macs + 1),
        "elements": case(E.DECLARED, "header", elements=header.elements - 1),
        "row steps": case(E.DECLARED, "header", row_steps=header.row_steps + 1),
        "row steps - 1": case(E.DECLARED, "header", row_steps=header.row_steps - 1),
        "calls beyond 32 bits": (calls_beyond_32_bits, E.DECLARED, NO_RECORD),
        "calls": case(E.DECLARED, "header", calls=header.calls + 1),
        # sections
        "section offset": case(E.SECTION, "section", 1, offset=records.table[1].offset + 4),
        "section over the table": case(E.SECTION, "section", 1, offset=8),
        "section behind the end": case(E.SECTION, "section", 1, offset=(header.total_len + 7) // 8 * 8 + 8),
        "section beyond the end": case(E.SECTION, "section", 2, length=0xFFFFFFF8),
        "section flags": case(E.UNKNOWN, "section", 1, flags=3),
        "section reserved": case(E.UNKNOWN, "section", 1, reserved=1),
        "unknown critical section": case(E.UNKNOWN, "section", 3, type=99, flags=1),
        "short graph": case(E.SECTION, "section", 0, length=records.table[0].length - 2, record=NO_RECORD),
        "graph without a head": case(E.SECTION, "section", 0, length=8, record=NO_RECORD),
        "long graph": case(E.SECTION, "section", 0, length=records.table[0].length + 2, record=NO_RECORD),
        "short schedule": case(E.SECTION, "section", 1, length=records.table[1].length - 2, record=NO_RECORD),
        "schedule without a head": case(E.SECTION, "section", 1, length=4, record=NO_RECORD),
        "long schedule": case(E.SECTION, "section", 1, length=records.table[1].length + 2, record=NO_RECORD),
        "weights cut": case(E.WEIGHTS, "section", 2, length=weights - 4, record=last_in_weights()),
        "no tensors": case(E.SECTION, "graph", tensor_count=0),
        "5000 tensors": case(E.SECTION, "graph", tensor_count=5000),
        "no operators": case(E.SECTION, "graph", op_count=0),
        "no inputs": case(E.SECTION, "graph", input_count=0),
        "17 outputs": case(E.SECTION, "graph", output_count=17),
        "graph reserved": case(E.SECTION, "graph", reserved=1),
        "no stages": case(E.SECTION, "schedule", stage_count=0),
        "no tensors, consistently": counts(tensor_count=0),
        "4097 tensors": counts(tensor_count=4097),
        "no operators, consistently": counts(op_count=0),
        "4097 operators": counts(op_count=4097),
        "no inputs, consistently": counts(input_count=0),
        "17 inputs": counts(input_count=17),
        "no outputs": counts(output_count=0),
        "17 outputs, consistently": counts(output_count=17),
        "no stages, consistently": (no_stages, E.SECTION, NO_RECORD),
        # tensors, constants, inputs, outputs
        "constant twice": (one_more_constant, E.INDEX, len(records.lists["const"])),
        "tensor of no entry": ((lambda: one_more_tensor(5000)), E.GRAPH, tensors),
        "tensor of another's entry": ((lambda: one_more_tensor(0)), E.GRAPH, tensors),
        "constant of no record": ((lambda: one_more_tensor(NO_RECORD, flags=1)), E.GRAPH, 0),
        "operator of no entry": (one_more_operator, E.GRAPH, 0),
        "no rows": case(E.SHAPE, "tensor", 0, h=0),
        "40000 channels": case(E.SHAPE, "tensor", 1, c=40000),
        "2^30 elements": case(E.SHAPE, "tensor", 1, h=32767, w=32767, c=2),
        "tensor flags": case(E.UNKNOWN, "tensor", 1, flags=2),
        "constant without a record": (constant_without_record, E.GRAPH, 0),
        "record without a constant": case(E.GRAPH, "tensor", const, flags=0, record=0),
        "constant number": case(E.INDEX, "const", 0, tensor=tensors),
        "record of a variable": case(E.GRAPH, "const", 0, tensor=const - 1),
        "constant outside": case(E.WEIGHTS, "const", 0, offset=weights),
        "constant misaligned": case(E.WEIGHTS, "const", 0, offset=2),
        "input number": case(E.INDEX, "io", 0, tensor=tensors),
        "constant as output": case(E.GRAPH, "io", 1, tensor=const),
        "input type": case(E.UNKNOWN, "io", 0, dtype=3),
        "io reserved": case(E.UNKNOWN, "io", 0, reserved=1),
        # operators
        "opcode 0": case(E.OPCODE, "op", 0, opcode=0),
        "opcode 16": case(E.OPCODE, "op", 0, opcode=16),
        "operator flags": op(E.UNKNOWN, Opcode.LUT, flags=1),
        "operator input": case(E.INDEX, "op", 0, input0=tensors),
        "second input": op(E.INDEX, Opcode.ADD, input1=NO_RECORD),
        "operator output": case(E.INDEX, "op", 0, output=tensors),
        "output is a constant": case(E.GRAPH, "op", 0, output=const),
        "no kernel": op(E.PARAM, Opcode.CONV2D, kernel_h=0),
        "no stride": op(E.PARAM, Opcode.CONV2D, stride_w=0),
        "no dilation": op(E.PARAM, Opcode.MAXPOOL, dilation_h=0),
        "no groups": op(E.PARAM, Opcode.CONV2D, groups=0),
        "empty range": op(E.PARAM, Opcode.CONV2D, act_min=5, act_max=4),
        "stride of a lookup": op(E.PARAM, Opcode.LUT, stride_h=2),
        "padding of a lookup": op(E.PARAM, Opcode.LUT, pad_top=1),
        "kernel of a lookup": op(E.PARAM, Opcode.LUT, kernel_w=2),
        "groups do not divide": op(E.SHAPE, Opcode.CONV2D, groups=3),
        "groups do not divide the input": op(E.SHAPE, Opcode.CONV2D, groups=4),
        "groups do not divide the output": case(E.SHAPE, "op", 0, of=two_reads, groups=2),
        "depthwise channels": op(E.SHAPE, Opcode.DWCONV2D, input0=records.lists["io"][1].tensor),
        "conv weights outside": op(E.WEIGHTS, Opcode.CONV2D, params=weights),
        "conv weights misaligned": op(E.WEIGHTS, Opcode.CONV2D, params=2),
        "conv kernel beyond weights": op(E.WEIGHTS, Opcode.CONV2D, kernel_h=255, kernel_w=60),
        "bias overflows": parameter(E.OVERFLOW, Opcode.CONV2D, 0, "i", far_bias),
        "quick bias": parameter(E.OVERFLOW, Opcode.CONV2D, 0, "i", 2**30),
        "quick shift": parameter(E.PARAM, Opcode.FULLY_CONNECTED, fc, "b", 0),
        "quads beyond weights": op(
            E.WEIGHTS, Opcode.DWCONV2D, flags=OpFlag.QUICK, params=(weights - depthwise) // 4 * 4
        ),
        "quads of too many taps": (
            (lambda: Records(wide()).set("op", 0, flags=OpFlag.QUICK, kernel_h=43)),  # 129 taps
            E.OVERFLOW,
            0,
        ),
        "bias underflows": parameter(E.OVERFLOW, Opcode.CONV2D, 4, "i", -far_bias),
        "bias of -2^31": parameter(E.OVERFLOW, Opcode.DWCONV2D, 0, "I", 2**31),
        "dense bias overflows": parameter(E.OVERFLOW, Opcode.FULLY_CONNECTED, 16, "i", far_bias - 48 * 255 * 128 + 1),
        "dense of too many taps": (
            (lambda: grown(lambda m: m.dense(m.inputs[0], 1), (1, 30, 50), weights=70000, h=44)),
            E.OVERFLOW,
            0,
        ),
        "dense of 2^32 weights": (
            (lambda: grown(lambda m: m.dense(m.inputs[0], 4), (1, 2, 2), h=32767, w=16000)),
            E.OVERFLOW,
            0,
        ),
        "mean of too many": (
            (lambda: grown(lambda m: m.reduce(m.inputs[0], (0, 1)), (4, 4, 1), h=32767, w=257)),
            E.OVERFLOW,
            0,
        ),
        "softmax of too many": ((lambda: grown(lambda m: m.softmax(m.inputs[0]), (1, 1, 5), c=4096)), E.OVERFLOW, 0),
        "dense multiplier": parameter(E.PARAM, Opcode.FULLY_CONNECTED, 20, "i", -1),
        "dense shift right": parameter(E.PARAM, Opcode.FULLY_CONNECTED, fc, "b", -32),
        "dense shift left": parameter(E.PARAM, Opcode.FULLY_CONNECTED, fc, "b", 31),
        "dense output shape": op(E.SHAPE, Opcode.FULLY_CONNECTED, output=outputs),
        "add shapes": op(E.SHAPE, Opcode.ADD, input0=outputs),
        "add block outside": op(E.WEIGHTS, Opcode.ADD, params=weights - 8),
        "add multiplier": parameter(E.PARAM, Opcode.ADD, 4, "i", -1),
        "add shift of an input": parameter(E.PARAM, Opcode.ADD, 12, "b", 1),
        "sub shift of the output": parameter(E.PARAM, Opcode.SUB, 14, "b", 31),
        "mul left shift": parameter(E.PARAM, Opcode.MUL, 15, "b", 21),
        "concat of nothing": op(E.INDEX, Opcode.CONCAT, input1=0),
        "concat beyond the pool": op(E.INDEX, Opcode.CONCAT, input0=100),
        "concat axis": op(E.INDEX, Opcode.CONCAT, kernel_h=3),
        "concat of an unknown tensor": ((lambda: list_pool(tensors)), E.INDEX, first_list_op),
        "concat shapes": ((lambda: list_pool(0)), E.SHAPE, first_list_op),
        "concat channels": op(E.SHAPE, Opcode.CONCAT, input1=1),
        "pad channels": op(E.SHAPE, Opcode.PAD, input0=outputs),
        "average without a tap": op(E.SHAPE, Opcode.AVGPOOL, pad_top=3),
        "average with dilation": op(E.PARAM, Opcode.AVGPOOL, dilation_h=2),
        "maximum without a tap": op(E.SHAPE, Opcode.MAXPOOL, stride_h=9),
        "maximum between taps": op(E.SHAPE, Opcode.MAXPOOL, dilation_h=200),
        "reduce no axis": op(E.SHAPE, Opcode.REDUCE, flags=0),
        "reduce shape": op(E.SHAPE, Opcode.REDUCE, input0=0),
        "mean outside": op(E.WEIGHTS, Opcode.REDUCE, params=weights - 4),
        "mean multiplier": parameter(E.PARAM, Opcode.REDUCE, 0, "i", -5),
        "mean shift": parameter(E.PARAM, Opcode.REDUCE, 4, "b", 31),
        "lookup shape": op(E.SHAPE, Opcode.LUT, output=outputs),
        "lookup table outside": op(E.WEIGHTS, Opcode.LUT, params=weights - 252),
        "softmax shape": op(E.SHAPE, Opcode.SOFTMAX, output=outputs),
        "softmax block outside": op(E.WEIGHTS, Opcode.SOFTMAX, params=weights - 4),
        "softmax multiplier": parameter(E.PARAM, Opcode.SOFTMAX, 0, "i", -1),
        "softmax shift": parameter(E.PARAM, Opcode.SOFTMAX, 4, "b", -1),
        "softmax shift left": parameter(E.PARAM, Opcode.SOFTMAX, 4, "b", 31),
        "reshape volume": op(E.SHAPE, Opcode.RESHAPE, output=outputs),
        "resize factor": op(E.SHAPE, Opcode.RESIZE, kernel_h=3),
        "resize channels": op(E.SHAPE, Opcode.RESIZE, output=outputs),
        "resize table outside": op(E.WEIGHTS, Opcode.RESIZE, OpFlag.RESIZE_TABLE, params=weights - 4),
        "resize row": (
            (lambda: records.parameter(records.find(Opcode.RESIZE, OpFlag.RESIZE_TABLE), 0, "H", 900)),
            E.PARAM,
            records.find(Opcode.RESIZE, OpFlag.RESIZE_TABLE),
        ),
        # schedule
        "stage's first segment": case(E.INDEX, "stage", 1, first_segment=2),
        "stage without segments": case(E.INDEX, "stage", 0, segment_count=0),
        "stage of too many segments": case(E.INDEX, "stage", 0, segment_count=65),
        "segments left over": case(E.INDEX, "stage", ops - 1, segment_count=2),
        "segment's first entry": case(E.INDEX, "segment", 1, first_entry=1),
        "segment without entries": case(E.INDEX, "segment", 1, entry_count=0),
        "no row steps": case(E.COVERAGE, "segment", 0, row_steps=0, record=1),
        "no column steps": case(E.COVERAGE, "segment", 0, col_steps=0, record=1),
        "placed entries": case(E.INDEX, "schedule", placed_count=2, record=0),
        "operator number": case(E.INDEX, "entry", 2, op=ops),
        "input of the entry": case(E.INDEX, "entry", 0, op=format.INPUT_BIT | 1),
        "operator twice": case(E.GRAPH, "entry", 2, op=0),
        "two producers": op(E.GRAPH, Opcode.AVGPOOL, output=pooled, record=records.find(Opcode.AVGPOOL) + 1),
        "producer unknown": ((lambda: entry_of(outputs, NO_RECORD)), E.GRAPH, 1),
        "producer of a constant": ((lambda: entry_of(const, 0)), E.GRAPH, const),
        "entry flags": case(E.UNKNOWN, "entry", 1, flags=2),
        "placed as a tile": case(E.POLICY, "entry", 0, policy=Policy.TILE),
        "placed with a ring": case(E.POLICY, "entry", 0, keep=1),
        "policy unknown": case(E.POLICY, "entry", 1, policy=4),
        "output from a ring": case(E.POLICY, "io", 1, tensor=4, record=ADD, of=two_reads),
        "no row advance": case(E.COVERAGE, "entry", POINTWISE, row_adv=0, of=two_reads),
        "no column extent": case(E.COVERAGE, "entry", POINTWISE, col_ext=0, of=two_reads),
        "second section": ((lambda: doubled(SectionId.GRAPH)), E.SECTION, 3),
        "section missing": ((lambda: missing(SectionId.WEIGHTS)), E.SECTION, 2),
        "schedule before graph": ((lambda: exchanged(0, 1)), E.SECTION, 0),
        "names before weights": ((lambda: exchanged(2, 3)), E.SECTION, 2),
        "empty": (lambda: b"", E.TRUNCATED, NO_RECORD),
        "half a header": ((lambda: records.plan[:70]), E.TRUNCATED, NO_RECORD),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_records_are_refused(name: str) -> None:
    make, code, record = CASES[name]
    assert refusal(make()) == (code, record)


@pytest.mark.parametrize(("segments", "expected"), [(64, (None, NO_RECORD)), (65, (E.INDEX, 0))])
def test_segments_of_a_stage(
    segments: int, expected: tuple[EngineError | None, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the verifier has counters for on its stack."""
    monkeypatch.setattr(build, "MAX_SEGMENTS", segments)
    m = Maker(15, [(4, 3, 1)])
    t = m.inputs[0]
    for _ in range(segments):
        t = m.lut(t)
    graph = m.graph([t])
    spec = StageSpec(segments=tuple(SegmentSpec(ops=(op,), row_adv=1, col_adv=3) for op in range(segments)))
    schedule = build.build_schedule(Facts(graph), [spec], "resident")
    assert refusal(placed(graph, schedule)) == expected


def test_arena_too_small_for_its_highest_window() -> None:
    """Whichever window that is."""
    records = every_operator()
    code, _ = refusal(records.set("header", 0, arena_bytes=records.header.arena_bytes - 4))
    assert code is EngineError.ARENA


@pytest.mark.parametrize("what", ["arena_bytes", "row_steps", "calls", "macs", "elements"])
def test_limits(what: str) -> None:
    records = two_reads()
    figure = getattr(records.header, what)
    assert refusal(records.plan, Limits(**{what: figure})) == (None, NO_RECORD)
    assert refusal(records.plan, Limits(**{what: figure - 1})) == (EngineError.LIMIT, NO_RECORD)


def test_limits_come_before_anything_else() -> None:
    """A plan that claims 2^32 - 1 row steps is refused at once, whatever else it says."""
    greedy = two_reads().set("header", 0, row_steps=2**32 - 1)
    assert refusal(greedy, Limits(row_steps=1000)) == (EngineError.LIMIT, NO_RECORD)
    assert refusal(greedy) == (EngineError.DECLARED, NO_RECORD)


def test_arguments() -> None:
    """NULL, and a plan at an address that is not a multiple of 8."""
    library = Engine()._lib
    plan = two_reads().plan
    storage = np.zeros(len(plan) // 8 + 2, np.uint64)
    handle = ctypes.create_string_buffer(512)

    def opened(address: int | None, plan_handle: Any = handle) -> EngineError | None:
        code = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
        )(("weft_open", library))(plan_handle, address, len(plan), None, None)
        return EngineError(-code) if code else None

    for shift in range(8):
        storage.view(np.uint8)[shift : shift + len(plan)] = np.frombuffer(plan, np.uint8)
        assert opened(storage.ctypes.data + shift) == (EngineError.ALIGN if shift else None)
    assert opened(None) is EngineError.ARG
    assert opened(storage.ctypes.data, None) is EngineError.ARG


def opened(plan: bytes) -> tuple[ctypes.CDLL, Any, Any]:
    """The library and an open plan, for calls that Python's own wrapper does not make; and what must stay alive."""
    library = Engine()._lib
    storage = np.zeros(len(plan) // 8 + 1, np.uint64)
    storage.view(np.uint8)[: len(plan)] = np.frombuffer(plan, np.uint8)
    handle = ctypes.create_string_buffer(512)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
    )
    assert prototype(("weft_open", library))(handle, storage.ctypes.data, len(plan), None, None) == 0
    return library, handle, storage


def test_questions_about_what_is_not_there() -> None:
    records = every_operator()
    library, plan, _storage = opened(records.plan)
    head, stages = records.lists["graph"][0], records.lists["schedule"][0].stage_count
    out = ctypes.create_string_buffer(64)
    ask = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
    for name, count in (
        ("weft_input_info", head.input_count), ("weft_output_info", head.output_count), ("weft_stage_output", stages)
    ):  # fmt: skip
        function = ask((name, library))
        assert function(plan, count - 1, out, ctypes.addressof(out) + 32) == 0
        for number in (count, 0xFFFFFFFF):
            assert function(plan, number, out, ctypes.addressof(out) + 32) == -EngineError.ARG, name
    const = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)(("weft_const", library))
    assert const(plan, records.lists["const"][0].tensor)
    assert const(plan, 0) is None


@pytest.mark.parametrize("declared", [0, 2**64 - 1])
def test_work_beyond_64_bits_cannot_be_declared(declared: int) -> None:
    """Convolutions of as many taps as there may be, of which each row step makes nearly all rows anew."""
    most, convolutions = 32767, 18
    m = Maker(13, [(8, 8, 1)])
    t = m.inputs[0]
    for _ in range(convolutions):
        t = m.conv(t, 1, kernel=(255, 255), pads=(127, 127, 127, 127))
    graph = m.graph([m.lut(t)])
    specs = [StageSpec(segments=(SegmentSpec(ops=tuple(range(convolutions + 1)), row_adv=1, col_adv=8),))]
    records = Records(placed(graph, build.build_schedule(Facts(graph), specs, "resident")))
    for n in range(convolutions + 2):
        records = Records(records.set("tensor", n, h=most, w=most))
    records = Records(records.set("segment", 0, row_steps=most, col_steps=1))
    columns = {"col_adv": most, "col_off": 0, "col_ext": most}
    for n in range(1, convolutions + 1):
        ahead = 127 * (convolutions - n)
        rows = {"row_adv": 1, "row_off": 1 - most, "row_ext": most + ahead}
        records = Records(records.set("entry", n, policy=Policy.TILE, keep=0, **rows, **columns))
    records = Records(records.set("entry", convolutions + 1, policy=Policy.FULL, keep=0, **columns))
    assert refusal(records.set("header", 0, macs=declared)) == (EngineError.DECLARED, NO_RECORD)


def test_sum_over_its_operand() -> None:
    """Element by element, a kernel reads before it writes."""
    m = Maker(14, [(4, 4, 3)])
    a = m.lut(m.inputs[0])
    graph = m.graph([m.binary(a, m.lut(a))])
    specs = [StageSpec(segments=(SegmentSpec(ops=(op,), row_adv=1, col_adv=9),)) for op in range(3)]
    schedule = build.build_schedule(Facts(graph), specs, "resident")
    (entry,) = segment(schedule, 2, 0).entries
    over = with_segment(schedule, 2, 0, entries=(replace(entry, overlap=True),))

    def edit(p: Placement) -> Placement:
        offset = dict(zip([(-1, 0, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)], [0, 48, 96, 48], strict=True))
        return replace(p, offset=offset, state=(144,) * 3, arena_bytes=148)

    plan = placed(graph, over, edit)
    assert refusal(plan) == (None, NO_RECORD)
    rows = np.arange(48, dtype=np.int8).reshape(4, 4, 3)
    ours, plain = (Engine().open(p).run([rows]).outputs[0] for p in (plan, placed(graph, schedule)))
    np.testing.assert_array_equal(ours, plain)


def test_every_code_of_the_verifier_is_reached() -> None:
    """Each WEFT_ERR_* that the verifier's sources name is what some plan of this file is refused with."""
    folder = ROOT / "module" / "src"
    sources = [folder / "open.c", *folder.glob("verify_*.c")]
    named = {
        EngineError[code] for f in sources for code in re.findall(r"(?:WEFT_ERR_|\bBAD\()([A-Z_]+)", f.read_text())
    }
    named |= {EngineError.RING}  # plan.c's, on behalf of the replay
    reached = {code for _, code, _ in (*SCHEDULES.values(), *PLACEMENTS.values(), *CASES.values())}
    assert named - reached - {EngineError.ARG, EngineError.LIMIT} == set()


# ---------------------------------------------------------------- mutation


def sources() -> list[Path]:
    module = ROOT / "module" / "src"
    return sorted([*(ROOT / "tests/fuzz").glob("*.c"), *module.glob("*.c"), *(module / "kernels_ref").glob("*.c")])


@functools.cache
def fuzzer() -> Path:
    """The fuzzer with the engine in it, ASan and UBSan, built once for these sources."""
    headers = sorted(
        f
        for folder in ("tests/fuzz", "module/src", "module/src/kernels_ref", "module/include/weft")
        for f in (ROOT / folder).glob("*.h")
    )
    key = hashlib.sha256(b"".join(f.read_bytes() for f in (*sources(), *headers))).hexdigest()[:16]
    program = ROOT / "build" / "fuzz" / f"fuzz-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        part = program.with_suffix(f".{os.getpid()}")
        flags = "-std=c99 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wconversion -Werror -O1 -g -fno-omit-frame-pointer"
        sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all -DWEFT_COUNT=1"
        folders = [f"-I{ROOT / f}" for f in ("module/include", "module/src", "tests/fuzz")]
        command = ["gcc", *flags.split(), *sanitizers.split(), *folders, "-o", str(part), *map(str, sources())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        part.replace(program)
    return program


def fuzz(folder: Path, plan: bytes, *arguments: str) -> dict[str, int]:
    """What the fuzzer counted."""
    assert len(plan) < 65536
    file = folder / "plan.weft"
    file.write_bytes(plan)
    done = subprocess.run(
        [str(fuzzer()), *arguments, str(file)], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{folder / 'fuzz-failure.weft'}\n{done.stderr[-4000:]}"
    counted = {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    print(f"\n{' '.join(arguments)}: " + ", ".join(f"{name} {value}" for name, value in counted.items()))
    assert counted["macs"] < 50_000
    return counted


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_random_mutations(name: str, tmp_path: Path) -> None:
    count = -(-MUTATIONS // len(subjects.SUBJECTS))
    counted = fuzz(tmp_path, subjects.SUBJECTS[name]().plan(), "random", "1", str(count))
    assert counted["mutations"] == count
    assert counted["executed"] > count // 20
    assert counted["other_schedule"] > count // 50
    reached = {EngineError[n[len("WEFT_ERR_") :]] for n in counted if n.startswith("WEFT_ERR_")}
    wanted = {code for code in EngineError if code <= EngineError.LIMIT} - {EngineError.ARG}
    if name == "external":  # its segments are of one operator each
        wanted -= {EngineError.NEED}
    assert reached >= wanted


def test_every_byte_set_to_every_other_value(tmp_path: Path) -> None:
    plan = subjects.tiny().plan()
    counted = fuzz(tmp_path, plan, "bytes")
    assert counted["mutations"] == 255 * len(plan)


def test_every_truncation(tmp_path: Path) -> None:
    for subject in (*subjects.SUBJECTS.values(), subjects.tiny):
        plan = subject().plan()
        counted = fuzz(tmp_path, plan, "truncate")
        assert counted["mutations"] == 2 * len(plan)
