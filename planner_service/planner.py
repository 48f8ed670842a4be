# SPDX-License-Identifier: Apache-2.0
"""From a graph and a constraint to a verified plan: search, layout, encoding, and execution by the C engine.

P1 is least peak RAM with at most F_max times the unfused MACs, P2 least MACs with at most so much RAM. No plan leaves
here that the engine has not opened and run, with arena, MACs and outputs measured."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner_service import replay
from planner_service.build import Facts, InputMode, build_schedule, layer_specs
from planner_service.encode import SelfTest, encode
from planner_service.engine import Engine, RunResult, generated_input
from planner_service.errors import Code, PlannerError, Violation
from planner_service.ir import Graph
from planner_service.layout import live_bytes, place, windows
from planner_service.schedule import Placement, Schedule
from planner_service.solver import Search, Solution, widen
from planner_service.targets import Target

SELFTEST_SEED = 12345
#: Slack in comparisons of F with F_max, which people write with a few decimals.
F_EPSILON = 1e-9
#: The first cap of the search without recomputation is the layer-by-layer arena divided by 2^this.
CAP_SHIFTS = 5
#: Caps of the search with recomputation, as shares of the least RAM without it.
CAP_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: How much of the room above a solution's peak wider tiles may take, in the order of trying: packing may fail.
WIDEN_SHARES = (1.0, 0.9, 0.5)

Progress = Callable[[float, str], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """p1: least RAM with F <= ``f_max`` (None: any). p2: least compute with at most ``ram_max`` bytes (None: any)."""

    kind: Literal["p1", "p2"]
    f_max: float | None = None
    ram_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the input comes, and what the header says."""

    input_mode: InputMode = "streamed"
    plan_version: int = 1
    names: bool = False
    vendor_id: bytes = b""
    class_id: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A plan with its measured figures. ``lower_bound``: bytes live at the peak; the arena is that plus packing gap."""

    plan: bytes
    arena_bytes: int
    macs: int
    base_macs: int
    lower_bound: int
    schedule: Schedule

    @property
    def overhead_factor(self) -> float:
        return self.macs / self.base_macs if self.base_macs else 1.0


class _Run:
    """One request: what its steps share."""

    def __init__(
        self,
        graph: Graph,
        options: Options,
        target: Target | None,
        progress: Progress | None,
        cancelled: Cancelled | None,
    ) -> None:
        self.facts, self.options = Facts(graph), options
        #: Of the arena's base; windows inside it need only 4.
        self.align = target.arena_align if target else 4
        self.progress = progress or (lambda _done, _text: None)
        self.cancelled = cancelled or (lambda: False)

    def tick(self, done: float, text: str) -> None:
        if self.cancelled():
            raise PlannerError(Code.CANCELLED, "planning was cancelled")
        self.progress(done, text)

    def search(self, cap: int, *, recompute: bool, begin: float, end: float, spare: float = math.inf) -> Search:
        text = "searching schedules that recompute" if recompute else "searching schedules without recomputation"
        return Search(
            self.facts,
            self.options.input_mode,
            cap,
            recompute=recompute,
            spare=spare,
            tick=lambda done: self.tick(begin + done * (end - begin), text),
        )

    @cached_property
    def least_without_recomputation(self) -> Solution:
        """The bound that every further search starts from: nothing that needs more RAM can be of use. A search is the
        faster the less RAM it may use, so the cap grows until something fits."""
        layers = place(self.facts, self.layer_schedule).arena_bytes
        for shift in range(CAP_SHIFTS, -1, -1):
            done = 0.3 * (CAP_SHIFTS - shift) / (CAP_SHIFTS + 1)
            search = self.search(layers >> shift, recompute=False, begin=done, end=done + 0.3 / (CAP_SHIFTS + 1))
            found = _least_memory(search, math.inf)
            if found is not None:
                return found
        raise PlannerError(Code.INTERNAL, "the search did not find the layer-by-layer schedule")

    @cached_property
    def layer_schedule(self) -> Schedule:
        return build_schedule(self.facts, layer_specs(self.facts, self.options.input_mode), self.options.input_mode)

    @cached_property
    def reference(self) -> list[NDArray[np.int8]]:
        """What the unfused plan answers on the self-test's input."""
        schedule = self.layer_schedule
        return self._execute(encode(self.facts.graph, schedule, place(self.facts, schedule), facts=self.facts)).outputs

    def _execute(self, plan: bytes) -> RunResult:
        opened = Engine().open(plan)
        inputs: list[NDArray[np.int8]] = []
        seed = SELFTEST_SEED
        for io in opened.inputs:
            array, seed = generated_input(io.shape, seed)
            inputs.append(array)
        return opened.run(inputs, keep_stages=True, step=self.cancelled)

    def finish(self, solution: Solution, cap: int | None = None) -> PlanResult | None:
        """Place, widen, encode and execute; None if packing would exceed ``cap``. Without a cap: in as little as the
        solution can be packed into."""
        mode = self.options.input_mode
        schedule = build_schedule(self.facts, solution.stages, mode)
        placement = place(self.facts, schedule)
        limit = placement.arena_bytes if cap is None else cap
        if placement.arena_bytes > limit:
            return None
        for share in WIDEN_SHARES:
            specs = widen(self.facts, solution, solution.memory + int((limit - solution.memory) * share))
            wide = build_schedule(self.facts, specs, mode)
            wide_placement = place(self.facts, wide)
            if wide_placement.arena_bytes <= limit:
                schedule, placement = wide, wide_placement
                break
        return self.seal(schedule, placement)

    def seal(self, schedule: Schedule, placement: Placement) -> PlanResult:
        """Encode, execute, and add the self-test that the board will repeat."""
        graph, options = self.facts.graph, self.options
        self.tick(0.95, "executing the plan")

        def encoded(selftest: SelfTest | None) -> bytes:
            return encode(
                graph,
                schedule,
                placement,
                plan_version=options.plan_version,
                vendor_id=options.vendor_id,
                class_id=options.class_id,
                names=options.names,
                selftest=selftest,
                align=self.align,
                facts=self.facts,
            )

        result = self._execute(encoded(None))
        cost = replay.schedule_cost(self.facts, schedule)
        if result.counts.macs != cost.macs or result.counts.elements != cost.elements:
            raise PlannerError(Code.INTERNAL, "the engine did not do the work that was planned")
        same = zip(result.outputs, self.reference, strict=True)
        if not all(np.array_equal(a, b) for a, b in same):
            raise PlannerError(Code.INTERNAL, "the schedule changes the model's outputs")
        plan = encoded(
            SelfTest(
                seed=SELFTEST_SEED,
                stages=tuple(zlib.crc32(s) for s in result.stages),
                outputs=tuple(zlib.crc32(o.tobytes()) for o in result.outputs),
            )
        )
        opened = Engine().open(plan)
        return PlanResult(
            plan=plan,
            arena_bytes=opened.arena_size,
            macs=result.counts.macs,
            base_macs=self.facts.base_macs,
            lower_bound=placement.lower_bound,
            schedule=schedule,
        )


