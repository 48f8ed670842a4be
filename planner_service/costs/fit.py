# SPDX-License-Identifier: Apache-2.0
"""Measures kernels on the emulated cores and writes ``<core>.toml``: non-negative least squares of relative errors.

Measured are generated networks and those of the msf-CNN paper under several schedules; validated on other networks: the
samples, and the models in ``../shared/models`` beside the repository if they are there."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner_service import costs, planner, targets, workloads
from planner_service.api import CALL_OVERHEAD
from planner_service.costs import Around, Model, Work
from planner_service.facts import Facts
from planner_service.importers import import_model
from planner_service.ir import Graph
from planner_service.profile import emulator, images
from planner_service.schedule import Schedule

#: The board whose plans are measured on a core.
BOARDS = {"m3": "mps2-an385", "m4": "mps2-an386", "m7": "mps2-an500", "m55": "mps3-an547", "rv32": "hifive1b"}
#: Generated networks that are fitted to: ``workloads.probe``.
PROBES = (0, 1, 2, 3, 4, 6, 7, 9, 11, 12)
SAMPLES = emulator.ROOT / "samples" / "models"
SHARED = emulator.ROOT.parent / "shared" / "models"
#: F of the plans that are measured, besides layer by layer and the least RAM.
FACTORS = (1.0, 1.2)
SWEEPS = 4000
#: Objectives are compared with these multiples of the least RAM.
CAPS = (1.0, 1.25, 2.0, 4.0)
OBJECTIVES: tuple[planner.Objective, ...] = ("macs", "latency")
#: Instructions per unit that are none.
NOTHING = 1e-4
#: The largest median error on networks that were not fitted to.
MEDIAN_MAX = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A plan with its instructions on a core: whole, and by stage and by operator's kernel if they were measured."""

    network: str
    schedule_name: str
    facts: Facts
    schedule: Schedule
    instructions: int
    stages: tuple[int, ...]
    operators: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """How far a prediction is off: (predicted - measured) / measured."""

    network: str
    schedule_name: str
    value: float


def plans(graph: Graph, core: str) -> Iterator[tuple[str, planner.PlanResult]]:
    """Layer by layer, P1 at several F and at any, and with calls bounded; a plan that comes twice is left out."""
    board = targets.load(BOARDS[core])
    seen: set[bytes] = set()
    constraints = {f"F {f}": planner.Constraint(kind="p1", f_max=f) for f in FACTORS}
    constraints["least RAM"] = planner.Constraint(kind="p1")
    constraints["few calls"] = planner.Constraint(kind="p1", f_max=1.0, call_overhead=CALL_OVERHEAD)
    for name in ("layers", *constraints):
        if name == "layers":
            result = planner.layers(graph, planner.Options(input_mode="resident"), target=board)
        else:
            result = planner.plan(graph, constraints[name], target=board)
        if result.plan not in seen:
            seen.add(result.plan)
            yield name, result


def measure(graph: Graph, core: str, *, parts: bool) -> Iterator[Sample]:
    """Run a network's plans on a core; without ``parts``, only as a whole."""
    facts = Facts(graph)
    values = emulator.generated_input(sum(facts.bytes_of[io.tensor] for io in graph.inputs))
    elf = images.image(core)
    for name, result in plans(graph, core):
        (whole,) = emulator.run(core, result.plan, [values], elf=elf, stages=parts)
        (by_operator,) = emulator.run(core, result.plan, [values], elf=elf, ops=True) if parts else (whole,)
        yield Sample(
            network=graph.name,
            schedule_name=name,
            facts=facts,
            schedule=result.schedule,
            instructions=whole.instructions,
            stages=whole.stages,
            operators=by_operator.ops,
        )


def training() -> Iterator[Graph]:
    """Networks that are fitted to."""
    for number in PROBES:
        yield workloads.probe(number)
    yield from papers()


def papers() -> Iterator[Graph]:
    """The networks of the msf-CNN paper."""
    for name in workloads.NAMES:
        yield workloads.workload(name, "full")


def validation() -> Iterator[Graph]:
    """Networks that are not."""
    for path in (*sorted(SAMPLES.glob("*.onnx")), *sorted(SHARED.glob("*.tflite"))):
        yield import_model(path.read_bytes(), name=path.stem)


