# SPDX-License-Identifier: Apache-2.0
"""The daemon: a real one on a free port, real calls, real models."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from daemon import MODELS, Daemon, chain, slow_model
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from planner_service import api, targets
from planner_service.engine import Engine
from planner_service.errors import CATALOGUE, Code, PlannerError
from planner_service.proto import planner_pb2 as pb
from planner_service.proto import planner_pb2_grpc
from planner_service.service import edge
from planner_service.service.client import Client
from planner_service.service.daemon import SERVICE
from planner_service.service.pool import CANCEL_SECONDS
from planner_service.service.servicer import CHUNK_BYTES
from planner_service.store import Limits, Store, digest_of

DIGITS = (MODELS / "digits_a.onnx").read_bytes()
DIGEST = hashlib.sha256(DIGITS).digest()
SLOW = slow_model()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon"), "--max-model", "1MiB") as running:
        yield running.ready()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address) as connected:
        yield connected


def stub_of(daemon: Daemon) -> Any:
    return planner_pb2_grpc.PlannerServiceStub(grpc.insecure_channel(daemon.address))


@pytest.fixture(scope="module")
def stub(daemon: Daemon) -> Any:
    return stub_of(daemon)


@pytest.fixture(scope="module")
def plan(daemon: Daemon) -> api.Planned:
    """A stored plan of the digits model."""
    with Client(daemon.address) as client:
        (planned,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest(target="nrf52840dk", names=True))
    return planned


def parts(data: bytes, *, total: int | None = None, digest: bytes | None = None, **header: Any) -> Iterator[Any]:
    """An upload; ``total`` and ``digest`` are what it claims."""
    fields = {"name": "model", **header}
    yield pb.UploadModelRequest(
        header=pb.UploadModelHeader(
            sha256=hashlib.sha256(data).digest() if digest is None else digest,
            total_bytes=len(data) if total is None else total,
            **fields,
        )
    )
    for begin in range(header.get("offset", 0), len(data), 4096):
        yield pb.UploadModelRequest(chunk=data[begin : begin + 4096])


# ---------------------------------------------------------------- the interface


def test_messages_and_enums_follow_the_rules() -> None:
    service = pb.DESCRIPTOR.services_by_name["PlannerService"]
    used = []
    for method in service.methods:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"
        used += [method.input_type.name, method.output_type.name]
    assert len(set(used)) == len(used)
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in name).lstrip("_")
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_status_and_survives_the_wire(code: Code) -> None:
    error = PlannerError(code, "what", layer="where", hint="how")
    status = edge.to_status(error)
    assert status.code == getattr(grpc.StatusCode, CATALOGUE[code].grpc_status).value[0]

    class Failed:
        def trailing_metadata(self) -> Any:
            return (("grpc-status-details-bin", status.SerializeToString()),)

    back = edge.from_rpc(Failed())
    assert (back.code, back.message, back.layer, back.hint) == (code, "what", "where", "how")


# ---------------------------------------------------------------- health


def health(address: str, service: str) -> Any:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


@pytest.mark.parametrize("service", ["", SERVICE])
def test_healthy(daemon: Daemon, service: str) -> None:
    assert health(daemon.address, service) == health_pb2.HealthCheckResponse.SERVING


def test_not_serving_without_an_engine(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, environment={"WEFT_ENGINE": str(tmp_path / "none.so")}) as lame,
        Client(lame.address) as client,
    ):
        lame.wait_for_log("plans cannot be made")
        assert health(lame.address, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(PlannerError) as caught:
            client.create_plans(DIGITS, "digits", api.PlanRequest())
        assert caught.value.code is Code.UNAVAILABLE
        assert "make engine" in caught.value.hint


def test_not_serving_while_the_store_fails(tmp_path: Path) -> None:
    with Daemon(tmp_path) as running:
        running.ready()
        (running.store / "tmp").rmdir()
        running.wait_for_log("cannot be used")
        assert health(running.address, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        (running.store / "tmp").mkdir()
        running.ready()


def test_where_the_store_is_does_not_concern_clients(tmp_path: Path) -> None:
    with Daemon(tmp_path) as running, Client(running.address) as client:
        running.ready()
        shutil.rmtree(running.store / "partial")
        with pytest.raises(PlannerError) as caught:
            client.upload(DIGITS, "digits_a")
        assert caught.value.code is Code.UNAVAILABLE
        assert "the daemon's store cannot be used" in caught.value.message
        assert str(running.store) not in str(caught.value)


# ---------------------------------------------------------------- models


def test_upload_and_what_is_known_of_a_model(client: Client, stub: Any) -> None:
    assert client.upload(DIGITS, "digits_a") == DIGEST.hex()
    model = stub.GetModel(pb.GetModelRequest(sha256=DIGEST)).model
    expected = api.describe_model(DIGITS, "digits_a")
    assert (model.name, model.total_bytes, model.source) == ("digits_a", len(DIGITS), "onnx")
    assert (model.operators, model.macs, model.parameter_bytes) == (
        expected.operators,
        expected.macs,
        expected.parameter_bytes,
    )
    assert [(i.height, i.width, i.channels, i.dtype) for i in model.inputs] == [(16, 16, 1, "float32")]
    assert model.outputs[0].channels == 10


def test_upload_of_a_known_model_needs_no_chunk(client: Client, stub: Any) -> None:
    client.upload(DIGITS, "digits_a")
    first = next(parts(DIGITS))
    assert stub.UploadModel(iter([first])).already_present


def test_upload_goes_on_where_it_ended(stub: Any) -> None:
    data = chain(3, channels=16)
    digest = hashlib.sha256(data).digest()
    with pytest.raises(grpc.RpcError):
        stub.UploadModel(itertools.islice(parts(data), 2))
    there = stub.GetModel(pb.GetModelRequest(sha256=digest))
    assert (there.state, there.received_bytes) == (pb.MODEL_STATE_PARTIAL, 4096)
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadModel(parts(data, offset=1))
    assert "stands at" in str(caught.value.details())
    assert not stub.UploadModel(parts(data, offset=there.received_bytes)).already_present
    assert stub.GetModel(pb.GetModelRequest(sha256=digest)).state == pb.MODEL_STATE_PRESENT


def test_uploads_of_the_same_model_at_once(daemon: Daemon) -> None:
    data = chain(4)

    def upload(_: int) -> str:
        with Client(daemon.address) as client:
            return client.upload(data, "same")

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(upload, range(6))) == {digest_of(data)}


def test_models_are_listed_in_pages(client: Client, stub: Any) -> None:
    for layers in (1, 2):
        client.upload(chain(layers), f"chain{layers}")
    names, token = [], ""
    while True:
        page = stub.ListModels(pb.ListModelsRequest(page_size=1, page_token=token))
        names += [m.name for m in page.models]
        token = page.next_page_token
        if not token:
            break
    assert {"chain1", "chain2"} <= set(names)
    assert len(stub.ListModels(pb.ListModelsRequest()).models) == len(names)


# ---------------------------------------------------------------- bad input

KNOWN = pb.CreatePlanRequest(model_sha256=DIGEST, target="native")


def bad_plan_request(**changes: Any) -> Any:
    request = pb.CreatePlanRequest()
    request.CopyFrom(KNOWN)
    request.MergeFrom(pb.CreatePlanRequest(**changes))
    return request


def spoiled(**changes: Any) -> bytes:
    """A small ONNX model with something wrong: the input's ``height``, the weights' ``dims`` or ``location``, or the
    ``first`` layer's input."""
    model = onnx.load_from_string(chain(2))
    (weights,) = [t for t in model.graph.initializer if t.name == "w0"]
    if "height" in changes:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = changes["height"]
    if "dims" in changes:
        weights.ClearField("dims")
        weights.dims.extend(changes["dims"])
    if "location" in changes:
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=changes["location"])
    if "first" in changes:
        model.graph.node[0].input[0] = changes["first"]
    if "scale" in changes:
        (scale,) = [t for t in model.graph.initializer if t.name == "s"]
        scale.raw_data = np.float32(changes["scale"]).tobytes()
    return bytes(model.SerializeToString())


