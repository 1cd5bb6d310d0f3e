"""Quantiles with intervals that assume nothing about the distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of `n` samples with its 95 % interval, or the widest that `n` samples can give."""

    value: float
    low: float
    high: float
    n: int


def quantile(samples: Sequence[float], q: float, confidence: float = 0.95) -> Quantile:
    """The q-quantile; the interval is of order statistics: how many samples lie below the true one is binomial(n, q)."""
    ordered = sorted(samples)
    n = len(ordered)
    tail = (1 - confidence) / 2
    below = 0.0
    low, high = 0, n - 1
    for k in range(n):
        below += _binomial(n, k, q)  # now P(at most k samples lie below the true quantile)
        if below <= tail:
            low = k + 1
        if below >= 1 - tail:
            high = min(k + 1, n - 1)
            break
    position = q * (n - 1)
    floor = int(position)
    value = ordered[floor] + (position - floor) * (ordered[min(floor + 1, n - 1)] - ordered[floor])
    return Quantile(value, min(ordered[min(low, n - 1)], value), max(ordered[high], value), n)


def _binomial(n: int, k: int, p: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def median(samples: Sequence[float]) -> Quantile:
    return quantile(samples, 0.5)
