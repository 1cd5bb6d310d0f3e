"""A memory learns by itself after enough new text, not too often, and never where the operator turned it off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memoryd.core import Adapter, Job, JobKind, new_id, now
from memoryd.errors import Unavailable
from memoryd.jobs import Progress
from memoryd.learn import policy as policies
from memoryd.learn.policy import LearnPolicy
from memoryd.store.ledger import SqlLedger
from tests.contract.rows import chunk, memory, write
from tests.unit.test_reuse import until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    made = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
    made.create_tenant("acme", "")
    memory(made)
    yield made
    made.close()


def told(ledger: SqlLedger, tokens: int) -> str:
    document = write(ledger).document.id
    ledger.add_chunks("acme", document, [chunk(document, 0, tokens=tokens)], [])
    return document


def trained() -> Adapter:
    return Adapter("acme", "m", new_id(), now(), "f" * 64, "b", "", "c", 1, gather_time=now())


def studies(ledger: SqlLedger) -> list[str]:
    """The memories that study, or have."""
    return [job.payload["memory"] for job in ledger.list_jobs("acme", 100, "").items if job.kind is JobKind.STUDY]


@pytest.fixture
async def runs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[LearnPolicy], None]]:
    """Starts a policy as the daemon does."""
    monkeypatch.setattr(policies, "_LOOK_SECONDS", 0.01)
    tasks: list[asyncio.Task[None]] = []
    yield lambda policy: tasks.append(asyncio.create_task(policy.run()))
    for task in tasks:
        task.cancel()
        await asyncio.wait([task])


def test_enough_new_text_makes_it_study_and_then_learn(ledger: SqlLedger) -> None:
    policy = LearnPolicy(ledger, 100, 3600)
    told(ledger, 60)
    assert policy.consider("acme", "m") is None
    told(ledger, 60)
    job = policy.consider("acme", "m")
    assert job is not None
    assert (job.kind, job.payload) == (JobKind.STUDY, {"then": "learn", "memory": "m"})
    assert LearnPolicy(ledger, 100, 0).consider("acme", "m") is None, "it has that before it already"
    ledger.cancel_job("acme", job.id)
    assert policy.consider("acme", "m") is None, "too soon"
    assert LearnPolicy(ledger, 100, 0).consider("acme", "m") is not None


def test_text_that_an_adapter_knows_does_not_count(ledger: SqlLedger) -> None:
    document = told(ledger, 200)
    ledger.add_adapter(trained(), [document], True)
    assert LearnPolicy(ledger, 100, 0).consider("acme", "m") is None
    told(ledger, 200)
    assert LearnPolicy(ledger, 100, 3600).consider("acme", "m") is None, "too soon"
    assert LearnPolicy(ledger, 100, 0).consider("acme", "m") is not None


def test_it_can_be_turned_off(ledger: SqlLedger) -> None:
    told(ledger, 10**6)
    assert LearnPolicy(ledger, 0, 0).consider("acme", "m") is None


async def test_a_memory_is_considered_when_a_document_is_done(ledger: SqlLedger) -> None:
    told(ledger, 200)

    async def compress(job: Job, progress: Progress) -> dict[str, str | int]:
        return {"chunks": 1}

    handle = LearnPolicy(ledger, 100, 0).after(compress)
    for of in ("m", "deleted since"):
        job = Job("acme", new_id(), JobKind.COMPRESS, "", now(), payload={"memory": of})
        assert await handle(job, Progress(job, lambda: None)) == {"chunks": 1}
    kinds = [job.kind for job in ledger.list_jobs("acme", 10, "").items]
    assert kinds.count(JobKind.STUDY) == 1


async def test_text_that_came_too_soon_is_learned_when_it_is_time(
    ledger: SqlLedger, runs: Callable[[LearnPolicy], None]
) -> None:
    """And not only when another document comes."""
    document = told(ledger, 10)
    ledger.add_adapter(trained(), [document], True)
    policy = LearnPolicy(ledger, 100, 1.0)
    runs(policy)
    told(ledger, 200)
    assert policy.consider("acme", "m") is None, "too soon"
    await until(lambda: studies(ledger) == ["m"])


async def test_text_of_before_the_daemons_start_is_considered(ledger: SqlLedger, runs: Callable[[LearnPolicy], None]) -> None:
    memory(ledger, "small")
    memory(ledger, "deleted")
    told(ledger, 200)
    for of, tokens in (("small", 99), ("deleted", 200)):
        document = write(ledger, memory=of).document.id
        ledger.add_chunks("acme", document, [chunk(document, 0, tokens=tokens)], [])
    ledger.delete_memory("acme", "deleted", None)
    runs(LearnPolicy(ledger, 100, 0))
    await until(lambda: bool(studies(ledger)))
    assert studies(ledger) == ["m"]


async def test_what_is_written_while_it_learns_is_considered_when_that_is_done(
    ledger: SqlLedger, runs: Callable[[LearnPolicy], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "_BUSY_SECONDS", 0.01)
    learning = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    policy = LearnPolicy(ledger, 100, 0)
    runs(policy)
    told(ledger, 200)
    assert policy.consider("acme", "m") is None, "it learns"
    assert studies(ledger) == []
    ledger.cancel_job("acme", learning.id)
    await until(lambda: studies(ledger) == ["m"])


@pytest.mark.parametrize("call", ["unlearned", "request_learning"])
async def test_a_ledger_that_is_down_delays_it(
    ledger: SqlLedger, runs: Callable[[LearnPolicy], None], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    told(ledger, 200)
    asked = 0
    works = getattr(ledger, call)

    def down(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise Unavailable("the ledger is down")
        return works(*arguments)

    monkeypatch.setattr(ledger, call, down)
    runs(LearnPolicy(ledger, 100, 0))
    await until(lambda: studies(ledger) == ["m"])


async def test_turned_off_it_does_not_run(ledger: SqlLedger) -> None:
    await LearnPolicy(ledger, 0, 0).run()
