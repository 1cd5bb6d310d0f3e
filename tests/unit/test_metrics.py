from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.eval.metrics import (
    bootstrap,
    bootstrap_of,
    exact,
    f1,
    is_refusal,
    mean,
    normalized,
    overall,
    rouge,
    rouge_parts,
    sign_flips,
    wilson,
)


def test_normalized_as_squad_does() -> None:
    assert normalized("The  Quick, brown FOX!") == "quick brown fox"


@pytest.mark.parametrize(
    ("answer", "golds", "score"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1.0),
        ("Broncos", ["Denver Broncos", "Carolina"], 2 / 3),
        ("Panthers", ["Denver Broncos"], 0.0),
        ("", ["x"], 0.0),
        ("in in", ["in"], 2 / 3),
    ],
)
def test_f1(answer: str, golds: list[str], score: float) -> None:
    assert f1(answer, golds) == pytest.approx(score)


def test_exact_takes_any_gold() -> None:
    assert exact("the 1880s.", ["1980", "1880s"]) == 1.0
    assert exact("1880", ["1880s"]) == 0.0


def geometric(*parts: float) -> float:
    return float(math.prod(parts) ** (1 / len(parts)))


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        # words in common, neighbours in common, longest common subsequence: each twice over the sum of both lengths
        ("police killed gunman", "police kill gunman", geometric(2 * 2 / 6, 0.0, 2 * 2 / 6)),
        ("police killed gunman", "gunman killed police", geometric(1.0, 0.0, 2 * 1 / 6)),
        ("one two three four", "one two three five six", geometric(2 * 3 / 9, 2 * 2 / 7, 2 * 3 / 9)),
        ("two three one four", "one two three four", geometric(1.0, 2 * 1 / 6, 2 * 3 / 8)),
        ("one two one two", "one two", geometric(2 * 2 / 6, 2 * 1 / 4, 2 * 2 / 6)),
        ("one two", "one two one two", geometric(2 * 2 / 6, 2 * 1 / 4, 2 * 2 / 6)),
        ("One--two!", "one TWO", 1.0),
        ("the one two", "one two", geometric(2 * 2 / 5, 2 * 1 / 3, 2 * 2 / 5)),  # an article is a word
        ("one two", "three four", 0.0),
        ("one", "one", 0.0),  # one word has no neighbours: it is for long answers
        ("", "one two", 0.0),
        ("one two", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge(answer: str, gold: str, score: float) -> None:
    assert rouge(answer, [gold]) == pytest.approx(score)


def test_rouge_is_of_the_best_gold_answer() -> None:
    assert rouge("one two", ["three four", "one two", "one"]) == pytest.approx(1.0)
    assert rouge("one two", []) == 0.0


def test_the_rouge_of_many_answers_is_the_geometric_mean_of_its_parts_means() -> None:
    wrong, right = rouge_parts("one", ["one two three"]), rouge_parts("one two", ["one two"])
    assert wrong == (pytest.approx(0.5), 0.0, pytest.approx(0.5))
    assert overall([wrong, right]) == pytest.approx(geometric(0.75, 0.5, 0.75)), (
        "a part that is 0 once does not make all of it 0"
    )
    assert overall([(0.2,), (0.4,)]) == pytest.approx(0.3), "of one part it is the mean"
    assert math.isnan(overall([]))


def test_each_part_of_rouge_is_of_its_own_best_gold_answer() -> None:
    assert rouge_parts("one two three", ["one two", "three x one"]) == (
        pytest.approx(4 / 5), pytest.approx(2 / 3), pytest.approx(4 / 5),
    )  # fmt: skip


def test_the_bootstrap_of_a_figure() -> None:
    low, high = bootstrap_of([(0.0, 1.0), (1.0, 0.0)] * 20, overall)
    assert 0.4 < low < 0.5 <= high < 0.6
    assert bootstrap_of([0.0, 1.0] * 20, mean) == bootstrap([0.0, 1.0] * 20)
    assert all(math.isnan(end) for end in bootstrap_of([], overall))


@given(*[st.lists(st.sampled_from("bcdef"), max_size=8)] * 2)
def test_rouge_is_a_share_whichever_is_the_answer(one: list[str], other: list[str]) -> None:
    forth, back = rouge(" ".join(one), [" ".join(other)]), rouge(" ".join(other), [" ".join(one)])
    assert 0.0 <= forth <= 1.0
    assert forth == pytest.approx(back)
    assert rouge(" ".join(one), [" ".join(one)]) == pytest.approx(float(len(one) > 1))


def test_refusal_by_its_beginning() -> None:
    refusal = "I don't know from memory."
    assert is_refusal("I don’t know from memory", refusal)
    assert is_refusal("I don't know from memory. Maybe", refusal)
    assert not is_refusal("I know", refusal)


def test_wilson_against_known_values() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_bootstrap_holds_the_mean_and_narrows() -> None:
    few, many = [0.0, 1.0] * 5, [0.0, 1.0] * 500
    low, high = bootstrap(few)
    assert low < mean(few) < high
    assert bootstrap(many)[1] - bootstrap(many)[0] < (high - low) / 3


def test_sign_flips_are_exact_for_few() -> None:
    assert sign_flips([]) == sign_flips([0.0] * 20) == 1.0
    assert sign_flips([1.0] * 5) == 1 / 32
    assert sign_flips([1.0] * 12 + [0.0] * 50) == 1 / 4096, "what did not change says nothing"
    assert sign_flips([-1.0] * 5) == 1.0
    given = [0.5, 1 / 3, -0.25, 0.1, 0.7, -0.1]
    sums = [
        sum(sign * value for sign, value in zip(signs, given, strict=True)) for signs in itertools.product((1, -1), repeat=6)
    ]
    assert sign_flips(given) == pytest.approx(sum(one >= sum(given) - 1e-9 for one in sums) / 64)


@pytest.mark.parametrize("count", [13, 16, 21, 40])
def test_sign_flips_of_many_are_sampled_near_the_truth(count: int) -> None:
    """Of gains of 1, or losses: how often that many of `count` coins are heads."""
    for heads in range(count // 2, count + 1):
        gains = [1.0] * heads + [-1.0] * (count - heads)
        truth = sum(math.comb(count, more) for more in range(heads, count + 1)) / 2**count
        assert sign_flips(gains) == pytest.approx(truth, abs=0.02)
    assert sign_flips([1.0] * count) == pytest.approx(1 / 5001, abs=0.001)
    assert sign_flips([0.1] * count, seed=1) == sign_flips([0.1] * count, seed=1)
