# SPDX-License-Identifier: Apache-2.0
"""A plan explained to people: what runs when, what each window costs, who owns the peak and which layer binds.

Everything is read from the plan's bytes; a graph only gives better names. ``to_html`` makes one file that needs no
network: inline SVG, no scripts."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from planner_service import layout, replay
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts
from planner_service.format import Policy
from planner_service.inspect import Inspection, bad, inspect
from planner_service.ir import Graph
from planner_service.schedule import Entry, Segment

if TYPE_CHECKING:
    from planner_service.api import Planned

__all__ = [
    "LayerRow",
    "Report",
    "StageRow",
    "WindowRow",
    "ascii_map",
    "explain",
    "inspect",
    "short",
    "sweep_to_html",
    "to_html",
]

_PLAN_PARTS = ("weights", "biases", "requantisation", "tables", "constants")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One operator or streamed input. ``step_rows``, ``step_cols``: rows and columns that one step of its segment adds;
    ``kept_rows``: of the line store or ring. ``macs`` / ``base_macs`` is its recomputation factor."""

    stage: int
    segment: int
    name: str
    kind: str
    policy: str
    height: int
    width: int
    channels: int
    window_bytes: int
    aux_bytes: int
    step_rows: int
    step_cols: int
    kept_rows: int
    row_steps: int
    col_steps: int
    macs: int
    base_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One sweep. ``live_bytes``: most bytes live at one time during it, tensors of other stages included."""

    stage: int
    first: str
    last: str
    layers: int
    segments: int
    live_bytes: int
    row_steps: int
    calls: int
    macs: int
    base_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRow:
    """A block of the arena, live from time ``first`` to ``last`` (segments, numbered through all stages)."""

    name: str
    kind: str
    stage: int
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole explanation. ``peak_time``: when the most bytes are live (a segment's number), in ``peak_stage``;
    ``peak_layer`` owns the largest window then. ``lower_bound``: bytes live then; what ``arena_bytes`` has beyond it
    is lost to packing. ``external_bytes``: network inputs that are read in place and not in the arena.
    ``weights_bytes``... ``overhead_bytes`` add up to ``plan_bytes``."""

    model: str
    plan_version: int
    plan_bytes: int
    weights_bytes: int
    biases_bytes: int
    requantisation_bytes: int
    tables_bytes: int
    constants_bytes: int
    overhead_bytes: int
    arena_bytes: int
    lower_bound: int
    external_bytes: int
    macs: int
    base_macs: int
    elements: int
    row_steps: int
    calls: int
    peak_time: int
    peak_stage: int
    peak_layer: str
    stage_of_time: tuple[int, ...]
    live_by_time: tuple[int, ...]
    stages: tuple[StageRow, ...]
    layers: tuple[LayerRow, ...]
    windows: tuple[WindowRow, ...]

    @property
    def overhead_factor(self) -> float:
        return self.macs / self.base_macs if self.base_macs else 1.0

    @property
    def peak_windows(self) -> tuple[WindowRow, ...]:
        """What is live at the peak, largest first."""
        live = [w for w in self.windows if w.first <= self.peak_time <= w.last]
        return tuple(sorted(live, key=lambda w: (-w.size, w.offset)))

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``weft explain --json``."""
        return asdict(self) | {
            "overhead_factor": self.overhead_factor,
            "peak_windows": [asdict(w) for w in self.peak_windows],
        }

    def to_text(self) -> str:
        """Figures, the peak's owners, a memory map and the tables."""
        return "\n".join(
            [
                *_summary(self),
                "",
                f"At the peak (stage {self.peak_stage}) are live:",
                *_columns(
                    ("window", "kind", "bytes", "share"),
                    [
                        (short(w.name), w.kind, w.size, f"{w.size / max(self.arena_bytes, 1):.0%}")
                        for w in self.peak_windows
                    ],
                ),
                "",
                ascii_map(self),
                "",
                *_columns(_STAGE_HEAD, [_stage_cells(s) for s in self.stages]),
                "",
                *_columns(_LAYER_HEAD, [_layer_cells(r) for r in self.layers]),
            ]
        )


