"""Waiting for what must come, however long the machine takes for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from memoryd_client import Retry

PATIENT = Retry(attempts=10_000, max_delay=1.0)  # a client that outlives every restart


def until(true: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
