"""What the parts of the SQL ledger share: the database, requests that make a repeat harmless, and rows of documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select

from memoryd.core import Document, Kind, Request, Stage, now
from memoryd.errors import NotFound, RequestIdReused
from memoryd.store.database import Database
from memoryd.store.schema import documents, requests, tenants

T = TypeVar("T")

BATCH = 500  # values of one IN list


class LedgerPart:
    """A part of `SqlLedger`."""

    def __init__(self, db: Database) -> None:
        self._db = db


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items in pieces that one statement takes."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def result_of(conn: Connection, tenant: str, request: Request | None) -> str | None:
    """What an earlier call of this request made. RequestIdReused where the digest differs.

    Asked once the call holds its locks and has looked at what it is about: a repeat may overlap its first try, and where that
    ends just before the look, its result is there to be found."""
    if request is None:
        return None
    row = conn.execute(_RESULT, {"tenant": tenant, "id": request.id}).first()
    if row is None:
        return None
    if row.digest != request.digest:
        raise RequestIdReused("this request_id was used for a different request")
    return str(row.result)


def remember(conn: Connection, tenant: str, request: Request | None, result: str) -> None:
    """Records what this request made."""
    if request is not None:
        new = {"tenant": tenant, "id": request.id, "digest": request.digest, "result": result, "create_time": now()}
        conn.execute(_REMEMBER, new)


# Built once: on the way of every write, building a statement takes longer than running it.
_REMEMBER = insert(requests)
_RESULT = select(requests.c.digest, requests.c.result).where(
    requests.c.tenant == bindparam("tenant"), requests.c.id == bindparam("id")
)


def require_tenant(conn: Connection, tenant: str) -> None:
    """NotFound."""
    if conn.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first() is None:
        raise NotFound("no such tenant")


def live(tenant: str) -> ColumnElement[bool]:
    """The tenant's documents that are not deleted."""
    return (documents.c.tenant == tenant) & (documents.c.tombstone == "")


def document_of(row: Mapping[Any, Any]) -> Document:
    """Of a row of the table of documents."""
    return Document(
        row["tenant"],
        row["memory"],
        row["id"],
        Kind(row["kind"]),
        row["title"],
        row["metadata"],
        row["sha256"],
        row["size_bytes"],
        row["blob"],
        row["create_time"],
        Stage(row["stage"]),
        row["token_count"],
        row["chunk_count"],
        row["passage_count"],
        row["job"],
    )
