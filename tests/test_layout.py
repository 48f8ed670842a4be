# SPDX-License-Identifier: Apache-2.0
"""Windows, lifetimes and packing: nothing that is live together overlaps, and little is lost to packing."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import Maker, random_graph

from planner_service import ir, layout
from planner_service.build import SegmentSpec, StageSpec, build_schedule, build_stage, layer_by_layer
from planner_service.facts import Facts
from planner_service.layout import Block
from tests.randomize import random_schedule

ALL = 0xFFFF


def tower(layers: int, size: int = 16, channels: int = 2) -> ir.Graph:
    m = Maker(1, [(size, size, channels)])
    t = m.inputs[0]
    for _ in range(layers):
        t = m.conv(t, channels)
    return m.graph([t])


def overlap(blocks: list[Block], offsets: list[int]) -> bool:
    return any(
        a[1] <= b[2] and b[1] <= a[2] and at < to + b[0] and to < at + a[0]
        for (a, at), (b, to) in itertools.combinations(zip(blocks, offsets, strict=True), 2)
    )


def least_height(blocks: list[Block]) -> int:
    """By trying every order: some order of placing each block at its lowest gap is optimal."""
    best = sum(b[0] for b in blocks)
    for order in itertools.permutations(range(len(blocks))):
        offsets: dict[int, int] = {}
        for i in order:
            taken = sorted(
                (offsets[j], offsets[j] + blocks[j][0])
                for j in offsets
                if blocks[i][1] <= blocks[j][2] and blocks[j][1] <= blocks[i][2]
            )
            at = 0
            for low, high in taken:
                if low - at >= blocks[i][0]:
                    break
                at = max(at, high)
            offsets[i] = at
        best = min(best, max(offsets[i] + blocks[i][0] for i in offsets))
    return best


BLOCKS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 4)).map(lambda b: (b[0] * 4, b[1], b[1] + b[2])),
    min_size=1,
    max_size=6,
)


@given(blocks=BLOCKS)
@settings(max_examples=80, deadline=None)
def test_small_packings_are_optimal(blocks: list[Block]) -> None:
    offsets, height = layout.pack(blocks)
    assert not overlap(blocks, offsets)
    assert height == max(o + b[0] for o, b in zip(offsets, blocks, strict=True))
    assert height == least_height(blocks)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_packings_hold(seed: int, count: int) -> None:
    rng = random.Random(seed)
    starts = [rng.randrange(30) for _ in range(count)]
    blocks = [(4 * rng.randint(1, 200), s, s + rng.randrange(6)) for s in starts]
    offsets, height = layout.pack(blocks)
    assert not overlap(blocks, offsets)
    bound = max(sum(b[0] for b in blocks if b[1] <= t <= b[2]) for t in range(36))
    assert bound <= height <= 1.35 * bound
    assert (offsets, height) == layout.pack(blocks)


@given(
    distance=st.integers(0, 40).map(lambda n: 4 * n),
    below=st.integers(1, 40).map(lambda n: 4 * n),
    above=st.integers(1, 40).map(lambda n: 4 * n),
)
def test_two_blocks_may_share(distance: int, below: int, above: int) -> None:
    """The one below starts at least ``distance`` lower; beyond its own size they are apart anyway."""
    offsets, height = layout.pack([(below, 1, 2), (above, 0, 1)], allowed={(0, 1): distance}, bound=0)
    assert offsets[1] - offsets[0] >= min(distance, below) or offsets[0] - offsets[1] >= above
    assert height == min(below + above, max(below, min(distance, below) + above))


def test_windows_by_hand() -> None:
    """One stage of two segments and one of a dense layer: what is there, how large, how long."""
    m = Maker(1, [(8, 6, 2)])
    a = m.conv(m.inputs[0], 3)  # tile with a line store
    b = m.conv(a, 4)  # ring
    c = m.conv(b, 2)  # full
    graph = m.graph([m.dense(c, 5)])
    facts = Facts(graph)
    specs = [
        StageSpec(
            segments=(
                SegmentSpec(ops=(0, 1), row_adv=1, col_adv=2, keep={a: 2}),
                SegmentSpec(ops=(2,), row_adv=1, col_adv=ALL),
            ),
            scratch=10,
        ),
        StageSpec(segments=(SegmentSpec(ops=(3,), row_adv=4, col_adv=ALL),)),
    ]
    schedule = build_schedule(facts, specs, "resident")
    found = {(w.kind, w.owner): (w.size, w.first, w.last) for w in layout.windows(facts, schedule)}
    assert found == {
        ("tensor", (-1, 0, 0)): (8 * 6 * 2, 0, 1),
        ("tile", (0, 0, 0)): (1 * 4 * 3, 0, 0),
        ("lines", (0, 0, 0)): (2 * 6 * 3, 0, 1),
        ("ring", (0, 0, 1)): (3 * 6 * 4, 0, 1),
        ("tensor", (0, 1, 0)): (8 * 6 * 2, 0, 2),
        ("counters", (0, -1, -1)): (8, 0, 1),
        ("scratch", (0, -1, -1)): (10, 0, 1),
        ("tensor", (1, 0, 0)): (5, 2, 2),
        ("accumulators", (1, 0, 0)): (4 * 5, 2, 2),
        ("counters", (1, -1, -1)): (4, 2, 2),
    }
    live = layout.live_bytes(layout.windows(facts, schedule))
    assert live == [96 + 12 + 36 + 72 + 96 + 8 + 12, 96 + 36 + 72 + 96 + 8 + 12, 96 + 8 + 20 + 4]
    placement = layout.place(facts, schedule)
    assert placement.arena_bytes == placement.lower_bound == max(live)


@pytest.mark.parametrize(
    ("axes", "row_adv", "col_adv", "size"),
    [
        ((0, 1), 2, 3, 4 * 3),
        ((0, 1), ALL, ALL, 0),
        ((0,), 2, 3, 4 * 6 * 3),
        ((0,), ALL, 3, 0),
        ((1,), 2, 3, 4 * 2 * 3),
        ((1,), 2, ALL, 0),
    ],
)
def test_accumulators(axes: tuple[int, ...], row_adv: int, col_adv: int, size: int) -> None:
    m = Maker(1, [(8, 6, 2)])
    graph = m.graph([m.reduce(m.conv(m.inputs[0], 3), axes)])
    facts = Facts(graph)
    stage = build_stage(facts, StageSpec(segments=(SegmentSpec(ops=(0, 1), row_adv=row_adv, col_adv=col_adv),)))
    assert layout.aux_bytes(facts, stage.segments[0].entries[1]) == size


def test_residents_outputs_and_skips_live_as_long_as_they_are_read() -> None:
    m = Maker(1, [(4, 4, 1), (4, 4, 1)])
    a = m.conv(m.inputs[0], 1)
    b = m.conv(a, 1)
    c = m.binary(a, b)
    d = m.binary(c, m.inputs[1])
    graph = m.graph([b, d])
    facts = Facts(graph)
    lives = {
        w.owner: (w.first, w.last)
        for w in layout.windows(facts, layer_by_layer(graph, "resident"))
        if w.kind == "tensor"
    }
    assert lives == {
        (-1, 0, 0): (0, 0),
        (-1, 0, 1): (0, 3),
        (0, 0, 0): (0, 2),
        (1, 0, 0): (1, 3),  # an output: to the end
        (2, 0, 0): (2, 3),
        (3, 0, 0): (3, 3),
    }


@pytest.mark.parametrize("align", [4, 8, 16, 64])
def test_alignment(align: int) -> None:
    graph = random_graph(5)
    facts = Facts(graph)
    for seed in range(20):
        placement = layout.place(facts, random_schedule(graph, random.Random(seed), "resident", facts), align)
        places = [*placement.offset.values(), *placement.aux.values(), *placement.state, *placement.scratch]
        assert all(at % align == 0 for at in places)
        assert placement.arena_bytes % 4 == 0


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_little_is_lost(seed: int, choice: int) -> None:
    graph = random_graph(seed)
    facts = Facts(graph)
    schedule = random_schedule(graph, random.Random(choice), "streamed", facts)
    placement = layout.place(facts, schedule)
    assert placement.lower_bound <= placement.arena_bytes <= 1.25 * placement.lower_bound
    assert placement == layout.place(facts, schedule)


def test_sixty_five_operators_are_placed_at_once() -> None:
    graph = tower(65)
    facts = Facts(graph)
    schedule = layer_by_layer(graph, "resident")
    began = time.process_time()
    placement = layout.place(facts, schedule)
    assert time.process_time() - began < 0.5  # takes a few milliseconds
    assert placement.arena_bytes == placement.lower_bound == 2 * 16 * 16 * 2 + 4
