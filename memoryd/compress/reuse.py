"""What a new version of a document takes over from the version that it replaces: the compressed embeddings of its chunks.

The write deletes the old version and makes two jobs in one transaction: COMPRESS of the new one, whose payload names the `old`
one, and ERASE of the old one, whose payload names the job that it comes `after`. COMPRESS first cuts the new text (stage
`chunk`, rechunk.py) and copies the compressed embeddings of every chunk that the old version had too (stage `reuse`). Both need
the old version's chunk rows and stored embeddings, never its text, and no worker. From the next stage on they are not needed,
and ERASE goes its way; it goes it too as soon as that job has failed once or ended (`Job.reuses`).

So nothing is moved or shared between documents: until the copies are made both have their own bytes under their own prefix, and
every kill leaves either a job that goes on or a document that is erased. Whatever is missing when it is looked for, since ERASE
was faster after all, is compressed as in any document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

from memoryd import log
from memoryd.compress import codec
from memoryd.compress.rechunk import OldChunks
from memoryd.core import Chunk, Document, embeddings_key
from memoryd.errors import DataLoss, FingerprintMismatch, NotFound
from memoryd.jobs import Progress, Stopped
from memoryd.store.base import Blobs, Ledger

_CHUNKS = 16  # copied between two looks at the job


def old_chunks(ledger: Ledger, tenant: str, old: str, fingerprint: str) -> OldChunks:
    """The chunks of the deleted version that have compressed embeddings by this compressor: the others are not worth keeping.
    Blocks."""

    def found() -> Iterator[Chunk]:
        after = -1
        while page := ledger.deleted_chunks(tenant, old, after):
            yield from (chunk for chunk in page if chunk.compressor == fingerprint)
            after = page[-1].ordinal

    return OldChunks.of(found())


async def reuse(ledger: Ledger, blobs: Blobs, document: Document, old: str, fingerprint: str, progress: Progress) -> None:
    """The stage `reuse`: copies what there is to copy, on from where an earlier slice stood. The receipt's `reused` says how
    many chunks of the document have compressed embeddings so. Stopped where the document is deleted."""
    known = await asyncio.to_thread(old_chunks, ledger, document.tenant, old, fingerprint)

    def copy(page: Sequence[Chunk]) -> int:
        missing = [chunk for chunk in page if chunk.compressor != fingerprint]
        copies = []
        for chunk in missing:
            ordinal = known.ordinals.get(bytes.fromhex(chunk.sha256))
            if ordinal is not None and (copied := _copied(ledger, blobs, document, chunk, old, ordinal, fingerprint)):
                copies.append(copied)
        if copies and not ledger.set_embeddings(document.tenant, document.id, copies):
            raise Stopped
        return len(page) - len(missing) + len(copies)

    after, reused = progress.job.done - 1, int(progress.job.receipt.get("reused", 0))
    while page := await asyncio.to_thread(ledger.chunks, document.tenant, document.id, after, _CHUNKS):
        reused += await asyncio.to_thread(copy, page)
        after = page[-1].ordinal
        progress.note(reused=reused)
        progress.step("reuse", after + 1, document.chunk_count)


def _copied(
    ledger: Ledger, blobs: Blobs, document: Document, chunk: Chunk, old: str, ordinal: int, fingerprint: str
) -> Chunk | None:
    """The chunk with its own copy of the old version's compressed embeddings; None where those are not there any more, or are
    not what they should be."""
    for source in ledger.deleted_chunks(document.tenant, old, ordinal - 1, 1):
        try:
            data = blobs.get(document.tenant, source.embeddings)
            embeddings = codec.decode(data, fingerprint, chunk_sha256=chunk.sha256)
        except NotFound:
            return None
        except (DataLoss, FingerprintMismatch) as error:
            log.get("reuse").error("embeddings refused", document=old, chunk=ordinal, reason=error.reason)
            return None
        key = embeddings_key(document, fingerprint, chunk.ordinal)
        blobs.put(document.tenant, key, data)
        return replace(chunk, compressor=fingerprint, embeddings=key, soft_tokens=embeddings.k)
    return None
