"""What an adapter learns to refuse: strangers, and questions whose evidence is withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from memoryd.learn.unanswerable import Found
from memoryd.recall.assembly import Mode
from memoryd.recall.prompt import REFUSAL
from tests.unit.learning_parts import example
from tests.unit.test_contexts import TOWNS, Library, library
from tests.unit.test_reuse import TENANT

__all__ = ["library"]  # a fixture


def _of_towns(library: Library, count: int = 12) -> list[Found]:
    """Questions about three towns, each of which finds its own town alone."""
    return [Found(example(f"What is number {n} of town {n % 3}?", f"answer {n}"), library.sources(n % 3)) for n in range(count)]


def test_there_is_a_stranger_to_every_second_question_and_it_is_to_be_refused(library: Library) -> None:
    made = library.maker().packs(TENANT, _of_towns(library, 36), [Mode.TEXT], 8)
    strangers, known, crowded = 0, 0, 0
    for pack in made.packs:
        asked, said, shown = library.asked(pack), library.said(pack), library.shown(pack)
        refused = [question for question, answer in zip(asked, said, strict=True) if answer == REFUSAL]
        assert len(set(refused)) == len(refused)
        if not shown.count("Caroline"):
            assert not refused, "nothing is shown"
            continue
        strangers, known = strangers + len(refused), known + len(asked) - len(refused)
        crowded += len(refused) > 1
        for question in refused:
            town = TOWNS[int(question.rpartition(" ")[2].rstrip("?"))]
            assert f"moved to {town}" not in shown, "it is not about what is shown"
    assert crowded, "questions that share a context have as many strangers as others"
    assert 0.35 < strangers / known < 0.65, "by ids, which are others in each run"


def test_a_stranger_is_no_other_twice(library: Library) -> None:
    """A memory may have fewer of them than are sought."""
    found = [*_of_towns(library, 1), *(Found(example(f"What is {n}?", "x"), library.sources(0)) for n in range(5))]
    found.append(Found(example("How?", "by boat"), library.sources(2)))
    packs = library.maker().packs(TENANT, found, [Mode.TEXT], 4).packs
    assert {answer for pack in packs for answer in library.said(pack)} > {REFUSAL}
    assert all(library.said(pack).count(REFUSAL) <= 1 for pack in packs)


def test_what_finds_a_part_of_what_is_shown_is_no_stranger(library: Library) -> None:
    """It may well be answered there; so may one whose answer stands there. One that is refused anyway teaches nothing new."""
    one = Found(example("Where?", "nowhere"), library.sources(0, 1))
    same_chunk = Found(example("Who?", "nobody"), library.sources(1, 2))
    answered = Found(example("Which town?", "Porto"), library.sources(2))
    unanswerable = Found(example("Why?", REFUSAL), library.sources(3))
    nothing_found = Found(example("When?", "at noon"), [])
    others = [same_chunk, answered, unanswerable, nothing_found]

    def strange(found: Sequence[Found]) -> list[str]:
        made = library.maker().unanswerable(found)
        assert {each.example.answer for each in made} <= {REFUSAL}
        return [each.example.question for each in made if each.sources == one.sources]

    assert strange([one, *others]) == []
    assert strange([one, *others, Found(example("How?", "by boat"), library.sources(2))]) == ["How?"]


def _withheld(library: Library, passes: int, *found: Found) -> list[tuple[str, list[str]]]:
    """(what is shown, what is asked) of the packs that are to be refused altogether."""
    made = library.maker().packs(TENANT, found, [Mode.TEXT], passes)
    refused = [pack for pack in made.packs if set(library.said(pack)) == {REFUSAL}]
    assert all("Caroline" in library.shown(pack) for pack in refused), "something is shown there"
    return [(library.shown(pack), library.asked(pack)) for pack in refused]


def test_now_and_then_the_evidence_is_withheld_and_the_question_to_be_refused(library: Library) -> None:
    """What is found further moves up, so that as much is shown as else."""
    where = example("Where did Caroline move?", "Porto")
    withheld = _withheld(library, 28, Found(where, library.sources(0, 1), library.sources(2, 3)))
    assert len(withheld) == 6, "in one pass of four, but for the seventh of these, which shows nothing"
    for shown, asked in withheld:
        assert asked == [where.question]
        assert "[2] Lisbon" in shown, "the best stands last, next to the question"
        assert "[1] Faro" in shown
        assert "Porto" not in shown
        assert "Evora" not in shown


def test_questions_that_share_a_context_are_withheld_together(library: Library) -> None:
    """Without what answers any of them."""
    first, second = (Found(example(f"{word}?", word), library.sources(0, 1, 2)) for word in ("Lisbon", "Porto"))
    together = [
        (shown, asked) for shown, asked in _withheld(library, 28, first, second) if sorted(asked) == ["Lisbon?", "Porto?"]
    ]
    assert together
    assert all("[1] Faro" in shown and "[2]" not in shown for shown, _ in together)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("nowhere at all", id="no source holds it: what tells it is not known"),
        pytest.param("Yes", id="what tells a yes is not known either"),
        pytest.param(" ".join(["Caroline moved to Lisbon by the sea"] * 3), id="nor a long one"),
        pytest.param("Caroline", id="all hold it: there is nothing left to show"),
        pytest.param(REFUSAL, id="it is refused anyway"),
    ],
)
def test_nothing_is_withheld_from(library: Library, answer: str) -> None:
    made = library.maker().packs(TENANT, [Found(example("Where?", answer), library.sources(0, 1))], [Mode.TEXT], 28)
    assert len(made.packs) == 28


def test_a_whole_chunk_is_withheld(library: Library) -> None:
    """Its other passages stand in what is compressed of it."""
    telling, same_chunk = library.sources(0)[0], library.sources(0, passage=0)[0]
    other = replace(same_chunk, text="the sea of the same chunk, seen by Caroline")
    found = Found(example("Where?", "Lisbon"), [telling, other], library.sources(1))
    withheld = _withheld(library, 28, found)
    assert withheld
    assert all("[1] Porto" in shown and "[2]" not in shown for shown, _ in withheld)


def test_those_to_judge_by_are_half_as_many_and_of_both_kinds(library: Library) -> None:
    found = _of_towns(library)
    assert library.maker().unanswerable([]) == []
    strangers = library.maker().unanswerable(found)
    assert len(strangers) == len(found) // 2
    assert {one.example.answer for one in strangers} == {REFUSAL}
    held = [Found(replace(one.example, answer=TOWNS[n % 3]), one.sources, library.sources(4)) for n, one in enumerate(found)]
    both = library.maker().unanswerable(held)
    assert {one.example.answer for one in both} == {REFUSAL}
    of_question = {one.example.question: one.example for one in held}
    own = [one for one in both if one.sources == library.sources(4)]
    assert [one.example.id for one in own] == [held[n].example.id for n in (0, 4, 8)]
    others = [one for one in both if one not in own]
    assert len(others) == 3
    assert all(one.example.id == of_question[one.example.question].id for one in others)


def test_where_there_are_none_of_one_kind_those_to_judge_by_are_of_the_other(library: Library) -> None:
    alone = [Found(example(f"Where {n}?", "Lisbon"), library.sources(0), library.sources(1)) for n in range(4)]
    assert [one.sources for one in library.maker().unanswerable(alone)] == [library.sources(1)] * 2
