"""Answers under way, and what each rests on: one that rests on what is deleted meanwhile ends.

Its prompt holds the raw text or the compressed embeddings of the document, so the reader would go on saying it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TypeVar

from memoryd.core import Source
from memoryd.errors import Unavailable

T = TypeVar("T")


class UnderWay:
    """One answer, from before its search on: what is deleted between its search and its prompt ends it, too."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._rests_on: set[tuple[str, str]] = set()
        self._deleted: set[tuple[str, str]] = set()  # since it began
        self._wait: asyncio.Timeout | None = None

    def rest_on(self, sources: Sequence[Source]) -> None:
        """It rests on these from now on. Raises as `check`."""
        for source in sources:
            self._rests_on |= {(source.memory, source.passage.document), (source.memory, "")}
        self.check()

    def check(self) -> None:
        """Unavailable (DOCUMENT_DELETED) where it rests on what was deleted since it began."""
        if self._rests_on & self._deleted:
            raise Unavailable(
                "a document that this answer rests on was deleted while it was given: ask again", reason="DOCUMENT_DELETED"
            )

    async def next(self, events: AsyncGenerator[T, None]) -> T | None:
        """The next of the events, None after the last. Raises as `check`, also in the middle of waiting for it."""
        self.check()
        try:
            async with asyncio.timeout(None) as self._wait:
                event = await anext(events, None)
        except TimeoutError:
            self.check()
            raise
        finally:
            self._wait = None
        self.check()
        return event

    def lose(self, memory: str, document: str) -> None:
        """The document is deleted; where it is empty, the memory."""
        self._deleted.add((memory, document))
        if self._wait is not None and self._rests_on & self._deleted:
            self._wait.reschedule(asyncio.get_running_loop().time())
            self._wait = None


class AnswersUnderWay:
    """Those of this daemon. Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        self._answers: set[UnderWay] = set()

    @contextlib.contextmanager
    def begin(self, tenant: str) -> Iterator[UnderWay]:
        """An answer, under way until this is left."""
        answer = UnderWay(tenant)
        self._answers.add(answer)
        try:
            yield answer
        finally:
            self._answers.discard(answer)

    def end(self, tenant: str, memory: str, document: str = "") -> None:
        """After a delete of the document, or of the memory with all of its documents: no answer that rests on it gives out
        another word. The worker forgets them within a step."""
        for answer in self._answers:
            if answer.tenant == tenant:
                answer.lose(memory, document)
