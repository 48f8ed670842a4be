# SPDX-License-Identifier: Apache-2.0
"""The RIOT module: samples and embUnit suites built for every board and run where they can be (native, microbit in
QEMU); digests are the host engine's, one firmware boots two models, bad slots are named, the module is small.

Needs a RIOT tree: ``RIOTBASE``, else ``~/RIOT``. ``WEFT_RIOT_BOARDS`` names the boards, ``all`` for all of them (`make
test-riot`); by default native64. ``python tests/test_riot.py`` prints what the last run found as a table.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from planner_service import api, report, signing, targets  # noqa: E402
from planner_service.engine import Engine, generated_input  # noqa: E402
from planner_service.format import ERROR_TEXT, EngineError, HeaderRecord  # noqa: E402

driver = pytest.importorskip("tests.riot.driver", reason="needs pexpect: pip install pexpect")
from tests.riot.sizes import sizes  # noqa: E402

MODELS = ROOT / "samples" / "models"
RESULTS = driver.BUILD / "results.json"
SAMPLES = ("hello_plan", "switch")
MODULE_LIMIT = 6 << 10  #: bytes of flash that the module may add to engine and update core
COAP_LIMIT = 8 << 10  #: bytes of flash that updates over CoAP may add, without nanoCoAP and the network
DIGITS_HEADER = ROOT / "samples" / "zephyr" / "common" / "digits.h"

_NAMED = os.environ.get("WEFT_RIOT_BOARDS", "native64").replace(",", " ").split()
CHOSEN = list(driver.BOARDS) if _NAMED == ["all"] else _NAMED


def _board(name: str) -> Any:
    lacking = driver.missing(name)
    return pytest.param(name, marks=pytest.mark.skipif(bool(lacking), reason="; ".join(lacking)))


BUILT = [_board(name) for name in CHOSEN]
RUN = [_board(name) for name in CHOSEN if driver.BOARDS[name].emulator is not None]


def record(board: str, what: str, result: str) -> None:
    """Keep a result for the table."""
    with (driver.BUILD / "results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        table.setdefault(board, {})[what] = result
        RESULTS.write_text(json.dumps(table, indent=1))


@functools.cache
def plan(model: str, target: str, f_max: float = 1.1, version: int = 1) -> bytes:
    """As `make slots` makes it."""
    request = api.PlanRequest(kind="p1", f_max=f_max, target=target, plan_version=version)
    (planned,) = api.create_plans((MODELS / f"{model}.onnx").read_bytes(), f"{model}.onnx", request)
    return planned.plan


@functools.cache
def digits() -> list[list[int]]:
    """The images that the samples have built in, 0 to 255."""
    body = re.findall(r"\{ /\* \d \*/\n(.*?)\}", DIGITS_HEADER.read_text(), re.DOTALL)
    return [[int(value) for value in re.findall(r"\d+", image)] for image in body]


def crc(array: np.ndarray[Any, Any]) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def expected_digits(content: bytes) -> list[str]:
    """CRC-32 of the host engine's scores for the ten images, quantised as the samples do it."""
    opened = Engine().open(content)
    (tensor,) = opened.inputs
    found = []
    for image in digits():
        ink = np.float32(image) / (np.float32(255) * np.float32(tensor.scale)) + np.float32(0.5)
        values = np.clip(ink.astype(np.int32) + tensor.zero_point, -128, 127).astype(np.int8)
        found.append(crc(opened.run([values.reshape(tensor.shape)]).outputs[0]))
    return found


def expected_run(content: bytes, seed: int) -> str:
    opened = Engine().open(content)
    return crc(opened.run([generated_input(opened.inputs[0].shape, seed)[0]]).outputs[0])


def slot_file(folder: Path, board: str, slots: dict[str, bytes]) -> Path:
    path = folder / f"{board}.slots"
    path.write_bytes(driver.flash_image(board, slots))
    return path


