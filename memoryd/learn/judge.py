"""Whether a new adapter answers better than what is in use: held-out examples, scored by kind, compared in pairs. Pure."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memoryd.core import Example
from memoryd.eval.metrics import bootstrap, exact, f1, is_refusal, mean, normalized, rouge, sign_flips
from memoryd.recall.prompt import REFUSAL

LEAST = 8  # held-out examples, to say anything
MOST = 60  # and as many as are worth waiting for
_SHORT_WORDS = 12
_CHOICES = {"yes", "no", "true", "false", *"abcdefgh"}
_HELD_OUT_OF = 5  # one example in so many
_CHANCE = 0.025  # that what is no better is called better, at most


@dataclass(frozen=True, slots=True)
class JudgedKind:
    """Scores of one kind of answer, 0..1; `low` and `high` are the 95 % interval of what was gained. Of short answers it is
    also known how many are exact; that decides nothing."""

    kind: str
    count: int
    before: float
    after: float
    low: float
    high: float
    exact_before: float = 0.0
    exact_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """`better` is beyond noise."""

    better: bool
    verdict: str
    kinds: Sequence[JudgedKind]

    def to_json(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {"better": self.better, "verdict": self.verdict, "kinds": [asdict(kind) for kind in self.kinds]}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Judgement:
        """What `to_json` made."""
        return cls(kept["better"], kept["verdict"], [JudgedKind(**kind) for kind in kept["kinds"]])


def is_held_out(example: Example) -> bool:
    """Whether an example is for judging and never for training: by its question, so that it stays what it is, and two examples
    of one question are never on both sides."""
    return _digest(example)[0] % _HELD_OUT_OF == 0


def at_most(examples: Sequence[Example], count: int) -> list[Example]:
    """So many of them, in their order, chosen by their questions: of a memory that grows for years the oldest alone would say
    nothing of what was learned since, and the newest alone nothing of what was forgotten."""
    if len(examples) <= count:
        return list(examples)
    last = sorted(_digest(example)[1:] for example in examples)[count - 1]
    return [example for example in examples if _digest(example)[1:] <= last][:count]


def _digest(example: Example) -> bytes:
    return hashlib.sha256(normalized(example.question).encode()).digest()


def kind_of(answer: str) -> str:
    """refusal, choice, short or long."""
    if answer.strip() == REFUSAL:
        return "refusal"
    if _chosen(answer) in _CHOICES:
        return "choice"
    return "short" if len(normalized(answer).split()) <= _SHORT_WORDS else "long"


def score(answer: str, gold: str) -> float:
    """0..1: whether a refusal is one, accuracy of a choice, F1 of a short answer, ROUGE of a long one."""
    kind = kind_of(gold)
    if kind == "refusal":
        return float(is_refusal(answer, REFUSAL))
    if kind == "choice":
        return float(_chosen(answer) == _chosen(gold))
    return f1(answer, [gold]) if kind == "short" else rouge(answer, [gold])


def judge(golds: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Judgement:
    """Of answers to the same questions. Where they are too few they are not scored: there may be none."""
    if len(golds) < LEAST:
        few = f"{len(golds)} held-out examples are too few to judge by, {LEAST} are needed"
        return Judgement(False, f"{few}, so nothing was scored: add examples and learn again", [])
    kinds = [kind_of(gold) for gold in golds]
    pairs = [(score(b, gold), score(a, gold)) for gold, b, a in zip(golds, before, after, strict=True)]
    judged = [_judged("all", pairs)]
    for kind in dict.fromkeys(kinds):
        of_kind = _judged(kind, [pair for pair, own in zip(pairs, kinds, strict=True) if own == kind])
        judged.append(_with_exact(of_kind, golds, before, after) if kind == "short" else of_kind)
    overall = judged[0]
    gains = [a - b for b, a in pairs]
    answered = [gain for gain, kind in zip(gains, kinds, strict=True) if kind != "refusal"]
    worse = bool(answered) and mean(answered) < 0  # what refuses everything gains by what is to be refused
    certain = beyond_noise(gains)
    better = certain and not worse
    change = f"{overall.before:.3f} before, {overall.after:.3f} after, on {overall.count} held-out questions"
    interval = f"95 % interval {overall.low:+.3f} to {overall.high:+.3f}, p {sign_flips(gains):.3f}"
    gained = f"(gained {overall.after - overall.before:+.3f}, {interval})"
    said = "better" if better else "not better beyond noise" if not certain else "not better, answers are worse"
    verdict = f"{said}: {change} {gained}"
    for one in judged:
        if one.kind == "short":
            verdict += f"; {one.exact_before:.0%} of {one.count} short answers exact before, {one.exact_after:.0%} after"
        if one.kind == "refusal":
            verdict += f"; {one.before:.0%} of {one.count} questions to refuse refused before, {one.after:.0%} after"
    return Judgement(better, verdict, judged)


def beyond_noise(gains: Sequence[float]) -> bool:
    """Whether so many gains of pairs are no chance. The bootstrap alone is too easily convinced by few of them."""
    return sign_flips(gains) < _CHANCE and bootstrap(gains)[0] > 0


def _chosen(answer: str) -> str:
    """Normalized, but for "A": it is an article too, of which nothing would be left."""
    return normalized(answer) or answer.strip(string.punctuation + string.whitespace).lower()


def _with_exact(judged: JudgedKind, golds: Sequence[str], before: Sequence[str], after: Sequence[str]) -> JudgedKind:
    short = [
        (exact(b, [gold]), exact(a, [gold]))
        for gold, b, a in zip(golds, before, after, strict=True)
        if kind_of(gold) == "short"
    ]
    return replace(judged, exact_before=mean([b for b, _ in short]), exact_after=mean([a for _, a in short]))


def _judged(kind: str, pairs: Sequence[tuple[float, float]]) -> JudgedKind:
    low, high = bootstrap([after - before for before, after in pairs])
    return JudgedKind(kind, len(pairs), mean([b for b, _ in pairs]), mean([a for _, a in pairs]), low, high)
