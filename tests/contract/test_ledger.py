"""The ledger: what it keeps, what it hides, and that repeats are harmless."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.engine import Dialect

from memoryd.core import JobKind, JobState, Kind, Metadata, Origin, Request, Stage
from memoryd.errors import AlreadyExists, InvalidArgument, NotFound, RequestIdReused
from memoryd.store.base import Ledger, Page
from memoryd.store.paging import MAX_PAGE_BYTES
from memoryd.store.schema import MetadataJson
from tests.contract.learning_rows import adapter
from tests.contract.rows import chunk, memory, passage, write

_LARGE = 256 << 10  # bytes of metadata, as much as a row may have


class TestTenants:
    def test_are_listed_in_pages(self, ledger: Ledger) -> None:
        first = ledger.list_tenants(1, "")
        second = ledger.list_tenants(5, first.next_token)
        assert [tenant.id for tenant in (*first.items, *second.items)] == ["acme", "other"]
        assert second.next_token == ""

    def test_exist_once(self, ledger: Ledger) -> None:
        with pytest.raises(AlreadyExists):
            ledger.create_tenant("acme", "again")
        ledger.ensure_tenant("acme")
        ledger.ensure_tenant("new")
        assert ledger.get_tenant("acme").display_name == "Acme"
        assert ledger.get_tenant("new").id == "new"

    def test_keys_are_found_by_hash_and_revoked_once(self, ledger: Ledger) -> None:
        key = ledger.create_key("acme", "laptop", "ab" * 32, "mk_1")
        assert ledger.find_key("ab" * 32) == key
        assert ledger.find_key("cd" * 32) is None
        ledger.revoke_key("acme", key.id)
        revoked = ledger.list_keys("acme")[0].revoke_time
        assert revoked is not None
        ledger.revoke_key("acme", key.id)
        assert ledger.list_keys("acme")[0].revoke_time == revoked
        with pytest.raises(NotFound):
            ledger.create_key("nobody", "", "ef" * 32, "")

    def test_usage_counts_what_is_held_and_used(self, ledger: Ledger) -> None:
        memory(ledger)
        kept, deleted = write(ledger, "12345"), write(ledger, "123")
        ledger.add_chunks("acme", kept.document.id, [chunk(kept.document.id, 0)], [passage(kept.document.id, 0)])
        ledger.delete_document("acme", "m", deleted.document.id, None)
        ledger.add_usage("acme", answers=1, prompt_tokens=7)
        ledger.add_usage("acme", answers=1, searches=2, output_tokens=3)
        usage = ledger.usage("acme")
        assert (usage.memories, usage.documents, usage.text_bytes, usage.passages) == (1, 1, 5, 1)
        assert (usage.answers, usage.searches, usage.prompt_tokens, usage.output_tokens) == (2, 2, 7, 3)


class TestMemories:
    def test_metadata_comes_back_with_its_types(self, ledger: Ledger) -> None:
        metadata = {"s": "ü\U0001f600", "f": 1.0, "b": True, "t": datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC)}
        ledger.create_memory("acme", "m", "", "", metadata, None)
        found = ledger.get_memory("acme", "m").metadata
        assert found == metadata
        assert {key: type(value) for key, value in found.items()} == {key: type(v) for key, v in metadata.items()}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), datetime(2024, 1, 1)])
    def test_metadata_that_cannot_be_kept_is_refused(self, ledger: Ledger, value: float | datetime) -> None:
        with pytest.raises(InvalidArgument, match="'bad'"):
            ledger.create_memory("acme", "m", "", "", {"bad": value}, None)

    def test_an_id_is_made_where_none_is_given(self, ledger: Ledger) -> None:
        made = ledger.create_memory("acme", "", "name", "text", {}, None)
        assert made.id
        assert ledger.get_memory("acme", made.id) == made

    def test_exists_once(self, ledger: Ledger) -> None:
        memory(ledger)
        with pytest.raises(AlreadyExists):
            memory(ledger)

    def test_a_repeat_returns_what_was_made(self, ledger: Ledger) -> None:
        request = Request("r1", "digest")
        made = ledger.create_memory("acme", "", "", "", {}, request)
        assert ledger.create_memory("acme", "", "", "", {}, request) == made
        with pytest.raises(RequestIdReused):
            ledger.create_memory("acme", "", "", "", {}, Request("r1", "another"))

    def test_memories_are_required(self, ledger: Ledger) -> None:
        memory(ledger)
        memory(ledger, "n")
        ledger.require_memories("acme", ["m", "n"])
        ledger.require_memories("acme", [])
        ledger.delete_memory("acme", "n", None)
        with pytest.raises(NotFound):
            ledger.require_memories("acme", ["m", "n"])

    def test_update_leaves_what_is_not_given(self, ledger: Ledger) -> None:
        before = ledger.create_memory("acme", "m", "name", "description", {"a": "b"}, None)
        after = ledger.update_memory("acme", "m", None, display_name="new")
        assert (after.display_name, after.description, after.metadata) == ("new", "description", {"a": "b"})
        assert after.create_time == before.create_time
        assert after.update_time > before.update_time
        with pytest.raises(NotFound):
            ledger.update_memory("acme", "none", None, display_name="new")

    def test_pages_hold_each_once_while_others_come_and_go(self, ledger: Ledger) -> None:
        names = [memory(ledger, f"m{i}") for i in range(5)]
        page = ledger.list_memories("acme", 2, "")
        ledger.delete_memory("acme", "m0", None)
        memory(ledger, "m5")
        seen = [item.id for item in page.items]
        while page.next_token:
            page = ledger.list_memories("acme", 2, page.next_token)
            seen += [item.id for item in page.items]
        assert seen == [*names, "m5"]

    def test_no_more_rows_are_read_than_a_message_takes(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        decode, decoded, sent = MetadataJson.process_result_value, list[str](), list[int]()

        def spy(column: MetadataJson, value: str | None, dialect: Dialect) -> Metadata | None:
            decoded.append(value or "")
            return decode(column, value, dialect)

        def executed(_conn: object, cursor: Any, *_: object) -> None:
            sent.append(cursor.rowcount)  # rows that came over by now, on PostgreSQL; SQLite, and a cursor there, say -1

        monkeypatch.setattr(MetadataJson, "process_result_value", spy)  # before the ledger first uses it, and keeps it
        names = [ledger.create_memory("acme", f"m{n}", "", "", {"text": "x" * _LARGE}, None).id for n in range(50)]
        event.listen(Engine, "after_cursor_execute", executed)
        seen, token = list[str](), ""
        try:
            while True:
                decoded.clear()
                page = ledger.list_memories("acme", 1000, token)
                assert sum(map(len, decoded)) < 6 << 20
                seen += [item.id for item in page.items]
                token = page.next_token
                if not token:
                    break
        finally:
            event.remove(Engine, "after_cursor_execute", executed)
        assert seen == names
        assert decoded  # else nothing was looked at
        assert max(sent) * _LARGE < 6 << 20

    def test_a_row_that_is_larger_than_a_page_is_a_page(self, ledger: Ledger) -> None:
        for name in ("m", "n"):
            ledger.create_memory("acme", name, "", "", {"text": "x" * (MAX_PAGE_BYTES + 1)}, None)
        first = ledger.list_memories("acme", 10, "")
        second = ledger.list_memories("acme", 10, first.next_token)
        assert [[item.id for item in page.items] for page in (first, second)] == [["m"], ["n"]]
        assert second.next_token == ""

    @pytest.mark.parametrize("token", ["x", "!!", "e30=", "W1sibWVtb3JpZXMiLCJhY21lIl0sWzEsMl1d", "é", "W10="])
    def test_a_made_up_page_token_is_refused(self, ledger: Ledger, token: str) -> None:
        with pytest.raises(InvalidArgument):
            ledger.list_documents("acme", memory(ledger), 10, token)

    @pytest.mark.parametrize(
        "key",
        [["\ud800", "x"], [1, "\ud800"], ["x", "x"], ["1", "x"], [1, 1], [True, "x"], [1.0, "x"], [None, "x"], [2**63, "x"]],
    )
    def test_a_made_up_page_token_of_the_right_list_is_refused(self, ledger: Ledger, key: list[object]) -> None:
        memory(ledger)
        memory(ledger, "n")
        documents = [write(ledger).document.id for _ in range(2)]
        ledger.add_examples("acme", "m", [("q", "a", []), ("r", "a", [])], Origin.SUPPLIED, None)
        for document in documents:
            adapter(ledger, [document], activate=False)
        lists: list[Callable[[str], Page[Any]]] = [
            lambda token: ledger.list_tenants(1, token),
            lambda token: ledger.list_memories("acme", 1, token),
            lambda token: ledger.list_documents("acme", "m", 1, token),
            lambda token: ledger.list_jobs("acme", 1, token),
            lambda token: ledger.list_examples("acme", "m", 1, token),
            lambda token: ledger.list_adapters("acme", "m", 1, token),
        ]
        for pages in lists:
            scope, _ = json.loads(base64.urlsafe_b64decode(pages("").next_token))
            token = base64.urlsafe_b64encode(json.dumps([scope, key]).encode()).decode()
            with pytest.raises(InvalidArgument, match="page_token"):
                pages(token)

    def test_a_page_token_of_another_list_is_refused(self, ledger: Ledger) -> None:
        memory(ledger)
        memory(ledger, "n")
        token = ledger.list_memories("acme", 1, "").next_token
        with pytest.raises(InvalidArgument):
            ledger.list_documents("acme", "m", 1, token)
        with pytest.raises(InvalidArgument):
            ledger.list_memories("other", 1, token)


class TestDocuments:
    def test_a_write_makes_the_row_and_its_job(self, ledger: Ledger) -> None:
        memory(ledger)
        written = write(ledger, "hello")
        document, job = written.document, written.job
        assert not written.already_stored
        assert ledger.get_document("acme", "m", document.id) == document
        assert (document.stage, document.size_bytes, document.job) == (Stage.STORED, 5, job.id)
        assert (job.kind, job.state) == (JobKind.COMPRESS, JobState.PENDING)
        assert job.target == f"memories/m/documents/{document.id}"
        assert job.payload == {"memory": "m", "document": document.id}
        assert ledger.get_memory("acme", "m").document_count == 1

    def test_needs_a_memory(self, ledger: Ledger) -> None:
        with pytest.raises(NotFound):
            write(ledger, memory="none")

    def test_the_same_content_is_stored_once_in_a_memory(self, ledger: Ledger) -> None:
        memory(ledger)
        memory(ledger, "n")
        first = write(ledger, "same")
        second = write(ledger, "same", request=Request("r", "d"))
        assert second.already_stored
        assert (second.document, second.job) == (first.document, first.job)
        assert not write(ledger, "same", memory="n").already_stored
        assert write(ledger, "same", request=Request("r", "d")).document == first.document

    def test_the_same_content_is_returned_though_its_job_is_dead(self, ledger: Ledger) -> None:
        memory(ledger)
        first = write(ledger, "same")
        ledger.claim_job("w", 60)
        ledger.fail_job("acme", first.job.id, "w", "broken", None)
        again = write(ledger, "same")
        assert again.already_stored
        assert again.job.state is JobState.DEAD

    def test_the_same_content_may_be_written_again_after_a_delete(self, ledger: Ledger) -> None:
        memory(ledger)
        first = write(ledger, "same")
        ledger.delete_document("acme", "m", first.document.id, None)
        second = write(ledger, "same")
        assert not second.already_stored
        ledger.delete_document("acme", "m", second.document.id, None)  # two tombstones of one content
        assert ledger.erase_rows("acme", "m", [first.document.id, second.document.id]) == 2

    def test_a_repeated_request_adds_nothing(self, ledger: Ledger) -> None:
        memory(ledger)
        first = write(ledger, "one", request=Request("r", "d"))
        again = write(ledger, "one", request=Request("r", "d"))
        assert again.already_stored
        assert again.document == first.document
        with pytest.raises(RequestIdReused):
            write(ledger, "two", request=Request("r", "e"))
        ledger.delete_document("acme", "m", first.document.id, None)
        with pytest.raises(NotFound):  # a late repeat must not bring back what was forgotten
            write(ledger, "one", request=Request("r", "d"))

    def test_writers_of_one_content_make_one_document(self, ledger: Ledger) -> None:
        memory(ledger)
        written = []
        threads = [threading.Thread(target=lambda: written.append(write(ledger, "same"))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({each.document.id for each in written}) == 1
        assert sum(not each.already_stored for each in written) == 1

    def test_one_failed_write_does_not_harm_those_beside_it(self, ledger: Ledger) -> None:
        memory(ledger)
        outcomes: list[str] = []

        def one(number: int) -> None:
            try:
                write(ledger, f"{number}", memory="m" if number % 2 else "none")
                outcomes.append("written")
            except NotFound:
                outcomes.append("refused")

        threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused"] * 10 + ["written"] * 10
        assert ledger.get_memory("acme", "m").document_count == 10

    def test_are_listed_oldest_first(self, ledger: Ledger) -> None:
        memory(ledger)
        ids = [write(ledger).document.id for _ in range(5)]
        first = ledger.list_documents("acme", "m", 3, "")
        second = ledger.list_documents("acme", "m", 3, first.next_token)
        assert [item.id for item in (*first.items, *second.items)] == ids
        with pytest.raises(NotFound):
            ledger.list_documents("acme", "none", 3, "")

    def test_a_stage_only_moves_on(self, ledger: Ledger) -> None:
        memory(ledger)
        id_ = write(ledger).document.id
        assert ledger.set_stage("acme", id_, Stage.COMPRESSED)
        assert ledger.set_stage("acme", id_, Stage.SEARCHABLE)
        assert ledger.get_document("acme", "m", id_).stage is Stage.COMPRESSED
        assert ledger.reset_document("acme", id_)
        assert ledger.get_document("acme", "m", id_).stage is Stage.STORED

    def test_spans_are_kept_once_and_read_in_order(self, ledger: Ledger) -> None:
        memory(ledger)
        id_ = write(ledger).document.id
        chunks, passages = [chunk(id_, i) for i in range(3)], [passage(id_, i, i // 2) for i in range(5)]
        assert ledger.add_chunks("acme", id_, chunks[:2], passages[:3])
        assert ledger.add_chunks("acme", id_, chunks, passages)
        assert ledger.chunks("acme", id_) == chunks
        assert ledger.passages("acme", id_, after=1, limit=2) == passages[2:4]
        document = ledger.get_document("acme", "m", id_)
        assert (document.token_count, document.chunk_count, document.passage_count) == (30, 3, 5)
        assert ledger.token_count("acme", ["m", "none", "m"]) == 30
        assert ledger.count_unsearchable("acme", ["m", "none", "m"]) == 1
        assert ledger.set_stage("acme", id_, Stage.SEARCHABLE)
        assert ledger.count_unsearchable("acme", ["m"]) == 0
        wanted = [f"{id_}-4", f"{id_}-0", f"{id_}-9", "nonsense", f"{id_}-00", f"{id_}-²"]
        assert ledger.get_passages("acme", wanted) == {f"{id_}-4": passages[4], f"{id_}-0": passages[0]}
        assert ledger.get_chunks("acme", [(id_, 2), (id_, 7), ("none", 0)]) == {(id_, 2): chunks[2]}
        assert ledger.reset_document("acme", id_)
        assert (ledger.chunks("acme", id_), ledger.passages("acme", id_)) == ([], [])
        assert ledger.token_count("acme", ["m"]) == 0

    def test_embeddings_are_recorded_on_their_chunks(self, ledger: Ledger) -> None:
        memory(ledger)
        id_ = write(ledger).document.id
        ledger.add_chunks("acme", id_, [chunk(id_, 0), chunk(id_, 1)], [])
        done = chunk(id_, 1)
        done = type(done)(**{**_fields(done), "compressor": "c1", "embeddings": "key", "soft_tokens": 16})
        assert ledger.set_embeddings("acme", id_, [done])
        assert ledger.chunks("acme", id_) == [chunk(id_, 0), done]

    def test_what_another_compressor_made_is_found_and_made_anew(self, ledger: Ledger) -> None:
        memory(ledger)
        old, _, young = compressed(ledger, "c1"), compressed(ledger, "c2"), compressed(ledger, "c1", end="")
        assert [each.id for each in ledger.stale_documents("c2", 10)] == [old], "the young one has a job still"
        assert len(ledger.stale_documents("c3", 1)) == 1
        ledger.recompress("acme", old)
        after = ledger.get_document("acme", "m", old)
        assert after.stage is Stage.SEARCHABLE
        job = ledger.get_job("acme", after.job)
        assert (job.kind, job.state, job.payload) == (JobKind.COMPRESS, JobState.PENDING, {"memory": "m", "document": old})
        assert ledger.stale_documents("c2", 10) == []
        assert ledger.count_recompressing("c2") == 2, "this one, and the one that was on its way already"
        assert ledger.count_recompressing("c1") == 0
        ledger.cancel_job("acme", ledger.get_document("acme", "m", young).job)
        assert ledger.count_recompressing("c2") == 1, "nobody works on the other any more"
        ledger.recompress("acme", old)  # it is on its way
        assert ledger.get_document("acme", "m", old) == after
        ledger.recompress("acme", "nowhere")

    @pytest.mark.parametrize("end", ["cancelled", "dead"])
    def test_a_document_whose_job_came_to_nothing_is_made_anew_too(self, ledger: Ledger, end: str) -> None:
        """After the next change of compressor, or it would never be again."""
        memory(ledger)
        id_ = compressed(ledger, "c1", end=end)
        assert ledger.get_document("acme", "m", id_).stage is Stage.SEARCHABLE
        assert ledger.stale_documents("c1", 10) == [], "it ended under this one: that is for a person to retry"
        assert [each.id for each in ledger.stale_documents("c2", 10)] == [id_]
        ledger.recompress("acme", id_)
        assert ledger.get_job("acme", ledger.get_document("acme", "m", id_).job).state is JobState.PENDING
        assert ledger.stale_documents("c2", 10) == []

    def test_what_is_not_searchable_yet_is_not_made_anew(self, ledger: Ledger) -> None:
        memory(ledger)
        written = write(ledger)
        ledger.cancel_job("acme", written.job.id)
        ledger.recompress("acme", written.document.id)
        assert not ledger.remake("acme", written.document.id, [])
        assert ledger.get_document("acme", "m", written.document.id) == written.document

    def test_lost_embeddings_are_made_again_by_one_job(self, ledger: Ledger) -> None:
        memory(ledger)
        id_ = compressed(ledger, "c1", chunks=3)
        kept, lost, also_lost = ledger.chunks("acme", id_)
        assert ledger.remake("acme", id_, [lost])
        bare = replace(lost, compressor="", embeddings="", soft_tokens=0)
        assert ledger.chunks("acme", id_) == [kept, bare, also_lost]
        document = ledger.get_document("acme", "m", id_)
        job = ledger.get_job("acme", document.job)
        assert (document.stage, job.kind, job.state) == (Stage.SEARCHABLE, JobKind.COMPRESS, JobState.PENDING)
        assert job.payload == {"memory": "m", "document": id_}
        assert not ledger.remake("acme", id_, [also_lost]), "a job is on its way: whoever misses it after that says so again"
        assert ledger.chunks("acme", id_) == [kept, bare, also_lost]
        assert len(ledger.list_jobs("acme", 10, "").items) == 2
        end_job(ledger, job.id, "done")
        assert ledger.remake("acme", id_, [also_lost])
        ledger.delete_document("acme", "m", id_, None)
        assert not ledger.remake("acme", id_, [kept])

    def test_of_many_that_miss_the_same_embeddings_one_makes_the_job(self, ledger: Ledger) -> None:
        memory(ledger)
        id_ = compressed(ledger, "c1")
        lost = ledger.chunks("acme", id_)
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: ledger.remake("acme", id_, lost), range(16)))
        assert made.count(True) == 1
        assert len(ledger.list_jobs("acme", 100, "").items) == 2

    def test_all_documents_of_a_tenant_are_walked_by_id(self, ledger: Ledger) -> None:
        memory(ledger)
        memory(ledger, "n")
        ids = sorted(write(ledger, memory=name).document.id for name in ("m", "n", "m"))
        first = ledger.all_documents("acme", limit=2)
        rest = ledger.all_documents("acme", after=first[-1].id)
        assert [each.id for each in (*first, *rest)] == ids

    def test_kind_and_title_are_kept(self, ledger: Ledger) -> None:
        memory(ledger)
        time = datetime(2020, 1, 1, tzinfo=UTC)
        made = ledger.write_document("acme", "m", "d", Kind.MESSAGES, "t", {"t": time}, "a" * 64, 1, "b", None).document
        assert (made.kind, made.title, made.metadata, made.blob) == (Kind.MESSAGES, "t", {"t": time}, "b")


def compressed(ledger: Ledger, compressor: str, chunks: int = 1, end: str = "done") -> str:
    """A document with compressed embeddings by this compressor. Its job has ended so, or not where that is empty: then, and
    where it came to nothing, it is SEARCHABLE only."""
    written = write(ledger)
    id_ = written.document.id
    made = [replace(chunk(id_, n), compressor=compressor, embeddings=f"key {n}", soft_tokens=16) for n in range(chunks)]
    ledger.add_chunks("acme", id_, [chunk(id_, n) for n in range(chunks)], [])
    ledger.set_embeddings("acme", id_, made)
    ledger.set_stage("acme", id_, Stage.COMPRESSED if end == "done" else Stage.SEARCHABLE)
    if end:
        end_job(ledger, written.job.id, end)
    return id_


def end_job(ledger: Ledger, job: str, end: str) -> None:
    if end == "cancelled":
        ledger.cancel_job("acme", job)
        return
    while (claimed := ledger.claim_job("w", 60)) is not None and claimed.id != job:
        ledger.release_job("acme", claimed.id, "w")
    assert ledger.finish_job("acme", job, "w", {}) if end == "done" else ledger.fail_job("acme", job, "w", "why", None)


def _fields(chunk: object) -> dict[str, object]:
    return {name: getattr(chunk, name) for name in chunk.__dataclass_fields__}  # type: ignore[attr-defined]
