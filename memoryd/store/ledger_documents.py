"""Documents: written once, found, deleted, erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from memoryd.core import Document, Job, JobKind, Kind, Metadata, Request, Stage, document_name
from memoryd.errors import AlreadyExists, NotFound
from memoryd.store.base import Page, Written
from memoryd.store.ledger_jobs import cancel_jobs, insert_job, read_job
from memoryd.store.ledger_memories import find_memory_uid
from memoryd.store.ledger_part import LedgerPart, batches, remember, result_of
from memoryd.store.paging import read_page
from memoryd.store.schema import chunks, documents, memories, passages


class DocumentRows(LedgerPart):
    """The part of the ledger that holds documents."""

    def write_document(
        self,
        tenant: str,
        memory: str,
        document: str,
        kind: Kind,
        title: str,
        metadata: Metadata,
        sha256: str,
        size_bytes: int,
        blob: str,
        request: Request | None,
    ) -> Written:
        def change(conn: Connection) -> Written:
            made = result_of(conn, tenant, request)
            if made is not None:  # deleted since? then NotFound: a late repeat must not bring back what was forgotten
                return _already_stored(conn, _read_document(conn, tenant, memory, made))
            uid = find_memory_uid(conn, tenant, memory, lock=True)
            if uid is None:
                raise NotFound("no such memory")
            rivals = {"tenant": tenant, "uid": uid, "sha256": sha256, "id": document}
            found = conn.execute(_RIVALS, rivals).mappings().all()
            for row in found:
                if (row["memory_uid"], row["sha256"], row["tombstone"]) == (uid, sha256, ""):
                    remember(conn, tenant, request, row["id"])
                    return _already_stored(conn, _document(row))
            if found:
                raise AlreadyExists("there is a document of that id")
            payload = {"memory": memory, "document": document}
            job = insert_job(conn, tenant, JobKind.COMPRESS, document_name(memory, document), payload)
            new = {
                "tenant": tenant,
                "id": document,
                "memory": memory,
                "memory_uid": uid,
                "kind": kind,
                "title": title,
                "metadata": metadata,
                "sha256": sha256,
                "size_bytes": size_bytes,
                "blob": blob,
                "create_time": job.create_time,
                "stage": Stage.STORED,
                "job": job.id,
            }
            conn.execute(_INSERT, new)
            remember(conn, tenant, request, document)
            return Written(_document({**_COUNTS, **new}), job, already_stored=False)

        return self._db.write(change)

    def get_document(self, tenant: str, memory: str, document: str) -> Document:
        return self._db.read(lambda conn: _read_document(conn, tenant, memory, document))

    def get_documents(self, tenant: str, documents: Sequence[str]) -> dict[str, Document]:
        def query(conn: Connection) -> dict[str, Document]:
            found = (_select(conn, tenant, table.c.id.in_(ids)) for ids in batches(documents))
            return {document.id: document for batch in found for document in batch}

        table = _documents
        return self._db.read(query)

    def recorded(self, tenant: str, documents: Sequence[str]) -> set[str]:
        def query(conn: Connection) -> set[str]:
            found = (
                conn.execute(select(table.c.id).where(table.c.tenant == tenant, table.c.id.in_(ids))).scalars()
                for ids in batches(documents)
            )
            return {id_ for batch in found for id_ in batch}

        table = _documents
        return self._db.read(query)

    def list_documents(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Document]:
        def query(conn: Connection) -> Page[Document]:
            uid = find_memory_uid(conn, tenant, memory)
            if uid is None:
                raise NotFound("no such memory")
            return read_page(
                conn,
                select(documents).where(live(tenant), documents.c.memory == memory),
                [documents.c.create_time, documents.c.id],
                _document,
                scope=["documents", tenant, uid],
                page_size=page_size,
                page_token=page_token,
            )

        return self._db.read(query)

    def delete_document(self, tenant: str, memory: str, document: str, request: Request | None) -> Job:
        def change(conn: Connection) -> Job:
            made = result_of(conn, tenant, request)
            if made is not None:
                return read_job(conn, tenant, made)
            this = live(tenant) & (documents.c.memory == memory) & (documents.c.id == document)
            if conn.execute(update(documents).where(this).values(tombstone=document)).rowcount == 0:
                raise NotFound("no such document")
            cancel_jobs(conn, tenant, select(documents.c.id).where(documents.c.tenant == tenant, documents.c.id == document))
            payload = {"memory": memory, "document": document}
            job = insert_job(conn, tenant, JobKind.ERASE, document_name(memory, document), payload)
            remember(conn, tenant, request, job.id)
            return job

        return self._db.write(change)

    def set_stage(self, tenant: str, document: str, stage: Stage) -> bool:
        def change(conn: Connection) -> bool:
            this = live(tenant) & (documents.c.id == document)
            conn.execute(update(documents).where(this, documents.c.stage < stage).values(stage=stage))
            return conn.execute(select(documents.c.id).where(this)).first() is not None

        return self._db.write(change)

    def deleted_documents(self, tenant: str, memory: str, document: str = "") -> Sequence[Document]:
        deleted = (documents.c.tenant == tenant) & (documents.c.memory == memory) & (documents.c.tombstone != "")
        which = documents.c.id == document if document else _of_deleted_memory()
        query = select(documents).where(deleted, which).order_by(documents.c.id)
        return [_document(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def erase_rows(self, tenant: str, memory: str, documents: Sequence[str]) -> int:
        def change(conn: Connection) -> int:
            count = 0
            for ids in batches(documents):
                erased = (
                    conn.execute(
                        select(table.c.id).where(
                            table.c.tenant == tenant,
                            table.c.memory == memory,
                            table.c.id.in_(ids),
                            table.c.tombstone != "",
                        )
                    )
                    .scalars()
                    .all()
                )
                for part in (passages, chunks):
                    conn.execute(delete(part).where(part.c.tenant == tenant, part.c.document.in_(erased)))
                conn.execute(delete(table).where(table.c.tenant == tenant, table.c.id.in_(erased)))
                count += len(erased)
            held = exists().where(table.c.tenant == memories.c.tenant, table.c.memory_uid == memories.c.uid)
            conn.execute(
                delete(memories).where(memories.c.tenant == tenant, memories.c.id == memory, memories.c.tombstone != "", ~held)
            )
            return count

        table = _documents
        erased = self._db.write(change)
        self._db.forget_log()
        return erased

    def token_count(self, tenant: str, memories: Sequence[str]) -> int:
        total = func.coalesce(func.sum(documents.c.token_count), 0)
        return self._over_memories(select(total).where(live(tenant)), memories)

    def count_unsearchable(self, tenant: str, memories: Sequence[str]) -> int:
        return self._over_memories(select(func.count()).where(live(tenant), documents.c.stage < Stage.SEARCHABLE), memories)

    def _over_memories(self, query: Select[Any], memories: Sequence[str]) -> int:
        """The sum of what `query` says of each of these memories."""
        return self._db.read(
            lambda conn: sum(
                int(conn.execute(query.where(documents.c.memory.in_(ids))).scalar_one())
                for ids in batches(sorted(set(memories)))
            )
        )

    def stale_documents(self, compressor: str, limit: int) -> Sequence[Document]:
        of_another = exists().where(
            chunks.c.tenant == documents.c.tenant, chunks.c.document == documents.c.id, chunks.c.compressor != compressor
        )
        query = (
            select(documents)
            .where(documents.c.stage >= Stage.COMPRESSED, documents.c.tombstone == "", of_another)
            .order_by(documents.c.tenant, documents.c.id)
            .limit(limit)
        )
        return [_document(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def recompress(self, tenant: str, document: str) -> None:
        this = live(tenant) & (documents.c.id == document) & (documents.c.stage >= Stage.COMPRESSED)

        def change(conn: Connection) -> None:
            memory = conn.execute(select(documents.c.memory).where(this).with_for_update()).scalar()
            if memory is None:
                return
            payload = {"memory": memory, "document": document}
            job = insert_job(conn, tenant, JobKind.COMPRESS, document_name(memory, document), payload)
            conn.execute(update(documents).where(this).values(stage=Stage.SEARCHABLE, job=job.id))

        self._db.write(change)

    def all_documents(self, tenant: str, after: str = "", limit: int = 256) -> Sequence[Document]:
        query = select(documents).where(live(tenant), documents.c.id > after).order_by(documents.c.id).limit(limit)
        return [_document(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]


_documents = documents  # for methods whose argument takes the name


def live(tenant: str) -> ColumnElement[bool]:
    """The tenant's documents that are not deleted."""
    return (documents.c.tenant == tenant) & (documents.c.tombstone == "")


