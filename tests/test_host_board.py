# SPDX-License-Identifier: Apache-2.0
"""The host board as a process: boots a plan, serves it, boots another by the same binary, survives bad slots."""

from __future__ import annotations

import functools
import hashlib
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from planner_service import api
from planner_service.engine import Engine, generated_input
from planner_service.format import ERROR_TEXT, EngineError

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "samples" / "models"
sys.path.insert(0, str(ROOT / "samples" / "host"))

from client import BINARY, Board, BoardError, Client, to_int8  # noqa: E402

ABI_MAJOR_AT = 12  # byte offset in the header, docs/tables.md
MODES: tuple[api.InputMode, ...] = ("streamed", "resident", "external")


@functools.cache
def plan(model: str, mode: api.InputMode = "streamed") -> api.Planned:
    """The least-RAM plan of a sample model."""
    request = api.PlanRequest(kind="p1", f_max=1.3, input_mode=mode)
    (planned,) = api.create_plans((MODELS / f"{model}.onnx").read_bytes(), f"{model}.onnx", request)
    return planned


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


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


def test_same_binary_boots_another_model(board: Board) -> None:
    before = hashlib.sha256(BINARY.read_bytes()).hexdigest()
    test = np.load(MODELS / "digits_test.npz")
    booted = []
    for slot, model in (("a", "digits_a"), ("b", "digits_b")):
        board.write_slot(slot, plan(model).plan)
        board.activate(slot)
        with board, board.connect() as client:
            booted.append((board.booted["slot"], board.booted["model_id"]))
            tensor = board.booted["inputs"][0]
            right = 0
            for image, label in zip(test["image"], test["label"], strict=True):
                (scores,) = client.run([to_int8(image.transpose(1, 2, 0), tensor)])
                right += int(scores.argmax() == label)
            assert right / len(test["label"]) > 0.95
    assert [slot for slot, _ in booted] == ["a", "b"]
    assert booted[0][1] != booted[1][1]
    assert hashlib.sha256(BINARY.read_bytes()).hexdigest() == before


def other_abi(bytes_: bytes) -> bytes:
    return bytes_[:ABI_MAJOR_AT] + bytes([bytes_[ABI_MAJOR_AT] + 1]) + bytes_[ABI_MAJOR_AT + 1 :]


BAD_SLOTS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "absent": (lambda plan: None, "NO_PLAN"),
    "empty": (lambda plan: b"", "NO_PLAN"),
    "noise": (lambda plan: bytes(range(256)) * 64, "WEFT_ERR_MAGIC"),
    "zeros": (lambda plan: bytes(4096), "WEFT_ERR_MAGIC"),
    "other ABI": (other_abi, "WEFT_ERR_ABI"),
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


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_truncated_plan_is_refused(board: Board, share: float) -> None:
    content = plan("digits_a").plan
    board.slot("a").write_bytes(content[: int(len(content) * share)])
    with board:
        error = board.booted["error"]
        assert error["name"] == "WEFT_ERR_TRUNCATED"
        assert (error["message"], error["remedy"]) == ERROR_TEXT[code_of(error["name"])]


def test_corrupt_schedule_is_refused_or_harmless(board: Board) -> None:
    content = bytearray(plan("digits_a").plan)
    rng = np.random.default_rng(5)
    refused = 0
    for at in rng.integers(0, min(len(content), 2048), size=20):
        spoiled = bytearray(content)
        spoiled[at] ^= 0x55
        board.write_slot("a", bytes(spoiled))
        with board, board.connect() as client:
            refused += "error" in client.info()
    assert refused > 0


def test_plan_above_the_boards_ram_is_refused(tmp_path: Path) -> None:
    planned = plan("digits_a")
    for ram, expected in ((planned.arena_bytes, None), (planned.arena_bytes - 1, "WEFT_ERR_LIMIT")):
        board = Board(tmp_path, ram_bytes=ram)
        board.write_slot("a", planned.plan)
        with board:
            assert board.booted.get("error", {}).get("name") == expected


def test_state_names_the_slot(board: Board) -> None:
    board.write_slot("b", plan("digits_b").plan)
    for state, slot in ((None, "a"), ("", "a"), ("?", "a"), ("b", "b"), ("a", "a")):
        (board.folder / "state").unlink(missing_ok=True)
        if state is not None:
            (board.folder / "state").write_text(state)
        with board:
            assert board.booted["slot"] == slot
            assert ("error" in board.booted) == (slot == "a")


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
