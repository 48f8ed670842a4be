# SPDX-License-Identifier: Apache-2.0
"""Small plans for the fuzzer and the verifier's tests: between them every operator, every policy, line stores, rings
with several consumers, residuals, accumulators, lags, all kinds of input, and outputs that overwrite dead rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner_service import ir
from planner_service.build import InputMode
from planner_service.encode import encode
from planner_service.facts import Facts
from planner_service.format import Policy
from planner_service.layout import place
from planner_service.schedule import Schedule
from tests.randomize import random_schedules
from tests.schedule_graphs import Maker

TRIED = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A graph with a schedule of it that has much to get wrong."""

    graph: ir.Graph
    schedule: Schedule

    def plan(self) -> bytes:
        facts = Facts(self.graph)
        return encode(self.graph, self.schedule, place(facts, self.schedule), names=True)


def _streamed() -> ir.Graph:
    """Convolutions with stride and dilation, depthwise, a residual, channel concat, pooling, mean, dense, softmax."""
    m = Maker(1, [(9, 7, 2)])
    a = m.conv(m.inputs[0], 3)
    b = m.depthwise(a, stride=(2, 1))
    c = m.conv(b, 3, kernel=(1, 1), pads=(0, 0, 0, 0))
    d = m.binary(b, c)
    e = m.pool(d, "avg", (3, 2), (1, 2), (1, 0, 1, 0))
    f = m.conv(e, 3, kernel=(2, 1), dilation=(2, 1), pads=(1, 0, 1, 0))
    g = m.concat([e, f])
    return m.graph([m.softmax(m.dense(m.reduce(g, (0, 1)), 4))])


def _resident() -> ir.Graph:
    """A ring with three consumers, pooling, resize, padding, product and difference, a broadcast, a mean over rows."""
    m = Maker(2, [(10, 6, 2)])
    a = m.conv(m.inputs[0], 2)
    b = m.pool(a, "max", (2, 2), (2, 2), (0, 0, 0, 0))
    c = m.resize(b, (2, 2))
    d = m.binary(a, c, "mul")
    e = m.binary(d, a, "sub")
    f = m.lut(e)
    g = m.binary(f, m.reduce(f, (0, 1), "avg"), "mul")
    h = m.conv(m.pad(g, (1, 2, 0, 1)), 4, kernel=(3, 3), pads=(0, 0, 0, 0), groups=2)
    return m.graph([m.reduce(h, (1,), "max"), f])


def _external() -> ir.Graph:
    """Two inputs, a constant operand, whole-tensor operators, reductions in a row, a dense layer on a map."""
    m = Maker(3, [(8, 6, 2), (8, 6, 2)])
    a = m.binary(m.inputs[0], m.inputs[1])
    b = m.binary(m.conv(a, 2), m.constant((1, 1, 2)))
    c = m.lut(b)
    d = m.concat([c, a], 0)
    e = m.resize_table(d, (7, 5))
    f = m.depthwise(e, 2, stride=(1, 2))
    g = m.dense(f, 5)
    h = m.reduce(m.reduce(c, (0,), "mean"), (1,), "avg")
    return m.graph([g, h, m.reshape(c, (1, 16, 6))])


def _tiny() -> ir.Graph:
    m = Maker(4, [(4, 3, 1)])
    a = m.conv(m.inputs[0], 1, kernel=(2, 2), pads=(1, 0, 0, 1))
    return m.graph([m.reduce(m.binary(m.lut(a), a), (0, 1), "avg")])


def _interest(facts: Facts, schedule: Schedule) -> int:
    """How many of the things that can go wrong a schedule has: line stores, slices of channels, rings, tensors that a
    later stage makes row by row (where it may overwrite what it reads), accumulators, column steps."""
    seen: dict[str, int] = {}
    for s, stage in enumerate(schedule.stages):
        segment_of = {e.op: g for g, segment in enumerate(stage.segments) for e in segment.entries}
        for segment in stage.segments:
            columns = segment.col_steps > 1
            steps = segment.row_steps > 1
            for entry in segment.entries:
                node = facts.nodes[entry.op]
                users = {segment_of[u] for u in facts.consumers[node.tensor] if u in segment_of}
                seen[f"accumulate {entry.accumulate} {columns}"] = 1
                if entry.policy is Policy.TILE and entry.keep:
                    seen[f"line store {columns} {entry.keep} {entry.rows.advance > 1}"] = 4
                elif entry.policy is Policy.ROWS and steps:
                    seen[f"ring {len(users)} {columns} {entry.op >= 0}"] = 3
                elif entry.policy is Policy.FULL and s > 0 and steps and not node.reduces:
                    seen[f"row by row {entry.overlap} {columns}"] = 3
                elif entry.policy is Policy.TILE and entry.slice:
                    seen[f"slices {columns} {steps}"] = 5
                elif entry.policy is Policy.TILE:
                    seen[f"tile {len(users)} {steps} {columns}"] = 2
                else:
                    seen[f"{entry.policy.name} {len(users)} {steps} {columns}"] = 1
    return sum(seen.values())


def _subject(make: Callable[[], ir.Graph], mode: InputMode) -> Subject:
    graph = make()
    facts = Facts(graph)
    found = random_schedules(graph, 1, TRIED, mode)
    return Subject(graph=graph, schedule=max(found, key=lambda s: _interest(facts, s)))


def streamed() -> Subject:
    return _subject(_streamed, "streamed")


def resident() -> Subject:
    return _subject(_resident, "resident")


def external() -> Subject:
    return _subject(_external, "external")


def tiny() -> Subject:
    """For what is tried exhaustively."""
    return _subject(_tiny, "streamed")


SUBJECTS: dict[str, Callable[[], Subject]] = {"streamed": streamed, "resident": resident, "external": external}
