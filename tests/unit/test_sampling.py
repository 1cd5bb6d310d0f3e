"""The next token, whatever the logits are: a row that overflowed must not fail the batch that it is in."""

from __future__ import annotations

import math

import pytest
import torch

from memoryd.engine.sampling import Sampler

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.1, 1.0, 2.0])
@pytest.mark.parametrize(
    "logits",
    [
        [NAN, NAN, NAN],
        [INF, INF, INF],
        [-INF, -INF, -INF],
        [INF, -INF, NAN],
        [NAN, 1.0, 2.0],
        [3.4e38, -3.4e38, 0.0],
    ],
)
def test_a_token_is_chosen_whatever_overflowed(logits: list[float], temperature: float) -> None:
    assert Sampler(temperature, 7).choose(torch.tensor(logits)) in range(3)


def test_a_seed_repeats_its_draws_and_what_cannot_be_is_not_drawn() -> None:
    logits = torch.tensor([1.0, 1.0, -INF, 1.0])
    one, other = Sampler(1.0, 7), Sampler(1.0, 7)
    drawn = [one.choose(logits) for _ in range(50)]
    assert drawn == [other.choose(logits) for _ in range(50)]
    assert set(drawn) == {0, 1, 3}