GARBAGE = b"This is no model at all." * 40
TOO_MANY = b"".join(bytes([i % 251]) for i in range(4096)) * 300

BAD_UPLOADS: dict[str, tuple[list[Any], Code, str]] = {
    "nothing": ([], Code.BAD_REQUEST, "header"),
    "no header": ([pb.UploadModelRequest(chunk=b"abc")], Code.BAD_REQUEST, "header"),
    "neither": ([pb.UploadModelRequest()], Code.BAD_REQUEST, "header"),
    "empty": ([*parts(b"")], Code.BAD_MODEL, "empty"),
    "not a model": ([*parts(GARBAGE)], Code.BAD_MODEL, "neither"),
    "truncated onnx": ([*parts(DIGITS[:1000])], Code.BAD_MODEL, "truncated"),
    "truncated tflite": ([*parts(b"\x1c\0\0\0TFL3" + bytes(50))], Code.BAD_MODEL, ""),
    "huge claim": ([*parts(b"abc", total=2 << 30)], Code.TOO_LARGE, "limit"),
    "over the limit": ([*parts(TOO_MANY)], Code.TOO_LARGE, "limit"),
    "less than claimed": ([*parts(DIGITS[:5000], total=len(DIGITS) + 1)], Code.BAD_REQUEST, "ended after"),
    "more than claimed": ([*parts(GARBAGE, total=10)], Code.BAD_REQUEST, "goes on"),
    "one chunk too many": (
        [*parts(GARBAGE + b"1"), pb.UploadModelRequest(chunk=b"x")],
        Code.BAD_REQUEST,
        "goes on",
    ),
    "other bytes": ([*parts(GARBAGE, digest=hashlib.sha256(b"x").digest())], Code.BAD_REQUEST, "SHA-256"),
    "short digest": ([*parts(GARBAGE, digest=b"abc")], Code.BAD_REQUEST, "request"),
    "no name": ([*parts(GARBAGE, name="")], Code.BAD_REQUEST, "header"),
    "a path": ([*parts(GARBAGE, name="../../etc/passwd")], Code.BAD_REQUEST, "header"),
    "a long name": ([*parts(GARBAGE, name="n" * 129)], Code.BAD_REQUEST, "header"),
    "two headers": ([*parts(b"abc"), next(parts(b"abc"))], Code.BAD_REQUEST, "goes on"),
    "empty chunk": ([next(parts(GARBAGE + b"2")), pb.UploadModelRequest(chunk=b"")], Code.BAD_REQUEST, "chunks"),
    "large chunk": (
        [next(parts(TOO_MANY[: 2 * CHUNK_BYTES])), pb.UploadModelRequest(chunk=TOO_MANY[: CHUNK_BYTES + 1])],
        Code.BAD_REQUEST,
        "chunks",
    ),
    "offset behind the end": ([*parts(GARBAGE, offset=10**6)], Code.BAD_REQUEST, "header"),
    "2 GB of weights in 1 KB": ([*parts(spoiled(dims=[1 << 20, 1 << 11]))], Code.BAD_MODEL, ""),
    "weights in another file": ([*parts(spoiled(location="/etc/passwd"))], Code.UNSUPPORTED, ""),
    "a cycle": ([*parts(spoiled(first="c1"))], Code.BAD_MODEL, ""),
    "an input that nobody makes": ([*parts(spoiled(first="ghost"))], Code.BAD_MODEL, ""),
    "dynamic shape": ([*parts(spoiled(height="h"))], Code.UNSUPPORTED, ""),
    "scale NaN": ([*parts(spoiled(scale="nan"))], Code.UNSUPPORTED, ""),
    "scale zero": ([*parts(spoiled(scale=0))], Code.UNSUPPORTED, ""),
    "unsupported operators": ([*parts(chain(3, extra="Sin"))], Code.UNSUPPORTED, ""),
    "float model": ([*parts(chain(2, is_float=True))], Code.FLOAT_MODEL, ""),
}

