# SPDX-License-Identifier: Apache-2.0
"""What the command line and the daemon do with the planner, in process: requests in, results out, all frozen data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from planner_service import fit, ir, signing, targets
from planner_service.engine import Engine, EnginePlan
from planner_service.errors import Code, PlannerError, Violation
from planner_service.importers import import_model

if TYPE_CHECKING:
    from planner_service.planner import PlanResult
    from planner_service.report import Report

Kind = Literal["p1", "p2", "front", "layers"]
InputMode = Literal["streamed", "resident", "external"]
Objective = Literal["macs", "latency"]
Progress = Callable[[float, str], None]
Cancelled = Callable[[], bool]

#: The arena's size is a u32 in the plan.
MAX_RAM = 2**32 - 1
#: The most that calls of kernels may cost, unless somebody says otherwise: a tenth of what layer by layer costs.
CALL_OVERHEAD = 1.1
MAX_NAME = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is to be planned. ``f_max`` belongs to p1 (least RAM), and so does ``call_overhead``: at most so many
    predicted instructions for each that the same MACs would take layer by layer (None: ``CALL_OVERHEAD`` where the
    target's core was measured and its arena has room for that; infinite: any). ``ram_max`` belongs to p2 (least
    compute; None: the target's arena budget). ``objective`` of both: what compute is counted in. ``plan_version`` 0:
    the store's next of ``line`` ('': the model's name), 1 without a store."""

    target: str = "native"
    kind: Kind = "p2"
    f_max: float | None = None
    call_overhead: float | None = None
    ram_max: int | None = None
    input_mode: InputMode = "streamed"
    objective: Objective = "macs"
    plan_version: int = 0
    line: str = ""
    names: bool = False
    vendor_id: bytes = b""
    class_id: bytes = b""

    def check(self) -> None:
        """Raise PlannerError: NOT_FOUND for the target, BAD_REQUEST with every field that is out of range."""
        found: list[Violation] = []

        def need(ok: bool, field: str, message: str, hint: str = "") -> None:
            if not ok:
                found.append(Violation(field, message, hint))

        need(self.kind in get_args(Kind), "constraint", f"{self.kind!r} is none of {', '.join(get_args(Kind))}")
        need(
            self.f_max is None or (math.isfinite(self.f_max) and self.f_max >= 1.0),
            "f_max",
            f"{self.f_max} is not a number of 1.0 or more",
            "1.0 allows no recomputation, 1.3 allows 30 % more MACs",
        )
        need(self.f_max is None or self.kind == "p1", "f_max", "applies to the least RAM only")
        need(
            self.call_overhead is None or self.call_overhead >= 1.0,
            "call_overhead",
            f"{self.call_overhead} is not a number of 1.0 or more",
            "1.1 allows calls to cost a tenth of what layer by layer costs",
        )
        need(self.call_overhead is None or self.kind == "p1", "call_overhead", "applies to the least RAM only")
        need(
            self.ram_max is None or 1 <= self.ram_max <= MAX_RAM,
            "ram_max",
            f"{self.ram_max} is outside 1 .. {MAX_RAM} bytes",
        )
        need(self.ram_max is None or self.kind == "p2", "ram_max", "applies to the least compute only")
        need(self.input_mode in get_args(InputMode), "input_mode", f"{self.input_mode!r} is unknown")
        need(self.objective in get_args(Objective), "objective", f"{self.objective!r} is unknown")
        need(
            self.objective == "macs" or self.kind in ("p1", "p2"),
            "objective",
            "latency decides between plans of the least RAM or the least compute only",
        )
        need(0 <= self.plan_version < 2**32, "plan_version", f"{self.plan_version} is outside 0 .. 2^32 - 1")
        need(len(self.line) <= MAX_NAME, "line", f"has more than {MAX_NAME} characters")
        for name in ("vendor_id", "class_id"):
            need(len(getattr(self, name)) in (0, 16), name, "has neither 0 nor 16 bytes")
        if found:
            raise PlannerError(Code.BAD_REQUEST, "the request is not valid", violations=found)
        targets.load(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class IoInfo:
    """A network input or output: (H, W, C), the type at the model's edge, and the quantisation inside."""

    name: str
    dtype: str
    shape: tuple[int, int, int]
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that was imported."""

    sha256: str
    name: str
    nbytes: int
    source: str
    operators: int
    macs: int
    parameter_bytes: int
    inputs: tuple[IoInfo, ...]
    outputs: tuple[IoInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan and its figures. ``arena_bytes`` is the peak RAM, ``lower_bound`` what no placement of the same windows
    can go below (of a P1 request, no schedule). ``predicted_instructions`` of one inference, not cycles; None if the
    target's core was not measured; ``call_overhead``: for each that the same MACs, or the unfused ones if those are
    more, would take layer by layer."""

    plan: bytes
    sha256: str
    model_sha256: str
    model_name: str
    target: str
    input_mode: InputMode
    plan_version: int
    arena_bytes: int
    lower_bound: int
    macs: int
    base_macs: int
    overhead_factor: float
    predicted_instructions: int | None
    call_overhead: float | None
    fit: fit.Fit

    def to_json(self) -> dict[str, Any]:
        """Everything but the bytes."""
        return {
            "sha256": self.sha256,
            "model": {"name": self.model_name, "sha256": self.model_sha256},
            "target": self.target,
            "input_mode": self.input_mode,
            "plan_version": self.plan_version,
            "plan_bytes": len(self.plan),
            "arena_bytes": self.arena_bytes,
            "lower_bound": self.lower_bound,
            "macs": self.macs,
            "base_macs": self.base_macs,
            "overhead_factor": self.overhead_factor,
            "predicted_instructions": self.predicted_instructions,
            "call_overhead": self.call_overhead,
            "fits": self.fit.fits,
            "shortfalls": [
                {
                    "resource": s.resource.value,
                    "needed": s.needed,
                    "available": s.available,
                    "missing": s.missing,
                    "layer": s.layer,
                    "hint": s.hint,
                }
                for s in self.fit.shortfalls
            ],
            "fitting_targets": list(self.fit.targets),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A source operator that can be imported. ``name`` "*": the rules hold for every operator of the format."""

    source: str
    name: str
    constraints: tuple[str, ...]


def describe_model(data: bytes, name: str) -> ModelInfo:
    """Import a model and say what it is. PlannerError as ``import_model``."""
    graph = import_model(data, name=name)
    constants = sum(t.nbytes for t in graph.tensors if t.data is not None)
    return ModelInfo(
        sha256=hashlib.sha256(data).hexdigest(),
        name=name,
        nbytes=len(data),
        source=graph.source,
        operators=len(graph.ops),
        macs=sum(ir.macs(graph, op) for op in graph.ops),
        parameter_bytes=constants + sum(fit.parameter_bytes(op) for op in graph.ops),
        inputs=tuple(_io(graph, io) for io in graph.inputs),
        outputs=tuple(_io(graph, io) for io in graph.outputs),
    )


def create_plans(
    data: bytes,
    name: str,
    request: PlanRequest,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> tuple[Planned, ...]:
    """Plan a model: one plan, or for a front all of them by rising peak RAM. Each was verified and executed by the
    engine. PlannerError: as ``import_model``, and BAD_REQUEST, NOT_FOUND, INFEASIBLE, CANCELLED."""
    from planner_service import planner

    request.check()
    target = targets.load(request.target)
    graph = import_model(data, name=name)
    options = planner.Options(
        input_mode=request.input_mode,
        plan_version=request.plan_version or 1,
        names=request.names,
        vendor_id=request.vendor_id,
        class_id=request.class_id,
    )
    constraint = least_ram = planner.Constraint(kind="p1")  # the former unless the request has another
    if request.kind == "front":
        found = planner.front(graph, options, target=target, progress=progress, cancelled=cancelled)
        results = tuple(sorted(found, key=lambda r: r.arena_bytes))
    elif request.kind == "layers":
        results = (planner.layers(graph, options, target=target, progress=progress, cancelled=cancelled),)
    else:
        constraint = planner.Constraint(
            kind=request.kind,
            f_max=request.f_max,
            call_overhead=_call_overhead(request, target),
            ram_max=target.arena_budget if request.kind == "p2" and request.ram_max is None else request.ram_max,
            objective=request.objective,
        )
        result = planner.plan(graph, constraint, options, target=target, progress=progress, cancelled=cancelled)
        bounded = constraint.call_overhead is not None and request.call_overhead is None
        if bounded and result.arena_bytes > target.arena_budget:
            # Nobody asked for the bound: no plan is refused for it.
            constraint = replace(constraint, call_overhead=None)
            result = planner.plan(graph, constraint, options, target=target, progress=progress, cancelled=cancelled)
        results = (result,)
    if not results:
        raise PlannerError(Code.INTERNAL, "the search found no schedule at all")
    least: tuple[int, float] | None = None
    short = [fit.lacks(target, arena=r.arena_bytes, plan=len(r.plan), budget=request.ram_max) for r in results]
    if any(fit.Resource.ARENA in lacks for lacks in short):
        smallest = min(results, key=lambda r: r.arena_bytes)
        if request.kind == "layers" or constraint != least_ram:
            smallest = planner.plan(graph, least_ram, options, target=target, progress=progress, cancelled=cancelled)
        least = smallest.arena_bytes, smallest.overhead_factor
    digest = hashlib.sha256(data).hexdigest()
    return tuple(
        Planned(
            plan=result.plan,
            sha256=hashlib.sha256(result.plan).hexdigest(),
            model_sha256=digest,
            model_name=name,
            target=target.name,
            input_mode=request.input_mode,
            plan_version=options.plan_version,
            arena_bytes=result.arena_bytes,
            lower_bound=result.lower_bound,
            macs=result.macs,
            base_macs=result.base_macs,
            overhead_factor=result.overhead_factor,
            predicted_instructions=result.instructions,
            call_overhead=result.call_overhead,
            fit=fit.fit(
                target,
                arena=result.arena_bytes,
                plan=len(result.plan),
                budget=request.ram_max,
                peak_layer=_peak_layer(result, graph) if lacks else "",
                largest_layer=fit.largest_layer(graph),
                least=least,
                any_calls=None if constraint.call_overhead is None else result.lower_bound,
            ),
        )
        for result, lacks in zip(results, short, strict=True)
    )


def _call_overhead(request: PlanRequest, target: targets.Target) -> float | None:
    """The bound of a request, None for none."""
    from planner_service import costs

    if request.call_overhead is not None or costs.measured_as(target.core) is None:
        return None if request.call_overhead == math.inf else request.call_overhead
    return CALL_OVERHEAD if request.kind == "p1" else None


def explain_plan(plan: bytes, model: bytes | None, name: str) -> Report:
    """The report on a plan; its model gives what the plan does not hold. PlannerError: BAD_PLAN, and as
    ``import_model``."""
    from planner_service import report

    return report.explain(plan, import_model(model, name=name) if model is not None else None)


def check_plan(plan: bytes) -> EnginePlan:
    """The plan, opened. PlannerError(BAD_PLAN) if the engine refuses it, or a section is not as its header declares:
    the engine looks at what it needs to be safe, and would run with damaged weights."""
    opened = Engine().open(plan)
    signing.check_intact(plan)
    return opened


def check_engine() -> None:
    """PlannerError(UNAVAILABLE) if plans cannot be verified and run here."""
    Engine()


def operators() -> tuple[Operator, ...]:
    """All operators that can be imported, by format and name, with the conditions of each."""
    from planner_service.importers import rules

    found = []
    for source, table in rules.tables().items():
        by_name: dict[str, list[str]] = {}
        for rule in table:
            by_name.setdefault(rule.operator, []).append(rule.text)
        found += [Operator(source=source.lower(), name=n, constraints=tuple(by_name[n])) for n in sorted(by_name)]
    return tuple(found)


def _peak_layer(result: PlanResult, graph: ir.Graph) -> str:
    from planner_service import report

    return report.explain(result.plan, graph).peak_layer


def _io(graph: ir.Graph, io: ir.Io) -> IoInfo:
    tensor = graph.tensors[io.tensor]
    return IoInfo(
        name=io.name,
        dtype=io.dtype.name.lower(),
        shape=tensor.shape,
        scale=tensor.scale,
        zero_point=tensor.zero_point,
    )
