# SPDX-License-Identifier: Apache-2.0
"""The Zephyr module in a Zephyr tree: samples and ztest suites on emulated boards, plans that change in their slots,
plans that arrive over the air.

``make test-zephyr`` runs it. The tree is ``ZEPHYR_BASE``, else ``~/zephyrproject/zephyr``; a second one, of the LTS, is
``WEFT_ZEPHYR_LTS``, else ``~/zephyrproject-3.7/zephyr``. Python is that of ``~/zephyrproject/.venv`` or
``WEFT_ZEPHYR_PYTHON``. ``WEFT_ZEPHYR_BOARDS`` (names with spaces between them) restricts the boards. What is missing is
skipped and named. Builds stay in ``build/zephyr`` and are used again.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from planner_service.engine import Engine
from tests import zephyr_rig as rig

SKIP = rig.reason_to_skip()
pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP or "-")


@pytest.fixture(scope="session")
def results() -> list[dict[str, str]]:
    """Twister's results on all boards; with WEFT_ZEPHYR_KEEP=1 those of the builds that are there already."""
    if os.environ.get("WEFT_ZEPHYR_KEEP") == "1":
        return rig.last_results()
    rows = []
    for compiler in (rig.ARM, rig.RISCV):
        boards = [m.name for m in rig.wanted() if (m.compiler == rig.RISCV) == (compiler == rig.RISCV)]
        if boards:
            rows += rig.twister(boards, compiler, rig.BUILD / compiler, rig.TREE, rig.roots())
    rig.keep_results(rows)
    return rows


@pytest.fixture(params=list(rig.MACHINES))
def machine(request: pytest.FixtureRequest, results: list[dict[str, str]]) -> rig.Machine:
    found = rig.MACHINES[request.param]
    if found not in rig.wanted():
        pytest.skip(f"{found.name}: {rig.missing(found) or 'not among WEFT_ZEPHYR_BOARDS'}")
    return found


# ---------------------------------------------------------------- tests


def test_samples_and_suites(results: list[dict[str, str]]) -> None:
    """Twister's verdict on every sample and suite, and its table."""
    print("\n" + rig.table(results))
    ran = {row["board"] for row in results if row["result"] == "passed"}
    assert len(ran) == len(rig.wanted())
    assert [row for row in results if row["result"] not in ("passed", "filtered")] == []


def test_long_term_release() -> None:
    """The release before: samples and suites by its own twister, natively and on a Cortex-M."""
    if not (rig.LTS / "scripts" / "twister").exists():
        pytest.skip(f"no tree of Zephyr's LTS at {rig.LTS}: set WEFT_ZEPHYR_LTS")
    roots = [rig.SAMPLES / "hello_plan", rig.SUITES / "engine", rig.SUITES / "service"]
    rows = rig.twister(["native_sim", "mps2/an385"], rig.ARM, rig.BUILD / "lts", rig.LTS, roots)
    print("\n" + rig.table(rows))
    assert {row["result"] for row in rows} <= {"passed", "filtered"}
    assert sum(row["result"] == "passed" for row in rows) >= 2 * len(roots)


@pytest.mark.parametrize("board", rig.COMPILED)
def test_boards_without_emulator_compile(board: str) -> None:
    """hello_plan for real boards, with its sizes."""
    hal = rig.TREE.parent / "modules" / rig.COMPILED[board]
    if not (hal / "zephyr" / "module.yml").exists():
        pytest.skip(f"no module {rig.COMPILED[board]} in the workspace: west update")
    wanted, found = rig.revisions(hal)
    if wanted != found:
        pytest.skip(f"module {rig.COMPILED[board]} is at {found[:8]}, this Zephyr wants {wanted[:8]}: west update")
    built = rig.build(board, rig.SAMPLES / "hello_plan", rig.BUILD / f"compiled_{board.replace('/', '_')}", {})
    print(f"\n{board}: {rig.sizes(built)}")
    assert rig.sizes(built)["module"]["flash"] <= rig.MODULE_FLASH_MAX


def test_outputs_are_those_of_the_engine_on_the_host(machine: rig.Machine, tmp_path: Path) -> None:
    for model in ("digits_a", "digits_b"):
        assert rig.read_digits(rig.hello(machine, tmp_path, rig.plan(model))) == rig.digests(rig.plan(model))


