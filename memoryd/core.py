"""The nouns that every part of memoryd shares. Plain data: no I/O, no tensors, no protobuf."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MetadataValue = str | float | bool | datetime
Metadata = Mapping[str, MetadataValue]

DEFAULT_TENANT = "default"


class Kind(enum.StrEnum):
    """What a document is."""

    TEXT = "text"
    MESSAGES = "messages"


class Stage(enum.IntEnum):
    """How far a document has come; the numbers are those of the proto."""

    STORED = 1
    SEARCHABLE = 2
    COMPRESSED = 3
    LEARNED = 4


class JobKind(enum.StrEnum):
    """What a job does."""

    COMPRESS = "compress"  # chunk, index and compress one document
    ERASE = "erase"  # purge what a deleted document or memory left
    REINDEX = "reindex"  # rebuild a tenant's vectors from kept text
    STUDY = "study"  # make examples of a memory's passages
    LEARN = "learn"  # train, judge and publish a memory's adapter


LEARNING = (JobKind.STUDY, JobKind.LEARN)
"""What a memory does by itself, for long."""


class JobState(enum.IntEnum):
    """A job's state; the numbers are those of the proto."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    CANCELLED = 4
    DEAD = 5

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.DEAD)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The isolation boundary."""

    id: str
    display_name: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that resolves to exactly one tenant; only the hash of its secret is kept."""

    tenant: str
    id: str
    display_name: str
    prefix: str
    create_time: datetime
    revoke_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered about one user, agent, team or project."""

    tenant: str
    id: str
    display_name: str
    description: str
    metadata: Metadata
    create_time: datetime
    update_time: datetime
    document_count: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation of messages, written to a memory. `blob` is the key of its text."""

    tenant: str
    memory: str
    id: str
    kind: Kind
    title: str
    metadata: Metadata
    sha256: str
    size_bytes: int
    blob: str
    create_time: datetime
    stage: Stage = Stage.STORED
    token_count: int = 0
    chunk_count: int = 0
    passage_count: int = 0
    job: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The unit of compression: a span of a document of at most 512 base-model tokens.

    `start`/`end` count characters, `byte_start`/`byte_end` bytes of the UTF-8 text; `sha256` is of those bytes, so that a
    range read can be verified. `embeddings` is the blob key of its compressed embeddings, empty until they are made by the
    compressor of fingerprint `compressor`.
    """

    document: str
    ordinal: int
    start: int
    end: int
    byte_start: int
    byte_end: int
    tokens: int
    sha256: str
    compressor: str = ""
    embeddings: str = ""
    soft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit of retrieval: a sub-span of one chunk that fits the retrieval encoder."""

    document: str
    ordinal: int
    chunk: int
    start: int
    end: int
    byte_start: int
    byte_end: int
    tokens: int

    @property
    def id(self) -> str:
        return passage_id(self.document, self.ordinal)


def passage_id(document: str, ordinal: int) -> str:
    """What a passage is called: ordinals count from 0."""
    return f"{document}-{ordinal}"


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that was found, with its text: `score` is fused, `dense_score` is cosine similarity."""

    passage: Passage
    memory: str
    title: str
    text: str
    score: float
    dense_score: float = 0.0


class Origin(enum.IntEnum):
    """Where an example came from; the numbers are those of the proto."""

    SUPPLIED = 1
    FEEDBACK = 2
    SELF_STUDY = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its answer, and the documents that it rests on: it goes with them."""

    tenant: str
    memory: str
    id: str
    question: str
    answer: str
    origin: Origin
    create_time: datetime
    documents: tuple[str, ...] = ()


class AdapterState(enum.IntEnum):
    """Whether an adapter may be served; the numbers are those of the proto."""

    KEPT = 1
    ACTIVE = 2
    TAINTED = 3


