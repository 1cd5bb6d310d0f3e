"""The ledger keeps examples with the documents that they rest on."""

from __future__ import annotations

import pytest

from memoryd.core import AdapterState, Origin, Request, now
from memoryd.errors import NotFound, RequestIdReused
from memoryd.store.base import Ledger
from tests.contract.learning_rows import A, Q, learned, state
from tests.contract.rows import memory, write


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
