"""What is trained together: the compressor's encoder and head, and the reader, on one frozen base model.

The head is what a kind has of its own: the projector of the pooled compressor, the learned tokens of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from memoryd.compress.card import read_card
from memoryd.engine.adapters import ADAPTER_WEIGHTS, ENCODER, READER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import DataLoss, FailedPrecondition
from memoryd.learn.compressor_recipe import Recipe
from memoryd.learn.remembering_tokenizer import RememberingTokenizer

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


def build(base: BaseModel, path: Path, recipe: Recipe, reader: Path | None, start: Path | None = None) -> Parts:
    """First weights, or those of the compressor in `start` and its reader. Else the reader starts from `reader` where there is
    one; its teacher is that one, unchanging.

    FailedPrecondition where the base model's window is too short for this kind's chunks, or where `start` is no beginning for
    this recipe; DataLoss where it cannot be read, FingerprintMismatch where it is of another base model.
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
        adapters.load_state(READER, load_file(reader / ADAPTER_WEIGHTS))
    head, compressor, ratios, save = (_pooled if recipe.kind == "pooled" else _slots)(base, adapters, recipe.kind)
    window = int(base.model.config.max_position_embeddings)
    if compressor.chunk_tokens + compressor.slots(compressor.chunk_tokens, ratios[0]) > window:
        raise FailedPrecondition(
            f"the {recipe.kind} reads {compressor.chunk_tokens} tokens at a time, the base model has {window} positions"
        )
    groups["head"] = list(head.parameters())
    if start is not None:
        _begin_from(start, base, recipe.kind, head, adapters)
    return Parts(base, adapters, head, compressor, RememberingTokenizer(path), groups, ratios, save, _scored(compressor))


def _begin_from(start: Path, base: BaseModel, kind: str, head: torch.nn.Module, adapters: Adapters) -> None:
    """What it has in place of first weights; of what it has not, an encoder or a reader, those stay."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from memoryd.compress import pooled, slots

    card = read_card(start)
    card.check_base(start, base.fingerprint)
    if card.kind != kind:
        raise FailedPrecondition(f"the compressor in {start} is of kind {card.kind!r}, not {kind!r}")
    try:
        weights = load_file(start / (pooled.WEIGHTS if kind == pooled.KIND else slots.WEIGHTS))
        adapter = {name: load_file(start / name / ADAPTER_WEIGHTS) for name in (ENCODER, READER) if (start / name).is_dir()}
    except (OSError, SafetensorError) as error:
        raise DataLoss(f"the compressor in {start} cannot be read: {error}") from error
    try:
        head.load_state_dict(weights)
        for name, state in adapter.items():
            adapters.load_state(name, state)
    except (RuntimeError, KeyError, ValueError) as error:
        raise FailedPrecondition(f"the compressor in {start} has other shapes than the recipe: {error}") from error


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
