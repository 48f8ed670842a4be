# SPDX-License-Identifier: Apache-2.0
"""`make bench-planner`: what the planner finds, beside the peers' numbers, and how long it takes.

The three networks of the msf-CNN paper at every limit, real models, whole fronts, and synthetic networks of growing
length. Every plan is executed by the engine, here once more than in the planner and on another input: its arena is
the memory it was given between canaries, its MACs are those counted, its outputs those of the plan that fuses nothing.
One that differs ends the command. Times are this process's CPU seconds without executions. Results are printed and go
to ``build/bench``: ``planner.json``, ``planner-models.json``, ``planner-growth.svg``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner_service import planner
from planner_service.build import InputMode
from planner_service.engine import Engine, RunResult, generated_input
from planner_service.errors import Code, PlannerError
from planner_service.importers import import_model
from planner_service.ir import Graph
from planner_service.planner import Constraint, Options, PlanResult
from planner_service.report import explain
from planner_service.workloads import NAMES, Variant, synthetic, workload

PEERS = Path(__file__).with_name("peers.toml")
ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "bench"
#: Where real models lie: those of the repository, and those beside it that are too large for it.
MODELS = (ROOT / "samples" / "models", ROOT.parent / "shared" / "models")
F_MAX = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, None)
P_MAX = tuple(1000 * kilo for kilo in (8, 12, 16, 24, 32, 48, 64, 96, 128))
MODEL_F_MAX = (1.0, 1.1, 1.3, None)
#: Operators of the synthetic networks, and the limit of the query.
GROWTH, GROWTH_F_MAX = (25, 50, 100, 150, 200, 300, 400, 500), 1.3
#: CPU seconds that a query, a whole front, and the query of the longest synthetic network may take.
QUERY_SECONDS, FRONT_SECONDS, GROWTH_SECONDS = 0.5, 5.0, 30.0
#: Shares of msf-CNN's RAM that are aimed at where F is bounded, and where it is not.
SHARE_BOUNDED, SHARE_UNBOUNDED = 0.5, 0.75
#: Seed of the input that plans are executed on here; the planner's own check uses another one.
SEED = 54321


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """How RAM is counted: which variant of a network, how its input comes, whether its output counts."""

    variant: Variant
    input_mode: InputMode
    count_outputs: bool


ACCOUNTINGS: dict[str, Accounting] = {
    "paper": Accounting(variant="paper", input_mode="external", count_outputs=False),
    "full-streamed": Accounting(variant="full", input_mode="streamed", count_outputs=True),
    "full-resident": Accounting(variant="full", input_mode="resident", count_outputs=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One query. ``f_max`` and ``p_max`` None: unbounded. ``peak_ram_bytes``, ``overhead_factor`` and
    ``packing_gap_bytes`` are None where nothing fits; ``seconds`` are of search and encoding. ``above_bound_bytes``:
    what P1's RAM has beyond what is proven that no schedule can be below; None for P2."""

    network: str
    accounting: str
    f_max: float | None
    p_max: int | None
    feasible: bool
    peak_ram_bytes: int | None
    overhead_factor: float | None
    seconds: float
    measured: bool
    packing_gap_bytes: int | None
    above_bound_bytes: int | None


class Clock:
    """CPU seconds of this process, without those in which plans are executed."""

    def __init__(self) -> None:
        self._executing = 0.0

    @contextmanager
    def watching(self) -> Iterator[Callable[[], float]]:
        began, executing = time.process_time(), self._executing
        yield lambda: time.process_time() - began - (self._executing - executing)

    def executed(self, seconds: float) -> None:
        """Told by the planner."""
        self._executing += seconds


