"""What calls about jobs and tenants return: frozen, and nothing of the wire in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from ._types import WireEnum


class JobState(WireEnum):
    """Where a job stands. DEAD: it failed as often as it may."""

    UNSPECIFIED = 0
    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    CANCELLED = 4
    DEAD = 5


@dataclass(frozen=True, kw_only=True)
class EraseReceipt:
    """What a job erased."""

    target: str
    """The document, memory or adapter that was erased."""
    documents: int
    """How many documents."""
    blobs: int
    """How many blobs (texts and compressed embeddings)."""
    vectors: int
    """How many vectors."""
    cache_keys: int
    """How many cache keys."""
    adapters: int
    """How many adapters that were trained with it."""
    erase_time: datetime | None
    """When."""


@dataclass(frozen=True, kw_only=True)
class CompressReceipt:
    """What a job made of a document."""

    document: str
    """The document."""
    chunks: int
    """How many chunks it has."""
    passages: int
    """How many passages it has."""
    tokens: int
    """Its length in tokens of the base model."""
    soft_tokens: int
    """Compressed embeddings that stand for them."""
    compressor: str
    """Fingerprint of the compressor."""
    reused: int
    """How many of its chunks kept the compressed embeddings of the version that it replaced."""


@dataclass(frozen=True, kw_only=True)
class ReindexReceipt:
    """What a job indexed again."""

    documents: int
    """How many documents."""
    passages: int
    """How many passages."""


@dataclass(frozen=True, kw_only=True)
class StudyReceipt:
    """What a job made of a memory's own passages."""

    memory: str
    """memories/{memory}."""
    passages: int
    """Passages that were read."""
    questions: int
    """Questions that were made."""
    unanswerable: int
    """Of those, dropped because the answer was not found again in the passage, or too little of it in the chunk that a
    conversation was asked about."""
    duplicates: int
    """Dropped because the memory has such a question already."""
    leaking: int
    """Dropped because the question tells its own answer."""
    examples: int
    """Examples that were added."""
    prompt_tokens: int
    """Tokens that the teacher read."""
    output_tokens: int
    """Tokens that it wrote."""
    teacher: str
    """Who made the questions: the local model, or the teacher that the operator configured."""
    refused: int
    """Passages that the teacher refused, by a content filter say: nothing was asked of them."""


@dataclass(frozen=True, kw_only=True)
class LearnReceipt:
    """What a job trained, and whether it is served."""

    memory: str
    """memories/{memory}."""
    adapter: str
    """memories/{memory}/adapters/{adapter}."""
    activated: bool
    """Whether it is served now."""
    verdict: str
    """Why, or why not."""
    examples: int
    """Examples that it was trained on."""
    held_out: int
    """Examples that it was judged on."""
    steps: int
    """Steps of the optimizer."""
    seconds: float
    """Seconds of computing."""
    loss: float
    """Mean loss of the last step."""


Receipt: TypeAlias = EraseReceipt | CompressReceipt | ReindexReceipt | StudyReceipt | LearnReceipt
"""What a job that succeeded leaves."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Background work, as it stood when it was read."""

    name: str
    """operations/{operation}."""
    kind: str
    """What it does: compress, erase, reindex, study, learn."""
    target: str
    """The document or memory that it is for."""
    state: JobState
    """Where it stands."""
    stage: str
    """What it is doing: chunk, reuse, index, compress, erase, study, prepare, learn, judge, publish."""
    done: int
    """Units of this stage that are done."""
    total: int
    """Units of this stage in all; 0 where not known yet."""
    rate: float
    """Units a second, lately."""
    attempts: int
    """How often it was tried."""
    error: str
    """Why the last try failed."""
    create_time: datetime | None
    """When it was created."""
    end_time: datetime | None
    """When it ended."""
    loss: float | None = None
    """Of one that learns: mean loss of its last step; None before the first."""
    seconds_left: float | None = None
    """Seconds that this stage still takes, at its rate; None where that is not known."""
    receipt: Receipt | None = None
    """What it leaves, once it SUCCEEDED; watch() does not carry it, get() and wait() do."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.DEAD)


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """The isolation boundary."""

    name: str
    """tenants/{tenant}."""
    display_name: str
    """For people."""
    create_time: datetime | None
    """When it was created."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key, without its secret."""

    name: str
    """tenants/{tenant}/apiKeys/{key}."""
    display_name: str
    """For people."""
    prefix: str
    """The first characters of the secret, to tell keys apart."""
    create_time: datetime | None
    """When it was created."""
    revoke_time: datetime | None
    """When it was revoked, where it was."""


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """A key that was just created."""

    key: ApiKey
    """The key."""
    secret: str = field(repr=False)
    """What to pass as `api_key`. memoryd never shows it again."""


@dataclass(frozen=True, kw_only=True)
class TenantUsage:
    """What a tenant holds and has used."""

    tenant: str
    """tenants/{tenant}."""
    memories: int
    """Memories held."""
    documents: int
    """Documents held."""
    text_bytes: int
    """Bytes of text held."""
    passages: int
    """Passages held."""
    answers: int
    """Answers given."""
    searches: int
    """Searches answered, contexts among them."""
    prompt_tokens: int
    """Prompt tokens of answers, soft tokens among them."""
    output_tokens: int
    """Output tokens of answers."""
