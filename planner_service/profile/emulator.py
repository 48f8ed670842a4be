# SPDX-License-Identifier: Apache-2.0
"""Build the bare-metal firmware and run plans on emulated cores.

One image per core (see `CORES`); the plan and its inputs are put into the machine's memory by QEMU's loader, so the
same image runs any plan. The job in memory is, all ``u32`` little-endian: magic ``WJOB``, flags (1 stage ticks,
2 operator ticks, 4 stage digests), offset and length of the plan, offset of the inputs, bytes of one inference's
inputs, number of inferences, 0; then the plan (16-aligned), then the inputs, one inference after the other.

Ticks become instructions: with ``-icount shift=0`` QEMU executes one instruction per nanosecond of guest time, so a
25 MHz SysTick counts 40 instructions (32 MHz on AN547: 31.25) and RISC-V's minstret counts them one by one. The counts
are repeatable to the digit; they are instructions, not cycles.

``python -m planner_service.profile.emulator build`` builds every image; ``run CORE PLAN`` runs a plan on its generated
input.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FIRMWARE = Path(__file__).resolve().parent / "firmware"
ROOT = FIRMWARE.parent.parent.parent
BUILD = ROOT / "build" / "baremetal"
#: The engine's source tree, which images are built from.
MODULE = ROOT / "module"

Int8 = npt.NDArray[np.int8]

JOB_MAGIC = 0x424F4A57
JOB_HEAD = struct.Struct("<8I")
JOB_ALIGN = 16
FLAG_STAGES, FLAG_OPS, FLAG_DIGESTS = 1, 2, 4
STACK_BYTES = 16 << 10
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A range of the machine's address space, in bytes."""

    origin: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """An emulated core: how to compile for it, how to start it, and where its memory is (``info mtree`` of QEMU)."""

    name: str
    compiler: str
    cflags: tuple[str, ...]
    port: str
    qemu: str
    machine: str
    text: Region
    data: Region
    arena: Region
    job: Region
    instructions_per_tick: Fraction
    qemu_args: tuple[str, ...] = ()


def _mps2(name: str, machine: str, cflags: tuple[str, ...], psram: int) -> Core:
    return Core(
        name=name,
        compiler="arm-none-eabi-gcc",
        cflags=("-mthumb", *cflags),
        port="port_cortexm.c",
        qemu="qemu-system-arm",
        machine=machine,
        text=Region(origin=0, length=4 << 20),
        data=Region(origin=0x20000000, length=128 << 10),
        arena=Region(origin=0x20020000, length=(4 << 20) - (128 << 10)),
        job=Region(origin=psram, length=16 << 20),
        instructions_per_tick=Fraction(1000, 25),
    )


CORES: Mapping[str, Core] = {
    core.name: core
    for core in (
        _mps2("m3", "mps2-an385", ("-mcpu=cortex-m3", "-mfloat-abi=soft"), 0x21000000),
        _mps2("m4", "mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), 0x21000000),
        _mps2("m7", "mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"), 0x60000000),
        # The loader is refused by the memory protection controllers of SRAM 0, 1 and DDR; so the job lies in SRAM 2
        # and the arena, which the core itself writes, in DDR.
        Core(
            name="m55",
            compiler="arm-none-eabi-gcc",
            cflags=("-mthumb", "-mcpu=cortex-m55", "-mfloat-abi=hard"),
            port="port_cortexm.c",
            qemu="qemu-system-arm",
            machine="mps3-an547",
            text=Region(origin=0, length=512 << 10),
            data=Region(origin=0x20000000, length=512 << 10),
            arena=Region(origin=0x60000000, length=16 << 20),
            job=Region(origin=0x21000000, length=4 << 20),
            instructions_per_tick=Fraction(1000, 32),
        ),
        Core(
            name="rv32",
            compiler="riscv64-unknown-elf-gcc",
            # The older ISA text counts Zicsr in; Debian's C library is built for that name of the architecture.
            cflags=("-march=rv32imac", "-misa-spec=2.2", "-mabi=ilp32", "-mcmodel=medany"),
            port="port_rv32.c",
            qemu="qemu-system-riscv32",
            machine="virt",
            text=Region(origin=0x80000000, length=1 << 20),
            data=Region(origin=0x80100000, length=1 << 20),
            arena=Region(origin=0x80200000, length=16 << 20),
            job=Region(origin=0x82000000, length=64 << 20),
            instructions_per_tick=Fraction(1),
            qemu_args=("-bios", "none"),
        ),
    )
}

