"""What a compressor is trained on: chunks of plain text to repeat and to continue, and questions over chunks.

A text sample is a chunk with the tokens that follow it, cut at a random place of a random document.
Question packs are those of the reader (`reader_data`), over chunks in place of passages, shown as memoryd shows them in
one of its three modes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.reader_data import Pack, ReaderData, read_rows
from memoryd.learn.soft_packing import Ids, SoftPack
from memoryd.recall.citation import cite
from memoryd.recall.prompt import Block, SoftBlock, SoftSlot, TextBlock, assemble

if TYPE_CHECKING:
    import torch

REPEAT = "\n\nThe same text again:\n"
_CHARACTERS = 8  # at most, for each token: what is read of a document to be sure of enough tokens
_SAMPLES, _SAMPLE_TOKENS = 1000, 512  # of the corpus, to count how rare tokens are
_MODES = (("compressed", 0.6), ("hybrid", 0.2), ("text", 0.2))


class Corpus:
    """Documents of plain text, drawn from by length."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer) -> None:
        """``folder`` holds *.jsonl.xz or *.jsonl.gz with rows {"id", "text"}."""
        files = sorted([*folder.glob("*.jsonl.xz"), *folder.glob("*.jsonl.gz")])
        self._texts = [row["text"] for file in files for row in read_rows(file)]
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

    def rarity(self, seed: int, vocabulary: int) -> torch.Tensor:
        """-log of each token's share of the corpus, less its mean over the vocabulary, [vocabulary]; from a sample."""
        import torch

        r = random.Random(f"{seed}/rarity")
        ids = [token for _ in range(_SAMPLES) for token in self.sample(r, _SAMPLE_TOKENS)]
        count_V = torch.bincount(torch.tensor(ids), minlength=vocabulary) + 1.0
        rarity_V = -(count_V / count_V.sum()).log()
        return rarity_V - rarity_V.mean()


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

    def __init__(self, data: ReaderData, tokenizer: TextTokenizer, eos_id: int, seed: int) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._eos = eos_id
        self._seed = seed

    def packs(self) -> Iterator[Pack]:
        return self._data.packs()

    def encode(self, pack: Pack, slots: Callable[[int], int], mode: str) -> SoftPack:
        """The pack as memoryd would prompt for it in this mode: compressed, hybrid or text. ``slots`` says how many
        compressed embeddings a chunk of so many tokens becomes."""
        chunks = [tuple(self._tokenizer.encode(block.text)) for block in pack.blocks]
        shown: list[Block] = []
        origins: list[int] = []
        for number, block in enumerate(pack.blocks):
            if mode != "text":
                shown.append(SoftBlock(str(number), slots(len(chunks[number])), block.title))
                origins.append(number)
            if mode == "text" or (mode == "hybrid" and number < 1):
                shown.append(TextBlock(block.text, block.title))
                origins.append(number)
        context: tuple[Ids | int, ...] = ()
        questions: list[tuple[Ids, Ids]] = []
        for asked in pack.questions:
            prompt = assemble(self._tokenizer, shown, asked.question)
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
        return r.choices([name for name, _ in _MODES], [share for _, share in _MODES])[0]
