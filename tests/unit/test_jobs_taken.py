"""Attempts whose job is taken from them: by a lease that ran out while the machine stood still, or by a delete."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from memoryd.core import Job, JobKind, JobState, memory_name, new_id, now
from memoryd.jobs import JobRunner, Progress
from memoryd.store.ledger import SqlLedger
from tests.contract.rows import write
from tests.unit.test_jobs import TENANT, Clock, add, clock, ended, ledger, running, until

__all__ = ["clock", "ledger"]  # fixtures


class Attempts:
    """A handler that notes who begins and who ends."""

    def __init__(self) -> None:
        self.begun = 0
        self.under_way = 0
        self.most = 0
        self.enough = False

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        self.begun += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            while not self.enough:
                progress.step("work", 1, 2, resumable=False)
                await asyncio.sleep(0.005)
            return {"attempt": self.begun}
        finally:
            self.under_way -= 1


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


def learn(ledger: SqlLedger, kind: JobKind = JobKind.LEARN) -> Job:
    return ledger.request_learning(TENANT, "m", kind, {}, None)


@pytest.fixture
def memory(ledger: SqlLedger) -> None:
    ledger.create_memory(TENANT, "m", "", "", {}, None)


def deleted(ledger: SqlLedger, document: str) -> Job:
    """The ERASE job."""
    return ledger.delete_document(TENANT, "m", document, None)


def written(ledger: SqlLedger) -> str:
    return write(ledger, tenant=TENANT, memory="m").document.id


async def test_a_job_goes_on_after_the_machine_stood_still_for_longer_than_its_lease(
    ledger: SqlLedger, clock: Clock, attempts: Attempts
) -> None:
    job = add(ledger)
    async with running(ledger, attempts, lease_seconds=5.0):
        await until(lambda: attempts.begun)
        clock.skip(60)
        await until(lambda: ledger.get_job(TENANT, job.id).attempts == 2)
        await asyncio.sleep(0.05)  # any number of its steps
        attempts.enough = True
        done = await ended(ledger, job)
    assert (done.state, done.receipt) == (JobState.SUCCEEDED, {"attempt": 1})


@pytest.mark.usefixtures("memory")
async def test_learning_is_begun_again_then_and_never_by_two_attempts_at_a_time(
    ledger: SqlLedger, clock: Clock, attempts: Attempts
) -> None:
    job = learn(ledger)
    async with running(ledger, attempts, lease_seconds=5.0):
        await until(lambda: attempts.begun)
        clock.skip(60)
        await until(lambda: attempts.begun == 2)
        attempts.enough = True
        done = await ended(ledger, job)
    assert (done.state, done.receipt) == (JobState.SUCCEEDED, {"attempt": 2})
    assert attempts.most == 1


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("kind", [JobKind.LEARN, JobKind.STUDY])
async def test_erasing_waits_for_the_attempt_that_learned_before_the_delete_and_for_no_later_one(
    ledger: SqlLedger, attempts: Attempts, kind: JobKind
) -> None:
    document = written(ledger)
    ledger.cancel_job(TENANT, ledger.get_document(TENANT, "m", document).job)
    job = learn(ledger, kind)
    runner = JobRunner(ledger, slots=2, lease_seconds=30.0, attempts=3)
    task = asyncio.create_task(runner.run({kind: attempts, JobKind.ERASE: _nothing}))
    await until(lambda: attempts.begun)
    erase = deleted(ledger, document)
    await runner.stop_work_on(TENANT, {document}, erase)
    assert (attempts.begun, attempts.under_way) in ((1, 0), (2, 1)), "the first has ended"
    await until(lambda: attempts.begun == 2)
    await runner.stop_work_on(TENANT, {document}, erase)
    assert attempts.under_way == 1, "it has not seen what was deleted"
    attempts.enough = True
    assert (await ended(ledger, job)).receipt == {"attempt": 2}
    assert attempts.most == 1
    await runner.drain()
    await task


@pytest.mark.usefixtures("memory")
async def test_what_is_learning_elsewhere_is_left_alone(ledger: SqlLedger, attempts: Attempts) -> None:
    learn(ledger)
    async with running(ledger, attempts) as runner:
        await until(lambda: attempts.begun)
        for tenant, other in ((TENANT, "n"), ("blue", "m")):
            erase = Job(tenant, new_id(), JobKind.ERASE, memory_name(other), now(), payload={"memory": other})
            await runner.stop_work_on(tenant, {"d1"}, erase)
        assert (attempts.begun, attempts.under_way) == (1, 1)


async def _nothing(job: Job, progress: Progress) -> Mapping[str, str | int]:
    return {}
