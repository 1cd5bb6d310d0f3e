"""What deleting does to what was learned: examples go with the documents that they rest on, adapters that saw them are tainted.

In the transaction of the delete itself, so that nothing tainted is served by any answer that begins after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from memoryd.core import LEARNING, AdapterState, JobKind, JobState, Stage, memory_name, now
from memoryd.store.ledger_archives import remember_archive, trained_in
from memoryd.store.ledger_jobs import insert_job
from memoryd.store.ledger_part import batches
from memoryd.store.schema import adapter_documents, adapters, documents, example_documents, examples, jobs


def taint_document(conn: Connection, tenant: str, memory: str, document: str) -> None:
    """Of a live memory: what is being learned there is taken up again without this document."""
    resting = select(example_documents.c.example).where(
        example_documents.c.tenant == tenant, example_documents.c.document == document
    )
    _delete_examples(conn, tenant, examples.c.id.in_(resting))
    # The attempt under way ends, since the job is no longer its own. The next one goes on where that stood; a run of learning
    # that has seen the document begins anew (`learn/run.py`).
    conn.execute(
        update(jobs).where(_learning(tenant, memory)).values(state=JobState.PENDING, due_time=now(), owner="", attempts=0)
    )
    _taint_what_saw(conn, tenant, _saw(tenant, adapter_documents.c.document == document))


def taint_memory(conn: Connection, tenant: str, memory: str, uid: str) -> None:
    """Of a memory that is being deleted: everything, and elsewhere what was trained with its documents."""
    _delete_examples(conn, tenant, examples.c.memory_uid == uid)
    of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
    conn.execute(update(adapters).where(of_memory).values(state=AdapterState.TAINTED))
    conn.execute(update(jobs).where(_learning(tenant, memory)).values(state=JobState.CANCELLED, due_time=None, end_time=now()))
    its_documents = select(documents.c.id).where(documents.c.tenant == tenant, documents.c.memory_uid == uid)
    saw = _saw(tenant, adapter_documents.c.document.in_(its_documents))
    _taint_what_saw(conn, tenant, saw | adapters.c.weights_sha256.in_(trained_in(tenant, uid)))


def _saw(tenant: str, which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Adapters that were trained with these documents."""
    return adapters.c.id.in_(select(adapter_documents.c.adapter).where(adapter_documents.c.tenant == tenant, which))


def _taint_what_saw(conn: Connection, tenant: str, which: ColumnElement[bool]) -> None:
    """These adapters, in whichever memory: where one is active a clean one is instead, and that memory learns anew."""
    saw = (adapters.c.tenant == tenant) & which & (adapters.c.state != AdapterState.TAINTED)
    columns = (adapters.c.memory, adapters.c.memory_uid, adapters.c.parent, adapters.c.state)
    rows = conn.execute(select(*columns).where(saw)).all()
    conn.execute(update(adapters).where(saw).values(state=AdapterState.TAINTED))
    for row in rows:
        if row.state == AdapterState.ACTIVE:  # of this memory, or of one that imported it
            activate_clean(conn, tenant, row.memory_uid, row.parent)
            if not conn.execute(select(jobs.c.id).where(_unfinished(tenant, row.memory), jobs.c.kind == JobKind.LEARN)).first():
                insert_job(conn, tenant, JobKind.LEARN, memory_name(row.memory), {"memory": row.memory})


def learned_from(conn: Connection, tenant: str, example: str, more: Sequence[str]) -> None:
    """The example rests on these documents too: whatever may have learned from it, the copies of that in other memories, and
    what is outside as an archive, is tainted by their deletion as well."""
    this = (examples.c.tenant == tenant) & (examples.c.id == example)
    told = conn.execute(select(examples.c.memory_uid, examples.c.create_time).where(this)).first() if more else None
    if told is None:
        return
    # When what a job learned from was gathered is not quite known here, since its last try may have gathered again.
    here = (adapters.c.memory_uid == told.memory_uid) & (adapters.c.job != "") & (adapters.c.create_time >= told.create_time)
    outside = trained_in(tenant, told.memory_uid, told.create_time)
    learned = (adapters.c.tenant == tenant) & (here | adapters.c.weights_sha256.in_(outside))
    for adapter in conn.execute(select(adapters.c.id).where(learned)).scalars().all():
        of_adapter = (adapter_documents.c.tenant == tenant) & (adapter_documents.c.adapter == adapter)
        held = set(conn.execute(select(adapter_documents.c.document).where(of_adapter)).scalars())
        rows = [{"tenant": tenant, "adapter": adapter, "document": document} for document in more if document not in held]
        if rows:
            conn.execute(insert(adapter_documents), rows)
            of_row = (adapters.c.tenant == tenant) & (adapters.c.id == adapter)
            conn.execute(update(adapters).where(of_row).values(documents=adapters.c.documents + len(rows)))
    for weights in conn.execute(outside).scalars().all():
        remember_archive(conn, tenant, weights, told.memory_uid, more)


