# SPDX-License-Identifier: Apache-2.0
"""Drives the device of device.c: the update core over simulated flash, with signatures checked by `cryptography`."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from planner_service import signing
from planner_service.format import EngineError, SlotState
from tests.update.plans import Plans

CUT_KINDS = 6  #: before, after, torn, blank, weak, fault
COPY = 1  #: WEFT_UPDATE_COPY
NONE = 0xFF  #: WEFT_SLOT_NONE
STATE_AREA = 2
_VERIFY = ct.CFUNCTYPE(ct.c_int, ct.POINTER(ct.c_uint8), ct.POINTER(ct.c_uint8), ct.POINTER(ct.c_uint8))


class _Error(ct.Structure):
    _fields_ = (("code", ct.c_int), ("record", ct.c_uint16), ("offset", ct.c_uint32))


class _Transfer(ct.Structure):
    _fields_ = (
        *((n, ct.c_uint32) for n in ("token", "next", "until", "total")),
        *((n, ct.c_uint8) for n in ("state", "active", "slot", "copying")),
    )


class _Boot(ct.Structure):
    _fields_ = (
        *((n, ct.c_uint8) for n in ("slot", "trial", "tries")),
        *((n, ct.c_int) for n in ("trial_error", "active_error")),
        ("where", _Error),
    )


class _Status(ct.Structure):
    _fields_ = (
        *((n, ct.c_uint8) for n in ("active", "running", "state", "tries")),
        ("reason", ct.c_int),
        *((n, ct.c_uint32) for n in ("floor", "received", "total", "resume", "slot_erases", "state_erases", "records")),
        ("active_digest", ct.c_uint8 * 16),
        ("digest", ct.c_uint8 * 16),
    )


def name_of(code: int) -> str:
    """OK, or the error's name without WEFT_ERR_."""
    return "OK" if code == 0 else EngineError(-code).name


