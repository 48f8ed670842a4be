# SPDX-License-Identifier: Apache-2.0
"""Files and terminals, with the errors of the planner."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner_service.errors import CATALOGUE, Code, PlannerError
from planner_service.importers import MAX_MODEL_BYTES
from planner_service.transport.base import TransportError

#: Plans are far smaller; a larger file is something else.
MAX_PLAN_BYTES = 256 << 20
MAX_KEY_BYTES = 64 << 10
#: Characters of a progress bar.
BAR = 30


def read_model(path: Path) -> bytes:
    """A model's bytes."""
    return _read(path, MAX_MODEL_BYTES, "model")


def read_plan(path: Path) -> bytes:
    """A plan's bytes."""
    return _read(path, MAX_PLAN_BYTES, "plan")


def read_key(path: Path) -> bytes:
    """A key file's bytes."""
    return _read(path, MAX_KEY_BYTES, "key")


def _read(path: Path, limit: int, what: str) -> bytes:
    try:
        if path.is_file() and path.stat().st_size > limit:
            raise PlannerError(Code.TOO_LARGE, f"{path} has {path.stat().st_size} bytes; no {what} has over {limit}")
        return path.read_bytes()
    except OSError as error:
        raise PlannerError(Code.NOT_FOUND, f"cannot read the {what} {path}: {error.strerror}") from error


def write(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    temporary = None
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a device or pipe cannot be replaced
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise PlannerError(Code.BAD_REQUEST, f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_folder(path: Path) -> None:
    """Make a folder unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlannerError(Code.BAD_REQUEST, f"cannot make the folder {path}: {error.strerror}") from error


def emit(args: argparse.Namespace, body: Any, text: str) -> None:
    """Print a result: ``body`` as JSON with --json, otherwise ``text``."""
    print(json.dumps(body, indent=2) if args.json else text)


def fail(args: argparse.Namespace, error: PlannerError, body: dict[str, Any] | None = None) -> int:
    """Say what went wrong on stderr, with --json on stdout too (added to ``body``), and return the exit code."""
    print(f"weft: {error}", file=sys.stderr)
    if args.json:
        violations = [{"layer": v.layer, "message": v.message, "hint": v.hint} for v in error.violations]
        found: dict[str, Any] = {
            "code": error.code.value,
            "message": error.message,
            "layer": error.layer,
            "hint": error.hint,
            "violations": violations,
        }
        if isinstance(error, TransportError) and error.device is not None:
            found["device"] = f"WEFT_ERR_{error.device.name}"
        print(json.dumps({**(body or {}), "error": found}, indent=2))
    return CATALOGUE[error.code].exit_code


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Columns under their heads; the first ``left`` ones to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        padded = [row[i].ljust(w) if i < left else row[i].rjust(w) for i, w in enumerate(widths)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


class ProgressLine:
    """A line on a terminal's stderr that says how far work is; silent elsewhere. A context manager and a callback."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = False
        self._quiet = quiet or not sys.stderr.isatty()

    def __call__(self, fraction: float, message: str) -> None:
        if not self._quiet:
            print(f"\r\x1b[K{fraction:4.0%} {message[:70]}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def bar(self, fraction: float, message: str) -> None:
        """The same with a bar."""
        done = round(min(fraction, 1.0) * BAR)
        self(fraction, f"[{'#' * done}{'-' * (BAR - done)}] {message}")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
