"""Trains one memory's adapter in short steps, on the worker's loop: the base model and the reader stay as they are.

What it sees is what an answer would see: contexts with compressed embeddings as they are stored, never made anew. The loss is
on answers only. A checkpoint every minute, so that a killed run goes on where it stood, with the same curve.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.adapters import READER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.request import LearnEvent, Learning
from memoryd.errors import InvalidArgument
from memoryd.learn import checkpoint
from memoryd.learn.soft_packing import SoftPack, predict

if TYPE_CHECKING:
    from torch import Tensor

RESULT = "adapter"
"""The folder, in a run's directory, that holds the trained adapter in PEFT's format."""
_BETAS = (0.9, 0.95)
_CLIP = 1.0


class Learner:
    """One run, in ``learning.directory``. Call `step` until `done`."""

    def __init__(
        self,
        call: int,
        learning: Learning,
        base: BaseModel,
        adapters: Adapters,
        tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins, or goes on from the directory's last checkpoint. A micro-step has at most ``tokens`` positions, padding
        counted, one pack at least. InvalidArgument where there is nothing to learn from, or a prompt is too long."""
        longest = int(base.model.config.max_position_embeddings)
        if not learning.packs:
            raise InvalidArgument("there are no examples to learn from", reason="NO_EXAMPLES")
        if any(_positions(pack, learning.chunks) > longest for pack in learning.packs):
            raise InvalidArgument(f"an example is longer than the base model's {longest} positions")
        self._learning, self._base, self._adapters = learning, base, adapters
        self._tokens, self._clock = tokens, clock
        self._name = f"learning/{call}"
        self._reader = READER if learning.use_reader else ""
        self._table = _Table(base, learning.chunks)
        settings = learning.settings
        torch.manual_seed(settings.seed)
        parameters = adapters.create(self._name, settings.rank, settings.alpha, settings.targets)
        if not parameters:
            raise InvalidArgument(f"the base model has no linear layers called {', '.join(settings.targets)}")
        self._optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=_BETAS, weight_decay=0.0)
        self._parameters = parameters
        self._weights = {"adapter": checkpoint.of_adapter(adapters, self._name)}
        self.steps = learning.steps
        progress = checkpoint.resume(learning.directory, self._weights, self._optimizer, str(base.model.device))
        self._step = int(progress.get("step", 0))
        self._seconds = float(progress.get("seconds", 0.0))
        self._trained = int(progress.get("tokens", 0))
        self._saved = clock()
        self._micros = self._begin()
        self._loss = 0.0

    @property
    def done(self) -> bool:
        return self._step >= self.steps

    def step(self) -> LearnEvent | None:
        """One micro-step. An event where it completed a step of the optimizer; the last has a finish_reason."""
        with torch.inference_mode(False), torch.enable_grad():  # the loop's steps are otherwise without gradients
            return self._run()

    def _run(self) -> LearnEvent | None:
        began = self._clock()
        if not self.done:
            packs, share = next(self._micros)
            with self._adapters.using(self._reader, self._name):
                loss = predict(self._base.model, packs, [self._table] * len(packs)).loss() * share
                loss.backward()
            self._loss += loss.item()
            self._trained += sum(_positions(pack, self._learning.chunks) for pack in packs)
            self._seconds += self._clock() - began
            if self._left:
                return None
            self._update()
        event = LearnEvent(self._step, self.steps, self._loss, self._trained, self._seconds)
        if self.done:
            self._finish()
            return LearnEvent(*event.numbers, finish_reason="trained")
        self._loss = 0.0
        self._micros = self._begin()
        return event

    def close(self) -> None:
        """Give back what it holds of the model. Its directory stays."""
        self._adapters.remove(self._name)
        self._optimizer.zero_grad(set_to_none=True)

    def _begin(self) -> Iterator[tuple[Sequence[SoftPack], float]]:
        """The micro-steps of the next step: packs of like length together, each with its share of the loss."""
        settings, packs = self._learning.settings, self._learning.packs
        if self.done:
            return iter(())
        epoch, number = divmod(self._step * settings.batch, self._learning.epoch)
        order = list(range(len(packs)))
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)
        batch = sorted((packs[i] for i in order[number : number + settings.batch]), key=self._length)
        groups: list[list[SoftPack]] = []
        for pack in batch:
            if groups and self._length(pack) * (len(groups[-1]) + 1) <= self._tokens:
                groups[-1].append(pack)
            else:
                groups.append([pack])
        self._left = len(groups)

        def micros() -> Iterator[tuple[Sequence[SoftPack], float]]:
            for group in groups:
                self._left -= 1
                yield group, len(group) / len(batch)

        return micros()

    def _length(self, pack: SoftPack) -> int:
        return _positions(pack, self._learning.chunks)

    def _update(self) -> None:
        began, settings = self._clock(), self._learning.settings
        rate = settings.learning_rate * _schedule(self._step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._seconds += self._clock() - began
        row = {"step": self._step, "loss": round(self._loss, 5), "tokens": self._trained, "seconds": round(self._seconds, 3)}
        self._learning.directory.mkdir(parents=True, exist_ok=True)
        with (self._learning.directory / checkpoint.METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._clock() - self._saved >= settings.checkpoint_seconds and not self.done:
            progress: dict[str, Any] = {"step": self._step, "seconds": self._seconds, "tokens": self._trained}
            checkpoint.save(self._learning.directory, self._weights, self._optimizer, asdict(settings), progress)
            self._saved = self._clock()

    def _finish(self) -> None:
        """The adapter in PEFT's format, whole or not at all."""
        building, target = self._learning.directory / f"{RESULT}.new", self._learning.directory / RESULT
        shutil.rmtree(building, ignore_errors=True)
        self._adapters.save(self._name, building, self._learning.base_model)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)


class _Table(Sequence["Tensor"]):
    """The run's chunks as tensors of the base model's dtype, on its device, made when they are asked for."""

    def __init__(self, base: BaseModel, chunks: Sequence[CompressedEmbeddings]) -> None:
        self._chunks = chunks
        model: Any = base.model  # transformers types its models' attributes loosely
        self._like: Tensor = model.get_input_embeddings().weight

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: Any) -> Any:
        made = torch.from_numpy(self._chunks[index].to_float32())
        return made.to(self._like.device, self._like.dtype)


def _positions(pack: SoftPack, chunks: Sequence[CompressedEmbeddings]) -> int:
    context = sum(chunks[piece].k if isinstance(piece, int) else len(piece) for piece in pack.context)
    return context + sum(len(question) + len(answer) - 1 for question, answer in pack.questions)


def _schedule(step: int, steps: int) -> float:
    """Warm-up over a twentieth of the steps, then a cosine to a fiftieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
