"""The ledger keeps adapters: one is active, the newest of the others stay."""

from __future__ import annotations

import pytest

from memoryd.core import Adapter, AdapterState, JobKind, Stage, new_id, now
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Ledger
from tests.contract.learning_rows import active, adapter, bring, learned, state
from tests.contract.rows import memory, write


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
