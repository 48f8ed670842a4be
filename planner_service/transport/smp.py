# SPDX-License-Identifier: Apache-2.0
"""The update group of MCUmgr's Simple Management Protocol over UDP and serial lines: module/src/smp/weft_smp.c on the
device's side. Lines, framing and packet headers are smpclient's.

A request is sent again under its own number until the reply with that number comes; the time between follows the round
trips that were measured. Replies to earlier requests, and bytes that are no reply, are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from urllib.parse import unquote

import cbor2
from smp.header import OP, Flag, Header, Version
from smpclient.exceptions import SMPClientException
from smpclient.transport import SMPTransport, SMPTransportDisconnected
from smpclient.transport.udp import SMPUDPTransport

from planner_service.errors import Code, PlannerError
from planner_service.transport.base import Address, Settings, Transport, TransportError
from planner_service.transport.commands import GROUP, READING, SLOW, Command, CommandTransport, Pace, Reply

# What smpclient has to say comes as errors of the requests; it would go to stderr as well.
logging.getLogger("smpclient").addHandler(logging.NullHandler())
logging.getLogger("smpclient").propagate = False

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
#: Of serial lines. What comes faster than a device's thread runs, as over USB, is lost behind
#: CONFIG_UART_MCUMGR_RX_BUF_COUNT lines, of which its parameters do not tell.
_OPTIONS, _LINES = {"baud", "lines"}, "2"
#: Bytes of a packet besides its data: SMP header and the names and numbers of a begin's or write's map, rounded up.
_OVERHEAD = 48
#: The largest reply of a device is its state; what is longer is none.
_REPLY_BYTES = 2048


async def connect(address: Address, settings: Settings) -> Transport:
    """A device at ``smp+udp://host[:port]`` or ``smp+serial:///dev/...[?baud=N&lines=N]``; it has answered when this
    returns. ``lines``: of 128 bytes that the device's driver can hold, which bounds the packet; 2: MCUmgr's default."""
    line: SMPTransport
    if address.scheme == "smp+udp":
        udp = SMPUDPTransport()
        line = udp
        if address.options:
            raise PlannerError(Code.BAD_REQUEST, f"{address}: SMP over UDP has no options")

        async def open_line() -> None:
            # A zone, as in fe80::1%25eth0, is percent-encoded in an address.
            await udp.connect(unquote(address.host), settings.patience_seconds, address.port or 0)
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
    baud, lines = address.options.get("baud", "115200"), address.options.get("lines", _LINES)
    known = baud.isdecimal() and lines.isdecimal() and 1 <= int(lines) <= 64 and not set(address.options) - _OPTIONS
    if not known:
        raise PlannerError(
            Code.BAD_REQUEST, f"{address}: a serial line has the options baud, a number, and lines, 1 to 64"
        )
    try:
        from smpclient.transport.serial import SMPSerialTransport
        from smpclient.transport.serial.encoded import BufferParams
    except ImportError as error:
        raise PlannerError(
            Code.UNAVAILABLE, "serial lines need pyserial", hint="pip install 'smpclient[serial]'"
        ) from error
    return SMPSerialTransport(BufferParams(line_buffers=int(lines)), baudrate=int(baud), exclusive=True)


class SmpTransport(CommandTransport):
    """A device on an open line."""

    def __init__(self, address: Address, line: SMPTransport, settings: Settings) -> None:
        self.address = address
        self.chunk_bytes = _PACKET_BYTES - _OVERHEAD
        self._line = line
        self._settings = settings
        self._sequence = random.randrange(256)
        self._pace = Pace(settings)
        self._lock = asyncio.Lock()

    async def negotiate(self) -> None:
        """Ask what a packet may hold, and choose the chunk by it."""
        reply = await self._ask("connecting", _OS_GROUP, OP.READ, _OS_PARAMETERS, {}, slow=False)
        size = reply.get("buf_size")
        packet = min(_PACKET_BYTES, self._line.max_unencoded_size)
        if isinstance(size, int) and size > _OVERHEAD:
            with contextlib.suppress(ValueError):  # a serial line says so where the buffer holds no frame
                self._line.initialize(size)
                packet = min(size, self._line.max_unencoded_size)
        elif reply.get("rc") not in (None, _NOT_SUPPORTED):
            raise _mgmt_error(reply, "connecting")
        self.chunk_bytes = min(packet - _OVERHEAD, self._settings.chunk_bytes or packet)

    async def close(self) -> None:
        await self._line.disconnect()

    # ------------------------------------------------------------ requests

    async def ask(self, doing: str, command: Command, members: Reply) -> Reply:
        op = OP.READ if command in READING else OP.WRITE
        reply = await self._ask(doing, GROUP, op, command, members, slow=command in SLOW)
        if reply.get("rc", 0) != 0:
            raise _mgmt_error(reply, doing)
        return reply

    async def _ask(self, doing: str, group: int, op: OP, command: int, members: Reply, *, slow: bool) -> Reply:
        """The reply's map. TransportError(UNREACHABLE) if there is none for the settings' patience."""
        async with self._lock:
            return await self._exchange(doing, group, op, command, members, slow)

    async def _exchange(self, doing: str, group: int, op: OP, command: int, members: Reply, slow: bool) -> Reply:
        self._sequence = (self._sequence + 1) % 256
        body = cbor2.dumps(dict(members))
        header = Header(op, Version.V2, Flag(0), len(body), group, self._sequence, command)
        packet = header.BYTES + body
        patience = self._pace.patience(slow)
        started = time.monotonic()
        wait, sends = self._pace.first_wait(slow), 0
        while (left := started + patience - time.monotonic()) > 0:
            sent = time.monotonic()
            sends += 1
            try:
                async with asyncio.timeout(min(wait, left)):
                    await self._line.send(packet)
                    while (reply := _reply(await self._receive(), header)) is None:
                        pass
            except TimeoutError:
                wait = self._pace.next_wait(wait)
            except (OSError, SMPTransportDisconnected) as error:
                raise TransportError(
                    Code.UNREACHABLE, f"{doing}: the line to {self.address} broke", hint="connect again"
                ) from error
            else:
                if sends == 1:
                    self._pace.measure(time.monotonic() - sent)
                return reply
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


# ---------------------------------------------------------------- replies: bytes from outside


def _reply(frame: bytes, request: Header) -> Reply | None:
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


def _mgmt_error(reply: Reply, doing: str) -> TransportError:
    number = reply.get("rc")
    text = _MGMT_ERRORS.get(number, f"error {number}") if isinstance(number, int) else "an error"
    hint = "does its firmware have Weft's SMP group, and with it this command?" if number == _NOT_SUPPORTED else ""
    return TransportError(Code.DEVICE, f"{doing}: the device answered: {text}", hint=hint)
