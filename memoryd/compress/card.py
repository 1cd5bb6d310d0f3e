"""A compressor's directory: config.json says what it is, for which base model, and what its quality gate found.

config.json              kind, base_fingerprint, gates by ratio, what the kind needs besides
*.safetensors, encoder/  weights, as the kind lays them out
README.md                the model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoryd.errors import DataLoss, FingerprintMismatch

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Gate:
    """The verdict of the quality gate at one ratio, with the figures that it rests on."""

    passed: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """config.json. A ratio without a gate has passed none."""

    kind: str
    base_fingerprint: str
    gates: Mapping[int, Gate] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def gate(self, ratio: int) -> Gate:
        return self.gates.get(ratio, Gate())

    def check_base(self, directory: Path, base_fingerprint: str) -> None:
        """Raises FingerprintMismatch where the compressor was made for another base model."""
        if self.base_fingerprint != base_fingerprint:
            raise FingerprintMismatch(
                f"compressor in {directory} was made for base model {self.base_fingerprint}, in use is {base_fingerprint}",
                details={"made_for": self.base_fingerprint, "in_use": base_fingerprint},
            )


def read_card(directory: Path) -> Card:
    """DataLoss where config.json cannot be read, or is not a compressor's."""
    try:
        config = json.loads((directory / CONFIG).read_text())
        gates = {int(r): Gate(bool(g["passed"]), dict(g["figures"])) for r, g in config["gates"].items()}
        return Card(str(config["kind"]), str(config["base_fingerprint"]), gates, dict(config["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"compressor in {directory} has no readable {CONFIG}: {error}") from error


def write_card(directory: Path, card: Card) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "kind": card.kind,
        "base_fingerprint": card.base_fingerprint,
        "gates": {str(r): {"passed": g.passed, "figures": dict(g.figures)} for r, g in sorted(card.gates.items())},
        "settings": dict(card.settings),
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
