"""The ERASE job of a memory: it gives way between some documents and the next, and its receipt counts each of them once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from memoryd import forget, jobs
from memoryd.core import Job
from memoryd.errors import Unavailable
from memoryd.jobs import GiveWay, JobRunner, Progress
from tests.unit.test_reuse import MEMORY, TENANT, Lab, erase_job

DOCUMENTS = 5
RECEIPT = {"documents": DOCUMENTS, "blobs": DOCUMENTS, "vectors": 0, "cache_keys": 0, "adapters": 0}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def job(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Of a memory whose documents take three slices."""
    monkeypatch.setattr(jobs, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(forget, "_ERASED", 2)
    for number in range(DOCUMENTS):
        lab.write(f"text of number {number}")
    return lab.ledger.delete_memory(TENANT, MEMORY, None)


async def test_a_large_memory_is_erased_in_slices_and_its_receipt_counts_all(lab: Lab, job: Job, tmp_path: Path) -> None:
    erasing = erase_job(lab, JobRunner(lab.ledger, slots=1, lease_seconds=10, attempts=1), tmp_path / "runs")
    for left in (3, 1):
        progress = Progress(job, lambda: None)
        with pytest.raises(GiveWay):
            await erasing(job, progress)
        job = progress.job
        assert len(lab.ledger.deleted_documents(TENANT, MEMORY)) == len(list(lab.blobs.documents(TENANT))) == left
        assert (job.stage, job.done, job.total) == ("erase", DOCUMENTS - left, DOCUMENTS)
    assert await erasing(job, Progress(job, lambda: None)) == RECEIPT
    assert not lab.ledger.deleted_documents(TENANT, MEMORY)
    assert not list(lab.blobs.documents(TENANT))


@pytest.mark.parametrize("committed", [True, False])
async def test_documents_whose_rows_may_or_may_not_be_gone_are_counted_once(
    lab: Lab,
    job: Job,
    committed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erasing = erase_job(lab, JobRunner(lab.ledger, slots=1, lease_seconds=10, attempts=1), tmp_path / "runs")
    erase_rows = lab.ledger.erase_rows

    def unsure(tenant: str, memory: str, documents: Sequence[str]) -> int:
        if committed:
            erase_rows(tenant, memory, documents)
        raise Unavailable("the connection broke")

    progress = Progress(job, lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(lab.ledger, "erase_rows", unsure)
        with pytest.raises(Unavailable):
            await erasing(job, progress)
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 1000.0)
    again = replace(progress.job, attempts=2)
    assert await erasing(again, Progress(again, lambda: None)) == RECEIPT
