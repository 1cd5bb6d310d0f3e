"""What the tests of learning share: facts of a worker, a worker that says what it is told to, and examples."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from memoryd.core import Example, Origin, now
from memoryd.engine.request import GenerateEvent, Generation, TokenIds
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.models import Models
from memoryd.worker.client import CompressorInfo, WorkerInfo

COMPRESSOR = CompressorInfo("pooled", 4, "f" * 64, True, 512)
INFO = WorkerInfo("cpu", "bfloat16", Path("models/tiny"), "b" * 64, 4, 4096, COMPRESSOR, "e" * 64, 8, "r" * 64, 0, (2, 7))
_numbers: Iterator[int] = count()


def example(question: str = "Where?", answer: str = "Lisbon", *documents: str, id_: str = "") -> Example:
    id_ = id_ or f"example{next(_numbers)}"
    return Example("red", "m", id_, question, answer, Origin.SUPPLIED, now(), documents)


class Worker:
    """Says `says(request)`, a word at a time; `failures` are raised first, one by each generation."""

    def __init__(self, says: Callable[[Generation], str] = lambda request: "Lisbon") -> None:
        self.says = says
        self.failures: list[Exception | None] = []
        self.asked: list[Generation] = []
        self.calls: list[tuple[str, str]] = []
        self.loaded: dict[str, tuple[bytes, bytes]] = {}

    async def generate(self, request: Generation) -> AsyncGenerator[GenerateEvent, None]:
        self.asked.append(request)
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        for adapter, _ in request.adapters:
            if adapter not in self.loaded:
                raise FailedPrecondition("an adapter is not loaded", reason="ADAPTER_NOT_LOADED")
        words = self.says(request).split(" ")
        for number, word in enumerate(words, start=1):
            yield GenerateEvent(f" {word}" if number > 1 else word, number)
        yield GenerateEvent("", len(words), "stop")

    async def load_adapter(self, adapter: str, config: bytes, weights: bytes) -> None:
        self.calls.append(("load", adapter))
        self.loaded[adapter] = (config, weights)

    async def unload_adapter(self, adapter: str) -> None:
        self.calls.append(("unload", adapter))
        self.loaded.pop(adapter, None)


def models(worker: Worker | None = None, tokenizer: TextTokenizer | None = None, **changed: Any) -> Models:
    """With these facts of the worker changed."""
    parts: Any = (worker or Worker(), replace(INFO, **changed), tokenizer, None)
    return Models(*parts)


def plain_tokenizer(path: Path) -> TextTokenizer:
    """Bytes as tokens, and a chat template that says who speaks: no torch is needed to make it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return TextTokenizer(path)


def prompt_of(tokenizer: TextTokenizer, request: Generation) -> str:
    """A prompt of text alone."""
    return "".join(tokenizer.decode(list(s.ids)) for s in request.segments if isinstance(s, TokenIds))
