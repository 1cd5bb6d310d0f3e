"""Compressed embeddings through the tiers, on a real ledger and real blobs: what is lost is made again, by one job."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memoryd.compress import codec
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.core import Chunk, Document, JobKind, JobState, Stage
from memoryd.errors import Unavailable
from memoryd.recall import embeddings
from memoryd.recall.embeddings import EmbeddingStore, cache_prefix
from tests.unit.test_adapter_choice import MemoryCache
from tests.unit.test_rechunk import prose
from tests.unit.test_reuse import FINGERPRINT, MEMORY, OLD, TENANT, Lab


class NoCache:
    def get_many(self, tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        return {}

    def put(self, tenant: str, key: str, data: bytes) -> None:
        pass


class Shelf:
    """A compressed document, and what loads its embeddings."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.id = self.lab.write(OLD).id
        self.lab.compress(self.document)
        self.lab.ledger.set_stage(TENANT, self.id, Stage.COMPRESSED)
        self.end_job()
        cache: Any = NoCache()
        self.store = EmbeddingStore(self.lab.ledger, self.lab.blobs, cache)

    @property
    def document(self) -> Document:
        return self.lab.ledger.get_document(TENANT, MEMORY, self.id)

    @property
    def chunks(self) -> list[Chunk]:
        return self.lab.chunks(self.document)

    def end_job(self) -> None:
        job = self.lab.ledger.claim_job("w", 60)
        assert job is not None
        self.lab.ledger.finish_job(TENANT, job.id, "w", {})

    def load(self, store: EmbeddingStore | None = None) -> tuple[set[int], Mapping[str, int]]:
        """The ordinals of what was found, and the tiers that it came from."""
        found, tiers = (store or self.store).load(TENANT, self.chunks, FINGERPRINT)
        return {ordinal for _, ordinal in found}, tiers

    def jobs(self) -> list[JobState]:
        """Of its COMPRESS jobs, the oldest first."""
        found = self.lab.ledger.list_jobs(TENANT, 100, "").items
        return [job.state for job in found if job.kind is JobKind.COMPRESS]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize("how", ["deleted", "other bytes", "another compressor's"])
def test_what_blobs_have_lost_is_made_again(shelf: Shelf, how: str) -> None:
    every, lost = {chunk.ordinal for chunk in shelf.chunks}, shelf.chunks[1]
    if how == "deleted":
        shelf.lab.blobs.delete_prefix(TENANT, lost.embeddings)
    else:
        made = CompressedEmbeddings(bytes(16), 2)
        data = codec.encode(made, fingerprint="other", chunk_sha256=lost.sha256)
        shelf.lab.blobs.put(TENANT, lost.embeddings, data if how == "another compressor's" else data[:-1] + b"\1")
    found, _ = shelf.load()
    assert found == every - {lost.ordinal}, "the others are read as before"
    bare = shelf.chunks[1]
    assert (bare.compressor, bare.embeddings, bare.soft_tokens) == ("", "", 0)
    assert shelf.document.stage is Stage.SEARCHABLE
    assert shelf.jobs() == [JobState.SUCCEEDED, JobState.PENDING]
    for _ in range(3):
        shelf.load()
    assert len(shelf.jobs()) == 2, "it is asked for once"
    shelf.lab.compress(shelf.document)
    shelf.end_job()
    assert shelf.load()[0] == every


def test_what_is_lost_while_a_job_runs_is_made_again_after_it(shelf: Shelf) -> None:
    first, second, *_ = shelf.chunks
    shelf.lab.blobs.delete_prefix(TENANT, first.embeddings)
    shelf.load()
    shelf.lab.blobs.delete_prefix(TENANT, second.embeddings)
    cache: Any = NoCache()
    new = EmbeddingStore(shelf.lab.ledger, shelf.lab.blobs, cache)
    shelf.load(new)
    assert len(shelf.jobs()) == 2, "the job may have passed it already"
    shelf.end_job()
    shelf.load(new)
    assert shelf.jobs() == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.PENDING]
    assert shelf.chunks[1].compressor == ""