class Bench:
    """A graph under one accounting, and what its plans are compared with."""

    def __init__(self, graph: Graph, name: str, accounting: str) -> None:
        self.graph, self.name, self.accounting = graph, name, accounting
        how = ACCOUNTINGS[accounting]
        self.options = Options(input_mode=how.input_mode, count_outputs=how.count_outputs)
        self._outputs = self._execute(planner.layers(graph, self.options)).outputs

    def _execute(self, result: PlanResult) -> RunResult:
        """Once, in exactly the arena that was planned; PlannerError(INTERNAL) if anything differs from the plan."""
        opened = Engine().open(result.plan)
        inputs: list[NDArray[np.int8]] = []
        seed = SEED
        for io in opened.inputs:
            array, seed = generated_input(io.shape, seed)
            inputs.append(array)
        run = opened.run(inputs, arena_bytes=result.arena_bytes)
        if opened.arena_size != result.arena_bytes or run.counts.macs != result.macs:
            raise PlannerError(
                Code.INTERNAL,
                f"{self.name}, {self.accounting}: planned {result.arena_bytes} bytes and {result.macs} MACs, "
                f"the engine counts {opened.arena_size} and {run.counts.macs}",
            )
        return run

    def measure(self, result: PlanResult) -> None:
        """Execute a plan. PlannerError(INTERNAL) if arena, MACs or an output byte differ."""
        same = zip(self._execute(result).outputs, self._outputs, strict=True)
        if not all(np.array_equal(a, b) for a, b in same):
            raise PlannerError(Code.INTERNAL, f"{self.name}, {self.accounting}: fusing changes the outputs")

    def query(self, constraint: Constraint) -> Row:
        """One row of the table."""
        clock = Clock()
        result: PlanResult | None = None
        with clock.watching() as seconds:
            try:
                result = planner.plan(self.graph, constraint, self.options, executed=clock.executed)
            except PlannerError as error:
                if error.code is not Code.INFEASIBLE:
                    raise
            taken = seconds()
        if result is not None:
            self.measure(result)
        return Row(
            network=self.name,
            accounting=self.accounting,
            f_max=constraint.f_max,
            p_max=constraint.ram_max,
            feasible=result is not None,
            peak_ram_bytes=result.counted_bytes if result else None,
            overhead_factor=result.overhead_factor if result else None,
            seconds=round(taken, 4),
            measured=result is not None,
            packing_gap_bytes=result.arena_bytes - result.packing_bound if result else None,
            above_bound_bytes=result.arena_bytes - result.lower_bound if result and constraint.kind == "p1" else None,
        )

    def front(self) -> tuple[int, float]:
        """(plans on the whole front, CPU seconds); each plan is executed."""
        clock = Clock()
        with clock.watching() as seconds:
            found = planner.front(self.graph, self.options, executed=clock.executed)
            taken = seconds()
        for result in found:
            self.measure(result)
        return len(found), taken


@cache
def peers() -> dict[str, Any]:
    """What others need: see the file."""
    return tomllib.loads(PEERS.read_text())


def bar(network: str, accounting: str, f_max: float | None) -> float | None:
    """Bytes that a P1 plan is held to; None where nothing is asked."""
    entry = _entry(network, accounting, f_max)
    limits = [entry[key] for key in ("bar", "prototype") if key in entry]
    if "msf" in entry:
        limits.append(entry["msf"] * (SHARE_UNBOUNDED if f_max is None else SHARE_BOUNDED))
    return 1000 * min(limits) if limits else None


def _entry(network: str, accounting: str, f_max: float | None) -> dict[str, float]:
    wanted = math.inf if f_max is None else f_max
    rows = peers()["networks"].get(network, {}).get(accounting, ())
    return next((row for row in rows if row["f_max"] == wanted), {})


def misses(row: Row) -> list[str]:
    """What of a row is not as good as it should be."""
    found = []
    limit = None if row.p_max else bar(row.network, row.accounting, row.f_max)
    if limit is not None and row.peak_ram_bytes is not None and row.peak_ram_bytes > limit:
        found.append(f"over {limit / 1000:.3f} kB")
    if row.packing_gap_bytes:
        found.append("gap")
    if row.seconds >= QUERY_SECONDS:
        found.append(f"{QUERY_SECONDS:g} s or more")
    return found


def print_rows(rows: Sequence[Row]) -> None:
    """One network under one accounting; kB = 1000 B. "gap": between the plan's arena and what its windows need; "over":
    between it and what no schedule can be below."""
    name, accounting = rows[0].network, rows[0].accounting
    print(f"\n{name}, {accounting}")
    print(
        f"{'limit':>8} {'kB':>8} {'F':>7} {'gap B':>6} {'over B':>6} {'CPU s':>6} | {'msf kB (its F)':>14} "
        f"{'ours/msf':>8} {'prototype':>9} {'bar':>7}  misses"
    )
    for row in rows:
        limit = f"{row.p_max // 1000} kB" if row.p_max else "F any" if row.f_max is None else f"F<={row.f_max:g}"
        entry = {} if row.p_max else _entry(name, accounting, row.f_max)
        wanted = None if row.p_max else bar(name, accounting, row.f_max)
        if row.peak_ram_bytes is None:
            own = f"{'does not fit':>30}"
        else:
            own = f"{row.peak_ram_bytes / 1000:>8.3f} {row.overhead_factor:>7.4f} {row.packing_gap_bytes:>6} "
            own += f"{'' if row.above_bound_bytes is None else row.above_bound_bytes:>6}"
        msf = f"{entry['msf']:.1f} ({entry['msf_f']:.2f})" if "msf" in entry else ""
        ratio = f"{row.peak_ram_bytes / 1000 / entry['msf']:.2f}" if "msf" in entry and row.peak_ram_bytes else ""
        line = (
            f"{limit:>8} {own} {row.seconds:>6.2f} | {msf:>14} {ratio:>8} {entry.get('prototype', ''):>9} "
            f"{'' if wanted is None else f'{wanted / 1000:.2f}':>7}  {', '.join(misses(row))}"
        )
        print(line.rstrip(), flush=True)


