"""How the index connects, to a server that does not answer as it should. What it finds is in tests/contract/test_index.py."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from memoryd.errors import Unavailable
from memoryd.store import index as module
from memoryd.store.index import MilvusIndex

CALLS = 4


class Gate:
    """A lock that tells when so many have come to it."""

    def __init__(self, expected: int) -> None:
        self.all_came = threading.Event()
        self._expected = expected
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._expected -= 1
        if self._expected == 0:
            self.all_came.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_calls_that_waited_for_a_connection_that_failed_fail_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself would take as long again, one after another."""
    index, gate, tries = MilvusIndex("http://nowhere", 8, "fingerprint"), Gate(CALLS), []

    def hangs(*_: Any, **__: Any) -> None:
        tries.append(None)
        assert gate.all_came.wait(30)
        raise TimeoutError

    monkeypatch.setattr(module, "MilvusClient", hangs)
    monkeypatch.setattr(index, "_connecting", gate)
    with ThreadPoolExecutor(CALLS) as threads:
        calls = [threads.submit(index.search_text, "acme", ["m"], "word", 5) for _ in range(CALLS)]
        assert [type(call.exception()) for call in calls] == [Unavailable] * CALLS
    assert len(tries) == 1
    with pytest.raises(Unavailable):
        index.search_text("acme", ["m"], "word", 5)
    assert len(tries) == 2, "a later call tries again"


def test_a_client_of_a_server_that_does_not_get_ready_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Client:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def has_collection(self, *_: Any, **__: Any) -> bool:
            return True

        def load_collection(self, *_: Any, **__: Any) -> None:
            raise TimeoutError

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(module, "MilvusClient", Client)
    with pytest.raises(Unavailable):
        MilvusIndex("http://nowhere", 8, "fingerprint").count("acme")
    assert len(closed) == 1
