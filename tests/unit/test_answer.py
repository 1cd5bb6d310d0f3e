"""Whole answers with a worker that says what it is told to: what is read, what is said of it, where it ends, what it counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memoryd.core import Passage, Source
from memoryd.engine.request import GenerateEvent, Generation, scope_of
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import ResourceExhausted, Unavailable
from memoryd.recall.adapters import AdapterStore
from memoryd.recall.answer import Answerer, AnswerUsage, Event, Question, Sources, Text
from memoryd.recall.assembly import Assembler, Mode, Shown
from memoryd.recall.prompt import REFUSAL, Prompt, SoftBlock, TextBlock
from memoryd.recall.underway import AnswersUnderWay
from memoryd.worker.client import WorkerInfo
from tests.unit.learning_parts import INFO, models, plain_tokenizer
from tests.unit.test_adapter_choice import MemoryCache
from tests.unit.test_reuse import MEMORY, TENANT, Lab

OTHER = "blue"


def found(number: int, text: str = "", chunk: int = 0) -> Source:
    """A passage of document `number`."""
    return Source(Passage(f"d{number}", 0, chunk, 0, 1, 0, 1, 1), MEMORY, "", text or f"Passage {number}.", 1.0)


@dataclass
class Speaker:
    """A worker that says `pieces`, a token each, and then ends with `reason`, or waits, or breaks off with `failure`."""

    pieces: Sequence[str] = ("Lisbon",)
    reason: str = "stop"
    failure: Exception | None = None
    waits: bool = False
    asked: list[Generation] = field(default_factory=list)
    said: int = 0
    closed: bool = False

    async def describe(self) -> WorkerInfo:
        return INFO

    async def generate(self, request: Generation) -> AsyncGenerator[GenerateEvent, None]:
        self.asked.append(request)
        try:
            for piece in self.pieces:
                self.said += 1
                last = self.said == len(self.pieces) and not (self.failure or self.waits)
                yield GenerateEvent(piece, self.said, self.reason if last else "")
            if self.failure:
                raise self.failure
            if self.waits:
                await asyncio.Event().wait()
        finally:
            self.closed = True


@dataclass
class Desk:
    """All that gives an answer."""

    lab: Lab
    tokenizer: TextTokenizer
    found: Sequence[Source] = (found(0), found(1), found(2))
    counted: list[dict[str, int]] = field(default_factory=list)
    under_way: AnswersUnderWay = field(default_factory=AnswersUnderWay)

    async def search(self, *_: Any) -> list[Source]:
        return list(self.found)

    def add(self, tenant: str, **counts: int) -> None:
        assert tenant in (TENANT, OTHER)
        self.counted.append(counts)

    def answerer(self, worker: Any, budget: int = 4096, **limits: Any) -> Answerer:
        known = models(worker, self.tokenizer)
        nothing: Any = None  # no embeddings: answers of text
        assembler = Assembler(self.lab.ledger, nothing, known, budget)
        adapters = AdapterStore(self.lab.ledger, self.lab.blobs, MemoryCache(), known)
        this: Any = self
        limits = {"max_answers": 1} | limits
        return Answerer(self.lab.ledger, this, assembler, adapters, known, this, self.under_way, **limits)

    def answer(self, worker: Any, budget: int = 4096, **asked: Any) -> AsyncGenerator[Event, None]:
        return self.answerer(worker, budget).answer(TENANT, Question([MEMORY], "Where?", Mode.TEXT, **asked))

    async def ask(self, worker: Speaker, budget: int = 4096, **asked: Any) -> tuple[Sources, str, AnswerUsage]:
        """An answer to its end."""
        first, *texts, last = [event async for event in self.answer(worker, budget, **asked)]
        assert isinstance(first, Sources)
        assert isinstance(last, AnswerUsage)
        assert all(isinstance(event, Text) and event.text for event in texts)
        return first, "".join(event.text for event in texts if isinstance(event, Text)), last


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(Lab(tmp_path), plain_tokenizer(tmp_path))
    yield made
    made.lab.ledger.close()


# --- stop strings, and the citation that no caller sees ---


@pytest.mark.parametrize(
    "pieces", [["[2] Charleston in 1922"], list("[2] Charleston in 1922"), ["[2", "] Char", "leston in 1922"]]
)
@pytest.mark.parametrize(
    ("stop", "want"),
    [
        ("]", "Charleston in 1922"),
        ("[", "Charleston in 1922"),
        ("[2]", "Charleston in 1922"),
        (" ", "Charleston"),
        ("2", "Charleston in 19"),
        ("Char", ""),
        ("1922!", "Charleston in 1922"),
    ],
)
async def test_a_stop_string_is_looked_for_in_the_text_that_callers_get(
    desk: Desk, pieces: list[str], stop: str, want: str
) -> None:
    worker = Speaker(pieces, reason="length")
    _, text, usage = await desk.ask(worker, stop=["never said", stop])
    assert text == want
    assert usage.finish_reason == ("length" if text == "Charleston in 1922" else "stop")
    assert usage.cited == [1], "the block second in the prompt is that of the source second best"
    assert worker.asked[0].stop == ()


async def test_a_stop_string_ends_the_workers_work(desk: Desk) -> None:
    worker = Speaker(["[1", "] ", "Lis", "bon", ". ", "The", " city"], waits=True)
    async with asyncio.timeout(20):
        _, text, usage = await desk.ask(worker, stop=["."])
    assert (text, usage.finish_reason) == ("Lisbon", "stop")
    assert (worker.said, worker.closed) == (5, True)
    assert usage.output_tokens == 5, "what was made until then"
    assert [counts["output_tokens"] for counts in desk.counted] == [5]


@pytest.mark.parametrize("pieces", [["["], ["[", "2"], [" [", "12"]])
async def test_half_a_citation_is_not_given_out_where_tokens_ran_out(desk: Desk, pieces: list[str]) -> None:
    _, text, usage = await desk.ask(Speaker(pieces, reason="length"))
    assert (text, list(usage.cited), usage.finish_reason, usage.output_tokens) == ("", [], "length", len(pieces))


# --- what was read ---


async def test_what_did_not_fit_into_the_prompt_is_no_source_and_is_warned_of(desk: Desk) -> None:
    desk.found = [found(0, "too long " * 99), found(1), found(2), found(3, "too long " * 99)]
    sources, text, usage = await desk.ask(Speaker(["[2] Lisbon"]), budget=300)
    assert sources.sources == [desk.found[1], desk.found[2]]
    (warning,) = sources.warnings
    assert warning.startswith("2 of 4 passages did not fit into the prompt and were not read: ")
    assert "max_context_tokens" in warning
    assert (text, usage.cited) == ("Lisbon", [0]), "which is the best one that was read: it is shown last"


async def test_where_all_fits_nothing_is_warned_of(desk: Desk) -> None:
    sources, _, _ = await desk.ask(Speaker())
    assert (tuple(sources.sources), list(sources.warnings)) == (desk.found, [])


async def test_where_nothing_fits_the_model_is_not_asked(desk: Desk) -> None:
    worker, desk.found = Speaker(), [found(n, "too long " * 99) for n in range(3)]
    sources, text, usage = await desk.ask(worker, budget=300)
    assert (list(sources.sources), text, worker.asked) == ([], REFUSAL, [])
    assert sources.warnings[0].startswith("3 of 3 passages did not fit")
    assert (usage.text_tokens, usage.output_tokens, usage.finish_reason) == (0, 0, "stop")


def test_a_passage_is_read_with_the_chunk_that_it_is_of() -> None:
    sources = [found(0), found(0), found(0, chunk=1), found(0, chunk=2)]
    words = TextBlock("Passage 0.")
    shown = Shown(Mode.HYBRID, [SoftBlock("d0/0", 4), words, SoftBlock("d0/1", 4), words], [0, 0, 2, 3])

    def read(*fitted: int) -> list[int]:
        return shown.read(Prompt((), 0, 0, 0, fitted, fitted), sources)

    assert read(0, 1, 2, 3) == [0, 1, 2, 3]
    assert read(0) == [0, 1], "both are of this chunk"
    assert read(1) == [0], "only this one's words are there"
    assert read(2, 3) == [2, 3]
    assert read() == []


# --- what is counted ---


async def test_an_answer_counts_once_and_before_its_end_is_told(desk: Desk) -> None:
    async for event in desk.answer(Speaker(["[1] Lis", "bon"])):
        if isinstance(event, AnswerUsage):
            assert desk.counted == [{"answers": 1, "prompt_tokens": event.text_tokens, "output_tokens": 2}]
            assert event.text_tokens > 0
    assert len(desk.counted) == 1


async def test_an_answer_that_no_model_gave_takes_no_tokens(desk: Desk) -> None:
    desk.found = ()
    await desk.ask(Speaker())
    assert desk.counted == [{"answers": 1, "prompt_tokens": 0, "output_tokens": 0}]


@pytest.mark.parametrize("end", ["the client leaves", "its deadline passes", "a document is deleted", "the worker restarts"])
async def test_an_answer_that_is_cut_off_counts_what_it_took(desk: Desk, end: str) -> None:
    _, _, whole = await desk.ask(Speaker())
    desk.counted.clear()
    failure = Unavailable("the worker restarts") if end == "the worker restarts" else None
    worker = Speaker(["[1] Lis", "bon", " is"], waits=True, failure=failure)
    heard = asyncio.Event()
    events = desk.answer(worker)

    async def listen() -> None:
        async for event in events:
            if event == Text(" is"):
                heard.set()
                if end == "the client leaves":
                    break
        await events.aclose()

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(20):
        await heard.wait()
        if end == "its deadline passes":
            listening.cancel()
        if end == "a document is deleted":
            desk.under_way.end(TENANT, MEMORY, "d1")
        (outcome,) = await asyncio.gather(listening, return_exceptions=True)
    await events.aclose()
    assert isinstance(
        outcome, {"the client leaves": type(None), "its deadline passes": asyncio.CancelledError}.get(end, Unavailable)
    )
    assert worker.closed
    assert desk.counted == [{"answers": 1, "prompt_tokens": whole.text_tokens, "output_tokens": 3}]


async def test_one_that_is_left_while_its_prompt_is_read_counts_the_prompt(desk: Desk) -> None:
    worker = Speaker([], waits=True)
    events = desk.answer(worker)
    await anext(events)
    waiting = asyncio.create_task(anext(events))
    async with asyncio.timeout(20):
        while not worker.asked:  # noqa: ASYNC110 - the worker has no event to wait for
            await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (counts,) = desk.counted
    assert (counts["answers"], counts["output_tokens"]) == (1, 0)
    assert counts["prompt_tokens"] > 0


async def test_what_fails_before_anything_is_said_is_no_answer(desk: Desk) -> None:
    class Down(Speaker):
        async def describe(self) -> WorkerInfo:
            raise Unavailable("the worker restarts")

    with pytest.raises(Unavailable):
        await desk.ask(Down())
    assert desk.counted == []


# --- how many there may be, and what they share ---


class Crowd:
    """Answers of tenants on one daemon, each of which has begun and goes on."""

    def __init__(self, answerer: Answerer, stack: contextlib.AsyncExitStack) -> None:
        self._answerer, self._stack = answerer, stack

    async def one_more(self, tenant: str) -> AsyncGenerator[Event, None]:
        events = self._answerer.answer(tenant, Question([MEMORY], "Where?", Mode.TEXT))
        await self._stack.enter_async_context(contextlib.aclosing(events))
        assert isinstance(await anext(events), Sources)
        return events

    async def refused(self, tenant: str) -> str:
        with pytest.raises(ResourceExhausted) as caught:
            await self.one_more(tenant)
        assert caught.value.reason == "TOO_MANY_ANSWERS"
        return caught.value.message


@pytest.mark.parametrize(("most", "of_one"), [(2, 1), (3, 2), (8, 7), (16, 14)])
async def test_one_tenant_cannot_hold_all_the_answers_there_may_be(desk: Desk, most: int, of_one: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        crowd = Crowd(desk.answerer(Speaker(waits=True), max_answers=most, many=True), stack)
        answers = [await crowd.one_more(TENANT) for _ in range(of_one)]
        said = await crowd.refused(TENANT)
        assert said.startswith(f"{of_one} answers of tenant {TENANT} are running")
        assert f"max_answers is {most}" in said
        assert "try again" in said
        for _ in range(most - of_one):
            await crowd.one_more(OTHER)
        assert (await crowd.refused(OTHER)).startswith(f"{most} answers are running, as many as max_answers allows")
        await answers[0].aclose()
        await crowd.one_more(TENANT)


@pytest.mark.parametrize(("most", "many"), [(3, False), (1, True), (1, False)])
async def test_where_there_is_nobody_else_or_one_answer_only_it_is_anybodys(desk: Desk, most: int, many: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        crowd = Crowd(desk.answerer(Speaker(waits=True), max_answers=most, many=many), stack)
        for _ in range(most):
            await crowd.one_more(TENANT)
        assert "as many as max_answers allows" in await crowd.refused(TENANT)


async def test_an_answer_shares_what_the_worker_computed_with_its_tenant_alone(desk: Desk) -> None:
    worker = Speaker()
    answerer = desk.answerer(worker)
    for tenant in (TENANT, OTHER, TENANT):
        _ = [event async for event in answerer.answer(tenant, Question([MEMORY], "Where?", Mode.TEXT))]
    scopes = [request.scope for request in worker.asked]
    assert scopes == [scope_of(TENANT), scope_of(OTHER), scope_of(TENANT)]
    assert len(set(scopes)) == 2
    assert not any(tenant in scope for tenant in (TENANT, OTHER) for scope in scopes), "the worker knows no tenants"
