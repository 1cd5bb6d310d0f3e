"""Every method of every store, called by one tenant with another's ids: it finds nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from memoryd.core import Adapter, JobKind, Origin, Request, Stage, new_id, now
from memoryd.errors import MemorydError, NotFound
from memoryd.store.base import Blobs, Cache, Index, Ledger
from tests.contract.rows import chunk, index_row, memory, passage, vector, write

HIDDEN: dict[str, Callable[[Ledger, str, str], object]] = {
    "get_memory": lambda ledger, d, j: ledger.get_memory("other", "m"),
    "require_memories": lambda ledger, d, j: ledger.require_memories("other", ["m"]),
    "update_memory": lambda ledger, d, j: ledger.update_memory("other", "m", None, display_name="x"),
    "delete_memory": lambda ledger, d, j: ledger.delete_memory("other", "m", None),
    "write_document": lambda ledger, d, j: write(ledger, tenant="other"),
    "get_document": lambda ledger, d, j: ledger.get_document("other", "m", d),
    "list_documents": lambda ledger, d, j: ledger.list_documents("other", "m", 10, ""),
    "delete_document": lambda ledger, d, j: ledger.delete_document("other", "m", d, None),
    "get_job": lambda ledger, d, j: ledger.get_job("other", j),
    "cancel_job": lambda ledger, d, j: ledger.cancel_job("other", j),
    "retry_job": lambda ledger, d, j: ledger.retry_job("other", j),
    "add_examples": lambda ledger, d, j: ledger.add_examples("other", "m", [("q", "a", [d])], Origin.SUPPLIED, None),
    "list_examples": lambda ledger, d, j: ledger.list_examples("other", "m", 10, ""),
    "delete_example": lambda ledger, d, j: ledger.delete_example("other", "m", _example(ledger)),
    "request_learning": lambda ledger, d, j: ledger.request_learning("other", "m", JobKind.LEARN, {}, None),
    "get_adapter": lambda ledger, d, j: ledger.get_adapter("other", "m", _adapter(ledger)),
    "list_adapters": lambda ledger, d, j: ledger.list_adapters("other", "m", 10, ""),
    "activate_adapter": lambda ledger, d, j: ledger.activate_adapter("other", "m", _adapter(ledger)),
    "roll_back_adapter": lambda ledger, d, j: ledger.roll_back_adapter("other", "m"),
    "delete_adapter": lambda ledger, d, j: ledger.delete_adapter("other", "m", _adapter(ledger)),
    "record_export": lambda ledger, d, j: ledger.record_export("other", "m", _adapter(ledger), "w"),
    "unlearned": lambda ledger, d, j: ledger.unlearned("other", "m"),
    "retire_adapters": lambda ledger, d, j: ledger.retire_adapters("other", "m", 0),
    "revoke_key": lambda ledger, d, j: ledger.revoke_key("other", ledger.list_keys("acme")[0].id),
}

NOTHING: dict[str, Callable[[Ledger, str, str], object]] = {
    "list_memories": lambda ledger, d, j: ledger.list_memories("other", 10, "").items,
    "list_jobs": lambda ledger, d, j: ledger.list_jobs("other", 10, "").items,
    "list_keys": lambda ledger, d, j: ledger.list_keys("other"),
    "get_documents": lambda ledger, d, j: ledger.get_documents("other", [d]),
    "set_stage": lambda ledger, d, j: ledger.set_stage("other", d, Stage.LEARNED),
    "reset_document": lambda ledger, d, j: ledger.reset_document("other", d),
    "add_chunks": lambda ledger, d, j: ledger.add_chunks("other", d, [chunk(d, 9)], [passage(d, 9)]),
    "chunks": lambda ledger, d, j: ledger.chunks("other", d),
    "passages": lambda ledger, d, j: ledger.passages("other", d),
    "get_passages": lambda ledger, d, j: ledger.get_passages("other", [f"{d}-0"]),
    "get_chunks": lambda ledger, d, j: ledger.get_chunks("other", [(d, 0)]),
    "set_embeddings": lambda ledger, d, j: ledger.set_embeddings("other", d, [chunk(d, 0)]),
    "deleted_documents": lambda ledger, d, j: ledger.deleted_documents("other", "gone"),
    "deleted_chunks": lambda ledger, d, j: ledger.deleted_chunks("other", d),
    "erase_rows": lambda ledger, d, j: ledger.erase_rows("other", "gone", [d]),
    "token_count": lambda ledger, d, j: ledger.token_count("other", ["m"]),
    "count_unsearchable": lambda ledger, d, j: ledger.count_unsearchable("other", ["m"]),
    "recompress": lambda ledger, d, j: ledger.recompress("other", d),
    "remake": lambda ledger, d, j: ledger.remake("other", d, [chunk(d, 0)]),
    "recorded": lambda ledger, d, j: ledger.recorded("other", [d]),
    "all_documents": lambda ledger, d, j: ledger.all_documents("other"),
    "heartbeat": lambda ledger, d, j: ledger.heartbeat("other", j, "w", 60, "", 1, 2, 0.0),
    "release_job": lambda ledger, d, j: ledger.release_job("other", j, "w"),
    "finish_job": lambda ledger, d, j: ledger.finish_job("other", j, "w", {}),
    "fail_job": lambda ledger, d, j: ledger.fail_job("other", j, "w", "x", now() + timedelta(hours=1)),
    "active_adapters": lambda ledger, d, j: ledger.active_adapters("other", ["m"]),
    "count_tainted": lambda ledger, d, j: ledger.count_tainted("other", "gone", [d]),
    "tainted_adapters": lambda ledger, d, j: ledger.tainted_adapters("other"),
    "adapter_of_job": lambda ledger, d, j: ledger.adapter_of_job("other", j),
    "purged_adapter": lambda ledger, d, j: ledger.purged_adapter("other", _adapter(ledger)),
    "add_adapter": lambda ledger, d, j: ledger.add_adapter(_new_adapter("other"), [d], True),
    "usage": lambda ledger, d, j: ledger.usage("other").documents,
}

UNSCOPED = {"create_tenant", "ensure_tenant", "get_tenant", "list_tenants", "find_key", "claim_job"}
UNSCOPED |= {"stale_documents", "count_recompressing", "memories_with"}  # the daemon's own: no caller reaches them
OWN = {"create_key", "create_memory", "add_job", "add_usage", "close"}  # only ever add to the tenant that is named


def test_every_method_is_tried() -> None:
    methods = {name for name in vars(Ledger) if not name.startswith("_")}
    assert methods == {*HIDDEN, *NOTHING, *UNSCOPED, *OWN}


@pytest.mark.parametrize("method", [*HIDDEN, *NOTHING])
def test_the_ledger_shows_nothing_of_another_tenant(ledger: Ledger, method: str) -> None:
    memory(ledger)
    memory(ledger, "gone")
    gone = write(ledger, memory="gone")
    ledger.delete_memory("acme", "gone", None)
    ledger.create_key("acme", "", "ab" * 32, "")
    written = write(ledger, "text", request=Request("r", "d"))
    id_, job = written.document.id, written.job.id
    ledger.add_chunks("acme", id_, [chunk(id_, 0)], [passage(id_, 0)])
    ledger.add_examples("acme", "m", [("q", "a", [id_])], Origin.SUPPLIED, None)
    ledger.add_adapter(_new_adapter("acme"), [id_], True)
    for _ in range(2):
        ledger.claim_job("w", 60)
    before = _state(ledger, id_, job)
    if method in HIDDEN:
        with pytest.raises(NotFound):
            HIDDEN[method](ledger, id_, job)
    else:
        assert not NOTHING[method](ledger, gone.document.id if method == "erase_rows" else id_, job)
    assert _state(ledger, id_, job) == before
    assert len(ledger.deleted_documents("acme", "gone")) == 1


def _state(ledger: Ledger, document: str, job: str) -> object:
    return (
        ledger.get_memory("acme", "m"),
        ledger.get_document("acme", "m", document),
        ledger.get_job("acme", job),
        ledger.chunks("acme", document),
        ledger.passages("acme", document),
        ledger.list_keys("acme"),
        ledger.usage("acme"),
        ledger.list_examples("acme", "m", 10, ""),
        ledger.list_adapters("acme", "m", 10, ""),
    )


def _new_adapter(tenant: str) -> Adapter:
    return Adapter(tenant, "m", new_id(), now(), "f" * 64, "base", "", "c", 1)


def _adapter(ledger: Ledger) -> str:
    return ledger.list_adapters("acme", "m", 1, "").items[0].id


def _example(ledger: Ledger) -> str:
    return ledger.list_examples("acme", "m", 1, "").items[0].id


def test_one_request_id_is_two_requests_in_two_tenants(ledger: Ledger) -> None:
    memory(ledger)
    memory(ledger, tenant="other")
    first = write(ledger, "text", request=Request("r", "d"))
    second = write(ledger, "text", tenant="other", request=Request("r", "another"))
    assert not second.already_stored
    assert second.document.id != first.document.id


def test_one_document_id_may_be_in_two_tenants(ledger: Ledger) -> None:
    for tenant in ("acme", "other"):
        memory(ledger, tenant=tenant)
        write(ledger, "text", tenant=tenant, document="d")
    ledger.delete_document("acme", "m", "d", None)
    assert ledger.erase_rows("acme", "m", ["d"]) == 1
    assert ledger.get_document("other", "m", "d").tenant == "other"


def test_jobs_say_their_kind(ledger: Ledger) -> None:
    assert ledger.add_job("acme", JobKind.REINDEX, "t", {}).kind is JobKind.REINDEX
    with pytest.raises(NotFound):
        ledger.add_job("nobody", JobKind.REINDEX, "t", {})


def test_blobs_of_another_tenant_are_not_found(blobs: Blobs) -> None:
    blobs.put("acme", "acme/m/d/text", b"text")
    for call in (
        lambda: blobs.get("other", "acme/m/d/text"),
        lambda: blobs.put("other", "acme/m/d/text", b"x"),
        lambda: blobs.read_range("other", "acme/m/d/text", 0, 1),
        lambda: list(blobs.stream("other", "acme/m/d/text")),
        lambda: blobs.delete_prefix("other", "acme/m/"),
        lambda: blobs.delete_prefix("acm", "acme/"),
    ):
        with pytest.raises(MemorydError):
            call()
    assert blobs.get("acme", "acme/m/d/text") == b"text"


def test_vectors_of_another_tenant_are_not_found(index: Index) -> None:
    index.upsert("acme", [index_row("d-0", "word")])
    assert index.search_dense("other", ["m"], vector(1.0), 5) == []
    assert index.search_text("other", ["m"], "word", 5) == []
    assert index.delete_document("other", "m", "d") == 0
    assert index.delete_memory("other", "m") == 0
    assert index.count("other") == 0
    index.upsert("other", [index_row("d-0", "overwritten")])  # the same passage id
    assert [hit.passage for hit in index.search_text("acme", ["m"], "word", 5)] == ["d-0"]
    assert index.search_text("acme", ["m"], "overwritten", 5) == []


def test_cached_values_of_another_tenant_are_not_found(cache: Cache) -> None:
    cache.put("acme", "key", b"1")
    assert cache.get_many("other", ["key", "acme:key", ":acme:key"]) == {}
    assert cache.delete_prefix("other", "") == 0
    cache.put("other", "key", b"2")
    assert cache.get_many("acme", ["key"]) == {"key": b"1"}
