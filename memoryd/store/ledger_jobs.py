"""Jobs: queued, leased to an owner, and ended. A lease that runs out gives the job to the next who asks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, update

from memoryd.core import LEARNING, Job, JobKind, JobState, Receipt, new_id, now, operation_name
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Page
from memoryd.store.ledger_part import LedgerPart, require_tenant
from memoryd.store.paging import read_page
from memoryd.store.schema import documents, jobs, memories, tenants


class JobRows(LedgerPart):
    """The part of the ledger that holds jobs."""

    def add_job(self, tenant: str, kind: str, target: str, payload: dict[str, str]) -> Job:
        def change(conn: Connection) -> Job:
            require_tenant(conn, tenant)
            return insert_job(conn, tenant, JobKind(kind), target, payload)

        return self._db.write(change)

    def get_job(self, tenant: str, job: str) -> Job:
        return self._db.read(lambda conn: read_job(conn, tenant, job))

    def list_jobs(self, tenant: str, page_size: int, page_token: str) -> Page[Job]:
        return self._db.read(
            lambda conn: read_page(
                conn,
                select(jobs).where(jobs.c.tenant == tenant),
                [jobs.c.create_time, jobs.c.id],
                _job,
                scope=["jobs", tenant],
                page_size=page_size,
                page_token=page_token,
            )
        )

    def claim_job(self, owner: str, lease_seconds: float) -> Job | None:
        def change(conn: Connection) -> Job | None:
            time = now()
            of_tenant = jobs.c.tenant == tenants.c.tenant
            oldest = select(func.min(jobs.c.due_time)).where(of_tenant, jobs.c.due_time <= time).scalar_subquery()
            running = (
                select(func.count())
                .where(of_tenant, jobs.c.due_time > time, jobs.c.state == JobState.RUNNING)
                .scalar_subquery()
            )
            turns = select(tenants.c.tenant).where(oldest.is_not(None)).order_by(running, oldest)
            for tenant in conn.execute(turns).scalars().all():
                due = (
                    select(jobs.c.id)
                    .where(jobs.c.tenant == tenant, jobs.c.due_time <= time)
                    .order_by(jobs.c.due_time, jobs.c.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)  # where several daemons share a database
                )
                job = conn.execute(due).scalar()
                if job is not None:
                    conn.execute(
                        update(jobs)
                        .where(jobs.c.tenant == tenant, jobs.c.id == job)
                        .values(
                            state=JobState.RUNNING,
                            owner=owner,
                            attempts=jobs.c.attempts + 1,
                            due_time=time + timedelta(seconds=lease_seconds),
                        )
                    )
                    return read_job(conn, tenant, job)
            return None

        if self._db.read(_nothing_due):  # an idle daemon that asks often writes nothing
            return None
        return self._db.write(change)

    def heartbeat(
        self,
        tenant: str,
        job: str,
        owner: str,
        lease_seconds: float,
        stage: str,
        done: int,
        total: int,
        rate: float,
        receipt: Receipt | None = None,
    ) -> bool:
        known: dict[str, Any] = {} if receipt is None else {"receipt": receipt}
        return self._change_owned(
            tenant,
            job,
            owner,
            due_time=now() + timedelta(seconds=lease_seconds),
            stage=stage,
            done=done,
            total=total,
            rate=rate,
            **known,
        )

    def release_job(self, tenant: str, job: str, owner: str, seconds: float = 0.0) -> None:
        self._change_owned(
            tenant,
            job,
            owner,
            state=JobState.PENDING,
            owner_="",
            due_time=now() + timedelta(seconds=seconds),  # behind those that wait: a long job gives way
            attempts=jobs.c.attempts - 1,
        )

    def finish_job(self, tenant: str, job: str, owner: str, receipt: Receipt) -> bool:
        return self._change_owned(
            tenant, job, owner, state=JobState.SUCCEEDED, due_time=None, end_time=now(), error="", receipt=receipt
        )

    def fail_job(self, tenant: str, job: str, owner: str, error: str, retry_at: datetime | None) -> bool:
        if retry_at is None:
            return self._change_owned(tenant, job, owner, state=JobState.DEAD, due_time=None, end_time=now(), error=error)
        return self._change_owned(tenant, job, owner, state=JobState.PENDING, owner_="", due_time=retry_at, error=error)

    def cancel_job(self, tenant: str, job: str) -> Job:
        def change(conn: Connection) -> Job:
            found = read_job(conn, tenant, job, lock=True)
            if found.state.ended:
                return found
            if found.kind == JobKind.ERASE:
                raise FailedPrecondition("an erase cannot be cancelled: what is deleted stays deleted")
            _set(conn, tenant, job, state=JobState.CANCELLED, due_time=None, end_time=now())
            return read_job(conn, tenant, job)

        return self._db.write(change)

    def retry_job(self, tenant: str, job: str) -> Job:
        def change(conn: Connection) -> Job:
            found = read_job(conn, tenant, job, lock=True)
            if found.state not in (JobState.DEAD, JobState.CANCELLED):
                raise FailedPrecondition("only a dead or cancelled job can be retried")
            document = found.payload.get("document", "")
            if document and found.kind != JobKind.ERASE:
                live = select(documents.c.id).where(
                    documents.c.tenant == tenant, documents.c.id == document, documents.c.tombstone == ""
                )
                if conn.execute(live).first() is None:
                    raise FailedPrecondition("the job's document is deleted")
            if found.kind in LEARNING:
                there = (
                    (memories.c.tenant == tenant) & (memories.c.id == found.payload["memory"]) & (memories.c.tombstone == "")
                )
                if conn.execute(select(memories.c.uid).where(there).with_for_update()).first() is None:
                    raise FailedPrecondition("the job's memory is deleted")
                alike = (jobs.c.tenant == tenant) & (jobs.c.kind == found.kind) & (jobs.c.target == found.target)
                other = conn.execute(select(jobs.c.id).where(alike, jobs.c.due_time.is_not(None))).scalar()
                if other is not None:
                    raise FailedPrecondition(
                        f"another job does that already: wait for {operation_name(other)}",
                        reason="UNDER_WAY",
                        details={"operation": operation_name(other)},
                    )
            _set(conn, tenant, job, state=JobState.PENDING, due_time=now(), end_time=None, attempts=0, owner="", error="")
            return read_job(conn, tenant, job)

        return self._db.write(change)

    def _change_owned(self, tenant: str, job: str, owner: str, *, owner_: str | None = None, **values: Any) -> bool:
        if owner_ is not None:
            values["owner"] = owner_
        statement = (
            update(jobs)
            .where(jobs.c.tenant == tenant, jobs.c.id == job, jobs.c.owner == owner, jobs.c.state == JobState.RUNNING)
            .values(**values)
        )
        return self._db.write(lambda conn: conn.execute(statement).rowcount == 1)


def insert_job(conn: Connection, tenant: str, kind: JobKind, target: str, payload: Mapping[str, str]) -> Job:
    """A PENDING job, due now."""
    job = Job(tenant, new_id(), kind, target, now(), payload=dict(payload))
    conn.execute(
        _INSERT,
        {
            "tenant": tenant,
            "id": job.id,
            "kind": kind,
            "target": target,
            "document": payload.get("document", ""),
            "payload": payload,
            "state": job.state,
            "due_time": job.create_time,
            "receipt": {},
            "create_time": job.create_time,
        },
    )
    return job


_INSERT = insert(jobs)


def cancel_jobs(conn: Connection, tenant: str, of_documents: Select[tuple[str]]) -> None:
    """Ends the unfinished jobs of documents that are being deleted, but not those that erase."""
    conn.execute(
        update(jobs)
        .where(
            jobs.c.tenant == tenant,
            jobs.c.document.in_(of_documents),
            jobs.c.due_time.is_not(None),
            jobs.c.kind != JobKind.ERASE,
        )
        .values(state=JobState.CANCELLED, due_time=None, end_time=now())
    )


def read_job(conn: Connection, tenant: str, job: str, *, lock: bool = False) -> Job:
    """NotFound."""
    query = select(jobs).where(jobs.c.tenant == tenant, jobs.c.id == job)
    row = conn.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound("no such operation")
    return _job(row)


def _nothing_due(conn: Connection) -> bool:
    return (
        conn.execute(
            select(tenants.c.tenant)
            .where(select(jobs.c.id).where(jobs.c.tenant == tenants.c.tenant, jobs.c.due_time <= now()).exists())
            .limit(1)
        ).first()
        is None
    )


def _set(conn: Connection, tenant: str, job: str, **values: Any) -> None:
    conn.execute(update(jobs).where(jobs.c.tenant == tenant, jobs.c.id == job).values(**values))


def _job(row: RowMapping) -> Job:
    return Job(
        row["tenant"],
        row["id"],
        JobKind(row["kind"]),
        row["target"],
        row["create_time"],
        JobState(row["state"]),
        row["stage"],
        row["done"],
        row["total"],
        row["rate"],
        row["attempts"],
        row["error"],
        row["payload"],
        row["receipt"],
        row["end_time"],
    )
