"""What can be asked of the engine, as plain data: the daemon builds these too, and it has no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.learn.soft_packing import SoftPack

DEFAULT_REPEAT_PENALTY = 0.8
"""Of answers: what DRY's author has."""


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
    repeat_penalty: float = 0.0
    """How strongly it is kept from repeating itself: DRY's multiplier; 0 is not at all."""
    use_reader: bool = False
    """Whether the shipped reader is applied."""
    adapters: Sequence[tuple[str, float]] = ()
    """Adapters of memories and their weights, beside the reader."""
    compressor_fingerprint: str = ""
    """What made the soft segments."""
    background: bool = False
    """Nobody waits for it: others go first, within bounds."""
    scope: str = ""
    """Whose it is, opaquely: only prompts of one scope share what they computed, since how long a prompt takes would else tell
    what others asked. Empty is nobody's: it shares with none, not even with another empty one."""


def scope_of(tenant: str) -> str:
    """The scope of a tenant: the worker tells tenants apart and knows none."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


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


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How an adapter is trained; rank, alpha and layers are LLoCO's (Tan et al. 2024)."""

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    learning_rate: float = 5e-4
    epochs: float = 3.0
    batch: int = 8
    """Packs in a step of the optimizer."""
    seed: int = 1
    checkpoint_seconds: float = 60.0
    dropout: float = 0.0
    """Share of the adapter's input that is left out at random, from 0 to below 1."""
    rslora: bool = False
    """Whether alpha is divided by the root of the rank, and not by the rank."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What an adapter is trained on. A number in a pack's context is a chunk of ``chunks``; the packs' own are not used."""

    packs: Sequence[SoftPack]
    chunks: Sequence[CompressedEmbeddings]
    directory: Path
    """For checkpoints, metrics and the result; a run that has begun there is continued."""
    base_model: str
    """What the adapter's configuration names."""
    settings: LearnSettings = LearnSettings()
    use_reader: bool = False
    """Whether the shipped reader is applied beneath."""
    compressor_fingerprint: str = ""
    """What made the chunks."""

    @property
    def epoch(self) -> int:
        """Packs of an epoch, filled up to whole steps."""
        return math.ceil(len(self.packs) / self.settings.batch) * self.settings.batch

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return max(1, round(self.settings.epochs * self.epoch / self.settings.batch))


@dataclass(frozen=True, slots=True)
class LearnEvent:
    """One step of the optimizer is done."""

    step: int
    steps: int
    loss: float
    tokens: int
    """Positions trained on so far."""
    seconds: float
    """Of computing, so far."""
    finish_reason: str = ""
    """On the last event: `trained`."""

    @property
    def numbers(self) -> tuple[int, int, float, int, float]:
        return self.step, self.steps, self.loss, self.tokens, self.seconds
