"""When a memory studies and learns: once at a time, and what was written since."""

from __future__ import annotations

import pytest

from memoryd.core import JobKind, Request, Unlearned, now
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Ledger
from tests.contract.learning_rows import adapter, told
from tests.contract.rows import memory


def test_a_memory_learns_once_at_a_time(ledger: Ledger) -> None:
    memory(ledger)
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, Request("r", "d"))
    assert (job.kind, job.target, job.payload) == (JobKind.LEARN, "memories/m", {"memory": "m"})
    assert ledger.request_learning("acme", "m", JobKind.LEARN, {}, None).id == job.id
    assert ledger.request_learning("acme", "m", JobKind.STUDY, {}, None).id != job.id
    ledger.cancel_job("acme", job.id)
    assert ledger.request_learning("acme", "m", JobKind.LEARN, {}, None).id != job.id
    assert ledger.request_learning("acme", "m", JobKind.LEARN, {}, Request("r", "d")).id == job.id
    with pytest.raises(NotFound):
        ledger.request_learning("acme", "x", JobKind.LEARN, {}, None)


def test_unlearned_is_what_was_written_since_the_examples_were_gathered(ledger: Ledger) -> None:
    memory(ledger)
    first = told(ledger, 30)
    assert ledger.unlearned("acme", "m") == Unlearned(30, None, learning=False)
    gathered = now()
    told(ledger, 12)  # while it is trained
    made = adapter(ledger, [first], activate=False, gather_time=gathered)
    assert made.gather_time == gathered
    assert ledger.unlearned("acme", "m") == Unlearned(12, made.create_time, learning=False)
    told(ledger, 5)
    assert ledger.unlearned("acme", "m").tokens == 17


def test_an_imported_or_a_tainted_adapter_has_learned_nothing_for_the_memory(ledger: Ledger) -> None:
    memory(ledger)
    told(ledger, 30)
    adapter(ledger, [])  # imported: nobody knows when what it knows was gathered
    assert ledger.unlearned("acme", "m") == Unlearned(30, None, learning=False)
    secret = told(ledger, 7)
    adapter(ledger, [secret], activate=False, gather_time=now())
    assert ledger.unlearned("acme", "m").tokens == 0
    ledger.delete_document("acme", "m", secret, None)
    assert ledger.unlearned("acme", "m").tokens == 30


def test_a_memory_that_studies_or_learns_says_so(ledger: Ledger) -> None:
    memory(ledger)
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    assert ledger.unlearned("acme", "m") == Unlearned(0, job.create_time, learning=True)
    ledger.cancel_job("acme", job.id)
    assert ledger.unlearned("acme", "m") == Unlearned(0, job.create_time, learning=False)


@pytest.mark.parametrize(("examples", "left"), [(0, 5), (3, 35)])
def test_what_was_studied_in_vain_is_not_studied_again(ledger: Ledger, examples: int, left: int) -> None:
    """Where there are examples an adapter is to come of it, and only that says what is learned."""
    memory(ledger)
    told(ledger, 30)
    job = ledger.request_learning("acme", "m", JobKind.STUDY, {}, None)
    while (claimed := ledger.claim_job("w", 60)) and claimed.id != job.id:
        pass  # it is of a document
    told(ledger, 5)
    assert ledger.finish_job("acme", job.id, "w", {"examples": examples})
    assert ledger.unlearned("acme", "m").tokens == left


def test_memories_with_so_much_text(ledger: Ledger) -> None:
    for of in ("m", "small", "deleted"):
        memory(ledger, of)
    for of, tokens in (("m", 60), ("m", 40), ("small", 99), ("deleted", 100)):
        told(ledger, tokens, of)
    gone = told(ledger, 50, "small")
    ledger.delete_document("acme", "small", gone, None)
    ledger.delete_memory("acme", "deleted", None)
    assert ledger.memories_with(100) == [("acme", "m")]


def test_learning_of_a_deleted_memory_is_not_retried(ledger: Ledger) -> None:
    memory(ledger)
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    ledger.delete_memory("acme", "m", None)
    with pytest.raises(FailedPrecondition, match="memory is deleted"):
        ledger.retry_job("acme", job.id)