def _least_memory(search: Search, macs: float) -> Solution | None:
    """P1 on a finished search: the smallest peak whose fewest MACs are within ``macs``, by bisection; None if none."""
    peaks = search.memories()
    low, high = 0, len(peaks) - 1
    best: Solution | None = None
    while low <= high:
        middle = (low + high) // 2
        found = search.least_macs(peaks[middle])
        if found is not None and found.macs <= macs:
            best, high = found, middle - 1
        else:
            low = middle + 1
    return best


def _infeasible(run: _Run, cap: int, least: PlanResult) -> PlannerError:
    layer = _binding_layer(run.facts, least.schedule)
    return PlannerError(
        Code.INFEASIBLE,
        f"no schedule fits {cap} bytes of RAM: {least.arena_bytes - cap} bytes are missing",
        layer=layer,
        hint=f"the least possible arena is {least.arena_bytes} bytes (F = {least.overhead_factor:.2f}): "
        "allow that much, or use a model with a smaller input or fewer channels at this layer",
        violations=[Violation(layer, "is executed when the least arena is at its fullest")],
    )


def _binding_layer(facts: Facts, schedule: Schedule) -> str:
    """The last operator of the segment that runs when most bytes are live."""
    live = live_bytes(windows(facts, schedule))
    peak = live.index(max(live))
    segments = [segment for stage in schedule.stages for segment in stage.segments]
    return facts.nodes[segments[min(peak, len(segments) - 1)].entries[-1].op].name


