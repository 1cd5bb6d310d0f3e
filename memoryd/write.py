"""Writing: from bytes to a durable document with its job. All of it blocks; the servicers call it in threads."""

from __future__ import annotations

import codecs
import hashlib

from memoryd import core
from memoryd.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from memoryd.store.base import Blobs, BlobWriter, Ledger, Written


class TextCheck:
    """Checks a stream of bytes for being text that memoryd can keep: UTF-8, no NUL, something in it besides white space."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0
        self._has_text = False

    def feed(self, data: bytes, final: bool = False) -> None:
        """InvalidArgument with the offset of the first bad byte."""
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            offset = max(0, self._seen - pending + error.start)
            raise InvalidArgument(
                f"the text is not UTF-8: byte {offset} is wrong. Send text, not a file format: extract or re-encode it first",
                reason="NOT_UTF8",
                details={"byte_offset": str(offset)},
            ) from None
        nul = data.find(b"\0")
        if nul >= 0:
            raise InvalidArgument(
                f"the text holds a NUL at byte {self._seen + nul}: it looks binary. Extract its text first",
                reason="BINARY",
                details={"byte_offset": str(self._seen + nul)},
            )
        self._seen += len(data)
        self._has_text = self._has_text or not (text.isspace() or not text)
        if final and not self._has_text:
            raise InvalidArgument("the document is empty: there is nothing but white space to remember", reason="EMPTY")


class DocumentWriter:
    """Stores texts in blobs, then rows and job in one transaction: what is acknowledged is whole, the rest is nothing."""

    def __init__(self, ledger: Ledger, blobs: Blobs, max_document_bytes: int) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._max_bytes = max_document_bytes

    def write(
        self,
        tenant: str,
        memory: str,
        kind: core.Kind,
        text: bytes,
        title: str,
        metadata: core.Metadata,
        request: core.Request | None,
        replaces: str = "",
    ) -> Written:
        """Durable when it returns; `replaces` is the document whose new version it is. InvalidArgument (not text), NotFound
        (no such memory), ReplacedNotFound, RequestIdReused."""
        TextCheck().feed(text, final=True)
        sha256 = hashlib.sha256(text).hexdigest()
        document = core.new_id()
        self._ledger.require_memories(tenant, [memory])  # before any byte is written
        blob = _text_key(tenant, memory, document, sha256)
        self._blobs.put(tenant, blob, text)
        return self.record(tenant, memory, document, kind, title, metadata, sha256, len(text), blob, request, replaces)

    def upload(self, tenant: str, memory: str, title: str, metadata: core.Metadata, replaces: str = "") -> Upload:
        """NotFound where there is no such memory."""
        self._ledger.require_memories(tenant, [memory])
        blob = self._blobs.writer(tenant)
        return Upload(self, self._blobs, blob, tenant, memory, title, metadata, replaces, self._max_bytes)

    def record(
        self,
        tenant: str,
        memory: str,
        document: str,
        kind: core.Kind,
        title: str,
        metadata: core.Metadata,
        sha256: str,
        size: int,
        blob: str,
        request: core.Request | None,
        replaces: str,
    ) -> Written:
        """The transaction; where it stores nothing new, the bytes written for it are removed again.

        They are written even where the memory seems to hold that content: it may be deleted until the transaction."""
        prefix = core.document_prefix(tenant, memory, document)
        try:
            written = self._ledger.write_document(
                tenant, memory, document, kind, title, metadata, sha256, size, blob, request, replaces
            )
        except Unavailable:  # it may have been committed: rows without bytes would be worse than bytes without rows
            raise
        except BaseException:
            self._blobs.delete_prefix(tenant, prefix)
            raise
        if written.document.id != document:
            self._blobs.delete_prefix(tenant, prefix)
        return written


class Upload:
    """A document that arrives in pieces. Nothing is stored before `finish`, and nothing is left after `abort`."""

    def __init__(
        self,
        writer: DocumentWriter,
        blobs: Blobs,
        blob: BlobWriter,
        tenant: str,
        memory: str,
        title: str,
        metadata: core.Metadata,
        replaces: str,
        max_bytes: int,
    ) -> None:
        self._writer, self._blobs, self._blob = writer, blobs, blob
        self._tenant, self._memory, self._title, self._metadata = tenant, memory, title, metadata
        self._replaces, self._max_bytes = replaces, max_bytes
        self._check = TextCheck()

    def write(self, data: bytes) -> None:
        """InvalidArgument (not text), ResourceExhausted (larger than max_document_bytes, or the disk is full)."""
        if self._blob.size + len(data) > self._max_bytes:
            raise ResourceExhausted(
                f"the upload is larger than {self._max_bytes} bytes: split it, or raise max_document_bytes",
                reason="DOCUMENT_TOO_LARGE",
            )
        self._check.feed(data)
        self._blob.write(data)

    def finish(self, sha256: str, request: core.Request | None) -> Written:
        """DataLoss where the bytes that came are not those that were sent; ReplacedNotFound, RequestIdReused."""
        if self._blob.sha256 != sha256:
            raise DataLoss(
                f"{self._blob.size} bytes came whose sha256 is not the trailer's: nothing was stored, upload again",
                details={"received_bytes": str(self._blob.size), "received_sha256": self._blob.sha256},
            )
        self._check.feed(b"", final=True)
        document, size = core.new_id(), self._blob.size
        key = _text_key(self._tenant, self._memory, document, sha256)
        self._blob.commit(key)
        return self._writer.record(
            self._tenant,
            self._memory,
            document,
            core.Kind.TEXT,
            self._title,
            self._metadata,
            sha256,
            size,
            key,
            request,
            self._replaces,
        )

    def abort(self) -> None:
        """Removes what came. Harmless after `finish`."""
        self._blob.abort()


def _text_key(tenant: str, memory: str, document: str, sha256: str) -> str:
    return f"{core.document_prefix(tenant, memory, document)}text-{sha256}"
