"""Answer: search, load, assemble, stream. Sources first, then text, then what it took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from memoryd.core import Message, Source, adapter_name
from memoryd.engine.request import DEFAULT_REPEAT_PENALTY, Generation, scope_of
from memoryd.engine.text import StopFilter
from memoryd.errors import ResourceExhausted
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore, Choice
from memoryd.recall.assembly import Assembler, Mode, Shown
from memoryd.recall.citation import CitationSplitter
from memoryd.recall.prompt import DEFAULT_TOP_K, REFUSAL, Prompt
from memoryd.recall.search import Searcher
from memoryd.recall.underway import AnswersUnderWay, UnderWay
from memoryd.store.base import Ledger
from memoryd.usage import UsageMeter

DEFAULT_MAX_TOKENS = 128


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
    repeat_penalty: float = DEFAULT_REPEAT_PENALTY
    adapters: Sequence[tuple[str, str, float]] | None = None
    """(memory, adapter, weight) to answer with; None: the active ones of the memories."""


@dataclass(frozen=True, slots=True)
class Sources:
    """First event: what the answer rests on, all of it in the prompt, and the mode that is used."""

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
    adapters: Sequence[tuple[str, float]] = ()
    compressor: str = ""
    base_model: str = ""
    time_to_first_token_ms: float = 0.0
    total_ms: float = 0.0
    stage_ms: dict[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"
    cited: Sequence[int] = ()


Event = Sources | Text | AnswerUsage


class Answerer:
    """Answers questions. At most `max_answers` at a time; more are turned away at once rather than kept waiting.

    Where tenants are `many`, none of them may have the last eighth of those too, one at least: it would keep all others out."""

    def __init__(
        self,
        ledger: Ledger,
        searcher: Searcher,
        assembler: Assembler,
        adapters: AdapterStore,
        models: Models,
        usage: UsageMeter,
        answers: AnswersUnderWay,
        max_answers: int,
        many: bool = False,
    ) -> None:
        self._ledger = ledger
        self._searcher = searcher
        self._assembler = assembler
        self._adapters = adapters
        self._models = models
        self._usage = usage
        self._answers = answers
        self._max_answers = max_answers
        self._most_of_one = max(1, max_answers - max(1, max_answers // 8)) if many else max_answers
        self._running: Counter[str] = Counter()  # by tenant

    async def answer(self, tenant: str, question: Question) -> AsyncGenerator[Event, None]:
        """NotFound (a memory), InvalidArgument (too long), Unavailable (a part is down, or what the answer rests on was deleted
        meanwhile), ResourceExhausted (too many)."""
        if problem := self._too_many(tenant):
            raise ResourceExhausted(problem, reason="TOO_MANY_ANSWERS")
        self._running[tenant] += 1
        try:
            with self._answers.begin(tenant) as answer:
                async with contextlib.aclosing(self._answer(tenant, question, answer)) as events:
                    async for event in events:
                        yield event
        finally:
            self._running[tenant] -= 1

    def _too_many(self, tenant: str) -> str:
        """Which limit one more answer would be over, and what to do; empty where it is within both."""
        if (running := self._running.total()) >= self._max_answers:
            return f"{running} answers are running, as many as max_answers allows: try again"
        if (running := self._running[tenant]) >= self._most_of_one:
            return (
                f"{running} answers of tenant {tenant} are running, as many as one tenant may have where max_answers is "
                f"{self._max_answers}: try again when one of them has ended, or raise max_answers"
            )
        return ""

    async def _answer(self, tenant: str, question: Question, answer: UnderWay) -> AsyncGenerator[Event, None]:
        began = time.perf_counter()
        usage = AnswerUsage(base_model=self._models.info.base_fingerprint)
        sources = await self._searcher.search(tenant, question.memories, question.text, question.top_k, usage.stage_ms)
        answer.rest_on(sources)
        loading = time.perf_counter()
        shown, choice, usage.full_source_tokens = await asyncio.to_thread(self._read, tenant, question, sources)
        # In a thread: what is long takes seconds to be made tokens of.
        prompt = await asyncio.to_thread(self._assembler.prompt, shown, question.text, question.prior, question.max_tokens)
        await self._models.worker.describe()  # where it is down the call fails while nothing is said: it may be repeated
        usage.stage_ms["load"] = _since(loading)
        answer.check()
        # What was found but not read is no source of this answer: an example made of it must not rest on that.
        read = shown.read(prompt, sources)
        try:
            yield Sources([sources[n] for n in read], shown.mode, [*shown.warnings, *choice.warnings, *_unread(sources, read)])
            if read:
                usage.soft_tokens, usage.text_tokens = prompt.soft_tokens, prompt.text_tokens
                usage.cache_hits = shown.tiers
                usage.compressor = self._models.info.compressor.fingerprint if prompt.soft_tokens else ""
                usage.adapter = self._models.info.reader
                usage.adapters = [(adapter_name(a.memory, a.id), weight) for a, weight in choice.adapters]
                texts = self._generate(tenant, question, shown, choice, prompt, usage, began)
                async with contextlib.aclosing(texts):
                    while (text := await answer.next(texts)) is not None:
                        yield text
                usage.cited = [read.index(n) for n in usage.cited]
            else:  # nothing was found, or none of it fits: there is nothing that a model could answer from
                usage.time_to_first_token_ms = _since(began)
                yield Text(REFUSAL)
        finally:  # cut off or not; the prompt counts from when the worker is asked, for reading it is most of the work
            prompt_tokens = usage.soft_tokens + usage.text_tokens
            self._usage.add(tenant, answers=1, prompt_tokens=prompt_tokens, output_tokens=usage.output_tokens)
        usage.total_ms = _since(began)
        yield usage

    async def _generate(
        self,
        tenant: str,
        question: Question,
        shown: Shown,
        choice: Choice,
        prompt: Prompt,
        usage: AnswerUsage,
        began: float,
    ) -> AsyncGenerator[Text, None]:
        """The text, without the citation: `usage.cited` gets its position among all that was found."""
        request = Generation(
            shown.segments(prompt),
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            seed=question.seed,
            repeat_penalty=question.repeat_penalty,
            use_reader=bool(self._models.info.reader),
            compressor_fingerprint=usage.compressor,
            scope=scope_of(tenant),
        )
        citation = CitationSplitter(len(prompt.numbered))
        stop = StopFilter(question.stop)  # here and not in the worker, which would find them in the citation, too

        def unused() -> None:
            usage.adapters = ()

        async with contextlib.aclosing(self._adapters.generate(tenant, choice, request, unused)) as events:
            async for event in events:
                usage.output_tokens = event.output_tokens or usage.output_tokens
                usage.finish_reason = event.finish_reason or usage.finish_reason
                if event.queue_ms or event.prefill_ms:
                    usage.stage_ms |= {"queue": event.queue_ms, "prefill": event.prefill_ms}
                if text := stop.push(citation.feed(event.text)):
                    usage.time_to_first_token_ms = usage.time_to_first_token_ms or _since(began)
                    yield Text(text)
                if stop.stopped:
                    break
        if text := stop.push(citation.end(cut_off=usage.finish_reason == "length")) + stop.flush():
            usage.time_to_first_token_ms = usage.time_to_first_token_ms or _since(began)
            yield Text(text)
        if stop.stopped:
            usage.finish_reason = "stop"
        if citation.number:
            usage.cited = [shown.origins[prompt.numbered[citation.number - 1]]]

    def _read(self, tenant: str, question: Question, sources: Sequence[Source]) -> tuple[Shown, Choice, int]:
        """What is shown, the adapters, and the tokens of all that the memories hold."""
        shown = self._assembler.show(tenant, question.mode, sources)
        unsearchable = self._ledger.count_unsearchable(tenant, question.memories)
        if unsearchable:
            shown.warnings.append(f"{unsearchable} stored documents are not searchable yet: the answer does not know them")
        choice = self._adapters.choose(tenant, question.memories, sources, question.adapters)
        return shown, choice, self._ledger.token_count(tenant, question.memories)


def _unread(sources: Sequence[Source], read: Sequence[int]) -> list[str]:
    """The warning of those that did not fit."""
    left_out = len(sources) - len(read)
    if not left_out:
        return []
    return [
        f"{left_out} of {len(sources)} passages did not fit into the prompt and were not read: ask for fewer, or make room for "
        "them with a shorter question, a smaller max_tokens or a larger max_context_tokens"
    ]


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