def print_bounds(bench: Bench, rows: Sequence[Row]) -> None:
    """For each row that is over its bar, what no schedule can be below, and what is live at the peak of ours."""
    for row in rows:
        limit = None if row.p_max else bar(row.network, row.accounting, row.f_max)
        if limit is None or row.peak_ram_bytes is None or row.peak_ram_bytes <= limit:
            continue
        assert row.above_bound_bytes is not None
        least = planner.least_bytes(bench.graph, None, bench.options)
        found = explain(planner.plan(bench.graph, Constraint(kind="p1", f_max=row.f_max), bench.options).plan)
        live = [w for w in found.windows if w.first <= found.peak_time <= w.last]
        live.sort(key=lambda w: -w.size)
        print(
            f"  F<={row.f_max} is over its bar of {limit:.0f} B: of all schedules that were searched (docs/planner.md) "
            f"none packs into less than {row.peak_ram_bytes - row.above_bound_bytes} B at this F, or needs less than "
            f"{least} B at any. Live at the peak, in stage "
            f"{found.peak_stage}: " + ", ".join(f"{w.name} ({w.kind}) {w.size}" for w in live)
        )


def print_networks(networks: Sequence[str], accountings: Sequence[str]) -> list[Row]:
    """The table of the three networks, P1 first, and their fronts."""
    found: list[Row] = []
    fronts: list[tuple[str, str, int, float]] = []
    for name in networks:
        known = peers()["networks"][name]
        print(
            f"\n{name}: unfused {known['vanilla']} kB, MCUNetV2 {known['mcunetv2']}, "
            f"StreamNet-2D {known['streamnet']}; msf-CNN's planner takes {known['msf_seconds']} s per query"
        )
        for accounting in accountings:
            bench = Bench(workload(name, ACCOUNTINGS[accounting].variant), name, accounting)
            limits = [Constraint(kind="p1", f_max=f_max) for f_max in F_MAX]
            limits += [Constraint(kind="p2", ram_max=p_max) for p_max in P_MAX]
            rows = [bench.query(limit) for limit in limits]
            print_rows(rows)
            print_bounds(bench, rows)
            found += rows
            fronts.append((name, accounting, *bench.front()))
    print(f"\nwhole fronts, to take less than {FRONT_SECONDS:g} CPU seconds each")
    for name, accounting, plans, seconds in fronts:
        late = f"  {FRONT_SECONDS:g} s or more" if seconds >= FRONT_SECONDS else ""
        print(f"{name:>18} {accounting:>14} {plans:>4} plans {seconds:>7.2f} s{late}")
    return found


def models() -> tuple[list[Path], list[str]]:
    """(Real models that are there, names of those that the peers were measured on and that are not)."""
    found = sorted(path for folder in MODELS for path in folder.glob("*.*") if path.suffix in (".onnx", ".tflite"))
    there = {path.stem for path in found}
    return found, [name for name in peers()["models"] if name not in there]


def print_models() -> list[Row]:
    """The table of real models, input streamed and resident."""
    paths, absent = models()
    found: list[Row] = []
    print("\nreal models: peak RAM in bytes, everything counted")
    print(
        f"{'model':>24} {'input':>9}"
        + "".join(f" {'F any' if f is None else f'F<={f:g}':>9}" for f in MODEL_F_MAX)
        + f" | {'TFLM arena':>10} (activations + persistent)"
    )
    for path in paths:
        graph = import_model(path.read_bytes(), name=path.stem)
        known = peers()["models"].get(path.stem, {})
        for accounting in ("full-streamed", "full-resident"):
            bench = Bench(graph, path.stem, accounting)
            rows = [bench.query(Constraint(kind="p1", f_max=f_max)) for f_max in MODEL_F_MAX]
            found += rows
            tflm = known.get("tflm")
            beside = f" {sum(tflm):>10} ({tflm[0]} + {tflm[1]})" if tflm else ""
            if "tinyengine_layers" in known:
                memory, image = known["tinyengine_patch"]
                beside += f"; TinyEngine {known['tinyengine_layers']}, by patch {memory} + image {image}"
            figures = "".join(f" {row.peak_ram_bytes:>9}" for row in rows)
            print(f"{path.stem:>24} {accounting.removeprefix('full-'):>9}{figures} |{beside}".rstrip(), flush=True)
    for name in absent:
        print(f"{name:>24} skipped: not in ../shared/models")
    return found


