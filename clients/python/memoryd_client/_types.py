"""What calls about memories, documents and answers return: frozen, and nothing of the wire in it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

MetadataValue: TypeAlias = str | float | bool | datetime
"""One value of metadata. Times carry a time zone; integers become floats."""

Metadata: TypeAlias = Mapping[str, MetadataValue]
"""Metadata of a document or memory."""


class WireEnum(enum.IntEnum):
    """An enum of the API. A value that a newer daemon sends and this client does not know reads as 0."""

    @classmethod
    def _missing_(cls, value: object) -> WireEnum:
        return cls(0)

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


class Stage(WireEnum):
    """How far a document has come. Stages are ordered, and each is usable at once."""

    UNSPECIFIED = 0
    STORED = 1
    SEARCHABLE = 2
    COMPRESSED = 3
    LEARNED = 4


class DocumentKind(WireEnum):
    """What a document is."""

    UNSPECIFIED = 0
    TEXT = 1
    MESSAGES = 2


class Mode(WireEnum):
    """How an answer reads the memory; UNSPECIFIED leaves it to the daemon, which takes HYBRID."""

    UNSPECIFIED = 0
    COMPRESSED = 1
    HYBRID = 2
    TEXT = 3


class FinishReason(WireEnum):
    """Why an answer ended."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2


class HealthStatus(WireEnum):
    """What the daemon says of its own health."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """What is known of a memory."""

    name: str
    """memories/{memory}."""
    display_name: str
    """For people."""
    description: str
    """For people."""
    document_count: int
    """How many documents it holds."""
    metadata: Metadata
    """Metadata of the memory."""
    create_time: datetime | None
    """When it was created."""
    update_time: datetime | None
    """When it was last changed."""

    @property
    def id(self) -> str:
        """The last part of its name: what `client.memory()` takes."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text, or a conversation of messages, written to a memory."""

    name: str
    """memories/{memory}/documents/{document}."""
    title: str
    """For people; shown in sources."""
    kind: DocumentKind
    """What it is."""
    stage: Stage
    """How far it had come when it was read."""
    metadata: Metadata
    """Key to value."""
    size_bytes: int
    """Size of the text in UTF-8 bytes."""
    token_count: int
    """Length of the text in the base model's tokens; 0 until it is chunked."""
    chunk_count: int
    """How many chunks it was cut into; 0 until then."""
    sha256: str
    """sha256 of the text's UTF-8 bytes, in hex."""
    create_time: datetime | None
    """When it was written."""
    text: str | None
    """Its text where it was asked for, at most 1 MiB of it; None where it was not."""
    text_truncated: bool
    """Where text is only the beginning of a longer one."""
    job: str
    """The job that is, or was last, working on it: operations/{operation}."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """Who speaks: user, assistant, system or tool."""
    content: str
    """The turn's text."""
    speaker: str = ""
    """The speaker's own name, where known."""
    time: datetime | None = None
    """When it was said, where known; with a time zone."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A passage that was found."""

    passage_id: str
    """Id of the passage within its document."""
    document: str
    """memories/{memory}/documents/{document}."""
    title: str
    """The document's title."""
    start: int
    """First character of the passage in the document's text."""
    end: int
    """One past its last character."""
    score: float
    """Fused score; higher is better; comparable within one response only."""
    dense_score: float
    """Cosine similarity of question and passage; 0 where only BM25 found it."""
    text: str
    """The passage's text."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A text context within a token budget, for agents that use another LLM."""

    text: str
    """The context."""
    sources: tuple[Source, ...]
    """What it is made of, best first."""
    token_count: int
    """Its length in tokens of the base model."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Sources:
    """First event of an answer: what it rests on."""

    sources: tuple[Source, ...]
    """Best first; of what was found, that which fitted into the prompt."""
    mode: Mode
    """The mode that is used, which may not be the one asked for."""
    warnings: tuple[str, ...]
    """What the caller should know, that passages did not fit say."""


@dataclass(frozen=True)
class Text:
    """A piece of an answer's text."""

    text: str
    """The piece: pieces concatenate."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Last event of an answer: what it took."""

    soft_tokens: int
    """Compressed embeddings in the prompt."""
    text_tokens: int
    """Text tokens in the prompt."""
    output_tokens: int
    """Tokens of the answer."""
    full_source_tokens: int
    """Tokens that the whole text of the memories would have cost."""
    cache_hits: Mapping[str, int]
    """Where compressed embeddings were found: cache tier to count."""
    adapter: str
    """Reader that was used: every adapter stands on it."""
    compressor: str
    """Fingerprint of the compressor, where compressed embeddings were used."""
    base_model: str
    """Fingerprint of the base model."""
    time_to_first_token_ms: float
    """From the call's arrival at the daemon to its first text."""
    total_ms: float
    """From the call's arrival at the daemon to its end."""
    stage_ms: Mapping[str, float]
    """Parts of time_to_first_token_ms: embed, search, load, queue, prefill."""
    finish_reason: FinishReason
    """Why it ended."""
    cited: tuple[int, ...] = ()
    """Which of Sources.sources the answer says that it rests on, from 0; empty for a refusal or without a reader."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Adapters of the memories that were used, with their weights."""


AnswerEvent: TypeAlias = Sources | Text | Usage
"""What iterating an answer gives: Sources, then any number of Text, then Usage."""
