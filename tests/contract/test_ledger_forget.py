"""The ledger forgets: deleted rows are tombstones that no read returns, until they are erased, and only they are."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from memoryd.core import JobKind, JobState, Request, Stage
from memoryd.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from memoryd.store.base import Ledger
from memoryd.store.ledger import SqlLedger
from tests.contract.rows import chunk, memory, passage, write


def test_a_deleted_document_is_in_no_read(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger, "text").document
    id_ = document.id
    ledger.add_chunks("acme", id_, [chunk(id_, 0)], [passage(id_, 0)])
    ledger.set_stage("acme", id_, Stage.COMPRESSED)
    ledger.delete_document("acme", "m", id_, None)
    with pytest.raises(NotFound):
        ledger.get_document("acme", "m", id_)
    assert ledger.get_documents("acme", [id_]) == {}
    assert ledger.list_documents("acme", "m", 10, "").items == []
    assert ledger.chunks("acme", id_) == []
    assert ledger.passages("acme", id_) == []
    assert ledger.get_passages("acme", [f"{id_}-0"]) == {}
    assert ledger.get_chunks("acme", [(id_, 0)]) == {}
    assert ledger.token_count("acme", ["m"]) == 0
    assert ledger.all_documents("acme") == []
    assert ledger.stale_documents("another", 10) == []
    ledger.recompress("acme", id_)
    assert len(ledger.list_jobs("acme", 10, "").items) == 2  # its own, cancelled, and the one that erases it
    assert ledger.get_memory("acme", "m").document_count == 0


def test_a_deleted_document_takes_no_more_work(ledger: Ledger) -> None:
    memory(ledger)
    written = write(ledger)
    id_ = written.document.id
    ledger.delete_document("acme", "m", id_, None)
    assert not ledger.set_stage("acme", id_, Stage.SEARCHABLE)
    assert not ledger.add_chunks("acme", id_, [chunk(id_, 0)], [])
    assert not ledger.set_embeddings("acme", id_, [chunk(id_, 0)])
    assert not ledger.reset_document("acme", id_)
    assert ledger.get_job("acme", written.job.id).state is JobState.CANCELLED
    with pytest.raises(FailedPrecondition):
        ledger.retry_job("acme", written.job.id)


def test_a_delete_cancels_the_running_job_under_its_owner(ledger: Ledger) -> None:
    memory(ledger)
    written = write(ledger)
    assert ledger.claim_job("worker", 60) is not None
    ledger.delete_document("acme", "m", written.document.id, None)
    assert not ledger.heartbeat("acme", written.job.id, "worker", 60, "", 1, 2, 0.0)
    assert not ledger.finish_job("acme", written.job.id, "worker", {})
    erase = ledger.claim_job("worker", 60)
    assert erase is not None
    assert erase.kind is JobKind.ERASE


def test_a_repeated_delete_returns_the_same_job(ledger: Ledger) -> None:
    memory(ledger)
    id_ = write(ledger).document.id
    request = Request("r", "d")
    job = ledger.delete_document("acme", "m", id_, request)
    assert job.payload == {"memory": "m", "document": id_}
    assert ledger.delete_document("acme", "m", id_, request) == job
    with pytest.raises(NotFound):
        ledger.delete_document("acme", "m", id_, None)
    other = Request("s", "d")
    whole = ledger.delete_memory("acme", "m", other)
    assert whole.payload == {"memory": "m"}
    assert ledger.delete_memory("acme", "m", other) == whole
    with pytest.raises(NotFound):
        ledger.delete_memory("acme", "m", None)


def test_erase_removes_the_deleted_and_nothing_else(ledger: Ledger) -> None:
    memory(ledger)
    gone, stays = write(ledger, "a").document.id, write(ledger, "b").document.id
    for id_ in (gone, stays):
        ledger.add_chunks("acme", id_, [chunk(id_, 0)], [passage(id_, 0)])
    ledger.delete_document("acme", "m", gone, None)
    assert [each.id for each in ledger.deleted_documents("acme", "m", gone)] == [gone]
    assert ledger.deleted_documents("acme", "m", stays) == []
    assert ledger.deleted_documents("acme", "m") == []  # the memory is not deleted
    assert ledger.erase_rows("acme", "m", [gone, stays]) == 1
    assert ledger.erase_rows("acme", "m", [gone]) == 0
    assert ledger.deleted_documents("acme", "m", gone) == []
    assert len(ledger.chunks("acme", stays)) == 1


def test_a_deleted_memory_hides_all_its_documents(ledger: Ledger) -> None:
    memory(ledger)
    written = write(ledger)
    ledger.delete_memory("acme", "m", None)
    with pytest.raises(NotFound):
        ledger.get_memory("acme", "m")
    with pytest.raises(NotFound):
        ledger.list_documents("acme", "m", 10, "")
    with pytest.raises(NotFound):
        ledger.get_document("acme", "m", written.document.id)
    with pytest.raises(NotFound):
        write(ledger)
    assert ledger.list_memories("acme", 10, "").items == []
    assert ledger.get_job("acme", written.job.id).state is JobState.CANCELLED
    assert [each.id for each in ledger.deleted_documents("acme", "m")] == [written.document.id]


def test_deleting_a_memory_leaves_the_erase_of_its_documents_running(ledger: Ledger) -> None:
    memory(ledger)
    erase = ledger.delete_document("acme", "m", write(ledger).document.id, None)
    ledger.delete_memory("acme", "m", None)
    assert ledger.get_job("acme", erase.id).state is JobState.PENDING


def test_erasing_a_memory_never_touches_a_new_one_of_its_id(ledger: Ledger) -> None:
    memory(ledger)
    old = write(ledger, "same").document.id
    ledger.delete_memory("acme", "m", None)
    memory(ledger)
    new, forgotten = write(ledger, "same").document.id, write(ledger, "other").document.id
    ledger.delete_document("acme", "m", forgotten, None)
    # The new memory's deleted document belongs to its own ERASE job, whose blobs are not purged yet.
    assert [each.id for each in ledger.deleted_documents("acme", "m")] == [old]
    assert ledger.erase_rows("acme", "m", [old]) == 1
    assert ledger.get_document("acme", "m", new).sha256
    assert ledger.get_memory("acme", "m").document_count == 1
    assert [each.id for each in ledger.deleted_documents("acme", "m", forgotten)] == [forgotten]
    # Two generations deleted: what is not purged yet is not erased.
    ledger.delete_memory("acme", "m", None)
    assert ledger.erase_rows("acme", "m", [forgotten]) == 1
    assert [each.id for each in ledger.deleted_documents("acme", "m")] == [new]
    assert ledger.erase_rows("acme", "m", [new]) == 1
    assert ledger.deleted_documents("acme", "m") == []


def test_what_is_erased_is_in_no_log_or_the_erase_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite only says that it could not empty its log while somebody reads, a backup say."""
    monkeypatch.setattr("memoryd.store.database._LOG_SECONDS", 0.1)
    with contextlib.closing(SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        ledger.ensure_tenant("acme")
        memory(ledger)
        document = write(ledger).document.id
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as backup:
            backup.execute("BEGIN")
            backup.execute("SELECT count(*) FROM documents").fetchall()
            ledger.delete_document("acme", "m", document, None)
            with pytest.raises(Unavailable, match="while it is read"):
                ledger.erase_rows("acme", "m", [document])
        ledger.erase_rows("acme", "m", [document])
        assert (tmp_path / "ledger.db-wal").stat().st_size == 0


def test_a_nul_is_kept_or_refused_for_good(ledger: Ledger) -> None:
    """PostgreSQL keeps none. To try again would not help."""
    with contextlib.suppress(InvalidArgument):
        assert ledger.create_memory("acme", "m", "a\0b", "", {}, None).display_name == "a\0b"