PACKAGES: Mapping[str, str] = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi and picolibc-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf and picolibc-riscv64-unknown-elf",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-system-riscv32": "qemu-system-misc",
}


class EmulationError(RuntimeError):
    """The firmware faulted, hung, or said something unexpected; the text holds what it said."""


class RefusedError(RuntimeError):
    """The engine on the core refused the plan."""

    def __init__(self, opened: Opened) -> None:
        missing = f": {opened.operator} is not in this build" if opened.operator else ""
        super().__init__(f"{opened.name} at record {opened.record}, offset {opened.offset}{missing}")
        self.opened = opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What weft_open() said; `instructions` are those of the verifier, `stack` its high-water mark in bytes.

    `operator` is the name of the one that the image lacks, where that is why.
    """

    status: int
    name: str
    instructions: int
    stack: int
    arena: int = 0
    macs: int = 0
    model_id: str = ""
    plan_version: int = 0
    record: int = 0xFFFF
    offset: int = 0
    operator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One inference: CRC-32 of each output, arena bytes, instructions of weft_run() and its stack in bytes.

    `intact`: the canaries around an arena of exactly `arena` bytes are untouched. `stages` and `ops` are instructions
    by stage and by operator, `stage_digests` the CRC-32 of each stage's output; empty unless asked for. Asking makes
    `instructions` include the callbacks.
    """

    status: int
    name: str
    digests: tuple[int, ...]
    arena: int
    instructions: int
    stack: int
    intact: bool
    stages: tuple[int, ...] = ()
    ops: tuple[int, ...] = ()
    stage_digests: tuple[int, ...] = ()


def missing(core: str) -> list[str]:
    """The Debian packages that lack for a core; empty if it can be built and run."""
    return [PACKAGES[tool] for tool in (CORES[core].compiler, CORES[core].qemu) if shutil.which(tool) is None]


def engine_sources() -> list[Path]:
    """The engine with its reference kernels."""
    return sorted([*(MODULE / "src").glob("*.c"), *(MODULE / "src" / "kernels_ref").glob("*.c")])


def is_fast(source: Path) -> bool:
    """Whether a file holds kernels for speed: those of a family of cores, not the reference kernels."""
    return source.parent.name.startswith("kernels_") and source.parent.name != "kernels_ref"


def compile_files(
    core: str,
    files: Sequence[Path],
    folder: Path,
    *,
    cflags: Sequence[str],
    fast_cflags: Sequence[str] = (),
    module: Path = MODULE,
) -> list[Path]:
    """Compile files for a core into objects in a folder, stack usage (.su) beside them; `fast_cflags` are for those
    that `is_fast`, after all others. Raises EmulationError with the compiler's words."""
    spec = CORES[core]
    command = [
        spec.compiler, "--specs=picolibc.specs", "-std=gnu99", *WARNINGS, *spec.cflags, *cflags,
        "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-common", "-fstack-usage",
        f"-I{module / 'include'}", f"-I{module / 'src'}", f"-I{FIRMWARE}",
    ]  # fmt: skip
    objects = []
    for source in files:
        objects.append(folder / f"{source.parent.name}-{source.name}.o")
        own = fast_cflags if is_fast(source) else ()
        _tool(core, [*command, *own, "-c", str(source), "-o", str(objects[-1])])
    return objects


