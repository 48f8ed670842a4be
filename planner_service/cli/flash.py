# SPDX-License-Identifier: Apache-2.0
"""``weft flash``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from planner_service import targets
from planner_service.cli import files
from planner_service.errors import Code, PlannerError


def run_flash(args: argparse.Namespace) -> int:
    """A plan into a slot, checked before and read back after."""
    from planner_service import flash

    if args.debug:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    plan = files.read_plan(args.plan)
    target = _board(args.board)
    flash.chip_of(target)
    where = flash.slot(target, args.slot, args.build_dir)
    info = flash.check(plan, target, where, args.ram)
    probe = flash.choose(args.probe)
    with files.ProgressLine(quiet=args.json) as line:
        done = flash.program(plan, info, target, where, probe, line.bar)
    text = (
        f"slot {done.slot} of {done.board} at {done.address:#x}: {done.plan_bytes} bytes written and read back in "
        f"{done.seconds:.1f} s, plan version {done.plan_version}, arena {done.arena_bytes} bytes; the board was reset"
    )
    files.emit(args, done.to_json(), text)
    return 0


def _board(name: str) -> targets.Target:
    """A known board, or one from a file of the same form as those in ``planner_service/targets``."""
    if not name.endswith(".toml"):
        return targets.load(name)
    try:
        return targets.parse(Path(name).read_text(), Path(name).name)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PlannerError(Code.NOT_FOUND, f"cannot read the board file {name}: {why}") from error
