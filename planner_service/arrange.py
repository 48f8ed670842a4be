# SPDX-License-Identifier: Apache-2.0
"""Arena offsets under a given height. Whole tensors outlive stages and may overlap; all other windows live within one
stage. So whole tensors are placed first, stage by stage with backtracking, and for each stage the others have to fit
into what is left: small bin packing problems, in which sums of sizes are bit sets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Positions tried, besides two for each tensor, before a height is given up; and where it has to be fast.
EFFORT, FAST_EFFORT = 600, 60
#: With more different sums of a stage's windows than this, a proof takes them to fit as if they could be cut.
SUMS_PROVEN = 512
#: By position: whether a tensor may start there; and positions, or rooms.
_Where = NDArray[np.bool_]
_Room = NDArray[np.int64]
#: How many achievable sums of a stage's windows are tried as room below or above a tensor.
SUMS_TRIED = 3


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor of ``size`` bytes, in units, live in stages ``first`` to ``last``. ``over``: how far it has to start
    below others to share bytes with them, by their number."""

    size: int
    first: int
    last: int
    over: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Inner:
    """The other windows of a stage, in units: ``stage`` ones live in all of it, ``segments`` ones (one tuple each) only
    in their segment."""

    stage: tuple[int, ...]
    segments: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Offsets in units, in the order of what was given."""

    wholes: tuple[int, ...]
    stage: tuple[tuple[int, ...], ...]
    segments: tuple[tuple[tuple[int, ...], ...], ...]


def arrange(
    wholes: Sequence[Whole], inners: Sequence[Inner], height: int, effort: int = EFFORT, *, thorough: bool = True
) -> Arrangement | None:
    """Offsets within ``height`` units; None if none were found. Deterministic. ``thorough``: what is hard to find is
    looked for where no proof excludes it."""
    found = _Arranger(wholes, inners, height, effort, None).run()
    if found is None and thorough and (possible := _possible(wholes, inners, height)) is not None:
        found = _Arranger(wholes, inners, height, effort, possible).run()
    return found


class _Arranger:
    """``possible``: by tensor, where it may start if later stages are to fit; then only there, and all is tried that
    decides."""

    def __init__(
        self,
        wholes: Sequence[Whole],
        inners: Sequence[Inner],
        height: int,
        effort: int,
        possible: Mapping[int, _Where] | None,
    ) -> None:
        self.possible = possible
        self.wholes, self.inners, self.height, self.effort = wholes, inners, height, effort + 2 * len(wholes)
        self.born: list[list[int]] = [[] for _ in inners]
        for n, whole in enumerate(wholes):
            self.born[whole.first].append(n)
        self.live = [[n for n, w in enumerate(wholes) if w.first <= s <= w.last] for s in range(len(inners))]
        self.at = [-1] * len(wholes)
        self.need = [_need(i) for i in inners]
        self.fits: list[tuple[list[int], list[list[int]]] | None] = [None] * len(inners)
        self.sums: dict[int, list[int]] = {}
        self.dead: set[tuple[int, ...]] = set()

    def run(self) -> Arrangement | None:
        """Tensors one after the other, and behind the last one of a stage its other windows, with backtracking."""
        steps = [(stage, n) for stage, born in enumerate(self.born) for n in (*born, None)]
        tried: list[Iterator[int] | None] = []
        while len(tried) < len(steps):
            stage, n = steps[len(tried)]
            if n is None:
                if self._close(stage):
                    tried.append(None)
                    continue
            else:
                tried.append(self._positions(stage, n))
            if not self._next(steps, tried):
                return None
        fits = [fit for fit in self.fits if fit is not None]
        return Arrangement(
            tuple(self.at), tuple(tuple(f[0]) for f in fits), tuple(tuple(tuple(g) for g in f[1]) for f in fits)
        )

    def _next(self, steps: Sequence[tuple[int, int | None]], tried: list[Iterator[int] | None]) -> bool:
        """Go back to the last tensor that can lie elsewhere, and put it there."""
        while tried:
            stage, n = steps[len(tried) - 1]
            positions = tried[-1]
            if positions is None or n is None:
                self.dead.add(self._key(stage))
            elif (at := next(positions, None)) is not None:
                self.effort -= 1
                self.at[n] = at
                return self.effort >= 0
            else:
                self.at[n] = -1
            tried.pop()
        return False

    def _key(self, stage: int) -> tuple[int, ...]:
        return (stage, *(self.at[n] for n in self.live[stage]))

    def _close(self, stage: int) -> bool:
        """All tensors of the stage are placed: whether the others fit."""
        key = self._key(stage)
        if key in self.dead:
            return False
        self.fits[stage] = self._fit(stage)
        if self.fits[stage] is None:
            self.dead.add(key)
        return self.fits[stage] is not None

    def _positions(self, stage: int, n: int) -> Iterator[int]:
        """Where tensor ``n`` may start, the most promising first."""
        whole, top = self.wholes[n], self.height - self.wholes[n].size
        others = [m for m in self.live[stage] if m != n and self.at[m] >= 0]
        taken = [(self.at[m], self.at[m] + self.wholes[m].size, whole.over.get(m)) for m in others]
        seen: set[int] = set()
        for at in self._promising(stage, n, others):
            if at in seen or not 0 <= at <= top:
                continue
            seen.add(at)
            end = at + whole.size
            for low, high, over in taken:
                if end > low and at < high and (over is None or at + over > low):
                    break
            else:
                yield at

    def _promising(self, stage: int, n: int, others: Sequence[int]) -> Iterator[int]:
        """Just low enough below what tensor ``n`` overlaps, at the ends, next to others, and so that rooms are exactly
        as large as windows that could fill them."""
        if self.possible is not None:
            yield from self._decisive(stage, n, others)
            yield from (
                at
                for at in self._close_by(stage, n, others)
                if 0 <= at < self.possible[n].size and self.possible[n][at]
            )
        else:
            yield from self._close_by(stage, n, others)

    def _close_by(self, stage: int, n: int, others: Sequence[int]) -> Iterator[int]:
        whole, following = self.wholes[n], stage + 1 < len(self.inners)
        top = self.height - whole.size
        for m in others:
            over = whole.over.get(m)
            if over is not None:
                low = min(self.at[m] - over, top)
                yield low
                yield from self._below(stage, low)
                if following:
                    yield from (top - s for s in self._above(stage + 1, top - low))
        yield top
        yield 0
        for m in others:
            yield self.at[m] + self.wholes[m].size
            yield self.at[m] - whole.size
        yield from self._below(stage, top)
        yield from (top - s for s in self._above(stage, 0))
        if following:
            yield from self._below(stage + 1, top)
            yield from (top - s for s in self._above(stage + 1, 0))

    def _decisive(self, stage: int, n: int, others: Sequence[int]) -> list[int]:
        """The first and the last position of ``n`` that is possible, with regard to what it overlaps too."""
        assert self.possible is not None
        where = self.possible[n]
        for m in others:
            if m in self.wholes[n].over and len(others) == 1:
                there = np.zeros(self.height - self.wholes[m].size + 1, dtype=np.bool_)
                there[self.at[m]] = True
                where = where & _overlapped(
                    self.wholes[n], self.wholes[m], m, there, self.inners[stage], self.height, loose=False
                )
        found = np.flatnonzero(where)
        return [int(found[k]) for k in (-1, 0)] if found.size else []

    def _achievable(self, stage: int) -> list[int]:
        """Sums of some of the stage's windows, ascending; its tiles count as one."""
        known = self.sums.get(stage)
        if known is None:
            inner = self.inners[stage]
            tile = max((sum(g) for g in inner.segments), default=0)
            known = self.sums[stage] = _ones(_sums((*inner.stage, tile)))
        return known

    def _below(self, stage: int, most: int) -> list[int]:
        sums = self._achievable(stage)
        end = bisect_left(sums, most + 1)
        return sums[max(end - SUMS_TRIED, 0) : end][::-1]

    def _above(self, stage: int, least: int) -> list[int]:
        sums = self._achievable(stage)
        begin = bisect_left(sums, max(least, 0))
        return sums[begin : begin + SUMS_TRIED]

    def _holes(self, stage: int) -> list[tuple[int, int]]:
        """(start, size) of what the stage's whole tensors leave free."""
        holes: list[tuple[int, int]] = []
        at = 0
        for low, high in sorted((self.at[n], self.at[n] + self.wholes[n].size) for n in self.live[stage]):
            if low > at:
                holes.append((at, low - at))
            at = max(at, high)
        if at < self.height:
            holes.append((at, self.height - at))
        return holes

    def _fit(self, stage: int) -> tuple[list[int], list[list[int]]] | None:
        """Offsets of the stage's other windows."""
        inner, holes = self.inners[stage], self._holes(stage)
        if self.need[stage] > sum(size for _, size in holes):
            return None
        if self.possible is not None and len(holes) <= 2:
            return _fit_two(inner, *holes, *[(0, 0)] * (2 - len(holes)))
        tile = max((sum(g) for g in inner.segments), default=0)
        for start, size in sorted(holes, key=lambda h: h[1]):
            if size < tile:
                continue
            left = [(s + tile, z - tile) if s == start else (s, z) for s, z in holes]
            placed = _fill(inner.stage, left)
            if placed is not None:
                return placed, [_row(start, g) for g in inner.segments]
        return self._fit_split(inner, holes)

    @staticmethod
    def _fit_split(inner: Inner, holes: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]] | None:
        """As ``_fit``, with the tiles of a segment in several holes: first the rest, tight from the ends."""
        for order in (sorted(holes, key=lambda h: h[1]), sorted(holes, key=lambda h: -h[1])):
            placed = _fill(inner.stage, order)
            if placed is None:
                return None
            left: list[tuple[int, int]] = []
            for start, size in holes:
                end = max(
                    (at + z for at, z in zip(placed, inner.stage, strict=True) if start <= at < start + size),
                    default=start,
                )
                left.append((end, start + size - end))
            groups: list[list[int]] = []
            for group in inner.segments:
                fit = _fill(group, sorted(left, key=lambda h: h[1]))
                if fit is None:
                    break
                groups.append(fit)
            else:
                return placed, groups
        return None