def test_an_answer_does_not_fail_where_that_cannot_be_written_down(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object) -> bool:
        raise Unavailable("the database restarts")

    every, lost = {chunk.ordinal for chunk in shelf.chunks}, shelf.chunks[0]
    shelf.lab.blobs.delete_prefix(TENANT, lost.embeddings)
    monkeypatch.setattr(shelf.lab.ledger, "remake", down)
    assert shelf.load()[0] == every - {lost.ordinal}
    monkeypatch.undo()
    shelf.load()
    assert len(shelf.jobs()) == 2, "the next one sees to it"


def test_two_that_miss_the_same_chunks_at_once_take_the_room_of_one(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that there is just fits, all of it is held afterwards."""
    count = len(shelf.chunks)
    both, get = threading.Barrier(2), shelf.lab.blobs.get

    def get_together(tenant: str, key: str) -> bytes:
        both.wait(60)
        return get(tenant, key)

    cache: Any = NoCache()
    store = EmbeddingStore(shelf.lab.ledger, shelf.lab.blobs, cache, process_bytes=16 * count)
    monkeypatch.setattr(shelf.lab.blobs, "get", get_together)
    with ThreadPoolExecutor(2) as pool:
        for _, tiers in pool.map(shelf.load, [store, store]):
            assert tiers == {"blobs": count}
    assert shelf.load(store)[1] == {"process": count}
    store.forget(TENANT, shelf.id)
    monkeypatch.undo()
    other = shelf.lab.write(prose(range(300, 600)))
    shelf.lab.compress(other)
    chunks = shelf.lab.chunks(other)[:count]
    assert len(chunks) == count
    for tier in ("blobs", "process"):
        assert store.load(TENANT, chunks, FINGERPRINT)[1] == {tier: count}, "the room of what is forgotten is another's"


@pytest.mark.parametrize("moment", ["before blobs", "after blobs", "in the cache", "after the cache"])
def test_a_document_that_is_erased_while_it_is_loaded_is_kept_nowhere(
    shelf: Shelf, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ERASE has it forgotten, then empties the cache: what an answer had begun to load before must not stay."""
    cache, get = MemoryCache(), shelf.lab.blobs.get
    store = EmbeddingStore(shelf.lab.ledger, shelf.lab.blobs, cache)
    chunks = shelf.chunks

    def erase() -> None:
        store.forget(TENANT, shelf.id)
        cache.delete_prefix(TENANT, cache_prefix(shelf.id))

    def get_late(tenant: str, key: str) -> bytes:
        if moment == "before blobs":
            erase()
        data = get(tenant, key)
        if moment == "after blobs":
            erase()
        return data

    def get_cached(tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        cached = MemoryCache.get_many(cache, tenant, keys)
        erase()
        return cached

    if moment == "in the cache":
        cache.before_put = erase
    elif moment == "after the cache":
        shelf.load(store)
        store = EmbeddingStore(shelf.lab.ledger, shelf.lab.blobs, cache)  # holds nothing
        monkeypatch.setattr(cache, "get_many", get_cached)
    else:
        monkeypatch.setattr(shelf.lab.blobs, "get", get_late)
    store.load(TENANT, chunks, FINGERPRINT)
    assert cache.held == {}
    monkeypatch.undo()
    assert store.load(TENANT, chunks, FINGERPRINT)[1] == {"blobs": len(chunks)}, "the process holds none of it"
    assert cache.held == {}


def test_only_the_documents_forgotten_last_are_remembered(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_FORGOTTEN", 3)
    cache = MemoryCache()
    store = EmbeddingStore(shelf.lab.ledger, shelf.lab.blobs, cache)
    for document in ("a", shelf.id, "b", "c", shelf.id):
        store.forget(TENANT, document)
    shelf.load(store)
    assert cache.held == {}, "it was forgotten again just now"
    for document in ("d", "e", "f"):
        store.forget(TENANT, document)
    assert len(store._forgotten) == 3
    shelf.load(store)
    assert cache.held
