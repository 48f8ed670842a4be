# SPDX-License-Identifier: Apache-2.0
"""What a schedule costs on a core: a linear model of instructions, fitted to counts on the emulated cores.

A kernel call costs so much per MAC, again for one pixel of each of its rows, per element produced (consumed by
reductions), per pixel, per element of the patches under the pixels, per row of a call, and per call; around the kernels
the engine takes so much per entry and step, per call, per entry and row step, per run of bytes it moves and per byte of
it, per row step and per stage. ``<core>.toml`` beside this module holds the figures of a core; ``python -m
planner_service.costs fit`` writes them anew and prints how far they are off on networks that they were not fitted to.
Predictions are instructions, not cycles."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from planner_service import replay, scratch
from planner_service.facts import Facts, Node
from planner_service.format import Policy
from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
)
from planner_service.schedule import Entry, Schedule, Segment, Stage

#: Searches add up integers: this many units are one instruction.
UNITS = 256
FOLDER = Path(__file__).resolve().parent
#: By ``Target.core``, the emulated core whose counts stand for it: itself, or one with the same kernels and nearly the
#: same instructions.
MEASURED: Mapping[str, str] = {
    "cortex-m3": "m3",
    "cortex-m4": "m4",
    "cortex-m33": "m4",
    "cortex-m7": "m7",
    "cortex-m55": "m55",
    "rv32imc": "rv32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an entry gives its kernel to do in all steps of its stage. ``gathered``: elements of the patches under the
    pixels; ``lines``: rows of calls, each row of each call counted; ``heads``: MACs of a pixel in each of these, taps
    outside included; ``calls``: those that are not empty; ``outputs``: of reductions, at each call."""

    macs: int = 0
    elements: int = 0
    pixels: int = 0
    gathered: int = 0
    lines: int = 0
    heads: int = 0
    calls: int = 0
    outputs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the engine does around the kernels of a stage. ``visits``: entries x row steps x column steps; ``calls``:
    those of kernels; ``checks``: entries x row steps; ``moves`` and ``moved``: runs of bytes copied within the arena,
    and their bytes."""

    visits: int = 0
    calls: int = 0
    checks: int = 0
    moves: int = 0
    moved: int = 0
    row_steps: int = 0
    stages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A core's figures, in instructions: by kernel for the fields of ``Work``, and for those of ``Around``."""

    core: str
    kernels: Mapping[str, Mapping[str, float]]
    around: Mapping[str, float]

    def kernel(self, name: str) -> Mapping[str, float]:
        """The figures of a kernel; of its slowest relative if none were measured for it."""
        if name in self.kernels:
            return self.kernels[name]
        opcode = name.split()[0]
        related = [self.kernels[n] for n in self.kernels if n.split()[0] == opcode] or list(self.kernels.values())
        return max(related, key=lambda figures: (figures["macs"], figures["elements"]))

    @property
    def unit_around(self) -> tuple[int, ...]:
        """The figures of ``Around`` in units, in its order."""
        visits, *others = (round(UNITS * self.around[f.name]) for f in fields(Around))
        return max(visits, 1), *others

    def unit_costs(self, facts: Facts, op: int) -> tuple[tuple[int, ...], int, int]:
        """What an operator's kernel without scratch costs in units: rows [0, y) for each y, each row of each call, and
        each call."""
        node, figures = facts.nodes[op], self.kernel(kernel_of(self.core, facts.graph.ops[op], 0))
        columns = node.size[1]
        row = figures["elements"] * node.row_elements + columns * (
            figures["pixels"] + figures["gathered"] * patch(facts.graph.ops[op])
        )
        macs = node.row_macs or (0,) * (node.size[0] + 1)
        rows = tuple(round(UNITS * (figures["macs"] * m + row * y)) for y, m in enumerate(macs))
        return (
            rows,
            round(UNITS * (figures["lines"] + figures["heads"] * dense(facts.graph.ops[op]))),
            round(UNITS * (figures["calls"] + figures["outputs"] * reduced(node))),
        )

    def predict(self, facts: Facts, schedule: Schedule) -> int:
        """Instructions of one inference."""
        return round(sum(self.predict_stage(facts, stage) for stage in schedule.stages))

    def predict_stage(self, facts: Facts, stage: Stage) -> float:
        """Instructions of one stage."""
        total = _dot(self.around, around(facts, stage))
        for segment in stage.segments:
            for entry in segment.entries:
                if entry.op >= 0:
                    name = kernel_of(self.core, facts.graph.ops[entry.op], stage.scratch)
                    total += _dot(self.kernel(name), work(facts, entry, segment))
        return total


def _dot(figures: Mapping[str, float], amounts: Work | Around) -> float:
    return sum(float(figures.get(f.name, 0.0)) * int(getattr(amounts, f.name)) for f in fields(amounts))


def measured_as(core: str | None) -> str | None:
    """The emulated core whose figures hold for a target's core; None if there are none."""
    measured = MEASURED.get(core or "")
    return measured if measured and (FOLDER / f"{measured}.toml").is_file() else None


@cache
def load(core: str) -> Model:
    """The figures of an emulated core, as they were fitted."""
    data = tomllib.loads((FOLDER / f"{core}.toml").read_text())
    return Model(core=core, kernels=data["kernels"], around=data["around"])


# ---------------------------------------------------------------- counting

