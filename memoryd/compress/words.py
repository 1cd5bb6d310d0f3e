"""Which tokens make a word, from the tokens alone.

A word begins with a token that begins with a space, and with punctuation that nothing follows directly: "the 1,388 homes."
is four words, " the", " 1,388", " homes" and ".". So each token of a vocabulary BEGINS a word, goes ON with one, or is
PUNCTUATION, which does one or the other by what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ON, BEGINS, PUNCTUATION = range(3)


def spelling_of(texts: Sequence[str]) -> Tensor:
    """How each token of a vocabulary takes part in a word, uint8 [vocabulary]; ``texts`` are what each says after a letter."""
    kinds = [BEGINS if text[:1].isspace() else PUNCTUATION if text and not any(map(_spells, text)) else ON for text in texts]
    return torch.tensor(kinds, dtype=torch.uint8)


def _spells(character: str) -> bool:
    return character.isalnum() or character == "\ufffd"  # which stands for a part of a character


def words_of(spelling_BL: Tensor) -> Tensor:
    """The number of each token's word within its row, [B, L]; the words of a row are 0, 1, 2 and so on."""
    ends_BL = torch.ones_like(spelling_BL, dtype=torch.bool)
    ends_BL[:, :-1] = spelling_BL[:, 1:] != ON  # what comes next is not written on
    begins_BL = (spelling_BL == BEGINS) | ((spelling_BL == PUNCTUATION) & ends_BL)
    begins_BL[:, 0] = True
    return begins_BL.long().cumsum(1) - 1


def mean_of_words(x_BL: Tensor, word_BL: Tensor) -> Tensor:
    """For each token the mean over its word, [B, L]."""
    sum_BL = torch.zeros_like(x_BL).scatter_add(1, word_BL, x_BL)
    count_BL = torch.zeros_like(x_BL).scatter_add(1, word_BL, torch.ones_like(x_BL))
    return (sum_BL / count_BL.clamp(min=1)).gather(1, word_BL)
