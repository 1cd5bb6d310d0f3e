"""Cuts a document's text into chunks, and each chunk into passages.

Text streams through in units, which are sentences or, where a sentence is too long, stretches of it. Units are packed
into chunks, and a chunk's units are shared out evenly over its passages; both prefer to end where a line ends, that is
at a paragraph or a turn of a conversation. Memory is bounded by one batch of text and time is linear in its length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

from memoryd.core import Chunk, Passage

# A sentence ends at its punctuation, with what closes it, before white space (but not after an initial or a title);
# after CJK punctuation; or at a newline. Repetitions are bounded so that a line of a million dots stays linear.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bDr)(?<!\bMs)(?<!\bMrs)(?<!\bSt)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)"
    r"[.!?…]{1,8}[\"'”’»)\]]{0,4}(?=\s)|[。！？]{1,8}[」』”’]{0,4}|\n"
)
_UNIT_CHARS = 1200  # a longer sentence is cut, at white space where there is some
_BATCH_CHARS = 1 << 16  # this much text is counted at once: one call into the tokenizer instead of thousands
GAP_CHARS = 64  # more white space than this is a boundary of chunks: it must not fill one


class Counter(Protocol):
    """Counts tokens: the base model's tokenizer and the retrieval encoder's both do."""

    def count_batch(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in tokens. The maxima hold for every chunk and passage; the target is what passages are aimed at.

    160 retrieval-encoder tokens are about a paragraph: three passages fill a chunk.
    """

    chunk_tokens: int = 512
    passage_tokens: int = 254  # the encoder reads 256 and adds two of its own
    passage_target: int = 160


@dataclass(frozen=True, slots=True)
class ChunkText:
    """A chunk with its text and its passages."""

    chunk: Chunk
    text: str
    passages: tuple[Passage, ...]

    def text_of(self, passage: Passage) -> str:
        return self.text[passage.start - self.chunk.start : passage.end - self.chunk.start]


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, or a stretch of one.

    ``text`` has no white space at its ends; it is at character ``start`` and byte ``byte_start``, after ``gap``."""

    gap: str
    text: str
    start: int
    byte_start: int
    base: int = 0  # base-model tokens of gap and text
    retrieval: int = 0  # retrieval-encoder tokens of text

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def byte_end(self) -> int:
        return self.byte_start + len(self.text.encode())


def chunk_text(
    document: str,
    pieces: Iterable[str],
    base: Counter,
    retrieval: Counter,
    limits: Limits | None = None,
    pack: Callable[[Iterable[Unit], Packer], Iterator[list[Unit]]] | None = None,
) -> Iterator[ChunkText]:
    """Chunks of the text that ``pieces`` make up, in order. White space between chunks belongs to none.

    ``retrieval`` counts without the special tokens that the encoder adds. Every character that is no white space is in
    exactly one chunk and in exactly one of its passages. Text without any such character has no chunks. ``pack`` decides
    which units make a chunk, with a packer for those that it does not care about; see rechunk.py.
    """
    limits = limits or Limits()
    passages = 0
    counted = _counted(_units(pieces), base, retrieval, limits)
    for ordinal, units in enumerate((pack or _packed)(counted, Packer(base, limits.chunk_tokens))):
        text = _text(units)
        chunk = Chunk(
            document=document,
            ordinal=ordinal,
            start=units[0].start,
            end=units[-1].end,
            byte_start=units[0].byte_start,
            byte_end=units[-1].byte_end,
            tokens=base.count_batch([text])[0],
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        parts = tuple(_passages(document, ordinal, passages, units, retrieval, limits))
        passages += len(parts)
        yield ChunkText(chunk, text, parts)


class Packer:
    """Packs units into chunks of at most ``limit`` tokens: takes one after another, and gives a chunk when it is full."""

    def __init__(self, base: Counter, limit: int) -> None:
        self.limit = limit
        self.units: list[Unit] = []
        """Taken, and in no chunk yet."""
        self.tokens = 0
        """Theirs, about: tokens of a joined text are not quite the sum of its parts'."""
        self._base = base

    def add(self, unit: Unit) -> list[list[Unit]]:
        """Takes a unit; gives the chunks that are full."""
        full = self.flush() if len(unit.gap) > GAP_CHARS else []
        self.units.append(unit)
        self.tokens += unit.base
        while self.tokens > self.limit and len(self.units) > 1:
            full.append(self._taken(_cut([u.base for u in self.units], self.units, self.limit)))
        return full

    def flush(self) -> list[list[Unit]]:
        """The chunks that are left; it is empty then."""
        left = []
        while self.units:
            left.append(self._taken(len(self.units)))
        return left

    def _taken(self, at_most: int) -> list[Unit]:
        taken = _fitting(self.units, at_most, self._base, self.limit)
        chunk = self.units[:taken]
        del self.units[:taken]
        self.tokens = sum(u.base for u in self.units)
        return chunk


