"""A memory learns by itself after enough new text, not too often, and never where the operator turned it off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryd.core import Adapter, Job, JobKind, new_id, now
from memoryd.jobs import Progress
from memoryd.learn.policy import LearnPolicy
from memoryd.store.ledger import SqlLedger
from tests.contract.rows import chunk, memory, write


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


def test_enough_new_text_makes_it_study_and_then_learn(ledger: SqlLedger) -> None:
    policy = LearnPolicy(ledger, 100, 3600)
    told(ledger, 60)
    assert policy.consider("acme", "m") is None
    told(ledger, 60)
    job = policy.consider("acme", "m")
    assert job is not None
    assert (job.kind, job.payload) == (JobKind.STUDY, {"then": "learn", "memory": "m"})
    assert policy.consider("acme", "m") is None, "too soon"
    assert LearnPolicy(ledger, 100, 0).consider("acme", "m") == job, "it has that before it already"


def test_text_that_an_adapter_knows_does_not_count(ledger: SqlLedger) -> None:
    document = told(ledger, 200)
    ledger.add_adapter(Adapter("acme", "m", new_id(), now(), "f" * 64, "b", "", "c", 1), [document], True)
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
