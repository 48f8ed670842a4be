# SPDX-License-Identifier: Apache-2.0
"""What every transport to a device can do, in the terms of the update core (docs/update.md, weft_update.h).

A protocol's module has one function, ``async def connect(address: Address, settings: Settings) -> Transport``, and a
line in ``SCHEMES``. All calls are coroutines of one event loop and are made one at a time. A transport repeats requests
whose reply was lost, and hides what repeating does: a call returns once the device is in the state that was asked
for."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

from planner_service.errors import Code, PlannerError
from planner_service.format import ERROR_TEXT, EngineError, SlotState

#: Scheme of an address to the module that speaks it, and what the module needs from PyPI.
SCHEMES: Mapping[str, tuple[str, str]] = {
    "smp+udp": ("planner_service.transport.smp", "smpclient"),
    "smp+serial": ("planner_service.transport.smp", "smpclient"),
    "coap": ("planner_service.transport.coap", "aiocoap"),
}

#: The ports of addresses that name none.
DEFAULT_PORTS: Mapping[str, int] = {"smp+udp": 1337, "coap": 5683}

#: No slot: WEFT_SLOT_NONE.
NO_SLOT = 0xFF

_ADDRESS_HINT = "for example smp+udp://192.0.2.1:1337, smp+serial:///dev/ttyACM0 or coap://[2001:db8::1]/weft"

#: Error codes that are about the moment and not about the plan; all others refuse the plan.
_KINDS: Mapping[EngineError, Code] = {
    EngineError.ARG: Code.DEVICE,
    EngineError.FLASH: Code.DEVICE,
    EngineError.BUSY: Code.BUSY,
    EngineError.TOKEN: Code.BUSY,
    EngineError.BUDGET: Code.BUSY,
    EngineError.OFFSET: Code.DEVICE,
    EngineError.STATE: Code.BAD_STATE,
    EngineError.NO_PLAN: Code.BAD_STATE,
}


class TransportError(PlannerError):
    """What a device answered instead of doing it (``device`` is its error code), or why it was not reached (``device``
    is None). ``code`` is REFUSED, BUSY, BAD_STATE, DEVICE or UNREACHABLE, which the exit codes follow."""

    def __init__(self, code: Code, message: str, *, hint: str = "", device: EngineError | None = None) -> None:
        super().__init__(code, message, hint=hint)
        self.device = device

    @classmethod
    def from_device(cls, number: int, doing: str) -> Self:
        """The error for the positive number of a WEFT_ERR_ code; one that is not known is kept as a number."""
        try:
            error = EngineError(number)
        except ValueError:
            return cls(Code.DEVICE, f"{doing}: the device answered with error {number}, which Weft does not know")
        message, remedy = ERROR_TEXT[error]
        code = _KINDS.get(error, Code.REFUSED)
        return cls(code, f"{doing}: WEFT_ERR_{error.name}: {message}", hint=remedy, device=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a device is. ``host``: name or address without brackets, "" for none; ``port``: None where the scheme has
    no ports; ``path``: with its first '/', e.g. a serial device; ``options``: the query, e.g. {"baud": "115200"}."""

    scheme: str
    host: str = ""
    port: int | None = None
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        query = "&".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.scheme}://{host}{port}{self.path}" + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How patient a transport is. ``patience_seconds``: without any reply, until the device counts as unreachable;
    requests that read or erase a whole slot get ``slow_factor`` times as much. ``resend_seconds``: a request is sent
    again after this long at the latest, where the protocol does not decide that itself. ``chunk_bytes``: data of one
    write at most; None: what device and line allow."""

    patience_seconds: float = 10.0
    slow_factor: float = 6.0
    resend_seconds: float = 1.0
    chunk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How far a transfer is, weft_transfer_t. ``next``: offset of the byte that is wanted next; ``until``: end of the
    range that begins there; ``copying``: the device copies this range itself from its active slot, ask on with empty
    writes. ``token``: of the session, 0 if there is nothing to send; ``active``: the plan is the active one; ``state``:
    of the plan, meaningless with ``active``; ``slot``: where it goes."""

    token: int
    next: int
    until: int
    total: int
    copying: bool
    active: bool
    state: SlotState
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a device's slots are in, weft_update_status_t. ``active``, ``running``: slots, None for none; ``state``,
    ``tries``, ``reason`` (None: by command): of the slot that is not active; ``floor``: least version that is accepted;
    ``received`` of ``total`` bytes: the running transfer (total 0: none); ``resume``: where an interrupted one would go
    on; digests: the first 16 bytes of the plans' header digests."""

    active: int | None
    running: int | None
    state: SlotState
    tries: int
    reason: EngineError | None
    floor: int
    received: int
    total: int
    resume: int
    active_digest: bytes
    digest: bytes

    @property
    def in_trial(self) -> bool:
        """Whether the plan that runs is the one on trial."""
        return self.state is SlotState.TRIAL and self.running is not None and self.running != self.active

    def to_json(self) -> dict[str, Any]:
        """As the command line prints it: slots by letter, digests in hex."""
        return {
            "active": slot_name(self.active),
            "running": slot_name(self.running),
            "state": self.state.name.lower(),
            "tries": self.tries,
            "reason": None if self.reason is None else f"WEFT_ERR_{self.reason.name}",
            "floor": self.floor,
            "received": self.received,
            "total": self.total,
            "resume": self.resume,
            "active_digest": self.active_digest.hex(),
            "digest": self.digest.hex(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Sectors erased in the device's life, as far as recorded, and the number of the newest journal record.
    ``stall_us``: microseconds for which inference waits while a sector of a slot is erased, the longest that the device
    has seen; 0: it does not wait, or the firmware does not tell."""

    slot_erases: int
    state_erases: int
    records: int
    stall_us: int = 0


class Transport(abc.ABC):
    """A connection to one device; an async context manager. Every call raises TransportError."""

    #: The address that was connected to.
    address: Address
    #: Bytes of a plan that one ``write`` carries at most.
    chunk_bytes: int

    @abc.abstractmethod
    async def state(self) -> State:
        """What the slots are in."""

    @abc.abstractmethod
    async def begin(self, head: bytes, digest: bytes, length: int, *, copy: bool = True) -> Transfer:
        """Begin or resume the transfer of a plan of ``length`` bytes. ``head``: header, section table and signature;
        ``digest``: the 32 bytes of SHA-256 over header and table; ``copy``: let the device take sections that its
        active plan has from there. Nothing is erased unless the head is good and the plan is not there yet."""

    @abc.abstractmethod
    async def write(self, token: int, offset: int, data: bytes) -> Transfer:
        """Hand over the plan's bytes from ``offset``; the reply says where to go on, whatever came before. Empty
        ``data`` while the device copies."""

    @abc.abstractmethod
    async def finish(self, token: int) -> None:
        """Let the device read everything back and verify it; the plan is STAGED when this returns."""

    @abc.abstractmethod
    async def abort(self, token: int) -> None:
        """End a session; what was received stays for a resumed one."""

    @abc.abstractmethod
    async def test(self) -> None:
        """Let the staged plan be tried at the device's next start, or at once where the device does so."""

    @abc.abstractmethod
    async def confirm(self) -> None:
        """Make the running trial the active plan."""

    @abc.abstractmethod
    async def revert(self) -> None:
        """Give up a staged plan or a trial."""

    @abc.abstractmethod
    async def erase(self) -> None:
        """Erase the slot that is not active and forget its plan."""

    @abc.abstractmethod
    async def stats(self) -> Stats:
        """Counters of the device."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the line. A session on the device stays open; may be called twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Module(Protocol):
    async def connect(self, address: Address, settings: Settings) -> Transport: ...


def slot_name(slot: int | None) -> str | None:
    """'a' or 'b'; None for no slot."""
    return None if slot is None else chr(ord("a") + slot)


def parse(text: str) -> Address:
    """An address from its text; PlannerError(BAD_REQUEST) if it is none."""

    def wrong(why: str) -> PlannerError:
        return PlannerError(Code.BAD_REQUEST, f"{text!r} is no device address: {why}", hint=_ADDRESS_HINT)

    if not text.isprintable() or any(c.isspace() for c in text):
        raise wrong("it holds characters that no address has")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise wrong("host or port cannot be read") from error
    if parts.scheme not in SCHEMES:
        raise wrong(f"its scheme is not one of {', '.join(SCHEMES)}")
    if parts.username is not None or parts.fragment:
        raise wrong("it has a user or a fragment")
    if parts.scheme == "smp+serial":
        if parts.netloc or len(parts.path) < 2:
            raise wrong("a serial line is a path after three slashes")
    elif not parts.hostname:
        raise wrong("the host is missing")
    elif parts.scheme == "smp+udp" and parts.path not in ("", "/"):
        raise wrong("SMP over UDP has no path")
    try:
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise wrong("what follows the question mark is not NAME=VALUE") from error
    return Address(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=DEFAULT_PORTS.get(parts.scheme) if port is None else port,
        path="" if parts.scheme == "smp+udp" else parts.path,
        options=options,
    )


async def connect(address: Address | str, settings: Settings | None = None) -> Transport:
    """A transport to the device at ``address``. TransportError(UNREACHABLE) if nothing answers there, where the
    protocol can tell; PlannerError: BAD_REQUEST for the address, UNAVAILABLE if the protocol's package is not
    installed."""
    where = parse(address) if isinstance(address, str) else address
    name, package = SCHEMES[where.scheme]
    try:
        module: _Module = importlib.import_module(name)
    except ImportError as error:
        raise PlannerError(
            Code.UNAVAILABLE, f"{where.scheme} needs a package that is not installed", hint=f"pip install {package}"
        ) from error
    return await module.connect(where, settings or Settings())
