# SPDX-License-Identifier: Apache-2.0
"""Updates that a device must refuse, and peers that try them: against the core itself in tests/test_update.py, through
SMP and CoAP against the systems."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from planner_service import signing
from planner_service.errors import Code
from planner_service.format import EngineError, HeaderRecord, SectionRecord, SignatureRecord, SlotState
from planner_service.transport import Transport, TransportError
from tests.update import plans as made


@dataclass(frozen=True, slots=True)
class Hostile:
    """A plan that the header suffices to refuse."""

    name: str
    result: str
    make: Callable[[made.Plans], bytes]


def header(**fields: int | bytes) -> Callable[[made.Plans], bytes]:
    return lambda p: made.edit_header(p.new, p.key, **fields)


def raw_header(**fields: int | bytes) -> Callable[[made.Plans], bytes]:
    """A header changed without the key."""

    def edit(p: made.Plans) -> bytes:
        record = replace(HeaderRecord.unpack(p.new), **fields)  # type: ignore[arg-type]
        return record.pack() + p.new[HeaderRecord.SIZE :]

    return edit


def signature(**fields: int | bytes) -> Callable[[made.Plans], bytes]:
    def edit(p: made.Plans) -> bytes:
        at = HeaderRecord.unpack(p.new).header_len
        record = replace(SignatureRecord.unpack(p.new, at), **fields)  # type: ignore[arg-type]
        return p.new[:at] + record.pack() + p.new[at + SignatureRecord.LAYOUT.size :]

    return edit


def section(number: int, **fields: int | bytes) -> Callable[[made.Plans], bytes]:
    """A row of the section table changed by who holds the key; lengths and hashes are not repaired."""

    def edit(p: made.Plans) -> bytes:
        at = HeaderRecord.SIZE + number * SectionRecord.SIZE
        record = replace(SectionRecord.unpack(p.new, at), **fields)  # type: ignore[arg-type]
        return signing.sign_header(p.new[:at] + record.pack() + p.new[at + SectionRecord.SIZE :], p.key)

    return edit


def by_header(*, arena: int, slot: int) -> list[Hostile]:
    """Against a device with so many bytes of arena and slot, that runs version 2 or later and wants VENDOR and DEVICE.
    ``plans.new`` would be taken."""
    return [
        Hostile("unsigned", "UNSIGNED", lambda p: made.seal(p.new, None)),
        Hostile("unknown algorithm", "UNSIGNED", signature(algorithm=2)),
        Hostile("wrong key", "KEY", lambda p: signing.sign(p.new, signing.generate_key())),
        Hostile("key id of ours, signature of another's", "SIGNATURE", signature(value=bytes(range(64)))),
        Hostile("zero signature", "SIGNATURE", signature(value=bytes(64))),
        Hostile("reserved byte of the signature", "SIGNATURE", signature(reserved=1)),
        Hostile("signature of another plan", "SIGNATURE", lambda p: signature(value=_value(p.old))(p)),
        Hostile("two reserved bytes of the signature", "SIGNATURE", signature(reserved2=1)),
        Hostile("version raised without the key", "SIGNATURE", raw_header(plan_version=9)),
        Hostile("downgrade", "FLOOR", lambda p: p.first),
        Hostile("version 0", "FLOOR", header(plan_version=0)),
        Hostile("another vendor", "VENDOR", header(vendor_id=bytes(16))),
        Hostile("another device class", "VENDOR", header(class_id=bytes(15) + b"\1")),
        Hostile("needs more RAM", "LIMIT", header(arena_bytes=arena + 1)),
        Hostile("arena of 2^32 - 1", "ARENA", header(arena_bytes=0xFFFFFFFF)),
        Hostile("newer ABI", "ABI", header(abi_minor=255)),
        Hostile("other ABI", "ABI", header(abi_major=0)),
        Hostile("newer format", "VERSION", header(format_minor=255)),
        Hostile("operator that nobody knows", "OPCODE", header(op_mask=1 << 63)),
        Hostile("capability that nobody knows", "UNKNOWN", header(capabilities=1 << 31)),
        Hostile("flag that nobody knows", "UNKNOWN", header(flags=1)),
        Hostile("larger than the slot", "SLOT", lambda p: made.resize(p.new, p.key, slot + 8)),
        Hostile("size of 2^32 - 1", "SLOT", lambda p: made.resize(p.new, p.key, 0xFFFFFFFF)),
        Hostile("size smaller than its header", "SECTION", lambda p: made.resize(p.new, p.key, 64)),
        Hostile("size shorter than its sections", "SECTION", lambda p: made.resize(p.new, p.key, len(p.new) - 8)),
        Hostile(
            "size within the signature", "SECTION", lambda p: made.resize(p.new, p.key, signing.head_len(p.new) - 64)
        ),
        Hostile("size longer than its sections", "SECTION", lambda p: made.resize(p.new, p.key, len(p.new) + 8)),
        Hostile("critical section of type 0", "UNKNOWN", section(3, type=0, flags=1)),
        Hostile("section of 2^32 - 1", "SECTION", section(2, length=0xFFFFFFFF)),
        Hostile("section behind the end", "SECTION", section(3, offset=0xFFFFFFF8)),
        Hostile("sections that overlap", "SECTION", section(1, offset=16)),
        Hostile("section twice", "SECTION", section(1, type=1)),
        Hostile("section missing", "SECTION", section(2, type=200, flags=0)),
        Hostile("critical section that nobody knows", "UNKNOWN", section(3, type=200, flags=1)),
        Hostile("not a plan", "MAGIC", raw_header(magic=0)),
        Hostile("header length", "SECTION", raw_header(header_len=0xFFFF)),
    ]


def _value(plan: bytes) -> bytes:
    return SignatureRecord.unpack(plan, HeaderRecord.unpack(plan).header_len).value


# ---------------------------------------------------------------- through a transport


async def send(transport: Transport, plan: bytes, until: int | None = None) -> int:
    """Begin and write up to ``until``; the token. The host's own check of the plan is left out."""
    digest = bytes.fromhex(signing.describe(plan).digest)
    transfer = await transport.begin(plan[: signing.head_len(plan)], digest, len(plan), copy=False)
    end = len(plan) if until is None else until
    while transfer.next < end:
        at = transfer.next
        transfer = await transport.write(transfer.token, at, plan[at : min(end, at + transport.chunk_bytes)])
    return transfer.token


