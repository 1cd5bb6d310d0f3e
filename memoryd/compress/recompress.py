"""After a change of compressor, ratio or base model: what others made is made again, in the background, from the kept text.

Nothing made by another compressor is ever served (`recall/embeddings.py`), so until its turn comes a chunk is read as text.
A document whose last job was cancelled or is DEAD has its turn too: another compressor may do better.
"""

from __future__ import annotations

from memoryd.store.base import Ledger

_BATCH = 500


def request_recompression(ledger: Ledger, fingerprint: str) -> int:
    """Adds a COMPRESS job for each document of every tenant that another compressor than `fingerprint` compressed; returns
    how many. A second call adds nothing: a document with a job is on its way."""
    count = 0
    while stale := ledger.stale_documents(fingerprint, _BATCH):
        for document in stale:
            ledger.recompress(document.tenant, document.id)
        count += len(stale)
    return count