def fit(core: str, samples: Iterable[Sample]) -> Model:
    """The model of a core from measured plans."""
    kernels: dict[str, list[tuple[Work, int]]] = defaultdict(list)
    others: list[tuple[Work | Around, int, int]] = []
    for sample in samples:
        for s, stage in enumerate(sample.schedule.stages):
            inside = 0
            for segment in stage.segments:
                for entry in segment.entries:
                    if entry.op >= 0:
                        graph = sample.facts.graph
                        name = costs.kernel_of(core, graph.ops[entry.op], stage.scratch)
                        took = sample.operators[entry.op]
                        kernels[name].append((costs.work(sample.facts, entry, segment), took))
                        inside += took
            others.append((costs.around(sample.facts, stage), sample.stages[s] - inside, sample.stages[s]))
    found: dict[str, dict[str, float]] = {}
    for name, rows in sorted(kernels.items()):
        found[name] = _figures(Work, [(work, took, took) for work, took in rows])
    return Model(core=core, kernels=found, around=_figures(Around, others))


def _figures(kind: type[Work | Around], rows: Sequence[tuple[Work | Around, int, int]]) -> dict[str, float]:
    """From amounts, the instructions they took, and what errors are relative to."""
    names = [f.name for f in fields(kind)]
    amounts = np.array([[getattr(amount, n) for n in names] for amount, _, _ in rows], dtype=np.float64)
    weights = np.array([1 / whole for _, _, whole in rows])
    took = np.array([t for _, t, _ in rows])
    return dict(zip(names, least_squares(amounts * weights[:, None], took * weights), strict=True))


def least_squares(a: NDArray[np.float64], b: NDArray[np.float64]) -> list[float]:
    """Non-negative x with the least |a x - b|, by coordinate descent; rounded to four digits."""
    scale = np.linalg.norm(a, axis=0)
    used = scale > 0
    scaled = a[:, used] / scale[used]
    gram, target = scaled.T @ scaled, scaled.T @ b
    x = np.zeros(len(target))
    for _ in range(SWEEPS):
        for k in range(len(x)):
            x[k] = max(0.0, x[k] + float(target[k] - gram[k] @ x))
    result = np.zeros(a.shape[1])
    result[used] = x / scale[used]
    return [float(f"{value:.4g}") if value > NOTHING else 0.0 for value in result]


def errors(model: Model, samples: Iterable[Sample]) -> list[Error]:
    """Of whole plans."""
    return [
        Error(
            network=s.network,
            schedule_name=s.schedule_name,
            value=model.predict(s.facts, s.schedule) / s.instructions - 1,
        )
        for s in samples
    ]


def median(found: Sequence[Error]) -> float:
    """Of the errors' sizes."""
    return statistics.median(abs(e.value) for e in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """P2 with ``cap`` bytes, by fewest MACs and by least predicted latency: instructions measured."""

    network: str
    cap: int
    by_macs: int
    by_latency: int


def compare(graph: Graph, core: str) -> Iterator[Pair]:
    """Both objectives on a core, with RAM between the least and that of the unfused plan."""
    facts, board, elf = Facts(graph), targets.load(BOARDS[core]), images.image(core)
    values = emulator.generated_input(sum(facts.bytes_of[io.tensor] for io in graph.inputs))
    least = planner.plan(graph, planner.Constraint(kind="p1"), target=board).arena_bytes
    most = planner.layers(graph, target=board).arena_bytes
    for factor in CAPS:
        cap = int(factor * least)
        if cap >= most:
            continue
        counts = []
        for objective in OBJECTIVES:
            constraint = planner.Constraint(kind="p2", ram_max=cap, objective=objective)
            (result,) = emulator.run(core, planner.plan(graph, constraint, target=board).plan, [values], elf=elf)
            counts.append(result.instructions)
        yield Pair(network=graph.name, cap=cap, by_macs=counts[0], by_latency=counts[1])


def summary(what: str, found: Sequence[Error]) -> str:
    """Median and worst error as text."""
    worst = max(found, key=lambda e: abs(e.value))
    return (
        f"{what}: {len(found)} plans, median error {median(found):.1%}, "
        f"worst {worst.value:+.1%} ({worst.network}, {worst.schedule_name})"
    )


def write(model: Model, folder: Path = costs.FOLDER) -> Path:
    """As a file of the package."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Written by `python -m planner_service.costs fit`; do not edit. Instructions per unit: see __init__.py.",
        "",
        "[around]",
        *(f"{name} = {value!r}" for name, value in model.around.items()),
    ]
    for kernel, figures in model.kernels.items():
        lines += ["", f'[kernels."{kernel}"]', *(f"{name} = {value!r}" for name, value in figures.items())]
    path = folder / f"{model.core}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
