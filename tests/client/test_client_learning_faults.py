"""What the client does when learning calls go wrong: what is repeated, and what an export leaves behind."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import grpc
import pytest
from memoryd_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    Memory,
    NotFound,
    PermissionDenied,
    Retry,
    Unavailable,
    Verdict,
)

from tests.client.fake_daemon import FakeDaemon

ARCHIVE = b"archive" * 1000  # several pieces of the fake's


@pytest.fixture
def notes(faulty: Client) -> Memory:
    return faulty.memory("notes", create=True)


@pytest.fixture
def adapter(fake: FakeDaemon, notes: Memory) -> str:
    notes.info()
    return str(fake.add_adapter(notes.name, ARCHIVE).name)


# retries


def test_what_is_safe_is_repeated(fake: FakeDaemon, notes: Memory, adapter: str) -> None:
    calls = {
        "CreateExamples": lambda: notes.examples.add("When?", "At noon."),
        "GiveFeedback": lambda: notes.feedback("When?", "At noon.", Verdict.GOOD),
        "ListExamples": lambda: list(notes.examples.list()),
        "ExportExamples": lambda: notes.examples.export(io.BytesIO()),
        "StudyMemory": notes.study,
        "LearnMemory": notes.learn,
        "ListAdapters": lambda: list(notes.adapters.list()),
        "GetAdapter": lambda: notes.adapters.get(adapter),
        "ActivateAdapter": lambda: notes.adapters.activate(adapter),
        "ExportAdapter": lambda: notes.adapters.export(adapter, io.BytesIO()),
        "DeleteAdapter": lambda: notes.adapters.delete(adapter),
    }
    for method, call in calls.items():
        fake.faults.fail(method, times=2)
        call()
        seen = fake.faults.of(method)
        assert len(seen) == 3, method
        if hasattr(seen[0].request, "request_id"):
            assert len({one.request.request_id for one in seen}) == 1, method


def test_rolling_back_and_importing_are_never_repeated(fake: FakeDaemon, notes: Memory, adapter: str) -> None:
    fake.faults.fail("RollBackAdapter")
    with pytest.raises(Unavailable):
        notes.adapters.roll_back()
    fake.faults.fail("ImportAdapter")
    with pytest.raises(Unavailable):
        notes.adapters.import_(io.BytesIO(ARCHIVE))
    assert len(fake.faults.of("RollBackAdapter")) == len(fake.faults.of("ImportAdapter")) == 1
    assert list(fake.adapters) == [adapter]


def test_a_delete_whose_response_was_lost_is_done(fake: FakeDaemon, notes: Memory) -> None:
    example = notes.examples.add("When?", "At noon.")
    fake.faults.fail("DeleteExample, done")
    notes.examples.delete(example)
    assert fake.examples == {}
    assert len(fake.faults.of("DeleteExample")) == 2
    with pytest.raises(NotFound):
        notes.examples.delete(example)


def test_a_request_id_of_ones_own_is_sent(fake: FakeDaemon, notes: Memory) -> None:
    notes.examples.add("When?", "At noon.", request_id="mine")
    notes.feedback("When?", "At noon.", Verdict.GOOD, request_id="mine-too")
    assert notes.study(request_id="study").name != notes.learn(request_id="learn").name
    methods = ("CreateExamples", "GiveFeedback", "StudyMemory", "LearnMemory")
    assert [fake.faults.of(m)[0].request.request_id for m in methods] == ["mine", "mine-too", "study", "learn"]


def test_of_many_examples_those_before_a_failure_are_added(fake: FakeDaemon) -> None:
    given = [(f"{n}?", "yes") for n in range(1500)]
    with Client(fake.target, retry=Retry(attempts=1)) as client:
        notes = client.memory("notes", create=True)
        fake.faults.slow("CreateExamples", 0)  # the first call passes
        fake.faults.fail("CreateExamples")
        with pytest.raises(Unavailable):
            notes.examples.add_many(given)
        assert len(fake.examples) == 1000
        assert notes.examples.add_many(given).already_stored == 1000
        assert len(fake.examples) == 1500


# exports


def test_an_export_that_breaks_off_leaves_nothing(fake: FakeDaemon, notes: Memory, adapter: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.tar"
    fake.faults.cut("ExportAdapter", after=2)
    with pytest.raises(Unavailable, match="cut by the test"):
        notes.adapters.export(adapter, path)
    assert list(tmp_path.iterdir()) == []
    assert len(fake.faults.of("ExportAdapter")) == 1, "what broke off is not begun again"
    path.write_bytes(b"as it was")
    fake.faults.cut("ExportAdapter", after=2)
    with pytest.raises(Unavailable):
        notes.adapters.export(adapter, str(path))
    assert path.read_bytes() == b"as it was"
    notes.adapters.export(adapter, path)
    assert path.read_bytes() == ARCHIVE
    assert list(tmp_path.iterdir()) == [path]


async def test_an_export_that_breaks_off_leaves_nothing_on_asyncio(
    fake: FakeDaemon, notes: Memory, adapter: str, tmp_path: Path
) -> None:
    notes.examples.add("When?", "At noon.")
    notes.examples.add("Where?", "To Hvar.")
    async with AsyncClient(fake.target) as client:
        fake.faults.cut("ExportExamples", after=1)
        with pytest.raises(Unavailable):
            await client.memory("notes").examples.export(tmp_path / "examples.jsonl")
        fake.archives[adapter] = ARCHIVE * 1000
        exporting = asyncio.create_task(client.memory("notes").adapters.export(adapter, tmp_path / "adapter.tar"))
        while not fake.faults.of("ExportAdapter"):  # noqa: ASYNC110  # the fake lives in threads
            await asyncio.sleep(0.01)
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        (call,) = fake.faults.of("ExportAdapter")
        assert await asyncio.to_thread(call.cancelled.wait, 10)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


def test_an_export_that_takes_too_long_leaves_nothing(fake: FakeDaemon, notes: Memory, adapter: str, tmp_path: Path) -> None:
    fake.faults.slow("ExportAdapter", 1)
    with pytest.raises(DeadlineExceeded):
        notes.adapters.export(adapter, tmp_path / "adapter.tar", timeout=0.1)
    assert list(tmp_path.iterdir()) == []


class Full(io.RawIOBase):
    """A file that takes a few bytes at a time, and then no more."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)[: min(300, self.room - len(self.taken))]  # type: ignore[call-overload]
        if not part:
            raise OSError("no space left")
        self.taken += part
        return len(part)


