"""An answer is kept from saying a sentence again, and free to say a name or a number again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.engine.repetition import Repetition

WORDS = ["the", " cat", " sat", " on", " mat", ".", "1", "0", ","]
THE, CAT, SAT, ON, MAT, DOT, ONE, NOUGHT, COMMA = range(len(WORDS))


def after(*said: int, multiplier: float = 0.8) -> dict[int, float]:
    repetition = Repetition(multiplier, WORDS.__getitem__)
    for token in said:
        repetition.push(token)
    return repetition.penalties()


def test_what_was_not_said_is_as_likely_as_it_was() -> None:
    assert after() == after(THE) == after(THE, CAT, SAT, ON, THE, MAT) == {}


def test_two_tokens_may_come_twice() -> None:
    assert after(THE, CAT, SAT, ON, THE) == {}
    assert after(THE, CAT, SAT, ON, THE, CAT) == {SAT: 0.8}, "the third would make three of them"


def test_the_longer_the_repetition_the_less_likely() -> None:
    assert after(THE, CAT, SAT, ON, MAT, DOT, THE, CAT, SAT) == {ON: pytest.approx(0.8 * 1.75)}
    assert after(THE, CAT, SAT, ON, MAT, DOT, THE, CAT, SAT, ON) == {MAT: pytest.approx(0.8 * 1.75**2)}


def test_of_several_repetitions_the_longest_counts() -> None:
    said = (THE, CAT, SAT, DOT, ON, THE, CAT, SAT, COMMA, ON, THE, CAT)
    assert after(*said) == {SAT: pytest.approx(0.8 * 1.75)}, "on the cat, and not only the cat"


def test_each_way_to_go_on_has_its_own() -> None:
    assert after(THE, CAT, SAT, COMMA, THE, CAT, ON, DOT, THE, CAT) == {SAT: 0.8, ON: 0.8}


def test_a_number_may_come_twice() -> None:
    """A digit that is made less likely is another number."""
    thousand = (COMMA, NOUGHT, NOUGHT, NOUGHT)
    assert after(ONE, *thousand * 3) == {}
    assert after(THE, ONE, NOUGHT, ONE, NOUGHT, CAT, THE, ONE, NOUGHT, ONE) == {}


def test_a_number_does_not_go_on_for_ever() -> None:
    assert after(ONE, *[NOUGHT] * 12) == {}
    assert after(ONE, *[NOUGHT] * 13) == {NOUGHT: 0.8}
    assert after(ONE, *[NOUGHT] * 20)[NOUGHT] > 30


def test_a_penalty_is_a_number_however_long_it_goes_on() -> None:
    assert after(*[CAT] * 3000)[CAT] < float("inf")


def test_a_multiplier_of_0_leaves_everything_as_it_is() -> None:
    assert after(*[THE, CAT] * 9, multiplier=0) == {}


def longest(said: Sequence[int], token: int) -> int:
    """Tokens that the answer's end has in common with what stands before an earlier `token`."""
    lengths = [0]
    for at in range(1, len(said)):
        if said[at] == token:
            lengths.append(next((n for n in range(at) if said[at - 1 - n] != said[-1 - n]), at))
    return max(lengths)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_it_is_what_a_search_from_each_place_finds(said: list[int]) -> None:
    want = {token: longest(said, token) for token in range(3)}
    assert after(*said) == {token: pytest.approx(0.8 * 1.75 ** (n - 2)) for token, n in want.items() if n >= 2}
