"""`Memory`: `AsyncMemory` in blocking shape."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from ._adapters import Adapters
from ._answer import Answer
from ._documents import AsyncWriteResult, Documents, WriteResult
from ._examples import Examples
from ._learning import Adapter, Example, Verdict
from ._memory import AsyncMemory
from ._records import Job
from ._settings import LONG_TIMEOUT
from ._transport import finish
from ._types import Context, Document, MemoryInfo, Message, Metadata, Mode, Source


class Memory:
    """One memory. Made by `client.memory(id)`, which calls nothing yet."""

    def __init__(self, inner: AsyncMemory) -> None:
        self._inner = inner
        self.name = inner.name
        """memories/{memory}."""
        self.documents = Documents(inner.documents)
        """The documents of this memory."""
        self.examples = Examples(inner.examples)
        """What its adapters are trained on."""
        self.adapters = Adapters(inner.adapters)
        """The versions of its LoRA."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self._inner.id

    def __repr__(self) -> str:
        return f"Memory({self.id!r})"

    def info(self, *, timeout: float | None = None) -> MemoryInfo:
        """Reads what is known of it."""
        return finish(self._inner.info(timeout=timeout))

    def write(
        self,
        text: str | bytes,
        *,
        title: str = "",
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> WriteResult:
        """Writes a text of any size. It is durable when this returns.

        `replaces`: the document whose new version it is; that one is deleted, and only changed chunks are compressed.
        NotFound: it is not there any more."""
        write = self._inner.write
        return _result(
            finish(write(text, title=title, metadata=metadata, replaces=replaces, request_id=request_id, timeout=timeout))
        )

    def write_messages(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        title: str = "",
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> WriteResult:
        """Writes a conversation: Messages, or dicts as chat APIs use them. `replaces`: as for write().

        Of a dict the content is one str, and `name` is the speaker. InvalidArgument where text would be lost: content that is
        a list of parts, or tool_calls."""
        write = self._inner.write_messages
        return _result(
            finish(write(messages, title=title, metadata=metadata, replaces=replaces, request_id=request_id, timeout=timeout))
        )

    def upload(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        title: str | None = None,
        metadata: Metadata | None = None,
        replaces: str | Document | None = None,
        request_id: str | None = None,
        timeout: float = LONG_TIMEOUT,
    ) -> WriteResult:
        """Uploads a file, or what an open binary file gives from where it stands. The title of a path is its name.

        `replaces`: as for write(). OSError: the file can't be read."""
        upload = self._inner.upload
        return _result(
            finish(upload(source, title=title, metadata=metadata, replaces=replaces, request_id=request_id, timeout=timeout))
        )

    def search(self, query: str, *, top_k: int | None = None, timeout: float | None = None) -> list[Source]:
        """Finds passages, best first. `top_k`: how many; 3 where None."""
        return finish(self._inner.search(query, top_k=top_k, timeout=timeout))

    def context(self, query: str, *, max_tokens: int | None = None, timeout: float | None = None) -> Context:
        """A text context for agents that use another LLM. `max_tokens`: its budget in tokens of the base model; 1024 where
        None."""
        return finish(self._inner.context(query, max_tokens=max_tokens, timeout=timeout))

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
    ) -> Answer:
        """Answers a question: iterate the result for its events.

        `mode`: HYBRID where None. `top_k`: how many passages it may rest on; 3 where None. `max_tokens`: how long it is at
        most, in tokens; 128 where None. `temperature`: 0, which is greedy, where None; with more, a `seed` makes it
        repeatable. `stop`: it ends before the first of these in its text. `prior_messages`: what was said before, oldest first,
        as for Memory.write_messages(). `repeat_penalty`: how strongly it is kept from repeating itself word for word; 0 is not
        at all, 0.8 where None. `adapters`: chosen by hand in place of the active ones, each with its weight, or all with weight
        1. `no_adapter`: the reader alone."""
        return Answer(
            self._inner.answer(
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
        )

    def feedback(
        self,
        question: str,
        answer: str | Answer,
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
        return finish(
            self._inner.feedback(
                question,
                answer._inner if isinstance(answer, Answer) else answer,
                verdict,
                correction=correction,
                documents=documents,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def study(self, *, max_examples: int | None = None, request_id: str | None = None, timeout: float | None = None) -> Job:
        """Makes examples of the memory's own passages, and of what its conversations discuss. The job ends with a StudyReceipt;
        where the memory is studying already, it is the job that does, and `max_examples` is ignored.

        `max_examples`: how many at most; 200 where None."""
        return finish(self._inner.study(max_examples=max_examples, request_id=request_id, timeout=timeout))

    def learn(
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
        learn = self._inner.learn
        return finish(learn(epochs=epochs, keep_inactive=keep_inactive, modes=modes, request_id=request_id, timeout=timeout))


def _result(inner: AsyncWriteResult) -> WriteResult:
    return WriteResult(
        document=inner.document,
        already_stored=inner.already_stored,
        job=inner.job,
        erase_job=inner.erase_job,
        _documents=inner._documents,
    )
