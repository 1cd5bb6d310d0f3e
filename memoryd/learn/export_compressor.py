"""Turns what was trained into the directory that `memoryd serve --compressor` loads: encoder, head, reader, card.

It has passed no gate yet: `memoryd eval` finds that out, on documents that were not trained on, and writes it down. The
directory is put in its place whole, and stays as it is for as long as its weights are those of the run.
"""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from memoryd.compress.card import WIDE, read_card
from memoryd.compress.load import load_compressor
from memoryd.engine.adapters import ENCODER, READER
from memoryd.errors import DataLoss
from memoryd.learn import checkpoint
from memoryd.learn.compressor_parts import TEACHER, Parts, Progress
from memoryd.learn.compressor_recipe import Recipe

_CARD = """---
library_name: memoryd
tags: [context-compression, lora, question-answering]
---
# {title} for {model}

Turns chunks of up to {chunk_tokens} tokens into one embedding for every {ratios} of them, for {model} to read in their place.
It fits the base model of fingerprint `{fingerprint}` and no other.

| | |
|---|---|
| encoder | {encoder} |
| head | {head} |
| reader | LoRA r={reader_rank}, in `reader/` (PEFT): answers from {reads} |
| fingerprint | {fingerprints} |
| begun from | {begun} |
| seen | {source_tokens:,} source tokens in {step:,} of {steps:,} steps, seed {seed} |
| took | {hours:.2f} hours on {hardware} |
| texts | {corpus} |
| questions | {qa} |

| stage | steps | text samples a step | to repeat | question packs a step | ratios | rates: head, encoder, reader |
|---|---|---|---|---|---|---|
{stages}

Its gates, once `memoryd eval compression --gate` has measured them: F1 over the first tokens of the text in as many slots,
which must be above 0, and over what another text's embeddings give, which must be above {wide:g}; both are the lower ends of
95% intervals. A ratio that is not there has passed none. `config.json` has them with the fingerprints of what was measured;
how that is done is in memoryd's `docs/quality.md`.

<!-- gates -->
<!-- /gates -->

Made by `memoryd train-compressor`.
"""

_HEADS = {
    "pooled": "means of segments that end at chosen tokens; scores and projector in `projector.safetensors`",
    "autocompressor": "learned summary tokens in `slots.safetensors`; their last hidden states, accumulated over segments",
    "icae": "learned memory slots in `slots.safetensors`; their last hidden states",
}


@dataclass(frozen=True, slots=True)
class About:
    """What its card says in words: the base model's name, what was trained on and from what weights, and where."""

    model: str
    corpus: str
    qa: str
    begun: str
    hardware: str


def export(parts: Parts, recipe: Recipe, progress: Progress, out: Path, about: About) -> Path:
    """Write `out`/compressor; returns it.

    Where one of the same weights is there it is left alone: its gate may have been measured since. `parts` cannot be trained
    further: their encoder is afterwards the one that was written, rounded.
    """
    target, building, old = (out / f"compressor{end}" for end in ("", ".new", ".old"))
    shutil.rmtree(building, ignore_errors=True)
    parts.save(building, about.model)
    parts.adapters.save(READER, building / READER, about.model)
    if _alike(target, building):
        shutil.rmtree(building)
        return target
    stages = "\n".join(
        f"| {s.name} | {s.steps} | {s.texts} | {s.repeat:.0%} | {s.packs} | "
        f"{', '.join(str(r) for r in parts.ratios if r in s.ratios) or parts.ratios[0]} | "
        f"{s.head_rate:g}, {s.encoder_rate:g}, {s.reader_rate:g} |"
        for s in recipe.stages
    )
    card = _CARD.format(
        model=about.model,
        title=f"{recipe.kind.capitalize()} compressor" if recipe.kind == "pooled" else recipe.kind.capitalize(),
        chunk_tokens=parts.compressor.chunk_tokens,
        ratios=" or ".join(map(str, parts.ratios)),
        encoder=_encoder(recipe)
        if (building / ENCODER).is_dir()
        else "none was trained: the base model itself, without its causal mask",
        head=_HEADS[recipe.kind],
        fingerprint=parts.base.fingerprint,
        fingerprints=", ".join(f"at {ratio}x `{made}`" for ratio, made in _fingerprints(building, parts).items()),
        stages=stages,
        steps=recipe.steps,
        hours=progress.seconds / 3600,
        hardware=about.hardware,
        qa=about.qa,
        begun=about.begun,
        corpus=about.corpus if any(stage.texts for stage in recipe.stages) else "none",
        wide=WIDE,
        reads="compressed embeddings; another reader reads text"
        if parts.adapters.has(TEACHER)
        else "compressed embeddings and from text",
        **{key: value for key, value in asdict(recipe).items() if key in ("reader_rank", "seed")},
        **{key: value for key, value in asdict(progress).items() if key in ("source_tokens", "step")},
    )
    (building / "README.md").write_text(card)
    for name in (checkpoint.METRICS, "loss.png"):
        if (out / name).is_file():
            shutil.copy(out / name, building / name)
    checkpoint.flush(building)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    building.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _alike(one: Path, other: Path) -> bool:
    """Whether both are compressors of the same weights, for the same base model; what was measured of them may differ."""
    try:
        cards = [replace(read_card(directory), gates={}) for directory in (one, other)]
    except DataLoss:
        return False
    files, others = (sorted(p.relative_to(at) for p in at.rglob("*.safetensors")) for at in (one, other))
    return cards[0] == cards[1] and files == others and all(filecmp.cmp(one / f, other / f, shallow=False) for f in files)


def _fingerprints(directory: Path, parts: Parts) -> dict[int, str]:
    """By ratio, those under which what lies there is served: its encoder's weights were rounded as they were written."""
    parts.adapters.remove(ENCODER)  # where none was written, none is to be loaded
    return {ratio: load_compressor(directory, parts.base, parts.adapters, ratio).fingerprint for ratio in parts.ratios}


def _encoder(recipe: Recipe) -> str:
    mask = " without its causal mask" if recipe.kind == "pooled" else ""
    return f"the base model{mask}, LoRA r={recipe.encoder_rank} on every linear layer, in `encoder/` (PEFT)"
