# SPDX-License-Identifier: Apache-2.0
"""``weft plan`` and ``weft sweep``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from planner_service import api
from planner_service.cli import files
from planner_service.cli.interrupt import stop
from planner_service.cli.serve import LISTEN
from planner_service.errors import Code, PlannerError, Violation


def run_plan(args: argparse.Namespace) -> int:
    """One plan, written to a file. A plan that does not fit its target is an answer: its figures, INFEASIBLE, and no
    file unless --force."""
    kind: api.Kind = "layers" if args.layers else "p1" if args.least_ram or args.fmax is not None else "p2"
    request = replace(_request(args), kind=kind, f_max=args.fmax, ram_max=args.ram, objective=args.objective)
    request = replace(request, call_overhead=args.call_overhead)
    request.check()
    (planned,) = _create(args, request)
    output: Path = args.output or Path(args.model.stem + ".weft")
    written = planned.fit.fits or args.force
    if written:
        files.write(output, planned.plan)
    body = planned.to_json() | {"output": str(output) if written else None}
    if written:
        files.emit(args, body, f"{output}: {_describe(planned, kind)}")
        return 0
    error = PlannerError(
        Code.INFEASIBLE,
        f"the plan does not fit {planned.target}",
        hint="--force writes it all the same",
        violations=[Violation(s.layer, str(s)) for s in planned.fit.shortfalls],
    )
    return files.fail(args, error, body)


def run_sweep(args: argparse.Namespace) -> int:
    """The Pareto front as a table, below what layer by layer needs."""
    request = _request(args)
    request.check()
    front = _create(args, replace(request, kind="front"))
    (layers,) = _create(args, replace(request, kind="layers", plan_version=front[0].plan_version))
    if args.output:
        files.make_folder(args.output)
        for planned in front:
            files.write(args.output / f"{args.model.stem}-{planned.arena_bytes}.weft", planned.plan)
    if args.html:
        from planner_service import report

        files.write(args.html, report.sweep_to_html([layers, *front]).encode())
    body = {
        "model": layers.to_json()["model"],
        "target": layers.target,
        "input_mode": layers.input_mode,
        "layer_by_layer": layers.to_json(),
        "front": [p.to_json() for p in front],
    }
    rows = [_row("layer by layer", layers, layers), *(_row("fused", p, layers) for p in front)]
    head = ("schedule", "peak RAM", "saved", "F", "MACs", "instructions", "plan bytes", "fits")
    title = f"{layers.model_name} on {layers.target}, input {layers.input_mode}"
    files.emit(args, body, f"{title}\n{files.table(head, rows)}")
    return 0


def _request(args: argparse.Namespace) -> api.PlanRequest:
    if args.device is not None:
        return _for_device(args)
    return api.PlanRequest(
        target=args.target,
        input_mode=args.input_mode,
        plan_version=args.plan_version,
        line=args.line,
        names=args.names,
        vendor_id=args.vendor_id,
        class_id=args.class_id,
    )


def _for_device(args: argparse.Namespace) -> api.PlanRequest:
    """A request for a registered device; its daemon makes the plan, and keeps it for `weft push --device`."""
    from planner_service.service.client import Client

    args.server = args.server or LISTEN
    with Client(args.server) as client:
        device = client.device(args.device)
    return api.PlanRequest(
        target=device.target,
        input_mode=args.input_mode,
        plan_version=args.plan_version,
        line=args.line or device.name,
        names=args.names,
        vendor_id=args.vendor_id or device.vendor_id,
        class_id=args.class_id or device.class_id,
    )


def _create(args: argparse.Namespace, request: api.PlanRequest) -> tuple[api.Planned, ...]:
    data, name = files.read_model(args.model), args.model.stem
    with files.ProgressLine(quiet=args.json) as progress:
        if args.server is None:
            return api.create_plans(data, name, request, progress=progress, cancelled=stop.is_set)
        from planner_service.service.client import Client

        with Client(args.server) as client:
            return client.create_plans(data, name, request, progress=progress)


def _describe(planned: api.Planned, kind: api.Kind) -> str:
    gap = planned.arena_bytes - planned.lower_bound
    # Of the least RAM the bound is one at any call overhead; with few calls plans are above it on purpose.
    calls = " at any call overhead" if gap and kind == "p1" and planned.call_overhead is not None else ""
    return (
        f"peak RAM {planned.arena_bytes} bytes ({gap} above the lower bound{calls}), "
        f"F = {planned.overhead_factor:.3f}, "
        + ("" if planned.predicted_instructions is None else f"{_millions(planned)} instructions predicted, ")
        + ("" if planned.call_overhead is None else f"call overhead {planned.call_overhead:.2f}, ")
        + f"plan {len(planned.plan)} bytes, version {planned.plan_version}, for {planned.target}"
        + "".join(f"\n  does not fit: {s}" for s in planned.fit.shortfalls)
    )


def _millions(planned: api.Planned) -> str:
    """Predicted instructions; "-" if there is no prediction."""
    count = planned.predicted_instructions
    return "-" if count is None else f"{count / 1e6:.2f} M"


def _row(what: str, planned: api.Planned, base: api.Planned) -> tuple[str, ...]:
    short = ", ".join(f"{s.resource.value} -{s.missing}" for s in planned.fit.shortfalls)
    return (
        what,
        str(planned.arena_bytes),
        f"{1 - planned.arena_bytes / base.arena_bytes:.0%}",
        f"{planned.overhead_factor:.3f}",
        str(planned.macs),
        _millions(planned),
        str(len(planned.plan)),
        short or "yes",
    )
