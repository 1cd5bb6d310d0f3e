"""What calls take, and what they refuse with words that say what to give. Only the fake shows what arrived."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import memoryd_client
import pytest
from memoryd_client import AsyncClient, Client, InvalidArgument, Message, Mode

from tests.client.fake_daemon import FakeDaemon


@pytest.fixture
def client(fake: FakeDaemon) -> Iterator[Client]:
    with Client(fake.target) as client:
        client.memories.create("notes")
        yield client


# messages


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (Message(role="user", content="Hello", speaker="Ana"), ("user", "Hello", "Ana")),
        ({"role": "user", "content": "Hello"}, ("user", "Hello", "")),
        ({"role": "user", "content": "Hello", "name": "Ana"}, ("user", "Hello", "Ana")),
        ({"role": "user", "content": "Hello", "name": "Ana", "speaker": "Ana"}, ("user", "Hello", "Ana")),
        ({"role": "user", "content": "Hello", "name": None, "speaker": None, "time": None}, ("user", "Hello", "")),
        ({"role": "tool", "content": "12", "tool_call_id": "call_1"}, ("tool", "12", "")),
        (  # as a chat API's client dumps it
            {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "annotations": [], "audio": None},
            ("assistant", "Hi", ""),
        ),
    ],
    ids=repr,
)
def test_messages_are_taken_as_chat_apis_write_them(
    fake: FakeDaemon, client: Client, given: Any, sent: tuple[str, str, str]
) -> None:
    client.memory("notes").write_messages([given])
    assert client.memory("notes").answer("What?", prior_messages=[given]).text
    (written,) = fake.faults.of("WriteMessages")[0].request.messages
    (prior,) = fake.faults.of("Answer")[0].request.prior_messages
    assert (written.role, written.content, written.speaker) == sent
    assert written == prior
    assert not written.HasField("time")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "Hello"}]}, "content is a list: .* one str"),
        ({"role": "user", "content": None}, "content is a NoneType"),
        ({"role": "user"}, "content is a NoneType"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]}, "tool_calls would not be kept: .* content"),
        ({"role": "assistant", "content": "", "refusal": "No."}, "refusal would not be kept"),
        ({"role": "user", "content": "Hello", "text": "Hello", "parts": [1]}, "text, parts would not be kept"),
        ({"role": "user", "content": "Hello", "name": "Ana", "speaker": "Bo"}, "a name and a speaker"),
        ({"role": "user", "content": "Hello", "name": 5}, "speaker as str"),
        ({"role": "user", "content": "Hello", "time": "2026-01-01T00:00:00Z"}, "a time is a datetime"),
        ({"role": "user", "content": "\ud800"}, "content"),
        (Message(role="user", content=["Hello"]), "content is a list"),  # type: ignore[arg-type]
        ("Hello", "not a str"),
    ],
    ids=repr,
)
def test_of_messages_no_text_is_lost_in_silence(fake: FakeDaemon, client: Client, wrong: Any, says: str) -> None:
    right = Message(role="user", content="Hello", time=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidArgument, match=f"^message 1: .*{says}"):
        client.memory("notes").write_messages([right, wrong])
    with pytest.raises(InvalidArgument, match=f"^message 1: .*{says}"):
        _ = client.memory("notes").answer("What?", prior_messages=[right, wrong]).text
    assert fake.faults.of("WriteMessages") == fake.faults.of("Answer") == []


# modes


@pytest.mark.parametrize("wrong", ["TEXT", "text", 9, None, [Mode.TEXT]], ids=repr)
def test_a_wrong_mode_is_refused_and_the_right_ones_are_named(client: Client, wrong: Any) -> None:
    says = r"Mode\.COMPRESSED, Mode\.HYBRID, Mode\.TEXT, not " + re.escape(repr(wrong))
    with pytest.raises(InvalidArgument, match=says):
        client.memory("notes").learn(modes=[wrong])
    if wrong is not None:  # the daemon's own choice
        with pytest.raises(InvalidArgument, match=says):
            _ = client.memory("notes").answer("What?", mode=wrong).text


def test_modes_are_taken(fake: FakeDaemon, client: Client) -> None:
    for mode in (None, *Mode):
        assert client.memory("notes").answer("What?", mode=mode).text
    assert [call.request.mode for call in fake.faults.of("Answer")] == [0, *Mode]


# memories


async def test_one_memory_is_taken_however_it_is_given(fake: FakeDaemon, client: Client) -> None:
    for one in (client.memory("notes"), client.memories.get("notes"), "notes", "memories/notes", ["notes"]):
        assert client.search(one, "ferry") == []
        assert client.context(one, "ferry").sources == ()
        assert client.answer(one, "ferry").text
    async with AsyncClient(fake.target) as other:
        for handle in (other.memory("notes"), await other.memories.get("notes"), "notes"):
            assert await other.search(handle, "ferry") == []
            assert await other.answer(handle, "ferry").text
    calls = [call.request for name in ("Search", "BuildContext", "Answer") for call in fake.faults.of(name)]
    assert len(calls) == 21
    assert all(list(call.memories) == ["memories/notes"] for call in calls)


def test_one_handle_alone_makes_its_memory_when_asked(client: Client) -> None:
    assert client.search(client.memory("new", create=True), "ferry") == []
    assert client.memories.get("new").id == "new"


# jobs, files


def test_jobs_are_listed_page_by_page_as_they_are_needed(fake: FakeDaemon, client: Client) -> None:
    written = [client.memory("notes").write(f"text {n}").job for n in range(5)]
    assert next(iter(client.jobs.list(page_size=2))).name == written[0]
    assert len(fake.faults.of("ListOperations")) == 1
    assert [job.name for job in client.jobs.list(page_size=2)] == written


def test_a_file_that_is_not_there_is_the_systems_own_error(client: Client, tmp_path: Path) -> None:
    notes = client.memory("notes")
    for call in (
        lambda: notes.upload(tmp_path / "none"),
        lambda: notes.adapters.import_(tmp_path / "none"),
        lambda: notes.examples.export(tmp_path / "none" / "examples.jsonl"),
    ):
        with pytest.raises(FileNotFoundError):
            call()


# the README of the repository


def test_the_readmes_examples_run(
    fake: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / ".local" / "share" / "memoryd" / "admin.key"
    key.parent.mkdir(parents=True)
    key.write_text("mk_admin_secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    readme = (Path(memoryd_client.__file__).parents[3] / "README.md").read_text()
    examples = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert len(examples) == 3
    for example in examples:
        exec(example.replace("localhost:7437", fake.target), {})
    assert "better" in capsys.readouterr().out
    used = {call.method: call.metadata.get("authorization") for call in fake.faults.calls}
    assert used["CreateApiKey"] == "Bearer mk_admin_secret"
    assert used["WriteDocument"] == "Bearer mk_abcdef", "the last example writes with the key that it made"