BAD_PLANS: dict[str, tuple[Any, Code, str]] = {
    "unknown model": (bad_plan_request(model_sha256=bytes(32)), Code.NOT_FOUND, ""),
    "no digest": (pb.CreatePlanRequest(target="native"), Code.BAD_REQUEST, "model_sha256"),
    "unknown target": (bad_plan_request(target="toaster"), Code.NOT_FOUND, ""),
    "no target": (pb.CreatePlanRequest(model_sha256=DIGEST), Code.NOT_FOUND, ""),
    "F below 1": (bad_plan_request(least_ram=pb.LeastRam(f_max=0.99)), Code.BAD_REQUEST, "f_max"),
    "F zero": (bad_plan_request(least_ram=pb.LeastRam(f_max=0)), Code.BAD_REQUEST, "f_max"),
    "F NaN": (bad_plan_request(least_ram=pb.LeastRam(f_max=float("nan"))), Code.BAD_REQUEST, "f_max"),
    "F infinite": (bad_plan_request(least_ram=pb.LeastRam(f_max=float("inf"))), Code.BAD_REQUEST, "f_max"),
    "F negative": (bad_plan_request(least_ram=pb.LeastRam(f_max=-1)), Code.BAD_REQUEST, "f_max"),
    "call overhead below 1": (
        bad_plan_request(least_ram=pb.LeastRam(call_overhead=0.5)),
        Code.BAD_REQUEST,
        "call_overhead",
    ),
    "call overhead NaN": (
        bad_plan_request(least_ram=pb.LeastRam(call_overhead=float("nan"))),
        Code.BAD_REQUEST,
        "call_overhead",
    ),
    "call overhead on a host": (bad_plan_request(least_ram=pb.LeastRam(call_overhead=1.1)), Code.BAD_REQUEST, ""),
    "no RAM": (bad_plan_request(least_compute=pb.LeastCompute(ram_max=0)), Code.BAD_REQUEST, "ram_max"),
    "2^64 - 1 RAM": (bad_plan_request(least_compute=pb.LeastCompute(ram_max=2**64 - 1)), Code.BAD_REQUEST, "ram_max"),
    "input mode": (bad_plan_request(input_mode=77), Code.BAD_REQUEST, "input_mode"),
    "objective": (bad_plan_request(objective=9), Code.BAD_REQUEST, "objective"),
    "latency of layers": (
        bad_plan_request(layer_by_layer=pb.LayerByLayer(), objective=pb.OBJECTIVE_LATENCY),
        Code.BAD_REQUEST,
        "objective",
    ),
    "latency of a host": (bad_plan_request(objective=pb.OBJECTIVE_LATENCY), Code.BAD_REQUEST, ""),
    "long line": (bad_plan_request(line="l" * 129), Code.BAD_REQUEST, "line"),
    "vendor id": (bad_plan_request(vendor_id=b"12345"), Code.BAD_REQUEST, "vendor_id"),
    "class id": (bad_plan_request(class_id=bytes(17)), Code.BAD_REQUEST, "class_id"),
    "too little RAM": (bad_plan_request(least_compute=pb.LeastCompute(ram_max=64)), Code.INFEASIBLE, ""),
}

