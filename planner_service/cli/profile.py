# SPDX-License-Identifier: Apache-2.0
"""``weft profile``."""

from __future__ import annotations

import argparse

from planner_service.cli import files
from planner_service.profile.measure import Profile, profile


def run_profile(args: argparse.Namespace) -> int:
    """Where a plan's instructions go on an emulated core."""
    found = profile(files.read_plan(args.plan), args.core)
    files.emit(args, found.to_json(), _text(found))
    return 0


def _text(p: Profile) -> str:
    def per_mac(instructions: int, macs: int) -> str:
        return f"{instructions / macs:.2f}" if macs else "-"

    def share(instructions: int) -> str:
        return f"{instructions / p.instructions:.1%}"

    operators = [
        (
            o.index,
            o.name,
            o.opcode,
            "x".join(map(str, o.shape)),
            o.stage,
            o.calls,
            o.macs,
            o.instructions,
            per_mac(o.instructions, o.macs),
            share(o.instructions),
        )
        for o in p.operators
    ]
    stages = [
        (s.index, _span(s.operators), s.scratch_bytes, s.macs, s.instructions, per_mac(s.instructions, s.macs))
        for s in p.stages
    ]
    around = sum(s.instructions for s in p.stages) - p.kernel_instructions
    return "\n".join(
        (
            files.table(
                ("op", "name", "opcode", "output", "stage", "calls", "MACs", "instructions", "per MAC", "share"),
                operators,
                left=4,
            ),
            "",
            files.table(("stage", "operators", "scratch", "MACs", "instructions", "per MAC"), stages, left=2),
            "",
            f"{p.instructions} instructions on {p.core} ({p.machine}, emulated; instructions, not cycles), "
            f"{per_mac(p.instructions, p.macs)} per MAC, about {share(max(around, 0))} of them around the kernels",
            f"arena {p.arena_bytes} bytes, stack {p.stack_bytes} bytes",
        )
    )


def _span(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
