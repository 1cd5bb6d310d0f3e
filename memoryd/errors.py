"""Every error that a caller can see, each with its gRPC status.

MemorydError                INTERNAL
├── InvalidArgument         INVALID_ARGUMENT     the request can never work as it is
├── NotFound                NOT_FOUND            not there, or another tenant's: the caller can't tell which
│   └── ReplacedNotFound    NOT_FOUND            what a write replaces is not there
├── AlreadyExists           ALREADY_EXISTS
│   └── RequestIdReused     ALREADY_EXISTS       same request_id, different request
├── FailedPrecondition      FAILED_PRECONDITION  works after something else was done
│   └── FingerprintMismatch FAILED_PRECONDITION  made by another model or compressor
├── Unauthenticated         UNAUTHENTICATED      no key, or a wrong or revoked one
├── PermissionDenied        PERMISSION_DENIED    the key is good, for less than this
├── ResourceExhausted       RESOURCE_EXHAUSTED   too large, too many, disk full
├── DataLoss                DATA_LOSS            bytes are not what their checksum says
├── Cancelled               CANCELLED
├── Unavailable             UNAVAILABLE          a part is restarting: try again
│   └── WorkerLost          UNAVAILABLE          the worker ended while it worked on this
└── SettingsError           INVALID_ARGUMENT     a setting is unknown or bad; names the key
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc


class MemorydError(Exception):
    """The base. `reason` is a stable machine-readable word, `details` short facts, `violations` the (field, rule) pairs that a
    request breaks: never a document's text or a secret."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.details = dict(details or {})
        self.violations: list[tuple[str, str]] = []


class InvalidArgument(MemorydError):
    """The request can never work as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(MemorydError):
    """Not there, or another tenant's: the caller can't tell which."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class ReplacedNotFound(NotFound):
    """The document whose new version a write would be is not there: deleted, replaced by another write, or never written."""

    reason = "REPLACED_NOT_FOUND"

    def __init__(
        self,
        message: str = "the document to replace is not in this memory: it was deleted, or another write has replaced it. "
        "List the memory's documents and replace the one that is there now, or write without replaces",
        *,
        reason: str | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, details=details)


class AlreadyExists(MemorydError):
    """There is one of that name."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class RequestIdReused(AlreadyExists):
    """The same request_id came with a different request."""

    reason = "REQUEST_ID_REUSED"


class FailedPrecondition(MemorydError):
    """Works after something else was done."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class FingerprintMismatch(FailedPrecondition):
    """Made by another model or compressor than the one in use."""

    reason = "FINGERPRINT_MISMATCH"


class Unauthenticated(MemorydError):
    """No key, or a wrong or revoked one."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(MemorydError):
    """The key is good, for less than this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class ResourceExhausted(MemorydError):
    """Too large, too many, or no room."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class DataLoss(MemorydError):
    """Bytes are not what their checksum says."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "CHECKSUM_MISMATCH"


class Cancelled(MemorydError):
    """The work was cancelled."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class Unavailable(MemorydError):
    """A part is starting or restarting: try again."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class WorkerLost(Unavailable):
    """The worker had this in hand when it ended, and may have ended because of it: trying again may end the next one too."""

    reason = "WORKER_LOST"

    def __init__(
        self,
        message: str = "the worker ended while it worked on this: try again",
        *,
        reason: str | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, details=details)


class SettingsError(MemorydError):
    """A setting is unknown or bad. The message names the key and what it may be."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "BAD_SETTING"
