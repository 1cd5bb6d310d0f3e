"""`memory.examples`: what adapters are trained on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from . import _convert
from ._caller import Caller, Ready
from ._errors import NotFound
from ._export import Target, save
from ._learning import AddedExamples, Example, GivenExample
from ._settings import LONG_TIMEOUT
from ._transport import drain, finish
from ._types import Document

_BATCH = 1000  # what one call may carry
_BATCH_BYTES = 2 << 20  # half of what the daemon takes and sends: its response repeats the examples, with their names


class AsyncExamples:
    """`memory.examples`."""

    def __init__(self, caller: Caller, memory: str, ready: Ready) -> None:
        self._caller = caller
        self._memory = memory
        self._ready = ready

    async def add(
        self,
        question: str,
        answer: str,
        documents: Iterable[str | Document] = (),
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Example:
        """Adds an example. `documents`: those of this memory that it rests on; it is deleted with them. One that the
        memory has already, with the same question and answer, is not added again."""
        example = _convert.example_out(self._memory, (question, answer, documents))
        left = await self._ready(timeout)
        added = await self._create([example], request_id, left)
        if not added.examples:  # the request_id is of an earlier call
            raise NotFound("the example that was added under this request_id is deleted")
        return added.examples[0]

    async def add_many(self, examples: Iterable[GivenExample], *, timeout: float | None = None) -> AddedExamples:
        """Adds examples: Examples, dicts, or tuples of question, answer and, where there are any, documents.

        Many are split into several calls, and `timeout` is for each. Where one fails, those before it are added: add all
        of them again, which adds what is missing."""
        batches = list(_batches(_convert.examples_out(self._memory, examples)))
        left = await self._ready(timeout)
        added = [await self._create(batch, None, timeout if n else left) for n, batch in enumerate(batches)]
        return AddedExamples(
            examples=tuple(example for part in added for example in part.examples),
            already_stored=sum(part.already_stored for part in added),
        )

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[Example, None]:
        """Iterates the memory's examples, oldest first. `timeout` is for each page."""
        left = await self._ready(timeout)
        pages = self._caller.pages(
            "LearnService.ListExamples", "examples", timeout=timeout, first=left, parent=self._memory, page_size=page_size
        )
        async with aclosing(pages):
            async for example in pages:
                yield _convert.example(example)

    async def delete(self, example: str | Example, *, timeout: float | None = None) -> None:
        """Deletes an example. Adapters that were trained on it stay: delete those too, or its documents."""
        left = await self._ready(timeout)
        name = _convert.name_in(self._memory, "examples", example)
        await self._caller.delete("LearnService.DeleteExample", timeout=left, name=name)

    async def export(self, target: Target, *, timeout: float = LONG_TIMEOUT) -> None:
        """Writes all examples, oldest first, as lines of JSON, to a path or an open binary file. A path is written beside
        and renamed: where the export fails, what was there stays. OSError: it can't be written."""
        left = await self._ready(timeout)
        await save(self._caller, "LearnService.ExportExamples", "jsonl", target, timeout=left, parent=self._memory)

    async def _create(self, batch: Iterable[Any], request_id: str | None, timeout: float | None) -> AddedExamples:
        return _convert.added_examples(
            await self._caller.unary(
                "LearnService.CreateExamples", timeout=timeout, parent=self._memory, examples=batch, request_id=request_id
            )
        )


class Examples:
    """`memory.examples`."""

    def __init__(self, inner: AsyncExamples) -> None:
        self._inner = inner

    def add(
        self,
        question: str,
        answer: str,
        documents: Iterable[str | Document] = (),
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Example:
        """Adds an example. `documents`: those of this memory that it rests on; it is deleted with them. One that the
        memory has already, with the same question and answer, is not added again."""
        return finish(self._inner.add(question, answer, documents, request_id=request_id, timeout=timeout))

    def add_many(self, examples: Iterable[GivenExample], *, timeout: float | None = None) -> AddedExamples:
        """Adds examples: Examples, dicts, or tuples of question, answer and, where there are any, documents.

        Many are split into several calls, and `timeout` is for each. Where one fails, those before it are added: add all
        of them again, which adds what is missing."""
        return finish(self._inner.add_many(examples, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[Example]:
        """Iterates the memory's examples, oldest first. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))

    def delete(self, example: str | Example, *, timeout: float | None = None) -> None:
        """Deletes an example. Adapters that were trained on it stay: delete those too, or its documents."""
        return finish(self._inner.delete(example, timeout=timeout))

    def export(self, target: Target, *, timeout: float = LONG_TIMEOUT) -> None:
        """Writes all examples, oldest first, as lines of JSON, to a path or an open binary file. A path is written beside
        and renamed: where the export fails, what was there stays. OSError: it can't be written."""
        return finish(self._inner.export(target, timeout=timeout))


def _batches(examples: Iterable[Any]) -> Iterator[Iterable[Any]]:
    batch: list[Any] = []
    size = 0
    for example in examples:
        if batch and (len(batch) == _BATCH or size + example.ByteSize() > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(example)
        size += example.ByteSize()
    if batch:
        yield batch