def check_digits(text: str, content: bytes) -> None:
    found = re.findall(r"digit (\d): read as (\d), crc32 ([0-9a-f]{8})", text)
    assert [crc32 for _, _, crc32 in found] == expected_digits(content), text
    assert sum(digit == read for digit, read, _ in found) >= 9


def model_of(content: bytes) -> str:
    return HeaderRecord.unpack(content).model_id.hex()


@pytest.mark.parametrize("board", BUILT)
@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_builds(sample: str, board: str) -> None:
    firmware = driver.elf(sample, board)
    record(board, sample, "built")
    if sample != "hello_plan" or driver.BOARDS[board].native:
        return
    found = sizes(firmware.with_suffix(".map"))
    for owner, size in found.items():
        if owner != "CoAP":
            record(board, owner, f"{size.flash}+{size.ram}")
    assert 0 < found["module"].flash <= MODULE_LIMIT
    assert found["engine"].ram == found["update core"].ram == 0
    assert 0 <= found["module"].ram - driver.BOARDS[board].arena <= 2048


def test_unsigned_builds_warn() -> None:
    """Every time, whether or not something is compiled; at boot as well."""
    if lacking := driver.missing("native64"):
        pytest.skip("; ".join(lacking))
    assert "For development only." in driver.make("hello_plan", "native64", "all")


@pytest.mark.parametrize("board", [param for param in BUILT if driver.BOARDS[str(param.values[0])].network])
def test_update_sample_builds(board: str) -> None:
    lacking = driver.unfetchable("zcbor")
    if lacking:
        pytest.skip("; ".join(lacking))
    firmware = driver.elf("update", board)
    record(board, "update", "built")
    if not driver.BOARDS[board].native:
        found = sizes(firmware.with_suffix(".map"))["CoAP"]
        record(board, "CoAP", f"{found.flash}+{found.ram}")
        assert 0 < found.flash <= COAP_LIMIT


@pytest.mark.parametrize("board", BUILT)
def test_board_is_what_the_planner_knows(board: str) -> None:
    target = targets.load(driver.BOARDS[board].target)
    assert target.riot == board.replace("native32", "native64")
    assert driver.BOARDS[board].arena <= target.arena_budget
    assert target.slot_a is None or target.slot_a == driver.BOARDS[board].address


@pytest.mark.parametrize("board", BUILT)
def test_make_slots_puts_plans_where_the_firmware_looks(board: str) -> None:
    folder = driver.BUILD / "hello_plan" / board
    # A run on native writes its state there.
    (folder / "slots.bin").unlink(missing_ok=True)
    driver.make("hello_plan", board, "slots")
    plans = [(folder / f"plan_{slot}.weft").read_bytes() for slot in "ab"]
    spec = driver.BOARDS[board]
    if spec.native:
        image = (folder / "slots.bin").read_bytes()
        assert image == driver.flash_image(board, dict(zip("ab", plans, strict=True)))
        return
    for number, (slot, content) in enumerate(zip("ab", plans, strict=True)):
        assert len(content) <= spec.slot
        assert read_hex(folder / f"plan_{slot}.hex") == (spec.address + number * spec.slot, content)


def read_hex(path: Path) -> tuple[int, bytes]:
    """Start and bytes of a contiguous Intel HEX file."""
    base, start, content = 0, -1, bytearray()
    for line in path.read_text().split():
        raw = bytes.fromhex(line[1:])
        kind, data = raw[3], raw[4:-1]
        if kind == 4:
            base = int.from_bytes(data, "big") << 16
        elif kind == 2:
            base = int.from_bytes(data, "big") << 4
        elif kind == 0:
            address = base + int.from_bytes(raw[1:3], "big")
            start = address if start < 0 else start
            assert address == start + len(content)
            content += data
    return start, bytes(content)


