"""How easily the reader is to refuse: a bias on the refusal's first token, chosen on other articles than it is judged on.

A reader that was taught both to answer and to refuse has a threshold of its own, and which one serves best depends on how
often memories are asked what they do not hold. Here both count alike: F1 where the passage is there, the share of refusals
where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.eval.metrics import f1, is_refusal, mean
from memoryd.recall.prompt import REFUSAL

_BIASES = tuple(step / 4 for step in range(33))


@dataclass(frozen=True, slots=True)
class Answered:
    """What was said without a bias. ``lead`` is how far the refusal's first token led all others, in logits; ``golds`` is
    empty where refusing is right."""

    article: str
    answer: str
    lead: float
    golds: tuple[str, ...]

    def with_bias(self, bias: float) -> str:
        """What is said then: greedy decoding refuses as soon as the refusal's first token leads."""
        return REFUSAL if self.lead + bias > 0 else self.answer

    def score(self, bias: float) -> float:
        said = self.with_bias(bias)
        return f1(said, self.golds) if self.golds else float(is_refusal(said, REFUSAL))


def best_bias(answered: Sequence[Answered]) -> float:
    """The least of those that score best; 0 where one of the two kinds of questions is missing."""
    answerable = [a for a in answered if a.golds]
    absent = [a for a in answered if not a.golds]
    if not answerable or not absent:
        return 0.0
    return max(_BIASES, key=lambda bias: mean([a.score(bias) for a in answerable]) + mean([a.score(bias) for a in absent]))


def biases_of_others(answered: Sequence[Answered]) -> dict[str, float]:
    """For each article the bias that is best on all other articles."""
    articles = dict.fromkeys(a.article for a in answered)
    return {article: best_bias([a for a in answered if a.article != article]) for article in articles}
