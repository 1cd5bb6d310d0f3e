"""What happens around every call: request id, caller, validation, errors to statuses, one log line."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import protovalidate
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from memoryd import log
from memoryd.api import caller
from memoryd.api.auth import Authenticator
from memoryd.errors import InvalidArgument, MemorydError

_OPEN = ("/grpc.health.v1.", "/grpc.reflection.")  # no key needed, nothing of a tenant in them
_DOMAIN = "memoryd"
_MOST_VIOLATIONS = 16  # that are named: a status travels in metadata, of which gRPC takes 8 KiB
_LONGEST_KEY = 32  # characters of a map's key


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor: every public method passes through `_around`."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
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
                async with self._around(method, context):
                    validate(request)
                    async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
                        async for response in responses:
                            yield response

            return grpc.unary_stream_rpc_method_handler(stream, **codec)

        async def upload(requests: AsyncIterator[Any], context: Any) -> Any:
            async with self._around(method, context):
                return await handler.stream_unary(_validated(requests), context)

        return grpc.stream_unary_rpc_method_handler(upload, **codec)

    @contextlib.asynccontextmanager
    async def _around(self, method: str, context: Any) -> AsyncIterator[None]:
        metadata = dict(context.invocation_metadata() or ())
        request_id = str(metadata.get("x-request-id", ""))[:128] or secrets.token_hex(8)
        began, outcome = time.perf_counter(), "OK"
        # Bound without a reset: each call has a task, and so a context, of its own.
        structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
        try:
            who = await self._authenticator.resolve(metadata)
            caller.enter(who)
            structlog.contextvars.bind_contextvars(tenant=who.tenant or "(admin)")
            context.set_trailing_metadata((("x-request-id", request_id),))
            yield
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


def validate(request: Any) -> None:
    """Applies the proto's own rules. InvalidArgument names the fields that break one, the first of many, and how; never
    their values."""
    violations = protovalidate.collect_violations(request)
    if not violations:
        return
    fields = [(_path(v.proto.field), v.proto.message) for v in violations[:_MOST_VIOLATIONS]]
    more = len(violations) - len(fields)
    said = [f"{field}: {why}" if field else why for field, why in fields] + ([f"and {more} more"] if more else [])
    error = InvalidArgument("; ".join(said), reason="INVALID_FIELD")
    error.violations = fields
    raise error


async def _validated(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        validate(request)
        yield request


def _path(field: Any) -> str:
    if field is None:
        return ""
    out = ""
    for element in field.elements:
        subscript = element.subscript
        out += ("." if out else "") + element.field_name
        if subscript is not None:
            value = subscript.value
            out += (
                f'["{value[:_LONGEST_KEY]}"]' if isinstance(value, str) else f"[{value}]"
            )  # a key of a map, or a place in a list
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
