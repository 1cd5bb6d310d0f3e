"""The STUDY job: examples of a memory's own passages. An asker makes questions with their answers; what the reader does not
find again in the passage, what the memory has already, and what tells its own answer, is dropped.

Of conversations it also asks what is discussed, of a chunk at a time since that is said in many turns. No reader finds such an
answer again word for word: it keeps the sentences that the chunk supports.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from memoryd.core import Document, Example, Job, JobKind, Origin, Passage, memory_name, passage_id
from memoryd.engine.request import Generation, TokenIds, scope_of
from memoryd.errors import InvalidArgument, NotFound
from memoryd.eval.metrics import f1, normalized
from memoryd.jobs import NotYet, Progress, Stopped
from memoryd.learn.discussion import speakers, supported
from memoryd.models import Models
from memoryd.recall.citation import split_citation
from memoryd.recall.prompt import TextBlock, assemble
from memoryd.store.base import Ledger
from memoryd.store.texts import Texts

DEFAULT_EXAMPLES = 200
_PER_PASSAGE = 3  # examples that are kept of one
_PASSAGES_PER_EXAMPLE = 3  # read at most for each that is wanted: where few questions are good ones, all of a memory would be
_LEAST_PASSAGES = 24  # and as many are read for a few examples too
_FOUND_AGAIN = 0.6  # F1 of what the reader answers with what the asker says
_ALIKE = 0.75  # share of words that two questions have in common, to be the same one
_ANSWER_TOKENS = 48
_REFUSED = 3  # passages that a teacher may refuse before it has taken any
_AT_A_TIME = 4  # memories
_ASKED = "asked"  # in the receipt of a job that has not ended: passages up to the last one that facts were asked of
_PAGE = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with their answers, and what making them took."""

    pairs: Sequence[tuple[str, str]]
    prompt_tokens: int = 0
    output_tokens: int = 0


class Asker(Protocol):
    """Makes questions of passages."""

    @property
    def name(self) -> str: ...

    async def ask(self, text: str, title: str, scope: str = "") -> Asked:
        """Of one passage; `scope` is its tenant's, for what is asked of the worker. Unavailable where it can't be reached now,
        InvalidArgument where it refuses this passage."""

    async def discuss(self, text: str, title: str, scope: str = "") -> Asked:
        """Of what is discussed in a chunk of a conversation, with answers of a few sentences. Errors are those of `ask`."""


@dataclass(frozen=True, slots=True)
class _Studying:
    """One run of the job."""

    progress: Progress
    most: int
    """Examples that are wanted of it."""
    counts: Counter[str]
    known: list[set[str]]
    """The words of each question that the memory has."""
    discussed: set[tuple[str, int]]
    """Chunks whose turn has been: (document, ordinal)."""


