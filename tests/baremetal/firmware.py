# SPDX-License-Identifier: Apache-2.0
"""What the runtime takes of the flash, built as it is shipped."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baremetal import images, runner

APPLICATION = Path(__file__).resolve().parent / "application.c"


def flash_bytes(core: str, opcodes: Iterable[str] | None = None) -> int:
    """Bytes of flash that the runtime takes: code, constants and initialised data, with what it needs of the C library
    and of the compiler's, without the application.

    Two programs are linked with --gc-sections: one whose application opens, runs and queries a plan (`application.c`),
    and the same one with every call into the engine compiled out. The difference of their text, rodata and data is the
    runtime: all that a firmware grows by when it links the engine. Texts of error messages, which an application may
    leave out, are not called for.
    """
    return loaded(core, opcodes, "APPLICATION_HAS_ENGINE=1") - loaded(core, opcodes)


def verifier_bytes(core: str, opcodes: Iterable[str] | None = None) -> tuple[int, int]:
    """Bytes of flash of weft_open() and all that it calls, and what of it would drop out of a firmware that ran plans
    without opening them: the rest is shared with the executor."""
    kernels, opens, runs = "APPLICATION_NAMES_KERNELS=1", "APPLICATION_OPENS=1", "APPLICATION_RUNS=1"
    whole = loaded(core, opcodes, kernels, opens) - loaded(core, opcodes, kernels)
    return whole, loaded(core, opcodes, runs, opens) - loaded(core, opcodes, runs)


def loaded(core: str, opcodes: Iterable[str] | None, *defines: str) -> int:
    """Bytes of text, rodata and data of `application.c`, built with these macros, and of what it calls."""
    engine = _engine(core, None if opcodes is None else frozenset(opcodes))
    with tempfile.TemporaryDirectory() as folder:
        elf = Path(folder) / "application.elf"
        cflags = (*images.flags(core, opcodes), *(f"-D{define}" for define in defines))
        runner.link(core, [*runner.compile_files(core, [APPLICATION], elf.parent, cflags=cflags), *engine], elf)
        size = runner.CORES[core].compiler.removesuffix("gcc") + "size"
        done = subprocess.run([size, "-A", str(elf)], capture_output=True, text=True, check=True)
    columns = [line.split() for line in done.stdout.splitlines()]
    return sum(int(c[1]) for c in columns if len(c) == 3 and c[0] in (".text", ".data"))


@functools.cache
def _engine(core: str, opcodes: frozenset[str] | None) -> list[Path]:
    """The engine's objects as shipped, compiled once; they go with the process."""
    folder = Path(tempfile.mkdtemp(prefix="weft-engine-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return runner.compile_files(
        core,
        images.KERNELS[core].sources,
        folder,
        cflags=images.flags(core, opcodes),
        fast_cflags=(images.FAST_OPTIMISATION,),
    )


def missing(core: str) -> list[str]:
    """The Debian packages that lack to build for a core and run it."""
    lacking = runner.missing(core)
    if not lacking and shutil.which(runner.CORES[core].compiler.removesuffix("gcc") + "size") is None:
        lacking.append("binutils of the cross compiler")
    return lacking
