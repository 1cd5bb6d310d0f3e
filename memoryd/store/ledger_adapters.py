"""Adapters: recorded, activated, rolled back, deleted. What deleting a document does to them is in ledger_taint.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from memoryd.core import Adapter, AdapterState, Job, JobKind, JobState, adapter_name
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Page
from memoryd.store.ledger_archives import remember_archive, seen_by_archive
from memoryd.store.ledger_jobs import insert_job
from memoryd.store.ledger_memories import find_memory_uid, require_memory_uid
from memoryd.store.ledger_part import LedgerPart, batches, live
from memoryd.store.ledger_taint import activate_clean, clean_ancestor, delete_adapter_rows
from memoryd.store.paging import read_page
from memoryd.store.schema import adapter_documents, adapters, documents, example_documents, examples, jobs


class AdapterRows(LedgerPart):
    """The part of the ledger that holds adapters."""

    def add_adapter(
        self,
        adapter: Adapter,
        documents: Sequence[str],
        activate: bool,
        weights_sha256: str = "",
        gathered: datetime | None = None,
    ) -> Adapter | None:
        def change(conn: Connection) -> Adapter | None:
            uid = find_memory_uid(conn, adapter.tenant, adapter.memory, lock=True)
            if uid is None:
                return None
            seen = list(documents)
            if weights_sha256:
                seen = seen_by_archive(conn, adapter.tenant, weights_sha256, documents)
                remember_archive(conn, adapter.tenant, weights_sha256, uid, seen)
            if not _all_live(conn, adapter.tenant, seen) or not _is_running(conn, adapter):
                return None
            if adapter.job:
                seen = sorted({*seen, *_rested_on(conn, adapter, uid, gathered or adapter.create_time)})
            else:  # what is learned anew may well come out the same, without what was deleted
                _check_not_tainted(conn, adapter)
            outside = weights_sha256 or None
            conn.execute(
                insert(adapters), {**_row(adapter), "memory_uid": uid, "documents": len(seen), "weights_sha256": outside}
            )
            for ids in batches(seen):
                rows = [{"tenant": adapter.tenant, "adapter": adapter.id, "document": document} for document in ids]
                conn.execute(insert(adapter_documents), rows)
            in_use = _active(conn, adapter.tenant, uid)
            if activate and (in_use.id if in_use else "") == adapter.parent:  # judged against what is still in use
                activate_clean(conn, adapter.tenant, uid, adapter.id)
            return _adapter(conn, adapter.tenant, uid, adapter.id)

        return self._db.write(change)

    def record_export(self, tenant: str, memory: str, adapter: str, weights_sha256: str) -> None:
        def change(conn: Connection) -> None:
            uid = require_memory_uid(conn, tenant, memory, lock=True)
            found = _adapter(conn, tenant, uid, adapter)
            if found.state is AdapterState.TAINTED:
                raise FailedPrecondition(_TAINTED, reason="ADAPTER_TAINTED")
            of_adapter = (adapter_documents.c.tenant == tenant) & (adapter_documents.c.adapter == adapter)
            seen = conn.execute(select(adapter_documents.c.document).where(of_adapter)).scalars().all()
            remember_archive(conn, tenant, weights_sha256, uid, [*seen, ""] if found.job else seen, found.create_time)
            this = (adapters.c.tenant == tenant) & (adapters.c.id == adapter)
            conn.execute(update(adapters).where(this).values(weights_sha256=weights_sha256))

        self._db.write(change)

    def adapter_of_job(self, tenant: str, job: str) -> Adapter | None:
        query = select(adapters).where(adapters.c.tenant == tenant, adapters.c.job == job)
        row = self._db.read(lambda conn: conn.execute(query).mappings().first()) if job else None
        return None if row is None else _adapter_of(row)

    def get_adapter(self, tenant: str, memory: str, adapter: str) -> Adapter:
        return self._db.read(lambda conn: _adapter(conn, tenant, require_memory_uid(conn, tenant, memory), adapter))

    def list_adapters(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Adapter]:
        def query(conn: Connection) -> Page[Adapter]:
            uid = require_memory_uid(conn, tenant, memory)
            return read_page(
                conn,
                select(adapters).where(adapters.c.tenant == tenant, adapters.c.memory_uid == uid),
                [adapters.c.create_time, adapters.c.id],
                _adapter_of,
                scope=["adapters", tenant, uid],
                page_size=page_size,
                page_token=page_token,
            )

        return self._db.read(query)

    def active_adapters(self, tenant: str, memories: Sequence[str]) -> dict[str, Adapter]:
        def query(conn: Connection) -> dict[str, Adapter]:
            uids = {memory: find_memory_uid(conn, tenant, memory) for memory in dict.fromkeys(memories)}
            found = {memory: _active(conn, tenant, uid) for memory, uid in uids.items() if uid is not None}
            return {memory: adapter for memory, adapter in found.items() if adapter is not None}

        return self._db.read(query)

    def activate_adapter(self, tenant: str, memory: str, adapter: str) -> Adapter:
        def change(conn: Connection) -> Adapter:
            uid = require_memory_uid(conn, tenant, memory, lock=True)
            if _adapter(conn, tenant, uid, adapter).state is AdapterState.TAINTED:
                raise FailedPrecondition(_TAINTED, reason="ADAPTER_TAINTED")
            activate_clean(conn, tenant, uid, adapter)
            return _adapter(conn, tenant, uid, adapter)

        return self._db.write(change)

    def roll_back_adapter(self, tenant: str, memory: str) -> Adapter | None:
        def change(conn: Connection) -> Adapter | None:
            uid = require_memory_uid(conn, tenant, memory, lock=True)
            active = _active(conn, tenant, uid)
            if active is None:
                raise FailedPrecondition("no adapter is active: the reader answers already", reason="NO_ACTIVE_ADAPTER")
            activate_clean(conn, tenant, uid, active.parent)
            return _active(conn, tenant, uid)

        return self._db.write(change)

    def delete_adapter(self, tenant: str, memory: str, adapter: str) -> Job:
        def change(conn: Connection) -> Job:
            uid = require_memory_uid(conn, tenant, memory, lock=True)
            return _delete(conn, uid, _adapter(conn, tenant, uid, adapter))

        return self._db.write(change)

    def retire_adapters(self, tenant: str, memory: str, keep: int) -> Sequence[str]:
        def change(conn: Connection) -> Sequence[str]:
            uid = require_memory_uid(conn, tenant, memory, lock=True)
            active = _active(conn, tenant, uid)
            next_ = clean_ancestor(conn, tenant, uid, active.parent) if active else ""
            of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
            learned = of_memory & (adapters.c.job != "")  # who imported one by hand deletes it by hand
            idle = learned & (adapters.c.state == AdapterState.KEPT) & (adapters.c.id != next_)
            query = select(adapters).where(idle).order_by(adapters.c.create_time.desc(), adapters.c.id.desc())
            doomed = [_adapter_of(row) for row in conn.execute(query).mappings()][keep:]
            for adapter in doomed:
                _delete(conn, uid, _adapter(conn, tenant, uid, adapter.id))  # its parent may just have changed
            return [adapter.id for adapter in doomed]

        return self._db.write(change)

    def tainted_adapters(self, tenant: str) -> Sequence[Adapter]:
        tainted = (adapters.c.state == AdapterState.TAINTED) & (adapters.c.size_bytes > 0)
        query = select(adapters).where(adapters.c.tenant == tenant, tainted)
        return [_adapter_of(row) for row in self._db.read(lambda conn: conn.execute(query).mappings().all())]

    def purged_adapter(self, tenant: str, adapter: str) -> None:
        this = (adapters.c.tenant == tenant) & (adapters.c.id == adapter) & (adapters.c.state == AdapterState.TAINTED)
        self._db.write(lambda conn: conn.execute(update(adapters).where(this).values(size_bytes=0)) and None)


def _delete(conn: Connection, uid: str, adapter: Adapter) -> Job:
    """Rolled back where it is active, gone, and to be erased."""
    if adapter.state is AdapterState.ACTIVE:
        activate_clean(conn, adapter.tenant, uid, adapter.parent)
    # Its children keep their lineage: their parent is its parent now.
    of_memory = (adapters.c.tenant == adapter.tenant) & (adapters.c.memory_uid == uid)
    conn.execute(update(adapters).where(of_memory, adapters.c.parent == adapter.id).values(parent=adapter.parent))
    delete_adapter_rows(conn, adapter.tenant, [adapter.id])
    payload = {"memory": adapter.memory, "adapter": adapter.id}
    return insert_job(conn, adapter.tenant, JobKind.ERASE, adapter_name(adapter.memory, adapter.id), payload)


def _rested_on(conn: Connection, adapter: Adapter, uid: str, gathered_by: datetime) -> Sequence[str]:
    """Documents that the examples which it may have learned from rest on now; some may have been added since."""
    rests = (example_documents.c.tenant == examples.c.tenant) & (example_documents.c.example == examples.c.id)
    gathered = (examples.c.tenant == adapter.tenant) & (examples.c.memory_uid == uid)
    query = select(example_documents.c.document).distinct().join(examples, rests).where(gathered)
    return conn.execute(query.where(examples.c.create_time <= gathered_by)).scalars().all()


def _is_running(conn: Connection, adapter: Adapter) -> bool:
    """Whether the job that made it was not cancelled meanwhile."""
    this = (jobs.c.tenant == adapter.tenant) & (jobs.c.id == adapter.job) & (jobs.c.state == JobState.RUNNING)
    return not adapter.job or conn.execute(select(jobs.c.id).where(this).with_for_update()).first() is not None


def _check_not_tainted(conn: Connection, adapter: Adapter) -> None:
    """FailedPrecondition where these weights saw a document that is deleted: they come back in an archive, say."""
    tainted = (adapters.c.tenant == adapter.tenant) & (adapters.c.state == AdapterState.TAINTED)
    if conn.execute(select(adapters.c.id).where(tainted, adapters.c.fingerprint == adapter.fingerprint)).first():
        raise FailedPrecondition(_TAINTED, reason="ADAPTER_TAINTED")


_TAINTED = "the adapter was trained with a document that is deleted: learn again"


def _all_live(conn: Connection, tenant: str, ids: Sequence[str]) -> bool:
    count = sum(
        int(conn.execute(select(func.count()).where(live(tenant), documents.c.id.in_(batch))).scalar_one())
        for batch in batches(list(ids))
    )
    return count == len(set(ids))


def _active(conn: Connection, tenant: str, uid: str) -> Adapter | None:
    of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
    row = conn.execute(select(adapters).where(of_memory, adapters.c.state == AdapterState.ACTIVE)).mappings().first()
    return None if row is None else _adapter_of(row)


def _adapter(conn: Connection, tenant: str, uid: str, adapter: str) -> Adapter:
    this = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid) & (adapters.c.id == adapter)
    row = conn.execute(select(adapters).where(this)).mappings().first()
    if row is None:
        raise NotFound("no such adapter")
    return _adapter_of(row)


_PLAIN = (
    "tenant", "memory", "id", "create_time", "fingerprint", "base", "reader", "compressor", "size_bytes", "parent", "job",
    "examples", "documents", "judgement", "gather_time",
)  # fmt: skip


def _adapter_of(row: Mapping[Any, Any]) -> Adapter:
    return Adapter(**{name: row[name] for name in _PLAIN}, state=AdapterState(row["state"]))


def _row(adapter: Adapter) -> dict[str, Any]:
    return {name: getattr(adapter, name) for name in _PLAIN} | {"state": adapter.state}
