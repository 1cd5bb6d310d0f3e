"""Fills the index from ledger and blobs: for a new document, and again for all of them after the index was lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from memoryd.core import Document, Job, JobKind
from memoryd.jobs import Progress, Stopped
from memoryd.models import Models
from memoryd.store.base import Index, IndexRow, Ledger
from memoryd.store.texts import Texts

_PASSAGES = 32  # embedded and indexed at a time


class Indexer:
    """Embeds passages and puts them into the index."""

    def __init__(self, ledger: Ledger, texts: Texts, index: Index, models: Models) -> None:
        self._ledger = ledger
        self._texts = texts
        self._index = index
        self._models = models

    async def add(self, document: Document, done: int, step: Callable[[int, int], None]) -> int:
        """Indexes the document's passages from number `done` on; calls `step(done, total)` after each batch. Adding what is
        there already changes nothing. Returns how many there are. Stopped, with nothing of it left in the index, where the
        document was deleted meanwhile."""
        while page := await asyncio.to_thread(self._ledger.passages, document.tenant, document.id, done - 1, _PASSAGES):
            texts = await asyncio.to_thread(self._texts.passages, document, page)
            if len(texts) != len(page):
                raise Stopped  # deleted meanwhile
            vectors = await self._models.worker.embed(texts, urgent=False)
            rows = [
                IndexRow(p.id, document.memory, document.id, text, vector.tobytes())
                for p, text, vector in zip(page, texts, vectors, strict=True)
            ]
            await asyncio.to_thread(self._index.upsert, document.tenant, rows)
            if not await asyncio.to_thread(self._ledger.get_documents, document.tenant, [document.id]):
                # Its ERASE job may have been faster than these rows.
                await asyncio.to_thread(self._index.delete_document, document.tenant, document.memory, document.id)
                raise Stopped
            done = page[-1].ordinal + 1
            step(done, document.passage_count)
        return done


class ReindexJob:
    """Handles JobKind.REINDEX: all of one tenant's documents that are cut into passages, also those that are being indexed
    just now. By id: the receipt keeps the last that is done, and how far the next one is, for the slice that goes on. A count
    of those that were done would say nothing once some of them are deleted."""

    def __init__(self, ledger: Ledger, indexer: Indexer) -> None:
        self._ledger = ledger
        self._indexer = indexer

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        known = job.receipt
        last, begun = str(known.get("last", "")), str(known.get("begun", ""))
        begun_passages = int(known.get("begun_passages", 0))
        done, passages = int(known.get("documents", 0)), int(known.get("passages", 0))
        documents = await asyncio.to_thread(self._chunked, job.tenant, last)
        total = done + len(documents)

        def step(indexed: int, _: int) -> None:
            progress.note(begun=document.id, begun_passages=indexed)
            progress.step("index", done, total)

        for document in documents:
            with contextlib.suppress(Stopped):  # it was deleted: the others are still to be indexed
                passages += await self._indexer.add(document, begun_passages if document.id == begun else 0, step)
            done += 1
            progress.note(last=document.id, documents=done, passages=passages)
            progress.step("index", done, total)
        return {"documents": done, "passages": passages}

    def _chunked(self, tenant: str, after: str) -> list[Document]:
        out: list[Document] = []
        while page := self._ledger.all_documents(tenant, after):
            out += [d for d in page if d.passage_count > 0]
            after = page[-1].id
        return out


def lost_tenants(ledger: Ledger, index: Index) -> list[str]:
    """Tenants that have passages and no vectors: the index was wiped, or the retrieval encoder changed."""
    lost, token = [], ""
    while True:
        page = ledger.list_tenants(1000, token)
        lost += [t.id for t in page.items if ledger.usage(t.id).passages > 0 and index.empty(t.id)]
        token = page.next_token
        if not token:
            return lost


def request_reindex(ledger: Ledger, tenant: str) -> Job:
    """Adds the job that rebuilds a tenant's vectors."""
    return ledger.add_job(tenant, JobKind.REINDEX, f"tenants/{tenant}", {})
