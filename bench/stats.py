"""Quantiles with intervals that assume nothing about the distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of `n` samples with its 95 % interval; without an end that so few samples cannot give."""

    value: float
    low: float | None
    high: float | None
    n: int


def quantile(samples: Sequence[float], q: float, confidence: float = 0.95) -> Quantile:
    """The q-quantile; the interval is of order statistics (David and Nagaraja 2003, 7.1): how many samples lie below the true
    one is binomial(n, q), and the k-th smallest is above it where at most k - 1 do."""
    ordered = sorted(samples)
    n = len(ordered)
    tail = (1 - confidence) / 2
    below = 0.0
    low: float | None = None
    high: float | None = None
    for k in range(n):
        below += _binomial(n, k, q)  # now P(ordered[k] is above the true quantile)
        if below <= tail:
            low = ordered[k]
        if below >= 1 - tail:
            high = ordered[k]
            break
    position = q * (n - 1)
    floor = int(position)
    value = ordered[floor] + (position - floor) * (ordered[min(floor + 1, n - 1)] - ordered[floor])
    return Quantile(value, low, high, n)


def _binomial(n: int, k: int, p: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def median(samples: Sequence[float]) -> Quantile:
    return quantile(samples, 0.5)
