# SPDX-License-Identifier: Apache-2.0
"""Segments and what they cost: every way to run a run of operators that the search considers.

Options of operators [i, j) grow backward from operator j - 1: what a step reads of the first operator's input decides
the region of the operator before it. The same arithmetic as ``build.shape_segment`` (a test holds them together), but
nothing is built that is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from planner_service.build import Facts, IllegalSpecError, Node, SegmentShape, SegmentSpec, shape_segment
from planner_service.layout import COUNTER_BYTES
from planner_service.replay import shape_cost, swept

#: Row steps that the search tries, besides a single one.
ROW_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
#: Most operators of a segment.
MAX_SEGMENT_OPS = 14
#: An advance that reaches every size: one step.
WHOLE = 0xFFFF
#: (advance, first row, end row) of a producer's or reader's row step.
Span = tuple[int, int, int]


def up4(size: int) -> int:
    """Bytes of a window as the arena counts them."""
    return (size + 3) & ~3


@dataclass(slots=True)
class Option:
    """One way to run a segment. ``needs``: rows that a step reads, by tensor of an earlier segment or stage; ``gives``:
    rows that a step adds to its last tensor, ``steps`` times. ``held`` bytes live during the stage, ``tile`` during the
    segment."""

    needs: dict[int, Span]
    gives: Span
    steps: int
    held: int
    tile: int
    macs: int
    spec: SegmentSpec


@lru_cache(maxsize=1 << 16)
def ring_rows(height: int, gives: Span, need: Span) -> int:
    """Least rows of a ring that one segment fills ``gives`` a step and one other reads ``need`` a step, in pull order:
    the most rows between the first that a step reads and the last that was produced for it."""
    made_adv, _, made_end = gives
    adv, lo, hi = need
    most, step, done = 1, 0, 0
    produced = max(made_end - made_adv, 0)
    while True:
        first, end = max(adv * step + lo, 0), min(adv * step + hi, height)
        while produced < end:
            done += 1
            produced = min(max(made_adv * (done - 1) + made_end, 0), height)
        if end > first:
            most = max(most, produced - first)
        if end >= height or adv * step + lo >= height:
            return min(most, height)
        step += 1


def phase(span: Span) -> Span:
    """The span without whole steps of delay, which change no ring: what two ways must share to be compared."""
    adv, lo, hi = span
    return (adv, lo % adv, hi - lo)


def accumulators(rows: bool, cols: bool, advance: int, size: tuple[int, int], channels: int) -> int:
    """int32 accumulators of a reduction over several steps, as the engine keeps them (``weft_acc_bytes``): ``size`` of
    the input, ``channels`` of the output (REDUCE: of both)."""
    if rows and cols:
        return channels
    return (min(advance, size[0]) if cols else size[1]) * channels


@dataclass(slots=True)
class _Suffix:
    """The operators from some position to the segment's last, without lag. ``rows``: (node, advance, offset, extent,
    keep, local) from the last backward."""

    row_adv: int
    needs: dict[int, Span]
    col_needs: dict[int, Span]
    rows: list[tuple[Node, int, int, int, int, bool]]
    lag: int
    held: int
    tile: int
    keep: dict[int, int]


class Segments:
    """Options of all segments of a graph, found when they are asked for. ``recompute`` False: every overlap is kept.
    Options that hold more than ``cap`` bytes, or execute more than ``spare`` MACs beyond the unfused ones, are left
    out."""

    def __init__(self, facts: Facts, *, recompute: bool, cap: int, spare: float) -> None:
        self.facts, self.recompute, self.cap, self.spare = facts, recompute, cap, spare
        self.macs_before = [0]
        for macs in facts.op_macs:
            self.macs_before.append(self.macs_before[-1] + macs)
        self._ending: dict[int, dict[int, list[Option]]] = {}
        self._swept: dict[tuple[int, int, int, int, int], int] = {}

    def options(self, i: int, j: int) -> list[Option]:
        """Ways to run operators [i, j) as one segment, dominated ones left out."""
        if j not in self._ending:
            self._ending[j] = self._grow(j)
        return self._ending[j].get(i, [])

    def _grow(self, j: int) -> dict[int, list[Option]]:
        facts = self.facts
        last = facts.nodes[j - 1]
        advances = [r for r in ROW_STEPS if r < last.size[0]] if not last.single else []
        found: dict[int, list[Option]] = {j - 1: list(self._alone(last, (*advances, WHOLE)))}
        if last.single:
            return found
        suffixes = [s for r in (*advances, WHOLE) if (s := self._last(last, r)) is not None]
        for i in range(j - 2, max(j - MAX_SEGMENT_OPS, 0) - 1, -1):
            node = facts.nodes[i]
            if node.reduces or node.single or node.rows.factor > 1 or not suffixes:
                break
            if any(t == node.tensor for op in range(i + 1, j) for t in facts.nodes[op].whole):
                break
            suffixes = [longer for s in suffixes for longer in self._extend(s, node, j)]
            options = [o for s in suffixes if (o := self._finish(s, i, j)) is not None]
            if options:
                found[i] = pareto_options(options)
        return found

    def _alone(self, node: Node, advances: tuple[int, ...]) -> Iterator[Option]:
        """Segments of one operator: no tiles, whole rows. These follow ``build`` as they stand."""
        found: list[Option] = []
        for row_adv in advances:
            spec = SegmentSpec(ops=(node.op,), row_adv=row_adv, col_adv=WHOLE)
            try:
                found.append(self._option(shape_segment(self.facts, spec), spec))
            except IllegalSpecError:
                continue
        return iter(pareto_options(found))

    def _option(self, shape: SegmentShape, spec: SegmentSpec) -> Option:
        node = self.facts.nodes[shape.ops[0]]
        adv, off, ext, _ = shape.rows[0]
        held = COUNTER_BYTES
        if node.reduces and ((node.reduce_h and shape.row_steps > 1) or (node.reduce_w and shape.col_steps > 1)):
            held += up4(4 * accumulators(node.reduce_h, node.reduce_w, adv, node.size, node.shape[2]))
        step = adv * node.rows.stride if node.rows.factor == 1 else max(adv // node.rows.factor, 1)
        span = (step, node.rows.start(off), node.rows.end(off + ext))
        needs = dict.fromkeys(node.swept, span)
        macs = shape_cost(self.facts, shape).macs
        return Option(needs, (adv, off, off + ext), shape.row_steps, held, 0, macs, spec)

    def _last(self, node: Node, row_adv: int) -> _Suffix | None:
        """The segment's last operator, one column at a time."""
        if node.rows.factor > 1:
            return None
        height, width = node.size
        whole = row_adv == WHOLE
        advance = height if whole else row_adv
        columns = 1 if width > 1 else width
        held = COUNTER_BYTES
        suffix = _Suffix(advance, {}, {}, [(node, advance, 0, advance, 0, False)], 0, held, 0, {})
        self._need(suffix, node, advance, 0, advance, columns, 0, columns)
        return suffix

    @staticmethod
    def _need(suffix: _Suffix, node: Node, adv: int, lo: int, hi: int, cadv: int, clo: int, chi: int) -> bool:
        """Add what rows [lo, hi) and columns [clo, chi) of a step read; False where rates disagree."""
        rows, cols = node.rows, node.cols
        row = (adv * rows.stride, rows.start(lo), rows.end(hi))
        col = (cadv * cols.stride, cols.start(clo), cols.end(chi))
        for tensor in node.swept:
            known = suffix.needs.get(tensor)
            if known is None:
                suffix.needs[tensor], suffix.col_needs[tensor] = row, col
                continue
            known_col = suffix.col_needs[tensor]
            if known[0] != row[0] or known_col[0] != col[0]:
                return False
            suffix.needs[tensor] = (row[0], min(known[1], row[1]), max(known[2], row[2]))
            suffix.col_needs[tensor] = (col[0], min(known_col[1], col[1]), max(known_col[2], col[2]))
        return True

    def _extend(self, suffix: _Suffix, node: Node, j: int) -> Iterator[_Suffix]:
        """The suffix with the operator before it: its overlap kept, or computed again."""
        need = suffix.needs.get(node.tensor)
        if need is None:
            return
        facts = self.facts
        h, w, c = node.shape
        cadv, clo, chi = suffix.col_needs[node.tensor]
        local = not facts.is_output[node.tensor] and facts.consumers[node.tensor][-1] < j
        whole = suffix.row_adv >= suffix.rows[0][0].size[0]
        adv, lo, hi = (node.size[0], 0, node.size[0]) if whole else need
        width = min(max(chi - clo, cadv), w) if local else 0
        overlap = hi - lo - adv
        if not local:
            choices = [(hi - adv, adv, 0, adv)]  # offset, extent, keep, lag's bound
        elif whole or overlap <= 0:
            choices = [(lo, hi - lo, 0, hi)]
        else:
            choices = [(lo, hi - lo, overlap, adv)]
            if self.recompute:
                choices.append((lo, hi - lo, 0, hi))
        for off, ext, keep, bound in choices:
            held = suffix.held + up4(min(keep, h) * w * c)
            tile = suffix.tile + up4(min(ext - keep, h) * width * c)
            if held + tile > self.cap:
                continue
            lag = suffix.lag
            if hi > bound:
                lag = max(lag, -(-(hi - bound) * suffix.row_adv // adv))
            needs, col_needs = dict(suffix.needs), dict(suffix.col_needs)
            del needs[node.tensor], col_needs[node.tensor]
            longer = _Suffix(
                suffix.row_adv,
                needs,
                col_needs,
                [*suffix.rows, (node, adv, off, ext, keep, local)],
                lag,
                held,
                tile,
                {**suffix.keep, node.tensor: keep} if keep else suffix.keep,
            )
            if self._need(longer, node, adv, off + keep, off + ext, cadv, chi - cadv, chi):
                yield longer

    def _finish(self, suffix: _Suffix, i: int, j: int) -> Option | None:
        last, last_adv, _, _, _, _ = suffix.rows[0]
        row_adv, lag = suffix.row_adv, suffix.lag
        steps = 1
        for node, adv, off, _, _, local in suffix.rows:
            if not local:
                steps = max(steps, -(-(node.size[0] - off + lag * adv // row_adv) // adv))
        macs = 0
        for node, adv, off, ext, keep, _ in suffix.rows:
            if node.row_macs:
                macs += self._sweep(node, adv, off - lag * adv // row_adv + keep, ext - keep, steps)
        if macs - (self.macs_before[j] - self.macs_before[i]) > self.spare:
            return None
        held = suffix.held
        if last.reduces:
            many = (last.reduce_h and steps > 1) or (last.reduce_w and last.size[1] > 1)
            held += (
                up4(4 * accumulators(last.reduce_h, last.reduce_w, last_adv, last.size, last.shape[2])) if many else 0
            )
        if lag:
            needs = {
                t: (a, lo - lag * a // row_adv, hi - lag * a // row_adv) for t, (a, lo, hi) in suffix.needs.items()
            }
        else:
            needs = suffix.needs
        spec = SegmentSpec(
            ops=tuple(range(i, j)),
            row_adv=WHOLE if row_adv >= last.size[0] else row_adv,
            col_adv=1 if last.size[1] > 1 else WHOLE,
            keep=suffix.keep,
        )
        return Option(needs, (last_adv, -lag, last_adv - lag), steps, held, suffix.tile, macs, spec)

    def _sweep(self, node: Node, adv: int, lo: int, rows: int, steps: int) -> int:
        key = (node.op, adv, lo, rows, steps)
        known = self._swept.get(key)
        if known is None:
            known = self._swept[key] = swept(node.row_macs, adv, lo, lo + rows, steps)
        return known


def pareto_options(options: list[Option]) -> list[Option]:
    """Without those that another one of the same rates and phases beats in every cost."""
    found: dict[object, list[Option]] = {}
    for option in sorted(options, key=lambda o: (o.macs, o.held + o.tile, o.held)):
        key = (phase(option.gives), *((t, phase(n)) for t, n in sorted(option.needs.items())))
        group = found.setdefault(key, [])
        if not any(o.held <= option.held and o.tile <= option.tile for o in group):
            group.append(option)
    return [option for group in found.values() for option in group]
