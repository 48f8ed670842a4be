# SPDX-License-Identifier: Apache-2.0
"""From block cuts to schedules: every region, window policy and step count that docs/design.md section 2 leaves to
arithmetic. The solver says which operators sweep together, how far a step goes and which rows are kept; the rest
follows here, with the least lag that the rules allow. What the rules forbid raises ``IllegalSpecError``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from planner_service import replay
from planner_service.errors import Code, PlannerError
from planner_service.facts import Facts, Node
from planner_service.format import Policy
from planner_service.ir import Graph
from planner_service.schedule import Axis, Entry, Region, Schedule, Segment, SegmentShape, Stage

#: How network inputs reach the engine: written into the arena, handed over row by row, or read through a const pointer.
InputMode = Literal["resident", "streamed", "external"]

#: Segments of one stage and inputs of one CONCAT that the engine's verifier has room for.
MAX_SEGMENTS = 64
MAX_INPUTS = 64

_U16 = 0xFFFF
_I16 = 0x7FFF


class IllegalSpecError(ValueError):
    """The rules of docs/design.md section 2 forbid this stage; the message says which and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpec:
    """Operators that sweep together, in topological order (-1 - n stands for streamed network input n).

    ``row_adv`` and ``col_adv``: rows and columns of the last operator's output (of its input for REDUCE and
    FULLY_CONNECTED) per step; one that reaches the size means a single step. ``keep``: rows of a TILE tensor in its
    line store, by tensor; absent means 0, at most min(extent - advance, H); nothing is computed twice where it is
    extent - advance. ``row_lag``, ``col_lag``: rows and columns that the last operator lags beyond the least, which
    saves nothing but is valid too (one step then becomes several). ``slice``: channels that one sweep along the columns
    makes (``slices`` says which can be), 0 for all."""

    ops: tuple[int, ...]
    row_adv: int
    col_adv: int
    keep: Mapping[int, int] = field(default_factory=dict)
    row_lag: int = 0
    col_lag: int = 0
    slice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """Segments of one sweep, the sink last. ``scratch``: bytes the target's kernels want. ``overlap``: the sink's
    output may overwrite the dead rows of what the stage is the last to read."""

    segments: tuple[SegmentSpec, ...]
    scratch: int = 0
    overlap: bool = False

    @property
    def ops(self) -> tuple[int, ...]:
        """Of all segments, in order; streamed inputs among them."""
        return tuple(op for segment in self.segments for op in segment.ops)


def slices(facts: Facts, spec: SegmentSpec) -> tuple[int, ...]:
    """Numbers of channels, fewest first, in which the segment's sweeps could make its tensors: a depthwise operator
    after others like it, or after the convolution that leads. Empty if it could not."""
    first, *rest = (facts.nodes[op] for op in spec.ops)
    if any(spec.keep.values()) or not ((first.leads and rest) or first.channelwise):
        return ()
    if not all(node.channelwise and node.shape[2] == first.shape[2] for node in rest):
        return ()
    channels = first.shape[2]
    return tuple(n for n in range(1, channels) if channels % n == 0)


