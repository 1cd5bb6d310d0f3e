"""What is asked in evaluation: held-out SQuAD articles, with and without the passage that answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memoryd.compress.chunker import Counter
from memoryd.engine.retrieval_encoder import RetrievalEncoder
from memoryd.learn.bm25 import Bm25
from memoryd.learn.reader_data import Article, holds, load_article, read_rows
from memoryd.recall.fuse import fuse
from memoryd.recall.prompt import TextBlock


@dataclass(frozen=True, slots=True)
class Item:
    """A question with the blocks that retrieval brought, best first. ``golds`` is empty where refusing is right.

    ``text`` is the whole article, for the baseline that reads its beginning.
    """

    question: str
    golds: tuple[str, ...]
    blocks: tuple[TextBlock, ...]
    retrieved: bool
    text: str


class Retrieval:
    """Hybrid search inside one article, as the daemon does it: dense and BM25 rankings, fused by rank."""

    def __init__(self, article: Article, encoder: RetrievalEncoder) -> None:
        self._article = article
        self._encoder = encoder
        self._bm25 = Bm25(article.passages)
        self._passages_ND: npt.NDArray[np.float32] = encoder.encode(article.passages)

    def ranked(self, questions: Sequence[str], depth: int = 50) -> list[list[int]]:
        """For each question the article's passages, best first."""
        scores_QN = self._encoder.encode(list(questions)) @ self._passages_ND.T
        found: list[list[int]] = []
        for question, scores_N in zip(questions, scores_QN, strict=True):
            dense = [str(i) for i in np.argsort(-scores_N)[:depth]]
            words = [str(i) for i in self._bm25.ranked(question)[:depth]]
            found.append([int(passage) for passage, _ in fuse([dense, words])])
        return found


@dataclass(frozen=True, slots=True)
class SquadItems:
    """The three sets of questions; ``removed`` are answerable ones whose answer was taken out of the memory."""

    answerable: list[Item]
    removed: list[Item]
    foreign: list[Item]


def squad_items(
    folder: Path, base: Counter, retrieval: Counter, encoder: RetrievalEncoder, top_k: int, seed: int = 0
) -> SquadItems:
    """Shuffled by ``seed``; take the first so many of each."""
    r = random.Random(seed)
    rows = read_rows(folder / "eval" / "squad.jsonl.gz")
    articles = [load_article(row, base, retrieval) for row in rows]
    items = SquadItems([], [], [])
    for row, article in zip(rows, articles, strict=True):
        search = Retrieval(article, encoder)
        others = [q for other in articles if other is not article for q in r.sample(other.questions, 40)]
        mine = search.ranked([q for q, _ in article.questions])
        for (question, golds), gold, ranked in zip(article.questions, article.gold, mine, strict=True):
            blocks = _blocks(article, ranked[:top_k])
            items.answerable.append(Item(question, tuple(golds), blocks, bool(gold & set(ranked[:top_k])), row["text"]))
            without = [i for i in ranked if not holds(article.passages[i], golds)][:top_k]
            items.removed.append(Item(question, (), _blocks(article, without), False, row["text"]))
        for (question, golds), ranked in zip(others, search.ranked([q for q, _ in others]), strict=True):
            if not any(holds(article.passages[i], golds) for i in ranked[:top_k]):
                items.foreign.append(Item(question, (), _blocks(article, ranked[:top_k]), False, row["text"]))
    for each in (items.answerable, items.removed, items.foreign):
        r.shuffle(each)
    return items


def _blocks(article: Article, passages: Sequence[int]) -> tuple[TextBlock, ...]:
    return tuple(TextBlock(article.passages[i], article.title) for i in passages)
