"""Whether a new adapter answers better: which examples are held out, how answers are scored, and what counts as better."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.eval.metrics import normalized
from memoryd.learn.judge import LEAST, Judgement, is_held_out, judge, kind_of, score
from memoryd.recall.prompt import REFUSAL
from tests.unit.learning_parts import example

LONG = "Phileas Fogg rode the elephant from Kholby through the forest to Allahabad in two days and a night"


@given(question=st.text(max_size=40), one=st.text(max_size=20), other=st.text(max_size=20))
def test_who_is_held_out_depends_on_the_question_only(question: str, one: str, other: str) -> None:
    held = is_held_out(example(question, one, "document", id_="a"))
    assert held == is_held_out(example(question, other, id_="b"))
    same = f"  {question.upper().lower()}?!\n"  # what is asked is the same
    if normalized(same) == normalized(question):
        assert held == is_held_out(example(same, one))


def test_a_fifth_is_held_out() -> None:
    held = sum(is_held_out(example(f"What is number {n}?")) for n in range(2000))
    assert 300 < held < 500


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes.", "choice"),
        ("false", "choice"),
        ("(B)", "choice"),
        ("A", "choice"),
        ("(a).", "choice"),
        ("H)", "choice"),
        ("[A]", "choice"),
        ("I", "short"),
        ("Yes, he does", "short"),
        ("in India", "short"),
        ("the 1 a 2 the 3 4 5 6 7 8 9 10 11 12", "short"),  # articles are no words
        ("1 2 3 4 5 6 7 8 9 10 11 12 13", "long"),
        (LONG, "long"),
        (REFUSAL, "short"),
    ],
)
def test_the_kind_of_an_answer(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


def test_a_choice_is_right_or_wrong() -> None:
    assert score("(b)", "B") == score("A", "a)") == score("Yes!", "yes") == 1.0
    assert score("C", "B") == score("B", "A") == score("Yes, he does", "yes") == 0.0


@pytest.mark.parametrize("answer", ["", "the", "...", "an"])
def test_no_answer_is_not_the_choice_a(answer: str) -> None:
    assert score(answer, "A") == 0.0
    assert score(answer, "(a)") == 0.0


def test_a_short_answer_is_scored_by_its_words_and_a_long_one_by_their_order_too() -> None:
    assert score("in Kholby, India", "India") == pytest.approx(0.5)
    backwards = " ".join(reversed(LONG.split()))
    assert score(LONG, LONG) == pytest.approx(1.0)
    assert score(backwards, LONG) < 0.5 < score(LONG.replace("two days", "three days"), LONG) < 1


@given(answer=st.text(max_size=60), gold=st.text(max_size=60))
def test_a_score_is_a_share_and_the_gold_answer_has_all_of_it(answer: str, gold: str) -> None:
    assert 0.0 <= score(answer, gold) <= 1.0
    assert score(gold, gold) == pytest.approx(1.0)


def test_what_is_right_more_often_is_better() -> None:
    golds = [f"town {n}" for n in range(20)]
    made = judge(golds, ["nothing"] * 20, [*golds[:15], *["nothing"] * 5])
    assert made.better
    assert made.verdict.startswith(
        "better: 0.000 before, 0.750 after, on 20 held-out examples (gained +0.750, 95 % interval +0."
    )
    overall, short = made.kinds
    assert (overall.kind, overall.count, overall.before, overall.after) == ("all", 20, 0.0, 0.75)
    assert 0.0 < overall.low < 0.75 < overall.high <= 1.0
    assert (short.kind, short.count) == ("short", 20)


def test_what_is_right_once_more_is_noise() -> None:
    golds = [f"town {n}" for n in range(20)]
    made = judge(golds, ["nothing", *golds[1:]], golds)
    assert not made.better
    assert made.verdict.startswith("not better beyond noise: 0.950 before, 1.000 after")


def test_what_is_the_same_or_worse_is_not_better() -> None:
    golds = [f"town {n}" for n in range(10)]
    assert not judge(golds, golds, golds).better
    assert not judge(golds, golds, ["nothing"] * 10).better


def test_answers_are_compared_in_pairs() -> None:
    """A small gain on every question is no noise, however far the questions are apart."""
    golds = ["one two three four"] * 5 + ["five six seven eight"] * 5
    before = ["one"] * 5 + ["five six seven"] * 5
    after = ["one two"] * 5 + ["five six seven eight"] * 5
    assert judge(golds, before, after).better


def test_kinds_are_told_apart() -> None:
    golds = ["yes", LONG, "town 1", "no", "town 2"]
    made = judge(golds, [""] * 5, ["yes", LONG, "town 1", "yes", ""])
    after = {kind.kind: (kind.count, round(kind.after, 6)) for kind in made.kinds}
    assert after == {"all": (5, 0.6), "choice": (2, 0.5), "long": (1, 1.0), "short": (2, 0.5)}
    assert made.kinds[0].kind == "all"


@pytest.mark.parametrize("count", range(LEAST))
def test_too_few_say_nothing(count: int) -> None:
    made = judge(["town"] * count, [""] * count, ["town"] * count)
    assert not made.better
    assert made.verdict.startswith(f"{count} held-out examples are too few to judge by, {LEAST} are needed")
    assert [kind.count for kind in made.kinds] == ([count, count] if count else [])


def test_answers_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge(["town"] * 5, [""] * 5, [""] * 4)


def test_a_judgement_is_kept_as_json() -> None:
    made = judge(["yes", "town 1", LONG, "no", "town 2"], ["no"] * 5, ["yes", "town 1", LONG, "no", "town 2"])
    assert Judgement.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert judge(["yes"] * 5, ["no"] * 5, ["yes"] * 5) == judge(["yes"] * 5, ["no"] * 5, ["yes"] * 5)  # no chance in it
