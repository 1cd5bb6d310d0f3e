"""What a new version takes over from the old one, on a real ledger and real blobs; and the ERASE job that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memoryd import core, forget, jobs
from memoryd.compress import codec
from memoryd.compress.chunker import ChunkText
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.compress.job import CompressJob
from memoryd.compress.rechunk import rechunk_text
from memoryd.compress.reuse import old_chunks, reuse
from memoryd.core import Document, Job, JobKind, JobState, Kind
from memoryd.errors import Unavailable
from memoryd.forget import EraseJob
from memoryd.jobs import GiveWay, JobRunner, Progress, Stopped
from memoryd.learn.eraser import AdapterEraser
from memoryd.learn.runs import Runs
from memoryd.recall.adapters import AdapterStore
from memoryd.recall.embeddings import EmbeddingStore
from memoryd.recall.underway import AnswersUnderWay
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger
from memoryd.store.texts import Texts
from tests.unit.learning_parts import models
from tests.unit.test_chunker import SMALL, Words
from tests.unit.test_rechunk import prose

TENANT, MEMORY, FINGERPRINT = "red", "m", "f" * 64
OLD, NEW = prose(range(300)), prose([*range(100), 9999, *range(100, 300)])


class Lab:
    """A ledger and blobs, and documents as their jobs leave them."""

    def __init__(self, folder: Path) -> None:
        self.ledger = SqlLedger(f"sqlite:///{folder / 'ledger.db'}")
        self.blobs = FsspecBlobs(str(folder / "blobs"))
        self.ledger.ensure_tenant(TENANT)
        self.ledger.create_memory(TENANT, MEMORY, "", "", {}, None)

    def write(self, text: str, replaces: str = "") -> Document:
        """Written, and cut into chunks."""
        data, id_ = text.encode(), core.new_id()
        key = core.document_prefix(TENANT, MEMORY, id_) + "text"
        self.blobs.put(TENANT, key, data)
        digest = hashlib.sha256(data).hexdigest()
        self.ledger.write_document(TENANT, MEMORY, id_, Kind.TEXT, "", {}, digest, len(data), key, None, replaces)
        old = old_chunks(self.ledger, TENANT, replaces, FINGERPRINT)
        cut: list[ChunkText] = list(rechunk_text(id_, [text], Words(), Words(), old, SMALL))
        passages = [p for c in cut for p in c.passages]
        assert self.ledger.add_chunks(TENANT, id_, [c.chunk for c in cut], passages)
        return self.ledger.get_document(TENANT, MEMORY, id_)

    def compress(self, document: Document, fingerprint: str = FINGERPRINT) -> None:
        for chunk in self.chunks(document):
            made = CompressedEmbeddings(chunk.sha256.encode()[:16], 2)
            key = core.embeddings_key(document, fingerprint, chunk.ordinal)
            data = codec.encode(made, fingerprint=fingerprint, chunk_sha256=chunk.sha256)
            self.blobs.put(TENANT, key, data)
            row = replace(chunk, compressor=fingerprint, embeddings=key, soft_tokens=made.k)
            assert self.ledger.set_embeddings(TENANT, document.id, [row])

    def chunks(self, document: Document) -> list[core.Chunk]:
        return list(self.ledger.chunks(TENANT, document.id, limit=1000))

    def progress(self, document: Document) -> Progress:
        return Progress(self.ledger.get_job(TENANT, document.job), lambda: None)

    async def reuse(self, document: Document, old: Document, fingerprint: str = FINGERPRINT) -> int:
        progress = self.progress(document)
        await reuse(self.ledger, self.blobs, document, old.id, fingerprint, progress)
        return int(progress.job.receipt["reused"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.ledger.close()


async def test_only_changed_chunks_are_left_to_compress(lab: Lab) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    before = {c.sha256: c for c in lab.chunks(old)}
    new = lab.write(NEW, replaces=old.id)
    reused = await lab.reuse(new, old)
    chunks = lab.chunks(new)
    made = [c for c in chunks if c.compressor]
    assert reused == len(made)
    assert {c.sha256 for c in made} == before.keys() & {c.sha256 for c in chunks}
    assert len(chunks) - reused <= 2 < len(chunks)
    lab.blobs.delete_prefix(TENANT, core.document_prefix(TENANT, MEMORY, old.id))  # as ERASE does
    for chunk in made:
        assert chunk.embeddings == core.embeddings_key(new, FINGERPRINT, chunk.ordinal)
        stored = codec.decode(lab.blobs.get(TENANT, chunk.embeddings), FINGERPRINT, chunk_sha256=chunk.sha256)
        assert (stored.data, chunk.soft_tokens) == (chunk.sha256.encode()[:16], 2)
    assert await lab.reuse(new, old) == reused, "a job that was cut off here counts what is there already"


async def test_what_another_compressor_made_is_not_reused_nor_kept_as_a_chunk(lab: Lab) -> None:
    old = lab.write(OLD)
    lab.compress(old, "a" * 64)
    new = lab.write(NEW, replaces=old.id)
    assert await lab.reuse(new, old) == 0
    assert [c.compressor for c in lab.chunks(new)] == [""] * new.chunk_count


async def test_what_is_damaged_or_gone_is_left_to_compress(lab: Lab) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    keys = [c.embeddings for c in lab.chunks(old)]
    new = lab.write(NEW, replaces=old.id)
    lab.blobs.put(TENANT, keys[0], lab.blobs.get(TENANT, keys[0])[:-1] + b"x")  # corrupted
    lab.blobs.put(TENANT, keys[1], lab.blobs.get(TENANT, keys[2]))  # of another chunk
    lab.blobs.delete_prefix(TENANT, keys[3])
    reused = await lab.reuse(new, old)
    assert [bool(c.compressor) for c in lab.chunks(new)[:5]] == [False, False, True, False, True]
    assert reused >= new.chunk_count - 5


async def test_an_erase_that_was_faster_leaves_nothing_to_reuse(lab: Lab) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    new = lab.write(NEW, replaces=old.id)
    lab.ledger.erase_rows(TENANT, MEMORY, [old.id])
    assert await lab.reuse(new, old) == 0


async def test_a_new_version_that_is_deleted_meanwhile_stops(lab: Lab) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    new = lab.write(NEW, replaces=old.id)
    progress, deleted = lab.progress(new), lab.ledger.set_embeddings

    def delete_first(*arguments: Any) -> bool:
        lab.ledger.delete_document(TENANT, MEMORY, new.id, None)
        return deleted(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.ledger, "set_embeddings", delete_first)
        with pytest.raises(Stopped):
            await reuse(lab.ledger, lab.blobs, new, old.id, FINGERPRINT, progress)


async def test_it_gives_way_and_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    new = lab.write(NEW, replaces=old.id)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "SLICE_SECONDS", -1.0)
        with pytest.raises(GiveWay):
            await lab.reuse(new, old)
    done = sum(bool(c.compressor) for c in lab.chunks(new))
    assert 0 < done < new.chunk_count - 2
    assert await lab.reuse(new, old) >= new.chunk_count - 2


async def test_a_new_version_of_any_length_gets_to_its_index_however_short_a_slice_is(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = lab.write(OLD)
    lab.compress(old)
    new = lab.write(NEW, replaces=old.id)
    monkeypatch.setattr(jobs, "SLICE_SECONDS", -1.0)

    async def add(*_: Any) -> int:
        raise Stopped  # the next stage has begun

    indexer: Any = SimpleNamespace(add=add)
    compressing = CompressJob(lab.ledger, lab.blobs, indexer, models(), Texts(lab.ledger, lab.blobs), "bfloat16")
    job, slices = replace(lab.ledger.get_job(TENANT, new.job), stage="reuse"), 0  # it is cut already
    while job.stage == "reuse" and slices < new.chunk_count:
        progress = Progress(job, lambda: None)
        with contextlib.suppress(GiveWay, Stopped):
            await compressing(job, progress)
        job, slices = progress.job, slices + 1
    assert (job.stage, slices > 1) == ("index", True)
    assert job.receipt["reused"] == sum(bool(c.compressor) for c in lab.chunks(new)) >= new.chunk_count - 2


# --- the ERASE job of what was replaced ---


class Nothing:
    """An index and a cache that hold nothing."""

    def delete_document(self, tenant: str, memory: str, document: str) -> int:
        return 0

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        return 0


def erase_job(lab: Lab, runner: JobRunner, runs: Path) -> EraseJob:
    nothing: Any = Nothing()
    eraser = AdapterEraser(AdapterStore(lab.ledger, lab.blobs, nothing, models()), lab.blobs, nothing)
    embeddings = EmbeddingStore(lab.ledger, lab.blobs, nothing)
    parts = (embeddings, eraser, Runs(lab.ledger, eraser, runs), runner, AnswersUnderWay())
    return EraseJob(lab.ledger, lab.blobs, nothing, nothing, *parts)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # of the ledger, which has no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["goes on", "fails", "is cancelled", "is deleted", "takes too long"])
async def test_the_old_version_is_erased_when_it_has_been_reused_or_will_not_be(
    lab: Lab, end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    old = lab.write(OLD)
    lab.compress(old)
    new = lab.write(NEW, replaces=old.id)
    [erase] = [job for job in lab.ledger.list_jobs(TENANT, 10, "").items if job.kind is JobKind.ERASE]
    began, go_on = asyncio.Event(), asyncio.Event()

    async def compress(job: Job, progress: Progress) -> Mapping[str, str | int]:
        began.set()
        progress.show("chunk", 1, 2)
        await go_on.wait()
        if end == "fails":
            raise Unavailable("the disk is full, for a long time")
        progress.step("index", 0, 0)
        await asyncio.Event().wait()  # the worker is down: indexing takes for ever
        return {}

    runner = JobRunner(lab.ledger, slots=4, lease_seconds=10.0, attempts=3)
    erasing = erase_job(lab, runner, tmp_path / "runs")
    running = asyncio.create_task(runner.run({JobKind.COMPRESS: compress, JobKind.ERASE: erasing}))
    try:
        await began.wait()
        await asyncio.sleep(0.5)  # it looks again and again
        waiting = lab.ledger.get_job(TENANT, erase.id)
        assert (waiting.state.ended, waiting.error) == (False, "")
        assert lab.ledger.deleted_chunks(TENANT, old.id)
        if end == "is cancelled":
            await runner.cancel(TENANT, new.job)
        if end == "takes too long":
            monkeypatch.setattr(forget, "_PATIENCE_SECONDS", 0.1)
            await until(lambda: lab.ledger.get_job(TENANT, erase.id).state.ended)
        if end == "is deleted":
            lab.ledger.delete_document(TENANT, MEMORY, new.id, None)
        go_on.set()
        await until(lambda: lab.ledger.get_job(TENANT, erase.id).state.ended)
        done = lab.ledger.get_job(TENANT, erase.id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)
        blobs = old.chunk_count + 1
        assert done.receipt == {"documents": 1, "blobs": blobs, "vectors": 0, "cache_keys": 0, "adapters": 0}
        assert [document for _, document in lab.blobs.documents(TENANT)] == [new.id]
    finally:
        running.cancel()
        for task in list(runner._running):
            task.cancel()
        await asyncio.wait([running, *runner._running])
