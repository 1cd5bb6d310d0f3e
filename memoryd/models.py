"""What the daemon knows of the models that its worker holds: facts, tokenizers, and whether they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memoryd.compress.chunker import Counter
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import Unavailable
from memoryd.worker.client import WorkerClient, WorkerInfo


@dataclass(frozen=True, slots=True)
class Loaded:
    """The facts of a worker that is up, and the tokenizers that go with its models."""

    info: WorkerInfo
    tokenizer: TextTokenizer
    retrieval: Counter


class Models:
    """The worker's wire, with the facts and tokenizers of its models once it has described itself."""

    def __init__(self, worker: WorkerClient, retrieval: Counter) -> None:
        self.worker = worker
        self._retrieval = retrieval
        self._loaded: Loaded | None = None
        self._problem = "the models are being loaded"

    @property
    def loaded(self) -> Loaded:
        """Unavailable until the worker has described itself for the first time."""
        if self._loaded is None:
            raise Unavailable(f"{self._problem}: try again in a few seconds", reason="MODELS_LOADING")
        return self._loaded

    @property
    def ready(self) -> bool:
        return self._loaded is not None

    async def refresh(self) -> Loaded:
        """Asks the worker what it runs on. Called whenever it has (re)started. Unavailable."""
        info = await self.worker.describe()
        if self._loaded is None or self._loaded.info != info:
            self._loaded = Loaded(info, TextTokenizer(Path(info.model_path)), self._retrieval)
        return self._loaded
