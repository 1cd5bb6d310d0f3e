"""What happens around every call: request id, caller, validation, room for uploads, errors to statuses, one log line."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import grpc
import protovalidate
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from memoryd import log
from memoryd.api import caller
from memoryd.api.auth import Authenticator
from memoryd.errors import Cancelled, InvalidArgument, MemorydError, ResourceExhausted, Unavailable

_OPEN = ("/grpc.health.v1.", "/grpc.reflection.")  # no key needed, nothing of a tenant in them
_DOMAIN = "memoryd"
# A status travels in metadata, of which gRPC takes 8 KiB for certain. What is said of violations is in it three times: as the
# message, and in the details, which travel as base64, as the message again and field by field.
_MOST_SAID = 1536  # bytes, as they travel
_LONGEST_KEY = 32  # characters of a map's key
_PLAIN = bytes(range(0x20, 0x7F)).replace(b"%", b"").decode()  # travels in a message as it is, all else percent-encoded
# An upload holds a temporary file or memory, and a daemon may have no more than 256 files open: not all of them for uploads.
_UPLOADS = 128  # under way at a time
_UPLOADS_OF_ONE = 32  # of them one tenant's, which cannot take all places alone
_SILENCE_SECONDS = 300.0  # between two pieces: a source may be slow, but one that is gone must not hold its place for ever
_KEY_SECONDS = 1.0  # for which a key that was looked up counts as good in a stream: a look-up is one read of the ledger


class _Key:
    """The key of a call that may be open for hours: it is looked up again meanwhile, so that one that is revoked ends it."""

    def __init__(self, resolve: Callable[[], Awaitable[caller.Caller]]) -> None:
        self._resolve = resolve
        self._looked_up = time.monotonic()

    async def check(self, now: bool = False) -> None:
        """Unauthenticated where it was revoked. Looks it up where that was not done within the last second, or `now`.

        A ledger that cannot be asked has revoked nothing: what streams goes on meanwhile. Asked `now`, it must answer."""
        if not now and time.monotonic() - self._looked_up < _KEY_SECONDS:
            return
        try:
            await self._resolve()
        except (Unavailable, ResourceExhausted):
            if now:
                raise
        self._looked_up = time.monotonic()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor: every public method passes through `_around`."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._uploads: Counter[str] = Counter()  # under way, by tenant
        self._log = log.get("api")

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_OPEN):
            return handler
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:

            async def unary(request: Any, context: Any) -> Any:
                async with self._around(method, context):
                    validate(request)
                    return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, **codec)
        if handler.unary_stream:

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                async with self._around(method, context) as key:
                    validate(request)
                    async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
                        async for response in responses:
                            await key.check()
                            yield response

            return grpc.unary_stream_rpc_method_handler(stream, **codec)

        async def upload(requests: AsyncIterator[Any], context: Any) -> Any:
            async with self._around(method, context) as key:
                with self._place():
                    return await handler.stream_unary(_received(requests, key), context)

        return grpc.stream_unary_rpc_method_handler(upload, **codec)

    @contextlib.asynccontextmanager
    async def _around(self, method: str, context: Any) -> AsyncIterator[_Key]:
        metadata = dict(context.invocation_metadata() or ())
        request_id = str(metadata.get("x-request-id", ""))[:128] or secrets.token_hex(8)
        began, outcome = time.perf_counter(), "OK"
        # Bound without a reset: each call has a task, and so a context, of its own.
        structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
        try:
            resolve = functools.partial(self._authenticator.resolve, metadata)
            key, who = _Key(resolve), await resolve()
            caller.enter(who)
            structlog.contextvars.bind_contextvars(tenant=who.tenant or "(admin)")
            context.set_trailing_metadata((("x-request-id", request_id),))
            yield key
        except MemorydError as error:
            outcome = error.code.name
            await context.abort_with_status(rpc_status.to_status(status_of(error, request_id)))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            outcome = "CANCELLED"
            raise
        except NotImplementedError:  # of a standard service, a method that memoryd does not have
            outcome = "UNIMPLEMENTED"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"memoryd does not offer {method}")
        except Exception:
            outcome = "INTERNAL"
            self._log.exception("call failed")
            failure = MemorydError(f"memoryd failed: its log has the cause under request id {request_id}")
            await context.abort_with_status(rpc_status.to_status(status_of(failure, request_id)))
        finally:
            self._log.info("call", outcome=outcome, ms=round((time.perf_counter() - began) * 1000, 2))

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """For one upload more of the caller's. ResourceExhausted where it, or all callers together, have too many."""
        who = caller.current().tenant
        if self._uploads[who] >= _UPLOADS_OF_ONE or self._uploads.total() >= _UPLOADS:
            raise ResourceExhausted(
                f"{self._uploads[who]} of your uploads are under way: a tenant may have {_UPLOADS_OF_ONE} at a time, "
                f"and all together {_UPLOADS}. Let one end, then try again",
                reason="TOO_MANY_UPLOADS",
            )
        self._uploads[who] += 1
        try:
            yield
        finally:
            self._uploads[who] -= 1


def validate(request: Any) -> None:
    """Applies the proto's own rules. InvalidArgument names the fields that break one, the first of many, and how; never
    their values."""
    violations = protovalidate.collect_violations(request)
    if not violations:
        return
    fields, said, room = list[tuple[str, str]](), list[str](), _MOST_SAID
    for violation in violations:
        field, why = _path(violation.proto.field), violation.proto.message
        saying = f"{field}: {why}" if field else why
        room -= len(quote(saying, safe=_PLAIN))
        if room < 0:
            said.append(f"and {len(violations) - len(fields)} more")
            break
        fields.append((field, why))
        said.append(saying)
    error = InvalidArgument("; ".join(said), reason="INVALID_FIELD")
    error.violations = fields
    raise error


async def _received(requests: AsyncIterator[Any], key: _Key) -> AsyncIterator[Any]:
    """The pieces of an upload. It ends only where the key is still good: what was sent with a revoked one is not stored."""
    while (request := await _next(requests)) is not None:
        await key.check()
        validate(request)
        yield request
    await key.check(now=True)


async def _next(requests: AsyncIterator[Any]) -> Any:
    """The next piece, None at the end. Cancelled where it does not come."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            return await anext(requests, None)
    except TimeoutError:
        raise Cancelled(
            f"nothing of the upload came for {_SILENCE_SECONDS:.0f} seconds: nothing was stored, upload again",
            reason="UPLOAD_SILENT",
        ) from None


def _path(field: Any) -> str:
    if field is None:
        return ""
    out = ""
    for element in field.elements:
        subscript = element.subscript
        out += ("." if out else "") + element.field_name
        if subscript is not None:
            value = subscript.value  # a key of a map, or a place in a list
            out += f"[{json.dumps(value[:_LONGEST_KEY]) if isinstance(value, str) else value}]"
    return out


def status_of(error: MemorydError, request_id: str) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo, RequestInfo, and BadRequest where fields broke rules (google.aip.dev/193)."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=error.details)
    details: list[Any] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for field, why in error.violations:
            bad.field_violations.add(field=field, description=why)
        details.append(bad)
    status = status_pb2.Status(code=getattr(code_pb2, error.code.name), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
