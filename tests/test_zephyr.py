# SPDX-License-Identifier: Apache-2.0
"""The Zephyr module in a Zephyr tree: samples and ztest suites on emulated boards, plans that change in their slots.

``make test-zephyr`` runs it. The tree is ``ZEPHYR_BASE``, else ``~/zephyrproject/zephyr``; its Python is that of
``~/zephyrproject/.venv`` or ``WEFT_ZEPHYR_PYTHON``. ``WEFT_ZEPHYR_BOARDS`` (names with spaces between them) restricts
the boards. What is missing is skipped and named.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from planner_service import api
from planner_service.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "zephyr"
SAMPLES = ROOT / "samples" / "zephyr"
SUITES = ROOT / "tests" / "zephyr"
MODELS = ROOT / "samples" / "models"
TREE = Path(os.environ.get("ZEPHYR_BASE") or Path.home() / "zephyrproject" / "zephyr")
NEEDED_MODULES = ("elftools", "yaml", "pykwalify", "packaging", "west")

#: Flash that the module may add to the engine, bytes.
MODULE_FLASH_MAX = 6 << 10
BOOT_SECONDS = 60.0
QUIET_SECONDS = 0.5
TWISTER_SECONDS = 3600
LAST_LINE = "the application goes on"

HEADER = {"abi": 12, "arena": 28}  # byte offsets, docs/tables.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """An emulated board: toolchain, and the command that runs its firmware with slots from a file."""

    name: str
    compiler: str
    command: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The board's part of twister's output paths starts so."""
        return self.name.replace("/", "_")

    @property
    def native(self) -> bool:
        return not self.command


ARM = "arm-none-eabi-gcc"
RISCV = "riscv64-unknown-elf-gcc"
MACHINES = {
    machine.name: machine
    for machine in (
        Machine(name="native_sim", compiler="gcc", command=()),
        Machine(name="native_sim/native/64", compiler="gcc", command=()),
        Machine(
            name="qemu_cortex_m3",
            compiler=ARM,
            command=("qemu-system-arm", "-machine", "lm3s6965evb", "-cpu", "cortex-m3"),
        ),
        Machine(
            name="mps2/an385", compiler=ARM, command=("qemu-system-arm", "-machine", "mps2-an385", "-cpu", "cortex-m3")
        ),
        Machine(
            name="mps2/an521/cpu0",
            compiler=ARM,
            command=("qemu-system-arm", "-machine", "mps2-an521", "-cpu", "cortex-m33", "-m", "16"),
        ),
        Machine(
            name="qemu_riscv32",
            compiler=RISCV,
            command=("qemu-system-riscv32", "-machine", "virt", "-bios", "none", "-m", "256"),
        ),
    )
}


def wanted() -> list[Machine]:
    """Boards that are asked for and have compiler and emulator here."""
    names = os.environ.get("WEFT_ZEPHYR_BOARDS", "").split() or list(MACHINES)
    return [MACHINES[name] for name in names if not missing(MACHINES[name])]


def missing(machine: Machine) -> str:
    """The program that a board lacks here, or nothing."""
    programs = (machine.compiler, *machine.command[:1])
    return next((program for program in programs if shutil.which(program) is None), "")


@functools.cache
def zephyr_python() -> tuple[str, str]:
    """A Python that builds Zephyr, or nothing and why."""
    given = os.environ.get("WEFT_ZEPHYR_PYTHON")
    usual = TREE.parent / ".venv" / "bin" / "python"
    python = given or (str(usual) if usual.exists() else sys.executable)
    check = "".join(f"import {module}\n" for module in NEEDED_MODULES)
    done = subprocess.run([python, "-c", check], capture_output=True, text=True)
    if done.returncode == 0:
        return python, ""
    why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it does not start"
    return "", f"{python} cannot build Zephyr: {why}; set WEFT_ZEPHYR_PYTHON to one that can (docs/zephyr.md)"


def reason_to_skip() -> str:
    """What is missing as a whole, or nothing."""
    if not (TREE / "scripts" / "twister").exists():
        return f"no Zephyr tree at {TREE}: get one as docs/zephyr.md says, or set ZEPHYR_BASE"
    if os.environ.get("WEFT_TEST_ZEPHYR") != "1":
        return "takes many minutes: `make test-zephyr` runs it"
    return zephyr_python()[1]