def activate_clean(conn: Connection, tenant: str, uid: str, adapter: str) -> None:
    """Serves this adapter of the memory, or its nearest ancestor that is still there and clean; none where there is none."""
    of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
    conn.execute(update(adapters).where(of_memory, adapters.c.state == AdapterState.ACTIVE).values(state=AdapterState.KEPT))
    served = clean_ancestor(conn, tenant, uid, adapter)
    # A delete in another memory may taint it just now, where transactions run side by side.
    clean = of_memory & (adapters.c.id == served) & (adapters.c.state != AdapterState.TAINTED)
    conn.execute(update(adapters).where(clean).values(state=AdapterState.ACTIVE))
    _mark_learned(conn, tenant, uid, served)


def clean_ancestor(conn: Connection, tenant: str, uid: str, adapter: str) -> str:
    """This adapter of the memory, or its nearest ancestor that is still there and clean; empty where there is none."""
    of_memory = (adapters.c.tenant == tenant) & (adapters.c.memory_uid == uid)
    while adapter:
        row = conn.execute(select(adapters.c.state, adapters.c.parent).where(of_memory, adapters.c.id == adapter)).first()
        if row is None:
            return ""
        if row.state != AdapterState.TAINTED:
            return adapter
        adapter = row.parent
    return ""


def _mark_learned(conn: Connection, tenant: str, uid: str, active: str) -> None:
    """A document is LEARNED while the active adapter was trained with it."""
    with_it = documents.c.id.in_(
        select(adapter_documents.c.document).where(adapter_documents.c.tenant == tenant, adapter_documents.c.adapter == active)
    )
    of_memory = (documents.c.tenant == tenant) & (documents.c.memory_uid == uid) & (documents.c.tombstone == "")
    for stage, becomes, which in ((Stage.LEARNED, Stage.COMPRESSED, ~with_it), (Stage.COMPRESSED, Stage.LEARNED, with_it)):
        conn.execute(update(documents).where(of_memory, documents.c.stage == stage, which).values(stage=becomes))


def _delete_examples(conn: Connection, tenant: str, which: ColumnElement[bool]) -> None:
    ids = conn.execute(select(examples.c.id).where(examples.c.tenant == tenant, which)).scalars().all()
    for some in batches(ids):
        delete_example_rows(conn, tenant, some)


def delete_example_rows(conn: Connection, tenant: str, ids: Sequence[str]) -> None:
    """And what says which documents they rest on."""
    conn.execute(delete(example_documents).where(example_documents.c.tenant == tenant, example_documents.c.example.in_(ids)))
    conn.execute(delete(examples).where(examples.c.tenant == tenant, examples.c.id.in_(ids)))


def delete_adapter_rows(conn: Connection, tenant: str, ids: Sequence[str]) -> None:
    """Rows of adapters whose bytes are purged, or are about to be by a job that knows where they lie."""
    conn.execute(delete(adapter_documents).where(adapter_documents.c.tenant == tenant, adapter_documents.c.adapter.in_(ids)))
    conn.execute(delete(adapters).where(adapters.c.tenant == tenant, adapters.c.id.in_(ids)))


def _learning(tenant: str, memory: str) -> ColumnElement[bool]:
    """The memory's jobs that study or learn, and have not ended."""
    return _unfinished(tenant, memory) & jobs.c.kind.in_(LEARNING)


def _unfinished(tenant: str, memory: str) -> ColumnElement[bool]:
    return (jobs.c.tenant == tenant) & (jobs.c.target == memory_name(memory)) & jobs.c.due_time.is_not(None)
