"""Examples, and the documents that they rest on. What deleting a document does to them is in ledger_taint.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from memoryd.core import Example, Origin, Request, new_id, now
from memoryd.errors import NotFound, Unavailable
from memoryd.store.base import Page
from memoryd.store.ledger_memories import find_memory_uid, require_memory_uid, required
from memoryd.store.ledger_part import LedgerPart, batches, live, remember, result_of
from memoryd.store.ledger_taint import delete_example_rows, learned_from
from memoryd.store.paging import read_page
from memoryd.store.schema import documents, example_documents, examples


class ExampleRows(LedgerPart):
    """The part of the ledger that holds examples."""

    def add_examples(
        self,
        tenant: str,
        memory: str,
        new: Sequence[tuple[str, str, Sequence[str]]],
        origin: Origin,
        request: Request | None,
    ) -> tuple[Sequence[Example], int]:
        def change(conn: Connection) -> tuple[Sequence[Example], int]:
            uid = find_memory_uid(conn, tenant, memory, lock=True)
            made = result_of(conn, tenant, request)
            if made is not None:
                ids = json.loads(made)
                found = {example.id: example for example in _examples(conn, tenant, ids)}
                return [found[id_] for id_ in ids if id_ in found], len(ids)
            uid = required(uid)
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
            uid = require_memory_uid(conn, tenant, memory)
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
            uid = require_memory_uid(conn, tenant, memory)
            of_memory = (examples.c.tenant == tenant) & (examples.c.memory_uid == uid) & (examples.c.id == example)
            if conn.execute(select(examples.c.id).where(of_memory)).first() is None:
                raise NotFound("no such example")
            delete_example_rows(conn, tenant, [example])

        self._db.write(change)
        with contextlib.suppress(Unavailable):  # it is deleted all the same; the log is emptied by what comes after it
            self._db.forget_log()


def _require_documents(conn: Connection, tenant: str, memory: str, ids: set[str]) -> None:
    this = live(tenant) & (documents.c.memory == memory)
    found = {
        id_
        for batch in batches(sorted(ids))
        for id_ in conn.execute(select(documents.c.id).where(this, documents.c.id.in_(batch))).scalars()
    }
    if found != ids:
        raise NotFound("no such document")


def _add_example(
    conn: Connection, tenant: str, memory: str, uid: str, question: str, answer: str, of: Sequence[str], origin: Origin
) -> tuple[str, bool]:
    """Its id, and whether it is new."""
    sha256 = hashlib.sha256(json.dumps([question.strip(), answer.strip()]).encode()).hexdigest()
    this = (examples.c.tenant == tenant) & (examples.c.memory_uid == uid) & (examples.c.sha256 == sha256)
    held = conn.execute(select(examples.c.id).where(this)).scalar()
    if held is not None:
        learned_from(conn, tenant, held, _rest(conn, tenant, held, of))
        return held, False
    new = {"id": new_id(), "memory": memory, "memory_uid": uid, "sha256": sha256, "origin": origin, "create_time": now()}
    conn.execute(insert(examples), {"tenant": tenant, "question": question, "answer": answer, **new})
    _rest(conn, tenant, str(new["id"]), of)
    return str(new["id"]), True


def _rest(conn: Connection, tenant: str, example: str, of: Sequence[str]) -> Sequence[str]:
    """The example rests on these documents too; those that are new to it."""
    this = (example_documents.c.tenant == tenant) & (example_documents.c.example == example)
    held = set(conn.execute(select(example_documents.c.document).where(this)).scalars())
    more = [document for document in dict.fromkeys(of) if document not in held]
    if more:
        rows = [{"tenant": tenant, "example": example, "document": document} for document in more]
        conn.execute(insert(example_documents), rows)
    return more


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
