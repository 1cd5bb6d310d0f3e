"""A document is LEARNED once it is compressed and the active adapter was trained with it, whichever of the two came first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from memoryd.core import Stage
from memoryd.store.base import Ledger
from memoryd.store.ledger_memories import require_memory_uid
from memoryd.store.ledger_taint import activate_clean
from tests.contract.learning_rows import adapter
from tests.contract.locks import beside, until_waiting
from tests.contract.rows import chunk, memory, write


def stage(ledger: Ledger, document: str) -> Stage:
    return ledger.get_document("acme", "m", document).stage


def searchable(ledger: Ledger) -> str:
    document = write(ledger).document.id
    ledger.add_chunks("acme", document, [chunk(document, 0)], [])
    ledger.set_stage("acme", document, Stage.SEARCHABLE)
    return document


def end_compressing(ledger: Ledger, document: str) -> None:
    job = ledger.get_document("acme", "m", document).job
    while (claimed := ledger.claim_job("w", 60)) and claimed.id != job:
        pass
    assert ledger.set_stage("acme", document, Stage.COMPRESSED)
    assert ledger.finish_job("acme", job, "w", {})


def test_a_document_that_is_compressed_after_the_active_adapter_was_trained_with_it_is_learned(ledger: Ledger) -> None:
    memory(ledger)
    known, new = searchable(ledger), searchable(ledger)
    adapter(ledger, [known])
    assert stage(ledger, known) is Stage.SEARCHABLE, "it has no compressed embeddings yet"
    for document in (known, new):
        end_compressing(ledger, document)
    assert (stage(ledger, known), stage(ledger, new)) == (Stage.LEARNED, Stage.COMPRESSED)
    ledger.roll_back_adapter("acme", "m")
    assert stage(ledger, known) is Stage.COMPRESSED


@pytest.mark.parametrize("why", ["another compressor", "lost embeddings"])
def test_a_learned_document_that_is_compressed_again_is_learned_again_while_the_adapter_is_active(
    ledger: Ledger, why: str
) -> None:
    memory(ledger)
    memory(ledger, "n")
    document = searchable(ledger)
    end_compressing(ledger, document)
    adapter(ledger, [document])
    adapter(ledger, [document], memory="n")  # an import, which stays active there
    assert stage(ledger, document) is Stage.LEARNED
    if why == "another compressor":
        ledger.recompress("acme", document)
    else:
        assert ledger.remake("acme", document, ledger.chunks("acme", document))
    assert stage(ledger, document) is Stage.SEARCHABLE
    end_compressing(ledger, document)
    assert stage(ledger, document) is Stage.LEARNED
    ledger.recompress("acme", document)
    ledger.roll_back_adapter("acme", "m")
    end_compressing(ledger, document)
    assert stage(ledger, document) is Stage.COMPRESSED


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)  # on SQLite one comes after the other
def test_a_document_is_learned_though_it_is_compressed_while_the_adapter_is_being_activated(
    ledger: Ledger, ledger_url: str
) -> None:
    memory(ledger)
    document = searchable(ledger)
    made = adapter(ledger, [document], activate=False)
    with ThreadPoolExecutor(1) as pool:
        with beside(ledger_url) as conn:
            activate_clean(conn, "acme", require_memory_uid(conn, "acme", "m", lock=True), made.id)
            compressed = pool.submit(ledger.set_stage, "acme", document, Stage.COMPRESSED)
            until_waiting(conn, 1)
        assert compressed.result(30)
    assert stage(ledger, document) is Stage.LEARNED
