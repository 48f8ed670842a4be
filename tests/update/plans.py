# SPDX-License-Identifier: Apache-2.0
"""Tiny signed plans for the tests of the update core, made by the planner once per process."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from planner_service import ir, planner, signing
from planner_service.engine import Engine
from planner_service.errors import PlannerError
from planner_service.format import SIGNATURE_LEN, EntryRecord, HeaderRecord, ScheduleRecord, SectionId, SectionRecord
from tests.schedule_graphs import Maker

VENDOR = bytes(range(16))
DEVICE = bytes(range(16, 32))
MAGIC = 0x31544C50  #: of the file for the simulator


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """``key``: private, PEM. Versions: ``first`` 1, ``old`` 2, ``next`` 4, the others 3. All models differ, but
    ``delta`` is ``old``'s model with another schedule, ``wrong`` fails its self-test, ``invalid`` the verifier."""

    key: bytes
    first: bytes
    old: bytes
    new: bytes
    delta: bytes
    next: bytes
    wrong: bytes
    invalid: bytes


def graph(seed: int, channels: int = 28) -> ir.Graph:
    """About 3.6 KiB of weights at 28 channels."""
    m = Maker(seed, [(3, 3, 4)])
    t = m.conv(m.inputs[0], channels)
    t = m.depthwise(t)
    t = m.conv(t, channels, kernel=(1, 1), pads=(0, 0, 0, 0))
    t = m.conv(t, 4)
    return m.graph([t])


def options(version: int) -> planner.Options:
    return planner.Options(plan_version=version, vendor_id=VENDOR, class_id=DEVICE)


def sections(plan: bytes) -> dict[int, SectionRecord]:
    """The section table by type."""
    count = HeaderRecord.unpack(plan).section_count
    rows = [SectionRecord.unpack(plan, HeaderRecord.SIZE + n * SectionRecord.SIZE) for n in range(count)]
    return {row.type: row for row in rows}


def seal(plan: bytes, key: bytes | None) -> bytes:
    """Section hashes and signature made good again after bytes were changed; no key: unsigned."""
    header = HeaderRecord.unpack(plan)
    data = bytearray(plan)
    for number in range(header.section_count):
        at = HeaderRecord.SIZE + number * SectionRecord.SIZE
        row = SectionRecord.unpack(plan, at)
        digest = hashlib.sha256(plan[row.offset : row.offset + row.length]).digest()
        data[at : at + SectionRecord.SIZE] = replace(row, sha256=digest).pack()
    data[header.header_len : header.header_len + SIGNATURE_LEN] = bytes(SIGNATURE_LEN)
    return signing.sign_header(bytes(data), key) if key is not None else bytes(data)


def change(plan: bytes, key: bytes | None, edit: Callable[[bytearray], None]) -> bytes:
    """The plan with edited bytes, sealed again."""
    data = bytearray(plan)
    edit(data)
    return seal(bytes(data), key)


def edit_header(plan: bytes, key: bytes | None, **fields: int | bytes) -> bytes:
    """The plan with other header fields, sealed again."""
    header = replace(HeaderRecord.unpack(plan), **fields)  # type: ignore[arg-type]
    return change(plan, key, lambda data: data.__setitem__(slice(0, HeaderRecord.SIZE), header.pack()))


def resize(plan: bytes, key: bytes, total_len: int) -> bytes:
    """A header that declares another length."""
    header = replace(HeaderRecord.unpack(plan), total_len=total_len)
    return signing.sign_header(header.pack() + plan[HeaderRecord.SIZE :], key)


def flip_output_crc(data: bytearray) -> None:
    """Computes something else than its self-test says."""
    row = sections(bytes(data))[SectionId.SELFTEST]
    data[row.offset + row.length - 1] ^= 0x40


def _move_window(data: bytearray) -> None:
    """Signed, well formed, and with a window outside the arena."""
    row = sections(bytes(data))[SectionId.SCHEDULE]
    head = ScheduleRecord.unpack(bytes(data), row.offset)
    at = row.offset + row.length - 2 * 5 - head.entry_count * EntryRecord.SIZE
    data[at + EntryRecord.SIZE - 5] ^= 0x7F


def invalid(good: bytes, key: bytes) -> bytes:
    """Signed, and refused by the verifier: any plan with a byte of its schedule changed."""
    row = sections(good)[SectionId.SCHEDULE]
    for at in range(row.offset + row.length // 2, row.offset + row.length):
        changed = seal(good[:at] + bytes([good[at] ^ 0x7F]) + good[at + 1 :], key)
        try:
            Engine().open(changed)
        except PlannerError:
            return changed
    raise ValueError("no byte of the schedule matters")


@functools.cache
def make() -> Plans:
    """All plans, under one key."""
    key = signing.generate_key()
    new = signing.sign(planner.layers(graph(2), options(3)).plan, key)
    return Plans(
        key=key,
        first=signing.sign(planner.layers(graph(0), options(1)).plan, key),
        old=signing.sign(planner.layers(graph(1), options(2)).plan, key),
        new=new,
        delta=signing.sign(planner.layers(graph(1), replace(options(3), input_mode="resident")).plan, key),
        next=signing.sign(planner.layers(graph(3), options(4)).plan, key),
        wrong=change(new, key, flip_output_crc),
        invalid=change(new, key, _move_window),
    )


def simulator_file(path: Path) -> Path:
    """``first, old, new, delta, next, wrong`` for the simulator: magic, count, public key, (length, bytes, padding)."""
    plans = make()
    chosen = (plans.first, plans.old, plans.new, plans.delta, plans.next, plans.wrong)
    out = struct.pack("<II", MAGIC, len(chosen)) + signing.public_key(plans.key).ljust(72, b"\0")
    for plan in chosen:
        out += struct.pack("<II", len(plan), 0) + plan + bytes(-len(plan) % 8)
    path.write_bytes(out)
    return path
