"""What is trained together: the compressor's encoder and head, and the reader, on one frozen base model.

The head is what a kind has of its own: the projector of the pooled compressor, the learned tokens of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from memoryd.engine.adapters import ENCODER, READER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.learn.compressor_recipe import Recipe

if TYPE_CHECKING:
    import torch

    from memoryd.compress.base import Trainable
    from memoryd.compress.pooled import PooledCompressor

KINDS = ("pooled", "autocompressor", "icae")
TEACHER = "teacher"


class Save(Protocol):
    """Writes the compressor's directory: `directory`, the base model's name for the encoder's configuration."""

    def __call__(self, directory: Path, base_name: str) -> None: ...


@dataclass(slots=True)
class Progress:
    """Where a run stands. ``packs`` is the position in the questions; ``source_tokens`` are those that were compressed."""

    step: int = 0
    packs: int = 0
    source_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What is trained, and with what. ``groups`` are the parameters, by the stage's rate that is theirs."""

    base: BaseModel
    adapters: Adapters
    head: torch.nn.Module
    compressor: Trainable
    tokenizer: TextTokenizer
    groups: Mapping[str, list[torch.nn.Parameter]]
    ratios: tuple[int, ...]
    """All that this kind has; a stage asks for some of them."""
    save: Save
    scored: PooledCompressor | None
    """The compressor, where it is of the kind that scores tokens."""


def build(base: BaseModel, path: Path, recipe: Recipe, reader: Path | None) -> Parts:
    """First weights; the reader starts from `reader` where there is one, and its teacher is that one, unchanging.

    FailedPrecondition where the base model's window is too short for this kind's chunks.
    """
    import torch
    from safetensors.torch import load_file

    torch.manual_seed(recipe.seed)
    adapters = Adapters(base)
    groups = {
        "encoder": adapters.create(ENCODER, recipe.encoder_rank, 2 * recipe.encoder_rank),
        "reader": adapters.create(READER, recipe.reader_rank, 2 * recipe.reader_rank),
    }
    if reader is not None:
        adapters.load(TEACHER, reader)
        adapters.load_state(READER, load_file(reader / "adapter_model.safetensors"))
    head, compressor, ratios, save = (_pooled if recipe.kind == "pooled" else _slots)(base, adapters, recipe.kind)
    window = int(base.model.config.max_position_embeddings)
    if compressor.chunk_tokens + compressor.slots(compressor.chunk_tokens, ratios[0]) > window:
        raise FailedPrecondition(
            f"the {recipe.kind} reads {compressor.chunk_tokens} tokens at a time, the base model has {window} positions"
        )
    groups["head"] = list(head.parameters())
    return Parts(base, adapters, head, compressor, TextTokenizer(path), groups, ratios, save, _scored(compressor))


_Made = tuple["torch.nn.Module", "Trainable", tuple[int, ...], Save]


def _scored(compressor: Trainable) -> PooledCompressor | None:
    from memoryd.compress.pooled import PooledCompressor

    return compressor if isinstance(compressor, PooledCompressor) else None


def _pooled(base: BaseModel, adapters: Adapters, kind: str) -> _Made:
    from memoryd.compress import pooled
    from memoryd.compress.card import RATIOS, Gate

    head = pooled.Projector.untrained(base.d_model, pooled.vocabulary_of(base))

    def save(directory: Path, base_name: str) -> None:
        pooled.save(directory, base, base_name, adapters, head, {})

    return head, pooled.PooledCompressor(base, adapters, head, RATIOS[0], Gate()), RATIOS, save


def _slots(base: BaseModel, adapters: Adapters, kind: str) -> _Made:
    from memoryd.compress import autocompressor, icae, slots
    from memoryd.compress.card import Gate

    of_kind = {"autocompressor": autocompressor, "icae": icae}[kind]
    head = of_kind.first_tokens(base)
    compressor = slots.SlotCompressor(base, adapters, head, of_kind.SETTINGS, Gate())

    def save(directory: Path, base_name: str) -> None:
        slots.save(directory, base, base_name, adapters, head, of_kind.SETTINGS, {})

    return head, compressor, (compressor.ratio,), save
