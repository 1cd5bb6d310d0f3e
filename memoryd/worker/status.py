"""memoryd's errors as gRPC status, and back: code and message as they are, reason and details in trailing metadata.

A worker that crashes says nothing. So it says first, in a call's initial metadata, that it has the call in hand: where that
came and no status did, it was lost while it worked on the call. Without it the call never reached a worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc

from memoryd.errors import Cancelled, MemorydError, Unavailable, WorkerLost

_REASON = "memoryd-reason"
_DETAILS = "memoryd-details"
_IN_HAND = "memoryd-in-hand"

Trailers = tuple[tuple[str, str], ...]

IN_HAND: Trailers = ((_IN_HAND, "yes"),)
"""Initial metadata of every call, sent before the work on it begins."""


def trailers(error: MemorydError) -> Trailers:
    """Trailing metadata that `from_rpc` understands."""
    return ((_REASON, error.reason), (_DETAILS, json.dumps(error.details)))


def from_rpc(error: grpc.aio.AioRpcError) -> MemorydError:
    """The error as the worker raised it; WorkerLost where it ended with the call in hand, Unavailable where it is not there."""
    sent = {str(key): str(value) for key, value in tuple(error.trailing_metadata() or ())}
    code, message = error.code(), error.details() or ""
    if reason := sent.get(_REASON):
        kinds = [kind for kind in _tree(MemorydError) if kind.code == code]
        kind = next((kind for kind in kinds if kind.reason == reason), kinds[0] if kinds else MemorydError)
        return kind(message, reason=reason, details=json.loads(sent.get(_DETAILS, "{}")))
    if code == grpc.StatusCode.UNAVAILABLE and _IN_HAND in dict(error.initial_metadata() or ()):
        return WorkerLost()
    if code == grpc.StatusCode.UNAVAILABLE:
        return Unavailable("the worker is starting or restarting: try again", reason="WORKER_UNAVAILABLE")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Cancelled("the deadline passed", reason="DEADLINE_EXCEEDED")
    if code == grpc.StatusCode.CANCELLED:
        return Cancelled("the call was cancelled")
    return MemorydError(f"the worker answered {code.name}: {message}")


def _tree(kind: type[MemorydError]) -> Iterator[type[MemorydError]]:
    """A class before its subclasses, so that the first of a code is its most general."""
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)
