"""kill -9 at chosen moments: during an answer, during compression, in the middle of an upload; a job that always fails; an
index whose files are broken."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from memoryd_client import Client, Document, JobFailed, JobState, Memory, Stage, Text, Unavailable

from tests.daemon import DaemonProcess
from tests.fault import storm
from tests.fault.waiting import PATIENT, until

pytestmark = pytest.mark.timeout(900)
QUESTION = "What does the ferry carry?"


def prose(sentences: int, subject: str) -> str:
    return "\n".join(f"{subject} number {n} carries {n * 31} barrels of cider to the far bank." for n in range(sentences))


def embeddings_of(daemon: DaemonProcess, document: Document) -> dict[Path, int]:
    """The files of a document's compressed embeddings, and when each was written."""
    folder = daemon.data_dir / "blobs" / "default" / document.name.split("/")[1] / document.id
    return {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}


def kill_worker(daemon: DaemonProcess) -> None:
    daemon.child("memoryd.worker").kill()


def kill_milvus(daemon: DaemonProcess) -> None:
    daemon.child("milvus_lite").kill()


def kill_daemon(daemon: DaemonProcess) -> None:
    """And see that nothing of it is left."""
    assert daemon.process is not None
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    assert len(children) >= len(storm.CHILDREN)
    daemon.kill()
    _, orphans = psutil.wait_procs(children, timeout=30)
    assert orphans == []


@pytest.mark.parametrize("kill", [kill_worker, kill_daemon])
def test_an_answer_that_is_cut_off_says_so_and_the_next_one_works(
    fragile: DaemonProcess, notes: Memory, kill: Callable[[DaemonProcess], None]
) -> None:
    notes.write(prose(8, "Ferry")).wait(Stage.SEARCHABLE)
    with Client(fragile.target) as client:
        events = iter(client.answer([notes.name], QUESTION, max_tokens=3000, timeout=600))
        assert any(isinstance(event, Text) for event in events), "the answer has begun"
        kill(fragile)
        with pytest.raises(Unavailable) as cut:
            list(events)
    assert cut.value.message
    if kill is kill_daemon:
        fragile.start()
    else:
        assert "worker" in cut.value.message
    with Client(fragile.target, retry=PATIENT) as client:
        until(lambda: answers(client, notes), "no answer works any more", seconds=600)


def answers(client: Client, memory: Memory) -> bool:
    """Whether an answer comes to its end: while the worker restarts, its sources may come and then no text."""
    try:
        answer = client.answer([memory.name], QUESTION, max_tokens=8, timeout=600)
        return answer.usage.output_tokens > 0 and bool(answer.sources)
    except Unavailable:
        return False


def test_compression_goes_on_where_a_killed_worker_left_it(fragile: DaemonProcess, notes: Memory) -> None:
    for attempt in range(3):  # the kill may come too late
        document = notes.write(prose(700, f"Barge {attempt}")).wait(Stage.SEARCHABLE)
        until(lambda document=document: bool(embeddings_of(fragile, document)), "nothing is compressed")  # type: ignore[misc]
        kill_worker(fragile)
        before = embeddings_of(fragile, document)
        if notes.documents.get(document).stage < Stage.COMPRESSED:
            break
    else:
        pytest.fail("compression was always faster than the kill")
    done = notes.documents.wait(document, Stage.COMPRESSED)
    after = embeddings_of(fragile, document)
    assert 0 < len(before) < done.chunk_count == len(after)
    assert {path: after[path] for path in before} == before, "what was compressed before is not made again"


class Interrupted(io.BytesIO):
    """Calls `interrupt` once, when it has been read to a half."""

    def __init__(self, data: bytes, interrupt: Callable[[], None]) -> None:
        super().__init__(data)
        self._half = len(data) // 2
        self._interrupt: Callable[[], None] | None = interrupt

    def read(self, size: int | None = -1, /) -> bytes:
        if self._interrupt is not None and self.tell() >= self._half:
            interrupt, self._interrupt = self._interrupt, None
            interrupt()
        return super().read(size)


