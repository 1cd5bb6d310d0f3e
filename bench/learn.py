"""Finetuning on compressed context against the raw text of it: `make bench-learn`, made to end within 12 minutes on two cores.

    python -m bench.learn [--data-dir DIR] [--tokens 2048]

LLoCO reports 11.52x the throughput at about 30x compression and 8k tokens of text, for 7B on an A100. Here 32x stands for 30x,
the nearest ratio that memoryd has, and 7,680 tokens, 15 chunks, for 8k: the embedded base model has 8,192 positions, and a
question and its answer need some too.

An arm is a length and what stands for the text: the text itself, or its compressed embeddings at a ratio. All arms train with
the code of the worker's loop (`memoryd/learn/learner.py`), from the same base model, on the same examples: the same ids of
question, answer and text, in the same order; the compressed embeddings are made of those ids before the clock starts, as a
daemon has them long before it learns. Speed does not depend on what the ids say, or on what a compressor has learned: ids are
drawn, and the compressor has its first weights. What is measured is the time of each example, one in a step.

Each arm runs in a process of its own, so that its peak memory, weights included, is its own. One that does not fit in memory
is a row that says so. The longest texts come first: what is late is measured on fewer examples.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.lab import row
from bench.stats import median
from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model
from memoryd.eval import figures
from memoryd.eval.figures import Row

if TYPE_CHECKING:
    from memoryd.engine.adapters import Adapters
    from memoryd.engine.base_model import BaseModel
    from memoryd.engine.request import Learning

T = TypeVar("T")
LLOCO = 11.52
CHUNK = 512
RAW = 0
"""The raw text, where a ratio is asked for."""
PLAN: Mapping[int, Mapping[int, int]] = {  # tokens of text -> ratio -> examples: fewer of the longest, for the time it takes
    7680: {RAW: 2, 4: 2, 8: 2, 16: 3, 32: 6},
    4096: {RAW: 5, 4: 5, 32: 6},
    2048: {RAW: 5, 4: 5, 32: 6},
}
_MINUTES = 11.0
_FEWEST = 2  # examples of an arm, however late it is
_QUESTION, _ANSWER = 24, 12  # tokens


@dataclass(frozen=True, slots=True)
class Arm:
    """`ratio` is RAW for the raw text. So many `examples` are measured, or the first few where it is late."""

    tokens: int
    ratio: int
    examples: int

    @property
    def name(self) -> str:
        lloco = " (LLoCO: 8k, 30x)" if self.is_llocos else ""
        return f"learn: {self.tokens} tokens, {f'compressed {self.ratio}x' if self.ratio else 'raw text'}{lloco}"

    @property
    def is_llocos(self) -> bool:
        """Whether it stands for what LLoCO reports."""
        return (self.tokens, self.ratio) == (7680, 32)


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each example, and peak memory of the process in MiB."""

    seconds: Sequence[float]
    mebibytes: float


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 1 where the aim was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="converted models [a temporary one]")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help=f"base model: a name or a directory [{EMBEDDED_MODEL}]")
    parser.add_argument("--tokens", type=int, choices=PLAN, help="measure this length alone, and write no figures")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=f"after these an arm measures {_FEWEST} examples")
    options = parser.parse_args(argv)
    began = time.time()
    machine = [
        row("machine: CPU cores", len(os.sched_getaffinity(0)), "cores"),
        row("machine: load before", os.getloadavg()[0], ""),
    ]
    plan = {options.tokens: PLAN[options.tokens]} if options.tokens else PLAN
    with tempfile.TemporaryDirectory() as scratch:
        # In a process of its own, like the arms: neither they nor this one, which they begin as, are to hold what it takes.
        path = alone(ensure_base_model, options.model, options.data_dir or Path(scratch))
        if path is None:
            sys.exit("the base model cannot be converted: there is not enough memory for it")
        rows = [*machine, *measure(path, plan, deadline=began + options.minutes * 60)]
    print(f"\nTook {time.time() - began:.0f} s.")
    if options.model != EMBEDDED_MODEL:
        print("docs/figures stays as it is: it shows the embedded base model")
    elif not options.tokens:
        figures.write("learn-speed", [replace(r, command="make bench-learn") for r in rows])
        figures.render_all()
        print("The figures are in docs/figures/learn-speed.json.")
    return 1 if any(r.met is False for r in rows) else 0


