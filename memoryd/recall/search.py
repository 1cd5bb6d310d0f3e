"""Search: question to passages. Dense and BM25 inside the tenant's memories, fused by rank, read from the ledger's truth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping, Sequence

from memoryd import log
from memoryd.core import Document, Passage, Source
from memoryd.errors import NotFound, Unavailable
from memoryd.models import Models
from memoryd.recall.fuse import fuse
from memoryd.store.base import Hit, Index, Ledger
from memoryd.store.texts import Texts

_DEPTH = 30  # how deep each ranking goes before they are fused, at least


class Searcher:
    """Finds passages. What the index returns is believed only as far as the ledger confirms it."""

    def __init__(self, ledger: Ledger, index: Index, texts: Texts, models: Models) -> None:
        self._ledger = ledger
        self._index = index
        self._texts = texts
        self._models = models
        self._log = log.get("search")

    async def search(
        self,
        tenant: str,
        memories: Sequence[str],
        query: str,
        top_k: int,
        stage_ms: MutableMapping[str, float] | None = None,
    ) -> list[Source]:
        """At most `top_k` sources, best first. NotFound where a memory is not there; Unavailable where the index is down.

        Where the retrieval encoder is down, BM25 alone answers.
        """
        stage_ms = {} if stage_ms is None else stage_ms
        memories = list(dict.fromkeys(memories))
        await asyncio.to_thread(self._ledger.require_memories, tenant, memories)  # first: the index takes no unknown names
        depth = max(_DEPTH, 2 * top_k)
        began = time.perf_counter()
        vector, by_text = await asyncio.gather(
            self._embed(query), asyncio.to_thread(self._index.search_text, tenant, memories, query, depth)
        )
        stage_ms["embed"] = (time.perf_counter() - began) * 1000
        began = time.perf_counter()
        by_vector: Sequence[Hit] = ()
        if vector is not None:
            by_vector = await asyncio.to_thread(self._index.search_dense, tenant, memories, vector, depth)
        sources = await asyncio.to_thread(self._sources, tenant, by_vector, by_text, top_k)
        stage_ms["search"] = (time.perf_counter() - began) * 1000
        return sources

    async def _embed(self, query: str) -> bytes | None:
        try:
            vectors = await self._models.worker.embed([query], urgent=True)
        except Unavailable:
            self._log.warning("the retrieval encoder is down: BM25 alone answers")
            return None
        return bytes(vectors[0].tobytes())

    def _sources(self, tenant: str, by_vector: Sequence[Hit], by_text: Sequence[Hit], top_k: int) -> list[Source]:
        dense = {hit.passage: hit.score for hit in by_vector}
        fused = fuse([[h.passage for h in by_vector], [h.passage for h in by_text]])
        chosen = self._live(tenant, fused, top_k)
        documents = self._ledger.get_documents(tenant, sorted({p.document for p, _ in chosen}))
        texts = self._read(documents, [p for p, _ in chosen])
        return [
            Source(
                passage=passage,
                memory=documents[passage.document].memory,
                title=documents[passage.document].title,
                text=texts[passage.id],
                score=score,
                dense_score=dense.get(passage.id, 0.0),
            )
            for passage, score in chosen
            if passage.id in texts
        ]

    def _live(self, tenant: str, fused: Sequence[tuple[str, float]], top_k: int) -> list[tuple[Passage, float]]:
        """The best `top_k` that are live. Nearly all are, so the ledger is asked for no more than are wanted at a time."""
        chosen: list[tuple[Passage, float]] = []
        for start in range(0, len(fused), top_k):
            part = fused[start : start + top_k]
            live = self._ledger.get_passages(tenant, [passage for passage, _ in part])
            chosen += [(live[p], score) for p, score in part if p in live]
            if len(chosen) >= top_k:
                break
        return chosen[:top_k]

    def _read(self, documents: dict[str, Document], passages: Sequence[Passage]) -> dict[str, str]:
        """Texts by passage id, without those of documents that were deleted meanwhile."""
        out: dict[str, str] = {}
        for document in documents.values():
            mine = [p for p in passages if p.document == document.id]
            try:
                out.update(zip([p.id for p in mine], self._texts.passages(document, mine), strict=True))
            except (NotFound, ValueError):
                if self._ledger.get_documents(document.tenant, [document.id]):
                    raise
        return out