def plan(
    graph: Graph,
    constraint: Constraint,
    options: Options | None = None,
    *,
    target: Target | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> PlanResult:
    """The optimal plan within the constraint. PlannerError: INFEASIBLE with what would fit, CANCELLED, BAD_REQUEST."""
    run = _Run(graph, options or Options(), target, progress, cancelled)
    run.tick(0.0, "starting")
    if constraint.kind == "p1":
        return _p1(run, math.inf if constraint.f_max is None else constraint.f_max)
    cap = constraint.ram_max
    return _p2(run, (1 << 31) - 1 if cap is None else cap)


def _p1(run: _Run, f_max: float) -> PlanResult:
    if f_max < 1.0:
        raise PlannerError(Code.BAD_REQUEST, f"F_max is {f_max}", hint="1.0 allows no recomputation")
    first = run.least_without_recomputation
    solution = first
    if f_max > 1.0:
        bound = (f_max + F_EPSILON) * run.facts.base_macs
        for k, share in enumerate(CAP_SHARES):
            begin = 0.3 + 0.6 * k / len(CAP_SHARES)
            end = begin + 0.6 / len(CAP_SHARES)
            cap = int(first.memory * share)
            search = run.search(cap, recompute=True, spare=bound - run.facts.base_macs, begin=begin, end=end)
            found = _least_memory(search, bound)
            if found is not None:
                solution = found
                break
    result = run.finish(solution)
    assert result is not None
    return result


def _p2(run: _Run, cap: int) -> PlanResult:
    first = run.least_without_recomputation
    if first.memory <= cap:
        result = run.finish(first, cap)
        if result is not None:
            return result
    search = run.search(min(first.memory, cap), recompute=True, begin=0.3, end=0.9)
    limit = cap
    while (solution := search.least_macs(limit)) is not None:
        result = run.finish(solution, cap)
        if result is not None:
            return result
        limit = solution.memory - 4
    raise _infeasible(run, cap, _p1(run, math.inf))


def front(
    graph: Graph,
    options: Options | None = None,
    *,
    target: Target | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> tuple[PlanResult, ...]:
    """Every schedule that no other one beats in both RAM and compute, most RAM first."""
    run = _Run(graph, options or Options(), target, progress, cancelled)
    search = run.search(run.least_without_recomputation.memory, recompute=True, begin=0.3, end=0.8)
    found: list[PlanResult] = []
    limit = run.least_without_recomputation.memory
    while (solution := search.least_macs(limit)) is not None:
        result = run.finish(solution)
        assert result is not None
        found.append(result)
        limit = solution.memory - 4
    return _undominated(found)


def _undominated(results: Sequence[PlanResult]) -> tuple[PlanResult, ...]:
    kept: list[PlanResult] = []
    for result in sorted(results, key=lambda r: (r.arena_bytes, r.macs)):
        if not kept or result.macs < kept[-1].macs:
            kept.append(result)
    return tuple(reversed(kept))


def layers(graph: Graph, options: Options | None = None, *, target: Target | None = None) -> PlanResult:
    """The plan that fuses nothing: what every other one is compared with."""
    run = _Run(graph, options or Options(), target, None, None)
    return run.seal(run.layer_schedule, place(run.facts, run.layer_schedule))