async def begin_refused(transport: Transport, plans: made.Plans, hostile: Hostile) -> None:
    """The header suffices: the device gives its error, and has erased and recorded nothing."""
    head = hostile.make(plans)[: signing.head_len(plans.new)]
    before = await transport.stats()
    with pytest.raises(TransportError) as raised:
        await transport.begin(head, bytes(32), len(plans.new))
    assert raised.value.device is EngineError[hostile.result], hostile.name
    assert raised.value.code is Code.REFUSED, hostile.name
    assert await transport.stats() == before, hostile.name


async def finish_refused(transport: Transport, plan: bytes, *errors: EngineError) -> None:
    """The whole plan is taken, found bad when it is read back, and cannot be tried."""
    token = await send(transport, plan)
    with pytest.raises(TransportError) as raised:
        await transport.finish(token)
    assert raised.value.device in errors
    assert (await transport.state()).state is SlotState.EMPTY
    with pytest.raises(TransportError) as raised:
        await transport.test()
    assert raised.value.device is EngineError.STATE


async def truncated(transport: Transport, plan: bytes) -> None:
    """All but the last byte is no plan yet."""
    token = await send(transport, plan, len(plan) - 1)
    with pytest.raises(TransportError) as raised:
        await transport.finish(token)
    assert raised.value.device is EngineError.TRUNCATED
    with pytest.raises(TransportError) as raised:
        await transport.test()
    assert (raised.value.device, raised.value.code) == (EngineError.STATE, Code.BAD_STATE)
    await transport.abort(token)


async def disordered(transport: Transport, plan: bytes, seed: int = 3) -> None:
    """Chunks too early, too late, twice: none does harm, and the plan arrives."""
    rng = random.Random(seed)
    transfer = await transport.begin(plan[: signing.head_len(plan)], bytes(32), len(plan), copy=False)
    token = transfer.token
    while transfer.next < len(plan):
        at = transfer.next
        for start in (at + 97, 0, len(plan) - 50, at, max(0, at - 150), at):
            if rng.random() < 0.7:
                transfer = await transport.write(token, start, plan[start : start + 100])
                assert at <= transfer.next <= at + 200
    await transport.finish(token)


async def replayed(transport: Transport, there: bytes, older: Sequence[bytes], times: int = 1000) -> None:
    """A plan that the device has, and ones that it had: nothing is sent, erased or recorded."""
    before = await transport.stats()
    digest = bytes.fromhex(signing.describe(there).digest)
    for _ in range(times):
        transfer = await transport.begin(there[: signing.head_len(there)], digest, len(there))
        assert (transfer.token, transfer.next) == (0, len(there))
        for plan in older:
            with pytest.raises(TransportError) as raised:
                await transport.begin(plan[: signing.head_len(plan)], bytes(32), len(plan))
            assert raised.value.device is EngineError.FLOOR
    assert await transport.stats() == before
