"""Trains one memory's adapter in short steps, on the worker's loop: the base model and the reader stay as they are.

What it sees is what an answer would see: contexts with compressed embeddings as they are stored, never made anew. The loss is
on answers only. A checkpoint every minute, so that a killed run goes on where it stood, with the same curve.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from memoryd import log
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.reader import Refusal
from memoryd.engine.request import LearnEvent, Learning
from memoryd.errors import Cancelled, InvalidArgument, ResourceExhausted, Unavailable
from memoryd.learn import checkpoint
from memoryd.learn.soft_packing import SoftPack, predict

if TYPE_CHECKING:
    from torch import Tensor

RESULT = "adapter"
"""The folder, in a run's directory, that holds the trained adapter in PEFT's format."""
_BETAS = (0.9, 0.95)
_CLIP = 1.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_log = log.get("learner")


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
        refusals: Mapping[bool, Refusal | None] = MappingProxyType({}),
    ) -> None:
        """Begins, or goes on from the directory's last checkpoint. A micro-step has at most ``tokens`` positions, padding
        counted, one pack at least. Packs that are longer than the base model's positions are left out. `refusals` are the
        readers', as `Runner` has them.

        InvalidArgument where there is nothing to learn from; ResourceExhausted on a full disk; Unavailable where the directory
        can't be used otherwise. Where any of it fails, the model is as it was.
        """
        learning = _fitting(learning, int(base.model.config.max_position_embeddings))
        self._learning, self._base, self._adapters = learning, base, adapters
        self._tokens, self._clock, self._refusals = tokens, clock, refusals
        self._name = f"learning/{call}"
        self._table = _Table(base, learning.chunks)
        self.steps = learning.steps
        self._weights = {"adapter": checkpoint.of_adapter(adapters, self._name)}
        try:
            with _on_disk(learning.directory):
                # Only here: once the daemon has removed it, the run is over, and nothing may make it again.
                learning.directory.mkdir(parents=True, exist_ok=True)
                progress = self._resumed()
            self._step = int(progress.get("step", 0))
            self._seconds = float(progress.get("seconds", 0.0))
            self._trained = int(progress.get("tokens", 0))
            self._micros = self._begin()
        except BaseException:
            adapters.remove(self._name)
            raise
        self._saved = clock()
        self._loss = 0.0

    def _resumed(self) -> dict[str, Any]:
        """The progress of the last checkpoint that this run can go on from; empty, and all as at the start, where there is
        none. Others are removed: made with other settings, or not whole after a power cut."""
        directory = self._learning.directory
        while True:
            self._create()
            try:
                progress = checkpoint.resume(directory, self._weights, self._optimizer, str(self._base.model.device))
                break
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                found = checkpoint.last(directory)
                if found is None or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
                    raise  # it may well be whole
                _log.warning("a checkpoint cannot be gone on from: removed", run=directory.name, exc_info=error)
                shutil.rmtree(found)
                if checkpoint.last(directory) is None:  # the rows of more steps than this run takes would stay
                    (directory / checkpoint.METRICS).unlink(missing_ok=True)
        checkpoint.mend_metrics(directory)
        return progress

    def _create(self) -> None:
        settings = self._learning.settings
        torch.manual_seed(settings.seed)
        shape = (settings.rank, settings.alpha, settings.targets)
        self._parameters = self._adapters.create(self._name, *shape, dropout=settings.dropout, rslora=settings.rslora)
        if not self._parameters:
            raise InvalidArgument(f"the base model has no linear layers called {', '.join(settings.targets)}")
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, betas=_BETAS, weight_decay=0.0)

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
            with self._adapters.using(self._reader(packs[0]), self._name), self._draws():
                predicted = predict(self._base.model, packs, [self._table] * len(packs))
                if refusal := self._refusal(packs[0]):
                    predicted = predicted.leaning(refusal.token, refusal.bias)
                loss = predicted.loss() * share
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

    @contextlib.contextmanager
    def _draws(self) -> Iterator[None]:
        """Dropout's draws depend on the step alone, so that a run that goes on has the curve of one that was never stopped;
        and nothing else that draws is touched."""
        if not self._learning.settings.dropout:
            yield
            return
        device = self._base.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(random.Random(f"{self._learning.settings.seed}/{self._step}/{self._left}").getrandbits(63))
            yield

    def close(self) -> None:
        """Give back what it holds of the model. Its directory stays."""
        self._adapters.remove(self._name)
        self._optimizer.zero_grad(set_to_none=True)

    def _reader(self, pack: SoftPack) -> str:
        """What reads such a pack, as where answers are served."""
        return self._adapters.reader(_is_soft(pack)) if self._learning.use_reader else ""

    def _refusal(self, pack: SoftPack) -> Refusal | None:
        """How easily that reader refuses. What is trained without this learns to refuse by itself, and where answers are given
        the bias comes on top."""
        return self._refusals.get(_is_soft(pack)) if self._learning.use_reader else None

    def _begin(self) -> Iterator[tuple[Sequence[SoftPack], float]]:
        """The micro-steps of the next step: packs of one reader and like length together, each with its share of the loss."""
        settings, packs = self._learning.settings, self._learning.packs
        if self.done:
            return iter(())
        epoch, number = divmod(self._step * settings.batch, self._learning.epoch)
        order = list(range(len(packs)))
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)
        batch = sorted((packs[i] for i in order[number : number + settings.batch]), key=self._kind)
        groups: list[list[SoftPack]] = []
        for pack in batch:
            fits = groups and self._length(pack) * (len(groups[-1]) + 1) <= self._tokens
            if fits and self._reader(pack) == self._reader(groups[-1][0]):
                groups[-1].append(pack)
            else:
                groups.append([pack])
        self._left = len(groups)

        def micros() -> Iterator[tuple[Sequence[SoftPack], float]]:
            for group in groups:
                self._left -= 1
                yield group, len(group) / len(batch)

        return micros()

    def _kind(self, pack: SoftPack) -> tuple[str, int]:
        return self._reader(pack), self._length(pack)

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
        directory = self._learning.directory
        with _on_disk(directory):
            with (directory / checkpoint.METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self._clock() - self._saved >= settings.checkpoint_seconds and not self.done:
                progress: dict[str, Any] = {"step": self._step, "seconds": self._seconds, "tokens": self._trained}
                checkpoint.save(directory, self._weights, self._optimizer, asdict(settings), progress, make=False)
                self._saved = self._clock()

    def _finish(self) -> None:
        """The adapter in PEFT's format, whole or not at all."""
        building, target = self._learning.directory / f"{RESULT}.new", self._learning.directory / RESULT
        files = self._adapters.files(self._name, self._learning.base_model)
        with _on_disk(self._learning.directory):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            for name, data in files.items():
                (building / name).write_bytes(data)
            checkpoint.flush(building)
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


