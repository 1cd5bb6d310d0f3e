"""Reciprocal rank fusion: several rankings into one (Cormack, Clarke and Buettcher, SIGIR 2009). Pure."""

from __future__ import annotations

from collections.abc import Sequence

K = 60  # the paper's constant: how little the very first ranks may dominate


def fuse(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Ids with their fused scores, best first; ids of equal score in the order in which they were met."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (K + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])
