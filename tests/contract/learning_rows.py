"""Adapters and texts as the contract tests of learning need them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memoryd.core import Adapter, AdapterState, JobKind, new_id, now
from memoryd.store.base import Ledger
from tests.contract.rows import chunk, write

Q, A = "Who rides the elephant?", "Mr. Fogg"


def adapter(
    ledger: Ledger,
    documents: Sequence[str],
    parent: str = "",
    *,
    activate: bool = True,
    memory: str = "m",
    gather_time: datetime | None = None,
) -> Adapter:
    made_of = (new_id(), "base", "reader", "compressor", 100)
    new = Adapter("acme", memory, new_id(), now(), *made_of, parent=parent, examples=3, gather_time=gather_time)
    made = ledger.add_adapter(new, documents, activate)
    assert made is not None
    return made


def learned(
    ledger: Ledger,
    documents: Sequence[str],
    parent: str = "",
    *,
    activate: bool = True,
    gather_time: datetime | None = None,
    gathered: datetime | None = None,
    fingerprint: str = "",
) -> Adapter:
    """As `adapter`, made by a job of learning: one without a job is imported."""
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    while (claimed := ledger.claim_job("w", 60)) and claimed.id != job.id:
        pass  # it is of a document
    made_of = (fingerprint or new_id(), "base", "reader", "compressor", 100)
    new = Adapter("acme", "m", new_id(), now(), *made_of, parent=parent, job=job.id, gather_time=gather_time)
    made = ledger.add_adapter(new, documents, activate, gathered=gathered)
    assert made is not None
    assert ledger.finish_job("acme", job.id, "w", {"examples": 3})
    return made


def active(ledger: Ledger, memory: str = "m") -> str | None:
    found = ledger.active_adapters("acme", [memory]).get(memory)
    return found and found.id


def state(ledger: Ledger, made: Adapter) -> AdapterState:
    return ledger.get_adapter("acme", made.memory, made.id).state


def told(ledger: Ledger, tokens: int, memory: str = "m") -> str:
    document = write(ledger, memory=memory).document.id
    ledger.add_chunks("acme", document, [chunk(document, 0, tokens=tokens)], [])
    return document


def bring(ledger: Ledger, weights: str, lineage: Sequence[str] = (), memory: str = "m", tenant: str = "acme") -> Adapter | None:
    """Imports an archive of these weights, whose lineage names these documents; its configuration is always another one."""
    new = Adapter(tenant, memory, new_id(), now(), new_id(), "base", "reader", "compressor", 100)
    return ledger.add_adapter(new, lineage, False, weights)
