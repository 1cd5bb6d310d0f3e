"""Every error that this client raises, but for the OSError of a local file.

MemorydError
├── InvalidArgument      the request can never work as it is; .violations names the fields
├── NotFound             not there, or another tenant's: the two can't be told apart
├── AlreadyExists        there is one of that name, or the request_id came with another request
├── FailedPrecondition   works after something else was done
│   └── JobFailed        the job that was waited for ended without success; .job says why
├── Unauthenticated      no key, or a wrong or revoked one
├── PermissionDenied     the key is good, for less than this
├── ResourceExhausted    too large, too many, or no room
├── DataLoss             bytes are not what their checksum says
├── DeadlineExceeded     not done within the timeout
├── Unavailable          the daemon, or a part of it, can't be reached now
├── Cancelled            the call was cancelled
└── InternalError        memoryd failed; its log has the cause under .request_id
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from google.protobuf.message import DecodeError

from . import _wire

if TYPE_CHECKING:
    from ._records import Job


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    """Path of the field, e.g. `metadata["k"].string_value`."""
    description: str
    """What the rule is."""


class MemorydError(Exception):
    """The base of all of them."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        details: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        """What happened, and what to do."""
        self.reason = reason or self.code.name
        """A stable word for programs."""
        self.details = dict(details or {})
        """Short facts for programs."""
        self.violations = violations
        """Fields that broke a rule; empty for all but InvalidArgument."""
        self.request_id = request_id
        """What the daemon's log calls this request; empty where nothing was sent."""

    def __str__(self) -> str:
        return f"{self.message} [request {self.request_id}]" if self.request_id else self.message


class InvalidArgument(MemorydError):
    """The request can never work as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(MemorydError):
    """Not there, or another tenant's: the two can't be told apart."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(MemorydError):
    """There is one of that name, or the request_id came with another request."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(MemorydError):
    """Works after something else was done."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class JobFailed(FailedPrecondition):
    """The job that was waited for ended without success."""

    def __init__(self, job: Job) -> None:
        why = f": {job.error}" if job.error else ""
        super().__init__(
            f"{job.kind or 'the'} job {job.name} of {job.target} is {job.state.name}{why}; "
            "client.jobs.retry(job) sends it back to work",
            reason=f"JOB_{job.state.name}",
        )
        self.job = job
        """The job, as it ended."""


class Unauthenticated(MemorydError):
    """No key, or a wrong or revoked one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(MemorydError):
    """The key is good, for less than this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(MemorydError):
    """Too large, too many, or no room."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DataLoss(MemorydError):
    """Bytes are not what their checksum says."""

    code = grpc.StatusCode.DATA_LOSS


class DeadlineExceeded(MemorydError):
    """Not done within the timeout."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(MemorydError):
    """The daemon, or a part of it, can't be reached now."""

    code = grpc.StatusCode.UNAVAILABLE


class Cancelled(MemorydError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class InternalError(MemorydError):
    """memoryd failed; its log has the cause under .request_id."""

    code = grpc.StatusCode.INTERNAL


_KINDS: tuple[type[MemorydError], ...] = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Unauthenticated,
    PermissionDenied,
    ResourceExhausted,
    DataLoss,
    DeadlineExceeded,
    Unavailable,
    Cancelled,
)
_BY_CODE = {kind.code: kind for kind in _KINDS}

# What a caller can do about it, where the daemon's message can't know.
_ADVICE = {
    Unauthenticated: "pass api_key= or set MEMORYD_API_KEY",
    DeadlineExceeded: "give a longer timeout=, or see whether the daemon is busy",
    Unavailable: "is `memoryd serve` running there, and is the target right?",
}


def from_rpc(failure: grpc.RpcError, *, method: str, target: str, request_id: str) -> MemorydError:
    """The error that a failed call stands for."""
    call: Any = failure  # grpcio's failed calls are RpcError and Call in one
    code, text = call.code(), call.details() or ""
    kind = _BY_CODE.get(code, InternalError)
    info, violations = _rich(call.trailing_metadata())
    parts = [text or code.name]
    if kind in _ADVICE:
        parts = [f"{method} at {target}: {parts[0]}", _ADVICE[kind]]
    missing = [v for v in violations if v.description not in text]
    parts += [f"{v.field}: {v.description}" for v in missing]
    return kind(
        "; ".join(parts),
        reason=info.reason if info is not None else "",
        details=info.metadata if info is not None else None,
        violations=violations,
        request_id=request_id,
    )


def _rich(trailers: Any) -> tuple[Any, tuple[FieldViolation, ...]]:
    """google.rpc.ErrorInfo and BadRequest of a failed call, where it carries them."""
    raw = next((value for key, value in trailers or () if key == "grpc-status-details-bin"), None)
    if raw is None:
        return None, ()
    info: Any = None
    violations: tuple[FieldViolation, ...] = ()
    try:
        for detail in _wire.message("google.rpc.Status").FromString(raw).details:
            found, bad = _wire.message("google.rpc.ErrorInfo")(), _wire.message("google.rpc.BadRequest")()
            if detail.Unpack(found):
                info = found
            elif detail.Unpack(bad):
                violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
    except DecodeError:  # a proxy's own: the status and its message still tell
        pass
    return info, violations
