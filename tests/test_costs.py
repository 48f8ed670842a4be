# SPDX-License-Identifier: Apache-2.0
"""The latency model: what the search adds up is what the model predicts, and predictions hold on the emulated core."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner_service import costs, planner, targets, workloads
from planner_service.build import InputMode, build_schedule
from planner_service.costs import fit
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.importers import import_model
from planner_service.profile import emulator
from planner_service.solver import Aim, Problem, Search, Space

sys.path.insert(0, str(Path(__file__).parent))
from schedule_graphs import Maker, random_graph

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("core", sorted(fit.BOARDS))
def test_every_core_has_figures(core: str) -> None:
    model = costs.load(core)
    assert set(model.around) == set(costs.Around.__dataclass_fields__)
    for name, figures in model.kernels.items():
        assert set(figures) == set(costs.Work.__dataclass_fields__), name
        assert all(value >= 0 for value in figures.values()), name
    assert {"CONV2D", "CONV2D 1x1", "DWCONV2D 3x3", "FULLY_CONNECTED", "ADD"} <= set(model.kernels)


def test_targets_are_measured_as_cores_with_their_kernels() -> None:
    assert {costs.measured_as(t.core) for t in targets.load_all()} >= {"m3", "m4", "m7", "m55", "rv32", None}
    assert costs.measured_as(None) is None


@pytest.mark.parametrize("core", ["m4", "rv32"])
@pytest.mark.parametrize("seed", range(24))
def test_the_search_costs_schedules_as_the_model_does(seed: int, core: str) -> None:
    graph = random_graph(seed)
    facts, model = Facts(graph), costs.load(core)
    search = Search(Problem(facts, "resident", frozenset(), model), Space(col_steps=(1, 2, 5, 0xFFFF)), 1 << 20)
    search.run(1 << 20, None, aim=Aim.ALL)
    limit, checked = 1 << 20, 0
    while (solution := search.least_macs(limit)) is not None:
        predicted = model.predict(facts, build_schedule(facts, solution.stages, "resident"))
        assert solution.cost / costs.UNITS == pytest.approx(predicted, rel=2e-3), solution.stages
        limit, checked = solution.memory - 4, checked + 1
    assert checked > 0


@pytest.mark.parametrize("seed", range(12))
def test_latency_is_no_worse_than_with_fewest_macs(seed: int) -> None:
    graph, board = random_graph(seed), targets.load("mps2-an386")
    least = planner.plan(graph, planner.Constraint(kind="p1"), target=board)
    cap = (least.arena_bytes + planner.layers(graph).arena_bytes) // 2
    by_macs, by_latency = (
        planner.plan(graph, planner.Constraint(kind="p2", ram_max=cap, objective=objective), target=board)
        for objective in ("macs", "latency")
    )
    assert by_macs.instructions is not None
    assert by_latency.instructions is not None
    assert by_latency.instructions <= by_macs.instructions
    assert by_latency.arena_bytes <= cap
    within = planner.plan(graph, planner.Constraint(kind="p1", f_max=1.1, objective="latency"), target=board)
    plain = planner.plan(graph, planner.Constraint(kind="p1", f_max=1.1), target=board)
    assert within.arena_bytes <= plain.arena_bytes
    assert within.overhead_factor <= 1.1 + 1e-9


@pytest.mark.parametrize("f_max", [1.0, 1.3, None])
@pytest.mark.parametrize("name", ["mbv2-w0.35-r144", "mn2-vww5-r80"])
def test_least_ram_is_no_slower_than_fewest_macs_in_as_much(name: str, f_max: float | None) -> None:
    """P1 took what it had found first, and fused what P2, given the same bytes, left apart."""
    graph, board = workloads.workload(name, "full"), targets.load("mps2-an386")
    least = planner.plan(graph, planner.Constraint(kind="p1", f_max=f_max), target=board)
    fewest = planner.plan(graph, planner.Constraint(kind="p2", ram_max=least.counted_bytes), target=board)
    assert least.instructions is not None
    assert fewest.instructions is not None
    assert (fewest.counted_bytes, fewest.macs) <= (least.counted_bytes, least.macs)
    assert least.instructions <= fewest.instructions


@pytest.mark.parametrize("core", ["mps2-an386", "mps3-an547"])
@pytest.mark.parametrize("f_max", [1.0, 1.2, None])
@pytest.mark.parametrize("name", ["seed 3", "seed 8", "mn2-vww5-r80"])
def test_call_overhead_is_bounded_and_paid_for_in_bytes(name: str, f_max: float | None, core: str) -> None:
    graph = random_graph(int(name[5:])) if name.startswith("seed") else workloads.workload(name, "full")
    board = targets.load(core)
    layers = planner.layers(graph, target=board)
    assert layers.call_overhead == pytest.approx(1.0)
    results = [
        planner.plan(graph, planner.Constraint(kind="p1", f_max=f_max, call_overhead=bound), target=board)
        for bound in (None, 1.2, 1.05)
    ]
    for result, bound in zip(results, (math.inf, 1.2, 1.05), strict=True):
        assert result.call_overhead is not None
        assert result.call_overhead <= bound
        assert f_max is None or result.overhead_factor <= f_max + 1e-9
        assert result.lower_bound == results[0].lower_bound <= result.arena_bytes
    sizes = [result.arena_bytes for result in results]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= layers.arena_bytes


@pytest.mark.parametrize(
    ("seed", "ops", "core", "f_max", "bound"),
    [
        (1002, 11, "hifive1b", 1.5, 1.1),
        (1014, 11, "mps2-an385", None, 1.1),
        (1015, 4, "mps3-an547", 1.1, 1.1),
        (1, 9, "mps3-an547", None, 1.1),
    ],
)
def test_call_overhead_is_bounded_where_latency_counts(
    seed: int, ops: int, core: str, f_max: float | None, bound: float
) -> None:
    """The schedule of fewest instructions has fewer MACs than others of its size, and more calls for each."""
    graph, board = random_graph(seed, ops=ops), targets.load(core)
    few = planner.Constraint(kind="p1", f_max=f_max, call_overhead=bound)
    least, fastest = (planner.plan(graph, c, target=board) for c in (few, replace(few, objective="latency")))
    assert least.instructions is not None
    assert fastest.instructions is not None
    assert fastest.call_overhead is not None
    assert fastest.call_overhead <= bound
    assert fastest.instructions <= least.instructions
    assert fastest.lower_bound == least.lower_bound
    assert fastest.counted_bytes <= least.counted_bytes


@pytest.mark.parametrize("mode", ["streamed", "resident", "external"])
@pytest.mark.parametrize("count_outputs", [True, False])
def test_call_overhead_of_a_few_bytes(mode: InputMode, count_outputs: bool) -> None:
    """So few that no size lies between those of two schedules, or none at all: the search ends."""
    maker = Maker(1, [(3, 3, 1)])
    graph = maker.graph([maker.conv(0, 1)])
    board, ends = targets.load("mps3-an547"), time.monotonic() + 20
    constraint = planner.Constraint(kind="p1", call_overhead=1.0)
    options = planner.Options(input_mode=mode, count_outputs=count_outputs)
    result = planner.plan(graph, constraint, options, target=board, cancelled=lambda: time.monotonic() > ends)
    assert result.call_overhead is not None
    assert result.call_overhead <= 1.0


@pytest.mark.parametrize(("seed", "ops", "core"), [(1015, 4, "mps3-an547"), (1023, 10, "hifive1b")])
def test_call_overhead_of_saved_macs_is_none(seed: int, ops: int, core: str) -> None:
    """Layer by layer was taken where less of all, MACs too, does the same work."""
    graph, board, options = random_graph(seed, ops=ops), targets.load(core), planner.Options(input_mode="resident")
    layers = planner.layers(graph, options, target=board)
    result = planner.plan(graph, planner.Constraint(kind="p1", f_max=1.1, call_overhead=1.1), options, target=board)
    assert result.overhead_factor < 1.0
    assert result.instructions is not None
    assert layers.instructions is not None
    assert result.instructions <= 1.1 * layers.instructions
    assert result.arena_bytes < layers.arena_bytes


def test_progress_of_latency_moves_and_it_can_be_cancelled() -> None:
    graph, board = workloads.workload("mn2-vww5-r80", "full"), targets.load("mps2-an386")
    constraint = planner.Constraint(kind="p2", ram_max=40_000, objective="latency")
    seen: list[float] = []
    reached: list[float] = []
    planner.plan(graph, constraint, target=board, progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert any(0.5 < done < 0.95 for done in seen)
    with pytest.raises(PlannerError) as caught:
        planner.plan(
            graph,
            constraint,
            target=board,
            progress=lambda done, _: reached.append(done),
            cancelled=lambda: bool(reached) and reached[-1] > 0.6,
        )
    assert caught.value.code is Code.CANCELLED


def test_predictions_hold_on_a_network_that_was_not_fitted_to() -> None:
    if lacking := emulator.missing("m4"):
        pytest.skip(f"{', '.join(lacking)} missing")
    path = ROOT / "samples" / "models" / "digits_b.onnx"
    samples = list(fit.measure(import_model(path.read_bytes(), name=path.stem), "m4", parts=False))
    assert len(samples) >= 3
    assert fit.median(fit.errors(costs.load("m4"), samples)) < 0.15


def test_objectives_are_compared_on_the_core() -> None:
    if lacking := emulator.missing("m4"):
        pytest.skip(f"{', '.join(lacking)} missing")
    path = ROOT / "samples" / "models" / "digits_b.onnx"
    pairs = list(fit.compare(import_model(path.read_bytes(), name=path.stem), "m4"))
    assert len(pairs) == len(fit.CAPS)
    assert all(pair.by_latency <= 1.02 * pair.by_macs for pair in pairs)


def test_least_squares_finds_what_is_there() -> None:
    rng = np.random.default_rng(1)
    amounts = rng.uniform(0, 100, (40, 4))
    wanted = np.array([2.5, 0.0, 40.0, 0.125])
    assert fit.least_squares(amounts, amounts @ wanted) == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-3)
    assert min(fit.least_squares(amounts, amounts @ np.array([1.0, -3.0, 2.0, 0.0]))) >= 0


def test_what_is_written_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = costs.load("m4")
    fit.write(model, tmp_path)
    monkeypatch.setattr(costs, "FOLDER", tmp_path)
    costs.load.cache_clear()
    try:
        assert costs.load("m4") == model
    finally:
        costs.load.cache_clear()


@pytest.mark.parametrize(
    ("advance", "lo", "hi", "steps", "size"),
    [(1, 0, 1, 5, 5), (2, -3, 1, 6, 9), (3, -7, -2, 9, 10), (1, 4, 6, 3, 5), (4, -9, -8, 2, 6), (2, 5, 9, 4, 30)],
)
def test_busy_counts_steps_with_something_inside(advance: int, lo: int, hi: int, steps: int, size: int) -> None:
    def inside(i: int) -> bool:
        return min(max(advance * i + hi, 0), size) > min(max(advance * i + lo, 0), size)

    assert costs.busy(advance, lo, hi, steps, size) == sum(map(inside, range(steps)))
