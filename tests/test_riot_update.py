# SPDX-License-Identifier: Apache-2.0
"""Updates of a RIOT board over CoAP: native64 in a network namespace of its own, signed plans, `samples/riot/update`.
A line that loses packets, a process that is killed, refusals, and any CoAP client's PUT.

Needs what tests/test_riot.py needs, and the right to make a network namespace and a TAP device. ``WEFT_RIOT_KILLS``:
how often the process is killed (12; `make bench-riot`: 200)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiocoap
import aiocoap.error
import aiocoap.resource
import cbor2
import pytest

from planner_service import signing
from planner_service.engine import Engine
from planner_service.errors import CATALOGUE, Code
from planner_service.format import EngineError, SlotState
from planner_service.transport import Settings, Transport, TransportError, connect, deploy
from tests.update import hostile

driver = pytest.importorskip("tests.riot.driver", reason="needs pexpect: pip install pexpect")
from tests.riot import net  # noqa: E402
from tests.test_riot import CHOSEN, check_digits, digits, expected_digits, model_of, plan, record  # noqa: E402

#: native32 as well in `make test-riot`.
BOARDS = [name for name in CHOSEN if name in ("native64", "native32")]
KILLS = int(os.environ.get("WEFT_RIOT_KILLS", "12"))
#: What the key's file has beside the key.
IDS = "-DWEFT_PARAM_VENDOR=weft_vendor -DWEFT_PARAM_CLASS=weft_device"
#: Of a board that is there and answers within milliseconds.
PATIENT = Settings(patience_seconds=20, resend_seconds=0.3)

LACKING = [*driver.unfetchable("micro-ecc", "zcbor"), *filter(None, [net.missing()])]
pytestmark = pytest.mark.skipif(bool(LACKING), reason="; ".join(LACKING))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Plans of two models and their variants; ``key``: the C source of the public key."""

    key: Path
    pem: bytes
    a: bytes
    b: bytes
    old: bytes
    newer: bytes
    unsigned: bytes
    foreign: bytes
    damaged: bytes


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    pem, other = signing.generate_key(), signing.generate_key()
    # Where the firmware is, so that it is built anew only for another key.
    key = driver.BUILD / "update-key.h"
    key.parent.mkdir(parents=True, exist_ok=True)
    ids = (("vendor", hostile.made.VENDOR), ("device", hostile.made.DEVICE))
    key.write_text(
        signing.c_array(signing.public_key(pem))
        + "".join(f"static const uint8_t weft_{name}[16] = {{{', '.join(map(str, value))}}};\n" for name, value in ids)
    )

    def for_this_device(model: str, version: int) -> bytes:
        vendor, device = (value for _, value in ids)
        made_for_any = plan(model, "native", version=version)
        return hostile.made.edit_header(made_for_any, None, vendor_id=vendor, class_id=device)

    a, b = for_this_device("digits_a", 3), for_this_device("digits_b", 3)
    good = signing.sign(b, pem)
    return Signed(
        key=key,
        pem=pem,
        a=signing.sign(a, pem),
        b=good,
        old=signing.sign(for_this_device("digits_b", 2), pem),
        newer=signing.sign(for_this_device("digits_a", 4), pem),
        unsigned=b,
        foreign=signing.sign(b, other),
        damaged=good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    board: str
    elf: Path


@pytest.fixture(scope="module", params=BOARDS)
def firmware(signed: Signed, request: pytest.FixtureRequest) -> Firmware:
    lacking = driver.missing(request.param)
    if lacking:
        pytest.skip("; ".join(lacking))
    elf = driver.elf("update", request.param, "signed", {"WEFT_KEY": str(signed.key), "WEFT_CFLAGS": IDS})
    return Firmware(board=request.param, elf=elf)


@pytest.fixture(scope="module")
def network() -> Iterator[net.Network]:
    with net.Network() as found:
        yield found


class Board:
    """The device, which may be started again; its flash stays."""

    def __init__(self, network: net.Network, firmware: Firmware, flash: Path) -> None:
        self.network, self.flash, self.name = network, flash, firmware.board
        self._elf = firmware.elf
        self._console: Any = None
        self.booted = ""

    def start(self) -> str:
        """What it prints until the shell's prompt; it then has its address."""
        self.kill()
        self._console = driver.Console(self.name, self._elf, self.flash, self.network.prefix, [net.TAP])
        self.booted = self._console.start()
        interface = driver.field(r"Iface +(\d+)", self.send("ifconfig"))
        assert "success" in self.send(f"ifconfig {interface} add {net.DEVICE}/64")
        return self.booted

    def kill(self) -> None:
        if self._console is not None:
            self._console.kill()
            self._console = None

    def stab(self) -> None:
        """End the process in the middle of whatever it does, and no more."""
        self._console.stab()

    def send(self, command: str) -> str:
        return str(self._console.send(command))

    def type(self, command: str) -> None:
        """A command whose end does not matter."""
        self._console.type(command)

    def until(self, pattern: str) -> str:
        return str(self._console.until(pattern))

    def slot(self, name: str, length: int) -> bytes:
        start = "ab".index(name) * driver.BOARDS[self.name].slot
        return self.flash.read_bytes()[start : start + length]

    def talk(self, work: Callable[[Transport], Any], port: int = net.PORT, settings: Settings = PATIENT) -> Any:
        """Run a coroutine with a transport to the device."""

        async def connected() -> Any:
            host = f"[{net.DEVICE}]:{port}" if port == net.PORT else f"[::1]:{port}"
            async with await connect(f"coap://{host}", settings) as transport:
                return await work(transport)

        return self.network.run(connected)


@pytest.fixture
def board(network: net.Network, firmware: Firmware, signed: Signed, tmp_path: Path) -> Iterator[Board]:
    """With plan a in slot a, taken into service."""
    flash = tmp_path / "flash"
    flash.write_bytes(driver.flash_image(firmware.board, {"a": signed.a}))
    found = Board(network, firmware, flash)
    assert f"weft: slot a: model {model_of(signed.a)[:8]} version 3" in found.start()
    yield found
    found.kill()


async def send(transport: Transport, content: bytes, *, copy: bool = False) -> deploy.Deployed:
    """Bring a plan into the other slot."""
    return await deploy.deploy(transport, content, copy=copy)


def refusal(board: Board, work: Callable[[Transport], Any]) -> EngineError | None:
    with pytest.raises(TransportError) as raised:
        board.talk(work)
    return raised.value.device


def test_push_test_restart_confirm_revert(board: Board, signed: Signed) -> None:
    check_digits(board.send("digits"), signed.a)
    board.talk(lambda to: send(to, signed.b))
    state = board.talk(lambda to: to.state())
    assert (state.active, state.running, state.state) == (0, 0, SlotState.STAGED)
    assert state.digest.hex() == signing.describe(signed.b).digest[:32]
    assert board.slot("b", len(signed.b)) == signed.b
    check_digits(board.send("digits"), signed.a)

    board.talk(lambda to: to.test())
    assert board.talk(lambda to: to.state()).in_trial, "tried at once"
    check_digits(board.send("digits"), signed.b)
    assert "on trial" in board.send("weft info")
    assert f"weft: slot b: model {model_of(signed.b)[:8]}" in board.start(), "and after a reset"
    check_digits(board.send("digits"), signed.b)

    board.talk(lambda to: to.confirm())
    state = board.talk(lambda to: to.state())
    assert (state.active, state.running, state.state, state.floor) == (1, 1, SlotState.OLD, 3)
    board.start()
    check_digits(board.send("digits"), signed.b)

    board.talk(lambda to: send(to, signed.newer))
    board.talk(lambda to: to.test())
    check_digits(board.send("digits"), signed.newer)
    board.talk(lambda to: to.revert())
    state = board.talk(lambda to: to.state())
    assert (state.active, state.running, state.state) == (1, 1, SlotState.REVERTED)
    check_digits(board.send("digits"), signed.b)
    board.start()
    check_digits(board.send("digits"), signed.b)
    record(board.name, "update", "push, trial, reset, confirm, revert")


def test_weft_push(board: Board, signed: Signed, tmp_path: Path) -> None:
    """The command line, as its users type it."""
    address = f"coap://[{net.DEVICE}]"

    def weft(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        command = [*board.network.prefix, sys.executable, "-m", "planner_service.cli", *map(str, arguments)]
        done = subprocess.run(
            [*command, "--to", address, "--json"], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, json.loads(done.stdout or done.stderr)

    path = tmp_path / "b.weft"
    path.write_bytes(signed.b)
    code, pushed = weft("push", path, "--test")
    assert (code, pushed["outcome"], pushed["slot"]) == (0, "trial", "b")
    assert weft("status")[1]["running"] == "b"
    check_digits(board.send("digits"), signed.b)
    assert weft("confirm")[0] == 0
    code, pushed = weft("push", path, "--test")
    assert (code, pushed["outcome"], pushed["sent"]) == (0, "active", 0)
    path.write_bytes(signed.foreign)
    assert weft("push", path)[0] == CATALOGUE[Code.REFUSED].exit_code
    assert weft("confirm")[0] == CATALOGUE[Code.BAD_STATE].exit_code
    board.kill()
    assert weft("status", "--timeout", "1")[0] == CATALOGUE[Code.UNREACHABLE].exit_code


def test_trial_that_nobody_confirms_ends(board: Board, signed: Signed) -> None:
    board.talk(lambda to: send(to, signed.b))
    board.talk(lambda to: to.test())
    for _ in range(2):
        assert "slot b: model" in board.start()
    assert "the plan on trial was reverted: WEFT_ERR_TRIED" in board.start()
    check_digits(board.send("digits"), signed.a)
    assert refusal(board, lambda to: send(to, signed.b)) is EngineError.TRIED
    board.talk(lambda to: to.erase())
    board.talk(lambda to: send(to, signed.b))


@pytest.mark.parametrize(
    ("which", "error", "code"),
    [
        ("unsigned", EngineError.UNSIGNED, Code.REFUSED),
        ("foreign", EngineError.KEY, Code.REFUSED),
        ("old", EngineError.FLOOR, Code.REFUSED),
    ],
)
def test_refused_without_an_erase(board: Board, signed: Signed, which: str, error: EngineError, code: Code) -> None:
    before = hashlib.sha256(board.flash.read_bytes()).digest()
    with pytest.raises(TransportError) as raised:
        board.talk(lambda to: send(to, getattr(signed, which)))
    assert (raised.value.device, raised.value.code) == (error, code)
    assert hashlib.sha256(board.flash.read_bytes()).digest() == before
    check_digits(board.send("digits"), signed.a)


@pytest.fixture(scope="module")
def attacks(signed: Signed) -> hostile.made.Plans:
    """Plans in the roles that the attacks want, of the sample's models; floor 3 is the board's."""
    good, made = signed.newer, hostile.made
    return made.Plans(
        key=signed.pem,
        first=signed.old,
        old=signed.a,
        new=good,
        delta=good,
        next=good,
        wrong=made.change(good, signed.pem, made.flip_output_crc),
        invalid=made.invalid(good, signed.pem),
    )


def test_hostile_updates_by_coap(board: Board, signed: Signed, attacks: hostile.made.Plans) -> None:
    """Everything that tests/test_update.py tries on the core itself."""
    spec = driver.BOARDS[board.name]
    cases = hostile.by_header(arena=spec.arena, slot=spec.slot)
    rng = random.Random(6)

    async def by_header(transport: Transport) -> None:
        for case in cases:
            await hostile.begin_refused(transport, attacks, case)
        good = attacks.new[: signing.head_len(attacks.new)]
        before = await transport.stats()
        for bit in rng.sample(range(8 * len(good)), 100):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(TransportError):
                await transport.begin(bytes(flipped), bytes(32), len(attacks.new))
        assert await transport.stats() == before

    async def at_the_end(transport: Transport) -> None:
        await hostile.finish_refused(transport, signed.damaged, EngineError.HASH)
        await hostile.finish_refused(transport, attacks.invalid, *EngineError)
        await hostile.truncated(transport, attacks.new)
        await hostile.send(transport, attacks.wrong)

    before = hashlib.sha256(board.flash.read_bytes()).digest()
    board.talk(by_header)
    assert hashlib.sha256(board.flash.read_bytes()).digest() == before
    board.talk(at_the_end)
    assert refusal(board, lambda to: deploy.deploy(to, attacks.wrong, goal="test")) is EngineError.SELFTEST
    check_digits(board.send("digits"), signed.a)
    board.talk(lambda to: hostile.disordered(to, signed.b))
    assert board.slot("b", len(signed.b)) == signed.b
    check_digits(board.send("digits"), signed.a)
    record(board.name, "hostile", f"{len(cases)} by their header without an erase, 5 at the end")


def test_replay_a_thousand_times_by_coap(board: Board, signed: Signed) -> None:
    """The plan that is active, and an older one of the same key."""
    before = hashlib.sha256(board.flash.read_bytes()).digest()
    board.talk(lambda to: hostile.replayed(to, signed.a, [signed.old]))
    assert hashlib.sha256(board.flash.read_bytes()).digest() == before
    check_digits(board.send("digits"), signed.a)


def test_inference_goes_on_while_a_plan_is_received(board: Board, signed: Signed) -> None:
    """The shell's thread reads digits from first chunk to staged; every answer is the old plan's. Plans are sent until
    there were some answers: on a busy host a few are received within one."""
    finished = threading.Event()
    small = replace(PATIENT, chunk_bytes=32)
    rounds = 0

    def receive() -> None:
        try:
            for sent in range(60):
                board.talk(lambda to: send(to, signed.b), settings=small)
                board.talk(lambda to: to.erase())
                if sent >= 2 and rounds > 3:
                    break
        finally:
            finished.set()

    receiving = threading.Thread(target=receive)
    receiving.start()
    while not finished.is_set():
        check_digits(board.send("digits"), signed.a)
        rounds += 1
    receiving.join()
    assert rounds > 3


def test_second_updater_is_told_busy(board: Board, signed: Signed) -> None:
    async def two(first: Transport) -> None:
        content = signed.b
        head, digest = content[: signing.head_len(content)], bytes.fromhex(signing.describe(content).digest)
        transfer = await first.begin(head, digest, len(content))
        async with await connect(f"coap://[{net.DEVICE}]", PATIENT) as second:
            with pytest.raises(TransportError) as raised:
                await send(second, signed.newer)
            assert (raised.value.device, raised.value.code) == (EngineError.BUSY, Code.BUSY)
            with pytest.raises(TransportError) as raised:
                await second.write(transfer.token + 1, transfer.next, b"x")
            assert raised.value.device is EngineError.TOKEN
        await first.abort(transfer.token)
        await send(first, signed.newer)

    board.talk(two)
    assert board.slot("b", len(signed.newer)) == signed.newer


def test_schedule_alone_is_sent(board: Board, signed: Signed) -> None:
    """The same model in less RAM: weights and graph come from the active slot."""
    done = board.talk(lambda to: send(to, signed.newer, copy=True))
    assert board.slot("b", len(signed.newer)) == signed.newer
    assert 0 < done.sent < len(signed.newer) // 4


@pytest.mark.parametrize("seed", range(1 if CHOSEN == ["native64"] else 3))
def test_thirty_percent_loss(board: Board, signed: Signed, seed: int) -> None:
    async def over_a_bad_line() -> tuple[int, int]:
        line = net.Lossy(0.3, seed)
        port = await line.open()
        try:
            async with await connect(f"coap://[::1]:{port}", PATIENT) as transport:
                await send(transport, signed.b)
                await transport.test()
                await transport.confirm()
        finally:
            line.close()
        return line.passed, line.dropped

    passed, dropped = board.network.run(over_a_bad_line)
    assert dropped > 20
    assert board.slot("b", len(signed.b)) == signed.b
    assert board.talk(lambda to: to.state()).active == 1
    check_digits(board.send("digits"), signed.b)
    record(board.name, "30 % loss", f"{dropped} of {passed + dropped} datagrams lost, bytes identical")


def test_killed_at_random_moments(board: Board, signed: Signed) -> None:
    """Whatever it is doing, the next start runs a plan that was confirmed or is on trial, and updates go on."""
    rng = random.Random(20)
    seen = {tuple(expected_digits(getattr(signed, name))): name for name in "ab"}
    want, outcomes = "b", Counter[str]()

    async def until_killed(seconds: float | None) -> str:
        phase = "connecting"
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, board.stab)
        try:
            async with asyncio.timeout(seconds), await connect(f"coap://[{net.DEVICE}]", PATIENT) as transport:
                phase = "sending"
                await send(transport, getattr(signed, want))
                phase = "trying"
                await transport.test()
                phase = "confirming"
                await transport.confirm()
                return "done"
        except TimeoutError:
            return phase

    began = time.monotonic()
    assert board.network.run(lambda: until_killed(None)) == "done"
    whole, want = time.monotonic() - began, "a"
    for _ in range(KILLS):
        outcome = board.network.run(lambda: until_killed(whole * rng.uniform(0.05, 0.9)))
        outcomes[outcome] += 1
        board.start()
        found = tuple(re.findall(r"crc32 ([0-9a-f]{8})", board.send("digits")))
        assert found in seen, f"runs no known plan: {board.booted}"
        state = board.talk(lambda to: to.state())
        if outcome == "done":
            assert seen[found] == want, "confirmed, and lost"
            want = "a" if want == "b" else "b"
        elif state.state is SlotState.TRIAL and rng.random() < 0.5:
            board.talk(lambda to: to.confirm())
            want = "a" if want == "b" else "b"
        elif state.state is SlotState.REVERTED:
            board.talk(lambda to: to.erase())
        elif state.active == "ab".index(want) and state.state is SlotState.OLD and seen[found] == want:
            want = "a" if want == "b" else "b"
    assert outcomes["sending"] > 0
    if board.talk(lambda to: to.state()).state is SlotState.TRIAL:
        board.talk(lambda to: to.confirm())
        want = "a" if want == "b" else "b"
    assert board.network.run(lambda: until_killed(None)) == "done", "and it still takes an update"
    board.start()
    check_digits(board.send("digits"), getattr(signed, want))
    told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    record(board.name, "kills", f"{KILLS} ({told}), always a running plan")


# ---------------------------------------------------------------- any CoAP client


async def request(method: Any, path: str, payload: bytes = b"", **keywords: Any) -> aiocoap.Message:
    context = await aiocoap.Context.create_client_context()
    try:
        message = aiocoap.Message(code=method, uri=f"coap://[{net.DEVICE}]/weft/{path}", payload=payload)
        return await context.request(message, **keywords).response
    finally:
        await context.shutdown()


def test_plan_as_a_block_wise_put(board: Board, signed: Signed) -> None:
    def put(content: bytes) -> aiocoap.Message:
        return board.network.run(lambda: request(aiocoap.PUT, "plan", content))

    assert put(signed.unsigned).code is aiocoap.FORBIDDEN
    refused = put(signed.foreign)
    assert refused.code is aiocoap.FORBIDDEN
    assert refused.payload.startswith(b"WEFT_ERR_KEY: ")
    assert put(b"no plan at all" * 99).code.class_ == 4
    assert put(signed.damaged).code is aiocoap.UNPROCESSABLE_ENTITY
    for _ in range(2):
        assert put(signed.b).code is aiocoap.CHANGED
        assert board.slot("b", len(signed.b)) == signed.b
    assert board.talk(lambda to: to.state()).state is SlotState.STAGED
    assert put(signed.a).code is aiocoap.CHANGED, "the active plan is there already"


def test_every_refusal_has_a_code_of_its_kind(board: Board) -> None:
    reply = board.network.run(lambda: request(aiocoap.POST, "confirm"))
    assert reply.code is aiocoap.CONFLICT
    assert cbor2.loads(reply.payload) == {"err": {"group": 64, "rc": int(EngineError.STATE)}}
    for body in (b"\xff", b"\xa1", cbor2.dumps({"token": 2**40}), cbor2.dumps([1])):
        assert board.network.run(lambda body=body: request(aiocoap.POST, "finish", body)).code is aiocoap.BAD_REQUEST
    # RIOT's own answer, which became the better one in 2026.
    wrong_method = board.network.run(lambda: request(aiocoap.GET, "begin")).code
    assert wrong_method in (aiocoap.METHOD_NOT_ALLOWED, aiocoap.NOT_FOUND)
    assert board.network.run(lambda: request(aiocoap.GET, "nothing")).code is aiocoap.NOT_FOUND


def test_noise_changes_nothing(board: Board, signed: Signed) -> None:
    """Requests with changed bytes, blocks out of order: the slots and the running plan stay, and a plan is taken."""
    rng = random.Random(3)
    before = hashlib.sha256(board.flash.read_bytes()).digest()

    async def noise() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(net.DEVICE, net.PORT))
        for number in range(600):
            path = rng.choice(["begin", "write", "finish", "abort", "plan", "state", "erased"])
            body = cbor2.dumps({"token": 1, "off": rng.randrange(2000), "len": 456, "data": rng.randbytes(64)})
            message = aiocoap.Message(code=rng.choice([aiocoap.GET, aiocoap.POST, aiocoap.PUT]), payload=body)
            message.mtype, message.mid, message.token = aiocoap.NON, number, rng.randbytes(2)
            message.opt.uri_path = ("weft", path)
            if rng.random() < 0.5:
                message.opt.block1 = (rng.randrange(9), rng.random() < 0.8, rng.randrange(7))
            wire = bytearray(message.encode())
            for _ in range(rng.randrange(3)):
                wire[rng.randrange(len(wire))] = rng.randrange(256)
            transport.sendto(bytes(wire))
            await asyncio.sleep(0.001)
        transport.close()

    board.network.run(noise)
    assert hashlib.sha256(board.flash.read_bytes()).digest() == before
    check_digits(board.send("digits"), signed.a)
    board.talk(lambda to: send(to, signed.b))
    assert board.slot("b", len(signed.b)) == signed.b


# ---------------------------------------------------------------- SUIT

SUIT_PACKAGES = ("nanocbor", "libcose", "hacl")
#: Behind the manifest's slash; what could be base64 would be taken for that.
COMPONENT = "weft_model"


class Files(aiocoap.resource.Site):
    """Serves files by GET, block by block."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__()
        for name, content in files.items():
            self.add_resource((name,), File(content))


class File(aiocoap.resource.Resource):
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
        return aiocoap.Message(payload=self._content)


def manifest(folder: Path, plan_file: Path, board: str, sequence: int, key: Path) -> bytes:
    """As RIOT's `make suit/manifest` makes and signs it."""
    suit = driver.riot_base() / "dist" / "tools" / "suit"
    tool = [sys.executable, suit / "suit-manifest-generator" / "bin" / "suit-tool"]
    source, bare, done = (folder / f"manifest{sequence}.{kind}" for kind in ("json", "bin", "signed"))
    for command in (
        [sys.executable, suit / "gen_manifest.py", "--urlroot", f"coap://[{net.HOST}]", "--seqnr", str(sequence),
         "--uuid-vendor", "riot-os.org", "--uuid-class", board, "-o", source, f"{plan_file}:0:{COMPONENT}"],
        [*tool, "create", "-f", "suit", "-i", source, "-o", bare],
        [*tool, "sign", "-k", key, "-m", bare, "-o", done],
    ):  # fmt: skip
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
    return done.read_bytes()


@pytest.mark.skipif(CHOSEN == ["native64"], reason="builds one more firmware: make test-riot")
def test_riots_own_way(network: net.Network) -> None:
    """`make test` of the sample, as RIOT's users type it, where a TAP device is."""
    lacking = driver.missing("native64")
    if lacking:
        pytest.skip("; ".join(lacking))
    driver.make("update", "native64", "all", "slots")
    driver.make("update", "native64", "test", prefix=network.prefix)


def test_plan_by_suit_manifest(network: net.Network, signed: Signed, tmp_path: Path) -> None:
    """The device fetches what a signed manifest names, tries it, and refuses what is not for it."""
    lacking = driver.unfetchable(*SUIT_PACKAGES)
    if lacking:
        pytest.skip("; ".join(lacking))
    keys = driver.BUILD / "suit-keys"
    # Nothing else needs the two commands that this build leaves out.
    left_out = f"{IDS} -DCONFIG_WEFT_COAP_NO_REVERT_ERASE=1"
    variables = {"WEFT_KEY": str(signed.key), "SUIT": "1", "SUIT_KEY_DIR": str(keys), "WEFT_CFLAGS": left_out}
    firmware = Firmware(board="native64", elf=driver.elf("update", "native64", "suit", variables))
    flash = tmp_path / "flash"
    flash.write_bytes(driver.flash_image("native64", {"a": signed.a}))
    board = Board(network, firmware, flash)
    files = {"b.weft": signed.b, "foreign.weft": signed.foreign}
    for number, (name, content) in enumerate(files.copy().items()):
        (tmp_path / name).write_bytes(content)
        files[f"m{number}"] = manifest(tmp_path, tmp_path / name, "native64", 10 + number, keys / "default.pem")
    files["m2"] = files["m0"][:-9] + bytes([files["m0"][-9] ^ 1]) + files["m0"][-8:]
    files["m3"] = manifest(tmp_path, tmp_path / "b.weft", "native64", 3, keys / "default.pem")

    async def serve_until(finished: threading.Event) -> None:
        context = await aiocoap.Context.create_server_context(Files(files), bind=(net.HOST, net.PORT))
        while not finished.is_set():
            await asyncio.sleep(0.02)
        await context.shutdown()

    def fetch(name: str) -> str:
        board.type(f"suit fetch coap://[{net.HOST}]/{name}")
        return board.until(r"suit_worker: update (successful|failed)")

    finished = threading.Event()
    try:
        board.start()
        serving = threading.Thread(target=lambda: network.run(lambda: serve_until(finished)))
        serving.start()
        before = hashlib.sha256(flash.read_bytes()).digest()
        assert "weft: fetching a plan: WEFT_ERR_KEY" in fetch("m1"), "the manifest is good, the plan is not ours"
        assert fetch("m2").endswith("failed"), "a manifest whose signature is broken"
        assert fetch("m3").endswith("failed"), "a manifest that is no newer than what was confirmed"
        assert hashlib.sha256(flash.read_bytes()).digest() == before
        text = fetch("m0")
        assert text.endswith("successful"), text
        assert f"weft: slot b: model {model_of(signed.b)[:8]}" in text, "tried at once"
        check_digits(board.send("digits"), signed.b)
        assert board.slot("b", len(signed.b)) == signed.b
        finished.set()
        serving.join()
        for path in ("revert", "erase"):
            assert network.run(lambda path=path: request(aiocoap.POST, path)).code is aiocoap.NOT_FOUND
        assert network.run(lambda: request(aiocoap.POST, "confirm")).code is aiocoap.CHANGED
    finally:
        finished.set()
        serving.join()
        board.kill()
    record("native64", "SUIT", "fetched, tried; four manifests, three refused")


def test_the_models_differ() -> None:
    """What the tests above tell apart."""
    contents = [plan(name, "native", version=3) for name in ("digits_a", "digits_b")]
    assert expected_digits(contents[0]) != expected_digits(contents[1])
    assert len(digits()) == 10
    assert Engine().open(contents[0]).arena_size <= driver.BOARDS["native64"].arena
