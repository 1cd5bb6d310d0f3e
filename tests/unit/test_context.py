"""A context: the best passages within a budget, shown as their documents tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from memoryd.core import Passage, Source
from memoryd.recall.context import ContextBuilder


def source(document: str, start: int, text: str, title: str = "") -> Source:
    passage = Passage(document, start, 0, start, start + len(text), start, start + len(text), len(text.split()))
    return Source(passage, "m", title, text, 1.0)


@dataclass
class Found:
    """A searcher that finds what it is given, as deep as it is asked to."""

    sources: Sequence[Source]
    asked: list[int] = field(default_factory=list)

    async def search(self, tenant: str, memories: Sequence[str], query: str, top_k: int) -> list[Source]:
        self.asked.append(top_k)
        return list(self.sources[:top_k])


class Words:
    """A model whose tokens are words."""

    @property
    def tokenizer(self) -> Words:
        return self

    def count(self, text: str) -> int:
        return len(text.split())


async def build(found: Found, budget: int) -> Any:
    searcher: Any = found
    models: Any = Words()
    return await ContextBuilder(searcher, models).build("red", ["m"], "query", budget)


async def test_a_documents_passages_stand_together_and_in_order_under_its_title() -> None:
    found = Found([source("a", 50, "third", "A"), source("b", 0, "first of b"), source("a", 0, "first", "A")])
    context = await build(found, 100)
    assert context.text == "# A\nfirst\n…\nthird\n\nfirst of b"
    assert [s.text for s in context.sources] == ["third", "first of b", "first"]  # best first
    assert context.token_count == len(context.text.split())


@pytest.mark.parametrize("budget", range(12))
async def test_it_is_never_longer_than_its_budget(budget: int) -> None:
    found = Found([source("a", 0, "one two three"), source("b", 0, "four five six seven"), source("c", 0, "eight")])
    context = await build(found, budget)
    assert context.token_count == len(context.text.split()) <= budget


async def test_what_does_not_fit_is_passed_over_for_what_does() -> None:
    found = Found([source("a", 0, "one two"), source("b", 0, "far too long to fit in here"), source("c", 0, "three")])
    assert [s.passage.document for s in (await build(found, 3)).sources] == ["a", "c"]


async def test_of_many_only_a_few_are_counted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a large context would take seconds."""
    counted: list[int] = []
    count = Words.count
    monkeypatch.setattr(Words, "count", lambda self, text: counted.append(len(text)) or count(self, text))
    found = Found([source(f"d{n}", n, "one two three", "A title") for n in range(100)])
    assert len((await build(found, 10_000)).sources) == 100
    assert sum(counted) < 3 * 100 * 30


async def test_a_whole_of_more_tokens_than_its_parts_fits_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "count", lambda self, text: len(text.split()) ** 2)
    found = Found([source(f"d{n}", n, "one two three") for n in range(20)])
    assert 0 < (await build(found, 100)).token_count <= 100


async def test_nothing_found_is_an_empty_context() -> None:
    context = await build(Found([]), 100)
    assert (context.text, context.sources, context.token_count) == ("", [], 0)


async def test_a_larger_budget_asks_deeper_but_never_for_more_than_an_index_gives_at_once() -> None:
    found = Found([])
    for budget in (1, 1024, 131072):
        await build(found, budget)
    assert found.asked == sorted(found.asked)
    assert found.asked[0] >= 1
    assert found.asked[-1] <= 100
