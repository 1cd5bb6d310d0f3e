"""A call's timeout holds for all the calls that are made inside it.

The fake sees what each call was given of it. So that nobody has to wait, the client's clock leaps while a call is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import time
from collections.abc import AsyncIterable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from memoryd_client import Answer, AsyncClient, Client, DeadlineExceeded, FailedPrecondition, NotFound, Stage, Verdict

from tests.client.fake_daemon import FakeDaemon

TIMEOUT, LEAP = 3000.0, 1000.0
SLACK = 100.0  # far more than a call takes by itself


class Run(Protocol):
    def __call__(self, call: Callable[[Any], Any], *, timeout: float | None = None) -> Any:
        """Makes a call, to its end, on a client of this timeout; without one it would wait for ever."""


@pytest.fixture(params=["blocking", "asyncio"])
def run(request: pytest.FixtureRequest, fake: FakeDaemon) -> Run:
    def on_asyncio(call: Callable[[Any], Any], *, timeout: float | None = None) -> Any:
        async def finished() -> Any:
            async with AsyncClient(fake.target, timeout=timeout) as client:
                made = call(client)
                return [item async for item in made] if isinstance(made, AsyncIterable) else await made

        return asyncio.run(finished())

    def blocking(call: Callable[[Any], Any], *, timeout: float | None = None) -> Any:
        with Client(fake.target, timeout=timeout) as client:
            made = call(client)
            return list(made) if isinstance(made, Iterator | Answer) else made

    return blocking if request.param == "blocking" else on_asyncio


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes LEAP seconds go by, as the client's deadlines see it."""
    ahead = 0.0

    def leap() -> None:
        nonlocal ahead
        ahead += LEAP

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr("memoryd_client._caller.time", clock)
    return leap


def given(fake: FakeDaemon, method: str) -> list[float]:
    """What the calls of this method were given."""
    return [call.time_left for call in fake.faults.of(method)]


def about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=SLACK)


# creating the memory

CALLS: dict[str, Callable[[Any], Any]] = {
    "GetMemory": lambda memory: memory.info(timeout=TIMEOUT),
    "WriteDocument": lambda memory: memory.write("text", timeout=TIMEOUT),
    "WriteMessages": lambda memory: memory.write_messages([{"role": "user", "content": "text"}], timeout=TIMEOUT),
    "UploadDocument": lambda memory: memory.upload(io.BytesIO(b"text"), timeout=TIMEOUT),
    "Search": lambda memory: memory.search("ferry", timeout=TIMEOUT),
    "BuildContext": lambda memory: memory.context("ferry", timeout=TIMEOUT),
    "Answer": lambda memory: memory.answer("When?", timeout=TIMEOUT),
    "GiveFeedback": lambda memory: memory.feedback("When?", "At noon.", Verdict.GOOD, timeout=TIMEOUT),
    "StudyMemory": lambda memory: memory.study(timeout=TIMEOUT),
    "LearnMemory": lambda memory: memory.learn(timeout=TIMEOUT),
    "GetDocument": lambda memory: memory.documents.get("d", timeout=TIMEOUT),
    "ListDocuments": lambda memory: memory.documents.list(timeout=TIMEOUT),
    "DeleteDocument": lambda memory: memory.documents.delete("d", timeout=TIMEOUT),
    "CreateExamples": lambda memory: memory.examples.add("When?", "At noon.", timeout=TIMEOUT),
    "ListExamples": lambda memory: memory.examples.list(timeout=TIMEOUT),
    "DeleteExample": lambda memory: memory.examples.delete("e", timeout=TIMEOUT),
    "ExportExamples": lambda memory: memory.examples.export(io.BytesIO(), timeout=TIMEOUT),
    "GetAdapter": lambda memory: memory.adapters.get("a", timeout=TIMEOUT),
    "ListAdapters": lambda memory: memory.adapters.list(timeout=TIMEOUT),
    "ActivateAdapter": lambda memory: memory.adapters.activate("a", timeout=TIMEOUT),
    "RollBackAdapter": lambda memory: memory.adapters.roll_back(timeout=TIMEOUT),
    "DeleteAdapter": lambda memory: memory.adapters.delete("a", timeout=TIMEOUT),
    "ExportAdapter": lambda memory: memory.adapters.export("a", io.BytesIO(), timeout=TIMEOUT),
    "ImportAdapter": lambda memory: memory.adapters.import_(io.BytesIO(b"archive"), timeout=TIMEOUT),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_call_that_creates_its_memory_shares_its_timeout_with_that(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], method: str
) -> None:
    fake.faults.meet("CreateMemory", leap)
    with contextlib.suppress(NotFound, FailedPrecondition):  # what is named is not there, or active: all the same here
        run(lambda client: CALLS[method](client.memory("notes", create=True)))
    assert given(fake, "CreateMemory") == [about(TIMEOUT)]
    assert given(fake, method) == [about(TIMEOUT - LEAP)]


