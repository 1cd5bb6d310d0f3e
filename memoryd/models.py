"""What the daemon knows of the models that its worker holds: the wire to them, their facts, and their tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

from memoryd.compress.chunker import Counter
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.worker.client import WorkerClient, WorkerInfo


@dataclass(frozen=True, slots=True)
class Models:
    """`tokenizer` is the base model's, `retrieval` counts as the retrieval encoder does. A restarted worker has the same, or is
    not let in (`worker/child.py`)."""

    worker: WorkerClient
    info: WorkerInfo
    tokenizer: TextTokenizer
    retrieval: Counter
