# SPDX-License-Identifier: Apache-2.0
"""Updates over CoAP (RFC 7252): riot/weft_coap on the device's side. Messages are aiocoap's.

Requests are non-confirmable and repeated here, for a reply to any copy counts, the time between follows the round trips
that were measured, and it matters whether a request was sent twice."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import aiocoap
import aiocoap.error
import cbor2

from planner_service.errors import Code, PlannerError
from planner_service.transport.base import Address, Settings, Transport, TransportError
from planner_service.transport.commands import READING, SLOW, Command, CommandTransport, Pace, Reply

# What aiocoap has to say comes as errors of the requests; without a handler it would go to stderr as well.
logging.getLogger("coap").addHandler(logging.NullHandler())

#: Data of one write: with the headers of CoAP, UDP and IPv6 it fits the MTU that every IPv6 link has.
_CHUNK_BYTES = 512
_CBOR = 60
#: The largest reply of a device is its state; what is longer is none.
_REPLY_BYTES = 2048
_DEFAULT_PATH = "/weft"


async def connect(address: Address, settings: Settings) -> Transport:
    """A device at ``coap://host[:port][/path][?chunk=N]``; it has answered when this returns. ``path``: of the
    resources, /weft; ``chunk``: data bytes of one message."""
    chunk = address.options.get("chunk", str(_CHUNK_BYTES))
    if not chunk.isdecimal() or not 16 <= int(chunk) <= 1024 or set(address.options) - {"chunk"}:
        raise PlannerError(Code.BAD_REQUEST, f"{address}: CoAP has the option chunk, 16 to 1024 bytes, and no other")
    try:
        await asyncio.get_running_loop().getaddrinfo(unquote(address.host), address.port)
    except OSError as error:  # requests would be repeated until the patience ends
        raise TransportError(
            Code.UNREACHABLE, f"{address} cannot be opened: {error.strerror}", hint="check the address"
        ) from error
    context = await aiocoap.Context.create_client_context()
    found = CoapTransport(address, context, settings, min(int(chunk), settings.chunk_bytes or int(chunk)))
    try:
        await found.state()
    except BaseException:
        await found.close()
        raise
    return found


class CoapTransport(CommandTransport):
    """A device that has answered."""

    def __init__(self, address: Address, context: aiocoap.Context, settings: Settings, chunk_bytes: int) -> None:
        self.address = address
        self.chunk_bytes = chunk_bytes
        self._context = context
        self._pace = Pace(settings)
        self._lock = asyncio.Lock()
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._root = f"coap://{host}:{address.port}{address.path.rstrip('/') or _DEFAULT_PATH}"

    async def close(self) -> None:
        await self._context.shutdown()

    async def ask(self, doing: str, command: Command, members: Reply) -> Reply:
        async with self._lock:
            return await self._exchange(doing, command, members)

    async def _exchange(self, doing: str, command: Command, members: Reply) -> Reply:
        slow = command in SLOW
        patience = self._pace.patience(slow)
        started = time.monotonic()
        wait = self._pace.first_wait(slow)
        pending: set[asyncio.Task[aiocoap.Message]] = set()
        sends = 0
        try:
            while (left := started + patience - time.monotonic()) > 0:
                sent = time.monotonic()
                pending.add(asyncio.ensure_future(self._send(command, members)))
                sends += 1
                until = sent + min(wait, left)
                while pending and (rest := until - time.monotonic()) > 0:
                    ready, pending = await asyncio.wait(pending, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
                    for task in ready:
                        if task.exception() is None:
                            if sends == 1:
                                self._pace.measure(time.monotonic() - sent)
                            return _body(task.result(), doing)
                # All copies failed at once, as where no route is known yet: not in a busy loop.
                await asyncio.sleep(max(0.0, until - time.monotonic()))
                wait = self._pace.next_wait(wait)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        raise TransportError(
            Code.UNREACHABLE,
            f"{doing}: {self.address} has not answered for {patience:g} s",
            hint="is the device on, and the address its own? --timeout waits longer",
        )

    async def _send(self, command: Command, members: Reply) -> aiocoap.Message:
        """One copy of a request; waits for its reply for ever, or raises aiocoap.error.Error or OSError."""
        request = aiocoap.Message(
            code=aiocoap.GET if command in READING else aiocoap.POST,
            uri=f"{self._root}/{command.name.lower()}",
            transport_tuning=aiocoap.Unreliable,
        )
        if command not in READING:
            request.payload = cbor2.dumps(dict(members))
            request.opt.content_format = _CBOR
        return await self._context.request(request, handle_blockwise=False).response


def _body(message: aiocoap.Message, doing: str) -> Mapping[str, Any]:
    """The map of a reply; TransportError(DEVICE) if it has none."""
    found: object = None
    if len(message.payload) <= _REPLY_BYTES:
        try:
            found = cbor2.loads(message.payload)
        except (ValueError, cbor2.CBORError):
            found = None
    if isinstance(found, Mapping):
        return found
    hint = "does its firmware have weft_coap, and in it this command?" if message.code is aiocoap.NOT_FOUND else ""
    raise TransportError(Code.DEVICE, f"{doing}: the device answered {message.code}", hint=hint)
