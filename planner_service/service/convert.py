# SPDX-License-Identifier: Apache-2.0
"""Between protobuf messages and the planner's own data. Records in the store are ``ModelInfo`` as a dictionary and
``Planned.to_json``."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from planner_service import api, fit, report, targets
from planner_service.devices import Deployment, Device
from planner_service.errors import Code, PlannerError, Violation
from planner_service.format import SIGNATURE_LEN
from planner_service.proto import planner_pb2 as pb
from planner_service.transport import deploy

_INPUT_MODES: dict[int, api.InputMode] = {
    pb.INPUT_MODE_UNSPECIFIED: "streamed",
    pb.INPUT_MODE_STREAMED: "streamed",
    pb.INPUT_MODE_RESIDENT: "resident",
    pb.INPUT_MODE_EXTERNAL: "external",
}
_INPUT_MODE_NUMBERS = {name: number for number, name in _INPUT_MODES.items()}
_OBJECTIVES: dict[int, api.Objective] = {
    pb.OBJECTIVE_UNSPECIFIED: "macs",
    pb.OBJECTIVE_MACS: "macs",
    pb.OBJECTIVE_LATENCY: "latency",
}
_OBJECTIVE_NUMBERS = {name: number for number, name in _OBJECTIVES.items()}
_RESOURCES = {
    pb.RESOURCE_ARENA: fit.Resource.ARENA,
    pb.RESOURCE_SLOT: fit.Resource.SLOT,
    pb.RESOURCE_FLASH: fit.Resource.FLASH,
}
_RESOURCE_NUMBERS = {resource.value: number for number, resource in _RESOURCES.items()}


def digest_from_pb(sha256: bytes, field: str) -> str:
    """The store's name of a digest; BAD_REQUEST naming the field if it is none."""
    if len(sha256) != 32:
        raise PlannerError(
            Code.BAD_REQUEST,
            "the request is not valid",
            violations=[Violation(field, f"has {len(sha256)} bytes, not the 32 of a SHA-256")],
        )
    return sha256.hex()


# ---------------------------------------------------------------- requests


def request_from_pb(message: Any) -> api.PlanRequest:
    """CreatePlanRequest -> PlanRequest, checked. ``line`` stays empty where the request names none."""
    kinds: dict[str | None, api.Kind] = {
        None: "p2",
        "least_ram": "p1",
        "least_compute": "p2",
        "front": "front",
        "layer_by_layer": "layers",
    }
    if message.input_mode not in _INPUT_MODES:
        raise PlannerError(
            Code.BAD_REQUEST,
            "the request is not valid",
            violations=[Violation("input_mode", f"{message.input_mode} is not a value of InputMode")],
        )
    if message.objective not in _OBJECTIVES:
        raise PlannerError(
            Code.BAD_REQUEST,
            "the request is not valid",
            violations=[Violation("objective", f"{message.objective} is not a value of Objective")],
        )
    request = api.PlanRequest(
        target=message.target,
        objective=_OBJECTIVES[message.objective],
        kind=kinds[message.WhichOneof("constraint")],
        f_max=message.least_ram.f_max if message.least_ram.HasField("f_max") else None,
        call_overhead=message.least_ram.call_overhead if message.least_ram.HasField("call_overhead") else None,
        ram_max=message.least_compute.ram_max if message.least_compute.HasField("ram_max") else None,
        input_mode=_INPUT_MODES[message.input_mode],
        plan_version=message.plan_version,
        line=message.line,
        names=message.names,
        vendor_id=message.vendor_id,
        class_id=message.class_id,
    )
    request.check()
    return request


def request_to_pb(request: api.PlanRequest, model_sha256: str) -> Any:
    """PlanRequest -> CreatePlanRequest."""
    message = pb.CreatePlanRequest(
        model_sha256=bytes.fromhex(model_sha256),
        target=request.target,
        input_mode=_INPUT_MODE_NUMBERS[request.input_mode],
        objective=_OBJECTIVE_NUMBERS[request.objective],
        plan_version=request.plan_version,
        line=request.line,
        names=request.names,
        vendor_id=request.vendor_id,
        class_id=request.class_id,
    )
    if request.kind == "p1":
        message.least_ram.CopyFrom(pb.LeastRam(f_max=request.f_max, call_overhead=request.call_overhead))
    elif request.kind == "p2":
        message.least_compute.CopyFrom(pb.LeastCompute(ram_max=request.ram_max))
    elif request.kind == "front":
        message.front.SetInParent()
    else:
        message.layer_by_layer.SetInParent()
    return message


# ---------------------------------------------------------------- models


def model_record(info: api.ModelInfo) -> dict[str, Any]:
    """What the store keeps of a model."""
    return asdict(info)


def model_to_pb(record: dict[str, Any]) -> Any:
    """A model's record -> Model."""
    return pb.Model(
        sha256=bytes.fromhex(record["sha256"]),
        name=record["name"],
        total_bytes=record["nbytes"],
        source=record["source"],
        operators=record["operators"],
        macs=record["macs"],
        parameter_bytes=record["parameter_bytes"],
        inputs=[_io_to_pb(io) for io in record["inputs"]],
        outputs=[_io_to_pb(io) for io in record["outputs"]],
    )


