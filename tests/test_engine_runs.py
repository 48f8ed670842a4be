# SPDX-License-Identifier: Apache-2.0
"""The engine on the host: every schedule of a model gives the same bytes, in exactly the RAM and with exactly the work
that its plan declares; and what happens when a run is not given what it needs."""

from __future__ import annotations

import ctypes as ct
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner_service import engine, planner, replay
from planner_service.build import InputMode
from planner_service.encode import encode
from planner_service.engine import CANARY, Counts, Engine, EnginePlan, generated_input
from planner_service.errors import PlannerError
from planner_service.facts import Facts
from planner_service.format import EngineError, Policy
from planner_service.importers import import_model
from planner_service.ir import Graph
from planner_service.layout import place
from planner_service.schedule import Schedule
from tests import oracle
from tests.fuzz import subjects
from tests.randomize import random_schedules

Int8 = NDArray[np.int8]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models"
PUBLIC = ("mcunet-vww", "mlperf-tiny-ad", "mlperf-tiny-ic-resnet8", "mlperf-tiny-kws", "mlperf-tiny-vww")
MODELS = {
    **{name: SHARED / f"{name}.tflite" for name in PUBLIC},
    **{name: ROOT / "samples" / "models" / f"{name}.onnx" for name in ("digits_a", "digits_b")},
}
#: Random schedules by input mode; more than 50 together.
RANDOM: dict[InputMode, int] = {"streamed": 18, "resident": 17, "external": 17}
#: F_max of the solver's own schedules. MCUNet's search with recomputation takes longer than all else here.
SOLVED: dict[str, tuple[float, ...]] = {"mcunet-vww": (1.0,)}


def smooth(shape: tuple[int, int, int]) -> Int8:
    """Slow waves over the tensor, a different one per channel."""
    y, x, c = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return np.asarray(np.round(100 * np.sin(5 * y + 3 * c) * np.cos(4 * x - 2 * c)), np.int8)


