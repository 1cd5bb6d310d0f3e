"""How bytes move: one protocol, blocking and on asyncio.

Everything above this file is written once, as coroutines over `Transport`. On asyncio they are awaited; the blocking
transport's coroutines never suspend, so that `finish` runs any coroutine over it like a plain function call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from ._settings import Settings
from ._wire import Method

T = TypeVar("T")
CallMetadata = tuple[tuple[str, str], ...]


class Transport(Protocol):
    """One connection to a daemon. Failed calls raise grpc.RpcError."""

    async def unary(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        """One request, one response."""

    async def upload(self, method: Method, pieces: Iterable[Any], timeout: float | None, metadata: CallMetadata) -> Any:
        """A stream of requests, which are made while they are sent; one response."""

    def stream(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        """One request, a stream of responses: a call to give to `read`, that has cancel()."""

    async def read(self, call: Any) -> Any:
        """The next response of a stream; None where it ended."""

    async def off_loop(self, work: Callable[[], None]) -> None:
        """Does what waits for a disk, so that no event loop is held up by it."""

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class Blocking:
    """A Transport whose coroutines never suspend. Threads may share it."""

    def __init__(self, settings: Settings, user_agent: str) -> None:
        options = settings.channel_options(user_agent)
        self._channel = (
            grpc.insecure_channel(settings.target, options)
            if settings.tls is None
            else grpc.secure_channel(settings.target, settings.tls.credentials(), options)
        )

    async def unary(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        return call(request, timeout=timeout, metadata=metadata)

    async def upload(self, method: Method, pieces: Iterable[Any], timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.stream_unary(method.path, method.request.SerializeToString, method.response.FromString)
        return call(iter(pieces), timeout=timeout, metadata=metadata)

    def stream(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.unary_stream(method.path, method.request.SerializeToString, method.response.FromString)
        return call(request, timeout=timeout, metadata=metadata)

    async def read(self, call: Any) -> Any:
        return next(call, None)

    async def off_loop(self, work: Callable[[], None]) -> None:
        work()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # this is the blocking one

    async def close(self) -> None:
        self._channel.close()


class Asyncio:
    """A Transport on the running event loop. The channel is made by the first call: only then there is a loop. Certificates are
    read before, so that a missing file is told where it was named."""

    def __init__(self, settings: Settings, user_agent: str) -> None:
        self._target = settings.target
        self._credentials = None if settings.tls is None else settings.tls.credentials()
        self._options = settings.channel_options(user_agent)
        self._made: grpc.aio.Channel | None = None

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._made is None:
            self._made = (
                grpc.aio.insecure_channel(self._target, self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(self._target, self._credentials, self._options)
            )
        return self._made

    async def unary(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        return await call(request, timeout=timeout, metadata=metadata)

    async def upload(self, method: Method, pieces: Iterable[Any], timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.stream_unary(method.path, method.request.SerializeToString, method.response.FromString)
        return await call(_off_loop(iter(pieces)), timeout=timeout, metadata=metadata)

    def stream(self, method: Method, request: Any, timeout: float | None, metadata: CallMetadata) -> Any:
        call = self._channel.unary_stream(method.path, method.request.SerializeToString, method.response.FromString)
        return call(request, timeout=timeout, metadata=metadata)

    async def read(self, call: Any) -> Any:
        response = await call.read()
        return None if response is grpc.aio.EOF else response

    async def off_loop(self, work: Callable[[], None]) -> None:
        await asyncio.to_thread(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


async def _off_loop(pieces: Iterator[Any]) -> AsyncGenerator[Any, None]:
    """Reads and hashes files in a thread, so that the event loop is not held up by a slow disk."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def finish(awaitable: Awaitable[T]) -> T:
    """Runs a coroutine over the blocking transport to its end."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a coroutine over the blocking transport suspended")


def drain(generator: AsyncGenerator[T, None]) -> Iterator[T]:
    """Iterates an async generator over the blocking transport; closes it when the loop is left."""
    try:
        while True:
            try:
                item = finish(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(generator.aclose())
