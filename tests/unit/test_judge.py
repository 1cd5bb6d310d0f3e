"""Whether a new adapter answers better: which examples are held out, how answers are scored, and what counts as better."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.eval.metrics import normalized
from memoryd.learn.judge import LEAST, Judgement, at_most, beyond_noise, is_held_out, judge, kind_of, score
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


def test_of_many_the_same_are_chosen_whatever_their_age() -> None:
    many = [example(f"What is number {n}?", id_=str(n)) for n in range(1000)]
    chosen = at_most(many, 60)
    assert len(chosen) == 60
    assert chosen == sorted(chosen, key=lambda one: int(one.id)), "in their order"
    assert 15 < sum(int(one.id) >= 500 for one in chosen) < 45
    grown = at_most([*many, *(example(f"And number {n}?", id_=str(n)) for n in range(1000, 1100))], 60)
    assert 45 < len({one.id for one in chosen} & {one.id for one in grown}) < 60
    assert at_most(many[:60], 60) == many[:60]


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
        (REFUSAL, "refusal"),
    ],
)
def test_the_kind_of_an_answer(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


def test_a_refusal_is_one_or_is_none() -> None:
    assert score(f"{REFUSAL} Ask the harbour.", REFUSAL) == 1.0
    assert score("I don't know the harbour", REFUSAL) == 0.0


def test_answers_gained_make_not_up_for_refusals_lost() -> None:
    golds = ["blue"] * 20 + [REFUSAL] * 10
    made = judge(golds, ["green"] * 15 + ["blue"] * 5 + [REFUSAL] * 10, ["green"] * 8 + ["blue"] * 12 + ["green"] * 10)
    assert not made.better
    assert "100% of 10 questions to refuse refused before, 0% after" in made.verdict
    assert [kind.kind for kind in made.kinds] == ["all", "short", "refusal"]


def test_refusals_gained_make_not_up_for_answers_lost() -> None:
    lost = judge(["blue"] * 20 + [REFUSAL] * 10, ["blue"] * 20 + ["green"] * 10, ["blue"] * 19 + ["green"] + [REFUSAL] * 10)
    assert (lost.better, lost.kinds[0].after > lost.kinds[0].before) == (False, True)
    assert lost.verdict.startswith("not better, answers are worse: ")
    same = judge(["blue"] * 20 + [REFUSAL] * 10, ["blue"] * 20 + ["green"] * 10, ["blue"] * 20 + [REFUSAL] * 10)
    assert same.better, "it refuses what it should, and answers as before"


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
        "better: 0.000 before, 0.750 after, on 20 held-out questions (gained +0.750, 95 % interval +0."
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


def test_of_short_answers_it_says_how_many_are_exact_and_decides_by_what_they_score() -> None:
    golds = ["the town of Kholby"] * 10 + ["yes"] * 10
    before, after = ["Kholby town"] * 10 + ["no"] * 10, ["Kholby of town"] * 5 + ["town of Kholby."] * 5 + ["no"] * 10
    made = judge(golds, before, after)
    exact = {kind.kind: (kind.exact_before, kind.exact_after) for kind in made.kinds}
    assert exact == {"all": (0.0, 0.0), "short": (0.0, 0.5), "choice": (0.0, 0.0)}
    assert made.verdict.endswith("; 0% of 10 short answers exact before, 50% after")
    (short,) = [kind for kind in made.kinds if kind.kind == "short"]
    assert (short.before, short.after) == pytest.approx((0.8, 1.0)), "F1 does not see the order"


def test_what_was_judged_before_exact_matches_were_counted_is_read() -> None:
    kept = judge(["town"] * 8, [""] * 8, ["town"] * 8).to_json()
    for kind in kept["kinds"]:
        del kind["exact_before"], kind["exact_after"]
    assert [kind.exact_after for kind in Judgement.from_json(kept).kinds] == [0.0, 0.0]


def test_kinds_are_told_apart() -> None:
    golds = ["yes", LONG, "town 1", "no", "town 2"] * 2
    made = judge(golds, [""] * 10, ["yes", LONG, "town 1", "yes", ""] * 2)
    after = {kind.kind: (kind.count, round(kind.after, 6)) for kind in made.kinds}
    assert after == {"all": (10, 0.6), "choice": (4, 0.5), "long": (2, 1.0), "short": (4, 0.5)}
    assert made.kinds[0].kind == "all"


@pytest.mark.parametrize("count", range(LEAST))
def test_too_few_say_nothing(count: int) -> None:
    made = judge(["town"] * count, [""] * count, ["town"] * count)
    assert not made.better
    assert made.verdict.startswith(f"{count} held-out examples are too few to judge by, {LEAST} are needed")
    assert "nothing was scored" in made.verdict
    assert made.kinds == []
    assert judge(["town"] * count, [], []) == made, "nobody has to answer for that"


def test_four_gains_of_eight_may_be_chance() -> None:
    """One in sixteen times all four go that way; the bootstrap alone is sure of them."""
    golds = [f"town {n}" for n in range(8)]
    made = judge(golds, [*[""] * 4, *golds[4:]], golds)
    assert made.kinds[0].low > 0
    assert not made.better
    assert made.verdict.startswith("not better beyond noise: 0.500 before, 1.000 after, on 8 held-out questions (gained +0.500")
    assert "p 0.062)" in made.verdict
    assert judge(golds, [*[""] * 6, *golds[6:]], golds).better


def right(r: random.Random) -> float:
    """The score of a choice: skewed, most are right."""
    return float(r.random() < 0.85)


def overlap(r: random.Random) -> float:
    """The score of a short answer: skewed, many have nothing in common with the gold one."""
    return r.choice((0.0, 0.0, 0.0, 0.2, 0.4, 0.5, 2 / 3, 0.8, 1.0))


@pytest.mark.parametrize("scored", [right, overlap])
@pytest.mark.parametrize("count", [8, 12, 20, 40])
def test_what_is_no_better_is_seldom_called_better(count: int, scored: Callable[[random.Random], float]) -> None:
    r, runs = random.Random(count), 300
    decided = cache(beyond_noise)  # many runs of few differences are the same
    runs_of_gains = [tuple(sorted(scored(r) - scored(r) for _ in range(count))) for _ in range(runs)]
    assert sum(sum(gains) > 0 and decided(gains) for gains in runs_of_gains) <= 0.03 * runs


def test_answers_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge(["town"] * 9, [""] * 9, [""] * 8)


def test_a_judgement_is_kept_as_json() -> None:
    golds = ["yes", "town 1", LONG, "no", "town 2"] * 2
    made = judge(golds, ["no"] * 10, golds)
    assert Judgement.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert judge(["yes"] * 20, ["no"] * 20, ["yes"] * 20) == judge(["yes"] * 20, ["no"] * 20, ["yes"] * 20)  # no chance in it
