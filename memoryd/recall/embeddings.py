"""Loads compressed embeddings through the tiers: process, cache, blobs. What another compressor made is never served.

What blobs have lost, or have other bytes of than were written, is made again from the kept text: once an answer has missed it,
its document has a COMPRESS job. Until that is done the chunk is read as text.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence

from memoryd import log
from memoryd.compress import codec
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.core import Chunk
from memoryd.errors import DataLoss, FingerprintMismatch, MemorydError, NotFound
from memoryd.store.base import Blobs, Cache, Ledger

PROCESS_BYTES = 64 << 20
_FORGOTTEN = 10_000
"""Documents remembered as forgotten, the latest. One matters only to what read its rows before they were deleted and is still
loading, for seconds; to erase so many takes longer. No id comes again, so to remember one for too long does no harm."""


def cache_prefix(document: str) -> str:
    """Under this prefix lie all cache keys of a document's compressed embeddings."""
    return f"embeddings/{document}/"


class EmbeddingStore:
    """Keys hold the document's id, the compressor's fingerprint and the chunk's hash, so a hit can never be of other content.
    Thread-safe."""

    def __init__(self, ledger: Ledger, blobs: Blobs, cache: Cache, process_bytes: int = PROCESS_BYTES) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._cache = cache
        self._capacity = process_bytes
        self._held: OrderedDict[tuple[str, str, str], CompressedEmbeddings] = OrderedDict()
        self._bytes = 0
        self._forgotten: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()
        self._log = log.get("embeddings")

    def load(
        self, tenant: str, chunks: Sequence[Chunk], fingerprint: str
    ) -> tuple[dict[tuple[str, int], CompressedEmbeddings], Mapping[str, int]]:
        """The compressed embeddings of those chunks that have intact ones by this compressor, by (document, ordinal);
        and how many each tier gave. Blocks."""
        found: dict[tuple[str, int], CompressedEmbeddings] = {}
        tiers: Counter[str] = Counter()
        wanted = {self._key(chunk): chunk for chunk in chunks if chunk.compressor == fingerprint}
        for key, chunk in list(wanted.items()):
            with self._lock:
                held = self._held.get((tenant, chunk.document, key))
                if held is not None:
                    self._held.move_to_end((tenant, chunk.document, key))
                    found[chunk.document, chunk.ordinal] = held
                    tiers["process"] += 1
                    del wanted[key]
        cached = self._cache.get_many(tenant, list(wanted)) if wanted else {}
        lost: dict[str, list[Chunk]] = defaultdict(list)
        for key, chunk in wanted.items():
            data = cached.get(key)
            embeddings = self._decode(data, chunk, fingerprint) if data is not None else None
            if embeddings is not None:
                tiers["cache"] += 1
            else:
                embeddings = self._from_blobs(tenant, key, chunk, fingerprint)
                if embeddings is None:
                    lost[chunk.document].append(chunk)
                    continue
                tiers["blobs"] += 1
            found[chunk.document, chunk.ordinal] = embeddings
            self._hold(tenant, chunk.document, key, embeddings)
        for document, missing in lost.items():
            self._remake(tenant, document, missing)
        return found, tiers

    def forget(self, tenant: str, document: str) -> None:
        """Drops what the process holds of a document, and keeps what is being loaded just now from staying here or in the
        cache, which ERASE empties after this."""
        with self._lock:
            self._forgotten[tenant, document] = None
            self._forgotten.move_to_end((tenant, document))  # of an ERASE that is tried again
            if len(self._forgotten) > _FORGOTTEN:
                self._forgotten.popitem(last=False)
            for key in [k for k in self._held if k[:2] == (tenant, document)]:
                self._bytes -= len(self._held.pop(key).data)

    @staticmethod
    def _key(chunk: Chunk) -> str:
        return f"{cache_prefix(chunk.document)}{chunk.compressor[:16]}/{chunk.ordinal}-{chunk.sha256[:16]}"

    def _from_blobs(self, tenant: str, key: str, chunk: Chunk, fingerprint: str) -> CompressedEmbeddings | None:
        try:
            data = self._blobs.get(tenant, chunk.embeddings)
        except NotFound:  # lost; or erased between the ledger's answer and now
            return None
        embeddings = self._decode(data, chunk, fingerprint)
        if embeddings is not None and not self._is_forgotten(tenant, chunk.document):
            self._cache.put(tenant, key, data)
            if self._is_forgotten(tenant, chunk.document):  # meanwhile: the cache may have been emptied of it before this
                self._cache.delete_prefix(tenant, cache_prefix(chunk.document))
        return embeddings

    def _is_forgotten(self, tenant: str, document: str) -> bool:
        with self._lock:
            return (tenant, document) in self._forgotten

    def _remake(self, tenant: str, document: str, lost: Sequence[Chunk]) -> None:
        try:
            again = self._ledger.remake(tenant, document, lost)
        except MemorydError as error:  # the next answer that misses them tries again
            self._log.warning("lost embeddings are not made again yet", document=document, reason=error.reason)
            return
        if again:
            self._log.warning("embeddings are lost: the document is compressed again", document=document, chunks=len(lost))

    def _decode(self, data: bytes, chunk: Chunk, fingerprint: str) -> CompressedEmbeddings | None:
        try:
            return codec.decode(data, fingerprint, chunk_sha256=chunk.sha256)
        except (DataLoss, FingerprintMismatch) as error:  # the caller falls back to text
            self._log.error("embeddings refused", document=chunk.document, chunk=chunk.ordinal, reason=error.reason)
            return None

    def _hold(self, tenant: str, document: str, key: str, embeddings: CompressedEmbeddings) -> None:
        with self._lock:
            if (tenant, document) in self._forgotten:
                return
            before = self._held.pop((tenant, document, key), None)  # of an answer that missed it at the same time
            self._held[tenant, document, key] = embeddings
            self._bytes += len(embeddings.data) - (len(before.data) if before else 0)
            while self._bytes > self._capacity and self._held:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= len(dropped.data)
