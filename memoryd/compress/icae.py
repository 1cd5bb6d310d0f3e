"""icae: 128 memory slots for each 512 tokens; LoRA encoder, frozen decoder (Ge et al. 2024, arXiv 2307.06945).

A published checkpoint is one safetensors file of the training module's state: the encoder's LoRA under
`icae.base_model.model.…lora_A.default.weight`, and `memory_token_embed.weight`, whose last three rows are tokens that tell
the decoder what to do and are no slots. It does not say for which base model it was made: the shapes must fit. The decoder
is the base model with the adapter off; memoryd's prompts have no token of the paper's "now answer" kind.

No token opens a segment: the published models were tuned on inputs without one, though their script for inference puts one
before a text's first segment, and only there. A chunk may begin anywhere in its document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memoryd.compress.card import Gate
from memoryd.compress.slots import LearnedTokens, SlotCompressor, SlotSettings
from memoryd.engine.adapters import ENCODER, Adapters, folded
from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss

KIND = "icae"
SETTINGS = SlotSettings(KIND, segment=512, accumulate=False)
SLOTS = 128
_RATE = 4  # tokens of a full segment for each slot, in all published checkpoints
_SLOTS = "memory_token_embed.weight"
_SPECIAL = 3
_ALPHA = 32  # of all published checkpoints; the file does not hold it
_PREFIX = "icae."


def first_tokens(base: BaseModel) -> LearnedTokens:
    """Drawn at random, from torch's generator, with the RMS of the base model's token embeddings."""
    model: Any = base.model
    table_VD: Tensor = model.get_input_embeddings().weight
    return LearnedTokens(torch.randn(SLOTS, base.d_model) * table_VD.float().pow(2).mean().sqrt().cpu())


def is_published(directory: Path) -> bool:
    """Whether the directory holds nothing but weights with memory slots in them."""
    return not (directory / "config.json").exists() and any(directory.glob("*.safetensors"))


def load(directory: Path, base: BaseModel, adapters: Adapters) -> SlotCompressor:
    """Raises DataLoss where it cannot be read, or does not fit the base model."""
    state: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            state |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataLoss(f"compressor in {directory} has an unreadable {file.name}: {error}") from error
    table_SD = state.get(_SLOTS)
    if table_SD is None or table_SD.ndim != 2 or table_SD.shape[0] <= _SPECIAL:
        raise DataLoss(f"compressor in {directory} has no {_SLOTS}")
    if table_SD.shape[1] != base.d_model:
        raise DataLoss(
            f"compressor in {directory} was made for d_model {table_SD.shape[1]}, "
            f"base model {base.fingerprint} has {base.d_model}"
        )
    slots_SD = table_SD[:-_SPECIAL]
    lora = {key.removeprefix(_PREFIX).replace(".default.", "."): tensor for key, tensor in state.items() if ".lora_" in key}
    if not lora:
        raise DataLoss(f"compressor in {directory} has no LoRA")
    rank = next(tensor.shape[0] for key, tensor in lora.items() if ".lora_A." in key)
    adapters.install(ENCODER, lora, _ALPHA / rank, f"compressor in {directory}")
    settings = SlotSettings(KIND, _RATE * slots_SD.shape[0], accumulate=False)
    return SlotCompressor(base, adapters, LearnedTokens(slots_SD), settings, Gate(), folded(lora, _ALPHA / rank))