def test_a_file_that_takes_its_time_gets_everything(notes: Memory, adapter: str) -> None:
    file = Full(room=1 << 20)
    notes.adapters.export(adapter, file)  # type: ignore[arg-type]
    assert file.taken == ARCHIVE
    assert not file.closed


def test_a_target_that_fails_is_told_as_it_is(fake: FakeDaemon, notes: Memory, adapter: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        notes.adapters.export(adapter, Full(room=2000))  # type: ignore[arg-type]
    assert fake.faults.of("ExportAdapter")[0].cancelled.wait(10)
    with (tmp_path / "text").open("w") as file, pytest.raises(InvalidArgument, match="binary mode"):
        notes.adapters.export(adapter, file)  # type: ignore[arg-type]


def test_a_target_that_can_not_be_is_refused_before_the_call(fake: FakeDaemon, notes: Memory, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        notes.examples.export(tmp_path)
    with pytest.raises(FileNotFoundError):
        notes.examples.export(tmp_path / "nowhere" / "examples.jsonl")
    assert fake.faults.of("ExportExamples") == []


def test_an_export_keeps_a_link(notes: Memory, adapter: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, kept = tmp_path / "adapter.tar", tmp_path / "kept" / "adapter-1.tar"
    link.symlink_to(kept)
    notes.adapters.export(adapter, link)
    assert link.is_symlink()
    assert kept.read_bytes() == ARCHIVE


# imports


def test_an_import_of_a_file_that_is_not_there(fake: FakeDaemon, notes: Memory, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        notes.adapters.import_(tmp_path / "nothing.tar")
    assert fake.faults.of("ImportAdapter") == []


def test_an_import_of_nothing_or_of_text_is_refused(notes: Memory, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="empty"):
        notes.adapters.import_(io.BytesIO())
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file, pytest.raises(InvalidArgument, match="binary mode"):
        notes.adapters.import_(file)  # type: ignore[arg-type]


def test_an_import_that_is_refused_in_the_middle(fake: FakeDaemon, notes: Memory) -> None:
    fake.faults.fail("ImportAdapter", code=grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(PermissionDenied):
        notes.adapters.import_(io.BytesIO(ARCHIVE * 1000))
    assert fake.adapters == {}
