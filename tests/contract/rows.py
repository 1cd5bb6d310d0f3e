"""Makes rows for the tests of the stores, saying only what a test is about."""

from __future__ import annotations

import hashlib

import numpy as np

from memoryd.core import Chunk, Kind, Passage, Request, document_prefix, new_id
from memoryd.store.base import IndexRow, Ledger, Written


def write(
    ledger: Ledger,
    text: str = "",
    *,
    tenant: str = "acme",
    memory: str = "m",
    document: str = "",
    request: Request | None = None,
    replaces: str = "",
) -> Written:
    """Writes a document of this text (of any, if empty)."""
    document = document or new_id()
    text = text or document
    return ledger.write_document(
        tenant,
        memory,
        document,
        Kind.TEXT,
        "a title",
        {},
        hashlib.sha256(text.encode()).hexdigest(),
        len(text),
        document_prefix(tenant, memory, document) + "text",
        request,
        replaces,
    )


def memory(ledger: Ledger, memory: str = "m", tenant: str = "acme") -> str:
    return ledger.create_memory(tenant, memory, "", "", {}, None).id


def chunk(document: str, ordinal: int, tokens: int = 10) -> Chunk:
    return Chunk(document, ordinal, ordinal, ordinal + 1, ordinal, ordinal + 1, tokens, "0" * 64)


def passage(document: str, ordinal: int, chunk: int = 0) -> Passage:
    return Passage(document, ordinal, chunk, ordinal, ordinal + 1, ordinal, ordinal + 1, 5)


def vector(*values: float, dim: int = 8) -> bytes:
    return np.array([*values, *[0.0] * (dim - len(values))], dtype="<f4").tobytes()


def index_row(passage: str, text: str = "text", at: bytes = b"", memory: str = "m") -> IndexRow:
    return IndexRow(passage, memory, passage.rpartition("-")[0], text, at or vector(1.0))
