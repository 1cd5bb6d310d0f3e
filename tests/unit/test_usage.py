"""Usage is counted at once, written now and then, and lost by nothing but a kill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryd import usage
from memoryd.errors import Unavailable
from memoryd.store.ledger import SqlLedger
from memoryd.usage import UsageMeter


class Failing(SqlLedger):
    """A ledger that cannot be written to for a while."""

    fails = False

    def add_usage(self, tenant: str, **counts: int) -> None:
        if self.fails:
            raise Unavailable("the ledger cannot be used just now")
        super().add_usage(tenant, **counts)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Failing]:
    with contextlib.closing(Failing(f"sqlite:///{tmp_path / 'ledger.db'}")) as made:
        made.create_tenant("acme", "")
        made.create_tenant("other", "")
        yield made


def test_it_is_up_to_date_when_it_is_asked_for(ledger: Failing) -> None:
    meter = UsageMeter(ledger)
    meter.add("acme", searches=1)
    meter.add("acme", answers=1, prompt_tokens=7, output_tokens=2)
    meter.add("acme", answers=1, prompt_tokens=5)
    used = meter.usage("acme")
    assert (used.searches, used.answers, used.prompt_tokens, used.output_tokens) == (1, 2, 12, 2)
    assert meter.usage("acme") == used
    assert meter.usage("other").answers == 0


def test_what_cannot_be_written_stays_counted(ledger: Failing) -> None:
    meter = UsageMeter(ledger)
    meter.add("acme", searches=3)
    meter.add("other", searches=1)
    ledger.fails = True
    with pytest.raises(Unavailable):
        meter.flush()
    meter.add("acme", searches=1)
    ledger.fails = False
    assert meter.usage("acme").searches == 4
    assert meter.usage("other").searches == 1


async def test_it_is_written_without_being_asked_for(ledger: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_SECONDS", 0.01)
    meter = UsageMeter(ledger)
    meter.add("acme", searches=3)
    ledger.fails = True
    running = asyncio.create_task(meter.run())
    await asyncio.sleep(0.1)
    assert ledger.usage("acme").searches == 0
    ledger.fails = False
    async with asyncio.timeout(20):
        while ledger.usage("acme").searches != 3:  # noqa: ASYNC110 - the ledger has no event to wait for
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
