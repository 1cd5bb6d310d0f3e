"""Trains the reader: a LoRA over every linear layer of the base model, on answers only.

    python -m memoryd.learn.train_reader --data DIR --out DIR --steps 900

Reads like the recipe it is: packs in, loss of their answers, AdamW with warm-up and a cosine, a checkpoint every few
minutes. A killed run continues where it stood: the same data, the same optimizer, the same schedule. ``--steps`` may be
changed on the way; the schedule is then that of the new length.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model, load_base_model
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn import checkpoint
from memoryd.learn.packing import encode_pack, packed_loss
from memoryd.learn.reader_data import ReaderData
from memoryd.learn.spare_cores import SpareCores

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the result; kept in every checkpoint. Learning rates and rank as in LLoCO, scaled to a small model."""

    model: str = EMBEDDED_MODEL
    steps: int = 900
    packs_per_step: int = 1
    learning_rate: float = 5e-4
    warmup_steps: int = 30
    rank: int = 16
    alpha: int = 32
    clip: float = 1.0
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to a fiftieth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(slots=True)
class Progress:
    """Where a run stands. ``packs`` is the position in the data."""

    step: int = 0
    packs: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    recipe = Recipe(options.model, options.steps, options.packs_per_step, options.learning_rate, seed=options.seed)
    train(recipe, options.data, options.out, options.data_dir, options.threads, options.minutes, options.checkpoint_every)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    data_dir: Path,
    threads: int = 0,
    minutes: float = math.inf,
    checkpoint_every: float = 300,
    stop_at: int | None = None,
) -> Progress:
    """Train until ``recipe.steps``, or until ``minutes`` are over or step ``stop_at`` is reached, to go on later.

    Checkpoints and metrics go to ``out``; data is looked for in ``data`` and base models in ``data_dir``.
    """
    import torch

    spare = SpareCores() if threads == 0 else None
    torch.set_num_threads(threads or 1)
    torch.manual_seed(recipe.seed)
    path = ensure_base_model(recipe.model, data_dir)
    base = load_base_model(path)
    tokenizer = TextTokenizer(path)
    model = attach_lora(base.model, recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    progress = resume(out, model, optimizer)
    print(f"continuing at step {progress.step}" if progress.step else "starting", flush=True)
    packs = islice(ReaderData(data, tokenizer, RetrievalTokenizer(), recipe.seed).packs(), progress.packs, None)
    begun = saved = time.monotonic()
    end = min(recipe.steps, stop_at or recipe.steps)
    while progress.step < end and time.monotonic() - begun < minutes * 60:
        started = time.monotonic()
        if spare:
            torch.set_num_threads(spare.threads())
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(progress.step)
        total = 0.0
        for _ in range(recipe.packs_per_step):
            pack = encode_pack(tokenizer, next(packs), base.eos_ids[0])
            loss = packed_loss(model, pack) / recipe.packs_per_step
            loss.backward()
            total += loss.item()
            progress.packs += 1
            progress.examples += len(pack.questions)
            progress.tokens += pack.tokens
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds += time.monotonic() - started
        _log(out, recipe, progress, loss=total, norm=norm, took=time.monotonic() - started, threads=torch.get_num_threads())
        if time.monotonic() - saved > checkpoint_every:
            save(out, model, optimizer, recipe, progress, base.fingerprint)
            saved = time.monotonic()
    save(out, model, optimizer, recipe, progress, base.fingerprint)
    checkpoint.plot(out, "examples", ("loss",), "Training the reader")
    return progress


def attach_lora(model: Any, recipe: Recipe) -> PeftModel:
    """The base model with a fresh, trainable LoRA around each of its linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=ALL_LINEAR,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save(
    out: Path, model: PeftModel, optimizer: torch.optim.Optimizer, recipe: Recipe, progress: Progress, fingerprint: str
) -> None:
    """Write a checkpoint, the adapter in PEFT's layout."""
    state = {"recipe": asdict(recipe), "progress": asdict(progress), "base_fingerprint": fingerprint}
    checkpoint.write(out, lambda directory: model.save_pretrained(str(directory)), optimizer, state)


def resume(out: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the last whole checkpoint of ``out`` into model and optimizer; the start if there is none."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = checkpoint.last(out)
    if found is None:
        return Progress()
    set_peft_model_state_dict(model, load_file(found / "adapter_model.safetensors"))
    optimizer.load_state_dict(torch.load(found / "optimizer.pt", weights_only=True))
    return Progress(**checkpoint.progress_of(found))


def _log(out: Path, recipe: Recipe, progress: Progress, loss: float, norm: float, took: float, threads: int) -> None:
    rate = progress.tokens / progress.seconds
    left = (recipe.steps - progress.step) * progress.seconds / progress.step
    row = {
        "step": progress.step,
        "loss": round(loss, 4),
        "norm": round(norm, 3),
        "lr": recipe.rate_at(progress.step - 1),
        "examples": progress.examples,
        "tokens": progress.tokens,
        "step_seconds": round(took, 2),
        "threads": threads,
        "tokens_per_second": round(rate, 1),
        "minutes_left": round(left / 60, 1),
    }
    with (out / checkpoint.METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")
    if progress.step % 10 == 0 or progress.step == 1:
        print(json.dumps(row), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_reader", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with squad.jsonl.xz and the others")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and metrics; a run found there goes on")
    parser.add_argument("--data-dir", type=Path, default=Path(os.path.expanduser("~/.memoryd")), help="base models")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--packs-per-step", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: the cores that others leave")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop with a checkpoint after so long")
    parser.add_argument("--checkpoint-every", type=float, default=300, help="seconds")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
