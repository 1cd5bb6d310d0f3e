"""What is asked in the compression eval: questions over documents that were not trained on, with what retrieval brings."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memoryd.compress.chunker import Counter, Limits, chunk_text
from memoryd.learn.bm25 import Bm25
from memoryd.learn.reader_data import read_rows

SETS = ("squad", "qasper", "quality", "natural_questions", "hotpotqa")
_OPTION = re.compile(r"^\s*\(([A-D])\)\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Case:
    """A question. `chunks` are the best of its document by BM25, best first, `passage` the best passage, `wrong` as many
    chunks of another document. `options` are the texts of a multiple choice, of which `golds[0]` is right."""

    set: str
    question: str
    golds: tuple[str, ...]
    options: tuple[str, ...]
    title: str
    text: str
    chunks: tuple[str, ...]
    passage: str
    wrong: tuple[str, ...]
    wrong_title: str


def cases(
    folder: Path,
    name: str,
    base: Counter,
    retrieval: Counter,
    limit: int,
    depth: int,
    chunk_tokens: int = Limits().chunk_tokens,
    seed: int = 0,
) -> list[Case]:
    """At most `limit` questions of a set, drawn by `seed`; `depth` chunks of up to `chunk_tokens` each."""
    limits = Limits(chunk_tokens=chunk_tokens)
    rows = [_Document.of(row, base, retrieval, limits) for row in read_rows(folder / "eval" / f"{name}.jsonl.gz")]
    r = random.Random(seed)
    asked = [(number, *question) for number, row in enumerate(rows) for question in row.questions]
    r.shuffle(asked)
    made: list[Case] = []
    for number, question, golds, options in asked[:limit]:
        document = rows[number]
        other = rows[r.choice([n for n in range(len(rows)) if n != number])]
        made.append(
            Case(
                name,
                question,
                golds,
                options,
                document.title,
                document.text,
                document.best_chunks(question, depth),
                document.passages[document.by_passage.ranked(question)[0]],
                other.best_chunks(question, depth),
                other.title,
            )
        )
    return made


@dataclass(frozen=True, slots=True)
class _Document:
    title: str
    text: str
    questions: list[tuple[str, tuple[str, ...], tuple[str, ...]]]
    chunks: list[str]
    passages: list[str]
    by_chunk: Bm25
    by_passage: Bm25

    @classmethod
    def of(cls, row: dict[str, Any], base: Counter, retrieval: Counter, limits: Limits) -> _Document:
        text, title = _text_of(row)
        cut = list(chunk_text("", [text], base, retrieval, limits))
        chunks = [c.text for c in cut]
        passages = [c.text_of(p) for c in cut for p in c.passages]
        return cls(title, text, list(_questions(row)), chunks, passages, Bm25(chunks), Bm25(passages))

    def best_chunks(self, question: str, depth: int) -> tuple[str, ...]:
        return tuple(self.chunks[i] for i in self.by_chunk.ranked(question)[:depth])


def _text_of(row: dict[str, Any]) -> tuple[str, str]:
    """(text, title). A hotpotqa item's text is its paragraphs, those that answer among those that distract: in a random order,
    or the text's first tokens would be the answer."""
    if "text" in row:
        return row["text"], str(row["id"]).replace("_", " ")
    raw = row["raw"]
    paragraphs = [raw["para_a"], raw["para_b"], *(distractor[1] for distractor in raw["distractors"])]
    random.Random(str(row["id"])).shuffle(paragraphs)
    return "\n\n".join("".join(sentences) for sentences in paragraphs), ""


def _questions(row: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(question, golds, options); the options of a multiple choice are taken out of its question."""
    for qa in row.get("qa", [row]):
        question, answers = qa["question"].strip(), tuple(dict.fromkeys(a.strip() for a in qa["answers"]))
        options = tuple(text.strip() for _, text in _OPTION.findall(question))
        if options:
            question = question[: _OPTION.search(question).start()].strip()  # type: ignore[union-attr]
            answers = tuple(re.sub(r"^\([A-D]\)\s*", "", answer) for answer in answers)
        if question and answers and answers[0]:
            yield question, answers, options
