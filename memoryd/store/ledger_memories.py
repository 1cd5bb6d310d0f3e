"""Memories: made, changed, deleted."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, Select, bindparam, func, insert, select, update

from memoryd.core import Job, JobKind, Memory, Metadata, Request, memory_name, new_id, now
from memoryd.errors import AlreadyExists, NotFound
from memoryd.store.base import Page
from memoryd.store.ledger_jobs import cancel_jobs, insert_job, read_job
from memoryd.store.ledger_part import LedgerPart, remember, require_tenant, result_of
from memoryd.store.ledger_taint import taint_memory
from memoryd.store.paging import read_page
from memoryd.store.schema import documents, memories

_document_count = (
    select(func.count())
    .where(documents.c.tenant == memories.c.tenant, documents.c.memory == memories.c.id, documents.c.tombstone == "")
    .correlate(memories)
    .scalar_subquery()
)


class MemoryRows(LedgerPart):
    """The part of the ledger that holds memories."""

    def create_memory(
        self, tenant: str, memory: str, display_name: str, description: str, metadata: Metadata, request: Request | None
    ) -> Memory:
        def change(conn: Connection) -> Memory:
            id_ = memory or new_id()
            taken = find_memory_uid(conn, tenant, id_) is not None
            made = result_of(conn, tenant, request)
            if made is not None:
                return read_memory(conn, tenant, made)
            require_tenant(conn, tenant)
            if taken:
                raise AlreadyExists("there is a memory of that id")
            time = now()
            conn.execute(
                insert(memories).values(
                    tenant=tenant,
                    uid=new_id(),
                    id=id_,
                    display_name=display_name,
                    description=description,
                    metadata=metadata,
                    create_time=time,
                    update_time=time,
                )
            )
            remember(conn, tenant, request, id_)
            return read_memory(conn, tenant, id_)

        return self._db.write(change)

    def get_memory(self, tenant: str, memory: str) -> Memory:
        return self._db.read(lambda conn: read_memory(conn, tenant, memory))

    def require_memories(self, tenant: str, memories: Sequence[str]) -> None:
        def query(conn: Connection) -> None:
            for memory in memories:
                require_memory_uid(conn, tenant, memory)

        self._db.read(query)

    def list_memories(self, tenant: str, page_size: int, page_token: str) -> Page[Memory]:
        return self._db.read(
            lambda conn: read_page(
                conn,
                _live(tenant),
                [memories.c.create_time, memories.c.uid],
                _memory,
                scope=["memories", tenant],
                page_size=page_size,
                page_token=page_token,
            )
        )

    def update_memory(
        self,
        tenant: str,
        memory: str,
        request: Request | None,
        *,
        display_name: str | None = None,
        description: str | None = None,
        metadata: Metadata | None = None,
    ) -> Memory:
        given = {"display_name": display_name, "description": description, "metadata": metadata}
        values = {name: value for name, value in given.items() if value is not None}

        def change(conn: Connection) -> Memory:
            if result_of(conn, tenant, request) is None:
                conn.execute(
                    update(memories)
                    .where(memories.c.tenant == tenant, memories.c.id == memory, memories.c.tombstone == "")
                    .values(update_time=now(), **values)
                )
                remember(conn, tenant, request, memory)
            return read_memory(conn, tenant, memory)

        return self._db.write(change)

    def delete_memory(self, tenant: str, memory: str, request: Request | None) -> Job:
        def change(conn: Connection) -> Job:
            uid = find_memory_uid(conn, tenant, memory, lock=True)
            made = result_of(conn, tenant, request)
            if made is not None:
                return read_job(conn, tenant, made)
            uid = required(uid)
            of_memory = (documents.c.tenant == tenant) & (documents.c.memory_uid == uid)
            cancel_jobs(conn, tenant, select(documents.c.id).where(of_memory))
            conn.execute(update(documents).where(of_memory, documents.c.tombstone == "").values(tombstone=documents.c.id))
            conn.execute(update(memories).where(memories.c.tenant == tenant, memories.c.uid == uid).values(tombstone=uid))
            taint_memory(conn, tenant, memory, uid)
            job = insert_job(conn, tenant, JobKind.ERASE, memory_name(memory), {"memory": memory})
            remember(conn, tenant, request, job.id)
            return job

        return self._db.write(change)


def find_memory_uid(conn: Connection, tenant: str, memory: str, *, lock: bool = False) -> str | None:
    """The uid of the live memory of this id. `lock` keeps it from being deleted until the transaction ends."""
    return conn.execute(_LOCK_UID if lock else _UID, {"tenant": tenant, "id": memory}).scalar()


def require_memory_uid(conn: Connection, tenant: str, memory: str, *, lock: bool = False) -> str:
    """As find_memory_uid. NotFound where there is none."""
    return required(find_memory_uid(conn, tenant, memory, lock=lock))


def required(uid: str | None) -> str:
    """What find_memory_uid found. NotFound where that is nothing."""
    if uid is None:
        raise NotFound("no such memory")
    return uid


_UID = select(memories.c.uid).where(
    memories.c.tenant == bindparam("tenant"), memories.c.id == bindparam("id"), memories.c.tombstone == ""
)
_LOCK_UID = _UID.with_for_update()


def read_memory(conn: Connection, tenant: str, memory: str) -> Memory:
    """NotFound."""
    row = conn.execute(_live(tenant).where(memories.c.id == memory)).mappings().first()
    if row is None:
        raise NotFound("no such memory")
    return _memory(row)


def _live(tenant: str) -> Select[tuple[object, ...]]:
    return select(memories, _document_count.label("document_count")).where(
        memories.c.tenant == tenant, memories.c.tombstone == ""
    )


def _memory(row: RowMapping) -> Memory:
    return Memory(
        row["tenant"],
        row["id"],
        row["display_name"],
        row["description"],
        row["metadata"],
        row["create_time"],
        row["update_time"],
        row["document_count"],
    )
