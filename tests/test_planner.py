# SPDX-License-Identifier: Apache-2.0
"""What must hold of every plan and every request: the same bytes everywhere, limits that are kept and bind the right
way, windows apart, and work that can be watched and stopped."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from schedule_graphs import random_graph

from planner_service import arrange, ir, layout, planner, report
from planner_service.arrange import Inner, Whole
from planner_service.build import InputMode
from planner_service.engine import Engine
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.planner import Constraint, Options, PlanResult
from planner_service.schedule import Schedule
from planner_service.workloads import synthetic, workload

ROOT = Path(__file__).resolve().parent.parent
MODES: tuple[InputMode, ...] = ("streamed", "resident", "external")
F_MAX = (1.0, 1.05, 1.2, 1.5, None)
#: CPU seconds between two looks at whether to go on; a request that is cancelled stops within 0.2.
LONGEST_LOOK = 0.15

DIGESTS = """
import hashlib, sys
sys.path.insert(0, "tests")
from schedule_graphs import random_graph
from planner_service import planner
from planner_service.planner import Constraint, Options
from planner_service.workloads import workload
plans = [
    planner.plan(random_graph(seed), constraint, Options(input_mode=mode)).plan
    for seed, mode in ((1, "streamed"), (2, "resident"), (3, "external"))
    for constraint in (Constraint(kind="p1", f_max=1.2), Constraint(kind="p2", ram_max=3000))
]
graph = workload("mn2-vww5-r80", "full")
plans.append(planner.plan(graph, Constraint(kind="p1", f_max=1.1)).plan)
plans += [result.plan for result in planner.front(random_graph(4))]
print(hashlib.sha256(b"".join(plans)).hexdigest())
"""


def test_same_bytes_in_every_process() -> None:
    """Whatever the hash seed: P1, P2, a front, each input mode."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1", "4294967295")
    ]
    digests = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(digests[0]) == 2 * hashlib.sha256().digest_size
    assert len(set(digests)) == 1


def in_turn(facts: Facts, schedule: Schedule, *names: str) -> bool:
    """Whether two operators' tiles keep nothing from step to step, and one is last read before the other is made."""
    entries = [e for stage in schedule.stages for segment in stage.segments for e in segment.entries]
    order = [e.op for e in entries]
    first, second = (e for e in entries if facts.nodes[e.op].name in names)
    readers = facts.consumers[facts.nodes[first.op].tensor]
    return all(e.keep == 0 and e.cols.extent == e.cols.advance for e in (first, second)) and all(
        order.index(reader) < order.index(second.op) for reader in readers
    )


def check(result: PlanResult, graph: ir.Graph) -> None:
    """The verifier takes the plan, its figures are those promised, and windows share bytes only as intended."""
    info = Engine().open(result.plan).info
    assert (info["arena_bytes"], info["macs"]) == (result.arena_bytes, result.macs)
    assert result.lower_bound <= result.arena_bytes
    facts = Facts(graph)
    found = layout.windows(facts, result.schedule)
    allowed = layout.overlaps(facts, result.schedule, found)
    placed = report.explain(result.plan, graph).windows
    tensors = [w for w in found if w.kind == "tensor"]
    assert [w.size for w in tensors] == [w.size for w in placed if w.kind == "tensor"]
    owners = iter([w.owner for w in tensors])
    named = [(next(owners) if w.kind == "tensor" else None, w) for w in placed]
    for (a, one), (b, other) in itertools.permutations(named, 2):
        live = max(one.first, other.first) <= min(one.last, other.last)
        if not live or not one.offset <= other.offset < one.offset + one.size:
            continue
        if one.kind == other.kind == "tile":
            in_place = one.offset == other.offset
            assert in_place or in_turn(facts, result.schedule, one.name, other.name), (one, other)
            continue
        assert a is not None, (one, other)
        assert b is not None, (one, other)
        below, above = (a, b) if (a, b) in allowed else (b, a)
        assert (below, above) in allowed, (one, other)
        assert below == a or one.offset == other.offset, (one, other)
        assert one.offset + allowed[below, above] <= other.offset, (one, other)


