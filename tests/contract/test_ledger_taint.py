"""What deleting a document does to adapters: nothing that saw it is in use any more."""

from __future__ import annotations

import pytest

from memoryd.core import Adapter, AdapterState, JobKind, JobState, Origin, new_id, now
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Ledger
from tests.contract.learning_rows import A, Q, active, adapter, learned, state
from tests.contract.rows import memory, write


def test_deleting_a_document_taints_all_that_saw_it(ledger: Ledger) -> None:
    memory(ledger)
    secret, harmless = write(ledger).document.id, write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [secret, harmless]), ("Where?", "There", [harmless])], Origin.SUPPLIED, None)
    clean = adapter(ledger, [harmless])
    saw = adapter(ledger, [harmless, secret], clean.id)
    after = adapter(ledger, [secret], saw.id)
    ledger.delete_document("acme", "m", secret, None)
    assert [state(ledger, a) for a in (clean, saw, after)] == [
        AdapterState.ACTIVE,
        AdapterState.TAINTED,
        AdapterState.TAINTED,
    ]
    assert active(ledger) == clean.id  # the last clean ancestor
    assert [e.question for e in ledger.list_examples("acme", "m", 10, "").items] == ["Where?"]
    assert {a.id for a in ledger.tainted_adapters("acme")} == {saw.id, after.id}
    ledger.purged_adapter("acme", saw.id)
    assert [a.id for a in ledger.tainted_adapters("acme")] == [after.id]
    for tainted in (saw, after):
        with pytest.raises(FailedPrecondition):
            ledger.activate_adapter("acme", "m", tainted.id)


@pytest.mark.parametrize("kind", [JobKind.LEARN, JobKind.STUDY])
def test_what_is_being_learned_is_taken_from_who_works_on_it_and_goes_on_from_there(ledger: Ledger, kind: JobKind) -> None:
    """As the same job: who waits for it goes on waiting, and what does not rest on the document is not done twice."""
    memory(ledger)
    document = write(ledger).document.id
    job = ledger.request_learning("acme", "m", kind, {"max_examples": "7"}, None)
    while (claimed := ledger.claim_job("w", 60)) and claimed.id != job.id:
        pass
    assert ledger.heartbeat("acme", job.id, "w", 60, "study", 3, 9, 0.5, {"examples": 2})
    ledger.delete_document("acme", "m", document, None)
    assert not ledger.heartbeat("acme", job.id, "w", 60, "study", 4, 9, 0.5), "it is not w's any more"
    left = ledger.get_job("acme", job.id)
    assert (left.state, left.stage, left.done, left.receipt) == (JobState.PENDING, "study", 3, {"examples": 2})
    assert ledger.request_learning("acme", "m", kind, {}, None) == left
    while (claimed := ledger.claim_job("v", 60)) and claimed.id != job.id:
        pass
    assert claimed is not None
    assert claimed.payload == job.payload


def test_an_adapter_of_a_deleted_document_is_not_recorded(ledger: Ledger) -> None:
    """The delete came while it was trained."""
    memory(ledger)
    document = write(ledger).document.id
    ledger.delete_document("acme", "m", document, None)
    new = Adapter("acme", "m", new_id(), now(), "f" * 64, "base", "", "c", 100)
    assert ledger.add_adapter(new, [document], True) is None
    assert ledger.list_adapters("acme", "m", 10, "").items == []


def test_deleting_a_document_that_no_adapter_saw_leaves_learning_alone(ledger: Ledger) -> None:
    memory(ledger)
    seen, other = write(ledger).document.id, write(ledger).document.id
    made = adapter(ledger, [seen])
    ledger.delete_document("acme", "m", other, None)
    assert active(ledger) == made.id
    assert not [j for j in ledger.list_jobs("acme", 100, "").items if j.kind is JobKind.LEARN]