def _packed(units: Iterable[Unit], packer: Packer) -> Iterator[list[Unit]]:
    """Units of one chunk after another."""
    for unit in units:
        yield from packer.add(unit)
    yield from packer.flush()


def _passages(
    document: str, chunk: int, ordinal: int, units: list[Unit], retrieval: Counter, limits: Limits
) -> Iterator[Passage]:
    while units:
        counts = [u.retrieval for u in units]
        share = sum(counts) / max(1, round(sum(counts) / limits.passage_target))
        taken = _fitting(units, _cut(counts, units, share), retrieval, limits.passage_tokens)
        mine, units = units[:taken], units[taken:]
        yield Passage(
            document=document,
            ordinal=ordinal,
            chunk=chunk,
            start=mine[0].start,
            end=mine[-1].end,
            byte_start=mine[0].byte_start,
            byte_end=mine[-1].byte_end,
            tokens=retrieval.count_batch([_text(mine)])[0],
        )
        ordinal += 1


def _cut(counts: Sequence[int], units: Sequence[Unit], goal: float) -> int:
    """How many units to take: those whose counts come nearest to ``goal``, a cut inside a line costing a quarter of it."""

    def cost(taken: int, total: int) -> float:
        line_ends = taken == len(units) or "\n" in units[taken].gap
        return abs(goal - total) + (0 if line_ends else goal / 4)

    return min(enumerate(accumulate(counts), start=1), key=lambda pair: cost(*pair))[0]


def _fitting(units: Sequence[Unit], taken: int, counter: Counter, limit: int) -> int:
    """At most ``taken`` units whose joined text counts no more than ``limit``. A unit alone always fits."""
    while taken > 1 and counter.count_batch([_text(units[:taken])])[0] > limit:
        taken -= 1
    return taken


def _text(units: Sequence[Unit]) -> str:
    return units[0].text + "".join(u.gap + u.text for u in units[1:])


def _counted(units: Iterable[Unit], base: Counter, retrieval: Counter, limits: Limits) -> Iterator[Unit]:
    """The same units with their counts, those halved that alone are too long for a passage."""
    limit = min(limits.chunk_tokens, limits.passage_tokens)
    for batch in _batches(units):
        in_base = base.count_batch([u.gap[:GAP_CHARS] + u.text for u in batch])
        in_retrieval = retrieval.count_batch([u.text for u in batch])
        for unit, b, r in zip(batch, in_base, in_retrieval, strict=True):
            if max(b, r) > limit and len(unit.text) > 1:
                yield from _counted(_halves(unit), base, retrieval, limits)
            else:
                yield replace(unit, base=b, retrieval=r)


def _batches(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    size = 0
    for unit in units:
        batch.append(unit)
        size += len(unit.text)
        if size > _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _halves(unit: Unit) -> Iterator[Unit]:
    middle = len(unit.text) // 2
    space = unit.text.rfind(" ", middle // 2, middle)
    left = unit.text[: space if space > 0 else middle].rstrip() or unit.text[:middle]
    rest = unit.text[len(left) :]
    right = rest.lstrip()
    gap = rest[: len(rest) - len(right)]
    yield replace(unit, text=left)
    yield Unit(gap, right, unit.start + len(left) + len(gap), unit.byte_start + len(left.encode()) + len(gap.encode()))


def _units(pieces: Iterable[str]) -> Iterator[Unit]:
    """Sentences with their places. A gap too long for a chunk is kept only as far as tells that it is too long."""
    gap, start, byte_start = "", 0, 0
    for stretch in _stretches(pieces):
        text = stretch.strip()
        if not text:
            gap = (gap + stretch)[: GAP_CHARS + 1]
        else:
            lead = stretch[: stretch.index(text[0])]
            tail = stretch[len(lead) + len(text) :]
            place = start + len(lead), byte_start + len(lead.encode())
            yield Unit((gap + lead)[: GAP_CHARS + 1], text, *place)
            gap = tail[: GAP_CHARS + 1]
        start += len(stretch)
        byte_start += len(stretch.encode())


def _stretches(pieces: Iterable[str]) -> Iterator[str]:
    """The text, cut after each sentence and each newline, and within a sentence that is too long."""
    carry = ""
    for block in _blocks(pieces):
        text = carry + block
        start = 0
        for match in _SENTENCE_END.finditer(text):
            if match.end() == len(text):
                break  # what follows may still belong to this end
            yield from _bounded(text[start : match.end()])
            start = match.end()
        stretches = list(_bounded(text[start:]))
        carry = stretches.pop()
        yield from stretches
    yield from _bounded(carry)


def _blocks(pieces: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _BATCH_CHARS:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _bounded(text: str) -> Iterator[str]:
    """``text`` in stretches of at most _UNIT_CHARS, cut after a space where there is one; at least one stretch."""
    start = 0
    while len(text) - start > _UNIT_CHARS:
        space = text.rfind(" ", start, start + _UNIT_CHARS)
        cut = space + 1 if space > start else start + _UNIT_CHARS
        yield text[start:cut]
        start = cut
    yield text[start:]
