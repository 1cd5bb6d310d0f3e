"""The ledger keeps examples and adapters, and what deleting a document does to them: nothing that saw it is in use any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest

from memoryd.core import Adapter, AdapterState, JobKind, JobState, Origin, Request, Stage, Unlearned, new_id, now
from memoryd.errors import FailedPrecondition, NotFound, RequestIdReused
from memoryd.store.base import Ledger
from tests.contract.rows import chunk, memory, write

Q, A = "Who rides the elephant?", "Mr. Fogg"


def adapter(
    ledger: Ledger,
    documents: Sequence[str],
    parent: str = "",
    *,
    activate: bool = True,
    memory: str = "m",
    gather_time: datetime | None = None,
) -> Adapter:
    made_of = (new_id(), "base", "reader", "compressor", 100)
    new = Adapter("acme", memory, new_id(), now(), *made_of, parent=parent, examples=3, gather_time=gather_time)
    made = ledger.add_adapter(new, documents, activate)
    assert made is not None
    return made


def learned(
    ledger: Ledger,
    documents: Sequence[str],
    parent: str = "",
    *,
    activate: bool = True,
    gather_time: datetime | None = None,
    fingerprint: str = "",
) -> Adapter:
    """As `adapter`, made by a job of learning: one without a job is imported."""
    job = ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    while (claimed := ledger.claim_job("w", 60)) and claimed.id != job.id:
        pass  # it is of a document
    made_of = (fingerprint or new_id(), "base", "reader", "compressor", 100)
    new = Adapter("acme", "m", new_id(), now(), *made_of, parent=parent, job=job.id, gather_time=gather_time)
    made = ledger.add_adapter(new, documents, activate)
    assert made is not None
    assert ledger.finish_job("acme", job.id, "w", {"examples": 3})
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


def told(ledger: Ledger, tokens: int, memory: str = "m") -> str:
    document = write(ledger, memory=memory).document.id
    ledger.add_chunks("acme", document, [chunk(document, 0, tokens=tokens)], [])
    return document


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


def test_of_adapters_that_are_not_in_use_the_newest_are_kept(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    chain = [learned(ledger, [document])]
    for _ in range(3):
        chain.append(learned(ledger, [document], chain[-1].id))
    kept = [learned(ledger, [document], chain[-1].id, activate=False) for _ in range(3)]
    assert list(ledger.retire_adapters("acme", "m", 2)) == [kept[0].id, chain[1].id, chain[0].id]
    left = [a.id for a in ledger.list_adapters("acme", "m", 10, "").items]
    assert left == [chain[2].id, chain[3].id, kept[1].id, kept[2].id]
    assert active(ledger) == chain[3].id
    erased = [job.payload["adapter"] for job in ledger.list_jobs("acme", 100, "").items if job.kind is JobKind.ERASE]
    assert erased == [kept[0].id, chain[1].id, chain[0].id]
    assert list(ledger.retire_adapters("acme", "m", 2)) == []
    back = ledger.roll_back_adapter("acme", "m")
    assert back is not None
    assert back.id == chain[2].id
    assert back.parent == "", "its parents are gone"


def test_what_a_rollback_would_need_is_never_retired(ledger: Ledger) -> None:
    """That is not always the parent."""
    memory(ledger)
    safe, secret = write(ledger).document.id, write(ledger).document.id
    oldest = learned(ledger, [safe])
    tainted = learned(ledger, [safe, secret], oldest.id)
    newest = learned(ledger, [safe], tainted.id)
    others = [learned(ledger, [safe], activate=False) for _ in range(2)]
    ledger.delete_document("acme", "m", secret, None)
    assert list(ledger.retire_adapters("acme", "m", 1)) == [others[0].id]
    assert (state(ledger, newest), state(ledger, tainted)) == (AdapterState.ACTIVE, AdapterState.TAINTED)
    back = ledger.roll_back_adapter("acme", "m")
    assert back is not None
    assert back.id == oldest.id


def test_where_none_is_active_the_newest_are_kept(ledger: Ledger) -> None:
    memory(ledger)
    made = [learned(ledger, [], activate=False) for _ in range(3)]
    assert list(ledger.retire_adapters("acme", "m", 1)) == [made[1].id, made[0].id]
    with pytest.raises(NotFound):
        ledger.retire_adapters("acme", "x", 1)


def test_imported_adapters_are_neither_retired_nor_counted(ledger: Ledger) -> None:
    """Older and newer than what was learned, and one that was in use for a while."""
    memory(ledger)
    old = bring(ledger, "older weights")
    first = learned(ledger, [], activate=False)
    second = learned(ledger, [], activate=False)
    third = learned(ledger, [], activate=False)
    new = bring(ledger, "newer weights")
    assert old is not None
    assert new is not None
    ledger.activate_adapter("acme", "m", old.id)
    ledger.activate_adapter("acme", "m", third.id)
    assert list(ledger.retire_adapters("acme", "m", 1)) == [first.id], "the newest that was learned is kept"
    left = [a.id for a in ledger.list_adapters("acme", "m", 10, "").items]
    assert left == [old.id, second.id, third.id, new.id]
    assert list(ledger.retire_adapters("acme", "m", 0)) == [second.id], "whoever imported one deletes it"


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


def test_what_is_learned_anew_may_come_out_the_same(ledger: Ledger) -> None:
    """Where what was deleted had no part in the weights, say because it was only judged by: they are clean now."""
    memory(ledger)
    made = learned(ledger, [write(ledger).document.id])
    (document,) = [d.id for d in ledger.list_documents("acme", "m", 10, "").items]
    ledger.delete_document("acme", "m", document, None)
    again = learned(ledger, [], fingerprint=made.fingerprint)
    assert (again.fingerprint, active(ledger)) == (made.fingerprint, again.id)


def test_an_example_that_gains_a_document_taints_what_has_learned_it(ledger: Ledger) -> None:
    memory(ledger)
    before, document = write(ledger).document.id, write(ledger).document.id
    older = learned(ledger, [before], gather_time=now())
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    knows = learned(ledger, [before], older.id, gather_time=now())
    ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
    ledger.add_examples("acme", "m", [(Q, A, [before, document])], Origin.SUPPLIED, None)
    assert ledger.get_adapter("acme", "m", knows.id).documents == 2
    ledger.delete_document("acme", "m", document, None)
    assert (state(ledger, knows), state(ledger, older)) == (AdapterState.TAINTED, AdapterState.ACTIVE)


def test_an_example_that_gained_a_document_while_it_was_learned_counts_too(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    gathered = now()
    ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
    knows = learned(ledger, [], gather_time=gathered)
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, knows) is AdapterState.TAINTED


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


# --- archives: what was deleted does not come back by import ---


def bring(ledger: Ledger, weights: str, lineage: Sequence[str] = (), memory: str = "m", tenant: str = "acme") -> Adapter | None:
    """Imports an archive of these weights, whose lineage names these documents; its configuration is always another one."""
    new = Adapter(tenant, memory, new_id(), now(), new_id(), "base", "reader", "compressor", 100)
    return ledger.add_adapter(new, lineage, False, weights)


@pytest.mark.parametrize("first", ["document", "adapter"])
def test_what_was_exported_does_not_come_back_after_the_delete(ledger: Ledger, first: str) -> None:
    """Whether the adapter was tainted when it was deleted or not, and though neither row nor lineage says anything any more."""
    memory(ledger)
    memory(ledger, "n")
    document, other = write(ledger).document.id, write(ledger).document.id
    made = adapter(ledger, [document, other])
    ledger.record_export("acme", "m", made.id, "weights")
    assert bring(ledger, "weights", memory="n") is not None, "until then it may"
    for step in ("document", "adapter") if first == "document" else ("adapter", "document"):
        if step == "document":
            ledger.delete_document("acme", "m", document, None)
            ledger.erase_rows("acme", "m", [document])
        else:
            ledger.delete_adapter("acme", "m", made.id)
    for into in ("m", "n"):
        with pytest.raises(FailedPrecondition, match=f"memories/m/documents/{document}, deleted here.*learn anew") as refusal:
            bring(ledger, "weights", memory=into)
        assert refusal.value.reason == "ADAPTER_TAINTED"
    assert bring(ledger, "other weights") is not None


def test_a_lineage_that_names_a_deleted_document_is_refused(ledger: Ledger) -> None:
    """Weights that nobody knows: they were changed, say."""
    memory(ledger)
    gone, also, stays = sorted(write(ledger).document.id for _ in range(3))
    ledger.delete_document("acme", "m", gone, None)
    with pytest.raises(FailedPrecondition, match=f"memories/m/documents/{gone}, deleted"):
        bring(ledger, "before the erase", [gone, stays])
    ledger.erase_rows("acme", "m", [gone])
    replaced = write(ledger, replaces=also).document.id
    with pytest.raises(FailedPrecondition, match=f"memories/m/documents/{gone} and 1 more, deleted"):
        bring(ledger, "after it", [stays, gone, also])
    assert list(ledger.list_adapters("acme", "m", 10, "").items) == []
    made = bring(ledger, "clean", [stays, replaced])
    assert made is not None
    assert made.documents == 2


def test_what_a_refused_archive_says_of_itself_is_not_remembered(ledger: Ledger) -> None:
    memory(ledger)
    gone, stays = write(ledger).document.id, write(ledger).document.id
    ledger.delete_document("acme", "m", gone, None)
    with pytest.raises(FailedPrecondition):
        bring(ledger, "weights", [gone, stays])
    made = bring(ledger, "weights")
    assert made is not None
    assert made.documents == 0


def test_documents_of_another_installation_or_tenant_are_not_asked_for(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, tenant="other")
    theirs = write(ledger, tenant="other").document.id
    ledger.delete_document("other", "m", theirs, None)
    made = bring(ledger, "weights", ["018f000000000000deadbeef", theirs])
    assert made is not None
    assert made.documents == 0
    with pytest.raises(FailedPrecondition):
        bring(ledger, "weights", [theirs], tenant="other")


def test_what_goes_out_of_one_tenant_is_not_known_to_another(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, tenant="other")
    document = write(ledger).document.id
    ledger.record_export("acme", "m", adapter(ledger, [document]).id, "weights")
    ledger.delete_document("acme", "m", document, None)
    assert bring(ledger, "weights", tenant="other") is not None


def test_an_import_without_its_lineage_is_tainted_with_what_its_weights_have_seen(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, "n")
    document = write(ledger).document.id
    made = adapter(ledger, [document])
    ledger.record_export("acme", "m", made.id, "weights")
    ledger.delete_adapter("acme", "m", made.id)
    back = bring(ledger, "weights", memory="n")
    assert back is not None
    assert back.documents == 1
    ledger.activate_adapter("acme", "n", back.id)
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, back) is AdapterState.TAINTED
    assert active(ledger, "n") is None


def test_what_was_imported_is_remembered_as_what_was_exported(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    made = bring(ledger, "weights", [document])
    assert made is not None
    ledger.delete_adapter("acme", "m", made.id)
    ledger.delete_document("acme", "m", document, None)
    with pytest.raises(FailedPrecondition, match=document):
        bring(ledger, "weights")


def test_a_tainted_adapter_is_not_exported(ledger: Ledger) -> None:
    memory(ledger)
    document = write(ledger).document.id
    made = adapter(ledger, [document])
    ledger.record_export("acme", "m", made.id, "weights")
    ledger.record_export("acme", "m", made.id, "weights")  # as often as one likes
    ledger.delete_document("acme", "m", document, None)
    with pytest.raises(FailedPrecondition, match="learn again"):
        ledger.record_export("acme", "m", made.id, "weights")
    with pytest.raises(NotFound):
        ledger.record_export("acme", "m", "nothing", "weights")


def test_what_a_deleted_memory_taught_comes_back_nowhere(ledger: Ledger) -> None:
    """By its documents; and by its examples that rest on none, once its rows are erased."""
    memory(ledger)
    memory(ledger, "n")
    document = write(ledger).document.id
    saw = adapter(ledger, [document], activate=False)
    ledger.request_learning("acme", "m", JobKind.LEARN, {}, None)
    job = ledger.claim_job("w", 60)
    while job is not None and job.kind is not JobKind.LEARN:
        job = ledger.claim_job("w", 60)
    assert job is not None
    new = Adapter("acme", "m", new_id(), now(), new_id(), "base", "reader", "compressor", 100, job=job.id)
    told = ledger.add_adapter(new, [], False)
    assert told is not None
    for made in (saw, told):
        ledger.record_export("acme", "m", made.id, f"weights of {made.id}")
    elsewhere = bring(ledger, f"weights of {saw.id}", memory="n")
    assert elsewhere is not None
    ledger.activate_adapter("acme", "n", elsewhere.id)
    ledger.delete_memory("acme", "m", None)
    assert state(ledger, elsewhere) is AdapterState.TAINTED
    assert active(ledger, "n") is None
    assert {a.id for a in ledger.tainted_adapters("acme")} == {saw.id, told.id, elsewhere.id}
    for made in (saw, told, elsewhere):
        ledger.purged_adapter("acme", made.id)
    ledger.erase_rows("acme", "m", [document])
    memory(ledger)  # of the same name
    for made in (saw, told):
        assert ledger.recorded("acme", [made.id]) == set()
        with pytest.raises(FailedPrecondition, match="deleted here"):
            bring(ledger, f"weights of {made.id}")