def print_growth(sizes: Iterable[int]) -> list[tuple[int, float]]:
    """(Operators, CPU seconds) of a P1 query on synthetic networks."""
    print(f"\nsynthetic networks, F<={GROWTH_F_MAX:g}, input streamed; {GROWTH_SECONDS:g} s for the longest")
    print(f"{'operators':>10} {'CPU s':>8} {'ms/op':>7} {'kB':>8} {'gap B':>6}")
    points: list[tuple[int, float]] = []
    for size in sizes:
        bench = Bench(synthetic(size), f"synthetic-{size}", "full-streamed")
        row = bench.query(Constraint(kind="p1", f_max=GROWTH_F_MAX))
        assert row.peak_ram_bytes is not None
        late = f"  {GROWTH_SECONDS:g} s or more" if row.seconds >= GROWTH_SECONDS else ""
        print(
            f"{size:>10} {row.seconds:>8.2f} {1000 * row.seconds / size:>7.1f} {row.peak_ram_bytes / 1000:>8.3f} "
            f"{row.packing_gap_bytes:>6}{late}",
            flush=True,
        )
        points.append((size, row.seconds))
    return points


def growth_svg(points: Sequence[tuple[int, float]]) -> str:
    """Seconds over operators, both logarithmic."""
    width, height, margin = 640, 400, 60
    xs, ys = ([math.log10(max(p[k], 1e-3)) for p in points] for k in (0, 1))
    low_x, low_y = math.floor(min(xs)), math.floor(min(ys))
    high_x, high_y = max(math.ceil(max(xs)), low_x + 1), max(math.ceil(max(ys)), low_y + 1)

    def x_of(value: float) -> float:
        return round(margin + (value - low_x) / (high_x - low_x) * (width - 2 * margin), 1)

    def y_of(value: float) -> float:
        return round(height - margin - (value - low_y) / (high_y - low_y) * (height - 2 * margin), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="24" text-anchor="middle">CPU seconds of one query, by operators</text>',
    ]
    for k in range(low_x, high_x + 1):
        x = x_of(k)
        parts.append(f'<line x1="{x}" y1="{margin}" x2="{x}" y2="{height - margin}" stroke="#ccc"/>')
        parts.append(f'<text x="{x}" y="{height - margin + 18}" text-anchor="middle">{10**k:g}</text>')
    for k in range(low_y, high_y + 1):
        y = y_of(k)
        parts.append(f'<line x1="{margin}" y1="{y}" x2="{width - margin}" y2="{y}" stroke="#ccc"/>')
        parts.append(f'<text x="{margin - 6}" y="{y + 4}" text-anchor="end">{10.0**k:g}</text>')
    line = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    parts += [f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="#06c"/>' for x, y in zip(xs, ys, strict=True)]
    return "\n".join([*parts, "</svg>", ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"written: {path.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and write the files; 1 if an execution does not bear a plan out."""
    parser = argparse.ArgumentParser(description="What the planner finds beside the peers, and how long it takes.")
    parser.add_argument("--network", action="append", choices=NAMES, help="only this one; may be given again")
    parser.add_argument("--accounting", action="append", choices=ACCOUNTINGS, help="only this one; may be given again")
    parser.add_argument("--only", action="append", choices=("networks", "models", "growth"), help="only this part")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the files")
    chosen = parser.parse_args(arguments)
    parts = chosen.only or ("networks", "models", "growth")
    try:
        if "networks" in parts:
            rows = print_networks(chosen.network or NAMES, chosen.accounting or list(ACCOUNTINGS))
            _write(chosen.output / "planner.json", _json(rows))
        if "models" in parts:
            _write(chosen.output / "planner-models.json", _json(print_models()))
        if "growth" in parts:
            _write(chosen.output / "planner-growth.svg", growth_svg(print_growth(GROWTH)))
    except PlannerError as error:
        print(f"bench-planner: {error}", file=sys.stderr)
        return 1
    return 0


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
