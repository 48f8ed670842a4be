# SPDX-License-Identifier: Apache-2.0
"""A planning process: takes jobs from a pipe, answers with progress and one outcome each. Planning is CPU bound and a
hostile model may want all the memory there is; here it can be limited, and ended, without hurting the daemon."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from planner_service import api
from planner_service.errors import Code, PlannerError, Violation

#: Progress messages are at least this far apart, and so are looks at the pipe for a cancellation; seconds.
_PROGRESS_SECONDS = 0.05
_POLL_SECONDS = 0.005


#: What takes long to import; the fork server has it ready for new workers.
PRELOAD = (
    "planner_service.planner",
    "planner_service.report",
    "planner_service.importers.onnx",
    "planner_service.importers.tflite",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """``model`` and ``plan`` are files: what is large does not go through the pipe to the worker."""

    number: int
    kind: Literal["probe", "describe", "plan", "explain"]
    model: Path | None = None
    name: str = ""
    request: api.PlanRequest | None = None
    plan: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The outcome of job ``number`` is not wanted any more."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far job ``number`` is, 0 to 1."""

    number: int
    fraction: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A PlannerError as plain data; exceptions with keyword arguments do not survive pickling."""

    code: Code
    message: str
    layer: str
    hint: str
    violations: tuple[Violation, ...]

    @classmethod
    def of(cls, error: PlannerError) -> Failure:
        return cls(
            code=error.code,
            message=error.message,
            layer=error.layer,
            hint=error.hint,
            violations=error.violations,
        )

    def error(self) -> PlannerError:
        return PlannerError(self.code, self.message, layer=self.layer, hint=self.hint, violations=self.violations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of job ``number``: its result, or a failure. ``trace`` is for the log, where the failure is our bug."""

    number: int
    result: Any = None
    failure: Failure | None = None
    trace: str = ""


class Worker:
    """The loop of the process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._number = -1
        self._is_cancelled = False
        self._looked = self._told = 0.0

    def serve(self) -> None:
        """Work until the daemon closes the pipe, or ends without closing it."""
        while True:
            try:
                message = self._pipe.recv()
                if isinstance(message, Job):
                    self._number, self._is_cancelled = message.number, False
                    self._pipe.send(self._outcome(message))
            except (EOFError, OSError):
                return

    def _outcome(self, job: Job) -> Outcome:
        failure, trace = None, ""
        try:
            return Outcome(number=job.number, result=self._do(job))
        except PlannerError as error:
            failure = Failure.of(error)
        except MemoryError:
            failure = Failure.of(
                PlannerError(
                    Code.TOO_LARGE,
                    "the model needs more memory than a planning process may have",
                    hint="use a smaller model, or serve with a larger --worker-memory",
                )
            )
        except Exception as error:
            # The daemon must outlive our bugs; the text goes to its log, not to the client.
            trace = traceback.format_exc()
            failure = Failure.of(PlannerError(Code.INTERNAL, f"internal error ({type(error).__name__})"))
        return Outcome(number=job.number, failure=failure, trace=trace)

    def _do(self, job: Job) -> Any:
        if job.kind == "probe":
            return api.check_engine()
        if job.kind == "explain":
            assert job.plan is not None
            return api.explain_plan(job.plan.read_bytes(), job.model.read_bytes() if job.model else None, job.name)
        assert job.model is not None
        data = job.model.read_bytes()
        if job.kind == "describe":
            return api.describe_model(data, job.name)
        assert job.request is not None
        return api.create_plans(data, job.name, job.request, progress=self._progress, cancelled=self._cancelled)

    def _progress(self, fraction: float, message: str) -> None:
        if (now := time.monotonic()) - self._told >= _PROGRESS_SECONDS:
            self._told = now
            self._pipe.send(Progress(number=self._number, fraction=fraction, message=message))

    def _cancelled(self) -> bool:
        if (now := time.monotonic()) - self._looked >= _POLL_SECONDS:
            self._looked = now
            while self._pipe.poll():
                message = self._pipe.recv()
                self._is_cancelled |= isinstance(message, Cancel) and message.number == self._number
        return self._is_cancelled


def main(pipe: Connection, memory_bytes: int) -> None:
    """Entry point of the process. ``memory_bytes`` limits its address space; 0: no limit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    Worker(pipe).serve()
