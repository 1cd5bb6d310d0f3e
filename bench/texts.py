"""Texts to write: the sentences of the example book in random order, so that each text is new and all are of real words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

BOOK = Path(__file__).parents[1] / "examples" / "around-the-world-in-eighty-days.txt"


def texts(size: int, seed: int) -> Iterator[str]:
    """Endlessly, each of `size` bytes or a little less; the same for the same seed."""
    sentences = [s for s in re.split(r"(?<=[.!?\"])\s+", BOOK.read_text()) if 20 < len(s) < 400]
    chosen = random.Random(seed)
    while True:
        parts: list[str] = []
        left = size
        while left > 0:
            sentence = chosen.choice(sentences)
            left -= len(sentence.encode()) + 1
            parts.append(sentence)
        yield " ".join(parts[:-1])


def questions(count: int, seed: int) -> list[str]:
    """Queries of five to twelve words that stand beside each other in the book."""
    words = BOOK.read_text().split()
    chosen = random.Random(seed)
    starts = (chosen.randrange(len(words) - 12) for _ in range(count))
    return [" ".join(words[start : start + chosen.randint(5, 12)]) for start in starts]
