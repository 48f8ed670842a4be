# SPDX-License-Identifier: Apache-2.0
"""Instructions, RAM, stack and flash of the engine beside the peers' (``peers.toml``): `make bench-engine`.

Runs five models by five schedules on five emulated cores with the kernels that the cores ship with, on one generated
input, and checks each result against the host's. Fused schedules are the planner's, whose calls are bounded, and beside
them those of the fewest bytes at any call overhead. Writes build/bench/engine.json: one row per run of the planner's
schedules, and one per machine with the flash of the runtime with every operator; what it takes with the operators of
each model goes into engine-flash.json beside it."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baremetal import firmware, images, runner
from planner_service import api, report
from planner_service.engine import Engine, generated_input
from planner_service.errors import PlannerError
from planner_service.format import Opcode

MODELS = runner.ROOT.parent / "shared" / "models"
OUTPUT = runner.ROOT / "build" / "bench" / "engine.json"
PEERS = Path(__file__).resolve().parent / "peers.toml"

NAMES = ("mlperf-tiny-vww", "mlperf-tiny-ic-resnet8", "mlperf-tiny-kws", "mlperf-tiny-ad", "mcunet-vww")
#: The board that plans for a machine are made for.
TARGETS = {"m3": "mps2-an385", "m4": "mps2-an386", "m7": "mps2-an500", "m55": "mps3-an547", "rv32": "hifive1b"}
#: Layer by layer the input lies in the arena, as with the peers; else its rows are handed over.
REQUESTS: dict[str, dict[str, Any]] = {
    "layers": {"kind": "layers", "input_mode": "resident"},
    "f1.0": {"kind": "p1", "f_max": 1.0},
    "f1.1": {"kind": "p1", "f_max": 1.1},
    "f1.3": {"kind": "p1", "f_max": 1.3},
    "min": {"kind": "p1"},
}
FUSED = tuple(name for name in REQUESTS if name != "layers")
WITHOUT_FUSION = ("layers", "f1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run."""

    model: str
    machine: str
    schedule: str
    instructions: int
    macs_executed: int
    arena_bytes: int
    plan_bytes: int
    stack_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row with what the tables need beyond it. ``any_calls``: its schedule has the fewest bytes at any call
    overhead."""

    row: Row
    overhead_factor: float
    any_calls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model's file, of its largest plan and of that plan's weights and biases; opcodes."""

    model: int
    plan: int
    parameters: int
    opcodes: frozenset[str]


class WrongBytesError(Exception):
    """A core's outputs are not the host's."""


def measure(machine: str, model: str, schedule: str, planned: api.Planned) -> Row:
    """Run a plan once."""
    opened = Engine().open(planned.plan)
    state, arrays = 12345, []
    for tensor in opened.inputs:
        values, state = generated_input(tensor.shape, state)
        arrays.append(values)
    expected = tuple(zlib.crc32(output.tobytes()) for output in opened.run(arrays).outputs)
    image = images.image(machine)
    head, (result,) = runner.boot(machine, planned.plan, [np.concatenate([a.ravel() for a in arrays])], elf=image)
    if result.status != 0 or not result.intact or result.digests != expected:
        raise WrongBytesError(f"{model}, {schedule}, on {machine}: {result}, expected {expected}")
    return Row(
        model=model,
        machine=machine,
        schedule=schedule,
        instructions=result.instructions,
        macs_executed=head.macs,
        arena_bytes=result.arena,
        plan_bytes=len(planned.plan),
        stack_bytes=result.stack,
    )


def runs(machines: Sequence[str], models: Sequence[str], sizes: dict[str, Sizes]) -> Iterator[Measured]:
    """All runs; fills ``sizes``."""
    for model in models:
        data = (MODELS / f"{model}.tflite").read_bytes()
        for machine in machines:
            known: dict[bytes, Row] = {}
            for schedule, any_calls in [*((s, False) for s in REQUESTS), *((s, True) for s in FUSED)]:
                progress(f"{model}, {machine}, {schedule}")
                request = api.PlanRequest(target=TARGETS[machine], **REQUESTS[schedule])
                if any_calls:
                    request = replace(request, call_overhead=math.inf)
                (planned,) = api.create_plans(data, model, request)
                row = known.get(planned.plan) or measure(machine, model, schedule, planned)
                known[planned.plan] = row
                row = replace(row, schedule=schedule)
                yield Measured(row=row, overhead_factor=planned.overhead_factor, any_calls=any_calls)
                if model not in sizes or sizes[model].plan < len(planned.plan):
                    explained = api.explain_plan(planned.plan, None, "").to_json()
                    sizes[model] = Sizes(
                        model=len(data),
                        plan=len(planned.plan),
                        parameters=explained["weights_bytes"] + explained["biases_bytes"],
                        opcodes=frozenset(_opcodes(planned.plan)),
                    )
    progress("")


