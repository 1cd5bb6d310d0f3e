"""What the daemon does about an index that was lost, on a ledger that fails just then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from memoryd import app
from memoryd.app import Daemon
from memoryd.core import JobKind, Tenant, Usage, now
from memoryd.errors import ResourceExhausted, Unavailable
from memoryd.store.base import Page

TENANTS = ["red", "blue"]


class Ledger:
    """Of tenants with passages; each of its methods fails once, as on a full disk or a lost connection."""

    def __init__(self) -> None:
        self.reindexed: list[str] = []
        self._failures: dict[str, Exception] = {"list": Unavailable("no connection"), "add": ResourceExhausted("disk full")}

    def list_tenants(self, page_size: int, page_token: str) -> Page[Tenant]:
        self._fail("list")
        return Page([Tenant(tenant, "", now()) for tenant in TENANTS], "")

    def usage(self, tenant: str) -> Usage:
        return Usage(passages=1)

    def add_job(self, tenant: str, kind: JobKind, target: str, payload: dict[str, str]) -> None:
        if tenant == TENANTS[-1]:
            self._fail("add")
        self.reindexed.append(tenant)

    def _fail(self, method: str) -> None:
        if error := self._failures.pop(method, None):
            raise error


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(app, "_RETRY_SECONDS", 0.0)
    settings: Any = None
    return Daemon(settings)


async def test_jobs_run_and_what_is_lost_is_rebuilt_though_the_ledger_fails_at_first(daemon: Daemon) -> None:
    ledger, ran = Ledger(), []

    async def run(handlers: Any) -> None:
        ran.append(list(ledger.reindexed))

    index = SimpleNamespace(empty=lambda tenant: True)
    parts: Any = SimpleNamespace(ledger=ledger, index=index, jobs=SimpleNamespace(run=run), handlers={})
    await daemon._work(parts)
    assert ran == [TENANTS]


async def test_a_wiped_index_is_rebuilt_for_every_tenant_though_the_ledger_fails_at_first(daemon: Daemon) -> None:
    ledger, wiped, woken = Ledger(), asyncio.Event(), asyncio.Event()
    parts: Any = SimpleNamespace(ledger=ledger, jobs=SimpleNamespace(wake=woken.set))
    rebuilding = asyncio.create_task(daemon._rebuild(parts, wiped))
    try:
        await asyncio.sleep(0)  # what was wiped before it began is not its own
        for times in (1, 2):
            wiped.set()
            async with asyncio.timeout(30):
                await woken.wait()
            woken.clear()
            assert ledger.reindexed == TENANTS * times
    finally:
        rebuilding.cancel()
        await asyncio.wait([rebuilding])


async def test_documents_are_recompressed_though_the_ledger_fails_at_first(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [ResourceExhausted("disk full"), Unavailable("no connection")]
    asked, woken = [], asyncio.Event()

    def request(ledger: object, fingerprint: str) -> int:
        if failures:
            raise failures.pop()
        asked.append(fingerprint)
        return 3

    monkeypatch.setattr(app, "request_recompression", request)
    info = SimpleNamespace(compressor=SimpleNamespace(fingerprint="new"))
    ledger = SimpleNamespace(count_recompressing=lambda fingerprint: 0)
    parts: Any = SimpleNamespace(ledger=ledger, models=SimpleNamespace(info=info), jobs=SimpleNamespace(wake=woken.set))
    await daemon._recompress(parts)
    assert (asked, woken.is_set()) == (["new"], True)
