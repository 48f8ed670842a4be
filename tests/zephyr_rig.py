# SPDX-License-Identifier: Apache-2.0
"""Zephyr trees, boards, builds and what runs on them, for tests/test_zephyr.py and tests/test_zephyr_update.py."""

from __future__ import annotations

import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner_service import api
from planner_service.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "zephyr"
SAMPLES = ROOT / "samples" / "zephyr"
SUITES = ROOT / "tests" / "zephyr"
MODELS = ROOT / "samples" / "models"
TREE = Path(os.environ.get("ZEPHYR_BASE") or Path.home() / "zephyrproject" / "zephyr")
LTS = Path(os.environ.get("WEFT_ZEPHYR_LTS") or Path.home() / "zephyrproject-3.7" / "zephyr")
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


#: Twister completes names so.
FULL_NAMES = {
    "native_sim": "native_sim/native",
    "qemu_cortex_m3": "qemu_cortex_m3/ti_lm3s6965",
    "qemu_riscv32": "qemu_riscv32/qemu_virt_riscv32",
}
#: Boards that are compiled for: Zephyr's name and the module that has their chip's HAL.
COMPILED = {
    "nrf52840dk/nrf52840": "hal/nordic",
    "nucleo_f767zi": "hal/stm32",
    "nucleo_f746zg": "hal/stm32",
    "stm32f4_disco": "hal/stm32",
    "rpi_pico": "hal/rpi_pico",
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


# ---------------------------------------------------------------- building, once


def environment(compiler: str, tree: Path = TREE) -> dict[str, str]:
    """What twister and CMake need to build with Debian's compilers."""
    python = Path(zephyr_python()[0])
    env = dict(os.environ, ZEPHYR_BASE=str(tree), PYTHONPATH=str(ROOT))
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    env["WEFT_COMMAND"] = f"{sys.executable};-m;planner_service.cli"
    if "ZEPHYR_MODULES" not in env or tree != TREE:
        found = sorted({p.parents[1] for p in tree.parent.glob("modules/*/*/zephyr/module.yml")})
        env["ZEPHYR_MODULES"] = ";".join(str(p) for p in found)
    if compiler == RISCV:
        env["ZEPHYR_TOOLCHAIN_VARIANT"] = "cross-compile"
        env["CROSS_COMPILE"] = str(shutil.which(RISCV)).removesuffix("gcc")
    else:
        env["ZEPHYR_TOOLCHAIN_VARIANT"] = "gnuarmemb"
        env["GNUARMEMB_TOOLCHAIN_PATH"] = str(Path(shutil.which(ARM) or "/usr/bin/gcc").parents[1])
    return env


def twister(boards: list[str], compiler: str, output: Path, tree: Path, roots: list[Path]) -> list[dict[str, str]]:
    """Build and run every sample and suite below ``roots`` on boards of one toolchain; what became of each."""
    command = [zephyr_python()[0], str(tree / "scripts" / "twister"), "-O", str(output), "--no-clean"]
    command += ["--jobs", str(os.cpu_count() or 1)]
    command += [option for root in roots for option in ("-T", str(root))]
    command += [option for board in boards for option in ("-p", board)]
    if compiler == RISCV:
        # Zephyr asks gcc for its library's folder without the architecture.
        asked = subprocess.run(
            [RISCV, "-march=rv32imac", "-mabi=ilp32", "-print-libgcc-file-name"], capture_output=True, text=True
        )
        command += [f"-x=EXTRA_LDFLAGS=-L{Path(asked.stdout.strip()).parent}"]
        # Its linker warns of Zephyr's own writable code segment.
        command += ["--disable-warnings-as-errors"]
    output.parent.mkdir(parents=True, exist_ok=True)
    report = output / "twister.json"
    report.unlink(missing_ok=True)
    with (output.parent / f"{output.name}.log").open("w") as log:
        subprocess.run(
            command, cwd=output.parent, env=environment(compiler, tree), stdout=log, stderr=log, timeout=TWISTER_SECONDS
        )
    assert report.exists(), f"twister did not get as far as a report: see {output}.log"
    return [
        {"board": suite["platform"], "suite": suite["name"].split("/")[-1], "result": suite.get("status", "?")}
        for suite in json.loads(report.read_text())["testsuites"]
    ]


def roots() -> list[Path]:
    """Samples and suites, or those of them that ``WEFT_ZEPHYR_SUITES`` names by folder."""
    found = sorted(path.parent for root in (SAMPLES, SUITES) for path in root.glob("*/tests.yaml"))
    names = os.environ.get("WEFT_ZEPHYR_SUITES", "").split()
    return [path for path in found if not names or path.name in names]


def last_results() -> list[dict[str, str]]:
    """The last result of each board and suite, of all runs since ``make clean``."""
    file = BUILD / "results.json"
    return list(json.loads(file.read_text())) if file.exists() else []


def keep_results(rows: list[dict[str, str]]) -> None:
    """Put results in the place of earlier ones of the same boards and suites."""
    kept = {(row["board"], row["suite"]): row for row in [*last_results(), *rows]}
    (BUILD / "results.json").write_text(json.dumps(list(kept.values()), indent=2))


def table(rows: list[dict[str, str]]) -> str:
    """Results by board and sample or suite."""
    suites = sorted({row["suite"] for row in rows})
    cells = {(row["board"], row["suite"]): row["result"] for row in rows}
    names = [suite.removeprefix("sample.").removeprefix("weft.") for suite in suites]
    lines = ["  ".join([f"{'board':<28}", *names])]
    for board in sorted({row["board"] for row in rows}):
        results = [f"{cells.get((board, suite), '-'):<{len(name)}}" for suite, name in zip(suites, names, strict=True)]
        lines.append("  ".join([f"{board:<28}", *results]))
    return "\n".join(lines)


def build_of(machine: Machine, sample: str) -> Path:
    """The build directory that twister left for a sample."""
    group = BUILD / (RISCV if machine.compiler == RISCV else ARM)
    for cache in group.glob(f"*/*/**/sample.weft.{sample}/CMakeCache.txt"):
        board = re.search(r"^BOARD:STRING=(\S+)$", cache.read_text(), flags=re.M)
        if board is not None and board[1] in (machine.name, FULL_NAMES.get(machine.name)):
            return cache.parent
    raise AssertionError(f"twister has not built {sample} for {machine.name}")


def build(
    board: str,
    source: Path,
    folder: Path,
    settings: Mapping[str, str],
    *,
    tree: Path = TREE,
    files: Mapping[str, str] | None = None,
) -> Path:
    """``source`` built in ``folder`` with Kconfig settings, by CMake and Ninja as west does it. ``files``: variables of
    CMake for further configuration, e.g. EXTRA_CONF_FILE."""
    options = [f"-DBOARD={board}", *(f"-DCONFIG_{name}={value}" for name, value in settings.items())]
    options += [f"-D{name}={value}" for name, value in (files or {}).items()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        for command in (
            ["cmake", "-GNinja", "-S", str(source), "-B", str(folder), *options],
            ["ninja", "-C", str(folder)],
        ):
            done = subprocess.run(command, env=environment(ARM, tree), stdout=log, stderr=log, timeout=TWISTER_SECONDS)
            assert done.returncode == 0, f"{source.name} does not build: see {folder}.log"
    return folder


def revisions(hal: Path) -> tuple[str, str]:
    """The commit of a HAL that the tree's manifest names, and the one that is there."""
    name = f"hal_{hal.name}"
    manifest = (TREE / "west.yml").read_text()
    wanted = re.search(rf"- name: {name}\n(?:.*\n)*?\s+revision: (\S+)", manifest)
    found = subprocess.run(["git", "-C", str(hal), "rev-parse", "HEAD"], capture_output=True, text=True)
    return wanted[1] if wanted else "", found.stdout.strip()


def sizes(build: Path) -> dict[str, dict[str, int]]:
    """A build's figures by the command that prints the table of docs/zephyr.md."""
    script = ROOT / "zephyr" / "scripts" / "sizes.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", str(build)], check=True, capture_output=True, text=True
    )
    (row,) = json.loads(done.stdout)
    return {part: row[part] for part in ("engine", "module", "update")}