@pytest.mark.parametrize("method", ["Search", "BuildContext", "Answer"])
def test_a_call_over_several_memories_shares_its_timeout_with_the_creation_of_each(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], method: str
) -> None:
    name = {"BuildContext": "context"}.get(method, method.lower())
    for _ in range(2):
        fake.faults.meet("CreateMemory", leap)
    run(
        lambda client: getattr(client, name)(
            [client.memory("mine", create=True), client.memory("ours", create=True)], "ferry", timeout=TIMEOUT
        )
    )
    assert given(fake, "CreateMemory") == [about(TIMEOUT), about(TIMEOUT - LEAP)]
    assert given(fake, method) == [about(TIMEOUT - 2 * LEAP)]


SPLIT: dict[str, Callable[[Any], Any]] = {
    "ListDocuments": lambda memory: memory.documents.list(page_size=1, timeout=TIMEOUT),
    "ListExamples": lambda memory: memory.examples.list(page_size=1, timeout=TIMEOUT),
    "ListAdapters": lambda memory: memory.adapters.list(page_size=1, timeout=TIMEOUT),
    "CreateExamples": lambda memory: memory.examples.add_many([(f"{n}?", "yes") for n in range(1001)], timeout=TIMEOUT),
}


@pytest.mark.parametrize("method", SPLIT)
def test_of_several_calls_that_have_the_timeout_each_the_first_shares_it_with_the_creation(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], method: str
) -> None:
    with Client(fake.target) as client:
        memory = client.memory("notes", create=True)
        for n in range(2):
            memory.write(f"text {n}")
            memory.examples.add(f"{n}?", "yes")
            fake.add_adapter(memory.name, b"archive")
    fake.faults.calls.clear()
    fake.faults.meet("CreateMemory", leap)
    run(lambda client: SPLIT[method](client.memory("notes", create=True)))
    assert given(fake, method) == [about(TIMEOUT - LEAP), about(TIMEOUT)]


def test_a_memory_that_is_not_created_within_the_timeout_ends_the_call(fake: FakeDaemon, run: Run) -> None:
    fake.faults.slow("CreateMemory", 2)
    with pytest.raises(DeadlineExceeded, match="CreateMemory"):
        run(lambda client: client.memory("notes", create=True).search("ferry", timeout=0.3))
    assert fake.faults.of("Search") == []


# waiting


@pytest.fixture
def written(fake: FakeDaemon) -> Any:
    """A document that no one has looked at yet."""
    with Client(fake.target) as client:
        document = client.memory("notes", create=True).write("text").document
    fake.faults.calls.clear()
    return document


def test_a_wait_gives_its_reads_what_is_left_of_its_timeout(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], written: Any
) -> None:
    fake.faults.meet("GetDocument", leap)
    document = run(lambda client: client.memory("notes").documents.wait(written, Stage.COMPRESSED, timeout=TIMEOUT))
    assert document.stage is Stage.COMPRESSED
    first, *later = given(fake, "GetDocument")
    assert first == about(TIMEOUT)
    assert later == [about(TIMEOUT - LEAP)] * len(later)
    assert later


def test_a_wait_that_creates_its_memory_shares_its_timeout_with_that(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], written: Any
) -> None:
    fake.faults.meet("CreateMemory", leap)
    run(lambda client: client.memory("notes", create=True).documents.wait(written, timeout=TIMEOUT))
    assert given(fake, "CreateMemory") == [about(TIMEOUT)]
    assert given(fake, "GetDocument")[0] == about(TIMEOUT - LEAP)


def test_a_wait_for_a_job_reads_its_receipt_in_what_is_left_of_its_timeout(
    fake: FakeDaemon, run: Run, leap: Callable[[], None], written: Any
) -> None:
    fake.faults.meet("WatchJob", leap)
    assert run(lambda client: client.jobs.wait(written.job, timeout=TIMEOUT)).receipt is not None
    assert given(fake, "GetOperation") == [about(TIMEOUT - LEAP)]


def test_a_wait_ends_with_its_timeout_where_its_read_is_not_answered(fake: FakeDaemon, run: Run, written: Any) -> None:
    fake.faults.slow("GetDocument", 2)
    with pytest.raises(DeadlineExceeded, match=r"is not SEARCHABLE within 0\.3 s") as caught:
        run(lambda client: client.memory("notes").documents.wait(written, timeout=0.3))
    assert caught.value.reason == "NOT_REACHED"
    assert all(left < 1 for left in given(fake, "GetDocument"))
    assert fake.faults.of("WatchJob") == []


def test_a_wait_for_a_job_ends_with_its_timeout_where_its_receipt_is_not_read(fake: FakeDaemon, run: Run, written: Any) -> None:
    fake.faults.slow("GetOperation", 3)
    with pytest.raises(DeadlineExceeded):
        run(lambda client: client.jobs.wait(written.job, timeout=1))


def test_a_wait_without_a_limit_sets_its_reads_none(fake: FakeDaemon, run: Run, written: Any) -> None:
    run(lambda client: client.memory("notes").documents.wait(written, timeout=math.inf), timeout=60)
    run(lambda client: client.jobs.wait(written.job, timeout=math.inf), timeout=60)
    assert min(given(fake, "GetDocument") + given(fake, "GetOperation")) > 1e9


def test_waiting_for_the_daemon_without_a_limit_asks_again(fake: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memoryd_client._client.CALL_TIMEOUT", 0.3)
    fake.faults.slow("Check", 2)
    run(lambda client: client.wait_until_ready(timeout=math.inf))
    assert len(fake.faults.of("Check")) >= 2
