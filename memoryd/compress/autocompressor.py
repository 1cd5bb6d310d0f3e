"""The autocompressor: 1536 tokens to 50 summary vectors, accumulated (Chevalier et al. 2023, arXiv 2305.14788); LLoCO's own.

The published checkpoints are whole models of the Llama family with the summary tokens in `embed_summary.weight` and
`summary_length` and `accumulate_summary` in config.json: such a directory is base model and compressor in one. memoryd's
own, trained on another base model, have a card (`card.py`), the summary tokens and the encoder's adapter.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from memoryd.compress.card import CONFIG, Gate, read_card
from memoryd.compress.slots import SlotCompressor, SlotSettings
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import BaseModel, fingerprint
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch

KIND = "autocompressor"
SEGMENT = 1536
_SUMMARY = "embed_summary.weight"


def is_published(directory: Path) -> bool:
    """Whether config.json is that of a published checkpoint."""
    try:
        return "summary_length" in json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError):
        return False


def load(directory: Path, base: BaseModel, adapters: Adapters) -> SlotCompressor:
    """Raises FingerprintMismatch where it was made for another base model, FailedPrecondition where the directory is of
    another kind, DataLoss where it cannot be read."""
    if is_published(directory):
        config = json.loads((directory / CONFIG).read_text())
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
        settings = SlotSettings(KIND, SEGMENT, bool(config.get("accumulate_summary", False)))
        return SlotCompressor(base, adapters, slots_SD, settings, Gate())
    card = read_card(directory)
    if card.kind != KIND:
        raise FailedPrecondition(f"compressor in {directory} is of kind {card.kind!r}, not {KIND!r}")
    card.check_base(directory, base.fingerprint)
    if (directory / ENCODER).is_dir():
        adapters.load(ENCODER, directory / ENCODER)
    settings = SlotSettings(KIND, int(card.settings["segment"]), bool(card.settings["accumulate"]))
    compressor = SlotCompressor(base, adapters, _summary(directory), settings, Gate())
    compressor.gate = card.gate(compressor.ratio)
    return compressor


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