def weft(*arguments: str) -> dict[str, Any]:
    """What the command line answers, a JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", "planner_service.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# ---------------------------------------------------------------- running


def read_until(process: subprocess.Popen[bytes], end: str, *, quiet: bool = True) -> str:
    """What it prints up to a text, and with ``quiet`` until it prints no more for a moment."""
    assert process.stdout is not None
    text, deadline = "", time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], QUIET_SECONDS)
        if ready:
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            text += part.decode(errors="replace")
        if end in text and (not quiet or not ready):
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


@contextmanager
def start(
    machine: Machine, build: Path, folder: Path, slots: tuple[str, ...], end: str, *, quiet: bool = True
) -> Iterator[Started]:
    """The board, switched on and booted until ``end`` was printed; off afterwards."""
    firmware = str(image(machine, build))
    if machine.native:
        command = [firmware, f"-flash={folder / 'flash.bin'}"]
        if "CONFIG_SERIAL=y" in (build / "zephyr" / ".config").read_text():
            command.append("-uart_stdinout")
    else:
        quiet = ("-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none")
        command = [*machine.command, *quiet, *slots, "-kernel", firmware]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        yield Started(process=process, text=read_until(process, end, quiet=quiet))
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
    with start(machine, build, folder, slots, LAST_LINE) as board:
        return board.text


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
