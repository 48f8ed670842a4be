# SPDX-License-Identifier: Apache-2.0
"""Arena offsets: which windows are live when (rule 6 of docs/design.md section 2), and where each lies.

Lifetimes are intervals on a time line of segments, so this is offline dynamic storage allocation: the most bytes live
at one time bound the arena from below. Orders that usually reach the bound are tried first; when none does, a
deterministic local search reorders the windows that stand under the peak."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner_service import replay
from planner_service.arrange import EFFORT, FAST_EFFORT, Inner, Whole, arrange, least_height
from planner_service.facts import Facts
from planner_service.format import Policy
from planner_service.schedule import Entry, Placement, Schedule, Segment, Stage

#: Bytes of a segment's counters in the arena (two u16).
COUNTER_BYTES = 4

Kind = Literal["tensor", "ring", "tile", "lines", "accumulators", "counters", "scratch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """``size`` bytes of the arena, live from time ``first`` to ``last`` (segments, numbered through all stages).

    ``owner`` is (stage, segment, entry), placed inputs under stage -1; counters and scratch are (stage, -1, -1).
    Tiles that pass from operator to operator of a segment lie in one window, the first one's: ``inside`` has each with
    its offset in it."""

    kind: Kind
    owner: tuple[int, int, int]
    size: int
    first: int
    last: int
    inside: tuple[tuple[tuple[int, int, int], int], ...] = ()


def window_bytes(facts: Facts, entry: Entry) -> int:
    """Bytes at ``Entry.offset``: tensor, ring or tile; 0 for external inputs."""
    h, w, c = facts.nodes[entry.op].shape
    if entry.policy is Policy.FULL:
        return h * w * c
    if entry.policy is Policy.ROWS:
        return entry.keep * w * c
    if entry.policy is Policy.TILE:
        return min(entry.rows.extent - entry.keep, h) * min(entry.cols.extent, w) * (entry.slice or c)
    return 0


def aux_bytes(facts: Facts, entry: Entry) -> int:
    """Bytes at ``Entry.aux``: the line store of a TILE or the int32 accumulators of a reduction; 0 if it has none."""
    node = facts.nodes[entry.op]
    if entry.policy is Policy.TILE:
        return min(entry.keep, node.shape[0]) * node.shape[1] * node.shape[2]
    if not entry.accumulate:
        return 0
    if node.reduce_h and node.reduce_w:
        return 4 * node.shape[2]
    if node.reduce_w:
        return 4 * min(entry.rows.advance, node.size[0]) * node.shape[2]
    return 4 * node.size[1] * node.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The tile of entry ``n`` of a segment, ``size`` bytes. ``until``: the last entry that reads it, if nothing of it
    is kept from one column step to the next; -1 if it is."""

    n: int
    size: int
    until: int


def tile_of(facts: Facts, ops: Sequence[int], n: int, size: int, passes: bool) -> Tile:
    """``ops``: the segment's; ``passes``: neither rows nor columns are kept."""
    users = facts.consumers[facts.nodes[ops[n]].tensor]
    return Tile(
        n=n,
        size=size,
        until=max((k for k, op in enumerate(ops) if k >= n and op in users), default=n) if passes else -1,
    )


def tile_bytes(facts: Facts, tiles: Sequence[Tile], align: int = 4) -> int:
    """Most bytes of a segment's tiles that are live at one time."""
    kept = sum(_up(t.size, align) for t in tiles if t.until < 0)
    passing = [t for t in tiles if t.until >= 0]
    return kept + max((sum(_up(t.size, align) for t in passing if t.n <= at.n <= t.until) for at in passing), default=0)


def _tiles(facts: Facts, segment: Segment) -> list[Tile]:
    ops = [entry.op for entry in segment.entries]
    return [
        tile_of(facts, ops, n, window_bytes(facts, e), e.keep == 0 and e.cols.extent == e.cols.advance)
        for n, e in enumerate(segment.entries)
        if e.policy is Policy.TILE
    ]


