"""Finetuning on compressed context against the raw text of it: `make bench-learn`.

    python -m bench.learn --data-dir DIR [--tokens 2048 4096 7680]

The same base model, examples and code of the worker's loop (`memoryd/learn/learner.py`), in one run. Each arm trains in a
process of its own, so that its peak memory is its own. Speed does not depend on what the text or the weights say, so both
are made up. LLoCO reports 11.52x at about 30x compression, for 7B on an A100.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.lab import row
from bench.stats import median
from memoryd.eval import figures
from memoryd.eval.figures import Row

LLOCO = 11.52
_QUESTION, _ANSWER = 24, 12  # tokens
_EXAMPLES = 3  # measured, after one that warms up


@dataclass(frozen=True, slots=True)
class Arm:
    """`ratio` 0 is the raw text."""

    tokens: int
    ratio: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.learn", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="converted models [a temporary one]")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 7680], help="of source text, chunks of 512")
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--examples", type=int, default=_EXAMPLES)
    options = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = options.data_dir or Path(scratch)
        for tokens in options.tokens:
            raw = _alone(Arm(tokens, 0), data_dir, options.examples)
            rows += _rows(Arm(tokens, 0), raw, None)
            for ratio in options.ratios:
                rows += _rows(Arm(tokens, ratio), _alone(Arm(tokens, ratio), data_dir, options.examples), raw)
    figures.write("learn-speed", [replace(r, command="make bench-learn") for r in rows])
    figures.render_all()
    return 1 if any(r.met is False for r in rows) else 0


def _rows(arm: Arm, measured: tuple[list[float], float], raw: tuple[list[float], float] | None) -> list[Row]:
    seconds, mebibytes = measured
    name = f"{arm.tokens} tokens, {f'compressed {arm.ratio}x' if arm.ratio else 'raw text'}"
    rate = median([60 / s for s in seconds])
    baseline = median([60 / s for s in raw[0]]).value if raw else None
    aim = LLOCO if arm.ratio == 32 and arm.tokens > 4096 else None
    rows = [
        row(f"learn: {name}", rate, "examples/min", baseline=baseline, above_ratio=aim),
        row(f"learn: {name}, of source", rate.value / 60 * arm.tokens, "tokens/s"),
        row(f"learn: {name}, peak memory", mebibytes, "MiB", baseline=raw[1] if raw else None),
    ]
    for r in rows:
        print(f"{r.name:<58} {r.value:>9.3g} {r.unit}{f'  ({r.ratio:.2f}x)' if r.ratio else ''}", flush=True)
    return rows


def _alone(arm: Arm, data_dir: Path, examples: int) -> tuple[list[float], float]:
    """Seconds of each example and peak memory in MiB, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(train, (arm, data_dir, examples))


def train(arm: Arm, data_dir: Path, examples: int) -> tuple[list[float], float]:
    """Trains an adapter for one example more than is measured, one at a time."""
    import torch

    from memoryd.engine.adapters import Adapters
    from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model, load_base_model
    from memoryd.engine.request import Learning, LearnSettings
    from memoryd.engine.runner import to_bytes
    from memoryd.learn.learner import Learner
    from memoryd.learn.soft_packing import SoftPack

    path = ensure_base_model(EMBEDDED_MODEL, data_dir)
    base = load_base_model(path)
    r = random.Random(1)
    vocabulary = base.model.config.vocab_size

    def ids(count: int) -> tuple[int, ...]:
        return tuple(r.randrange(100, vocabulary) for _ in range(count))

    chunk = to_bytes(torch.randn(512 // max(1, arm.ratio), base.d_model))
    count = arm.tokens // 512
    packs = [
        SoftPack((), tuple(range(count)) if arm.ratio else (ids(arm.tokens),), ((ids(_QUESTION), ids(_ANSWER)),))
        for _ in range(examples + 1)
    ]
    with tempfile.TemporaryDirectory() as run:
        settings = LearnSettings(epochs=1, batch=1, checkpoint_seconds=1e9)
        learning = Learning(packs, [chunk] * count if arm.ratio else [], Path(run), "bench", settings)
        learner = Learner(1, learning, base, Adapters(base), tokens=arm.tokens + 64)
        seconds: list[float] = []
        while not learner.done:
            began = time.perf_counter()
            learner.step()
            seconds.append(time.perf_counter() - began)
    return seconds[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
