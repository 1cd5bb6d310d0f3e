"""100 MB in one document: taken, acknowledged, in nobody's way, and gone again when it is deleted."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

import psutil
import pytest
from memoryd_client import Client, JobState, NotFound, ResourceExhausted, Stage

from tests.integration.conftest import MAX_DOCUMENT_BYTES, Keyed
from tests.integration.support import until

BLOCK = b"".join(b"Line %06d of a very long document about nothing at all.\n" % n for n in range(10_000))


class Endless(io.RawIOBase, BinaryIO):  # type: ignore[misc]
    """A file of so many bytes that takes no room: BLOCK, over and over."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        data = BLOCK[: min(self._left, size if size >= 0 else self._left, len(BLOCK))]
        self._left -= len(data)
        self.sha256.update(data)
        return data


@pytest.mark.timeout(600)
def test_100_mb_are_taken_without_being_held_in_memory_and_hold_up_nobody(keyed: Keyed, red: Client) -> None:
    assert keyed.daemon.process is not None
    daemon = psutil.Process(keyed.daemon.process.pid)
    large, small = red.memory("large", create=True), red.memory("small", create=True)
    small.write("Something to warm up with.").wait()
    before = daemon.memory_info().rss

    file = Endless(MAX_DOCUMENT_BYTES)
    written = large.upload(file, title="large")
    assert (written.document.size_bytes, written.document.stage) == (MAX_DOCUMENT_BYTES, Stage.STORED)
    assert written.document.sha256 == file.sha256.hexdigest()
    assert daemon.memory_info().rss - before < MAX_DOCUMENT_BYTES // 2

    until(lambda: red.jobs.get(written.job).done > 0, "it is being chunked")
    for number in range(3):
        small.write(f"The ferry number {number} leaves at nine.").wait()
    assert large.documents.get(written.document).stage is Stage.STORED  # they did not wait for it
    assert small.search("ferry number 2", top_k=1)[0].text.startswith("The ferry number 2")
    assert daemon.memory_info().rss - before < MAX_DOCUMENT_BYTES

    job = large.documents.delete(written.document)
    assert red.jobs.get(written.job).state is JobState.CANCELLED
    with pytest.raises(NotFound):
        large.documents.get(written.document)
    assert red.jobs.wait(job).receipt is not None
    blobs = keyed.daemon.data_dir / "blobs"
    assert sum(path.stat().st_size for path in blobs.rglob("*") if path.is_file()) < 1 << 20
    assert red.admin.usage().text_bytes < 1 << 20


def test_one_byte_more_than_a_document_may_have_is_refused_and_nothing_stays(keyed: Keyed, red: Client) -> None:
    memory = red.memory("too-large", create=True)
    with pytest.raises(ResourceExhausted) as caught:
        memory.upload(Endless(MAX_DOCUMENT_BYTES + 1), title="too large")
    assert caught.value.reason == "DOCUMENT_TOO_LARGE"
    assert "max_document_bytes" in caught.value.message
    assert memory.info().document_count == 0
    until(lambda: not list((keyed.daemon.data_dir / "blobs" / ".tmp").iterdir()), "what arrived was removed")
