"""The readers that memoryd ships, found by the base model that they were trained for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

READERS = Path(__file__).parent.parent / "assets" / "readers"
CARD = "memoryd.json"


def reader_path(base_fingerprint: str) -> Path | None:
    """The PEFT directory of the reader for this base model; None where none is shipped."""
    for card in sorted(READERS.glob(f"*/{CARD}")):
        if json.loads(card.read_text())["base_fingerprint"] == base_fingerprint:
            return card.parent
    return None


def reader_for(compressor: Path | None, base_fingerprint: str) -> Path | None:
    """The one that was trained along with the compressor, which reads what that makes; else the one that ships."""
    own = compressor / "reader" if compressor else None
    return own if own and own.is_dir() else reader_path(base_fingerprint)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How easily a reader refuses: `bias` is added to the logit of `token`, the refusal's first, where an answer begins."""

    token: int
    bias: float


def refusal_of(path: Path) -> Refusal | None:
    """What the reader's card says; None where it has no card, or the card says nothing."""
    card = path / CARD
    said = json.loads(card.read_text()).get("refusal") if card.is_file() else None
    return Refusal(int(said["token"]), float(said["bias"])) if said else None


def reader_fingerprint(path: Path) -> str:
    """Content hash of its configuration and weights, and of how easily it refuses."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((path / name).read_bytes())
    if refusal := refusal_of(path):
        digest.update(json.dumps([refusal.token, refusal.bias]).encode())
    return digest.hexdigest()
