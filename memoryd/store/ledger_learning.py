"""When a memory studies and learns: as it was asked to, and what it has not learned yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select

from memoryd.core import LEARNING, AdapterState, Job, JobKind, JobState, Request, Unlearned, gathered_at, memory_name
from memoryd.store.ledger_jobs import insert_job, read_job
from memoryd.store.ledger_memories import find_memory_uid, require_memory_uid, required
from memoryd.store.ledger_part import LedgerPart, live, remember, result_of
from memoryd.store.schema import adapters, documents, jobs


class LearningRows(LedgerPart):
    """The part of the ledger that says when a memory learns."""

    def request_learning(
        self, tenant: str, memory: str, kind: JobKind, payload: dict[str, str], request: Request | None
    ) -> Job:
        def change(conn: Connection) -> Job:
            uid = find_memory_uid(conn, tenant, memory, lock=True)
            made = result_of(conn, tenant, request)
            if made is None:
                required(uid)
                target = memory_name(memory)
                this = (jobs.c.tenant == tenant) & (jobs.c.kind == kind) & (jobs.c.target == target)
                made = conn.execute(select(jobs.c.id).where(this, jobs.c.due_time.is_not(None))).scalar()
                if made is None:
                    made = insert_job(conn, tenant, kind, target, {**payload, "memory": memory}).id
                remember(conn, tenant, request, made)
            return read_job(conn, tenant, made)

        return self._db.write(change)

    def unlearned(self, tenant: str, memory: str) -> Unlearned:
        def query(conn: Connection) -> Unlearned:
            uid = require_memory_uid(conn, tenant, memory)
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


def _in_vain(conn: Connection, learning: ColumnElement[bool]) -> datetime | None:
    """When what a memory last learned was gathered, where that came to no examples: to try it again gives nothing either."""
    done = select(jobs).where(learning, jobs.c.state == JobState.SUCCEEDED)
    last = conn.execute(done.order_by(jobs.c.create_time.desc()).limit(1)).first()
    return None if last is None or last.receipt.get("examples") else gathered_at(last.payload, last.create_time)


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)
