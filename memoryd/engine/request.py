"""What can be asked of the engine, as plain data: the daemon builds these too, and it has no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.compress.codec import CompressedEmbeddings


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A piece of a prompt as ids of the base model's tokenizer."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Soft:
    """A piece of a prompt as compressed embeddings."""

    embeddings: CompressedEmbeddings


Segment = TokenIds | Soft


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and how to answer it."""

    segments: Sequence[Segment]
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    stop: Sequence[str] = ()
    """The text ends before the first of these."""
    seed: int = 0
    """0 is any."""
    use_reader: bool = False
    """Whether the shipped reader is applied."""
    compressor_fingerprint: str = ""
    """What made the soft segments."""


@dataclass(frozen=True, slots=True)
class GenerateEvent:
    """One event of a generation."""

    text: str = ""
    """Certain: never part of a stop string, never half a character."""
    output_tokens: int = 0
    """Tokens made so far, the one that ended the text included."""
    finish_reason: str = ""
    """On the last event: `stop` or `length`."""
    queue_ms: float = 0.0
    """On the first event: milliseconds from arrival to the first prefill piece."""
    prefill_ms: float = 0.0
    """On the first event: milliseconds from the first prefill piece to the first token."""
