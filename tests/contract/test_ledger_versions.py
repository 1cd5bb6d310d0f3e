"""A new version of a document: one transaction stores it and deletes the old one, whose embeddings it may still reuse."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from memoryd.core import Job, JobKind, JobState, Request, now
from memoryd.errors import NotFound, ReplacedNotFound, RequestIdReused
from memoryd.store.base import Ledger, Written
from tests.contract.rows import chunk, memory, passage, write


def jobs_of(ledger: Ledger, document: str, kind: JobKind) -> list[Job]:
    found = ledger.list_jobs("acme", 100, "").items
    return [job for job in found if (job.kind, job.payload["document"]) == (kind, document)]


def erase_of(ledger: Ledger, document: str) -> Job:
    [job] = jobs_of(ledger, document, JobKind.ERASE)
    return job


def work(ledger: Ledger, written: Written, stage: str) -> None:
    """A worker takes the document's job, comes as far as this stage, and goes on with it."""
    while (job := ledger.claim_job("w", 60)) is not None and job.id != written.job.id:
        pass
    assert job is not None
    assert ledger.heartbeat("acme", job.id, "w", 60, stage, 0, 0, 0.0)


def test_a_new_version_takes_the_place_of_the_old_one(ledger: Ledger) -> None:
    memory(ledger)
    old = write(ledger, "old")
    new = write(ledger, "new", replaces=old.document.id)
    assert not new.already_stored
    assert [d.id for d in ledger.list_documents("acme", "m", 10, "").items] == [new.document.id]
    with pytest.raises(NotFound):
        ledger.get_document("acme", "m", old.document.id)
    assert ledger.get_job("acme", old.job.id).state is JobState.CANCELLED
    assert ledger.get_job("acme", new.job.id).payload == {
        "memory": "m",
        "document": new.document.id,
        "old": old.document.id,
    }
    erase = erase_of(ledger, old.document.id)
    assert erase.payload == {"memory": "m", "document": old.document.id, "after": new.job.id}
    assert (erase.target, erase.state) == (f"memories/m/documents/{old.document.id}", JobState.PENDING)
    assert new.erase == erase
    assert ledger.get_memory("acme", "m").document_count == 1


def test_a_plain_write_and_a_plain_delete_know_nothing_of_versions(ledger: Ledger) -> None:
    memory(ledger)
    written = write(ledger)
    assert written.job.payload == {"memory": "m", "document": written.document.id}
    assert written.erase is None
    assert "after" not in ledger.delete_document("acme", "m", written.document.id, None).payload


def test_the_same_content_stays_where_it_is(ledger: Ledger) -> None:
    memory(ledger)
    old = write(ledger, "text")
    again = write(ledger, "text", replaces=old.document.id)
    assert (again.document.id, again.already_stored, again.erase) == (old.document.id, True, None)
    assert ledger.get_document("acme", "m", old.document.id)
    assert jobs_of(ledger, old.document.id, JobKind.ERASE) == []


def test_where_another_document_has_the_new_content_only_that_one_stays(ledger: Ledger) -> None:
    memory(ledger)
    old, other = write(ledger, "old"), write(ledger, "other")
    written = write(ledger, "other", replaces=old.document.id)
    assert (written.document.id, written.already_stored) == (other.document.id, True)
    assert [d.id for d in ledger.list_documents("acme", "m", 10, "").items] == [other.document.id]
    assert "after" not in erase_of(ledger, old.document.id).payload, "there is nothing that could reuse it"
    assert written.erase == erase_of(ledger, old.document.id)


@pytest.mark.parametrize("case", ["never", "deleted", "replaced", "another memory", "another tenant"])
def test_what_is_not_there_cannot_be_replaced(ledger: Ledger, case: str) -> None:
    memory(ledger)
    memory(ledger, "n")
    memory(ledger, tenant="other")
    target = write(
        ledger,
        "old",
        tenant="other" if case == "another tenant" else "acme",
        memory="n" if case == "another memory" else "m",
    ).document.id
    if case == "never":
        target = "never"
    if case == "deleted":
        ledger.delete_document("acme", "m", target, None)
    if case == "replaced":
        write(ledger, "first", replaces=target)
    before = [ledger.list_documents("acme", m, 10, "").items for m in ("m", "n")]
    jobs = ledger.list_jobs("acme", 100, "").items
    with pytest.raises(ReplacedNotFound):
        write(ledger, "new", replaces=target, request=Request("r", "d"))
    assert [ledger.list_documents("acme", m, 10, "").items for m in ("m", "n")] == before
    assert ledger.list_jobs("acme", 100, "").items == jobs
    assert write(ledger, "new", request=Request("r", "d")).already_stored is False, "the request was not remembered"


def test_a_repeat_of_the_request_replaces_nothing_more(ledger: Ledger) -> None:
    memory(ledger)
    old, request = write(ledger, "old").document.id, Request("r", "d")
    new = write(ledger, "new", replaces=old, request=request)
    again = write(ledger, "new", replaces=old, request=request)
    assert (again.document.id, again.already_stored) == (new.document.id, True)
    assert new.erase == again.erase == erase_of(ledger, old), "who missed the first response learns of it too"
    with pytest.raises(RequestIdReused):
        write(ledger, "newer", replaces=new.document.id, request=Request("r", "another"))


