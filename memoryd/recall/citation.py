"""Citations: the reader opens an answer with the number of the block that it read it from, ``[2] Charleston``.

Naming the block first makes a small model choose it before it speaks (docs/quality.md), and tells the caller which source an
answer rests on. The text that callers get has no number.
"""

from __future__ import annotations

import re

_WHOLE = re.compile(r"\s*\[(\d{1,3})\] ?")
_BEGUN = re.compile(r"\s*(\[(\d{1,3}\]?)?)?")
_HALF = re.compile(r"\s*\[\d{0,3}")


def cite(number: int, answer: str) -> str:
    """The answer as the reader is taught to give it; ``number`` is that of a block, from 1."""
    return f"[{number}] {answer}"


def split_citation(text: str, blocks: int) -> tuple[int | None, str]:
    """(the number that the text opens with, the rest); (None, text) where it opens with none of the ``blocks`` shown."""
    match = _WHOLE.match(text)
    return (int(match[1]), text[match.end() :]) if match and 1 <= int(match[1]) <= blocks else (None, text)


class CitationSplitter:
    """Takes the citation off a stream of text; holds back no more than what may still be one."""

    def __init__(self, blocks: int) -> None:
        self.number: int | None = None
        self._blocks = blocks
        self._held = ""
        self._open = True

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if not self._open:
            return text
        self._held += text
        if _BEGUN.fullmatch(self._held):
            return ""
        return self._settle()

    def end(self, cut_off: bool = False) -> str:
        """What was held back when the stream ended. Where it was cut off, half a citation is none of the answer's text."""
        rest = self._settle() if self._open else ""
        return "" if cut_off and _HALF.fullmatch(rest) else rest

    def _settle(self) -> str:
        self._open = False
        self.number, rest = split_citation(self._held, self._blocks)
        return rest
