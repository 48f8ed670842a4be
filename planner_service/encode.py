# SPDX-License-Identifier: Apache-2.0
"""Plan bytes from graph, schedule and placement, exactly as docs/plan-format.md lays them out. Same input, same bytes.

The SIGNATURE record stays zero (unsigned): signing is the update tool's."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner_service import arith, replay
from planner_service.build import MAX_INPUTS
from planner_service.errors import Code, PlannerError, Violation
from planner_service.facts import Facts
from planner_service.format import (
    ABI_MAJOR,
    ABI_MINOR,
    CRITICAL_SECTIONS,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    INPUT_BIT,
    MAGIC,
    NONE,
    SIGNATURE_LEN,
    ConstRecord,
    EntryFlag,
    EntryRecord,
    GraphRecord,
    HeaderRecord,
    IoRecord,
    Opcode,
    OpFlag,
    OpRecord,
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
    Int8,
    Int16,
    Int32,
    Lut,
    Op,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Softmax,
    Tensor,
    Window2D,
)
from planner_service.schedule import Entry, Placement, Schedule

NO_PARAMS = 0xFFFFFFFF
MAX_TENSORS = 4095
MAX_IO = 16
MAX_DIM = 32767
#: Left shift of ADD and SUB before their inputs are scaled (TFLite's add.cc, sub.cc for int8).
BINARY_LEFT_SHIFT = 20
#: QUICK: what a sum with its bias may reach; most of |x - zero point|, |weight| and |weight in a quad|.
QUICK_MAX, PIXEL_MAX, WEIGHT_MAX, QUAD_WEIGHT_MAX = (1 << 30) - 1, 255, 1 << 7, 1 << 15
#: Channels of a quad as they lie there.
QUAD_ORDER = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """CRC-32 of every stage's output tensor and of every network output, for the input that ``seed`` generates."""

    seed: int
    stages: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(slots=True)
class _Weights:
    """The WEIGHTS section: 4-aligned blocks, equal ones stored once."""

    data: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)

    def add(self, block: bytes) -> int:
        if block not in self.known:
            self.data += bytes(-len(self.data) % 4)
            self.known[block] = len(self.data)
            self.data += block
        return self.known[block]


def encode(
    graph: Graph,
    schedule: Schedule,
    placement: Placement,
    *,
    plan_version: int = 1,
    vendor_id: bytes = b"",
    class_id: bytes = b"",
    names: bool = False,
    selftest: SelfTest | None = None,
    align: int = 4,
    quads: bool = False,
    facts: Facts | None = None,
) -> bytes:
    """The plan. ``align``: what the arena's base must be aligned to (4 to 64, as given to ``layout.place``); ``quads``:
    depthwise weights lie as kernels for the DSP extension read them, where that can be.

    PlannerError: UNSUPPORTED with every tensor and operator that does not fit its fields, TOO_LARGE where arena, plan
    or work do not, BAD_REQUEST for ids, version or alignment out of range."""
    facts = facts or Facts(graph)
    _check_request(plan_version, (vendor_id, class_id), align)
    _check_limits(graph)
    if quads not in facts.encoded:
        weights = _Weights()
        facts.encoded[quads] = (*_graph_section(graph, weights, quads), bytes(weights.data))
    graph_bytes, op_mask, weight_bytes = facts.encoded[quads]
    sections: list[tuple[SectionId, bytes]] = [
        (SectionId.GRAPH, graph_bytes),
        (SectionId.SCHEDULE, _schedule_section(graph, facts, schedule, placement)),
        (SectionId.WEIGHTS, weight_bytes),
    ]
    if selftest is not None:
        head = SelftestRecord(
            seed=selftest.seed, stage_count=len(selftest.stages), output_count=len(selftest.outputs)
        ).pack()
        crcs = (*selftest.stages, *selftest.outputs)
        sections.append((SectionId.SELFTEST, head + struct.pack(f"<{len(crcs)}I", *crcs)))
    if names:
        text = b"".join(op.name.replace("\0", "").encode() + b"\0" for op in graph.ops)
        sections.append((SectionId.NAMES, text))

    header_len = HeaderRecord.SIZE + SectionRecord.SIZE * len(sections)
    at = _up8(header_len + SIGNATURE_LEN)
    table: list[SectionRecord] = []
    body = bytearray(SignatureRecord(algorithm=0, key_id=0).pack())
    body += bytes(at - header_len - SIGNATURE_LEN)
    for kind, data in sections:
        table.append(
            SectionRecord(
                type=kind,
                flags=int(kind in CRITICAL_SECTIONS),
                offset=header_len + len(body),
                length=len(data),
                sha256=hashlib.sha256(data).digest(),
            )
        )
        body += data + bytes(-len(data) % 8)
    cost = replay.schedule_cost(facts, schedule)
    total_len = header_len + len(body)
    _check_totals(placement.arena_bytes, total_len, cost)
    header = HeaderRecord(
        magic=MAGIC,
        format_major=FORMAT_MAJOR,
        format_minor=FORMAT_MINOR,
        header_len=header_len,
        total_len=total_len,
        abi_major=ABI_MAJOR,
        abi_minor=ABI_MINOR,
        align_log2=align.bit_length() - 1,
        section_count=len(sections),
        op_mask=op_mask,
        capabilities=0,
        arena_bytes=placement.arena_bytes,
        macs=cost.macs,
        base_macs=facts.base_macs,
        elements=cost.elements,
        row_steps=cost.row_steps,
        calls=cost.calls,
        plan_version=plan_version,
        flags=0,
        vendor_id=vendor_id or bytes(16),
        class_id=class_id or bytes(16),
        model_id=hashlib.sha256(graph_bytes + weight_bytes).digest(),
    )
    return header.pack() + b"".join(s.pack() for s in table) + bytes(body)


