"""What is trained together: the compressor's encoder and projector, and the reader, on one frozen base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memoryd.engine.adapters import ENCODER, READER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.compressor_recipe import Recipe

if TYPE_CHECKING:
    import torch

    from memoryd.compress.pooled import PooledCompressor, Projector

TEACHER = "teacher"


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
    projector: Projector
    compressor: PooledCompressor
    tokenizer: TextTokenizer
    groups: dict[str, list[torch.nn.Parameter]]


def build(base: BaseModel, path: Path, recipe: Recipe, reader: Path | None) -> Parts:
    """First weights; the reader starts from `reader` where there is one, and its teacher is that one, unchanging."""
    import torch
    from safetensors.torch import load_file

    from memoryd.compress.card import Gate
    from memoryd.compress.pooled import PooledCompressor, Projector

    torch.manual_seed(recipe.seed)
    adapters = Adapters(base)
    projector = Projector.untrained(base.d_model)
    groups = {
        "encoder": adapters.create(ENCODER, recipe.encoder_rank, 2 * recipe.encoder_rank),
        "reader": adapters.create(READER, recipe.reader_rank, 2 * recipe.reader_rank),
    }
    if reader is not None:
        adapters.load(TEACHER, reader)
        adapters.load_state(READER, load_file(reader / "adapter_model.safetensors"))
    compressor = PooledCompressor(base, adapters, projector, 4, Gate())
    groups["projector"] = list(projector.parameters())
    return Parts(base, adapters, projector, compressor, TextTokenizer(path), groups)
