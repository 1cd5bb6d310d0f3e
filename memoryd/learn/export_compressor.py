"""Turns what was trained into the directory that `memoryd serve --compressor` loads: encoder, projector, reader, card.

It has passed no gate yet: `memoryd eval` finds that out, on documents that were not trained on, and writes it down.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from memoryd.compress import pooled
from memoryd.engine.adapters import READER
from memoryd.learn import checkpoint
from memoryd.learn.compressor_parts import Parts, Progress
from memoryd.learn.compressor_recipe import Recipe

_CARD = """---
library_name: memoryd
tags: [context-compression, lora, question-answering]
---
# Pooled compressor for {model}

Turns chunks of up to 512 tokens into one embedding for every 4, 8, 16 or 32 of them, for {model} to read in their place.
It fits the base model of fingerprint `{fingerprint}` and no other.

| | |
|---|---|
| encoder | the base model without its causal mask, LoRA r={encoder_rank} on every linear layer, in `encoder/` (PEFT) |
| pooling | means of groups of hidden states; projector in `projector.safetensors` |
| reader | LoRA r={reader_rank}, in `reader/` (PEFT): answers from compressed embeddings and from text |
| seen | {source_tokens:,} source tokens in {step:,} of {steps:,} steps, seed {seed} |
| took | {hours:.2f} hours on {hardware} |
| texts | {corpus} |
| questions | {qa} |

| stage | steps | text samples a step | to repeat | question packs a step | ratios | rates: projector, encoder, reader |
|---|---|---|---|---|---|---|
{stages}

Its quality gate is in `config.json`, one verdict for each ratio; a ratio without one has passed none.

Made by `memoryd train-compressor`.
"""


def export(
    parts: Parts, recipe: Recipe, progress: Progress, out: Path, model: str, corpus: str, qa: str, hardware: str
) -> Path:
    """Write `out`/compressor; returns it. `corpus` and `qa` say in words what was trained on."""
    target = out / "compressor"
    shutil.rmtree(target, ignore_errors=True)
    pooled.save(target, parts.base, model, parts.adapters, parts.projector, {})
    parts.adapters.save(READER, target / READER, model)
    stages = "\n".join(
        f"| {s.name} | {s.steps} | {s.texts} | {s.repeat:.0%} | {s.packs} | {', '.join(map(str, s.ratios))} | "
        f"{s.projector_rate:g}, {s.encoder_rate:g}, {s.reader_rate:g} |"
        for s in recipe.stages
    )
    card = _CARD.format(
        model=model,
        fingerprint=parts.base.fingerprint,
        stages=stages,
        steps=recipe.steps,
        hours=progress.seconds / 3600,
        hardware=hardware,
        corpus=corpus,
        qa=qa,
        **{key: value for key, value in asdict(recipe).items() if key in ("encoder_rank", "reader_rank", "seed")},
        **{key: value for key, value in asdict(progress).items() if key in ("source_tokens", "step")},
    )
    (target / "README.md").write_text(card)
    for name in (checkpoint.METRICS, "loss.png"):
        if (out / name).is_file():
            shutil.copy(out / name, target / name)
    return target
