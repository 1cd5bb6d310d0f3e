"""`memoryd train-compressor`: trains a compressor for a base model, and the reader that reads what it makes.

    memoryd train-compressor --corpus DIR --qa DIR --out DIR --recipe cpu|gpu

Reads like the recipe it is: samples in, the base model's loss on what it is to say after compressed embeddings, AdamW,
a checkpoint every few minutes. The base model itself is frozen; what learns are the compressor's head, its encoder (an
adapter) and, on questions, the reader. A killed run continues where it stood, with the same curve.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from memoryd.compress.chunker import Limits
from memoryd.engine.adapters import ENCODER, READER
from memoryd.engine.base_model import load_base_model
from memoryd.engine.reader import reader_path
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.learn import checkpoint
from memoryd.learn.compressor_data import Corpus, QuestionData, TextData, sha256_of, sha256_of_files
from memoryd.learn.compressor_parts import TEACHER, Parts, Progress, build
from memoryd.learn.compressor_recipe import Recipe, Stage
from memoryd.learn.export_compressor import About, export
from memoryd.learn.reader_data import ReaderData, chunks_of
from memoryd.learn.samples import Samples, StepSamples
from memoryd.learn.scores import begin_scores
from memoryd.learn.soft_packing import Ids, Predicted, SoftPack, predict

if TYPE_CHECKING:
    import torch

_BETAS = (0.9, 0.95)
_FIXED = 2048  # chunks: at 4x and d_model 576 some 600 MB

Fixed = dict[tuple[Ids, int], "torch.Tensor"]
"""Compressed embeddings by chunk and ratio, kept while the compressor does not learn: the same chunks come again and again."""


def train(
    path: Path,
    recipe: Recipe,
    corpus: Path,
    qa: Path,
    out: Path,
    device: str = "cpu",
    minutes: float = math.inf,
    checkpoint_every: float = 300,
    stop_at: int | None = None,
    model: str = "the base model",
    hardware: str = "a CPU",
    start: Path | None = None,
    dtype: str = "auto",
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> Progress:
    """Train until the recipe's end, or until `minutes` are over or step `stop_at` is reached, to go on later.

    `path` is the base model's directory; `corpus` holds texts, `qa` questions (see `reader_data`); checkpoints, metrics and
    curves go to `out`, and what was trained so far to `out`/compressor. `dtype` is the base model's (auto: bfloat16 on a GPU,
    else float32); what learns is always float32. `workers` processes make samples ahead; that changes no result. `model` and
    `hardware` are for its card. A run begins from the compressor in `start`, an earlier run's or the one that ships; without,
    from first weights.

    A run that is found in `out` goes on where base model, data and recipe are those that it was begun with; where they are
    not, FailedPrecondition names what differs. What may differ is what changes next to nothing (device, dtype, threads,
    `micro`, where the data lies, how often a checkpoint is made), and what is not done yet: the number of steps of the stage
    that is under way, and the stages after it. A run that is over may so be made longer.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    usual = "bfloat16" if device.startswith("cuda") else "float32"
    base = load_base_model(path, usual if dtype == "auto" else dtype, device)
    facts = {"base_fingerprint": base.fingerprint, "corpus_sha256": sha256_of(corpus), "qa_sha256": sha256_of(qa)}
    weights = sha256_of_files(start, sorted(start.rglob("*.safetensors"))) if start else ""
    facts["start"] = f"weights of SHA-256 {weights}" if start else "first weights"
    _check_same_run(out, recipe, facts)
    parts = build(base, path, recipe, reader_path(base.fingerprint), start)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "name": name} for name, parameters in parts.groups.items()], betas=_BETAS, weight_decay=0.0
    )
    begins = checkpoint.last(out) is None
    progress = Progress(**checkpoint.resume(out, _weights(parts), optimizer, device))
    checkpoint.mend_metrics(out)
    found = progress.step
    say(f"continuing at step {progress.step} of {recipe.steps}" if progress.step else f"starting: {recipe.steps} steps")
    library = Corpus(corpus, parts.tokenizer)
    texts = TextData(library, parts.tokenizer, recipe.seed, parts.compressor.chunk_tokens)
    questions = _questions(parts, recipe, qa) if any(stage.packs for stage in recipe.stages) else None
    if begins and parts.scored and questions and not parts.scored.projector.sees:
        begin_scores(parts.scored, parts.tokenizer, questions.answered(), recipe.scored, recipe.seed, say)
        checkpoint.save(out, _weights(parts), optimizer, asdict(recipe), asdict(progress), facts=facts)
    fixed: Fixed = {}
    took: list[float] = []  # seconds, of the steps of the present stage
    begun = saved = time.monotonic()
    end = min(recipe.steps, stop_at or recipe.steps)
    data = Samples(recipe, texts, questions, parts.ratios, parts.compressor.slots, parts.adapters.has(TEACHER))
    samples = data.steps(progress.step, end, workers)
    while progress.step < end and time.monotonic() - begun < minutes * 60:
        started = time.monotonic()
        stage, number = recipe.at(progress.step)
        row = _step(parts, recipe, optimizer, progress, next(samples), fixed)
        took = [*(took if number else ()), time.monotonic() - started]
        progress.step += 1
        progress.seconds += took[-1]
        _log(out, progress, row, (stage.steps - number - 1) * mean(took), say)
        if time.monotonic() - saved > checkpoint_every:
            checkpoint.save(out, _weights(parts), optimizer, asdict(recipe), asdict(progress), facts=facts)
            saved = time.monotonic()
    if progress.step > found:
        checkpoint.save(out, _weights(parts), optimizer, asdict(recipe), asdict(progress), facts=facts)
        checkpoint.plot(out, "source_tokens", ("repeat", "continue", "answer"), "Training the compressor")
    about = About(model, f"{texts.characters:,} characters of `{corpus.name}`", f"`{qa.name}`", facts["start"], hardware)
    target = export(parts, recipe, progress, out, about)
    say(f"{'done' if progress.step == recipe.steps else 'stopped'} at step {progress.step}: {target}")
    return progress


