"""Servers for tests: children for those that do not run an event loop of their own, databases on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import create_engine, make_url, text

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


def new_database(server: str) -> str:
    """The URL of an empty database on the PostgreSQL at that URL."""
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)
