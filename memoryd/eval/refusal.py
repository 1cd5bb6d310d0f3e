"""How easily the reader is to refuse: a bias on the refusal's first token, chosen on other articles than it is judged on.

A reader that was taught both to answer and to refuse has a threshold of its own. Moving it trades wrong answers for needless
refusals; the least bias is taken at which enough of the questions are refused that the memory cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.eval.metrics import f1, is_refusal, mean
from memoryd.recall.prompt import REFUSAL

ENOUGH = 0.82
"""Of questions without an answer; a little over 0.80, what was aimed at when the bias that ships was chosen, on other articles
as well. More refusals cost answers, so a reader that is to refuse 0.85 has to be a better one first."""

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
    """The least with which enough is refused; 0 where nothing is to be refused."""
    absent = [a for a in answered if not a.golds]
    enough = (bias for bias in _BIASES if mean([a.score(bias) for a in absent]) >= ENOUGH)
    return next(enough, _BIASES[-1]) if absent else 0.0


def biases_of_others(answered: Sequence[Answered]) -> dict[str, float]:
    """For each article the bias that is best on all other articles."""
    articles = dict.fromkeys(a.article for a in answered)
    return {article: best_bias([a for a in answered if a.article != article]) for article in articles}
