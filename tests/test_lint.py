# SPDX-License-Identifier: Apache-2.0
"""Style, types, stale generated files, and an engine that compiles without a warning (`make lint`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.update.build import zcbor

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("module", "zephyr", "riot", "planner_service", "proto", "samples", "tests")
#: RIOT builds into folders of this name beside its applications.
BUILT = "bin"
C_FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.[ch]") if BUILT not in path.parts)
ENGINE = sorted([*(ROOT / "module/src").glob("*.c"), *(ROOT / "module/src/kernels_ref").glob("*.c")])
SOURCES = sorted(
    path
    for folder in FOLDERS
    for pattern in ("*.py", "*.c", "*.h", "*.toml", "*.proto", "*.ld", "*.sh", "Makefile")
    for path in (ROOT / folder).rglob(pattern)
    if BUILT not in path.parts
)
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def check(*command: str) -> None:
    """Run a command in the repository; a failure shows what it printed."""
    environment = os.environ | {"MYPYPATH": "samples/host:tests"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def test_ruff() -> None:
    check(sys.executable, "-m", "ruff", "check", ".")
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy() -> None:
    check(sys.executable, "-m", "mypy")


@pytest.mark.parametrize("path", ["samples/host/client.py", "samples/demo/demo.py", "tests/baremetal/bench.py"])
def test_mypy_outside_the_package(path: str) -> None:
    check(sys.executable, "-m", "mypy", "--strict", path)


def test_clang_format() -> None:
    need("clang-format")
    check("clang-format", "--dry-run", "-Werror", *map(str, C_FILES))


@pytest.mark.parametrize("module", ["codegen", "importers.rules", "protogen"])
def test_generated_files_are_current(module: str) -> None:
    check(sys.executable, "-m", f"planner_service.{module}", "--check")


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_engine_compiles_without_warnings(compiler: str, count: int, tmp_path: Path) -> None:
    need(compiler)
    flags = ("-std=c99", "-pedantic", *WARNINGS, "-O2", f"-DWEFT_COUNT={count}")
    includes = ("-Imodule/include", "-Imodule/src")
    output = tmp_path / "engine.so"
    check(compiler, *flags, *includes, "-fPIC", "-shared", "-o", str(output), *map(str, ENGINE))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_host_board_compiles_without_warnings(compiler: str) -> None:
    need(compiler)
    sources = [*(ROOT / "samples/host").glob("*.c"), *(ROOT / "module/src/smp").glob("*.c")]
    codec = ("-isystem", str(zcbor() / "include"))
    check(compiler, "-std=c99", *WARNINGS, "-O2", "-Imodule/include", *codec, "-fsyntax-only", *map(str, sources))


def test_public_header_suits_cplusplus(tmp_path: Path) -> None:
    need("g++")
    source = tmp_path / "include.cpp"
    source.write_text('#include "weft/weft.h"\n')
    check("g++", "-Wall", "-Wextra", "-Werror", "-Imodule/include", "-fsyntax-only", str(source))


def test_every_source_names_its_licence() -> None:
    lacking = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.stat().st_size > 0 and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ]
    assert not lacking