@contextlib.contextmanager
def _on_disk(directory: Path) -> Iterator[None]:
    """What goes wrong with a run's files, as our own errors: Cancelled where its directory was removed."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_dir():
            raise Cancelled("the run's directory was removed: it was cancelled") from None
        if error.errno in _NO_ROOM:
            raise ResourceExhausted("no room left for what is being learned: free disk space", reason="DISK_FULL") from None
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise Unavailable(f"the files of what is being learned cannot be used just now ({name}): try again") from None


def _fitting(learning: Learning, longest: int) -> Learning:
    """Without the packs that are longer than the base model's positions. InvalidArgument where nothing is left."""
    if not learning.packs:
        raise InvalidArgument("there are no examples to learn from", reason="NO_EXAMPLES")
    packs = [pack for pack in learning.packs if _context(pack, learning.chunks) + max(_own(pack)) <= longest]
    if not packs:
        raise InvalidArgument(f"every example is longer than the base model's {longest} positions", reason="NO_EXAMPLES")
    if left_out := len(learning.packs) - len(packs):
        _log.warning("packs longer than the base model's positions are left out", packs=left_out, positions=longest)
    return replace(learning, packs=packs)


def _is_soft(pack: SoftPack) -> bool:
    return any(isinstance(piece, int) for piece in pack.context)


def _positions(pack: SoftPack, chunks: Sequence[CompressedEmbeddings]) -> int:
    """That it takes in a pass: all questions are behind one another, though each is numbered from the context's end."""
    return _context(pack, chunks) + sum(_own(pack))


def _context(pack: SoftPack, chunks: Sequence[CompressedEmbeddings]) -> int:
    return sum(chunks[piece].k if isinstance(piece, int) else len(piece) for piece in pack.context)


def _own(pack: SoftPack) -> list[int]:
    """Positions of each of its questions with its answer."""
    return [len(question) + len(answer) - 1 for question, answer in pack.questions]


def _schedule(step: int, steps: int) -> float:
    """Warm-up over a twentieth of the steps, then a cosine to a fiftieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
