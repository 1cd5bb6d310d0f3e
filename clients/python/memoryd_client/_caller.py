"""What is the same for every call: its request, its metadata, its deadline, its retries and its errors."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from . import _wire
from ._errors import Cancelled, InvalidArgument, MemorydError, NotFound, Unavailable, from_rpc
from ._settings import Settings
from ._transport import Transport
from ._wire import Method

T = TypeVar("T")

Ready: TypeAlias = Callable[[float | None], Awaitable[float]]
"""Makes sure that a memory is there, within a call's timeout; gives what is left of it for the call itself."""

# Methods that change nothing, or where a second time changes nothing more. A write is safe by its request_id.
_REPEATABLE_VERBS = ("Get", "List", "Search", "Build", "Answer", "Watch", "Check", "Cancel", "Revoke", "Activate", "Export")


def is_repeatable(method: Method) -> bool:
    """Whether a call may be sent again when it is not known whether the first one arrived."""
    return method.has_request_id or method.name.startswith(_REPEATABLE_VERBS)


class Deadline:
    """The moment that a call, with all its retries and the calls inside it, must be done by."""

    def __init__(self, timeout: float | None) -> None:
        self._at = math.inf if timeout is None else time.monotonic() + timeout

    def left(self, at_most: float = math.inf) -> float:
        """Seconds, not below 0. Infinite where there is no limit, and not None, which a call inside this one would take
        for the client's own timeout."""
        return min(max(0.0, self._at - time.monotonic()), at_most)

    def allows(self, seconds: float) -> bool:
        """Whether there is time to wait so long, and to do something after it."""
        return time.monotonic() + seconds < self._at


