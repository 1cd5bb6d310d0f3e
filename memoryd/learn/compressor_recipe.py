"""Recipes of training a compressor: stages, each a mixture of what is asked of compressed embeddings.

What is known (ARC-Encoder, Kyutai 2025): pooling beats learned summary tokens at the same budget; a fifth to a half of
reconstruction in the mix; never finetune at a higher ratio than was pretrained, so all ratios are there from early on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from memoryd.compress.card import RATIOS


@dataclass(frozen=True, slots=True)
class Stage:
    """What is done for a while. Rates of 0 leave a part as it is; each stage has its own warm-up and cosine."""

    name: str
    steps: int
    texts: int = 0
    """Text samples in a step, of up to 512 source tokens each where the kind's chunks have no more."""
    repeat: float = 0.25
    """The share of them that is to be repeated; the others are continued."""
    follow: int = 192
    """Tokens that continue a text sample."""
    packs: int = 0
    """Question packs in a step."""
    divergence: float = 0.5
    """Weight of KL(teacher || reader) beside the answers' cross-entropy; the teacher reads the text itself."""
    ratios: tuple[int, ...] = RATIOS
    """Of the pooled compressor; the other kinds have one each."""
    head_rate: float = 0.0
    encoder_rate: float = 0.0
    reader_rate: float = 0.0

    @property
    def compresses(self) -> bool:
        """Whether the compressor learns; else only the reader does."""
        return self.head_rate > 0 or self.encoder_rate > 0

    def schedule(self, step: int) -> float:
        """The factor of all rates at a step of this stage, from 0: warm-up over a twentieth, then a cosine to a fiftieth."""
        warm = max(1, self.steps // 20)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the result."""

    stages: tuple[Stage, ...]
    kind: str = "pooled"
    seed: int = 1
    encoder_rank: int = 32
    reader_rank: int = 16
    scored: int = 400
    """Chunks with answers that the pooled compressor's scores begin from, at most."""
    micro: int = 4
    """Samples that go through the models at a time, fewer where chunks have more than 512 tokens; more take more memory and
    give the same result."""
    clip: float = 1.0

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the step's number within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError("the recipe is over")

    def packs_before(self, step: int) -> int:
        """Question packs of all steps before this one."""
        packs = 0
        for stage in self.stages:
            taken = min(step, stage.steps)
            packs, step = packs + taken * stage.packs, step - taken
        return packs

    def differences(self, begun: Mapping[str, Any], taken: int) -> list[str]:
        """In what the first ``taken`` steps of a run were not of this recipe, in words; ``begun`` is that run's recipe, as JSON
        gives it back.

        What may differ: ``micro``, since it changes no result; how many steps the stage of the last step has, so long as those
        taken are among them; all of the stages that were not begun. What an older checkpoint does not say is taken as alike.
        """
        mine: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples as lists, as they are there
        found = _unlike(begun, mine, "", ("stages", "micro"))
        for number, stage in enumerate(begun["stages"]):
            if taken <= 0:
                break
            if number == len(mine["stages"]):
                return [*found, f"stage {stage['name']!r}, which is gone"]
            own, last = mine["stages"][number], taken <= stage["steps"]
            found += _unlike(stage, own, f"stage {stage['name']!r}: ", ("steps",) if last else ())
            if last and own["steps"] < taken:
                found.append(f"stage {stage['name']!r}: {taken} steps taken already, not {own['steps']}")
            taken -= stage["steps"]
        return found

    def of(self, kind: str) -> Recipe:
        """The same for a compressor of this kind. Learned tokens say nothing before they are trained: theirs has no stage in
        which the reader alone learns."""
        stages = tuple(s for s in self.stages if kind == "pooled" or s.compresses)
        return replace(self, kind=kind, stages=stages)

    def scaled(self, factor: float) -> Recipe:
        """The same with so many times the steps, at least one of each stage."""
        return replace(self, stages=tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in self.stages))


def _unlike(was: Mapping[str, Any], now: Mapping[str, Any], where: str, but: tuple[str, ...]) -> list[str]:
    both = [key for key in now if key in was and key not in but]
    return [f"{where}{key} {was[key]}, not {now[key]}" for key in both if was[key] != now[key]]


RECIPES: Mapping[str, Recipe] = {
    # About 64k source tokens a step. 80 + 1900 + 900 steps are some 170M of them: half an hour on one H200.
    "gpu": Recipe(
        stages=(
            Stage("head", 80, texts=128, repeat=0.5, ratios=(4,), head_rate=1e-3),
            Stage("encoder", 1900, texts=128, head_rate=3e-4, encoder_rate=3e-4),
            Stage(
                "answers", 900, texts=32, packs=24, head_rate=1e-4, encoder_rate=1e-4, reader_rate=3e-4,
            ),
        ),
        encoder_rank=64,
        micro=32,
    ),
    # Straight to the questions at one ratio: 50 to 100 source tokens a second are too few for anything else. First the reader
    # alone: the compressor stays as its scores began, so each chunk is compressed once and kept, and a step costs a fraction.
    "cpu": Recipe(
        stages=(
            Stage("reader", 600, packs=2, divergence=0.0, ratios=(4,), reader_rate=5e-4),
            Stage(
                "answers", 2000, texts=1, repeat=0.7, follow=128, packs=1, divergence=0.0, ratios=(4,),
                head_rate=1e-3, encoder_rate=5e-4, reader_rate=2e-4,
            ),
        ),
        encoder_rank=32,
        micro=1,
    ),
}  # fmt: skip
