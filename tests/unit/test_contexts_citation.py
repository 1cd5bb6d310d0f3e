"""An example's answer opens with the number of the block that it comes from, as the reader's answers do."""

from __future__ import annotations

import pytest

from memoryd.learn.unanswerable import Found
from memoryd.recall.assembly import Mode
from memoryd.recall.prompt import REFUSAL
from tests.unit.learning_parts import example
from tests.unit.test_contexts import Library, library, only
from tests.unit.test_reuse import TENANT

__all__ = ["library"]  # the fixture


@pytest.mark.parametrize(
    ("answer", "documents", "said"),
    [
        ("Lisbon", [], "[3] Lisbon"),
        (" to  lisbon, \n", [], "[3] to  lisbon,"),
        ("Faro", [], "[1] Faro"),
        ("Caroline", [], "[3] Caroline"),  # in all of them: the best
        ("Caroline", [1], "[2] Caroline"),  # in all of them, and it rests on this one
        ("Faro", [0], "[1] Faro"),  # where it stands, whatever it rests on
        ("She went away", [1], "[2] She went away"),
        ("She went away", [4], "She went away"),  # it rests on what was not found
        ("Fa", [], "Fa"),  # no word of any
        (REFUSAL, [0], REFUSAL),
        (f" {REFUSAL}\n", [], REFUSAL),
    ],
)
def test_an_answer_opens_with_the_block_that_it_comes_from(
    library: Library, answer: str, documents: list[int], said: str
) -> None:
    made = library.with_context("Where?", answer, *(library.ids[n] for n in documents))
    pack = only(library.maker().packs(TENANT, [Found(made, library.sources(0, 1, 2))], [Mode.TEXT], 1))
    assert library.said(pack) == [said]


def test_text_is_cited_rather_than_the_embeddings_of_it(library: Library) -> None:
    found = [Found(library.with_context("Where?", answer), library.sources(0, 1, 2)) for answer in ("Lisbon", "Faro")]
    pack = only(library.maker().packs(TENANT, found, [Mode.HYBRID], 1))
    assert library.said(pack) == ["[5] Lisbon", "[1] Faro"], "the third is shown as embeddings only"


def test_embeddings_are_cited_for_every_passage_of_their_chunk(library: Library) -> None:
    first, second = library.sources(0, passage=0)[0], library.sources(0, passage=1)[0]
    assert first.passage.chunk == second.passage.chunk
    assert "weather" in second.text
    assert "weather" not in first.text
    one = Found(library.with_context("What was fine?", "the weather"), [first, second])
    assert library.said(only(library.maker().packs(TENANT, [one], [Mode.COMPRESSED], 1))) == ["[1] the weather"]


def test_an_answer_without_context_has_no_citation(library: Library) -> None:
    found = [Found(example("Where?", "Lisbon", library.ids[0]), library.sources(0))]
    made = library.maker().packs(TENANT, found, [Mode.TEXT], 7)
    said = sorted(answer for pack in made.packs for answer in library.said(pack))
    assert said == ["Lisbon", *["[1] Lisbon"] * 6]
