# SPDX-License-Identifier: Apache-2.0
"""Updates of the host board through its real transport: bad lines, kills, hostile plans and peers; the same over a
serial line; devices that answer nonsense."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import socket
import statistics
import struct
import sys
import threading
import time
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from smp import packet as smp_packet

from planner_service import ir, planner, signing
from planner_service.engine import Engine
from planner_service.errors import Code, PlannerError
from planner_service.format import EngineError, SlotState
from planner_service.transport import Address, Settings, Transport, TransportError, connect, parse
from planner_service.transport.deploy import Progress, deploy, try_out
from tests.schedule_graphs import Maker
from tests.test_update import HOSTILE
from tests.update import build, kill
from tests.update import plans as made
from tests.update.device import Device, running
from tests.update.hostile import Hostile, begin_refused, disordered, finish_refused, replayed, send, truncated
from tests.update.proxy import Proxy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "samples" / "host"))

from client import Board, Client

SLOT_BYTES = 8192
OPTIONS: dict[str, int | str] = {
    "sector": 512,
    "ram": 4096,
    "vendor": made.VENDOR.hex(),
    "class": made.DEVICE.hex(),
}
ZEROS = [np.zeros((3, 3, 4), np.int8)]


@pytest.fixture(scope="module")
def plans() -> made.Plans:
    return made.make()


@pytest.fixture
def board(tmp_path: Path, plans: made.Plans) -> Iterator[Board]:
    """A board that runs ``plans.old``."""
    found = Board(tmp_path, signing.public_pem(signing.public_key(plans.key)), slot_bytes=SLOT_BYTES, options=OPTIONS)
    found.write_slot("a", plans.old)
    with found:
        yield found


def answer(plan: bytes) -> bytes:
    return b"".join(np.asarray(o, np.int8).tobytes() for o in Engine().open(plan).run(ZEROS).outputs)


def on(address: str, work: Callable[[Transport], Awaitable[Any]], **settings: Any) -> Any:
    """The result of ``work`` on a connection."""

    async def run() -> Any:
        async with await connect(address, Settings(**{"patience_seconds": 20.0, **settings})) as transport:
            return await work(transport)

    return asyncio.run(run())


def slot(board: Board, name: str, plan: bytes) -> bool:
    return board.slot(name).read_bytes()[: len(plan)] == plan


def ask(board: Board) -> bytes:
    with board.connect() as client:
        return client.infer(ZEROS)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("smp+udp://192.0.2.1", Address(scheme="smp+udp", host="192.0.2.1", port=1337)),
        ("smp+udp://board.local:99/", Address(scheme="smp+udp", host="board.local", port=99)),
        ("smp+udp://[2001:db8::1]:99", Address(scheme="smp+udp", host="2001:db8::1", port=99)),
        ("smp+serial:///dev/ttyACM0", Address(scheme="smp+serial", path="/dev/ttyACM0")),
        (
            "smp+serial:///dev/ttyS0?baud=9600",
            Address(scheme="smp+serial", path="/dev/ttyS0", options={"baud": "9600"}),
        ),
        ("coap://[2001:db8::1]/weft", Address(scheme="coap", host="2001:db8::1", port=5683, path="/weft")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "board", "http://board", "smp+udp://", "smp+udp://h:99999", "smp+udp://h:x", "smp+udp://h/x",
        "smp+udp://u@h", "smp+udp://h#x", "smp+udp://[::1", "smp+serial://ttyACM0", "smp+serial:///",
        "smp+serial:///dev/tty?baud", "coap:///weft", "smp+udp://a b", "smp+udp://a\n", "coap://\x00",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PlannerError) as raised:
        parse(text)
    assert raised.value.code is Code.BAD_REQUEST
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("smp+udp://127.0.0.1?x=1", Code.BAD_REQUEST),
        ("smp+serial:///dev/null?baud=fast", Code.BAD_REQUEST),
        ("smp+serial:///dev/null?parity=E", Code.BAD_REQUEST),
        ("smp+serial:///dev/weft-has-none", Code.UNREACHABLE),
        ("smp+udp://127.0.0.1:9", Code.UNREACHABLE),
    ],
)
def test_where_nothing_is(text: str, code: Code) -> None:
    with pytest.raises(PlannerError) as raised:
        on(text, lambda transport: transport.state(), patience_seconds=0.3)
    assert raised.value.code is code


# ---------------------------------------------------------------- updates


def test_from_begin_to_confirm(board: Board, plans: made.Plans) -> None:
    seen: list[Progress] = []

    async def work(transport: Transport) -> None:
        before = await transport.stats()
        done = await deploy(transport, plans.new, copy=False, progress=seen.append)
        assert (done.outcome, done.slot, done.sessions, done.resumed) == ("staged", "b", 1, 0)
        assert done.sent == done.total == len(plans.new)
        assert ask(board) == answer(plans.old)
        state = await try_out(transport, 5.0)
        assert state.in_trial
        assert (state.active, state.running, state.tries, state.floor) == (0, 1, 1, 2)
        assert ask(board) == answer(plans.new)
        await transport.confirm()
        after = await transport.stats()
        assert after.stall_us == 0, "this board's flash can be read while it is erased"
        state = await transport.state()
        assert (state.active, state.running, state.state, state.floor) == (1, 1, SlotState.OLD, 3)
        assert after.slot_erases - before.slot_erases == -(-len(plans.new) // 512), "every sector once"
        again = await deploy(transport, plans.new, goal="confirm")
        assert (again.outcome, again.sessions, again.sent) == ("active", 0, 0)
        assert await transport.stats() == after

    on(board.address, work)
    assert slot(board, "b", plans.new)
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert {p.phase for p in seen} == {"sending", "verifying"}
    assert all(p.total == len(plans.new) and 0.0 <= p.fraction <= 1.0 for p in seen)


def test_delta_sends_what_differs(board: Board, plans: made.Plans) -> None:
    seen: list[Progress] = []
    done = on(board.address, lambda t: deploy(t, plans.delta, goal="confirm", progress=seen.append))
    assert done.outcome == "active"
    assert done.sent < len(plans.delta) / 2
    assert "copying" in {p.phase for p in seen}
    assert slot(board, "b", plans.delta)


@pytest.mark.parametrize("seed", range(2))
def test_thirty_percent_loss(board: Board, plans: made.Plans, seed: int) -> None:
    async def run() -> None:
        port = parse(board.address).port
        assert port is not None
        async with Proxy(port, loss=0.3, seed=seed) as line:
            settings = Settings(patience_seconds=20.0, resend_seconds=0.2, chunk_bytes=128)
            async with await connect(f"smp+udp://127.0.0.1:{line.port}", settings) as transport:
                done = await deploy(transport, plans.new, goal="confirm", copy=False)
            assert done.outcome == "active"
            assert line.lost > 0.2 * (line.lost + line.passed) > 10

    asyncio.run(run())
    assert slot(board, "b", plans.new)
    assert ask(board) == answer(plans.new)


@pytest.mark.parametrize("seed", range(2))
def test_disorder_and_duplicates_on_the_line(board: Board, plans: made.Plans, seed: int) -> None:
    async def run() -> None:
        port = parse(board.address).port
        assert port is not None
        async with Proxy(port, loss=0.05, repeat=0.4, delay=0.4, late=0.1, seed=seed) as line:
            settings = Settings(patience_seconds=20.0, resend_seconds=0.2, chunk_bytes=256)
            async with await connect(f"smp+udp://127.0.0.1:{line.port}", settings) as transport:
                assert (await deploy(transport, plans.new, goal="confirm", copy=False)).outcome == "active"

    asyncio.run(run())
    assert slot(board, "b", plans.new)


def test_goes_on_after_the_host_was_interrupted(board: Board, plans: made.Plans) -> None:
    class EnoughError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > len(plans.new) // 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        on(board.address, lambda t: deploy(t, plans.new, copy=False, progress=stop), chunk_bytes=200)
    done = on(board.address, lambda t: deploy(t, plans.new, goal="confirm", copy=False), chunk_bytes=200)
    assert done.outcome == "active"
    assert done.resumed > len(plans.new) // 2
    assert done.sent < len(plans.new)
    assert slot(board, "b", plans.new)


def test_goes_on_after_the_device_was_reset(board: Board, plans: made.Plans) -> None:
    """The reset comes in the middle of one push: it finds out, and goes on at the last mark."""
    port = 0

    async def run() -> None:
        nonlocal port
        restarted = False

        def reset(progress: Progress) -> None:
            nonlocal restarted
            if progress.done > len(plans.new) * 3 // 4 and not restarted:
                restarted = True
                board.options["update-port"] = parse(board.address).port or 0
                board.kill()
                board.start()

        async with await connect(board.address, Settings(patience_seconds=20.0, chunk_bytes=200)) as transport:
            done = await deploy(transport, plans.new, goal="confirm", copy=False, progress=reset)
        assert restarted
        assert (done.outcome, done.sessions) == ("active", 2)
        assert len(plans.new) < done.sent < 2 * len(plans.new)

    asyncio.run(run())
    assert slot(board, "b", plans.new)


def test_inference_goes_on_while_a_plan_is_received(tmp_path: Path, plans: made.Plans) -> None:
    """Erases take long on this board; each answer is the old plan's until the trial, then the new one's."""
    key = signing.public_pem(signing.public_key(plans.key))
    board = Board(tmp_path, key, slot_bytes=SLOT_BYTES, options={**OPTIONS, "erase-us": 40_000})
    board.write_slot("a", plans.old)
    answers: list[bytes] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def keep_asking(client: Client) -> None:
        try:
            while not stop.is_set():
                answers.append(client.infer(ZEROS))
        except (OSError, RuntimeError) as error:
            failures.append(error)

    with board, board.connect() as client:
        asking = threading.Thread(target=keep_asking, args=(client,))
        asking.start()
        try:
            on(board.address, lambda t: deploy(t, plans.new, copy=False))
            during = len(answers)
            assert set(answers) == {answer(plans.old)}
            on(board.address, lambda t: deploy(t, plans.new, goal="confirm"))
        finally:
            stop.set()
            asking.join()
        assert not failures
        assert during > 2 * (len(plans.new) // 512), "more answers than sectors were erased"
        assert set(answers[during:]) <= {answer(plans.old), answer(plans.new)}
        assert client.infer(ZEROS) == answer(plans.new)


def test_stall_is_one_sectors_and_measured(tmp_path: Path, plans: made.Plans) -> None:
    """Flash that cannot be read while it is erased: inference waits for one sector at a time, and the device says how
    long a sector takes. Bounds leave room for a busy host."""
    erase_us = 100_000
    key = signing.public_pem(signing.public_key(plans.key))
    board = Board(tmp_path, key, slot_bytes=SLOT_BYTES, options={**OPTIONS, "erase-us": erase_us, "stall": 1})
    board.write_slot("a", plans.old)
    waits: list[float] = []
    stop = threading.Event()

    def keep_asking(client: Client) -> None:
        while not stop.is_set():
            before = time.monotonic()
            assert client.infer(ZEROS) == answer_of_old
            waits.append(time.monotonic() - before)

    answer_of_old = answer(plans.old)
    with board, board.connect() as client:
        asking = threading.Thread(target=keep_asking, args=(client,))
        asking.start()
        try:
            on(board.address, lambda t: deploy(t, plans.new, copy=False), chunk_bytes=256)
        finally:
            stop.set()
            asking.join()
        stall = on(board.address, lambda t: t.stats()).stall_us
    sectors = -(-len(plans.new) // 512)
    stalled = sorted(waits)[-sectors:]
    print(f"longest wait {1e6 * stalled[-1] / erase_us:.2f} erases, median answer {statistics.median(waits):.4f} s")
    assert erase_us <= stall < 2 * erase_us
    assert stalled[-1] < 2.5e-6 * erase_us
    assert stalled[sectors // 2] > 0.3e-6 * erase_us, "they do stall"
    assert len(waits) > 2 * sectors


def test_confirmed_by_healthy_inferences(tmp_path: Path, plans: made.Plans) -> None:
    key = signing.public_pem(signing.public_key(plans.key))
    board = Board(tmp_path, key, slot_bytes=SLOT_BYTES, options={**OPTIONS, "confirm-after": 3})
    board.write_slot("a", plans.old)
    with board:
        assert on(board.address, lambda t: deploy(t, plans.new, goal="test")).outcome == "trial"
        for number in range(3):
            assert on(board.address, lambda t: t.state()).active == 0, number
            ask(board)
        assert on(board.address, lambda t: t.state()).active == 1


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.name)
def test_header_is_refused_before_anything_is_erased(board: Board, plans: made.Plans, hostile: Hostile) -> None:
    flash = [board.slot(n).read_bytes() for n in "ab"] + [board.state.read_bytes()]
    on(board.address, lambda t: begin_refused(t, plans, hostile))
    assert flash == [board.slot(n).read_bytes() for n in "ab"] + [board.state.read_bytes()]
    assert ask(board) == answer(plans.old)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bit_behind_the_header(board: Board, plans: made.Plans, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(plans.new)
    data[rng.randrange(signing.head_len(plans.new), len(data))] ^= 1 << rng.randrange(8)
    on(board.address, lambda t: finish_refused(t, bytes(data), EngineError.HASH))
    assert ask(board) == answer(plans.old)
    assert on(board.address, lambda t: deploy(t, plans.new, goal="confirm")).outcome == "active"


def test_a_damaged_file_is_not_sent(board: Board, plans: made.Plans) -> None:
    damaged = plans.new[:-1] + bytes([plans.new[-1] ^ 1])
    for bad in (damaged, plans.new[:-8], b"", b"no plan" * 100):
        with pytest.raises(PlannerError) as raised:
            on(board.address, lambda t, bad=bad: deploy(t, bad))
        assert raised.value.code is Code.BAD_PLAN
    assert on(board.address, lambda t: t.stats()).slot_erases == 0


def test_truncated_transfer(board: Board, plans: made.Plans) -> None:
    on(board.address, lambda t: truncated(t, plans.new))
    assert ask(board) == answer(plans.old)


def test_chunks_out_of_order_and_twice(board: Board, plans: made.Plans) -> None:
    on(board.address, lambda t: disordered(t, plans.new))
    assert slot(board, "b", plans.new)


def test_replay_a_thousand_times(board: Board, plans: made.Plans) -> None:
    """The plan that is staged, then active, and the one before it."""

    async def work(transport: Transport) -> None:
        await deploy(transport, plans.new)
        await replayed(transport, plans.new, [])
        await deploy(transport, plans.new, goal="confirm")
        await replayed(transport, plans.new, [plans.old])

    on(board.address, work)
    assert ask(board) == answer(plans.new)


def test_offsets_that_make_no_sense(board: Board, plans: made.Plans) -> None:
    async def work(transport: Transport) -> None:
        token = await send(transport, plans.new, 1000)
        for offset in (1001, len(plans.new), 2**31, 2**32 - 1):
            assert (await transport.write(token, offset, b"x" * 64)).next == 1000
        for wrong in (0, token - 1, token + 1, 2**32 - 1):
            with pytest.raises(TransportError) as raised:
                await transport.write(wrong, 1000, b"x")
            assert raised.value.device is EngineError.TOKEN

    on(board.address, work)
    assert on(board.address, lambda t: deploy(t, plans.new, goal="confirm")).outcome == "active"
    assert slot(board, "b", plans.new)


def test_second_updater_is_told_busy(board: Board, plans: made.Plans) -> None:
    async def run() -> None:
        first, second = await connect(board.address), await connect(board.address)
        async with first, second:
            token = await send(first, plans.new, 2000)
            before = await first.stats()
            with pytest.raises(TransportError) as raised:
                await deploy(second, plans.next)
            assert (raised.value.device, raised.value.code) == (EngineError.BUSY, Code.BUSY)
            for order in (second.erase, second.test, second.confirm):
                with pytest.raises(TransportError):
                    await order()
            assert await first.stats() == before
            await first.abort(token)
            assert (await deploy(second, plans.next, goal="confirm")).outcome == "active"

    asyncio.run(run())
    assert slot(board, "b", plans.next)


def test_either_key_counts(tmp_path: Path, plans: made.Plans) -> None:
    """Keys are rotated by way of the second place."""
    second = signing.generate_key()
    pems = [signing.public_pem(signing.public_key(key)) for key in (plans.key, second)]
    board = Board(tmp_path, *pems, slot_bytes=SLOT_BYTES, options=OPTIONS)
    board.write_slot("a", plans.old)
    with board:
        for plan in (signing.sign(plans.new, second), plans.next):
            assert on(board.address, lambda t, plan=plan: deploy(t, plan, goal="confirm")).outcome == "active"
        with pytest.raises(TransportError) as raised:
            on(board.address, lambda t: deploy(t, signing.sign(plans.next, signing.generate_key())))
        assert raised.value.device is EngineError.KEY


def test_random_packets_change_nothing(board: Board, plans: made.Plans) -> None:
    rng, port = random.Random(11), parse(board.address).port
    flash = [board.slot(n).read_bytes() for n in "ab"] + [board.state.read_bytes()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(("127.0.0.1", port))
        for number in range(3000):
            body = rng.randbytes(rng.randrange(60)) if number % 50 else bytes(1500)
            head = struct.pack(
                ">BBHHBB", rng.randrange(256), 0, len(body), rng.choice((0, 64, 1)), 1, rng.randrange(12)
            )
            line.send((head + body)[rng.choice((0, 0, 0, 3)) : rng.choice((2000, 2000, 8, 5))])
    assert on(board.address, lambda t: t.state()).active == 0
    assert flash == [board.slot(n).read_bytes() for n in "ab"] + [board.state.read_bytes()]
    assert ask(board) == answer(plans.old)


def test_signed_plan_that_computes_something_else(board: Board, plans: made.Plans) -> None:
    with pytest.raises(TransportError) as raised:
        on(board.address, lambda t: deploy(t, plans.wrong, goal="confirm"))
    assert (raised.value.device, raised.value.code) == (EngineError.SELFTEST, Code.REFUSED)
    assert ask(board) == answer(plans.old)
    with pytest.raises(TransportError) as raised:
        on(board.address, lambda t: deploy(t, plans.wrong))
    assert raised.value.device is EngineError.TRIED


def test_signed_plan_that_the_verifier_refuses(board: Board, plans: made.Plans) -> None:
    on(board.address, lambda t: finish_refused(t, plans.invalid, EngineError.ARENA))
    assert ask(board) == answer(plans.old)


def test_signed_plan_that_takes_too_long(tmp_path: Path, plans: made.Plans) -> None:
    """It is within the limits of work and passes the verifier; the deadline of its self-test ends it."""

    def large() -> ir.Graph:
        m = Maker(5, [(24, 24, 3)])
        t = m.inputs[0]
        for _ in range(8):
            t = m.conv(t, 48)
        return m.graph([t])

    slow = signing.sign(planner.layers(large(), made.options(5)).plan, plans.key)
    key = signing.public_pem(signing.public_key(plans.key))
    options = {**OPTIONS, "ram": 1 << 17, "selftest-ms": 10}
    board = Board(tmp_path, key, slot_bytes=1 << 18, options=options)
    board.write_slot("a", plans.old)
    with board:
        with pytest.raises(TransportError) as raised:
            on(board.address, lambda t: deploy(t, slow, goal="confirm"))
        assert (raised.value.device, raised.value.code) == (EngineError.ABORTED, Code.REFUSED)
        assert ask(board) == answer(plans.old)
        assert on(board.address, lambda t: deploy(t, plans.new, goal="confirm")).outcome == "active"


def test_killed_at_two_hundred_random_moments() -> None:
    found = kill.run(200)
    assert found.kills == 200
    assert found.without_plan == 0
    assert found.bytes_identical == found.updates > 10
    assert {"receiving", "old"} < set(found.moments), "the moments are spread over the update"


# ---------------------------------------------------------------- other lines, other devices


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.device(tmp_path_factory.mktemp("transport"), "-O0", smp=True)


@pytest.fixture
def device(library: Path, plans: made.Plans) -> Iterator[Device]:
    with running(library, plans) as found:
        yield found


def test_over_a_serial_line(device: Device, plans: made.Plans) -> None:
    """A pseudo terminal with the device behind it; between the frames stands what a console prints. The driver holds
    two lines, as MCUmgr's does: what comes behind them in one go is lost."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    wire = device.smp()

    def serve() -> None:
        decoder, line, held = None, b"", 0
        while True:
            try:
                line += os.read(master, 4096)
            except OSError:
                return
            while b"\n" in line:
                frame, _, line = line.partition(b"\n")
                held += 1
                if held > 2:
                    continue
                if decoder is None:
                    decoder = smp_packet.decode()
                    next(decoder)
                try:
                    decoder.send(frame + b"\n")
                except StopIteration as end:
                    decoder, held = None, 0
                    os.write(master, b"inference 17: digit 3\r\n")
                    for part in smp_packet.encode(wire(bytes(end.value), 512), line_length=127):
                        os.write(master, part)

    threading.Thread(target=serve, daemon=True).start()
    address = f"smp+serial://{os.ttyname(slave)}?baud=115200"
    done = on(address, lambda t: deploy(t, plans.new, copy=False), patience_seconds=5.0)
    assert (done.outcome, done.sent) == ("staged", len(plans.new))
    assert device.bytes_of(1)[: len(plans.new)] == plans.new
    os.close(master)
    os.close(slave)


