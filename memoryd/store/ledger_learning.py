"""Examples, and the adapters that were trained on them. What deleting a document does to both is in ledger_taint.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, select, update

from memoryd.core import (
    LEARNING,
    Adapter,
    AdapterState,
    Example,
    Job,
    JobKind,
    JobState,
    Origin,
    Request,
    Unlearned,
    adapter_name,
    gathered_at,
    memory_name,
    new_id,
    now,
)
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Page
from memoryd.store.ledger_archives import remember_archive, seen_by_archive
from memoryd.store.ledger_jobs import insert_job, read_job
from memoryd.store.ledger_memories import find_memory_uid
from memoryd.store.ledger_part import LedgerPart, batches, live, remember, result_of
from memoryd.store.ledger_taint import activate_clean, clean_ancestor, delete_adapter_rows, delete_example_rows
from memoryd.store.paging import read_page
from memoryd.store.schema import adapter_documents, adapters, documents, example_documents, examples, jobs


class LearningRows(LedgerPart):
    """The part of the ledger that holds examples and adapters."""

    def add_examples(
        self,
        tenant: str,
        memory: str,
        new: Sequence[tuple[str, str, Sequence[str]]],
        origin: Origin,
        request: Request | None,
    ) -> tuple[Sequence[Example], int]:
        def change(conn: Connection) -> tuple[Sequence[Example], int]:
            made = result_of(conn, tenant, request)
            if made is not None:
                ids = json.loads(made)
                found = {example.id: example for example in _examples(conn, tenant, ids)}
                return [found[id_] for id_ in ids if id_ in found], len(ids)
            uid = _memory_uid(conn, tenant, memory, lock=True)
            _require_documents(conn, tenant, memory, {document for _, _, of in new for document in of})
            ids, held = [], 0
            for question, answer, of in new:
                id_, added = _add_example(conn, tenant, memory, uid, question, answer, of, origin)
                ids.append(id_)
                held += not added
            remember(conn, tenant, request, json.dumps(ids))
            found = {example.id: example for example in _examples(conn, tenant, ids)}
            return [found[id_] for id_ in ids], held

        return self._db.write(change)

    def list_examples(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Example]:
        def query(conn: Connection) -> Page[Example]:
            uid = _memory_uid(conn, tenant, memory)
            page = read_page(
                conn,
                select(examples).where(examples.c.tenant == tenant, examples.c.memory_uid == uid),
                [examples.c.create_time, examples.c.id],
                lambda row: row,
                scope=["examples", tenant, uid],
                page_size=page_size,
                page_token=page_token,
            )
            return Page(_with_documents(conn, tenant, page.items), page.next_token)

        return self._db.read(query)

    def delete_example(self, tenant: str, memory: str, example: str) -> None:
        def change(conn: Connection) -> None:
            uid = _memory_uid(conn, tenant, memory)
            of_memory = (examples.c.tenant == tenant) & (examples.c.memory_uid == uid) & (examples.c.id == example)
            if conn.execute(select(examples.c.id).where(of_memory)).first() is None:
                raise NotFound("no such example")
            delete_example_rows(conn, tenant, [example])

        self._db.write(change)
        self._db.forget_log()

    def request_learning(
        self, tenant: str, memory: str, kind: JobKind, payload: dict[str, str], request: Request | None
    ) -> Job:
        def change(conn: Connection) -> Job:
            made = result_of(conn, tenant, request)
            if made is None:
                _memory_uid(conn, tenant, memory, lock=True)
                target = memory_name(memory)
                this = (jobs.c.tenant == tenant) & (jobs.c.kind == kind) & (jobs.c.target == target)
                made = conn.execute(select(jobs.c.id).where(this, jobs.c.due_time.is_not(None))).scalar()
                if made is None:
                    made = insert_job(conn, tenant, kind, target, {**payload, "memory": memory}).id
                remember(conn, tenant, request, made)
            return read_job(conn, tenant, made)

        return self._db.write(change)

    def add_adapter(
        self, adapter: Adapter, documents: Sequence[str], activate: bool, weights_sha256: str = ""
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
            _check_not_tainted(conn, adapter)
            conn.execute(insert(adapters), {**_row(adapter), "memory_uid": uid, "documents": len(seen)})
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
            uid = _memory_uid(conn, tenant, memory, lock=True)
            found = _adapter(conn, tenant, uid, adapter)
            if found.state is AdapterState.TAINTED:
                raise FailedPrecondition(_TAINTED, reason="ADAPTER_TAINTED")
            of_adapter = (adapter_documents.c.tenant == tenant) & (adapter_documents.c.adapter == adapter)
            seen = conn.execute(select(adapter_documents.c.document).where(of_adapter)).scalars().all()
            remember_archive(conn, tenant, weights_sha256, uid, [*seen, ""] if found.job else seen)

        self._db.write(change)

    def adapter_of_job(self, tenant: str, job: str) -> Adapter | None:
        query = select(adapters).where(adapters.c.tenant == tenant, adapters.c.job == job)
        row = self._db.read(lambda conn: conn.execute(query).mappings().first()) if job else None
        return None if row is None else _adapter_of(row)

    def get_adapter(self, tenant: str, memory: str, adapter: str) -> Adapter:
        return self._db.read(lambda conn: _adapter(conn, tenant, _memory_uid(conn, tenant, memory), adapter))

    def list_adapters(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Adapter]:
        def query(conn: Connection) -> Page[Adapter]:
            uid = _memory_uid(conn, tenant, memory)
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
            uid = _memory_uid(conn, tenant, memory, lock=True)
            if _adapter(conn, tenant, uid, adapter).state is AdapterState.TAINTED:
                raise FailedPrecondition(_TAINTED, reason="ADAPTER_TAINTED")
            activate_clean(conn, tenant, uid, adapter)
            return _adapter(conn, tenant, uid, adapter)

        return self._db.write(change)

    def roll_back_adapter(self, tenant: str, memory: str) -> Adapter | None:
        def change(conn: Connection) -> Adapter | None:
            uid = _memory_uid(conn, tenant, memory, lock=True)
            active = _active(conn, tenant, uid)
            if active is None:
                raise FailedPrecondition("no adapter is active: the reader answers already", reason="NO_ACTIVE_ADAPTER")
            activate_clean(conn, tenant, uid, active.parent)
            return _active(conn, tenant, uid)

        return self._db.write(change)

    def delete_adapter(self, tenant: str, memory: str, adapter: str) -> Job:
        def change(conn: Connection) -> Job:
            uid = _memory_uid(conn, tenant, memory, lock=True)
            return _delete(conn, uid, _adapter(conn, tenant, uid, adapter))

        return self._db.write(change)

    def retire_adapters(self, tenant: str, memory: str, keep: int) -> Sequence[str]:
        def change(conn: Connection) -> Sequence[str]:
            uid = _memory_uid(conn, tenant, memory, lock=True)
            active = _active(conn, tenant, uid)
            next_ = clean_ancestor(conn, tenant, uid, active.parent) if active else ""
            of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
            idle = of_memory & (adapters.c.state == AdapterState.KEPT) & (adapters.c.id != next_)
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

    def unlearned(self, tenant: str, memory: str) -> Unlearned:
        def query(conn: Connection) -> Unlearned:
            uid = _memory_uid(conn, tenant, memory)
            of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
            clean = of_memory & adapters.c.gather_time.is_not(None) & (adapters.c.state != AdapterState.TAINTED)
            times = func.max(adapters.c.gather_time), func.max(adapters.c.create_time)
            gathered, made = conn.execute(select(*times).where(clean)).one()
            few = (jobs.c.tenant == tenant) & (jobs.c.document == "")  # there is an index for that, and most are of documents
            learning = few & (jobs.c.target == memory_name(memory)) & jobs.c.kind.in_(LEARNING)
            tried = conn.execute(select(func.max(jobs.c.create_time)).where(learning)).scalar()
            since = _latest(gathered, _in_vain(conn, learning))
            new = live(tenant) & (documents.c.memory_uid == uid)
            if since is not None:
                new &= documents.c.create_time > since
            total = conn.execute(select(func.coalesce(func.sum(documents.c.token_count), 0)).where(new)).scalar_one()
            now_ = conn.execute(select(jobs.c.id).where(learning, jobs.c.due_time.is_not(None)).limit(1)).first()
            return Unlearned(int(total), _latest(made, tried), now_ is not None)

        return self._db.read(query)

    def memories_with(self, tokens: int) -> Sequence[tuple[str, str]]:
        of = (documents.c.tenant, documents.c.memory)
        large = func.sum(documents.c.token_count) >= tokens
        query = select(*of).where(documents.c.tombstone == "").group_by(*of, documents.c.memory_uid).having(large)
        return [(row.tenant, row.memory) for row in self._db.read(lambda conn: conn.execute(query).all())]


def _memory_uid(conn: Connection, tenant: str, memory: str, *, lock: bool = False) -> str:
    uid = find_memory_uid(conn, tenant, memory, lock=lock)
    if uid is None:
        raise NotFound("no such memory")
    return uid


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


def _in_vain(conn: Connection, learning: ColumnElement[bool]) -> datetime | None:
    """When what a memory last learned was gathered, where that came to no examples: to try it again gives nothing either."""
    done = select(jobs).where(learning, jobs.c.state == JobState.SUCCEEDED)
    last = conn.execute(done.order_by(jobs.c.create_time.desc()).limit(1)).first()
    return None if last is None or last.receipt.get("examples") else gathered_at(last.payload, last.create_time)


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)


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


def _require_documents(conn: Connection, tenant: str, memory: str, ids: set[str]) -> None:
    this = live(tenant) & (documents.c.memory == memory)
    found = {
        id_
        for batch in batches(sorted(ids))
        for id_ in conn.execute(select(documents.c.id).where(this, documents.c.id.in_(batch))).scalars()
    }
    if found != ids:
        raise NotFound("no such document")


def _all_live(conn: Connection, tenant: str, ids: Sequence[str]) -> bool:
    count = sum(
        int(conn.execute(select(func.count()).where(live(tenant), documents.c.id.in_(batch))).scalar_one())
        for batch in batches(list(ids))
    )
    return count == len(set(ids))


def _add_example(
    conn: Connection, tenant: str, memory: str, uid: str, question: str, answer: str, of: Sequence[str], origin: Origin
) -> tuple[str, bool]:
    """Its id, and whether it is new."""
    sha256 = hashlib.sha256(json.dumps([question.strip(), answer.strip()]).encode()).hexdigest()
    this = (examples.c.tenant == tenant) & (examples.c.memory_uid == uid) & (examples.c.sha256 == sha256)
    held = conn.execute(select(examples.c.id).where(this)).scalar()
    if held is not None:
        _rest(conn, tenant, held, of)
        return held, False
    new = {"id": new_id(), "memory": memory, "memory_uid": uid, "sha256": sha256, "origin": origin, "create_time": now()}
    conn.execute(insert(examples), {"tenant": tenant, "question": question, "answer": answer, **new})
    _rest(conn, tenant, str(new["id"]), of)
    return str(new["id"]), True


def _rest(conn: Connection, tenant: str, example: str, of: Sequence[str]) -> None:
    """The example rests on these documents too."""
    this = (example_documents.c.tenant == tenant) & (example_documents.c.example == example)
    held = set(conn.execute(select(example_documents.c.document).where(this)).scalars())
    more = [document for document in dict.fromkeys(of) if document not in held]
    if more:
        rows = [{"tenant": tenant, "example": example, "document": document} for document in more]
        conn.execute(insert(example_documents), rows)


def _examples(conn: Connection, tenant: str, ids: Sequence[str]) -> list[Example]:
    rows: list[RowMapping] = []
    for batch in batches(ids):
        rows += conn.execute(select(examples).where(examples.c.tenant == tenant, examples.c.id.in_(batch))).mappings()
    return _with_documents(conn, tenant, rows)


def _with_documents(conn: Connection, tenant: str, rows: Sequence[Mapping[Any, Any]]) -> list[Example]:
    of: dict[str, list[str]] = {row["id"]: [] for row in rows}
    for batch in batches(list(of)):
        rests = (example_documents.c.tenant == tenant) & example_documents.c.example.in_(batch)
        columns = (example_documents.c.example, example_documents.c.document)
        for example, document in conn.execute(select(*columns).where(rests).order_by(example_documents.c.document)):
            of[example].append(document)
    return [
        Example(
            row["tenant"],
            row["memory"],
            row["id"],
            row["question"],
            row["answer"],
            Origin(row["origin"]),
            row["create_time"],
            tuple(of[row["id"]]),
        )
        for row in rows
    ]


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
