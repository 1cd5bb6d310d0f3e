"""Documents: written once, found, moved on. How they go is in ledger_deleted.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, case, exists, func, insert, or_, select, update

from memoryd.core import AdapterState, Chunk, Document, Job, JobKind, Kind, Metadata, Request, Stage, document_name
from memoryd.errors import AlreadyExists, NotFound, ReplacedNotFound
from memoryd.store.base import Page, Written
from memoryd.store.ledger_deleted import bury, bury_replaced, erase_job, reusable
from memoryd.store.ledger_jobs import insert_job, read_job
from memoryd.store.ledger_memories import find_memory_uid, require_memory_uid, required
from memoryd.store.ledger_part import LedgerPart, batches, document_of, live, remember, result_of
from memoryd.store.paging import read_page
from memoryd.store.schema import adapter_documents, adapters, chunks, documents, jobs, memories


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
        replaces: str = "",
    ) -> Written:
        def change(conn: Connection) -> Written:
            uid = find_memory_uid(conn, tenant, memory, lock=True)
            made = result_of(conn, tenant, request)
            if made is not None:  # deleted since? then NotFound: a late repeat must not bring back what was forgotten
                erase = erase_job(conn, tenant, replaces) if replaces else None
                return _already_stored(conn, _read_document(conn, tenant, memory, made), erase)
            uid = required(uid)
            old = _read_replaced(conn, tenant, memory, replaces) if replaces else None
            rivals = {"tenant": tenant, "uid": uid, "sha256": sha256, "id": document}
            found = conn.execute(_RIVALS, rivals).mappings().all()
            for row in found:
                if (row["memory_uid"], row["sha256"], row["tombstone"]) == (uid, sha256, ""):
                    erase = None
                    if old is not None and old.id != row["id"]:  # another document has the new text already
                        erase = bury(conn, tenant, memory, old.id)
                    remember(conn, tenant, request, row["id"])
                    return _already_stored(conn, document_of(row), erase)
            if found:
                raise AlreadyExists("there is a document of that id")
            payload = {"memory": memory, "document": document}
            if old is not None:
                payload["old"] = reusable(conn, old)
            job = insert_job(conn, tenant, JobKind.COMPRESS, document_name(memory, document), payload)
            erase = None if old is None else bury_replaced(conn, old, job)
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
            return Written(document_of({**_COUNTS, **new}), job, already_stored=False, erase=erase)

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
                conn.execute(select(rows.c.id).where(rows.c.tenant == tenant, rows.c.id.in_(ids))).scalars()
                for ids in batches(documents)
                for rows in (_documents, adapters)  # whose blobs lie side by side
            )
            return {id_ for batch in found for id_ in batch}

        return self._db.read(query)

    def list_documents(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Document]:
        def query(conn: Connection) -> Page[Document]:
            uid = require_memory_uid(conn, tenant, memory)
            return read_page(
                conn,
                select(documents).where(live(tenant), documents.c.memory == memory),
                [documents.c.create_time, documents.c.id],
                document_of,
                scope=["documents", tenant, uid],
                page_size=page_size,
                page_token=page_token,
            )

        return self._db.read(query)

    def set_stage(self, tenant: str, document: str, stage: Stage) -> bool:
        this = live(tenant) & (documents.c.id == document)
        reached = (documents.c.stage >= stage, documents.c.stage)
        learned = [(_ACTIVE_KNOWS_IT, int(Stage.LEARNED))] if stage == Stage.COMPRESSED else []
        move = update(documents).where(this).values(stage=case(reached, *learned, else_=int(stage)))

        def change(conn: Connection) -> bool:
            if learned:  # what activates an adapter lifts the documents that it sees COMPRESSED: one waits for the other
                conn.execute(
                    select(memories.c.uid).join(documents, _OF_MEMORY).where(this).with_for_update(read=True, of=memories)
                )
            return conn.execute(move).rowcount == 1

        return self._db.write(change)

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
        query = (
            select(documents)
            .where(documents.c.stage >= Stage.SEARCHABLE, documents.c.tombstone == "", _of_another(compressor), ~_on_its_way())
            .order_by(documents.c.tenant, documents.c.id)
            .limit(limit)
        )
        return [document_of(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def count_recompressing(self, compressor: str) -> int:
        waiting = (documents.c.stage == Stage.SEARCHABLE) & (documents.c.tombstone == "") & _of_another(compressor)
        worked_on = exists().where(
            jobs.c.tenant == documents.c.tenant, jobs.c.id == documents.c.job, jobs.c.due_time.is_not(None)
        )
        query = select(func.count()).select_from(documents).where(waiting, worked_on)
        return int(self._db.read(lambda conn: conn.execute(query).scalar_one()))

    def recompress(self, tenant: str, document: str) -> None:
        self._db.write(lambda conn: _compress_again(conn, tenant, document))

    def remake(self, tenant: str, document: str, lost: Sequence[Chunk]) -> bool:
        def change(conn: Connection) -> bool:
            if not _compress_again(conn, tenant, document):
                return False
            for chunk in lost:
                conn.execute(
                    update(chunks)
                    .where(chunks.c.tenant == tenant, chunks.c.document == document, chunks.c.ordinal == chunk.ordinal)
                    .values(compressor="", embeddings="", soft_tokens=0)
                )
            return True

        return self._db.write(change)

    def all_documents(self, tenant: str, after: str = "", limit: int = 256) -> Sequence[Document]:
        query = select(documents).where(live(tenant), documents.c.id > after).order_by(documents.c.id).limit(limit)
        return [document_of(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]


_documents = documents  # for methods whose argument takes the name

_OF_MEMORY = (memories.c.tenant == documents.c.tenant) & (memories.c.uid == documents.c.memory_uid)
_ACTIVE_KNOWS_IT = exists().where(
    adapter_documents.c.tenant == documents.c.tenant,
    adapter_documents.c.document == documents.c.id,
    adapters.c.tenant == documents.c.tenant,
    adapters.c.id == adapter_documents.c.adapter,
    adapters.c.memory_uid == documents.c.memory_uid,
    adapters.c.state == AdapterState.ACTIVE,
)


def _select(conn: Connection, tenant: str, which: ColumnElement[bool]) -> list[Document]:
    return [document_of(row) for row in conn.execute(select(documents).where(live(tenant), which)).mappings()]


def _of_another(compressor: str) -> ColumnElement[bool]:
    """The document has a chunk that was compressed, and by another compressor."""
    return exists().where(
        chunks.c.tenant == documents.c.tenant,
        chunks.c.document == documents.c.id,
        chunks.c.compressor.not_in((compressor, "")),
    )


def _on_its_way() -> ColumnElement[bool]:
    """The document has a COMPRESS job that has not ended."""
    return exists().where(
        jobs.c.tenant == documents.c.tenant,
        jobs.c.document == documents.c.id,
        jobs.c.kind == JobKind.COMPRESS,
        jobs.c.due_time.is_not(None),
    )


def _compress_again(conn: Connection, tenant: str, document: str) -> bool:
    """Makes a document SEARCHABLE again with a new COMPRESS job. False, and nothing, where it is deleted, was not SEARCHABLE
    yet, or is on its way."""
    this = live(tenant) & (documents.c.id == document) & (documents.c.stage >= Stage.SEARCHABLE)
    memory = conn.execute(select(documents.c.memory).where(this).with_for_update()).scalar()
    # Asked once the row is locked: the statement that waits for the lock would not see a job that was made meanwhile.
    if memory is None or conn.execute(select(documents.c.id).where(this, _on_its_way())).first() is not None:
        return False
    payload = {"memory": memory, "document": document}
    job = insert_job(conn, tenant, JobKind.COMPRESS, document_name(memory, document), payload)
    conn.execute(update(documents).where(this).values(stage=Stage.SEARCHABLE, job=job.id))
    return True


def _read_document(conn: Connection, tenant: str, memory: str, document: str) -> Document:
    found = _select(conn, tenant, (documents.c.memory == memory) & (documents.c.id == document))
    if not found:
        raise NotFound("no such document")
    return found[0]


def _read_replaced(conn: Connection, tenant: str, memory: str, document: str) -> Document:
    """As it stays until the transaction ends. ReplacedNotFound."""
    this = live(tenant) & (documents.c.memory == memory) & (documents.c.id == document)
    row = conn.execute(select(documents).where(this).with_for_update()).mappings().first()
    if row is None:
        raise ReplacedNotFound
    return document_of(row)


def _already_stored(conn: Connection, document: Document, erase: Job | None) -> Written:
    return Written(document, read_job(conn, document.tenant, document.job), already_stored=True, erase=erase)


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
