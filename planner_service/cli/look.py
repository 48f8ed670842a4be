# SPDX-License-Identifier: Apache-2.0
"""Commands that only look: ``inspect``, ``explain``, ``export``, ``ops``, ``targets``."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from planner_service import api, signing, targets
from planner_service.cli import files
from planner_service.errors import Code, PlannerError

_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def run_inspect(args: argparse.Namespace) -> int:
    """Every byte of a plan accounted for."""
    from planner_service import report

    inspection = report.inspect(files.read_plan(args.plan))
    files.emit(args, inspection.to_json(), inspection.to_text())
    return 0


def run_explain(args: argparse.Namespace) -> int:
    """The schedule in people's terms."""
    from planner_service import report

    plan = files.read_plan(args.plan)
    model = files.read_model(args.model) if args.model else None
    if args.server is None:
        found = api.explain_plan(plan, model, args.model.stem if args.model else "")
    else:
        from planner_service.service.client import Client
        from planner_service.store import digest_of

        with Client(args.server) as client:
            found = client.explain(digest_of(signing.unsign(plan)))  # a daemon has its plans as it made them
    if args.html:
        files.write(args.html, report.to_html(found).encode())
    files.emit(args, found.to_json(), found.to_text())
    return 0


def run_export(args: argparse.Namespace) -> int:
    """A plan as C source."""
    plan = files.read_plan(args.plan)
    name = args.name or re.sub(r"\W", "_", f"weft_plan_{args.plan.stem}", flags=re.ASCII)
    if not _C_NAME.fullmatch(name):
        raise PlannerError(Code.BAD_REQUEST, f"{name!r} is no C identifier", hint="give one with --name")
    api.check_plan(plan)
    source = c_array(plan, name)
    if args.output:
        files.write(args.output, source.encode())
        files.emit(args, {"output": str(args.output), "name": name, "plan_bytes": len(plan)}, f"{args.output}: {name}")
    else:
        files.emit(args, {"source": source, "name": name, "plan_bytes": len(plan)}, source.rstrip("\n"))
    return 0


def c_array(plan: bytes, name: str) -> str:
    """C99 source that defines ``name`` and ``name_len``, aligned as weft_open() asks."""
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        "/* Written by `weft export --c-array`; do not edit. */",
        "#include <stddef.h>",
        "",
        f"extern const unsigned char {name}[];",
        f"extern const size_t {name}_len;",
        "",
        f"const size_t {name}_len = {len(plan)};",
        f"const unsigned char {name}[{len(plan)}] __attribute__((aligned(8))) = {{",
        *("    " + " ".join(f"0x{b:02x}," for b in plan[i : i + 16]) for i in range(0, len(plan), 16)),
        "};",
    ]
    return "\n".join(lines) + "\n"


def run_ops(args: argparse.Namespace) -> int:
    """What can be imported."""
    if args.server is None:
        found = api.operators()
    else:
        from planner_service.service.client import Client

        with Client(args.server) as client:
            found = client.operators()
    if args.source:
        found = tuple(o for o in found if o.source == args.source)
    if args.operator:
        known = found
        found = tuple(o for o in known if o.name.lower() == args.operator.lower())
        if not found:
            names = ", ".join(sorted({o.name for o in known} - {"*"}))
            raise PlannerError(Code.NOT_FOUND, f"{args.operator} cannot be imported", hint=f"one of {names}")
    text = []
    for operator in found:
        title = "every operator" if operator.name == "*" else operator.name
        text += [f"{operator.source} {title}", *(f"  - {constraint}" for constraint in operator.constraints)]
    files.emit(args, [asdict(o) for o in found], "\n".join(text))
    return 0


def run_targets(args: argparse.Namespace) -> int:
    """Boards."""
    if args.server is None:
        found = targets.load_all()
    else:
        from planner_service.service.client import Client

        with Client(args.server) as client:
            found = client.targets()
    if args.target:
        target = targets.find(found, args.target)
        width = max(len(key) for key in asdict(target))
        lines = [f"{key.ljust(width)}  {'-' if value is None else value}" for key, value in asdict(target).items()]
        files.emit(args, asdict(target), "\n".join(lines))
        return 0
    rows = [
        (
            t.name,
            t.core,
            t.description,
            f"{t.clock_hz // 10**6} MHz" if t.clock_hz else "-",
            t.ram_bytes,
            t.arena_budget,
            t.flash_bytes,
            t.slot_bytes,
        )
        for t in found
    ]
    head = ("target", "core", "board", "clock", "RAM", "arena", "flash", "slot")
    files.emit(args, [asdict(t) for t in found], files.table(head, rows, left=3))
    return 0