def _io_to_pb(io: dict[str, Any]) -> Any:
    height, width, channels = io["shape"]
    return pb.Io(
        name=io["name"],
        dtype=io["dtype"],
        height=height,
        width=width,
        channels=channels,
        scale=io["scale"],
        zero_point=io["zero_point"],
    )


# ---------------------------------------------------------------- plans


def plan_to_pb(record: dict[str, Any]) -> Any:
    """A plan's record -> Plan."""
    return pb.Plan(
        sha256=bytes.fromhex(record["sha256"]),
        model_sha256=bytes.fromhex(record["model"]["sha256"]),
        model_name=record["model"]["name"],
        target=record["target"],
        input_mode=_INPUT_MODE_NUMBERS[record["input_mode"]],
        plan_version=record["plan_version"],
        plan_bytes=record["plan_bytes"],
        arena_bytes=record["arena_bytes"],
        lower_bound=record["lower_bound"],
        macs=record["macs"],
        base_macs=record["base_macs"],
        overhead_factor=record["overhead_factor"],
        predicted_instructions=record.get("predicted_instructions"),
        call_overhead=record.get("call_overhead"),
        fit=pb.Fit(
            targets=record["fitting_targets"],
            shortfalls=[
                pb.Shortfall(
                    resource=_RESOURCE_NUMBERS[s["resource"]],
                    needed_bytes=s["needed"],
                    available_bytes=s["available"],
                    missing_bytes=s["missing"],
                    binding_layer=s["layer"],
                    hint=s["hint"],
                )
                for s in record["shortfalls"]
            ],
        ),
    )


def plan_from_pb(message: Any, data: bytes) -> api.Planned:
    """Plan and its bytes -> Planned."""
    return api.Planned(
        plan=data,
        sha256=message.sha256.hex(),
        model_sha256=message.model_sha256.hex(),
        model_name=message.model_name,
        target=message.target,
        input_mode=_INPUT_MODES[message.input_mode],
        plan_version=message.plan_version,
        arena_bytes=message.arena_bytes,
        lower_bound=message.lower_bound,
        macs=message.macs,
        base_macs=message.base_macs,
        overhead_factor=message.overhead_factor,
        predicted_instructions=message.predicted_instructions if message.HasField("predicted_instructions") else None,
        call_overhead=message.call_overhead if message.HasField("call_overhead") else None,
        fit=fit.Fit(
            targets=tuple(message.fit.targets),
            shortfalls=tuple(
                fit.Shortfall(
                    resource=_RESOURCES[s.resource],
                    needed=s.needed_bytes,
                    available=s.available_bytes,
                    layer=s.binding_layer,
                    hint=s.hint,
                )
                for s in message.fit.shortfalls
            ),
        ),
    )


# ---------------------------------------------------------------- reports

_ROWS: dict[str, tuple[Any, Any]] = {
    "stages": (report.StageRow, pb.StageRow),
    "layers": (report.LayerRow, pb.LayerRow),
    "windows": (report.WindowRow, pb.WindowRow),
}


def report_to_pb(found: report.Report) -> Any:
    """Report -> Report; the fields have the same names on both sides."""
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    for name, (_, message) in _ROWS.items():
        values[name] = [message(**asdict(row)) for row in values[name]]
    return pb.Report(**values)


def report_from_pb(message: Any) -> report.Report:
    """Report -> Report."""
    values: dict[str, Any] = {}
    for f in fields(report.Report):
        value = getattr(message, f.name)
        if f.name in _ROWS:
            kind = _ROWS[f.name][0]
            value = tuple(kind(**{column.name: getattr(row, column.name) for column in fields(kind)}) for row in value)
        values[f.name] = value if isinstance(value, int | str | tuple) else tuple(value)
    return report.Report(**values)


# ---------------------------------------------------------------- targets and operators


def target_to_pb(target: targets.Target) -> Any:
    """Target -> Target; what is not known is 0 or empty."""
    return pb.Target(**{name: value for name, value in asdict(target).items() if value is not None})


def target_from_pb(message: Any) -> targets.Target:
    """Target -> Target, checked like a file."""
    values: dict[str, Any] = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    optional = {"clock_hz", "erase_bytes", "write_bytes", "pyocd", "zephyr", "riot", "slot_a", "slot_b"}
    values |= {name: values[name] or None for name in optional}
    target = targets.Target(**values)
    target.check()
    return target


def operator_to_pb(operator: api.Operator) -> Any:
    """Operator -> Operator."""
    return pb.Operator(name=operator.name, source=operator.source, constraints=operator.constraints)


def operator_from_pb(message: Any) -> api.Operator:
    """Operator -> Operator."""
    return api.Operator(name=message.name, source=message.source, constraints=tuple(message.constraints))


# ---------------------------------------------------------------- devices