def test_an_upload_that_a_kill_cuts_in_two_is_stored_once_or_not_at_all(fragile: DaemonProcess, notes: Memory) -> None:
    data = prose(40_000, "Steamer").encode()
    notes.info()  # creates it
    blobs = fragile.data_dir / "blobs"
    seen: list[object] = []

    def arriving() -> bool:
        return any(p.stat().st_size > 0 for p in (blobs / ".tmp").iterdir())

    def interrupt() -> None:
        until(arriving, "no byte of the upload arrives")
        fragile.kill()
        with storm.ledger_of(fragile.data_dir) as ledger:
            rows = ledger.execute("SELECT count(*) FROM documents WHERE memory = ?", (notes.id,)).fetchone()[0]
        seen.extend([rows, (blobs / "default" / notes.id).exists()])
        fragile.start(wait=False)

    written = notes.upload(Interrupted(data, interrupt), title="steamers")
    assert seen == [0, False], "nothing of it is stored when half of it has come"
    assert written.document.sha256 == hashlib.sha256(data).hexdigest()
    assert [d.name for d in notes.documents.list()] == [written.document.name]
    assert len(list((blobs / "default" / notes.id).rglob("text-*"))) == 1
    notes.documents.delete(written.document)  # it is large: the tests that follow need not wait for it


@pytest.fixture
def stalled_worker(fragile: DaemonProcess) -> Iterator[psutil.Process]:
    """The worker, stopped: jobs wait. Its supervisor takes some 40 s to lose patience."""
    worker = fragile.child("memoryd.worker")
    worker.send_signal(signal.SIGSTOP)
    yield worker
    if worker.is_running():
        worker.send_signal(signal.SIGCONT)


def test_a_job_that_always_fails_is_dead_with_its_reason_until_a_person_retries_it(
    fragile: DaemonProcess, patient: Client, notes: Memory, stalled_worker: psutil.Process
) -> None:
    notes.write(prose(8, "Tug"))  # occupies the only slot
    poisoned = notes.write(prose(8, "Dinghy"))
    folder = fragile.data_dir / "blobs" / "default" / notes.id / poisoned.document.id
    (text,) = folder.glob("text-*")
    whole = text.read_bytes()
    text.write_bytes(b"d" + whole[1:])
    stalled_worker.send_signal(signal.SIGCONT)

    with pytest.raises(JobFailed) as failed:
        poisoned.wait(Stage.COMPRESSED)
    dead = failed.value.job
    assert (dead.state, dead.attempts, dead.target) == (JobState.DEAD, 2, poisoned.document.name)
    assert "checksum" in dead.error
    assert dead.name in {j.name for j in patient.jobs.list() if j.state is JobState.DEAD}
    served = {s.document for s in patient.search([notes.name], "dinghy")}
    assert poisoned.document.name not in served, "what does not match its checksum is not served"

    text.write_bytes(whole)
    patient.jobs.retry(dead)
    assert poisoned.wait(Stage.COMPRESSED).chunk_count > 0
    assert patient.jobs.get(dead).state is JobState.SUCCEEDED


@pytest.mark.parametrize("kill", [kill_daemon, kill_milvus])
def test_an_index_whose_files_are_broken_is_rebuilt(
    fragile: DaemonProcess, notes: Memory, kill: Callable[[DaemonProcess], None]
) -> None:
    """While the daemon is down, and while it runs: the index is only a copy."""
    notes.write(prose(60, "Raft")).wait(Stage.COMPRESSED)
    kill(fragile)
    files = [p for p in (fragile.data_dir / "milvus").rglob("*") if p.is_file()]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    if kill is kill_daemon:
        fragile.start()
    until(lambda: raft_is_found(notes), "the index is not rebuilt", seconds=600)


def raft_is_found(memory: Memory) -> bool:
    try:
        found = memory.search("Raft number 31 carries 961 barrels", top_k=3)
    except Unavailable:
        return False
    return any("Raft number 31 " in source.text for source in found)
