"""Turns a training checkpoint into the reader that ships: half-precision weights, a clean configuration, a model card.

    python -m memoryd.learn.export_reader --checkpoint DIR --name smollm2-135m-instruct

The card's figures come from docs/figures/reader.json: measure, then export again, with the bias towards refusing that was
found (the row of that name).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memoryd.engine.base_model import ensure_base_model
from memoryd.engine.reader import READERS, Refusal
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.figures import DOCS, read, table
from memoryd.recall.prompt import REFUSAL

_CARD = """---
license: cc-by-sa-4.0
library_name: peft
tags: [lora, retrieval-augmented-generation, question-answering]
---
# Reader for {model}

The LoRA that teaches {model} to answer briefly from the memory blocks that memoryd puts before the question, and to say
"I don't know from memory." where they do not hold the answer. memoryd loads it by itself when the base model's
fingerprint is `{fingerprint}`.

| | |
|---|---|
| method | LoRA r={rank}, alpha={alpha}, on every linear layer; loss on the answers only |
| optimizer | AdamW, warm-up, then a cosine from {learning_rate} |
| seen | {examples:,} examples in {packs:,} packs ({tokens:,} tokens), seed {seed} |
| took | {hours:.1f} hours on {hardware} |
| schedule | {notes} |
| prompts | exactly those of `memoryd.recall.prompt.assemble`: one to five passages, hard distractors, conversations, refusals |
| base | {model}, Apache-2.0 |

**Data.** SQuAD 1.1 (40 Wikipedia articles, CC BY-SA 4.0), Natural Questions open (CC BY-SA), BoolQ (CC BY-SA), QMSum (MIT),
passages of 2WikiMultihopQA (Apache-2.0) as distractors, and made-up conversations (`memoryd/learn/synthetic_chat.py`).
The evaluation's articles are not among them.

**Measured** on four held-out SQuAD articles, with retrieval in the loop:

{figures}
**Limits.** English. Short answers: dates, names, numbers, phrases; long free-form answers suffer. A model of 135M parameters
does not reason over several passages. It was trained on raw text, not yet on compressed embeddings.

Made by `python -m memoryd.learn.train_reader`, then `python -m memoryd.learn.export_reader`.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="export_reader")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--name", required=True, help="the base model's name")
    parser.add_argument("--hardware", default="one thread of a shared CPU (AVX2)")
    parser.add_argument("--notes", default="as the recipe says", help="what was changed while it ran")
    parser.add_argument("--refusal-bias", type=float, default=0.0, help="logits that the first token of a refusal gets [0]")
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="converted base models")
    parser.add_argument("--out", type=Path, default=READERS)
    options = parser.parse_args(argv)
    token = TextTokenizer(ensure_base_model(options.name, options.data_dir)).encode(REFUSAL)[0]
    refusal = Refusal(token, options.refusal_bias) if options.refusal_bias else None
    export(options.checkpoint, options.out / options.name, options.name, options.hardware, refusal, options.notes)


def export(checkpoint: Path, target: Path, name: str, hardware: str, refusal: Refusal | None = None, notes: str = "") -> None:
    """Write ``target`` from ``checkpoint``; the same checkpoint gives the same bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    state = json.loads((checkpoint / "state.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(checkpoint / "adapter_model.safetensors")
    halved = {key: tensor.to(torch.float16) for key, tensor in sorted(weights.items())}
    save_file(halved, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((checkpoint / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": name, "inference_mode": True, "target_modules": sorted(config["target_modules"])}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    about = {"base_model": name, "base_fingerprint": state["base_fingerprint"], **state["recipe"], **state["progress"]}
    if refusal:
        about["refusal"] = asdict(refusal)
    (target / "memoryd.json").write_text(json.dumps(about, indent=1) + "\n")
    (target / "README.md").write_text(_card(name, state, hardware, notes))


def _card(name: str, state: dict[str, Any], hardware: str, notes: str) -> str:
    measured = (DOCS / "figures" / "reader.json").is_file()
    return _CARD.format(
        model=name,
        fingerprint=state["base_fingerprint"],
        hardware=hardware,
        notes=notes,
        hours=state["progress"]["seconds"] / 3600,
        figures=table(read("reader")) if measured else "not measured yet\n",
        **{k: state["recipe"][k] for k in ("rank", "alpha", "learning_rate", "seed")},
        **{k: state["progress"][k] for k in ("examples", "packs", "tokens")},
    )


if __name__ == "__main__":
    main()