_GOALS: dict[int, deploy.Goal] = {
    pb.DEPLOY_GOAL_UNSPECIFIED: "stage",
    pb.DEPLOY_GOAL_STAGE: "stage",
    pb.DEPLOY_GOAL_TEST: "test",
    pb.DEPLOY_GOAL_CONFIRM: "confirm",
}
_GOAL_NUMBERS = {name: number for number, name in _GOALS.items()}
_PHASES: dict[int, deploy.Phase] = {
    pb.DEPLOY_PHASE_SENDING: "sending",
    pb.DEPLOY_PHASE_COPYING: "copying",
    pb.DEPLOY_PHASE_VERIFYING: "verifying",
    pb.DEPLOY_PHASE_TRYING: "trying",
    pb.DEPLOY_PHASE_CONFIRMING: "confirming",
}
_PHASE_NUMBERS: dict[deploy.Phase, int] = {name: number for number, name in _PHASES.items()}
_OUTCOMES: dict[int, deploy.Outcome] = {
    pb.DEPLOY_OUTCOME_STAGED: "staged",
    pb.DEPLOY_OUTCOME_WAITING: "waiting",
    pb.DEPLOY_OUTCOME_TRIAL: "trial",
    pb.DEPLOY_OUTCOME_ACTIVE: "active",
}
_OUTCOME_NUMBERS = {name: number for number, name in _OUTCOMES.items()}
_SECONDS_MAX = 86400.0


def device_to_pb(device: Device) -> Any:
    """Device -> Device."""
    return pb.Device(**asdict(device))


def device_from_pb(message: Any) -> Device:
    """Device -> Device, not checked."""
    return Device(**{f.name: getattr(message, f.name) for f in fields(Device)})


def deployment_from_pb(message: Any) -> Deployment:
    """DeployPlanRequest -> Deployment, checked; BAD_REQUEST with every field that is wrong."""
    found = []
    if len(message.signature) not in (0, SIGNATURE_LEN):
        found.append(Violation("signature", f"has {len(message.signature)} bytes, not the {SIGNATURE_LEN} of a record"))
    if message.goal not in _GOALS:
        found.append(Violation("goal", f"{message.goal} is not a value of DeployGoal"))
    for name in ("timeout_seconds", "wait_seconds"):
        if not 0.0 <= getattr(message, name) <= _SECONDS_MAX:
            found.append(Violation(name, f"{getattr(message, name)} is outside 0 .. {_SECONDS_MAX:g}"))
    if found:
        raise PlannerError(Code.BAD_REQUEST, "the request is not valid", violations=found)
    return Deployment(
        plan_sha256=digest_from_pb(message.plan_sha256, "plan_sha256"),
        device=message.device,
        signature=message.signature,
        goal=_GOALS[message.goal],
        no_delta=message.no_delta,
        timeout_seconds=message.timeout_seconds or None,
        wait_seconds=message.wait_seconds or None,
    )


def deployment_to_pb(deployment: Deployment) -> Any:
    """Deployment -> DeployPlanRequest."""
    return pb.DeployPlanRequest(
        plan_sha256=bytes.fromhex(deployment.plan_sha256),
        signature=deployment.signature,
        device=deployment.device,
        goal=_GOAL_NUMBERS[deployment.goal],
        no_delta=deployment.no_delta,
        timeout_seconds=deployment.timeout_seconds or 0.0,
        wait_seconds=deployment.wait_seconds or 0.0,
    )


def deploy_progress_to_pb(progress: deploy.Progress) -> Any:
    """Progress -> DeployProgress."""
    return pb.DeployProgress(
        phase=_PHASE_NUMBERS[progress.phase],
        done_bytes=progress.done,
        total_bytes=progress.total,
        sent_bytes=progress.sent,
    )


def deploy_progress_from_pb(message: Any) -> deploy.Progress:
    """DeployProgress -> Progress; a phase that is not known reads as sending."""
    return deploy.Progress(
        phase=_PHASES.get(message.phase, "sending"),
        done=message.done_bytes,
        total=message.total_bytes,
        sent=message.sent_bytes,
    )


def deployed_to_pb(done: deploy.Deployed) -> Any:
    """Deployed -> DeployResult."""
    return pb.DeployResult(
        outcome=_OUTCOME_NUMBERS[done.outcome],
        address=done.address,
        slot=done.slot or "",
        digest=bytes.fromhex(done.digest),
        plan_version=done.plan_version,
        total_bytes=done.total,
        sent_bytes=done.sent,
        resumed_offset=done.resumed,
        sessions=done.sessions,
        tries=done.tries,
        seconds=done.seconds,
    )


def deployed_from_pb(message: Any) -> deploy.Deployed:
    """DeployResult -> Deployed."""
    if message.outcome not in _OUTCOMES:
        raise PlannerError(Code.INTERNAL, f"the daemon told of the outcome {message.outcome}, which is none")
    return deploy.Deployed(
        address=message.address,
        outcome=_OUTCOMES[message.outcome],
        slot=message.slot or None,
        digest=message.digest.hex(),
        plan_version=message.plan_version,
        total=message.total_bytes,
        sent=message.sent_bytes,
        resumed=message.resumed_offset,
        sessions=message.sessions,
        tries=message.tries,
        seconds=message.seconds,
    )
