"""Searching ten thousand passages: how long it takes, 32 at once, and where the time goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from memoryd_client import AsyncClient

from bench.lab import concurrently, latency, row, timed
from bench.stats import median
from bench.texts import questions, texts
from memoryd.compress.chunker import ChunkText, chunk_text
from memoryd.core import DEFAULT_TENANT, Kind, Stage, document_prefix, new_id
from memoryd.engine.retrieval_encoder import RetrievalEncoder, load_retrieval_encoder
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.figures import Row
from memoryd.store.base import IndexRow
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.embedded import MilvusServer
from memoryd.store.index import MilvusIndex
from memoryd.store.ledger import SqlLedger
from memoryd.store.texts import Texts

PASSAGES = 10_000
MEMORY = "bench-search"
SEARCHES = 300
AT_ONCE = 32
NAME = f"search: {PASSAGES:,} passages"
_DOCUMENT_BYTES = 200_000
_HEAD = 120  # characters of a passage that its vector is made of: embedding all of it would take most of the run
_TIMES = 100  # that each part is timed
_DEPTH = 30  # as deep as the daemon's own searches go


async def search(client: AsyncClient) -> list[Row]:
    """One after another, then 32 at a time; no query comes twice."""
    asked = questions(SEARCHES * 2 + 10, seed=5)
    memory = client.memory(MEMORY)
    for query in asked[-10:]:
        await memory.search(query)
    alone = [await timed(memory.search(query)) for query in asked[:SEARCHES]]
    crowded, rate = await concurrently(AT_ONCE, SEARCHES, lambda number: memory.search(asked[SEARCHES + number]))
    return [
        *latency(NAME, alone),
        *latency(f"{NAME}, {AT_ONCE} at a time", crowded),
        row(f"{NAME}, {AT_ONCE} at a time, rate", rate, "1/s"),
    ]


async def fill(data_dir: Path) -> list[Row]:
    """Puts the passages into a stopped daemon's stores, and times the parts of a search there.

    The real way in embeds whole passages and compresses their chunks, which would take longer than all benchmarks. Here text,
    rows and index are the real ones; only the vectors stand for the beginning of their passage.
    """
    ledger = SqlLedger(f"sqlite:///{data_dir / 'ledger.db'}")
    encoder = await asyncio.to_thread(load_retrieval_encoder, data_dir)
    server = MilvusServer(data_dir)
    await server.start()  # on this thread, which outlives it
    try:
        index = MilvusIndex(server.uri, encoder.dim, encoder.fingerprint)
        shelf = _Shelf(ledger, FsspecBlobs(str(data_dir / "blobs")), index, encoder, next((data_dir / "models").iterdir()))
        await asyncio.to_thread(shelf.fill)
        return await asyncio.to_thread(shelf.time_parts)
    finally:
        await server.stop()
        ledger.close()


@dataclass(frozen=True, slots=True)
class _Shelf:
    """The stores of a daemon, without the daemon."""

    ledger: SqlLedger
    blobs: FsspecBlobs
    index: MilvusIndex
    encoder: RetrievalEncoder
    model: Path

    def fill(self) -> None:
        self.ledger.create_memory(DEFAULT_TENANT, MEMORY, "", "", {}, None)
        base, retrieval = TextTokenizer(self.model), RetrievalTokenizer()
        total = 0
        for text in texts(_DOCUMENT_BYTES, seed=4):
            document = new_id()
            made = list(chunk_text(document, [text], base, retrieval))
            self._store(document, text, made)
            total += sum(len(c.passages) for c in made)
            if total >= PASSAGES:
                break
        self.index.flush()

    def _store(self, document: str, text: str, made: Sequence[ChunkText]) -> None:
        tenant, data = DEFAULT_TENANT, text.encode()
        blob = f"{document_prefix(tenant, MEMORY, document)}text"
        self.blobs.put(tenant, blob, data)
        written = self.ledger.write_document(
            tenant, MEMORY, document, Kind.TEXT, "a shelf", {}, document, len(data), blob, None
        )
        self.ledger.cancel_job(tenant, written.job.id)
        passages = [p for c in made for p in c.passages]
        self.ledger.add_chunks(tenant, document, [c.chunk for c in made], passages)
        bodies = [c.text_of(p) for c in made for p in c.passages]
        vectors = self.encoder.encode([body[:_HEAD] for body in bodies])
        rows = [
            IndexRow(p.id, MEMORY, document, body, vector.tobytes())
            for p, body, vector in zip(passages, bodies, vectors, strict=True)
        ]
        self.index.upsert(tenant, rows)
        self.ledger.set_stage(tenant, document, Stage.SEARCHABLE)

    def time_parts(self) -> list[Row]:
        """What a search asks of each part, in its order, one at a time and with nothing else running."""
        asked = questions(_TIMES + 5, seed=6)
        vectors = [v.tobytes() for v in self.encoder.encode(asked)]
        found = [self.index.search_text(DEFAULT_TENANT, [MEMORY], query, _DEPTH) for query in asked]
        texts_ = Texts(self.ledger, self.blobs)

        def read(number: int) -> None:
            rows = self.ledger.get_passages(DEFAULT_TENANT, [hit.passage for hit in found[number]])
            top = list(rows.values())[:4]
            documents = self.ledger.get_documents(DEFAULT_TENANT, [p.document for p in top])
            for document in documents.values():
                texts_.passages(document, [p for p in top if p.document == document.id])

        parts: dict[str, Callable[[int], object]] = {
            "embed the query": lambda number: self.encoder.encode([asked[number]]),
            "dense": lambda number: self.index.search_dense(DEFAULT_TENANT, [MEMORY], vectors[number], _DEPTH),
            "BM25": lambda number: self.index.search_text(DEFAULT_TENANT, [MEMORY], asked[number], _DEPTH),
            "rows and texts": read,
        }
        return [row(f"{NAME}, part: {name}", median(_times(part)), "ms") for name, part in parts.items()]


def _times(part: Callable[[int], object]) -> list[float]:
    """Milliseconds of each, after five that do not count."""
    took: list[float] = []
    with torch.inference_mode():
        for number in range(_TIMES + 5):
            began = time.perf_counter()
            part(number)
            took.append((time.perf_counter() - began) * 1000)
    return took[5:]