def _up8(n: int) -> int:
    return -(-n // 8) * 8


def _check_request(plan_version: int, ids: Sequence[bytes], align: int) -> None:
    if not 0 <= plan_version < 1 << 32:
        raise PlannerError(Code.BAD_REQUEST, f"plan version {plan_version} is outside 0 .. 2^32 - 1")
    if any(len(i) not in (0, 16) for i in ids):
        raise PlannerError(Code.BAD_REQUEST, "vendor and class ids have 16 bytes")
    if align not in (4, 8, 16, 32, 64):
        raise PlannerError(Code.BAD_REQUEST, f"alignment {align} is none of 4, 8, 16, 32, 64")


def _check_totals(arena: int, total_len: int, cost: replay.Cost) -> None:
    found = [
        Violation("", f"{value} {what}; a plan holds less than 2^{bits}")
        for what, value, bits in (
            ("bytes of RAM", arena, 31),
            ("bytes of plan", total_len, 31),
            ("row steps", cost.row_steps, 32),
            ("kernel calls", cost.calls, 32),
        )
        if value >= 1 << bits
    ]
    if found:
        raise PlannerError(Code.TOO_LARGE, "the plan exceeds limits of the plan format", violations=found)


def _check_limits(graph: Graph) -> None:
    """Everything that a field of the format cannot hold, at once."""
    found: list[Violation] = []

    def need(ok: bool, layer: str, message: str, hint: str = "") -> None:
        if not ok:
            found.append(Violation(layer, message, hint))

    need(1 <= len(graph.tensors) <= MAX_TENSORS, "", f"{len(graph.tensors)} tensors; a plan holds 1 to {MAX_TENSORS}")
    need(1 <= len(graph.ops) <= MAX_TENSORS, "", f"{len(graph.ops)} operators; a plan holds 1 to {MAX_TENSORS}")
    for what, ios in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        need(1 <= len(ios) <= MAX_IO, "", f"{len(ios)} network {what}; a plan holds 1 to {MAX_IO}")
    for t in graph.tensors:
        need(all(1 <= d <= MAX_DIM for d in t.shape), t.name, f"shape {t.shape} exceeds {MAX_DIM} along an axis")
        need(t.nbytes < 1 << 30, t.name, f"{t.nbytes} bytes; a tensor holds less than 2^30")
    for op in graph.ops:
        if isinstance(op, Window2D):
            for name, pair, low in (
                ("kernel", op.kernel, 1),
                ("stride", op.stride, 1),
                ("dilation", op.dilation, 1),
                ("padding", op.pads, 0),
            ):
                need(all(low <= v <= 255 for v in pair), op.name, f"{name} {pair} is outside {low} .. 255")
        if isinstance(op, Pad):
            need(all(0 <= v <= 255 for v in op.pads), op.name, f"padding {op.pads} is outside 0 .. 255")
        if isinstance(op, Resize) and op.factors is not None:
            need(all(1 <= v <= 255 for v in op.factors), op.name, f"factors {op.factors} are outside 1 .. 255")
        if isinstance(op, Concat):
            need(len(op.inputs) <= MAX_INPUTS, op.name, f"{len(op.inputs)} inputs; the engine takes {MAX_INPUTS}")
    if found:
        raise PlannerError(Code.UNSUPPORTED, "the model exceeds limits of the plan format", violations=found)


# ---------------------------------------------------------------- GRAPH and WEIGHTS


@dataclass(slots=True, kw_only=True)
class _Layout:
    """Of a graph: the pool of lists that its operators fill, and whether depthwise weights are to lie in quads."""

    pool: list[int] = field(default_factory=list)
    quads: bool


def _graph_section(graph: Graph, weights: _Weights, quads: bool) -> tuple[bytes, int]:
    """The section's bytes and the op mask; fills ``weights``."""
    layout = _Layout(quads=quads)
    records: list[bytes] = []
    op_mask = 0
    for op in graph.ops:
        record = _op_record(graph, op, weights, layout)
        op_mask |= 1 << record.opcode
        records.append(record.pack())
    consts = [
        ConstRecord(tensor=i, offset=weights.add(t.data.tobytes())).pack()
        for i, t in enumerate(graph.tensors)
        if t.data is not None
    ]
    ios = [
        IoRecord(tensor=io.tensor, dtype=io.dtype, scale=graph.tensors[io.tensor].scale).pack()
        for io in (*graph.inputs, *graph.outputs)
    ]
    head = GraphRecord(
        tensor_count=len(graph.tensors),
        op_count=len(graph.ops),
        const_count=len(consts),
        input_count=len(graph.inputs),
        output_count=len(graph.outputs),
        list_count=len(layout.pool),
    ).pack()
    tensors = [_tensor_record(t).pack() for t in graph.tensors]
    return b"".join(
        (head, *tensors, *records, *consts, *ios, struct.pack(f"<{len(layout.pool)}H", *layout.pool))
    ), op_mask


def _tensor_record(t: Tensor) -> TensorRecord:
    h, w, c = t.shape
    flags = TensorFlag.CONST if t.data is not None else TensorFlag(0)
    return TensorRecord(h=h, w=w, c=c, zero_point=t.zero_point, flags=int(flags))


@dataclass(slots=True, kw_only=True)
class _Encoded:
    """What the kinds of operators differ in; the defaults are the format's neutral values."""

    opcode: Opcode
    flags: int = 0
    params: bytes | None = None
    input0: int | None = None
    input1: int = NONE
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    act: tuple[int, int] = (-128, 127)
    groups: int = 1


def _op_record(graph: Graph, op: Op, weights: _Weights, layout: _Layout) -> OpRecord:
    e = _ENCODERS[type(op)](graph, op, layout)
    return OpRecord(
        opcode=e.opcode,
        flags=e.flags,
        input0=op.inputs[0] if e.input0 is None else e.input0,
        input1=e.input1,
        output=op.output,
        kernel_h=e.kernel[0],
        kernel_w=e.kernel[1],
        stride_h=e.stride[0],
        stride_w=e.stride[1],
        dilation_h=e.dilation[0],
        dilation_w=e.dilation[1],
        pad_top=e.pads[0],
        pad_left=e.pads[1],
        act_min=e.act[0],
        act_max=e.act[1],
        groups=e.groups,
        params=NO_PARAMS if e.params is None else weights.add(e.params),
    )


def _dense(
    bias: Int32, multipliers: Sequence[float], weights: Int8, layer: str, *, quads: Int16 | None = None
) -> tuple[bytes, OpFlag]:
    """Block of an operator that multiplies, one multiplier where all channels share it; QUICK where that holds.

    ``weights``: as they are stored; ``quads``: instead of these, if QUICK holds with what weights of 16 bits may be."""
    pairs = [_fixed(float(m), layer) for m in multipliers]
    if len(set(pairs)) == 1 and quads is None:
        pairs = pairs[:1]
    shifts = bytes(s & 0xFF for _, s in pairs)
    most = QUICK_MAX - int(np.abs(bias.astype(np.int64)).max())
    taps = weights.size // bias.size
    right = all(shift < 0 for _, shift in pairs)
    in_quads = quads is not None and right and taps * PIXEL_MAX * QUAD_WEIGHT_MAX <= most
    quick = in_quads if quads is not None else right and taps * PIXEL_MAX * WEIGHT_MAX <= most
    block = (
        np.ascontiguousarray(bias, dtype="<i4").tobytes()
        + struct.pack(f"<{len(pairs)}i", *(m for m, _ in pairs))
        + shifts
        + bytes(-len(shifts) % 4)
        + (np.ascontiguousarray(quads, dtype="<i2") if in_quads else np.ascontiguousarray(weights, np.int8)).tobytes()
    )
    return block, (OpFlag.PER_TENSOR if len(pairs) == 1 else OpFlag(0)) | (OpFlag.QUICK if quick else OpFlag(0))


def in_quads(weights: Int8) -> Int16:
    """Depthwise weights KH, KW, O by quads of channels: for each of them, for each tap, those of channels 0, 2, 1, 3
    with 16 bits. Channels that lack in the last quad have weight 0."""
    taps, n = weights.shape[0] * weights.shape[1], weights.shape[2]
    padded = np.zeros((taps, -(-n // 4) * 4), np.int16)
    padded[:, :n] = weights.reshape(taps, n)
    return padded.reshape(taps, -1, 4)[:, :, list(QUAD_ORDER)].transpose(1, 0, 2)


def of_quads(quads: Int16, n: int) -> Int16:
    """The weights of `in_quads` again, for n channels: taps, O."""
    return (
        quads.reshape(-(-n // 4), -1, 4)[:, :, list(QUAD_ORDER)].transpose(1, 0, 2).reshape(-1, -(-n // 4) * 4)[:, :n]
    )


def _fixed(real: float, layer: str) -> tuple[int, int]:
    try:
        multiplier, shift = arith.quantize_multiplier(real)
    except ValueError as error:
        raise PlannerError(Code.UNSUPPORTED, str(error), layer=layer, hint="check the model's scales") from error
    if multiplier < 0 or shift > 30:
        raise PlannerError(
            Code.UNSUPPORTED, f"requantisation factor {real} is outside 0 .. 2^30", layer=layer, hint="check the scales"
        )
    return multiplier, shift


def _conv(_: Graph, op: Conv2D, layout: _Layout) -> _Encoded:
    laid_out = op.weights[:, :, :, 0].transpose(1, 2, 0) if op.depthwise else op.weights
    quads = in_quads(laid_out) if op.depthwise and layout.quads else None
    params, flags = _dense(op.bias, op.multipliers.tolist(), laid_out, op.name, quads=quads)
    if op.depthwise and not layout.quads:
        flags &= ~OpFlag.QUICK  # there, it means quads
    return _Encoded(
        opcode=Opcode.DWCONV2D if op.depthwise else Opcode.CONV2D,
        flags=flags,
        params=params,
        kernel=op.kernel,
        stride=op.stride,
        dilation=op.dilation,
        pads=op.pads,
        act=(op.act_min, op.act_max),
        groups=1 if op.depthwise else op.groups,
    )


def _fully_connected(_: Graph, op: FullyConnected, __: _Layout) -> _Encoded:
    params, flags = _dense(op.bias, op.multipliers.tolist(), op.weights, op.name)
    return _Encoded(opcode=Opcode.FULLY_CONNECTED, flags=flags, params=params, act=(op.act_min, op.act_max))


def _binary(graph: Graph, op: Binary, _: _Layout) -> _Encoded:
    """kernels/add_common.cc, sub_common.cc, mul_common.cc of TFLM: multipliers from the three scales, in double."""
    s0, s1, out = (float(graph.tensors[t].scale) for t in (*op.inputs, op.output))
    left = 0
    first = second = (0, 0)
    if op.kind == "mul":
        real = s0 * s1 / out
    else:
        left = BINARY_LEFT_SHIFT
        twice = 2.0 * max(s0, s1)
        first, second = _fixed(s0 / twice, op.name), _fixed(s1 / twice, op.name)
        real = twice / ((1 << left) * out)
    last = _fixed(real, op.name)
    return _Encoded(
        opcode={"add": Opcode.ADD, "sub": Opcode.SUB, "mul": Opcode.MUL}[op.kind],
        params=struct.pack("<3i4b", first[0], second[0], last[0], first[1], second[1], last[1], left),
        input1=op.inputs[1],
        act=(op.act_min, op.act_max),
    )


def _concat(_: Graph, op: Concat, layout: _Layout) -> _Encoded:
    first = len(layout.pool)
    layout.pool.extend(op.inputs)
    return _Encoded(opcode=Opcode.CONCAT, input0=first, input1=len(op.inputs), kernel=(op.axis, 1))


def _pad(_: Graph, op: Pad, __: _Layout) -> _Encoded:
    return _Encoded(opcode=Opcode.PAD, pads=op.pads, act=(op.value, 127))


def _pool(_: Graph, op: Pool, __: _Layout) -> _Encoded:
    average = op.kind == "avg"
    return _Encoded(
        opcode=Opcode.AVGPOOL if average else Opcode.MAXPOOL,
        flags=OpFlag.COUNT_PAD if average and op.count_pad else OpFlag(0),
        kernel=op.kernel,
        stride=op.stride,
        dilation=op.dilation,
        pads=op.pads,
        act=(op.act_min, op.act_max),
    )


def _reduce(_: Graph, op: Reduce, __: _Layout) -> _Encoded:
    flags = {"mean": OpFlag(0), "avg": OpFlag.REDUCE_AVG, "max": OpFlag.REDUCE_MAX}[op.kind]
    flags |= OpFlag.REDUCE_H if 0 in op.axes else OpFlag(0)
    flags |= OpFlag.REDUCE_W if 1 in op.axes else OpFlag(0)
    return _Encoded(
        opcode=Opcode.REDUCE,
        flags=flags,
        params=struct.pack("<ib3x", *op.multiplier) if op.kind == "mean" else None,
        act=(op.act_min, op.act_max),
    )


def _lut(_: Graph, op: Lut, __: _Layout) -> _Encoded:
    return _Encoded(opcode=Opcode.LUT, params=np.ascontiguousarray(op.table, dtype=np.int8).tobytes())


def _softmax(_: Graph, op: Softmax, __: _Layout) -> _Encoded:
    return _Encoded(opcode=Opcode.SOFTMAX, params=struct.pack("<ib3x", *op.multiplier))


def _reshape(_: Graph, __: Reshape, ___: _Layout) -> _Encoded:
    return _Encoded(opcode=Opcode.RESHAPE)


def _resize(_: Graph, op: Resize, __: _Layout) -> _Encoded:
    if op.factors is not None:
        return _Encoded(opcode=Opcode.RESIZE, kernel=op.factors)
    table = struct.pack(f"<{len(op.rows) + len(op.cols)}H", *op.rows, *op.cols)
    return _Encoded(opcode=Opcode.RESIZE, flags=OpFlag.RESIZE_TABLE, params=table + bytes(-len(table) % 4))


_ENCODERS: dict[type[Op], Callable[..., _Encoded]] = {
    Conv2D: _conv,
    FullyConnected: _fully_connected,
    Binary: _binary,
    Concat: _concat,
    Pad: _pad,
    Pool: _pool,
    Reduce: _reduce,
    Lut: _lut,
    Softmax: _softmax,
    Reshape: _reshape,
    Resize: _resize,
}


# ---------------------------------------------------------------- SCHEDULE


def _schedule_section(graph: Graph, facts: Facts, schedule: Schedule, placement: Placement) -> bytes:
    entry_of = [NONE] * len(graph.tensors)
    entries: list[bytes] = []

    def write(entry: Entry, key: tuple[int, int, int]) -> None:
        entry_of[facts.nodes[entry.op].tensor] = len(entries)
        entries.append(
            EntryRecord(
                op=entry.op if entry.op >= 0 else INPUT_BIT | (-1 - entry.op),
                policy=entry.policy,
                flags=EntryFlag.OVERLAP if entry.overlap else 0,
                row_adv=entry.rows.advance,
                row_off=entry.rows.offset,
                row_ext=entry.rows.extent,
                keep=entry.keep,
                col_adv=entry.cols.advance,
                col_off=entry.cols.offset,
                col_ext=entry.cols.extent,
                slice=entry.slice,
                offset=placement.offset.get(key, 0),
                aux=placement.aux.get(key, 0),
            ).pack()
        )

    for n, entry in enumerate(schedule.placed):
        write(entry, (-1, 0, n))
    stages: list[bytes] = []
    segments: list[bytes] = []
    for s, stage in enumerate(schedule.stages):
        stages.append(
            StageRecord(
                first_segment=len(segments),
                segment_count=len(stage.segments),
                state=placement.state[s],
                scratch=placement.scratch[s] if stage.scratch else 0,
                scratch_len=stage.scratch,
            ).pack()
        )
        for g, segment in enumerate(stage.segments):
            segments.append(
                SegmentRecord(
                    first_entry=len(entries),
                    entry_count=len(segment.entries),
                    row_steps=segment.row_steps,
                    col_steps=segment.col_steps,
                ).pack()
            )
            for n, entry in enumerate(segment.entries):
                write(entry, (s, g, n))
    head = ScheduleRecord(
        stage_count=len(stages),
        segment_count=len(segments),
        entry_count=len(entries),
        placed_count=len(schedule.placed),
    ).pack()
    return b"".join((head, *stages, *segments, *entries, struct.pack(f"<{len(entry_of)}H", *entry_of)))
