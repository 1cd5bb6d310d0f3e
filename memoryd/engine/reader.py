"""The readers: those that memoryd ships, found by the base model that they were trained for, and those of compressors.

A prompt with compressed embeddings in it is read by the reader that was trained along with their compressor, one of text
alone by the one that ships: a model of this size that learns to read the one reads the other worse (docs/structure.md).
"""

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """How easily a reader refuses: `bias` is added to the logit of `token`, the refusal's first, where an answer begins."""

    token: int
    bias: float


@dataclass(frozen=True, slots=True)
class Readers:
    """The PEFT directories of the readers in use: `text` reads prompts of text alone, `soft` those with compressed embeddings.
    Where `soft` is None, `text` reads all; where both are, the base model answers as it is."""

    text: Path | None = None
    soft: Path | None = None

    @property
    def fingerprint(self) -> str:
        """Content hash of all that is in use; empty without readers."""
        prints = [reader_fingerprint(path) for path in (self.text, self.soft) if path]
        return hashlib.sha256("".join(prints).encode()).hexdigest() if len(prints) > 1 else "".join(prints)

    def refusal(self, soft: bool) -> Refusal | None:
        """Of the reader of such prompts."""
        path = (self.soft if soft else None) or self.text
        return refusal_of(path) if path else None


NO_READERS = Readers()


def readers_for(compressor: Path | None, base_fingerprint: str) -> Readers:
    """Those in use with the compressor in this directory: its own, if it has one, and the one that ships for the base model. A
    base model that none ships for is read by the compressor's own reader throughout: it was trained on text too."""
    own = compressor / "reader" if compressor and (compressor / "reader").is_dir() else None
    shipped = reader_path(base_fingerprint)
    return Readers(shipped, own) if shipped else Readers(own)


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
