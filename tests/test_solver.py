# SPDX-License-Identifier: Apache-2.0
"""The search against brute force over the same space (docs/planner.md), and what must hold of every plan."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from planner_service import layout, planner, replay
from planner_service.build import (
    IllegalSpecError,
    InputMode,
    SegmentSpec,
    StageSpec,
    build_stage,
    layer_specs,
    place_inputs,
    shape_segment,
    slices,
)
from planner_service.facts import Facts
from planner_service.importers import import_model
from planner_service.schedule import Schedule, Stage
from planner_service.solver import WHOLE, Aim, Problem, Search, Space

sys.path.insert(0, str(Path(__file__).parent))
from schedule_graphs import random_graph

ROOT = Path(__file__).resolve().parent.parent
STEPS = (1, 2)
SPACE = Space(row_steps=STEPS, slice=2)
MODES: tuple[InputMode, ...] = ("streamed", "resident", "external")
#: (memory, MACs) that no other schedule of a set beats in both.
Front = list[tuple[int, int]]


class BruteForce:
    """Every schedule of the space, built and costed by ``build``, ``replay`` and ``layout`` alone."""

    def __init__(self, facts: Facts, mode: InputMode) -> None:
        self.facts, self.mode, self.count = facts, mode, len(facts.graph.ops)
        specs = layer_specs(facts, mode)
        self.inputs = specs[: len(specs) - self.count]
        self.layers = specs[len(self.inputs) :]
        self.built = [build_stage(facts, spec) for spec in specs]

    def front(self) -> Front:
        """Of whole schedules."""
        best: list[Front] = [[] for _ in range(self.count + 1)]
        best[0] = [(0, 0)]
        for s in range(self.count):
            for t in range(s + 1, self.count + 1):
                stages = list(self._stages(s, t)) if best[s] else []
                best[t] = _pareto([*best[t], *((max(m, n), a + b) for m, a in best[s] for n, b in stages)])
        return best[self.count]

    def _stages(self, s: int, t: int) -> Iterator[tuple[int, int]]:
        inner = [j for j in range(s + 1, t) if self._may_cut(s, j)]
        for count in range(len(inner) + 1):
            for cuts in itertools.combinations(inner, count):
                places = itertools.pairwise((s, *cuts, t))
                for segments in itertools.product(*(list(self._segments(i, j)) for i, j in places)):
                    with_inputs = [x for g in segments for x in (*self._streams(g), g)]
                    for overlap in (False, True):
                        spec = StageSpec(segments=tuple(with_inputs), overlap=overlap)
                        try:
                            yield self._cost(s, t, build_stage(self.facts, spec))
                        except IllegalSpecError:
                            continue

    def _may_cut(self, s: int, j: int) -> bool:
        facts = self.facts
        made = [facts.nodes[op].tensor for op in range(s, j)]
        return [t for t in made if any(u >= j for u in facts.consumers[t])] == made[-1:]

    def _streams(self, segment: SegmentSpec) -> list[SegmentSpec]:
        return [x for op in segment.ops for x in self.layers[op].segments[:-1]]

    def _segments(self, i: int, j: int) -> Iterator[SegmentSpec]:
        """Row steps; for each tensor that overlaps from step to step: kept or computed again; slices of channels."""
        nodes = [self.facts.nodes[op] for op in range(i, j)]
        if len(nodes) > 1 and any(n.rows.factor > 1 or n.cols.factor > 1 for n in nodes):
            return
        last = nodes[-1]
        columns = 1 if len(nodes) > 1 and last.size[1] > 1 else WHOLE
        for step in (*(x * last.rows.factor for x in STEPS if x * last.rows.factor < last.size[0]), WHOLE):
            whole = SegmentSpec(ops=tuple(range(i, j)), row_adv=step, col_adv=columns)
            yield from self._keeps(whole, len(nodes) - 1)
            least = next((n for n in slices(self.facts, whole) if n >= SPACE.slice), 0)
            if least and len(nodes) > 1:
                yield replace(whole, slice=least)

    def _keeps(self, spec: SegmentSpec, n: int) -> Iterator[SegmentSpec]:
        """``spec`` with every choice for its first ``n`` operators, the last first: it decides their regions."""
        try:
            shape = shape_segment(self.facts, spec)
        except IllegalSpecError:
            return
        if n == 0:
            yield spec
            return
        advance, _, extent, _ = shape.rows[n - 1]
        yield from self._keeps(spec, n - 1)
        if shape.tile[n - 1] and extent > advance and shape.row_steps > 1:
            tensor = self.facts.nodes[spec.ops[n - 1]].tensor
            kept = {**spec.keep, tensor: extent - advance}
            yield from self._keeps(
                SegmentSpec(ops=spec.ops, row_adv=spec.row_adv, col_adv=spec.col_adv, keep=kept), n - 1
            )

    def _cost(self, s: int, t: int, stage: Stage) -> tuple[int, int]:
        """Most bytes live while the stage runs among unfused ones, and its MACs."""
        skip = len(self.inputs)
        stages = (*self.built[: skip + s], stage, *self.built[skip + t :])
        schedule = Schedule(placed=place_inputs(self.facts, self.mode), stages=stages)
        found = layout.windows(self.facts, schedule)
        saved = layout.shared_bytes(found, layout.overlaps(self.facts, schedule, found))
        begin = sum(len(x.segments) for x in stages[: skip + s])
        live = layout.live_bytes(found)
        peak = max(live[k] - saved.get(k, 0) for k in range(begin, begin + len(stage.segments)))
        return peak, replay.stage_cost(self.facts, stage).macs


def _pareto(points: list[tuple[int, int]]) -> Front:
    found: Front = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def _searched(facts: Facts, mode: InputMode) -> Front:
    """The front as P1 and P2 queries give it, one limit at a time."""
    search = Search(Problem(facts, mode), SPACE, 1 << 30)
    search.run(1 << 30, aim=Aim.ALL)
    found: Front = []
    limit = 1 << 30
    while (solution := search.least_macs(limit)) is not None:
        memory = search.least_memory(solution.cost - facts.base_macs)
        assert memory is not None
        assert solution.memory <= limit
        found.append((memory, solution.cost))
        limit = memory - 1
    return found[::-1]


@pytest.mark.parametrize("block", range(8))
def test_search_agrees_with_brute_force(block: int) -> None:
    """Memory and MACs of both objectives at every limit, on 208 random graphs of up to five operators."""
    for seed in range(block * 26, block * 26 + 26):
        facts = Facts(random_graph(seed, ops=3 + seed % 2))
        mode = MODES[seed % 3]
        assert _searched(facts, mode) == BruteForce(facts, mode).front(), (seed, mode)


@pytest.mark.parametrize(
    ("seed", "ops", "mode"),
    [
        (450392, 3, "external"),  # a ring that is read in a single step, and not to its last row
        (915162, 3, "streamed"),  # a reader that is done before the segment is
        (214862, 3, "external"),  # the same, of a reader whose last rows are nobody's
        (980103, 3, "streamed"),  # rows that only rows beyond the reader's last would read
        (948642, 3, "external"),  # a tensor from outside whose columns are read at two rates
        (17866, 3, "external"),  # a tensor from outside whose rows are read at two rates
        (898653, 3, "streamed"),  # a last tensor of one column
        (321112, 3, "external"),  # the same, of a reduction
        (759150, 4, "resident"),  # a reader that makes no row in its first steps
        (693276, 3, "resident"),  # whose first row is padding only
        (72193, 3, "external"),  # which has only padding to read
        (728076, 4, "external"),  # a segment whose lag is longer than one of its tensors
    ],
)
def test_search_agrees_with_brute_force_where_it_did_not(seed: int, ops: int, mode: InputMode) -> None:
    facts = Facts(random_graph(seed, ops=ops))
    assert _searched(facts, mode) == BruteForce(facts, mode).front()


@pytest.mark.parametrize("mode", ["streamed", "resident", "external"])
@pytest.mark.parametrize("f_max", [1.0, 1.1, 1.3, None])
def test_branches_share_a_stage_only_where_they_read_each_other(mode: InputMode, f_max: float | None) -> None:
    """Operators that only read the same tensor of an earlier stage are not segments of one stage (fire modules)."""
    model = Path(__file__).resolve().parents[1] / "samples" / "models" / "digits_b.onnx"
    graph = import_model(model.read_bytes(), name="digits_b")
    result = planner.plan(graph, planner.Constraint(kind="p1", f_max=f_max), planner.Options(input_mode=mode))
    assert f_max is None or result.overhead_factor <= f_max + 1e-9


def test_more_ram_never_costs_macs() -> None:
    """Where the schedules that are known first do not pack into a bound, those that need less are looked at before
    anything is computed twice."""
    model = Path(__file__).resolve().parents[1] / "samples" / "models" / "digits_a.onnx"
    graph = import_model(model.read_bytes(), name="digits_a")
    bounds = (4172, 4500, 4580, 4608, 4700, 4800)
    macs = [planner.plan(graph, planner.Constraint(kind="p2", ram_max=bound)).macs for bound in bounds]
    assert macs == sorted(macs, reverse=True)