@given(seed=st.integers(0, 10**6), ops=st.integers(3, 10), mode=st.sampled_from(MODES))
@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
def test_less_work_never_for_less_memory(seed: int, ops: int, mode: InputMode) -> None:
    """RAM falls as F is relaxed, F falls as RAM is; limits hold; what does not fit says what would, and that fits."""
    graph, options = random_graph(seed, ops=ops), Options(input_mode=mode)
    least: list[int] = []
    for f_max in F_MAX:
        result = planner.plan(graph, Constraint(kind="p1", f_max=f_max), options)
        check(result, graph)
        assert f_max is None or result.overhead_factor <= f_max + 1e-9
        least.append(result.arena_bytes)
    assert least == sorted(least, reverse=True)
    factors: list[float] = []
    for cap in sorted({*least, least[-1] + 100, 2 * least[0]}):
        result = planner.plan(graph, Constraint(kind="p2", ram_max=cap), options)
        check(result, graph)
        assert result.arena_bytes <= cap
        factors.append(result.overhead_factor)
    assert factors == sorted(factors, reverse=True)
    with pytest.raises(PlannerError) as caught:
        planner.plan(graph, Constraint(kind="p2", ram_max=least[-1] - 1), options)
    error = caught.value
    assert error.code is Code.INFEASIBLE
    assert error.layer in {op.name for op in graph.ops} | {io.name for io in graph.inputs}
    needed = int(re.findall(r"least possible arena is (\d+) bytes", error.hint)[0])
    missing = int(re.findall(r"(\d+) bytes are missing", error.message)[0])
    assert needed - missing == least[-1] - 1
    assert planner.plan(graph, Constraint(kind="p2", ram_max=needed), options).arena_bytes <= needed


@pytest.mark.parametrize(
    ("seed", "ops", "mode"),
    [(568684, 6, "resident"), (932054, 6, "external"), (251273, 12, "resident")],
)
def test_least_ram_where_the_fewest_live_bytes_do_not_pack(seed: int, ops: int, mode: InputMode) -> None:
    """P1 took what packed near the fewest live bytes, and P2 found less."""
    graph, options = random_graph(seed, ops=ops), Options(input_mode=mode)
    least = planner.plan(graph, Constraint(kind="p1"), options).arena_bytes
    assert least > planner.least_bytes(graph, None, options)
    with pytest.raises(PlannerError, match="no schedule fits"):
        planner.plan(graph, Constraint(kind="p2", ram_max=least - 4), options)


# ---------------------------------------------------------------- packing


WHOLES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=3)
INNERS = st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=4, max_size=4)


def chain(sizes: list[tuple[int, int]], inner: list[list[int]]) -> tuple[list[Whole], list[Inner]]:
    """Tensors of (size, distance to the one before), each read by the stage after its own; windows by stage."""
    wholes = [Whole(size, n, n + 1, {n - 1: distance} if n else {}) for n, (size, distance) in enumerate(sizes)]
    return wholes, [Inner(tuple(windows), ((),)) for windows in inner[: len(sizes) + 1]]


def fits(wholes: list[Whole], inners: list[Inner], height: int) -> bool:
    """By trying every position."""

    def apart(at: list[int], n: int) -> bool:
        m = n - 1
        return at[n] + wholes[n].size <= at[m] or at[n] >= at[m] + wholes[m].size or at[n] + wholes[n].over[m] <= at[m]

    def rest(stage: int, at: list[int]) -> bool:
        taken = [False] * height
        for n, w in enumerate(wholes):
            if w.first <= stage <= w.last:
                taken[at[n] : at[n] + w.size] = [True] * w.size

        def put(left: tuple[int, ...]) -> bool:
            if not left:
                return True
            for place in range(height - left[0] + 1):
                if not any(taken[place : place + left[0]]):
                    taken[place : place + left[0]] = [True] * left[0]
                    if put(left[1:]):
                        return True
                    taken[place : place + left[0]] = [False] * left[0]
            return False

        return put(inners[stage].stage)

    positions = [range(height - w.size + 1) for w in wholes]
    return any(
        all(apart(list(at), n) for n in range(1, len(at))) and all(rest(s, list(at)) for s in range(len(inners)))
        for at in itertools.product(*positions)
    )


