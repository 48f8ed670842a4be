# SPDX-License-Identifier: Apache-2.0
"""Plan bytes back into what they say: every section, stage, segment, window and operator, and where each byte goes.

Bounds are checked, meaning is not (the engine's verifier does). Damage is PlannerError(BAD_PLAN) with the offset."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import IntFlag
from typing import Any, TypeVar

import numpy as np

from planner_service import format as fmt
from planner_service.encode import of_quads
from planner_service.errors import Code, PlannerError
from planner_service.format import (
    NONE,
    ConstRecord,
    DType,
    EntryRecord,
    GraphRecord,
    HeaderRecord,
    IoRecord,
    Opcode,
    OpFlag,
    OpRecord,
    Policy,
    ScheduleRecord,
    SectionId,
    SectionRecord,
    SegmentRecord,
    SelftestRecord,
    SignatureRecord,
    StageRecord,
    TensorFlag,
    TensorRecord,
)
from planner_service.ir import (
    Binary,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Io,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
    Tensor,
)
from planner_service.schedule import Axis, Entry, Placement, Schedule, Segment, Stage

NO_PARAMS = 0xFFFFFFFF
_BINARY = (Opcode.ADD, Opcode.SUB, Opcode.MUL)

_R = TypeVar(
    "_R",
    HeaderRecord,
    SectionRecord,
    SignatureRecord,
    GraphRecord,
    TensorRecord,
    OpRecord,
    ConstRecord,
    IoRecord,
    ScheduleRecord,
    StageRecord,
    SegmentRecord,
    EntryRecord,
    SelftestRecord,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionInfo:
    """A row of the section table. ``intact``: the bytes have the SHA-256 that the table says."""

    name: str
    type: int
    critical: bool
    offset: int
    length: int
    sha256: str
    intact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorInfo:
    """An operator. ``parts``: bytes of its parameter block by purpose; ``offset`` of the block in the plan, -1 if none.
    ``shared``: an earlier operator has the same block, so these bytes are counted there."""

    index: int
    name: str
    opcode: Opcode
    flags: OpFlag
    inputs: tuple[int, ...]
    record: OpRecord
    offset: int
    parts: dict[str, int]
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A decoded plan. ``bytes_by_use`` adds up to the plan's length. ``graph`` has everything but the scales of inner
    tensors, which plans do not hold (they are 1); ``schedule`` and ``placement`` are as they were encoded."""

    header: HeaderRecord
    sections: tuple[SectionInfo, ...]
    signature: SignatureRecord
    tensors: tuple[TensorRecord, ...]
    operators: tuple[OperatorInfo, ...]
    constants: tuple[ConstRecord, ...]
    inputs: tuple[IoRecord, ...]
    outputs: tuple[IoRecord, ...]
    entry_of_tensor: tuple[int, ...]
    graph: Graph
    schedule: Schedule
    placement: Placement
    selftest: SelftestRecord | None
    stage_crcs: tuple[int, ...]
    output_crcs: tuple[int, ...]
    named: bool
    bytes_by_use: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``weft inspect --json``."""
        return {
            "header": _plain(asdict(self.header)),
            "overhead_factor": self.header.macs / self.header.base_macs if self.header.base_macs else 1.0,
            "sections": [asdict(s) for s in self.sections],
            "signature": _plain(asdict(self.signature)),
            "bytes_by_use": self.bytes_by_use,
            "tensors": [
                {"tensor": i, "shape": [t.h, t.w, t.c], "zero_point": t.zero_point, "constant": bool(t.flags & 1)}
                for i, t in enumerate(self.tensors)
            ],
            "operators": [
                {
                    "index": o.index,
                    "name": o.name,
                    "opcode": o.opcode.name,
                    "flags": _flags(o.flags),
                    "inputs": list(o.inputs),
                    "output": o.record.output,
                    "kernel": [o.record.kernel_h, o.record.kernel_w],
                    "stride": [o.record.stride_h, o.record.stride_w],
                    "dilation": [o.record.dilation_h, o.record.dilation_w],
                    "pads": [o.record.pad_top, o.record.pad_left],
                    "act": [o.record.act_min, o.record.act_max],
                    "groups": o.record.groups,
                    "params": {"offset": o.offset, "shared": o.shared, **o.parts},
                }
                for o in self.operators
            ],
            "constants": [asdict(c) for c in self.constants],
            "inputs": [_plain(asdict(r)) for r in self.inputs],
            "outputs": [_plain(asdict(r)) for r in self.outputs],
            "placed": [self._entry_json(e, (-1, 0, n)) for n, e in enumerate(self.schedule.placed)],
            "stages": [
                {
                    "state": self.placement.state[s],
                    "scratch": {"offset": self.placement.scratch[s], "bytes": stage.scratch},
                    "segments": [
                        {
                            "row_steps": segment.row_steps,
                            "sweeps": segment.sweeps,
                            "col_steps": segment.col_steps,
                            "entries": [self._entry_json(e, (s, g, n)) for n, e in enumerate(segment.entries)],
                        }
                        for g, segment in enumerate(stage.segments)
                    ],
                }
                for s, stage in enumerate(self.schedule.stages)
            ],
            "selftest": None
            if self.selftest is None
            else {"seed": self.selftest.seed, "stages": list(self.stage_crcs), "outputs": list(self.output_crcs)},
        }

    def _entry_json(self, e: Entry, key: tuple[int, int, int]) -> dict[str, Any]:
        return {
            "op": e.op if e.op >= 0 else None,
            "input": None if e.op >= 0 else -1 - e.op,
            "name": self.entry_name(e),
            "policy": e.policy.name,
            "rows": asdict(e.rows),
            "cols": asdict(e.cols),
            "keep": e.keep,
            "slice": e.slice,
            "overlap": e.overlap,
            "offset": self.placement.offset.get(key, 0),
            "aux": self.placement.aux.get(key, 0),
        }

    def entry_name(self, e: Entry) -> str:
        return self.operators[e.op].name if e.op >= 0 else f"input {-1 - e.op}"

    def to_text(self) -> str:
        """Tables for people."""
        h = self.header
        factor = f"{h.macs / h.base_macs:.3f}" if h.base_macs else "1"
        lines = [
            f"plan version {h.plan_version}, format {h.format_major}.{h.format_minor}, "
            f"engine ABI {h.abi_major}.{h.abi_minor}, {h.total_len} bytes",
            f"peak RAM {h.arena_bytes} bytes, base aligned to {1 << h.align_log2}",
            f"MACs {h.macs} of {h.base_macs} unfused (F = {factor}), elements {h.elements}, "
            f"row steps {h.row_steps}, calls {h.calls}",
            f"model id {h.model_id.hex()}",
            f"vendor id {h.vendor_id.hex()}, class id {h.class_id.hex()}",
            "signature "
            + (
                "none"
                if self.signature.algorithm == 0
                else f"algorithm {self.signature.algorithm}, key {self.signature.key_id:08x}"
            ),
            "",
            *_table(
                ("section", "offset", "bytes", "SHA-256"),
                [(s.name, s.offset, s.length, s.sha256[:16] + ("" if s.intact else " DAMAGED")) for s in self.sections],
            ),
            "",
            *_table(("bytes for", "bytes"), list(self.bytes_by_use.items())),
            "",
            *_table(
                ("op", "name", "opcode", "in", "out shape", "kernel", "stride", "params at", "weights", "other"),
                [self._operator_row(o) for o in self.operators],
            ),
            "",
            *_table(
                ("stage", "seg", "steps", "entry", "policy", "rows a/o/e", "keep", "columns a/o/e", "at", "aux"),
                list(self._entry_rows()),
            ),
        ]
        if self.selftest is not None:
            crcs = " ".join(f"{c:08x}" for c in self.output_crcs)
            lines += ["", f"self-test: seed {self.selftest.seed}, outputs {crcs}, {len(self.stage_crcs)} stages"]
        return "\n".join(lines)

    def _operator_row(self, o: OperatorInfo) -> tuple[Any, ...]:
        t = self.tensors[o.record.output]
        weights = o.parts.get("weights", 0)
        return (
            o.index,
            o.name,
            o.opcode.name + "".join(f" {f}" for f in _flags(o.flags)),
            ",".join(map(str, o.inputs)),
            f"{t.h}x{t.w}x{t.c}",
            f"{o.record.kernel_h}x{o.record.kernel_w}",
            f"{o.record.stride_h}x{o.record.stride_w}",
            (str(o.offset) + (" shared" if o.shared else "")) if o.offset >= 0 else "-",
            weights,
            sum(o.parts.values()) - weights,
        )

    def _entry_rows(self) -> Iterable[tuple[Any, ...]]:
        def row(stage: str, seg: str, steps: str, e: Entry, key: tuple[int, int, int]) -> tuple[Any, ...]:
            return (
                stage,
                seg,
                steps,
                self.entry_name(e),
                e.policy.name + (" overlap" if e.overlap else "") + (f" by {e.slice} channels" if e.slice else ""),
                f"{e.rows.advance}/{e.rows.offset}/{e.rows.extent}",
                e.keep,
                f"{e.cols.advance}/{e.cols.offset}/{e.cols.extent}",
                self.placement.offset.get(key, "-"),
                self.placement.aux.get(key, "-"),
            )

        for n, e in enumerate(self.schedule.placed):
            yield row("in", "-", "-", e, (-1, 0, n))
        for s, stage in enumerate(self.schedule.stages):
            for g, segment in enumerate(stage.segments):
                for n, e in enumerate(segment.entries):
                    steps = f"{segment.row_steps}x{segment.col_steps}" if n == 0 else ""
                    yield row(str(s) if g == n == 0 else "", str(g) if n == 0 else "", steps, e, (s, g, n))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}


def _flags(flags: IntFlag) -> list[str]:
    return [f.name or str(int(f)) for f in type(flags) if f in flags]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [tuple(head), *(tuple(str(c) for c in row) for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    numeric = [rows and all(isinstance(row[n], int) for row in rows) for n in range(len(head))]
    return [
        "  ".join(c.rjust(w) if num else c.ljust(w) for c, w, num in zip(row, widths, numeric, strict=True)).rstrip()
        for row in cells
    ]


# ---------------------------------------------------------------- decoding


def bad(message: str, offset: int) -> PlannerError:
    return PlannerError(
        Code.BAD_PLAN, f"{message} (offset {offset})", hint="the file is damaged, cut short, or not a plan"
    )


class _Bytes:
    """A range of the plan that is read record by record; ``at`` is the offset in the plan."""

    def __init__(self, data: bytes, at: int, end: int, what: str) -> None:
        self.data, self.at, self.end, self.what = data, at, end, what

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise bad(f"{self.what} ends within a record", self.at)
        self.at += size
        return self.data[self.at - size : self.at]

    def record(self, kind: type[_R]) -> _R:
        return kind.unpack(self.take(kind.SIZE))

    def records(self, kind: type[_R], count: int) -> tuple[_R, ...]:
        return tuple(self.record(kind) for _ in range(count))

    def numbers(self, code: str, count: int) -> tuple[int, ...]:
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack(self.take(layout.size))


def inspect(plan: bytes) -> Inspection:
    """Decode a plan. PlannerError(BAD_PLAN) if its structure is damaged."""
    header, signature, sections = _envelope(plan)
    found = {s.type: s for s in sections}

    def section(kind: SectionId) -> _Bytes:
        if kind not in found:
            raise bad(f"section {kind.name} is missing", HeaderRecord.SIZE)
        return _Bytes(plan, found[kind].offset, found[kind].offset + found[kind].length, kind.name)

    at = section(SectionId.GRAPH)
    head = at.record(GraphRecord)
    tensors = at.records(TensorRecord, head.tensor_count)
    ops_at = at.at
    ops = at.records(OpRecord, head.op_count)
    constants = at.records(ConstRecord, head.const_count)
    ios_at = at.at
    inputs = at.records(IoRecord, head.input_count)
    outputs = at.records(IoRecord, head.output_count)
    pool = at.numbers("H", head.list_count)
    for n, io in enumerate(inputs + outputs):
        _limit(io.tensor, len(tensors), "a network input or output names no tensor", ios_at + n * IoRecord.SIZE)
        _known(DType, io.dtype, "data type", ios_at + n * IoRecord.SIZE)

    names = [f"op{n}" for n in range(len(ops))]
    if SectionId.NAMES in found:
        at = section(SectionId.NAMES)
        parts = at.take(at.end - at.at).split(b"\0")
        if len(parts) != len(ops) + 1 or parts[-1]:
            raise bad("NAMES does not hold one name per operator", found[SectionId.NAMES].offset)
        names = [p.decode(errors="replace") for p in parts[:-1]]

    weights = section(SectionId.WEIGHTS)
    decoder = _Decoder(plan, weights.at, weights.end, tensors, pool, ops_at)
    operators: list[OperatorInfo] = []
    graph_ops: list[Op] = []
    for n, record in enumerate(ops):
        info, op = decoder.operator(n, record, names[n])
        operators.append(info)
        graph_ops.append(op)
    data: dict[int, np.ndarray[Any, np.dtype[np.int8]]] = {}
    for c in constants:
        _limit(c.tensor, len(tensors), "a constant names no tensor", found[SectionId.GRAPH].offset)
        t = tensors[c.tensor]
        block = decoder.block(c.offset, t.h * t.w * t.c, "constant", found[SectionId.GRAPH].offset)
        data[c.tensor] = np.frombuffer(block, np.int8).reshape(t.h, t.w, t.c)
        decoder.count(c.offset, {"constants": len(block)})
    graph = _graph(tensors, graph_ops, inputs, outputs, data)

    at = section(SectionId.SCHEDULE)
    schedule, placement, entry_of = _schedule(at, header, graph, operators, len(tensors))

    selftest: SelftestRecord | None = None
    stage_crcs: tuple[int, ...] = ()
    output_crcs: tuple[int, ...] = ()
    if SectionId.SELFTEST in found:
        at = section(SectionId.SELFTEST)
        selftest = at.record(SelftestRecord)
        stage_crcs = at.numbers("I", selftest.stage_count)
        output_crcs = at.numbers("I", selftest.output_count)

    use = Counter(decoder.used)
    for s in sections:
        if s.type != SectionId.WEIGHTS:
            use[s.name] += s.length
    use["header and section table"] = header.header_len
    use["signature"] = SignatureRecord.SIZE
    use["padding"] = header.total_len - sum(use.values())
    return Inspection(
        header=header,
        sections=sections,
        signature=signature,
        tensors=tensors,
        operators=tuple(operators),
        constants=constants,
        inputs=inputs,
        outputs=outputs,
        entry_of_tensor=entry_of,
        graph=graph,
        schedule=schedule,
        placement=placement,
        selftest=selftest,
        stage_crcs=stage_crcs,
        output_crcs=output_crcs,
        named=SectionId.NAMES in found,
        bytes_by_use=dict(sorted(use.items(), key=lambda item: -item[1])),
    )


def _limit(index: int, count: int, message: str, offset: int) -> None:
    if not 0 <= index < count:
        raise bad(message, offset)


_E = TypeVar("_E", Opcode, Policy, DType)


def _known(kind: type[_E], value: int, what: str, offset: int) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise bad(f"{what} {value} is unknown", offset) from None


def _envelope(plan: bytes) -> tuple[HeaderRecord, SignatureRecord, tuple[SectionInfo, ...]]:
    if len(plan) < HeaderRecord.SIZE:
        raise bad(f"{len(plan)} bytes are too few for a header", len(plan))
    header = HeaderRecord.unpack(plan)
    if header.magic != fmt.MAGIC:
        raise bad("these bytes are not a plan", 0)
    if header.format_major != fmt.FORMAT_MAJOR or header.format_minor > fmt.FORMAT_MINOR:
        raise PlannerError(
            Code.BAD_PLAN,
            f"format {header.format_major}.{header.format_minor} is not known here (offset 4)",
            hint="use the tool that made the plan, or a newer one",
        )
    if header.total_len > len(plan):
        raise bad(f"the plan declares {header.total_len} bytes and has {len(plan)}", 8)
    if header.header_len != HeaderRecord.SIZE + SectionRecord.SIZE * header.section_count:
        raise bad("the header's length does not match its section count", 6)
    at = _Bytes(plan, HeaderRecord.SIZE, header.total_len, "the section table")
    records = at.records(SectionRecord, header.section_count)
    signature = at.record(SignatureRecord)
    sections: list[SectionInfo] = []
    for n, r in enumerate(records):
        where = HeaderRecord.SIZE + n * SectionRecord.SIZE
        if r.offset % 8 or r.offset < at.at or r.offset > header.total_len or r.length > header.total_len - r.offset:
            raise bad("a section lies outside the plan", where)
        if any(s.type == r.type for s in sections):
            raise bad("a section stands there twice", where)
        known = r.type in SectionId.__members__.values()
        sections.append(
            SectionInfo(
                name=SectionId(r.type).name if known else f"section {r.type}",
                type=r.type,
                critical=bool(r.flags & 1),
                offset=r.offset,
                length=r.length,
                sha256=r.sha256.hex(),
                intact=hashlib.sha256(plan[r.offset : r.offset + r.length]).digest() == r.sha256,
            )
        )
    for a, b in zip(ordered := sorted(sections, key=lambda s: s.offset), ordered[1:], strict=False):
        if a.offset + a.length > b.offset:
            raise bad(f"{a.name} and {b.name} overlap", b.offset)
    return header, signature, tuple(sections)


class _Decoder:
    """Operators and their parameter blocks."""

    def __init__(
        self, plan: bytes, begin: int, end: int, tensors: Sequence[TensorRecord], pool: Sequence[int], ops_at: int
    ) -> None:
        self.plan, self.begin, self.end = plan, begin, end
        self.tensors, self.pool, self.ops_at = tensors, pool, ops_at
        self.used: Counter[str] = Counter()
        self.seen: set[int] = set()

    def block(self, offset: int, size: int, what: str, where: int) -> bytes:
        if offset % 4 or offset > self.end - self.begin or size > self.end - self.begin - offset:
            raise bad(f"{what}: its bytes lie outside WEIGHTS", where)
        return self.plan[self.begin + offset : self.begin + offset + size]

    def count(self, offset: int, parts: dict[str, int]) -> bool:
        """Add a block's bytes once; whether it was counted before."""
        if offset in self.seen:
            return True
        self.seen.add(offset)
        self.used.update({k: v for k, v in parts.items() if v})
        return False

    def operator(self, n: int, r: OpRecord, name: str) -> tuple[OperatorInfo, Op]:
        where = self.ops_at + n * OpRecord.SIZE
        opcode = _known(Opcode, r.opcode, "opcode", where)
        if opcode is Opcode.CONCAT:
            if r.input1 == 0 or r.input0 + r.input1 > len(self.pool):
                raise bad(f"{name}: inputs lie outside the list pool", where)
            inputs = tuple(self.pool[r.input0 : r.input0 + r.input1])
        else:
            inputs = (r.input0, r.input1) if opcode in _BINARY else (r.input0,)
        for t in (*inputs, r.output):
            _limit(t, len(self.tensors), f"{name}: names no tensor", where)
        if 0 in (r.stride_h, r.stride_w, r.dilation_h, r.dilation_w, r.groups):
            raise bad(f"{name}: a stride, dilation or group count is zero", where)
        offset = -1 if r.params == NO_PARAMS else self.begin + r.params
        parts: dict[str, int] = {}
        op = _OPERATORS[opcode](self, r, name, inputs, parts, where)
        shared = bool(parts) and self.count(r.params, parts)
        flags = OpFlag(r.flags)
        return OperatorInfo(
            index=n,
            name=name,
            opcode=opcode,
            flags=flags,
            inputs=inputs,
            record=r,
            offset=offset,
            parts=parts,
            shared=shared,
        ), op

    def dense(self, r: OpRecord, name: str, n: int, weights: int, parts: dict[str, int], where: int) -> dict[str, Any]:
        scales = 1 if r.flags & OpFlag.PER_TENSOR else n
        shifts = -(-scales // 4) * 4
        quads = r.opcode == Opcode.DWCONV2D and bool(r.flags & OpFlag.QUICK)
        if quads:
            weights = weights // n * 2 * (-(-n // 4) * 4)
        block = self.block(r.params, 4 * n + 4 * scales + shifts + weights, name, where)
        parts.update({"biases": 4 * n, "requantisation": 4 * scales + shifts, "weights": weights})
        multipliers = np.frombuffer(block, "<i4", scales, 4 * n).astype(np.float64)
        powers = np.frombuffer(block, np.int8, scales, 4 * n + 4 * scales).astype(np.float64)
        flat = np.frombuffer(block, np.int8, weights, 4 * n + 4 * scales + shifts)
        if quads:
            wide = of_quads(flat.view("<i2"), n)
            _limit(
                int(np.abs(wide.astype(np.int32) * 2 + 1).max()), 256, f"{name}: a weight has more than 8 bits", where
            )
            flat = wide.astype(np.int8).ravel()
        return {
            "bias": np.frombuffer(block, "<i4", n).astype(np.int32),
            "multipliers": multipliers * np.exp2(powers - 31),
            "weights": flat,
            "act_min": r.act_min,
            "act_max": r.act_max,
        }

    def conv(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        channels, n = self.tensors[inputs[0]].c, self.tensors[r.output].c
        kernel = (r.kernel_h, r.kernel_w)
        depthwise = r.opcode == Opcode.DWCONV2D
        per_group = 1 if depthwise else channels // r.groups
        dense = self.dense(r, name, n, n * kernel[0] * kernel[1] * per_group, parts, where)
        flat = dense.pop("weights")
        weights = (
            flat.reshape(*kernel, n, 1).transpose(2, 0, 1, 3) if depthwise else flat.reshape(n, *kernel, per_group)
        )
        return Conv2D(
            name=name,
            inputs=inputs,
            output=r.output,
            kernel=kernel,
            stride=(r.stride_h, r.stride_w),
            dilation=(r.dilation_h, r.dilation_w),
            pads=(r.pad_top, r.pad_left),
            groups=channels if depthwise else r.groups,
            weights=weights,
            **dense,
        )

    def fully_connected(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], at: int) -> Op:
        t, n = self.tensors[inputs[0]], self.tensors[r.output].c
        dense = self.dense(r, name, n, n * t.h * t.w * t.c, parts, at)
        weights = dense.pop("weights").reshape(n, t.h * t.w * t.c)
        return FullyConnected(name=name, inputs=inputs, output=r.output, weights=weights, **dense)

    def binary(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        parts["requantisation"] = len(self.block(r.params, 16, name, where))
        kind: Any = {Opcode.ADD: "add", Opcode.SUB: "sub", Opcode.MUL: "mul"}[Opcode(r.opcode)]
        return Binary(name=name, inputs=inputs, output=r.output, kind=kind, act_min=r.act_min, act_max=r.act_max)

    def concat(self, r: OpRecord, name: str, inputs: tuple[int, ...], _: dict[str, int], where: int) -> Op:
        _limit(r.kernel_h, 3, f"{name}: concatenates along no axis", where)
        return Concat(name=name, inputs=inputs, output=r.output, axis=r.kernel_h)

    def pad(self, r: OpRecord, name: str, inputs: tuple[int, ...], _: dict[str, int], __: int) -> Op:
        return Pad(name=name, inputs=inputs, output=r.output, pads=(r.pad_top, r.pad_left), value=r.act_min)

    def pool_op(self, r: OpRecord, name: str, inputs: tuple[int, ...], _: dict[str, int], __: int) -> Op:
        return Pool(
            name=name,
            inputs=inputs,
            output=r.output,
            kind="avg" if r.opcode == Opcode.AVGPOOL else "max",
            kernel=(r.kernel_h, r.kernel_w),
            stride=(r.stride_h, r.stride_w),
            dilation=(r.dilation_h, r.dilation_w),
            pads=(r.pad_top, r.pad_left),
            act_min=r.act_min,
            act_max=r.act_max,
            count_pad=bool(r.flags & OpFlag.COUNT_PAD),
        )

    def reduce(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        axes = tuple(a for a, flag in ((0, OpFlag.REDUCE_H), (1, OpFlag.REDUCE_W)) if r.flags & flag)
        kind: Any = "max" if r.flags & OpFlag.REDUCE_MAX else "avg" if r.flags & OpFlag.REDUCE_AVG else "mean"
        multiplier = (0, 0)
        if kind == "mean":
            block = self.block(r.params, 8, name, where)
            parts["requantisation"] = len(block)
            first, second = struct.unpack("<ib3x", block)
            multiplier = (first, second)
        return Reduce(
            name=name,
            inputs=inputs,
            output=r.output,
            axes=axes,
            kind=kind,
            multiplier=multiplier,
            act_min=r.act_min,
            act_max=r.act_max,
        )

    def lut(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        block = self.block(r.params, 256, name, where)
        parts["tables"] = len(block)
        return Lut(name=name, inputs=inputs, output=r.output, table=np.frombuffer(block, np.int8), function="table")

    def softmax(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        block = self.block(r.params, 8, name, where)
        parts["requantisation"] = len(block)
        multiplier, shift = struct.unpack("<ib3x", block)
        return Softmax(name=name, inputs=inputs, output=r.output, multiplier=(multiplier, shift))

    def reshape(self, r: OpRecord, name: str, inputs: tuple[int, ...], _: dict[str, int], __: int) -> Op:
        return Reshape(name=name, inputs=inputs, output=r.output)

    def resize(self, r: OpRecord, name: str, inputs: tuple[int, ...], parts: dict[str, int], where: int) -> Op:
        if not r.flags & OpFlag.RESIZE_TABLE:
            if 0 in (r.kernel_h, r.kernel_w):
                raise bad(f"{name}: a factor is zero", where)
            return Resize(name=name, inputs=inputs, output=r.output, factors=(r.kernel_h, r.kernel_w))
        t = self.tensors[r.output]
        block = self.block(r.params, -(-(t.h + t.w) // 2) * 4, name, where)
        parts["tables"] = len(block)
        values = struct.unpack(f"<{t.h + t.w}H", block[: 2 * (t.h + t.w)])
        return Resize(name=name, inputs=inputs, output=r.output, rows=values[: t.h], cols=values[t.h :])


_OPERATORS: dict[Opcode, Callable[[_Decoder, OpRecord, str, tuple[int, ...], dict[str, int], int], Op]] = {
    Opcode.CONV2D: _Decoder.conv,
    Opcode.DWCONV2D: _Decoder.conv,
    Opcode.FULLY_CONNECTED: _Decoder.fully_connected,
    Opcode.ADD: _Decoder.binary,
    Opcode.SUB: _Decoder.binary,
    Opcode.MUL: _Decoder.binary,
    Opcode.CONCAT: _Decoder.concat,
    Opcode.PAD: _Decoder.pad,
    Opcode.AVGPOOL: _Decoder.pool_op,
    Opcode.MAXPOOL: _Decoder.pool_op,
    Opcode.REDUCE: _Decoder.reduce,
    Opcode.LUT: _Decoder.lut,
    Opcode.SOFTMAX: _Decoder.softmax,
    Opcode.RESHAPE: _Decoder.reshape,
    Opcode.RESIZE: _Decoder.resize,
}


def _graph(
    tensors: Sequence[TensorRecord],
    ops: Sequence[Op],
    inputs: Sequence[IoRecord],
    outputs: Sequence[IoRecord],
    data: dict[int, Any],
) -> Graph:
    scales = {io.tensor: io.scale for io in (*inputs, *outputs)}
    made_by = {op.output: op.name for op in ops} | {io.tensor: f"input {n}" for n, io in enumerate(inputs)}
    return Graph(
        name="plan",
        tensors=tuple(
            Tensor(
                name=made_by.get(n, f"tensor {n}"),
                shape=(t.h, t.w, t.c),
                scale=scales.get(n, 1.0),
                zero_point=t.zero_point,
                data=data.get(n) if t.flags & TensorFlag.CONST else None,
            )
            for n, t in enumerate(tensors)
        ),
        ops=tuple(ops),
        inputs=tuple(Io(tensor=r.tensor, name=f"input {n}", dtype=DType(r.dtype)) for n, r in enumerate(inputs)),
        outputs=tuple(Io(tensor=r.tensor, name=f"output {n}", dtype=DType(r.dtype)) for n, r in enumerate(outputs)),
    )


def _schedule(
    at: _Bytes, header: HeaderRecord, graph: Graph, operators: Sequence[OperatorInfo], tensor_count: int
) -> tuple[Schedule, Placement, tuple[int, ...]]:
    begin = at.at
    head = at.record(ScheduleRecord)
    stage_records = at.records(StageRecord, head.stage_count)
    segment_records = at.records(SegmentRecord, head.segment_count)
    entries_at = at.at
    entry_records = at.records(EntryRecord, head.entry_count)
    entry_of = at.numbers("H", tensor_count)
    for n in entry_of:
        if n != NONE:
            _limit(n, len(entry_records), "entry_of_tensor names no entry", at.at - 2 * tensor_count)
    offset: dict[tuple[int, int, int], int] = {}
    aux: dict[tuple[int, int, int], int] = {}

    def entry(n: int, key: tuple[int, int, int], segment: SegmentRecord | None) -> Entry:
        r = entry_records[n]
        where = entries_at + n * EntryRecord.SIZE
        policy = _known(Policy, r.policy, "policy", where)
        op = -1 - (r.op & ~fmt.INPUT_BIT) if r.op & fmt.INPUT_BIT else r.op
        _limit(op, len(graph.ops), "an entry names no operator", where) if op >= 0 else _limit(
            -1 - op, len(graph.inputs), "an entry names no network input", where
        )
        if 0 in (r.row_adv, r.col_adv):
            raise bad("an entry does not advance", where)
        flags = operators[op].flags if op >= 0 else OpFlag(0)
        whole = op >= 0 and operators[op].opcode is Opcode.FULLY_CONNECTED
        accumulate = segment is not None and (
            (bool(flags & OpFlag.REDUCE_H or whole) and segment.row_steps > 1)
            or (bool(flags & OpFlag.REDUCE_W or whole) and segment.col_steps > 1)
        )
        if policy is not Policy.EXTERNAL:
            offset[key] = r.offset
        if accumulate or (policy is Policy.TILE and r.keep):
            aux[key] = r.aux
        return Entry(
            op=op,
            policy=policy,
            rows=Axis(advance=r.row_adv, offset=r.row_off, extent=r.row_ext),
            cols=Axis(advance=r.col_adv, offset=r.col_off, extent=r.col_ext),
            keep=r.keep,
            accumulate=accumulate,
            overlap=bool(r.flags & fmt.EntryFlag.OVERLAP),
            slice=r.slice,
        )

    _limit(head.placed_count, len(entry_records) + 1, "more placed entries than entries", begin)
    placed = tuple(entry(n, (-1, 0, n), None) for n in range(head.placed_count))
    next_entry, next_segment = head.placed_count, 0
    stages: list[Stage] = []
    for s, stage in enumerate(stage_records):
        where = begin + ScheduleRecord.SIZE + s * StageRecord.SIZE
        if stage.first_segment != next_segment or stage.segment_count > len(segment_records) - next_segment:
            raise bad("a stage's segments are not where they belong", where)
        segments: list[Segment] = []
        for g in range(stage.segment_count):
            r = segment_records[next_segment]
            if r.first_entry != next_entry or r.entry_count > len(entry_records) - next_entry:
                raise bad("a segment's entries are not where they belong", where)
            entries = tuple(entry(next_entry + n, (s, g, n), r) for n in range(r.entry_count))
            cut = entries[0].slice if entries and entries[0].op >= 0 else 0
            sweeps = graph.tensors[graph.ops[entries[0].op].output].shape[2] // cut if cut else 1
            segments.append(Segment(entries=entries, row_steps=r.row_steps, col_steps=r.col_steps, sweeps=sweeps))
            next_entry += r.entry_count
            next_segment += 1
        stages.append(Stage(segments=tuple(segments), scratch=stage.scratch_len))
    if next_entry != len(entry_records) or next_segment != len(segment_records):
        raise bad("segments or entries belong to no stage", begin)
    placement = Placement(
        offset=offset,
        aux=aux,
        state=tuple(s.state for s in stage_records),
        scratch=tuple(s.scratch for s in stage_records),
        arena_bytes=header.arena_bytes,
        lower_bound=0,
    )
    return Schedule(placed=placed, stages=tuple(stages)), placement, entry_of