class Caller:
    """Calls the API over a transport."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self.transport = transport
        self._settings = settings
        self._closed = False

    def deadline(self, timeout: float | None) -> Deadline:
        """Of a call with this timeout: the client's own where it is given none."""
        return Deadline(timeout if timeout is not None else self._settings.timeout)

    async def unary(self, name: str, /, *, timeout: float | None = None, **fields: Any) -> Any:
        """Calls `Service.Method` with a request of these fields; gives its response."""
        method = _wire.method(name)
        request = _request(method, fields)

        def attempt(left: float | None, metadata: Any) -> Awaitable[Any]:
            return self.transport.unary(method, request, left, metadata)

        return await self.retrying(method, attempt, deadline=self.deadline(timeout), again=lambda: is_repeatable(method))

    async def delete(self, name: str, /, *, timeout: float | None = None, **fields: Any) -> None:
        """Calls a `Service.Method` that deletes at once, and takes no request_id. It is repeated all the same: after an
        attempt that may have arrived, NOT_FOUND says that what was wanted is done."""
        method = _wire.method(name)
        request = _request(method, fields)
        tried = 0

        def attempt(left: float | None, metadata: Any) -> Awaitable[Any]:
            nonlocal tried
            tried += 1
            return self.transport.unary(method, request, left, metadata)

        try:
            await self.retrying(method, attempt, deadline=self.deadline(timeout), again=lambda: True)
        except NotFound:
            if tried == 1:
                raise

    def stream(self, name: str, /, *, timeout: float | None, **fields: Any) -> Stream:
        """Calls a `Service.Method` that streams."""
        method = _wire.method(name)
        return Stream(self, method, _request(method, fields), Deadline(timeout))

    async def pages(
        self, name: str, field: str, /, *, timeout: float | None, first: float | None = None, **fields: Any
    ) -> AsyncGenerator[Any, None]:
        """The items of all pages, each page asked for when it is needed. `timeout` is for each; `first`: what is left of it
        for the first one."""
        token, left = "", timeout if first is None else first
        while True:
            page = await self.unary(name, timeout=left, page_token=token, **fields)
            for item in getattr(page, field):
                yield item
            token, left = page.next_page_token, timeout
            if not token:
                return

    async def retrying(
        self,
        method: Method,
        attempt: Callable[[float | None, Any], Awaitable[T]],
        *,
        deadline: Deadline,
        again: Callable[[], bool],
    ) -> T:
        """Attempts until it works, fails for good, or time is up. `again` says whether one more attempt is safe."""
        self.check_open()
        request_id, metadata = self.metadata()
        tried = 0
        while True:
            tried += 1
            left = deadline.left()
            try:
                return await attempt(None if left == math.inf else left, metadata)  # grpcio calls no limit None
            except grpc.RpcError as failure:
                error = self.error(failure, method, request_id)
            if not (isinstance(error, Unavailable) and again() and await self.backed_off(tried, deadline)):
                raise error

    async def backed_off(self, tried: int, deadline: Deadline) -> bool:
        """Waits before the next attempt; False, at once, where there shall be none."""
        return tried < self._settings.retry.attempts and await self.paused(tried, deadline)

    async def paused(self, tried: int, deadline: Deadline) -> bool:
        """Waits as one waits after so many attempts; False, at once, where the deadline comes first."""
        delay = self._settings.retry.delay(tried)
        if not deadline.allows(delay):
            return False
        await self.transport.sleep(delay)
        return True

    def metadata(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """A fresh request id, and what a call sends with it."""
        request_id = _wire.new_id()
        pairs = [("x-request-id", request_id)]
        if self._settings.api_key is not None:
            pairs.append(("authorization", f"Bearer {self._settings.api_key}"))
        return request_id, tuple(pairs)

    def error(self, failure: grpc.RpcError, method: Method, request_id: str) -> MemorydError:
        """The error of a failed call."""
        return from_rpc(failure, method=method.name, target=self._settings.target, request_id=request_id)

    def check_open(self) -> None:
        """Raises where the client was closed."""
        if self._closed:
            raise Cancelled("this client is closed: make another one")

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        self._closed = True
        await self.transport.close()


class Stream:
    """A stream of responses. It is attempted again while nothing of it has arrived, and may be cancelled at any time,
    also from another thread or task."""

    def __init__(self, caller: Caller, method: Method, request: Any, deadline: Deadline) -> None:
        self._caller = caller
        self._method = method
        self._request = request
        self._deadline = deadline
        self._call: Any = None
        self._request_id = ""
        self._cancelled = False

    async def read(self) -> Any:
        """The next response; None at the end, or where it was cancelled."""
        if self._cancelled:
            return None
        try:
            if self._call is None:
                return await self._caller.retrying(
                    self._method, self._begin, deadline=self._deadline, again=lambda: not self._cancelled
                )
            return await self._caller.transport.read(self._call)
        except grpc.RpcError as failure:
            error: MemorydError = self._caller.error(failure, self._method, self._request_id)
        except MemorydError as failed:
            error = failed
        except asyncio.CancelledError:
            # grpcio raises this in the reader when another task cancels the call: for the reader, the stream has ended.
            if self._cancelled:
                return None
            self.cancel()  # grpcio does so in most places where a reader may wait, and forgets it in some
            raise
        if self._cancelled:
            return None
        raise error

    async def _begin(self, left: float | None, metadata: Any) -> Any:
        self._request_id = metadata[0][1]
        call = self._caller.transport.stream(self._method, self._request, left, metadata)
        self._call = call
        if self._cancelled:  # between two attempts
            call.cancel()
        return await self._caller.transport.read(call)

    def cancel(self) -> None:
        """Ends it. Harmless where it has ended."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()


def _request(method: Method, fields: dict[str, Any]) -> Any:
    if method.has_request_id:
        fields["request_id"] = fields.get("request_id") or _wire.new_id()
    return build(method.request, fields)


def build(message: Any, fields: dict[str, Any]) -> Any:
    """A message of these fields. InvalidArgument: a field is of a type, or out of the range, that no message can carry."""
    try:
        return message(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{message.DESCRIPTOR.name}: {error}") from None
