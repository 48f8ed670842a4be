# SPDX-License-Identifier: Apache-2.0
"""Compiles the tests' C parts against the update core, or against copies of it with seeded bugs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CORE = ROOT / "module" / "src" / "update"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
EXTRA = tuple(os.environ.get("WEFT_TEST_CFLAGS", "").split())  #: for `make coverage`
INCLUDES = (f"-I{ROOT / 'module' / 'include'}", f"-I{ROOT / 'module' / 'src'}")


def core_sources() -> list[Path]:
    return sorted(CORE.glob("*.c"))


def engine_sources() -> list[Path]:
    return sorted([*(ROOT / "module/src").glob("*.c"), *(ROOT / "module/src/kernels_ref").glob("*.c")])


def run(*command: str | Path) -> None:
    """Run a compiler; a failure shows what it printed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def objects(sources: Sequence[Path], folder: Path, *flags: str) -> list[Path]:
    """One object per source."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for source in sources:
        found.append(folder / f"{source.stem}.o")
        run("gcc", "-std=c11", "-O2", *flags, *EXTRA, *INCLUDES, "-c", "-o", found[-1], source)
    return found


def simulator(folder: Path) -> Path:
    """The power-cut simulator; its objects without the core stay in ``folder`` for `mutant()`."""
    rest = objects([HERE / n for n in ("sim.c", "flash.c", "sha256.c")], folder / "rest", *WARNINGS)
    rest += objects(engine_sources(), folder / "rest")
    return link(folder, rest, objects(core_sources(), folder / "core", *WARNINGS), folder / "sim")


def link(folder: Path, rest: Sequence[Path], core: Sequence[Path], output: Path) -> Path:
    run("gcc", "-Wl,--wrap=weft_run", *EXTRA, "-o", output, *rest, *core)
    return output


def mutant(folder: Path, name: str, edits: Sequence[tuple[str, str, str]]) -> Path:
    """The simulator with (file, old text, new text) replaced in a copy of the core; each old text stands there once."""
    place = folder / name.replace(" ", "-")
    source = place / "module" / "src" / "update"
    shutil.copytree(CORE, source)
    for file, old, new in edits:
        text = (source / file).read_text()
        if text.count(old) != 1:
            raise RuntimeError(f"{name}: {file} holds {text.count(old)} times: {old}")
        (source / file).write_text(text.replace(old, new))
    for header in (ROOT / "module" / "src").glob("*.h"):
        shutil.copy(header, source.parent)
    edited = {file for file, _, _ in edits}
    alike = [path for path in core_sources() if not any(f.endswith(".h") for f in edited) and path.name not in edited]
    core = objects([source / path.name for path in core_sources() if path not in alike], place / "core", "-w", "-O1")
    core += [folder / "core" / f"{path.stem}.o" for path in alike]
    return link(folder, sorted((folder / "rest").glob("*.o")), core, place / "sim")


def zcbor() -> Path:
    """The folder of zcbor's C sources, which its Python package carries; the package itself is not imported."""
    found = importlib.util.find_spec("zcbor")
    if found is None or found.origin is None:
        raise RuntimeError("zcbor is not installed")
    return Path(found.origin).parent


def device(folder: Path, *flags: str, smp: bool = False) -> Path:
    """The device that Python drives, as a shared library; with ``smp`` also the SMP handler."""
    output = folder / "device.so"
    sources = [HERE / n for n in ("device.c", "flash.c", "sha256.c")]
    if smp:
        codec = zcbor()
        objects_of_zcbor = objects(
            [codec / "src" / f"zcbor_{n}.c" for n in ("common", "decode", "encode")],
            folder / "zcbor", "-fPIC", f"-I{codec / 'include'}",
        )  # fmt: skip
        sources += [HERE / "device_smp.c", ROOT / "module/src/smp/weft_smp.c", *objects_of_zcbor]
        flags = (*flags, "-isystem", str(codec / "include"))
    if EXTRA:  # a sanitizer's branches are not the core's
        flags = tuple(flag for flag in flags if "sanitize" not in flag)
    run(
        "gcc", "-std=c11", "-O2", "-g", "-shared", "-fPIC", *WARNINGS, *flags, *EXTRA, *INCLUDES, "-o", output,
        *sources, *core_sources(), *engine_sources(),
    )  # fmt: skip
    return output