SKIP = reason_to_skip()
pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP or "-")


# ---------------------------------------------------------------- building, once


def environment(compiler: str) -> dict[str, str]:
    """What twister needs to build with Debian's compilers."""
    python = Path(zephyr_python()[0])
    env = dict(os.environ, ZEPHYR_BASE=str(TREE), PYTHONPATH=str(ROOT))
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    env["WEFT_COMMAND"] = f"{sys.executable};-m;planner_service.cli"
    if "ZEPHYR_MODULES" not in env:
        found = sorted({p.parents[1] for p in TREE.parent.glob("modules/**/zephyr/module.yml")})
        env["ZEPHYR_MODULES"] = ";".join(str(p) for p in found)
    if compiler == RISCV:
        env["ZEPHYR_TOOLCHAIN_VARIANT"] = "cross-compile"
        env["CROSS_COMPILE"] = str(shutil.which(RISCV)).removesuffix("gcc")
    else:
        env["ZEPHYR_TOOLCHAIN_VARIANT"] = "gnuarmemb"
        env["GNUARMEMB_TOOLCHAIN_PATH"] = str(Path(shutil.which(ARM) or "/usr/bin/gcc").parents[1])
    return env


def twister(machines: list[Machine], output: Path) -> list[dict[str, str]]:
    """Build and run every sample and suite on boards of one toolchain; what became of each."""
    compiler = RISCV if machines[0].compiler == RISCV else ARM
    command = [zephyr_python()[0], str(TREE / "scripts" / "twister"), "-O", str(output), "--clobber-output"]
    command += ["-T", str(SAMPLES), "-T", str(SUITES), "--jobs", str(os.cpu_count() or 1)]
    for machine in machines:
        command += ["-p", machine.name]
    if compiler == RISCV:
        # Zephyr asks gcc for its library's folder without the architecture.
        asked = subprocess.run(
            [RISCV, "-march=rv32imac", "-mabi=ilp32", "-print-libgcc-file-name"], capture_output=True, text=True
        )
        command += [f"-x=EXTRA_LDFLAGS=-L{Path(asked.stdout.strip()).parent}"]
    with (output.parent / f"{output.name}.log").open("w") as log:
        subprocess.run(
            command, cwd=output.parent, env=environment(compiler), stdout=log, stderr=log, timeout=TWISTER_SECONDS
        )
    report = output / "twister.json"
    assert report.exists(), f"twister did not get as far as a report: see {output}.log"
    return [
        {"board": suite["platform"], "suite": suite["name"].split("/")[-1], "result": suite.get("status", "?")}
        for suite in json.loads(report.read_text())["testsuites"]
    ]


@pytest.fixture(scope="session")
def results() -> list[dict[str, str]]:
    """Twister's results on all boards; builds stay in ``build/zephyr``."""
    BUILD.mkdir(parents=True, exist_ok=True)
    groups = [[m for m in wanted() if (m.compiler == RISCV) == riscv] for riscv in (False, True)]
    if os.environ.get("WEFT_ZEPHYR_KEEP") == "1" and (BUILD / "results.json").exists():
        return list(json.loads((BUILD / "results.json").read_text()))
    rows = [row for group in groups if group for row in twister(group, BUILD / group[0].compiler)]
    (BUILD / "results.json").write_text(json.dumps(rows, indent=2))
    return rows


@pytest.fixture(params=list(MACHINES))
def machine(request: pytest.FixtureRequest, results: list[dict[str, str]]) -> Machine:
    found = MACHINES[request.param]
    if found not in wanted():
        pytest.skip(f"{found.name}: {missing(found) or 'not among WEFT_ZEPHYR_BOARDS'}")
    return found


def build_of(machine: Machine, sample: str) -> Path:
    """The build directory that twister left for a sample."""
    group = next(m for m in wanted() if (m.compiler == RISCV) == (machine.compiler == RISCV))
    found = [
        path
        for path in (BUILD / group.compiler).glob(f"*/**/sample.weft.{sample}")
        if f"BOARD:STRING={machine.name}\n" in (path / "CMakeCache.txt").read_text()
    ]
    assert found, f"twister has not built {sample} for {machine.name}"
    return found[0]


