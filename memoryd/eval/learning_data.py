"""The questions of the learning eval: real documents, and what is asked of them, split into what is asked and what is supplied
as examples. Nothing that is supplied tells what is asked: not by an equal question, nor by an equal long answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memoryd.eval.metrics import normalized
from memoryd.learn.judge import kind_of
from memoryd.learn.reader_data import read_rows
from memoryd.recall.prompt import REFUSAL

DOCUMENTS = {"squad": 2, "qasper": 12, "qmsum": 14}
"""Memories, and how many documents each has."""

OUTSIDE = 20
"""Questions of another memory that are put to each one, at most."""

_OTHER = {"squad": "qasper", "qasper": "qmsum", "qmsum": "squad"}
_UNANSWERABLE = "unanswerable"  # what Qasper has as the answer where a paper does not say it
# Nothing in these says which meeting is meant, and no few passages hold what is asked for: they are left out. To name the
# meeting in every question would not help: "Bed002" is what the data set calls it, and stands in none of its text.
_OF_A_WHOLE_MEETING = re.compile(
    "summarize (whole )?meeting|what was meeting about|what was general discussion( of meeting)?"
    "|what were main discussion points of meeting"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its gold answers; memoryd's refusal where the document does not say it."""

    question: str
    golds: tuple[str, ...]
    document: str
    """Title of the document that it is about."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What one memory is made of and measured with."""

    texts: Mapping[str, str]
    """By title."""
    asked: Sequence[Asked]
    supplied: Sequence[Asked]
    """Other questions, as examples."""
    outside: Sequence[Asked]
    """Of another memory: this one does not know."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def load(folder: Path, name: str, ask: int, examples: int) -> Questions:
    """Of `folder`/eval/`name`.jsonl.gz. So many questions are asked, and of the others at most so many supplied; the order is
    drawn once and for all."""
    texts, drawn = _drawn(folder, name)
    asked, others = drawn[:ask], drawn[ask:]
    questions = {normalized(one.question) for one in asked}
    answers = {answer for one in asked for answer in _long_answers(one)}
    untold = [one for one in others if normalized(one.question) not in questions and not answers & _long_answers(one)]
    _, outside = _drawn(folder, _OTHER[name])
    return Questions(texts, asked, untold[:examples], outside[: min(OUTSIDE, ask)])


def _drawn(folder: Path, name: str) -> tuple[dict[str, str], list[Asked]]:
    """(texts by title, their questions in random order)."""
    rows = list(read_rows(folder / "eval" / f"{name}.jsonl.gz"))[: DOCUMENTS[name]]
    questions: dict[tuple[str, str], Asked] = {}
    for row in rows:
        title = _title(row["id"])
        for qa in row["qa"]:
            question = qa["question"].strip()
            golds = tuple(dict.fromkeys(_gold(answer) for answer in qa["answers"] if answer.strip()))
            if golds and not _OF_A_WHOLE_MEETING.fullmatch(normalized(question)):
                questions.setdefault((normalized(question), title), Asked(question, golds, title))
    about = [question for question, _ in questions]
    drawn = [one for (question, _), one in questions.items() if about.count(question) == 1]  # else it names no document
    random.Random(0).shuffle(drawn)
    return {_title(row["id"]): row["text"] for row in rows}, drawn


def _title(id_: str) -> str:
    return str(id_).replace("_", " ")


def _gold(answer: str) -> str:
    return REFUSAL if normalized(answer) == _UNANSWERABLE else answer.strip()


def _long_answers(one: Asked) -> set[tuple[str, str]]:
    """With their document. Short ones are no leak: many questions have the answer "two"."""
    return {(one.document, normalized(gold)) for gold in one.golds if kind_of(gold) == "long"}