class StudyJob:
    """Handles JobKind.STUDY. Resumable at every passage: what was added stays. A few memories study at a time, the
    others wait."""

    def __init__(self, ledger: Ledger, texts: Texts, models: Models, asker: Asker) -> None:
        self._ledger = ledger
        self._texts = texts
        self._models = models
        self._asker = asker
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        if self._slots.locked():
            raise NotYet
        async with self._slots:
            return await self._run(job, progress)

    async def _run(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        memory = job.payload["memory"]
        most = int(job.payload.get("max_examples", DEFAULT_EXAMPLES))
        counts: Counter[str] = Counter({k: v for k, v in job.receipt.items() if isinstance(v, int)})
        try:
            known, passages = await asyncio.to_thread(self._begun, job, max(_LEAST_PASSAGES, _PASSAGES_PER_EXAMPLE * most))
            begin = job.done if job.stage == "study" else 0
            discussed = {(passage.document, passage.chunk) for _, passage in passages[:begin]}
            run = _Studying(progress, most, counts, known, discussed)
            for number, (document, passage) in enumerate(passages[begin:], start=begin):
                if counts["examples"] >= most:
                    break
                progress.note(**counts)
                # It gets one passage further at least: to begin takes long in a large memory.
                progress.step("study", number, len(passages), resumable=number > begin)
                await self._study(number, document, passage, run)
            progress.show("study", len(passages), len(passages))
            if job.payload.get("then") == JobKind.LEARN and counts["examples"]:
                gathered = {"gathered": job.create_time.isoformat()}  # what was written later may not have been studied
                await asyncio.to_thread(self._ledger.request_learning, job.tenant, memory, JobKind.LEARN, gathered, None)
        except NotFound:  # the memory is deleted
            raise Stopped from None
        names = ("passages", "questions", "unanswerable", "duplicates", "leaking", "examples", "prompt_tokens", "output_tokens")
        made = {name: counts[name] for name in (*names, "refused")}
        return {"memory": memory_name(memory), "teacher": self._asker.name, **made}

    def _begun(self, job: Job, most: int) -> tuple[list[set[str]], list[tuple[Document, Passage]]]:
        """The words of each question that the memory has, and so many of its passages at most. Blocks.

        Those of documents that were not studied before come first, and each in an order of this job's own, so that a part of
        them is of all documents and another job reads others. The same at every resumption, but for what was written or deleted
        meanwhile."""
        examples = self._examples(job.tenant, job.payload["memory"])
        before = (example for example in examples if example.create_time < job.create_time)
        studied = {document for example in before if example.origin is Origin.SELF_STUDY for document in example.documents}
        ids: list[tuple[bool, bytes, str, Document]] = []
        token = ""
        while True:
            page = self._ledger.list_documents(job.tenant, job.payload["memory"], _PAGE, token)
            for document in page.items:
                names = (passage_id(document.id, ordinal) for ordinal in range(document.passage_count))
                ids += ((document.id in studied, _shuffled(job.id, name), name, document) for name in names)
            token = page.next_token
            if not token:
                break
        chosen = [(name, document) for _, _, name, document in sorted(ids, key=lambda one: one[:2])[:most]]
        found: dict[str, Passage] = {}
        for at in range(0, len(chosen), _PAGE):
            found |= self._ledger.get_passages(job.tenant, [name for name, _ in chosen[at : at + _PAGE]])
        passages = [(document, found[name]) for name, document in chosen if name in found]
        return [_words(example.question) for example in examples], passages

    def _examples(self, tenant: str, memory: str) -> list[Example]:
        """All that the memory has."""
        found: list[Example] = []
        token = ""
        while True:
            page = self._ledger.list_examples(tenant, memory, _PAGE, token)
            found += page.items
            token = page.next_token
            if not token:
                return found

    async def _study(self, number: int, document: Document, passage: Passage, run: _Studying) -> None:
        if run.counts[_ASKED] != number + 1:  # else it failed in what follows, and this is paid for
            if not await self._ask_for_facts(document, passage, run):
                return
            run.counts[_ASKED] = number + 1
            run.progress.note(**run.counts)
        chunk = (passage.document, passage.chunk)
        if chunk not in run.discussed and run.counts["examples"] < run.most:
            await self._discuss(document, chunk, run)
        run.discussed.add(chunk)

    async def _ask_for_facts(self, document: Document, passage: Passage, run: _Studying) -> bool:
        """Whether it was asked: not where the passage is deleted or refused."""
        try:
            (text,) = await asyncio.to_thread(self._texts.passages, document, [passage])
        except (NotFound, ValueError):  # deleted meanwhile
            await self._skip(document)
            return False
        try:
            facts = await self._ask(self._asker.ask, text, document, run)
        except InvalidArgument:  # it is the passage, a content filter say, unless all are refused
            run.counts["refused"] += 1
            if not run.counts["passages"] and run.counts["refused"] >= _REFUSED:
                raise
            return False
        run.counts["passages"] += 1
        run.progress.note(**run.counts)  # it is paid for, whatever follows
        await self._add(document, await self._found_again(facts.pairs, text, document, run), run)
        return True

    async def _discuss(self, document: Document, chunk: tuple[str, int], run: _Studying) -> None:
        """Nothing where it is of no conversation, or refused."""
        try:
            text = await asyncio.to_thread(self._chunk, document, chunk)  # only now: it may have been deleted since
        except (NotFound, KeyError):
            await self._skip(document)
            return
        if not speakers(text):
            return
        try:
            asked = await self._ask(self._asker.discuss, text, document, run)
        except InvalidArgument:
            return
        await self._add(document, _supported(asked.pairs, text, run), run)

    def _chunk(self, document: Document, chunk: tuple[str, int]) -> str:
        return self._texts.chunk(document, self._ledger.get_chunks(document.tenant, [chunk])[chunk])

    async def _add(self, document: Document, kept: Sequence[tuple[str, str]], run: _Studying) -> None:
        if not kept:
            return
        rows = [(question, answer, [document.id]) for question, answer in kept]
        adding = (document.tenant, document.memory, rows, Origin.SELF_STUDY, None)
        try:
            _, held = await asyncio.to_thread(self._ledger.add_examples, *adding)
        except NotFound:  # the document is deleted: so is what was asked of it
            await self._skip(document)
            return
        run.counts.update(examples=len(kept) - held, duplicates=held)

    async def _ask(
        self, ask: Callable[[str, str, str], Awaitable[Asked]], text: str, document: Document, run: _Studying
    ) -> Asked:
        asked = await ask(text, document.title, scope_of(document.tenant))
        run.counts.update(prompt_tokens=asked.prompt_tokens, output_tokens=asked.output_tokens)
        return asked

    async def _found_again(
        self, asked: Sequence[tuple[str, str]], text: str, document: Document, run: _Studying
    ) -> list[tuple[str, str]]:
        """Those that the reader answers as the asker did, as many as are kept of one passage."""
        pairs, kept = deque(asked), list[tuple[str, str]]()
        wanted = min(_PER_PASSAGE, run.most - run.counts["examples"])
        while pairs and len(kept) < wanted:
            some = _candidates(pairs, run.known, wanted - len(kept), run.counts)
            said = await asyncio.gather(*(self._read(document.tenant, text, document.title, question) for question, _ in some))
            for (question, answer), read in zip(some, said, strict=True):
                if f1(read, [answer]) < _FOUND_AGAIN:
                    run.counts["unanswerable"] += 1
                else:
                    run.known.append(_words(question))
                    kept.append((question, answer))
        return kept

    async def _skip(self, document: Document) -> None:
        """What is deleted. NotFound where that is all of the memory."""
        await asyncio.to_thread(self._ledger.require_memories, document.tenant, [document.memory])

    async def _read(self, tenant: str, text: str, title: str, question: str) -> str:
        """What the reader answers from the passage alone; nothing where the question is too long to be asked."""
        budget = self._models.info.max_positions - _ANSWER_TOKENS
        try:
            prompt = assemble(self._models.tokenizer, [TextBlock(text, title)], question, budget=budget)
        except InvalidArgument:
            return ""
        ids, reader = tuple(prompt.token_ids()), bool(self._models.info.reader)
        request = Generation([TokenIds(ids)], _ANSWER_TOKENS, use_reader=reader, background=True, scope=scope_of(tenant))
        async with aclosing(self._models.worker.generate(request)) as events:
            said = "".join([event.text async for event in events])
        return split_citation(said, len(prompt.numbered))[1]


def tells(question: str, answer: str) -> bool:
    """Whether the question holds its own answer."""
    return f" {normalized(answer)} " in f" {normalized(question)} "


def _supported(asked: Sequence[tuple[str, str]], text: str, run: _Studying) -> list[tuple[str, str]]:
    """Those with what the text supports of their answers, as many as are wanted still."""
    pairs, kept, most = deque(asked), list[tuple[str, str]](), run.most - run.counts["examples"]
    while pairs and len(kept) < most:
        for question, answer in _candidates(pairs, run.known, 1, run.counts):
            if said := supported(answer, text):
                run.known.append(_words(question))
                kept.append((question, said))
            else:
                run.counts["unanswerable"] += 1
    return kept


def _candidates(
    pairs: deque[tuple[str, str]], known: Sequence[set[str]], most: int, counts: Counter[str]
) -> list[tuple[str, str]]:
    """Takes the next pairs off that are worth reading, up to so many: they are read side by side. It ends before one that is
    like another of them, which is a duplicate only if that other is kept."""
    some: list[tuple[str, str]] = []
    while pairs and len(some) < most:
        question, answer = pairs[0]
        words = _words(question)
        if any(_alike(words, _words(other)) for other, _ in some):
            break
        pairs.popleft()
        counts["questions"] += 1
        if tells(question, answer):
            counts["leaking"] += 1
        elif any(_alike(words, other) for other in known):
            counts["duplicates"] += 1
        else:
            some.append((question, answer))
    return some


def _shuffled(job: str, passage: str) -> bytes:
    return hashlib.sha256(f"{job}/{passage}".encode()).digest()


def _words(question: str) -> set[str]:
    return set(normalized(question).split())


def _alike(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= _ALIKE * max(1, len(one | other))
