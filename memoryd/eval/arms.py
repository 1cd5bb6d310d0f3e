"""The arms of the compression eval: what the reader gets to see of a source, in as many slots or without a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memoryd.engine.tokenizer import TextTokenizer
from memoryd.recall.prompt import Block, SoftBlock, TextBlock

if TYPE_CHECKING:
    from memoryd.eval.compression_data import Case

AT_A_RATIO = ("first", "passage", "compressed", "wrong", "hybrid")
"""Those that have slots to fill."""
FIXED = ("none", "raw", "whole")
"""The same at every ratio."""
INT8 = "int8"
"""Shows what `compressed` shows; but its embeddings were stored as int8."""


SOFT = frozenset({"compressed", "wrong", "hybrid", INT8})
"""Those that show compressed embeddings, and are read by the reader of those."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Blocks, and the chunks of text that the soft ones stand for, by their key."""

    blocks: tuple[Block, ...]
    chunks: dict[str, str]


def slots(tokenizer: TextTokenizer, chunks: Sequence[str], slots_of: Callable[[int], int]) -> int:
    """Embeddings that the chunks take; ``slots_of`` says how many a chunk of so many tokens takes."""
    return sum(slots_of(tokenizer.count(chunk)) for chunk in chunks)


def show(arm: str, case: Case, tokenizer: TextTokenizer, slots_of: Callable[[int], int]) -> Shown:
    """What an arm shows for a question."""
    if arm == "none":
        return Shown((), {})
    if arm == "raw":
        return Shown(tuple(TextBlock(chunk, case.title) for chunk in case.chunks), {})
    passage = TextBlock(case.passage, case.title)
    if arm == "whole":
        return Shown((passage,), {})
    k = slots(tokenizer, case.chunks, slots_of)
    if arm == "first":
        return Shown((TextBlock(_first(tokenizer, case.text, k), case.title),), {})
    if arm == "passage":
        return Shown((TextBlock(_first(tokenizer, case.passage, k), case.title),), {})
    chunks = case.wrong if arm == "wrong" else case.chunks
    named = {str(number): chunk for number, chunk in enumerate(chunks)}
    soft = tuple(SoftBlock(key, slots(tokenizer, [chunk], slots_of), case.title) for key, chunk in named.items())
    return Shown((*soft, passage) if arm == "hybrid" else soft, named)


def _first(tokenizer: TextTokenizer, text: str, tokens: int) -> str:
    """The text's first tokens, in whole characters."""
    ends = tokenizer.encode_with_offsets(text[: tokens * 16]).offsets
    return text[: ends[min(tokens, len(ends)) - 1][1]] if ends and tokens else ""
