# SPDX-License-Identifier: Apache-2.0
"""From a graph and a constraint to a verified plan: search, layout, encoding, and execution by the C engine.

P1 is least peak RAM with at most F_max times the unfused MACs, P2 least MACs with at most so much RAM. No plan leaves
here that the engine has not opened and run, with arena, MACs and outputs measured."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner_service import costs, replay, scratch
from planner_service.arrange import EFFORT, FAST_EFFORT
from planner_service.build import InputMode, StageSpec, build_schedule, build_stage, layer_specs
from planner_service.encode import SelfTest, encode
from planner_service.engine import Engine, RunResult, generated_input
from planner_service.errors import Code, PlannerError, Violation
from planner_service.facts import Facts
from planner_service.ir import Graph
from planner_service.layout import live_bytes, place, place_fast, place_within, proven, windows
from planner_service.schedule import Placement, Schedule, Stage
from planner_service.solver import Aim, Problem, Search, Solution, Space, Widths, variants
from planner_service.targets import Target

SELFTEST_SEED = 12345
#: What is searched unless somebody says otherwise.
SPACE = Space()
#: Slack in comparisons of F with F_max, which people write with a few decimals.
F_EPSILON = 1e-9
#: A query is answered by searches under growing limits: the tighter they are, the faster. Bytes grow by this factor
#: and a few more, MACs beyond the unfused ones to these shares of the unfused.
CAP_GROWTH, CAP_STEP = 1.5, 32
EXTRA_SHARES = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.11, 0.15, 0.2, 0.3, 0.5, 1.0)
#: Schedules whose live bytes are least can be hard to pack. Among those that need up to this share more bytes, the one
#: that packs best is taken, at most so many are tried, and at each limit these weights against tight overlaps (in
#: shares of the unfused MACs).
PACK_SHARE, PACK_TRIES = 0.04, 40
#: Packings that P2 tries beyond the first, so that no gap is left.
FIT_TRIES = 12
PACK_WEIGHTS = (0.0, 1.0, 0.01)
#: Networks of more operators are long.
LONG = 150
#: Stages within this share of the limit are tight.
TIGHT = 1 / 8
#: Packings tried to make room for wider steps and scratch; with more effort for so many stages that get none.
SPEED_TRIES, HARD_TRIES = 80, 4
#: Bytes that make calls fewer are found to within so many, or this share of them; this times the least is far more.
ROOM_STEP, ROOM_SHARE, ROOM_FAR = 64, 64, 1.04

Objective = Literal["macs", "latency"]
Progress = Callable[[float, str], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """p1: least RAM with F <= ``f_max`` (None: any), and, where the target's core was measured, with predicted
    instructions of at most ``call_overhead`` times F, or once if F is less, those of layer by layer (None: any).
    p2: least compute with at most ``ram_max`` bytes (None: any).
    ``objective``: what compute is: MACs, or instructions as the target's cost model predicts them. F stays one of MACs;
    of p1 the objective decides between schedules of the same RAM."""

    kind: Literal["p1", "p2"]
    f_max: float | None = None
    ram_max: int | None = None
    objective: Objective = "macs"
    call_overhead: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the input comes, what is searched, and what the header says. ``count_outputs`` False: network outputs lie
    above everything else and are left out of what is minimised and capped, as in the msf-CNN paper (which leaves the
    input out too: "external"). ``quads``: how depthwise weights lie (``encode``); None: as the target's core reads them
    best."""

    input_mode: InputMode = "streamed"
    count_outputs: bool = True
    space: Space = SPACE
    plan_version: int = 1
    names: bool = False
    vendor_id: bytes = b""
    class_id: bytes = b""
    quads: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A plan with its measured figures. ``packing_bound``: bytes that no packing of the same windows is below; the
    arena is that plus the packing gap. ``lower_bound``: where the least RAM was asked for, bytes that no schedule that
    was searched can be packed into less than; otherwise the same.
    ``uncounted_bytes`` of the arena are network outputs that ``Options.count_outputs`` leaves out. ``instructions`` are
    predicted, None if there is no cost model of the target's core; ``call_overhead``: for each that the same MACs, or
    the unfused ones if those are more, would take layer by layer."""

    plan: bytes
    arena_bytes: int
    uncounted_bytes: int
    macs: int
    base_macs: int
    packing_bound: int
    lower_bound: int
    schedule: Schedule
    instructions: int | None
    call_overhead: float | None

    @property
    def counted_bytes(self) -> int:
        """The arena without what ``Options.count_outputs`` leaves out."""
        return self.arena_bytes - self.uncounted_bytes

    @property
    def overhead_factor(self) -> float:
        return self.macs / self.base_macs if self.base_macs else 1.0


#: Counted bytes, and what takes them.
Packed = tuple[int, Solution, Schedule, Placement]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A packed schedule, not yet encoded and executed. ``bound``: ``PlanResult.lower_bound`` of a least-RAM search.
    ``begun``: what it was before it was sped up."""

    schedule: Schedule
    placement: Placement
    macs: int
    instructions: int | None
    bound: int | None = None
    begun: tuple[Solution, Schedule, Placement] | None = None