def test_a_deleted_memory_leaves_nothing_learned(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [document]), ("Free?", "Yes", [])], Origin.SUPPLIED, None)
    made = adapter(ledger, [document])
    ledger.delete_memory("acme", "m", None)
    memory(ledger)  # a new one takes its id at once
    assert active(ledger) is None
    assert ledger.list_examples("acme", "m", 10, "").items == []
    with pytest.raises(NotFound):
        ledger.get_adapter("acme", "m", made.id)
    assert [a.id for a in ledger.tainted_adapters("acme")] == [made.id]
    assert ledger.recorded("acme", [made.id]) == {made.id}, "its bytes are still to be purged"
    ledger.erase_rows("acme", "m", [document])
    assert ledger.recorded("acme", [made.id]) == {made.id}, "another delete's erase comes first"
    ledger.purged_adapter("acme", made.id)
    ledger.erase_rows("acme", "m", [])
    assert ledger.recorded("acme", [made.id]) == set()


def test_tainted_weights_do_not_come_back(ledger: Ledger) -> None:
    """Exported before the delete, imported after it."""
    memory(ledger)
    document = write(ledger).document.id
    made = adapter(ledger, [document])
    ledger.delete_document("acme", "m", document, None)
    again = Adapter("acme", "m", new_id(), now(), made.fingerprint, "base", "reader", "compressor", 100)
    with pytest.raises(FailedPrecondition, match="deleted"):
        ledger.add_adapter(again, [], False)


def test_what_is_learned_anew_may_come_out_the_same(ledger: Ledger) -> None:
    """Where what was deleted had no part in the weights, say because it was only judged by: they are clean now."""
    memory(ledger)
    made = learned(ledger, [write(ledger).document.id])
    (document,) = [d.id for d in ledger.list_documents("acme", "m", 10, "").items]
    ledger.delete_document("acme", "m", document, None)
    again = learned(ledger, [], fingerprint=made.fingerprint)
    assert (again.fingerprint, active(ledger)) == (made.fingerprint, again.id)


def test_tainted_adapters_are_counted_for_each_delete(ledger: Ledger) -> None:
    """Whichever of them has erased their bytes."""
    memory(ledger)
    first, second, third = (write(ledger).document.id for _ in range(3))
    both = adapter(ledger, [first, second])
    adapter(ledger, [second], both.id)
    for document, count in ((third, 0), (first, 1), (second, 2)):
        ledger.delete_document("acme", "m", document, None)
        assert ledger.count_tainted("acme", "m", [document]) == count
    ledger.purged_adapter("acme", both.id)
    assert ledger.count_tainted("acme", "m", [first]) == 1
    assert ledger.count_tainted("globex", "m", [first, second]) == 0


def test_all_adapters_of_a_deleted_memory_are_counted(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, "n")
    document = write(ledger).document.id
    adapter(ledger, [])
    adapter(ledger, [document], memory="n")
    adapter(ledger, [], memory="n")
    ledger.delete_memory("acme", "m", None)
    assert ledger.count_tainted("acme", "m", [document]) == 2


def test_an_adapter_that_another_memory_imported_is_tainted_there(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, "n")
    document = write(ledger).document.id
    elsewhere = adapter(ledger, [document], memory="n")
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, elsewhere) is AdapterState.TAINTED
    assert active(ledger, "n") is None
    assert [a.id for a in ledger.tainted_adapters("acme")] == [elsewhere.id]
    learning = [j.target for j in ledger.list_jobs("acme", 100, "").items if j.kind is JobKind.LEARN]
    assert learning == ["memories/n"], "it is that memory which learns anew"


def test_it_may_have_learned_all_that_was_there_when_it_was_last_gathered(ledger: Ledger) -> None:
    """Whatever the policy counts from: of a study that came before, or of an earlier attempt."""
    memory(ledger)
    begun = now()
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    gathered = now()
    late = write(ledger).document.id
    ledger.add_examples("acme", "m", [("Where?", "There", [late])], Origin.SUPPLIED, None)
    made = learned(ledger, [], gather_time=begun, gathered=gathered)
    ledger.delete_document("acme", "m", late, None)
    assert state(ledger, made) is AdapterState.ACTIVE, "that example came after it"
    document = write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, made) is AdapterState.TAINTED


def test_what_its_examples_came_to_rest_on_while_it_was_trained_had_a_part_in_it(ledger: Ledger) -> None:
    memory(ledger)
    begun, document = now(), write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    gathered = now()
    ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
    made = learned(ledger, [], gather_time=begun, gathered=gathered)
    assert made.documents == 1
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, made) is AdapterState.TAINTED
