"""Finds out what kind of compressor a directory holds, and loads it."""

from __future__ import annotations

from pathlib import Path

from memoryd.compress import autocompressor, icae, slots
from memoryd.compress.base import Trainable
from memoryd.compress.card import read_card
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModel

COMPRESSORS = Path(__file__).parent.parent / "assets" / "compressors"


def compressor_path(base_fingerprint: str, shipped: Path = COMPRESSORS) -> Path | None:
    """The directory of the compressor that memoryd ships for this base model; None where it ships none."""
    for directory in sorted(shipped.glob("*")):
        if directory.is_dir() and read_card(directory).base_fingerprint == base_fingerprint:
            return directory
    return None


def is_own(directory: Path) -> bool:
    """Whether the directory has memoryd's card, and is not in a published layout."""
    return not icae.is_published(directory) and not autocompressor.is_published(directory)


def load_compressor(directory: Path | None, base: BaseModel, adapters: Adapters, ratio: int) -> Trainable:
    """The compressor in `directory`; that of the first weights where there is none. Only pooled ones have a `ratio` to choose.

    Raises FingerprintMismatch where it was made for another base model, naming both; DataLoss where it cannot be read.
    """
    if directory is None:
        return PooledCompressor.untrained(base, adapters, ratio)
    if icae.is_published(directory):
        return icae.load(directory, base, adapters)
    if autocompressor.is_published(directory):
        return autocompressor.load(directory, base, adapters)
    card = read_card(directory)
    if card.kind in (autocompressor.KIND, icae.KIND):
        return slots.load(directory, card, base, adapters)
    return PooledCompressor.load(directory, base, adapters, ratio)
