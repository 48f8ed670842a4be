# SPDX-License-Identifier: Apache-2.0
"""What the runtime takes of the flash, built as it is shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baremetal import images, runner

APPLICATION = Path(__file__).resolve().parent / "application.c"


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
    chosen = list(images.flags(core, opcodes))
    if optimisation is not None:
        chosen[0] = optimisation
    command = [
        spec.compiler, "--specs=picolibc.specs", "-std=gnu99", *runner.WARNINGS, *spec.cflags, *chosen,
        "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-common", "-nostartfiles",
        f"-DAPPLICATION_HAS_ENGINE={engine}",
        f"-I{runner.MODULE / 'include'}", f"-I{runner.MODULE / 'src'}", "-T", str(runner.FIRMWARE / "firmware.ld"),
        "-Wl,--gc-sections,--no-warn-rwx-segments",
        *(f"-Wl,--defsym={n}_ORIGIN={r.origin:#x},--defsym={n}_LENGTH={r.length:#x}" for n, r in regions.items()),
        f"-Wl,--defsym=STACK_LENGTH={runner.STACK_BYTES:#x}",
        "-o", str(elf), str(APPLICATION), *map(str, images.KERNELS[core].sources), "-lgcc",
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
