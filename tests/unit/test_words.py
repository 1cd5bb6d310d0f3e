"""Words, as the pooled compressor chooses them."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from memoryd.compress.words import BEGINS, ON, PUNCTUATION, mean_of_words, spelling_of, words_of


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["The", " cost", " was", " ", "1", ",", "3", "8", "8", "."], ["The", " cost", " was", " 1,388", "."]),
        ([" Jean", "-", "Luc", "'s", " ch", "âteau"], [" Jean-Luc's", " château"]),
        ([" U", ".", "S", ".", " law"], [" U.S", ".", " law"]),
        ([" homes", ".", '"', " So"], [" homes", ".", '"', " So"]),
        (["ing", " a"], ["ing", " a"]),
        ([" caf", "\ufffd", "\ufffd", "s"], [" caf\ufffd\ufffds"]),
        ([" end", "."], [" end", "."]),
    ],
)
def test_words_are_what_a_person_would_take_for_one(pieces: list[str], words: list[str]) -> None:
    word_L = words_of(spelling_of(pieces)[None])[0].tolist()
    assert word_L[0] == 0
    spelled = ["".join(p for p, _ in group) for _, group in groupby(zip(pieces, word_L, strict=True), key=lambda x: x[1])]
    assert spelled == words


def test_what_is_no_token_says_nothing_and_begins_nothing() -> None:
    assert spelling_of(["", " a", "b", ","]).tolist() == [ON, BEGINS, ON, PUNCTUATION]


def test_a_mean_is_of_its_words_tokens_in_each_row() -> None:
    x_BL = torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 10.0]])
    word_BL = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 1]])
    expected_BL = torch.tensor([[2.0, 2.0, 5.0, 7.0], [2.0, 20 / 3, 20 / 3, 20 / 3]])
    torch.testing.assert_close(mean_of_words(x_BL, word_BL), expected_BL)
