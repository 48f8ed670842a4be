# SPDX-License-Identifier: Apache-2.0
"""The images as shipped: every core with its fastest kernels, and what the runtime takes of the flash.

``python -m baremetal.firmware profile CORE PLAN --input-bytes N`` prints what a plan costs on a core, as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baremetal import runner

#: How images are shipped: users of Zephyr or RIOT may have -Os.
OPTIMISATION = "-O2"
APPLICATION = Path(__file__).resolve().parent / "application.c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Fast kernels: the folder under module/src and the macro that puts them into the kernel table."""

    folder: str
    macro: str

    @property
    def sources(self) -> list[Path]:
        """The engine's sources with these kernels, and the reference kernels for what they leave to them."""
        return [*runner.engine_sources(), *sorted((runner.MODULE / "src" / self.folder).glob("*.c"))]


PORTABLE = Kernels(folder="kernels_portable", macro="WEFT_KERNELS_PORTABLE")
DSP = Kernels(folder="kernels_cortexm", macro="WEFT_KERNELS_DSP")
KERNELS = {"m3": PORTABLE, "m4": DSP, "m7": DSP, "m55": DSP, "rv32": PORTABLE}


def flags(core: str, opcodes: Iterable[str] | None = None) -> tuple[str, ...]:
    """Compiler flags beyond the core's own; ``opcodes``: only these operators, by name (all if None)."""
    chosen = [OPTIMISATION, f"-D{KERNELS[core].macro}=1"]
    if opcodes is not None:
        chosen += ["-DWEFT_OP_SET_CUSTOM", *(f"-DWEFT_WITH_{name}=1" for name in sorted(set(opcodes)))]
    return tuple(chosen)


def image(core: str, opcodes: Iterable[str] | None = None) -> Path:
    """The test firmware with the core's fastest kernels."""
    return runner.build(core, cflags=flags(core, opcodes), sources=KERNELS[core].sources)


def flash_bytes(core: str, opcodes: Iterable[str] | None = None, *, optimisation: str | None = None) -> int:
    """Bytes of flash that the runtime takes: code, constants and initialised data, with what it needs of the C library
    and of the compiler's, without the application.

    Two programs are linked with --gc-sections: one whose application opens, runs and queries a plan (`application.c`),
    and the same one with every call into the engine compiled out. The difference of their text, rodata and data is the
    runtime: all that a firmware grows by when it links the engine. Texts of error messages, which an application may
    leave out, are not called for.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = [_loaded(core, Path(folder) / "a.elf", opcodes, engine, optimisation) for engine in (1, 0)]
    return sizes[0] - sizes[1]


def _loaded(core: str, elf: Path, opcodes: Iterable[str] | None, engine: int, optimisation: str | None) -> int:
    spec = runner.CORES[core]
    regions = {"TEXT": spec.text, "DATA": spec.data}
    chosen = list(flags(core, opcodes))
    if optimisation is not None:
        chosen[0] = optimisation
    command = [
        spec.compiler, "--specs=picolibc.specs", "-std=gnu99", *runner.WARNINGS, *spec.cflags, *chosen,
        "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-common", "-nostartfiles",
        f"-DAPPLICATION_HAS_ENGINE={engine}",
        f"-I{runner.MODULE / 'include'}", f"-I{runner.MODULE / 'src'}", "-T", str(runner.HERE / "firmware.ld"),
        "-Wl,--gc-sections,--no-warn-rwx-segments",
        *(f"-Wl,--defsym={n}_ORIGIN={r.origin:#x},--defsym={n}_LENGTH={r.length:#x}" for n, r in regions.items()),
        f"-Wl,--defsym=STACK_LENGTH={runner.STACK_BYTES:#x}",
        "-o", str(elf), str(APPLICATION), *map(str, KERNELS[core].sources), "-lgcc",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise runner.EmulationError(f"{core}: the application does not build\n{done.stderr}")
    size = spec.compiler.removesuffix("gcc") + "size"
    done = subprocess.run([size, "-A", str(elf)], capture_output=True, text=True, check=True)
    columns = [line.split() for line in done.stdout.splitlines()]
    return sum(int(c[1]) for c in columns if len(c) == 3 and c[0] in (".text", ".data"))


def missing(core: str) -> list[str]:
    """The Debian packages that lack to build for a core and run it."""
    lacking = runner.missing(core)
    if not lacking and shutil.which(runner.CORES[core].compiler.removesuffix("gcc") + "size") is None:
        lacking.append("binutils of the cross compiler")
    return lacking


def profile(core: str, plan: bytes, values: runner.Int8, timeout: float = 300.0) -> tuple[runner.Result, runner.Result]:
    """One inference on a core, and the same with the operators' instructions (`Result.ops`)."""
    elf = image(core)
    _, (whole,) = runner.boot(core, plan, [values], elf=elf, timeout=timeout)
    _, (by_operator,) = runner.boot(core, plan, [values], elf=elf, ops=True, timeout=timeout)
    return whole, by_operator


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Weft's firmware on emulated cores, as shipped")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("profile", help="instructions of a plan, by operator")
    one.add_argument("core", choices=sorted(runner.CORES))
    one.add_argument("plan", type=Path)
    one.add_argument("--input-bytes", type=int, required=True, help="bytes of all network inputs together")
    args = parser.parse_args(argv)
    if lacking := missing(args.core):
        print(f"install {', '.join(lacking)}", file=sys.stderr)
        return 3
    try:
        whole, by_operator = profile(args.core, args.plan.read_bytes(), runner.generated_input(args.input_bytes))
    except (runner.EmulationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    body = {
        "machine": args.core,
        "instructions": whole.instructions,
        "stack_bytes": whole.stack,
        "arena_bytes": whole.arena,
        "operators": by_operator.ops,
    }
    print(json.dumps(body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
