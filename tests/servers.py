"""Child servers for tests that do not run an event loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from memoryd.child import ChildProcess

T = TypeVar("T")
C = TypeVar("C", bound=ChildProcess)


class Loop:
    """An event loop in a thread that lives as long as the children that it starts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def running(child: C) -> Iterator[C]:
    """Started, and stopped at the end."""
    loop = Loop()
    try:
        loop.run(child.start())
        yield child
    finally:
        loop.run(child.stop())
        loop.close()
