"""What a compressor is: it makes compressed embeddings of chunks, for exactly one base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from memoryd.errors import InvalidArgument


class Compressor(Protocol):
    """Turns each chunk into a [k, d_model] tensor that is prepended as soft tokens. The loop owns it."""

    @property
    def name(self) -> str:
        """Its kind: pooled, autocompressor, icae."""

    @property
    def ratio(self) -> int:
        """Source tokens for each compressed embedding."""

    @property
    def chunk_tokens(self) -> int:
        """How long a chunk is to be at most: what it was made for. Longer ones are compressed too."""

    @property
    def fingerprint(self) -> str:
        """Content hash of its kind, ratio and weights, and of its base model."""

    @property
    def gate_passed(self) -> bool:
        """Whether it passed its quality gate."""

    def compress(self, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """One [k, d_model] tensor for each chunk of base-model token ids; chunks do not see each other.

        All chunks go through in one pass, padded to the longest: the caller bounds a micro-batch. Raises
        InvalidArgument where a chunk is empty, longer than the base model takes, or has an id that is no token.
        """


class Trainable(Compressor, Protocol):
    """A compressor that can be trained, and measured at each ratio that it has: all kinds are."""

    def slots(self, tokens: int, ratio: int) -> int:
        """How many compressed embeddings a chunk of so many tokens becomes. InvalidArgument for a ratio that it has not."""

    def encode(self, chunks: Sequence[Sequence[int]], ratio: int) -> list[Tensor]:
        """As `compress`, at any ratio that it has, with gradients."""


@runtime_checkable
class Appending(Protocol):
    """A compressor that reads more than the tokens of a chunk."""

    def positions(self, tokens: int) -> int:
        """How many positions its widest pass over a chunk of so many tokens takes."""


def positions(compressor: Compressor, tokens: int) -> int:
    """What a chunk of so many tokens takes in the widest pass over it: what bounds a micro-batch."""
    return compressor.positions(tokens) if isinstance(compressor, Appending) else tokens


def check_chunks(chunks: Sequence[Sequence[int]], max_positions: int, vocabulary: int) -> None:
    """Raises InvalidArgument, naming the chunk, where one is empty, too long for the base model, or has an id of no token."""
    for index, chunk in enumerate(chunks):
        if not 0 < len(chunk) <= max_positions:
            raise InvalidArgument(f"chunk {index} has {len(chunk)} tokens, not 1 to {max_positions}")
        if min(chunk) < 0 or max(chunk) >= vocabulary:
            raise InvalidArgument(f"chunk {index} has an id that is no token of the base model")
