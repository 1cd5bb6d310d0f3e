"""Answer: search, load, assemble, stream. Sources first, then text, then what it took."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.core import Chunk, Message, Source
from memoryd.engine.request import Generation, Segment, Soft, TokenIds
from memoryd.errors import FingerprintMismatch, ResourceExhausted
from memoryd.models import Models
from memoryd.recall.citation import CitationSplitter
from memoryd.recall.embeddings import EmbeddingStore
from memoryd.recall.prompt import DEFAULT_TOP_K, REFUSAL, Block, Prompt, SoftBlock, SoftSlot, TextBlock, assemble
from memoryd.recall.search import Searcher
from memoryd.store.base import Ledger
from memoryd.usage import UsageMeter

DEFAULT_MAX_TOKENS = 128
HYBRID_PASSAGES = 2  # raw passages beside the compressed embeddings


class Mode(enum.IntEnum):
    """How an answer reads the memory; the numbers are those of the proto."""

    COMPRESSED = 1
    HYBRID = 2
    TEXT = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of which memories, and how."""

    memories: Sequence[str]
    text: str
    mode: Mode = Mode.HYBRID
    top_k: int = DEFAULT_TOP_K
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    stop: Sequence[str] = ()
    prior: Sequence[Message] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """First event: what the answer rests on, and the mode that is used."""

    sources: Sequence[Source]
    mode: Mode
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(slots=True)
class AnswerUsage:
    """Last event: what the answer took. Times in milliseconds."""

    soft_tokens: int = 0
    text_tokens: int = 0
    output_tokens: int = 0
    full_source_tokens: int = 0
    cache_hits: Mapping[str, int] = field(default_factory=dict)
    adapter: str = ""
    compressor: str = ""
    base_model: str = ""
    time_to_first_token_ms: float = 0.0
    total_ms: float = 0.0
    stage_ms: dict[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"
    cited: Sequence[int] = ()


Event = Sources | Text | AnswerUsage


@dataclass(slots=True)
class _Context:
    """What goes into the prompt: blocks, best first, and the compressed embeddings that the soft ones stand for.

    ``origins`` holds, for each block, the position of the source that it shows.
    """

    mode: Mode
    blocks: list[Block] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    soft: dict[str, CompressedEmbeddings] = field(default_factory=dict)
    tiers: Mapping[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def show(self, block: Block, origin: int) -> None:
        self.blocks.append(block)
        self.origins.append(origin)


class Answerer:
    """Answers questions. At most `max_answers` at a time; more are turned away at once rather than kept waiting."""

    def __init__(
        self,
        ledger: Ledger,
        searcher: Searcher,
        embeddings: EmbeddingStore,
        models: Models,
        usage: UsageMeter,
        max_context_tokens: int,
        max_answers: int,
    ) -> None:
        self._ledger = ledger
        self._searcher = searcher
        self._embeddings = embeddings
        self._models = models
        self._usage = usage
        self._max_context_tokens = max_context_tokens
        self._max_answers = max_answers
        self._running = 0

    async def answer(self, tenant: str, question: Question) -> AsyncGenerator[Event, None]:
        """NotFound (a memory), InvalidArgument (too long), Unavailable (a part is down), ResourceExhausted (too many)."""
        if self._running >= self._max_answers:
            raise ResourceExhausted(
                f"{self._running} answers are running, as many as max_answers allows: try again",
                reason="TOO_MANY_ANSWERS",
            )
        self._running += 1
        try:
            async with contextlib.aclosing(self._answer(tenant, question)) as events:
                async for event in events:
                    yield event
        finally:
            self._running -= 1

    async def _answer(self, tenant: str, question: Question) -> AsyncGenerator[Event, None]:
        began = time.perf_counter()
        usage = AnswerUsage(base_model=self._models.info.base_fingerprint)
        sources = await self._searcher.search(tenant, question.memories, question.text, question.top_k, usage.stage_ms)
        loading = time.perf_counter()
        context, usage.full_source_tokens = await asyncio.to_thread(self._read, tenant, question, sources)
        prompt = self._prompt(question, context)
        await self._models.worker.describe()  # where it is down the call fails while nothing is said: it may be repeated
        usage.stage_ms["load"] = _since(loading)
        yield Sources(sources, context.mode, context.warnings)
        if sources:
            usage.soft_tokens, usage.text_tokens = prompt.soft_tokens, prompt.text_tokens
            usage.cache_hits = context.tiers
            usage.compressor = self._models.info.compressor.fingerprint if prompt.soft_tokens else ""
            usage.adapter = self._models.info.reader
            async with contextlib.aclosing(self._generate(question, context, prompt, usage, began)) as texts:
                async for text in texts:
                    yield text
        else:  # nothing was found: there is nothing that a model could answer from
            usage.time_to_first_token_ms = _since(began)
            yield Text(REFUSAL)
        usage.total_ms = _since(began)
        read = usage.soft_tokens + usage.text_tokens
        self._usage.add(tenant, answers=1, prompt_tokens=read, output_tokens=usage.output_tokens)
        yield usage

    async def _generate(
        self, question: Question, context: _Context, prompt: Prompt, usage: AnswerUsage, began: float
    ) -> AsyncGenerator[Text, None]:
        request = Generation(
            _segments(prompt, context),
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            stop=question.stop,
            seed=question.seed,
            use_reader=bool(self._models.info.reader),
            compressor_fingerprint=usage.compressor,
        )
        citation = CitationSplitter(len(prompt.numbered))
        async with contextlib.aclosing(self._models.worker.generate(request)) as events:
            async for event in events:
                usage.output_tokens = event.output_tokens or usage.output_tokens
                usage.finish_reason = event.finish_reason or usage.finish_reason
                if event.queue_ms or event.prefill_ms:
                    usage.stage_ms |= {"queue": event.queue_ms, "prefill": event.prefill_ms}
                if text := citation.feed(event.text):
                    usage.time_to_first_token_ms = usage.time_to_first_token_ms or _since(began)
                    yield Text(text)
        if text := citation.end():
            usage.time_to_first_token_ms = usage.time_to_first_token_ms or _since(began)
            yield Text(text)
        if citation.number:
            usage.cited = [context.origins[prompt.numbered[citation.number - 1]]]

    def _read(self, tenant: str, question: Question, sources: Sequence[Source]) -> tuple[_Context, int]:
        """The context, and the tokens of all that the memories hold."""
        context = self._context(tenant, question.mode, sources)
        unsearchable = self._ledger.count_unsearchable(tenant, question.memories)
        if unsearchable:
            context.warnings.append(f"{unsearchable} stored documents are not searchable yet: the answer does not know them")
        return context, self._ledger.token_count(tenant, question.memories)

    def _context(self, tenant: str, mode: Mode, sources: Sequence[Source]) -> _Context:
        compressor = self._models.info.compressor
        if mode is Mode.HYBRID and not compressor.gate_passed:
            warning = f"the compressor {compressor.name} has not passed its quality gate: answered from raw text instead"
            return _text_context(sources, [warning])
        if mode is Mode.TEXT:
            return _text_context(sources)
        chunks = self._chunks(tenant, sources)
        found, tiers = self._embeddings.load(tenant, chunks, compressor.fingerprint)
        context = _Context(mode, tiers=tiers)
        if not compressor.gate_passed:
            context.warnings.append(
                f"the compressor {compressor.name} has not passed its quality gate: do not rely on this answer"
            )
        missing = 0
        for position, source in enumerate(sources):
            key = (source.passage.document, source.passage.chunk)
            name = f"{key[0]}/{key[1]}"
            if key not in found:
                missing += 1
                context.show(TextBlock(source.text, source.title), position)
                continue
            if name not in context.soft:
                context.soft[name] = found[key]
                context.show(SoftBlock(name, found[key].k, source.title), position)
            if mode is Mode.HYBRID and position < HYBRID_PASSAGES:
                context.show(TextBlock(source.text, source.title), position)
        if missing:
            context.warnings.append(f"{missing} of {len(sources)} passages are not compressed yet: read as raw text")
        return context

    def _chunks(self, tenant: str, sources: Sequence[Source]) -> list[Chunk]:
        keys = list(dict.fromkeys((s.passage.document, s.passage.chunk) for s in sources))
        return list(self._ledger.get_chunks(tenant, keys).values())

    def _prompt(self, question: Question, context: _Context) -> Prompt:
        for embeddings in context.soft.values():
            if embeddings.d_model != self._models.info.d_model:
                raise FingerprintMismatch("compressed embeddings are not of the base model's width: they are being remade")
        budget = min(self._max_context_tokens, self._models.info.max_positions - question.max_tokens)
        return assemble(self._models.tokenizer, context.blocks, question.text, question.prior, budget=budget)


def _text_context(sources: Sequence[Source], warnings: Sequence[str] = ()) -> _Context:
    blocks: list[Block] = [TextBlock(s.text, s.title) for s in sources]
    return _Context(Mode.TEXT, blocks, list(range(len(sources))), warnings=list(warnings))


def _segments(prompt: Prompt, context: _Context) -> list[Segment]:
    return [Soft(context.soft[s.chunk_key]) if isinstance(s, SoftSlot) else TokenIds(s.ids) for s in prompt.segments]


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
