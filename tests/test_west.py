# SPDX-License-Identifier: Apache-2.0
"""``west weft``: what it takes from a build directory, and what the user's own options keep it from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("west.commands")
from west.configuration import Configuration

ROOT = Path(__file__).resolve().parent.parent


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("weft_west_commands", ROOT / "zephyr" / "west_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build for a board that Weft knows; the planner's command is this tree's."""
    monkeypatch.setenv("WEFT_COMMAND", f"{sys.executable};-m;planner_service.cli")
    _configure(tmp_path, "nrf52840dk/nrf52840")
    return tmp_path


def _configure(build: Path, board: str) -> None:
    (build / "zephyr").mkdir(exist_ok=True)
    config = f'CONFIG_BOARD_TARGET="{board}"\nCONFIG_WEFT_ARENA_SIZE=8192\n# CONFIG_WEFT_UPDATE is not set\n'
    (build / "zephyr" / ".config").write_text(config)


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("plan", ["m.onnx"], ["--target", "nrf52840dk", "--ram", "8192"]),
        ("plan", ["m.onnx", "--fmax", "1.1"], ["--target", "nrf52840dk"]),
        ("plan", ["m.onnx", "--fmax=1.1", "--target=native"], []),
        ("plan", ["m.onnx", "--device", "camera-1"], ["--ram", "8192"]),
        ("flash", ["m.weft"], ["--board", "nrf52840dk", "--build-dir"]),
        ("flash", ["m.weft", "--board=mine.toml"], ["--build-dir"]),
    ],
)
def test_options_of_a_build(build: Path, command: str, given: list[str], expected: list[str]) -> None:
    found = _module().Weft().from_build(command, build, given)
    assert found == [*expected, str(build)] if command == "flash" else found == expected


def test_boards_that_cannot_be_flashed_and_folders_that_are_no_build(
    build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A board without a file of Weft's ended in `weft flash`'s complaint that --board is missing."""
    _configure(build, "native_sim/native")
    command = _module().Weft()
    command.config = Configuration()
    command.target = lambda _board: None
    with pytest.raises(SystemExit):
        command.from_build("flash", build, ["m.weft"])
    assert "is Zephyr's native_sim/native: name one" in capsys.readouterr().err
    assert command.from_build("plan", build, ["m.onnx", "--least-ram"]) == []
    with pytest.raises(SystemExit):
        command.from_build("plan", tmp_path / "none", ["m.onnx"])
    assert "is no build directory" in capsys.readouterr().err
