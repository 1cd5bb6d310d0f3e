"""The text of spans: reads a chunk's bytes, verifies them, and cuts passages out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memoryd.core import Chunk, Document, Passage
from memoryd.store.base import Blobs, Ledger


class Texts:
    """Reads no more of a document than the chunks that are asked for. All methods block."""

    def __init__(self, ledger: Ledger, blobs: Blobs) -> None:
        self._ledger = ledger
        self._blobs = blobs

    def chunk(self, document: Document, chunk: Chunk) -> str:
        """NotFound; DataLoss where the bytes are not those that were chunked."""
        data = self._blobs.read_range(document.tenant, document.blob, chunk.byte_start, chunk.byte_end, chunk.sha256)
        return data.decode()

    def passages(self, document: Document, passages: Sequence[Passage]) -> list[str]:
        """The passages' texts, in order; each of their chunks is read once."""
        keys = sorted({(p.document, p.chunk) for p in passages})
        chunks = self._ledger.get_chunks(document.tenant, keys)
        texts = {key: self.chunk(document, chunk) for key, chunk in chunks.items()}
        return [_cut(texts, chunks, passage) for passage in passages if (passage.document, passage.chunk) in texts]


def _cut(texts: Mapping[tuple[str, int], str], chunks: Mapping[tuple[str, int], Chunk], passage: Passage) -> str:
    key = (passage.document, passage.chunk)
    first = chunks[key].start
    return texts[key][passage.start - first : passage.end - first]