def test_a_repeat_that_replaced_nothing_names_no_erase(ledger: Ledger) -> None:
    """Though the tenant has erases of memories, which are of no document."""
    memory(ledger)
    memory(ledger, "gone")
    ledger.delete_memory("acme", "gone", None)
    old = write(ledger, "text", request=Request("plain", "d")).document.id
    assert write(ledger, "text", request=Request("plain", "d")).erase is None
    for _ in range(2):
        assert write(ledger, "text", replaces=old, request=Request("the same", "d")).erase is None


def test_a_repeat_names_an_erase_that_has_ended(ledger: Ledger) -> None:
    memory(ledger)
    old, request = write(ledger, "old").document.id, Request("r", "d")
    new = write(ledger, "new", replaces=old, request=request)
    assert new.erase is not None
    while (job := ledger.claim_job("w", 60)) is not None and job.id != new.erase.id:
        pass
    ledger.erase_rows("acme", "m", [old])
    assert ledger.finish_job("acme", new.erase.id, "w", {"documents": 1})
    again = write(ledger, "new", replaces=old, request=request)
    assert again.erase is not None
    assert (again.erase.id, again.erase.state) == (new.erase.id, JobState.SUCCEEDED)


def test_of_many_that_replace_one_document_one_does(ledger: Ledger) -> None:
    memory(ledger)
    old = write(ledger, "old").document.id
    won: list[str] = []
    lost: list[NotFound] = []

    def replace(number: int) -> None:
        try:
            won.append(write(ledger, f"version {number}", replaces=old).document.id)
        except ReplacedNotFound as error:
            lost.append(error)

    threads = [threading.Thread(target=replace, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert [d.id for d in ledger.list_documents("acme", "m", 10, "").items] == won
    assert len(jobs_of(ledger, old, JobKind.ERASE)) == 1
    assert "replaced" in lost[0].message


# --- whose compressed embeddings are reused ---


@pytest.mark.parametrize("stage", ["", "chunk", "reuse"])
def test_a_version_that_was_replaced_too_soon_leaves_the_one_before_it_to_the_next(ledger: Ledger, stage: str) -> None:
    memory(ledger)
    first = write(ledger, "1").document.id
    second = write(ledger, "2", replaces=first)
    if stage:
        work(ledger, second, stage)
    third = write(ledger, "3", replaces=second.document.id)
    assert third.job.payload["old"] == first
    assert erase_of(ledger, first).payload["after"] == third.job.id
    assert "after" not in erase_of(ledger, second.document.id).payload
    fourth = write(ledger, "4", replaces=third.document.id)
    assert fourth.job.payload["old"] == first
    assert erase_of(ledger, first).payload["after"] == fourth.job.id


def test_a_version_that_has_reused_is_itself_reused(ledger: Ledger) -> None:
    memory(ledger)
    first = write(ledger, "1").document.id
    second = write(ledger, "2", replaces=first)
    work(ledger, second, "index")
    third = write(ledger, "3", replaces=second.document.id)
    assert third.job.payload["old"] == second.document.id
    assert erase_of(ledger, first).payload["after"] == second.job.id, "which has ended: it waits no more"
    assert erase_of(ledger, second.document.id).payload["after"] == third.job.id


def test_a_job_that_failed_is_not_waited_for(ledger: Ledger) -> None:
    memory(ledger)
    first = write(ledger, "1").document.id
    second = write(ledger, "2", replaces=first)
    assert ledger.get_job("acme", second.job.id).reuses
    work(ledger, second, "chunk")
    assert ledger.get_job("acme", second.job.id).reuses
    ledger.fail_job("acme", second.job.id, "w", "disk full", now() + timedelta(hours=1))
    assert not ledger.get_job("acme", second.job.id).reuses
    assert write(ledger, "3", replaces=second.document.id).job.payload["old"] == second.document.id


@pytest.mark.parametrize("end", ["cancel", "delete", "delete memory", "index", "finish"])
def test_nor_one_that_ended_or_has_gone_on(ledger: Ledger, end: str) -> None:
    memory(ledger)
    second = write(ledger, "2", replaces=write(ledger, "1").document.id)
    if end == "cancel":
        ledger.cancel_job("acme", second.job.id)
    elif end == "delete":
        ledger.delete_document("acme", "m", second.document.id, None)
    elif end == "delete memory":
        ledger.delete_memory("acme", "m", None)
    else:
        work(ledger, second, "index" if end == "index" else "chunk")
        if end == "finish":
            ledger.finish_job("acme", second.job.id, "w", {})
    assert not ledger.get_job("acme", second.job.id).reuses


def test_chunks_of_the_deleted_are_there_until_they_are_erased_and_only_for_their_tenant(ledger: Ledger) -> None:
    memory(ledger)
    id_ = write(ledger).document.id
    ledger.add_chunks("acme", id_, [chunk(id_, n) for n in range(3)], [passage(id_, 0)])
    made = ledger.chunks("acme", id_)
    assert ledger.deleted_chunks("acme", id_) == [], "it is not deleted"
    ledger.delete_document("acme", "m", id_, None)
    assert ledger.chunks("acme", id_) == []
    assert ledger.deleted_chunks("acme", id_) == made
    assert ledger.deleted_chunks("acme", id_, after=0, limit=1) == made[1:2]
    assert ledger.deleted_chunks("other", id_) == []
    ledger.erase_rows("acme", "m", [id_])
    assert ledger.deleted_chunks("acme", id_) == []
