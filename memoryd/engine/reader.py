"""The readers that memoryd ships, found by the base model that they were trained for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

READERS = Path(__file__).parent.parent / "assets" / "readers"


def reader_path(base_fingerprint: str) -> Path | None:
    """The PEFT directory of the reader for this base model; None where none is shipped."""
    for card in sorted(READERS.glob("*/memoryd.json")):
        if json.loads(card.read_text())["base_fingerprint"] == base_fingerprint:
            return card.parent
    return None


def reader_for(compressor: Path | None, base_fingerprint: str) -> Path | None:
    """The one that was trained along with the compressor, which reads what that makes; else the one that ships."""
    own = compressor / "reader" if compressor else None
    return own if own and own.is_dir() else reader_path(base_fingerprint)


def reader_fingerprint(path: Path) -> str:
    """Content hash of its configuration and weights."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((path / name).read_bytes())
    return digest.hexdigest()