def _fit_two(inner: Inner, low: tuple[int, int], high: tuple[int, int]) -> tuple[list[int], list[list[int]]] | None:
    """Offsets of a stage's windows in two holes (start, size), if there are any."""
    total = sum(inner.stage)
    for size in _ones(_sums(inner.stage)):
        below, above = low[1] - size, high[1] - (total - size)
        if below < 0 or above < 0:
            continue
        tiles = [_split(group, (low[0] + size, below), (high[0] + total - size, above)) for group in inner.segments]
        groups = [group for group in tiles if group is not None]
        placed = _split(inner.stage, (low[0], size), (high[0], total - size))
        if placed is not None and len(groups) == len(tiles):
            return placed, groups
    return None


def _split(sizes: Sequence[int], low: tuple[int, int], high: tuple[int, int]) -> list[int] | None:
    """Offsets of ``sizes`` in two holes (start, size): the first one as full as possible."""
    chosen = set(_fullest(sizes, range(len(sizes)), low[1]))
    ends = [low[0], high[0]]
    placed: list[int] = []
    for n, size in enumerate(sizes):
        hole = 0 if n in chosen else 1
        placed.append(ends[hole])
        ends[hole] += size
    return placed if ends[1] <= high[0] + high[1] else None


def _ones(bits: int) -> list[int]:
    data = np.frombuffer(bits.to_bytes(bits.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    return [int(n) for n in np.flatnonzero(np.unpackbits(data, bitorder="little"))]


def _row(start: int, sizes: Iterable[int]) -> list[int]:
    found: list[int] = []
    for size in sizes:
        found.append(start)
        start += size
    return found


def _fill(sizes: Sequence[int], holes: Sequence[tuple[int, int]]) -> list[int] | None:
    """Offsets of ``sizes`` in ``holes`` (start, size). All holes but the largest are filled as far as possible, small
    ones first, so with two holes a solution is found if there is one."""
    placed = [-1] * len(sizes)
    rest = [n for n, size in enumerate(sizes) if size]
    for n, size in enumerate(sizes):
        if not size:
            placed[n] = 0
    order = sorted(holes, key=lambda h: h[1])
    for number, (start, room) in enumerate(order):
        if not rest:
            break
        if number == len(order) - 1 or sum(sizes[n] for n in rest) <= room:
            chosen = rest
            if sum(sizes[n] for n in rest) > room:
                return None
        else:
            chosen = _fullest([sizes[n] for n in rest], rest, room)
        for n in chosen:
            placed[n] = start
            start += sizes[n]
        rest = [n for n in rest if n not in chosen]
    return None if rest else placed


def _fullest(sizes: Sequence[int], numbers: Sequence[int], room: int) -> list[int]:
    """The numbers whose sizes have the largest sum up to ``room``."""
    mask = (1 << (room + 1)) - 1
    steps = [1]
    for size in sizes:
        steps.append((steps[-1] | steps[-1] << size) & mask)
    best = steps[-1].bit_length() - 1
    chosen: list[int] = []
    for n in range(len(sizes) - 1, -1, -1):
        if not steps[n] >> best & 1:
            chosen.append(numbers[n])
            best -= sizes[n]
    return chosen


# ---------------------------------------------------------------- proofs


def least_height(wholes: Sequence[Whole], inners: Sequence[Inner], low: int, high: int) -> int:
    """A height from ``low`` to ``high`` units that no arrangement is below; a tensor without a place is the proof."""
    while low < high:
        middle = (low + high) // 2
        if _possible(wholes, inners, middle) is not None:
            high = middle
        else:
            low = middle + 1
    return low


def _possible(wholes: Sequence[Whole], inners: Sequence[Inner], height: int) -> dict[int, _Where] | None:
    """Where tensors may start, if what is live together is to fit; None if one has no place.

    From the last stage to the first. Exact for stages that hold a single tensor, or one and its overlapping successor;
    others ask nothing of their tensors."""
    if any(w.size > height for w in wholes) or any(sum(i.stage) > height for i in inners):
        return None
    where = {n: np.ones(height - w.size + 1, dtype=np.bool_) for n, w in enumerate(wholes)}
    for stage in range(len(inners) - 1, -1, -1):
        live = [n for n, w in enumerate(wholes) if w.first <= stage <= w.last]
        pair = next(((a, b) for a in live for b in live if b in wholes[a].over), None)
        if len(live) == 1:
            (n,) = live
            at = np.arange(height - wholes[n].size + 1)
            where[n] &= at >= _below(inners[stage], height)[at[::-1]]
        elif len(live) == 2 and pair is not None:
            n = pair[1]
            where[n] &= _sources(wholes[pair[0]], wholes[n], n, where[pair[0]], inners[stage], height)
        if not all(where[n].any() for n in live):
            return None
    return where


def _ranges(
    out: Whole, source: Whole, number: int, at: _Room, below: _Room, need: int, height: int
) -> list[tuple[_Room, _Room, bool]]:
    """By position of ``source``, tensor ``number``: where ``out``, which may overlap it, can start: first and last
    position, and whether the room above it has to be looked at too. ``need``: of the other windows, as if cut."""
    most, distance = height - out.size, out.over[number]
    ranges = [
        (  # ends below the source's end, the rest of the stage in front of and behind both
            np.maximum(np.maximum(below[height - at - source.size], at - out.size), 0),
            np.minimum(np.minimum(at - distance, at + source.size - out.size), most),
            False,
        ),
        (np.maximum(at + source.size - out.size + 1, 0), np.minimum(at - distance, most), True),
    ]
    if out.size + source.size + need <= height:
        ranges.append((np.zeros_like(at), np.minimum(at - out.size, most), False))
        ranges.append((at + source.size, np.full_like(at, most), False))
    return ranges


def _need(inner: Inner) -> int:
    return sum(inner.stage) + max((sum(g) for g in inner.segments), default=0)


def _overlapped(
    out: Whole, source: Whole, number: int, where: _Where, inner: Inner, height: int, *, loose: bool = True
) -> _Where:
    """Positions of ``out`` from those of ``source``. Not ``loose``: only those where they overlap."""
    below, at = _below(inner, height), np.flatnonzero(where)
    ends = np.arange(height - out.size + 1)
    fits = ends >= below[ends[::-1]]
    found = np.zeros(ends.size, dtype=np.bool_)
    for first, last, look in _ranges(out, source, number, at, below, _need(inner), height)[: 4 if loose else 2]:
        some = first <= last
        changes = np.zeros(ends.size + 1, dtype=np.int64)
        np.add.at(changes, first[some], 1)
        np.add.at(changes, last[some] + 1, -1)
        reached = np.cumsum(changes[:-1]) > 0
        found |= reached & fits if look else reached
    return found


def _sources(out: Whole, source: Whole, number: int, where: _Where, inner: Inner, height: int) -> _Where:
    """Positions of ``source`` from those of ``out``."""
    below, at = _below(inner, height), np.arange(height - source.size + 1)
    ends = np.arange(height - out.size + 1)
    found = np.zeros(at.size, dtype=np.bool_)
    for first, last, look in _ranges(out, source, number, at, below, _need(inner), height):
        allowed = where & (ends >= below[ends[::-1]]) if look else where
        before = np.concatenate(([0], np.cumsum(allowed)))
        some = first <= last
        found[some] |= before[last[some] + 1] > before[first[some]]
    return found


def _below(inner: Inner, height: int) -> _Room:
    """By room above the stage's tensors: the least room below them with which its other windows fit."""
    rooms = np.arange(height + 1)
    tiles = np.zeros(height + 1, dtype=np.int64)
    for group in inner.segments:
        sums = np.array(_ones(_sums(group)), dtype=np.int64)
        tiles = np.maximum(tiles, sums[np.searchsorted(sums, np.maximum(sum(group) - rooms, 0))])
    total = sum(inner.stage)
    sums_below = _ones(_sums(inner.stage))
    least = np.full(height + 1, height + 1, dtype=np.int64)
    if len(sums_below) > SUMS_PROVEN:
        return np.maximum(_need(inner) - rooms, 0)
    for size in sums_below:
        rest = total - size
        least[rest:] = np.minimum(least[rest:], size + tiles[: height + 1 - rest])
    return least


def _sums(sizes: Iterable[int]) -> int:
    bits = 1
    for size in sizes:
        bits |= bits << size
    return bits