class _Run:
    """One request: what its steps share."""

    def __init__(
        self,
        graph: Graph,
        options: Options,
        target: Target | None,
        progress: Progress | None,
        cancelled: Cancelled | None,
        executed: Callable[[float], None] | None = None,
    ) -> None:
        self.facts, self.options = Facts(graph), options
        self.core = target.core if target else None
        self.budget = target.arena_budget if target else 0
        measured = costs.measured_as(self.core)
        self.model = costs.load(measured) if measured else None
        #: Of the arena's base; windows inside it need only 4.
        self.align = target.arena_align if target else 4
        self.uncounted = frozenset(() if options.count_outputs else (io.tensor for io in graph.outputs))
        self.problem = Problem(self.facts, options.input_mode, self.uncounted)
        self.progress = progress or (lambda _done, _text: None)
        self.cancelled = cancelled or (lambda: False)
        self.executed = executed or (lambda _seconds: None)
        self.done = 0.0
        self.widths: dict[tuple[object, ...], Widths] = {}
        #: The part of the whole that is being done.
        self.phase = (0.0, 1.0)

    def look(self) -> None:
        """PlannerError(CANCELLED) if this is to end."""
        if self.cancelled():
            raise PlannerError(Code.CANCELLED, "planning was cancelled")

    def tick(self, done: float, text: str) -> None:
        """Look whether to go on, and say how far it is: never less than before."""
        self.look()
        begin, end = self.phase
        self.done = max(self.done, begin + done * (end - begin))
        self.progress(self.done, text)

    @property
    def base(self) -> int:
        """What all operators cost unfused, as the search counts at present."""
        return self.problem.base

    def search(self, cap: int, spare: int | None, begin: float, end: float) -> Search:
        return Search(self.problem, self.options.space, cap, spare, self.ticking("finding segments", begin, end))

    def ticking(self, text: str, begin: float, end: float) -> Callable[[float], None]:
        return lambda done: self.tick(begin + done * (end - begin), text)

    def least_memory(self, spare: int | None, begin: float = 0.0, end: float = 0.9) -> tuple[Search, Solution]:
        """P1: least bytes with at most ``spare`` MACs beyond the unfused ones, then the fewest MACs."""
        most = self.place(self.layer_schedule).lower_bound
        begin, middle = begin + 0.2 * (end - begin), end
        search = self.search(most, spare, begin, begin)
        least = self.bisect(search, spare, search.least_bytes(spare) or 0, most, begin, middle)
        self.fewest(search, least, self.ticking("saving MACs", middle, end))
        found = search.least_macs(least)
        assert found is not None
        return search, found

    def bisect(self, search: Search, spare: int | None, low: int, most: int, begin: float, end: float) -> int:
        """The least bytes of schedules with at most ``spare`` extra MACs, from ``low`` to ``most`` bytes. What is found
        first is often the least, so that is tried now and then."""
        cap, high, least_first = low, most + 4, True
        while low < high:
            middle = begin + 0.2 * (end - begin)
            tick = self.ticking(f"searching schedules of up to {cap} bytes", begin, middle)
            exact = search.run(cap, spare, tick, aim=Aim.ANY)
            least = search.least_memory(spare)
            if least is None or least > cap:
                low = (cap // 4 + 1) * 4
            else:
                high = least
                if exact:
                    break
            if high > most:
                cap = min(int(cap * CAP_GROWTH) + CAP_STEP, most)
            else:
                cap = high - 4 if least_first else (low + high - 4) // 8 * 4
                least_first = not least_first
            begin = middle
        if high > most:
            raise PlannerError(Code.INTERNAL, "the search did not find the layer-by-layer schedule")
        return high

    def feasible(self, search: Search, cap: int, spare: int | None, begin: float, end: float) -> bool:
        """Whether there are schedules of at most ``cap`` bytes and ``spare`` extra MACs. Small ones are found sooner;
        unfused operators may use all of it."""
        low = search.least_bytes(spare)
        while low is not None:
            low = min(low, cap)
            middle = begin + 0.2 * (end - begin)
            tick = self.ticking(f"searching schedules of up to {low} bytes", begin, middle)
            search.run(low, spare, tick, aim=Aim.ANY, layers_cap=cap)
            least = search.least_memory(spare)
            if (least is not None and least <= cap) or low == cap:
                return least is not None and least <= cap
            low, begin = int(low * CAP_GROWTH) + CAP_STEP, middle
        return False

    def fewest(self, search: Search, cap: int, tick: Callable[[float], None]) -> None:
        """Find the schedule of fewest MACs in ``cap`` bytes; one is known."""
        known = search.least_macs(cap)
        assert known is not None
        search.run(cap, known.cost - self.base, tick)

    def extras(self, search: Search, cap: int) -> Iterator[int | None]:
        """Growing limits of extra MACs for schedules of at most ``cap`` bytes; none if there are none, None for any."""
        least = search.least_extra(cap)
        if least is not None:
            yield from (least + int(share * self.base) for share in EXTRA_SHARES)
            yield None

    def place(self, schedule: Schedule) -> Placement:
        return place(self.facts, schedule, apart=self.uncounted)

    @cached_property
    def layer_specs(self) -> list[StageSpec]:
        return layer_specs(self.facts, self.options.input_mode)

    @cached_property
    def layer_schedule(self) -> Schedule:
        return build_schedule(self.facts, self.layer_specs, self.options.input_mode)

    def unfused(self, limit: int) -> _Draft:
        """Layer by layer, with what scratch there is room for in ``limit`` counted bytes."""
        placement = self.place(self.layer_schedule)
        spares = [limit] * len(self.layer_specs)
        limit = max(limit, self.counted(placement))
        return self.draft(*self.speed_up(self.layer_specs, spares, self.layer_schedule, placement, limit))

    def draft(
        self, schedule: Schedule, placement: Placement, begun: tuple[Solution, Schedule, Placement] | None = None
    ) -> _Draft:
        return _Draft(
            schedule=schedule,
            placement=placement,
            macs=replay.schedule_cost(self.facts, schedule).macs,
            instructions=self.model.predict(self.facts, schedule) if self.model else None,
            begun=begun,
        )

    def overhead_factor(self, draft: _Draft) -> float:
        return draft.macs / self.facts.base_macs if self.facts.base_macs else 1.0

    @cached_property
    def by_layer(self) -> _Draft:
        """Layer by layer, with all the scratch that the board has room for."""
        return self.unfused(self.budget)

    def call_overhead(self, draft: _Draft) -> float:
        """Predicted instructions for each that the same MACs would take layer by layer. MACs of rows that nobody reads
        can be saved, but what goes with them is the same: then, for each that layer by layer takes."""
        return _instructions(draft) / (max(1.0, self.overhead_factor(draft)) * _instructions(self.by_layer))

    @cached_property
    def reference(self) -> list[NDArray[np.int8]]:
        """What the unfused plan answers on the self-test's input. Making it is part of the check, not of planning."""
        began = time.process_time()
        schedule = self.layer_schedule
        plan = encode(self.facts.graph, schedule, place(self.facts, schedule), facts=self.facts)
        self.executed(time.process_time() - began)
        return self._execute(plan).outputs

    def _execute(self, plan: bytes) -> RunResult:
        began = time.process_time()
        opened = Engine().open(plan)
        inputs: list[NDArray[np.int8]] = []
        seed = SELFTEST_SEED
        for io in opened.inputs:
            array, seed = generated_input(io.shape, seed)
            inputs.append(array)
        try:
            return opened.run(inputs, keep_stages=True, step=self.cancelled)
        except PlannerError:
            self.look()  # the engine says only that it was ended
            raise
        finally:
            self.executed(time.process_time() - began)

    def pack(self, search: Search, least: int, spare: int | None, thorough: bool = True) -> tuple[Packed, int]:
        """Of the schedules with at most ``spare`` extra MACs, the one that packs into the fewest bytes: along the
        front, from the one that needs the ``least``, as long as the next one needs less than the best so far takes.
        ``thorough``: if none packs into ``least``, all stages are searched; of long networks that would take minutes,
        and what packs is taken. And the bytes that none can be packed into less than."""
        long = len(self.facts.graph.ops) > LONG
        best = self.best_packed(search, spare, None)
        tick = self.ticking("searching schedules that can be packed", 0.9, 0.9)
        if best is None or (best[0] > least and not long):
            search.run(least, spare, tick, aim=Aim.NEAR)
            best = self.best_packed(search, spare, best)
        share, searched = PACK_SHARE, least
        while best is None or (thorough and not long and searched < best[0] - 4):
            searched = int(least * (1 + share))
            if best is not None:
                searched = min(searched, best[0] - 4)
            search.run(searched, spare, tick, aim=Aim.ALL)
            best = self.best_packed(search, spare, best)
            share *= 2
        if searched < best[0] - 4:
            return best, least
        bound = search.least_memory(spare, deep=True)
        return best, best[0] if bound is None else min(bound, best[0])

    def best_packed(self, search: Search, spare: int | None, best: Packed | None) -> Packed | None:
        """The best packing of the schedules that the search knows, if it is better than ``best``."""
        limit, tries = search.least_memory(spare, deep=True), 0
        while limit is not None and (best is None or limit < best[0]) and tries < PACK_TRIES:
            for solution in self.candidates(search, limit, spare):
                tries += 1
                schedule = build_schedule(self.facts, solution.stages, self.options.input_mode)
                if best is None:
                    placement: Placement | None = self.place(schedule)
                else:
                    placement = place_within(self.facts, schedule, min(limit, best[0] - 4), self.uncounted)
                if placement is not None and (best is None or self.counted(placement) < best[0]):
                    best = self.counted(placement), solution, schedule, placement
                if best is not None and best[0] <= limit:
                    return best
            limit = search.next_memory(limit, deep=True)
        while best is not None and tries < PACK_TRIES:
            less = self.packed_below(search, spare, best[0])
            if less is None:
                break
            best, tries = less, tries + 1
        return best

    def packed_below(self, search: Search, spare: int | None, size: int) -> Packed | None:
        """One that packs into fewer bytes than ``size``, of those that need nearly as many."""
        for solution in self.candidates(search, size - 4, spare):
            schedule = build_schedule(self.facts, solution.stages, self.options.input_mode)
            placement = place_within(self.facts, schedule, size - 4, self.uncounted)
            if placement is not None:
                return self.counted(placement), solution, schedule, placement
        return None

    def candidates(self, search: Search, limit: int, spare: int | None) -> Iterator[Solution]:
        found: list[Solution] = []
        for share in PACK_WEIGHTS:
            weight = int(share * self.base)
            solution = search.least_macs(limit, int(limit * (1 - TIGHT)), weight, deep=True)
            allowed = solution is not None and (spare is None or solution.cost <= self.base + spare)
            if solution is not None and allowed and solution not in found:
                found.append(solution)
                yield solution

    def fit(self, search: Search, cap: int) -> _Draft | None:
        """P2 on a finished run: the schedule of fewest MACs that can be packed into ``cap`` bytes, of those one that
        leaves no gap if that is soon found; None if none."""
        cap = cap // self.align * self.align
        limit, tries = cap, 0
        loose: Packed | None = None
        while (solution := search.least_macs(limit)) is not None:
            if loose is not None and (solution.cost > loose[1].cost or tries >= FIT_TRIES):
                break
            for candidate in self.candidates(search, limit, solution.cost - self.base):
                tries += 1
                schedule = build_schedule(self.facts, candidate.stages, self.options.input_mode)
                placement = place_within(self.facts, schedule, cap, self.uncounted, tight=loose is not None)
                if placement is not None and placement.gap_bytes == 0:
                    return self.finish(candidate, schedule, placement, cap)
                if placement is not None and loose is None:
                    loose = self.counted(placement), candidate, schedule, placement
            limit = solution.memory - 4
        return None if loose is None else self.finish(*loose[1:], loose[0])

    def finish(self, solution: Solution, schedule: Schedule, placement: Placement, limit: int) -> _Draft:
        """Speed up within ``limit`` counted bytes."""
        spares = [limit - room for room in solution.rooms]
        made = self.speed_up(solution.stages, spares, schedule, placement, limit)
        return self.draft(*made, begun=(solution, schedule, placement))

    def ladder(self, stage: StageSpec, ways: list[StageSpec]) -> list[StageSpec]:
        """Ways to run a stage, the fastest first, down to the stage as it is; in the order given where nothing is known
        of the core."""
        if self.model is None or len(ways) == 1:
            return ways
        cost = [self.model.predict_stage(self.facts, build_stage(self.facts, way)) for way in ways]
        faster = [n for n in range(len(ways) - 1) if cost[n] < cost[-1]]
        return [*(ways[n] for n in sorted(faster, key=lambda n: cost[n])), stage]

    def speed_up(
        self,
        stages: Sequence[StageSpec],
        spares: Sequence[int],
        schedule: Schedule,
        placement: Placement,
        limit: int,
    ) -> tuple[Schedule, Placement]:
        """A schedule of the same MACs with wider steps and more scratch, in ``limit`` counted bytes. ``spares``: by
        stage, the bytes that its tiles and scratch may take together. All stages are given the most that they can
        have; if that does not pack, halves of them, and so on, down to a single one, which is then given less. Stages
        that come off with nothing are tried once more, harder."""
        facts, mode = self.facts, self.options.input_mode
        ladders = [
            self.ladder(
                stage, variants(facts, stage, spare, scratch.wishes(self.core, facts.graph, stage.ops), self.widths)
            )
            for stage, spare in zip(stages, spares, strict=True)
        ]
        chosen, best, tries = list(stages), (schedule, placement), 0
        built: dict[int, Stage] = {}

        def attempt(changes: dict[int, StageSpec], effort: int = FAST_EFFORT) -> bool:
            nonlocal best, tries
            if tries == SPEED_TRIES:
                return False
            tries += 1
            self.tick(0.93, "making room for wider steps")
            wanted = [changes.get(n, stage) for n, stage in enumerate(chosen)]
            made = build_schedule(facts, wanted, mode, built)
            packed = place_fast(facts, made, limit, self.uncounted, tight=not placement.gap_bytes, effort=effort)
            if packed is not None:
                chosen[:], best = wanted, (made, packed)
            return packed is not None

        waiting, empty = [[n for n, ladder in enumerate(ladders) if len(ladder) > 1]], []
        while waiting:
            some = waiting.pop()
            if not some or attempt({n: ladders[n][0] for n in some}):
                continue
            if len(some) > 1:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
            elif not any(attempt({some[0]: less}) for less in ladders[some[0]][1:-1]):
                empty.append(some[0])
        if len(facts.graph.ops) <= LONG:
            for n in empty[:HARD_TRIES]:
                attempt({n: ladders[n][0]}, EFFORT)
        return best

    def least(self, search: Search, least: int, spare: int | None, thorough: bool = True) -> _Draft:
        """P1 on a finished run whose least bytes are ``least``."""
        (counted, solution, schedule, placement), bound = self.pack(search, least, spare, thorough)
        draft = self.proven(self.finish(solution, schedule, placement, counted))
        return replace(draft, bound=min(draft.placement.lower_bound, bound + self.uncounted_bytes))

    def proven(self, draft: _Draft) -> _Draft:
        if not draft.placement.gap_bytes:
            return draft
        return replace(draft, placement=proven(self.facts, draft.schedule, draft.placement, self.uncounted))

    def counted(self, placement: Placement) -> int:
        return placement.arena_bytes - self.uncounted_bytes

    @property
    def uncounted_bytes(self) -> int:
        return sum(-(-self.facts.bytes_of[t] // 4) * 4 for t in self.uncounted)

    def seal(self, draft: _Draft) -> PlanResult:
        """Encode, execute, and add the self-test that the board will repeat."""
        self.tick(0.95, "executing the plan")
        graph, options, schedule, placement = (
            self.facts.graph,
            self.options,
            draft.schedule,
            self.proven(draft).placement,
        )

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
                quads=scratch.reads_quads(self.core) if options.quads is None else options.quads,
                facts=self.facts,
            )

        result = self._execute(encoded(None))
        cost = replay.schedule_cost(self.facts, schedule)
        if (result.counts.macs, result.counts.elements) != (cost.macs, cost.elements):
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
        arena = Engine().open(plan).arena_size
        if arena != placement.arena_bytes:
            raise PlannerError(Code.INTERNAL, "the engine needs another arena than was planned")
        return PlanResult(
            plan=plan,
            arena_bytes=arena,
            uncounted_bytes=self.uncounted_bytes,
            macs=result.counts.macs,
            base_macs=self.facts.base_macs,
            packing_bound=placement.lower_bound,
            lower_bound=placement.lower_bound if draft.bound is None else draft.bound,
            schedule=schedule,
            instructions=draft.instructions,
            call_overhead=self.call_overhead(draft) if self.model else None,
        )


def _infeasible(run: _Run, cap: int, least: _Draft) -> PlannerError:
    layer = _binding_layer(run.facts, least.schedule)
    needed = run.counted(least.placement)
    return PlannerError(
        Code.INFEASIBLE,
        f"no schedule fits {cap} bytes of RAM: {needed - cap} bytes are missing",
        layer=layer,
        hint=f"the least possible arena is {needed} bytes (F = {run.overhead_factor(least):.2f}): "
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
    executed: Callable[[float], None] | None = None,
) -> PlanResult:
    """The optimal plan within the constraint; ``executed`` is told the CPU seconds of each run by the engine.
    PlannerError: INFEASIBLE with what would fit, CANCELLED, BAD_REQUEST."""
    run = _Run(graph, options or Options(), target, progress, cancelled, executed)
    run.tick(0.0, "starting")
    run.phase = (0.0, 1.0) if constraint.objective == "macs" else (0.0, 0.5)
    if run.model is None and (constraint.objective == "latency" or constraint.call_overhead is not None):
        raise PlannerError(
            Code.BAD_REQUEST,
            f"no instructions were measured for {target.core if target else 'plans without a target'}",
            hint=f"latency and call overhead can be predicted for {', '.join(sorted(costs.MEASURED))}; minimise MACs, "
            "at any call overhead, for others",
        )
    if constraint.kind == "p1":
        found = _as_small(run, _p1(run, constraint.f_max))
        if constraint.call_overhead is not None:
            found = _amortised(run, found, constraint.f_max, constraint.call_overhead)
        cap = run.counted(found.placement)
    else:
        cap = (1 << 31) - 1 if constraint.ram_max is None else constraint.ram_max
        found = _p2(run, cap)
    if constraint.objective == "latency":
        found = _faster(run, found, cap, constraint)
    return run.seal(found)


def _amortised(run: _Run, known: _Draft, f_max: float | None, most: float) -> _Draft:
    """Of the schedules with at most ``f_max`` times the unfused MACs and a call overhead of at most ``most``, the one
    of the fewest bytes that is found; ``known`` needs the fewest with any. Bytes grow, ever faster, until there is one,
    and are halved in on again. If that takes far more than ``known``, schedules of fewest instructions, which take long
    to find, are tried at a few sizes between."""
    if run.call_overhead(known) <= most:
        return known
    least = low = run.counted(known.placement)
    found = run.by_layer
    high = run.counted(found.placement)

    def attempt(cap: int, ways: Callable[[_Run, _Draft, float | None, int], Iterator[_Draft]]) -> bool:
        """Whether there is one in ``cap`` bytes, which is the best then."""
        nonlocal found, high
        run.tick(0.93, f"making calls fewer in {cap} bytes")
        for draft in ways(run, known, f_max, cap):
            if run.call_overhead(draft) <= most:
                found, high = draft, run.counted(draft.placement)
                return True
        return False

    cap, step = low, max(ROOM_STEP, low // ROOM_SHARE)
    while cap < high and not attempt(cap, _unhurried):
        low, cap, step = cap, cap + step, 2 * step
    while high - low > max(ROOM_STEP, low // ROOM_SHARE):
        middle = (low + high) // 2
        if not attempt(middle, _unhurried):
            low = middle
    low = least
    while high > max(ROOM_FAR * low, low + ROOM_STEP):
        middle = max(math.isqrt(low * high), low + 1)
        if not attempt(middle, _fastest):
            low = middle
    return replace(found, bound=known.bound)


def _unhurried(run: _Run, known: _Draft, f_max: float | None, cap: int) -> Iterator[_Draft]:
    """Schedules in ``cap`` bytes that may have few calls: ``known`` with wider steps, one that computes nothing twice,
    and one with as many MACs as are allowed."""
    assert known.begun is not None
    yield run.finish(*known.begun, cap)
    for spare in dict.fromkeys((0, _spare(run, f_max))):
        search = run.search(cap, spare, 0.93, 0.93)
        if run.feasible(search, cap, spare, 0.93, 0.93):
            draft = run.fit(search, cap)
            if draft is not None:
                yield draft


def _fastest(run: _Run, known: _Draft, f_max: float | None, cap: int) -> Iterator[_Draft]:
    """The schedule of fewest predicted instructions without scratch in ``cap`` bytes, no slower without it than
    ``known``, sped up; if it keeps to ``f_max``."""
    assert run.model is not None
    stages = tuple(replace(stage, scratch=0) for stage in known.schedule.stages)
    plain = Schedule(placed=known.schedule.placed, stages=stages)
    counting, run.problem = run.problem, Problem(run.facts, run.options.input_mode, run.uncounted, run.model)
    try:
        most = costs.UNITS * run.model.predict(run.facts, plain) - run.base
        search = run.search(cap, most, 0.0, 0.3)
        for extra in run.extras(search, cap):
            limit = most if extra is None else min(extra, most)
            search.run(cap, limit, run.ticking("searching faster schedules", 0.3, 0.9))
            found = run.fit(search, cap)
            if found is not None and (f_max is None or run.overhead_factor(found) <= f_max + F_EPSILON):
                yield found
            if found is not None or limit == most:
                break
    finally:
        run.problem = counting


def _faster(run: _Run, known: _Draft, cap: int, constraint: Constraint) -> _Draft:
    """The schedule of fewest predicted instructions in ``cap`` bytes; ``known`` if the search, which does not count
    with scratch, finds none that is better with the scratch that there is room for, or if that one breaks a bound:
    of fewer MACs, it may have more calls for each."""
    run.phase = (0.5, 1.0)
    most = constraint.call_overhead
    for found in _fastest(run, known, constraint.f_max, cap):
        if _instructions(found) < _instructions(known) and (most is None or run.call_overhead(found) <= most):
            return replace(found, bound=known.bound)
    return known


def _instructions(draft: _Draft) -> int:
    assert draft.instructions is not None
    return draft.instructions


def _spare(run: _Run, f_max: float | None) -> int | None:
    """MACs beyond the unfused ones; None for any number."""
    return None if f_max is None else int((f_max - 1.0 + F_EPSILON) * run.facts.base_macs)


def least_bytes(graph: Graph, f_max: float | None, options: Options | None = None) -> int:
    """A lower bound of peak RAM in bytes: of all schedules that the search looks through (docs/planner.md), none with
    at most ``f_max`` times the unfused MACs (None: any number) has fewer live at its peak."""
    run = _Run(graph, options or Options(), None, None, None)
    _, solution = run.least_memory(_spare(run, f_max))
    return solution.memory


def _p1(run: _Run, f_max: float | None) -> _Draft:
    if f_max is not None and f_max < 1.0:
        raise PlannerError(Code.BAD_REQUEST, f"F_max is {f_max}", hint="1.0 allows no recomputation")
    spare = _spare(run, f_max)
    search, solution = run.least_memory(spare)
    return run.least(search, solution.memory, spare)


def _as_small(run: _Run, known: _Draft) -> _Draft:
    """Of the schedules of as few bytes and MACs as ``known``, one that takes fewer instructions, if the one that P2
    finds does; ``known`` where nothing is known of the core."""
    if run.model is None:
        return known
    cap, extra = run.counted(known.placement), max(0, known.macs - run.base)
    search = run.search(cap, extra, 0.9, 0.92)
    if not run.feasible(search, cap, extra, 0.92, 0.95):
        return known
    found = run.fit(search, cap)
    if found is None or found.macs > known.macs or _instructions(found) >= _instructions(known):
        return known
    return replace(found, bound=known.bound)


def _p2(run: _Run, cap: int) -> _Draft:
    layers = run.place(run.layer_schedule)
    search = run.search(cap, 0, 0.0, 0.05)
    least = search.least_extra(cap)
    unfused = least is None or least >= 0  # rows that nobody reads need not be computed
    if unfused and run.counted(layers) <= cap // run.align * run.align:
        return run.unfused(cap // run.align * run.align)  # nothing takes fewer MACs, or fewer steps for them
    if unfused and run.feasible(search, cap, 0, 0.05, 0.2):
        result = run.fit(search, cap)
        if result is None:
            # None of those that are known packs into `cap`; the one that needs the fewest bytes may.
            small, solution = run.least_memory(0, 0.2, 0.22)
            (counted, solution, schedule, placement), _ = run.pack(small, solution.memory, 0)
            limit = cap // run.align * run.align
            if counted <= limit:
                result = run.finish(solution, schedule, placement, counted if placement.gap_bytes else limit)
        if result is not None:
            return result
    search = run.search(cap, None, 0.2, 0.25)
    if run.feasible(search, cap, None, 0.25, 0.5):
        run.fewest(search, cap, run.ticking("saving MACs", 0.5, 0.7))
        result = run.fit(search, cap)
        if result is not None:
            return result
        for n, extra in enumerate(run.extras(search, cap)):
            begin, width = 0.7 + 0.2 * n / (len(EXTRA_SHARES) + 1), 0.2 / (len(EXTRA_SHARES) + 1)
            search.run(cap, extra, run.ticking("searching schedules that fit", begin, begin + width), aim=Aim.ALL)
            result = run.fit(search, cap)
            if result is not None:
                return result
    smallest = _p1(run, None)
    if run.counted(smallest.placement) <= cap:
        return smallest
    raise _infeasible(run, cap, smallest)


def front(
    graph: Graph,
    options: Options | None = None,
    *,
    target: Target | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    executed: Callable[[float], None] | None = None,
) -> tuple[PlanResult, ...]:
    """Every schedule that no other one beats in both RAM and compute, most RAM first. Arguments: see ``plan``."""
    run = _Run(graph, options or Options(), target, progress, cancelled, executed)
    run.phase = (0.0, 0.1)
    search, fastest = run.least_memory(0)
    found = [run.least(search, fastest.memory, 0)]
    run.phase = (0.1, 0.2)
    search, least = run.least_memory(None, 0.0, 1.0)
    cap = fastest.memory - 4
    while cap > least.memory:
        begin = 0.2 + 0.7 * (fastest.memory - cap) / (fastest.memory - least.memory)
        run.phase = (begin, begin + 0.1)
        run.fewest(search, cap, run.ticking("searching the whole front", 0.0, 0.5))
        solution = search.least_macs(cap)
        assert solution is not None
        found.append(run.least(search, solution.memory, solution.cost - run.base, thorough=False))
        cap = solution.memory - 4
    run.phase = (0.9, 1.0)
    kept: list[_Draft] = []
    for draft in sorted(
        [*found, run.least(search, least.memory, None)], key=lambda d: (d.placement.arena_bytes, d.macs)
    ):
        if not kept or draft.macs < kept[-1].macs:
            kept.append(draft)
    return tuple(run.seal(draft) for draft in reversed(kept))


def layers(
    graph: Graph,
    options: Options | None = None,
    *,
    target: Target | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> PlanResult:
    """The plan that fuses nothing: what every other one is compared with. PlannerError(CANCELLED)."""
    run = _Run(graph, options or Options(), target, progress, cancelled)
    run.tick(0.0, "starting")
    return run.seal(run.by_layer)
