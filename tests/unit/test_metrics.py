from __future__ import annotations

import pytest

from memoryd.eval.metrics import bootstrap, exact, f1, is_refusal, mean, normalized, wilson


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
