"""What the learning eval makes of answers: scores, what was gained over the reader, refusals, and the headline. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from memoryd.eval.figures import Row
from memoryd.eval.learning_data import Asked
from memoryd.eval.learning_steps import Learned, Studied
from memoryd.eval.metrics import bootstrap_of, f1, is_refusal, mean, overall, rouge_parts, wilson
from memoryd.recall.prompt import REFUSAL

AIMS = {"supplied": 0.07, "self-study": 0.03}
"""Points over the reader, mean of memories."""

_ROUNDS = 2000


Score = tuple[float, ...]
"""Of one answer, 0..1: F1, or ROUGE-1, -2 and -L."""

Pair = tuple[Score, Score]
"""Of one question: an adapter's and the reader's."""


def scores_of(name: str, asked: Sequence[Asked], said: Sequence[str]) -> list[Score]:
    """F1; ROUGE for qmsum, whose answers are paragraphs."""
    if name == "qmsum":
        return [rouge_parts(answer, one.golds) for answer, one in zip(said, asked, strict=True)]
    return [(f1(answer, one.golds),) for answer, one in zip(said, asked, strict=True)]


def score_rows(name: str, mode: str, arm: str, scores: Sequence[Score], reader: Sequence[Score] | None) -> list[Row]:
    """An arm's figure, and what it gained over the reader, pair by pair, where it is held against that."""
    interval = bootstrap_of(scores, overall, _ROUNDS)
    row = Row(f"{name}, {mode}, {arm}", overall(scores), _unit(name), *interval, n=len(scores))
    if reader is None:
        return [row]
    before = overall(reader)
    row = replace(row, baseline=before, ratio=row.value / before if before else None)
    pairs = list(zip(scores, reader, strict=True))
    over = Row(f"{name}, {mode}, {arm}: gained", gained(pairs), "points", *bootstrap_of(pairs, gained, _ROUNDS), n=len(pairs))
    return [row, over]


def gained(pairs: Sequence[Pair]) -> float:
    """By the adapter over the reader."""
    return overall([after for after, _ in pairs]) - overall([before for _, before in pairs])


def refusal_row(name: str, arm: str, said: Sequence[str], reader: Sequence[str] | None) -> Row:
    """Share of questions of another memory that are refused, as they should be; one that learned is held against the reader."""
    refused, before = (sum(is_refusal(answer, REFUSAL) for answer in answers) for answers in (said, reader or said))
    what = f"{name}, TEXT, {arm}: refused of another memory's questions"
    row = Row(what, refused / len(said), "share", *wilson(refused, len(said)), n=len(said))
    return row if reader is None else replace(row, baseline=before / len(said))


def study_rows(name: str, studied: Studied) -> list[Row]:
    """What self-study asked, kept and took."""
    return [
        Row(f"{name}, self-study: asked", studied.questions, "questions", n=studied.passages),
        Row(f"{name}, self-study: kept of them", studied.examples, "questions", n=studied.questions),
        Row(f"{name}, self-study: took, stops included", studied.seconds, "s", n=studied.passages),
    ]


def learned_rows(name: str, arm: str, learned: Learned) -> list[Row]:
    """Training, and the verdict: the adapter's score on what it is judged by against that of what is in use. `met`: it would be
    activated. No verdict where too few were held out to score."""
    rows = [Row(f"{name}, {arm}: training", learned.seconds / 60, "minutes", n=learned.examples)]
    if learned.after is not None and learned.before is not None:
        ratio = learned.after / learned.before if learned.before else None
        verdict = Row(f"{name}, {arm}: judged", learned.after, "score", n=learned.judged, baseline=learned.before)
        rows.append(replace(verdict, ratio=ratio, aim="activated: better beyond noise", met=learned.better))
    return rows


def headline(arm: str, mode: str, memories: Sequence[Sequence[Pair]]) -> Row:
    """What an arm gained over the reader: the mean of memories, each with the pairs of its questions."""
    over = mean([gained(pairs) for pairs in memories])
    low, high = stratified(memories)
    name = f"learned, {arm}: gained over the reader, {mode}, mean of memories"
    met = over >= AIMS[arm] and low > 0
    return Row(name, over, "points", low, high, n=sum(map(len, memories)), aim=f"≥ {AIMS[arm]}, beyond noise", met=met)


def stratified(memories: Sequence[Sequence[Pair]], rounds: int = _ROUNDS, seed: int = 0) -> tuple[float, float]:
    """95% interval of what is gained in the mean of memories: questions are drawn again within each, since the memories are all
    that there are and not a sample."""
    r = random.Random(seed)
    means = sorted(mean([gained(r.choices(pairs, k=len(pairs))) for pairs in memories]) for _ in range(rounds))
    return means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1]


def _unit(name: str) -> str:
    return "ROUGE" if name == "qmsum" else "F1"