def test_one_image_boots_two_models(machine: rig.Machine, tmp_path: Path) -> None:
    firmware = rig.image(machine, rig.build_of(machine, "hello_plan"))
    before = hashlib.sha256(firmware.read_bytes()).hexdigest()
    texts = [rig.hello(machine, tmp_path, rig.plan(model)) for model in ("digits_a", "digits_b")]
    assert hashlib.sha256(firmware.read_bytes()).hexdigest() == before
    for version, (text, model) in enumerate(zip(texts, ("digits_a", "digits_b"), strict=True), start=1):
        model_id = Engine().open(rig.plan(model)).info["model_id"]
        assert f"slot a: model {str(model_id)[:8]}, plan version {version}" in text
    print(f"\n{machine.name}: image {before}")


BAD_SLOTS: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "slot a is empty"),
    "zeros": (bytes(256), "slot a is empty"),
    "something else": (b"GIF89a" * 100, "WEFT_ERR_MAGIC"),
    "truncated": (b"<half>", "WEFT_ERR_"),
    "another ABI": (b"<abi>", "WEFT_ERR_ABI"),
    "too large an arena": (b"<arena>", "WEFT_ERR_LIMIT"),
    "damaged weights": (b"<weights>", "WEFT_ERR_SELFTEST"),
}


@pytest.mark.parametrize("case", BAD_SLOTS)
def test_bad_slots_are_named_and_the_application_goes_on(machine: rig.Machine, case: str, tmp_path: Path) -> None:
    data, expected = BAD_SLOTS[case]
    good = rig.plan("digits_a")
    data = {
        b"<half>": good[: len(good) // 2],
        b"<abi>": rig.changed(good, rig.HEADER["abi"], b"\xff"),
        b"<arena>": rig.changed(good, rig.HEADER["arena"], struct.pack("<I", 1 << 24)),
        b"<weights>": rig.changed(good, len(good) // 2, bytes([good[len(good) // 2] ^ 0x40])),
    }.get(data, data)
    text = rig.hello(machine, tmp_path, data)
    assert expected in text
    assert "to do: " in text
    assert f"0 digits read, {rig.LAST_LINE}" in text


def test_operator_that_the_build_lacks_is_named(tmp_path: Path) -> None:
    native = rig.MACHINES["native_sim"]
    if native not in rig.wanted():
        pytest.skip("native_sim is not among the boards")
    settings = {"WEFT_OPS_CUSTOM": "y", "WEFT_WITH_FULLY_CONNECTED": "n"}
    build = rig.build(native.name, rig.SAMPLES / "hello_plan", rig.BUILD / "few_operators", settings)
    rig.place(native, build, tmp_path, {"a": rig.plan("digits_a")})
    with rig.start(native, build, tmp_path, (), rig.LAST_LINE) as board:
        assert "WEFT_ERR_OPCODE" in board.text
        assert "the build lacks FULLY_CONNECTED: set CONFIG_WEFT_WITH_FULLY_CONNECTED" in board.text
        assert "0 digits read" in board.text


def test_the_module_is_small(machine: rig.Machine) -> None:
    """By the command that prints the table of docs/zephyr.md."""
    if machine.native:
        pytest.skip(f"{machine.name} is a process of the host and has no flash to measure")
    used = rig.sizes(rig.build_of(machine, "hello_plan"))
    print(f"\n{machine.name}: engine {used['engine']}, module {used['module']}")
    assert used["engine"]["flash"] > 0
    assert 0 < used["module"]["flash"] <= rig.MODULE_FLASH_MAX
    assert used["update"] == {"flash": 0, "ram": 0}


def test_the_shell_switches_and_the_choice_is_kept(results: list[dict[str, str]], tmp_path: Path) -> None:
    native = rig.MACHINES["native_sim"]
    if native not in rig.wanted():
        pytest.skip("native_sim is not among the boards")
    build = rig.build_of(native, "switch")
    rig.place(native, build, tmp_path, {"a": rig.plan("digits_a"), "b": rig.plan("digits_b")})
    commands = (
        ("weft info", "slot a is active"),
        ("weft switch b keep", "slot b is active"),
        ("digits", "digits right"),
    )
    with rig.start(native, build, tmp_path, (), "switch: try") as board:
        assert board.process.stdin is not None
        for command, answer in commands:
            board.process.stdin.write(f"{command}\n".encode())
            board.process.stdin.flush()
            assert answer in rig.read_until(board.process, answer), command
    with rig.start(native, build, tmp_path, (), "switch: try") as board:
        assert "slot b: model" in board.text


def test_the_built_in_digits_are_those_of_the_test_set() -> None:
    done = subprocess.run([sys.executable, str(rig.SAMPLES / "common" / "make_digits.py"), "--check"])
    assert done.returncode == 0, "samples/zephyr/common/digits.h is stale: run make_digits.py"
