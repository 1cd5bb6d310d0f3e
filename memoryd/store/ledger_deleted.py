"""Deleted documents: unreachable at once, and what is left of them until it is erased."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, exists, select, update

from memoryd.core import AdapterState, Chunk, Document, Job, JobKind, Request, document_name
from memoryd.errors import NotFound
from memoryd.store.ledger_jobs import cancel_jobs, insert_job, read_job
from memoryd.store.ledger_memories import find_memory_uid
from memoryd.store.ledger_part import LedgerPart, batches, document_of, live, remember, result_of
from memoryd.store.ledger_taint import delete_adapter_rows, taint_document
from memoryd.store.schema import adapter_documents, adapters, chunks, documents, jobs, memories, passages


class DeletedRows(LedgerPart):
    """The part of the ledger that deletes documents and erases what they leave."""

    def delete_document(self, tenant: str, memory: str, document: str, request: Request | None) -> Job:
        def change(conn: Connection) -> Job:
            find_memory_uid(conn, tenant, memory, lock=True)  # against what is recorded of the document at the same time
            made = result_of(conn, tenant, request)
            if made is not None:
                return read_job(conn, tenant, made)
            job = bury(conn, tenant, memory, document)
            remember(conn, tenant, request, job.id)
            return job

        return self._db.write(change)

    def deleted_documents(self, tenant: str, memory: str, document: str = "") -> Sequence[Document]:
        deleted = (documents.c.tenant == tenant) & (documents.c.memory == memory) & (documents.c.tombstone != "")
        which = documents.c.id == document if document else _of_deleted_memory()
        query = select(documents).where(deleted, which).order_by(documents.c.id)
        return [document_of(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

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
            _erase_learned(conn, tenant, memory)
            held = _holds(table) | _holds(adapters)
            conn.execute(
                delete(memories).where(memories.c.tenant == tenant, memories.c.id == memory, memories.c.tombstone != "", ~held)
            )
            return count

        table = _documents
        erased = self._db.write(change)
        self._db.forget_log()
        return erased

    def count_tainted(self, tenant: str, memory: str, documents: Sequence[str]) -> int:
        def query(conn: Connection) -> int:
            tainted = (adapters.c.tenant == tenant) & (adapters.c.state == AdapterState.TAINTED)
            found = set(
                conn.execute(select(adapters.c.id).where(tainted, adapters.c.memory_uid.in_(_gone(tenant, memory)))).scalars()
            )
            for ids in batches(documents):
                saw = (adapter_documents.c.tenant == tenant) & adapter_documents.c.document.in_(ids)
                those = adapters.c.id.in_(select(adapter_documents.c.adapter).where(saw))
                found.update(conn.execute(select(adapters.c.id).where(tainted, those)).scalars())
            return len(found)

        return self._db.read(query)

    def deleted_chunks(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Chunk]:
        deleted = (documents.c.tenant == tenant) & (documents.c.id == document) & (documents.c.tombstone != "")
        query = (
            select(*(column for column in chunks.c if column.name != "tenant"))
            .where(chunks.c.tenant == tenant, chunks.c.document == document, chunks.c.ordinal > after)
            .where(select(documents.c.id).where(deleted).exists())
            .order_by(chunks.c.ordinal)
            .limit(limit)
        )
        return [Chunk(**row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]


def _holds(rows: Table) -> ColumnElement[bool]:
    """Whether the memory has such rows."""
    return exists().where(rows.c.tenant == memories.c.tenant, rows.c.memory_uid == memories.c.uid)


def _gone(tenant: str, memory: str) -> Select[tuple[str]]:
    """Deleted memories of that id."""
    return select(memories.c.uid).where(memories.c.tenant == tenant, memories.c.id == memory, memories.c.tombstone != "")


def _erase_learned(conn: Connection, tenant: str, memory: str) -> None:
    """Adapters of deleted memories of that id: their bytes are purged. Their examples went with the delete."""
    of_gone = (adapters.c.tenant == tenant) & adapters.c.memory_uid.in_(_gone(tenant, memory)) & (adapters.c.size_bytes == 0)
    delete_adapter_rows(conn, tenant, conn.execute(select(adapters.c.id).where(of_gone)).scalars().all())


_documents = documents  # for methods whose argument takes the name


def bury(conn: Connection, tenant: str, memory: str, document: str, after: str = "") -> Job:
    """Deletes a document: its work is cancelled, and its ERASE job is pending; that waits for the job `after`. NotFound."""
    this = live(tenant) & (documents.c.memory == memory) & (documents.c.id == document)
    if conn.execute(update(documents).where(this).values(tombstone=document)).rowcount == 0:
        raise NotFound("no such document")
    cancel_jobs(conn, tenant, select(documents.c.id).where(documents.c.tenant == tenant, documents.c.id == document))
    taint_document(conn, tenant, memory, document)
    return insert_job(conn, tenant, JobKind.ERASE, document_name(memory, document), _erase(memory, document, after))


def reusable(conn: Connection, old: Document) -> str:
    """The version whose compressed embeddings a new version of `old` is to reuse: `old`, or the one that `old` replaced and
    has not yet reused, which may have more of them."""
    job = read_job(conn, old.tenant, old.job)
    return job.payload.get("old", old.id) if job.reuses else old.id


def bury_replaced(conn: Connection, old: Document, job: Job) -> Job:
    """Deletes `old`, and returns its ERASE job. What the new version's COMPRESS job is to reuse is not erased before it has."""
    reused = job.payload["old"]
    erase = bury(conn, old.tenant, old.memory, old.id, after=job.id if reused == old.id else "")
    if reused != old.id:
        unfinished = (jobs.c.tenant == old.tenant) & (jobs.c.document == reused) & jobs.c.due_time.is_not(None)
        conn.execute(
            update(jobs)
            .where(unfinished, jobs.c.kind == JobKind.ERASE)
            .values(payload=_erase(old.memory, reused, after=job.id))
        )
    return erase


def erase_job(conn: Connection, tenant: str, document: str) -> Job | None:
    """The ERASE job of a deleted document, ended or not; None where it is not deleted."""
    of_document = (jobs.c.tenant == tenant) & (jobs.c.document == document) & (jobs.c.kind == JobKind.ERASE)
    found = conn.execute(select(jobs.c.id).where(of_document)).scalar()
    return None if found is None else read_job(conn, tenant, found)


def _erase(memory: str, document: str, after: str) -> dict[str, str]:
    payload = {"memory": memory, "document": document}
    return payload | {"after": after} if after else payload


def _of_deleted_memory() -> ColumnElement[bool]:
    return exists().where(
        memories.c.tenant == documents.c.tenant, memories.c.uid == documents.c.memory_uid, memories.c.tombstone != ""
    )
