# SPDX-License-Identifier: Apache-2.0
"""The command line around updates: keys, signatures, push and its companions, devices; and DeployPlan of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon import MODELS, ROOT, Daemon

from planner_service import api, signing
from planner_service.cli import main
from planner_service.devices import Deployment, Device
from planner_service.errors import CATALOGUE, Code, PlannerError
from planner_service.format import EngineError
from planner_service.proto import planner_pb2 as pb
from planner_service.proto import planner_pb2_grpc
from planner_service.service.client import Client
from planner_service.store import Store, digest_of
from planner_service.transport import TransportError, connect
from planner_service.transport.deploy import Deployed, Progress, deploy
from tests.terminal import Terminal

sys.path.insert(0, str(ROOT / "samples" / "host"))

from client import Board

VENDOR = "00112233-4455-6677-8899-aabbccddeeff"
KEY = signing.generate_key()
PUBLIC = signing.public_key(KEY)


class Result:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Weft = Callable[..., Result]


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Weft:
    """Runs a command in an empty directory with the key in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEFT_PASSPHRASE", raising=False)
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "pub.pem").write_bytes(signing.public_pem(PUBLIC))

    def run(*args: object, code: Code | None = None) -> Result:
        capsys.readouterr()
        got = main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert got == (0 if code is None else CATALOGUE[code].exit_code), err
        return Result(got, out, err)

    return run


@pytest.fixture(scope="module")
def made() -> tuple[bytes, bytes]:
    """The two sample models' plans, versions 1 and 2, not signed."""
    found = []
    for version, name in ((1, "digits_a"), (2, "digits_b")):
        request = api.PlanRequest(kind="p1", f_max=1.1, plan_version=version)
        found += api.create_plans((MODELS / f"{name}.onnx").read_bytes(), name, request)
    return found[0].plan, found[1].plan


@pytest.fixture
def board(tmp_path: Path, made: tuple[bytes, bytes]) -> Iterator[Board]:
    """A board that runs the first plan."""
    folder = tmp_path / "board"
    folder.mkdir()
    found = Board(folder, signing.public_pem(PUBLIC))
    found.write_slot("a", signing.sign(made[0], KEY))
    with found:
        yield found


def test_every_kind_of_failure_has_its_own_exit_code() -> None:
    codes = [outcome.exit_code for outcome in CATALOGUE.values()]
    assert set(CATALOGUE) == set(Code)
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def test_documented_exit_codes() -> None:
    rows = [line.split("|")[1:3] for line in (ROOT / "docs" / "update.md").read_text().splitlines() if "| `" in line]
    told = {name.strip().strip("`"): int(number) for number, name in rows if number.strip().isdecimal()}
    assert told == {code.value: outcome.exit_code for code, outcome in CATALOGUE.items()}


# ---------------------------------------------------------------- keys and signatures


