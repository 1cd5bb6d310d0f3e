"""Keys and values of prompts' beginnings, for those that begin alike: many questions on one context, as self-study asks them.

A prompt that begins as an earlier one of its scope did, and computes with the same blend of adapters, takes over the keys and
values of what both have in common. Never across scopes: how long a prompt takes would tell one tenant what another's says. They
are held only while there are generations: what is idle holds nothing of anybody's text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.engine.kv import Kv
from memoryd.engine.lora import Blend
from memoryd.engine.request import Generation, TokenIds

Mark = int | tuple[bytes, int]
"""What stands at a position: a token's id, or the hash of compressed embeddings and a number within them."""

_LEAST = 64
"""Positions in common that are worth it: every prompt of memoryd begins with the same instruction."""
_MOST = 2048
"""Positions that are held in all; the last prompt's always fit."""


def marks_of(request: Generation) -> list[Mark]:
    """What stands at each position of its prompt."""
    marks: list[Mark] = []
    for segment in request.segments:
        if isinstance(segment, TokenIds):
            marks += segment.ids
        else:
            digest = hashlib.sha256(segment.embeddings.data).digest()
            marks += [(digest, number) for number in range(segment.embeddings.k)]
    return marks


@dataclass(frozen=True, slots=True)
class _Known:
    scope: str
    blend: Blend
    marks: Sequence[Mark]
    kv: Kv


class Prefixes:
    """Those of the last prompts."""

    def __init__(self) -> None:
        self._known: list[_Known] = []  # the latest last

    def __len__(self) -> int:
        """Positions that are held."""
        return sum(len(known.marks) for known in self._known)

    def longest(self, scope: str, blend: Blend, marks: Sequence[Mark]) -> Kv:
        """Keys and values of as much of a prompt's beginning as is known, one position less than all of it at most, since what
        follows the last one is to be computed. Empty where that is not worth it."""
        found, most = Kv(), _LEAST - 1
        for known in self._known:
            if (known.scope, known.blend) != (scope, blend):
                continue
            length = min(_common(known.marks, marks), len(marks) - 1)
            if length > most:
                found, most = known.kv.beginning(length), length
        return found

    def keep(self, scope: str, blend: Blend, marks: Sequence[Mark], kv: Kv) -> None:
        """Hold those of a prompt, whose one row `kv` is, and of the last ones before it that there is room for. Nothing of one
        without a scope."""
        if not scope or len(marks) <= _LEAST:
            return
        self._known.append(_Known(scope, blend, marks, kv.beginning(len(marks))))
        while len(self) > _MOST and len(self._known) > 1:
            self._known.pop(0)

    def clear(self) -> None:
        """Hold nothing any more."""
        self._known.clear()


def _common(one: Sequence[Mark], other: Sequence[Mark]) -> int:
    """How many are alike from the beginning on."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))
