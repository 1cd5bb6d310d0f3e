"""What went out as an archive and comes back: nothing that was deleted comes with it."""

from __future__ import annotations

import pytest

from memoryd.core import Adapter, AdapterState, JobKind, Origin, new_id, now
from memoryd.errors import FailedPrecondition, NotFound
from memoryd.store.base import Ledger
from tests.contract.learning_rows import A, Q, active, adapter, bring, learned, state
from tests.contract.rows import memory, write


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
    elsewhere, copy = (bring(ledger, f"weights of {made.id}", memory="n") for made in (saw, told))
    assert elsewhere is not None
    assert copy is not None
    ledger.activate_adapter("acme", "n", elsewhere.id)
    ledger.delete_memory("acme", "m", None)
    assert state(ledger, elsewhere) is AdapterState.TAINTED
    assert active(ledger, "n") is None
    assert state(ledger, copy) is AdapterState.TAINTED, "though no document had a part in it"
    assert {a.id for a in ledger.tainted_adapters("acme")} == {saw.id, told.id, elsewhere.id, copy.id}
    for made in (saw, told, elsewhere, copy):
        ledger.purged_adapter("acme", made.id)
    ledger.erase_rows("acme", "m", [document])
    memory(ledger)  # of the same name
    for made in (saw, told):
        assert ledger.recorded("acme", [made.id]) == set()
        with pytest.raises(FailedPrecondition, match="deleted here"):
            bring(ledger, f"weights of {made.id}")


@pytest.mark.parametrize("still_there", [True, False])
def test_what_an_example_comes_to_rest_on_had_a_part_in_archives_and_copies_of_what_it_taught(
    ledger: Ledger, still_there: bool
) -> None:
    """Whether the adapter that went out is still there or not; what was made before the example is not its work."""
    memory(ledger)
    memory(ledger, "n")
    before = learned(ledger, [])
    ledger.record_export("acme", "m", before.id, "earlier weights")
    ledger.add_examples("acme", "m", [(Q, A, [])], Origin.SUPPLIED, None)
    made = learned(ledger, [])
    ledger.record_export("acme", "m", made.id, "weights")
    copy, earlier = bring(ledger, "weights", memory="n"), bring(ledger, "earlier weights", memory="n")
    assert copy is not None
    assert earlier is not None
    ledger.activate_adapter("acme", "n", copy.id)
    document = write(ledger).document.id
    ledger.add_examples("acme", "m", [(Q, A, [document])], Origin.SUPPLIED, None)
    if not still_there:
        ledger.delete_adapter("acme", "m", made.id)
    ledger.delete_document("acme", "m", document, None)
    assert state(ledger, copy) is AdapterState.TAINTED
    assert active(ledger, "n") is None
    with pytest.raises(FailedPrecondition, match=document):
        bring(ledger, "weights", memory="n")
    assert state(ledger, earlier) is AdapterState.KEPT
    assert bring(ledger, "earlier weights", memory="n") is not None
