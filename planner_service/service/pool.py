# SPDX-License-Identifier: Apache-2.0
"""Planning processes behind a bounded queue. All methods belong to one asyncio loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from planner_service.errors import Code, PlannerError
from planner_service.service import worker

_log = logging.getLogger("weft.pool")

#: How long a cancelled job may take to notice before its process is ended; seconds.
CANCEL_SECONDS = 0.15

OnProgress = Callable[[float, str], None]


def shutting_down() -> PlannerError:
    """What waits or runs when the daemon ends is told this."""
    return PlannerError(Code.UNAVAILABLE, "the daemon is shutting down", hint="try again when it is back")


class _Process:
    """One worker process and the job it has."""

    def __init__(self, context: Any, memory_bytes: int) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=worker.main, args=(theirs, memory_bytes), daemon=True)
        self._process.start()
        theirs.close()
        self._outcome: asyncio.Future[worker.Outcome] | None = None
        self._on_progress: OnProgress | None = None
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._readable)

    @property
    def alive(self) -> bool:
        return not self._pipe.closed and bool(self._process.is_alive())

    def start(self, job: worker.Job, on_progress: OnProgress | None) -> asyncio.Future[worker.Outcome]:
        self._outcome = asyncio.get_running_loop().create_future()
        self._on_progress = on_progress
        try:
            self._pipe.send(job)
        except OSError:
            self._died()
        return self._outcome

    def cancel(self, number: int) -> None:
        self._on_progress = None
        try:
            self._pipe.send(worker.Cancel(number=number))
        except OSError:
            self._died()

    def kill(self) -> None:
        """End the process; what it was doing is lost."""
        if not self._pipe.closed:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
        self._process.kill()
        self._process.join()

    def _readable(self) -> None:
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                if isinstance(message, worker.Progress):
                    if self._on_progress:
                        self._on_progress(message.fraction, message.message)
                elif self._outcome and not self._outcome.done():
                    self._outcome.set_result(message)
        except (EOFError, OSError):
            self._died()

    def _died(self) -> None:
        self.kill()
        if self._outcome and not self._outcome.done():
            self._outcome.set_exception(
                PlannerError(
                    Code.UNAVAILABLE,
                    f"the planning process ended unexpectedly (exit code {self._process.exitcode})",
                    hint="most likely the machine ran out of memory: use a smaller model or fewer --workers",
                )
            )


class Pool:
    """``workers`` processes; ``queue`` more jobs may wait."""

    def __init__(self, *, workers: int, queue: int, memory_bytes: int) -> None:
        self.workers, self.queue = workers, queue
        self._memory_bytes = memory_bytes
        # A server process forks workers that have everything imported; the daemon itself, full of threads, never forks.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["planner_service.service.worker", *worker.PRELOAD])
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._waiting: deque[asyncio.Future[_Process]] = deque()
        self._admitted = 0
        self._numbers = itertools.count()
        self._running: set[asyncio.Future[worker.Outcome]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start the processes and let one of them prove that the engine works; PlannerError if it does not."""
        for _ in range(self.workers):
            self._release(self._spawn())
        await self.run("probe")

    @property
    def alive(self) -> bool:
        """Whether there are processes to do work."""
        return not self._closed and any(p.alive for p in self._all)

    async def run(self, kind: Any, *, on_progress: OnProgress | None = None, **fields: Any) -> Any:
        """Do a job (see ``worker.Job``) and return its result. TOO_LARGE when the queue is full. A cancelled task's job
        stops within CANCEL_SECONDS, if need be with its process."""
        if self._closed:
            raise shutting_down()
        if self._admitted >= self.workers + self.queue:
            raise PlannerError(
                Code.TOO_LARGE,
                f"{self.workers} plans are in work and {self.queue} more are waiting",
                hint="try again in a while, or serve with more --workers or a longer --queue",
            )
        job = worker.Job(number=next(self._numbers), kind=kind, **fields)
        self._admitted += 1
        try:
            process = await self._acquire()
            future = process.start(job, on_progress)
            self._running.add(future)
            try:
                outcome = await asyncio.shield(future)
            except asyncio.CancelledError:
                task = asyncio.create_task(self._stop(process, job.number, future))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
                raise
            except PlannerError:
                self._replace(process)
                raise
            finally:
                self._running.discard(future)
            self._release(process)
        finally:
            self._admitted -= 1
        if outcome.failure:
            if outcome.trace:
                _log.error("job %d (%s): %s", job.number, kind, outcome.trace)
            raise outcome.failure.error()
        return outcome.result

    async def close(self) -> None:
        """Cancel everything and end the processes."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(shutting_down())
        for future in self._running:
            if not future.done():
                future.set_exception(shutting_down())
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for process in self._all:
            process.kill()
        self._all.clear()

    def _spawn(self) -> _Process:
        process = _Process(self._context, self._memory_bytes)
        self._all.add(process)
        return process

    async def _acquire(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
            self._all.discard(process)
            return self._spawn()
        waiter: asyncio.Future[_Process] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self._release(waiter.result())
            raise

    def _release(self, process: _Process) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(process)
                return
        self._idle.append(process)

    def _replace(self, process: _Process) -> None:
        process.kill()
        self._all.discard(process)
        if not self._closed:
            self._release(self._spawn())

    async def _stop(self, process: _Process, number: int, future: asyncio.Future[worker.Outcome]) -> None:
        begin = time.monotonic()
        process.cancel(number)
        done, _ = await asyncio.wait({future}, timeout=CANCEL_SECONDS)
        if done and not future.exception():
            self._release(process)
            how = "on request"
        else:
            self._replace(process)
            how = "with its process"
        _log.info("job %d cancelled, stopped %s after %.3f s", number, how, time.monotonic() - begin)