def progress(text: str) -> None:
    """What is being done, on one line of a terminal."""
    if sys.stderr.isatty():
        print("\r" + text.ljust(60) + "\r" * (not text), end="", file=sys.stderr, flush=True)


def _opcodes(plan: bytes) -> Iterator[str]:
    for operator in report.inspect(plan).to_json()["operators"]:
        yield Opcode[operator["opcode"]].name


# ---------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first one to the left."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def verdict(met: bool) -> str:
    """Of a bar."""
    return "met" if met else "MISSED"


def speed_table(measured: Sequence[Measured], peers: dict[str, Any]) -> str:
    """Millions of instructions per inference, ours by schedule."""
    of = {(m.row.model, m.row.machine, m.row.schedule): m.row for m in measured if not m.any_calls}
    bars, rows = peers["bars"], []
    for model in dict.fromkeys(m.row.model for m in measured):
        for machine in dict.fromkeys(m.row.machine for m in measured):
            ours = {name: of[model, machine, name].instructions / 1e6 for name in REQUESTS}
            best = min(ours[name] for name in WITHOUT_FUSION)
            theirs = [
                peers[p]["models"].get(model, {}).get("millions", {}).get(machine) for p in ("tflm", "tinyengine")
            ]
            limits = [share * theirs[0] for share in [bars["millions_share"].get(machine)] if share and theirs[0]]
            limits += [limit for limit in [bars["millions"].get(model, {}).get(machine)] if limit]
            rows.append(
                (
                    f"{model} {machine}",
                    *(f"{value:.2f}" if value else "-" for value in theirs),
                    *(f"{value:.3f}" for value in ours.values()),
                    f"{best / theirs[0]:.2f}" if theirs[0] else "-",
                    f"{min(limits):.2f} {verdict(best <= min(limits))}" if limits else "-",
                )
            )
    head = ("", *(peers[p]["title"] for p in ("tflm", "tinyengine")), *REQUESTS, "best/TFLM", "bar")
    return "Million instructions per inference\n" + table(head, rows)


def fusion_table(measured: Sequence[Measured], peers: dict[str, Any]) -> str:
    """What fused plans cost beyond their recomputation."""
    layers = {(m.row.model, m.row.machine): m.row.instructions for m in measured if m.row.schedule == "layers"}
    bar, rows = peers["bars"]["fusion"], []
    machines = list(dict.fromkeys(m.row.machine for m in measured))
    overheads: dict[tuple[str, bool], list[tuple[float, str]]] = {}
    for m in measured:
        if m.row.schedule != "layers":
            value = m.row.instructions / (m.overhead_factor * layers[m.row.model, m.row.machine])
            for machine in (m.row.machine, "all"):
                overheads.setdefault((machine, m.any_calls), []).append((value, f"{m.row.model} {m.row.schedule}"))
    for machine in (*machines, "all"):
        values, any_calls = overheads[machine, False], overheads[machine, True]
        median, (worst, where) = statistics.median(value for value, _ in values), max(values)
        met = median <= bar["median"] and worst <= bar["worst"]
        others = statistics.median(value for value, _ in any_calls), max(any_calls)[0]
        rows.append((machine, f"{median:.3f}", f"{worst:.3f}", where, verdict(met), *(f"{v:.3f}" for v in others)))
    head = ("", "median", "worst", "of", f"bar {bar['median']:.2f}, {bar['worst']:.2f}", "any calls: median", "worst")
    return "Instructions / (F x those of layer by layer)\n" + table(head, rows)