def shape_segment(facts: Facts, spec: SegmentSpec) -> SegmentShape:
    """Regions and step counts of one segment; ``IllegalSpecError`` if the rules forbid it."""
    nodes = [facts.nodes[op] for op in spec.ops]
    if not nodes or min(spec.row_adv, spec.col_adv) < 1 or min(spec.row_lag, spec.col_lag) < 0:
        raise IllegalSpecError("a segment needs an operator, advances of at least 1 and no negative lag")
    if len(nodes) > 1 and any(node.streamed for node in nodes):
        raise IllegalSpecError("a streamed input is alone in its segment")
    place = {node.tensor: n for n, node in enumerate(nodes)}
    own = set(spec.ops)
    last = len(nodes) - 1
    inner: list[tuple[int, ...]] = []
    tile: list[bool] = []
    for n, node in enumerate(nodes):
        if node.reduces and n != last:
            raise IllegalSpecError(f"{node.name}: a reduction ends its segment")
        inner.append(tuple(place[t] for t in node.swept if t in place))
        if any(p >= n for p in inner[-1]):
            raise IllegalSpecError(f"{node.name}: stands before its input")
        if any(t in place for t in node.whole):
            raise IllegalSpecError(f"{node.name}: reads a whole tensor, which must be made in an earlier stage")
        users = facts.consumers[node.tensor]
        local = not node.streamed and not facts.is_output[node.tensor] and bool(users) and own.issuperset(users)
        tile.append(local)
    one_row = spec.row_adv >= nodes[last].size[0] and not spec.row_lag
    one_col = spec.col_adv >= nodes[last].size[1] and not spec.col_lag
    if nodes[last].streamed:
        one_col = True
    if not (one_row and one_col):
        for node in nodes:
            if node.single:
                raise IllegalSpecError(f"{node.name}: runs in a single step only")
    if one_row:
        if any(spec.keep.get(node.tensor) for node in nodes):
            raise IllegalSpecError("nothing can be kept between the rows of a single step")
        rows: list[Region] = [(node.size[0], 0, node.size[0], 0) for node in nodes]
        row_steps = 1
    else:
        rows = _sweep(nodes, inner, tile, spec.row_adv, 0, spec.keep, spec.row_lag)
        row_steps = _steps(nodes, tile, rows, 0)
    if one_col:
        cols: list[Region] = [(node.size[1], 0, node.size[1], 0) for node in nodes]
        col_steps = 1
    else:
        cols = _sweep(nodes, inner, tile, spec.col_adv, 1, {}, spec.col_lag)
        col_steps = _steps(nodes, tile, cols, 1)
    if spec.slice and (spec.slice not in slices(facts, spec) or not all(tile[:-1])):
        raise IllegalSpecError(f"{nodes[0].name}: its segment cannot be made {spec.slice} channels at a time")
    if row_steps > _U16 or col_steps > _U16:
        raise IllegalSpecError("more than 65535 steps")
    return SegmentShape(
        ops=spec.ops,
        tile=tuple(tile),
        rows=tuple(rows),
        cols=tuple(cols),
        row_steps=row_steps,
        col_steps=col_steps,
        slice=spec.slice,
        sweeps=nodes[0].shape[2] // spec.slice if spec.slice else 1,
    )


