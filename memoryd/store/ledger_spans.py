"""Chunks and passages: the spans that a document is cut into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from memoryd.core import Chunk, Passage, Stage
from memoryd.store.ledger_part import LedgerPart, batches, live
from memoryd.store.schema import chunks, documents, passages

_ORDINAL = re.compile(r"0|[1-9][0-9]{0,8}")  # as Passage.id writes it, and within the column

Span = TypeVar("Span", Chunk, Passage)


class SpanRows(LedgerPart):
    """The part of the ledger that holds chunks and passages."""

    def reset_document(self, tenant: str, document: str) -> bool:
        def change(conn: Connection) -> bool:
            if not _lock(conn, tenant, document):
                return False
            for table in (passages, chunks):
                conn.execute(delete(table).where(table.c.tenant == tenant, table.c.document == document))
            _set(conn, tenant, document, stage=Stage.STORED, token_count=0, chunk_count=0, passage_count=0)
            return True

        return self._db.write(change)

    def add_chunks(self, tenant: str, document: str, chunks: Sequence[Chunk], passages: Sequence[Passage]) -> bool:
        def change(conn: Connection) -> bool:
            if not _lock(conn, tenant, document):
                return False
            new_chunks = _add(conn, _chunks, tenant, document, chunks)
            new_passages = _add(conn, _passages, tenant, document, passages)
            _set(
                conn,
                tenant,
                document,
                token_count=documents.c.token_count + sum(chunk.tokens for chunk in new_chunks),
                chunk_count=documents.c.chunk_count + len(new_chunks),
                passage_count=documents.c.passage_count + len(new_passages),
            )
            return True

        return self._db.write(change)

    def chunks(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Chunk]:
        return self._after(_chunks, Chunk, tenant, document, after, limit)

    def passages(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Passage]:
        return self._after(_passages, Passage, tenant, document, after, limit)

    def get_passages(self, tenant: str, passages: Sequence[str]) -> dict[str, Passage]:
        wanted = {}
        for id_ in passages:
            document, _, ordinal = id_.rpartition("-")
            if _ORDINAL.fullmatch(ordinal):
                wanted[document, int(ordinal)] = id_
        found = self._find(_passages, Passage, tenant, list(wanted))
        return {wanted[key]: passage for key, passage in found.items()}

    def get_chunks(self, tenant: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Chunk]:
        return self._find(_chunks, Chunk, tenant, keys)

    def set_embeddings(self, tenant: str, document: str, chunks: Sequence[Chunk]) -> bool:
        statement = (
            update(_chunks)
            .where(_chunks.c.tenant == tenant, _chunks.c.document == document, _chunks.c.ordinal == bindparam("this"))
            .values(compressor=bindparam("by"), embeddings=bindparam("embeddings_"), soft_tokens=bindparam("soft_tokens_"))
        )

        def change(conn: Connection) -> bool:
            if not _lock(conn, tenant, document):
                return False
            rows = [
                {
                    "this": chunk.ordinal,
                    "by": chunk.compressor,
                    "embeddings_": chunk.embeddings,
                    "soft_tokens_": chunk.soft_tokens,
                }
                for chunk in chunks
            ]
            if rows:
                conn.execute(statement, rows)
            return True

        return self._db.write(change)

    def _after(self, table: Table, make: type[Span], tenant: str, document: str, after: int, limit: int) -> Sequence[Span]:
        query = (
            _select(table, tenant)
            .where(table.c.document == document, table.c.ordinal > after)
            .order_by(table.c.ordinal)
            .limit(limit)
        )
        return [make(**row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def _find(
        self, table: Table, make: type[Span], tenant: str, keys: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Span]:
        # Two short lists find a few rows too many; they use the primary key on every database, row values do not.
        def query(conn: Connection) -> dict[tuple[str, int], Span]:
            found = {}
            for batch in batches(keys):
                some = _select(table, tenant).where(
                    table.c.document.in_({document for document, _ in batch}),
                    table.c.ordinal.in_({ordinal for _, ordinal in batch}),
                )
                for row in conn.execute(some).mappings():
                    found[row["document"], row["ordinal"]] = make(**row)
            return {key: found[key] for key in keys if key in found}

        return self._db.read(query)


_chunks, _passages = chunks, passages  # for methods whose arguments take the names


def _select(table: Table, tenant: str) -> Any:
    columns = [column for column in table.c if column.name != "tenant"]
    of_live = (table.c.tenant == documents.c.tenant) & (table.c.document == documents.c.id)
    return select(*columns).join(documents, of_live).where(table.c.tenant == tenant, live(tenant))


def _lock(conn: Connection, tenant: str, document: str) -> bool:
    """False where it is deleted; else it stays as it is until the transaction ends."""
    this = select(documents.c.id).where(live(tenant), documents.c.id == document)
    return conn.execute(this.with_for_update()).first() is not None


def _set(conn: Connection, tenant: str, document: str, **values: Any) -> None:
    conn.execute(update(documents).where(live(tenant), documents.c.id == document).values(**values))


def _add(conn: Connection, table: Table, tenant: str, document: str, spans: Sequence[Span]) -> list[Span]:
    """Inserts those whose ordinals are not there yet; returns them."""
    new = {span.ordinal: span for span in reversed(spans)}
    for ordinals in batches(sorted(new)):
        there = select(table.c.ordinal).where(
            table.c.tenant == tenant, table.c.document == document, table.c.ordinal.in_(ordinals)
        )
        for ordinal in conn.execute(there).scalars().all():
            del new[ordinal]
    if new:
        conn.execute(insert(table), [asdict(span) | {"tenant": tenant, "document": document} for span in new.values()])
    return list(new.values())
