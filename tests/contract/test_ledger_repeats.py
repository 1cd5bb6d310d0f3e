"""A repeat that overlaps its first try: the connection broke, and the client asked again while the first was still under way.

On PostgreSQL, where transactions run side by side: on SQLite a write sees all that another does, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection

from memoryd.core import Memory, Request
from memoryd.store import ledger_memories
from memoryd.store.base import Ledger
from memoryd.store.ledger_memories import find_memory_uid
from tests.contract.locks import beside, until_waiting
from tests.contract.rows import memory, write

pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)

REQUEST = Request("r", "d")


def write_new_version(ledger: Ledger, old: str) -> object:
    written = write(ledger, "new", replaces=old, request=REQUEST)
    return written.document, written.job, written.erase


def delete_document(ledger: Ledger, old: str) -> object:
    return ledger.delete_document("acme", "m", old, REQUEST)


def delete_memory(ledger: Ledger, old: str) -> object:
    return ledger.delete_memory("acme", "m", REQUEST)


@pytest.mark.parametrize("call", [write_new_version, delete_document, delete_memory])
def test_a_repeat_that_waits_with_its_first_try_returns_what_that_made(
    ledger: Ledger, ledger_url: str, call: Callable[[Ledger, str], object]
) -> None:
    memory(ledger)
    old = write(ledger, "old").document.id
    with ThreadPoolExecutor(2) as pool:
        with beside(ledger_url) as conn:
            assert find_memory_uid(conn, "acme", "m", lock=True)
            tries = [pool.submit(call, ledger, old) for _ in range(2)]
            until_waiting(conn, 2)
        first, second = (each.result(30) for each in tries)
    assert first == second
    assert call(ledger, old) == first


def test_the_repeat_of_a_call_that_makes_a_memory_is_not_told_that_it_exists(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create() -> Memory:
        return ledger.create_memory("acme", "m", "", "", {}, REQUEST)

    def look_and_be_overtaken(conn: Connection, tenant: str, request: Request | None) -> str | None:
        monkeypatch.undo()
        found = ledger_memories.result_of(conn, tenant, request)
        made.append(create())
        return found

    made: list[Memory] = []
    monkeypatch.setattr(ledger_memories, "result_of", look_and_be_overtaken)
    repeated = create()
    assert made == [repeated]
