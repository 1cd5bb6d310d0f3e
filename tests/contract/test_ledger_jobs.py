"""Jobs: leased to one owner at a time, in fair turns, and never lost."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from memoryd.core import Job, JobKind, JobState, now
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Ledger


def add(ledger: Ledger, tenant: str = "acme", kind: JobKind = JobKind.REINDEX) -> str:
    return ledger.add_job(tenant, kind, "target", {}).id


def claim(ledger: Ledger, owner: str = "w", lease: float = 60.0) -> Job:
    job = ledger.claim_job(owner, lease)
    assert job is not None
    return job


def test_nothing_due_is_none(ledger: Ledger) -> None:
    assert ledger.claim_job("w", 60) is None


def test_the_oldest_goes_first_and_to_one_owner(ledger: Ledger) -> None:
    first, second = add(ledger), add(ledger)
    job = claim(ledger)
    assert (job.id, job.state, job.attempts) == (first, JobState.RUNNING, 1)
    assert claim(ledger).id == second
    assert ledger.claim_job("w", 60) is None


def test_tenants_take_turns(ledger: Ledger) -> None:
    for tenant in ("acme", "acme", "acme", "other"):
        add(ledger, tenant)
    assert [claim(ledger).tenant for _ in range(4)] == ["acme", "other", "acme", "acme"]


def test_claims_at_once_never_share_a_job(ledger: Ledger) -> None:
    ids = {add(ledger) for _ in range(20)}
    claimed: list[str] = []

    def work(owner: str) -> None:
        while (job := ledger.claim_job(owner, 60)) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_a_lease_that_runs_out_gives_the_job_to_the_next(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger, "first", lease=0.0)
    again = claim(ledger, "second")
    assert (again.id, again.attempts) == (id_, 2)
    assert not ledger.heartbeat("acme", id_, "first", 60, "", 0, 0, 0.0)
    assert not ledger.finish_job("acme", id_, "first", {})
    assert not ledger.fail_job("acme", id_, "first", "late", None)
    assert ledger.finish_job("acme", id_, "second", {"vectors": 3, "where": "index"})
    done = ledger.get_job("acme", id_)
    assert (done.state, done.receipt) == (JobState.SUCCEEDED, {"vectors": 3, "where": "index"})
    assert done.end_time is not None


def test_a_heartbeat_keeps_the_lease_and_tells_progress(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger, lease=0.05)
    assert ledger.heartbeat("acme", id_, "w", 60, "COMPRESS", 3, 10, 1.5)
    time.sleep(0.06)  # past the first lease: that is what is tested
    assert ledger.claim_job("other", 60) is None
    job = ledger.get_job("acme", id_)
    assert (job.stage, job.done, job.total, job.rate) == ("COMPRESS", 3, 10, 1.5)


def test_what_a_receipt_has_so_far_is_kept_with_the_stage(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger, lease=0.0)
    assert ledger.heartbeat("acme", id_, "w", 0.0, "index", 0, 0, 0.0, {"reused": 3})
    assert ledger.heartbeat("acme", id_, "w", 0.0, "index", 1, 0, 0.0)
    again = claim(ledger, "another")
    assert (again.stage, again.receipt) == ("index", {"reused": 3})


def test_a_failed_job_waits_for_its_retry_and_dies_in_the_end(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger)
    assert ledger.fail_job("acme", id_, "w", "no luck", now() + timedelta(hours=1))
    waiting = ledger.get_job("acme", id_)
    assert (waiting.state, waiting.error) == (JobState.PENDING, "no luck")
    assert ledger.claim_job("w", 60) is None


def test_a_retry_that_is_due_is_claimed_and_a_dead_job_is_not(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger)
    ledger.fail_job("acme", id_, "w", "again", now())
    assert claim(ledger).attempts == 2
    assert ledger.fail_job("acme", id_, "w", "for good", None)
    assert ledger.get_job("acme", id_).state is JobState.DEAD
    assert ledger.claim_job("w", 60) is None
    retried = ledger.retry_job("acme", id_)
    assert (retried.state, retried.attempts, retried.error, retried.end_time) == (JobState.PENDING, 0, "", None)
    assert claim(ledger).id == id_
    with pytest.raises(FailedPrecondition):
        ledger.retry_job("acme", id_)


def test_a_released_job_gives_way_with_its_attempt_uncounted(ledger: Ledger) -> None:
    id_, waiting = add(ledger), add(ledger)
    claim(ledger)
    ledger.release_job("acme", id_, "w")
    released = ledger.get_job("acme", id_)
    assert (released.state, released.attempts) == (JobState.PENDING, 0)
    assert [claim(ledger).id, claim(ledger).id] == [waiting, id_]


def test_a_released_job_may_come_back_later(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger)
    ledger.release_job("acme", id_, "w", 3600.0)
    assert ledger.get_job("acme", id_).state is JobState.PENDING
    assert ledger.claim_job("w", 60) is None


def test_cancel_ends_what_has_not_ended(ledger: Ledger) -> None:
    id_ = add(ledger)
    claim(ledger)
    assert ledger.cancel_job("acme", id_).state is JobState.CANCELLED
    assert not ledger.heartbeat("acme", id_, "w", 60, "", 0, 0, 0.0)
    end = ledger.get_job("acme", id_).end_time
    assert ledger.cancel_job("acme", id_).end_time == end
    assert ledger.claim_job("w", 60) is None
    with pytest.raises(FailedPrecondition):
        ledger.cancel_job("acme", add(ledger, kind=JobKind.ERASE))
    with pytest.raises(NotFound):
        ledger.cancel_job("acme", "none")


def test_are_listed_in_pages(ledger: Ledger) -> None:
    ids = [add(ledger) for _ in range(3)]
    first = ledger.list_jobs("acme", 2, "")
    assert [job.id for job in (*first.items, *ledger.list_jobs("acme", 2, first.next_token).items)] == ids
