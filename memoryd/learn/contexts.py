"""Examples as they are trained on: each question over what an answer to it would be given; packs share a context.

Examples are questions with answers, and an adapter that is trained on nothing else unlearns to refuse: of 20 questions about
another memory, adapters of two of SQuAD's articles refused 0.60 and 0.55, where the reader alone refuses 0.95. So there are
questions to be refused among them (`unanswerable.py`): a stranger in each second pack, and of each fourth pack its questions
once more, with the evidence withheld.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.core import Example, Source
from memoryd.errors import InvalidArgument
from memoryd.learn.soft_packing import Ids, SoftPack
from memoryd.learn.unanswerable import Found, chunk_of, holds, stranger, withheld
from memoryd.models import Models
from memoryd.recall.assembly import Assembler, Mode, Shown
from memoryd.recall.citation import cite
from memoryd.recall.prompt import DEFAULT_TOP_K, REFUSAL, Prompt, Segment, SoftSlot, TextBlock, TokenRun
from memoryd.recall.search import Searcher

MAX_ANSWER_TOKENS = 256
_QUESTIONS = 6  # of a pack
_WITHOUT = 7  # one time in so many an example is shown without any context: the memory itself is to know it
_STRANGER = 2  # to so many questions of a pack there is one
_APART = 17  # examples between two of them, where they are sought
_WITHHELD = 4  # one of so many packs comes once more, without the evidence
_DEEPER = 3  # times as many sources are found as are shown: what is left of them is as many without the evidence


@dataclass(slots=True)
class Packs:
    """What `Learning` takes, and the documents that had a part in it."""

    packs: list[SoftPack] = field(default_factory=list)
    chunks: list[CompressedEmbeddings] = field(default_factory=list)
    documents: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    """Of chunks, by their key."""

    def number(self, slot: SoftSlot, shown: Shown) -> int:
        """Of the chunk in this slot, which is taken in where it is new."""
        if slot.chunk_key not in self.numbers:
            self.numbers[slot.chunk_key] = len(self.chunks)
            self.chunks.append(shown.soft[slot.chunk_key])
        return self.numbers[slot.chunk_key]


class ContextMaker:
    """Searches and assembles as answers do."""

    def __init__(self, searcher: Searcher, assembler: Assembler, models: Models) -> None:
        self._searcher = searcher
        self._assembler = assembler
        self._models = models
        self._eos = tuple(models.info.eos_ids[:1])

    async def find(self, tenant: str, memory: str, examples: Sequence[Example], step: Callable[[int], None]) -> list[Found]:
        """Searches for each. `step` is told how many are done, and may raise."""
        found: list[Found] = []
        for number, example in enumerate(examples):
            step(number)
            best = await self._searcher.search(tenant, [memory], example.question, _DEEPER * DEFAULT_TOP_K)
            found.append(Found(example, best[:DEFAULT_TOP_K], best[DEFAULT_TOP_K:]))
        return found

    def packs(self, tenant: str, found: Sequence[Found], modes: Sequence[Mode], passes: int) -> Packs:
        """As many passes over the examples, each example in the modes by turns. Blocks."""
        made = Packs()
        for number in range(passes):
            by_mode: dict[Mode | None, list[Found]] = {}
            for one in found:
                by_mode.setdefault(self._mode(one.example, number, modes), []).append(one)
            for mode, some in sorted(by_mode.items(), key=lambda item: item[0] or 0):
                for together in _sharing(some):
                    draw = int.from_bytes(_hash(together[0].example)[4:8]) + number
                    strange = self._strangers(together, found, draw) if mode is not None else []
                    self._add(made, tenant, mode, [*together, *strange])
                    if mode is not None and draw % _WITHHELD == 1 and (refused := withheld(together)):
                        self._add(made, tenant, mode, refused)
        for one in found:
            made.documents.update(one.example.documents)
        return made

    @staticmethod
    def unanswerable(found: Sequence[Found]) -> list[Found]:
        """For every second example a question to be refused: by turns a stranger, and its own with the evidence withheld."""
        made: list[Found] = []
        for number, one in list(enumerate(found))[::2]:
            strange, own = stranger(one, found, number + 1), withheld([one])
            made += strange or own if number % 4 else own or strange
        return made

    def prompt(self, tenant: str, mode: Mode, one: Found, max_tokens: int) -> tuple[Shown, Prompt]:
        """As an answer to it is given. Blocks."""
        shown = self._assembler.show(tenant, mode, one.sources)
        return shown, self._assembler.prompt(shown, one.example.question, (), max_tokens)

    @staticmethod
    def _strangers(together: Sequence[Found], found: Sequence[Found], draw: int) -> list[Found]:
        """To go with these: by the number of questions, since a context that is asked much is answered as often. To a single
        one there is one or none by turns. Different ones, as far as there are any."""
        count = (len(together) + (draw + 1) % _STRANGER) // _STRANGER
        strange = [one for number in range(count) for one in stranger(together[0], found, draw + _APART * number)]
        return list({one.example.id: one for one in strange}.values())

    @staticmethod
    def _mode(example: Example, number: int, modes: Sequence[Mode]) -> Mode | None:
        """None: without context."""
        turn = int.from_bytes(_hash(example)[:4]) + number
        return None if turn % _WITHOUT == 0 else modes[turn % len(modes)]

    def _add(self, made: Packs, tenant: str, mode: Mode | None, together: Sequence[Found]) -> None:
        """Appends them as a pack, or as several: a long question leaves less room, so that its context is another. Those that
        do not fit the base model's window are left out."""
        sources = together[0].sources if mode is not None else ()
        shown = self._assembler.show(tenant, mode or Mode.TEXT, sources)
        by_context: dict[tuple[Segment, ...], list[tuple[Ids, Ids]]] = {}
        for one in together:
            try:
                prompt = self._assembler.prompt(shown, one.example.question, (), MAX_ANSWER_TOKENS)
            except InvalidArgument:  # the question alone is too long
                continue
            context, question = _split(prompt)
            answer = self._models.tokenizer.encode(_said(one.example, shown, prompt, sources))[:MAX_ANSWER_TOKENS]
            by_context.setdefault(context, []).append((question, (*answer, *self._eos)))
        for context, questions in by_context.items():
            pieces = tuple(made.number(s, shown) if isinstance(s, SoftSlot) else s.ids for s in context)
            made.packs.append(SoftPack((), pieces, tuple(questions)))
            made.documents.update(source.passage.document for source in sources)


