"""`python -m bench.worker`: what the engine costs on this machine, in one process and without a daemon.

Wall time is what a user waits; CPU time is also given, since it stays comparable where other work shares the cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from bench.compress import as_trained
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import ensure_base_model, load_base_model
from memoryd.engine.reader import Readers, reader_path
from memoryd.engine.request import Generation, TokenIds
from memoryd.engine.retrieval_encoder import load_retrieval_encoder
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Limits

PROMPT, ANSWER, CHUNK, TEXT = 1024, 32, 512, "The river was low that autumn, and the mill stood idle. " * 15


@dataclass
class Span:
    """Seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def per_second(self, count: int) -> str:
        return f"{count / self.wall:9.1f}/s wall {count / self.cpu:9.1f}/CPU-s"


@contextmanager
def span() -> Iterator[Span]:
    taken, wall, cpu = Span(), time.perf_counter(), time.process_time()
    yield taken
    taken.wall, taken.cpu = time.perf_counter() - wall, time.process_time() - cpu


def until_idle(runner: Runner) -> int:
    """Number of outputs."""
    outputs = 0
    while not runner.idle:
        outputs += len(runner.step())
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    with span() as taken:
        base = load_base_model(ensure_base_model(arguments.model, arguments.data_dir))
        encoder = load_retrieval_encoder(arguments.data_dir)
        reader = reader_path(base.fingerprint)
        adapters = Adapters(base, Readers(reader))
        compressor = as_trained(base, adapters, 4)
        base = replace(base, eos_ids=())  # answers of one length
    say("load, after imports", f"{taken.wall:9.2f} s wall {taken.cpu:9.2f} CPU-s")
    runner = Runner(base, adapters, compressor, encoder, Limits())
    prompt = torch.randint(100, 1000, (PROMPT,)).tolist()

    for use_reader in [False, True] if reader else [False]:
        name = " with reader" if use_reader else ""
        runner.generate(0, Generation([TokenIds(prompt)], 1, use_reader=use_reader))
        with span() as taken:
            until_idle(runner)
        say(f"prefill{name}, tokens", taken.per_second(PROMPT))
        for rows in (1, 4, 8):
            for call in range(rows):
                runner.generate(call, Generation([TokenIds(prompt[: 256 - 8 * call])], ANSWER, use_reader=use_reader))
            while runner.held < 2 * rows:  # each holds its sequence and, once prefilled, a row
                runner.step()
            with span() as taken:
                until_idle(runner)
            say(f"decode{name}, {rows} at a time, tokens", taken.per_second(rows * ANSWER - rows))

    chunks = [prompt[:CHUNK]] * 4
    runner.compress(1, chunks, compressor.fingerprint)
    with span() as taken:
        until_idle(runner)
    say("compress, tokens", taken.per_second(CHUNK * len(chunks)))

    runner.embed(1, [TEXT] * 32, urgent=False)
    with span() as taken:
        until_idle(runner)
    say("embed, passages of about 200 tokens", taken.per_second(32))
    runner.embed(1, ["Where did the mill stand?"], urgent=True)
    with span() as taken:
        until_idle(runner)
    say("embed, one question", f"{1000 * taken.wall:9.1f} ms wall {1000 * taken.cpu:9.1f} CPU-ms")
    say("resident memory", f"{psutil.Process().memory_info().rss / 2**20:9.0f} MiB")


def say(what: str, figure: str) -> None:
    print(f"{what:44}{figure}", flush=True)


if __name__ == "__main__":
    main()