def memory_table(measured: Sequence[Measured], peers: dict[str, Any]) -> str:
    """Arena by schedule, with fewer bytes at any call overhead in brackets, and the largest stack."""
    rows = []
    bar = peers["bars"]["stack_bytes"]
    arena = {(m.row.model, m.row.machine, m.row.schedule, m.any_calls): m.row.arena_bytes for m in measured}
    for model, machine in dict.fromkeys((m.row.model, m.row.machine) for m in measured):
        theirs = peers["tflm"]["models"].get(model, {})
        cells = [str(arena[model, machine, "layers", False])]
        for name in FUSED:
            ours, least = (arena[model, machine, name, any_calls] for any_calls in (False, True))
            cells.append(f"{ours} ({least})" if least != ours else str(ours))
        stack = max(m.row.stack_bytes for m in measured if (m.row.model, m.row.machine) == (model, machine))
        rows.append(
            (
                f"{model} {machine}",
                str(theirs.get("arena_bytes", "-")),
                *cells,
                str(theirs.get("stack_bytes", "-")),
                f"{stack} {verdict(stack <= bar)}",
            )
        )
    head = ("", "TFLM arena", *REQUESTS, "TFLM stack", f"stack, bar {bar}")
    return "Bytes of RAM\n" + table(head, rows)


def flash_rows(machines: Sequence[str], sizes: dict[str, Sizes]) -> list[dict[str, Any]]:
    """Flash of the runtime: with ``model`` for the operators of that model, without for every operator."""
    rows: list[dict[str, Any]] = []
    for machine in machines:
        for model, size in sizes.items():
            row = {"machine": machine, "model": model, "flash_bytes": firmware.flash_bytes(machine, size.opcodes)}
            rows.append(row)
        rows.append({"machine": machine, "flash_bytes": firmware.flash_bytes(machine)})
    return rows


def flash_table(rows: Sequence[dict[str, Any]], peers: dict[str, Any]) -> str:
    """The bar is for m4."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    bars, lines = peers["bars"]["flash_bytes"], []
    for model in dict.fromkeys(row.get("model", "") for row in rows):
        of = {row["machine"]: row["flash_bytes"] for row in rows if row.get("model", "") == model}
        bar = bars["model"] if model else bars["all"]
        theirs = peers["tflm"]["models"].get(model, {}).get("flash_bytes", "-")
        met = verdict(of["m4"] <= bar) if "m4" in of else "-"
        lines.append((model or "every operator", str(theirs), *(str(of[m]) for m in machines), f"{bar} {met}"))
    return f"Bytes of flash, {images.OPTIMISATION}, fast kernels {images.FAST_OPTIMISATION}\n" + table(
        ("", "TFLM m4", *machines, "bar on m4"), lines
    )


def plan_table(sizes: dict[str, Sizes]) -> str:
    """Plan files against model files."""
    rows = [
        (model, str(s.model), str(s.plan), str(s.plan - s.parameters), verdict(s.plan <= s.model))
        for model, s in sizes.items()
    ]
    return "Bytes of files\n" + table(("", ".tflite", "plan", "beyond weights and biases", "no larger"), rows)


# ---------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, write the file. 0 whatever the bars; 1 if a result is wrong, 3 if something lacks."""
    parser = argparse.ArgumentParser(description="the engine beside its peers")
    parser.add_argument("--machines", nargs="+", choices=sorted(TARGETS), default=list(TARGETS))
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    lacking = sorted({package for machine in args.machines for package in firmware.missing(machine)})
    if lacking:
        print(f"install {', '.join(lacking)}", file=sys.stderr)
        return 3
    models = [model for model in args.models if (MODELS / f"{model}.tflite").is_file()]
    for model in args.models:
        if model not in models:
            print(f"shared/models/{model}.tflite is missing beside the repository: left out", file=sys.stderr)
    if not models:
        return 3
    with PEERS.open("rb") as file:
        peers = tomllib.load(file)
    sizes: dict[str, Sizes] = {}
    try:
        measured = list(runs(args.machines, models, sizes))
        flash = flash_rows(args.machines, sizes)
    except (WrongBytesError, runner.EmulationError, PlannerError) as error:
        print(error, file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    runtime = [row for row in flash if "model" not in row]
    args.output.write_text(
        json.dumps([*(asdict(m.row) for m in measured if not m.any_calls), *runtime], indent=1) + "\n"
    )
    by_model = args.output.with_name(args.output.stem + "-flash.json")
    by_model.write_text(json.dumps(flash, indent=1) + "\n")
    tables = [speed_table(measured, peers), fusion_table(measured, peers), memory_table(measured, peers)]
    print("\n\n".join([*tables, flash_table(flash, peers), plan_table(sizes)]))
    print(f"\nwritten: {args.output}, {by_model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