_STAGE_HEAD = ("stage", "from", "to", "layers", "segments", "live bytes", "row steps", "calls", "MACs", "x")
_LAYER_HEAD = ("stage", "seg", "layer", "kind", "window", "shape", "bytes", "aux", "step", "kept", "steps", "MACs", "x")


def short(name: str, width: int = 40) -> str:
    """A layer's name for tables: converters join the names of all that they fused, of which the first says most."""
    first = name.split(";")[0]
    return first if len(first) <= width else "…" + first[1 - width :]


def _stage_cells(s: StageRow) -> tuple[Any, ...]:
    factor = _factor(s.macs, s.base_macs)
    return (
        s.stage,
        short(s.first),
        short(s.last),
        s.layers,
        s.segments,
        s.live_bytes,
        s.row_steps,
        s.calls,
        s.macs,
        factor,
    )


def _layer_cells(r: LayerRow) -> tuple[Any, ...]:
    return (
        r.stage,
        r.segment,
        short(r.name),
        r.kind,
        r.policy,
        f"{r.height}x{r.width}x{r.channels}",
        r.window_bytes,
        r.aux_bytes,
        f"{r.step_rows}x{r.step_cols}",
        r.kept_rows,
        f"{r.row_steps}x{r.col_steps}",
        r.macs,
        _factor(r.macs, r.base_macs),
    )


def _factor(macs: int, base: int) -> str:
    return f"{macs / base:.2f}" if base else "-"


def _summary(r: Report) -> list[str]:
    lost = r.arena_bytes - r.lower_bound
    lines = [
        f"{r.model or 'plan'}: peak RAM {r.arena_bytes} bytes ({lost} lost to packing), "
        f"F = {r.overhead_factor:.3f} ({r.macs} of {r.base_macs} MACs), "
        f"{len(r.stages)} stages, {r.row_steps} row steps",
        f"plan {r.plan_bytes} bytes: weights {r.weights_bytes}, biases {r.biases_bytes}, requantisation "
        f"{r.requantisation_bytes}, tables {r.tables_bytes}, constants {r.constants_bytes}, "
        f"all else {r.overhead_bytes}",
        f"the peak is in stage {r.peak_stage}; its largest window is {short(r.peak_layer)}'s",
    ]
    if r.external_bytes:
        lines.append(f"{r.external_bytes} bytes of network input are read in place, outside the arena")
    return lines


