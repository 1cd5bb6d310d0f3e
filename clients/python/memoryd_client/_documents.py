"""`memory.documents`, and what writing one gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from . import _convert
from ._caller import Caller, Ready
from ._jobs import reach
from ._records import Job
from ._settings import LONG_TIMEOUT
from ._transport import drain, finish
from ._types import Document, Stage

_VIEW_BASIC, _VIEW_FULL = 1, 2


class AsyncDocuments:
    """`memory.documents`."""

    def __init__(self, caller: Caller, memory: str, ready: Ready) -> None:
        self._caller = caller
        self._memory = memory
        self._ready = ready

    async def get(self, document: str | Document, *, text: bool = False, timeout: float | None = None) -> Document:
        """Reads one document, with up to 1 MiB of its text where asked."""
        left = await self._ready(timeout)
        view = _VIEW_FULL if text else _VIEW_BASIC
        name = self._name(document)
        response = await self._caller.unary("DocumentService.GetDocument", timeout=left, name=name, view=view)
        return _convert.document(response, with_text=text)

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[Document, None]:
        """Iterates the memory's documents, oldest first. `timeout` is for each page."""
        left = await self._ready(timeout)
        pages = self._caller.pages(
            "DocumentService.ListDocuments",
            "documents",
            timeout=timeout,
            first=left,
            parent=self._memory,
            page_size=page_size,
        )
        async with aclosing(pages):
            async for document in pages:
                yield _convert.document(document)

    async def delete(self, document: str | Document, *, request_id: str | None = None, timeout: float | None = None) -> Job:
        """Deletes a document: unreachable when this returns. The job ends when its bytes are erased, with a receipt."""
        left = await self._ready(timeout)
        name = self._name(document)
        operation = await self._caller.unary("DocumentService.DeleteDocument", timeout=left, name=name, request_id=request_id)
        return _convert.job(operation)

    async def wait(
        self, document: str | Document, stage: Stage = Stage.SEARCHABLE, *, timeout: float = LONG_TIMEOUT
    ) -> Document:
        """Waits until a document is at a stage. JobFailed: its job ended before that."""
        name = self._name(document)
        return await reach(self._caller, lambda left: self.get(name, timeout=left), name, stage, timeout)

    def _name(self, document: str | Document) -> str:
        return _convert.name_in(self._memory, "documents", document)


class Documents:
    """`memory.documents`."""

    def __init__(self, inner: AsyncDocuments) -> None:
        self._inner = inner

    def get(self, document: str | Document, *, text: bool = False, timeout: float | None = None) -> Document:
        """Reads one document, with up to 1 MiB of its text where asked."""
        return finish(self._inner.get(document, text=text, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[Document]:
        """Iterates the memory's documents, oldest first. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))

    def delete(self, document: str | Document, *, request_id: str | None = None, timeout: float | None = None) -> Job:
        """Deletes a document: unreachable when this returns. The job ends when its bytes are erased, with a receipt."""
        return finish(self._inner.delete(document, request_id=request_id, timeout=timeout))

    def wait(self, document: str | Document, stage: Stage = Stage.SEARCHABLE, *, timeout: float = LONG_TIMEOUT) -> Document:
        """Waits until a document is at a stage. JobFailed: its job ended before that."""
        return finish(self._inner.wait(document, stage, timeout=timeout))


@dataclass(frozen=True, kw_only=True)
class AsyncWriteResult:
    """What a write did. The document is durable."""

    document: Document
    """The document, as stored."""
    already_stored: bool
    """The memory held this content already: `document` is the one that was there, and nothing was added."""
    job: str
    """The job that brings it on: operations/{operation}."""
    erase_job: str
    """The job that erases the document that it replaced: operations/{operation}; empty where it replaced none."""
    _documents: AsyncDocuments = field(repr=False, compare=False)

    async def wait(self, stage: Stage = Stage.SEARCHABLE, *, timeout: float = LONG_TIMEOUT) -> Document:
        """Waits until the document is at a stage, also over a daemon's restart. JobFailed: its job ended before it."""
        return await self._documents.wait(self.document, stage, timeout=timeout)


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """What a write did. The document is durable."""

    document: Document
    """The document, as stored."""
    already_stored: bool
    """The memory held this content already: `document` is the one that was there, and nothing was added."""
    job: str
    """The job that brings it on: operations/{operation}."""
    erase_job: str
    """The job that erases the document that it replaced: operations/{operation}; empty where it replaced none."""
    _documents: AsyncDocuments = field(repr=False, compare=False)

    def wait(self, stage: Stage = Stage.SEARCHABLE, *, timeout: float = LONG_TIMEOUT) -> Document:
        """Waits until the document is at a stage, also over a daemon's restart. JobFailed: its job ended before it."""
        return finish(self._documents.wait(self.document, stage, timeout=timeout))