def link(core: str, objects: Sequence[Path], elf: Path) -> None:
    """Link objects with --gc-sections. Raises EmulationError with the linker's words."""
    spec = CORES[core]
    regions = {"TEXT": spec.text, "DATA": spec.data}
    command = [
        spec.compiler, "--specs=picolibc.specs", *spec.cflags, "-nostartfiles", "-T", str(FIRMWARE / "firmware.ld"),
        "-Wl,--gc-sections,--no-warn-rwx-segments",
        *(f"-Wl,--defsym={n}_ORIGIN={r.origin:#x},--defsym={n}_LENGTH={r.length:#x}" for n, r in regions.items()),
        f"-Wl,--defsym=STACK_LENGTH={STACK_BYTES:#x}", "-o", str(elf), *map(str, objects), "-lgcc",
    ]  # fmt: skip
    _tool(core, command)


def _tool(core: str, command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EmulationError(f"{core}: the firmware does not build\n{done.stderr}")


def build(
    core: str,
    *,
    cflags: Sequence[str] = ("-O2",),
    fast_cflags: Sequence[str] = (),
    sources: Sequence[Path] | None = None,
    module: Path = MODULE,
) -> Path:
    """Build a core's image and return its ELF file; what has been built before is not built again.

    `cflags` are added to the core's own (optimisation, op set), `fast_cflags` to those of fast kernels; `sources`
    replace `engine_sources()`, and `module` the folder with the engine's headers.
    """
    spec = CORES[core]
    engine = list(sources) if sources is not None else engine_sources()
    kernels = () if sources is not None else ("-DWEFT_KERNELS_MVE=0", "-DWEFT_KERNELS_DSP=0")
    files = [FIRMWARE / "main.c", FIRMWARE / spec.port, *engine]
    memory = (
        f"-DARENA_ORIGIN={spec.arena.origin:#x}u", f"-DARENA_LENGTH={spec.arena.length:#x}u",
        f"-DJOB_ORIGIN={spec.job.origin:#x}u",
    )  # fmt: skip
    headers = [*(module / "include").rglob("*.h"), *(module / "src").rglob("*.h")]
    digest = hashlib.sha256(repr((spec, kernels, cflags, fast_cflags, str(module))).encode())
    for file in [*files, FIRMWARE / "port.h", FIRMWARE / "firmware.ld", Path(__file__), *sorted(headers)]:
        digest.update(f"\0{file}\0".encode() + file.read_bytes())
    folder = BUILD / f"{core}-{digest.hexdigest()[:12]}"
    elf = folder / "firmware.elf"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not elf.exists():
            partial = folder / "partial.elf"
            objects = compile_files(
                core, files, folder, cflags=(*kernels, *cflags, *memory), fast_cflags=fast_cflags, module=module
            )
            link(core, objects, partial)
            partial.rename(elf)
    return elf


def _job(plan: bytes, inputs: Sequence[Int8], flags: int) -> bytes:
    plan_offset = -(-JOB_HEAD.size // JOB_ALIGN) * JOB_ALIGN
    input_offset = -(-(plan_offset + len(plan)) // JOB_ALIGN) * JOB_ALIGN
    if len({array.size for array in inputs}) > 1:
        raise ValueError("all inferences of a job take inputs of the same size")
    input_len = inputs[0].size if inputs else 0
    head = JOB_HEAD.pack(JOB_MAGIC, flags, plan_offset, len(plan), input_offset, input_len, len(inputs), 0)
    data = b"".join(np.ascontiguousarray(array, dtype=np.int8).tobytes() for array in inputs)
    return head.ljust(plan_offset, b"\0") + plan.ljust(input_offset - plan_offset, b"\0") + data


def _emulate(spec: Core, elf: Path, job: bytes, timeout: float) -> list[dict[str, Any]]:
    if len(job) > spec.job.length:
        raise EmulationError(f"{spec.name}: plan and inputs take {len(job)} bytes, {spec.job.length} are there")
    with tempfile.NamedTemporaryFile(prefix="weft-job-", suffix=".bin") as file:
        file.write(job)
        file.flush()
        command = [
            spec.qemu, "-M", spec.machine, *spec.qemu_args, "-kernel", str(elf), "-icount", "shift=0",
            "-device", f"loader,file={file.name},addr={spec.job.origin:#x},force-raw=on",
            "-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none",
            "-chardev", "stdio,id=out", "-semihosting-config", "enable=on,target=native,chardev=out",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise EmulationError(f"{spec.name}: no end after {timeout:g} s; it said\n{out}{err}") from None
    try:
        events: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines() if line.strip()]
    except json.JSONDecodeError:
        raise EmulationError(f"{spec.name}: unreadable output\n{out}{err}") from None
    if process.returncode != 0 or not events or events[0]["event"] != "open":
        raise EmulationError(f"{spec.name}: exit status {process.returncode}\n{out}{err}")
    return events


def boot(
    core: str,
    plan: bytes,
    inputs: Sequence[Int8] = (),
    *,
    elf: Path | None = None,
    stages: bool = False,
    ops: bool = False,
    digests: bool = False,
    timeout: float = 300.0,
) -> tuple[Opened, list[Result]]:
    """Boot a core with a plan and run one inference per array in `inputs`.

    An array holds the int8 values of all network inputs, one after the other. `ops` excludes `stages` and `digests`.
    A refused plan is an answer here (`Opened.status`). Raises EmulationError if the firmware faults or hangs.
    """
    spec = CORES[core]
    flags = FLAG_STAGES * stages | FLAG_OPS * ops | FLAG_DIGESTS * digests
    events = _emulate(spec, elf or build(core), _job(plan, inputs, flags), timeout)

    def instructions(ticks: int) -> int:
        return round(ticks * spec.instructions_per_tick)

    head = events[0]
    opened = Opened(
        instructions=instructions(head["ticks"]), **{k: v for k, v in head.items() if k not in ("event", "ticks")}
    )
    if opened.status != 0:
        return opened, []
    results = [
        Result(
            status=event["status"],
            name=event["name"],
            digests=tuple(event["digests"]),
            arena=opened.arena,
            instructions=instructions(event["ticks"]),
            stack=event["stack"],
            intact=event["intact"],
            stages=tuple(map(instructions, event.get("stage_ticks", ()))),
            ops=tuple(map(instructions, event.get("op_ticks", ()))),
            stage_digests=tuple(event.get("stage_digests", ())),
        )
        for event in events[1:]
    ]
    if len(results) != len(inputs):
        raise EmulationError(f"{core}: {len(results)} results for {len(inputs)} inputs")
    return opened, results


def run(core: str, plan: bytes, inputs: Sequence[Int8], **options: Any) -> list[Result]:
    """As `boot`, but a refused plan raises RefusedError."""
    opened, results = boot(core, plan, inputs, **options)
    if opened.status != 0:
        raise RefusedError(opened)
    return results


def generated_input(size: int, seed: int = 12345) -> Int8:
    """The input that counts are taken with: s = s*1664525 + 1013904223; x = (int8)(s >> 24)."""
    values = np.empty(size, dtype=np.int8)
    state = seed
    for i in range(size):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[i] = (state >> 24) - 256 * (state >> 31)
    return values


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Weft's bare-metal firmware on emulated cores")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build every core's image")
    one = commands.add_parser("run", help="run a plan on a generated input")
    one.add_argument("core", choices=sorted(CORES))
    one.add_argument("plan", type=Path)
    one.add_argument("--input-bytes", type=int, required=True, help="bytes of all network inputs together")
    one.add_argument("--stages", action="store_true", help="instructions by stage")
    args = parser.parse_args()
    if args.command == "build":
        for core in CORES:
            if lacking := missing(core):
                print(f"{core}: install {', '.join(lacking)}", file=sys.stderr)
                return 1
            print(os.path.relpath(build(core)))
        return 0
    opened, results = boot(args.core, args.plan.read_bytes(), [generated_input(args.input_bytes)], stages=args.stages)
    print(opened)
    print(*results, sep="\n")
    return 0 if opened.status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
