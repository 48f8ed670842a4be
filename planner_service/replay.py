# SPDX-License-Identifier: Apache-2.0
"""The pull order of docs/design.md section 2 on counters alone, and what follows exactly from regions and step counts:
ring capacities, MACs, elements, kernel calls. The engine's verifier replays the same order on the plan's bytes.

Segments and entries are numbered within their stage. Hot path of the solver: plain ints only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner_service.facts import Facts, Field, Node
from planner_service.format import Policy
from planner_service.schedule import Schedule, SegmentShape, Stage

#: What replay needs of an entry: operator, policy, row advance, row offset, row extent, keep (of TILE).
RowEntry = tuple[int, Policy, int, int, int, int]


class StallError(ValueError):
    """The stage can never end: a segment waits for rows that its producer does not make."""


@dataclass(slots=True)
class _Link:
    """Segment ``consumer`` reads, through ``reader``, the tensor that entry ``key`` of another segment makes."""

    producer: int
    consumer: int
    key: tuple[int, int]
    ring: bool
    height: int
    advance: int
    offset: int
    field: Field
    reader: Node
    new: tuple[int, int, int]

    def produced(self, steps: int) -> int:
        rows = self.advance * steps + self.offset
        return 0 if rows < 0 else min(rows, self.height)

    def needs(self, steps: int) -> list[tuple[int, int]]:
        """Rows [lo, hi) of the tensor that each row step reads; (0, 0) where it reads none."""
        adv, lo, hi = self.new
        out, height, fld = self.reader.size[0], self.height, self.field
        needs: list[tuple[int, int]] = []
        for i in range(steps):
            first, end = max(adv * i + lo, 0), min(adv * i + hi, out)
            if first >= end:
                needs.append((0, 0))
            else:
                needs.append((min(max(fld.start(first), 0), height), min(max(fld.end(end), 0), height)))
        return needs


def capacities(
    facts: Facts, shapes: Sequence[SegmentShape], policies: Sequence[Sequence[Policy]], *, simulate: bool = False
) -> dict[tuple[int, int], int]:
    """Least rows of every ROWS ring, by (segment, entry): at no step is a row overwritten that is still to be read.

    Where every segment has one consumer segment, a producer runs only for it, and each ring follows from its two ends
    alone; ``simulate`` replays the whole stage anyway. ``StallError`` if the stage does not end."""
    entries = [
        [(op, policy, r[0], r[1], r[2], r[3]) for op, policy, r in zip(shape.ops, chosen, shape.rows, strict=True)]
        for shape, chosen in zip(shapes, policies, strict=True)
    ]
    return _capacities(facts, entries, [shape.row_steps for shape in shapes], simulate)


def ring_capacities(facts: Facts, stage: Stage, *, simulate: bool = False) -> dict[tuple[int, int], int]:
    """As ``capacities``, of a finished stage (its own ring sizes are not looked at)."""
    return _capacities(facts, _row_entries(stage), [s.row_steps for s in stage.segments], simulate)


def _row_entries(stage: Stage) -> list[list[RowEntry]]:
    return [
        [
            (e.op, e.policy, e.rows.advance, e.rows.offset, e.rows.extent, e.keep if e.policy is Policy.TILE else 0)
            for e in segment.entries
        ]
        for segment in stage.segments
    ]


def _capacities(
    facts: Facts, entries: Sequence[Sequence[RowEntry]], row_steps: Sequence[int], simulate: bool
) -> dict[tuple[int, int], int]:
    made = {
        facts.nodes[entry[0]].tensor: (s, n) for s, segment in enumerate(entries) for n, entry in enumerate(segment)
    }
    rings: dict[tuple[int, int], int] = {
        (s, n): 1 for s, segment in enumerate(entries) for n, entry in enumerate(segment) if entry[1] is Policy.ROWS
    }
    links: list[list[_Link]] = [[] for _ in entries]
    for s, segment in enumerate(entries):
        for op, _, adv, off, ext, keep in segment:
            node = facts.nodes[op]
            for tensor in node.swept:
                key = made.get(tensor)
                if key is None:
                    continue
                _, policy, p_adv, p_off, p_ext, _ = entries[key[0]][key[1]]
                if key[0] == s:  # both are at the same step: the rows between end and need are in the ring
                    if policy is Policy.ROWS:
                        held = p_off + p_ext - node.rows.start(off + keep)
                        rings[key] = max(rings[key], min(held, facts.nodes[entries[s][key[1]][0]].size[0]))
                    continue
                links[s].append(
                    _Link(
                        producer=key[0],
                        consumer=s,
                        key=key,
                        ring=policy is Policy.ROWS,
                        height=facts.nodes[entries[key[0]][key[1]][0]].size[0],
                        advance=p_adv,
                        offset=p_off,
                        field=node.rows,
                        reader=node,
                        new=(adv, off + keep, off + ext),
                    )
                )
    consumers: list[set[int]] = [set() for _ in entries]
    for segment_links in links:
        for link in segment_links:
            consumers[link.producer].add(link.consumer)
    if simulate or any(len(c) > 1 for c in consumers):
        _simulate(links, row_steps, rings)
    else:
        _follow(links, row_steps, rings)
    return rings


def _follow(links: Sequence[Sequence[_Link]], row_steps: Sequence[int], rings: dict[tuple[int, int], int]) -> None:
    """Every producer has one consumer segment, so it runs exactly until that segment's next step has what it reads."""
    for consumer, own in enumerate(links):
        by_producer: dict[int, list[_Link]] = {}
        for link in own:
            by_producer.setdefault(link.producer, []).append(link)
        for producer, group in by_producer.items():
            needs = [link.needs(row_steps[consumer]) for link in group]
            done = 0
            for i in range(row_steps[consumer]):
                for link, need in zip(group, needs, strict=True):
                    hi = need[i][1]
                    if hi > link.advance * done + link.offset:
                        done = -(-(hi - link.offset) // link.advance)
                if done > row_steps[producer]:
                    raise StallError("a segment waits for rows that are never made")
                for link, need in zip(group, needs, strict=True):
                    lo, hi = need[i]
                    if link.ring and lo < hi:
                        held = link.produced(done) - lo
                        if held > rings[link.key]:
                            rings[link.key] = held


def _simulate(links: Sequence[Sequence[_Link]], row_steps: Sequence[int], rings: dict[tuple[int, int], int]) -> None:
    """The engine's pull order: the last segment that has steps left drives; whoever lacks rows asks their producer."""
    count = len(links)
    needs = [[(link, link.needs(row_steps[s])) for link in own] for s, own in enumerate(links)]
    done = [0] * count
    for driver in range(count - 1, -1, -1):
        while done[driver] < row_steps[driver]:
            asking = [driver]
            while asking:
                s = asking[-1]
                step = done[s]
                for link, need in needs[s]:
                    if link.produced(done[link.producer]) < need[step][1]:
                        if done[link.producer] >= row_steps[link.producer]:
                            raise StallError("a segment waits for rows that are never made")
                        asking.append(link.producer)
                        break
                else:
                    for link, need in needs[s]:
                        lo, hi = need[step]
                        if link.ring and lo < hi:
                            held = link.produced(done[link.producer]) - lo
                            if held > rings[link.key]:
                                rings[link.key] = held
                    done[s] += 1
                    asking.pop()


def pull_order(facts: Facts, stage: Stage) -> list[int]:
    """The segments in the order in which their row steps run, for tests and reports."""
    entries = _row_entries(stage)
    order: list[int] = []
    made = {facts.nodes[e[0]].tensor: (s, n) for s, segment in enumerate(entries) for n, e in enumerate(segment)}
    done = [0] * len(entries)

    def lacks(s: int) -> int | None:
        for op, _, adv, off, ext, keep in entries[s]:
            node = facts.nodes[op]
            lo, hi = max(adv * done[s] + off + keep, 0), min(adv * done[s] + off + ext, node.size[0])
            for tensor in node.swept:
                key = made.get(tensor)
                if key is None or key[0] == s or lo >= hi:
                    continue
                producer = entries[key[0]][key[1]]
                height = facts.nodes[producer[0]].size[0]
                if min(max(producer[2] * done[key[0]] + producer[3], 0), height) < min(node.rows.end(hi), height):
                    return key[0]
        return None

    for driver in range(len(entries) - 1, -1, -1):
        while done[driver] < stage.segments[driver].row_steps:
            s = driver
            while (producer := lacks(s)) is not None:
                s = producer
                if done[s] >= stage.segments[s].row_steps:
                    raise StallError("a segment waits for rows that are never made")
            order.append(s)
            done[s] += 1
    return order


def overlap_distances(facts: Facts, stage: Stage) -> dict[int, int]:
    """How far below each tensor of an earlier stage that this one reads by rows the sink's output has to start, at
    least, to overwrite only rows that are dead by then (bytes >= 0; the verifier's ``writes_dead``). Empty if the
    output is marked for no overlap."""
    sink = len(stage.segments) - 1
    last = stage.segments[sink].entries[-1]
    if not last.overlap:
        return {}
    own = {facts.nodes[e.op].tensor for segment in stage.segments for e in segment.entries}
    readers: list[tuple[int, int, Field, int, int, int, int]] = []
    out = facts.nodes[last.op]
    for s, segment in enumerate(stage.segments):
        for e in segment.entries:
            node = facts.nodes[e.op]
            keep = e.keep if e.policy is Policy.TILE else 0
            for tensor in (*node.swept, *node.whole):
                producer = facts.producer[tensor]
                if producer is None or tensor in own:
                    continue
                height = facts.nodes[producer].shape[0]
                lo = e.rows.offset + keep
                whole = tensor in node.whole or node.single
                step = 0 if whole else e.rows.advance
                readers.append((s, tensor, node.rows, step, lo, node.size[0], height))
    done = [0] * len(stage.segments)
    found: dict[int, int] = {}
    row = out.shape[1] * out.shape[2]
    for s in pull_order(facts, stage):
        if s == sink:
            written = min(max(last.rows.advance * (done[s] + 1) + last.rows.offset, 0), out.shape[0]) * row
            for g, tensor, field, step, lo, size, height in readers:
                found.setdefault(tensor, 0)
                if done[g] >= stage.segments[g].row_steps:
                    continue
                first = max(step * done[g] + lo, 0) if step else 0
                if first >= size:
                    continue
                start = min(max(field.start(first), 0), height) if step else 0
                if start >= height:
                    continue
                found[tensor] = max(found[tensor], written - start * facts.bytes_of[tensor] // height)
        done[s] += 1
    return found


# ---------------------------------------------------------------- costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan's header declares: ``elements`` are outputs produced (inputs consumed by REDUCE, FULLY_CONNECTED,
    rows taken by streamed inputs); ``calls`` are row steps x sweeps x column steps x entries."""

    macs: int = 0
    elements: int = 0
    calls: int = 0
    row_steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            macs=self.macs + other.macs,
            elements=self.elements + other.elements,
            calls=self.calls + other.calls,
            row_steps=self.row_steps + other.row_steps,
        )


def _prefix_at(sums: Sequence[int], first: int, advance: int, steps: int) -> int:
    """Sum over i < steps of sums[clamp(first + advance * i)], with sums[0] == 0."""
    size = len(sums) - 1
    begin = -(-max(-first, 0) // advance)
    inside = max(min(steps, (size - first) // advance + 1), begin) if first <= size else begin
    total = sum(sums[first + advance * begin : first + advance * (inside - 1) + 1 : advance]) if inside > begin else 0
    return total + max(steps - inside, 0) * sums[size]


def swept(sums: Sequence[int], advance: int, lo: int, hi: int, steps: int) -> int:
    """Sum over i < steps of sums[clamp(advance*i + hi)] - sums[clamp(advance*i + lo)]: what all steps produce, measured
    by the prefix sums ``sums`` (a range for rows, ``Node.row_macs`` for MACs)."""
    size = len(sums) - 1
    if hi - lo == advance:  # each position once: the sum telescopes
        end = advance * (steps - 1) + hi
        return sums[min(max(end, 0), size)] - sums[min(max(lo, 0), size)]
    return _prefix_at(sums, hi, advance, steps) - _prefix_at(sums, lo, advance, steps)


def entry_cost(node: Node, rows: tuple[int, int, int, int], row_steps: int) -> tuple[int, int]:
    """(MACs, elements) of one entry with rows (advance, offset, extent, keep); columns are never produced twice."""
    advance, offset, extent, keep = rows
    lo, hi = offset + keep, offset + extent
    elements = swept(range(node.size[0] + 1), advance, lo, hi, row_steps) * node.row_elements
    return swept(node.row_macs, advance, lo, hi, row_steps) if node.row_macs else 0, elements


def op_costs(facts: Facts, stage: Stage) -> dict[int, tuple[int, int]]:
    """(MACs, elements) by operator (streamed inputs: -1 - number)."""
    costs: dict[int, tuple[int, int]] = {}
    for segment in stage.segments:
        for e in segment.entries:
            keep = e.keep if e.policy is Policy.TILE else 0
            costs[e.op] = entry_cost(
                facts.nodes[e.op], (e.rows.advance, e.rows.offset, e.rows.extent, keep), segment.row_steps
            )
    return costs


def stage_cost(facts: Facts, stage: Stage) -> Cost:
    """MACs, elements, calls and row steps of one stage, exact."""
    costs: Mapping[int, tuple[int, int]] = op_costs(facts, stage)
    return Cost(
        macs=sum(m for m, _ in costs.values()),
        elements=sum(e for _, e in costs.values()),
        calls=sum(s.row_steps * s.col_steps * s.sweeps * len(s.entries) for s in stage.segments),
        row_steps=sum(s.row_steps for s in stage.segments),
    )


def schedule_cost(facts: Facts, schedule: Schedule) -> Cost:
    """The figures that the plan's header declares."""
    return total(stage_cost(facts, stage) for stage in schedule.stages)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost())
