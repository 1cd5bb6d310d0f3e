"""Answering: time to first token with its stages, from text and from compressed embeddings, and the pace of the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from memoryd_client import AsyncClient, Mode, Source, Stage, Text, Usage

from bench.lab import passing_memory, row
from bench.stats import median
from bench.texts import BOOK, questions
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.figures import Row
from memoryd.recall.prompt import TextBlock, assemble

ANSWERS = 15
_CHARACTERS = 60_000  # of the book: enough for thirty chunks, all of them compressed before the first question
_MAX_TOKENS = 48
_LEAST_TOKENS = 8  # that a pace is taken of
_BUDGET = 2048  # the daemon's own
_STAGES = ("embed", "search", "load", "queue", "prefill")


async def answer(client: AsyncClient, data_dir: Path) -> list[Row]:
    """Each TEXT answer is followed by plain transformers on the same prompt, so that both meet the same machine."""
    plain = await asyncio.to_thread(_Plain, next((data_dir / "models").iterdir()))
    usages: dict[Mode, list[Usage]] = {Mode.TEXT: [], Mode.COMPRESSED: []}
    paces: dict[Mode, list[float]] = {Mode.TEXT: [], Mode.COMPRESSED: []}
    floor: list[tuple[float, float]] = []
    async with passing_memory(client, "bench-answer") as memory:
        written = await memory.write(BOOK.read_text()[:_CHARACTERS], title="Around the World in Eighty Days")
        await written.wait(Stage.COMPRESSED)
        for number, question in enumerate(questions(ANSWERS + 1, seed=7)):
            for mode, taken in usages.items():
                given = memory.answer(f"What is said about {question}?", mode=mode, max_tokens=_MAX_TOKENS)
                texts = [(event.text, time.perf_counter()) async for event in given if isinstance(event, Text)]
                usage = await given.usage
                if number == 0:  # the first of each warms caches up
                    continue
                taken.append(usage)
                paces[mode] += _pace(plain, texts)
                if mode is Mode.TEXT:
                    floor.append(await asyncio.to_thread(plain.answer, question, await given.sources))
    first, pace = [f for f, _ in floor], [p for _, p in floor]
    floors = median(first).value, median(pace).value
    return [each for mode, taken in usages.items() for each in _rows(mode.name, taken, paces[mode], *floors)]


def _pace(plain: _Plain, texts: Sequence[tuple[str, float]]) -> list[float]:
    """Tokens a second after the first piece of text: of what is seen, since the citation before it is not. Empty for an answer
    that is too short to have a pace."""
    tokens = plain.count("".join(text for text, _ in texts[1:])) if texts else 0
    return [tokens / (texts[-1][1] - texts[0][1])] if tokens >= _LEAST_TOKENS else []


def _rows(mode: str, usages: Sequence[Usage], paces: Sequence[float], first: float, pace: float) -> list[Row]:
    name = f"answer: {mode}"
    return [
        row(f"{name}, first token", median([u.time_to_first_token_ms for u in usages]), "ms", baseline=first),
        *(
            row(f"{name}, first token, of it {stage}", median([u.stage_ms.get(stage, 0.0) for u in usages]), "ms")
            for stage in _STAGES
        ),
        row(f"{name}, prompt", median([u.text_tokens + u.soft_tokens for u in usages]), "tokens"),
        *([row(f"{name}, stream", median(paces), "tokens/s", baseline=pace)] if paces else []),
    ]


class _Plain:
    """The same base model under plain transformers, without retrieval, adapter or daemon."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._tokenizer = TextTokenizer(path)
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def count(self, text: str) -> int:
        """Tokens."""
        return self._tokenizer.count(text)

    def answer(self, question: str, sources: Sequence[Source]) -> tuple[float, float]:
        """Milliseconds to the first token, and tokens a second after it."""
        blocks = [TextBlock(s.text, s.title) for s in sources]
        prompt = assemble(self._tokenizer, blocks, f"What is said about {question}?", budget=_BUDGET)
        ids = torch.tensor([prompt.token_ids()])
        one, many = self._generate(ids, 1), self._generate(ids, _MAX_TOKENS)
        return one * 1000, (_MAX_TOKENS - 1) / max(1e-9, many - one)

    @torch.inference_mode()
    def _generate(self, ids: torch.Tensor, count: int) -> float:
        began = time.perf_counter()
        self._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count
        )
        return time.perf_counter() - began
