"""Search, contexts and answers over one or several memories."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from . import _convert
from ._answer import AsyncAnswer
from ._caller import Caller, Deadline, Stream
from ._learning import GivenAdapters
from ._types import Context, MemoryInfo, Message, Mode, Source


@runtime_checkable
class Handle(Protocol):
    """A memory's handle, as recall sees it."""

    @property
    def name(self) -> str: ...

    def _ready(self, timeout: float | None) -> Awaitable[float]: ...


Given = str | MemoryInfo | Handle
GivenMemories = Given | Sequence[Given]


@dataclass(frozen=True)
class Recall:
    """What the handles and the client share."""

    caller: Caller

    async def search(self, memories: GivenMemories, query: str, top_k: int | None, timeout: float | None) -> list[Source]:
        deadline = self.caller.deadline(timeout)
        names = await _names(memories, deadline)
        response = await self.caller.unary(
            "RecallService.Search", timeout=deadline.left(), memories=names, query=query, top_k=top_k
        )
        return list(_convert.sources(response.sources))

    async def context(self, memories: GivenMemories, query: str, max_tokens: int | None, timeout: float | None) -> Context:
        deadline = self.caller.deadline(timeout)
        names = await _names(memories, deadline)
        response = await self.caller.unary(
            "RecallService.BuildContext", timeout=deadline.left(), memories=names, query=query, max_tokens=max_tokens
        )
        return _convert.context(response)

    def answer(
        self,
        memories: GivenMemories,
        question: str,
        *,
        prior_messages: Sequence[Message | Mapping[str, Any]],
        mode: Mode | None,
        adapters: GivenAdapters | None,
        timeout: float,
        **fields: Any,
    ) -> AsyncAnswer:
        async def begin() -> Stream:
            deadline = Deadline(timeout)
            names = await _names(memories, deadline)
            return self.caller.stream(
                "RecallService.Answer",
                timeout=deadline.left(),
                memories=names,
                question=question,
                prior_messages=list(_convert.messages_out(prior_messages)),
                mode=None if mode is None else _convert.mode_out(mode),
                adapters=_convert.weights_out(names, adapters),
                **fields,
            )

        return AsyncAnswer(question, begin)


async def _names(memories: GivenMemories, deadline: Deadline) -> list[str]:
    if isinstance(memories, (str, MemoryInfo, Handle)):  # one alone; a str is a sequence of str, but never meant as one
        memories = [memories]
    for memory in memories:
        if isinstance(memory, Handle):
            await memory._ready(deadline.left())
    return [_convert.name_of("memories", memory) for memory in memories]
