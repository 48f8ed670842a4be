# SPDX-License-Identifier: Apache-2.0
"""The schedule of a graph: stages of segments of entries, as docs/design.md section 2 defines them. What the solver
returns, ``layout`` places and ``encode`` writes."""

from __future__ import annotations

from dataclasses import dataclass

from planner_service.format import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The affine region of one axis: step i spans [advance*i + offset, advance*i + offset + extent), clamped."""

    advance: int
    offset: int
    extent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One operator (``op`` >= 0, index into Graph.ops) or a network input (``op`` = -1 - its number), with the window
    of the tensor it produces. ``keep``: ROWS ring capacity in rows; TILE rows kept in the line store. ``accumulate``:
    the operator is REDUCE or FULLY_CONNECTED over more than one step and needs int32 accumulators. ``overlap``: a FULL
    window that may overwrite the dead rows of tensors its stage is the last to read. ``slice``: channels that one sweep
    along the columns makes, 0 for all; alike in a segment."""

    op: int
    policy: Policy
    rows: Axis
    cols: Axis
    keep: int = 0
    accumulate: bool = False
    overlap: bool = False
    slice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Operators that run together at every column step of a row step; ``sweeps`` along the columns, one for each slice
    of channels."""

    entries: tuple[Entry, ...]
    row_steps: int
    col_steps: int
    sweeps: int = 1


#: (advance, offset, extent, keep) of one axis of one entry; along columns keep is always extent - advance.
Region = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentShape:
    """A segment's geometry, which does not depend on the rest of its stage: cache it while searching. ``tile`` says
    which tensors live in this segment only; the others become ROWS or FULL."""

    ops: tuple[int, ...]
    tile: tuple[bool, ...]
    rows: tuple[Region, ...]
    cols: tuple[Region, ...]
    row_steps: int
    col_steps: int
    slice: int = 0
    sweeps: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Segments that run together in one sweep; the last one is the sink. ``scratch`` bytes are for the kernels."""

    segments: tuple[Segment, ...]
    scratch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``placed``: network inputs that are resident (FULL) or external; streamed ones are entries of a segment."""

    placed: tuple[Entry, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Arena offsets for a schedule. ``offset`` and ``aux`` by (stage, segment, entry), placed entries under stage -1
    (segment 0); ``state`` and ``scratch`` by stage."""

    offset: dict[tuple[int, int, int], int]
    aux: dict[tuple[int, int, int], int]
    state: tuple[int, ...]
    scratch: tuple[int, ...]
    arena_bytes: int
    lower_bound: int

    @property
    def gap_bytes(self) -> int:
        """What packing loses."""
        return self.arena_bytes - self.lower_bound