def _columns(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [tuple(head), *(tuple(str(c) for c in row) for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    right = [bool(rows) and all(isinstance(row[n], int) for row in rows) for n in range(len(head))]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]


# ---------------------------------------------------------------- from the plan


def explain(plan: bytes, graph: Graph | None = None) -> Report:
    """Explain a plan. ``graph``: the model that it was made from, for its layer names.

    PlannerError: BAD_PLAN if the bytes are damaged, BAD_REQUEST if the graph is not the plan's."""
    found = inspect(plan)
    try:
        found.graph.check()
    except PlannerError as error:
        raise PlannerError(
            Code.BAD_PLAN, "the plan's graph is inconsistent", violations=error.violations, hint="the file is damaged"
        ) from error
    if graph is not None and [t.shape for t in graph.tensors] != [t.shape for t in found.graph.tensors]:
        raise PlannerError(
            Code.BAD_REQUEST, "the plan was made from another model", hint="give the model that it was made from"
        )
    _check_schedule(found)
    try:
        return _explain(found, graph)
    except (ArithmeticError, LookupError, ValueError) as error:  # records that contradict each other
        raise PlannerError(
            Code.BAD_PLAN, f"the plan's schedule is inconsistent: {error!r}", hint="the file is damaged"
        ) from error


def _each(found: Inspection, facts: Facts, block: layout.Window) -> list[layout.Window]:
    """The tiles that take turns in one block, or what else it is."""
    inside = [(owner, schedule_entry(found, owner)) for owner, _ in block.inside]
    return [
        replace(block, owner=owner, size=layout.window_bytes(facts, entry), inside=())
        for owner, entry in inside
        if entry is not None
    ] or [block]


def _explain(found: Inspection, graph: Graph | None) -> Report:
    facts = Facts(found.graph)
    names = _Names(found, graph)
    schedule, placement = found.schedule, found.placement
    blocks = layout.windows(facts, schedule)
    saved = layout.shared_bytes(blocks, layout.overlaps(facts, schedule, blocks))
    arena = found.header.arena_bytes
    live = [min(n - saved.get(t, 0), arena) for t, n in enumerate(layout.live_bytes(blocks))]
    peak_time = max(range(len(live)), key=lambda t: live[t])
    stage_of_time = tuple(s for s, stage in enumerate(schedule.stages) for _ in stage.segments)
    offsets = {"counters": placement.state, "scratch": placement.scratch}
    windows = tuple(
        WindowRow(
            name=names.window(schedule_entry(found, w.owner), w),
            kind=w.kind,
            stage=w.owner[0],
            offset=offsets[w.kind][w.owner[0]]
            if w.kind in offsets
            else (placement.aux if w.kind in ("lines", "accumulators") else placement.offset)[w.owner],
            size=w.size,
            first=w.first,
            last=w.last,
        )
        for block in blocks
        for w in _each(found, facts, block)
    )
    stages: list[StageRow] = []
    layers: list[LayerRow] = []
    clock = 0
    for s, stage in enumerate(schedule.stages):
        costs = replay.op_costs(facts, stage)
        cost = replay.stage_cost(facts, stage)
        ops = [e for segment in stage.segments for e in segment.entries]
        stages.append(
            StageRow(
                stage=s,
                first=names.entry(ops[0]),
                last=names.entry(ops[-1]),
                layers=len(ops),
                segments=len(stage.segments),
                live_bytes=max(live[clock : clock + len(stage.segments)]),
                row_steps=cost.row_steps,
                calls=cost.calls,
                macs=cost.macs,
                base_macs=sum(facts.op_macs[e.op] for e in ops if e.op >= 0),
            )
        )
        clock += len(stage.segments)
        for g, segment in enumerate(stage.segments):
            layers += [_layer(facts, found, names, (s, g), segment, e, costs[e.op][0]) for e in segment.entries]
    largest = max((w for w in windows if w.first <= peak_time <= w.last), key=lambda w: w.size)
    parts = {part: found.bytes_by_use.get(part, 0) for part in _PLAN_PARTS}
    return Report(
        model=graph.name if graph is not None else "",
        plan_version=found.header.plan_version,
        plan_bytes=found.header.total_len,
        weights_bytes=parts["weights"],
        biases_bytes=parts["biases"],
        requantisation_bytes=parts["requantisation"],
        tables_bytes=parts["tables"],
        constants_bytes=parts["constants"],
        overhead_bytes=found.header.total_len - sum(parts.values()),
        arena_bytes=arena,
        lower_bound=live[peak_time],
        external_bytes=sum(
            facts.bytes_of[facts.nodes[e.op].tensor] for e in schedule.placed if e.policy is Policy.EXTERNAL
        ),
        macs=found.header.macs,
        base_macs=found.header.base_macs,
        elements=found.header.elements,
        row_steps=found.header.row_steps,
        calls=found.header.calls,
        peak_time=peak_time,
        peak_stage=stage_of_time[peak_time],
        peak_layer=largest.name,
        stage_of_time=stage_of_time,
        live_by_time=tuple(live),
        stages=tuple(stages),
        layers=tuple(layers),
        windows=windows,
    )


def _check_schedule(found: Inspection) -> None:
    """What the tables below rely on and decoding does not show."""
    stages = found.schedule.stages
    if not stages or any(not stage.segments for stage in stages):
        raise bad("a stage has no segment", 0)
    if any(not segment.entries for stage in stages for segment in stage.segments):
        raise bad("a segment has no entry", 0)
    ops = [e.op for stage in stages for segment in stage.segments for e in segment.entries]
    ops += [e.op for e in found.schedule.placed]
    if sorted(ops) != list(range(-len(found.inputs), len(found.operators))):
        raise bad("an operator or input is scheduled twice or never", 0)
    if any(e.op >= 0 for e in found.schedule.placed):
        raise bad("an operator stands among the placed inputs", 0)


def schedule_entry(found: Inspection, owner: tuple[int, int, int]) -> Entry | None:
    """The entry behind a window; None for counters and scratch."""
    s, g, n = owner
    if s < 0:
        return found.schedule.placed[n]
    return found.schedule.stages[s].segments[g].entries[n] if g >= 0 else None


class _Names:
    def __init__(self, found: Inspection, graph: Graph | None) -> None:
        self.inputs = [io.name for io in (graph or found.graph).inputs]
        kinds = [o.opcode.name.lower() for o in found.operators]
        self.ops = [
            op.name if graph is not None or found.named else f"{kind} {n}"
            for n, (op, kind) in enumerate(zip((graph or found.graph).ops, kinds, strict=True))
        ]
        self.kinds = kinds

    def entry(self, e: Entry) -> str:
        return self.ops[e.op] if e.op >= 0 else self.inputs[-1 - e.op]

    def kind(self, e: Entry) -> str:
        return self.kinds[e.op] if e.op >= 0 else "input"

    def window(self, e: Entry | None, w: layout.Window) -> str:
        return f"stage {w.owner[0]}" if e is None else self.entry(e)


def _layer(
    facts: Facts, found: Inspection, names: _Names, at: tuple[int, int], segment: Segment, e: Entry, macs: int
) -> LayerRow:
    h, w, c = facts.nodes[e.op].shape
    size = facts.nodes[e.op].size
    return LayerRow(
        stage=at[0],
        segment=at[1],
        name=names.entry(e),
        kind=names.kind(e),
        policy=e.policy.name,
        height=h,
        width=w,
        channels=c,
        window_bytes=layout.window_bytes(facts, e),
        aux_bytes=layout.aux_bytes(facts, e),
        step_rows=min(e.rows.advance, size[0]),
        step_cols=min(e.cols.advance, size[1]),
        kept_rows=e.keep,
        row_steps=segment.row_steps,
        col_steps=segment.col_steps,
        macs=macs,
        base_macs=facts.op_macs[e.op] if e.op >= 0 else 0,
    )


# ---------------------------------------------------------------- terminals


def ascii_map(report: Report, width: int = 72, height: int = 16) -> str:
    """The arena over time: columns are segments (or groups of them), rows are bytes; letters name windows."""
    times = len(report.live_by_time)
    if not times or not report.arena_bytes:
        return "the arena is empty"
    columns = times * max(min(width // times, 8), 1) if times <= width else width
    symbols = _symbols(report.windows)
    grid = [[" "] * columns for _ in range(height)]
    for x in range(columns):
        first, last = x * times // columns, max(x * times // columns, (x + 1) * times // columns - 1)
        at = max(range(first, last + 1), key=lambda t: report.live_by_time[t])
        for w in report.windows:
            if w.first <= at <= w.last:
                low = w.offset * height // report.arena_bytes
                high = -(-(w.offset + w.size) * height // report.arena_bytes)
                for y in range(low, min(max(high, low + 1), height)):
                    if grid[y][x] == " " or w.size * height >= report.arena_bytes:
                        grid[y][x] = symbols[w]
    lines = [f"{report.arena_bytes * (y + 1) // height:>9} |" + "".join(grid[y]) for y in range(height - 1, -1, -1)]
    peak = report.peak_time * columns // times * times // columns
    marks = ("^" if x * times // columns == peak else "-" for x in range(columns))
    lines.append(" " * 11 + "".join(marks) + " peak")
    named = sorted({(symbols[w], w.name, w.kind) for w in report.peak_windows[:6]})
    lines += [f"{symbol:>9} = {short(name)} ({kind})" for symbol, name, kind in named]
    return "\n".join(lines)


def _symbols(windows: Iterable[WindowRow]) -> dict[WindowRow, str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return {w: letters[n % len(letters)] for n, w in enumerate(windows)}


# ---------------------------------------------------------------- HTML

_COLOURS = {
    "tensor": "#4878a8",
    "ring": "#5f9e6e",
    "tile": "#cc8963",
    "lines": "#c1b37f",
    "accumulators": "#8d7866",
    "counters": "#767f8b",
    "scratch": "#b55d60",
}
_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}
table{border-collapse:collapse;font-size:12px;font-variant-numeric:tabular-nums}
th,td{padding:.2em .6em;text-align:left;border-bottom:1px solid #ddd}td.n,th.n{text-align:right}
tr.peak td{background:#fdf0e6}svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#222}
.key span{display:inline-block;margin-right:1.2em}.key i{display:inline-block;width:.9em;height:.9em;margin-right:.4em}
.scroll{overflow-x:auto}
"""


def to_html(report: Report) -> str:
    """The report as one file: memory map over time, the peak's owners, stages, layers."""
    title = html.escape(report.model or "plan")
    peak = report.peak_windows
    key = "".join(f'<span><i style="background:{colour}"></i>{kind}</span>' for kind, colour in _COLOURS.items())
    stage_rows = _html_table(
        _STAGE_HEAD,
        [_stage_cells(s) for s in report.stages],
        {n for n, s in enumerate(report.stages) if s.stage == report.peak_stage},
    )
    layer_rows = _html_table(
        _LAYER_HEAD,
        [_layer_cells(r) for r in report.layers],
        {n for n, r in enumerate(report.layers) if r.stage == report.peak_stage},
    )
    owners = _html_table(
        ("window", "kind", "offset", "bytes", "share of the arena"),
        [(short(w.name), w.kind, w.offset, w.size, f"{w.size / max(report.arena_bytes, 1):.1%}") for w in peak],
    )
    body = [
        f"<h1>{title}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _summary(report)),
        "<h2>The arena over time</h2>",
        f'<p class="key">{key}</p>',
        _memory_svg(report),
        "<p>Columns are segments in the order of their stages; heights are bytes. Outlined: live at the peak.</p>",
        "<h2>Live at the peak</h2>",
        owners,
        "<h2>Stages</h2>",
        stage_rows,
        "<h2>Layers</h2>",
        layer_rows,
    ]
    return _page(title, body)


def sweep_to_html(plans: Sequence[Planned]) -> str:
    """Peak RAM against overhead factor. The first plan is the baseline (layer by layer), the others a front."""
    base = plans[0]
    rows = [
        (
            "layer by layer" if n == 0 else "fused",
            p.arena_bytes,
            f"{1 - p.arena_bytes / max(base.arena_bytes, 1):.0%}",
            f"{p.overhead_factor:.3f}",
            p.macs,
            len(p.plan),
            "yes" if p.fit.fits else "no",
        )
        for n, p in enumerate(plans)
    ]
    title = html.escape(f"{base.model_name} on {base.target}")
    head = ("schedule", "peak RAM", "saved", "F", "MACs", "plan bytes", "fits")
    body = [
        f"<h1>{title}</h1>",
        f"<p>Input {html.escape(base.input_mode)}. Peak RAM against overhead factor; hollow: layer by layer.</p>",
        _front_svg([(p.arena_bytes, p.overhead_factor) for p in plans]),
        _html_table(head, rows),
    ]
    return _page(title, body)


def _page(title: str, body: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[Any]], marked: Iterable[int] = ()) -> str:
    marks = set(marked)
    numeric = [bool(rows) and all(isinstance(row[n], int) for row in rows) for n in range(len(head))]

    def cells(tag: str, row: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=n' if num else ''}>{html.escape(str(c))}</{tag}>"
            for c, num in zip(row, numeric, strict=True)
        )

    lines = [f"<tr{' class=peak' if n in marks else ''}>{cells('td', row)}</tr>" for n, row in enumerate(rows)]
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def _memory_svg(report: Report) -> str:
    """Rectangles of the windows over time and bytes, with the names that fit."""
    width, height, left, top = 1000.0, 420.0, 70.0, 10.0
    times, arena = max(len(report.live_by_time), 1), max(report.arena_bytes, 1)
    dx, dy = (width - left) / times, (height - top) / arena
    parts = [f'<svg viewBox="0 0 {width:.0f} {height + 30:.0f}" role="img" aria-label="arena over time">']
    for w in sorted(report.windows, key=lambda w: -(w.last - w.first)):
        x, y = left + w.first * dx, top + (arena - w.offset - w.size) * dy
        across, tall = (w.last - w.first + 1) * dx, w.size * dy
        at_peak = w.first <= report.peak_time <= w.last
        tip = html.escape(f"{w.name} ({w.kind}): {w.size} bytes at {w.offset}")
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{across:.1f}" height="{tall:.2f}" fill="{_COLOURS[w.kind]}" '
            f'stroke="{"#000" if at_peak else "#fff"}" stroke-width="{1 if at_peak else 0.4}">'
            f"<title>{tip}</title></rect>"
        )
        room = int(across / 6.5)
        if tall >= 14 and room >= min(len(w.name), 6):
            shown = short(w.name, max(room, 2))
            parts.append(f'<text x="{x + 3:.1f}" y="{y + tall / 2 + 4:.1f}" fill="#fff">{html.escape(shown)}</text>')
    for n in range(5):
        y = top + (height - top) * n / 4
        label = arena * (4 - n) // 4
        parts.append(f'<text x="{left - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<line x1="{left:.0f}" x2="{width:.0f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#0003"/>')
    shown_stages = {s.stage for s in report.stages[:: max(len(report.stages) // 24, 1)]}
    for t, stage in enumerate(report.stage_of_time):
        if stage in shown_stages and (t == 0 or report.stage_of_time[t - 1] != stage):
            parts.append(f'<text x="{left + t * dx:.1f}" y="{height + 16:.0f}">{stage}</text>')
    parts.append(f'<text x="{left - 6:.0f}" y="{height + 16:.0f}" text-anchor="end">stage</text></svg>')
    return "".join(parts)


def _front_svg(points: Sequence[tuple[int, float]]) -> str:
    width, height, left, bottom = 900.0, 380.0, 80.0, 40.0
    most_ram = max(ram for ram, _ in points) * 1.05 or 1.0
    factors = [f for _, f in points]
    low, high = min(factors), max(factors)
    span = (high - low) or 0.1

    def place(ram: int, factor: float) -> tuple[float, float]:
        x = left + (factor - low) / span * (width - left - 30)
        return x, (height - bottom) * (1 - ram / most_ram) + 10

    parts = [f'<svg viewBox="0 0 {width:.0f} {height + 10:.0f}" role="img" aria-label="peak RAM against F">']
    for n in range(5):
        ram, factor = most_ram * n / 4, low + span * n / 4
        x, y = place(round(ram), factor)
        parts.append(f'<line x1="{left:.0f}" x2="{width:.0f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#0002"/>')
        parts.append(f'<text x="{left - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{ram:.0f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 28:.1f}" text-anchor="middle">{factor:.2f}</text>')
    front = [place(*p) for p in sorted(points[1:], key=lambda p: p[1])]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#4878a8" stroke-width="1.5"/>')
    for n, point in enumerate(points):
        x, y = place(*point)
        fill = "#fff" if n == 0 else "#4878a8"
        tip = f"{point[0]} bytes, F = {point[1]:.3f}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="#4878a8" stroke-width="2">'
            f"<title>{tip}</title></circle>"
        )
    parts.append(f'<text x="{left:.0f}" y="{height + 8:.0f}">overhead factor F; vertical: peak RAM, bytes</text></svg>')
    return "".join(parts)
