"""The COMPRESS job: brings a document from STORED to SEARCHABLE to COMPRESSED.

Stages, each resumable: `chunk` cuts the text, `reuse` copies what the version that this one replaces had already (reuse.py),
`index` embeds and indexes passages, `compress` makes compressed embeddings. A document gives way to others once it is
searchable, so that many small writes become searchable before any of them is compressed.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
from collections.abc import Iterator
from dataclasses import replace

from memoryd.compress import codec
from memoryd.compress.chunker import Limits
from memoryd.compress.rechunk import rechunk_text
from memoryd.compress.reuse import old_chunks, reuse
from memoryd.core import Chunk, Document, Job, Receipt, Stage, embeddings_key
from memoryd.errors import NotFound
from memoryd.jobs import Progress, Stopped
from memoryd.models import Models
from memoryd.recall.indexing import Indexer
from memoryd.store.base import Blobs, Ledger
from memoryd.store.texts import Texts

_CHUNKS = 64  # chunks cut between two looks at the job
_COMPRESS = 4  # chunks compressed between two looks, or as many as the worker compresses at a time


class CompressJob:
    """Handles JobKind.COMPRESS."""

    def __init__(
        self, ledger: Ledger, blobs: Blobs, indexer: Indexer, models: Models, texts: Texts, storage: codec.Storage
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._indexer = indexer
        self._models = models
        self._texts = texts
        self._storage = storage  # of what is made from now on: both are read

    async def __call__(self, job: Job, progress: Progress) -> Receipt:
        document = await self._document(job)
        if document.stage < Stage.SEARCHABLE:
            if job.stage not in ("reuse", "index"):
                await self._chunk(document, progress)
            document = await self._document(job)
            if job.stage != "index":
                await self._take_over(document, progress)
            await self._indexer.add(document, progress.job.done, lambda done, total: progress.step("index", done, total))
            if not await asyncio.to_thread(self._ledger.set_stage, document.tenant, document.id, Stage.SEARCHABLE):
                raise Stopped
            progress.give_way()
        await self._compress(document, progress)
        if not await asyncio.to_thread(self._ledger.set_stage, document.tenant, document.id, Stage.COMPRESSED):
            raise Stopped
        soft_tokens = await asyncio.to_thread(self._soft_tokens, document)
        return {
            "chunks": document.chunk_count,
            "passages": document.passage_count,
            "tokens": document.token_count,
            "soft_tokens": soft_tokens,
            "compressor": self._models.info.compressor.fingerprint,
            "reused": progress.job.receipt.get("reused", 0),
        }

    async def _document(self, job: Job) -> Document:
        try:
            return await asyncio.to_thread(
                self._ledger.get_document, job.tenant, job.payload["memory"], job.payload["document"]
            )
        except NotFound:
            raise Stopped from None

    async def _chunk(self, document: Document, progress: Progress) -> None:
        """Cuts the text anew: what an earlier try left is forgotten first."""
        if not await asyncio.to_thread(self._ledger.reset_document, document.tenant, document.id):
            raise Stopped
        models, compressor = self._models, self._models.info.compressor
        old = await asyncio.to_thread(old_chunks, self._ledger, document.tenant, _old(progress), compressor.fingerprint)
        limits = Limits(chunk_tokens=compressor.chunk_tokens)
        cut = rechunk_text(document.id, self._pieces(document), models.tokenizer, models.retrieval, old, limits)
        done = 0
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(cut, _CHUNKS))):
            chunks = [c.chunk for c in batch]
            passages = [p for c in batch for p in c.passages]
            if not await asyncio.to_thread(self._ledger.add_chunks, document.tenant, document.id, chunks, passages):
                raise Stopped
            done = chunks[-1].byte_end
            # Chunking is not resumable and takes seconds for 100 MB: it does not give way, only stops.
            if progress.stopped:
                raise Stopped
            progress.show("chunk", done, document.size_bytes)

    async def _take_over(self, document: Document, progress: Progress) -> None:
        if old := _old(progress):
            if progress.job.stage != "reuse":  # else an earlier slice was in it: `reuse` goes on where that one stood
                progress.note(reused=0)
                progress.show("reuse", 0, document.chunk_count)
            await reuse(self._ledger, self._blobs, document, old, self._models.info.compressor.fingerprint, progress)
        progress.show("index", 0, 0)

    def _pieces(self, document: Document) -> Iterator[str]:
        """The text in pieces; DataLoss at its end where the bytes are not those that were written."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        for block in self._blobs.stream(document.tenant, document.blob, document.sha256):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)

    async def _compress(self, document: Document, progress: Progress) -> None:
        """Makes what is missing or was made by another compressor."""
        fingerprint = self._models.info.compressor.fingerprint
        size = max(_COMPRESS, self._models.info.compress_tokens // self._models.info.compressor.chunk_tokens)
        after = -1
        if progress.job.stage != "compress":
            progress.show("compress", 0, document.chunk_count)
        while page := await asyncio.to_thread(self._ledger.chunks, document.tenant, document.id, after, size):
            missing = [c for c in page if c.compressor != fingerprint]
            after = page[-1].ordinal
            if missing:  # what an earlier slice made is passed over without a word: progress does not go backwards
                await self._compress_chunks(document, missing)
                progress.step("compress", after + 1, document.chunk_count)

    async def _compress_chunks(self, document: Document, chunks: list[Chunk]) -> None:
        fingerprint = self._models.info.compressor.fingerprint
        encode = self._models.tokenizer.encode
        ids = await asyncio.to_thread(lambda: [encode(self._texts.chunk(document, c)) for c in chunks])
        made = await self._models.worker.compress(ids, fingerprint)

        def store() -> bool:
            rows = []
            for chunk, embeddings in zip(chunks, made, strict=True):
                key = embeddings_key(document, fingerprint, chunk.ordinal)
                data = codec.encode(embeddings, fingerprint=fingerprint, chunk_sha256=chunk.sha256, storage=self._storage)
                self._blobs.put(document.tenant, key, data)
                rows.append(replace(chunk, compressor=fingerprint, embeddings=key, soft_tokens=embeddings.k))
            return self._ledger.set_embeddings(document.tenant, document.id, rows)

        if not await asyncio.to_thread(store):
            raise Stopped
        outdated = [chunk.embeddings for chunk in chunks if chunk.embeddings]
        for key in outdated:  # of another compressor: never served again
            await asyncio.to_thread(self._blobs.delete_prefix, document.tenant, key)

    def _soft_tokens(self, document: Document) -> int:
        total, after = 0, -1
        while page := self._ledger.chunks(document.tenant, document.id, after):
            total += sum(c.soft_tokens for c in page)
            after = page[-1].ordinal
        return total


def _old(progress: Progress) -> str:
    """The version that this job's document replaces, empty where there is none."""
    return progress.job.payload.get("old", "")
