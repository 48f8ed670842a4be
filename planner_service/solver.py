# SPDX-License-Identifier: Apache-2.0
"""The search: fusion settings as paths through a graph of cut positions (after msf-CNN, arXiv 2505.11483), with a
window policy per tensor.

Positions 0..n lie between the operators in their order. An edge [s, t) is a stage; inside it, edges [i, j) are
segments. A segment's options are its row step and, for every tensor whose rows overlap from step to step, whether the
overlap is kept in a line store or computed again. Column steps never cost MACs, so the search takes the narrowest and
``widen`` makes them as wide as the found schedule's slack allows.

Costs are exact: MACs as the engine executes them, bytes as the layout's lower bound counts them (all that is live
together). What remains is a shortest path in which compute adds up and memory takes the maximum."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from planner_service.build import Facts, IllegalSpecError, InputMode, SegmentSpec, StageSpec, shape_segment
from planner_service.fusion import MAX_SEGMENT_OPS, WHOLE, Option, Segments, Span, phase, ring_rows, up4
from planner_service.layout import COUNTER_BYTES

Tick = Callable[[float], None]


@dataclass(slots=True)
class State:
    """A partial stage: bytes held by its segments so far, widest tile, MACs, and how it came about."""

    held: int
    tile: int
    macs: int
    gives: Span
    option: Option | None
    before: State | None

    def options(self) -> list[Option]:
        """The segments chosen so far, first to last."""
        found: list[Option] = []
        state: State | None = self
        while state is not None and state.option is not None:
            found.append(state.option)
            state = state.before
        found.reverse()
        return found


@dataclass(slots=True)
class StagePoint:
    """A stage that needs ``memory`` bytes of arena and executes ``macs``; ``overlap``: its output overwrites dead
    rows."""

    memory: int
    macs: int
    state: State
    overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A whole schedule as the search sees it: its stages, exact MACs, and the bytes live at its peak. ``rooms``: by
    stage, the bytes that are live in it without its tiles."""

    stages: tuple[StageSpec, ...]
    rooms: tuple[int, ...]
    memory: int
    macs: int


