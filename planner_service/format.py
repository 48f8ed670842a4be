# SPDX-License-Identifier: Apache-2.0
"""Constants and records of the plan format. Generated from proto/plan.toml by planner_service/codegen.py; do not edit."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

MAGIC = 0x54464557
FORMAT_MAJOR = 1
FORMAT_MINOR = 0
ABI_MAJOR = 1
ABI_MINOR = 0
NONE = 0xFFFF
INPUT_BIT = 0x8000
SIGNATURE_LEN = 72


class SectionId(IntEnum):
    """Section types."""

    GRAPH = 1
    SCHEDULE = 2
    WEIGHTS = 3
    SELFTEST = 4
    NAMES = 5


CRITICAL_SECTIONS = frozenset(
    {
        SectionId.GRAPH,
        SectionId.SCHEDULE,
        SectionId.WEIGHTS,
    }
)


class Opcode(IntEnum):
    """Operators of the engine."""

    CONV2D = 1
    DWCONV2D = 2
    FULLY_CONNECTED = 3
    ADD = 4
    SUB = 5
    MUL = 6
    CONCAT = 7
    PAD = 8
    AVGPOOL = 9
    MAXPOOL = 10
    REDUCE = 11
    LUT = 12
    SOFTMAX = 13
    RESHAPE = 14
    RESIZE = 15


class TensorFlag(IntFlag):
    """TENSOR values."""

    CONST = 1


class OpFlag(IntFlag):
    """OP values."""

    PER_TENSOR = 1
    COUNT_PAD = 2
    REDUCE_H = 4
    REDUCE_W = 8
    REDUCE_AVG = 16
    REDUCE_MAX = 32
    RESIZE_TABLE = 64
    QUICK = 128


class Policy(IntEnum):
    """POLICY values."""

    FULL = 0
    ROWS = 1
    TILE = 2
    EXTERNAL = 3


class EntryFlag(IntFlag):
    """ENTRY values."""

    OVERLAP = 1


class DType(IntEnum):
    """DTYPE values."""

    INT8 = 0
    UINT8 = 1
    FLOAT32 = 2


class SlotState(IntEnum):
    """States of the slot that is not active."""

    EMPTY = 0
    RECEIVING = 1
    STAGED = 2
    TRIAL = 3
    REVERTED = 4
    OLD = 5


class EngineError(IntEnum):
    """Error codes of the engine (positive)."""

    ARG = 1
    ALIGN = 2
    TRUNCATED = 3
    MAGIC = 4
    VERSION = 5
    ABI = 6
    SECTION = 7
    UNKNOWN = 8
    OPCODE = 9
    INDEX = 10
    SHAPE = 11
    PARAM = 12
    WEIGHTS = 13
    OVERFLOW = 14
    GRAPH = 15
    POLICY = 16
    COVERAGE = 17
    NEED = 18
    RING = 19
    OVERLAP = 20
    ARENA = 21
    DECLARED = 22
    LIMIT = 23
    ARENA_SIZE = 24
    IO = 25
    ABORTED = 26
    INPUT = 27
    SCRATCH = 28
    FLASH = 40
    UNSIGNED = 41
    KEY = 42
    SIGNATURE = 43
    HASH = 44
    VENDOR = 45
    SLOT = 46
    FLOOR = 47
    BUSY = 48
    TOKEN = 49
    OFFSET = 50
    STATE = 51
    TRIED = 52
    SELFTEST = 53
    BUDGET = 54
    NO_PLAN = 55


ERROR_TEXT: dict[EngineError, tuple[str, str]] = {
    EngineError.ARG: (
        "an argument is null or out of range",
        "check the call against weft.h",
    ),
    EngineError.ALIGN: (
        "the plan or the arena is not aligned",
        "align the plan to 8 bytes and the arena to weft_arena_align()",
    ),
    EngineError.TRUNCATED: (
        "the plan is shorter than it declares",
        "write the whole file, then try again",
    ),
    EngineError.MAGIC: (
        "these bytes are not a plan",
        "write a plan made by `weft plan` into the slot",
    ),
    EngineError.VERSION: (
        "the plan's format is newer than this engine or of another major version",
        "plan for this engine's version or update the firmware",
    ),
    EngineError.ABI: (
        "the plan needs another engine ABI",
        "plan for this engine's version or update the firmware",
    ),
    EngineError.SECTION: (
        "the section table is malformed, or a section is missing, doubled, misplaced or too short",
        "the file is damaged: write it again",
    ),
    EngineError.UNKNOWN: (
        "a critical section, capability or flag is unknown to this engine",
        "update the firmware or plan for this engine's version",
    ),
    EngineError.OPCODE: (
        "an operator is unknown to this engine or left out of this build",
        "enable the operator in the build's op set",
    ),
    EngineError.INDEX: (
        "a tensor, operator, entry or segment number is out of range",
        "the file is damaged or not made by the planner",
    ),
    EngineError.SHAPE: (
        "an operator's shapes do not agree",
        "the file is damaged or not made by the planner",
    ),
    EngineError.PARAM: (
        "an operator's parameter is out of range",
        "the file is damaged or not made by the planner",
    ),
    EngineError.WEIGHTS: (
        "a parameter block or constant lies outside WEIGHTS or is misaligned",
        "the file is damaged or not made by the planner",
    ),
    EngineError.OVERFLOW: (
        "an accumulator could overflow 31 bits",
        "reduce the layer's bias or kernel size",
    ),
    EngineError.GRAPH: (
        "a tensor is used before it is produced, or produced twice or never",
        "the file is damaged or not made by the planner",
    ),
    EngineError.POLICY: (
        "a window's policy does not suit its tensor, its consumers or its place in the stage",
        "the file is damaged or not made by the planner",
    ),
    EngineError.COVERAGE: (
        "the steps leave gaps in a tensor or do not reach its end",
        "the file is damaged or not made by the planner",
    ),
    EngineError.NEED: (
        "an operator reads rows or columns that its input's window does not hold",
        "the file is damaged or not made by the planner",
    ),
    EngineError.RING: (
        "a ring is too small: rows would be overwritten before they are read",
        "the file is damaged or not made by the planner",
    ),
    EngineError.OVERLAP: (
        "two windows that are live together overlap",
        "the file is damaged or not made by the planner",
    ),
    EngineError.ARENA: (
        "a window lies outside the arena or is misaligned",
        "the file is damaged or not made by the planner",
    ),
    EngineError.DECLARED: (
        "a figure in the header differs from what the plan does",
        "the file is damaged or not made by the planner",
    ),
    EngineError.LIMIT: (
        "the plan exceeds a limit of the caller's",
        "plan with a smaller RAM or compute bound, or raise the limit",
    ),
    EngineError.ARENA_SIZE: (
        "the arena is smaller than the plan needs",
        "give weft_run at least weft_arena_size() bytes",
    ),
    EngineError.IO: (
        "an input that the plan streams or reads in place was not supplied",
        "set weft_io_t as weft_input_mode() says",
    ),
    EngineError.ABORTED: (
        "the run was ended by the step callback",
        "none: the application asked for it",
    ),
    EngineError.INPUT: (
        "the input callback failed",
        "see the camera's or sensor's own error",
    ),
    EngineError.SCRATCH: (
        "a kernel of this build needs more scratch than the plan gives",
        "plan for this target (`weft plan --target`)",
    ),
    EngineError.FLASH: (
        "reading, programming or erasing flash failed",
        "try again; if it stays, the flash is worn or its driver is at fault",
    ),
    EngineError.UNSIGNED: (
        "the plan is not signed, or by an algorithm that this build does not know",
        "sign it (`weft sign`)",
    ),
    EngineError.KEY: (
        "the plan is signed with a key that this device does not hold",
        "sign it with the device's key, or bring the new key with a firmware update",
    ),
    EngineError.SIGNATURE: (
        "the signature does not match",
        "sign the plan again; do not install this file",
    ),
    EngineError.HASH: (
        "bytes differ from the digest in the header",
        "send the plan again",
    ),
    EngineError.VENDOR: (
        "the plan is for another vendor or device class",
        "plan with this device's vendor and class ids",
    ),
    EngineError.SLOT: (
        "the plan does not fit the slot",
        "plan for this target, or make the slots larger",
    ),
    EngineError.FLOOR: (
        "the plan's version is below the floor that confirmed plans have set",
        "plan with a higher version",
    ),
    EngineError.BUSY: (
        "another update is under way",
        "wait, or abort the other update",
    ),
    EngineError.TOKEN: (
        "the session has ended or was taken over",
        "begin again; the transfer resumes where it was",
    ),
    EngineError.OFFSET: (
        "bytes arrived out of order",
        "go on at the offset that the reply gives",
    ),
    EngineError.STATE: (
        "the slots are not in a state that allows this",
        "ask for the status; confirm or revert a running trial first",
    ),
    EngineError.TRIED: (
        "this plan was tried and reverted",
        "erase first if it is to be tried again",
    ),
    EngineError.SELFTEST: (
        "the plan's self-test gave other results than planned",
        "the plan was not made for this engine: plan again",
    ),
    EngineError.BUDGET: (
        "the erase budget is spent",
        "wait until the device allows more erases",
    ),
    EngineError.NO_PLAN: (
        "no slot holds a plan that may run",
        "send a plan",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRecord:
    """Record HEADER; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IBBHIBBBBQIIQQQIIII16s16s32sII")
    SIZE: ClassVar[int] = 144

    magic: int
    format_major: int
    format_minor: int
    header_len: int
    total_len: int
    abi_major: int
    abi_minor: int
    align_log2: int
    section_count: int
    op_mask: int
    capabilities: int
    arena_bytes: int
    macs: int
    base_macs: int
    elements: int
    row_steps: int
    calls: int
    plan_version: int
    flags: int
    vendor_id: bytes = bytes(16)
    class_id: bytes = bytes(16)
    model_id: bytes = bytes(32)
    reserved: int = 0
    reserved2: int = 0

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.magic,
            self.format_major,
            self.format_minor,
            self.header_len,
            self.total_len,
            self.abi_major,
            self.abi_minor,
            self.align_log2,
            self.section_count,
            self.op_mask,
            self.capabilities,
            self.arena_bytes,
            self.macs,
            self.base_macs,
            self.elements,
            self.row_steps,
            self.calls,
            self.plan_version,
            self.flags,
            self.vendor_id,
            self.class_id,
            self.model_id,
            self.reserved,
            self.reserved2,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> HeaderRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            magic=values[0],
            format_major=values[1],
            format_minor=values[2],
            header_len=values[3],
            total_len=values[4],
            abi_major=values[5],
            abi_minor=values[6],
            align_log2=values[7],
            section_count=values[8],
            op_mask=values[9],
            capabilities=values[10],
            arena_bytes=values[11],
            macs=values[12],
            base_macs=values[13],
            elements=values[14],
            row_steps=values[15],
            calls=values[16],
            plan_version=values[17],
            flags=values[18],
            vendor_id=values[19],
            class_id=values[20],
            model_id=values[21],
            reserved=values[22],
            reserved2=values[23],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRecord:
    """Record SECTION; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHIII32s")
    SIZE: ClassVar[int] = 48

    type: int
    flags: int
    offset: int
    length: int
    reserved: int = 0
    sha256: bytes = bytes(32)

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.type,
            self.flags,
            self.offset,
            self.length,
            self.reserved,
            self.sha256,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> SectionRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            type=values[0],
            flags=values[1],
            offset=values[2],
            length=values[3],
            reserved=values[4],
            sha256=values[5],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureRecord:
    """Record SIGNATURE; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BBHI64s")
    SIZE: ClassVar[int] = 72

    algorithm: int
    reserved: int = 0
    reserved2: int = 0
    key_id: int
    value: bytes = bytes(64)

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.algorithm,
            self.reserved,
            self.reserved2,
            self.key_id,
            self.value,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> SignatureRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            algorithm=values[0],
            reserved=values[1],
            reserved2=values[2],
            key_id=values[3],
            value=values[4],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """Record GRAPH; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHHBBHH")
    SIZE: ClassVar[int] = 12

    tensor_count: int
    op_count: int
    const_count: int
    input_count: int
    output_count: int
    list_count: int
    reserved: int = 0

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.tensor_count,
            self.op_count,
            self.const_count,
            self.input_count,
            self.output_count,
            self.list_count,
            self.reserved,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> GraphRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            tensor_count=values[0],
            op_count=values[1],
            const_count=values[2],
            input_count=values[3],
            output_count=values[4],
            list_count=values[5],
            reserved=values[6],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """Record TENSOR; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHHbB")
    SIZE: ClassVar[int] = 8

    h: int
    w: int
    c: int
    zero_point: int
    flags: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.h,
            self.w,
            self.c,
            self.zero_point,
            self.flags,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> TensorRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            h=values[0],
            w=values[1],
            c=values[2],
            zero_point=values[3],
            flags=values[4],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRecord:
    """Record OP; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BBHHHBBBBBBBBbbHI")
    SIZE: ClassVar[int] = 24

    opcode: int
    flags: int
    input0: int
    input1: int
    output: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    act_min: int
    act_max: int
    groups: int
    params: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.opcode,
            self.flags,
            self.input0,
            self.input1,
            self.output,
            self.kernel_h,
            self.kernel_w,
            self.stride_h,
            self.stride_w,
            self.dilation_h,
            self.dilation_w,
            self.pad_top,
            self.pad_left,
            self.act_min,
            self.act_max,
            self.groups,
            self.params,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> OpRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            opcode=values[0],
            flags=values[1],
            input0=values[2],
            input1=values[3],
            output=values[4],
            kernel_h=values[5],
            kernel_w=values[6],
            stride_h=values[7],
            stride_w=values[8],
            dilation_h=values[9],
            dilation_w=values[10],
            pad_top=values[11],
            pad_left=values[12],
            act_min=values[13],
            act_max=values[14],
            groups=values[15],
            params=values[16],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstRecord:
    """Record CONST; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHI")
    SIZE: ClassVar[int] = 8

    tensor: int
    reserved: int = 0
    offset: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.tensor,
            self.reserved,
            self.offset,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> ConstRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            tensor=values[0],
            reserved=values[1],
            offset=values[2],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IoRecord:
    """Record IO; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HBBf")
    SIZE: ClassVar[int] = 8

    tensor: int
    dtype: int
    reserved: int = 0
    scale: float

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.tensor,
            self.dtype,
            self.reserved,
            self.scale,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> IoRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            tensor=values[0],
            dtype=values[1],
            reserved=values[2],
            scale=values[3],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """Record SCHEDULE; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHHH")
    SIZE: ClassVar[int] = 8

    stage_count: int
    segment_count: int
    entry_count: int
    placed_count: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.stage_count,
            self.segment_count,
            self.entry_count,
            self.placed_count,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> ScheduleRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            stage_count=values[0],
            segment_count=values[1],
            entry_count=values[2],
            placed_count=values[3],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """Record STAGE; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHIII")
    SIZE: ClassVar[int] = 16

    first_segment: int
    segment_count: int
    state: int
    scratch: int
    scratch_len: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.first_segment,
            self.segment_count,
            self.state,
            self.scratch,
            self.scratch_len,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> StageRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            first_segment=values[0],
            segment_count=values[1],
            state=values[2],
            scratch=values[3],
            scratch_len=values[4],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """Record SEGMENT; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHHH")
    SIZE: ClassVar[int] = 8

    first_entry: int
    entry_count: int
    row_steps: int
    col_steps: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.first_entry,
            self.entry_count,
            self.row_steps,
            self.col_steps,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> SegmentRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            first_entry=values[0],
            entry_count=values[1],
            row_steps=values[2],
            col_steps=values[3],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRecord:
    """Record ENTRY; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HBBHhHHHhHHII")
    SIZE: ClassVar[int] = 28

    op: int
    policy: int
    flags: int
    row_adv: int
    row_off: int
    row_ext: int
    keep: int
    col_adv: int
    col_off: int
    col_ext: int
    slice: int
    offset: int
    aux: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.op,
            self.policy,
            self.flags,
            self.row_adv,
            self.row_off,
            self.row_ext,
            self.keep,
            self.col_adv,
            self.col_off,
            self.col_ext,
            self.slice,
            self.offset,
            self.aux,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> EntryRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            op=values[0],
            policy=values[1],
            flags=values[2],
            row_adv=values[3],
            row_off=values[4],
            row_ext=values[5],
            keep=values[6],
            col_adv=values[7],
            col_off=values[8],
            col_ext=values[9],
            slice=values[10],
            offset=values[11],
            aux=values[12],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestRecord:
    """Record SELFTEST; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IHH")
    SIZE: ClassVar[int] = 8

    seed: int
    stage_count: int
    output_count: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.seed,
            self.stage_count,
            self.output_count,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> SelftestRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            seed=values[0],
            stage_count=values[1],
            output_count=values[2],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """Record STATE; fields in docs/plan-format.md."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HBBBBHIIIII16s16sI")
    SIZE: ClassVar[int] = 64

    magic: int
    state: int
    active: int
    tries: int
    reason: int
    reserved: int = 0
    seq: int
    floor: int
    offset: int
    slot_erases: int
    state_erases: int
    active_digest: bytes = bytes(16)
    digest: bytes = bytes(16)
    crc: int

    def pack(self) -> bytes:
        """The record's bytes; struct.error if a value does not fit its field."""
        return self.LAYOUT.pack(
            self.magic,
            self.state,
            self.active,
            self.tries,
            self.reason,
            self.reserved,
            self.seq,
            self.floor,
            self.offset,
            self.slot_erases,
            self.state_erases,
            self.active_digest,
            self.digest,
            self.crc,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> StateRecord:
        """Read the record at ``offset``; struct.error if the bytes end before it does."""
        values = cls.LAYOUT.unpack_from(data, offset)
        return cls(
            magic=values[0],
            state=values[1],
            active=values[2],
            tries=values[3],
            reason=values[4],
            reserved=values[5],
            seq=values[6],
            floor=values[7],
            offset=values[8],
            slot_erases=values[9],
            state_erases=values[10],
            active_digest=values[11],
            digest=values[12],
            crc=values[13],
        )
