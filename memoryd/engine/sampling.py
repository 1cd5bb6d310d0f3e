"""Chooses the next token: the likeliest, or one drawn by probability, repeatable by seed."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """One per sequence, so that a seed gives the same draws whatever else is decoded beside it."""

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._generator = torch.Generator()
        if seed:
            self._generator.manual_seed(seed)
        else:
            self._generator.seed()

    def choose(self, logits_V: Tensor) -> int:
        """A token id. `logits_V` is float32 on the CPU, where the draws do not depend on the device."""
        if self._temperature == 0:
            return int(logits_V.argmax())
        # What is no number, as an overflow leaves it, is as likely as anything: the others in the batch must not fail with it.
        # Divided first: a division by a low temperature overflows too.
        probability_V = torch.softmax((logits_V.double() / self._temperature).nan_to_num(), dim=-1)
        return int(torch.multinomial(probability_V, 1, generator=self._generator))
