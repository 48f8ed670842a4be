# SPDX-License-Identifier: Apache-2.0
"""The update group of SMP: updates over a bad line, small packets, and whatever else arrives."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from planner_service import signing
from planner_service.format import EngineError, SlotState
from tests.update import build
from tests.update import plans as made
from tests.update.device import Device, running

GROUP = 64
STATE, BEGIN, WRITE, FINISH, TEST, CONFIRM, REVERT, ERASE, STATS, ABORT = range(10)
Wire = Callable[[bytes, int], bytes]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.device(tmp_path_factory.mktemp("smp"), "-fsanitize=undefined", "-fno-sanitize-recover=all", smp=True)


@pytest.fixture(scope="module")
def plans() -> made.Plans:
    return made.make()


@pytest.fixture
def device(library: Path, plans: made.Plans) -> Iterator[Device]:
    with running(library, plans) as found:
        yield found


class Host:
    """Sends requests until the reply with the same number comes back; the line loses and repeats what it likes."""

    def __init__(self, wire: Wire, *, loss: float = 0.0, seed: int = 1, room: int = 512, version: int = 1) -> None:
        self._wire, self._loss, self._rng, self._room = wire, loss, random.Random(seed), room
        self._version, self._seq, self._late = version, 0, b""
        self.packets = 0

    def ask(self, command: int, write: bool = True, **members: Any) -> dict[str, Any]:
        self._seq = (self._seq + 1) % 256
        body = cbor2.dumps(members)
        head = struct.pack(">BBHHBB", self._version << 3 | 2 * write, 0, len(body), GROUP, self._seq, command)
        for _ in range(200):
            self.packets += 1
            if self._late and self._rng.random() < self._loss:
                self._wire(self._late, self._room)  # an old request comes once more
            if self._rng.random() < self._loss:
                continue
            reply = self._wire(head + body, self._room)
            self._late = head + body
            if self._rng.random() < self._loss:
                continue
            assert reply[6:] != b""
            assert (reply[0], reply[4:8]) == (head[0] + 1, head[4:8])
            assert struct.unpack_from(">H", reply, 2)[0] == len(reply) - 8
            found = cbor2.loads(reply[8:])
            assert isinstance(found, dict)
            return found
        raise TimeoutError

    def send(self, plan: bytes, chunk: int, copy: bool = False) -> dict[str, Any]:
        """Begin and write, by what the replies say; begin again where the session was lost."""
        for _ in range(20):
            end, at = signing.head_len(plan), 0
            reply: dict[str, Any] = {"head": 0}
            while "head" in reply:
                at = reply["head"]
                reply = self.ask(BEGIN, off=at, len=end, data=plan[at : min(end, at + chunk)], copy=copy)
            if "err" in reply or reply["token"] == 0:
                return reply
            token = reply["token"]
            while "err" not in reply and reply["off"] < len(plan):
                at = reply["off"]
                data = b"" if reply["copying"] else plan[at : min(reply["until"], at + chunk)]
                reply = self.ask(WRITE, token=token, off=at, data=data)
            if "err" not in reply:
                return {"token": token}
        raise TimeoutError


def error(reply: dict[str, Any]) -> str:
    return EngineError(reply["err"]["rc"]).name if "err" in reply else "OK"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("copy", [False, True])
def test_thirty_percent_loss(device: Device, plans: made.Plans, seed: int, copy: bool) -> None:
    host = Host(device.smp(), loss=0.3, seed=seed)
    for _ in range(20):
        session = host.send(plans.delta, 200, copy)
        if session["token"] and error(host.ask(FINISH, token=session["token"])) not in ("OK", "TOKEN"):
            continue
        if host.ask(STATE, write=False)["state"] == SlotState.STAGED:
            break
    assert device.bytes_of(1)[: len(plans.delta)] == plans.delta
    assert error(host.ask(TEST)) == "OK"
    assert device.restart().slot == 1
    assert error(host.ask(CONFIRM)) in ("OK", "STATE"), "the first reply may have been lost"
    assert host.ask(STATE, write=False)["active"] == 1


@pytest.mark.parametrize("chunk", [24, 64, 256])
def test_small_packets(device: Device, plans: made.Plans, chunk: int) -> None:
    host = Host(device.smp(), room=220)
    assert error(host.ask(FINISH, token=host.send(plans.new, chunk)["token"])) == "OK"
    state = host.ask(STATE, write=False)
    assert state["state"] == SlotState.STAGED
    assert state["digest"].hex() == signing.describe(plans.new).digest[:32]
    assert host.send(plans.new, chunk)["token"] == 0, "it is there already"


def test_every_command(device: Device, plans: made.Plans) -> None:
    host = Host(device.smp())
    assert error(host.ask(CONFIRM)) == "STATE"
    token = host.send(plans.new, 300)["token"]
    assert error(host.ask(ABORT, token=token)) == "OK"
    assert error(host.ask(ABORT, token=token)) == "TOKEN"
    assert error(host.ask(FINISH, token=host.send(plans.new, 300)["token"])) == "OK"
    assert error(host.ask(REVERT)) == "OK"
    assert error(host.send(plans.new, 300)) == "TRIED"
    assert error(host.ask(ERASE)) == "OK"
    stats = host.ask(STATS, write=False)
    assert set(stats) == {"slot_erases", "state_erases", "records", "stall_us"}
    assert error(host.send(made.seal(plans.new, None), 300)) == "UNSIGNED"


def test_revert_and_erase_can_be_left_out(tmp_path: Path, plans: made.Plans) -> None:
    """By a build for devices that others than their owner reach: everything else is there."""
    device = Device(build.device(tmp_path, "-O0", "-DWEFT_SMP_REVERT_ERASE=0", smp=True), plans.key)
    assert device.adopt(0, plans.old) == "OK"
    device.restart()
    host = Host(device.smp())
    assert error(host.ask(FINISH, token=host.send(plans.new, 300)["token"])) == "OK"
    before = (device.erases, device.programs, device.status)
    assert host.ask(REVERT) == host.ask(ERASE) == {"rc": 8}
    assert (device.erases, device.programs, device.status) == before
    assert error(host.ask(TEST)) == "OK"
    device.restart()
    assert host.ask(REVERT) == host.ask(ERASE) == {"rc": 8}
    assert error(host.ask(CONFIRM)) == "OK"
    assert device.status["active"] == 1
    device.close()


def test_errors_of_both_versions(device: Device) -> None:
    assert Host(device.smp(), version=0).ask(CONFIRM) == {"rc": EngineError.STATE}
    assert Host(device.smp(), version=1).ask(CONFIRM) == {"err": {"group": GROUP, "rc": EngineError.STATE}}


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"", None),
        (b"\x0a\0\0\0\0", None),
        (b"\x0b\0\0\0\0\x40\1\5", None),  # a reply
        (b"\x0a\0\0\5\0\x40\1\5", None),  # length
        (b"\x0a\0\0\0\0\x41\1\5", 8),  # another group
        (b"\x0a\0\0\0\0\x40\1\x63", 8),  # no such command
        (b"\x08\0\0\0\0\x40\1\1", 8),  # begin is not read
        (b"\x0a\0\0\1\0\x40\1\4\xff", 3),
        (b"\x0a\0\0\1\0\x40\1\4\xa1", 3),
        (b"\x0a\0\0\x0c\0\x40\1\4\xa1\x65token\x1b\xff\xff\xff\xff", 3),
    ],
)
def test_malformed_packets(device: Device, packet: bytes, reply: int | None) -> None:
    got = device.smp()(packet, 512)
    assert (cbor2.loads(got[8:]) if got else None) == (None if reply is None else {"rc": reply})


@pytest.mark.parametrize("room", [0, 8, 12, 13, 20, 60])
def test_no_room_for_the_reply(device: Device, room: int) -> None:
    got = device.smp()(b"\x08\0\0\0\0\x40\1\0", room)
    assert len(got) <= room
    assert not got or cbor2.loads(got[8:]) == {"rc": 2}


def test_arbitrary_packets_change_nothing(device: Device, plans: made.Plans) -> None:
    """Random bytes, and requests with changed bytes: no erase, no crash, the device still takes an update."""
    rng = random.Random(7)
    wire, before = device.smp(), (device.erases, device.programs)
    head = plans.new[: signing.head_len(plans.new)]
    good = [{}, {"token": 1}, {"off": 0, "len": 2000, "data": head[:99]}, {"off": 1 << 31, "len": 9, "data": b"x"}]
    for _ in range(20000):
        body = bytearray(cbor2.dumps(rng.choice(good)) if rng.random() < 0.7 else rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(3)):
            body[rng.randrange(len(body) + 1) :] = rng.randbytes(rng.randrange(6))
        command = rng.choice((STATE, BEGIN, WRITE, FINISH, TEST, CONFIRM, REVERT, STATS, ABORT, 77))
        packet = struct.pack(">BBHHBB", rng.choice((8, 10, 0, 2)), 0, len(body), GROUP, 1, command)
        wire(packet + body, 256)
    assert (device.erases, device.programs) == before
    assert Host(wire).send(plans.new, 300)["token"]


def test_head_that_does_not_fit(device: Device) -> None:
    host = Host(device.smp())
    for members in ({"off": 0, "len": 4000, "data": b"x"}, {"off": 0, "len": 0xFFFFFFFF, "data": b"x"}):
        assert error(host.ask(BEGIN, **members)) == "ARG"