def test_key_files(weft: Weft, tmp_path: Path) -> None:
    told = weft("keygen", "k.pem", "--json").json
    path = tmp_path / "k.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    assert told == {"key": "k.pem", "key_id": signing.key_id(signing.public_key(first)).hex(), "encrypted": False}
    refused = weft("keygen", "k.pem", code=Code.BAD_REQUEST)
    assert "--force" in refused.err
    assert path.read_bytes() == first
    assert "PRIVATE" not in weft("keygen", "k.pem", "--force").out
    assert path.read_bytes() != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    weft("keygen", "no/such/folder/k.pem", code=Code.BAD_REQUEST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.pem", "key.pem", "pub.pem"], "nothing is left behind"


def test_encrypted_keys(weft: Weft, tmp_path: Path, made: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.weft").write_bytes(made[0])
    assert "WEFT_PASSPHRASE" in weft("keygen", "k.pem", "--passphrase", code=Code.BAD_REQUEST).err
    monkeypatch.setenv("WEFT_PASSPHRASE", "correct horse")
    assert weft("keygen", "k.pem", "--passphrase", "--json").json["encrypted"]
    assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
    weft("sign", "a.weft", "--key", "k.pem")
    weft("verify", "a.weft", "--key", "k.pem")
    monkeypatch.setenv("WEFT_PASSPHRASE", "battery staple")
    assert "battery" not in weft("sign", "a.weft", "--key", "k.pem", code=Code.BAD_REQUEST).err
    monkeypatch.setenv("WEFT_PASSPHRASE", "")
    weft("keygen", "other.pem", "--passphrase", code=Code.BAD_REQUEST)
    monkeypatch.delenv("WEFT_PASSPHRASE")
    assert "encrypted" in weft("sign", "a.weft", "--key", "k.pem", code=Code.BAD_REQUEST).err


def test_public_keys(weft: Weft, tmp_path: Path) -> None:
    for key in ("key.pem", "pub.pem"):
        source = weft("getpub", key, "--name", "my_key").out
        values = [int(v, 16) for v in source.split("{")[1].split("}")[0].replace(",", " ").split()]
        assert bytes(values) == PUBLIC
        assert "my_key[65]" in source
        assert weft("getpub", key, "--lang", "pem").out.encode() == signing.public_pem(PUBLIC)
    weft("getpub", "key.pem", "--lang", "pem", "-o", "p.pem")
    assert (tmp_path / "p.pem").read_bytes() == signing.public_pem(PUBLIC)
    assert weft("getpub", "key.pem", "--json").json["public_key"] == PUBLIC.hex()
    weft("getpub", "key.pem", "--name", "1x;", code=Code.BAD_REQUEST)
    weft("getpub", "missing.pem", code=Code.NOT_FOUND)
    (tmp_path / "junk.pem").write_bytes(b"junk")
    weft("getpub", "junk.pem", code=Code.BAD_REQUEST)


def test_sign_verify_dumpinfo(weft: Weft, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    plan = tmp_path / "a.weft"
    plan.write_bytes(made[0])
    weft("verify", "a.weft", "--key", "pub.pem", code=Code.BAD_PLAN)
    assert weft("dumpinfo", "a.weft", "--json").json["signature"]["algorithm"] == "none"
    weft("sign", "a.weft", "--key", "key.pem", "-o", "b.weft")
    assert plan.read_bytes() == made[0]
    weft("sign", "a.weft", "--key", "key.pem")
    assert plan.read_bytes() == (tmp_path / "b.weft").read_bytes() == signing.sign(made[0], KEY)
    assert signing.unsign(plan.read_bytes()) == made[0]
    assert weft("verify", "a.weft", "--key", "key.pem", "--json").json["good"]
    told = weft("dumpinfo", "a.weft", "--json").json
    assert told["signature"]["key_id"] == signing.key_id(PUBLIC).hex()
    assert (told["plan_version"], told["plan_bytes"]) == (1, len(made[0]))
    assert all(section["intact"] for section in told["sections"])
    text = weft("dumpinfo", "a.weft").out
    assert all(word in text for word in ("plan version  1", "GRAPH", "WEIGHTS", "ecdsa-p256-sha256", told["digest"]))
    weft("keygen", "other.pem")
    weft("verify", "a.weft", "--key", "other.pem", code=Code.BAD_PLAN)
    damaged = bytearray(plan.read_bytes())
    damaged[signing.describe(bytes(damaged)).sections[-1].offset] ^= 1
    plan.write_bytes(damaged)
    weft("verify", "a.weft", "--key", "key.pem", code=Code.BAD_PLAN)
    weft("sign", "a.weft", "--key", "key.pem", code=Code.BAD_PLAN)
    assert "NO" in weft("dumpinfo", "a.weft").out
    plan.write_bytes(b"nothing")
    for command in (("dumpinfo",), ("verify", "--key", "key.pem"), ("sign", "--key", "key.pem")):
        weft(command[0], "a.weft", *command[1:], code=Code.BAD_PLAN)


# ---------------------------------------------------------------- push and its companions


def test_push_and_companions(weft: Weft, board: Board, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    to = ("--to", board.address)
    (tmp_path / "b.weft").write_bytes(signing.sign(made[1], KEY))
    assert weft("status", *to, "--json").json["state"] == "empty"
    done = weft("push", "b.weft", *to, "--json").json
    assert (done["outcome"], done["slot"], done["sessions"]) == ("staged", "b", 1)
    assert "weft test" in weft("push", "b.weft", *to).out, "again: nothing is sent"
    assert weft("push", "b.weft", *to, "--json").json["sent"] == 0
    weft("confirm", *to, code=Code.BAD_STATE)
    told = weft("test", *to, "--json").json
    assert (told["state"], told["active"], told["running"]) == ("trial", "a", "b")
    assert "on trial" in weft("status", *to).out
    assert weft("revert", *to, "--json").json["state"] == "reverted"
    refused = weft("push", "b.weft", *to, "--json", code=Code.REFUSED)
    assert refused.json["error"]["device"] == "WEFT_ERR_TRIED"
    assert weft("erase", *to, "--json").json["state"] == "empty"
    assert weft("push", "b.weft", *to, "--test", "--json").json["outcome"] == "trial"
    assert weft("confirm", *to, "--json").json["active"] == "b"
    done = weft("push", "b.weft", *to, "--confirm", "--json").json
    assert (done["outcome"], done["sent"], done["sessions"]) == ("active", 0, 0)
    assert weft("status", *to, "--json").json["stats"]["records"] > 0
    for args in (("revert",), ("test",)):
        weft(*args, *to, code=Code.BAD_STATE)


def test_device_confirms_first(board: Board, made: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Good runs confirm the trial between the look at it and our confirm."""

    async def push() -> Deployed:
        async with await connect(board.address) as transport:
            confirm = transport.confirm

            async def late() -> None:
                await confirm()
                await confirm()

            monkeypatch.setattr(transport, "confirm", late)
            return await deploy(transport, signing.sign(made[1], KEY), goal="confirm")

    assert asyncio.run(push()).outcome == "active"


def test_push_refused(weft: Weft, board: Board, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    to = ("--to", board.address)
    (tmp_path / "unsigned.weft").write_bytes(made[1])
    assert "UNSIGNED" in weft("push", "unsigned.weft", *to, code=Code.REFUSED).err
    (tmp_path / "junk.weft").write_bytes(b"junk")
    weft("push", "junk.weft", *to, code=Code.BAD_PLAN)
    weft("push", "missing.weft", *to, code=Code.NOT_FOUND)
    weft("push", "unsigned.weft", "--to", "carrier-pigeon://loft", code=Code.BAD_REQUEST)
    assert weft("status", *to, "--json").json["stats"]["slot_erases"] == 0
    board.stop()
    weft("push", "unsigned.weft", *to, "--timeout", "0.3", code=Code.UNREACHABLE)


def test_push_is_busy(weft: Weft, board: Board, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    ours = signing.sign(made[1], KEY)
    header = signing.head_len(ours)
    (tmp_path / "b.weft").write_bytes(ours)

    async def begin() -> None:
        async with await connect(board.address) as transport:
            await transport.begin(ours[:header], bytes(32), len(ours))

    asyncio.run(begin())
    newer = api.create_plans(
        (MODELS / "digits_a.onnx").read_bytes(), "digits_a", api.PlanRequest(kind="layers", plan_version=9)
    )
    (tmp_path / "c.weft").write_bytes(signing.sign(newer[0].plan, KEY))
    busy = weft("push", "c.weft", "--to", board.address, "--json", code=Code.BUSY)
    assert busy.json["error"]["device"] == "WEFT_ERR_BUSY"
    assert weft("push", "b.weft", "--to", board.address, "--confirm", "--json").json["outcome"] == "active"


def test_progress_bar_on_a_terminal(board: Board, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    """As a process on a pseudo terminal: a bar on stderr, the result on stdout."""
    (tmp_path / "b.weft").write_bytes(signing.sign(made[1], KEY))
    command = [sys.executable, "-m", "planner_service.cli", "push", str(tmp_path / "b.weft"), "--to", board.address]
    with contextlib.closing(Terminal([*command, "--chunk", "64"], seconds=30, cwd=ROOT)) as terminal:
        terminal.until(rf"\d+% \[#*-*\] sending [\d,]+ of {len(made[1]):,} B")
        terminal.until(rf"{len(made[1]):,} of {len(made[1]):,} B sent")
        assert terminal.end() == 0


def test_piped_output_has_no_bar(board: Board, tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    (tmp_path / "b.weft").write_bytes(signing.sign(made[1], KEY))
    command = [sys.executable, "-m", "planner_service.cli", "push", str(tmp_path / "b.weft"), "--to", board.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT, env=os.environ)
    assert done.stderr == ""


# ---------------------------------------------------------------- devices and DeployPlan


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as found:
        yield found.ready()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address) as found:
        yield found


CAMERA = Device(
    name="camera-1",
    address="smp+udp://192.0.2.1:1337",
    target="nrf52840dk",
    public_key=PUBLIC,
    vendor_id=bytes(range(16)),
    class_id=bytes(range(16, 32)),
)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"name": ""}, Code.BAD_REQUEST, "name"),
        ({"name": "../models/x"}, Code.BAD_REQUEST, "name"),
        ({"name": ".hidden"}, Code.BAD_REQUEST, "name"),
        ({"name": "x" * 65}, Code.BAD_REQUEST, "name"),
        ({"name": "a\n"}, Code.BAD_REQUEST, "name"),
        ({"address": "192.0.2.1"}, Code.BAD_REQUEST, "address"),
        ({"public_key": b"\x04" + bytes(64)}, Code.BAD_REQUEST, "public_key"),
        ({"public_key": b"k"}, Code.BAD_REQUEST, "public_key"),
        ({"vendor_id": b"short"}, Code.BAD_REQUEST, "vendor_id"),
        ({"target": "toaster"}, Code.NOT_FOUND, ""),
    ],
)
def test_devices_that_are_none(client: Client, changes: dict[str, Any], code: Code, field: str) -> None:
    with pytest.raises(PlannerError) as raised:
        client.put_device(replace(CAMERA, **changes))
    assert raised.value.code is code
    assert not field or field in {v.layer for v in raised.value.violations}
    assert all(d.name != changes.get("name") for d in client.devices())


def test_devices_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_device(CAMERA, replace=False)
    store.put_device(replace(CAMERA, name="B"), replace=False)
    with pytest.raises(PlannerError):
        store.put_device(replace(CAMERA, target="native"), replace=False)
    store.close()
    store = Store(tmp_path)
    assert [d.name for d in store.devices()] == ["B", "camera-1"]
    assert store.device("camera-1") == CAMERA
    store.put_device(replace(CAMERA, target="native"), replace=True)
    assert store.device("camera-1").target == "native"
    store.remove_device("camera-1")
    for call in (store.device, store.remove_device):
        with pytest.raises(PlannerError) as raised:
            call("camera-1")
        assert raised.value.code is Code.NOT_FOUND
    store.close()


def test_device_commands(weft: Weft, daemon: Daemon) -> None:
    server = ("--server", daemon.address)
    add = ("device", "add", "cam", "--address", CAMERA.address, "--target", "nrf52840dk")
    assert weft(*add, "--key", "pub.pem", "--vendor-id", VENDOR, *server, "--json").json["public_key"] == PUBLIC.hex()
    weft(*add, *server, code=Code.BAD_REQUEST)
    weft(*add, "--key", "key.pem", "--vendor-id", VENDOR, *server, "--force")
    assert "nrf52840dk" in weft("device", "list", *server).out
    assert [d["name"] for d in weft("device", "list", *server, "--json").json] == ["cam"]
    planned = weft("plan", MODELS / "digits_b.onnx", "--device", "cam", *server, "-o", "b.weft", "--json").json
    assert planned["target"] == "nrf52840dk"
    again = weft("plan", MODELS / "digits_a.onnx", "--device", "cam", *server, "-o", "b.weft", "--json").json
    assert again["plan_version"] == planned["plan_version"] + 1, "newer than any plan for this device"
    assert weft("dumpinfo", "b.weft", "--json").json["vendor_id"] == VENDOR.replace("-", "")
    weft("device", "remove", "cam", *server)
    weft("device", "remove", "cam", *server, code=Code.NOT_FOUND)
    weft("status", "--device", "cam", *server, code=Code.NOT_FOUND)
    weft("plan", MODELS / "digits_b.onnx", "--device", "cam", *server, code=Code.NOT_FOUND)


def test_plan_for_a_device_and_push_it(
    weft: Weft, daemon: Daemon, board: Board, client: Client, tmp_path: Path, made: tuple[bytes, bytes]
) -> None:
    server = ("--server", daemon.address)
    weft("device", "add", "host", "--address", board.address, "--target", "native", "--key", "pub.pem", *server)
    try:
        weft("plan", MODELS / "digits_b.onnx", "--device", "host", "--ram", "4k", *server, "-o", "b.weft")
        assert "sign" in weft("push", "b.weft", "--device", "host", *server, code=Code.BAD_PLAN).err
        weft("sign", "b.weft", "--key", "key.pem")
        done = weft("push", "b.weft", "--device", "host", "--confirm", *server, "--json").json
        assert (done["outcome"], done["slot"]) == ("active", "b")
        assert weft("status", "--device", "host", *server, "--json").json["active"] == "b"
        (tmp_path / "local.weft").write_bytes(signing.sign(made[0], KEY))
        lost = weft("push", "local.weft", "--device", "host", *server, code=Code.NOT_FOUND)
        assert "--to" in lost.err
    finally:
        client.remove_device("host")


@pytest.fixture
def planned(client: Client) -> api.Planned:
    (found,) = client.create_plans(
        (MODELS / "digits_b.onnx").read_bytes(), "digits_b", api.PlanRequest(kind="p1", plan_version=5, line="deploy")
    )
    return found


@pytest.fixture
def host(client: Client, board: Board) -> Iterator[Device]:
    found = Device(name="host", address=board.address, target="native")
    client.put_device(found)
    yield found
    client.remove_device("host")


def deployment(planned: api.Planned, **changes: Any) -> Deployment:
    signature = signing.signature(signing.sign(planned.plan, KEY))
    return replace(Deployment(plan_sha256=planned.sha256, device="host", signature=signature), **changes)


def test_deploy_streams_progress(client: Client, host: Device, board: Board, planned: api.Planned) -> None:
    seen: list[Progress] = []
    done = client.deploy(deployment(planned, goal="test"), progress=seen.append)
    assert (done.outcome, done.address, done.slot, done.plan_version) == ("trial", host.address, "b", 5)
    assert done.sent == done.total == len(planned.plan)
    assert len(seen) > 2
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert {p.total for p in seen} == {len(planned.plan)}
    assert client.deploy(deployment(planned, goal="confirm")).outcome == "active"
    assert signing.unsign(board.slot("b").read_bytes()[: len(planned.plan)]) == planned.plan


def test_deploy_errors(client: Client, host: Device, board: Board, planned: api.Planned) -> None:
    def refused(wanted: Deployment, code: Code, device: EngineError | None = None) -> None:
        with pytest.raises(PlannerError) as raised:
            client.deploy(wanted)
        assert raised.value.code is code
        if device is not None:
            assert isinstance(raised.value, TransportError)
            assert raised.value.device is device

    forged = signing.signature(signing.sign(planned.plan, signing.generate_key()))
    refused(deployment(planned, signature=b""), Code.REFUSED, EngineError.UNSIGNED)
    refused(deployment(planned, signature=forged), Code.REFUSED, EngineError.KEY)
    refused(deployment(planned, signature=b"short"), Code.BAD_REQUEST)
    refused(deployment(planned, timeout_seconds=-1.0), Code.BAD_REQUEST)
    refused(deployment(planned, device="nobody"), Code.NOT_FOUND)
    refused(deployment(planned, device="../x"), Code.BAD_REQUEST)
    refused(deployment(planned, plan_sha256=digest_of(b"other")), Code.NOT_FOUND)
    client.put_device(replace(host, public_key=PUBLIC), replace=True)
    refused(deployment(planned, signature=forged), Code.BAD_PLAN)
    board.stop()
    refused(deployment(planned, timeout_seconds=0.3), Code.UNREACHABLE)


def test_one_deployment_at_a_time(client: Client, daemon: Daemon, planned: api.Planned) -> None:
    """To a device that does not answer, so that the first is still at it; when it is cancelled, the next may go on."""
    client.put_device(replace(CAMERA, name="host", address="smp+udp://127.0.0.1:9", public_key=b""))
    with grpc.insecure_channel(daemon.address) as channel:
        stub = planner_pb2_grpc.PlannerServiceStub(channel)
        request = pb.DeployPlanRequest(
            plan_sha256=bytes.fromhex(planned.sha256), device="host", goal=pb.DEPLOY_GOAL_STAGE, timeout_seconds=60.0
        )
        first = stub.DeployPlan(request)
        assert next(first).progress.total_bytes == len(planned.plan)
        with pytest.raises(PlannerError) as raised:
            client.deploy(deployment(planned))
        assert raised.value.code is Code.BUSY
        first.cancel()
        for _ in range(100):
            with pytest.raises(PlannerError) as raised:
                client.deploy(deployment(planned, timeout_seconds=0.1))
            if raised.value.code is Code.UNREACHABLE:
                break
        assert raised.value.code is Code.UNREACHABLE
    client.remove_device("host")
