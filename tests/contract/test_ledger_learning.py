"""The ledger keeps examples and adapters, and what deleting a document does to them: nothing that saw it is in use any more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from memoryd.core import Adapter, AdapterState, JobKind, JobState, Origin, Request, Stage, new_id, now
from memoryd.errors import FailedPrecondition, NotFound, RequestIdReused
from memoryd.store.base import Ledger
from tests.contract.rows import chunk, memory, write

Q, A = "Who rides the elephant?", "Mr. Fogg"


def adapter(ledger: Ledger, documents: Sequence[str], parent: str = "", *, activate: bool = True, memory: str = "m") -> Adapter:
    new = Adapter("acme", memory, new_id(), now(), "f" * 64, "base", "reader", "compressor", 100, parent=parent, examples=3)
    made = ledger.add_adapter(new, documents, activate)
    assert made is not None
    return made


def active(ledger: Ledger, memory: str = "m") -> str | None:
    found = ledger.active_adapters("acme", [memory]).get(memory)
    return found and found.id


def state(ledger: Ledger, made: Adapter) -> AdapterState:
    return ledger.get_adapter("acme", made.memory, made.id).state


def test_examples_are_listed_with_the_documents_that_they_rest_on(ledger: Ledger) -> None:
    memory(ledger)
    one, two = write(ledger).document.id, write(ledger).document.id
    new = [(Q, A, [two, one, one]), ("Where?", "In India", [])]
    made, held = ledger.add_examples("acme", "m", new, Origin.SUPPLIED, None)
    assert held == 0
    assert [(e.question, e.answer, e.documents, e.origin) for e in made] == [
        (Q, A, tuple(sorted([one, two])), Origin.SUPPLIED),
        ("Where?", "In India", (), Origin.SUPPLIED),
    ]
    first = ledger.list_examples("acme", "m", 1, "")
    second = ledger.list_examples("acme", "m", 1, first.next_token)
    assert [*first.items, *second.items] == list(made)
    assert second.next_token == ""


def test_an_example_is_kept_once(ledger: Ledger) -> None:
    memory(ledger)
    made, _ = ledger.add_examples("acme", "m", [(Q, A, []), (f" {Q}\n", A, [])], Origin.SUPPLIED, None)
    assert made[0] == made[1]
    again, held = ledger.add_examples("acme", "m", [(Q, A, []), (Q, "Passepartout", [])], Origin.SELF_STUDY, None)
    assert (again[0], held) == (made[0], 1)
    assert len(ledger.list_examples("acme", "m", 10, "").items) == 2


def test_a_repeated_request_adds_nothing(ledger: Ledger) -> None:
    memory(ledger)
    new = [(Q, A, [])]
    made, _ = ledger.add_examples("acme", "m", new, Origin.SUPPLIED, Request("r", "d"))
    assert ledger.add_examples("acme", "m", new, Origin.SUPPLIED, Request("r", "d")) == (list(made), 1)
    with pytest.raises(RequestIdReused):
        ledger.add_examples("acme", "m", [("other", A, [])], Origin.SUPPLIED, Request("r", "e"))
    ledger.delete_example("acme", "m", made[0].id)
    assert ledger.add_examples("acme", "m", new, Origin.SUPPLIED, Request("r", "d"))[0] == []  # it does not come back
    with pytest.raises(NotFound):
        ledger.delete_example("acme", "m", made[0].id)


def test_examples_rest_on_documents_of_their_own_memory(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, "n")
    document = write(ledger, memory="n").document.id
    for of in ([document], ["nothing"]):
        with pytest.raises(NotFound):
            ledger.add_examples("acme", "m", [(Q, A, []), (Q, A, of)], Origin.SUPPLIED, None)
    assert ledger.list_examples("acme", "m", 10, "").items == []
    with pytest.raises(NotFound):
        ledger.add_examples("acme", "x", [(Q, A, [])], Origin.SUPPLIED, None)


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


def test_one_adapter_is_active_and_a_rollback_goes_to_its_parent(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    first = adapter(ledger, [document])
    assert (first.state, first.documents) == (AdapterState.ACTIVE, 1)
    second = adapter(ledger, [document], first.id)
    kept = adapter(ledger, [document], second.id, activate=False)
    assert [state(ledger, a) for a in (first, second, kept)] == [
        AdapterState.KEPT,
        AdapterState.ACTIVE,
        AdapterState.KEPT,
    ]
    assert [a.id for a in ledger.list_adapters("acme", "m", 10, "").items] == [first.id, second.id, kept.id]
    back = ledger.roll_back_adapter("acme", "m")
    assert back is not None
    assert back.id == first.id == active(ledger)
    assert ledger.roll_back_adapter("acme", "m") is None
    assert active(ledger) is None
    with pytest.raises(FailedPrecondition):
        ledger.roll_back_adapter("acme", "m")
    assert ledger.activate_adapter("acme", "m", kept.id).state is AdapterState.ACTIVE
    assert active(ledger) == kept.id


def test_what_was_judged_against_something_else_is_not_activated(ledger: Ledger) -> None:
    """Somebody activated another one while it was trained."""
    memory(ledger)
    document = write(ledger).document.id
    first = adapter(ledger, [document])
    late = adapter(ledger, [document], parent="")
    assert late.state is AdapterState.KEPT
    assert active(ledger) == first.id


def test_a_document_is_learned_while_the_active_adapter_knows_it(ledger: Ledger) -> None:
    memory(ledger)
    known, new = write(ledger).document.id, write(ledger).document.id
    for document in (known, new):
        ledger.set_stage("acme", document, Stage.COMPRESSED)

    def stages() -> list[Stage]:
        return [ledger.get_document("acme", "m", document).stage for document in (known, new)]

    adapter(ledger, [known])
    assert stages() == [Stage.LEARNED, Stage.COMPRESSED]
    ledger.roll_back_adapter("acme", "m")
    assert stages() == [Stage.COMPRESSED, Stage.COMPRESSED]


def test_deleting_a_document_taints_all_that_saw_it(ledger: Ledger) -> None:
    memory(ledger)
    secret, harmless = write(ledger).document.id, write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [secret, harmless]), ("Where?", "There", [harmless])], Origin.SUPPLIED, None)
    clean = adapter(ledger, [harmless])
    saw = adapter(ledger, [harmless, secret], clean.id)
    after = adapter(ledger, [secret], saw.id)
    learning = ledger.request_learning("acme", "m", JobKind.LEARN, {"keep_inactive": "yes"}, None)
    study = ledger.request_learning("acme", "m", JobKind.STUDY, {"max_examples": "7"}, None)
    ledger.delete_document("acme", "m", secret, None)
    assert [state(ledger, a) for a in (clean, saw, after)] == [
        AdapterState.ACTIVE,
        AdapterState.TAINTED,
        AdapterState.TAINTED,
    ]
    assert active(ledger) == clean.id  # the last clean ancestor
    assert [e.question for e in ledger.list_examples("acme", "m", 10, "").items] == ["Where?"]
    assert [ledger.get_job("acme", job.id).state for job in (learning, study)] == [JobState.CANCELLED] * 2
    for old in (learning, study):  # both begin anew by themselves, as they were asked for
        again = ledger.request_learning("acme", "m", old.kind, {}, None)
        assert again.id != old.id
        assert again.payload == old.payload
    assert {a.id for a in ledger.tainted_adapters("acme")} == {saw.id, after.id}
    ledger.purged_adapter("acme", saw.id)
    assert [a.id for a in ledger.tainted_adapters("acme")] == [after.id]
    for tainted in (saw, after):
        with pytest.raises(FailedPrecondition):
            ledger.activate_adapter("acme", "m", tainted.id)


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


def test_a_deleted_adapter_is_gone_and_its_children_know_their_grandparent(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    first = adapter(ledger, [document])
    second = adapter(ledger, [document], first.id)
    third = adapter(ledger, [document], second.id)
    job = ledger.delete_adapter("acme", "m", second.id)
    assert (job.kind, job.payload) == (JobKind.ERASE, {"memory": "m", "adapter": second.id})
    with pytest.raises(NotFound):
        ledger.get_adapter("acme", "m", second.id)
    assert ledger.get_adapter("acme", "m", third.id).parent == first.id
    ledger.delete_adapter("acme", "m", third.id)
    assert active(ledger) == first.id


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


def test_unlearned_tokens_are_those_written_since_the_newest_adapter(ledger: Ledger) -> None:
    memory(ledger)
    first = write(ledger).document.id
    ledger.add_chunks("acme", first, [chunk(first, 0, tokens=30)], [])
    assert ledger.unlearned_tokens("acme", "m") == (30, None)
    made = adapter(ledger, [first], activate=False)
    second = write(ledger).document.id
    ledger.add_chunks("acme", second, [chunk(second, 0, tokens=12)], [])
    assert ledger.unlearned_tokens("acme", "m") == (12, made.create_time)


def test_an_adapter_of_a_cancelled_job_is_not_recorded(ledger: Ledger) -> None:
    memory(ledger)
    for cancelled in (False, True):
        job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
        ledger.claim_job("w", 60)
        if cancelled:
            ledger.cancel_job("acme", job.id)
        new = Adapter("acme", "m", new_id(), now(), new_id(), "base", "", "c", 100, job=job.id)
        assert (ledger.add_adapter(new, [], True) is None) == cancelled
        assert (ledger.adapter_of_job("acme", job.id) is None) == cancelled
        ledger.finish_job("acme", job.id, "w", {})


def test_tainted_weights_do_not_come_back(ledger: Ledger) -> None:
    """Exported before the delete, imported after it."""
    memory(ledger)
    document = write(ledger).document.id
    made = adapter(ledger, [document])
    ledger.delete_document("acme", "m", document, None)
    again = Adapter("acme", "m", new_id(), now(), made.fingerprint, "base", "reader", "compressor", 100)
    with pytest.raises(FailedPrecondition, match="deleted"):
        ledger.add_adapter(again, [], False)


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


def test_an_example_that_is_there_rests_on_what_it_is_given_with_later(ledger: Ledger) -> None:
    memory(ledger)
    first, second = write(ledger).document.id, write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    for document in (first, second):
        (held,), count = ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
        assert count == 1
    assert held.documents == tuple(sorted([first, second]))
    ledger.delete_document("acme", "m", second, None)
    assert ledger.list_examples("acme", "m", 10, "").items == []


def test_learning_of_a_deleted_memory_is_not_retried(ledger: Ledger) -> None:
    memory(ledger)
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    ledger.delete_memory("acme", "m", None)
    with pytest.raises(FailedPrecondition, match="memory is deleted"):
        ledger.retry_job("acme", job.id)
