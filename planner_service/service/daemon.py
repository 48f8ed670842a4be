# SPDX-License-Identifier: Apache-2.0
"""``weft serve``: start, tell the truth about health, and end cleanly."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from planner_service.errors import Code, PlannerError
from planner_service.proto import planner_pb2, planner_pb2_grpc
from planner_service.service.pool import Pool
from planner_service.service.servicer import CHUNK_BYTES, Servicer
from planner_service.store import Limits, Store

_log = logging.getLogger("weft.serve")

SERVICE = planner_pb2.DESCRIPTOR.services_by_name["PlannerService"].full_name
#: Seconds between looks at store and workers, and that running calls get to end in.
_CHECK_SECONDS = 2.0
_GRACE_SECONDS = 2.0
#: Calls at once; each is a coroutine, planning is limited by the pool.
_MAX_CALLS = 256
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``listen``: host:port, port 0 for a free one. ``memory_bytes``: of one planning process, 0 for no limit."""

    listen: str
    store: Path
    workers: int
    queue: int
    memory_bytes: int
    limits: Limits


def serve(settings: Settings, on_bound: Callable[[str, int], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``on_bound`` gets host and port once clients can connect (health says when calls
    will succeed). PlannerError(UNAVAILABLE) if the address or the store cannot be had."""
    asyncio.run(_serve(settings, on_bound))


async def _serve(settings: Settings, on_bound: Callable[[str, int], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = Store(settings.store, settings.limits)
    pool = Pool(workers=settings.workers, queue=settings.queue, memory_bytes=settings.memory_bytes)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", 2 * CHUNK_BYTES),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=_MAX_CALLS,
    )
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    planner_pb2_grpc.add_PlannerServiceServicer_to_server(Servicer(store, pool), server)
    try:
        await _set_health(health, False)
        host, port = _bind(server, settings.listen)
        await server.start()
        on_bound(host, port)
        _log.info("listening on %s:%d, store %s, %d workers", host, port, settings.store, settings.workers)
        if host not in _LOOPBACK:
            _log.warning("%s is open to the network; there is no authentication and no encryption", host)
        watcher = asyncio.create_task(_watch(health, store, pool))
        await stop.wait()
        _log.info("shutting down")
        watcher.cancel()
        await health.enter_graceful_shutdown()
        await pool.close()
        await server.stop(_GRACE_SECONDS)
    finally:
        await pool.close()
        store.close()
    _log.info("ended")


def _bind(server: Any, listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise PlannerError(Code.BAD_REQUEST, f"{listen!r} is not host:port", hint="for example 127.0.0.1:50051")
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        bound = 0
    if not bound:
        raise PlannerError(
            Code.UNAVAILABLE, f"cannot listen on {listen}", hint="another port, or :0 for one that is free"
        )
    return host, bound


async def _watch(health: Any, store: Store, pool: Pool) -> None:
    """Keep health equal to whether a plan could be made now."""
    problem: str | None = "starting"
    try:
        await pool.start()
    except PlannerError as error:
        _log.error("plans cannot be made: %s", error)
        await asyncio.Event().wait()
    while True:
        before = problem
        try:
            await asyncio.to_thread(store.probe)
            problem = None if pool.alive else "no planning process is alive"
        except PlannerError as error:
            problem = str(error)
        if problem != before:
            _log.log(logging.ERROR if problem else logging.INFO, "%s", problem or "ready")
            await _set_health(health, problem is None)
        await asyncio.sleep(_CHECK_SECONDS)


async def _set_health(health: Any, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", SERVICE):
        await health.set(service, status)
