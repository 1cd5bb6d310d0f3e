"""Many writers at once, and writes that race with deletes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from memoryd_client import AsyncClient

from memoryd import core
from memoryd.errors import Unavailable
from memoryd.forget import owns, reclaim
from memoryd.learn.runs import Runs
from memoryd.store.base import Written
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger
from memoryd.write import DocumentWriter
from tests.daemon import DaemonProcess

pytestmark = pytest.mark.timeout(900)
WRITERS = 200
TENANT, MEMORY = core.DEFAULT_TENANT, "notes"


async def test_200_concurrent_writers_lose_nothing(fragile: DaemonProcess) -> None:
    texts = [f"Writer {n} says that the number of the day is {n * 7919}." for n in range(WRITERS)]
    async with AsyncClient(fragile.target, timeout=None) as client:
        memory = client.memory("crowd", create=True)
        await memory.info()

        async def write(n: int) -> str:
            return (await memory.write(texts[n], title=str(n), request_id=f"crowd-{n}")).document.name

        names = await asyncio.gather(*(write(n) for n in range(WRITERS)))
        again = await asyncio.gather(*(write(n) for n in range(WRITERS)))
        held = {d.name: d async for d in memory.documents.list()}
    assert len(set(names)) == WRITERS
    assert again == names
    assert held.keys() == set(names)
    for name, text in zip(names, texts, strict=True):
        assert held[name].sha256 == hashlib.sha256(text.encode()).hexdigest()


async def test_one_content_from_200_writers_is_one_document(fragile: DaemonProcess) -> None:
    async with AsyncClient(fragile.target, timeout=None) as client:
        memory = client.memory("chorus", create=True)
        await memory.info()
        written = await asyncio.gather(*(memory.write("All of us say the same thing.") for _ in range(WRITERS)))
        held = [d.name async for d in memory.documents.list()]
    assert {w.document.name for w in written} == set(held)
    assert len(held) == 1
    assert Counter(w.already_stored for w in written) == {True: WRITERS - 1, False: 1}
    texts = list((fragile.data_dir / "blobs" / TENANT / "chorus").rglob("text-*"))
    assert len(texts) == 1, "the bytes of repeats are removed again"


def test_a_write_survives_the_delete_of_its_twin(tmp_path: Path) -> None:
    """The same content is deleted while it is written again: the new document has its bytes, and the old one's are its own."""

    class Raced(SqlLedger):
        twin = ""

        def write_document(self, *args: object, **kwargs: object) -> Written:
            if self.twin:
                self.delete_document(TENANT, MEMORY, self.twin, None)
            return super().write_document(*args, **kwargs)  # type: ignore[arg-type]

    ledger, blobs = Raced(f"sqlite:///{tmp_path / 'ledger.db'}"), FsspecBlobs(str(tmp_path / "blobs"))
    with contextlib.closing(ledger):
        ledger.ensure_tenant(TENANT)
        ledger.create_memory(TENANT, MEMORY, "", "", {}, None)
        writer = DocumentWriter(ledger, blobs, 1 << 20)
        first = writer.write(TENANT, MEMORY, core.Kind.TEXT, b"the same text", "", {}, None).document
        ledger.twin = first.id
        second = writer.write(TENANT, MEMORY, core.Kind.TEXT, b"the same text", "", {}, None).document
    assert second.id != first.id
    assert blobs.get(TENANT, second.blob, second.sha256) == b"the same text"


def test_a_ledger_owns_no_blobs_of_another(tmp_path: Path) -> None:
    """A daemon that is started on a new ledger, by mistake say, must not take all texts for leftovers."""
    blobs = FsspecBlobs(str(tmp_path / "blobs"))
    with (
        contextlib.closing(SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger,
        contextlib.closing(SqlLedger(f"sqlite:///{tmp_path / 'other.db'}")) as other,
        contextlib.closing(SqlLedger(f"sqlite:///{tmp_path / 'late.db'}")) as late,
    ):
        for each in (ledger, other, late):
            each.ensure_tenant(core.DEFAULT_TENANT)
            each.create_memory(core.DEFAULT_TENANT, MEMORY, "", "", {}, None)
        DocumentWriter(ledger, blobs, 1 << 20).write(core.DEFAULT_TENANT, MEMORY, core.Kind.TEXT, b"text", "", {}, None)
        assert not owns(late, blobs), "nothing says whose they are, and it knows none of them"
        assert owns(ledger, blobs)
        DocumentWriter(other, blobs, 1 << 20).write(core.DEFAULT_TENANT, MEMORY, core.Kind.TEXT, b"more", "", {}, None)
        assert not owns(other, blobs)
        assert owns(ledger, blobs)


def runs_of(ledger: SqlLedger, folder: Path) -> Runs:
    eraser: Any = None  # nothing is erased with a run here
    return Runs(ledger, eraser, folder / "learning")


def test_bytes_without_a_row_are_reclaimed(tmp_path: Path) -> None:
    """A commit whose outcome is unknown leaves its bytes; so does a kill before it."""

    class Unsure(SqlLedger):
        fails = False

        def write_document(self, *args: object, **kwargs: object) -> Written:
            if self.fails:
                raise Unavailable("the connection broke")
            return super().write_document(*args, **kwargs)  # type: ignore[arg-type]

    ledger, blobs = Unsure(f"sqlite:///{tmp_path / 'ledger.db'}"), FsspecBlobs(str(tmp_path / "blobs"))
    runs = runs_of(ledger, tmp_path)
    with contextlib.closing(ledger):
        ledger.ensure_tenant(TENANT)
        ledger.create_memory(TENANT, MEMORY, "", "", {}, None)
        writer = DocumentWriter(ledger, blobs, 1 << 20)
        kept, deleted = (
            writer.write(TENANT, MEMORY, core.Kind.TEXT, text, "", {}, None).document for text in (b"kept", b"deleted")
        )
        ledger.delete_document(TENANT, MEMORY, deleted.id, None)
        ledger.fails = True
        with pytest.raises(Unavailable):
            writer.write(TENANT, MEMORY, core.Kind.TEXT, b"lost", "", {}, None)
        held = {document for _, document in blobs.documents(TENANT)}
        assert len(held) == 3
        assert reclaim(ledger, blobs, runs, TENANT, 3600.0) == 0, "a write may be under way"
        assert reclaim(ledger, blobs, runs, TENANT, -1.0) == 1
        assert {document for _, document in blobs.documents(TENANT)} == {kept.id, deleted.id}, "erasing is the ERASE job's"


def test_bytes_of_an_adapter_that_is_judged_are_left_to_its_run(tmp_path: Path) -> None:
    """Its row comes last, and to judge it may take longer than a write ever does."""
    ledger, blobs = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}"), FsspecBlobs(str(tmp_path / "blobs"))
    with contextlib.closing(ledger):
        ledger.ensure_tenant(TENANT)
        runs, judged, lost = runs_of(ledger, tmp_path), core.new_id(), core.new_id()
        job = ledger.add_job(TENANT, core.JobKind.LEARN, "memories/notes", {"memory": MEMORY})
        run = runs.of(job)
        run.name(judged)
        for adapter in (judged, lost):
            blobs.put(TENANT, core.adapter_prefix(TENANT, MEMORY, adapter) + "adapter", b"weights")
        assert reclaim(ledger, blobs, runs, TENANT, -1.0) == 1
        assert list(blobs.documents(TENANT)) == [(MEMORY, judged)]
        run.remove()
        assert reclaim(ledger, blobs, runs, TENANT, -1.0) == 1, "nobody else would"