def _check_same_run(out: Path, recipe: Recipe, facts: Mapping[str, str]) -> None:
    """Raises FailedPrecondition where `out` has a run that these would not go on with. See `train`."""
    found = checkpoint.last(out)
    if found is None:
        return
    state = checkpoint.state_of(found)
    # Older checkpoints have no facts: what is not known is taken as alike.
    differences = [f"{name} {state[name]}, not {now}" for name, now in facts.items() if state.get(name, now) != now]
    differences += recipe.differences(state["recipe"], int(state["progress"]["step"]))
    if differences:
        raise FailedPrecondition(
            f"{out} holds a run with {'; '.join(differences)}: go on with what it was begun with, or give another --out"
        )


def _step(
    parts: Parts,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    samples: StepSamples,
    fixed: Fixed,
) -> dict[str, Any]:
    """One step of the optimizer; what it logs."""
    import torch

    stage, number = recipe.at(progress.step)
    for group in optimizer.param_groups:
        rate: float = getattr(stage, f"{group['name']}_rate")
        group["lr"] = rate * stage.schedule(number)
        for parameter in group["params"]:
            parameter.requires_grad_(rate > 0)
    if stage.compresses:
        fixed.clear()
    micro = max(1, recipe.micro * Limits().chunk_tokens // parts.compressor.chunk_tokens)
    batches: list[tuple[str, list[SoftPack], list[SoftPack]]] = []
    for name in ("repeat", "continue"):
        some = [pack for pack in samples.texts if bool(pack.questions[0][0]) == (name == "repeat")]
        batches += [(name, part, []) for part in _parted(some, micro)]
    shown = _parted(samples.shown, micro)
    read = _parted(samples.read, micro) or [[]] * len(shown)
    batches += [("answer", part, as_text) for part, as_text in zip(shown, read, strict=True)]
    progress.packs += len(samples.shown)
    totals: dict[str, float] = {}
    count = sum(len(batch) for _, batch, _ in batches)
    for name, batch, as_text in batches:
        loss = _loss(parts, stage, name, batch, as_text, samples.ratio, fixed)
        share = len(batch) / count
        (loss * share).backward()
        of_name = sum(len(other) for kind, other, _ in batches if kind == name)
        totals[name] = totals.get(name, 0.0) + loss.item() * len(batch) / of_name
        progress.source_tokens += sum(pack.source_tokens for pack in batch)
    learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(learning, recipe.clip).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"stage": stage.name, "ratio": samples.ratio, **totals, "norm": norm}


