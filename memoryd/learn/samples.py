"""What each step of training a compressor learns from: the same samples for the same recipe and step, whoever makes them.

On a GPU a step takes less time than making its samples, so they are made ahead, in processes beside the one that trains.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from memoryd.learn.compressor_data import QuestionData, TextData
from memoryd.learn.compressor_recipe import Recipe
from memoryd.learn.soft_packing import SoftPack


@dataclass(frozen=True, slots=True)
class StepSamples:
    """Of one step. `read` are the packs in `shown` as text, for the teacher: as many, or none."""

    ratio: int
    texts: Sequence[SoftPack]
    shown: Sequence[SoftPack]
    read: Sequence[SoftPack]


class Samples:
    """Those of all steps, by number. Steps are asked for in rising order: questions are drawn one after another."""

    def __init__(
        self,
        recipe: Recipe,
        texts: TextData,
        questions: QuestionData | None,
        ratios: Sequence[int],
        slots: Callable[[int, int], int],
        taught: bool,
    ) -> None:
        """`ratios` are those that the compressor has, `slots` how many embeddings so many tokens become at a ratio; `taught`:
        whether there is a teacher. Without `questions` no stage may ask any."""
        self._recipe = recipe
        self._texts = texts
        self._questions = questions
        self._ratios = ratios
        self._slots = slots
        self._taught = taught
        self._packs = questions.packs() if questions else iter(())
        self._drawn = 0  # of them

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, step: int) -> StepSamples:
        stage, _ = self._recipe.at(step)
        ratio = random.Random(f"{self._recipe.seed}/{step}/ratio").choice(
            [r for r in self._ratios if r in stage.ratios] or list(self._ratios)
        )
        texts = self._texts.packs(step, stage.texts, stage.repeat, stage.follow)
        if self._questions is None or not stage.packs:
            return StepSamples(ratio, texts, (), ())
        questions = self._questions

        def slots(tokens: int) -> int:
            return self._slots(tokens, ratio)

        skipped = self._recipe.packs_before(step) - self._drawn
        drawn = list(islice(self._packs, skipped, skipped + stage.packs))
        self._drawn += skipped + stage.packs
        teaches = self._taught and stage.divergence > 0
        modes = [questions.mode(step, index) for index in range(len(drawn))]
        fitted = [
            questions.fitted(pack, slots, {mode, "text"} if teaches else {mode})
            for pack, mode in zip(drawn, modes, strict=True)
        ]
        shown = [questions.encode(pack, slots, mode) for pack, mode in zip(fitted, modes, strict=True)]
        read = [questions.encode(pack, slots, "text") for pack in fitted] if teaches else []
        return StepSamples(ratio, texts, shown, read)

    def steps(self, begin: int, end: int, workers: int) -> Iterator[StepSamples]:
        """Those of the steps from `begin` up to `end`, made ahead by so many processes; by none, made when asked for."""
        if not workers or begin >= end:
            return (self[step] for step in range(begin, end))
        from torch.utils.data import DataLoader

        return iter(
            DataLoader(
                self,  # type: ignore[arg-type] # what a data set is asked for, it has
                batch_size=None,
                sampler=range(begin, end),
                num_workers=workers,
                collate_fn=_as_it_is,
                worker_init_fn=_begin,
                multiprocessing_context="fork",  # they have the data that is there already
            )
        )


def _as_it_is(samples: Any) -> Any:
    return samples


def _begin(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not here
