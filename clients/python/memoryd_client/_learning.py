"""What calls about examples and adapters return: frozen, and nothing of the wire in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from ._types import Document, Mode, WireEnum


class Origin(WireEnum):
    """Where an example came from."""

    UNSPECIFIED = 0
    SUPPLIED = 1
    FEEDBACK = 2
    SELF_STUDY = 3


class Verdict(WireEnum):
    """What a person thinks of an answer. CORRECTED: it is wrong, and the correction is right."""

    UNSPECIFIED = 0
    GOOD = 1
    BAD = 2
    CORRECTED = 3


class AdapterState(WireEnum):
    """Whether an adapter may be served. TAINTED: a document that it was trained with is deleted, so never again."""

    UNSPECIFIED = 0
    KEPT = 1
    ACTIVE = 2
    TAINTED = 3


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question, its answer, and the documents that it rests on. To add one, these three are all that is read."""

    question: str
    """The question."""
    answer: str
    """Its answer."""
    documents: tuple[str, ...] = ()
    """memories/{memory}/documents/{document}: those that it rests on. It goes with them; with the memory where none."""
    name: str = ""
    """memories/{memory}/examples/{example}; made by memoryd."""
    origin: Origin = Origin.UNSPECIFIED
    """Where it came from."""
    create_time: datetime | None = None
    """When it was added."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


GivenExample: TypeAlias = Example | Mapping[str, Any] | tuple[str, str] | tuple[str, str, Iterable[str | Document]]
"""What can be added as an example."""


@dataclass(frozen=True, kw_only=True)
class AddedExamples:
    """What adding examples did."""

    examples: tuple[Example, ...]
    """In the order in which they were given; those that were there already as they are."""
    already_stored: int
    """How many of them were there already."""


@dataclass(frozen=True, kw_only=True)
class JudgedKind:
    """Scores of one kind of answer."""

    kind: str
    """all, short (F1), long (ROUGE, geometric mean of 1, 2 and L), choice (accuracy), refusal (the share refused of what is to
    be refused)."""
    count: int
    """Held-out questions."""
    before: float
    """Mean score of what was in use, 0 to 1."""
    after: float
    """Mean score of the new adapter."""
    low: float
    """The difference's 95 % interval, from a paired bootstrap."""
    high: float
    """Its upper end."""
    exact_before: float
    """Share of answers of what was in use that are exactly the right one; of kind short only."""
    exact_after: float
    """The same of the new adapter."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What held-out examples say of an adapter against the one in use."""

    better: bool
    """Whether it is better beyond noise."""
    verdict: str
    """In words."""
    kinds: tuple[JudgedKind, ...]
    """By kind of answer, and all of them."""


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """A point of the loss curve."""

    step: int
    """Step of the optimizer."""
    loss: float
    """Mean loss of its examples."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How an adapter was made. Of an imported one it is what its archive says."""

    documents: tuple[str, ...]
    """memories/{memory}/documents/{document}: those that it was trained with, 10000 at most."""
    modes: tuple[Mode, ...]
    """Modes of the contexts that it was trained on."""
    epochs: int
    """Passes over the examples."""
    learning_rate: float
    """Peak of the learning rate."""
    steps: int
    """Steps of the optimizer."""
    seconds: float
    """Seconds of computing."""
    imported_from: str
    """memories/{memory} that it was imported from; empty where it was trained here, or its archive does not say."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One immutable version of a memory's LoRA, as it stood when it was read."""

    name: str
    """memories/{memory}/adapters/{adapter}."""
    state: AdapterState
    """Whether it may be served."""
    create_time: datetime | None
    """When it was trained or imported."""
    fingerprint: str
    """Content hash of its weights."""
    parent: str
    """memories/{memory}/adapters/{adapter} that was in use when it was trained; empty: the reader alone."""
    base_model: str
    """Fingerprint of the base model that it changes."""
    reader: str
    """The reader that it stands on; empty: none."""
    compressor: str
    """Fingerprint of the compressor whose embeddings it was trained on."""
    example_count: int
    """How many examples it was trained on."""
    document_count: int
    """How many documents it was trained with."""
    size_bytes: int
    """Its size in bytes."""
    judgement: Judgement | None
    """What judging found; None for an imported one."""
    curve: tuple[LossPoint, ...]
    """Loss by step of training; get() reads it, list() does not."""
    curve_png: bytes = field(repr=False)
    """The same as a PNG; get() reads it, list() does not."""
    gather_time: datetime | None
    """When what it was trained on was gathered: it does not know what was written later. None for an imported one."""
    lineage: Lineage | None
    """How it was made; get() reads it, list() does not, and of a tainted one it is None."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


GivenAdapters: TypeAlias = Mapping[str, float] | Sequence[str | Adapter]
"""Adapters to answer with: names with weights, or adapters with weight 1 each."""
