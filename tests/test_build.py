# SPDX-License-Identifier: Apache-2.0
"""Regions, lags, policies, rings and costs: by hand, by hypothesis against the rules, and where they are refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import Maker, random_graph
from schedule_rules import RuleBroken, check

from planner_service import ir, layout, replay
from planner_service.build import (
    MAX_SEGMENTS,
    IllegalSpecError,
    InputMode,
    SegmentSpec,
    StageSpec,
    build_schedule,
    build_stage,
    layer_by_layer,
    shape_segment,
)
from planner_service.facts import Facts
from planner_service.format import Policy
from planner_service.schedule import Entry, Schedule, Stage
from tests.randomize import random_schedule, random_schedules

MODES: tuple[InputMode, ...] = ("resident", "streamed", "external")
ALL = 0xFFFF


def chain(*kernels: tuple[int, int, int], size: int = 16) -> ir.Graph:
    """Square convolutions (kernel, stride, padding on all sides) one after the other."""
    m = Maker(1, [(size, size, 2)])
    t = m.inputs[0]
    for k, s, p in kernels:
        t = m.conv(t, 2, kernel=(k, k), stride=(s, s), pads=(p, p, p, p))
    return m.graph([t])


def stage_of(graph: ir.Graph, *segments: SegmentSpec) -> Stage:
    return build_stage(Facts(graph), StageSpec(segments=segments))


def rows(entry: Entry) -> tuple[int, int, int, int]:
    return entry.rows.advance, entry.rows.offset, entry.rows.extent, entry.keep


def cols(entry: Entry) -> tuple[int, int, int]:
    return entry.cols.advance, entry.cols.offset, entry.cols.extent


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("kernels", "row_adv", "keep", "wanted", "steps"),
    [
        # nothing kept: the last operator does not lag, what it reads is recomputed
        (((3, 1, 1), (3, 1, 1)), 1, {}, [(1, -1, 3, 0), (1, 0, 1, 0)], 16),
        # all kept: the inner operator runs one row ahead, so the last one lags by one
        (((3, 1, 1), (3, 1, 1)), 1, {1: 2}, [(1, -2, 3, 2), (1, -1, 1, 0)], 17),
        # one of two kept: two rows are new at each step, no lag
        (((3, 1, 1), (3, 1, 1)), 1, {1: 1}, [(1, -1, 3, 1), (1, 0, 1, 0)], 16),
        # a stride keeps what overlaps only
        (((3, 1, 1), (3, 2, 1)), 1, {1: 1}, [(2, -1, 3, 1), (1, 0, 1, 0)], 8),
        # three deep, all kept: lags add up, extents do not
        (((3, 1, 1),) * 3, 1, {1: 2, 2: 2}, [(1, -2, 3, 2), (1, -3, 3, 2), (1, -2, 1, 0)], 18),
        # three deep, nothing kept: extents add up
        (((3, 1, 1),) * 3, 1, {}, [(1, -2, 5, 0), (1, -1, 3, 0), (1, 0, 1, 0)], 16),
        # rows that nobody reads are not computed
        (((3, 1, 1), (1, 2, 0)), 1, {}, [(2, 0, 1, 0), (1, 0, 1, 0)], 8),
        (((3, 1, 1), (3, 1, 1)), 4, {}, [(4, -1, 6, 0), (4, 0, 4, 0)], 4),
        (((3, 1, 1), (3, 1, 1)), ALL, {}, [(16, 0, 16, 0), (16, 0, 16, 0)], 1),
    ],
)
def test_rows(
    kernels: tuple[tuple[int, int, int], ...],
    row_adv: int,
    keep: dict[int, int],
    wanted: list[tuple[int, int, int, int]],
    steps: int,
) -> None:
    graph = chain(*kernels)
    stage = stage_of(graph, SegmentSpec(ops=tuple(range(len(kernels))), row_adv=row_adv, col_adv=ALL, keep=keep))
    assert [rows(e) for e in stage.segments[0].entries] == wanted
    assert stage.segments[0].row_steps == steps


@pytest.mark.parametrize(
    ("kernels", "col_adv", "wanted", "steps"),
    [
        (((3, 1, 1), (3, 1, 1)), 2, [(2, -2, 4), (2, -1, 2)], 9),
        (((3, 1, 1),) * 3, 2, [(2, -2, 4), (2, -3, 4), (2, -2, 2)], 9),  # columns do not grow with depth
        (((3, 1, 1), (3, 2, 1)), 2, [(4, -1, 5), (2, 0, 2)], 4),
        (((3, 1, 1), (1, 2, 0)), 2, [(4, -1, 4), (2, 0, 2)], 5),  # never fewer than advance; the last is made, too
        (((3, 1, 1), (3, 1, 1)), ALL, [(16, 0, 16), (16, 0, 16)], 1),
    ],
)
def test_columns(
    kernels: tuple[tuple[int, int, int], ...], col_adv: int, wanted: list[tuple[int, int, int]], steps: int
) -> None:
    stage = stage_of(chain(*kernels), SegmentSpec(ops=tuple(range(len(kernels))), row_adv=2, col_adv=col_adv))
    assert [cols(e) for e in stage.segments[0].entries] == wanted
    assert stage.segments[0].col_steps == steps


def test_resize_keeps_the_phase() -> None:
    m = Maker(1, [(6, 6, 2)])
    t = m.conv(m.resize(m.conv(m.inputs[0], 2), (2, 2)), 2)
    graph = m.graph([t])
    stage = stage_of(graph, SegmentSpec(ops=(0, 1, 2), row_adv=2, col_adv=ALL, keep={2: 2}))
    first, resized, last = stage.segments[0].entries
    assert rows(last) == (2, -1, 2, 0)
    assert rows(resized) == (2, -2, 4, 2)
    assert rows(first) == (1, 0, 1, 0)
    with pytest.raises(IllegalSpecError, match="multiple of the resize factor"):
        stage_of(graph, SegmentSpec(ops=(0, 1, 2), row_adv=1, col_adv=ALL))


def test_policies() -> None:
    m = Maker(1, [(8, 8, 2)])
    a = m.conv(m.inputs[0], 2)  # read by b and, beyond its segment, by the sum: ring
    b = m.conv(a, 2)  # read in its segment only: tile
    c = m.conv(b, 2)  # read by the next segment: ring
    d = m.binary(a, c)  # read by another stage: full
    e = m.conv(d, 2)
    graph = m.graph([e])
    stage = stage_of(
        graph,
        SegmentSpec(ops=(-1,), row_adv=1, col_adv=ALL),
        SegmentSpec(ops=(0, 1, 2), row_adv=1, col_adv=3),
        SegmentSpec(ops=(3,), row_adv=1, col_adv=ALL),
    )
    policies = [[entry.policy for entry in segment.entries] for segment in stage.segments]
    assert policies == [[Policy.ROWS], [Policy.ROWS, Policy.TILE, Policy.ROWS], [Policy.FULL]]
    forced = build_stage(
        Facts(graph),
        StageSpec(
            segments=(SegmentSpec(ops=(0, 1, 2), row_adv=1, col_adv=3), SegmentSpec(ops=(3,), row_adv=1, col_adv=4))
        ),
        full={graph.ops[2].output},
    )
    assert forced.segments[0].entries[2].policy is Policy.FULL


def test_accumulators_only_over_several_steps() -> None:
    m = Maker(1, [(8, 6, 2)])
    graph = m.graph([m.reduce(m.conv(m.inputs[0], 3), (0, 1))])
    several = stage_of(graph, SegmentSpec(ops=(0, 1), row_adv=3, col_adv=2))
    assert several.segments[0].entries[1].accumulate
    assert rows(several.segments[0].entries[1])[:3] == (3, 0, 3)
    assert not stage_of(graph, SegmentSpec(ops=(0, 1), row_adv=8, col_adv=6)).segments[0].entries[1].accumulate


def _illegal() -> list[tuple[str, ir.Graph, tuple[SegmentSpec, ...], str]]:
    two = chain((3, 1, 1), (3, 1, 1))
    one = SegmentSpec(ops=(0,), row_adv=1, col_adv=ALL)
    m = Maker(1, [(8, 8, 2)])
    pooled = m.reduce(m.conv(m.inputs[0], 2), (0, 1))
    reduced = m.graph([m.binary(m.inputs[0], pooled, "mul")])
    m = Maker(1, [(8, 8, 2)])
    shaped = m.graph([m.reshape(m.conv(m.inputs[0], 2), (1, 1, 128))])
    m = Maker(1, [(8, 8, 2)])
    a = m.conv(m.inputs[0], 2)
    b = m.conv(a, 2, stride=(2, 2))
    uneven = m.graph([m.binary(m.conv(m.resize(b, (2, 2)), 2), m.conv(a, 2, kernel=(1, 1), pads=(0, 0, 0, 0)))])
    many = chain(*[(1, 1, 0)] * (MAX_SEGMENTS + 1))
    singles = tuple(SegmentSpec(ops=(n,), row_adv=1, col_adv=ALL) for n in range(MAX_SEGMENTS + 1))
    return [
        ("no operator", two, (SegmentSpec(ops=(), row_adv=1, col_adv=1),), "needs an operator"),
        ("no advance", two, (SegmentSpec(ops=(0, 1), row_adv=0, col_adv=1),), "advances of at least 1"),
        ("wrong order", two, (SegmentSpec(ops=(1, 0), row_adv=1, col_adv=ALL),), "stands before its input"),
        ("wrong segments", two, (SegmentSpec(ops=(1,), row_adv=1, col_adv=ALL), one), "stands before its input"),
        ("twice", two, (one, one, SegmentSpec(ops=(1,), row_adv=1, col_adv=ALL)), "twice"),
        ("keeps too much", two, (SegmentSpec(ops=(0, 1), row_adv=1, col_adv=ALL, keep={1: 3}),), "keeps 3 rows"),
        ("keeps in one step", two, (SegmentSpec(ops=(0, 1), row_adv=ALL, col_adv=1, keep={1: 1}),), "single step"),
        ("nothing", two, (), "segments"),
        ("inner reduction", reduced, (SegmentSpec(ops=(0, 1, 2), row_adv=2, col_adv=ALL),), "ends its segment"),
        (
            "reduction in front",
            reduced,
            (SegmentSpec(ops=(0, 1), row_adv=2, col_adv=ALL), SegmentSpec(ops=(2,), row_adv=1, col_adv=ALL)),
            "ends its stage",
        ),
        ("reshape in sweep", shaped, (SegmentSpec(ops=(0, 1), row_adv=ALL, col_adv=ALL),), "reads a whole tensor"),
        (
            "reshape in stage",
            shaped,
            (one, SegmentSpec(ops=(1,), row_adv=ALL, col_adv=ALL)),
            "reads a whole tensor",
        ),
        ("odd resize", uneven, (SegmentSpec(ops=(0, 1, 2, 3, 4, 5), row_adv=1, col_adv=ALL),), "resize factor"),
        ("input not alone", two, (SegmentSpec(ops=(-1, 0, 1), row_adv=1, col_adv=ALL),), "alone"),
        ("too many segments", many, singles, f"1 to {MAX_SEGMENTS} segments"),
    ]


@pytest.mark.parametrize(("graph", "segments", "reason"), [c[1:] for c in _illegal()], ids=[c[0] for c in _illegal()])
def test_illegal(graph: ir.Graph, segments: tuple[SegmentSpec, ...], reason: str) -> None:
    with pytest.raises(IllegalSpecError, match=reason):
        stage_of(graph, *segments)


def test_operators_that_their_segment_does_not_read_are_illegal() -> None:
    m = Maker(1, [(8, 8, 2)])
    a = m.conv(m.inputs[0], 2)
    b = m.conv(a, 2)
    graph = m.graph([m.binary(m.conv(a, 2), b)])
    with pytest.raises(IllegalSpecError, match="reads it"):
        stage_of(graph, SegmentSpec(ops=(0, 1, 2), row_adv=1, col_adv=ALL))


def test_different_rates_are_illegal() -> None:
    m = Maker(1, [(9, 9, 2)])
    a = m.conv(m.inputs[0], 2)
    b = m.conv(a, 2, kernel=(1, 1), stride=(2, 2), pads=(0, 0, 0, 0))
    c = m.conv(a, 2, kernel=(5, 5), pads=(0, 0, 0, 0))
    graph = m.graph([m.binary(b, c)])
    with pytest.raises(IllegalSpecError, match="different rates"):
        stage_of(graph, SegmentSpec(ops=(0, 1, 2, 3), row_adv=1, col_adv=ALL))


def test_segments_nobody_reads_are_illegal() -> None:
    m = Maker(1, [(8, 8, 2)])
    a, b = m.conv(m.inputs[0], 2), m.conv(m.inputs[0], 2)
    graph = m.graph([a, b])
    with pytest.raises(IllegalSpecError, match="no later segment"):
        stage_of(graph, SegmentSpec(ops=(0,), row_adv=1, col_adv=ALL), SegmentSpec(ops=(1,), row_adv=1, col_adv=ALL))


def test_schedules_must_be_complete() -> None:
    graph = chain((3, 1, 1), (3, 1, 1))
    facts = Facts(graph)
    specs = [StageSpec(segments=(SegmentSpec(ops=(n,), row_adv=ALL, col_adv=ALL),)) for n in (0, 1)]
    assert len(build_schedule(facts, specs, "resident").stages) == 2
    with pytest.raises(IllegalSpecError, match="no stage"):
        build_schedule(facts, specs[:1], "resident")
    with pytest.raises(IllegalSpecError, match="before its input"):
        build_schedule(facts, specs[::-1], "resident")
    with pytest.raises(IllegalSpecError, match="before its input"):
        build_schedule(facts, specs, "streamed")
    with pytest.raises(IllegalSpecError, match="two stages"):
        build_schedule(facts, [*specs, specs[1]], "resident")


# ---------------------------------------------------------------- costs


def test_nothing_is_computed_twice_where_all_is_kept() -> None:
    graph = chain((3, 1, 1), (3, 2, 1), (5, 1, 2), (3, 1, 1))
    facts = Facts(graph)
    for row_adv in (1, 2, 3):
        keep: dict[int, int] = {}
        for n in (3, 2, 1):
            spec = SegmentSpec(ops=(0, 1, 2, 3), row_adv=row_adv, col_adv=2, keep=keep)
            advance, _, extent, _ = shape_segment(facts, spec).rows[n - 1]
            keep = keep | {n: extent - advance} if extent > advance else keep
        every, none = (build_stage(facts, StageSpec(segments=(replace(spec, keep=kept),))) for kept in (keep, {}))
        assert replay.stage_cost(facts, every).macs == facts.base_macs
        assert replay.stage_cost(facts, none).macs > facts.base_macs


@given(
    sums=st.lists(st.integers(0, 9), max_size=20),
    advance=st.integers(1, 7),
    lo=st.integers(-30, 30),
    extent=st.integers(0, 12),
    steps=st.integers(1, 12),
)
def test_swept_sums(sums: list[int], advance: int, lo: int, extent: int, steps: int) -> None:
    prefix = [sum(sums[:n]) for n in range(len(sums) + 1)]
    wanted = sum(
        sums[y] for i in range(steps) for y in range(advance * i + lo, advance * i + lo + extent) if 0 <= y < len(sums)
    )
    assert replay.swept(prefix, advance, lo, lo + extent, steps) == wanted


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_base_macs(seed: int) -> None:
    graph = random_graph(seed)
    assert Facts(graph).op_macs == tuple(ir.macs(graph, op) for op in graph.ops)


# ---------------------------------------------------------------- against the rules


def obeys(graph: ir.Graph, schedule: Schedule, facts: Facts) -> None:
    """The schedule and its placement obey every rule, and do exactly what their figures say."""
    done = check(graph, schedule, layout.place(facts, schedule))
    cost = replay.schedule_cost(facts, schedule)
    assert (done.row_steps, done.calls) == (cost.row_steps, cost.calls)
    assert (done.macs, done.elements) == (cost.macs, cost.elements)


@pytest.mark.parametrize("mode", MODES)
def test_layer_by_layer(mode: InputMode) -> None:
    for seed in range(25):
        graph = random_graph(seed)
        facts = Facts(graph)
        schedule = layer_by_layer(graph, mode)
        obeys(graph, schedule, facts)
        assert replay.schedule_cost(facts, schedule).macs == facts.base_macs


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6), mode=st.sampled_from(MODES))
@settings(max_examples=150, deadline=None)
def test_random_schedules_obey_the_rules(seed: int, choice: int, mode: InputMode) -> None:
    graph = random_graph(seed, ops=7)
    facts = Facts(graph)
    obeys(graph, random_schedule(graph, random.Random(choice), mode, facts), facts)


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_rings_are_exact(seed: int, choice: int) -> None:
    """Following each ring alone equals replaying the stage; and no ring could be smaller."""
    graph = random_graph(seed, ops=7)
    facts = Facts(graph)
    schedule = random_schedule(graph, random.Random(choice), "streamed", facts)
    for s, stage in enumerate(schedule.stages):
        rings = replay.ring_capacities(facts, stage)
        assert rings == replay.ring_capacities(facts, stage, simulate=True)
        inner = _read_inside(facts, stage)
        for (g, n), capacity in rings.items():
            entry = stage.segments[g].entries[n]
            assert entry.keep == capacity
            if capacity == 1 or (g, n) in inner or not all(map(_dense, _readers(graph, entry))):
                continue
            entries = list(stage.segments[g].entries)
            entries[n] = replace(entry, keep=capacity - 1)
            segments = list(stage.segments)
            segments[g] = replace(segments[g], entries=tuple(entries))
            stages = list(schedule.stages)
            stages[s] = replace(stage, segments=tuple(segments))
            smaller = replace(schedule, stages=tuple(stages))
            with pytest.raises(RuleBroken):
                check(graph, smaller, layout.place(facts, smaller))


def _readers(graph: ir.Graph, entry: Entry) -> list[ir.Op]:
    tensor = graph.ops[entry.op].output if entry.op >= 0 else graph.inputs[-1 - entry.op].tensor
    return [op for op in graph.ops if tensor in op.inputs]


def _dense(op: ir.Op) -> bool:
    """The operator reads every row of its receptive field: the rules ask for the field, holes and padding included."""
    if isinstance(op, ir.Window2D):
        return op.dilation == (1, 1) and all(p < k for p, k in zip(op.pads, op.kernel, strict=True))
    return not isinstance(op, ir.Pad)


def _read_inside(facts: Facts, stage: Stage) -> set[tuple[int, int]]:
    """Rings that their own segment reads too: rule 3 sizes those by their regions, edges of the tensor aside."""
    return {
        (g, n)
        for g, segment in enumerate(stage.segments)
        for n, e in enumerate(segment.entries)
        if any(u.op in facts.consumers[facts.nodes[e.op].tensor] for u in segment.entries)
    }


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_lags_are_least(seed: int, choice: int) -> None:
    """One row less lag of any fused segment breaks a rule; any more is allowed."""
    graph = random_graph(seed, ops=6)
    facts = Facts(graph)
    schedule = random_schedule(graph, random.Random(choice), "resident", facts)
    for segment in (segment for stage in schedule.stages for segment in stage.segments):
        last = segment.entries[-1]
        spec = SegmentSpec(
            ops=tuple(e.op for e in segment.entries),
            row_adv=last.rows.advance,
            col_adv=ALL,
            keep={facts.nodes[e.op].tensor: e.keep for e in segment.entries if e.policy is Policy.TILE},
        )
        if segment.row_steps == 1 or spec.row_adv >= facts.nodes[last.op].size[0]:
            continue
        least = shape_segment(facts, spec)
        more = shape_segment(facts, replace(spec, row_lag=3))
        assert last.rows.offset <= least.rows[-1][1] == more.rows[-1][1] + 3
        assert more.row_steps >= least.row_steps
        if least.rows[-1][1] == 0 or any(facts.nodes[op].rows.factor > 1 for op in spec.ops):
            continue
        raised = [offset + advance // spec.row_adv for advance, offset, _, _ in least.rows]
        kept = [region[3] for region in least.rows]
        ordered = [o + k <= 0 for o, k, tile in zip(raised, kept, least.tile, strict=True) if k or not tile]
        assert not all(ordered)


def test_the_checker_sees_broken_schedules() -> None:
    """What the tests above rely on: damage to a valid schedule or placement does not pass."""
    graph = chain((3, 1, 1), (3, 1, 1), (3, 1, 1), size=8)
    facts = Facts(graph)
    spec = StageSpec(
        segments=(
            SegmentSpec(ops=(0, 1), row_adv=1, col_adv=2, keep={1: 2}),
            SegmentSpec(ops=(2,), row_adv=1, col_adv=ALL),
        )
    )
    schedule = build_schedule(facts, [spec], "resident")
    placement = layout.place(facts, schedule)
    check(graph, schedule, placement)

    def changed(segment: int, entry: int, **values: object) -> Schedule:
        stage = schedule.stages[0]
        entries = list(stage.segments[segment].entries)
        entries[entry] = replace(entries[entry], **values)  # type: ignore[arg-type]
        segments = list(stage.segments)
        segments[segment] = replace(segments[segment], entries=tuple(entries))
        return replace(schedule, stages=(replace(stage, segments=tuple(segments)),))

    tile, ring = schedule.stages[0].segments[0].entries
    broken = [
        changed(0, 0, rows=replace(tile.rows, extent=2), keep=1),
        changed(0, 0, rows=replace(tile.rows, offset=tile.rows.offset + 1)),
        changed(0, 0, cols=replace(tile.cols, offset=tile.cols.offset + 1)),
        changed(0, 0, cols=replace(tile.cols, extent=tile.cols.extent - 1)),
        changed(0, 1, keep=ring.keep - 1),
    ]
    for schedule_ in broken:
        with pytest.raises(RuleBroken):
            check(graph, schedule_, layout.place(facts, schedule_))
    for key in placement.offset:
        for other in placement.offset:
            if key != other and placement.offset[key] != placement.offset[other]:
                moved = replace(placement, offset=placement.offset | {key: placement.offset[other]})
                try:
                    check(graph, schedule, moved)
                except RuleBroken:
                    break
        else:
            pytest.fail(f"{key} can be anywhere")


# ---------------------------------------------------------------- randomize


def test_random_schedules_are_many_and_repeatable() -> None:
    graph = random_graph(3)
    for mode in MODES:
        found = random_schedules(graph, 7, 200, mode)
        assert len(found) == 200
        assert found == random_schedules(graph, 7, 200, mode)
        stages = [stage for schedule in found for stage in schedule.stages]
        segments = [segment for stage in stages for segment in stage.segments]
        entries = [e for segment in segments for e in segment.entries]
        assert any(len(stage.segments) > 2 for stage in stages)
        assert any(s.row_steps > 1 and s.col_steps > 1 and len(s.entries) > 2 for s in segments)
        assert any(e.policy is Policy.TILE and 0 < e.keep < e.rows.extent - e.rows.advance for e in entries)
        assert any(e.policy is Policy.TILE and 0 < e.keep == e.rows.extent - e.rows.advance for e in entries)
        assert any(e.policy is Policy.ROWS for e in entries)
