# SPDX-License-Identifier: Apache-2.0
"""Scratch and wide steps come out of RAM that the plan has anyhow, and make it faster on the emulated cores."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planner_service import layout, planner, scratch, targets
from planner_service.build import build_schedule, layer_specs
from planner_service.encode import encode
from planner_service.facts import Facts
from planner_service.importers import import_model
from planner_service.ir import Graph

sys.path.insert(0, str(Path(__file__).parent))
from baremetal import firmware, images, runner
from schedule_graphs import random_graph

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "models"
BOARDS = {"m3": "mps2-an385", "m4": "mps2-an386"}
#: What scratch makes of the instructions at most; without SIMD pixels one by one are nearly as quick.
GAIN = {"m3": 0.99, "m4": 0.98}


def shared(name: str) -> Graph:
    path = SHARED / f"{name}.tflite"
    if not path.is_file():
        pytest.skip(f"shared/models/{name}.tflite is not there")
    return import_model(path.read_bytes(), name=name)


def instructions(core: str, plan: bytes, input_bytes: int) -> int:
    (result,) = runner.run(core, plan, [runner.generated_input(input_bytes)], elf=images.image(core))
    return result.instructions


@pytest.mark.parametrize("core", BOARDS)
@pytest.mark.parametrize("name", ["mlperf-tiny-vww", "mcunet-vww"])
def test_kernels_get_what_they_can_use_and_no_more(core: str, name: str) -> None:
    if lacking := firmware.missing(core):
        pytest.skip(f"{', '.join(lacking)} missing")
    graph = shared(name)
    facts = Facts(graph)

    def cost(factor: int) -> int:
        specs = [
            replace(s, scratch=factor * max(scratch.wishes(targets.load(BOARDS[core]).core, graph, s.ops), default=0))
            for s in layer_specs(facts, "resident")
        ]
        schedule = build_schedule(facts, specs, "resident")
        plan = encode(graph, schedule, layout.place(facts, schedule), facts=facts)
        return instructions(core, plan, sum(facts.bytes_of[io.tensor] for io in graph.inputs))

    none, wished, twice = (cost(factor) for factor in (0, 1, 2))
    assert wished < GAIN[core] * none
    assert wished <= 1.005 * twice


def test_hosts_and_single_layers_without_need_get_none() -> None:
    graph = random_graph(3)
    assert scratch.wishes("host", graph, range(len(graph.ops))) == []
    assert scratch.wishes(None, graph, range(len(graph.ops))) == []
    assert scratch.wishes("cortex-m4", graph, [-1]) == []


@pytest.mark.parametrize("seed", range(20))
def test_speed_never_costs_ram_or_macs(seed: int) -> None:
    """A target changes scratch and step widths, never the peak of least RAM, the MACs, or a cap."""
    graph = random_graph(seed)
    m4 = targets.load("mps2-an386")
    for f_max in (1.0, 1.2, None):
        p1 = planner.Constraint(kind="p1", f_max=f_max)
        plain, fast = planner.plan(graph, p1), planner.plan(graph, p1, target=m4)
        assert (fast.arena_bytes, fast.macs) == (plain.arena_bytes, plain.macs)
    cap = planner.layers(graph).arena_bytes
    assert planner.plan(graph, planner.Constraint(kind="p2", ram_max=cap), target=m4).arena_bytes <= cap
    assert planner.layers(graph, target=m4).arena_bytes <= max(cap, m4.arena_budget)


def test_stages_that_do_not_pack_widened_keep_the_others_wide() -> None:
    """All stages of this plan at their widest do not pack; most of them do."""
    graph = shared("mcunet-vww")
    result = planner.plan(graph, planner.Constraint(kind="p1", f_max=1.1), target=targets.load("mps2-an386"))
    calls = sum(s.row_steps * s.col_steps * len(s.entries) for stage in result.schedule.stages for s in stage.segments)
    assert calls < 4000  # with steps of one column 10427
    assert result.arena_bytes <= 10964


def test_layers_get_scratch_within_the_budget() -> None:
    graph = shared("mlperf-tiny-vww")
    plain, fast = planner.layers(graph), planner.layers(graph, target=targets.load("mps2-an386"))
    assert all(stage.scratch == 0 for stage in plain.schedule.stages)
    wished = [max(scratch.wishes("cortex-m4", graph, [op]), default=0) for op in range(len(graph.ops))]
    given = {stage.segments[-1].entries[-1].op: stage.scratch for stage in fast.schedule.stages}
    assert all(given[op] in (0, wished[op]) for op in range(len(graph.ops)))
    assert any(given.values())
    assert plain.arena_bytes <= fast.arena_bytes <= plain.arena_bytes + max(wished)
