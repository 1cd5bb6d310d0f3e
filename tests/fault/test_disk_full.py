"""A full disk: writes are refused with RESOURCE_EXHAUSTED, nothing half-written is left, work goes on once there is room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from memoryd_client import Client, Document, JobState, Memory, ResourceExhausted, Stage

from tests.daemon import DaemonProcess
from tests.fault.waiting import PATIENT, until

pytestmark = pytest.mark.timeout(900)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all room but so many bytes."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)
    return ballast


def prose(sentences: int) -> str:
    return "\n".join(f"Crate number {n} holds {n * 17} lanterns for the harbour." for n in range(sentences))


def whole(memory: Memory, document: Document, text: str) -> bool:
    return memory.documents.get(document, text=True).text == text


def test_jobs_wait_for_room(tmp_path: Path, tiny_model: Path, disk: Path) -> None:
    """Room for a text, but not for its compressed embeddings: the job is tried until there is, however few its attempts."""
    flags = ("--model", str(tiny_model), "--blob-url", str(disk / "blobs"), "--job-attempts", "2")
    with (
        DaemonProcess(tmp_path / "data", *flags) as daemon,
        Client(daemon.target, timeout=None, retry=PATIENT) as client,
    ):
        memory = client.memory("hold", create=True)
        text = prose(2000)
        before = memory.write("It was there before the disk was full.")
        before.wait(Stage.COMPRESSED)
        ballast = fill(disk, leave=2 * len(text))
        written = memory.write(text)
        until(lambda: client.jobs.get(written.job).attempts > 2, "the disk is not full enough", seconds=600)
        assert client.jobs.get(written.job).state in (JobState.PENDING, JobState.RUNNING)
        with pytest.raises(ResourceExhausted) as refused:
            memory.write("x" * 3 * len(text))
        assert refused.value.reason == "DISK_FULL"
        assert {d.name for d in memory.documents.list()} == {before.document.name, written.document.name}
        assert list((disk / "blobs" / ".tmp").iterdir()) == []
        assert memory.search("Crate number 31", top_k=1), "what is searchable stays so"
        ballast.unlink()
        written.wait(Stage.COMPRESSED)
        assert whole(memory, written.document, text)


def test_a_daemon_survives_a_full_data_directory(tiny_model: Path, disk: Path) -> None:
    """Ledger, blobs, index and logs, all on a disk without room."""
    with (
        DaemonProcess(disk / "data", "--model", str(tiny_model)) as daemon,
        Client(daemon.target, timeout=None, retry=PATIENT) as client,
    ):
        memory = client.memory("hold", create=True)
        texts = {}
        for n in range(3):
            text = prose(20 + n)
            texts[memory.write(text).wait(Stage.COMPRESSED).name] = text
        ballast = fill(disk, leave=0)
        for n in range(5):
            with pytest.raises(ResourceExhausted):
                memory.write(prose(30 + n), request_id=f"crate-{n}")
        assert {d.name for d in memory.documents.list()} == texts.keys()
        for name, text in texts.items():
            assert memory.documents.get(name, text=True).text == text
        ballast.unlink()
        daemon.wait_ready()
        for n in range(5):
            text = prose(30 + n)
            texts[memory.write(text, request_id=f"crate-{n}").wait(Stage.COMPRESSED).name] = text
        assert {d.name for d in memory.documents.list()} == texts.keys()
        for name, text in texts.items():
            assert memory.documents.get(name, text=True).text == text
        assert memory.search("Crate number 3", top_k=1)
        assert daemon.stop() == 0
