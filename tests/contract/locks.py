"""A transaction beside the ledger's own, on PostgreSQL: what it holds the ledger waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, NullPool, create_engine, text

_SECONDS = 30


@contextmanager
def beside(ledger_url: str) -> Iterator[Connection]:
    """Committed at the end."""
    with create_engine(ledger_url, poolclass=NullPool).begin() as conn:
        yield conn


def until_waiting(conn: Connection, count: int) -> None:
    """Returns once so many others wait for a lock."""
    until = time.monotonic() + _SECONDS
    while conn.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one() < count:
        assert time.monotonic() < until, "they do not wait"
        time.sleep(0.01)
