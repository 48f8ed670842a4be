# SPDX-License-Identifier: Apache-2.0
"""Plans over the air to Zephyr: samples/zephyr/update on native_sim, spoken to by smpclient over UDP. Tests of
``make test-zephyr``; tests/test_zephyr.py says what they need."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from planner_service import signing
from planner_service.format import EngineError
from planner_service.transport import TransportError, connect
from planner_service.transport.deploy import deploy
from tests import smp_host as smp
from tests import zephyr_rig as rig
from tests.update import hostile

SKIP = rig.reason_to_skip()
pytestmark = [
    pytest.mark.skipif(bool(SKIP), reason=SKIP or "-"),
    pytest.mark.skipif(rig.MACHINES["native_sim"] not in rig.wanted(), reason="native_sim is not among the boards"),
]

HOST = "127.0.0.1"
WAIT_SECONDS = 60.0
#: Runs until a trial is confirmed: some seconds, so that tests see trials.
CONFIRM_AFTER = 300


@pytest.fixture(scope="module")
def key() -> bytes:
    return signing.generate_key()


TREES = {"": rig.TREE, "lts": rig.LTS}


@pytest.fixture(scope="module", params=TREES, ids=lambda name: name or "tree")
def build(key: bytes, request: pytest.FixtureRequest) -> Path:
    """The sample with this run's key, in the Zephyr tree and in that of the release before."""
    tree = TREES[request.param]
    if not (tree / "scripts" / "twister").exists():
        pytest.skip(f"no Zephyr tree at {tree}: set WEFT_ZEPHYR_LTS")
    public = rig.BUILD / "update.pub"
    rig.BUILD.mkdir(parents=True, exist_ok=True)
    public.write_text(signing.c_array(signing.public_key(key)))
    settings = {
        "WEFT_UPDATE_KEY_FILE": f'"{public}"',
        "WEFT_UPDATE_CONFIRM_AFTER": str(CONFIRM_AFTER),
        "WEFT_VENDOR_ID": f'"{hostile.made.VENDOR.hex()}"',
        "WEFT_CLASS_ID": f'"{hostile.made.DEVICE.hex()}"',
    }
    # The UART of 3.7's native_sim has no interrupts, which MCUmgr's transport wants.
    serial = (tree / "drivers" / "serial" / "uart_native_pty.c").exists()
    files = {"EXTRA_CONF_FILE": "serial.conf", "EXTRA_DTC_OVERLAY_FILE": "serial.overlay"} if serial else {}
    source = rig.SAMPLES / "update"
    folder = rig.BUILD / f"update_native_sim{request.param and '_'}{request.param}"
    return rig.build("native_sim", source, folder, settings, tree=tree, files=files)


@pytest.fixture(scope="module")
def plans(key: bytes) -> dict[str, bytes]:
    """Signed plans for this device: a has version 1, b version 2."""
    return {name: signing.sign(for_this_device(rig.plan(f"digits_{name}")), key) for name in "ab"}


def for_this_device(plan: bytes) -> bytes:
    return hostile.made.edit_header(plan, None, vendor_id=hostile.made.VENDOR, class_id=hostile.made.DEVICE)


class Board:
    """The sample as a process with a flash file of its own."""

    def __init__(self, build: Path, folder: Path) -> None:
        self._build, self._folder = build, folder
        self.image = rig.image(rig.MACHINES["native_sim"], build)
        self.configuration = (build / "zephyr" / ".config").read_text()
        self.booted = ""

    @contextmanager
    def on(self) -> Iterator[tuple[smp.Device, Callable[[str], str]]]:
        """The running board's update core, and a function that reads its console up to a text."""
        native = rig.MACHINES["native_sim"]
        with (
            rig.start(native, self._build, self._folder, (), "SMP on UDP port", quiet=False) as board,
            smp.Device(HOST) as device,
        ):
            self.booted = board.text
            yield device, lambda end: rig.read_until(board.process, end, quiet=False)


