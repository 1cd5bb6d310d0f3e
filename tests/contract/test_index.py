"""The index: found by vector and by words, at once, inside tenant and memories only."""

from __future__ import annotations

import threading

import pytest

from memoryd.errors import InvalidArgument
from memoryd.store.base import Index
from tests.contract.rows import index_row as row
from tests.contract.rows import vector


def found(hits: object) -> list[str]:
    return [hit.passage for hit in hits]  # type: ignore[attr-defined]


def test_an_empty_index_finds_nothing(index: Index) -> None:
    assert index.search_dense("acme", ["m"], vector(1.0), 5) == []
    assert index.search_text("acme", ["m"], "anything", 5) == []
    assert index.count("acme") == 0
    assert index.empty("acme")
    assert index.delete_document("acme", "m", "d1") == 0


def test_an_upsert_is_seen_by_the_next_search(index: Index) -> None:
    for number in range(20):
        index.upsert("acme", [row(f"d{number}-0", f"word{number}", vector(*[0.0] * (number % 8), 1.0))])
        assert f"d{number}-0" in found(index.search_dense("acme", ["m"], vector(*[0.0] * (number % 8), 1.0), 20))
        assert found(index.search_text("acme", ["m"], f"word{number}", 20)) == [f"d{number}-0"]


def test_the_nearest_vector_is_first_and_its_score_the_cosine(index: Index) -> None:
    index.upsert("acme", [row("d-0", at=vector(1.0)), row("d-1", at=vector(3.0, 3.0)), row("d-2", at=vector(0.0, 2.0))])
    hits = index.search_dense("acme", ["m"], vector(5.0, 0.1), 3)
    assert found(hits) == ["d-0", "d-1", "d-2"]
    assert [hit.score for hit in hits] == pytest.approx([0.9998, 0.7211, 0.02], abs=1e-3)
    assert (hits[0].document, hits[0].memory) == ("d", "m")
    assert found(index.search_dense("acme", ["m"], vector(5.0), 1)) == ["d-0"]


@pytest.mark.parametrize("flushed", [False, True])
def test_the_best_words_are_first(index: Index, flushed: bool) -> None:
    texts = ["The ship left the harbour.", "A ship, a ship, the ship Argo!", "Nothing of the sort."]
    index.upsert("acme", [row(f"d-{i}", text) for i, text in enumerate(texts)])
    if flushed:
        index.flush()
    hits = index.search_text("acme", ["m"], "Which SHIP?", 5)
    assert found(hits) == ["d-1", "d-0"]
    assert hits[0].score > hits[1].score > 0
    assert found(index.search_text("acme", ["m"], "harbour", 5)) == ["d-0"]


def test_a_second_upsert_replaces_the_first(index: Index) -> None:
    index.upsert("acme", [row("d-0", "before", vector(1.0))])
    index.flush()
    index.upsert("acme", [row("d-0", "after", vector(0.0, 1.0))])
    assert index.count("acme") == 1
    assert not index.empty("acme")
    assert index.empty("nobody")
    assert index.search_text("acme", ["m"], "before", 5) == []
    assert found(index.search_text("acme", ["m"], "after", 5)) == ["d-0"]


def test_only_the_named_memories_are_searched(index: Index) -> None:
    index.upsert("acme", [row(f"d{name}-0", "word", memory=name) for name in ("a", "b", "c")])
    assert set(found(index.search_text("acme", ["a", "c"], "word", 9))) == {"da-0", "dc-0"}
    assert set(found(index.search_dense("acme", ["b"], vector(1.0), 9))) == {"db-0"}
    assert index.search_text("acme", [], "word", 9) == []


def test_few_rows_among_many_are_all_found(index: Index) -> None:
    """An approximate graph with a filter would miss most of them."""
    index.upsert("acme", [row(f"d-{i}", at=vector(1.0, i / 500), memory="big") for i in range(500)])
    index.upsert("acme", [row(f"e-{i}", at=vector(-1.0, i / 10), memory="small") for i in range(5)])
    index.flush()
    assert len(index.search_dense("acme", ["small"], vector(1.0), 5)) == 5


def test_deleted_passages_are_gone_at_once(index: Index) -> None:
    index.upsert("acme", [row(f"{name}-{i}", "word") for name in ("d", "e") for i in range(3)])
    index.flush()
    index.upsert("acme", [row("d-3", "word")])
    assert index.delete_document("acme", "m", "d") == 4
    assert set(found(index.search_text("acme", ["m"], "word", 9))) == {"e-0", "e-1", "e-2"}
    assert len(index.search_dense("acme", ["m"], vector(1.0), 9)) == 3
    assert index.delete_document("acme", "m", "d") == 0
    assert index.delete_memory("acme", "m") == 3
    assert index.count("acme") == 0


@pytest.mark.parametrize(
    "query",
    ["", " ", "the of and", '" or tenant != ""', "'; drop", "\\", "(((", "\0", "\U0001f600", "x" * 100_000, "長い文"],
)
def test_any_query_is_only_words(index: Index, query: str) -> None:
    index.upsert("acme", [row("d-0", "plain")])
    index.upsert("other", [row("d-0", query + " secret")])
    assert index.search_text("acme", ["m"], query, 5) == []


@pytest.mark.parametrize("id_", ['a" or "1" == "1', "a b", "", "é", "a\n", "x" * 200])
def test_an_id_that_could_mean_something_in_a_filter_is_refused(index: Index, id_: str) -> None:
    for call in (
        lambda: index.search_dense(id_, ["m"], vector(1.0), 5),
        lambda: index.search_text("acme", [id_], "word", 5),
        lambda: index.delete_document("acme", "m", id_),
        lambda: index.delete_memory("acme", id_),
        lambda: index.count(id_),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_a_vector_of_another_dimension_is_refused(index: Index) -> None:
    with pytest.raises(InvalidArgument):
        index.upsert("acme", [row("d-0", at=vector(1.0, dim=9))])
    with pytest.raises(InvalidArgument):
        index.search_dense("acme", ["m"], vector(1.0, dim=7), 5)


def test_texts_of_any_length_and_kind_are_kept(index: Index) -> None:
    texts = ["", "\U0001f600" * 10_000, "word " * 20_000, "a\0b"]
    index.upsert("acme", [row(f"d-{i}", text) for i, text in enumerate(texts)])
    assert index.count("acme") == len(texts)
    assert found(index.search_text("acme", ["m"], "word", 5)) == ["d-2"]


def test_writers_at_once_lose_nothing(index: Index) -> None:
    def work(number: int) -> None:
        for i in range(5):
            index.upsert("acme", [row(f"d{number}-{i}", f"word{number}")])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.count("acme") == 40


def test_drop_forgets_all_and_goes_on(index: Index) -> None:
    index.upsert("acme", [row("d-0")])
    index.upsert("other", [row("d-0")])
    index.drop()
    assert (index.count("acme"), index.count("other")) == (0, 0)
    index.upsert("acme", [row("d-1")])
    assert index.count("acme") == 1