def _steps(nodes: Sequence[Node], tile: Sequence[bool], regions: Sequence[Region], axis: int) -> int:
    """Until the last rows of what outlives the segment; of columns, until the last of every tensor, so that each column
    is produced exactly once even if nothing reads it."""
    return max(
        -(-(node.size[axis] - offset - (extent - advance if local else 0)) // advance)
        for node, local, (advance, offset, extent, _) in zip(nodes, tile, regions, strict=True)
        if axis == 1 or not local
    )


def _sweep(
    nodes: Sequence[Node],
    inner: Sequence[tuple[int, ...]],
    tile: Sequence[bool],
    advance: int,
    axis: int,
    keep: Mapping[int, int],
    extra: int,
) -> list[Region]:
    """Regions along one axis of several steps, with the least lag of the last operator and ``extra``.

    A later start of the last operator shifts every region by lag * advance / last advance, so one pass finds the lag;
    the floors of a resize break that proportion, then it is raised one by one."""
    regions, lag = _propagate(nodes, inner, tile, advance, axis, keep, 0)
    if lag + extra == 0:
        return regions
    if all((node.cols if axis else node.rows).factor == 1 for node in nodes):
        return [(a, _fit(o - (lag + extra) * a // advance), e, k) for a, o, e, k in regions]
    least = 0
    while lag:
        least += 1
        regions, lag = _propagate(nodes, inner, tile, advance, axis, keep, least)
    return _propagate(nodes, inner, tile, advance, axis, keep, least + extra)[0] if extra else regions


def _fit(offset: int) -> int:
    if offset < -_I16 - 1:
        raise IllegalSpecError("an offset does not fit its field")
    return offset


def _propagate(
    nodes: Sequence[Node],
    inner: Sequence[tuple[int, ...]],
    tile: Sequence[bool],
    advance: int,
    axis: int,
    keep: Mapping[int, int],
    lag: int,
) -> tuple[list[Region], int]:
    """One backward pass: regions for this lag, and how much more lag they would need (0: they obey the rules)."""
    count = len(nodes)
    advances = [0] * count
    starts = [0] * count
    ends = [0] * count
    regions: list[Region] = [(0, 0, 0, 0)] * count
    missing = 0
    advances[-1] = advance
    starts[-1], ends[-1] = -lag, advance - lag
    for n in range(count - 1, -1, -1):
        node, adv, end = nodes[n], advances[n], ends[n]
        if adv == 0:
            raise IllegalSpecError(f"{node.name}: nothing in its segment reads it")
        kept = 0
        if not tile[n]:
            extent = produced = adv
            bound = adv
        elif axis:
            extent = max(end - starts[n], adv)
            kept = extent - adv
            produced = bound = adv
        else:
            extent = end - starts[n]
            kept = keep.get(node.tensor, 0)
            if kept and not 0 < kept <= extent - adv:
                raise IllegalSpecError(f"{node.name}: keeps {kept} rows of {extent} that advance by {adv}")
            produced = extent - kept
            bound = produced if kept else end
        if end > bound:
            missing = max(missing, -(-(end - bound) * advance // adv))
        if adv > _U16 or extent > _U16 or end - extent < -_I16 - 1:
            raise IllegalSpecError(f"{node.name}: its region does not fit its fields")
        regions[n] = (adv, end - extent, extent, kept)
        if not inner[n]:
            continue
        fld = node.cols if axis else node.rows
        if fld.factor == 1:
            step = adv * fld.stride
        elif adv % fld.factor:
            raise IllegalSpecError(f"{node.name}: a step of {adv} is no multiple of the resize factor {fld.factor}")
        else:
            step = adv // fld.factor
        lo, hi = fld.start(end - produced), fld.end(end)
        for p in inner[n]:
            if advances[p] == 0:
                advances[p], starts[p], ends[p] = step, lo, hi
            elif advances[p] != step:
                raise IllegalSpecError(f"{nodes[p].name}: its consumers advance at different rates")
            else:
                starts[p], ends[p] = min(starts[p], lo), max(ends[p], hi)
    return regions, missing


def build_stage(facts: Facts, spec: StageSpec, full: Collection[int] = ()) -> Stage:
    """Every entry of a stage. A tensor that only its own segment reads becomes TILE, one that only other segments of
    the stage read ROWS with the least capacity that the pull order allows, all others (and those in ``full``) FULL.
    ``IllegalSpecError`` if the rules forbid it."""
    return assemble_stage(facts, [shape_segment(facts, s) for s in spec.segments], spec.scratch, full, spec.overlap)


def assemble_stage(
    facts: Facts,
    shapes: Sequence[SegmentShape],
    scratch: int = 0,
    full: Collection[int] = (),
    overlap: bool = False,
) -> Stage:
    """As ``build_stage``, from segments that are already shaped."""
    if not 0 < len(shapes) <= MAX_SEGMENTS:
        raise IllegalSpecError(f"a stage has 1 to {MAX_SEGMENTS} segments")
    segment_of: dict[int, int] = {}
    for s, shape in enumerate(shapes):
        for op in shape.ops:
            if op in segment_of:
                raise IllegalSpecError(f"{facts.nodes[op].name}: stands in the stage twice")
            segment_of[op] = s
    sink = len(shapes) - 1
    read = [False] * len(shapes)
    policies: list[list[Policy]] = []
    for s, shape in enumerate(shapes):
        chosen: list[Policy] = []
        for n, op in enumerate(shape.ops):
            node = facts.nodes[op]
            if node.ends_stage and s != sink:
                raise IllegalSpecError(f"{node.name}: a reduction over rows ends its stage")
            for tensor in node.whole:
                if facts.producer[tensor] in segment_of:
                    raise IllegalSpecError(f"{node.name}: reads a whole tensor, which must be made in an earlier stage")
            for tensor in node.swept:
                source = facts.producer[tensor]
                if source is not None and source in segment_of:
                    if segment_of[source] > s:
                        raise IllegalSpecError(f"{node.name}: stands before its input")
                    if segment_of[source] < s:
                        read[segment_of[source]] = True
            users = facts.consumers[node.tensor]
            if shape.tile[n]:
                chosen.append(Policy.TILE)
            elif facts.is_output[node.tensor] or node.tensor in full or not users:
                chosen.append(Policy.FULL)
            else:
                chosen.append(Policy.ROWS if all(u in segment_of for u in users) else Policy.FULL)
        policies.append(chosen)
    for s in range(sink):
        if not read[s]:
            raise IllegalSpecError(f"no later segment of the stage reads segment {s}")
    final = facts.nodes[shapes[sink].ops[-1]]
    if overlap and (final.reduces or final.streamed):
        raise IllegalSpecError(f"{final.name}: a reduction's or an input's tensor overlaps nothing")
    rings = replay.capacities(facts, shapes, policies)
    segments: list[Segment] = []
    for s, shape in enumerate(shapes):
        entries: list[Entry] = []
        for n, op in enumerate(shape.ops):
            (ra, ro, re, kept), (ca, co, ce, _) = shape.rows[n], shape.cols[n]
            node = facts.nodes[op]
            entries.append(
                Entry(
                    op=op,
                    policy=policies[s][n],
                    rows=Axis(advance=ra, offset=ro, extent=re),
                    cols=Axis(advance=ca, offset=co, extent=ce),
                    keep=rings[s, n] if policies[s][n] is Policy.ROWS else kept,
                    accumulate=(node.reduce_h and shape.row_steps > 1) or (node.reduce_w and shape.col_steps > 1),
                    overlap=overlap and s == sink and op == shape.ops[-1],
                    slice=shape.slice,
                )
            )
        segments.append(
            Segment(entries=tuple(entries), row_steps=shape.row_steps, col_steps=shape.col_steps, sweeps=shape.sweeps)
        )
    return Stage(segments=tuple(segments), scratch=scratch)


def place_inputs(facts: Facts, mode: InputMode) -> tuple[Entry, ...]:
    """Entries of the network inputs that no segment streams. External inputs that are network outputs too have to be
    in the arena and become resident."""
    if mode == "streamed":
        return ()
    entries: list[Entry] = []
    for number, io in enumerate(facts.graph.inputs):
        h, w, _ = facts.graph.tensors[io.tensor].shape
        external = mode == "external" and not facts.is_output[io.tensor]
        entries.append(
            Entry(
                op=-1 - number,
                policy=Policy.EXTERNAL if external else Policy.FULL,
                rows=Axis(advance=h, offset=0, extent=h),
                cols=Axis(advance=w, offset=0, extent=w),
            )
        )
    return tuple(entries)


def build_schedule(
    facts: Facts, specs: Iterable[StageSpec], mode: InputMode, built: dict[int, Stage] | None = None
) -> Schedule:
    """All stages; ``built`` keeps them by the id of their spec, which has to live as long. ``IllegalSpecError`` if a
    stage breaks the rules, an operator is missing or doubled, stages stand in the wrong order, or network inputs are
    not streamed exactly where ``mode`` says so."""
    done: set[int] = set() if mode == "streamed" else {-1 - n for n in range(len(facts.graph.inputs))}
    stages: list[Stage] = []
    for spec in specs:
        stage = built.get(id(spec)) if built is not None else None
        if stage is None:
            stage = build_stage(facts, spec)
            if built is not None:
                built[id(spec)] = stage
        ops = {op for segment in spec.segments for op in segment.ops}
        if ops & done:
            raise IllegalSpecError("an operator or input stands in two stages")
        done |= ops
        for op in ops:
            node = facts.nodes[op]
            if any(facts.producer[t] not in done for t in node.swept + node.whole):
                raise IllegalSpecError(f"{node.name}: its stage stands before its input's")
        stages.append(stage)
    if len(done) != len(facts.nodes):
        raise IllegalSpecError("an operator or input stands in no stage")
    return Schedule(placed=place_inputs(facts, mode), stages=tuple(stages))


def layer_specs(facts: Facts, mode: InputMode) -> list[StageSpec]:
    """Layer by layer: a stage of one segment of one operator with one step each. A streamed input goes row by row into
    a ring of the stage that reads it, or into a stage of its own if several do, or one that needs it whole."""
    specs: list[StageSpec] = []
    joined: dict[int, list[int]] = {}
    if mode == "streamed":
        for number, io in enumerate(facts.graph.inputs):
            users = facts.consumers[io.tensor]
            if len(users) == 1 and not facts.is_output[io.tensor] and io.tensor in facts.nodes[users[0]].swept:
                joined.setdefault(users[0], []).append(-1 - number)
            else:
                specs.append(StageSpec(segments=(SegmentSpec(ops=(-1 - number,), row_adv=1, col_adv=_U16),)))
    for index in range(len(facts.graph.ops)):
        streamed = [SegmentSpec(ops=(op,), row_adv=1, col_adv=_U16) for op in joined.get(index, [])]
        specs.append(StageSpec(segments=(*streamed, SegmentSpec(ops=(index,), row_adv=_U16, col_adv=_U16))))
    return specs


def layer_by_layer(graph: Graph, mode: InputMode) -> Schedule:
    """The schedule that fuses nothing: the baseline of every comparison, valid for every graph."""
    facts = Facts(graph)
    try:
        return build_schedule(facts, layer_specs(facts, mode), mode)
    except IllegalSpecError as error:
        raise PlannerError(Code.INTERNAL, f"layer by layer is not a valid schedule: {error}") from error
