"""What a compressor is trained on: chunks of plain text to repeat and to continue, and questions over chunks.

A text sample is a chunk with the tokens that follow it, cut at a random place of a random document.
Question packs are those of the reader (`reader_data`), over chunks in place of passages, shown as memoryd shows them in
one of its three modes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.learn.reader_data import Answered, Pack, ReaderData, read_rows
from memoryd.learn.soft_packing import Ids, SoftPack
from memoryd.recall.citation import cite
from memoryd.recall.prompt import Block, SoftBlock, SoftSlot, TextBlock, assemble

REPEAT = "\n\nThe same text again:\n"
_CHARACTERS = 8  # at most, for each token: what is read of a document to be sure of enough tokens
_MODES = {"compressed": 0.6, "hybrid": 0.2, "text": 0.2}

Slots = Callable[[int], int]
"""How many compressed embeddings a chunk of so many tokens becomes."""


def sha256_of(folder: Path) -> str:
    """Of its files with rows, by name: the same data has the same wherever it stands."""
    return sha256_of_files(folder, _files(folder))


def sha256_of_files(folder: Path, files: Sequence[Path]) -> str:
    """Of these files within it, by name."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.jsonl.xz"), *folder.glob("*.jsonl.gz")])


class Corpus:
    """Documents of plain text, drawn from by length."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer) -> None:
        """``folder`` holds *.jsonl.xz or *.jsonl.gz with rows {"id", "text"}."""
        self._texts = [row["text"] for file in _files(folder) for row in read_rows(file)]
        if not self._texts:
            raise FileNotFoundError(f"no *.jsonl.xz or *.jsonl.gz with texts in {folder}")
        self._lengths = [len(text) for text in self._texts]
        self._tokenizer = tokenizer

    @property
    def characters(self) -> int:
        return sum(self._lengths)

    def sample(self, r: random.Random, tokens: int) -> Ids:
        """About so many tokens that follow each other, beginning with a word; fewer where the document is shorter."""
        text = r.choices(self._texts, self._lengths)[0]
        start = r.randrange(max(1, len(text) - tokens * 4))
        piece = text[start : start + tokens * _CHARACTERS]
        begin = piece.find(" ") + 1 if start else 0
        return tuple(self._tokenizer.encode(piece[begin:])[:tokens])


class TextData:
    """Text samples; the same ones for the same seed and step, whatever came before."""

    def __init__(self, corpus: Corpus, tokenizer: TextTokenizer, seed: int, chunk_tokens: int) -> None:
        """Half of the chunks have ``chunk_tokens``, the others half and a quarter of that."""
        self._corpus = corpus
        self._chunk_tokens = chunk_tokens
        self._seed = seed
        self.characters = corpus.characters
        self._repeat = tuple(tokenizer.encode(REPEAT))

    def packs(self, step: int, count: int, repeat: float, follow: int) -> list[SoftPack]:
        """``count`` samples for a step; the share ``repeat`` of them to repeat, the others to continue by ``follow`` tokens."""
        r = random.Random(f"{self._seed}/{step}")
        made: list[SoftPack] = []
        while len(made) < count:
            chunk_tokens = self._chunk_tokens // r.choice((1, 1, 2, 4))
            to_repeat = r.random() < repeat
            ids = self._corpus.sample(r, chunk_tokens if to_repeat else chunk_tokens + follow)
            chunk, rest = ids[:chunk_tokens], ids[chunk_tokens:]
            if to_repeat and chunk:
                made.append(SoftPack((chunk,), (0,), ((self._repeat, chunk),)))
            elif rest:
                made.append(SoftPack((chunk,), (0,), (((), rest),)))
        return made


class QuestionData:
    """Question packs without end, the same ones for the same seed."""

    def __init__(
        self, data: ReaderData, tokenizer: TextTokenizer, eos_id: int, seed: int, window: int, text: bool = True
    ) -> None:
        """``window`` is how many positions the base model has. Without ``text`` no pack is shown as text alone: for a base
        model that has a reader of its own for that."""
        self._data = data
        self._tokenizer = tokenizer
        self._eos = eos_id
        self._seed = seed
        self._window = window
        self._modes = {name: share for name, share in _MODES.items() if text or name != "text"}

    def packs(self) -> Iterator[Pack]:
        return self._data.packs()

    def answered(self) -> list[Answered]:
        """See `ReaderData.answered`."""
        return self._data.answered()

    def fitted(self, pack: Pack, slots: Slots, modes: Collection[str]) -> Pack:
        """The pack with no more blocks than fit the base model's window in each of these modes.

        First those go that no question rests on, the last one first; then the last ones of the others, with their questions.
        FailedPrecondition where a question does not fit beside the one block that it rests on.
        """
        while not all(self._fits(pack, slots, mode) for mode in modes):
            sources = {asked.block for asked in pack.questions}
            if len(pack.blocks) == 1 and pack.blocks[0] in sources:
                raise FailedPrecondition(
                    f"one chunk with its question and answer does not fit the base model's {self._window} positions: train a "
                    "kind of compressor that has shorter chunks, or for another base model"
                )
            gone = max(range(len(pack.blocks)), key=lambda n: (pack.blocks[n] not in sources, n))
            blocks = (*pack.blocks[:gone], *pack.blocks[gone + 1 :])
            questions = tuple(asked for asked in pack.questions if asked.block is None or asked.block in blocks)
            pack = replace(pack, blocks=blocks, questions=questions)
        return pack

    def _fits(self, pack: Pack, slots: Slots, mode: str) -> bool:
        shown, _ = _shown(pack, [slots(self._tokenizer.count(block.text)) for block in pack.blocks], mode)
        question = max((asked.question for asked in pack.questions), key=self._tokenizer.count)
        answer = max(self._tokenizer.count(cite(len(shown), asked.answer)) + 1 for asked in pack.questions)
        prompt = assemble(self._tokenizer, shown, question, budget=self._window - answer)
        return len(prompt.blocks) == len(shown)

    def encode(self, pack: Pack, slots: Slots, mode: str) -> SoftPack:
        """The pack, which is `fitted`, as memoryd would prompt for it in this mode: compressed, hybrid or text."""
        chunks = [tuple(self._tokenizer.encode(block.text)) for block in pack.blocks]
        shown, origins = _shown(pack, [slots(len(chunk)) for chunk in chunks], mode)
        context: tuple[Ids | int, ...] = ()
        questions: list[tuple[Ids, Ids]] = []
        for asked in pack.questions:
            prompt = assemble(self._tokenizer, shown, asked.question, budget=self._window)
            pieces = [int(s.chunk_key) if isinstance(s, SoftSlot) else s.ids for s in prompt.segments]
            last = pieces[-1]
            assert isinstance(last, tuple)
            # The question is the end of the last run of tokens; the context all that stands before it.
            before = sum(s.length if isinstance(s, SoftSlot) else len(s.ids) for s in prompt.segments[:-1])
            cut = prompt.context_tokens - before
            context = (*pieces[:-1], *((last[:cut],) if cut else ()))
            answer = asked.answer
            if asked.block is not None:
                source = pack.blocks.index(asked.block)
                # Where a block is shown twice, its text is named: exact words are there.
                number = max(n for n, index in enumerate(prompt.numbered, start=1) if origins[index] == source)
                answer = cite(number, answer)
            questions.append((last[cut:], (*self._tokenizer.encode(answer), self._eos)))
        used = sorted({p for p in context if isinstance(p, int)})
        renumbered = {old: new for new, old in enumerate(used)}
        pieces_ = tuple(renumbered[p] if isinstance(p, int) else p for p in context)
        return SoftPack(tuple(chunks[c] for c in used), pieces_, tuple(questions))

    def mode(self, step: int, index: int) -> str:
        """How the ``index``-th pack of a step is shown."""
        r = random.Random(f"{self._seed}/{step}/{index}")
        return r.choices(list(self._modes), list(self._modes.values()))[0]


def _shown(pack: Pack, slots: list[int], mode: str) -> tuple[list[Block], list[int]]:
    """The blocks as this mode shows them, and which of the pack's each is; ``slots`` are those of each of the pack's."""
    shown: list[Block] = []
    origins: list[int] = []
    for number, block in enumerate(pack.blocks):
        if mode != "text":
            shown.append(SoftBlock(str(number), slots[number], block.title))
            origins.append(number)
        if mode == "text" or (mode == "hybrid" and number < 1):
            shown.append(TextBlock(block.text, block.title))
            origins.append(number)
    return shown, origins
