# SPDX-License-Identifier: Apache-2.0
"""The host's side of SMP group 64 through smpclient, bare: one method per request, errors by name."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from pydantic import ConfigDict
from smp import error as smperror
from smp import header as smpheader
from smp import message
from smpclient import SMPClient
from smpclient.transport import SMPTransport
from smpclient.transport.udp import SMPUDPTransport

from planner_service import signing
from planner_service.format import EngineError, SlotState

GROUP = 64
STATE, BEGIN, WRITE, FINISH, TEST, CONFIRM, REVERT, ERASE, STATS, ABORT = range(10)
TRIES = 8
REPLY_SECONDS = 5.0


class _Read(message.ReadResponse):
    model_config = ConfigDict(extra="allow", frozen=True)
    RESPONSE_TYPE = message.ResponseType.SUCCESS
    _GROUP_ID = GROUP


class _Written(message.WriteResponse):
    model_config = ConfigDict(extra="allow", frozen=True)
    RESPONSE_TYPE = message.ResponseType.SUCCESS
    _GROUP_ID = GROUP


def _request(command: int, write: bool, members: dict[str, Any]) -> Any:
    class Request(message.WriteRequest if write else message.ReadRequest):  # type: ignore[misc]
        model_config = ConfigDict(extra="allow", frozen=True)
        _GROUP_ID = GROUP
        _COMMAND_ID = command
        _Response = _Written if write else _Read
        _ErrorV1 = smperror.ErrorV1
        _ErrorV2 = smperror.ErrorV2

    return Request(**members)


class RefusedError(Exception):
    """The device's error, ``args[0]`` by name."""


class Device:
    """A device that is reached by ``transport`` at ``address``. Requests are repeated when no reply comes."""

    def __init__(self, address: str, transport: SMPTransport | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = SMPClient(transport or SMPUDPTransport(), address, timeout_s=REPLY_SECONDS)

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._client.connect(REPLY_SECONDS))
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.disconnect())
        self._loop.close()

    def ask(self, command: int, write: bool = True, **members: Any) -> dict[str, Any]:
        """The reply's map. Raises RefusedError for an error of the update core, TimeoutError."""
        for attempt in range(TRIES):
            try:
                found = self._loop.run_until_complete(self._client.request(_request(command, write, members)))
                break
            except TimeoutError:
                if attempt == TRIES - 1:
                    raise
        reply = dict(found.model_extra or {})
        if "err" in reply:
            assert reply["err"]["group"] == GROUP
            raise RefusedError(EngineError(reply["err"]["rc"]).name)
        assert "rc" not in reply, f"MCUmgr answers {reply}"
        return reply

    def state(self) -> dict[str, Any]:
        reply = self.ask(STATE, write=False)
        return {**reply, "state": SlotState(reply["state"]).name}

    def push(self, plan: bytes, chunk: int = 512, stop_at: int | None = None) -> int:
        """Begin, write, finish; returns the offset that the transfer began at. ``stop_at``: leave it there."""
        end = signing.head_len(plan)
        for at in range(0, end, chunk):
            reply = self.ask(BEGIN, off=at, len=end, data=plan[at : min(at + chunk, end)])
        token, began = reply["token"], reply["off"]
        while token and reply["off"] < len(plan):
            at = reply["off"]
            if stop_at is not None and at >= stop_at:
                return int(began)
            reply = self.ask(WRITE, token=token, off=at, data=plan[at : at + chunk])
        if token:
            self.ask(FINISH, token=token)
        return int(began)


__all__ = ["Device", "RefusedError", "smpheader"]
