"""A compressor's directory: config.json says what it is, for which base model, and what was measured of it.

config.json              kind, base_fingerprint, the gate by ratio and what was measured for it, what the kind needs besides
*.safetensors, encoder/  weights, as the kind lays them out
README.md                the model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memoryd.engine.reader import readers_for
from memoryd.errors import DataLoss, FingerprintMismatch

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, README = "config.json", "README.md"
_GATES, _END = "<!-- gates -->", "<!-- /gates -->"
RATIOS = (4, 8, 16, 32)
"""Source tokens for each compressed embedding of the pooled compressor."""


OVER_FIRST, OVER_WRONG, QUESTIONS = "over_first_low", "over_wrong_low", "questions"
ENOUGH = 300
"""Questions that a verdict must rest on."""
WIDE = 0.1
"""Of F1: what compressed embeddings must be worth over those of a wrong memory, at least."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The quality gate at one ratio: what `memoryd eval compression` measured on documents that were not trained on.

    The verdict is worked out from the figures, each time: there is no flag to set by hand. Those that decide are the lower
    ends of 95% intervals of differences in F1, question by question: over the first tokens of the text in as many slots,
    and over the compressed embeddings of a wrong memory. `compressor` and `reader` are the fingerprints of what was measured.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    compressor: str = ""
    reader: str = ""

    @property
    def passed(self) -> bool:
        enough = self.figures.get(QUESTIONS, 0.0) >= ENOUGH
        return enough and self.figures.get(OVER_FIRST, -1.0) > 0 and self.figures.get(OVER_WRONG, -1.0) > WIDE


@dataclass(frozen=True, slots=True)
class Card:
    """config.json. A ratio without a gate has passed none."""

    kind: str
    base_fingerprint: str
    gates: Mapping[int, Gate] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def gate(self, directory: Path, ratio: int, fingerprint: str) -> Gate:
        """The verdict on the compressor of this fingerprint with the readers in use; on others it says nothing."""
        gate = self.gates.get(ratio, Gate())
        measured = (fingerprint, readers_for(directory, self.base_fingerprint).fingerprint)
        return gate if (gate.compressor, gate.reader) == measured else Gate()

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
        gates = {
            int(ratio): Gate({k: float(v) for k, v in said["figures"].items()}, str(said["compressor"]), str(said["reader"]))
            for ratio, said in config["gates"].items()
        }
        return Card(str(config["kind"]), str(config["base_fingerprint"]), gates, dict(config["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"compressor in {directory} has no readable {CONFIG}: {error}") from error


def write_card(directory: Path, card: Card) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "kind": card.kind,
        "base_fingerprint": card.base_fingerprint,
        "gates": {str(ratio): asdict(gate) for ratio, gate in sorted(card.gates.items())},
        "settings": dict(card.settings),
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def show_verdicts(directory: Path) -> None:
    """Puts the gates of config.json into the model card, where that has a place for them."""
    readme = directory / README
    text = readme.read_text() if readme.is_file() else ""
    head, begin, rest = text.partition(_GATES)
    _, end, tail = rest.partition(_END)
    if not end:
        return
    lines = ["| ratio | over the first tokens | over another text's | questions | gate |", "|---|---|---|---|---|"]
    for ratio, gate in sorted(read_card(directory).gates.items()):
        over = [f"{gate.figures.get(name, 0.0):+.3f}" for name in (OVER_FIRST, OVER_WRONG)]
        verdict = "passed" if gate.passed else "not passed"
        lines.append(f"| {ratio}x | {over[0]} | {over[1]} | {gate.figures.get(QUESTIONS, 0.0):.0f} | {verdict} |")
    readme.write_text("\n".join([head + begin, *lines, end + tail]))


def fingerprint_of(facts: Sequence[object], tensors: Mapping[str, Tensor]) -> str:
    """Content hash of what a compressor is and of its weights, in this order."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
