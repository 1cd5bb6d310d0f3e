"""The autocompressor: 1536 tokens to 50 summary vectors, accumulated (Chevalier et al. 2023, arXiv 2305.14788); LLoCO's own.

The published checkpoints are whole models of the Llama family with the summary tokens in `embed_summary.weight` and
`summary_length` and `accumulate_summary` in config.json: such a directory is base model and compressor in one. Others are
refused: the summary vectors of the OPT ones have no positions, which memoryd's prompts give them, and those that do not
accumulate keep only the last segment's summary of a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from memoryd.compress.card import CONFIG, Gate
from memoryd.compress.slots import LearnedTokens, SlotCompressor, SlotSettings
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModel, fingerprint
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch

KIND = "autocompressor"
SETTINGS = SlotSettings(KIND, segment=1536, accumulate=True)
SLOTS = 50
_SUMMARY = "embed_summary.weight"


def first_tokens(base: BaseModel) -> LearnedTokens:
    """All alike, as in the paper's code: each is the embedding of the end of text."""
    model: Any = base.model
    table_VD: Tensor = model.get_input_embeddings().weight
    return LearnedTokens(table_VD[base.eos_ids[0]].float().repeat(SLOTS, 1))


def is_published(directory: Path) -> bool:
    """Whether config.json is that of a published checkpoint."""
    try:
        return "summary_length" in json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError):
        return False


def load(directory: Path, base: BaseModel, adapters: Adapters) -> SlotCompressor:
    """Raises FingerprintMismatch where it was made for another base model, DataLoss where it cannot be read,
    FailedPrecondition where it is not of the kind that is served."""
    config = json.loads((directory / CONFIG).read_text())
    if (family := config.get("model_type")) != "llama":
        raise FailedPrecondition(f"compressor in {directory} is an autocompressor of the {family} family: use one of Llama's")
    if not config.get("accumulate_summary"):
        raise FailedPrecondition(f"compressor in {directory} does not accumulate summaries: use an autocompressor that does")
    own = fingerprint(directory)
    if own != base.fingerprint:
        raise FingerprintMismatch(
            f"compressor in {directory} is part of base model {own}, in use is {base.fingerprint}: give the directory as "
            "the model too",
            details={"made_for": own, "in_use": base.fingerprint},
        )
    slots_SD = _summary(directory)
    if slots_SD.shape != (int(config["summary_length"]), base.d_model):
        raise DataLoss(f"compressor in {directory} has {_SUMMARY} of shape {tuple(slots_SD.shape)}")
    return SlotCompressor(base, adapters, LearnedTokens(slots_SD), SETTINGS, Gate())


def _summary(directory: Path) -> Tensor:
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                if _SUMMARY in tensors.keys():  # noqa: SIM118 - not a mapping
                    found: Tensor = tensors.get_tensor(_SUMMARY)
                    return found
        except (OSError, SafetensorError) as error:
            raise DataLoss(f"compressor in {directory} has an unreadable {file.name}: {error}") from error
    raise DataLoss(f"compressor in {directory} has no {_SUMMARY}")