def _verify_p256(key: ct._Pointer[ct.c_uint8], digest: ct._Pointer[ct.c_uint8], value: ct._Pointer[ct.c_uint8]) -> int:
    r, s = int.from_bytes(value[:32], "big"), int.from_bytes(value[32:64], "big")
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes(key[:65]))
        signature = utils.encode_dss_signature(r, s)
        public.verify(signature, bytes(digest[:32]), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except (InvalidSignature, ValueError):
        return -1
    return 0


_VERIFIER = _VERIFY(_verify_p256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a call of the transfer answered. ``result`` is OK or an error's name."""

    result: str
    token: int
    next: int
    until: int
    copying: bool
    state: SlotState
    active: bool
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """What boot decided."""

    result: str
    slot: int
    trial: bool
    tries: int
    trial_error: str
    active_error: str


class Device:
    """A device with two slots. Addresses of its functions are in the library that `build.device()` makes."""

    def __init__(
        self,
        library: Path,
        key: bytes | None,
        *,
        slot: int = 8192,
        sector: int = 2048,
        write: int = 8,
        erased: int = 0xFF,
        mapped: bool = True,
    ) -> None:
        self._lib = ct.CDLL(str(library))
        for name in ("device_new", "device_update"):
            getattr(self._lib, name).restype = ct.c_void_p
        self._lib.device_bytes.restype = ct.POINTER(ct.c_uint8)
        self._slot = slot
        self._device = ct.c_void_p(self._lib.device_new(slot, sector, write, erased, int(mapped), _VERIFIER))
        self._update = ct.c_void_p(self._lib.device_update(self._device))
        self.set()
        if key is not None:
            self.set_key(0, signing.public_key(key))
        self.init()

    def smp(self) -> Callable[[bytes, int], bytes]:
        """A fresh SMP handler: packet and room for the reply to reply."""
        self._lib.smp_new.restype = ct.c_void_p
        self._lib.smp_packet.restype = ct.c_size_t
        handler = ct.c_void_p(self._lib.smp_new(self._update))

        def packet(data: bytes, room: int = 512) -> bytes:
            out = (ct.c_uint8 * room)()
            used = self._lib.smp_packet(handler, data, ct.c_size_t(len(data)), out, ct.c_size_t(room))
            return bytes(out[:used])

        return packet

    def close(self) -> None:
        self._lib.device_free(self._device)

    def set(self, *, arena: int = 4096, confirm_after: int = 0, idle: int = 0, flags: int = 0) -> None:
        """Configuration; see weft_update_config_t."""
        self._lib.device_set(self._device, arena, confirm_after, idle, flags)

    def set_key(self, place: int, public: bytes | None) -> None:
        self._lib.device_key(self._device, place, public)

    def limit(self, *, budget: int = 0xFFFFFFFF, steps: int = 0xFFFFFFFF) -> None:
        """Sectors a transfer may erase, row steps a self-test may take."""
        self._lib.device_limits(self._device, budget, steps)

    def fail(self, call: int = 0, count: int = 0) -> None:
        """Let ``count`` calls of flash and hash fail, the first of them number ``call`` from now."""
        self._lib.device_fail(self._device, call, count)

    def cut(self, operations: int, kind: int) -> None:
        """Power goes at that erase or program from now on (1: the next), in one of the ways of flash.h; 0: never. Until
        the next restart nothing reaches flash."""
        self._lib.device_cut(self._device, operations, kind, None)

    def hang(self, hangs: bool) -> None:
        """Self-tests hang, and a watchdog resets the device: ABORTED from boot."""
        self._lib.device_hang(self._device, int(hangs))

    def stick(self, records: int) -> None:
        """So many records of the journal are programmed with a wrong bit."""
        self._lib.device_stick(self._device, records)

    def buffer(self, length: int) -> None:
        self._lib.device_buffer(self._device, length)

    def bare(self) -> None:
        """Without everything that is optional in HAL and configuration."""
        self._lib.device_bare(self._device)

    def pretend(self, *, running: int = NONE, last_token: int = 0) -> None:
        """As if this slot ran, and so many sessions had been."""
        self._lib.device_pretend(self._device, running, last_token)

    def misconfigure(self, how: int) -> str:
        return name_of(self._lib.device_misconfigure(self._device, how))

    def wait(self, seconds: int) -> None:
        self._lib.device_pass(self._device, seconds)

    def init(self) -> str:
        return name_of(self._lib.device_init(self._device))

    def boot(self) -> Booted:
        """What an application does at every start."""
        raw = _Boot()
        result = self._lib.device_boot(self._device, ct.byref(raw))
        return Booted(
            result=name_of(result),
            slot=raw.slot,
            trial=bool(raw.trial),
            tries=raw.tries,
            trial_error=name_of(raw.trial_error),
            active_error=name_of(raw.active_error),
        )

    def restart(self) -> Booted:
        """Reset, then boot."""
        assert self.init() == "OK"
        return self.boot()

    def infer(self, size: int = 36) -> bytes:
        """Output of the running plan on zeros."""
        out = (ct.c_uint8 * size)()
        assert self._lib.device_run(self._device, out, size) == 0
        return bytes(out)

    def begin(self, plan: bytes, flags: int = 0, head: bytes | None = None, shift: int = 0) -> Reply:
        """``shift``: bytes by which the head's address is off."""
        data = head if head is not None else plan[: signing.head_len(plan)]
        raw = _Transfer()
        storage, where = (ct.c_uint64 * (len(data) // 8 + 2))(), _Error()
        address = ct.addressof(storage) + shift
        ct.memmove(address, data, len(data))
        result = self._lib.weft_update_begin(
            self._update, ct.c_void_p(address if data else None), len(data), flags, ct.byref(raw), ct.byref(where)
        )
        assert result in (0, where.code)
        return self._reply(result, raw)

    def write(self, token: int, offset: int, data: bytes | None, length: int | None = None) -> Reply:
        raw = _Transfer()
        length = len(data or b"") if length is None else length
        result = self._lib.weft_update_write(self._update, token, offset, data, length, ct.byref(raw))
        return self._reply(result, raw)

    @staticmethod
    def _reply(result: int, raw: _Transfer) -> Reply:
        return Reply(
            result=name_of(result),
            token=raw.token,
            next=raw.next,
            until=raw.until,
            copying=bool(raw.copying),
            state=SlotState(raw.state),
            active=bool(raw.active),
            slot=raw.slot,
        )

    def finish(self, token: int) -> str:
        where = _Error()
        result = self._lib.weft_update_finish(self._update, token, ct.byref(where))
        assert result in (0, where.code)
        return name_of(result)

    def abort(self, token: int) -> str:
        return name_of(self._lib.weft_update_abort(self._update, token))

    def call(self, verb: str) -> str:
        """test, confirm, revert, erase, healthy."""
        return name_of(getattr(self._lib, f"weft_update_{verb}")(self._update))

    def adopt(self, slot: int, plan: bytes) -> str:
        """Place a plan in a slot as a programmer does, and adopt it."""
        ct.memmove(self._lib.device_bytes(self._device, slot), plan, len(plan))
        return name_of(self._lib.weft_update_adopt(self._update, slot))

    def send(self, plan: bytes, flags: int = 0, chunk: int = 300) -> tuple[Reply, int]:
        """Send a plan by what the replies say; the last reply and the bytes sent."""
        reply = self.begin(plan, flags)
        token, sent = reply.token, signing.head_len(plan)
        while reply.result == "OK" and token and reply.next < len(plan):
            end = reply.next if reply.copying else min(reply.until, reply.next + chunk)
            sent += end - reply.next
            reply = self.write(token, reply.next, plan[reply.next : end])
        return reply, sent

    def stage(self, plan: bytes, flags: int = 0, chunk: int = 300) -> str:
        """Send and finish; OK or the first error."""
        reply, _ = self.send(plan, flags, chunk)
        return self.finish(reply.token) if reply.result == "OK" else reply.result

    def update(self, plan: bytes, flags: int = 0) -> Booted:
        """All the way to a confirmed plan, with one reset."""
        assert self.stage(plan, flags) == "OK"
        assert self.call("test") == "OK"
        booted = self.restart()
        assert booted.trial
        assert self.call("confirm") == "OK"
        return booted

    def _status(self) -> _Status:
        raw = _Status()
        self._lib.weft_update_status(self._update, ct.byref(raw))
        return raw

    @property
    def status(self) -> Mapping[str, int | str | bytes]:
        raw = self._status()
        found: dict[str, int | str | bytes] = {n: getattr(raw, n) for n, _ in _Status._fields_[:-2]}
        found["state"] = SlotState(raw.state).name
        found["reason"] = name_of(raw.reason)
        return found | {"active_digest": bytes(raw.active_digest), "digest": bytes(raw.digest)}

    @property
    def sectors_erased(self) -> tuple[int, int]:
        """Of the slots, and of the journal."""
        raw = self._status()
        return raw.slot_erases, raw.state_erases

    def bytes_of(self, area: int) -> bytes:
        return bytes(self._lib.device_bytes(self._device, area)[: self._slot])

    def poke(self, area: int, offset: int, xor: int) -> None:
        """Change a byte behind the core's back."""
        self._lib.device_bytes(self._device, area)[offset] ^= xor

    def _count(self, what: int) -> int:
        return int(self._lib.device_count(self._device, what))

    @property
    def erases(self) -> int:
        return self._count(0)

    @property
    def programs(self) -> int:
        return self._count(1)

    @property
    def verifications(self) -> int:
        return self._count(2)

    @property
    def calls(self) -> int:
        """Of flash and hash since ``fail``."""
        return self._count(6)

    @property
    def cuts(self) -> int:
        """Of power, that happened."""
        return self._count(7)

    @property
    def broken(self) -> bool:
        """Whether a rule of the flash was broken."""
        return bool(self._count(5))


@contextmanager
def running(library: Path, plans: Plans) -> Iterator[Device]:
    """A device that runs ``plans.old``, confirmed, from slot 0. Whatever is done to it, flash rules must be kept."""
    device = Device(library, plans.key)
    assert device.adopt(0, plans.old) == "OK"
    assert device.restart().slot == 0
    yield device
    assert not device.broken
    device.close()