@pytest.fixture
def board(build: Path, tmp_path: Path) -> Board:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((HOST, 1337))
        except OSError:
            pytest.fail("UDP port 1337, the one of SMP, is in use on this machine")
    return Board(build, tmp_path)


def wait(device: smp.Device, **wanted: Any) -> dict[str, Any]:
    """The state once it has these members."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        state = device.state()
        if all(state[name] == value for name, value in wanted.items()):
            return state
        time.sleep(0.05)
    raise AssertionError(f"{state} instead of {wanted}")


def digest(plan: bytes) -> bytes:
    """A plan's digest as devices show it."""
    return bytes.fromhex(signing.describe(plan).digest)[:16]


def install(device: smp.Device, plan: bytes) -> None:
    """Push, test, confirm by command."""
    device.push(plan)
    device.ask(smp.TEST)
    wait(device, state="TRIAL", running=1 - device.state()["active"] if device.state()["active"] < 2 else 0)
    device.ask(smp.CONFIRM)
    assert wait(device, running=device.state()["active"])["active_digest"] == digest(plan)


def test_model_changes_over_the_air(board: Board, plans: dict[str, bytes]) -> None:
    """Push, trial, reset in the trial, confirm, reset; the firmware is the same throughout."""
    before = hashlib.sha256(board.image.read_bytes()).hexdigest()
    with board.on() as (device, read):
        assert device.state()["active"] == 255
        install(device, plans["a"])
        assert "plan version 1, 10 of 10 digits right" in read("plan version 1, 10 of 10")
        device.push(plans["b"])
        assert device.state()["state"] == "STAGED"
        assert "plan version 1" in read("plan version 1")  # nothing changes before it is asked for
        device.ask(smp.TEST)
        wait(device, state="TRIAL", running=1, tries=1)
        assert "plan version 2, 10 of 10 digits right" in read("plan version 2, 10 of 10")
    with board.on() as (device, read):  # a reset in the trial: its second run
        assert wait(device, state="TRIAL", running=1, tries=2)["floor"] == 1
        device.ask(smp.CONFIRM)
        assert wait(device, active=1, state="OLD", floor=2)["active_digest"] == digest(plans["b"])
    with board.on() as (device, read):
        assert device.state()["running"] == 1
        assert "plan version 2, 10 of 10 digits right" in read("plan version 2, 10 of 10")
        with pytest.raises(smp.RefusedError, match="FLOOR"):
            device.push(plans["a"])
    assert hashlib.sha256(board.image.read_bytes()).hexdigest() == before


def test_trial_is_reverted_by_command_and_by_resets(board: Board, plans: dict[str, bytes]) -> None:
    with board.on() as (device, read):
        install(device, plans["a"])
        device.push(plans["b"])
        device.ask(smp.TEST)
        wait(device, running=1)
        device.ask(smp.REVERT)
        wait(device, running=0, state="REVERTED")
        read("plan version 2")
        assert "plan version 1, 10 of 10 digits right" in read("plan version 1, 10 of 10")
        with pytest.raises(smp.RefusedError, match="TRIED"):
            device.push(plans["b"])
        device.ask(smp.ERASE)
        device.push(plans["b"])
        device.ask(smp.TEST)
        wait(device, running=1, tries=1)
    for tries in (2, 3):
        with board.on() as (device, read):
            wait(device, running=1, state="TRIAL", tries=tries)
    with board.on() as (device, read):
        assert wait(device, running=0)["state"] == "REVERTED"
        assert "plan version 1, 10 of 10 digits right" in read("plan version 1, 10 of 10")


def test_weft_push(board: Board, plans: dict[str, bytes], tmp_path: Path) -> None:
    """The command line, as docs/zephyr.md has it."""
    to = ("--to", f"smp+udp://{HOST}", "--json")
    with board.on() as (_, read):
        for name in "ab":
            (tmp_path / f"{name}.weft").write_bytes(plans[name])
            done = rig.weft("push", str(tmp_path / f"{name}.weft"), "--confirm", *to)
            assert (done["outcome"], done["total"]) == ("active", len(plans[name]))
            read(f"plan version {1 + 'ab'.index(name)}, 10 of 10")
        assert rig.weft("status", *to)["active"] == "b"


