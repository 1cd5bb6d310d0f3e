"""Watches of jobs, of a job runner on a real ledger: each change is told, and the ledger is asked once for all who watch."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from memoryd import watches
from memoryd.core import Job, JobKind, JobState
from memoryd.errors import NotFound, ResourceExhausted
from memoryd.jobs import JobRunner, Progress
from memoryd.store.ledger import SqlLedger
from tests.unit.test_jobs import TENANT, Working, add, clock, ledger, running, until

__all__ = ["clock", "ledger"]  # fixtures


async def test_a_watch_gives_each_change_and_then_ends(ledger: SqlLedger) -> None:
    work = Working()
    job = add(ledger)
    async with running(ledger, work) as runner:
        seen: list[Job] = []
        async for state in runner.watch(TENANT, job.id):
            seen.append(state)
            if state.done > 3:
                work.enough = True
    assert seen[-1].state is JobState.SUCCEEDED
    done = [state.done for state in seen if state.state is JobState.RUNNING]
    assert done == sorted(done)
    assert len(set(done)) > 1
    assert seen[-2].total == 100


async def test_watching_what_another_tenant_has_is_not_found(ledger: SqlLedger) -> None:
    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    with pytest.raises(NotFound):
        await anext(runner.watch("blue", add(ledger).id))


class Counting:
    """Counts how often the ledger is asked for a job."""

    def __init__(self, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._get_job = ledger.get_job
        monkeypatch.setattr(ledger, "get_job", self.get_job)

    def get_job(self, tenant: str, job: str) -> Job:
        self.asked += 1
        return self._get_job(tenant, job)


@pytest.mark.parametrize("watchers", [1, 50])
async def test_however_many_watch_a_job_the_ledger_is_asked_once_for_all(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, watchers: int
) -> None:
    """Their questions would be in the way of heartbeats."""
    monkeypatch.setattr(watches, "WATCH_SECONDS", 1e6)  # it is asked for what is published
    counting, changes = Counting(ledger, monkeypatch), 10
    seen: list[list[Job]] = [[] for _ in range(watchers)]

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        for done in range(changes):
            progress.show("compress", done, changes)
            await until(lambda: all(states and states[-1].done == progress.job.done for states in seen))
        return {}

    job = add(ledger)
    async with running(ledger, handler) as runner:

        async def watch(states: list[Job]) -> None:
            async for state in runner.watch(TENANT, job.id):
                states.append(state)

        async with asyncio.timeout(30):
            await asyncio.gather(*map(watch, seen))
    assert {states[-1].state for states in seen} == {JobState.SUCCEEDED}
    assert changes < counting.asked <= 2 * (changes + 3)


async def test_the_more_jobs_are_watched_the_less_often_each_is_asked_for(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: set[float] = set()
    ask = watches._Watched.ask

    def spy(watched: Any, pause: float) -> Any:
        pauses.add(pause)
        return ask(watched, pause)

    monkeypatch.setattr(watches._Watched, "ask", spy)
    monkeypatch.setattr(watches, "MOST_ASKED", 2)
    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    open_ = [runner.watch(TENANT, add(ledger, f"d{number}").id) for number in range(6)]
    for states in open_:
        await anext(states)
    for states in open_:
        await states.aclose()
    assert pauses == {1.0, 1.5, 2.0, 2.5, 3.0}


async def test_what_another_process_does_to_a_watched_job_is_seen(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "WATCH_SECONDS", 0.01)
    job = add(ledger)
    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    async with contextlib.aclosing(runner.watch(TENANT, job.id)) as states, asyncio.timeout(30):
        assert (await anext(states)).state is JobState.PENDING
        ledger.cancel_job(TENANT, job.id)
        assert [state.state async for state in states] == [JobState.CANCELLED]


async def test_a_watcher_that_goes_away_takes_nothing_from_the_others_and_the_last_leaves_nothing(ledger: SqlLedger) -> None:
    before = asyncio.all_tasks()
    runner, job = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1), add(ledger)
    open_ = [runner.watch(TENANT, job.id) for _ in range(3)]
    for states in open_:
        await anext(states)
    going, staying, last = (asyncio.ensure_future(anext(states)) for states in open_)
    await asyncio.sleep(0)
    going.cancel()
    await runner.cancel(TENANT, job.id)
    for task in (staying, last):
        assert (await task).state is JobState.CANCELLED
    for states in open_:
        await states.aclose()

    pending = add(ledger, "d2")
    states = runner.watch(TENANT, pending.id)
    await anext(states)
    waiting = asyncio.ensure_future(anext(states))
    await asyncio.sleep(0)
    waiting.cancel()
    await until(lambda: asyncio.all_tasks() == before)


async def test_a_watch_begins_with_what_is_true_by_then(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the ledger is just being asked, for another: one who has retried a job would take it for dead."""
    asked, answer = threading.Event(), threading.Event()
    get_job = ledger.get_job

    def slow(tenant: str, job: str) -> Job:
        found = get_job(tenant, job)
        if not asked.is_set():
            asked.set()
            assert answer.wait(30)
        return found

    monkeypatch.setattr(ledger, "get_job", slow)
    job = ledger.add_job(TENANT, JobKind.REINDEX, "tenants/red", {})
    ledger.cancel_job(TENANT, job.id)
    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    first, second = (runner.watch(TENANT, job.id) for _ in range(2))
    before = asyncio.ensure_future(anext(first))
    await asyncio.to_thread(asked.wait, 30)
    ledger.retry_job(TENANT, job.id)
    after = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0)
    answer.set()
    assert [(await state).state for state in (before, after)] == [JobState.CANCELLED, JobState.PENDING]
    await first.aclose()
    await second.aclose()


async def test_a_tenant_has_so_many_watches_and_no_more(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "MAX_WATCHES", 2)
    ledger.ensure_tenant("blue")
    theirs = ledger.add_job("blue", JobKind.REINDEX, "tenants/blue", {})
    runner, job = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1), add(ledger)
    open_ = [runner.watch(TENANT, job.id), runner.watch(TENANT, add(ledger, "d2").id), runner.watch("blue", theirs.id)]
    for states in open_:
        await anext(states)
    with pytest.raises(ResourceExhausted, match="end some") as refused:
        await anext(runner.watch(TENANT, job.id))
    assert refused.value.reason == "TOO_MANY_WATCHES"
    await open_.pop(0).aclose()
    open_.append(runner.watch(TENANT, job.id))
    assert (await anext(open_[-1])).id == job.id
    for states in open_:
        await states.aclose()
