# SPDX-License-Identifier: Apache-2.0
"""The host board as a process: boots a plan, serves it, takes another on the air, survives bad slots."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner_service import api, signing
from planner_service.engine import Engine, generated_input
from planner_service.format import ERROR_TEXT, EngineError
from planner_service.transport import connect
from planner_service.transport.deploy import deploy

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
sys.path.insert(0, str(ROOT / "samples" / "host"))

from client import Board, BoardError, Client, to_int8  # noqa: E402

ABI_MAJOR_AT = 12  # byte offset in the header, docs/tables.md
KEY = signing.generate_key()
PUBLIC = signing.public_pem(signing.public_key(KEY))
MODES: tuple[api.InputMode, ...] = ("streamed", "resident", "external")


@functools.cache
def plan(model: str, mode: api.InputMode = "streamed") -> api.Planned:
    """The least-RAM plan of a sample model, signed."""
    request = api.PlanRequest(kind="p1", f_max=1.3, input_mode=mode)
    (planned,) = api.create_plans((MODELS / f"{model}.onnx").read_bytes(), f"{model}.onnx", request)
    return replace(planned, plan=signing.sign(planned.plan, KEY))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path, PUBLIC)


def code_of(name: str) -> EngineError:
    return EngineError[name.removeprefix("WEFT_ERR_")]


@pytest.mark.parametrize("mode", MODES)
def test_outputs_are_those_of_the_engine(board: Board, mode: api.InputMode) -> None:
    planned = plan("digits_a", mode)
    reference = Engine().open(planned.plan)
    board.write_slot("a", planned.plan)
    with board, board.connect() as client:
        info = client.info()
        assert info["arena_bytes"] == planned.arena_bytes
        assert info["macs"] / info["base_macs"] == pytest.approx(planned.overhead_factor)
        assert [tensor["mode"] for tensor in info["inputs"]] == [mode]
        state = 1
        for _ in range(5):
            values, state = generated_input(reference.inputs[0].shape, state)
            for got, expected in zip(client.run([values]), reference.run([values]).outputs, strict=True):
                np.testing.assert_array_equal(got, expected)
        assert client.info()["runs"] == 5


async def update(address: str, content: bytes) -> str:
    async with await connect(address) as transport:
        return (await deploy(transport, content, goal="confirm")).outcome


def test_another_model_without_a_restart(board: Board) -> None:
    test = np.load(MODELS / "digits_test.npz")
    board.write_slot("a", plan("digits_a").plan)
    models = []
    with board:
        before = board.process
        for slot in "ab":
            with board.connect() as client:
                info = client.info()
                models.append((info["slot"], info["model_id"], board.process is before))
                right = 0
                for image, label in zip(test["image"], test["label"], strict=True):
                    (scores,) = client.run([to_int8(image.transpose(1, 2, 0), info["inputs"][0])])
                    right += int(scores.argmax() == label)
                assert right / len(test["label"]) > 0.95
            if slot == "a":
                assert asyncio.run(update(board.address, plan("digits_b").plan)) == "active"
    assert [(slot, same) for slot, _, same in models] == [("a", True), ("b", True)]
    assert models[0][1] != models[1][1]
    with board:
        assert (board.booted["slot"], board.booted["model_id"]) == models[1][:2], "also after a restart"


def other_abi(bytes_: bytes) -> bytes:
    changed = bytes_[:ABI_MAJOR_AT] + bytes([bytes_[ABI_MAJOR_AT] + 1]) + bytes_[ABI_MAJOR_AT + 1 :]
    return signing.sign_header(changed, KEY)


BAD_SLOTS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "absent": (lambda plan: None, "WEFT_ERR_NO_PLAN"),
    "empty": (lambda plan: b"", "WEFT_ERR_NO_PLAN"),
    "noise": (lambda plan: bytes(range(256)) * 64, "WEFT_ERR_MAGIC"),
    "zeros": (lambda plan: bytes(4096), "WEFT_ERR_MAGIC"),
    "other ABI": (other_abi, "WEFT_ERR_ABI"),
    "unsigned": (lambda plan: signing.unsign(plan), "WEFT_ERR_UNSIGNED"),
    "another key": (lambda plan: signing.sign(plan, signing.generate_key()), "WEFT_ERR_KEY"),
}


@pytest.mark.parametrize("case", BAD_SLOTS)
def test_bad_slot_is_named_and_the_board_stays_up(board: Board, case: str) -> None:
    spoil, name = BAD_SLOTS[case]
    content = spoil(plan("digits_a").plan)
    if content is not None:
        board.write_slot("a", content)
    with board:
        assert board.booted["error"]["name"] == name
        for _ in range(2):
            with board.connect() as client:
                assert client.info()["error"]["name"] == name
                with pytest.raises(BoardError) as raised:
                    client.run([np.zeros(256, np.int8)])
            assert raised.value.details["name"] == name
            assert raised.value.details["message"]
            assert raised.value.details["remedy"]
    # The same board, the same slot, a good plan: it runs.
    board.write_slot("a", plan("digits_a").plan)
    with board:
        assert "error" not in board.booted


@pytest.mark.parametrize(("share", "name"), [(0.01, "SIGNATURE"), (0.3, "HASH"), (0.99, "HASH")])
def test_truncated_plan_is_refused(board: Board, share: float, name: str) -> None:
    content = plan("digits_a").plan
    board.slot("a").write_bytes(content[: int(len(content) * share)])
    with board:
        error = board.booted["error"]
        assert error["name"] == f"WEFT_ERR_{name}"
        assert (error["message"], error["remedy"]) == ERROR_TEXT[code_of(error["name"])]


def test_corrupt_schedule_is_refused(board: Board) -> None:
    content = bytearray(plan("digits_a").plan)
    rng = np.random.default_rng(5)
    for at in rng.integers(0, min(len(content), 2048), size=20):
        spoiled = bytearray(content)
        spoiled[at] ^= 0x55
        board.write_slot("a", bytes(spoiled))
        with board, board.connect() as client:
            assert "error" in client.info()


def test_plan_above_the_boards_ram_is_refused(tmp_path: Path) -> None:
    planned = plan("digits_a")
    for ram, expected in ((planned.arena_bytes - 1, "WEFT_ERR_LIMIT"), (planned.arena_bytes, None)):
        board = Board(tmp_path, PUBLIC, options={"ram": ram})
        board.write_slot("a", planned.plan)
        with board:
            assert board.booted.get("error", {}).get("name") == expected


def test_what_was_flashed_is_adopted_once(board: Board) -> None:
    """With an empty journal slot a, or else b; after that the journal decides, whatever the slots hold."""
    board.write_slot("b", plan("digits_b").plan)
    for slot_a in (b"", plan("digits_a").plan):
        board.write_slot("a", slot_a)
        with board:
            assert board.booted["slot"] == "b"
    board.state.unlink()
    with board:
        assert board.booted["slot"] == "a"


def test_one_board_per_folder(board: Board) -> None:
    board.write_slot("a", plan("digits_a").plan)
    with board, pytest.raises(ConnectionError, match="exit status 1"):
        Board(board.folder, PUBLIC).start()


@pytest.mark.parametrize(
    "request_bytes",
    [
        struct.pack("<I", 0) + b"i",
        struct.pack("<I", 1) + b"?",
        struct.pack("<I", 5) + b"r" + bytes(4),
        struct.pack("<I", 0xFFFFFFFF) + b"r" + bytes(64),
        struct.pack("<I", 2) + b"i" + b"x",
    ],
)
def test_bad_request_gets_an_answer_and_harms_nobody(board: Board, request_bytes: bytes) -> None:
    board.write_slot("a", plan("digits_a").plan)
    with board:
        with socket.create_connection(("127.0.0.1", board.port), timeout=10) as raw:
            raw.sendall(request_bytes)
            raw.shutdown(socket.SHUT_WR)
            reply = raw.makefile("rb").read()
        assert reply[4:5] == b"e"
        assert b"BAD_REQUEST" in reply
        with socket.create_connection(("127.0.0.1", board.port), timeout=10) as raw:
            raw.sendall(b"\x01")
        with Client(board.port) as client:
            assert "error" not in client.info()
