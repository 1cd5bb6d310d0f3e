"""Answering and learning at the shape of a large base model, with random weights: what a GPU is needed for.

    python -m bench.geometry --geometry 7b [--device cuda] [--minutes 8] [--only answer]

LLoCO reports answers that are up to 7.62x faster, and finetuning at 11.52x the throughput, for a base model of 7B on an A100,
at about 30x compression. Speed does not depend on what weights are, so random ones of that shape show what memoryd's own loop
makes of it: `Runner` and `Learner`, as a worker runs them. Source tokens are given as full text, and as compressed embeddings
at four ratios; both are drawn. Arms of one length follow one another, the full text first, so that a ratio is of one run.

What does not fit in the device's memory is a row that says so. The figures are written only where they are of a geometry that
a paper reports, on a GPU; `--geometry tiny` rehearses all of it on a CPU in a minute.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bench import learn
from bench.lab import row
from bench.learn import RAW, Arm, Measured
from bench.stats import median
from memoryd.eval import figures
from memoryd.eval.figures import Row

if TYPE_CHECKING:
    from memoryd.engine.base_model import BaseModel
    from memoryd.engine.runner import Runner

T = TypeVar("T")
LLOCO = 7.62
CHUNK = 512
RATIOS = (RAW, 4, 8, 16, 32)
QUESTION, ANSWER = 24, 32  # tokens
_FEWEST = 3  # runs of an arm, however late it is


@dataclass(frozen=True, slots=True)
class Geometry:
    """`config` is transformers' of a Llama; so many answers are measured of each number of source tokens, and so many examples
    learned."""

    config: Mapping[str, int]
    dtype: str
    answers: Mapping[int, int]
    examples: Mapping[int, int]
    reported: bool = False
    """Whether there are a paper's figures to hold it against."""


_LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 1 << 18,
}
_LONG = {4096: 20, 8192: 20, 16384: 20, 32768: 20, 131072: 3}
_LEARNED = {2048: 20, 4096: 20, 7680: 20}
GEOMETRIES = {
    "7b": Geometry(_LLAMA_7B | {"num_key_value_heads": 32}, "bfloat16", _LONG, _LEARNED, reported=True),
    "7b-8kv": Geometry(_LLAMA_7B | {"num_key_value_heads": 8}, "bfloat16", _LONG, _LEARNED, reported=True),
    "tiny": Geometry(
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
        "float32",
        {512: 3, 1024: 3},
        {512: 3, 1024: 3},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0, or 1 where an aim was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.geometry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help=f"after these an arm is measured {_FEWEST} times")
    parser.add_argument("--only", choices=("answer", "learn"), help="one of the two tables, and write no figures")
    options = parser.parse_args(argv)
    import torch

    geometry, deadline = GEOMETRIES[options.geometry], time.monotonic() + options.minutes * 60
    on_gpu = options.device.startswith("cuda")
    name = torch.cuda.get_device_name(options.device) if on_gpu else f"CPU, {len(os.sched_getaffinity(0))} cores"
    rows = [_said(row(f"machine: {name}", 1, ""))]
    base = random_base(geometry, options.device)
    if options.only != "learn":
        rows += _answers(base, geometry, deadline)
    if options.only != "answer":
        rows += _lessons(base, geometry, deadline)
    if on_gpu and geometry.reported and not options.only:
        command = f"python -m bench.geometry --geometry {options.geometry} --minutes {options.minutes:g}"
        figures.write(f"geometry-{options.geometry}", [replace(r, command=command) for r in rows])
        figures.render_all()
    return 1 if any(r.met is False for r in rows) else 0


def random_base(geometry: Geometry, device: str) -> BaseModel:
    """Made where it is used: to write 13 GB down and read them again takes longer than all that is measured. Nothing ends an
    answer but its length."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from memoryd.engine.base_model import BaseModel

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **geometry.config, tie_word_embeddings=False)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, geometry.dtype), attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    tokenizer: Any = _Digits()
    return BaseModel(model, tokenizer, "random", geometry.config["hidden_size"], ())


class _Digits:
    """Says a token as its number: the loop asks for text."""

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(map(str, ids))


def _answers(base: BaseModel, geometry: Geometry, deadline: float) -> list[Row]:
    """Of each length and ratio; the full text of a length is the baseline of the others."""
    from memoryd.compress.pooled import PooledCompressor
    from memoryd.engine.adapters import Adapters
    from memoryd.engine.runner import Runner
    from memoryd.engine.scheduler import Limits

    on_gpu = base.model.device.type == "cuda"
    limits = Limits(rows=64, prefill=2048) if on_gpu else Limits(prefill_alone=512)  # the worker's own
    adapters = Adapters(base)
    no_encoder: Any = None  # nothing is embedded here
    compressor = PooledCompressor.untrained(base, adapters, 4)
    runner, made_by = Runner(base, adapters, compressor, no_encoder, limits), compressor.fingerprint
    rows: list[Row] = []
    answer(runner, base, made_by, CHUNK, RAW, seed=0)  # warms up
    for tokens, times in geometry.answers.items():
        full: list[tuple[float, float]] | None = None
        for ratio in RATIOS:
            name = f"answer: {tokens} source tokens, {f'compressed {ratio}x' if ratio else 'full text'}"

            def once(number: int, tokens: int = tokens, ratio: int = ratio) -> tuple[float, float]:
                return answer(runner, base, made_by, tokens, ratio, seed=number)

            taken, peak = _repeated(base, once, times, deadline)
            full = taken if ratio == RAW else full
            rows += [_said(r) for r in answer_rows(name, taken, full if ratio else None, peak, (tokens, ratio) == (32768, 32))]
    return rows


def answer(runner: Runner, base: BaseModel, compressor: str, tokens: int, ratio: int, seed: int) -> tuple[float, float]:
    """Milliseconds from the request to the first token, and of each token after it. `compressor` is its fingerprint."""
    import torch

    from memoryd.engine.request import Generation, Segment, Soft, TokenIds
    from memoryd.engine.runner import to_bytes

    r, vocabulary = random.Random(f"{seed}/{tokens}/{ratio}"), int(base.model.config.vocab_size)
    question = TokenIds(r.choices(range(vocabulary), k=QUESTION))
    source: list[Segment] = [TokenIds(r.choices(range(vocabulary), k=tokens))]
    if ratio:
        source = [Soft(to_bytes(torch.randn(CHUNK // ratio, base.d_model))) for _ in range(tokens // CHUNK)]
    began = time.perf_counter()
    runner.generate(1, Generation([*source, question], ANSWER, compressor_fingerprint=compressor if ratio else ""))
    first = 0.0
    while not runner.idle:
        for output in runner.step():
            if isinstance(output.value, Exception):
                raise output.value
            first = first or time.perf_counter()
    return (first - began) * 1000, (time.perf_counter() - first) * 1000 / (ANSWER - 1)


def answer_rows(
    name: str,
    taken: Sequence[tuple[float, float]] | None,
    full: Sequence[tuple[float, float]] | None,
    peak: float,
    is_llocos: bool,
) -> list[Row]:
    """`taken` and `full` as `answer` gives them; None is an arm that did not fit. The whole answer is held against LLoCO's."""
    if taken is None:
        return [row(f"{name}: did not fit in memory", math.nan, "ms")]

    def of(what: str, pick: Callable[[tuple[float, float]], float]) -> Row:
        return row(
            f"{name}, {what}",
            median([pick(one) for one in taken]),
            "ms",
            baseline=median([pick(one) for one in full]).value if full else None,
        )

    whole = of(f"the whole answer of {ANSWER}{' (LLoCO: up to 7.62x faster)' if is_llocos else ''}", _whole)
    if is_llocos and whole.ratio is not None:
        whole = replace(whole, aim=f"{LLOCO}x faster", met=1 / whole.ratio >= LLOCO)
    return [
        of("first token", lambda one: one[0]),
        of("each token after it", lambda one: one[1]),
        whole,
        row(f"{name}, peak memory", peak, "MiB"),
    ]


def _whole(taken: tuple[float, float]) -> float:
    return taken[0] + (ANSWER - 1) * taken[1]


def _lessons(base: BaseModel, geometry: Geometry, deadline: float) -> list[Row]:
    """As `bench.learn` measures them, with this base model."""
    from memoryd.engine.adapters import Adapters

    adapters, most, rows = Adapters(base), max(geometry.examples.values()) + 1, list[Row]()
    for tokens, examples in geometry.examples.items():
        raw: Measured | None = None
        for ratio in RATIOS:
            arm = Arm(tokens, ratio, examples + 1)  # the first warms up

            def seconds(_: int, arm: Arm = arm) -> list[float]:
                return learn.steps(arm, base, adapters, time.time() + deadline - time.monotonic(), most)[1:]

            taken, peak = _repeated(base, seconds, 1, deadline)
            measured = Measured(taken[0], peak) if taken else None
            raw = measured if ratio == RAW else raw
            rows += [_said(r) for r in learn.rows_of(arm, measured, raw)]
    return rows


def _repeated(base: BaseModel, work: Callable[[int], T], times: int, deadline: float) -> tuple[list[T] | None, float]:
    """What `work(number)` gives, so many times, or the first few where it is late, and the peak of the device's memory in MiB
    (on a CPU the process's own, so far); None where that did not suffice."""
    import torch

    device, done = base.model.device, list[T]()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        while len(done) < times and (len(done) < _FEWEST or time.monotonic() < deadline):
            done.append(work(len(done)))
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return None, math.nan
    if device.type == "cuda":
        return done, torch.cuda.max_memory_allocated(device) / (1 << 20)
    return done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    from memoryd.errors import ResourceExhausted

    return isinstance(error, torch.OutOfMemoryError | ResourceExhausted)


def _said(made: Row) -> Row:
    print(f"{made.name:<88} {made.value:>9.4g} {made.unit}{f'  ({made.ratio:.3f}x)' if made.ratio else ''}", flush=True)
    return made


if __name__ == "__main__":
    sys.exit(main())