_NAMES: Mapping[type[Op], str] = {
    FullyConnected: "FULLY_CONNECTED",
    Concat: "CONCAT",
    Pad: "PAD",
    Reduce: "REDUCE",
    Lut: "LUT",
    Softmax: "SOFTMAX",
    Reshape: "RESHAPE",
    Resize: "RESIZE",
}


def kernel_of(core: str, op: Op, scratch_bytes: int) -> str:
    """Which of the kernels with figures of their own runs an operator, given its stage's scratch."""
    if isinstance(op, Conv2D):
        square = f"{op.kernel[0]}x{op.kernel[1]}"
        lacks = scratch.wish(_FAMILY[core], op) > scratch_bytes
        if op.depthwise:
            kind = "DWCONV2D 3x3" if square == "3x3" else "DWCONV2D"
        else:
            kind = "CONV2D 1x1" if square == "1x1" and not any(op.pads) else "CONV2D"
        return kind + " without scratch" * lacks
    if isinstance(op, Binary):
        return op.kind.upper()
    if isinstance(op, Pool):
        return f"{op.kind.upper()}POOL"
    return _NAMES[type(op)]


_FAMILY = {MEASURED[target]: family for target, family in scratch.FAMILIES.items() if target in MEASURED}


def work(facts: Facts, entry: Entry, segment: Segment) -> Work:
    """What an entry's kernel does in all steps."""
    node, op = facts.nodes[entry.op], facts.graph.ops[entry.op]
    keep = entry.keep if entry.policy is Policy.TILE else 0
    macs, elements = replay.entry_cost(
        node, (entry.rows.advance, entry.rows.offset, entry.rows.extent, keep), segment.row_steps
    )
    rows = elements // node.row_elements
    steps = busy(entry.cols.advance, *_new_columns(entry), segment.col_steps, node.size[1])
    columns = segment.sweeps * steps
    calls = calls_of(node, entry, segment)
    return Work(
        macs=macs,
        elements=elements,
        pixels=rows * node.size[1],
        gathered=rows * node.size[1] * patch(op),
        lines=rows * columns,
        heads=rows * steps * dense(op),
        calls=calls,
        outputs=calls * reduced(node),
    )


def reduced(node: Node) -> int:
    """Outputs of a reduction, which every call adds to; 0 for other operators."""
    return node.shape[0] * node.shape[1] * node.shape[2] if node.reduces else 0


def patch(op: Op) -> int:
    """Elements under an output pixel that a kernel may gather."""
    return op.kernel[0] * op.kernel[1] * int(op.weights.shape[3]) if isinstance(op, Conv2D) else 0


def calls_of(node: Node, entry: Entry, segment: Segment) -> int:
    """Calls of an entry's kernel in all steps."""
    keep = entry.keep if entry.policy is Policy.TILE else 0
    lo, hi = entry.rows.offset + keep, entry.rows.offset + entry.rows.extent
    columns = busy(entry.cols.advance, *_new_columns(entry), segment.col_steps, node.size[1])
    return segment.sweeps * busy(entry.rows.advance, lo, hi, segment.row_steps, node.size[0]) * columns


def dense(op: Op) -> int:
    """MACs of an output pixel of a convolution none of whose taps is outside."""
    return int(op.weights.size) if isinstance(op, Conv2D) else 0


def _new_columns(entry: Entry) -> tuple[int, int]:
    end = entry.cols.offset + entry.cols.extent
    return end - entry.cols.advance, end


def busy(advance: int, lo: int, hi: int, steps: int, size: int) -> int:
    """How many of the steps at which [lo, hi) advances have any of it inside [0, size)."""
    first = max(-hi // advance + 1, 0)
    return max(min(steps, (size - 1 - lo) // advance + 1) - first, 0)


def around(facts: Facts, stage: Stage) -> Around:
    """What the engine does around the kernels of a stage."""
    visits = calls = checks = moves = moved = row_steps = 0
    for segment in stage.segments:
        row_steps += segment.row_steps
        for entry in segment.entries:
            visits += segment.row_steps * segment.sweeps * segment.col_steps
            checks += segment.row_steps
            if entry.op >= 0:
                calls += calls_of(facts.nodes[entry.op], entry, segment)
            if entry.policy is Policy.TILE:
                runs, nbytes = moving(facts.nodes[entry.op], entry, segment)
                moves, moved = moves + runs, moved + nbytes
    return Around(visits=visits, calls=calls, checks=checks, moves=moves, moved=moved, row_steps=row_steps, stages=1)


def moving(node: Node, entry: Entry, segment: Segment) -> tuple[int, int]:
    """Runs and bytes that a tile moves: what stays in it from column step to column step, and what its line store
    keeps."""
    advance, begin = entry.rows.advance, entry.rows.offset + entry.keep
    end = entry.rows.offset + entry.rows.extent
    axis = range(node.size[0] + 1)
    columns = busy(entry.cols.advance, *_new_columns(entry), segment.col_steps, node.size[1])
    pixel = node.shape[2]
    stays = entry.cols.extent - entry.cols.advance if columns > 1 else 0
    slides = replay.swept(axis, advance, begin, end, segment.row_steps) * (columns - 1) if stays else 0
    runs, nbytes = segment.sweeps * slides, slides * stays * pixel
    lo, hi = max(begin, advance + entry.rows.offset), min(end, advance + begin)
    if lo < hi:
        saved = replay.swept(axis, advance, lo, hi, segment.row_steps)
        runs, nbytes = runs + saved * columns, nbytes + saved * node.size[1] * pixel
    return runs, nbytes
