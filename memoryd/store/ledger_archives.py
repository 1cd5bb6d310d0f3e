"""Archives of adapters that are outside of memoryd: what their weights have seen is kept when the adapters are deleted.

So what was deleted does not come back by import: not where the adapter was deleted too, and not in an archive that has lost its
lineage or got another configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import Connection, Select, insert, or_, select

from memoryd.errors import FailedPrecondition
from memoryd.store.ledger_part import batches, live
from memoryd.store.schema import archives, documents, jobs, memories


def remember_archive(
    conn: Connection, tenant: str, weights_sha256: str, memory_uid: str, seen: Iterable[str], made: datetime | None = None
) -> None:
    """Weights of this content hash are outside. `seen` are documents; an empty one stands for the memory, where the weights
    were trained in it, at the time `made`: for its examples that rest on no document, or on one only later."""
    this = (archives.c.tenant == tenant) & (archives.c.weights_sha256 == weights_sha256)
    held = set(conn.execute(select(archives.c.document).where(this)).scalars())
    weights = {"tenant": tenant, "weights_sha256": weights_sha256, "memory_uid": memory_uid}
    for some in batches(sorted(set(seen) - held)):
        rows = [{**weights, "document": document, "made_time": None if document else made} for document in some]
        conn.execute(insert(archives), rows)


def trained_in(tenant: str, memory_uid: str, since: datetime | None = None) -> Select[str]:
    """Weights outside that were trained in this memory, after this time or at one that nobody knows."""
    marks = (archives.c.tenant == tenant) & (archives.c.document == "") & (archives.c.memory_uid == memory_uid)
    if since is not None:
        marks &= or_(archives.c.made_time >= since, archives.c.made_time.is_(None))
    return select(archives.c.weights_sha256).where(marks)


def seen_by_archive(conn: Connection, tenant: str, weights_sha256: str, named: Collection[str]) -> list[str]:
    """The documents of this tenant that an archive's weights have seen: those that its lineage names, and those that are
    remembered. Ids that never were documents here are another installation's. FailedPrecondition where one is deleted."""
    this = (archives.c.tenant == tenant) & (archives.c.weights_sha256 == weights_sha256)
    rows = conn.execute(select(archives.c.document, archives.c.memory_uid).where(this)).all()
    seen = {*named, *(row.document for row in rows if row.document)}
    found: set[str] = set()
    for some in batches(sorted(seen)):  # locked, so that no delete comes between this and the adapter's row
        here = select(documents.c.id).where(live(tenant), documents.c.id.in_(some)).with_for_update()
        found.update(conn.execute(here).scalars())
    gone: set[str] = set()
    for some in batches(sorted(seen - found)):  # a document's jobs outlive it, and name it
        were_here = select(jobs.c.target).where(jobs.c.tenant == tenant, jobs.c.document.in_(some))
        gone.update(conn.execute(were_here).scalars())
    if gone:
        raise _tainted(min(gone) + (f" and {len(gone) - 1} more" if len(gone) > 1 else ""))
    taught_by = {row.memory_uid for row in rows if not row.document}
    there = (memories.c.tenant == tenant) & (memories.c.tombstone == "") & memories.c.uid.in_(taught_by)
    if taught_by - set(conn.execute(select(memories.c.uid).where(there)).scalars()):
        raise _tainted("examples of a memory")
    return sorted(found)


def _tainted(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the adapter was trained with {what}, deleted here since, and would bring that back: "
        "let the memory learn anew from what it holds now",
        reason="ADAPTER_TAINTED",
    )
