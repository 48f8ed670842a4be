# SPDX-License-Identifier: Apache-2.0
"""The update commands of a device as CBOR maps (docs/update.md): what SMP packets and CoAP messages carry alike. A
protocol's transport adds how one of them gets to the device and back."""

from __future__ import annotations

import abc
import math
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Any

from planner_service.errors import Code
from planner_service.format import EngineError, SlotState
from planner_service.transport.base import NO_SLOT, Settings, State, Stats, Transfer, Transport, TransportError

#: Number of the group that errors are of.
GROUP = 64


class Command(IntEnum):
    """Numbers of the commands."""

    STATE = 0
    BEGIN = 1
    WRITE = 2
    FINISH = 3
    TEST = 4
    CONFIRM = 5
    REVERT = 6
    ERASE = 7
    STATS = 8
    ABORT = 9


#: Commands that only read.
READING = frozenset({Command.STATE, Command.STATS})
#: Commands that erase, program or read back a slot, or wait for an inference.
SLOW = frozenset({Command.FINISH, Command.TEST, Command.CONFIRM, Command.REVERT, Command.ERASE})

Reply = Mapping[str, Any]

#: Seconds to the first repetition at least, before a round trip was measured, and how the wait grows.
_RESEND_LEAST, _RESEND_FIRST, _RESEND_GROWTH = 0.05, 0.5, 1.5


class Pace:
    """When a request is sent again: by smoothed round trip and variation, as RFC 6298 has them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._round_trip: float | None = None
        self._variation = 0.0

    def patience(self, slow: bool) -> float:
        """Seconds to wait for a reply in all."""
        return self._settings.patience_seconds * (self._settings.slow_factor if slow else 1.0)

    def first_wait(self, slow: bool) -> float:
        """Seconds to the first repetition."""
        if slow:
            return self._settings.resend_seconds
        if self._round_trip is None:
            return min(_RESEND_FIRST, self._settings.resend_seconds)
        return min(max(self._round_trip + 4 * self._variation, _RESEND_LEAST), self._settings.resend_seconds)

    def next_wait(self, wait: float) -> float:
        """Seconds to the repetition after one that came after ``wait``."""
        return min(wait * _RESEND_GROWTH, self._settings.resend_seconds)

    def measure(self, seconds: float) -> None:
        """A round trip of a request that was sent once: of a repeated one nobody knows which copy was answered."""
        if self._round_trip is None:
            self._round_trip, self._variation = seconds, seconds / 2
        else:
            self._variation += (math.fabs(self._round_trip - seconds) - self._variation) / 4
            self._round_trip += (seconds - self._round_trip) / 8


class CommandTransport(Transport):
    """A transport whose device answers these commands. Repeating a begin or write is harmless; of the others, the
    answer to a repeated request may be that there is nothing left to do."""

    _digest = b""

    @abc.abstractmethod
    async def ask(self, doing: str, command: Command, members: Reply) -> Reply:
        """The device's reply. ``doing``: for messages. TransportError: UNREACHABLE if there is none for the settings'
        patience, DEVICE for the protocol's own errors."""

    async def state(self) -> State:
        reply = await self._call("reading the state", Command.STATE)
        active, running = _number(reply, "active"), _number(reply, "running")
        return State(
            active=None if active == NO_SLOT else active,
            running=None if running == NO_SLOT else running,
            state=_slot_state(reply),
            tries=_number(reply, "tries"),
            reason=_engine_error(_number(reply, "reason")),
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
            reply = await self._call(doing, Command.BEGIN, members)
            if "head" not in reply:
                self._digest = digest
                return _transfer(reply, token=_number(reply, "token"), active=bool(_number(reply, "active")))
            at = min(_number(reply, "head"), len(head) - 1)
        raise TransportError(Code.DEVICE, f"{doing}: the device does not take the header", hint="end the other update")

    async def write(self, token: int, offset: int, data: bytes) -> Transfer:
        reply = await self._call("sending the plan", Command.WRITE, {"token": token, "off": offset, "data": data})
        return _transfer(reply, token=token, active=False)

    async def finish(self, token: int) -> None:
        async def staged() -> bool:
            state = await self.state()
            return state.state is SlotState.STAGED and state.digest == self._digest[: len(state.digest)]

        await self._once("finishing the update", Command.FINISH, EngineError.TOKEN, staged, {"token": token})

    async def abort(self, token: int) -> None:
        async def ended() -> bool:
            return (await self.state()).total == 0

        await self._once("ending the session", Command.ABORT, EngineError.TOKEN, ended, {"token": token})

    async def test(self) -> None:
        before = await self.state()

        async def ordered() -> bool:
            return before.state is SlotState.STAGED and (await self.state()).state is not SlotState.STAGED

        await self._once("ordering the trial", Command.TEST, EngineError.STATE, ordered)

    async def confirm(self) -> None:
        before = await self.state()

        async def confirmed() -> bool:
            return before.in_trial and (await self.state()).active == before.running

        await self._once("confirming the plan", Command.CONFIRM, EngineError.STATE, confirmed)

    async def revert(self) -> None:
        before = await self.state()

        async def reverted() -> bool:
            given_up = (await self.state()).state is SlotState.REVERTED
            return given_up and before.state in (SlotState.STAGED, SlotState.TRIAL)

        await self._once("reverting", Command.REVERT, EngineError.STATE, reverted)

    async def erase(self) -> None:
        await self._call("erasing the slot", Command.ERASE)

    async def stats(self) -> Stats:
        reply = await self._call("reading the counters", Command.STATS)
        names = ("slot_erases", "state_erases", "records")
        return Stats(
            **{name: _number(reply, name) for name in names},
            stall_us=_number(reply, "stall_us") if "stall_us" in reply else 0,
        )

    async def _call(self, doing: str, command: Command, members: Reply | None = None) -> Reply:
        reply = await self.ask(doing, command, members or {})
        check(reply, doing)
        return reply

    async def _once(
        self,
        doing: str,
        command: Command,
        repeated: EngineError,
        done: Callable[[], Awaitable[bool]],
        members: Reply | None = None,
    ) -> None:
        """A command that the device can do once. Where it came twice, because we or the line repeated it, the answer
        may be ``repeated`` although the first one got through: ``done`` finds out."""
        reply = await self.ask(doing, command, members or {})
        try:
            check(reply, doing)
        except TransportError as error:
            if error.device is not repeated or not await done():
                raise


# ---------------------------------------------------------------- replies: bytes from outside


def check(reply: Reply, doing: str) -> None:
    """TransportError if the reply is an error of the group."""
    error = reply.get("err")
    if isinstance(error, Mapping):
        number, group = error.get("rc"), error.get("group")
        if isinstance(number, int) and group == GROUP:
            raise TransportError.from_device(number, doing)
        raise TransportError(Code.DEVICE, f"{doing}: the device answered with error {number} of group {group}")


def _malformed(name: str) -> TransportError:
    return TransportError(
        Code.DEVICE, f"the device's reply has no proper {name!r}", hint="is its firmware of this version of Weft?"
    )


def _number(reply: Reply, name: str) -> int:
    value = reply.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise _malformed(name)
    return int(value)


def _bytes(reply: Reply, name: str) -> bytes:
    value = reply.get(name)
    if not isinstance(value, bytes):
        raise _malformed(name)
    return value


def _slot_state(reply: Reply) -> SlotState:
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


def _transfer(reply: Reply, *, token: int, active: bool) -> Transfer:
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