def inputs_of(graph: Graph) -> list[list[Int8]]:
    """Pseudo-random, smooth, and all at one end of the range."""
    shapes = [graph.tensors[io.tensor].shape for io in graph.inputs]
    return [
        [generated_input(s, n)[0] for n, s in enumerate(shapes)],
        [smooth(s) for s in shapes],
        [np.full(s, -128, np.int8) for s in shapes],
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    schedule: Schedule
    plan: bytes


def plans_of(name: str, graph: Graph) -> Iterator[Planned]:
    """Random schedules in all input modes, layer by layer, and what the solver likes."""
    facts = Facts(graph)
    for seed, (mode, count) in enumerate(RANDOM.items()):
        for schedule in random_schedules(graph, seed, count, mode):
            yield Planned(schedule=schedule, plan=encode(graph, schedule, place(facts, schedule), facts=facts))
    results = [planner.layers(graph, planner.Options(input_mode="external"))]
    for f_max in SOLVED.get(name, (1.0, 1.3)):
        constraint = planner.Constraint(kind="p1", f_max=f_max)
        results.append(planner.plan(graph, constraint, planner.Options(input_mode="streamed")))
    yield from (Planned(schedule=r.schedule, plan=r.plan) for r in results)


def code_of(call: Callable[[], object]) -> EngineError:
    """The engine's error that ``call`` ends with."""
    with pytest.raises(PlannerError) as caught:
        call()
    return EngineError[caught.value.violations[0].message.split()[0].removeprefix("WEFT_ERR_")]


@pytest.mark.parametrize("name", MODELS)
def test_every_schedule_gives_the_same_bytes(name: str) -> None:
    """At least 50 different schedules: outputs are the oracle's, counters the header's and the planner's, the arena is
    exact (its canaries are checked by every run), and with a byte less nothing is touched."""
    if not MODELS[name].exists():
        pytest.skip(f"{MODELS[name]} is not there")
    graph = import_model(MODELS[name].read_bytes(), name=name)
    facts = Facts(graph)
    inputs = inputs_of(graph)
    expected = []
    for arrays in inputs:
        values = oracle.run(graph, arrays)
        expected.append([values[io.tensor] for io in graph.outputs])
    seen: set[str] = set()
    policies: set[tuple[Policy, bool]] = set()
    for planned in plans_of(name, graph):
        seen.add(repr(planned.schedule))
        entries = [e for stage in planned.schedule.stages for g in stage.segments for e in g.entries]
        policies.update((e.policy, bool(e.keep)) for e in entries)
        cost = replay.schedule_cost(facts, planned.schedule)
        opened = Engine().open(planned.plan)
        info = opened.info
        for arrays, outputs in zip(inputs, expected, strict=True):
            result = opened.run(arrays)
            for ours, theirs in zip(result.outputs, outputs, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            counted = (result.counts.macs, result.counts.elements, result.counts.row_steps)
            assert counted == (info["macs"], info["elements"], info["row_steps"])
            assert counted == (cost.macs, cost.elements, cost.row_steps)
            assert result.counts.calls <= cost.calls == info["calls"]
        short = functools.partial(opened.run, inputs[0], arena_bytes=opened.arena_size - 1)
        assert code_of(short) is EngineError.ARENA_SIZE
    print(f"\n{name}: {len(seen)} schedules, {len(inputs)} inputs each")
    assert len(seen) >= 50
    assert policies >= {(Policy.FULL, False), (Policy.ROWS, True)}


# ---------------------------------------------------------------- runs that are not given what they need


@functools.cache
def opened(name: str) -> EnginePlan:
    return Engine().open(subjects.SUBJECTS[name]().plan())


def given(plan: EnginePlan, seed: int = 1) -> list[Int8]:
    return [generated_input(i.shape, seed + n)[0] for n, i in enumerate(plan.inputs)]


@dataclass(slots=True, kw_only=True)
class Raw:
    """weft_run() called as C would, in a block of canaries; ``skew`` bytes off the arena's alignment."""

    plan: EnginePlan
    skew: int = 0
    block: NDArray[np.uint8] = field(init=False)
    keep: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.block = np.full(self.plan.arena_size + 256, CANARY, np.uint8)

    def run(self, **io: Any) -> EngineError | None:
        """``io``: members of weft_io_t; nothing at all is NULL."""
        address = self.block.ctypes.data + 128
        address += -address % 64 + self.skew
        given_io = engine._Io(**io) if io else None
        code = self.plan._lib.weft_run(
            ct.byref(self.plan._plan), address, self.plan.arena_size, ct.byref(given_io) if given_io else None
        )
        return EngineError(-code) if code else None

    @property
    def untouched(self) -> bool:
        return bool((self.block == CANARY).all())


@pytest.mark.parametrize("skew", [1, 2, 3])
def test_misaligned_arena(skew: int) -> None:
    raw = Raw(plan=opened("resident"), skew=skew)
    assert raw.run() is EngineError.ALIGN
    assert raw.untouched


def test_null() -> None:
    plan = opened("resident")
    run = plan._lib.weft_run
    arena = np.zeros(plan.arena_size, np.uint8)
    assert run(None, arena.ctypes.data, arena.size, None) == -EngineError.ARG
    assert run(ct.byref(plan._plan), None, arena.size, None) == -EngineError.ARG


def test_inputs_that_are_not_supplied() -> None:
    pointers = (ct.c_void_p * 2)(given(opened("external"))[0].ctypes.data, None)
    array = ct.cast(pointers, ct.POINTER(ct.c_void_p))
    for name, io in (("streamed", {}), ("external", {}), ("external", {"external": array})):
        raw = Raw(plan=opened(name))
        assert raw.run(**io) is EngineError.IO, name
        assert raw.untouched
    assert Raw(plan=opened("resident")).run() is None  # needs nothing


def test_failing_input_callback() -> None:
    """Whatever row it fails at, the run ends there and asks for no further one."""
    plan = opened("streamed")
    rows = plan.inputs[0].shape[0]
    for failing in range(rows):
        asked: list[int] = []

        def give(*call: int, asked: list[int] = asked, at: int = failing) -> int:
            row = call[2]
            asked.append(row)
            return int(row == at)

        assert Raw(plan=plan).run(input_fn=engine._INPUT_FN(give)) is EngineError.INPUT
        assert asked == list(range(failing + 1))


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_abort_at_every_step(name: str) -> None:
    plan = opened(name)
    total = int(plan.info["row_steps"])
    for last in range(1, total + 1):
        steps = 0

        def step(last: int = last) -> bool:
            nonlocal steps
            steps += 1
            return steps == last

        assert code_of(functools.partial(plan.run, given(plan), step=step)) is EngineError.ABORTED
        assert steps == last
    expected = plan.run(given(plan)).outputs
    for ours, theirs in zip(plan.run(given(plan), step=lambda: False).outputs, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------- re-entrancy


def check(plan: EnginePlan, seed: int, step: Callable[[], bool] | None = None) -> None:
    """A run with ``step`` gives what one without gives."""
    expected = plan.run(given(plan, seed))
    result = plan.run(given(plan, seed), step=step)
    assert result.counts == expected.counts
    for ours, theirs in zip(result.outputs, expected.outputs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("outer", subjects.SUBJECTS)
@pytest.mark.parametrize("inner", subjects.SUBJECTS)
def test_a_run_inside_a_run(outer: str, inner: str) -> None:
    """Another plan, or the same one through the same handle, runs whole in every step callback."""
    seed = 0

    def step() -> bool:
        nonlocal seed
        seed += 1
        check(opened(inner), seed)
        return False

    check(opened(outer), 7, step)
    assert seed == opened(outer).info["row_steps"]


@pytest.mark.parametrize(("one", "two"), [("streamed", "external"), ("resident", "resident")])
def test_two_runs_step_by_step_in_turn(one: str, two: str) -> None:
    """Two threads hand over to each other after every row step."""
    turn = [threading.Semaphore(1), threading.Semaphore(0)]
    order: list[int] = []
    ended = [False, False]
    failures: list[BaseException] = []

    def work(me: int, plan: EnginePlan, expected: tuple[Counts, list[Int8]]) -> None:
        def step() -> bool:
            order.append(me)
            if not ended[1 - me]:
                turn[1 - me].release()
                assert turn[me].acquire(timeout=60)
            return False

        try:
            assert turn[me].acquire(timeout=60)
            result = plan.run(given(plan, me), step=step)
            assert result.counts == expected[0]
            for ours, theirs in zip(result.outputs, expected[1], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        except BaseException as failure:
            failures.append(failure)
        finally:
            ended[me] = True
            turn[1 - me].release()

    plans = [opened(one), Engine().open(subjects.SUBJECTS[two]().plan())]
    threads = []
    for me, plan in enumerate(plans):
        alone = plan.run(given(plan, me))
        threads.append(threading.Thread(target=work, args=(me, plan, (alone.counts, alone.outputs))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    both = 2 * min(int(p.info["row_steps"]) for p in plans)
    assert order[:both] == [0, 1] * (both // 2)


def test_what_the_arena_held_before_does_not_matter() -> None:
    """Runs in one arena, one after the other, each over what the last one left."""
    plan = opened("resident")
    raw = Raw(plan=plan)
    start = 128 + -(raw.block.ctypes.data + 128) % 64
    arena = raw.block[start : start + plan.arena_size].view(np.int8)
    at = int(plan._lib.weft_input_offset(ct.byref(plan._plan), 0))
    outputs = [int(plan._lib.weft_output_offset(ct.byref(plan._plan), i)) for i in range(len(plan.outputs))]
    for seed in range(4):
        (array,) = given(plan, seed)
        arena[at : at + array.size] = array.ravel()
        assert raw.run() is None
        for offset, expected in zip(outputs, plan.run([array]).outputs, strict=True):
            np.testing.assert_array_equal(arena[offset : offset + expected.size], expected.ravel())
        rest = raw.block.copy()
        rest[start : start + plan.arena_size] = CANARY
        assert (rest == CANARY).all()
