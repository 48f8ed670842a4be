# SPDX-License-Identifier: Apache-2.0
"""Before any test: the engine and the host board, built from the sources as they are now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def refuse_forks(event: str, arguments: object) -> None:
    """A fork of a process in which gRPC has threads dies now and then; a test that forks would fail one time in a
    hundred, on someone else's machine. subprocess does not fork in this sense, nor does tests/terminal.py."""
    if event in ("os.fork", "os.forkpty"):
        raise RuntimeError(f"{event}: tests start processes with subprocess or tests/terminal.py")


sys.addaudithook(refuse_forks)


def pytest_configure(config: pytest.Config) -> None:
    """Once, in the process that starts the workers."""
    if hasattr(config, "workerinput"):
        return
    environment = {n: value for n, value in os.environ.items() if n not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", "--no-print-directory", "-s", "engine", "host-board"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.exit(f"the engine does not build\n{done.stdout}{done.stderr}", returncode=1)
