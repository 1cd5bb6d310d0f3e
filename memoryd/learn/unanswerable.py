"""Questions over what does not answer them: an adapter is taught to refuse them, and judged by them.

There are strangers, which what is shown has nothing to do with, and questions whose evidence is withheld: what is related to
them is shown, but no chunk that holds their answer. The reader learned to refuse from the second kind, too (`reader_data.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memoryd.core import Example, Source
from memoryd.eval.metrics import normalized
from memoryd.learn.judge import kind_of
from memoryd.recall.prompt import REFUSAL

_LOOK_AHEAD = 64  # examples among which a stranger is sought


@dataclass(frozen=True, slots=True)
class Found:
    """An example, and what a search for its question finds, best first."""

    example: Example
    sources: Sequence[Source]
    """What an answer is given from."""
    further: Sequence[Source] = ()
    """What is found after these."""


def stranger(one: Found, among: Sequence[Found], at: int) -> list[Found]:
    """Of the few from the `at`-th on, the first whose question finds none of what is shown for `one`, over that; it is not
    answered there, so it is to be refused. None where there is no such."""
    shown = {chunk_of(source) for source in one.sources}
    texts = [source.text for source in one.sources]
    for step in range(min(_LOOK_AHEAD, len(among)) if shown else 0):
        other = among[(at + step) % len(among)]
        elsewhere = bool(other.sources) and not shown & {chunk_of(source) for source in other.sources}
        answer = other.example.answer
        if elsewhere and answer.strip() != REFUSAL and not any(holds(text, answer) for text in texts):
            return [Found(replace(other.example, answer=REFUSAL), one.sources)]
    return []


def withheld(together: Sequence[Found]) -> list[Found]:
    """These questions over what is found for the first of them, as much as else but without the chunks that hold their answers.
    Only those whose short answer is found word for word: what else may tell a yes, or a long answer, nobody knows."""
    best = [*together[0].sources, *together[0].further]
    asked = [one.example for one in together if kind_of(one.example.answer) == "short"]
    holding = {example.id: {chunk_of(s) for s in best if holds(s.text, example.answer)} for example in asked}
    telling = set[tuple[str, int]]().union(*holding.values())
    left = [source for source in best if chunk_of(source) not in telling][: len(together[0].sources)]
    return [Found(replace(example, answer=REFUSAL), left) for example in asked if holding[example.id] and left]


def chunk_of(source: Source) -> tuple[str, int]:
    """Its document and the chunk's number in that."""
    return source.passage.document, source.passage.chunk


def holds(text: str, answer: str) -> bool:
    """Word for word, but for case, articles and punctuation."""
    return f" {normalized(answer)} " in f" {normalized(text)} "
