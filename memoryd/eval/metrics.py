"""How answers are scored, and how sure a figure is. Pure."""

from __future__ import annotations

import itertools
import math
import operator
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_T = TypeVar("_T")
_NO_ROUGE_WORD = re.compile("[^a-z0-9]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´`")


def normalized(answer: str) -> str:
    """SQuAD's: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best overlap of words with any of the gold answers, 0..1."""
    return max((_f1(normalized(answer).split(), normalized(gold).split()) for gold in golds), default=0.0)


def exact(answer: str, golds: Sequence[str]) -> float:
    """1.0 if the answer is one of the gold answers, normalized; else 0.0."""
    return float(any(normalized(answer) == normalized(gold) for gold in golds))


def _f1(answer: list[str], gold: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(gold)).values())
    if not answer or not gold:
        return float(answer == gold)
    return 2 * shared / (len(answer) + len(gold))


def is_refusal(answer: str, refusal: str) -> bool:
    """Whether the answer begins as the refusal does, whatever follows."""
    return normalized(answer).startswith(normalized(refusal))


def rouge(answer: str, golds: Sequence[str]) -> float:
    """The geometric mean of one answer's `rouge_parts`, 0..1: 0 where it has no two words in a row with a gold answer."""
    return overall([rouge_parts(answer, golds)])


def rouge_parts(answer: str, golds: Sequence[str]) -> tuple[float, float, float]:
    """F-measures of ROUGE-1, -2 and -L (Lin 2004), each with its best gold answer, 0..1. Words are what rouge_score
    takes them to be, letters and digits in lower case, and not stemmed."""
    words = _rouge_words(answer)
    parts = [_rouge_parts(words, _rouge_words(gold)) for gold in golds] or [(0.0, 0.0, 0.0)]
    return max(p[0] for p in parts), max(p[1] for p in parts), max(p[2] for p in parts)


def overall(scores: Sequence[tuple[float, ...]]) -> float:
    """What a metric gives for many answers, each with one part or with several: the geometric mean of the parts' means. That is
    how SCROLLS (Shaham et al. 2022), and by it LLoCO, puts ROUGE in one figure; of a metric of one part it is the mean."""
    means = [mean(part) for part in zip(*scores, strict=True)]
    return math.prod(means) ** (1 / len(means)) if means else math.nan


def _rouge_words(text: str) -> list[str]:
    return _NO_ROUGE_WORD.sub(" ", text.lower()).split()


def _rouge_parts(answer: list[str], gold: list[str]) -> tuple[float, float, float]:
    pairs = [list(itertools.pairwise(words)) for words in (answer, gold)]
    in_order = _longest_common(answer, gold)
    return _overlap(answer, gold), _overlap(*pairs), 2 * in_order / max(1, len(answer) + len(gold))


def _overlap(answer: Sequence[object], gold: Sequence[object]) -> float:
    return 2 * sum((Counter(answer) & Counter(gold)).values()) / max(1, len(answer) + len(gold))


def _longest_common(answer: list[str], gold: list[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(gold) + 1)
    for word in answer:
        diagonal = 0
        for at, other in enumerate(gold, start=1):
            diagonal, lengths[at] = lengths[at], diagonal + 1 if word == other else max(lengths[at], lengths[at - 1])
    return lengths[-1]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def bootstrap(values: Sequence[float], rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean, by the percentile bootstrap (Efron 1979)."""
    return bootstrap_of(values, mean, rounds, seed)


def bootstrap_of(
    values: Sequence[_T], figure: Callable[[Sequence[_T]], float], rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of any figure of so many values."""
    if not values:
        return math.nan, math.nan
    r = random.Random(seed)
    figures = sorted(figure(r.choices(values, k=len(values))) for _ in range(rounds))
    return figures[int(0.025 * rounds)], figures[int(0.975 * rounds) - 1]


def sign_flips(values: Sequence[float], rounds: int = 5000, seed: int = 0) -> float:
    """How likely a mean as high as that of these differences is by chance: one-sided p of the paired permutation test (Fisher
    1935). Exact for up to 12 differences other than 0, else from so many random flips."""
    moved = [value for value in values if value]
    observed = sum(moved) - 1e-9  # sums in another order differ by that much
    if len(moved) <= 12:
        sums = _flipped(moved)
        return sum(one >= observed for one in sums) / len(sums)
    r = random.Random(seed)
    eights = [_flipped([*moved[at : at + 8], *[0.0] * (at + 8 - len(moved))]) for at in range(0, len(moved), 8)]
    hits = sum(sum(map(operator.getitem, eights, r.randbytes(len(eights)))) >= observed for _ in range(rounds))
    return (hits + 1) / (rounds + 1)


def _flipped(values: Sequence[float]) -> list[float]:
    """The sums with every choice of signs."""
    sums = [0.0]
    for value in values:
        sums = [one + flipped for one in sums for flipped in (value, -value)]
    return sums


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927): good near 0 and 1 too."""
    if n == 0:
        return math.nan, math.nan
    z = 1.959964
    p = hits / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))
