# SPDX-License-Identifier: Apache-2.0
"""Reports: figures that add up, a self-contained page, and damaged plans that end in an error, never a traceback."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import Maker, random_graph

from planner_service import ir, layout, report
from planner_service.build import InputMode, SegmentSpec, StageSpec, build_schedule, layer_by_layer
from planner_service.encode import SelfTest, encode
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.inspect import inspect
from planner_service.schedule import Schedule
from tests.randomize import random_schedule

MODES: tuple[InputMode, ...] = ("resident", "streamed", "external")
ALL = 0xFFFF


def plan_of(graph: ir.Graph, schedule: Schedule, names: bool = False) -> bytes:
    facts = Facts(graph)
    test = SelfTest(seed=1, stages=(0,) * len(schedule.stages), outputs=(0,) * len(graph.outputs))
    return encode(graph, schedule, layout.place(facts, schedule), facts=facts, names=names, selftest=test)


def small() -> tuple[ir.Graph, bytes]:
    """Two stages: a sweep of three convolutions in two segments, and a dense layer."""
    m = Maker(1, [(8, 6, 2)])
    a = m.conv(m.inputs[0], 3)
    c = m.conv(m.conv(a, 4), 2)
    graph = m.graph([m.dense(c, 5)])
    specs = [
        StageSpec(
            segments=(
                SegmentSpec(ops=(-1,), row_adv=1, col_adv=ALL),
                SegmentSpec(ops=(0, 1), row_adv=1, col_adv=2),
                SegmentSpec(ops=(2,), row_adv=1, col_adv=ALL),
            ),
        ),
        StageSpec(segments=(SegmentSpec(ops=(3,), row_adv=4, col_adv=ALL),)),
    ]
    return graph, plan_of(graph, build_schedule(Facts(graph), specs, "streamed"))


class _Page(HTMLParser):
    """Tags that are left open, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(text: str) -> _Page:
    parsed = _Page()
    parsed.feed(text)
    parsed.close()
    return parsed