BAD_LOOKUPS: dict[str, tuple[str, Any, Code]] = {
    "fetch unknown": ("FetchPlan", pb.FetchPlanRequest(sha256=bytes(32)), Code.NOT_FOUND),
    "fetch without digest": ("FetchPlan", pb.FetchPlanRequest(), Code.BAD_REQUEST),
    "explain unknown": ("ExplainPlan", pb.ExplainPlanRequest(sha256=bytes(32)), Code.NOT_FOUND),
    "explain a model": ("ExplainPlan", pb.ExplainPlanRequest(sha256=DIGEST), Code.NOT_FOUND),
    "model with a bad digest": ("GetModel", pb.GetModelRequest(sha256=bytes(31)), Code.BAD_REQUEST),
    "page size": ("ListModels", pb.ListModelsRequest(page_size=1001), Code.BAD_REQUEST),
    "page token": ("ListModels", pb.ListModelsRequest(page_token="t" * 65), Code.BAD_REQUEST),
}


def expect(caught: Any, code: Code) -> PlannerError:
    """The failed call has the status of the catalogue and all details; its PlannerError."""
    assert caught.value.code().name == CATALOGUE[code].grpc_status, caught.value
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (info.reason, info.domain) == (code.name, "weft.planner")
    error = edge.from_rpc(caught.value)
    assert error.code is code
    assert "Traceback" not in str(error)
    return error


@pytest.mark.parametrize("case", BAD_UPLOADS)
def test_bad_uploads(stub: Any, case: str) -> None:
    messages, code, words = BAD_UPLOADS[case]
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadModel(iter(messages))
    assert words in expect(caught, code).message


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plan_requests(client: Client, stub: Any, case: str) -> None:
    client.upload(DIGITS, "digits_a")
    request, code, field = BAD_PLANS[case]
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.CreatePlan(request))
    error = expect(caught, code)
    if field:
        assert field in {v.layer for v in error.violations}
        status = rpc_status.from_call(caught.value)
        assert status is not None
        bad = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad) for detail in status.details)
        assert field in {v.field for v in bad.field_violations}
    else:
        assert error.hint


