"""The ERASE job: purges what a deleted document or memory left, and says so in a receipt.

The delete itself has made it unreachable; here its bytes go: tainted adapters, vectors, cached and stored embeddings, texts,
rows, in that order, so that a crash in between leaves the rows that tell what is still to be purged. The documents of a memory
go some at a time, rows and all: between, the job may give way, and the receipt keeps the counts.

Where a new version replaced the document, that version's COMPRESS job first copies what it can reuse (compress/reuse.py). ERASE
waits for that, which needs no worker; once that job has failed, was cancelled or has ended, and after ten minutes in any
case, it waits no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from itertools import islice

from memoryd.core import DEFAULT_TENANT, Document, Job, document_prefix, made_at, now
from memoryd.errors import NotFound
from memoryd.jobs import JobRunner, NotYet, Progress
from memoryd.learn.eraser import AdapterEraser
from memoryd.learn.runs import Runs
from memoryd.recall.embeddings import EmbeddingStore, cache_prefix
from memoryd.recall.underway import AnswersUnderWay
from memoryd.store.base import Blobs, Cache, Index, Ledger

_PATIENCE_SECONDS = 600.0
_LOOKED_AT = 1000  # documents
_ERASED = 64  # documents erased between two looks at the job

MARK = ("_ledger", "_ledger/mark")
"""A tenant that no caller can have, and its blob that says whose these blobs are."""


def owns(ledger: Ledger, blobs: Blobs) -> bool:
    """Whether the blobs are this ledger's, so that what it has no row of is nobody's. The first ledger that has any documents
    there, or finds none, puts its mark there: a new ledger, or another installation's, does not. Blocks."""
    mark = ledger.get_tenant(DEFAULT_TENANT).create_time.isoformat().encode()
    try:
        return blobs.get(*MARK) == mark
    except NotFound:
        held = list(islice((document for _, document in blobs.documents(DEFAULT_TENANT)), _LOOKED_AT))
        if held and not ledger.recorded(DEFAULT_TENANT, held):
            return False
        blobs.put(*MARK, mark)
        return True


def reclaim(ledger: Ledger, blobs: Blobs, runs: Runs, tenant: str, older_than_seconds: float) -> int:
    """Removes the bytes of documents that were never recorded: a kill came between a blob and its row, or a commit's outcome
    stayed unknown. An adapter has no row while it is judged, for hours maybe: what a run has named is left to that run. Returns
    how many documents. Blocks."""
    newest = now().timestamp() - older_than_seconds
    old = [(memory, document) for memory, document in blobs.documents(tenant) if made_at(document) < newest]
    kept = runs.adapters(tenant)  # asked first: a run ends, and names nothing any more, once its adapter has a row
    kept |= ledger.recorded(tenant, [document for _, document in old])
    lost = [(memory, document) for memory, document in old if document not in kept]
    for memory, document in lost:
        blobs.delete_prefix(tenant, document_prefix(tenant, memory, document))
    return len(lost)


class EraseJob:
    """Handles JobKind.ERASE."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        index: Index,
        cache: Cache,
        embeddings: EmbeddingStore,
        eraser: AdapterEraser,
        runs: Runs,
        jobs: JobRunner,
        answers: AnswersUnderWay,
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._index = index
        self._cache = cache
        self._embeddings = embeddings
        self._eraser = eraser
        self._runs = runs
        self._jobs = jobs
        self._answers = answers

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        if await asyncio.to_thread(self._awaited, job):
            raise NotYet
        memory, document = job.payload["memory"], job.payload.get("document", "")
        if adapter := job.payload.get("adapter"):
            return {"adapters": 1, **await self._eraser.erase(job.tenant, memory, adapter)}
        doomed = await asyncio.to_thread(self._ledger.deleted_documents, job.tenant, memory, document)
        await self._jobs.stop_work_on(job.tenant, {d.id for d in doomed}, job)
        counts = Counter({name: count for name, count in job.receipt.items() if isinstance(count, int)})  # of earlier tries
        counts.update(await self._erase_learned(job.tenant))
        tainted = await asyncio.to_thread(self._ledger.count_tainted, job.tenant, memory, [d.id for d in doomed])
        counts["adapters"] = max(counts["adapters"], tainted)  # their rows may be gone since
        # What earlier slices erased has no rows any more. Where one ended after the rows and before their count, the count of
        # all that it began with is right.
        counts["documents"] = total = max(counts["documents"], counts["erased"] + len(doomed))
        for first in range(0, max(len(doomed), 1), _ERASED):  # once where there are none, for the row of the memory
            if first:
                progress.step("erase", counts["erased"], total)
            some = doomed[first : first + _ERASED]
            for done, gone in enumerate(some, counts["erased"]):
                progress.note(**counts)
                progress.show("erase", done, total)
                await self._purge(gone, counts)
            progress.note(**counts)
            await asyncio.to_thread(self._ledger.erase_rows, job.tenant, memory, [d.id for d in some])
            counts["erased"] += len(some)
            progress.note(**counts)
        progress.show("erase", total, total)
        return {name: counts[name] for name in ("documents", "blobs", "vectors", "cache_keys", "adapters")}

    async def _purge(self, gone: Document, counts: Counter[str]) -> None:
        """All that is left of it but its rows."""
        self._answers.end(gone.tenant, gone.memory, gone.id)  # another daemon deleted it, or a call that was cut off
        self._embeddings.forget(gone.tenant, gone.id)
        counts["vectors"] += await asyncio.to_thread(self._index.delete_document, gone.tenant, gone.memory, gone.id)
        counts["cache_keys"] += await asyncio.to_thread(self._cache.delete_prefix, gone.tenant, cache_prefix(gone.id))
        prefix = document_prefix(gone.tenant, gone.memory, gone.id)
        counts["blobs"] += await asyncio.to_thread(self._blobs.delete_prefix, gone.tenant, prefix)

    async def _erase_learned(self, tenant: str) -> dict[str, int]:
        """What tainted adapters are made of, and the runs that have seen what is deleted."""
        await self._runs.sweep(tenant)
        tainted = await asyncio.to_thread(self._ledger.tainted_adapters, tenant)
        erased: Counter[str] = Counter()
        for adapter in tainted:
            erased.update(await self._eraser.erase(tenant, adapter.memory, adapter.id))
            await asyncio.to_thread(self._ledger.purged_adapter, tenant, adapter.id)
        return dict(erased)

    def _awaited(self, job: Job) -> bool:
        """Whether the new version's job may still read what is to be erased. Not for ever: to reuse is thrift, to erase a
        promise, and where versions follow each other faster than jobs run there is always one more to wait for."""
        if "after" not in job.payload or (now() - job.create_time).total_seconds() > _PATIENCE_SECONDS:
            return False
        try:
            return self._ledger.get_job(job.tenant, job.payload["after"]).reuses
        except NotFound:
            return False
