# SPDX-License-Identifier: Apache-2.0
"""Random valid schedules: what tests on hosts, emulators and boards run to show that every schedule of a model gives
the same bytes. Wide rather than good: any block cut, any window policy, any step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner_service.build import (
    MAX_SEGMENTS,
    IllegalSpecError,
    InputMode,
    SegmentSpec,
    StageSpec,
    build_schedule,
    build_stage,
    shape_segment,
    slices,
)
from planner_service.facts import Facts
from planner_service.ir import Graph
from planner_service.schedule import Schedule

_SINGLE = 0xFFFF


def random_schedule(graph: Graph, rng: random.Random, input_mode: InputMode, facts: Facts | None = None) -> Schedule:
    """A valid schedule: random stages and segments, line stores (none, some, all that is useful), row and column
    steps, outputs that overwrite dead rows.

    Same graph, same state of ``rng``: same schedule."""
    facts = facts or Facts(graph)
    order = _order(facts, rng, input_mode)
    fuse = rng.choice((0.3, 0.6, 0.85, 0.97))
    split = rng.choice((0.1, 0.4, 0.8))
    specs: list[StageSpec] = []
    at = 0
    while at < len(order):
        length = 1
        while at + length < len(order) and rng.random() < fuse:
            length += 1
        while True:
            spec = _stage(facts, rng, order[at : at + length], split)
            if spec is not None:
                break
            length -= 1  # a single operator, or the input alone, always makes a stage
        specs.append(spec)
        at += length
    return build_schedule(facts, specs, input_mode)


def random_schedules(graph: Graph, seed: int, count: int, input_mode: InputMode) -> list[Schedule]:
    """``count`` different schedules, or as many as were found in 20 tries for each."""
    rng = random.Random(seed)
    facts = Facts(graph)
    found: dict[str, Schedule] = {}
    for _ in range(20 * count):
        schedule = random_schedule(graph, rng, input_mode, facts)
        found.setdefault(repr(schedule), schedule)
        if len(found) == count:
            break
    return list(found.values())


def _order(facts: Facts, rng: random.Random, mode: InputMode) -> list[int]:
    """A random topological order of operators and streamed inputs; now and then the model's own."""
    done: set[int] = set()
    waiting = list(facts.nodes) if mode == "streamed" else [op for op in facts.nodes if op >= 0]
    if mode != "streamed":
        done.update(op for op in facts.nodes if op < 0)
    waiting.sort(key=lambda op: (op >= 0, op))
    own = rng.random() < 0.5
    order: list[int] = []
    while waiting:
        ready = [
            op
            for op in waiting
            if all(facts.producer[t] in done for t in (*facts.nodes[op].swept, *facts.nodes[op].whole))
        ]
        op = ready[0] if own else rng.choice(ready)
        order.append(op)
        done.add(op)
        waiting.remove(op)
    return order


def _stage(facts: Facts, rng: random.Random, ops: Sequence[int], split: float) -> StageSpec | None:
    """A stage of exactly these operators, or None if no try of a few is valid."""
    for _ in range(4):
        segments: list[SegmentSpec] = []
        for group in _groups(facts, rng, ops, split):
            spec = next(_shapes(facts, rng, group), None)
            if spec is None:
                break
            segments.append(spec)
        else:
            stage = StageSpec(segments=tuple(segments), overlap=not _fixed_output(facts, ops) and rng.random() < 0.5)
            try:
                build_stage(facts, stage)
            except IllegalSpecError:
                continue
            return stage
        if len(ops) == 1:
            continue
    if len(ops) == 1:
        return StageSpec(segments=(SegmentSpec(ops=tuple(ops), row_adv=_SINGLE, col_adv=_SINGLE),))
    return None


def _fixed_output(facts: Facts, ops: Sequence[int]) -> bool:
    """The stage's output may not overwrite what the stage reads last."""
    return facts.nodes[ops[-1]].reduces or facts.nodes[ops[-1]].streamed


def _groups(facts: Facts, rng: random.Random, ops: Sequence[int], split: float) -> list[list[int]]:
    """Runs of operators, cut at random and where the rules ask for it."""
    groups: list[list[int]] = [[]]
    for op in ops:
        previous = facts.nodes[groups[-1][-1]] if groups[-1] else None
        cut = previous is not None and (previous.streamed or previous.reduces or rng.random() < split)
        if (cut or facts.nodes[op].streamed) and groups[-1]:
            groups.append([])
        groups[-1].append(op)
    while len(groups) > MAX_SEGMENTS:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _shapes(facts: Facts, rng: random.Random, ops: Sequence[int]) -> Iterator[SegmentSpec]:
    """Valid specs of one segment, at random."""
    last = facts.nodes[ops[-1]]
    for _ in range(6):
        row_adv = _advance(rng, last.size[0])
        col_adv = _advance(rng, last.size[1])
        lags = (0, 0)
        if rng.random() < 0.15:  # beyond the least; the only freedom that layers of one pixel have
            lags = (rng.randrange(7), rng.randrange(7))
            row_adv, col_adv = min(row_adv, last.size[0]), min(col_adv, last.size[1])
        spec = SegmentSpec(ops=tuple(ops), row_adv=row_adv, col_adv=col_adv, row_lag=lags[0], col_lag=lags[1])
        try:
            shape_segment(facts, spec)
        except IllegalSpecError:
            continue
        yield _sliced(facts, rng, spec) if rng.random() < 0.3 else _keeps(facts, rng, spec)
    spec = SegmentSpec(ops=tuple(ops), row_adv=_SINGLE, col_adv=_SINGLE)
    try:
        shape_segment(facts, spec)
    except IllegalSpecError:
        return
    yield spec


def _sliced(facts: Facts, rng: random.Random, spec: SegmentSpec) -> SegmentSpec:
    """Made in slices of channels where that can be."""
    found = slices(facts, spec)
    if not found:
        return spec
    cut = replace(spec, slice=rng.choice(found))
    try:
        shape_segment(facts, cut)
    except IllegalSpecError:
        return spec
    return cut


def _advance(rng: random.Random, size: int) -> int:
    """Rows or columns per step: mostly a few, sometimes any, sometimes all."""
    kind = rng.random()
    if kind < 0.2 or size == 1:
        return _SINGLE
    if kind < 0.75:
        return rng.randint(1, min(4, size))
    return rng.randint(1, size)


def _keeps(facts: Facts, rng: random.Random, spec: SegmentSpec) -> SegmentSpec:
    """Line stores for some TILE tensors, from the last operator backwards, because what a tensor keeps shrinks what
    its own inputs must hold."""
    keep: dict[int, int] = {}
    appetite = rng.choice((0.0, 0.5, 1.0))
    for n in range(len(spec.ops) - 1, -1, -1):
        shape = shape_segment(facts, _with(spec, keep))
        if not shape.tile[n] or shape.row_steps == 1 or rng.random() >= appetite:
            continue
        node = facts.nodes[spec.ops[n]]
        advance, _, extent, _ = shape.rows[n]
        most = min(extent - advance, node.size[0])
        if most < 1:
            continue
        tried = {**keep, node.tensor: rng.choice((most, rng.randint(1, most)))}
        try:
            shape_segment(facts, _with(spec, tried))
        except IllegalSpecError:
            continue
        keep = tried
    return _with(spec, keep)


def _with(spec: SegmentSpec, keep: dict[int, int]) -> SegmentSpec:
    return replace(spec, keep=keep)
