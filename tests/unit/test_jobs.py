"""The job runner on a real ledger: leases, retries, giving way, cancelling, draining."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memoryd import core, jobs
from memoryd.core import Job, JobKind, JobState, new_id, now
from memoryd.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable, WorkerLost
from memoryd.jobs import GiveWay, Handler, JobRunner, NotYet, Progress
from memoryd.store import ledger_jobs
from memoryd.store.ledger import SqlLedger

TENANT = "red"


class Clock:
    """What `core.now` says: real time, and what was skipped of it."""

    def __init__(self) -> None:
        self.skipped = timedelta()
        self._now = core.now

    def now(self) -> datetime:
        return self._now() + self.skipped

    def skip(self, seconds: float) -> None:
        self.skipped += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(core, "now", clock.now)
    monkeypatch.setattr(ledger_jobs, "now", clock.now)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    return clock


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[SqlLedger]:
    ledger = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.ensure_tenant(TENANT)
    yield ledger
    ledger.close()


@pytest.fixture
def impatient(ledger: SqlLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> SqlLedger:
    """A ledger after each of whose failures more than the longest pause goes by."""
    fail_job = ledger.fail_job

    def fail_and_skip(*arguments: Any) -> bool:
        kept = fail_job(*arguments)
        clock.skip(jobs.MAX_BACKOFF_SECONDS + 1)
        return kept

    monkeypatch.setattr(ledger, "fail_job", fail_and_skip)
    return ledger


def add(ledger: SqlLedger, document: str = "d1", kind: JobKind = JobKind.COMPRESS) -> Job:
    return ledger.add_job(TENANT, kind, f"memories/m/documents/{document}", {"memory": "m", "document": document})


@contextlib.asynccontextmanager
async def running(ledger: SqlLedger, handler: Handler, **options: Any) -> AsyncIterator[JobRunner]:
    runner = JobRunner(ledger, **({"slots": 2, "lease_seconds": 30.0, "attempts": 3} | options))
    task = asyncio.create_task(runner.run(dict.fromkeys(JobKind, handler)))
    try:
        yield runner
    finally:
        await runner.drain()
        await task


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # most are of the ledger, which has no event to wait for
            await asyncio.sleep(0.005)


async def ended(ledger: SqlLedger, job: Job) -> Job:
    await until(lambda: ledger.get_job(TENANT, job.id).state.ended)
    return ledger.get_job(TENANT, job.id)


class Working:
    """A handler that takes step after step until it is let go."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.ended: list[str] = []
        self.enough = False

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        document = job.payload["document"]
        try:
            while not self.enough:
                self.steps[document] = self.steps.get(document, 0) + 1
                progress.step("compress", self.steps[document], 100)
                await asyncio.sleep(0.005)
            return {}
        finally:
            self.ended.append(document)


async def test_a_job_ends_with_its_receipt(ledger: SqlLedger) -> None:
    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        progress.step("compress", 1, 1)
        return {"chunks": 1}

    job = add(ledger)
    async with running(ledger, handler):
        done = await ended(ledger, job)
    assert (done.state, done.receipt, done.attempts, done.error) == (JobState.SUCCEEDED, {"chunks": 1}, 1, "")