def _loss(
    parts: Parts, stage: Stage, name: str, batch: list[SoftPack], read: list[SoftPack], ratio: int, fixed: Fixed
) -> torch.Tensor:
    """The reader answers questions; text is repeated and continued by the base model alone, which never changes."""
    predicted = run(parts, batch, ratio, READER if name == "answer" else "", None if stage.compresses else fixed)
    loss = predicted.loss()
    if read:
        import torch

        with torch.no_grad():
            teacher = run(parts, read, ratio, TEACHER)
        loss = loss + stage.divergence * predicted.divergence(teacher)
    return loss


def run(parts: Parts, batch: list[SoftPack], ratio: int, adapter: str, fixed: Fixed | None = None) -> Predicted:
    """Compress the packs' chunks, but those that are `fixed`, and let the base model, with this adapter, read them."""
    chunks = [chunk for pack in batch for chunk in pack.chunks]
    if fixed is None:
        soft = iter(parts.compressor.encode(chunks, ratio) if chunks else ())
    else:
        soft = iter([_fixed(parts, chunk, ratio, fixed) for chunk in chunks])
    with parts.adapters.using(adapter):
        return predict(parts.base.model, batch, [list(islice(soft, len(pack.chunks))) for pack in batch])


def _fixed(parts: Parts, chunk: Ids, ratio: int, fixed: Fixed) -> torch.Tensor:
    import torch

    if (chunk, ratio) not in fixed:
        if len(fixed) >= _FIXED:
            fixed.clear()
        with torch.no_grad():
            (fixed[chunk, ratio],) = parts.compressor.encode([chunk], ratio)
    return fixed[chunk, ratio]


def _parted(packs: Sequence[SoftPack], micro: int) -> list[list[SoftPack]]:
    return [list(packs[at : at + micro]) for at in range(0, len(packs), micro)]


def _questions(parts: Parts, recipe: Recipe, qa: Path) -> QuestionData:
    spans = partial(chunks_of, tokens=parts.compressor.chunk_tokens)
    data = ReaderData(qa, parts.tokenizer, RetrievalTokenizer(), recipe.seed, spans)
    window = int(parts.base.model.config.max_position_embeddings)
    text = not parts.adapters.has(TEACHER)  # which reads text when this reader is served (`engine/reader.py`)
    return QuestionData(data, parts.tokenizer, parts.base.eos_ids[0], recipe.seed, window, text)


def _weights(parts: Parts) -> dict[str, checkpoint.Weights]:
    return {
        "head": checkpoint.of_module(parts.head),
        "encoder": checkpoint.of_adapter(parts.adapters, ENCODER),
        "reader": checkpoint.of_adapter(parts.adapters, READER),
    }


def _log(out: Path, progress: Progress, row: dict[str, Any], seconds_left: float, say: Callable[[str], None]) -> None:
    """`seconds_left` are the present stage's: a step of another may cost many times as much."""
    full = {
        "step": progress.step,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()},
        "source_tokens": progress.source_tokens,
        "tokens_per_second": round(progress.source_tokens / progress.seconds, 1),
        "stage_minutes_left": round(seconds_left / 60, 1),
    }
    with (out / checkpoint.METRICS).open("a") as file:
        file.write(json.dumps(full) + "\n")
    if progress.step % 10 == 0 or progress.step == 1:
        say(json.dumps(full))
