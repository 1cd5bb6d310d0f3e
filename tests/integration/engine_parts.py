"""Small engines for tests: a tiny random model, a stand-in for the retrieval encoder, and a way to run to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model

from memoryd.compress.card import ENOUGH, OVER_FIRST, OVER_WRONG, QUESTIONS, WIDE, Gate, read_card, write_card
from memoryd.compress.pooled import PooledCompressor, Projector, save, vocabulary_of
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.engine.output import Value
from memoryd.engine.reader import Readers, Refusal
from memoryd.engine.request import GenerateEvent
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Limits
from tests.tiny_models import make_tiny_model


class Encoder:
    """Three numbers of a text."""

    fingerprint = "encoder"
    dim = 3

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(t), t.count("a"), 1] for t in texts], np.float32)


def make_base(kind: str, path: Path, seed: int = 0) -> BaseModel:
    """Weights larger than the usual random ones: answers then depend on every part of the prompt and rarely tie."""
    base = load_base_model(make_tiny_model(kind, path, seed))
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return base


def make_runner(
    base: BaseModel,
    reader: Path | None = None,
    limits: Limits | None = None,
    refusal: Refusal | None = None,
    soft_reader: Path | None = None,
) -> Runner:
    adapters = Adapters(base, Readers(reader, soft_reader))
    compressor = PooledCompressor.untrained(base, adapters, 4)
    return Runner(base, adapters, compressor, Encoder(), limits or Limits(prefill=16), refusals={False: refusal})


def untrained(base: BaseModel, ratio: int = 4) -> PooledCompressor:
    """What `make_runner` compresses with; it needs no adapters of its own."""
    return PooledCompressor.untrained(base, Adapters(base), ratio)


def seeing(base: BaseModel, adapters: Adapters) -> Projector:
    """The projector of a pooled compressor as after training, whose output depends on its encoder's pass; the encoder, which
    is as much of it, is made too."""
    projector = Projector.untrained(base.d_model, vocabulary_of(base))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        learned = [projector.down.weight, projector.weigh.weight, *adapters.create(ENCODER, rank=4, alpha=8)]
        for parameter in learned:
            parameter.normal_(std=0.3, generator=generator)
    return projector.eval().requires_grad_(False)


def save_compressor(directory: Path, model: Path, ratio: int = 4) -> str:
    """A compressor that sees, for `serve --compressor`, with the verdict that it has passed its gate at this ratio. Returns its
    fingerprint."""
    base = load_base_model(model)
    adapters = Adapters(base)
    save(directory, base, "tiny", adapters, seeing(base, adapters), {})
    made = PooledCompressor.load(directory, base, Adapters(load_base_model(model)), ratio).fingerprint
    figures = {OVER_FIRST: 0.02, OVER_WRONG: 2 * WIDE, QUESTIONS: float(ENOUGH)}
    write_card(directory, replace(read_card(directory), gates={ratio: Gate(figures, compressor=made)}))
    return made


def make_reader(kind: str, seed: int, model: Path, out: Path, weights: int = 7) -> Path:
    """A LoRA whose update is as large as the weights, so that it shows; drawn by the seed `weights`."""
    base = make_base(kind, model, seed)
    torch.manual_seed(weights)
    peft = get_peft_model(base.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(out)
    return out


def run(runner: Runner, limit: int = 10_000) -> dict[int, list[Value]]:
    """Step until idle; values by call."""
    values: dict[int, list[Value]] = {}
    for _ in range(limit):
        if runner.idle:
            return values
        for output in runner.step():
            values.setdefault(output.call, []).append(output.value)
    raise AssertionError("the runner does not come to an end")


def text(values: Sequence[Value]) -> str:
    assert all(isinstance(value, GenerateEvent) for value in values), values
    return "".join(value.text for value in values if isinstance(value, GenerateEvent))
