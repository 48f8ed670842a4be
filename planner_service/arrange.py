# SPDX-License-Identifier: Apache-2.0
"""Arena offsets under a given height. Whole tensors outlive stages and may overlap; all other windows live within one
stage. So whole tensors are placed first, stage by stage with backtracking, and for each stage the others have to fit
into what is left: small bin packing problems, in which sums of sizes are bit sets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Positions tried, besides two for each tensor, before a height is given up.
EFFORT = 600
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


def arrange(wholes: Sequence[Whole], inners: Sequence[Inner], height: int, effort: int = EFFORT) -> Arrangement | None:
    """Offsets within ``height`` units; None if none were found. Deterministic."""
    return _Arranger(wholes, inners, height, effort).run()


class _Arranger:
    def __init__(self, wholes: Sequence[Whole], inners: Sequence[Inner], height: int, effort: int) -> None:
        self.wholes, self.inners, self.height, self.effort = wholes, inners, height, effort + 2 * len(wholes)
        self.born: list[list[int]] = [[] for _ in inners]
        for n, whole in enumerate(wholes):
            self.born[whole.first].append(n)
        self.live = [[n for n, w in enumerate(wholes) if w.first <= s <= w.last] for s in range(len(inners))]
        self.at = [-1] * len(wholes)
        self.need = [sum(i.stage) + max((sum(g) for g in i.segments), default=0) for i in inners]
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
                tried.append(iter(self._positions(stage, n)))
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

    def _positions(self, stage: int, n: int) -> list[int]:
        """Where tensor ``n`` may start, the most promising first: just low enough below what it overlaps, at the ends,
        next to others, and so that rooms are exactly as large as windows that could fill them."""
        whole, height = self.wholes[n], self.height
        others = [m for m in self.live[stage] if m != n and self.at[m] >= 0]
        top = height - whole.size
        tries: list[int] = []
        for m in others:
            over = whole.over.get(m)
            if over is not None:
                low = min(self.at[m] - over, top)
                tries += [low, *self._below(stage, low)]
                if stage + 1 < len(self.inners):
                    tries += [height - whole.size - s for s in self._above(stage + 1, height - whole.size - low)]
        tries += [top, 0]
        for m in others:
            tries += [self.at[m] + self.wholes[m].size, self.at[m] - whole.size]
        tries += self._below(stage, top)
        tries += [top - s for s in self._above(stage, 0)]
        if stage + 1 < len(self.inners):
            tries += self._below(stage + 1, top)
            tries += [top - s for s in self._above(stage + 1, 0)]
        valid = (at for at in dict.fromkeys(tries) if 0 <= at <= top)
        return [at for at in valid if all(self._apart(n, at, m) for m in others)]

    def _apart(self, n: int, at: int, m: int) -> bool:
        other, whole = self.at[m], self.wholes[n]
        if at + whole.size <= other or at >= other + self.wholes[m].size:
            return True
        over = whole.over.get(m)
        return over is not None and at + over <= other

    def _achievable(self, stage: int) -> list[int]:
        """Sums of some of the stage's windows, ascending; its tiles count as one."""
        known = self.sums.get(stage)
        if known is None:
            inner = self.inners[stage]
            bits = 1
            for size in (*inner.stage, max((sum(g) for g in inner.segments), default=0)):
                bits |= bits << size
            known = self.sums[stage] = _ones(bits)
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


def _ones(bits: int) -> list[int]:
    text = bin(bits)[:1:-1]
    return [n for n, bit in enumerate(text) if bit == "1"]


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