def _of_deleted_memory() -> ColumnElement[bool]:
    return exists().where(
        memories.c.tenant == documents.c.tenant, memories.c.uid == documents.c.memory_uid, memories.c.tombstone != ""
    )


def _select(conn: Connection, tenant: str, which: ColumnElement[bool]) -> list[Document]:
    return [_document(row) for row in conn.execute(select(documents).where(live(tenant), which)).mappings()]


def _read_document(conn: Connection, tenant: str, memory: str, document: str) -> Document:
    found = _select(conn, tenant, (documents.c.memory == memory) & (documents.c.id == document))
    if not found:
        raise NotFound("no such document")
    return found[0]


def _already_stored(conn: Connection, document: Document) -> Written:
    return Written(document, read_job(conn, document.tenant, document.job), already_stored=True)


# Built once: on the way of every write, building a statement takes longer than running it.
_INSERT = insert(documents)
_RIVALS = select(documents).where(
    documents.c.tenant == bindparam("tenant"),
    or_(
        documents.c.id == bindparam("id"),
        and_(
            documents.c.memory_uid == bindparam("uid"),
            documents.c.tombstone == "",
            documents.c.sha256 == bindparam("sha256"),
        ),
    ),
)
_COUNTS = {"token_count": 0, "chunk_count": 0, "passage_count": 0}


def _document(row: Mapping[Any, Any]) -> Document:
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
