# SPDX-License-Identifier: Apache-2.0
"""What is done to a device through a transport: bring a plan there, have it tried, keep it or give it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planner_service import signing
from planner_service.errors import Code
from planner_service.format import ERROR_TEXT, EngineError, SlotState
from planner_service.transport.base import State, Transfer, Transport, TransportError, slot_name

#: How far to go: only send, have it tried, keep it.
Goal = Literal["stage", "test", "confirm"]
#: Where a plan is: sent and verified, waiting for the device's next start, running on trial, active.
Outcome = Literal["staged", "waiting", "trial", "active"]

#: What an update is doing.
Phase = Literal["sending", "copying", "verifying", "trying", "confirming"]

#: Sessions that may be lost during one update, and replies in a row that bring nothing new.
_SESSIONS = 10
_STALLED = 200
#: Seconds between looks at a device that is to start a trial.
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an update is. ``done`` of ``total`` bytes are on the device; ``sent``: of these, by us and in this
    update. In the phase "copying" the device takes them from its active plan."""

    phase: Phase
    done: int
    total: int
    sent: int

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else 1.0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What came of an update. ``digest``: of the header; ``sent`` of ``total`` bytes went over the line, the device had
    or copied the others; ``resumed``: the offset that the first session began at (0: nothing was there); ``sessions``:
    0 where the plan was there already."""

    address: str
    outcome: Outcome
    slot: str | None
    digest: str
    plan_version: int
    total: int
    sent: int
    resumed: int
    sessions: int
    tries: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return asdict(self)


async def deploy(
    transport: Transport,
    plan: bytes,
    *,
    goal: Goal = "stage",
    copy: bool = True,
    wait_seconds: float = 10.0,
    progress: OnProgress | None = None,
) -> Deployed:
    """Bring a plan to a device as far as ``goal`` says. What is there already is not sent, what was interrupted goes
    on. ``copy``: let the device take equal sections from its active plan; ``wait_seconds``: how long a trial may take
    to start.

    PlannerError: BAD_PLAN if the bytes are damaged; TransportError, REFUSED also where the trial ended badly."""
    signing.check_intact(plan)
    started, info = time.monotonic(), signing.describe(plan)
    digest = bytes.fromhex(info.digest)
    say = progress or (lambda _: None)
    sender = _Sender(transport, plan, say)
    await sender.send(digest, copy)
    state = await transport.state()
    outcome, slot = _outcome(state, digest)
    if goal != "stage" and outcome in ("staged", "waiting"):
        say(Progress(phase="trying", done=len(plan), total=len(plan), sent=sender.sent))
        state = await try_out(transport, wait_seconds)
        outcome, slot = _outcome(state, digest)
    if goal == "confirm" and outcome == "trial":
        say(Progress(phase="confirming", done=len(plan), total=len(plan), sent=sender.sent))
        refused: TransportError | None = None
        try:
            await transport.confirm()
        except TransportError as error:
            refused = error
        state = await transport.state()
        outcome, slot = _outcome(state, digest)
        if refused is not None and outcome != "active":
            raise refused  # otherwise the device's own good runs confirmed it first
    return Deployed(
        address=str(transport.address),
        outcome=outcome,
        slot=slot_name(slot),
        digest=info.digest,
        plan_version=info.plan_version,
        total=len(plan),
        sent=sender.sent,
        resumed=sender.resumed,
        sessions=sender.sessions,
        tries=state.tries,
        seconds=time.monotonic() - started,
    )


async def try_out(transport: Transport, wait_seconds: float) -> State:
    """Order the trial of the staged plan and wait for it to run; the state then, still without a trial if the device
    only tries plans when it starts. TransportError(REFUSED) if the device has tried it and gone back."""
    before = await transport.state()
    if before.state is not SlotState.TRIAL:
        await transport.test()
    deadline = time.monotonic() + wait_seconds
    while True:
        state = await transport.state()
        if state.state is SlotState.REVERTED and state.digest == before.digest:
            raise _went_back(state)
        if state.in_trial or state.state is not SlotState.TRIAL or time.monotonic() >= deadline:
            return state
        await asyncio.sleep(_LOOK_SECONDS)


def _went_back(state: State) -> TransportError:
    reason = state.reason or EngineError.SELFTEST
    message, remedy = ERROR_TEXT[reason] if state.reason else ("it was given up", "")
    name = f"WEFT_ERR_{reason.name}: " if state.reason else ""
    return TransportError(
        Code.REFUSED,
        f"the device tried the plan and went back to the one before: {name}{message}",
        hint=remedy,
        device=state.reason,
    )


def _outcome(state: State, digest: bytes) -> tuple[Outcome, int | None]:
    """Where the plan is. TransportError(BAD_STATE) if it is not there any more."""
    other = None if state.active is None else 1 - state.active
    if state.active is not None and state.active_digest == digest[: len(state.active_digest)]:
        return "active", state.active
    if state.digest == digest[: len(state.digest)]:
        if state.in_trial:
            return "trial", state.running
        if state.state is SlotState.TRIAL:
            return "waiting", other
        if state.state is SlotState.STAGED:
            return "staged", other
        if state.state is SlotState.REVERTED:
            raise _went_back(state)
    raise TransportError(
        Code.BAD_STATE, "the plan is not on the device any more", hint="somebody else has replaced it; push it again"
    )


class _Sender:
    """Sends one plan; ``sent`` counts its bytes over all sessions."""

    def __init__(self, transport: Transport, plan: bytes, say: OnProgress) -> None:
        self._transport, self._plan, self._say = transport, plan, say
        self.sent = self.resumed = self.sessions = 0

    async def send(self, digest: bytes, copy: bool) -> None:
        """Send what is missing, through as many sessions as it takes, and let the device verify it."""
        plan, head = self._plan, self._plan[: signing.head_len(self._plan)]
        while self.sessions < _SESSIONS:
            transfer = await self._transport.begin(head, digest, len(plan), copy=copy)
            if transfer.token == 0:
                return
            self.sent += len(head)
            self.sessions += 1
            if self.sessions == 1 and transfer.next > len(head):
                self.resumed = transfer.next
            try:
                await self._stream(transfer)
                self._tell("verifying", len(plan))
                await self._transport.finish(transfer.token)
            except TransportError as error:
                # The device has started anew, or somebody else sends the same plan: both leave bytes to go on from.
                if error.device is not EngineError.TOKEN:
                    raise
            else:
                return
        raise TransportError(
            Code.BUSY, f"the device lost the session {_SESSIONS} times", hint="does somebody else send this plan too?"
        )

    async def _stream(self, transfer: Transfer) -> None:
        """Send what the replies ask for."""
        plan, stalled = self._plan, 0
        while transfer.next < len(plan):
            at = transfer.next
            self._tell("copying" if transfer.copying else "sending", at)
            data = b"" if transfer.copying else plan[at : min(transfer.until, at + self._transport.chunk_bytes)]
            transfer = await self._transport.write(transfer.token, at, data)
            self.sent += len(data)
            stalled = 0 if transfer.next > at else stalled + 1
            if stalled > _STALLED or transfer.total != len(plan):
                raise TransportError(Code.DEVICE, "the device asks for the same bytes again and again", hint="reset it")

    def _tell(self, phase: Phase, done: int) -> None:
        self._say(Progress(phase=phase, done=done, total=len(self._plan), sent=self.sent))
