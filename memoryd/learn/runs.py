"""The runs of learning that are on disk, and how long they stay there.

A run that was cancelled, or failed as often as it may, stays: its job can be retried, and goes on at the checkpoint. But what
it has seen may have to be forgotten. So it goes with its memory, with any document that it has seen, once a newer LEARN of its
memory is done, and once it is done itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from memoryd.core import Job, JobState
from memoryd.errors import NotFound
from memoryd.learn.eraser import AdapterEraser
from memoryd.learn.run import Run
from memoryd.store.base import Ledger


class Runs:
    """Of all tenants, each under tenant and job."""

    def __init__(self, ledger: Ledger, eraser: AdapterEraser, directory: Path) -> None:
        self._ledger = ledger
        self._eraser = eraser
        self._directory = directory

    def of(self, job: Job) -> Run:
        """The run of this LEARN job, begun or not."""
        return Run(self._directory / job.tenant / job.id)

    def alive(self, tenant: str, documents: Collection[str]) -> bool:
        """Whether none of them is deleted. Blocks."""
        return len(self._ledger.get_documents(tenant, list(documents))) == len(documents)

    def adapters(self, tenant: str) -> set[str]:
        """Ids that its runs gave their results: these may be in blobs before they have a row, and go with the run. Blocks."""
        return {adapter for directory in self._directories(tenant) for adapter in Run(directory).adapters}

    async def sweep(self, tenant: str) -> int:
        """Removes the runs that may not stay: called where something was deleted. Returns how many."""
        count = 0
        for directory in await asyncio.to_thread(self._directories, tenant):
            try:
                job = await asyncio.to_thread(self._ledger.get_job, tenant, directory.name)
            except NotFound:
                await asyncio.to_thread(Run(directory).remove)
                continue
            count += await self.leave(job)
        return count

    async def leave(self, job: Job) -> bool:
        """Nothing in this process works on it any more. Returns whether it was removed, since it may not stay; where another
        process works on it, that is for the other to do."""
        job = await asyncio.to_thread(self._ledger.get_job, job.tenant, job.id)
        if job.state is JobState.RUNNING:
            return False
        if await asyncio.to_thread(self._may_stay, job):
            await self._erase_adapters(job, keep="")  # a later try gives its result another id
            return False
        await self._remove(job)
        return True

    async def renew(self, job: Job) -> None:
        """Before a try gathers anew: what the run has of documents that are deleted goes at once, though it may be long until
        it begins again, or never."""
        run = self.of(job)
        documents = await asyncio.to_thread(lambda: run.documents)
        if run.directory.exists() and (documents is None or not await asyncio.to_thread(self.alive, job.tenant, documents)):
            await self.end(job, keep="")

    async def end_older(self, job: Job) -> None:
        """Those of the same memory whose jobs are older, and ended: this one has learned what they would have."""
        for directory in await asyncio.to_thread(self._directories, job.tenant):
            if directory.name >= job.id:  # ids sort by time
                continue
            try:
                other = await asyncio.to_thread(self._ledger.get_job, job.tenant, directory.name)
            except NotFound:
                continue
            if other.payload["memory"] == job.payload["memory"] and other.state.ended:
                await self._remove(other)

    async def anew(self, job: Job) -> None:
        """What earlier tries made of its result goes, before another is made."""
        await self._erase_adapters(job, keep="")

    async def end(self, job: Job, keep: str) -> None:
        """Nothing is left of it but this adapter. The directory goes last: it says what else there is."""
        await self._erase_adapters(job, keep)
        await asyncio.to_thread(self.of(job).remove)

    async def _remove(self, job: Job) -> None:
        published = await asyncio.to_thread(self._ledger.adapter_of_job, job.tenant, job.id)
        await self.end(job, keep=published.id if published else "")

    async def _erase_adapters(self, job: Job, keep: str) -> None:
        run = self.of(job)
        for adapter in await asyncio.to_thread(lambda: run.adapters):
            if adapter != keep:
                await self._eraser.erase(job.tenant, job.payload["memory"], adapter)

    def _may_stay(self, job: Job) -> bool:
        try:
            memory = self._ledger.get_memory(job.tenant, job.payload["memory"])
        except NotFound:
            return False
        if memory.create_time > job.create_time:  # it was of a memory that had this id before
            return False
        if job.state is JobState.SUCCEEDED or self._ledger.adapter_of_job(job.tenant, job.id) is not None:
            return False
        documents = self.of(job).documents
        return documents is not None and self.alive(job.tenant, documents)

    def _directories(self, tenant: str) -> list[Path]:
        return sorted(self._directory.glob(f"{tenant}/*"))