async def test_a_failing_job_is_tried_again_later_and_later_and_then_is_dead(
    impatient: SqlLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = impatient
    pauses: list[float | None] = []
    fail_job = ledger.fail_job

    def spy(tenant: str, job: str, owner: str, error: str, retry_at: datetime | None) -> bool:
        pauses.append(retry_at and (retry_at - clock.now()).total_seconds())
        return fail_job(tenant, job, owner, error, retry_at)

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        raise InvalidArgument(f"try {job.attempts} was bad")

    monkeypatch.setattr(ledger, "fail_job", spy)
    begun = clock.now()
    monkeypatch.setattr(clock, "_now", lambda: begun)  # only what is skipped goes by, however busy the machine is
    job = add(ledger)
    async with running(ledger, handler, attempts=10):
        dead = await ended(ledger, job)
    assert (dead.state, dead.attempts, dead.error) == (JobState.DEAD, 10, "try 10 was bad")
    assert pauses.pop() is None
    assert [round(pause or 0, 1) for pause in pauses] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_dead_job_that_is_retried_starts_afresh(ledger: SqlLedger) -> None:
    broken = True

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        if broken:
            raise InvalidArgument("broken")
        return {}

    job = ledger.add_job(TENANT, JobKind.REINDEX, "tenants/red", {})
    async with running(ledger, handler, attempts=1) as runner:
        assert (await ended(ledger, job)).state is JobState.DEAD
        broken = False
        ledger.retry_job(TENANT, job.id)
        runner.wake()
        done = await ended(ledger, job)
    assert (done.state, done.attempts, done.error) == (JobState.SUCCEEDED, 1, "")


@pytest.mark.parametrize(
    ("kind", "error"), [(JobKind.COMPRESS, Unavailable("the worker is down")), (JobKind.ERASE, InvalidArgument("broken"))]
)
async def test_what_a_dead_part_fails_and_what_must_be_erased_is_tried_for_ever(
    impatient: SqlLedger, kind: JobKind, error: Exception
) -> None:
    tries = 0

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        nonlocal tries
        tries += 1
        if tries <= 20:
            raise error
        return {}

    job = add(impatient, kind=kind)
    async with running(impatient, handler, attempts=1):
        assert (await ended(impatient, job)).state is JobState.SUCCEEDED
    assert tries == 21


async def test_what_ends_the_worker_each_time_is_dead_and_says_so_and_starts_afresh_when_a_person_retries_it(
    impatient: SqlLedger,
) -> None:
    lost = 0

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        nonlocal lost
        lost += 1
        raise WorkerLost

    job = impatient.add_job(TENANT, JobKind.REINDEX, "tenants/red", {})  # one of no document, which would have to be there
    async with running(impatient, handler, attempts=3) as runner:
        for losses in (3, 6):
            dead = await ended(impatient, job)
            assert (dead.state, lost) == (JobState.DEAD, losses)
            assert "the worker ended each of the last 3 times that it worked on this" in dead.error
            assert "worker.log" in dead.error
            assert "retry the job, or delete" in dead.error
            impatient.retry_job(TENANT, job.id)
            runner.wake()


@pytest.mark.parametrize("error", [Unavailable("the worker is down"), ResourceExhausted("the disk is full")])
async def test_a_part_that_is_down_between_two_lost_workers_is_not_counted_with_them(
    impatient: SqlLedger, error: Exception
) -> None:
    """An operator restarts it, or it does not start: that is not the job's doing."""
    failures = iter([WorkerLost(), *[error] * 9, WorkerLost(), *[error] * 9])

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        for failure in failures:
            raise failure
        return {}

    job = add(impatient)
    async with running(impatient, handler, attempts=3):
        assert (await ended(impatient, job)).state is JobState.SUCCEEDED


async def test_a_job_that_gets_further_between_lost_workers_is_not_dead(impatient: SqlLedger) -> None:
    tries = 0

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        nonlocal tries
        tries += 1
        if tries > 12:
            return {}
        if tries % 2:
            raise WorkerLost
        progress.show("compress", tries, 12)
        raise GiveWay

    job = add(impatient)
    async with running(impatient, handler, attempts=2):
        done = await ended(impatient, job)
    assert (done.state, done.receipt) == (JobState.SUCCEEDED, {})


async def test_what_was_beside_the_job_that_ends_the_worker_lives_on(
    impatient: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents in the same worker, a run of learning, and the poison: it alone is dead."""
    in_hand: dict[str, asyncio.Future[None]] = {}
    lost = 0

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        """Documents are done once the worker was lost for the first time, when all were in hand; learning never is."""
        nonlocal lost
        name = job.payload.get("document", "learning")
        call = in_hand[name] = asyncio.get_running_loop().create_future()
        try:
            if name == "poison":
                await until(lambda: "learning" in in_hand and (lost or len(in_hand) == 4))
                lost += 1
                for each in in_hand.values():
                    each.set_exception(WorkerLost())
            if not lost or name in ("poison", "learning"):
                await call
            return {}
        finally:
            del in_hand[name]

    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.3)  # which a job that waits its turn stays away for
    poison = add(impatient, "poison")
    others = [add(impatient, "d1"), add(impatient, "d2")]
    learning = impatient.add_job(TENANT, JobKind.LEARN, "memories/m", {"memory": "m"})
    async with running(impatient, handler, slots=4, attempts=3, lease_seconds=1e6):  # time is skipped
        assert (await ended(impatient, poison)).state is JobState.DEAD
        assert lost == 3
        assert [(await ended(impatient, job)).state for job in others] == [JobState.SUCCEEDED] * 2
        await until(lambda: "learning" in in_hand)
        in_hand["learning"].set_result(None)
        assert (await ended(impatient, learning)).state is JobState.SUCCEEDED


async def test_an_unexpected_failure_shows_its_kind_and_not_its_words(ledger: SqlLedger) -> None:
    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        raise KeyError("a document's text")

    job = add(ledger)
    async with running(ledger, handler, attempts=1):
        dead = await ended(ledger, job)
    assert dead.error == "unexpected KeyError: see the log"


async def test_a_job_that_gives_way_lets_others_in_and_goes_on_where_it_was(ledger: SqlLedger) -> None:
    order: list[tuple[str, str, int]] = []

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        order.append((job.payload["document"], job.stage, job.done))
        if job.stage == "":
            progress.show("index", 7, 9)
            progress.give_way()
        return {}

    first, second = add(ledger, "d1"), add(ledger, "d2")
    async with running(ledger, handler, slots=1, attempts=1):
        ends = [await ended(ledger, job) for job in (first, second)]
    assert order == [("d1", "", 0), ("d2", "", 0), ("d1", "index", 7), ("d2", "index", 7)]
    assert [(job.state, job.attempts) for job in ends] == [(JobState.SUCCEEDED, 1)] * 2  # giving way is no try


async def test_a_job_that_fails_goes_on_at_the_stage_that_it_reached(impatient: SqlLedger) -> None:
    begun: list[tuple[str, int, Any]] = []

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        begun.append((job.stage, job.done, job.receipt.get("reused")))
        if job.stage == "":
            progress.note(reused=3)
            progress.show("index", 7, 9)
            raise Unavailable("the worker is restarting")
        return {}

    job = add(impatient)
    async with running(impatient, handler):
        await ended(impatient, job)
    assert begun == [("", 0, None), ("index", 7, 3)]


async def test_what_is_noted_for_the_receipt_outlives_giving_way(ledger: SqlLedger) -> None:
    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        if job.stage == "":
            progress.note(reused=3)
            progress.show("index", 0, 0)
            progress.give_way()
        return {"reused": progress.job.receipt["reused"]}

    job = add(ledger)
    async with running(ledger, handler):
        assert (await ended(ledger, job)).receipt == {"reused": 3}


async def test_a_job_that_waits_for_another_looks_again_ever_later_and_that_is_no_try(
    ledger: SqlLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, pauses = ledger.release_job, list[float]()

    def release_and_skip(tenant: str, job: str, owner: str, seconds: float = 0.0) -> None:
        release(tenant, job, owner, seconds)
        pauses.append(seconds)
        clock.skip(seconds + 1)

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        if len(pauses) < 30:
            raise NotYet
        return {}

    monkeypatch.setattr(ledger, "release_job", release_and_skip)
    job = add(ledger, kind=JobKind.ERASE)
    async with running(ledger, handler, attempts=1):
        done = await ended(ledger, job)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert pauses[-1] == jobs.MAX_BACKOFF_SECONDS


async def test_a_job_that_works_for_long_goes_to_the_end_of_the_queue(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 0.0)
    work = Working()
    add(ledger, "d1")
    add(ledger, "d2")
    async with running(ledger, work, slots=1):
        await until(lambda: work.ended[:5] == ["d1", "d2", "d1", "d2", "d1"])


async def test_no_more_jobs_run_than_there_are_slots(ledger: SqlLedger) -> None:
    work = Working()
    for number in range(4):
        add(ledger, f"d{number}")
    async with running(ledger, work, slots=2):
        await until(lambda: min(work.steps.values(), default=0) > 5 and len(work.steps) == 2)
        states = [job.state for job in ledger.list_jobs(TENANT, 10, "").items]
        assert sorted(states) == [JobState.PENDING] * 2 + [JobState.RUNNING] * 2
        work.enough = True
        await until(lambda: len(work.ended) == 4)


async def test_a_cancelled_job_stops_at_its_next_step(ledger: SqlLedger) -> None:
    work = Working()
    job = add(ledger)
    async with running(ledger, work) as runner:
        await until(lambda: work.steps)
        cancelled = await runner.cancel(TENANT, job.id)
        assert cancelled.state is JobState.CANCELLED
        await until(lambda: work.ended == ["d1"])
    assert ledger.get_job(TENANT, job.id).state is JobState.CANCELLED


async def test_only_the_tenant_itself_cancels_its_job_and_erasing_is_not_cancelled(ledger: SqlLedger) -> None:
    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    with pytest.raises(NotFound):
        await runner.cancel("blue", add(ledger).id)
    with pytest.raises(FailedPrecondition):
        await runner.cancel(TENANT, add(ledger, kind=JobKind.ERASE).id)


async def test_a_drain_leaves_jobs_pending_for_the_next_daemon(ledger: SqlLedger) -> None:
    work = Working()
    job = add(ledger)
    async with running(ledger, work):
        await until(lambda: work.steps)
    left = ledger.get_job(TENANT, job.id)
    assert (left.state, left.attempts, left.stage) == (JobState.PENDING, 0, "compress")
    assert left.done == work.steps["d1"]


async def test_the_lease_of_a_dead_daemon_is_taken_over_when_it_runs_out(ledger: SqlLedger, clock: Clock) -> None:
    job = add(ledger)
    claimed = ledger.claim_job("a daemon that was killed", 10.0)
    assert claimed is not None
    assert claimed.id == job.id

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        return {}

    async with running(ledger, handler):
        await asyncio.to_thread(ledger.usage, TENANT)
        assert ledger.get_job(TENANT, job.id).state is JobState.RUNNING
        clock.skip(11)
        done = await ended(ledger, job)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)


async def test_who_lost_its_lease_stops_and_writes_nothing(ledger: SqlLedger, clock: Clock) -> None:
    work = Working()
    job = add(ledger)
    async with running(ledger, work, lease_seconds=2.0, slots=1):
        await until(lambda: work.steps)
        clock.skip(3600)  # as if this process had been asleep for an hour
        taken = ledger.claim_job("another daemon", 7200.0)
        assert taken is not None
        assert taken.id == job.id
        await until(lambda: work.ended == ["d1"])
    assert ledger.get_job(TENANT, job.id).state is JobState.RUNNING  # the other's
    assert ledger.finish_job(TENANT, job.id, "another daemon", {})


async def test_a_heartbeat_keeps_the_lease(ledger: SqlLedger, clock: Clock) -> None:
    work = Working()
    add(ledger)
    async with running(ledger, work, lease_seconds=1.0, slots=1):
        await until(lambda: work.steps)
        for _ in range(3):  # three leases long, in steps that a heartbeat outruns
            before = work.steps["d1"]
            clock.skip(0.5)
            await asyncio.sleep(0.3)  # a heartbeat comes every quarter of a lease
            assert work.steps["d1"] > before
        assert ledger.claim_job("another daemon", 1.0) is None
        work.enough = True
        await until(lambda: work.ended)


async def test_erasing_waits_until_nothing_works_on_the_document(ledger: SqlLedger) -> None:
    work = Working()
    add(ledger, "d1")
    add(ledger, "d2")
    async with running(ledger, work) as runner:
        await until(lambda: len(work.steps) == 2)
        erase = Job(TENANT, new_id(), JobKind.ERASE, "", now(), payload={"memory": "m"})
        await runner.stop_work_on(TENANT, {"d1", "d9"}, erase)
        assert work.ended == ["d1"]
        await runner.stop_work_on("blue", {"d2"}, erase)
        assert work.ended == ["d1"]


async def test_a_ledger_that_fails_for_a_while_does_not_end_the_runner(
    ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, failures = ledger.claim_job, iter([Unavailable("busy"), Unavailable("busy")])

    def flaky(owner: str, lease: float) -> Job | None:
        for error in failures:
            raise error
        return claim(owner, lease)

    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        return {}

    monkeypatch.setattr(ledger, "claim_job", flaky)
    job = add(ledger)
    async with running(ledger, handler):
        assert (await ended(ledger, job)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("turns", range(6))
async def test_a_runner_that_is_cancelled_just_when_there_is_work_ends(ledger: SqlLedger, turns: int) -> None:
    async def handler(job: Job, progress: Progress) -> Mapping[str, str | int]:
        return {}

    runner = JobRunner(ledger, slots=1, lease_seconds=30.0, attempts=1)
    task = asyncio.create_task(runner.run(dict.fromkeys(JobKind, handler)))
    await until(lambda: runner._wake._waiters)
    runner.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await task
