# SPDX-License-Identifier: Apache-2.0
"""The calls of weft.planner.v1.PlannerService: check, look up, hand to the pool, answer."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from planner_service import api, signing, targets
from planner_service.devices import Deployment, Device
from planner_service.errors import Code, PlannerError, Violation
from planner_service.proto import planner_pb2 as pb
from planner_service.service import convert, edge
from planner_service.service.pool import Pool
from planner_service.store import Store, too_large
from planner_service.transport import Settings, connect
from planner_service.transport.deploy import Deployed, Progress, deploy

_log = logging.getLogger("weft.service")

#: Bytes: the largest chunk of an upload, and the chunks that plans are sent in.
CHUNK_BYTES = 256 << 10
FETCH_BYTES = 64 << 10
#: An upload whose next chunk takes longer than this ends; it can be resumed.
IDLE_SECONDS = 30.0


class Servicer:
    """Registered with grpc.aio; ``store`` and ``pool`` outlive it."""

    def __init__(self, store: Store, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._deploying: set[str] = set()
        self._uploads: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    # ------------------------------------------------------------ models

    @edge.unary
    async def UploadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        parts = aiter(request)
        first = await _next(parts)
        if first is None or first.WhichOneof("part") != "header":
            raise PlannerError(Code.BAD_REQUEST, "an upload begins with its header")
        header = first.header
        digest = self._check_header(header)
        # Two clients that upload the same model take turns, and the second finds it there.
        async with self._uploads.setdefault(digest, asyncio.Lock()):
            record = self._store.record("models", digest)
            if record is not None:
                return pb.UploadModelResponse(model=convert.model_to_pb(record), already_present=True)
            have = header.offset
            if have not in (0, self._store.received(digest)):
                raise PlannerError(
                    Code.BAD_REQUEST,
                    f"the upload stands at {self._store.received(digest)}, not {have}",
                    hint="ask GetModel where to go on",
                )
            while have < header.total_bytes and (part := await _next(parts)) is not None:
                have = await asyncio.to_thread(self._append, digest, header, have, part)
            if have < header.total_bytes:
                raise PlannerError(
                    Code.BAD_REQUEST,
                    f"the upload ended after {have} of {header.total_bytes} bytes",
                    hint="resume it at the offset that GetModel gives",
                )
            if await _next(parts) is not None:
                raise PlannerError(Code.BAD_REQUEST, f"the upload goes on after its {header.total_bytes} bytes")
            record = await self._accept(digest, header.name)
        _log.info("model %s (%s, %d bytes) stored", digest[:12], header.name, header.total_bytes)
        return pb.UploadModelResponse(model=convert.model_to_pb(record))

    def _check_header(self, header: Any) -> str:
        digest = convert.digest_from_pb(header.sha256, "sha256")
        found = []
        if not 1 <= len(header.name) <= api.MAX_NAME or "/" in header.name or not header.name.isprintable():
            found.append(Violation("name", f"is not 1 to {api.MAX_NAME} printable characters without '/'"))
        if header.offset > header.total_bytes:
            found.append(Violation("offset", f"{header.offset} lies behind total_bytes"))
        if found:
            raise PlannerError(Code.BAD_REQUEST, "the upload's header is not valid", violations=found)
        if header.total_bytes == 0:
            raise PlannerError(Code.BAD_MODEL, "the model is empty", hint="give a .tflite or .onnx file")
        if header.total_bytes > self._store.limits.model_bytes:
            raise too_large(header.total_bytes, self._store.limits.model_bytes)
        return digest

    def _append(self, digest: str, header: Any, have: int, part: Any) -> int:
        if part.WhichOneof("part") != "chunk" or not 1 <= len(part.chunk) <= CHUNK_BYTES:
            raise PlannerError(Code.BAD_REQUEST, f"after the header come chunks of 1 to {CHUNK_BYTES} bytes")
        if have + len(part.chunk) > header.total_bytes:
            raise PlannerError(Code.BAD_REQUEST, f"the upload goes on after its {header.total_bytes} bytes")
        return self._store.append(digest, have, part.chunk)

    async def _accept(self, digest: str, name: str) -> dict[str, Any]:
        """Import a complete upload and store it; what cannot be imported is not kept."""
        data, path = await asyncio.to_thread(self._store.uploaded, digest)
        try:
            info: api.ModelInfo = await self._pool.run("describe", model=path, name=name)
        except PlannerError as error:
            if error.code in (Code.BAD_MODEL, Code.UNSUPPORTED, Code.FLOAT_MODEL):
                self._store.discard(digest)
            raise
        record = convert.model_record(info)
        await asyncio.to_thread(self._store.put, "models", data, record)
        self._store.discard(digest)
        return record

    @edge.unary
    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        digest = convert.digest_from_pb(request.sha256, "sha256")
        record = self._store.record("models", digest)
        if record is not None:
            return pb.GetModelResponse(
                state=pb.MODEL_STATE_PRESENT, received_bytes=record["nbytes"], model=convert.model_to_pb(record)
            )
        received = self._store.received(digest)
        state = pb.MODEL_STATE_PARTIAL if received else pb.MODEL_STATE_ABSENT
        return pb.GetModelResponse(state=state, received_bytes=received)

    @edge.unary
    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.page_size > 1000 or len(request.page_token) > 64:
            raise PlannerError(
                Code.BAD_REQUEST,
                "the request is not valid",
                violations=[Violation("page_size", "is over 1000, or page_token is none that was given out")],
            )
        size = request.page_size or 100
        found = await asyncio.to_thread(self._store.list, "models", after=request.page_token, limit=size)
        return pb.ListModelsResponse(
            models=[convert.model_to_pb(record) for _, record in found],
            next_page_token=found[-1][0] if len(found) == size else "",
        )

    # ------------------------------------------------------------ plans

    @edge.streaming
    async def CreatePlan(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        digest = convert.digest_from_pb(request.model_sha256, "model_sha256")
        wanted = convert.request_from_pb(request)
        await asyncio.to_thread(self._store.read, "models", digest)
        record = self._store.record("models", digest)
        assert record is not None
        name = record["name"]
        version = await asyncio.to_thread(self._store.claim_version, wanted.line or name, wanted.plan_version)
        news = asyncio.Event()
        latest = pb.Progress(message="waiting for a worker")

        def on_progress(fraction: float, message: str) -> None:
            latest.fraction = max(latest.fraction, min(fraction, 1.0))
            latest.message = message[:256]
            news.set()

        job = asyncio.ensure_future(
            self._pool.run(
                "plan",
                model=self._store.path_of("models", digest),
                name=name,
                request=replace(wanted, plan_version=version),
                on_progress=on_progress,
            )
        )
        job.add_done_callback(lambda _: news.set())
        try:
            while not job.done():
                yield pb.CreatePlanResponse(progress=latest)
                await news.wait()
                news.clear()
            plans: tuple[api.Planned, ...] = await job
        finally:
            job.cancel()
        result = pb.PlanResult()
        for plan in plans:
            entry = plan.to_json()
            await asyncio.to_thread(self._store.put, "plans", plan.plan, entry)
            result.plans.append(convert.plan_to_pb(entry))
            _log.info("plan %s of %s: arena %d, %d bytes", plan.sha256[:12], name, plan.arena_bytes, len(plan.plan))
        yield pb.CreatePlanResponse(result=result)

    @edge.streaming
    async def FetchPlan(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        digest = convert.digest_from_pb(request.sha256, "sha256")
        data = await asyncio.to_thread(self._store.read, "plans", digest)
        record = self._store.record("plans", digest)
        assert record is not None
        if request.offset > len(data):
            raise PlannerError(
                Code.BAD_REQUEST,
                "the request is not valid",
                violations=[Violation("offset", f"{request.offset} lies behind the plan's {len(data)} bytes")],
            )
        yield pb.FetchPlanResponse(header=convert.plan_to_pb(record))
        for begin in range(request.offset, len(data), FETCH_BYTES):
            yield pb.FetchPlanResponse(chunk=data[begin : begin + FETCH_BYTES])

    @edge.unary
    async def ExplainPlan(self, request: Any, context: Any) -> Any:  # noqa: N802
        digest = convert.digest_from_pb(request.sha256, "sha256")
        await asyncio.to_thread(self._store.read, "plans", digest)
        record = self._store.record("plans", digest)
        assert record is not None
        model = record["model"]
        has_model = self._store.record("models", model["sha256"]) is not None
        report = await self._pool.run(
            "explain",
            plan=self._store.path_of("plans", digest),
            model=self._store.path_of("models", model["sha256"]) if has_model else None,
            name=model["name"],
        )
        return pb.ExplainPlanResponse(plan=convert.plan_to_pb(record), report=convert.report_to_pb(report))

    # ------------------------------------------------------------ devices

    @edge.unary
    async def PutDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        device = convert.device_from_pb(request.device)
        device.check()
        await asyncio.to_thread(self._store.put_device, device, replace=request.replace)
        _log.info("device %s at %s", device.name, device.address)
        return pb.PutDeviceResponse(device=convert.device_to_pb(device))

    @edge.unary
    async def GetDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        device = await asyncio.to_thread(self._store.device, request.name)
        return pb.GetDeviceResponse(device=convert.device_to_pb(device))

    @edge.unary
    async def ListDevices(self, request: Any, context: Any) -> Any:  # noqa: N802
        devices = await asyncio.to_thread(self._store.devices)
        return pb.ListDevicesResponse(devices=[convert.device_to_pb(device) for device in devices])

    @edge.unary
    async def RemoveDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.to_thread(self._store.remove_device, request.name)
        return pb.RemoveDeviceResponse()

    @edge.streaming
    async def DeployPlan(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        wanted = convert.deployment_from_pb(request)
        device = await asyncio.to_thread(self._store.device, wanted.device)
        plan = await asyncio.to_thread(self._store.read, "plans", wanted.plan_sha256)
        if wanted.signature:
            plan = signing.with_signature(plan, wanted.signature)
        if device.public_key:
            signing.verify(plan, device.public_key)
        if device.name in self._deploying:
            raise PlannerError(Code.BUSY, f"{device.name} is being updated already", hint="wait for it to end")
        news = asyncio.Event()
        latest = Progress(phase="sending", done=0, total=len(plan), sent=0)

        def on_progress(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            news.set()

        self._deploying.add(device.name)
        job = asyncio.ensure_future(_deploy(device, plan, wanted, on_progress))
        job.add_done_callback(lambda _: news.set())
        try:
            while not job.done():
                yield pb.DeployPlanResponse(progress=convert.deploy_progress_to_pb(latest))
                await news.wait()
                news.clear()
            done = await job
        finally:
            job.cancel()
            self._deploying.discard(device.name)
        _log.info("plan %s on %s: %s", done.digest[:12], device.name, done.outcome)
        yield pb.DeployPlanResponse(result=convert.deployed_to_pb(done))

    # ------------------------------------------------------------ what there is

    @edge.unary
    async def ListTargets(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ListTargetsResponse(
            targets=[convert.target_to_pb(target) for target in targets.load_all()],
            limits=pb.Limits(
                model_bytes=self._store.limits.model_bytes,
                chunk_bytes=CHUNK_BYTES,
                workers=self._pool.workers,
                queue=self._pool.queue,
            ),
        )

    @edge.unary
    async def ListOperators(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = await asyncio.to_thread(api.operators)
        return pb.ListOperatorsResponse(operators=[convert.operator_to_pb(operator) for operator in found])


async def _deploy(device: Device, plan: bytes, wanted: Deployment, on_progress: Callable[[Progress], None]) -> Deployed:
    settings = Settings() if wanted.timeout_seconds is None else Settings(patience_seconds=wanted.timeout_seconds)
    async with await connect(device.address, settings) as transport:
        return await deploy(
            transport,
            plan,
            goal=wanted.goal,
            copy=not wanted.no_delta,
            wait_seconds=settings.patience_seconds if wanted.wait_seconds is None else wanted.wait_seconds,
            progress=on_progress,
        )


async def _next(parts: AsyncIterator[Any]) -> Any:
    """The next message of an upload, None at its end."""
    try:
        return await asyncio.wait_for(anext(parts), IDLE_SECONDS)
    except StopAsyncIteration:
        return None
    except TimeoutError as error:
        raise PlannerError(
            Code.UNAVAILABLE, f"nothing came for {IDLE_SECONDS:.0f} seconds", hint="resume where GetModel says"
        ) from error