@given(sizes=WHOLES, inner=INNERS)
@settings(max_examples=60, deadline=None)
def test_packing_and_its_proof_against_every_position(sizes: list[tuple[int, int]], inner: list[list[int]]) -> None:
    wholes, inners = chain(sizes, inner)
    height = next(h for h in itertools.count(max(w.size for w in wholes)) if fits(wholes, inners, h))
    assert arrange.least_height(wholes, inners, 1, 64) <= height
    assert arrange.arrange(wholes, inners, height - 1) is None
    assert arrange.arrange(wholes, inners, sum(w.size for w in wholes) + sum(map(sum, inner))) is not None


# ---------------------------------------------------------------- watching and stopping


class Watch:
    """Progress and looks at whether to go on."""

    def __init__(self, stop_after: int = -1) -> None:
        self.seen: list[float] = []
        self.looks = 0
        self.stop_after = stop_after
        self.longest, self.last = 0.0, time.process_time()

    def progress(self, done: float, _text: str) -> None:
        self.seen.append(done)

    def cancelled(self) -> bool:
        now = time.process_time()
        self.longest, self.last = max(self.longest, now - self.last), now
        self.looks += 1
        return 0 <= self.stop_after < self.looks


def requests() -> dict[str, Callable[[Watch], Any]]:
    large, long = workload("mn2-320k-r176", "full"), synthetic(120)

    def p1(graph: ir.Graph, watch: Watch) -> Any:
        return planner.plan(graph, Constraint(kind="p1", f_max=1.1), progress=watch.progress, cancelled=watch.cancelled)

    return {
        "p1": lambda watch: p1(large, watch),
        "many operators": lambda watch: p1(long, watch),
        "p2 that fits nothing": lambda watch: planner.plan(
            large, Constraint(kind="p2", ram_max=8000), progress=watch.progress, cancelled=watch.cancelled
        ),
        "layers": lambda watch: planner.layers(large, progress=watch.progress, cancelled=watch.cancelled),
        "front": lambda watch: planner.front(
            workload("mn2-vww5-r80", "full"), progress=watch.progress, cancelled=watch.cancelled
        ),
    }


@pytest.mark.parametrize("name", requests())
def test_requests_can_be_watched_and_stopped(name: str) -> None:
    """Progress moves and never falls; between two looks little time passes; a request that is to stop does."""
    request, watch = requests()[name], Watch()
    with pytest.raises(PlannerError, match="no schedule fits") if "nothing" in name else nullcontext():
        request(watch)
    assert watch.seen == sorted(watch.seen)
    assert 0 <= watch.seen[0] < watch.seen[-1] <= 1
    assert len(set(watch.seen)) >= (2 if name == "layers" else 5)
    assert watch.longest < LONGEST_LOOK
    for share in (0.0, 0.3, 0.8):
        stopped = Watch(int(share * watch.looks))
        with pytest.raises(PlannerError) as caught:
            request(stopped)
        assert caught.value.code is Code.CANCELLED
        assert stopped.looks <= stopped.stop_after + 2


def test_time_grows_about_as_operators_do() -> None:
    taken = []
    for operators in (80, 240):
        began = time.process_time()
        planner.plan(synthetic(operators), Constraint(kind="p1", f_max=1.3))
        taken.append(time.process_time() - began)
    assert taken[1] < 8 * taken[0]
