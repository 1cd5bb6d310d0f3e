"""Compressing: its rate against a plain forward pass of the same tokens, and what it stores for each of them.

One compressor does all the work of a trained one, its encoder's LoRA included; the other is the one that ships. The forward
pass is without any adapter.

In this process, without a daemon: one chunk at a time, as the worker does on a CPU.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.lab import row
from bench.stats import median
from bench.texts import BOOK, texts
from memoryd.compress import codec
from memoryd.compress.card import RATIOS
from memoryd.compress.chunker import chunk_text
from memoryd.compress.load import compressor_path, load_compressor
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.runner import to_bytes
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.figures import Row
from memoryd.learn.compressor_recipe import RECIPES

CHUNK = 512
RANK = RECIPES["cpu"].encoder_rank
CHUNKS = 20


def compress(data_dir: Path) -> list[Row]:
    """Each chunk goes through the forward pass, then through the compressors, so that all meet the same machine."""
    path = next((data_dir / "models").iterdir())
    base, tokenizer = load_base_model(path), TextTokenizer(path)
    compressor = as_trained(base, Adapters(base), 4)
    own = load_base_model(path)  # a base model has one encoder's LoRA
    shipped = load_compressor(compressor_path(own.fingerprint), own, Adapters(own), 4)
    forward: Callable[..., object] = base.model.base_model
    chunks = [tokenizer.encode(text)[:CHUNK] for text, _ in zip(texts(4000, seed=8), range(CHUNKS + 2), strict=False)]
    works: dict[str, Callable[[list[int]], object]] = {
        "forward": lambda chunk: forward(input_ids=torch.tensor([chunk]), use_cache=False),
        "chunks of 512 tokens": lambda chunk: compressor.compress([chunk]),
        "chunks of 512 tokens, by the one that ships": lambda chunk: shipped.compress([chunk]),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for chunk in chunks:
            for name, work in works.items():
                rates[name].append(CHUNK / _seconds(lambda work=work, chunk=chunk: work(chunk)))  # type: ignore[misc]
    medians = {name: median(some[2:]) for name, some in rates.items()}  # the first two warm up
    plain = medians.pop("forward").value
    rows = [row(f"compress: {name}", rate, "tokens/s", baseline=plain, above_ratio=0.8) for name, rate in medians.items()]
    for ratio in RATIOS:
        (soft,) = PooledCompressor.untrained(base, Adapters(base), ratio).compress([chunks[0]])
        stored = codec.encode(to_bytes(soft), fingerprint="0" * 64, chunk_sha256="0" * 64)
        rows.append(row(f"compress: stored at {ratio}x, bf16", len(stored) / CHUNK, "bytes/token"))
    return [*rows, *stored_of_the_book(compressor, tokenizer)]


def as_trained(base: BaseModel, adapters: Adapters, ratio: int) -> PooledCompressor:
    """One that does all the work of a trained one: the encoder's pass, which an untrained one leaves out, with a LoRA on every
    linear layer, of the rank that is trained on a CPU. What it makes means nothing."""
    with torch.no_grad():
        for parameter in adapters.create(ENCODER, RANK, 2 * RANK):
            parameter.normal_(std=1e-3)
    adapters.install(ENCODER, adapters.state(ENCODER), 2.0, "the benchmark's encoder")  # as one that was loaded is held
    compressor = PooledCompressor.untrained(base, adapters, ratio)
    compressor.projector.down.weight.fill_(1e-3)
    return compressor


def stored_of_the_book(compressor: PooledCompressor, tokenizer: TextTokenizer) -> list[Row]:
    """Bytes that are stored for each source token, exactly, of the book's first chunks as the daemon cuts them."""
    tokens = 0
    sizes: dict[codec.Storage, int] = {"bfloat16": 0, "int8": 0}
    for cut in itertools.islice(chunk_text("", [BOOK.read_text()], tokenizer, RetrievalTokenizer()), CHUNKS):
        (soft,) = compressor.compress([tokenizer.encode(cut.text)])
        tokens += cut.chunk.tokens
        facts = {"fingerprint": compressor.fingerprint, "chunk_sha256": cut.chunk.sha256}
        for storage in sizes:
            sizes[storage] += len(codec.encode(to_bytes(soft), **facts, storage=storage))
    plain = sizes["bfloat16"] / tokens
    name = f"compress: the book stored at {compressor.ratio}x"
    return [
        row(f"{name}, bfloat16", plain, "bytes/token"),
        row(f"{name}, int8", sizes["int8"] / tokens, "bytes/token", baseline=plain),
    ]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
