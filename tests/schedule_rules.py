# SPDX-License-Identifier: Apache-2.0
"""An engine of names instead of numbers, which shares no code with the planner or the C engine: it runs a schedule in
an arena where every byte remembers which pixel of which tensor was written to it, and every read checks that the bytes
still are that pixel. What breaks docs/design.md section 2 (rules 1 to 7) shows as lost, missing or foreign bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from planner_service import ir
from planner_service.format import Policy
from planner_service.schedule import Entry, Placement, Schedule, Segment, Stage

Pixel = tuple[int, int]
_COUNTER, _ACCUMULATOR = -1, -2


class RuleBroken(AssertionError):  # noqa: N818 - reads as what it reports
    """A rule of docs/design.md section 2 does not hold."""


def need(ok: bool, rule: int, message: str) -> None:
    if not ok:
        raise RuleBroken(f"rule {rule}: {message}")


@dataclass
class Figures:
    """What was executed, counted one by one. ``taken``: rows of streamed inputs, by tensor."""

    macs: int = 0
    elements: int = 0
    row_steps: int = 0
    calls: int = 0
    taken: dict[int, int] = field(default_factory=dict)


class Simulator:
    """Runs a schedule once. ``figures`` afterwards."""

    def __init__(self, graph: ir.Graph, schedule: Schedule, placement: Placement) -> None:
        self.graph, self.schedule, self.placement = graph, schedule, placement
        self.arena: list[object] = [None] * placement.arena_bytes
        self.figures = Figures()
        self.entries: dict[int, tuple[int, int, int]] = {}
        self.started: set[tuple[int, int, int]] = set()
        self.consumed: dict[int, set[Pixel]] = {}
        self.channel = 0  # first one of the slice that is being made
        for n, e in enumerate(schedule.placed):
            self.entries[self._tensor(e)] = (-1, 0, n)
        for s, stage in enumerate(schedule.stages):
            for g, segment in enumerate(stage.segments):
                for n, e in enumerate(segment.entries):
                    tensor = self._tensor(e)
                    need(tensor not in self.entries, 1, "a tensor has two producers")
                    self.entries[tensor] = (s, g, n)
        need(len(self.entries) == len(graph.ops) + len(graph.inputs), 1, "an operator or input is missing")
        for key, at in (*placement.offset.items(), *placement.aux.items()):
            need(at % 4 == 0, 6, f"{key} is not 4-aligned")

    # -------------------------------------------------------------- records

    def _tensor(self, e: Entry) -> int:
        return self.graph.ops[e.op].output if e.op >= 0 else self.graph.inputs[-1 - e.op].tensor

    def _entry(self, tensor: int) -> tuple[Entry, tuple[int, int, int]]:
        key = self.entries[tensor]
        if key[0] < 0:
            return self.schedule.placed[key[2]], key
        return self.schedule.stages[key[0]].segments[key[1]].entries[key[2]], key

    # -------------------------------------------------------------- bytes

    def _write(self, at: int, size: int, what: object) -> None:
        need(at >= 0 and at + size <= len(self.arena), 6, f"write of {size} bytes at {at} leaves the arena")
        self.arena[at : at + size] = [what] * size

    def _check(self, at: int, size: int, what: object, rule: int) -> None:
        need(at >= 0 and at + size <= len(self.arena), 6, f"read of {size} bytes at {at} leaves the arena")
        for byte in self.arena[at : at + size]:
            need(byte == what, rule, f"wanted {what}, found {byte}")

    # -------------------------------------------------------------- windows

    def _where(self, tensor: int, y: int, x: int, step: tuple[int, int] | None) -> int:
        """Arena offset of a pixel in its window at (row step, column step) of its segment."""
        e, key = self._entry(tensor)
        _, w, c = self.graph.tensors[tensor].shape
        h = self.graph.tensors[tensor].shape[0]
        base = self.placement.offset[key]
        if e.policy is Policy.FULL:
            return base + (y * w + x) * c
        if e.policy is Policy.ROWS:
            return base + (y % e.keep * w + x) * c
        need(step is not None, 2, "a tile is read outside its segment")
        assert step is not None
        first = e.rows.advance * step[0] + e.rows.offset + e.keep
        if y < first:
            need(e.keep > 0, 3, f"tensor {tensor} row {y} lies before its tile")
            return self.placement.aux[key] + (y % e.keep * w + x) * c
        rows, cols = min(e.rows.extent - e.keep, h), min(e.cols.extent, w)
        y0 = max(first, 0)
        x0 = max(e.cols.advance * step[1] + e.cols.offset, 0)
        need(0 <= y - y0 < rows and 0 <= x - x0 < cols, 3, f"tensor {tensor} pixel {y, x} lies outside its tile")
        return base + ((y - y0) * cols + x - x0) * (e.slice or c)

    def _read(self, tensor: int, y: int, x: int, step: tuple[int, int] | None, cut: int = 0) -> None:
        """All channels, or ``cut`` of them from the slice's first on."""
        t = self.graph.tensors[tensor]
        if t.data is not None:
            return
        e, _ = self._entry(tensor)
        if e.policy is Policy.EXTERNAL:
            return
        at = self._where(tensor, y, x, step)
        if e.policy is Policy.TILE and e.slice:
            need(cut == e.slice, 8, f"tensor {tensor} is read whole, but made in slices")
            self._check(at, cut, (tensor, y, x, self.channel), 8)
        elif cut:
            self._check(at + self.channel, cut, (tensor, y, x), 4 if e.policy is Policy.ROWS else 3)
        else:
            self._check(at, t.shape[2], (tensor, y, x), 4 if e.policy is Policy.ROWS else 3)

    def _new(self, e: Entry, size: tuple[int, int], step: tuple[int, int]) -> tuple[range, range]:
        """Rows and columns that a step produces (or consumes)."""
        kept = e.keep if e.policy is Policy.TILE else 0
        top = e.rows.advance * step[0] + e.rows.offset
        end = e.cols.advance * step[1] + e.cols.offset + e.cols.extent
        rows = range(max(top + kept, 0), min(top + e.rows.extent, size[0]))
        return rows, range(max(end - e.cols.advance, 0), min(end, size[1]))

    def _slide(self, e: Entry, key: tuple[int, int, int], step: tuple[int, int], last: bool) -> None:
        """Columns that leave a tile go to the line store (their newest rows), the others move to their new place."""
        tensor = self._tensor(e)
        h, w, c = self.graph.tensors[tensor].shape
        i, j = step
        c = e.slice or c
        first = e.rows.advance * i + e.rows.offset
        rows = range(max(first + e.keep, 0), min(first + e.rows.extent, h))
        begin, then = e.cols.advance * j + e.cols.offset, e.cols.advance * (j + 1) + e.cols.offset
        cols = range(max(begin, 0), min(begin + e.cols.extent, w))
        leaving = [x for x in cols if last or x < then]
        for y in rows:
            if e.keep and first + e.rows.advance <= y < first + e.rows.advance + e.keep:
                for x in leaving:
                    self._read(tensor, y, x, step)
                    self._write(self.placement.aux[key] + (y % e.keep * w + x) * c, c, (tensor, y, x))
        if not last:
            staying = [(y, x) for y in rows for x in cols if x >= then]
            bytes_of = {p: self.arena[(at := self._where(tensor, *p, step)) : at + c] for p in staying}
            for p, content in bytes_of.items():
                at = self._where(tensor, *p, (i, j + 1))
                self.arena[at : at + c] = content

    # -------------------------------------------------------------- operators

    def _taps(self, op: ir.Op, tensor: int, y: int, x: int) -> Iterator[tuple[int, int]]:
        """Pixels of ``tensor`` that output pixel (y, x) is made of."""
        h, w, _ = self.graph.tensors[tensor].shape
        if isinstance(op, ir.Window2D):
            for k in range(op.kernel[0]):
                for n in range(op.kernel[1]):
                    u = y * op.stride[0] - op.pads[0] + k * op.dilation[0]
                    v = x * op.stride[1] - op.pads[1] + n * op.dilation[1]
                    if 0 <= u < h and 0 <= v < w:
                        yield u, v
        elif isinstance(op, ir.Pad):
            if 0 <= y - op.pads[0] < h and 0 <= x - op.pads[1] < w:
                yield y - op.pads[0], x - op.pads[1]
        elif isinstance(op, ir.Resize) and op.factors is not None:
            yield y // op.factors[0], x // op.factors[1]
        elif isinstance(op, ir.Resize):
            yield op.rows[y], op.cols[x]
        elif isinstance(op, ir.Reshape):
            if y == x == 0:
                yield from ((u, v) for u in range(h) for v in range(w))
        elif isinstance(op, ir.Concat) and op.axis != 2:
            start = 0
            for part in op.inputs:
                size = self.graph.tensors[part].shape[op.axis]
                at = (y, x)[op.axis] - start
                if part == tensor and 0 <= at < size:
                    yield (at, x) if op.axis == 0 else (y, at)
                start += size
        elif isinstance(op, ir.Binary):
            yield min(y, h - 1), min(x, w - 1)
        else:
            yield y, x

    def _produce(self, e: Entry, key: tuple[int, int, int], step: tuple[int, int], segment: Segment) -> None:
        op = self.graph.ops[e.op]
        if isinstance(op, ir.Reduce | ir.FullyConnected):
            self._reduce(op, e, key, step, segment)
            return
        shape = self.graph.tensors[op.output].shape
        rows, cols = self._new(e, shape[:2], step)
        wise = isinstance(op, ir.Conv2D) and op.groups > 1
        for y in rows:
            for x in cols:
                for tensor in dict.fromkeys(op.inputs):
                    taps = list(self._taps(op, tensor, y, x))
                    for u, v in taps:
                        self._read(tensor, u, v, step, e.slice if wise else 0)
                    if isinstance(op, ir.Conv2D):
                        self.figures.macs += len(taps) * (e.slice or shape[2]) * op.weights.shape[3]
                at = self._where(op.output, y, x, step)
                if e.slice and e.policy is Policy.TILE:
                    self._write(at, e.slice, (op.output, y, x, self.channel))
                elif e.slice:
                    self._write(at + self.channel, e.slice, (op.output, y, x))
                else:
                    self._write(at, shape[2], (op.output, y, x))
                self.figures.elements += e.slice or shape[2]

    def _reduce(self, op: ir.Op, e: Entry, key: tuple[int, int, int], step: tuple[int, int], segment: Segment) -> None:
        h, w, c = self.graph.tensors[op.inputs[0]].shape
        rows, cols = self._new(e, (h, w), step)
        over_h = isinstance(op, ir.FullyConnected) or 0 in op.axes  # type: ignore[attr-defined]
        over_w = isinstance(op, ir.FullyConnected) or 1 in op.axes  # type: ignore[attr-defined]
        seen = self.consumed.setdefault(e.op, set())
        n = self.graph.tensors[op.output].shape[2]
        for y in rows:
            for x in cols:
                self._read(op.inputs[0], y, x, step)
                need((y, x) not in seen, 5, f"{op.name} consumes pixel {y, x} twice")
                seen.add((y, x))
                if e.accumulate:  # the accumulator of this pixel: cleared by its first pixel, then it must survive
                    sum_y, sum_x = 0 if over_h else y, 0 if over_w else x
                    cell = (0 if over_h else y % min(e.rows.advance, h)) * (1 if over_w else w) + sum_x
                    at = self.placement.aux[key] + cell * 4 * n
                    what = (_ACCUMULATOR, op.output, sum_y, sum_x)
                    if (op.output, sum_y, sum_x) in self.started:
                        self._check(at, 4 * n, what, 6)
                    self.started.add((op.output, sum_y, sum_x))
                    self._write(at, 4 * n, what)
                self.figures.elements += c
                if isinstance(op, ir.FullyConnected):
                    self.figures.macs += c * n
        oh, ow, oc = self.graph.tensors[op.output].shape
        done_rows = range(oh) if over_h and step[0] == segment.row_steps - 1 else range(0) if over_h else rows
        done_cols = range(ow) if over_w and step[1] == segment.col_steps - 1 else range(0) if over_w else cols
        for y in done_rows:
            for x in done_cols:
                sources = [(u, v) for u in (range(h) if over_h else (y,)) for v in (range(w) if over_w else (x,))]
                need(all(p in seen for p in sources), 5, f"{op.name} ends before it has consumed its input")
                self._write(self._where(op.output, y, x, step), oc, (op.output, y, x))

    # -------------------------------------------------------------- stages

    def run(self) -> Figures:
        """RuleBroken at the first rule that does not hold."""
        for e in self.schedule.placed:
            tensor = self._tensor(e)
            h, w, c = self.graph.tensors[tensor].shape
            need(e.policy in (Policy.FULL, Policy.EXTERNAL), 1, "placed inputs are resident or external")
            if e.policy is Policy.FULL:
                for y in range(h):
                    for x in range(w):
                        self._write(self._where(tensor, y, x, None), c, (tensor, y, x))
        for s, stage in enumerate(self.schedule.stages):
            self._stage(s, stage)
        for io in self.graph.outputs:
            h, w, _ = self.graph.tensors[io.tensor].shape
            need(self._entry(io.tensor)[0].policy is Policy.FULL, 1, f"output {io.name} is not in the arena")
            for y in range(h):
                for x in range(w):
                    self._read(io.tensor, y, x, None)
        return self.figures

    def _stage(self, s: int, stage: Stage) -> None:
        done = [0] * len(stage.segments)
        for g in range(len(stage.segments)):
            self._write(self.placement.state[s] + 4 * g, 4, (_COUNTER, s, g, 0))
        for e in stage.segments[-1].entries[-1:]:
            need(e.policy is Policy.FULL, 1, "the stage does not end in a FULL tensor")
        for driver in range(len(stage.segments) - 1, -1, -1):
            while done[driver] < stage.segments[driver].row_steps:
                g = driver
                while (waits_for := self._lacks(s, g, done)) is not None:
                    g = waits_for
                    need(done[g] < stage.segments[g].row_steps, 4, "the stage does not end")
                self._check(self.placement.state[s] + 4 * g, 4, (_COUNTER, s, g, done[g]), 6)
                self._row_step(s, g, done[g])
                done[g] += 1
                self._write(self.placement.state[s] + 4 * g, 4, (_COUNTER, s, g, done[g]))
        for segment in stage.segments:
            for e in segment.entries:
                if e.policy is Policy.FULL:
                    tensor = self._tensor(e)
                    h, w, _ = self.graph.tensors[tensor].shape
                    for y in range(h):
                        for x in range(w):
                            self._read(tensor, y, x, None)

    def _lacks(self, s: int, g: int, done: list[int]) -> int | None:
        """The segment that must run before segment g can do its next row step."""
        for e in self.schedule.stages[s].segments[g].entries:
            if e.op < 0:
                continue
            op = self.graph.ops[e.op]
            consumes = isinstance(op, ir.Reduce | ir.FullyConnected)
            out = self.graph.tensors[op.inputs[0] if consumes else op.output].shape
            rows, _ = self._new(e, out[:2], (done[g], 0))
            for tensor in op.inputs:
                if self.graph.tensors[tensor].data is not None:
                    continue
                producer, key = self._entry(tensor)
                if key[0] != s or key[1] == g or not rows:
                    continue
                end = self._field_end(op, rows[-1], self.graph.tensors[tensor].shape[0])
                made = producer.rows.advance * done[key[1]] + producer.rows.offset
                if min(max(made, 0), self.graph.tensors[tensor].shape[0]) < end:
                    return key[1]
        return None

    @staticmethod
    def _field_end(op: ir.Op, last: int, height: int) -> int:
        """End of the rows that output row ``last`` asks for, clamped: padding rows count as the edge."""
        if isinstance(op, ir.Window2D):
            end = last * op.stride[0] - op.pads[0] + (op.kernel[0] - 1) * op.dilation[0] + 1
        elif isinstance(op, ir.Pad):
            end = last - op.pads[0] + 1
        elif isinstance(op, ir.Resize) and op.factors is not None:
            end = last // op.factors[0] + 1
        else:
            end = last + 1
        return min(max(end, 0), height)

    def _row_step(self, s: int, g: int, i: int) -> None:
        segment = self.schedule.stages[s].segments[g]
        self.figures.row_steps += 1
        channels = self.graph.tensors[self._tensor(segment.entries[0])].shape[2]
        cuts = {e.slice for e in segment.entries}
        need(len(cuts) == 1, 8, "the operators of a segment make different slices")
        cut = cuts.pop() or channels
        need(channels % cut == 0 and segment.sweeps == channels // cut, 8, "slices do not make up the channels")
        for self.channel in range(0, channels, cut):
            self._sweep(s, g, i)
        self.channel = 0

    def _sweep(self, s: int, g: int, i: int) -> None:
        segment = self.schedule.stages[s].segments[g]
        for j in range(segment.col_steps):
            for n, e in enumerate(segment.entries):
                self.figures.calls += 1
                if e.op < 0:
                    need(len(segment.entries) == 1 and segment.col_steps == 1, 1, "a streamed input is not alone")
                    self._stream(e, i)
                else:
                    self._produce(e, (s, g, n), (i, j), segment)
                    if e.policy is Policy.TILE and j == segment.col_steps - 1:
                        end = e.cols.advance * j + e.cols.offset + e.cols.extent
                        need(end >= self.graph.tensors[self._tensor(e)].shape[1], 2, "a tile ends before its tensor")
            for n, e in enumerate(segment.entries):
                if e.policy is Policy.TILE:
                    self._slide(e, (s, g, n), (i, j), j == segment.col_steps - 1)

    def _stream(self, e: Entry, i: int) -> None:
        tensor = self._tensor(e)
        h, w, c = self.graph.tensors[tensor].shape
        rows, _ = self._new(e, (h, w), (i, 0))
        for y in rows:
            need(self.figures.taken.get(tensor, 0) == y, 1, "a streamed row is taken out of order")
            self.figures.taken[tensor] = y + 1
            for x in range(w):
                self._write(self._where(tensor, y, x, None), c, (tensor, y, x))
                self.figures.elements += c


def check(graph: ir.Graph, schedule: Schedule, placement: Placement) -> Figures:
    """Run the schedule on names. RuleBroken if a rule does not hold."""
    need(
        math.isfinite(placement.arena_bytes) and placement.arena_bytes % 4 == 0,
        6,
        "the arena's size is no multiple of 4",
    )
    return Simulator(graph, schedule, placement).run()
