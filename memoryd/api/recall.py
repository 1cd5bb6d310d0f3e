"""RecallService: Search, BuildContext, Answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from memoryd.api import convert
from memoryd.api.caller import tenant
from memoryd.engine.request import DEFAULT_REPEAT_PENALTY
from memoryd.errors import InvalidArgument
from memoryd.recall.answer import (
    DEFAULT_MAX_TOKENS,
    Answerer,
    AnswerUsage,
    Event,
    Question,
    Sources,
    Text,
)
from memoryd.recall.assembly import Mode
from memoryd.recall.context import DEFAULT_TOKENS, ContextBuilder
from memoryd.recall.prompt import DEFAULT_TOP_K
from memoryd.recall.search import Searcher
from memoryd.usage import UsageMeter
from memoryd.v1 import recall_pb2, recall_pb2_grpc

_FINISH = {"stop": recall_pb2.FINISH_REASON_STOP, "length": recall_pb2.FINISH_REASON_LENGTH}


class RecallServicer(recall_pb2_grpc.RecallServiceServicer):
    """Recall from memories of the caller's tenant."""

    def __init__(self, usage: UsageMeter, searcher: Searcher, context: ContextBuilder, answerer: Answerer) -> None:
        self._usage = usage
        self._searcher = searcher
        self._context = context
        self._answerer = answerer

    async def Search(self, request: recall_pb2.SearchRequest, context: Any) -> recall_pb2.SearchResponse:
        sources = await self._searcher.search(tenant(), _memories(request), request.query, request.top_k or DEFAULT_TOP_K)
        self._usage.add(tenant(), searches=1)
        return recall_pb2.SearchResponse(sources=[convert.source(s) for s in sources])

    async def BuildContext(self, request: recall_pb2.BuildContextRequest, context: Any) -> recall_pb2.BuildContextResponse:
        built = await self._context.build(tenant(), _memories(request), request.query, request.max_tokens or DEFAULT_TOKENS)
        self._usage.add(tenant(), searches=1)
        return recall_pb2.BuildContextResponse(
            text=built.text, sources=[convert.source(s) for s in built.sources], token_count=built.token_count
        )

    async def Answer(self, request: recall_pb2.AnswerRequest, context: Any) -> AsyncIterator[recall_pb2.AnswerEvent]:
        question = Question(
            memories=_memories(request),
            text=request.question,
            mode=Mode(request.mode or Mode.HYBRID),
            top_k=request.top_k or DEFAULT_TOP_K,
            max_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=request.temperature,
            stop=tuple(request.stop),
            prior=[convert.message(m) for m in request.prior_messages],
            seed=request.seed,
            repeat_penalty=request.repeat_penalty if request.HasField("repeat_penalty") else DEFAULT_REPEAT_PENALTY,
            adapters=_adapters(request),
        )
        async with contextlib.aclosing(self._answerer.answer(tenant(), question)) as events:
            async for event in events:
                yield _event(event)


def _memories(request: Any) -> list[str]:
    return [convert.last(name) for name in request.memories]


def _adapters(request: recall_pb2.AnswerRequest) -> list[tuple[str, str, float]] | None:
    if request.no_adapter and request.adapters:
        raise InvalidArgument("no_adapter: cannot be together with adapters", reason="INVALID_FIELD")
    if not request.adapters:
        return [] if request.no_adapter else None
    if len({one.adapter for one in request.adapters}) < len(request.adapters):
        raise InvalidArgument("adapters: one is there twice", reason="INVALID_FIELD")
    return [(*convert.child_ids(one.adapter), one.weight if one.HasField("weight") else 1.0) for one in request.adapters]


def _event(event: Event) -> recall_pb2.AnswerEvent:
    if isinstance(event, Sources):
        return recall_pb2.AnswerEvent(
            sources=recall_pb2.AnswerSources(
                sources=[convert.source(s) for s in event.sources],
                mode=int(event.mode),  # type: ignore[arg-type]  # the numbers are the proto's
                warnings=event.warnings,
            )
        )
    if isinstance(event, Text):
        return recall_pb2.AnswerEvent(text=event.text)
    return recall_pb2.AnswerEvent(usage=_usage(event))


def _usage(usage: AnswerUsage) -> recall_pb2.AnswerUsage:
    return recall_pb2.AnswerUsage(
        soft_tokens=usage.soft_tokens,
        text_tokens=usage.text_tokens,
        output_tokens=usage.output_tokens,
        full_source_tokens=usage.full_source_tokens,
        cache_hits=usage.cache_hits,
        adapter=usage.adapter,
        compressor=usage.compressor,
        base_model=usage.base_model,
        time_to_first_token_ms=usage.time_to_first_token_ms,
        total_ms=usage.total_ms,
        stage_ms=usage.stage_ms,
        finish_reason=_FINISH[usage.finish_reason],
        cited=usage.cited,
        adapters=[recall_pb2.AdapterWeight(adapter=name, weight=weight) for name, weight in usage.adapters],
    )