class Peer(asyncio.DatagramProtocol):
    """A UDP port whose answers a function makes."""

    def __init__(self, reply: Callable[[bytes], list[bytes]]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for reply in self._reply(data):
            self._transport.sendto(reply, addr)  # type: ignore[attr-defined]


def with_peer(
    reply: Callable[[bytes], list[bytes]], work: Callable[[Transport], Awaitable[Any]], patience: float = 0.5
) -> Any:
    async def run() -> Any:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(lambda: Peer(reply), ("127.0.0.1", 0))
        try:
            port = server.get_extra_info("sockname")[1]
            settings = Settings(patience_seconds=patience, slow_factor=1.0, resend_seconds=0.1)
            async with await connect(f"smp+udp://127.0.0.1:{port}", settings) as transport:
                return await work(transport)
        finally:
            server.close()

    return asyncio.run(run())


def packet(request: bytes, members: object) -> bytes:
    """A reply to ``request``."""
    body = cbor2.dumps(members)
    return bytes([request[0] + 1, 0]) + struct.pack(">H", len(body)) + request[4:8] + body


def test_device_without_parameters_gets_small_packets(device: Device, plans: made.Plans) -> None:
    wire, longest = device.smp(), 0

    def reply(request: bytes) -> list[bytes]:
        nonlocal longest
        longest = max(longest, len(request))
        return [wire(request, 512)]

    assert with_peer(reply, lambda t: deploy(t, plans.new, copy=False)).outcome == "staged"
    assert 200 < longest <= 256
    assert device.bytes_of(1)[: len(plans.new)] == plans.new


@pytest.mark.parametrize("size", [49, 64, 100, 700, 1472, 65535])
def test_packets_are_as_the_device_says(device: Device, plans: made.Plans, size: int) -> None:
    wire, longest = device.smp(), 0

    def reply(request: bytes) -> list[bytes]:
        nonlocal longest
        if request[7] == 6 and request[5] == 0:
            return [packet(request, {"buf_size": size, "buf_count": 4})]
        longest = max(longest, len(request))
        return [wire(request, 2000)]

    assert with_peer(reply, lambda t: deploy(t, plans.new, copy=False)).outcome == "staged"
    assert longest <= min(size, 1472)
    assert device.bytes_of(1)[: len(plans.new)] == plans.new


def test_noise_between_the_replies_is_skipped(device: Device, plans: made.Plans) -> None:
    wire, rng = device.smp(), random.Random(5)

    def reply(request: bytes) -> list[bytes]:
        good = wire(request, 512)
        other = bytearray(good)
        other[6] ^= 0x40  # the reply to an earlier request
        noise = [
            b"", b"\x00", rng.randbytes(7), rng.randbytes(30), bytes(other), good[:8], good[:-1] + b"", good + b"more",
            request, good[:4] + b"\x00\x01" + good[6:], bytes([0xFF]) + good[1:], good[:8] + b"\xff" * (len(good) - 8),
        ]  # fmt: skip
        noise = [n for n in noise if len(n) == 0 or len(n) >= 8 or rng.random() < 0.5]
        return [rng.choice(noise), good]

    assert with_peer(reply, lambda t: deploy(t, plans.new, copy=False), patience=5.0).outcome == "staged"
    assert device.bytes_of(1)[: len(plans.new)] == plans.new


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({}, Code.DEVICE),
        ({"rc": 8}, Code.DEVICE),
        ({"rc": 10}, Code.DEVICE),
        ({"rc": "no"}, Code.DEVICE),
        ({"rc": 4711}, Code.DEVICE),
        ({"err": {"group": 64, "rc": 48}}, Code.BUSY),
        ({"err": {"group": 64, "rc": 42}}, Code.REFUSED),
        ({"err": {"group": 64, "rc": 40}}, Code.DEVICE),
        ({"err": {"group": 64, "rc": 255}}, Code.DEVICE),
        ({"err": {"group": 1, "rc": 3}}, Code.DEVICE),
        ({"err": 7}, Code.DEVICE),
        ({"active": -1}, Code.DEVICE),
        ({"active": 2**40}, Code.DEVICE),
        ({"active": "a"}, Code.DEVICE),
        ({**dict.fromkeys(("active", "running", "tries", "reason", "floor"), 0), "state": 99}, Code.DEVICE),
        ([1, 2, 3], Code.UNREACHABLE),
        (7, Code.UNREACHABLE),
    ],
)
def test_answers_that_are_none(members: object, code: Code) -> None:
    def reply(request: bytes) -> list[bytes]:
        return [packet(request, {"rc": 8} if request[5] == 0 else members)]

    with pytest.raises(TransportError) as raised:
        with_peer(reply, lambda t: t.state())
    assert raised.value.code is code
    assert "Traceback" not in str(raised.value)