@pytest.mark.parametrize("board", RUN)
def test_hello_plan_gives_the_host_engines_digests(board: str, tmp_path: Path) -> None:
    content = plan("digits_a", driver.BOARDS[board].target)
    opened = Engine().open(content)
    file = slot_file(tmp_path, board, {"a": content})
    with driver.booted(board, driver.elf("hello_plan", board), file) as (console, text):
        assert f"weft: slot a: model {model_of(content)[:8]} version 1, {len(content)} bytes" in text
        header = HeaderRecord.unpack(content)
        assert f"arena {opened.arena_size} of" in text
        assert f"F = {header.macs / header.base_macs:.3f}" in text
        check_digits(text, content)
        assert model_of(content) in console.send("weft info")
        for seed in (12345, 7):
            assert f"crc32 {expected_run(content, seed)}" in console.send(f"weft run {seed}")
        stages = [int(n) for n in re.findall(r"stage \d+: (\d+) us", console.send("weft profile"))]
        assert len(stages) >= 1
        assert sum(stages) > 0
        assert "self-test passed" in console.send("weft selftest")
        assert "slot b: empty" in console.send("weft slots")
        assert "usage: weft info" in console.send("weft nonsense")
    record(board, "hello_plan", "runs, digests equal")


@pytest.mark.parametrize("board", RUN)
def test_portable_kernels_give_the_same_digests(board: str, tmp_path: Path) -> None:
    firmware = driver.elf("hello_plan", board, "portable", {"WEFT_KERNELS": "portable"})
    assert "weft_engine_portable" in firmware.with_suffix(".map").read_text()
    content = plan("digits_a", driver.BOARDS[board].target)
    with driver.booted(board, firmware, slot_file(tmp_path, board, {"a": content})) as (_, text):
        check_digits(text, content)
    record(board, "portable kernels", "run, digests equal")


@pytest.mark.parametrize("board", RUN)
def test_operator_that_the_build_lacks_is_named(board: str, tmp_path: Path) -> None:
    content = plan("digits_a", driver.BOARDS[board].target)
    needed = {op["opcode"].lower() for op in report.inspect(content).to_json()["operators"]}
    assert "fully_connected" in needed
    chosen = " ".join(sorted(needed - {"fully_connected"}))
    firmware = driver.elf("hello_plan", board, "few-operators", {"WEFT_OPS": chosen})
    with driver.booted(board, firmware, slot_file(tmp_path, board, {"a": content})) as (console, text):
        assert "slot a: WEFT_ERR_OPCODE" in text
        assert "the build lacks FULLY_CONNECTED: add it to WEFT_OPS" in text
        assert "NO_PLAN" in console.send("weft run")


def test_operators_that_there_are_not_are_named() -> None:
    if lacking := driver.missing("native64"):
        pytest.skip("; ".join(lacking))
    with pytest.raises(AssertionError, match=r"WEFT_OPS: CONV POOL: there are CONV2D DWCONV2D .* RESIZE"):
        driver.make("hello_plan", "native64", "all", variant="no-operators", variables={"WEFT_OPS": "conv add pool"})


@pytest.mark.parametrize("board", RUN)
def test_same_firmware_boots_another_model(board: str, tmp_path: Path) -> None:
    firmware = driver.elf("hello_plan", board)
    before = hashlib.sha256(firmware.read_bytes()).hexdigest()
    target = driver.BOARDS[board].target
    first, second = plan("digits_a", target), plan("digits_b", target, version=2)
    file = slot_file(tmp_path, board, {"a": first})
    for content in (first, second, first):
        # Only the slot's bytes: on native the state is what the boot before left there.
        image = bytearray(file.read_bytes())
        image[: driver.BOARDS[board].slot] = content.ljust(driver.BOARDS[board].slot, b"\xff")
        file.write_bytes(image)
        with driver.booted(board, firmware, file) as (console, text):
            check_digits(text, content)
            assert model_of(content) in console.send("weft info")
    assert model_of(first) != model_of(second)
    assert hashlib.sha256(firmware.read_bytes()).hexdigest() == before
    record(board, "two models", f"one firmware, sha256 {before[:12]}")


