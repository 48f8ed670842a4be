# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the planner, for people: a code, what, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """One entry per kind of failure; ``CATALOGUE`` maps each to its process exit code and gRPC status name."""

    BAD_MODEL = "bad-model"  # not a model, truncated, cyclic, inconsistent
    UNSUPPORTED = "unsupported"  # a valid model that Weft cannot run, every violation listed
    FLOAT_MODEL = "float-model"  # a model that must be quantised first
    BAD_REQUEST = "bad-request"  # arguments out of range
    NOT_FOUND = "not-found"  # unknown target, model or plan
    INFEASIBLE = "infeasible"  # no schedule within the constraint
    TOO_LARGE = "too-large"  # over a stated size limit
    BAD_PLAN = "bad-plan"  # the engine refuses the plan
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"  # an optional part (engine library, extra, daemon) is missing
    DEVICE = "device"  # a board or its debug probe failed, or does not hold what was written
    REFUSED = "refused"  # a device does not take this plan, and its error code says why
    BUSY = "busy"  # a device takes another update, or has no erases left for now
    BAD_STATE = "bad-state"  # a device's slots are in no state that allows this
    UNREACHABLE = "unreachable"  # a device does not answer
    INTERNAL = "internal"  # our bug


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a code leaves the process and the service."""

    exit_code: int
    grpc_status: str


CATALOGUE: dict[Code, Outcome] = {
    Code.BAD_MODEL: Outcome(3, "INVALID_ARGUMENT"),
    Code.UNSUPPORTED: Outcome(4, "FAILED_PRECONDITION"),
    Code.FLOAT_MODEL: Outcome(12, "FAILED_PRECONDITION"),
    Code.BAD_REQUEST: Outcome(2, "INVALID_ARGUMENT"),
    Code.NOT_FOUND: Outcome(5, "NOT_FOUND"),
    Code.INFEASIBLE: Outcome(6, "FAILED_PRECONDITION"),
    Code.TOO_LARGE: Outcome(7, "RESOURCE_EXHAUSTED"),
    Code.BAD_PLAN: Outcome(8, "INVALID_ARGUMENT"),
    Code.CANCELLED: Outcome(9, "CANCELLED"),
    Code.UNAVAILABLE: Outcome(10, "UNAVAILABLE"),
    Code.DEVICE: Outcome(11, "ABORTED"),
    Code.REFUSED: Outcome(13, "FAILED_PRECONDITION"),
    Code.BUSY: Outcome(14, "ABORTED"),
    Code.BAD_STATE: Outcome(15, "FAILED_PRECONDITION"),
    Code.UNREACHABLE: Outcome(16, "UNAVAILABLE"),
    Code.INTERNAL: Outcome(1, "INTERNAL"),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with the input: ``layer`` is the source model's name for it ('' if the whole model)."""

    layer: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class PlannerError(Exception):
    """The one exception of the planner. ``violations`` holds all that was found, not the first."""

    def __init__(
        self, code: Code, message: str, *, layer: str = "", hint: str = "", violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.layer = layer
        self.hint = hint
        self.violations = tuple(violations)

    def __str__(self) -> str:
        head = (f"{self.layer}: " if self.layer else "") + self.message + (f"\n  try: {self.hint}" if self.hint else "")
        return "\n".join([head, *(f"  - {v}" for v in self.violations)])
