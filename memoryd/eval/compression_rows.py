"""What the compression eval makes of answers: scores, rows of figures, and the verdict of the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memoryd.compress.card import OVER_FIRST, OVER_WRONG, QUESTIONS, WIDE, Gate
from memoryd.eval.compression_data import Case
from memoryd.eval.figures import Row
from memoryd.eval.metrics import bootstrap, exact, f1, is_refusal, mean, wilson
from memoryd.recall.prompt import REFUSAL

_KEEP_INT8 = 0.98  # of the F1 that the same embeddings give as bfloat16
_BEHIND = 0.03  # points of F1 that HYBRID may be behind the raw text, with
_OF_RAW = 1 / 3  # of its tokens


def score(case: Case, answer: str) -> float:
    """F1; of a multiple choice whether the right option was chosen."""
    return float(answer == case.golds[0]) if case.options else f1(answer, case.golds)


def arm_rows(
    arm: str,
    asked: Sequence[Case],
    said: Sequence[str],
    against: tuple[str, Sequence[str]] | None = None,
    keep: float | None = None,
) -> list[Row]:
    """F1 over all questions that are no multiple choice, EM, how many were refused, and the score of each set."""
    rows: list[Row] = []
    free = [n for n, case in enumerate(asked) if not case.options]
    rows.append(_f1_row(f"{arm}: F1", free, asked, said, against))
    hits = [exact(said[n], asked[n].golds) for n in free]
    low, high = wilson(int(sum(hits)), len(hits))
    rows.append(Row(f"{arm}: EM", mean(hits), "EM", low, high, n=len(hits)))
    refused = [float(is_refusal(said[n], REFUSAL)) for n in free]
    rows.append(Row(f"{arm}: refused", mean(refused), "share", *wilson(int(sum(refused)), len(free)), n=len(free)))
    for name in dict.fromkeys(case.set for case in asked):
        some = [n for n, case in enumerate(asked) if case.set == name]
        unit = "accuracy" if asked[some[0]].options else "F1"
        row = _f1_row(f"{arm}, {name}: {unit}", some, asked, said, against, unit)
        if keep is not None and name == "squad" and row.ratio is not None:
            row = replace(row, aim=f"≥ {keep:.0%} of raw", met=row.ratio >= keep)
        rows.append(row)
    return rows


def _f1_row(
    name: str,
    which: Sequence[int],
    asked: Sequence[Case],
    said: Sequence[str],
    against: tuple[str, Sequence[str]] | None,
    unit: str = "F1",
) -> Row:
    scores = [score(asked[n], said[n]) for n in which]
    low, high = bootstrap(scores)
    baseline = mean([score(asked[n], against[1][n]) for n in which]) if against else None
    value = mean(scores)
    return Row(name, value, unit, low, high, n=len(scores), baseline=baseline, ratio=value / baseline if baseline else None)


def int8_rows(ratio: int, asked: Sequence[Case], said: Sequence[str], bfloat16: Sequence[str]) -> list[Row]:
    """The arm `int8`, held against what `compressed` said; and what it loses to that, question by question."""
    rows = arm_rows(f"int8 at {ratio}x", asked, said, against=("compressed", bfloat16))
    kept = rows[0].ratio
    rows[0] = replace(rows[0], aim=f"≥ {_KEEP_INT8} of bfloat16", met=None if kept is None else kept >= _KEEP_INT8)
    answers = [(case, a, b) for case, a, b in zip(asked, said, bfloat16, strict=True) if not case.options]
    lost = [score(case, b) - score(case, a) for case, a, b in answers]
    return [*rows, Row(f"int8 at {ratio}x: F1 lost to bfloat16", mean(lost), "F1", *bootstrap(lost), n=len(lost))]


def gate_of(asked: Sequence[Case], at: Mapping[str, Sequence[str]], compressor: str, reader: str) -> Gate:
    """Paired differences, question by question."""
    scores = {arm: [score(case, answer) for case, answer in zip(asked, said, strict=True)] for arm, said in at.items()}
    over = {
        arm: bootstrap([a - b for a, b in zip(scores["compressed"], scores[arm], strict=True)])[0] for arm in ("first", "wrong")
    }
    return Gate(
        {
            OVER_FIRST: round(over["first"], 4),
            OVER_WRONG: round(over["wrong"], 4),
            **{f"f1_{arm}": round(mean(values), 4) for arm, values in scores.items()},
            QUESTIONS: len(asked),
        },
        compressor,
        reader,
    )


def gate_rows(ratio: int, gate: Gate) -> list[Row]:
    """What the verdict rests on: lower ends of differences over all questions, those of a multiple choice too."""
    first, wrong = gate.figures[OVER_FIRST], gate.figures[OVER_WRONG]
    n = int(gate.figures[QUESTIONS])
    return [
        Row(f"gate at {ratio}x: at least over the first tokens", first, "F1", n=n, aim="> 0", met=first > 0),
        Row(f"gate at {ratio}x: at least over another text's", wrong, "F1", n=n, aim=f"> {WIDE}", met=wrong > WIDE),
    ]


def hybrid_rows(
    ratio: int,
    asked: Sequence[Case],
    said: Sequence[str],
    raw: Sequence[str],
    whole: Sequence[str],
    tokens: float,
    raw_tokens: float,
) -> list[Row]:
    """What HYBRID loses to the raw text, and gains over the passage alone, question by question; the context that it reads."""
    free = [n for n, case in enumerate(asked) if not case.options]
    behind = [score(asked[n], raw[n]) - score(asked[n], said[n]) for n in free]
    gained = [score(asked[n], said[n]) - score(asked[n], whole[n]) for n in free]
    lost, of_raw = mean(behind), tokens / raw_tokens
    return [
        Row(
            f"hybrid at {ratio}x: F1 lost to raw", lost, "F1", *bootstrap(behind), n=len(behind),
            aim=f"≤ {_BEHIND}", met=lost <= _BEHIND,
        ),
        Row(f"hybrid at {ratio}x: F1 over the passage alone", mean(gained), "F1", *bootstrap(gained), n=len(gained)),
        Row(
            f"hybrid at {ratio}x: context", tokens, "tokens", n=len(asked), baseline=raw_tokens, ratio=of_raw,
            aim="≤ a third of raw", met=of_raw <= _OF_RAW,
        ),
    ]  # fmt: skip
