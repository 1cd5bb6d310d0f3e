"""Turns what was trained into the directory that `memoryd serve --compressor` loads: encoder, head, reader, card.

It has passed no gate yet: `memoryd eval` finds that out, on documents that were not trained on, and writes it down.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from memoryd.engine.adapters import ENCODER, READER
from memoryd.learn import checkpoint
from memoryd.learn.compressor_parts import Parts, Progress
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
| reader | LoRA r={reader_rank}, in `reader/` (PEFT): answers from compressed embeddings and from text |
| seen | {source_tokens:,} source tokens in {step:,} of {steps:,} steps, seed {seed} |
| took | {hours:.2f} hours on {hardware} |
| texts | {corpus} |
| questions | {qa} |

| stage | steps | text samples a step | to repeat | question packs a step | ratios | rates: head, encoder, reader |
|---|---|---|---|---|---|---|
{stages}

Its quality gate is in `config.json`, one verdict for each ratio; a ratio without one has passed none.

Made by `memoryd train-compressor`.
"""

_HEADS = {
    "pooled": "means of segments that end at chosen tokens; scores and projector in `projector.safetensors`",
    "autocompressor": "learned summary tokens in `slots.safetensors`; their last hidden states, accumulated over segments",
    "icae": "learned memory slots in `slots.safetensors`; their last hidden states",
}


def export(
    parts: Parts, recipe: Recipe, progress: Progress, out: Path, model: str, corpus: str, qa: str, hardware: str
) -> Path:
    """Write `out`/compressor; returns it. `corpus` and `qa` say in words what was trained on."""
    target = out / "compressor"
    shutil.rmtree(target, ignore_errors=True)
    parts.save(target, model)
    parts.adapters.save(READER, target / READER, model)
    stages = "\n".join(
        f"| {s.name} | {s.steps} | {s.texts} | {s.repeat:.0%} | {s.packs} | "
        f"{', '.join(str(r) for r in parts.ratios if r in s.ratios) or parts.ratios[0]} | "
        f"{s.head_rate:g}, {s.encoder_rate:g}, {s.reader_rate:g} |"
        for s in recipe.stages
    )
    card = _CARD.format(
        model=model,
        title=f"{recipe.kind.capitalize()} compressor" if recipe.kind == "pooled" else recipe.kind.capitalize(),
        chunk_tokens=parts.compressor.chunk_tokens,
        ratios=" or ".join(map(str, parts.ratios)),
        encoder=_encoder(recipe) if (target / ENCODER).is_dir() else "none was trained: token embeddings alone are pooled",
        head=_HEADS[recipe.kind],
        fingerprint=parts.base.fingerprint,
        stages=stages,
        steps=recipe.steps,
        hours=progress.seconds / 3600,
        hardware=hardware,
        corpus=corpus,
        qa=qa,
        **{key: value for key, value in asdict(recipe).items() if key in ("reader_rank", "seed")},
        **{key: value for key, value in asdict(progress).items() if key in ("source_tokens", "step")},
    )
    (target / "README.md").write_text(card)
    for name in (checkpoint.METRICS, "loss.png"):
        if (out / name).is_file():
            shutil.copy(out / name, target / name)
    return target


def _encoder(recipe: Recipe) -> str:
    mask = " without its causal mask" if recipe.kind == "pooled" else ""
    return f"the base model{mask}, LoRA r={recipe.encoder_rank} on every linear layer, in `encoder/` (PEFT)"