def measure(path: Path, plan: Mapping[int, Mapping[int, int]], deadline: float = math.inf) -> list[Row]:
    """The rows of all arms, with the base model in `path`. `deadline` is in seconds since the epoch."""
    rows: list[Row] = []
    for tokens, ratios in plan.items():
        raw: Measured | None = None
        for ratio, examples in ratios.items():
            arm = Arm(tokens, ratio, examples)
            measured = alone(train, arm, path, deadline)
            made = rows_of(arm, measured, raw)
            raw = measured if ratio == RAW else raw
            rows += made
            for r in made:
                print(f"{r.name:<66} {r.value:>9.3g} {r.unit}{f'  ({r.ratio:.2f}x)' if r.ratio else ''}", flush=True)
    return rows


def rows_of(arm: Arm, measured: Measured | None, raw: Measured | None) -> list[Row]:
    """The arm's figures, held against those of the raw text of that length. None is an arm that did not fit in memory."""
    if measured is None:
        return [row(f"{arm.name}: did not fit in memory", math.nan, "examples/min")]

    def rate(name: str, of_an_example: float, unit: str, aim: float | None = None) -> Row:
        baseline = median([of_an_example / s for s in raw.seconds]).value if raw else None
        return row(name, median([of_an_example / s for s in measured.seconds]), unit, baseline=baseline, above_ratio=aim)

    return [
        rate(arm.name, 60, "examples/min", aim=LLOCO if arm.is_llocos else None),
        rate(f"{arm.name}, of source", arm.tokens, "tokens/s"),
        row(f"{arm.name}, peak memory", measured.mebibytes, "MiB", baseline=raw.mebibytes if raw else None),
    ]


def alone(work: Callable[..., T], *args: object) -> T | None:
    """What `work` returns, in a process of its own; None where that did not fit in memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_goes_first) as executor:
        try:
            return executor.submit(work, *args).result()
        except (BrokenProcessPool, MemoryError):  # the former: it was killed, as the system does when memory runs out
            return None
        except RuntimeError as error:  # torch's, where memory is limited and not overcommitted
            if "can't allocate memory" in str(error):
                return None
            raise


def _goes_first() -> None:
    """Where memory runs out it is this process that is killed, and no other on the machine."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def train(arm: Arm, path: Path, deadline: float = math.inf) -> Measured:
    """Trains an adapter in this process, one example at a time, with the base model in `path`."""
    from memoryd.engine.adapters import Adapters
    from memoryd.engine.base_model import load_base_model

    base = load_base_model(path)
    adapters = Adapters(base)
    steps(replace(arm, tokens=CHUNK, examples=1), base, adapters, deadline)  # warms up
    seconds = steps(arm, base, adapters, deadline)
    return Measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def steps(arm: Arm, base: BaseModel, adapters: Adapters, deadline: float, count: int = 0) -> list[float]:
    """Seconds of each step, one example in each. `count` as `lesson` takes it."""
    from memoryd.learn.learner import Learner

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        made = lesson(arm, base, adapters, Path(directory), count)
        with contextlib.closing(Learner(1, made, base, adapters, tokens=arm.tokens + 64)) as learner:
            while len(seconds) < arm.examples and (len(seconds) < _FEWEST or time.time() < deadline):
                began = time.perf_counter()
                learner.step()  # never the last of the run, which also writes the adapter
                seconds.append(time.perf_counter() - began)
    return seconds


def lesson(arm: Arm, base: BaseModel, adapters: Adapters, directory: Path, count: int = 0) -> Learning:
    """As many examples for all arms, so that all have the same order: `count`, or what PLAN takes. The same ids, and a shorter
    text is the beginning of a longer one."""
    from memoryd.compress.codec import CompressedEmbeddings
    from memoryd.compress.pooled import PooledCompressor, vocabulary_of
    from memoryd.engine.request import Learning, LearnSettings
    from memoryd.engine.runner import to_bytes
    from memoryd.learn.soft_packing import SoftPack

    compressor = PooledCompressor.untrained(base, adapters, arm.ratio) if arm.ratio else None
    packs: list[SoftPack] = []
    chunks: list[CompressedEmbeddings] = []
    for number in range(count or max(max(ratios.values()) for ratios in PLAN.values())):
        r, vocabulary = random.Random(number), vocabulary_of(base)
        question, answer, text = (tuple(r.choices(range(vocabulary), k=k)) for k in (_QUESTION, _ANSWER, arm.tokens))
        context: tuple[tuple[int, ...] | int, ...] = (text,)
        if compressor:
            soft = [to_bytes(*compressor.compress([text[at : at + CHUNK]])) for at in range(0, arm.tokens, CHUNK)]
            context = tuple(range(len(chunks), len(chunks) + len(soft)))
            chunks += soft
        packs.append(SoftPack((), context, ((question, answer),)))
    settings = LearnSettings(batch=1, checkpoint_seconds=math.inf)
    return Learning(packs, chunks, directory, "bench", settings)


if __name__ == "__main__":
    sys.exit(main())