def _hash(example: Example) -> bytes:
    return hashlib.sha256(example.id.encode()).digest()


def _sharing(found: Sequence[Found]) -> list[list[Found]]:
    """Those whose best source is the same, a few at a time: one context is enough for them."""
    by_best: dict[str, list[Found]] = {}
    for one in found:
        best = one.sources[0].passage.id if one.sources else ""
        by_best.setdefault(best, []).append(one)
    return [some[at : at + _QUESTIONS] for some in by_best.values() for at in range(0, len(some), _QUESTIONS)]


def _split(prompt: Prompt) -> tuple[tuple[Segment, ...], Ids]:
    """The context, and what follows it up to the answer."""
    *before, last = prompt.segments
    assert isinstance(last, TokenRun)  # a prompt ends with its question
    cut = prompt.context_tokens - sum(s.length if isinstance(s, SoftSlot) else len(s.ids) for s in before)
    return (*before, *((TokenRun(last.ids[:cut]),) if cut else ())), last.ids[cut:]


def _said(example: Example, shown: Shown, prompt: Prompt, sources: Sequence[Source]) -> str:
    """The answer as the reader gives it: with the number of the block that it comes from, where that is known."""
    answer = example.answer.strip()
    if answer == REFUSAL:
        return answer
    best, number = (0, 0), 0
    for position, index in enumerate(prompt.numbered, start=1):
        source, is_text = sources[shown.origins[index]], isinstance(shown.blocks[index], TextBlock)
        texts = [source.text] if is_text else [s.text for s in sources if chunk_of(s) == chunk_of(source)]
        found = any(holds(text, answer) for text in texts)
        rests = 2 * found + (source.passage.document in example.documents)
        if (rests, is_text) >= best and rests:
            best, number = (rests, is_text), position
    return cite(number, answer) if number else answer
