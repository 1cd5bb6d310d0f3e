"""An answer that is being given: an iterable of events that remembers what it has seen."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType

from . import _convert
from ._caller import Stream
from ._errors import Cancelled, InternalError, MemorydError
from ._transport import drain, finish
from ._types import AnswerEvent, Source, Sources, Text, Usage


class AsyncAnswer:
    """Iterates the events of an answer: Sources, then Text, then Usage. The call begins with the first of them.

    Leaving the loop early, `close()`, or leaving an `async with` cancels the call. Iterating again gives the events
    that were seen, then those that are still to come.
    """

    def __init__(self, question: str, begin: Callable[[], Awaitable[Stream]]) -> None:
        self.question = question
        """What was asked."""
        self._begin = begin
        self._stream: Stream | None = None
        self._events: list[AnswerEvent] = []
        self._ended = False
        self._closed = False
        self._error: MemorydError | None = None

    async def __aiter__(self) -> AsyncGenerator[AnswerEvent, None]:
        seen = 0
        try:
            while seen < len(self._events) or await self._more():
                yield self._events[seen]
                seen += 1
        finally:
            await self.close()

    @property
    async def text(self) -> str:
        """The whole text, read to its end; after `close()`, what had arrived."""
        await self._read_to_end()
        return "".join(e.text for e in self._events if isinstance(e, Text))

    @property
    async def sources(self) -> tuple[Source, ...]:
        """What the answer rests on, best first: there before its text is."""
        return (await self.basis).sources

    @property
    async def cited(self) -> tuple[Source, ...]:
        """Those of its sources that the answer says it rests on, read to its end; none for a refusal or without a reader."""
        sources, usage = await self.sources, await self.usage
        return tuple(sources[i] for i in usage.cited if 0 <= i < len(sources))

    @property
    async def basis(self) -> Sources:
        """The Sources event: the sources, the mode that is used, and warnings."""
        while not self._events and await self._more():
            pass
        if self._events and isinstance(self._events[0], Sources):
            return self._events[0]
        raise self._missing("sources")

    @property
    async def usage(self) -> Usage:
        """What the answer took, read to its end."""
        await self._read_to_end()
        if self._events and isinstance(self._events[-1], Usage):
            return self._events[-1]
        raise self._missing("usage")

    async def close(self) -> None:
        """Cancels the call where it has not ended."""
        self._closed = self._closed or not self._ended
        self._ended = True
        if self._stream is not None:
            self._stream.cancel()

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read_to_end(self) -> None:
        while await self._more():
            pass

    async def _more(self) -> bool:
        """Reads one more event. False at the end; where that was an error, it stays one."""
        if self._error is not None:
            raise self._error
        while not self._ended:
            try:
                if self._stream is None:
                    self._stream = await self._begin()
                    if self._ended:  # closed meanwhile, from elsewhere
                        self._stream.cancel()
                message = await self._stream.read()
            except MemorydError as error:
                self._ended, self._error = True, error
                raise
            if message is None:
                self._ended = True
            elif (event := _convert.answer_event(message)) is not None:
                self._events.append(event)
                return True
        return False

    def _missing(self, what: str) -> MemorydError:
        if self._closed:
            return Cancelled(f"the answer was closed before its {what} arrived")
        return InternalError(f"the answer ended without its {what}")


class Answer:
    """Iterates the events of an answer: Sources, then Text, then Usage. The call begins with the first of them.

    Leaving the loop early, `close()` (from any thread), or leaving a `with` cancels the call. Iterating again gives the
    events that were seen, then those that are still to come.
    """

    def __init__(self, inner: AsyncAnswer) -> None:
        self._inner = inner
        self.question = inner.question
        """What was asked."""

    def __iter__(self) -> Generator[AnswerEvent, None, None]:
        yield from drain(self._inner.__aiter__())

    @property
    def text(self) -> str:
        """The whole text, read to its end; after `close()`, what had arrived."""
        return finish(self._inner.text)

    def __str__(self) -> str:
        return self.text

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the answer rests on, best first: there before its text is."""
        return finish(self._inner.sources)

    @property
    def cited(self) -> tuple[Source, ...]:
        """Those of its sources that the answer says it rests on, read to its end; none for a refusal or without a reader."""
        return finish(self._inner.cited)

    @property
    def basis(self) -> Sources:
        """The Sources event: the sources, the mode that is used, and warnings."""
        return finish(self._inner.basis)

    @property
    def usage(self) -> Usage:
        """What the answer took, read to its end."""
        return finish(self._inner.usage)

    def close(self) -> None:
        """Cancels the call where it has not ended."""
        finish(self._inner.close())

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
