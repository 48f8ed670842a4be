# SPDX-License-Identifier: Apache-2.0
"""Builds and runs ``kernels.c``: a core's kernels against the reference kernels, on the emulated core.

``python tests/baremetal/kernels.py [core]`` prints instructions per MAC of typical layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baremetal import runner
from planner_service.profile import images

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "module" / "src"
#: Cores with kernels of their own, and those that take the portable ones.
CORES = ("m4", "m7", "m55")
PORTABLE = ("m3", "rv32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's shape as text, its MACs and the instructions its kernel took."""

    kernel: str
    shape: str
    macs: int
    instructions: int


def missing(core: str) -> list[str]:
    """The programs that lack for a core."""
    spec = runner.CORES[core]
    return [tool for tool in (spec.compiler, spec.qemu) if shutil.which(tool) is None]


def run(core: str, *, cases: int, seed: int, cflags: Sequence[str] = ("-O2",), timeout: float = 120.0) -> list[Layer]:
    """Compare ``cases`` random calls and measure the layers; EmulationError if bytes differ or the core faults."""
    spec = runner.CORES[core]
    sources = [HERE / "kernels.c", runner.FIRMWARE / spec.port]
    chosen = images.KERNELS[core]
    sources += [file for name in ("kernels_ref", chosen.folder) for file in sorted((SOURCE / name).glob("*.c"))]
    regions = {"TEXT": spec.text, "DATA": spec.data}
    with tempfile.TemporaryDirectory() as folder:
        elf = Path(folder) / "kernels.elf"
        build = [
            spec.compiler, "--specs=picolibc.specs", "-std=gnu99", *runner.WARNINGS, *spec.cflags, *cflags,
            "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-nostartfiles",
            f"-D{chosen.macro}=1", "-DWEFT_COUNT=1", f"-DKERNEL_CASES={cases}", f"-DKERNEL_SEED={seed}u",
            f"-DARENA_ORIGIN={spec.arena.origin:#x}u",
            f"-I{SOURCE.parent / 'include'}", f"-I{SOURCE}", f"-I{runner.FIRMWARE}",
            "-T", str(runner.FIRMWARE / "firmware.ld"), "-Wl,--gc-sections,--no-warn-rwx-segments",
            *(f"-Wl,--defsym={n}_ORIGIN={r.origin:#x},--defsym={n}_LENGTH={r.length:#x}" for n, r in regions.items()),
            f"-Wl,--defsym=STACK_LENGTH={runner.STACK_BYTES:#x}", "-o", str(elf), *map(str, sources), "-lgcc",
        ]  # fmt: skip
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise runner.EmulationError(f"{core}: the kernels do not build\n{done.stderr}")
        command = [
            spec.qemu, "-M", spec.machine, *spec.qemu_args, "-kernel", str(elf), "-icount", "shift=0",
            "-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none",
            "-chardev", "stdio,id=out", "-semihosting-config", "enable=on,target=native,chardev=out",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise runner.EmulationError(f"{core}: no end after {timeout:g} s") from None
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not events or events[-1] != {"event": "same", "cases": cases}:
        raise runner.EmulationError(f"{core}: {done.stdout[-2000:]}{done.stderr}")
    return [
        Layer(
            kernel=e["kernel"],
            shape=f"{e['h']}x{e['w']}x{e['c']} -> {e['oh']}x{e['ow']}x{e['n']}, {e['kernel_h']}x{e['kernel_w']}"
            f" stride {e['stride_h']}",
            macs=e["macs"],
            instructions=int(e["ticks"] * spec.instructions_per_tick),
        )
        for e in events
        if e["event"] == "layer"
    ]


def main() -> None:
    """Print the table for a core."""
    core = sys.argv[1] if len(sys.argv) > 1 else CORES[0]
    for layer in run(core, cases=1, seed=1):
        per_mac = f"{layer.instructions / layer.macs:6.2f} per MAC" if layer.macs else ""
        print(f"{layer.kernel:16}{layer.shape:44}{layer.instructions:>10,} instructions {per_mac}")


if __name__ == "__main__":
    main()
