"""The base model's tokenizer for training data: the same text again and again.

A pack's blocks stand before each of its questions, and `assemble` encodes them for each. What was encoded last is remembered,
and so is the chat template, rendered: the same samples in a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from memoryd.engine.tokenizer import TemplatePart, TextTokenizer

_LAST = 512  # texts; a pack has a few dozen


class RememberingTokenizer(TextTokenizer):
    """See the module."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._encoded = lru_cache(_LAST)(super().encode)
        self._parts = lru_cache(_LAST)(super().chat_parts)

    def encode(self, text: str) -> list[int]:
        return list(self._encoded(text))

    def count(self, text: str) -> int:
        return len(self._encoded(text))

    def chat_parts(self, roles: Sequence[str]) -> list[TemplatePart] | None:
        return self._parts(tuple(roles))
