"""The REINDEX job: it gives way wherever it stands, also within a document, and indexes every passage all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memoryd import jobs
from memoryd.jobs import GiveWay, Progress
from memoryd.recall import indexing
from memoryd.recall.indexing import Indexer, ReindexJob, request_reindex
from memoryd.store.base import IndexRow
from memoryd.store.texts import Texts
from tests.unit.test_rechunk import prose
from tests.unit.test_reuse import MEMORY, TENANT, Lab


class Index:
    """Says what it was given."""

    def __init__(self) -> None:
        self.passages: list[str] = []

    def upsert(self, tenant: str, rows: Sequence[IndexRow]) -> None:
        self.passages += [row.passage for row in rows]


class Worker:
    async def embed(self, texts: list[str], *, urgent: bool) -> np.ndarray:
        return np.zeros((len(texts), 8), dtype=np.float32)


async def test_reindexing_goes_on_where_its_last_slice_stood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(indexing, "_PASSAGES", 8)
    lab, index = Lab(tmp_path), Index()
    documents = [lab.write(prose(range(start, start + 60))) for start in (0, 100, 200)]
    assert min(d.passage_count for d in documents) > 8, "a slice ends within each"
    parts: Any = (index, SimpleNamespace(worker=Worker()))
    reindexing = ReindexJob(lab.ledger, Indexer(lab.ledger, Texts(lab.ledger, lab.blobs), *parts))
    job, slices = request_reindex(lab.ledger, TENANT), 0
    while True:
        progress = Progress(job, lambda: None)
        try:
            receipt = await reindexing(job, progress)
            break
        except GiveWay:
            job, slices = progress.job, slices + 1
        if slices == 1:  # within the first document
            lab.ledger.delete_document(TENANT, MEMORY, documents[0].id, None)
    lab.ledger.close()
    begun, *others = documents
    expected = [(begun.id, n) for n in range(8)] + [(d.id, n) for d in others for n in range(d.passage_count)]
    assert index.passages == [f"{document}-{ordinal}" for document, ordinal in expected], "each once"
    assert receipt == {"documents": 2, "passages": sum(d.passage_count for d in others)}
    assert slices > len(documents)