@pytest.mark.parametrize("case", BAD_LOOKUPS)
def test_bad_lookups(stub: Any, case: str) -> None:
    method, request, code = BAD_LOOKUPS[case]
    call = getattr(stub, method)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request)) if method == "FetchPlan" else call(request)
    expect(caught, code)


def test_offset_behind_a_plan(stub: Any, plan: api.Planned) -> None:
    request = pb.FetchPlanRequest(sha256=bytes.fromhex(plan.sha256), offset=len(plan.plan) + 1)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.FetchPlan(request))
    expect(caught, Code.BAD_REQUEST)


def test_all_violations_in_one_answer(client: Client, stub: Any) -> None:
    client.upload(DIGITS, "digits_a")
    request = bad_plan_request(least_ram=pb.LeastRam(f_max=0.5), vendor_id=b"1", class_id=b"2")
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.CreatePlan(request))
    assert {v.layer for v in expect(caught, Code.BAD_REQUEST).violations} == {"f_max", "vendor_id", "class_id"}


def test_more_violations_than_metadata_can_hold(stub: Any) -> None:
    layers = 120
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadModel(parts(chain(layers, extra="Sin")))
    violations = expect(caught, Code.UNSUPPORTED).violations
    assert 5 < len(violations) < layers
    assert f"and {layers - len(violations) + 1} more" in violations[-1].message
    assert all("extra" in v.layer for v in violations[:-1])