def test_a_small_plan() -> None:
    graph, plan = small()
    found = report.explain(plan, graph)
    assert [(s.first, s.last, s.layers, s.segments) for s in found.stages] == [
        ("in0", "conv2", 4, 3),
        ("dense3", "dense3", 1, 1),
    ]
    assert [(r.name, r.kind, r.policy) for r in found.layers] == [
        ("in0", "input", "ROWS"),
        ("conv0", "conv2d", "TILE"),
        ("conv1", "conv2d", "ROWS"),
        ("conv2", "conv2d", "FULL"),
        ("dense3", "fully_connected", "FULL"),
    ]
    tile = found.layers[1]
    assert (tile.step_rows, tile.step_cols, tile.kept_rows, tile.window_bytes) == (1, 2, 0, 3 * 4 * 3)
    assert tile.macs > tile.base_macs
    assert found.macs == sum(r.macs for r in found.layers) == sum(s.macs for s in found.stages)
    assert found.base_macs == sum(r.base_macs for r in found.layers) == Facts(graph).base_macs
    assert found.calls == sum(s.calls for s in found.stages)
    assert found.row_steps == sum(s.row_steps for s in found.stages)
    assert found.peak_stage == 0
    assert sum(-(-w.size // 4) * 4 for w in found.peak_windows) == found.lower_bound <= found.arena_bytes
    assert found.peak_layer == found.peak_windows[0].name
    text = found.to_text()
    for word in ("peak RAM", "conv1", "ring", "TILE", "^"):
        assert word in text


def test_names() -> None:
    graph, _ = small()
    schedule = layer_by_layer(graph, "resident")
    assert report.explain(plan_of(graph, schedule)).layers[0].name == "conv2d 0"
    assert report.explain(plan_of(graph, schedule, names=True)).layers[0].name == "conv0"
    with pytest.raises(PlannerError) as caught:
        report.explain(plan_of(graph, schedule), random_graph(1))
    assert caught.value.code is Code.BAD_REQUEST


def test_long_names_are_cut_in_tables_only() -> None:
    graph, plan = small()
    long = "block/" * 12 + "Relu;block/conv"
    found = report.explain(plan, replace(graph, ops=(replace(graph.ops[0], name=long), *graph.ops[1:])))
    assert found.layers[1].name == long
    assert report.short(long) == "…" + ("block/" * 12 + "Relu")[-39:]
    assert long not in found.to_text()
    assert report.short(long) in found.to_text()
    assert report.short("conv0") == "conv0"


def test_external_inputs_are_shown_apart() -> None:
    graph, _ = small()
    found = report.explain(plan_of(graph, layer_by_layer(graph, "external")))
    assert found.external_bytes == 8 * 6 * 2
    assert "outside the arena" in found.to_text()


@given(seed=st.integers(0, 10**6), choice=st.integers(0, 10**6), mode=st.sampled_from(MODES))
@settings(max_examples=60, deadline=None)
def test_reports_add_up(seed: int, choice: int, mode: InputMode) -> None:
    graph = random_graph(seed)
    facts = Facts(graph)
    schedule = random_schedule(graph, random.Random(choice), mode, facts)
    placement = layout.place(facts, schedule)
    plan = encode(graph, schedule, placement, facts=facts)
    found = report.explain(plan, graph)
    assert (found.arena_bytes, found.lower_bound) == (placement.arena_bytes, placement.lower_bound)
    assert max(found.live_by_time) == found.lower_bound == max(s.live_bytes for s in found.stages)
    parts = ("weights", "biases", "requantisation", "tables", "constants", "overhead")
    assert sum(getattr(found, f"{part}_bytes") for part in parts) == found.plan_bytes == len(plan)
    assert all(w.offset >= 0 and w.offset + w.size <= found.arena_bytes for w in found.windows)
    assert max(w.offset + w.size for w in found.windows) > found.arena_bytes - 4
    assert len(found.stage_of_time) == len(found.live_by_time)
    assert json.loads(json.dumps(found.to_json()))["arena_bytes"] == found.arena_bytes
    assert len(found.layers) == len(graph.ops) + (len(graph.inputs) if mode == "streamed" else 0)
    text = report.to_html(found)
    assert page(text).fetched == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_html() -> None:
    graph, plan = small()
    renamed = replace(graph, ops=(replace(graph.ops[0], name="<b>&\"'"), *graph.ops[1:]))
    text = report.to_html(report.explain(plan, renamed))
    parsed = page(text)
    assert parsed.open == []
    assert {"svg", "table", "style", "rect"} <= parsed.tags
    assert "script" not in parsed.tags
    assert "<b>" not in text


@dataclass
class _Fits:
    fits: bool


@dataclass
class _Planned:
    """The figures of ``api.Planned`` that a sweep shows."""

    arena_bytes: int
    overhead_factor: float
    macs: int = 100
    plan: bytes = b"plan"
    model_name: str = "model <1>"
    target: str = "native"
    input_mode: str = "streamed"
    fit: _Fits = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.fit = _Fits(True)


@pytest.mark.parametrize(
    "points", [[(100, 1.0)], [(100, 1.0), (50, 1.0)], [(90000, 1.0), (40000, 1.1), (20000, 1.5), (9000, 2.25)]]
)
def test_sweep(points: list[tuple[int, float]]) -> None:
    text = report.sweep_to_html([_Planned(ram, factor) for ram, factor in points])  # type: ignore[misc]
    parsed = page(text)
    assert parsed.open == []
    assert parsed.fetched == []
    assert text.count("<circle") == len(points)
    assert "model &lt;1&gt;" in text


# ---------------------------------------------------------------- damage


def refused(plan: bytes) -> None:
    """Decoding either succeeds or says what is wrong and where."""
    for read in (inspect, report.explain):
        with contextlib.suppress(BadPlan):
            read_checked(read, plan).to_text()


class BadPlan(Exception):  # noqa: N818
    """PlannerError(BAD_PLAN)."""


def read_checked(read: Callable[[bytes], Any], plan: bytes) -> Any:
    try:
        return read(plan)
    except PlannerError as error:
        if error.code is Code.BAD_PLAN:
            raise BadPlan from error
        raise


def test_every_truncation_is_refused() -> None:
    _, plan = small()
    for length in range(len(plan)):
        with pytest.raises(PlannerError) as caught:
            inspect(plan[:length])
        assert caught.value.code is Code.BAD_PLAN
        assert "offset" in str(caught.value)


def test_bytes_of_the_records() -> None:
    """Header, section table, graph and schedule; each byte set to a few other values."""
    _, plan = small()
    weights = next(s for s in inspect(plan).sections if s.name == "WEIGHTS")
    for at in range(weights.offset):
        for value in {(0, 1)[at % 2], 255, plan[at] ^ 0x80} - {plan[at]}:
            refused(plan[:at] + bytes([value]) + plan[at + 1 :])


@given(
    seed=st.integers(0, 30),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=80, deadline=None)
def test_random_damage(seed: int, changes: list[tuple[float, int]]) -> None:
    graph = random_graph(seed)
    plan = bytearray(plan_of(graph, random_schedule(graph, random.Random(seed), "streamed"), names=True))
    for where, value in changes:
        plan[int(where * len(plan))] = value
    refused(bytes(plan))


@pytest.mark.parametrize("data", [b"", b"WEFT", b"\0" * 500, b"PK\3\4" + bytes(1000)])
def test_what_is_no_plan(data: bytes) -> None:
    with pytest.raises(PlannerError) as caught:
        inspect(data)
    assert caught.value.code is Code.BAD_PLAN


def test_damaged_sections_are_named() -> None:
    _, plan = small()
    found = inspect(plan)
    weights = next(s for s in found.sections if s.name == "WEIGHTS")
    damaged = bytearray(plan)
    damaged[weights.offset + weights.length - 1] ^= 1
    again = inspect(bytes(damaged))
    assert [s.name for s in again.sections if not s.intact] == ["WEIGHTS"]
    assert "DAMAGED" in again.to_text()