# ---------------------------------------------------------------- running


def read_until(process: subprocess.Popen[bytes], end: str) -> str:
    """What it prints up to a text and the quiet after it."""
    assert process.stdout is not None
    text, deadline = "", time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], QUIET_SECONDS)
        if ready:
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            text += part.decode(errors="replace")
        elif end in text:
            break
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r", "")


def image(machine: Machine, build: Path) -> Path:
    """What is flashed, or started on the host."""
    return build / "zephyr" / ("zephyr.exe" if machine.native else "zephyr.elf")


def place(machine: Machine, build: Path, folder: Path, plans: Mapping[str, bytes]) -> tuple[str, ...]:
    """Put bytes into slots; returns what the emulator needs to be told of them."""
    arguments = []
    for name, data in plans.items():
        (folder / f"{name}.weft").write_bytes(data)
        arguments.append(f"{name}={folder / name}.weft")
    kind, output = ("--bin", folder / "flash.bin") if machine.native else ("--hex", folder / "slots.hex")
    script = ROOT / "zephyr" / "scripts" / "slots.py"
    command = [zephyr_python()[0], str(script), kind, str(output), str(build), *arguments]
    subprocess.run(command, check=True, env=environment(machine.compiler))
    return () if machine.native else ("-device", f"loader,file={output}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    process: subprocess.Popen[bytes]
    text: str


def start(machine: Machine, build: Path, folder: Path, slots: tuple[str, ...], end: str) -> Iterator[Started]:
    """The board, switched on and booted; off when the generator is closed."""
    firmware = str(image(machine, build))
    if machine.native:
        command = [firmware, f"-flash={folder / 'flash.bin'}", "-uart_stdinout"]
    else:
        quiet = ("-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none")
        command = [*machine.command, *quiet, *slots, "-kernel", firmware]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        yield Started(process=process, text=read_until(process, end))
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def hello(machine: Machine, folder: Path, slot_a: bytes) -> str:
    """What hello_plan prints with these bytes in slot a."""
    build = build_of(machine, "hello_plan")
    slots = place(machine, build, folder, {"a": slot_a})
    for board in start(machine, build, folder, slots, LAST_LINE):
        return board.text
    raise AssertionError


# ---------------------------------------------------------------- what must come out


@functools.cache
def plan(model: str) -> bytes:
    """A plan of a sample model; b's version is higher."""
    request = api.PlanRequest(kind="p1", f_max=1.2, plan_version=1 if model == "digits_a" else 2)
    (planned,) = api.create_plans((MODELS / f"{model}.onnx").read_bytes(), f"{model}.onnx", request)
    return planned.plan


def digests(plan_bytes: bytes) -> list[str]:
    """hello_plan's lines as the host's engine has them."""
    header = (SAMPLES / "common" / "digits.h").read_text()
    body = re.sub(r"/\*.*?\*/", "", header[header.index("digit_image[") :])
    values = np.array(re.findall(r"\b\d+\b", body), dtype=np.float32)
    opened = Engine().open(plan_bytes)
    port = opened.inputs[0]
    lines = []
    for digit, pixels in enumerate(values.reshape(-1, *port.shape)):
        ink = pixels / (np.float32(255) * np.float32(port.scale))
        quantised = (ink + np.float32(0.5)).astype(np.int32) + port.zero_point
        (scores,) = opened.run([np.clip(quantised, -128, 127).astype(np.int8)]).outputs
        lines.append(f"digit {digit}: read as {scores.argmax()}, crc32 {zlib.crc32(scores.tobytes()):08x}")
    return lines


def read_digits(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("digit ")]


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


# ---------------------------------------------------------------- tests


def test_samples_and_suites(results: list[dict[str, str]]) -> None:
    """Twister's verdict on every sample and suite, and its table."""
    print()
    for row in sorted(results, key=lambda row: (row["board"], row["suite"])):
        print(f"{row['board']:<28} {row['suite']:<32} {row['result']}")
    ran = {row["board"] for row in results if row["result"] == "passed"}
    assert len(ran) == len(wanted())
    assert [row for row in results if row["result"] not in ("passed", "filtered")] == []


def test_outputs_are_those_of_the_engine_on_the_host(machine: Machine, tmp_path: Path) -> None:
    for model in ("digits_a", "digits_b"):
        assert read_digits(hello(machine, tmp_path, plan(model))) == digests(plan(model))


def test_one_image_boots_two_models(machine: Machine, tmp_path: Path) -> None:
    firmware = image(machine, build_of(machine, "hello_plan"))
    before = hashlib.sha256(firmware.read_bytes()).hexdigest()
    texts = [hello(machine, tmp_path, plan(model)) for model in ("digits_a", "digits_b")]
    assert hashlib.sha256(firmware.read_bytes()).hexdigest() == before
    for version, (text, model) in enumerate(zip(texts, ("digits_a", "digits_b"), strict=True), start=1):
        model_id = Engine().open(plan(model)).info["model_id"]
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
def test_bad_slots_are_named_and_the_application_goes_on(machine: Machine, case: str, tmp_path: Path) -> None:
    data, expected = BAD_SLOTS[case]
    good = plan("digits_a")
    data = {
        b"<half>": good[: len(good) // 2],
        b"<abi>": changed(good, HEADER["abi"], b"\xff"),
        b"<arena>": changed(good, HEADER["arena"], struct.pack("<I", 1 << 24)),
        b"<weights>": changed(good, len(good) // 2, bytes([good[len(good) // 2] ^ 0x40])),
    }.get(data, data)
    text = hello(machine, tmp_path, data)
    assert expected in text
    assert "to do: " in text
    assert f"0 digits read, {LAST_LINE}" in text


def section_bytes(linker_map: str) -> dict[str, dict[str, int]]:
    """Flash and RAM of the engine and of the module's own code, from the linker map."""
    used = {part: {"flash": 0, "ram": 0} for part in ("engine", "service")}
    body = linker_map[linker_map.index("Linker script and memory map") :]
    body = re.sub(r"^ (\S+)\n +0x", r" \1 0x", body, flags=re.M)
    pattern = r"^ (\S+) +0x([0-9a-f]+) +0x([0-9a-f]+) \S*libweft_(engine|service)\.a"
    for name, address, size, part in re.findall(pattern, body, flags=re.M):
        if int(address, 16) == 0 or name.startswith((".debug", ".comment", ".ARM.attributes", ".riscv")):
            continue
        if name.startswith((".bss", ".noinit", "COMMON")) or "noinit" in name:
            used[part]["ram"] += int(size, 16)
        else:
            used[part]["flash"] += int(size, 16)
            used[part]["ram"] += int(size, 16) if name.startswith((".data", "._k_")) else 0
    return used


def test_the_module_is_small(machine: Machine) -> None:
    build = build_of(machine, "hello_plan")
    used = section_bytes((build / "zephyr" / "zephyr.map").read_text())
    print(f"\n{machine.name}: " + ", ".join(f"{part} {u['flash']} + {u['ram']} RAM" for part, u in used.items()))
    assert 0 < used["service"]["flash"] <= MODULE_FLASH_MAX


def test_the_shell_switches_and_the_choice_is_kept(results: list[dict[str, str]], tmp_path: Path) -> None:
    native = MACHINES["native_sim"]
    if native not in wanted():
        pytest.skip("native_sim is not among the boards")
    build = build_of(native, "switch")
    place(native, build, tmp_path, {"a": plan("digits_a"), "b": plan("digits_b")})
    commands = (
        ("weft info", "slot a is active"),
        ("weft switch b keep", "slot b is active"),
        ("digits", "digits right"),
    )
    for board in start(native, build, tmp_path, (), "switch: try"):
        assert board.process.stdin is not None
        for command, answer in commands:
            board.process.stdin.write(f"{command}\n".encode())
            board.process.stdin.flush()
            assert answer in read_until(board.process, answer), command
    for board in start(native, build, tmp_path, (), "switch: try"):
        assert "slot b: model" in board.text


def test_the_built_in_digits_are_those_of_the_test_set() -> None:
    done = subprocess.run([sys.executable, str(SAMPLES / "common" / "make_digits.py"), "--check"])
    assert done.returncode == 0, "samples/zephyr/common/digits.h is stale: run make_digits.py"