class Search:
    """All stages of one graph under one input mode that need at most ``cap`` bytes and execute at most ``spare`` MACs
    beyond the unfused ones, and the best paths through them."""

    def __init__(
        self,
        facts: Facts,
        mode: InputMode,
        cap: int,
        *,
        recompute: bool = True,
        spare: float = math.inf,
        tick: Tick = lambda _done: None,
    ) -> None:
        self.facts, self.mode, self.cap, self.spare, self.tick = facts, mode, cap, spare, tick
        self.count = len(facts.graph.ops)
        self.segments = Segments(facts, recompute=recompute, cap=cap, spare=spare)
        self._live()
        #: By start position: end position -> Pareto set of stages, least memory first.
        self.stages: list[dict[int, list[StagePoint]]] = []
        reached = {0}
        for start in range(self.count):
            self.tick(start / self.count)
            found = self._stages_from(start) if start in reached else {}
            reached.update(found)
            self.stages.append(found)

    # ------------------------------------------------------------ what is live where

    def _live(self) -> None:
        facts, n = self.facts, self.count
        self.last_read = {
            t: max(users, default=-1) for t, users in enumerate(facts.consumers) if facts.graph.tensors[t].data is None
        }
        self.last_use = {t: n if facts.is_output[t] else last for t, last in self.last_read.items()}
        made = [facts.nodes[op].tensor for op in range(n)]
        #: Tensors made by operators before a position that are still needed at or after it.
        self.live = [[t for t in made[:k] if self.last_use[t] >= k] for k in range(n + 1)]
        self.resident: list[tuple[int, int]] = []  # network inputs that are whole in the arena: (tensor, last use)
        self.collected: list[int] = []  # streamed inputs that a stage of their own collects at the start
        self.rows_of: dict[int, int] = {}  # operator -> network input whose rows it reads as they come
        for number, io in enumerate(facts.graph.inputs):
            tensor, users = io.tensor, facts.consumers[io.tensor]
            if self.mode == "resident" or (self.mode == "external" and facts.is_output[tensor]):
                self.resident.append((tensor, self.last_use[tensor]))
            elif self.mode == "streamed":
                alone = len(users) == 1 and users[0] not in self.rows_of
                if alone and not facts.is_output[tensor] and tensor in facts.nodes[users[0]].swept:
                    self.rows_of[users[0]] = -1 - number
                else:
                    self.collected.append(-1 - number)
                    self.resident.append((tensor, self.last_use[tensor]))

    def _base(self, start: int) -> int:
        """Bytes of whole tensors that exist before the stage at ``start`` and are needed in it or later."""
        sizes = self.facts.bytes_of
        size = sum(up4(sizes[t]) for t in self.live[start])
        return size + sum(up4(sizes[t]) for t, last in self.resident if last >= start)

    # ------------------------------------------------------------ stages

    def _stages_from(self, start: int) -> dict[int, list[StagePoint]]:
        """Every stage that begins at ``start``: forward over the positions at which it may be cut into segments."""
        facts, sizes = self.facts, self.facts.bytes_of
        base = self._base(start)
        found: dict[int, list[StagePoint]] = {}
        if base > self.cap:
            return found
        states: dict[int, dict[Span, list[State]]] = {start: {(1, 0, 0): [State(0, 0, 0, (1, 0, 0), None, None)]}}
        for i in range(start, self.count):
            groups = states.pop(i, None)
            if groups is None:
                continue
            inlet = facts.nodes[i - 1].tensor if i > start else None
            before = [state for group in groups.values() for state in group]
            for j in range(i + 1, min(i + MAX_SEGMENT_OPS, self.count) + 1):
                options = self.segments.options(i, j)
                if not options:
                    continue
                if any(self._made_since(t, start) for op in range(i, j) for t in facts.nodes[op].whole):
                    break
                last = facts.nodes[j - 1].tensor
                ends, cuts = self.last_use[last] >= j, self._cuts(start, j)
                if not ends and not cuts:
                    continue
                outputs = facts.is_output
                kept = [t for t in self.live[j] if self._made_since(t, start) and (t != inlet or outputs[t])]
                full = base + sum(up4(sizes[t]) for t in kept)
                # A tensor that becomes a ring is counted when its reader is known.
                carried = full if outputs[last] else base + sum(up4(sizes[t]) for t in kept if t != last)
                dying = self._dying(start, j) if ends else []
                spare = self.spare + self.segments.macs_before[j] - self.segments.macs_before[start]
                points: list[StagePoint] = []
                best: dict[int, int] = {}
                following: dict[Span, list[State]] = {}
                for option in options:
                    fixed = self._input_rings(i, j, option) + option.held
                    room = self.cap - carried - fixed
                    gives = phase(option.gives)
                    onward = following.setdefault(gives, []) if cuts else []
                    rings: dict[Span, int] = {}
                    for state in before:
                        ring = rings.get(state.gives)
                        if ring is None:
                            ring = rings[state.gives] = self._ring(inlet, state.gives, option, j)
                        held = state.held + ring
                        tile = state.tile if state.tile > option.tile else option.tile
                        macs = state.macs + option.macs
                        if held + tile > room or macs > spare:
                            continue
                        new = State(held + fixed, tile, macs, option.gives, option, state)
                        if ends:
                            points.extend(self._points(new, full + held + fixed + tile, dying, best))
                        if cuts:
                            onward.append(new)
                if points:
                    found[j] = _pareto_points(points + found.get(j, []))
                if following:
                    at = states.setdefault(j, {})
                    for gives, group in following.items():
                        if group:
                            at[gives] = _pareto_states(group + at.get(gives, []))
        return found

    def _dying(self, start: int, j: int) -> list[int]:
        """Tensors that operators [start, j) are the last to read, by rows: what the stage's output may overlap."""
        nodes = self.facts.nodes
        if nodes[j - 1].reduces:
            return []
        dying = [t for t in self.live[start] if self.last_use[t] < j]
        dying += [t for t, last in self.resident if start <= last < j]
        return [t for t in dying if not any(t in nodes[op].whole or nodes[op].single for op in range(start, j))]

    def _points(self, state: State, memory: int, dying: list[int], best: dict[int, int]) -> Iterator[StagePoint]:
        """The finished stage, and with its output over the tensor where that saves most. ``best``: fewest MACs known so
        far by memory; what cannot beat them is not followed up."""
        if memory <= self.cap and state.macs < best.get(memory, sys.maxsize):
            best[memory] = state.macs
            yield StagePoint(memory, state.macs, state)
        assert state.option is not None
        sizes = self.facts.bytes_of
        out = up4(sizes[self.facts.nodes[state.option.spec.ops[-1]].tensor])
        for tensor in dying:
            size = up4(sizes[tensor])
            if memory - min(size, out) > self.cap:
                continue
            saving = size + out - max(out, size + self._distance(state, tensor))
            less = memory - saving
            if saving > 0 and less <= self.cap and state.macs < best.get(less, sys.maxsize):
                best[less] = state.macs
                yield StagePoint(less, state.macs, state, True)

    def _distance(self, state: State, tensor: int) -> int:
        """How far below ``tensor`` the stage's output has to start to overwrite only dead rows: the pull order on the
        chain of segments, as ``replay.overlap_distances`` follows it."""
        options, facts = state.options(), self.facts
        out = facts.nodes[options[-1].spec.ops[-1]]
        row, height = out.shape[1] * out.shape[2], out.shape[0]
        producer = facts.producer[tensor]
        assert producer is not None
        in_height = facts.nodes[producer].shape[0]
        in_row = facts.bytes_of[tensor] // in_height
        links: list[tuple[Span, Span, int]] = []  # by segment but the sink: what it gives, what is read of it, its rows
        for made, reads in pairwise(options):
            made_op = made.spec.ops[-1]
            node = facts.nodes[made_op]
            links.append((made.gives, reads.needs.get(node.tensor, (1, 0, node.shape[0])), node.shape[0]))
        readers = [(k, o.needs[tensor], o.steps) for k, o in enumerate(options) if tensor in o.needs]
        done = [0] * len(options)
        adv, off, _ = options[-1].gives
        most = 0
        for i in range(options[-1].steps):
            done[-1] = i
            step = i
            for k in range(len(links) - 1, -1, -1):
                (made_adv, made_off, _), (need_adv, _, need_hi), rows = links[k]
                end = min(need_adv * step + need_hi, rows)
                if end > 0:
                    done[k] = max(done[k], -(-(end - made_off) // made_adv))
                step = max(done[k] - 1, 0)
            written = min(max(adv * (i + 1) + off, 0), height)
            if written:
                for k, (need_adv, need_lo, _), steps in readers:
                    start = max(need_adv * done[k] + need_lo, 0)
                    if done[k] < steps and start < in_height:
                        most = max(most, written * row - start * in_row)
        return up4(most)

    def _made_since(self, tensor: int, start: int) -> bool:
        producer = self.facts.producer[tensor]
        return producer is not None and producer >= start

    def _cuts(self, start: int, j: int) -> bool:
        """Whether the stage that began at ``start`` may be cut into segments at j: only the last tensor is read later,
        and by rows."""
        facts = self.facts
        if j == self.count or facts.nodes[j - 1].ends_stage:
            return False
        last = facts.nodes[j - 1].tensor
        return [t for t in self.live[j] if self._made_since(t, start) and self.last_read[t] >= j] == [last]

    def _ring(self, inlet: int | None, gives: Span, option: Option, j: int) -> int:
        """Bytes of the tensor between two segments: a ring, or all of it if a later stage reads it too."""
        if inlet is None or self.facts.is_output[inlet]:
            return 0
        h, w, c = self.facts.nodes[self.facts.producer[inlet] or 0].shape
        if self.last_use[inlet] >= j or inlet not in option.needs:
            return up4(h * w * c)
        return up4(ring_rows(h, gives, option.needs[inlet]) * w * c)

    def _input_rings(self, i: int, j: int, option: Option) -> int:
        """Bytes of the rings of network inputs that this segment reads as they come."""
        size = 0
        for op, source in self.rows_of.items():
            if i <= op < j:
                node = self.facts.nodes[source]
                h, w, c = node.shape
                size += up4(ring_rows(h, (1, 0, 1), option.needs[node.tensor]) * w * c) + COUNTER_BYTES
        return size

    # ------------------------------------------------------------ paths

    def memories(self) -> list[int]:
        """Every peak that a schedule could have, ascending."""
        return sorted({p.memory for ends in self.stages for points in ends.values() for p in points})

    def least_macs(self, cap: int) -> Solution | None:
        """P2: fewest MACs with at most ``cap`` bytes, then the least memory. None if nothing fits."""
        best: list[tuple[int, int] | None] = [None] * (self.count + 1)
        via: list[tuple[int, StagePoint] | None] = [None] * (self.count + 1)
        best[0] = (0, 0)
        for s in range(self.count):
            here = best[s]
            if here is None:
                continue
            for t, points in self.stages[s].items():
                for point in points:  # ascending memory, descending MACs
                    if point.memory > cap:
                        break
                    total = (here[0] + point.macs, max(here[1], point.memory))
                    if best[t] is None or total < best[t]:  # type: ignore[operator]
                        best[t], via[t] = total, (s, point)
        if best[self.count] is None:
            return None
        stages: list[StageSpec] = []
        rooms: list[int] = []
        memory = macs = 0
        t = self.count
        while t > 0:
            step = via[t]
            assert step is not None
            s, point = step
            found = self._stage_specs(s, point)
            stages[:0] = found
            rooms[:0] = [point.memory - point.state.tile] * len(found)
            memory, macs = max(memory, point.memory), macs + point.macs
            t = s
        return Solution(stages=tuple(stages), rooms=tuple(rooms), memory=memory, macs=macs)

    def _stage_specs(self, s: int, point: StagePoint) -> list[StageSpec]:
        """The stage, and before it one for every streamed input that it needs collected."""
        specs = [
            StageSpec(segments=(SegmentSpec(ops=(source,), row_adv=1, col_adv=WHOLE),))
            for source in (self.collected if s == 0 else ())
        ]
        segments: list[SegmentSpec] = []
        for option in point.state.options():
            for op in option.spec.ops:
                if op in self.rows_of:
                    segments.append(SegmentSpec(ops=(self.rows_of[op],), row_adv=1, col_adv=WHOLE))
            segments.append(option.spec)
        return [*specs, StageSpec(segments=tuple(segments), overlap=point.overlap)]


def widen(facts: Facts, solution: Solution, budget: int) -> tuple[StageSpec, ...]:
    """The solution's stages with the widest column steps whose tiles leave the arena within ``budget`` bytes: fewer
    kernel calls for the same MACs and the same peak."""
    stages: list[StageSpec] = []
    for stage, room in zip(solution.stages, solution.rooms, strict=True):
        segments: list[SegmentSpec] = []
        for segment in stage.segments:
            width = facts.nodes[segment.ops[-1]].size[1]
            chosen = segment
            for steps in range(1, width if len(segment.ops) > 1 and segment.col_adv < WHOLE else 1):
                spec = SegmentSpec(
                    ops=segment.ops, row_adv=segment.row_adv, col_adv=_step_of(width, steps), keep=segment.keep
                )
                if room + _tile_bytes(facts, spec) <= budget:
                    chosen = spec
                    break
            segments.append(chosen)
        stages.append(replace(stage, segments=tuple(segments)))
    return tuple(stages)


def _step_of(width: int, steps: int) -> int:
    return WHOLE if steps == 1 else -(-width // steps)


def _tile_bytes(facts: Facts, spec: SegmentSpec) -> int:
    try:
        shape = shape_segment(facts, spec)
    except IllegalSpecError:
        return 1 << 40
    size = 0
    for n, op in enumerate(shape.ops):
        if shape.tile[n]:
            h, w, c = facts.nodes[op].shape
            size += up4(min(shape.rows[n][2] - shape.rows[n][3], h) * min(shape.cols[n][2], w) * c)
    return size


def _pareto_states(states: list[State]) -> list[State]:
    """Without those that another one beats in MACs, held and tile bytes. In order of MACs, what is kept forms a
    staircase: more held bytes, narrower tiles."""
    found: list[State] = []
    held: list[int] = []
    tiles: list[int] = []
    for state in sorted(states, key=lambda s: (s.macs, s.held, s.tile)):
        at = bisect_right(held, state.held)
        if at and tiles[at - 1] <= state.tile:
            continue
        at = bisect_left(held, state.held)
        end = at
        while end < len(held) and tiles[end] >= state.tile:
            end += 1
        held[at:end], tiles[at:end] = [state.held], [state.tile]
        found.append(state)
    return found


def _pareto_points(points: list[StagePoint]) -> list[StagePoint]:
    """Ascending memory, descending MACs."""
    found: list[StagePoint] = []
    for point in sorted(points, key=lambda p: (p.memory, p.macs)):
        if not found or point.macs < found[-1].macs:
            found.append(point)
    return found