def test_device_that_never_gets_on(device: Device, plans: made.Plans) -> None:
    """It takes each write and asks for the same bytes again."""
    wire = device.smp()
    stuck: dict[str, Any] = {}

    def reply(request: bytes) -> list[bytes]:
        answered = wire(request, 512)
        if request[7] == 2 and request[5] == 64:
            body = cbor2.loads(answered[8:])
            stuck.update(stuck or body)
            return [packet(request, stuck)]
        return [answered]

    with pytest.raises(TransportError) as raised:
        with_peer(reply, lambda t: deploy(t, plans.new, copy=False))
    assert raised.value.code is Code.DEVICE


def test_lost_replies_of_what_can_be_done_once(device: Device, plans: made.Plans) -> None:
    """The first reply to finish, test, confirm, abort and revert is lost; the second is an error, and is understood."""
    wire = device.smp()
    seen: set[int] = set()

    def reply(request: bytes) -> list[bytes]:
        answered = wire(request, 512)
        if request[5] == 64 and request[7] in (3, 4, 5, 6, 9) and request[6] not in seen:
            seen.add(request[6])
            return []
        if request[5] == 64 and request[7] == 4:
            device.restart()
        return [answered]

    async def work(transport: Transport) -> None:
        await transport.abort(await send(transport, plans.new, 1000))
        assert (await deploy(transport, plans.new, goal="confirm", copy=False)).outcome == "active"
        assert (await deploy(transport, plans.next, copy=False)).outcome == "staged"
        await transport.revert()
        assert (await transport.state()).state is SlotState.REVERTED

    with_peer(reply, work)
    assert len(seen) == 6, "two of them finishes"
