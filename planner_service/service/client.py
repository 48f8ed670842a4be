# SPDX-License-Identifier: Apache-2.0
"""A client of weft.planner.v1 in the planner's own terms: the same requests, results and errors as ``api``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from planner_service import api, targets
from planner_service.devices import Deployment, Device
from planner_service.errors import Code, PlannerError
from planner_service.proto import planner_pb2 as pb
from planner_service.proto import planner_pb2_grpc
from planner_service.service import convert, edge
from planner_service.store import digest_of
from planner_service.transport.deploy import Deployed, OnProgress

#: Seconds for calls that do not plan or upload.
_SECONDS = 30.0


class Client:
    """A connection to a daemon; a context manager. Every failed call raises PlannerError, UNAVAILABLE where there is no
    daemon."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", 16 << 20)])
        self._stub = planner_pb2_grpc.PlannerServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()

    def healthy(self) -> bool:
        """Whether the daemon says that it can make plans."""
        with _errors(self._server):
            answer = health_pb2_grpc.HealthStub(self._channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def upload(self, data: bytes, name: str) -> str:
        """Bring a model to the daemon, as far as it lacks it, and return its digest."""
        digest = digest_of(data)
        with _errors(self._server):
            there = self._stub.GetModel(pb.GetModelRequest(sha256=bytes.fromhex(digest)), timeout=_SECONDS)
            if there.state != pb.MODEL_STATE_PRESENT:
                limits = self._stub.ListTargets(pb.ListTargetsRequest(), timeout=_SECONDS).limits
                offset = there.received_bytes if there.received_bytes <= len(data) else 0
                self._stub.UploadModel(_parts(data, name, digest, offset, limits.chunk_bytes))
        return digest

    def create_plans(
        self, data: bytes, name: str, request: api.PlanRequest, *, progress: api.Progress | None = None
    ) -> tuple[api.Planned, ...]:
        """As ``api.create_plans``, on the daemon. Leaving by an exception cancels the planning."""
        digest = self.upload(data, name)
        with _errors(self._server):
            call = self._stub.CreatePlan(convert.request_to_pb(request, digest))
            try:
                for event in call:
                    if event.WhichOneof("event") == "result":
                        return tuple(convert.plan_from_pb(p, self._bytes(p.sha256)[1]) for p in event.result.plans)
                    if progress:
                        progress(event.progress.fraction, event.progress.message)
            finally:
                call.cancel()
        raise PlannerError(Code.INTERNAL, "the daemon ended the call without a result")

    def fetch(self, digest: str) -> api.Planned:
        """A stored plan; its figures are those of the request that last led to these bytes."""
        return convert.plan_from_pb(*self._bytes(bytes.fromhex(digest)))

    def _bytes(self, digest: bytes) -> tuple[Any, bytes]:
        """A plan's header and bytes; INTERNAL if they are not what was asked for."""
        header, chunks = None, []
        with _errors(self._server):
            for part in self._stub.FetchPlan(pb.FetchPlanRequest(sha256=digest), timeout=_SECONDS):
                if part.WhichOneof("part") == "header":
                    header = part.header
                else:
                    chunks.append(part.chunk)
        data = b"".join(chunks)
        if header is None or digest_of(data) != digest.hex():
            raise PlannerError(Code.INTERNAL, f"the daemon sent {len(data)} bytes that are not plan {digest.hex()}")
        return header, data

    def explain(self, digest: str) -> Any:
        """The report on a stored plan."""
        with _errors(self._server):
            answer = self._stub.ExplainPlan(pb.ExplainPlanRequest(sha256=bytes.fromhex(digest)), timeout=_SECONDS)
            return convert.report_from_pb(answer.report)

    def targets(self) -> tuple[targets.Target, ...]:
        """The boards that the daemon knows."""
        with _errors(self._server):
            answer = self._stub.ListTargets(pb.ListTargetsRequest(), timeout=_SECONDS)
            return tuple(convert.target_from_pb(target) for target in answer.targets)

    def operators(self) -> tuple[api.Operator, ...]:
        """The operators that the daemon imports."""
        with _errors(self._server):
            answer = self._stub.ListOperators(pb.ListOperatorsRequest(), timeout=_SECONDS)
            return tuple(convert.operator_from_pb(operator) for operator in answer.operators)

    def put_device(self, device: Device, *, replace: bool = False) -> None:
        """Register a device."""
        with _errors(self._server):
            self._stub.PutDevice(
                pb.PutDeviceRequest(device=convert.device_to_pb(device), replace=replace), timeout=_SECONDS
            )

    def device(self, name: str) -> Device:
        """A registered device."""
        with _errors(self._server):
            return convert.device_from_pb(self._stub.GetDevice(pb.GetDeviceRequest(name=name), timeout=_SECONDS).device)

    def devices(self) -> tuple[Device, ...]:
        """All registered devices by name."""
        with _errors(self._server):
            answer = self._stub.ListDevices(pb.ListDevicesRequest(), timeout=_SECONDS)
            return tuple(convert.device_from_pb(device) for device in answer.devices)

    def remove_device(self, name: str) -> None:
        """Forget a device."""
        with _errors(self._server):
            self._stub.RemoveDevice(pb.RemoveDeviceRequest(name=name), timeout=_SECONDS)

    def deploy(self, deployment: Deployment, *, progress: OnProgress | None = None) -> Deployed:
        """Let the daemon bring a plan to a device. Leaving by an exception stops it."""
        with _errors(self._server):
            call = self._stub.DeployPlan(convert.deployment_to_pb(deployment))
            try:
                for event in call:
                    if event.WhichOneof("event") == "result":
                        return convert.deployed_from_pb(event.result)
                    if progress:
                        progress(convert.deploy_progress_from_pb(event.progress))
            finally:
                call.cancel()
        raise PlannerError(Code.INTERNAL, "the daemon ended the call without a result")


def _parts(data: bytes, name: str, digest: str, offset: int, chunk_bytes: int) -> Iterator[Any]:
    yield pb.UploadModelRequest(
        header=pb.UploadModelHeader(
            sha256=bytes.fromhex(digest), total_bytes=len(data), name=name[-api.MAX_NAME :], offset=offset
        )
    )
    for begin in range(offset, len(data), chunk_bytes):
        yield pb.UploadModelRequest(chunk=data[begin : begin + chunk_bytes])


@contextlib.contextmanager
def _errors(server: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise edge.from_rpc(error, server) from error