def _up(size: int, align: int) -> int:
    return -(-size // align) * align


def windows(facts: Facts, schedule: Schedule, align: int = 4) -> list[Window]:
    """Every window of the arena with its lifetime, in a fixed order."""
    starts: list[int] = []
    clock = 0
    for stage in schedule.stages:
        starts.append(clock)
        clock += len(stage.segments)
    ends = [start + len(stage.segments) - 1 for start, stage in zip(starts, schedule.stages, strict=True)]
    stage_of = {
        entry.op: s
        for s, stage in enumerate(schedule.stages)
        for segment in stage.segments
        for entry in segment.entries
    }

    def last_use(entry: Entry, made: int) -> int:
        tensor = facts.nodes[entry.op].tensor
        if facts.is_output[tensor]:
            return clock - 1
        return ends[max((stage_of[user] for user in facts.consumers[tensor]), default=made)]

    found: list[Window] = []

    def add(kind: Kind, owner: tuple[int, int, int], size: int, first: int, last: int) -> None:
        if size:
            found.append(Window(kind=kind, owner=owner, size=size, first=first, last=last))

    for n, entry in enumerate(schedule.placed):
        add("tensor", (-1, 0, n), window_bytes(facts, entry), 0, last_use(entry, 0))
    for s, stage in enumerate(schedule.stages):
        first, last = starts[s], ends[s]
        for g, segment in enumerate(stage.segments):
            tiles = _tiles(facts, segment)
            passing = [t for t in tiles if t.until >= 0]
            offsets, height = pack([(_up(t.size, align), t.n, t.until) for t in passing])
            if passing:
                inside = tuple(((s, g, t.n), at) for t, at in zip(passing, offsets, strict=True))
                owner = (s, g, passing[0].n)
                found.append(
                    Window(kind="tile", owner=owner, size=height, first=first + g, last=first + g, inside=inside)
                )
            for t in tiles:
                if t.until < 0:
                    add("tile", (s, g, t.n), t.size, first + g, first + g)
            for n, entry in enumerate(segment.entries):
                size, aux = window_bytes(facts, entry), aux_bytes(facts, entry)
                if entry.policy is Policy.FULL:
                    add("tensor", (s, g, n), size, first, last_use(entry, s))
                elif entry.policy is Policy.ROWS:
                    add("ring", (s, g, n), size, first, last)
                add("lines" if entry.policy is Policy.TILE else "accumulators", (s, g, n), aux, first, last)
        add("counters", (s, -1, -1), COUNTER_BYTES * len(stage.segments), first, last)
        add("scratch", (s, -1, -1), stage.scratch, first, last)
    return found


#: By (owner of the window below, owner of the one above): how many bytes lower the one below has to start, at least.
Overlaps = dict[tuple[tuple[int, int, int], tuple[int, int, int]], int]


def overlaps(facts: Facts, schedule: Schedule, found: Sequence[Window], align: int = 4) -> Overlaps:
    """Which windows may share bytes: a stage's output that is marked so, over tensors that the stage is the last to
    read."""
    ends: list[int] = []
    for stage in schedule.stages:
        ends.append((ends[-1] if ends else -1) + len(stage.segments))
    allowed: Overlaps = {}
    for s, stage in enumerate(schedule.stages):
        below = (s, len(stage.segments) - 1, len(stage.segments[-1].entries) - 1)
        known = facts.distances.get(id(stage))
        if known is None:
            known = facts.distances[id(stage)] = stage, replay.overlap_distances(facts, stage)
        distances = known[1]
        for w in found:
            if not distances or w.kind != "tensor" or w.last != ends[s] or w.owner[0] >= s:
                continue
            tensor = facts.nodes[_entry(schedule, w).op].tensor
            if tensor in distances and not facts.is_output[tensor]:
                allowed[below, w.owner] = _up(distances[tensor], align)
    return allowed


def shared_bytes(found: Sequence[Window], allowed: Overlaps, align: int = 4) -> dict[int, int]:
    """Bytes that overlapping saves, by time: one tensor per stage, the best."""
    sizes = {w.owner: _up(w.size, align) for w in found if w.kind == "tensor"}
    times = {w.owner: (w.first, w.last) for w in found if w.kind == "tensor"}
    saved: dict[int, int] = {}
    for (below, above), distance in allowed.items():
        saving = sizes[below] + sizes[above] - max(sizes[below], distance + sizes[above])
        for t in range(times[below][0], times[above][1] + 1):
            saved[t] = max(saved.get(t, 0), saving)
    return saved


def live_bytes(found: Iterable[Window], align: int = 4) -> list[int]:
    """Bytes live at each time, shared ones counted twice."""
    changes: dict[int, int] = {}
    for w in found:
        changes[w.first] = changes.get(w.first, 0) + _up(w.size, align)
        changes[w.last + 1] = changes.get(w.last + 1, 0) - _up(w.size, align)
    totals: list[int] = []
    live = 0
    for t in range(max(changes, default=0)):
        live += changes.get(t, 0)
        totals.append(live)
    return totals


def _bound(found: Sequence[Window], allowed: Overlaps, align: int) -> int:
    saved = shared_bytes(found, allowed, align)
    return max((live - saved.get(t, 0) for t, live in enumerate(live_bytes(found, align))), default=0)


# ---------------------------------------------------------------- packing

#: (size, first, last) of a block; equal lifetimes are merged into one block where that loses nothing.
Block = tuple[int, int, int]
#: By (block below, block above): how many bytes lower the one below has to start, at least, if they share bytes.
BlockOverlaps = dict[tuple[int, int], int]


def pack(
    blocks: Sequence[Block], effort: int = 400, allowed: BlockOverlaps | None = None, bound: int | None = None
) -> tuple[list[int], int]:
    """Offsets and height of an arena that holds ``blocks``; two overlap only if their lifetimes do not, or as
    ``allowed``. ``effort``: orders that the local search tries when the usual ones miss the ``bound`` (0: none)."""
    if not blocks:
        return [], 0
    load: dict[int, int] = {}
    for size, first, last in blocks:
        for t in range(first, last + 1):
            load[t] = load.get(t, 0) + size
    if bound is None:
        bound = max(load.values())
    indices = range(len(blocks))

    def span(i: int) -> int:
        return blocks[i][2] - blocks[i][1] + 1

    def crowd(i: int) -> int:
        return max(load[t] for t in range(blocks[i][1], blocks[i][2] + 1))

    orders = [
        sorted(indices, key=lambda i: (-blocks[i][0], blocks[i][1])),
        sorted(indices, key=lambda i: (-span(i), -blocks[i][0], blocks[i][1])),
        sorted(indices, key=lambda i: (-crowd(i), -blocks[i][0], blocks[i][1])),
        sorted(indices, key=lambda i: (-crowd(i), -span(i), -blocks[i][0], blocks[i][1])),
        sorted(indices, key=lambda i: (-blocks[i][0] * span(i), blocks[i][1])),
        sorted(indices, key=lambda i: (blocks[i][1], -blocks[i][2], -blocks[i][0])),
        sorted(indices, key=lambda i: (-blocks[i][2], blocks[i][1], -blocks[i][0])),
    ]
    clashes = _clashes(blocks, allowed or {})
    best: list[int] = []
    height = -1
    chosen = orders[0]
    for order in orders:
        for tight in (False, True):
            offsets = _fill(blocks, clashes, order, tight)
            top = max(o + b[0] for o, b in zip(offsets, blocks, strict=True))
            if height < 0 or top < height:
                best, height, chosen = offsets, top, order
            if height <= bound:
                return best, height
    return _search(blocks, clashes, chosen, best, height, bound, effort)


#: By block: the others it may not overlap, each with how far before and behind their starts it may not start.
Clashes = list[list[tuple[int, int, int]]]


def _clashes(blocks: Sequence[Block], allowed: BlockOverlaps) -> Clashes:
    clashes: Clashes = []
    for i, (size, first, last) in enumerate(blocks):
        own: list[tuple[int, int, int]] = []
        for j, (other, begin, end) in enumerate(blocks):
            if j != i and begin <= last and first <= end:
                before = min(size, allowed.get((i, j), size))
                behind = min(other, allowed.get((j, i), other))
                own.append((j, before, behind))
        clashes.append(own)
    return clashes


def _fill(blocks: Sequence[Block], clashes: Clashes, order: Sequence[int], tight: bool) -> list[int]:
    """Place in ``order``, each at the lowest gap that holds it (or, ``tight``, in the smallest)."""
    offsets = [-1] * len(blocks)
    for i in order:
        taken = sorted(
            (offsets[j] - before, offsets[j] + behind) for j, before, behind in clashes[i] if offsets[j] >= 0
        )
        at = 0
        place, room = -1, 0
        for low, high in taken:
            gap = low - at
            if gap >= 0 and (place < 0 or gap < room):
                place, room = at, gap
                if not tight:
                    break
            at = max(at, high)
        offsets[i] = place if place >= 0 else at
    return offsets


def _search(
    blocks: Sequence[Block],
    clashes: Clashes,
    order: Sequence[int],
    best: list[int],
    height: int,
    bound: int,
    effort: int,
) -> tuple[list[int], int]:
    """Hill climbing over placing orders: a block under the peak moves to an earlier turn. Seeded, so repeatable."""
    rng = random.Random(len(blocks))
    current, current_offsets, current_height = list(order), best, height
    for turn in range(effort):
        peak = [i for i in range(len(blocks)) if current_offsets[i] + blocks[i][0] == current_height]
        victim = rng.choice(peak)
        partners = [victim, *(j for j, _, _ in clashes[victim])]
        moved = rng.choice(partners)
        trial = list(current)
        trial.remove(moved)
        trial.insert(
            rng.randrange(trial.index(victim) + 1) if moved != victim else rng.randrange(len(trial) + 1), moved
        )
        if moved == victim:
            other = rng.choice(partners)
            a, b = trial.index(victim), trial.index(other)
            trial[a], trial[b] = trial[b], trial[a]
        offsets = _fill(blocks, clashes, trial, turn % 2 == 1)
        top = max(o + b[0] for o, b in zip(offsets, blocks, strict=True))
        if top <= current_height:
            current, current_offsets, current_height = trial, offsets, top
        if top < height:
            best, height = offsets, top
            if height <= bound:
                break
    return best, height


def place(
    facts: Facts, schedule: Schedule, align: int = 4, effort: int = 400, apart: frozenset[int] = frozenset()
) -> Placement:
    """Arena offsets, all multiples of ``align`` (a power of two, at least 4). ``lower_bound`` is the most bytes live at
    one time; where ``arena_bytes`` is larger, no better packing was found. Tensors in ``apart`` lie above everything
    else."""
    placement = _placement(facts, schedule, align, apart, lambda p: _place(p, align, effort, None))
    assert placement is not None
    return placement


def place_within(
    facts: Facts, schedule: Schedule, height: int, apart: frozenset[int] = frozenset(), *, tight: bool = False
) -> Placement | None:
    """As ``place``, in at most ``height`` bytes without those of ``apart``; None if no such packing was found.
    ``tight``: none that is above the bytes that are live is looked for."""

    def within(packing: _Packing) -> tuple[Placed, int] | None:
        if tight and packing.bound <= height:
            arranged = _arranged(packing, packing.bound, 4)
            return None if arranged is None else (arranged, packing.bound)
        return _place(packing, 4, 0, height)

    return _placement(facts, schedule, 4, apart, within)


def place_fast(
    facts: Facts,
    schedule: Schedule,
    height: int,
    apart: frozenset[int] = frozenset(),
    *,
    tight: bool,
    effort: int = FAST_EFFORT,
) -> Placement | None:
    """As ``place_within``, with a look only at ``height`` or, if it is to be ``tight``, at the bytes that are live."""

    def fast(packing: _Packing) -> tuple[Placed, int] | None:
        wanted = packing.bound if tight else height // 4 * 4
        arranged = _arranged(packing, wanted, 4, effort, thorough=False) if packing.bound <= height else None
        return None if arranged is None else (arranged, wanted)

    return _placement(facts, schedule, 4, apart, fast)


Placed = list[tuple[Window, int]]


@dataclass(frozen=True, slots=True)
class _Packing:
    """What is to be packed: windows, how they may overlap, and the most bytes live at one time."""

    schedule: Schedule
    found: list[Window]
    allowed: Overlaps
    bound: int


def _placement(
    facts: Facts,
    schedule: Schedule,
    align: int,
    apart: frozenset[int],
    pack_into: Callable[[_Packing], tuple[Placed, int] | None],
) -> Placement | None:
    every = windows(facts, schedule, align)
    above = [w for w in every if w.kind == "tensor" and facts.nodes[_entry(schedule, w).op].tensor in apart]
    found = [w for w in every if w not in above]
    allowed = overlaps(facts, schedule, found, align)
    bound = _bound(found, allowed, align)
    result = pack_into(_Packing(schedule, found, allowed, bound))
    if result is None:
        return None
    placed, height = result
    extra = 0
    for w in above:
        placed.append((w, height + extra))
        extra += _up(w.size, align)
    offset_of: dict[tuple[int, int, int], int] = {}
    aux_of: dict[tuple[int, int, int], int] = {}
    state = [0] * len(schedule.stages)
    scratch = [0] * len(schedule.stages)
    for w, at in placed:
        if w.kind == "counters":
            state[w.owner[0]] = at
        elif w.kind == "scratch":
            scratch[w.owner[0]] = at
        elif w.kind in ("lines", "accumulators"):
            aux_of[w.owner] = at
        else:
            offset_of[w.owner] = at
            offset_of.update({owner: at + behind for owner, behind in w.inside})
    return Placement(
        offset=offset_of,
        aux=aux_of,
        state=tuple(state),
        scratch=tuple(scratch),
        arena_bytes=height + extra,
        lower_bound=min(bound, height) + extra,
    )


def _place(packing: _Packing, align: int, effort: int, limit: int | None) -> tuple[Placed, int] | None:
    """Windows with their offsets, and the height: the bound if it can be had, otherwise as near to it as the search
    gets; None if that is over ``limit``."""
    found, allowed, bound = packing.found, packing.allowed, packing.bound
    if limit is not None and bound > limit:
        return None
    arranged = _arranged(packing, bound, align)
    if arranged is not None:
        return arranged, bound
    placed: Placed = []
    if limit is not None:
        arranged = _arranged(packing, limit // align * align, align) if limit // align * align > bound else None
        if arranged is None:
            return None
        placed, height = arranged, limit // align * align
    else:
        merged, members = _merge(found, allowed, align)
        offsets, height = pack(merged, effort // 4, _between(members, allowed), bound)
        for offset, group in zip(offsets, members, strict=True):
            at = offset
            for w in group:
                placed.append((w, at))
                at += _up(w.size, align)
    low = bound
    while height - low > align:
        middle = (low + height) // 2 // align * align
        arranged = _arranged(packing, middle, align)
        if arranged is None:
            low = middle
        else:
            placed, height = arranged, middle
    return placed, height


@dataclass(frozen=True, slots=True)
class _Parts:
    """Windows as ``arrange`` takes them: tensors, and by stage the others, sizes in units of the alignment."""

    tensors: list[Window]
    stages: list[list[Window]]
    tiles: list[list[list[Window]]]
    wholes: list[Whole]
    inners: list[Inner]


def _parts(schedule: Schedule, found: Sequence[Window], allowed: Overlaps, align: int) -> _Parts:
    stage_of = [s for s, stage in enumerate(schedule.stages) for _ in stage.segments]
    first = [stage_of.index(s) for s in range(len(schedule.stages))]
    number = {w.owner: n for n, w in enumerate(w for w in found if w.kind == "tensor")}
    tensors: list[Window] = []
    stages: list[list[Window]] = [[] for _ in schedule.stages]
    tiles: list[list[list[Window]]] = [[[] for _ in stage.segments] for stage in schedule.stages]
    for w in found:
        s = stage_of[w.first]
        if w.kind == "tensor":
            tensors.append(w)
        elif w.kind == "tile":
            tiles[s][w.first - first[s]].append(w)
        else:
            stages[s].append(w)

    def units(w: Window) -> int:
        return -(-w.size // align)

    over: list[dict[int, int]] = [{} for _ in tensors]
    for (below, above), distance in allowed.items():
        over[number[below]][number[above]] = distance // align
    return _Parts(
        tensors=tensors,
        stages=stages,
        tiles=tiles,
        wholes=[Whole(units(w), stage_of[w.first], stage_of[w.last], over[n]) for n, w in enumerate(tensors)],
        inners=[
            Inner(tuple(map(units, stage)), tuple(tuple(map(units, group)) for group in groups))
            for stage, groups in zip(stages, tiles, strict=True)
        ],
    )


def _arranged(
    packing: _Packing, height: int, align: int, effort: int = EFFORT, *, thorough: bool = True
) -> Placed | None:
    """Offsets of all windows within ``height`` bytes; None if none were found."""
    parts = _parts(packing.schedule, packing.found, packing.allowed, align)
    arrangement = arrange(parts.wholes, parts.inners, height // align, effort, thorough=thorough)
    if arrangement is None:
        return None
    placed = list(zip(parts.tensors, arrangement.wholes, strict=True))
    for stage, offsets, groups, group_offsets in zip(
        parts.stages, arrangement.stage, parts.tiles, arrangement.segments, strict=True
    ):
        placed += zip(stage, offsets, strict=True)
        for group, at in zip(groups, group_offsets, strict=True):
            placed += zip(group, at, strict=True)
    return [(w, at * align) for w, at in placed]


def proven(
    facts: Facts, schedule: Schedule, placement: Placement, apart: frozenset[int] = frozenset(), align: int = 4
) -> Placement:
    """``placement``, made with the same arguments, with the ``lower_bound`` that ``arrange.least_height`` proves."""
    every = windows(facts, schedule)
    above = [w for w in every if w.kind == "tensor" and facts.nodes[_entry(schedule, w).op].tensor in apart]
    found = [w for w in every if w not in above]
    extra = sum(_up(w.size, align) for w in above)
    parts = _parts(schedule, found, overlaps(facts, schedule, found, align), align)
    low, high = ((size - extra) // align for size in (placement.lower_bound, placement.arena_bytes))
    return replace(placement, lower_bound=least_height(parts.wholes, parts.inners, low, high) * align + extra)


def _entry(schedule: Schedule, window: Window) -> Entry:
    s, g, n = window.owner
    return schedule.placed[n] if s < 0 else schedule.stages[s].segments[g].entries[n]


def _merge(found: Sequence[Window], allowed: Overlaps, align: int) -> tuple[list[Block], list[list[Window]]]:
    alone = {owner for pair in allowed for owner in pair}
    groups: dict[tuple[int, int, tuple[int, int, int] | None], list[Window]] = {}
    for w in found:
        groups.setdefault((w.first, w.last, w.owner if w.kind == "tensor" and w.owner in alone else None), []).append(w)
    blocks = [(sum(_up(w.size, align) for w in group), key[0], key[1]) for key, group in groups.items()]
    return blocks, list(groups.values())


def _between(members: Sequence[Sequence[Window]], allowed: Overlaps) -> BlockOverlaps:
    """The allowed overlaps by block number; overlapping windows are blocks of their own."""
    block_of = {w.owner: b for b, group in enumerate(members) for w in group if w.kind == "tensor"}
    return {(block_of[below], block_of[above]): distance for (below, above), distance in allowed.items()}


def owners(schedule: Schedule, window: Window) -> tuple[Stage, Segment, Entry] | None:
    """The records behind a window; None for placed inputs, counters and scratch."""
    s, g, n = window.owner
    if s < 0 or g < 0:
        return None
    segment = schedule.stages[s].segments[g]
    return schedule.stages[s], segment, segment.entries[n]