@pytest.mark.parametrize("board", RUN)
def test_switch(board: str, tmp_path: Path) -> None:
    target = driver.BOARDS[board].target
    first, second = plan("digits_a", target), plan("digits_b", target, version=2)
    file = slot_file(tmp_path, board, {"a": first, "b": second})
    firmware = driver.elf("switch", board)
    with driver.booted(board, firmware, file) as (console, text):
        assert "slot a: model" in text
        for slot, content in (("b", second), ("a", first), ("b", second)):
            assert f"slot {slot} (active)" in console.send(f"weft switch {slot}")
            check_digits(console.send("digits"), content)
            assert "self-test passed" in console.send("weft selftest")
        both = console.send("weft slots")
        assert model_of(first) in both
        assert f"slot b (active): version 2, {len(second)} bytes" in both
    if driver.BOARDS[board].native:
        # What was chosen outlives the process.
        with driver.booted(board, firmware, file) as (console, text):
            assert f"weft: slot b: model {model_of(second)[:8]}" in text
    record(board, "switch", "runs, digests equal")


def other_abi(content: bytes) -> bytes:
    return content[:12] + bytes([content[12] + 1]) + content[13:]


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]


BAD_SLOTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "NO_PLAN"),
    "zeros": (lambda content: bytes(len(content)), "NO_PLAN"),
    "noise": (lambda content: bytes(range(256)) * 64, "MAGIC"),
    "truncated": (lambda content: content[: len(content) // 2], "HASH"),
    "corrupt": (corrupt, "HASH"),
    "other ABI": (other_abi, "ABI"),
    "arena too large": (lambda content: too_large(), "LIMIT"),
}


@functools.cache
def too_large() -> bytes:
    """A plan for a board that has more RAM: the same model, layer by layer."""
    request = api.PlanRequest(kind="layers", target="nrf52840dk", plan_version=1)
    (planned,) = api.create_plans((MODELS / "digits_a.onnx").read_bytes(), "digits_a.onnx", request)
    return planned.plan


@pytest.mark.parametrize("case", BAD_SLOTS)
@pytest.mark.parametrize("board", RUN)
def test_bad_slot_is_named_and_the_application_goes_on(board: str, case: str, tmp_path: Path) -> None:
    spoil, name = BAD_SLOTS[case]
    good = plan("digits_a", driver.BOARDS[board].target)
    firmware = driver.elf("hello_plan", board)
    message, remedy = ERROR_TEXT[EngineError[name]]
    file = slot_file(tmp_path, board, {"a": spoil(good)})
    with driver.booted(board, firmware, file) as (console, text):
        assert f"weft: slot a: WEFT_ERR_{name}: {message}" in text
        assert f"weft: try: {remedy}" in text
        assert "the application goes on" in text
        info = console.send("weft info")
        assert "slot a: empty" in info if name == "NO_PLAN" else f"WEFT_ERR_{name}" in info
        assert "WEFT_ERR_NO_PLAN" in console.send("weft run")
        assert "slot b: empty" in console.send("weft slots")
    # The same board, the same slot, a good plan.
    image = bytearray(file.read_bytes())
    image[: driver.BOARDS[board].slot] = good.ljust(driver.BOARDS[board].slot, b"\xff")
    file.write_bytes(image)
    with driver.booted(board, firmware, file) as (_, text):
        check_digits(text, good)
    record(board, f"slot {case}", f"WEFT_ERR_{name}")


#: Who checks signatures; tests/test_riot_update.py has it with micro-ecc on native64.
SIGNED_BY = {"weft_signed": "micro-ecc", "weft_signed_psa": "PSA"}
SIGNED = [] if CHOSEN == ["native64"] else list(SIGNED_BY)


@pytest.mark.parametrize("module", SIGNED)
@pytest.mark.parametrize("board", RUN)
def test_only_signed_plans_boot(board: str, module: str, tmp_path: Path) -> None:
    lacking = driver.unfetchable("micro-ecc")
    if lacking:
        pytest.skip("; ".join(lacking))
    key = driver.BUILD / "boot-key.pem"
    header = key.with_suffix(".h")
    if not header.exists():
        key.write_bytes(signing.generate_key())
        header.write_text(signing.c_array(signing.public_key(key.read_bytes())))
    variables = {"WEFT_KEY": str(header), "WEFT_SIGNED": module}
    firmware = driver.elf("hello_plan", board, module, variables)
    content = plan("digits_a", driver.BOARDS[board].target)
    good, foreign = (signing.sign(content, pem) for pem in (key.read_bytes(), signing.generate_key()))
    for wrong, name in ((content, "UNSIGNED"), (foreign, "KEY")):
        with driver.booted(board, firmware, slot_file(tmp_path, board, {"a": wrong})) as (_, text):
            assert f"weft: slot a: WEFT_ERR_{name}: " in text
            assert "the application goes on" in text
    with driver.booted(board, firmware, slot_file(tmp_path, board, {"a": good})) as (console, text):
        assert "need no signature" not in text
        check_digits(text, content)
        assert "WEFT_ERR_STATE" in console.send("weft switch b"), "only updates change what runs"
    record(board, module, "only signed plans boot")


@pytest.mark.parametrize("board", RUN)
def test_embunit_suites(board: str, tmp_path: Path) -> None:
    firmware = driver.elf("service", board)
    file = slot_file(tmp_path, board, {})
    with driver.Console(board, firmware, file) as console:
        text = console.until(r"OK \(\d+ tests\)|run \d+ failures \d+")
    assert "failures" not in text, text[-3000:]
    record(board, "embUnit", driver.field(r"OK \((\d+ tests)\)", text))


@pytest.mark.parametrize("application", [*SAMPLES, "service"])
@pytest.mark.parametrize("board", [param for param in RUN if param.values[0] == "native64"])
def test_riots_own_way(board: str, application: str) -> None:
    """`make all test` as RIOT's users type it."""
    driver.make(application, board, "all", "slots")
    driver.make(application, board, "test")


def tables(results: Path) -> str:
    """The results of the last run with one RIOT version."""
    table: dict[str, dict[str, str]] = json.loads(results.read_text())
    bad = [f"slot {case}" for case in BAD_SLOTS]
    rows = [("board", "hello_plan", "switch", "update", "one firmware, two models", "bad slots named", "embUnit")]
    owners = ("engine", "update core", "module", "shell", "CoAP", "system")
    memory = [("flash+RAM, bytes", *owners)]
    air = [("board", "signed plans only", "30 % loss", "killed", "SUIT")]
    for board in (name for name in driver.BOARDS if name in table):
        found = table[board]
        named = sum(case in found for case in bad)
        rows.append(
            (
                board,
                found.get("hello_plan", "-"),
                found.get("switch", "-"),
                found.get("update", "-"),
                "yes" if "two models" in found else "-",
                f"{named} of {len(bad)}" if named else "-",
                found.get("embUnit", "-"),
            )
        )
        if "module" in found:
            memory.append((board, *(found.get(owner, "-") for owner in owners)))
        checked = [name for name in SIGNED_BY if name in found]
        if checked or "30 % loss" in found:
            by = ", ".join(SIGNED_BY[name] for name in checked)
            air.append((board, by or "-", *(found.get(what, "-") for what in ("30 % loss", "kills", "SUIT"))))
    text = [f"RIOT {results.parent.name}", ""]
    for block in (block for block in (rows, air, memory) if len(block) > 1):
        widths = [max(len(row[column]) for row in block) for column in range(len(block[0]))]
        for row in block:
            text.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        text.append("")
    return "\n".join(text)


def main() -> int:
    """Print the tables of the last runs."""
    found = sorted(driver.BUILDS.glob("*/results.json"))
    if not found:
        print("nothing was run yet: make test-riot")
        return 1
    for results in found:
        print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
