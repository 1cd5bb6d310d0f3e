"""Cuts the text of a document's new version so that what did not change keeps its chunks, and so its compressed embeddings.

The plain chunker fills chunk after chunk, so a sentence that is put in at the beginning moves every boundary after it. Here a
chunk of the old version that stands unchanged in the new text, wherever that is, is a chunk again; only the text between such
chunks is cut anew. Of the old version no text is needed: its chunks are known by the sha256 and the length of theirs. Units
stream by, and where a chunk may begin, the digest of what follows is asked for at each end of a unit.

By that alone a document that grows by a sentence a day would come to have a chunk for each. So a kept chunk is given up
where it and the changed text beside it fit into one chunk.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from memoryd.compress.chunker import GAP_CHARS, ChunkText, Counter, Limits, Packer, Unit, chunk_text
from memoryd.core import Chunk

# Looking for a chunk at one place looks at as many units as the longest chunk has: some 30 in prose. Texts of very short
# lines would make that hundreds at every line, so there is an allowance: time stays linear in the units, and what is missed
# is only compressed again.
_LOOKS = 64  # units that may be looked at for each unit of text
_SAVED_LOOKS = 1 << 16  # what of it may be saved up


@dataclass(frozen=True, slots=True)
class OldChunks:
    """The old version's chunks that are worth keeping, without their text: 32 bytes and a number for each."""

    ordinals: Mapping[bytes, int]
    """By sha256 of the text."""
    sizes: frozenset[int]
    """All lengths of their texts, in bytes."""
    longest: int

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> OldChunks:
        """Of equal ones, any."""
        ordinals, sizes = {}, set()
        for chunk in chunks:
            ordinals[bytes.fromhex(chunk.sha256)] = chunk.ordinal
            sizes.add(chunk.byte_end - chunk.byte_start)
        return cls(ordinals, frozenset(sizes), max(sizes, default=0))


def rechunk_text(
    document: str,
    pieces: Iterable[str],
    base: Counter,
    retrieval: Counter,
    old: OldChunks,
    limits: Limits | None = None,
) -> Iterator[ChunkText]:
    """As `chunk_text`, whose promises hold here too; ``old`` was cut by the same counters and limits."""
    return chunk_text(document, pieces, base, retrieval, limits, partial(_packed, old=old) if old.ordinals else None)


def _packed(units: Iterable[Unit], packer: Packer, old: OldChunks) -> Iterator[list[Unit]]:
    """Units of one chunk after another: kept chunks, and what the packer makes of the rest."""
    held: list[Unit] = []  # a kept chunk, until it is known whether the changed text after it, now in the packer, joins it
    for run, kept in _runs(units, old):
        tokens = _tokens(run)
        if not kept:
            if held and (_tokens(held) + packer.tokens + tokens > packer.limit or len(run[0].gap) > GAP_CHARS):
                yield held  # before the packer may give a chunk of what comes after it
                held = []
            yield from packer.add(run[0])
            continue
        if packer.units:
            _join(held, packer)
        elif held:
            yield held
        held = []
        if packer.units and packer.tokens + tokens <= packer.limit:
            for unit in run:
                yield from packer.add(unit)
        else:
            yield from packer.flush()
            held = run
    if held and not packer.units:
        yield held
    else:
        _join(held, packer)
    yield from packer.flush()


def _join(held: list[Unit], packer: Packer) -> None:
    packer.units[:0] = held
    packer.tokens += _tokens(held)


def _tokens(units: Iterable[Unit]) -> int:
    return sum(unit.base for unit in units)


def _runs(units: Iterable[Unit], old: OldChunks) -> Iterator[tuple[list[Unit], bool]]:
    """All units in order: those of a kept chunk together, with True; others one by one."""
    source = iter(units)
    ahead: deque[tuple[Unit, bytes]] = deque()  # as far as the longest chunk reaches; each unit with its bytes
    size, looks = 0, _SAVED_LOOKS
    while True:
        while size <= old.longest and (unit := next(source, None)) is not None:
            ahead.append((unit, (unit.gap + unit.text).encode()))
            size += len(ahead[-1][1])
        if not ahead:
            return
        taken, looked = _match(ahead, old) if looks > 0 else (0, 0)
        run = [ahead.popleft() for _ in range(taken or 1)]
        size -= sum(len(data) for _, data in run)
        looks = min(_SAVED_LOOKS, looks - looked + _LOOKS * len(run))
        yield [unit for unit, _ in run], taken > 0


def _match(ahead: Iterable[tuple[Unit, bytes]], old: OldChunks) -> tuple[int, int]:
    """How many units make up the longest old chunk that begins here, 0 where none does; and how many were looked at."""
    digest, size, found, looked = hashlib.sha256(), 0, 0, 0
    for unit, data in ahead:
        if looked and len(unit.gap) > GAP_CHARS:
            break
        text = data if looked else unit.text.encode()
        looked += 1
        size += len(text)
        if size > old.longest:
            break
        digest.update(text)
        if size in old.sizes and digest.digest() in old.ordinals:
            found = looked
    return found, looked
