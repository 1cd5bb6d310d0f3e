"""The threads that stores are called in. A Milvus that hangs holds every thread that calls it, for seconds each time: it has
threads of its own, so that writes, claims of jobs and heartbeats go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoreThreads(ThreadPoolExecutor):
    """For `loop.set_default_executor`: what `asyncio.to_thread` calls runs here, methods of `apart` in as many others."""

    def __init__(self, threads: int, apart: type) -> None:
        super().__init__(threads, thread_name_prefix="store")
        self._apart = apart
        self._others = ThreadPoolExecutor(threads, thread_name_prefix="apart")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As ThreadPoolExecutor.submit."""
        called = fn.args[0] if isinstance(fn, partial) and fn.args else fn  # to_thread binds it to its context's `run`
        if isinstance(getattr(called, "__self__", None), self._apart):
            return self._others.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As ThreadPoolExecutor.shutdown."""
        self._others.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)
