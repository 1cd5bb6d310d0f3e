"""Keeps an answer from going round in circles: DRY ("Don't Repeat Yourself", text-generation-webui's pull request 5677).

Small models that answer greedily say a sentence again and again until their tokens are used up. A token that would lengthen
a repetition of what the answer has said already is made less likely, the more the longer the repetition is, so that a name may
well come twice and a sentence hardly. What the prompt says may be repeated: that is what a memory is for. Numbers may, too, for
longer, since a digit that is made less likely is another number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

_BASE = 1.75  # as DRY has it, and the next
_FREE = 2  # tokens of a repetition
_FREE_OF_NUMBERS = 12  # tokens, where the next is no word or part of one
_LONGEST = 40  # tokens: more of a penalty than any logit anyhow


class Repetition:
    """Of one answer's tokens so far."""

    def __init__(self, multiplier: float, text_of: Callable[[int], str]) -> None:
        """`text_of` is what a token reads as. A `multiplier` of 0 leaves everything as it is."""
        self._multiplier = multiplier
        self._is_word = cache(lambda token: any(char.isalpha() for char in text_of(token)))
        self._ids = np.empty(0, dtype=np.int64)
        self._lengths = np.empty(0, dtype=np.int64)  # of what ends there and is also what the answer ends with

    def push(self, token: int) -> None:
        """The answer has one more token."""
        if not self._multiplier:
            return
        longer = np.concatenate(([1], self._lengths + 1))[: len(self._ids)]
        lengths = np.where(self._ids == token, longer, 0)
        self._ids = np.append(self._ids, token)
        self._lengths = np.append(lengths, 0)  # the end is no repetition of itself

    def penalties(self) -> dict[int, float]:
        """What is to be taken from the logits of the tokens that would lengthen a repetition."""
        at = np.flatnonzero(self._lengths[:-1] >= _FREE)
        if not len(at):
            return {}
        lengths, after = self._lengths[at], self._ids[at + 1]
        found = {int(token): int(lengths[after == token].max()) for token in np.unique(after)}
        over = {token: length - (_FREE if self._is_word(token) else _FREE_OF_NUMBERS) for token, length in found.items()}
        return {token: self._multiplier * _BASE ** min(more, _LONGEST) for token, more in over.items() if more >= 0}
