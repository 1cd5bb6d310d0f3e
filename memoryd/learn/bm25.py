"""BM25 over a handful of texts in memory: hard distractors for training, and half of retrieval in evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
_K1, _B = 1.2, 0.75  # Robertson and Zaragoza 2009, the usual constants


class Bm25:
    """Scores of a question against each of ``texts``."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        self._terms = {term: i for i, term in enumerate(sorted({t for c in counts for t in c}))}
        frequency = np.zeros((len(self._terms), len(texts)), dtype=np.float32)
        for column, count in enumerate(counts):
            for term, n in count.items():
                frequency[self._terms[term], column] = n
        length = frequency.sum(axis=0)
        containing = (frequency > 0).sum(axis=1)
        idf = np.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        norm = _K1 * (1 - _B + _B * length / max(1.0, float(length.mean())))
        self._weight: NDArray[np.float32] = idf[:, None] * frequency * (_K1 + 1) / (frequency + norm)

    def scores(self, question: str) -> NDArray[np.float32]:
        """[n texts] float32; 0 where no word is shared."""
        rows = [self._terms[w] for w in set(words(question)) if w in self._terms]
        return self._weight[rows].sum(axis=0)

    def ranked(self, question: str) -> list[int]:
        """Indices of the texts, best first."""
        return [int(i) for i in np.argsort(-self.scores(question), kind="stable")]


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())
