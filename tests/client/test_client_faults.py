"""What the client does when things go wrong. Only a fake fails on demand."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from memoryd_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    JobFailed,
    JobState,
    MemorydError,
    NotFound,
    ResourceExhausted,
    Sources,
    Stage,
    Text,
    Unavailable,
)

from memoryd.v1 import jobs_pb2
from tests.client.conftest import FAST
from tests.client.fake_daemon import FakeDaemon


@pytest.fixture
def notes(fake: FakeDaemon, faulty: Client) -> str:
    faulty.memories.create("notes")
    return "notes"


# retries


def test_reads_and_writes_are_repeated_while_the_daemon_is_unavailable(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.fail("Search", times=3)
    assert faulty.memory(notes).search("ferry") == []
    assert len(fake.faults.of("Search")) == 4


def test_a_repeated_write_keeps_its_request_id(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.fail("WriteDocument", times=2)
    faulty.memory(notes).write("text")
    faulty.memory(notes).write("text", request_id="mine")
    ids = [call.request.request_id for call in fake.faults.of("WriteDocument")]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 32
    assert ids[3] == "mine"
    assert len({call.metadata["x-request-id"] for call in fake.faults.of("WriteDocument")}) == 2


def test_what_may_not_be_repeated_is_not(fake: FakeDaemon, faulty: Client) -> None:
    fake.faults.fail("CreateApiKey")
    with pytest.raises(Unavailable):
        faulty.admin.keys.create("default")
    assert len(fake.faults.of("CreateApiKey")) == 1


def test_other_errors_are_not_repeated(fake: FakeDaemon, faulty: Client) -> None:
    fake.faults.fail("ListMemories", code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(ResourceExhausted):
        list(faulty.memories.list())
    assert len(fake.faults.of("ListMemories")) == 1


def test_retries_end(fake: FakeDaemon, faulty: Client) -> None:
    fake.faults.fail("ListMemories", times=9)
    with pytest.raises(Unavailable):
        list(faulty.memories.list())
    assert len(fake.faults.of("ListMemories")) == FAST.attempts


def test_retries_stay_within_the_timeout(fake: FakeDaemon, faulty: Client) -> None:
    fake.faults.slow("ListMemories", 3)
    fake.faults.fail("ListMemories", times=9)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="timeout="):
        list(faulty.memories.list(timeout=0.2))
    assert time.monotonic() - began < 2.5
    assert len(fake.faults.of("ListMemories")) == 1, "a deadline is never repeated"


def test_no_retries_where_none_are_wanted(fake: FakeDaemon) -> None:
    fake.faults.fail("ListMemories")
    with Client(fake.target, retry=None) as client, pytest.raises(Unavailable):
        list(client.memories.list())


# answers


def test_an_answer_is_repeated_before_its_first_event(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.fail("Answer", times=2)
    assert faulty.memory(notes).answer("When?").text == "It leaves at noon."
    assert len(fake.faults.of("Answer")) == 3


def test_an_answer_that_broke_off_is_not_repeated(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.cut("Answer", after=2)
    answer = faulty.memory(notes).answer("When?")
    events = iter(answer)
    assert [type(next(events)), type(next(events))] == [Sources, Text]
    with pytest.raises(Unavailable, match="cut by the test"):
        next(events)
    assert len(fake.faults.of("Answer")) == 1
    with pytest.raises(Unavailable):  # nor does it look whole afterwards
        _ = answer.text


def test_leaving_the_loop_cancels_the_call(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.words, fake.word_delay = ["word "] * 1000, 0.01
    answer = faulty.memory(notes).answer("When?")
    for event in answer:
        if isinstance(event, Text):
            break
    (call,) = fake.faults.of("Answer")
    assert call.cancelled.wait(10)
    assert answer.text == "word "
    with pytest.raises(Cancelled, match="usage"):
        _ = answer.usage


def test_an_answer_is_closed_from_another_thread(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.words, fake.word_delay = ["word "] * 1000, 0.01
    answer = faulty.memory(notes).answer("When?")
    assert answer.sources == ()
    closing = threading.Timer(0.1, answer.close)
    closing.start()
    assert len(list(answer)) < 1000
    closing.join()
    (call,) = fake.faults.of("Answer")
    assert call.cancelled.wait(10)


async def test_leaving_the_loop_cancels_the_call_on_asyncio(fake: FakeDaemon) -> None:
    fake.words, fake.word_delay = ["word "] * 1000, 0.01
    async with AsyncClient(fake.target) as client:
        async for event in client.memory("notes", create=True).answer("When?"):
            if isinstance(event, Text):
                break
        (call,) = fake.faults.of("Answer")
        assert await asyncio.to_thread(call.cancelled.wait, 10)


async def test_an_answer_is_closed_from_another_task(fake: FakeDaemon) -> None:
    fake.words, fake.word_delay = ["word "] * 1000, 0.01
    async with AsyncClient(fake.target) as client:
        answer = client.memory("notes", create=True).answer("When?")
        assert await answer.sources == ()
        reading = asyncio.create_task(_read(answer.text))
        await asyncio.sleep(0.1)
        await answer.close()
        assert len(await reading) < 5000


async def test_cancelling_a_task_cancels_its_call(fake: FakeDaemon) -> None:
    fake.words, fake.word_delay = ["word "] * 1000, 0.01
    async with AsyncClient(fake.target) as client:
        reading = asyncio.create_task(_read(client.memory("notes", create=True).answer("When?").text))
        while not fake.faults.of("Answer"):  # noqa: ASYNC110  # the fake lives in threads
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        del reading
        gc.collect()
        (call,) = fake.faults.of("Answer")
        assert await asyncio.to_thread(call.cancelled.wait, 10)


async def _read(text: object) -> str:
    return str(await text)  # type: ignore[misc]


# uploads


def test_an_upload_is_repeated_from_its_beginning(fake: FakeDaemon, faulty: Client, notes: str, tmp_path: Path) -> None:
    fake.faults.fail("UploadDocument", times=2)
    path = tmp_path / "long.txt"
    path.write_bytes(bytes(range(1, 100)) * 20_000)
    result = faulty.memory(notes).upload(path)
    assert result.document.size_bytes == path.stat().st_size
    assert len(fake.faults.of("UploadDocument")) == 3


def test_an_upload_starts_where_the_file_stands(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.fail("UploadDocument")
    file = io.BytesIO(b"skipped, kept")
    file.seek(len("skipped, "))
    assert faulty.memory(notes).upload(file).document.size_bytes == len("kept")
    assert not file.closed


class Pipe(io.RawIOBase):
    """Data that can be read once, and that may break."""

    def __init__(self, left: int, then: Exception | None = None) -> None:
        self.left, self.then = left, then

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.left == 0 and self.then:
            raise self.then
        taken = min(self.left, size)
        self.left -= taken
        return b"x" * taken


def test_an_upload_that_can_not_be_rewound_is_not_repeated(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.faults.fail("UploadDocument")
    with pytest.raises(Unavailable):
        faulty.memory(notes).upload(Pipe(1 << 20))
    assert len(fake.faults.of("UploadDocument")) == 1


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_source_that_breaks_is_told_as_it_is(fake: FakeDaemon, faulty: Client, notes: str, flavour: str) -> None:
    broken = Pipe(1 << 20, OSError("the disk is gone"))

    def blocking() -> None:
        faulty.memory(notes).upload(broken)

    async def on_asyncio() -> None:
        async with AsyncClient(fake.target) as client:
            await client.memory(notes).upload(broken)

    upload = blocking if flavour == "blocking" else lambda: asyncio.run(on_asyncio())
    with pytest.raises(OSError, match="the disk is gone"):
        upload()
    assert fake.documents == {}


def test_a_text_file_is_refused(faulty: Client, notes: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file, pytest.raises(InvalidArgument, match="binary mode"):
        faulty.memory(notes).upload(file)  # type: ignore[arg-type]


# waiting


def test_a_wait_outlives_the_daemon_going_away(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    written = faulty.memory(notes).write("text")
    fake.faults.fail("GetDocument", times=9)
    fake.faults.fail("WatchJob", times=9)
    fake.faults.cut("WatchJob", after=2)
    assert written.wait(Stage.COMPRESSED, timeout=20).stage is Stage.COMPRESSED


def test_a_watch_attaches_again(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    written = faulty.memory(notes).write("text")
    fake.faults.cut("WatchJob", after=2)
    assert [*faulty.jobs.watch(written.job)][-1].state is JobState.SUCCEEDED
    assert len(fake.faults.of("WatchJob")) == 2


def test_a_job_that_failed_is_not_waited_for(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    fake.job_ends = jobs_pb2.JOB_STATE_DEAD
    written = faulty.memory(notes).write("text")
    with pytest.raises(JobFailed, match="it broke") as caught:
        written.wait(timeout=20)
    assert caught.value.job.state is JobState.DEAD
    with pytest.raises(JobFailed):
        faulty.jobs.wait(written.job)
    assert faulty.jobs.get(written.job).error == "it broke"
    assert faulty.jobs.retry(written.job).state is JobState.PENDING


def test_a_stage_that_no_job_leads_to_is_not_waited_for(faulty: Client, notes: str) -> None:
    with pytest.raises(FailedPrecondition, match="no job is taking it to LEARNED"):
        faulty.memory(notes).write("text").wait(Stage.LEARNED, timeout=20)


def test_a_wait_ends_with_its_timeout(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    written = faulty.memory(notes).write("text")
    fake.faults.slow("WatchJob", 0.5)
    with pytest.raises(DeadlineExceeded, match=r"is not SEARCHABLE within 0\.2 s"):
        written.wait(timeout=0.2)


def test_a_document_erased_meanwhile_is_not_found(faulty: Client, notes: str) -> None:
    memory = faulty.memory(notes)
    written = memory.write("text")
    memory.documents.delete(written.document)
    with pytest.raises(NotFound):
        written.wait(timeout=5)


# errors and connections


def test_rich_errors_are_read(fake: FakeDaemon, faulty: Client) -> None:
    fake.faults.fail("GetMemory", code=grpc.StatusCode.FAILED_PRECONDITION)
    with pytest.raises(FailedPrecondition) as caught:
        faulty.memory("notes").info()
    error = caught.value
    assert (error.reason, error.details, error.code) == (
        "FAKE_FAILED_PRECONDITION",
        {"a": "b"},
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert error.request_id == fake.faults.of("GetMemory")[0].metadata["x-request-id"]
    assert error.request_id in str(error)


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK], ids=lambda c: c.name)
def test_every_status_is_an_error_of_the_tree(fake: FakeDaemon, code: grpc.StatusCode) -> None:
    fake.faults.fail("GetMemory", code=code)
    with Client(fake.target, retry=None) as client, pytest.raises(MemorydError) as caught:
        client.memory("notes").info()
    assert caught.value.code is code or isinstance(caught.value, InternalError)


def test_a_daemon_that_is_not_there() -> None:
    with Client("127.0.0.1:1", retry=FAST) as client:
        with pytest.raises(Unavailable, match="memoryd serve"):
            client.memory("notes").search("ferry", timeout=2)
        with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.3 s"):
            client.wait_until_ready(timeout=0.3)


def test_a_daemon_that_comes_back_is_found_again(fake: FakeDaemon, faulty: Client, notes: str) -> None:
    assert faulty.memory(notes).search("ferry") == []
    fake.stop()
    with pytest.raises(Unavailable):
        faulty.memory(notes).search("ferry")
    again = FakeDaemon(address=fake.target)
    try:
        faulty.wait_until_ready(timeout=5)
        assert faulty.memory(notes, create=True).search("ferry") == []
    finally:
        again.stop()


def test_a_closed_client_says_so(fake: FakeDaemon) -> None:
    client = Client(fake.target)
    client.close()
    with pytest.raises(Cancelled, match="closed"):
        client.health()


def test_threads_share_a_client(faulty: Client, notes: str) -> None:
    memory, failures = faulty.memory(notes), []

    def write(n: int) -> None:
        try:
            memory.write(f"text {n}")
        except MemorydError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert memory.info().document_count == 32


@pytest.mark.parametrize("text", ["\ud800", b""], ids=["surrogate", "empty"])
def test_a_text_that_is_none_is_refused(faulty: Client, notes: str, text: str | bytes) -> None:
    with pytest.raises(InvalidArgument):
        faulty.memory(notes).write(text)


@pytest.fixture(autouse=True)
def quiet_loops() -> Iterator[None]:
    """Collects what a test left behind while its warnings still count as that test's."""
    yield
    gc.collect()
