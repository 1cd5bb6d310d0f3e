"""`client.memory(id)`: a handle to one memory, on asyncio. `_sync_memory.py` has the blocking one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from . import _convert, _wire
from ._adapters import AsyncAdapters
from ._answer import AsyncAnswer
from ._caller import Caller, build
from ._documents import AsyncDocuments, AsyncWriteResult
from ._errors import AlreadyExists, InvalidArgument
from ._examples import AsyncExamples
from ._learning import Adapter, Example, Verdict
from ._recall import Recall
from ._records import Job
from ._settings import LONG_TIMEOUT
from ._types import Context, Document, MemoryInfo, Message, Metadata, Mode, Source
from ._upload import UploadSource

INLINE = 1 << 20  # the largest text that WriteDocument takes; larger ones are uploaded


class AsyncMemory:
    """One memory. Made by `client.memory(id)`, which calls nothing yet."""

    def __init__(self, caller: Caller, name: str, create: bool) -> None:
        self.name = name
        """memories/{memory}."""
        self.documents = AsyncDocuments(caller, name, self._ready)
        """The documents of this memory."""
        self.examples = AsyncExamples(caller, name, self._ready)
        """What its adapters are trained on."""
        self.adapters = AsyncAdapters(caller, name, self._ready)
        """The versions of its LoRA."""
        self._caller = caller
        self._recall = Recall(caller)
        self._create = create

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def info(self, *, timeout: float | None = None) -> MemoryInfo:
        """Reads what is known of it."""
        left = await self._ready(timeout)
        return _convert.memory(await self._caller.unary("MemoryService.GetMemory", timeout=left, name=self.name))

    async def write(
        self,
        text: str | bytes,
        *,
        title: str = "",
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncWriteResult:
        """Writes a text of any size. It is durable when this returns.

        `replaces`: the document whose new version it is; that one is deleted, and only changed chunks are compressed.
        NotFound: it is not there any more."""
        try:
            data = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the text is not valid Unicode: {error.reason} at {error.start}") from None
        if len(data) > INLINE:
            long = LONG_TIMEOUT if timeout is None else timeout
            file = io.BytesIO(data)
            return await self.upload(
                file, title=title, metadata=metadata, replaces=replaces, request_id=request_id, timeout=long
            )
        return await self._write(
            "WriteDocument",
            timeout,
            text=data,
            title=title,
            metadata=_convert.metadata_out(metadata),
            replaces=self._replaced(replaces),
            request_id=request_id,
        )

    async def write_messages(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        title: str = "",
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> AsyncWriteResult:
        """Writes a conversation: Messages, or dicts as chat APIs use them. `replaces`: as for write().

        Of a dict the content is one str, and `name` is the speaker. InvalidArgument where text would be lost: content that is
        a list of parts, or tool_calls."""
        return await self._write(
            "WriteMessages",
            timeout,
            messages=list(_convert.messages_out(messages)),
            title=title,
            metadata=_convert.metadata_out(metadata),
            replaces=self._replaced(replaces),
            request_id=request_id,
        )

    async def upload(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        title: str | None = None,
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float = LONG_TIMEOUT,
    ) -> AsyncWriteResult:
        """Uploads a file, or what an open binary file gives from where it stands. The title of a path is its name.

        `replaces`: as for write(). OSError: the file can't be read."""
        fields = {"parent": self.name, "title": title, "metadata": _convert.metadata_out(metadata)}
        fields["replaces"] = self._replaced(replaces)
        fields["request_id"] = request_id or _wire.new_id()
        left = await self._ready(timeout)
        with UploadSource(source) as file:
            if title is None:
                fields["title"] = file.title
            header = build(_wire.message("UploadHeader"), fields)
            response = await file.send(
                self._caller, "DocumentService.UploadDocument", lambda: file.pieces(header), left, repeatable=True
            )
        return self._result(response)

    async def search(self, query: str, *, top_k: int | None = None, timeout: float | None = None) -> list[Source]:
        """Finds passages, best first. `top_k`: how many; 3 where None."""
        return await self._recall.search([self], query, top_k, timeout)

    async def context(self, query: str, *, max_tokens: int | None = None, timeout: float | None = None) -> Context:
        """A text context for agents that use another LLM. `max_tokens`: its budget in tokens of the base model; 1024 where
        None."""
        return await self._recall.context([self], query, max_tokens, timeout)

    def answer(
        self,
        question: str,
        *,
        mode: Mode | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: Sequence[str] = (),
        prior_messages: Sequence[Message | Mapping[str, Any]] = (),
        seed: int | None = None,
        repeat_penalty: float | None = None,
        adapters: Mapping[str, float] | Sequence[str | Adapter] | None = None,
        no_adapter: bool = False,
        timeout: float = LONG_TIMEOUT,
    ) -> AsyncAnswer:
        """Answers a question: iterate the result for its events.

        `mode`: HYBRID where None. `top_k`: how many passages it may rest on; 3 where None. `max_tokens`: how long it is at
        most, in tokens; 128 where None. `temperature`: 0, which is greedy, where None; with more, a `seed` makes it
        repeatable. `stop`: it ends before the first of these in its text. `prior_messages`: what was said before, oldest first,
        as for Memory.write_messages(). `repeat_penalty`: how strongly it is kept from repeating itself word for word; 0 is not
        at all, 0.8 where None. `adapters`: chosen by hand in place of the active ones, each with its weight, or all with weight
        1. `no_adapter`: the reader alone."""
        return self._recall.answer(
            [self],
            question,
            mode=mode,
            top_k=top_k,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
            prior_messages=prior_messages,
            seed=seed,
            repeat_penalty=repeat_penalty,
            adapters=adapters,
            no_adapter=no_adapter,
            timeout=timeout,
        )

    async def feedback(
        self,
        question: str,
        answer: str | AsyncAnswer,
        verdict: Verdict,
        *,
        correction: str | None = None,
        documents: Iterable[str | Document] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Example:
        """Adds what a person thinks of an answer: a good or corrected one becomes an example; to a bad one the memory shall
        rather say that it does not know.

        `answer`: its text, or the answer itself, which is read to its end within its own timeout. `documents`: those of this
        memory that it rests on; where None, those that the answer itself cites; of a good one that cites none, all that it
        was given."""
        if not isinstance(answer, str):
            if documents is None:
                sources = await answer.cited
                if not sources and verdict is Verdict.GOOD:  # its text is of some of them
                    sources = await answer.sources
                names = [source.document for source in sources]
                documents = dict.fromkeys(name for name in names if name.startswith(f"{self.name}/"))
            answer = await answer.text
        return _convert.example(
            await self._learn(
                "GiveFeedback",
                timeout,
                parent=self.name,
                question=question,
                answer=answer,
                verdict=verdict,
                correction=correction,
                documents=_convert.documents_out(self.name, documents or ()),
                request_id=request_id,
            )
        )

    async def study(
        self, *, max_examples: int | None = None, request_id: str | None = None, timeout: float | None = None
    ) -> Job:
        """Makes examples of the memory's own passages, and of what its conversations discuss. The job ends with a StudyReceipt;
        where the memory is studying already, it is the job that does, and `max_examples` is ignored.

        `max_examples`: how many at most; 200 where None."""
        call = self._learn("StudyMemory", timeout, name=self.name, max_examples=max_examples, request_id=request_id)
        return _convert.job(await call)

    async def learn(
        self,
        *,
        epochs: int | None = None,
        keep_inactive: bool = False,
        modes: Sequence[Mode] = (),
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Trains an adapter on the memory's examples, judges it, and activates it if it answers better. The job ends with a
        LearnReceipt; where the memory is learning already, it is the job that does, and `epochs`, `keep_inactive` and `modes`
        are ignored.

        `epochs`: passes over the examples; as the daemon is configured where None. `keep_inactive`: the adapter is kept
        with its verdict, and not activated. `modes`: of the contexts that it is trained on; those that answers are given in
        where empty."""
        return _convert.job(
            await self._learn(
                "LearnMemory",
                timeout,
                name=self.name,
                epochs=epochs,
                keep_inactive=keep_inactive,
                modes=[_convert.mode_out(mode) for mode in modes],
                request_id=request_id,
            )
        )

    async def _ready(self, timeout: float | None) -> float:
        """Creates the memory where that was asked for, once; gives what is left of the timeout."""
        deadline = self._caller.deadline(timeout)
        if self._create:
            with suppress(AlreadyExists):
                await self._caller.unary("MemoryService.CreateMemory", timeout=deadline.left(), memory_id=self.id)
            self._create = False
        return deadline.left()

    async def _write(self, method: str, timeout: float | None, **fields: Any) -> AsyncWriteResult:
        left = await self._ready(timeout)
        return self._result(await self._caller.unary(f"DocumentService.{method}", timeout=left, parent=self.name, **fields))

    async def _learn(self, method: str, timeout: float | None, **fields: Any) -> Any:
        left = await self._ready(timeout)
        return await self._caller.unary(f"LearnService.{method}", timeout=left, **fields)

    def _replaced(self, document: str | Document | None) -> str | None:
        return None if document is None else self.documents._name(document)

    def _result(self, message: Any) -> AsyncWriteResult:
        return AsyncWriteResult(
            document=_convert.document(message.document),
            already_stored=message.already_stored,
            job=message.operation,
            erase_job=message.erase_operation,
            _documents=self.documents,
        )