@dataclass(frozen=True, slots=True)
class Adapter:
    """One immutable version of a memory's LoRA, and what made it. `base`, `reader` and `compressor` are fingerprints;
    `parent` is the adapter that was in use when it was trained. `documents` counts those that it was trained with."""

    tenant: str
    memory: str
    id: str
    create_time: datetime
    fingerprint: str
    base: str
    reader: str
    compressor: str
    size_bytes: int
    state: AdapterState = AdapterState.KEPT
    parent: str = ""
    job: str = ""
    """The LEARN job that made it; empty for an imported one."""
    examples: int = 0
    documents: int = 0
    judgement: Mapping[str, Any] = field(default_factory=dict)
    """As `learn/judge.py` makes it; empty for an imported one."""
    gather_time: datetime | None = None
    """When what it was trained on was gathered: it does not know what was written later. None for an imported one."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    speaker: str = ""
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Makes a repeat harmless: the caller's `request_id` and a digest of what was asked."""

    id: str
    digest: str


Receipt = Mapping[str, str | float]
"""What a job reports."""


@dataclass(frozen=True, slots=True)
class Unlearned:
    """What a memory has to learn still. `tokens` are of documents written since it was last gathered what to learn; `asked` is
    when learning or studying was last asked for, or an adapter made; `learning` is whether it does either now."""

    tokens: int
    asked: datetime | None
    learning: bool


@dataclass(frozen=True, slots=True)
class Job:
    """Durable background work. `receipt` is what a succeeded job reports, and until then what it knows of that already."""

    tenant: str
    id: str
    kind: JobKind
    target: str
    create_time: datetime
    state: JobState = JobState.PENDING
    stage: str = ""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    attempts: int = 0
    error: str = ""
    payload: Mapping[str, str] = field(default_factory=dict)
    receipt: Receipt = field(default_factory=dict)
    end_time: datetime | None = None

    @property
    def reuses(self) -> bool:
        """Whether this COMPRESS job of a new version may still read what the old version left (see compress/reuse.py).

        Not after it failed once: to reuse is thrift, to erase is a promise, and a job that fails may do so for ever."""
        return self.stage in ("", "chunk", "reuse") and not self.state.ended and not self.error


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant holds and has used."""

    memories: int = 0
    documents: int = 0
    text_bytes: int = 0
    passages: int = 0
    answers: int = 0
    searches: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


def gathered_at(payload: Mapping[str, str], otherwise: datetime) -> datetime:
    """When what a job learns from was gathered, where it follows one that did that."""
    return datetime.fromisoformat(payload["gathered"]) if "gathered" in payload else otherwise


def new_id() -> str:
    """24 characters that sort by time of making: 12 hex digits of milliseconds, 12 of randomness."""
    return f"{int(datetime.now(UTC).timestamp() * 1000):012x}{secrets.token_hex(6)}"


def made_at(id_: str) -> float:
    """When `new_id` made it, in seconds since 1970; now, where it did not."""
    try:
        return int(id_[:12], 16) / 1000
    except ValueError:
        return now().timestamp()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def document_prefix(tenant: str, memory: str, document: str) -> str:
    """Blob prefix under which all bytes of one document lie, so that erasing it is one delete."""
    return f"{tenant}/{memory}/{document}/"


def embeddings_key(document: Document, compressor: str, chunk: int) -> str:
    """Blob key of the compressed embeddings that the compressor of this fingerprint made of a chunk."""
    return f"{document_prefix(document.tenant, document.memory, document.id)}{compressor[:16]}/{chunk}"


def adapter_prefix(tenant: str, memory: str, adapter: str) -> str:
    """Blob prefix under which an adapter's files lie: beside the documents of its memory, so that no id is both."""
    return document_prefix(tenant, memory, adapter)


def adapter_name(memory: str, adapter: str) -> str:
    return f"memories/{memory}/adapters/{adapter}"


def example_name(memory: str, example: str) -> str:
    return f"memories/{memory}/examples/{example}"


def memory_name(memory: str) -> str:
    return f"memories/{memory}"


def document_name(memory: str, document: str) -> str:
    return f"memories/{memory}/documents/{document}"


def operation_name(job: str) -> str:
    return f"operations/{job}"
