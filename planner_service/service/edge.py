# SPDX-License-Identifier: Apache-2.0
"""The one translator between PlannerError and gRPC: ``errors.CATALOGUE`` gives the status, details carry the rest."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from planner_service.errors import CATALOGUE, Code, PlannerError, Violation
from planner_service.format import EngineError
from planner_service.proto import planner_pb2 as pb
from planner_service.transport.base import TransportError

_log = logging.getLogger("weft.service")

_DOMAIN = "weft.planner"
_DETAILS_KEY = "grpc-status-details-bin"
#: Peers accept 8 KiB of metadata by default; the violations that go out are cut to this many bytes.
_VIOLATION_BYTES = 4096
_MESSAGE_CHARS = 512
_FIELD_CHARS = 1024


def to_status(error: PlannerError) -> Any:
    """google.rpc.Status with Failure, ErrorInfo and what else google.rpc has for the code."""
    violations, used = [], 0
    for v in error.violations:
        item = pb.Violation(layer=v.layer[:128], message=v.message[:_FIELD_CHARS], hint=v.hint[:_FIELD_CHARS])
        used += item.ByteSize()
        if used > _VIOLATION_BYTES:
            break
        violations.append(item)
    failure = pb.Failure(
        code=error.code.value,
        message=error.message[:_FIELD_CHARS],
        layer=error.layer[:128],
        hint=error.hint[:_FIELD_CHARS],
        violations=violations,
        omitted=len(error.violations) - len(violations),
        device_error=f"WEFT_ERR_{error.device.name}" if isinstance(error, TransportError) and error.device else "",
    )
    info = error_details_pb2.ErrorInfo(reason=error.code.name, domain=_DOMAIN)
    details = [failure, info]
    first = error.violations[:4]
    if error.code is Code.BAD_REQUEST and first:
        bad = error_details_pb2.BadRequest()
        for v in first:
            bad.field_violations.add(field=v.layer[:128], description=v.message[:200])
        details.append(bad)
    elif CATALOGUE[error.code].grpc_status == "FAILED_PRECONDITION":
        found = [(v.layer, v.message) for v in first] or [(error.layer, error.message)]
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=error.code.name, subject=subject[:128], description=text[:200]
                    )
                    for subject, text in found
                ]
            )
        )
    elif error.code is Code.NOT_FOUND:
        details.append(error_details_pb2.ResourceInfo(description=error.message[:200]))
    elif error.code is Code.UNAVAILABLE:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1)))
    packed = []
    for detail in details:
        item = any_pb2.Any()
        item.Pack(detail)
        packed.append(item)
    code = getattr(grpc.StatusCode, CATALOGUE[error.code].grpc_status)
    return status_pb2.Status(code=code.value[0], message=error.message[:_MESSAGE_CHARS], details=packed)


async def abort(context: Any, error: PlannerError) -> None:
    """End a call with an error; raises."""
    status = to_status(error)
    code = getattr(grpc.StatusCode, CATALOGUE[error.code].grpc_status)
    await context.abort(code, status.message, trailing_metadata=((_DETAILS_KEY, status.SerializeToString()),))


def from_rpc(error: Any, server: str = "this address") -> PlannerError:
    """The PlannerError behind a failed call to ``server``, on the client's side. Without details (a proxy, a daemon
    that is not there, a transport's limit): the nearest code."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                failure = pb.Failure()
                if detail.Unpack(failure):
                    return _from_failure(failure)
    status_code = error.code()
    if status_code is grpc.StatusCode.UNAVAILABLE:
        why = str(error.details() or "").rpartition(": ")[2].rstrip("]")  # gRPC puts the cause last
        return PlannerError(
            Code.UNAVAILABLE,
            f"no daemon answers at {server}" + (f": {why}" if why else ""),
            hint="is it running? start it with `weft serve`, or give its address with --server",
        )
    codes = {
        grpc.StatusCode.CANCELLED: Code.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Code.TOO_LARGE,
        grpc.StatusCode.INTERNAL: Code.INTERNAL,
    }
    return PlannerError(
        codes.get(status_code, Code.UNAVAILABLE),
        f"the daemon did not answer as expected: {status_code.name}: {error.details()}",
        hint="is this the address of a `weft serve` of the same version?"
        if status_code is grpc.StatusCode.UNIMPLEMENTED
        else "",
    )


def _from_failure(failure: Any) -> PlannerError:
    codes = {c.value: c for c in Code}
    known = {f"WEFT_ERR_{e.name}": e for e in EngineError}
    if failure.device_error in known:
        return TransportError(
            codes.get(failure.code, Code.INTERNAL),
            failure.message,
            hint=failure.hint,
            device=known[failure.device_error],
        )
    violations = [Violation(v.layer, v.message, v.hint) for v in failure.violations]
    if failure.omitted:
        violations.append(Violation("", f"and {failure.omitted} more", "run in process, without --server, to see all"))
    return PlannerError(
        codes.get(failure.code, Code.INTERNAL),
        failure.message,
        layer=failure.layer,
        hint=failure.hint,
        violations=violations,
    )


def unary(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A handler whose errors leave as statuses."""

    @functools.wraps(handler)
    async def guarded(self: Any, request: Any, context: Any) -> Any:
        try:
            return await handler(self, request, context)
        except Exception as error:
            await _leave(context, handler.__name__, error)

    return guarded


def streaming(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """A handler that yields responses, and whose errors leave as statuses."""

    @functools.wraps(handler)
    async def guarded(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in handler(self, request, context):
                yield response
        except Exception as error:
            await _leave(context, handler.__name__, error)

    return guarded


async def _leave(context: Any, method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, PlannerError):
        _log.error("%s: internal error", method, exc_info=error)
        error = PlannerError(Code.INTERNAL, f"internal error ({type(error).__name__})", hint="see the daemon's log")
    else:
        _log.info("%s: %s: %s", method, error.code.value, error.message)
    await abort(context, error)
