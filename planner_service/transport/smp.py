# SPDX-License-Identifier: Apache-2.0
"""The update group of MCUmgr's Simple Management Protocol over UDP and serial lines: module/src/smp/weft_smp.c on the
device's side. Lines, framing and packet headers are smpclient's.

A request is sent again under its own number until the reply with that number comes; the time between follows the round
trips that were measured. Replies to earlier requests, and bytes that are no reply, are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import cbor2
from smp.header import OP, Flag, Header, Version
from smpclient.exceptions import SMPClientException
from smpclient.transport import SMPTransport, SMPTransportDisconnected
from smpclient.transport.udp import SMPUDPTransport

from planner_service.errors import Code, PlannerError
from planner_service.format import EngineError, SlotState
from planner_service.transport.base import NO_SLOT, Address, Settings, State, Stats, Transfer, Transport, TransportError

# What smpclient has to say comes as errors of the requests; without a handler it would go to stderr as well.
logging.getLogger("smpclient").addHandler(logging.NullHandler())

_GROUP = 64
_STATE, _BEGIN, _WRITE, _FINISH, _TEST, _CONFIRM, _REVERT, _ERASE, _STATS, _ABORT = range(10)
#: MCUmgr's own group and its request for the size of a packet.
_OS_GROUP, _OS_PARAMETERS = 0, 6
_MGMT_ERRORS = {
    1: "unknown error",
    2: "it is out of memory, or the reply does not fit",
    3: "it did not understand the request",
    6: "it is not in a state for this",
    7: "the reply does not fit",
    8: "it has no such command",
    10: "it is busy",
    11: "access denied",
}
_NOT_SUPPORTED = 8

#: Bytes of a packet where the device does not say what it takes: the least that MCUmgr is configured with.
_PACKET_BYTES = 256
#: Bytes of a packet besides its data: SMP header and the names and numbers of a begin's or write's map, rounded up.
_OVERHEAD = 48
#: Seconds to the first repetition at least, before a round trip was measured, and how it grows.
_RESEND_LEAST, _RESEND_FIRST, _RESEND_GROWTH = 0.05, 0.5, 1.5
#: The largest reply of a device is its state; what is longer is none.
_REPLY_BYTES = 2048


async def connect(address: Address, settings: Settings) -> Transport:
    """A device at ``smp+udp://host[:port]`` or ``smp+serial:///dev/...[?baud=N]``; it has answered when this
    returns."""
    line: SMPTransport
    if address.scheme == "smp+udp":
        udp = SMPUDPTransport()
        line = udp
        if address.options:
            raise PlannerError(Code.BAD_REQUEST, f"{address}: SMP over UDP has no options")

        async def open_line() -> None:
            await udp.connect(address.host, settings.patience_seconds, address.port or 0)
    else:
        line = serial = _serial(address)

        async def open_line() -> None:
            await serial.connect(address.path, settings.patience_seconds)

    try:
        await open_line()
    except (OSError, TimeoutError) as error:
        why = (error.strerror or "") if isinstance(error, OSError) else ""
        raise TransportError(
            Code.UNREACHABLE, f"{address} cannot be opened" + (f": {why}" if why else ""), hint="check the address"
        ) from error
    found = SmpTransport(address, line, settings)
    try:
        await found.negotiate()
    except BaseException:
        await found.close()
        raise
    return found


def _serial(address: Address) -> SMPTransport:
    """A serial line; PlannerError(UNAVAILABLE) without pyserial."""
    baud = address.options.get("baud", "115200")
    if not baud.isdecimal() or set(address.options) - {"baud"}:
        raise PlannerError(Code.BAD_REQUEST, f"{address}: a serial line has the option baud, a number, and no other")
    try:
        from smpclient.transport.serial import SMPSerialTransport
    except ImportError as error:
        raise PlannerError(
            Code.UNAVAILABLE, "serial lines need pyserial", hint="pip install 'smpclient[serial]'"
        ) from error
    return SMPSerialTransport(baudrate=int(baud), exclusive=True)


class SmpTransport(Transport):
    """A device on an open line."""

    def __init__(self, address: Address, line: SMPTransport, settings: Settings) -> None:
        self.address = address
        self.chunk_bytes = _PACKET_BYTES - _OVERHEAD
        self._line = line
        self._settings = settings
        self._sequence = random.randrange(256)
        self._round_trip: float | None = None
        self._variation = 0.0
        self._digest = b""
        self._lock = asyncio.Lock()

    async def negotiate(self) -> None:
        """Ask what a packet may hold, and choose the chunk by it."""
        reply, _ = await self._ask("connecting", _OS_GROUP, OP.READ, _OS_PARAMETERS, {})
        size = reply.get("buf_size")
        packet = _PACKET_BYTES
        if isinstance(size, int) and size > _OVERHEAD:
            with contextlib.suppress(ValueError):  # a serial line says so where the buffer holds no frame
                self._line.initialize(size)
                packet = min(size, self._line.max_unencoded_size)
        elif reply.get("rc") not in (None, _NOT_SUPPORTED):
            raise _mgmt_error(reply, "connecting")
        self.chunk_bytes = min(packet - _OVERHEAD, self._settings.chunk_bytes or packet)

    # ------------------------------------------------------------ the calls

    async def state(self) -> State:
        reply, _ = await self._call("reading the state", OP.READ, _STATE)
        active, running, reason = (_number(reply, name) for name in ("active", "running", "reason"))
        return State(
            active=None if active == NO_SLOT else active,
            running=None if running == NO_SLOT else running,
            state=_slot_state(reply),
            tries=_number(reply, "tries"),
            reason=_engine_error(reason),
            floor=_number(reply, "floor"),
            received=_number(reply, "received"),
            total=_number(reply, "total"),
            resume=_number(reply, "resume"),
            active_digest=_bytes(reply, "active_digest"),
            digest=_bytes(reply, "digest"),
        )

    async def begin(self, head: bytes, digest: bytes, length: int, *, copy: bool = True) -> Transfer:
        doing, at = "beginning the update", 0
        for _ in range(2 * len(head)):
            part = head[at : at + self.chunk_bytes]
            members = {"off": at, "len": len(head), "data": part, "copy": copy}
            reply, _ = await self._call(doing, OP.WRITE, _BEGIN, members)
            if "head" not in reply:
                self._digest = digest
                return _transfer(reply, token=_number(reply, "token"), active=bool(_number(reply, "active")))
            at = min(_number(reply, "head"), len(head) - 1)
        raise TransportError(Code.DEVICE, f"{doing}: the device does not take the header", hint="end the other update")

    async def write(self, token: int, offset: int, data: bytes) -> Transfer:
        members = {"token": token, "off": offset, "data": data}
        reply, _ = await self._call("sending the plan", OP.WRITE, _WRITE, members)
        return _transfer(reply, token=token, active=False)

    async def finish(self, token: int) -> None:
        async def staged() -> bool:
            state = await self.state()
            return state.state is SlotState.STAGED and state.digest == self._digest[: len(state.digest)]

        await self._once("finishing the update", _FINISH, EngineError.TOKEN, staged, {"token": token})

    async def abort(self, token: int) -> None:
        async def ended() -> bool:
            return (await self.state()).total == 0

        await self._once("ending the session", _ABORT, EngineError.TOKEN, ended, {"token": token})

    async def test(self) -> None:
        async def ordered() -> bool:
            return (await self.state()).state is not SlotState.STAGED

        await self._once("ordering the trial", _TEST, EngineError.STATE, ordered)

    async def confirm(self) -> None:
        async def confirmed() -> bool:
            state = await self.state()
            return state.state in (SlotState.OLD, SlotState.EMPTY) and state.running == state.active

        await self._once("confirming the plan", _CONFIRM, EngineError.STATE, confirmed)

    async def revert(self) -> None:
        async def reverted() -> bool:
            return (await self.state()).state is SlotState.REVERTED

        await self._once("reverting", _REVERT, EngineError.STATE, reverted)

    async def erase(self) -> None:
        await self._call("erasing the slot", OP.WRITE, _ERASE, slow=True)

    async def stats(self) -> Stats:
        reply, _ = await self._call("reading the counters", OP.READ, _STATS)
        return Stats(**{name: _number(reply, name) for name in ("slot_erases", "state_erases", "records")})

    async def close(self) -> None:
        await self._line.disconnect()

    # ------------------------------------------------------------ requests

    async def _once(
        self,
        doing: str,
        command: int,
        repeated: EngineError,
        done: Callable[[], Awaitable[bool]],
        members: Mapping[str, Any] | None = None,
    ) -> None:
        """A request that the device can do once. Where it was sent again and the answer is ``repeated``, the first one
        may have got through: ``done`` finds out."""
        reply, resent = await self._ask(doing, _GROUP, OP.WRITE, command, members or {}, slow=True)
        try:
            _check(reply, doing)
        except TransportError as error:
            if not (resent and error.device is repeated and await done()):
                raise

    async def _call(
        self, doing: str, op: OP, command: int, members: Mapping[str, Any] | None = None, *, slow: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """A request of the update group, and whether it was sent again; TransportError if the device refuses."""
        reply, resent = await self._ask(doing, _GROUP, op, command, members or {}, slow=slow)
        _check(reply, doing)
        return reply, resent

    async def _ask(
        self, doing: str, group: int, op: OP, command: int, members: Mapping[str, Any], *, slow: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """The reply's map. TransportError(UNREACHABLE) if there is none for the settings' patience."""
        async with self._lock:
            return await self._exchange(doing, group, op, command, members, slow)

    async def _exchange(
        self, doing: str, group: int, op: OP, command: int, members: Mapping[str, Any], slow: bool
    ) -> tuple[Mapping[str, Any], bool]:
        self._sequence = (self._sequence + 1) % 256
        body = cbor2.dumps(dict(members))
        header = Header(op, Version.V2, Flag(0), len(body), group, self._sequence, command)
        packet = header.BYTES + body
        patience = self._settings.patience_seconds * (self._settings.slow_factor if slow else 1.0)
        started = time.monotonic()
        wait, sends = self._first_wait(slow), 0
        while (left := started + patience - time.monotonic()) > 0:
            sent = time.monotonic()
            sends += 1
            try:
                async with asyncio.timeout(min(wait, left)):
                    await self._line.send(packet)
                    while (reply := _reply(await self._receive(), header)) is None:
                        pass
            except TimeoutError:
                wait = min(wait * _RESEND_GROWTH, self._settings.resend_seconds)
            except (OSError, SMPTransportDisconnected) as error:
                raise TransportError(
                    Code.UNREACHABLE, f"{doing}: the line to {self.address} broke", hint="connect again"
                ) from error
            else:
                if sends == 1:  # of a repeated request nobody knows which one was answered
                    self._measure(time.monotonic() - sent)
                return reply, sends > 1
        raise TransportError(
            Code.UNREACHABLE,
            f"{doing}: {self.address} has not answered for {patience:g} s",
            hint="is the device on, and the address its own? --timeout waits longer",
        )

    async def _receive(self) -> bytes:
        """The next packet; b"" for what is none."""
        try:
            return bytes(await self._line.receive())
        except (SMPClientException, ValueError, AssertionError):
            return b""

    def _first_wait(self, slow: bool) -> float:
        if slow:
            return self._settings.resend_seconds
        if self._round_trip is None:
            return min(_RESEND_FIRST, self._settings.resend_seconds)
        return min(max(self._round_trip + 4 * self._variation, _RESEND_LEAST), self._settings.resend_seconds)

    def _measure(self, seconds: float) -> None:
        """Smoothed round trip and its variation, as RFC 6298 has them."""
        if self._round_trip is None:
            self._round_trip, self._variation = seconds, seconds / 2
        else:
            self._variation += (math.fabs(self._round_trip - seconds) - self._variation) / 4
            self._round_trip += (seconds - self._round_trip) / 8


# ---------------------------------------------------------------- replies: bytes from outside


def _reply(frame: bytes, request: Header) -> Mapping[str, Any] | None:
    """The map of the reply to ``request``; None for anything else."""
    if not Header.SIZE <= len(frame) <= _REPLY_BYTES:
        return None
    try:
        header = Header.loads(frame[: Header.SIZE])
        if (header.op, header.group_id, header.sequence, header.command_id) != (
            OP(request.op + 1),
            request.group_id,
            request.sequence,
            request.command_id,
        ):
            return None
        body = cbor2.loads(frame[Header.SIZE :])
    except (ValueError, cbor2.CBORError):
        return None
    return body if isinstance(body, Mapping) else None


def _check(reply: Mapping[str, Any], doing: str) -> None:
    """TransportError if the reply is an error."""
    error = reply.get("err")
    if isinstance(error, Mapping):
        number, group = error.get("rc"), error.get("group")
        if isinstance(number, int) and group == _GROUP:
            raise TransportError.from_device(number, doing)
        raise TransportError(Code.DEVICE, f"{doing}: the device answered with error {number} of group {group}")
    if reply.get("rc", 0) != 0:
        raise _mgmt_error(reply, doing)


def _mgmt_error(reply: Mapping[str, Any], doing: str) -> TransportError:
    number = reply.get("rc")
    text = _MGMT_ERRORS.get(number, f"error {number}") if isinstance(number, int) else "an error"
    hint = "does its firmware have Weft's SMP group?" if number == _NOT_SUPPORTED else ""
    return TransportError(Code.DEVICE, f"{doing}: the device answered: {text}", hint=hint)


def _malformed(name: str) -> TransportError:
    return TransportError(
        Code.DEVICE, f"the device's reply has no proper {name!r}", hint="is its firmware of this version of Weft?"
    )


def _number(reply: Mapping[str, Any], name: str) -> int:
    value = reply.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise _malformed(name)
    return int(value)


def _bytes(reply: Mapping[str, Any], name: str) -> bytes:
    value = reply.get(name)
    if not isinstance(value, bytes):
        raise _malformed(name)
    return value


def _slot_state(reply: Mapping[str, Any]) -> SlotState:
    try:
        return SlotState(_number(reply, "state"))
    except ValueError as error:
        raise _malformed("state") from error


def _engine_error(number: int) -> EngineError | None:
    if number == 0:
        return None
    try:
        return EngineError(number)
    except ValueError as error:
        raise _malformed("reason") from error


def _transfer(reply: Mapping[str, Any], *, token: int, active: bool) -> Transfer:
    return Transfer(
        token=token,
        next=_number(reply, "off"),
        until=_number(reply, "until"),
        total=_number(reply, "total"),
        copying=bool(_number(reply, "copying")),
        active=active,
        state=_slot_state(reply),
        slot=_number(reply, "slot"),
    )