def test_weft_push_over_a_serial_line(board: Board, plans: dict[str, bytes], tmp_path: Path) -> None:
    """Through MCUmgr's own UART transport, on the second UART: a pseudo terminal."""
    with board.on() as (_, read):
        line = re.search(r"uart_1 connected to pseudotty: (\S+)", board.booted)
        if "CONFIG_MCUMGR_TRANSPORT_UART=y" not in board.configuration:
            pytest.skip("this tree's native UART cannot carry MCUmgr")
        assert line is not None, board.booted
        to = ("--to", f"smp+serial://{line[1]}", "--json")
        for name in "ab":
            (tmp_path / f"{name}.weft").write_bytes(plans[name])
            done = rig.weft("push", str(tmp_path / f"{name}.weft"), "--confirm", *to)
            assert (done["outcome"], done["total"]) == ("active", len(plans[name]))
            read(f"plan version {1 + 'ab'.index(name)}, 10 of 10")
        again = rig.weft("push", str(tmp_path / "b.weft"), "--confirm", *to)
        assert (again["outcome"], again["sent"]) == ("active", 0)
        assert rig.weft("status", *to)["active"] == "b"


def test_good_runs_confirm(board: Board, plans: dict[str, bytes]) -> None:
    with board.on() as (device, read):
        device.push(plans["b"])
        device.ask(smp.TEST)
        assert f"confirmed after {CONFIRM_AFTER} runs" in read("confirmed after")
        assert wait(device, active=0, running=0)["floor"] == 2


def test_transfer_goes_on_after_a_reset(board: Board, plans: dict[str, bytes]) -> None:
    with board.on() as (device, _):
        install(device, plans["a"])
        device.push(plans["b"], stop_at=len(plans["b"]) // 2)
    with board.on() as (device, _):
        resumed = device.push(plans["b"])
        assert len(plans["b"]) // 4 < resumed <= len(plans["b"]) // 2 + 512
        assert device.state()["state"] == "STAGED"


ARENA, SLOT = 8192, 262144  # of the sample


def test_hostile_updates_by_smp(board: Board, plans: dict[str, bytes], key: bytes) -> None:
    """Everything that tests/test_update.py tries on the core itself, through MCUmgr over UDP."""
    made, good = hostile.made, signing.sign(made_of(plans["b"], 3), key)
    attacks = made.Plans(
        key=key,
        first=plans["a"],
        old=plans["b"],
        new=good,
        delta=good,
        next=good,
        wrong=made.change(good, key, made.flip_output_crc),
        invalid=made.invalid(good, key),
    )
    damaged = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]

    async def attack() -> None:
        async with await connect(f"smp+udp://{HOST}") as to:
            for case in hostile.by_header(arena=ARENA, slot=SLOT):
                await hostile.begin_refused(to, attacks, case)
            await hostile.replayed(to, attacks.old, [attacks.first])
            await hostile.finish_refused(to, damaged, EngineError.HASH)
            await hostile.finish_refused(to, attacks.invalid, *EngineError)
            await hostile.truncated(to, good)
            with pytest.raises(TransportError) as refused:
                await deploy(to, attacks.wrong, goal="test")
            assert refused.value.device is EngineError.SELFTEST
            await hostile.disordered(to, good)

    with board.on() as (device, read):
        install(device, plans["b"])
        asyncio.run(attack())
        assert device.state()["state"] == "STAGED"
        assert "plan version 2, 10 of 10 digits right" in read("plan version 2, 10 of 10")


def made_of(plan: bytes, version: int) -> bytes:
    return hostile.made.edit_header(plan, None, plan_version=version)