def test_a_message_over_the_limit(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadModel(iter([pb.UploadModelRequest(chunk=bytes(4 << 20))]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert edge.from_rpc(caught.value).code is Code.TOO_LARGE


def test_the_daemon_lives_and_kept_nothing_bad(daemon: Daemon, stub: Any) -> None:
    assert health(daemon.address, SERVICE) == health_pb2.HealthCheckResponse.SERVING
    for data in (GARBAGE, DIGITS[:1000], chain(3, extra="Sin")):
        state = stub.GetModel(pb.GetModelRequest(sha256=hashlib.sha256(data).digest())).state
        assert state == pb.MODEL_STATE_ABSENT
    assert "Traceback" not in daemon.log


# ---------------------------------------------------------------- plans


def test_plan_is_what_the_engine_measures(plan: api.Planned) -> None:
    opened = Engine().open(plan.plan)
    assert opened.arena_size == plan.arena_bytes
    assert opened.info["macs"] == plan.macs
    assert opened.info["plan_version"] == plan.plan_version
    assert plan.fit.fits
    assert "native" in plan.fit.targets


def test_daemon_and_process_make_the_same_plan(plan: api.Planned) -> None:
    request = api.PlanRequest(target="nrf52840dk", names=True, plan_version=plan.plan_version)
    (local,) = api.create_plans(DIGITS, "digits_a", request)
    assert local == plan


@pytest.mark.parametrize("mode", ["streamed", "resident", "external"])
def test_input_modes(client: Client, mode: api.InputMode) -> None:
    (planned,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest(input_mode=mode))
    assert planned.input_mode == mode
    assert Engine().open(planned.plan).input_mode(0).name.lower() == mode


def test_constraints(client: Client) -> None:
    def one(**fields: Any) -> api.Planned:
        (planned,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest(**fields))
        return planned

    least = one(kind="p1")
    exact = one(kind="p1", f_max=1.0)
    within = one(kind="p2", ram_max=exact.arena_bytes - 1)
    layers = one(kind="layers")
    assert least.arena_bytes <= within.arena_bytes < exact.arena_bytes < layers.arena_bytes
    assert exact.overhead_factor == layers.overhead_factor == 1.0 < within.overhead_factor <= least.overhead_factor


def test_usual_call_overhead_refuses_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board with room for the least RAM, and none for fewer calls; who asks for these is told what is missing."""

    def plan(**constraint: Any) -> api.Planned:
        request = api.PlanRequest(target="mps3-an547", kind="p1", **constraint)
        return api.create_plans(DIGITS, "digits_a", request)[0]

    least, usual = plan(call_overhead=math.inf), plan()
    assert least.arena_bytes < usual.arena_bytes
    board = replace(targets.load("mps3-an547"), arena_budget=usual.arena_bytes - 4)
    monkeypatch.setattr(targets, "load", lambda _name: board)
    assert plan().arena_bytes == least.arena_bytes
    assert plan().fit.fits
    assert not plan(call_overhead=api.CALL_OVERHEAD).fit.fits


def test_call_overhead_as_bound(client: Client) -> None:
    def arena(**constraint: Any) -> int:
        request = api.PlanRequest(target="mps3-an547", kind="p1", line="calls", plan_version=7, **constraint)
        (remote,) = client.create_plans(DIGITS, "digits_a", request)
        (local,) = api.create_plans(DIGITS, "digits_a", request)
        assert remote == local
        return remote.arena_bytes

    assert arena(call_overhead=math.inf) < arena() == arena(call_overhead=api.CALL_OVERHEAD) < arena(call_overhead=1.05)


def test_latency_as_objective(client: Client) -> None:
    request = api.PlanRequest(target="nrf52840dk", ram_max=8000, objective="latency", plan_version=7, line="fast")
    (remote,) = client.create_plans(DIGITS, "digits_a", request)
    (local,) = api.create_plans(DIGITS, "digits_a", request)
    assert remote == local
    assert remote.predicted_instructions is not None
    (by_macs,) = client.create_plans(DIGITS, "digits_a", replace(request, objective="macs"))
    assert by_macs.predicted_instructions is not None
    assert remote.predicted_instructions < by_macs.predicted_instructions
    (host,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest())
    assert host.predicted_instructions is None


def test_front(client: Client) -> None:
    plans = client.create_plans(DIGITS, "digits_a", api.PlanRequest(kind="front", target="hifive1b"))
    assert len(plans) > 2
    for smaller, larger in itertools.pairwise(plans):
        assert smaller.arena_bytes < larger.arena_bytes
        assert smaller.macs > larger.macs
    assert len({p.plan_version for p in plans}) == 1


def test_a_plan_that_does_not_fit_is_an_answer(client: Client) -> None:
    (planned,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest(kind="layers", target="hifive1b"))
    (shortfall,) = planned.fit.shortfalls
    assert shortfall.resource.value == "arena"
    assert shortfall.missing == planned.arena_bytes - 10240
    assert shortfall.layer
    assert "possible" in shortfall.hint
    assert "nrf52840dk" in planned.fit.targets


def test_the_same_bytes_for_two_targets(client: Client) -> None:
    first, second = (
        client.create_plans(DIGITS, "digits_a", api.PlanRequest(kind="p1", line="two", target=target, plan_version=1))[
            0
        ]
        for target in ("microbit", "rpi_pico")
    )
    assert first.plan == second.plan
    assert (first.target, second.target) == ("microbit", "rpi_pico")
    assert client.fetch(first.sha256) == second


def test_progress_moves(client: Client) -> None:
    seen: list[float] = []
    client.create_plans(DIGITS, "digits_a", api.PlanRequest(kind="front"), progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_versions_of_a_line_rise(client: Client) -> None:
    def version(wanted: int, line: str = "boards") -> int:
        request = api.PlanRequest(kind="layers", line=line, plan_version=wanted)
        return client.create_plans(DIGITS, "digits_a", request)[0].plan_version

    assert [version(0), version(0), version(7), version(7), version(0)] == [1, 2, 7, 7, 8]
    with pytest.raises(PlannerError) as caught:
        version(7)
    assert caught.value.code is Code.BAD_REQUEST
    assert "8" in caught.value.hint
    assert version(0, line="others") == 1


def test_fetch_from_the_middle(stub: Any, plan: api.Planned) -> None:
    request = pb.FetchPlanRequest(sha256=bytes.fromhex(plan.sha256), offset=1000)
    first, *rest = stub.FetchPlan(request)
    assert first.header.plan_bytes == len(plan.plan)
    assert b"".join(part.chunk for part in rest) == plan.plan[1000:]


def test_explain(client: Client, plan: api.Planned) -> None:
    found = client.explain(plan.sha256)
    assert found == api.explain_plan(plan.plan, DIGITS, "digits_a")
    assert found.arena_bytes == plan.arena_bytes
    assert found.peak_layer


def test_targets_and_operators(client: Client, stub: Any) -> None:
    assert client.targets() == api.targets.load_all()
    assert client.operators() == api.operators()
    assert stub.ListTargets(pb.ListTargetsRequest()).limits.model_bytes == 1 << 20


def test_many_clients_at_once(daemon: Daemon) -> None:
    def work(number: int) -> tuple[int, int]:
        with Client(daemon.address) as client:
            data = chain(1 + number % 4)
            (planned,) = client.create_plans(data, "chain", api.PlanRequest(line=f"line{number}"))
            assert digest_of(planned.plan) == planned.sha256
            return number % 4, planned.arena_bytes

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(work, range(12)))
    assert len(set(found)) == 4


# ---------------------------------------------------------------- ends


def start_slow(daemon: Daemon) -> Any:
    """A call that plans for long, running."""
    with Client(daemon.address) as client:
        digest = bytes.fromhex(client.upload(SLOW, "slow"))
    request = pb.CreatePlanRequest(model_sha256=digest, target="native", least_ram=pb.LeastRam(f_max=1))
    call = stub_of(daemon).CreatePlan(request)
    for event in call:
        if event.progress.fraction > 0:
            return call
    raise AssertionError("the slow model was planned at once")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One worker with little memory, no queue."""
    options = ("--workers", "1", "--queue", "0", "--worker-memory", "512MiB")
    with Daemon(tmp_path_factory.mktemp("single"), *options) as running:
        yield running.ready()


def test_full_queue_and_cancellation(single: Daemon) -> None:
    with Client(single.address) as client:
        client.upload(DIGITS, "digits_a")
        call = start_slow(single)
        with pytest.raises(PlannerError) as caught:
            client.create_plans(DIGITS, "digits_a", api.PlanRequest())
        assert caught.value.code is Code.TOO_LARGE
        assert caught.value.hint
        assert client.healthy()

        call.cancel()
        single.wait_for_log("stopped")
        taken = float(single.log.split("stopped ")[1].split("after ")[1].split(" s")[0])
        assert taken < CANCEL_SECONDS + 0.05
        (planned,) = client.create_plans(DIGITS, "digits_a", api.PlanRequest())
        assert planned.arena_bytes


def test_deadline_cancels(single: Daemon) -> None:
    with Client(single.address) as client:
        digest = bytes.fromhex(client.upload(SLOW, "slow"))
    request = pb.CreatePlanRequest(model_sha256=digest, target="native", least_ram=pb.LeastRam(f_max=1))
    before = single.log.count("stopped")
    with pytest.raises(grpc.RpcError) as caught:
        list(stub_of(single).CreatePlan(request, timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until = time.monotonic() + 2
    while single.log.count("stopped") == before:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_sigterm_with_a_plan_in_work(tmp_path: Path) -> None:
    with Daemon(tmp_path) as running:
        call = start_slow(running.ready())
        helpers = family(running.process.pid)
        seen: list[Any] = []

        def listen() -> None:
            try:
                list(call)
            except grpc.RpcError as error:
                seen.append(error)

        listener = threading.Thread(target=listen)
        listener.start()
        begin = time.monotonic()
        assert running.terminate() == 0
        assert time.monotonic() - begin < 5
        listener.join(10)
        assert seen
        assert seen[0].code() is grpc.StatusCode.UNAVAILABLE
        assert "Traceback" not in running.log
        wait_until_gone(helpers)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def family(parent: int) -> list[int]:
    """All processes below ``parent``."""
    return [pid for child in children(parent) for pid in (child, *family(child))]


def wait_until_gone(processes: list[int]) -> None:
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/exe").exists() for pid in processes):
        assert time.monotonic() < until, "processes outlive the daemon"
        time.sleep(0.02)


def test_kill_during_an_upload_leaves_a_clean_store(tmp_path: Path) -> None:
    data = DIGITS
    half = len(data) // 2 // 4096 * 4096
    with Daemon(tmp_path) as running:
        running.ready()
        helpers = family(running.process.pid)
        arrived = threading.Event()

        def slowly() -> Iterator[Any]:
            yield from itertools.islice(parts(data), 1 + half // 4096)
            arrived.set()
            time.sleep(30)

        call = stub_of(running).UploadModel.future(slowly())
        assert arrived.wait(10)
        partial = running.store / "partial" / DIGEST.hex()
        until = time.monotonic() + 10
        while not partial.exists() or partial.stat().st_size < half:
            assert time.monotonic() < until
            time.sleep(0.01)
        (running.store / "tmp" / "torn").write_bytes(b"what a kill in the middle of a write leaves")
        (running.store / "models" / f"{'ab' * 32}.bin").write_bytes(b"bytes whose record was not written")
        running.process.kill()
        running.process.wait()
        call.cancel()
        wait_until_gone(helpers)
    with Daemon(tmp_path) as again:
        again.ready()
        assert not list((again.store / "tmp").iterdir())
        assert not list((again.store / "models").iterdir())
        there = stub_of(again).GetModel(pb.GetModelRequest(sha256=DIGEST))
        assert (there.state, there.received_bytes) == (pb.MODEL_STATE_PARTIAL, half)
        with Client(again.address) as client:
            client.upload(data, "digits_a")
        assert not list((again.store / "partial").iterdir())


def test_a_killed_worker_is_replaced(single: Daemon) -> None:
    """As the kernel does when memory runs out."""
    call = start_slow(single)
    (job,) = [pid for server in children(single.process.pid) for pid in children(server)]
    os.kill(job, 9)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert "memory" in expect(caught, Code.UNAVAILABLE).hint
    with Client(single.address) as client:
        assert client.create_plans(DIGITS, "digits_a", api.PlanRequest())


def test_a_model_that_needs_more_memory_than_there_is(single: Daemon) -> None:
    with Client(single.address) as client:
        with pytest.raises(PlannerError) as caught:
            client.create_plans(chain(1, size=6000), "huge", api.PlanRequest(kind="layers"))
        assert caught.value.code is Code.TOO_LARGE
        assert "memory" in caught.value.message
        assert client.create_plans(DIGITS, "digits_a", api.PlanRequest())


def test_two_daemons_cannot_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(PlannerError) as caught:
        Store(tmp_path)
    assert caught.value.code is Code.UNAVAILABLE
    store.close()
    Store(tmp_path).close()


def test_no_daemon() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(PlannerError) as caught:
        client.targets()
    assert caught.value.code is Code.UNAVAILABLE
    assert "weft serve" in caught.value.hint


# ---------------------------------------------------------------- the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path, Limits(model_bytes=1000, store_bytes=3010))
    yield opened
    opened.close()


def test_store_drops_damaged_entries(store: Store) -> None:
    digest = store.put("plans", b"plan", {"n": 1})
    assert store.read("plans", digest) == b"plan"
    store.path_of("plans", digest).write_bytes(b"flan")
    with pytest.raises(PlannerError) as caught:
        store.read("plans", digest)
    assert caught.value.code is Code.NOT_FOUND
    assert store.record("plans", digest) is None
    store.put("plans", b"plan", {"n": 1})
    assert store.read("plans", digest) == b"plan"


def test_store_is_bounded(store: Store) -> None:
    for n in range(3):
        store.put("models", bytes([n]) * 1000, {})
    for action in (
        lambda: store.put("models", b"x" * 1000, {}),
        lambda: store.append("11" * 32, 0, b"x" * 1001),
    ):
        with pytest.raises(PlannerError) as caught:
            action()
        assert caught.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("digest", ["", "../lock", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_store_takes_digests_only(store: Store, digest: str) -> None:
    for action in (lambda: store.read("models", digest), lambda: store.append(digest, 0, b"")):
        with pytest.raises(PlannerError) as caught:
            action()
        assert caught.value.code is Code.BAD_REQUEST


def test_store_versions_survive_and_never_repeat(tmp_path: Path) -> None:
    claimed = []
    for _ in range(3):
        store = Store(tmp_path)
        with ThreadPoolExecutor(4) as threads:
            claimed += list(threads.map(lambda _, s=store: s.claim_version("line"), range(5)))
        store.close()
    assert sorted(claimed) == list(range(1, 16))
    assert json.loads(next((tmp_path / "lines").iterdir()).read_bytes()) == {"last": 15, "line": "line"}


@pytest.mark.parametrize("version", [2**32, 2**40])
def test_store_versions_end(store: Store, version: int) -> None:
    with pytest.raises(PlannerError) as caught:
        store.claim_version("line", version)
    assert caught.value.code is Code.BAD_REQUEST
