"""What a client sees of any daemon, fake or real."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import pickle
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import memoryd_client
import pytest
from memoryd_client import (
    AlreadyExists,
    AsyncClient,
    Client,
    EraseReceipt,
    HealthStatus,
    InvalidArgument,
    JobState,
    Memory,
    Message,
    Mode,
    NotFound,
    Sources,
    Stage,
    Text,
    Usage,
)

FERRY = "The ferry to Hvar leaves at noon. "


def test_the_daemon_is_ready(client: Client) -> None:
    client.wait_until_ready(timeout=60)
    assert client.health() is HealthStatus.SERVING


def test_a_memory_is_created_read_changed_and_deleted(client: Client, unique: str) -> None:
    made = client.memories.create(unique, display_name="Notes", metadata={"team": "a"})
    assert (made.id, made.display_name, dict(made.metadata)) == (unique, "Notes", {"team": "a"})
    assert made.create_time is not None
    assert made.create_time.tzinfo is not None
    assert client.memories.update(unique, description="all of them").description == "all of them"
    read = client.memories.get(made)
    assert (read.display_name, read.description, dict(read.metadata)) == ("Notes", "all of them", {"team": "a"})
    assert unique in {m.id for m in client.memories.list(page_size=1)}
    client.jobs.wait(client.memories.delete(unique), timeout=60)
    with pytest.raises(NotFound):
        client.memories.get(unique)


def test_a_memory_of_a_taken_id_is_refused(client: Client, unique: str) -> None:
    client.memories.create(unique)
    with pytest.raises(AlreadyExists) as caught:
        client.memories.create(unique)
    assert caught.value.request_id


def test_updating_nothing_changes_nothing(client: Client, unique: str) -> None:
    client.memories.create(unique, display_name="Notes", metadata={"k": 1})
    assert client.memories.update(unique).display_name == "Notes"
    assert dict(client.memories.update(unique, metadata={}).metadata) == {}


def test_a_handle_makes_its_memory_when_asked(client: Client, unique: str) -> None:
    with pytest.raises(NotFound):
        client.memory(unique).info()
    assert client.memory(unique, create=True).search("anything") == []
    assert client.memory(unique, create=True).info().id == unique


def test_what_was_written_is_read_back(memory: Memory) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    written = memory.write(FERRY, title="Ferries", metadata={"place": "Hvar", "deck": 2, "car": True, "seen": when})
    document = memory.documents.get(written.document, text=True)
    assert (document.title, document.text, document.size_bytes) == ("Ferries", FERRY, len(FERRY))
    assert dict(document.metadata) == {"place": "Hvar", "deck": 2.0, "car": True, "seen": when}
    assert memory.documents.get(document.id).text is None
    assert pickle.loads(pickle.dumps(document)) == document
    assert dataclasses.asdict(document)["metadata"] == document.metadata
    assert memory.info().document_count == 1


def test_the_same_content_is_stored_once(memory: Memory) -> None:
    first, again = memory.write(FERRY), memory.write(FERRY)
    assert not first.already_stored
    assert again.already_stored
    assert again.document.name == first.document.name


def test_a_new_version_replaces_the_old_one_however_it_is_named_and_written(
    client: Client, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = memory.write(FERRY)
    second = memory.write_messages([{"role": "user", "content": "Which ferry?"}], replaces=first.document)
    third = memory.upload(io.BytesIO(b"The ferry leaves at one."), replaces=second.document.name)
    monkeypatch.setattr("memoryd_client._memory.INLINE", 8)  # as if the text were long
    fourth = memory.write("The ferry leaves at two.", title="Ferries", replaces=third.document.id)
    assert (fourth.already_stored, fourth.document.title) == (False, "Ferries")
    assert first.erase_job == ""
    for old, new in ((first, second), (second, third), (third, fourth)):
        receipt = client.jobs.wait(new.erase_job, timeout=60).receipt
        assert isinstance(receipt, EraseReceipt)
        assert receipt.target == old.document.name
    assert [document.name for document in memory.documents.list()] == [fourth.document.name]
    with pytest.raises(NotFound):
        memory.write("The ferry leaves at three.", replaces=first.document)


def test_a_write_is_waited_for(memory: Memory) -> None:
    written = memory.write(FERRY)
    assert written.wait(timeout=60).stage >= Stage.SEARCHABLE
    assert written.wait(Stage.COMPRESSED, timeout=120).stage >= Stage.COMPRESSED


def test_a_conversation_is_written_as_messages_or_dicts(memory: Memory) -> None:
    result = memory.write_messages(
        [
            Message(role="user", content="When is the ferry?", speaker="Ana", time=datetime(2026, 1, 1, tzinfo=UTC)),
            {"role": "assistant", "content": "At noon."},
        ]
    )
    text = memory.documents.get(result.document, text=True).text
    assert text is not None
    assert "Ana" in text
    assert "At noon." in text


def test_a_file_is_uploaded_with_its_name_as_title(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "ferries.txt"
    path.write_text(FERRY * 20_000)
    document = memory.upload(path, metadata={"from": "disk"}).document
    assert (document.title, document.size_bytes) == ("ferries.txt", path.stat().st_size)


def test_a_pipe_is_uploaded(memory: Memory) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as end:
            end.write(FERRY.encode() * 20_000)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(reader, "rb") as source:
        document = memory.upload(source, title="piped").document
    feeder.join()
    assert (document.title, document.size_bytes) == ("piped", len(FERRY) * 20_000)


def test_a_large_text_is_written_like_a_small_one(memory: Memory) -> None:
    assert memory.write(FERRY * 40_000, title="large").document.size_bytes == len(FERRY) * 40_000


def test_documents_are_iterated_over_pages_and_deleted(client: Client, memory: Memory) -> None:
    names = [memory.write(f"{FERRY} {n}").document.name for n in range(5)]
    assert [d.name for d in memory.documents.list(page_size=2)] == names
    job = client.jobs.wait(memory.documents.delete(names[0]), timeout=60)
    assert isinstance(job.receipt, EraseReceipt)
    assert (job.receipt.target, job.receipt.documents) == (names[0], 1)
    with pytest.raises(NotFound):
        memory.documents.get(names[0])


def test_passages_are_found(client: Client, memory: Memory) -> None:
    memory.write(FERRY, title="Ferries").wait(timeout=60)
    (source,) = memory.search("When does the ferry leave?", top_k=1)
    assert "noon" in source.text
    assert source.title == "Ferries"
    assert client.search([memory], "ferry") == client.search(memory.id, "ferry")
    context = memory.context("ferry", max_tokens=200)
    assert "noon" in str(context)
    assert context.sources


def test_an_answer_streams_sources_then_text_then_usage(memory: Memory) -> None:
    memory.write(FERRY).wait(timeout=60)
    answer = memory.answer("When does the ferry leave?", mode=Mode.TEXT, max_tokens=16)
    events = list(answer)
    assert isinstance(events[0], Sources)
    assert events[0].mode is Mode.TEXT
    assert all(isinstance(e, Text) for e in events[1:-1])
    assert isinstance(events[-1], Usage)
    assert list(answer) == events, "an answer remembers"
    assert answer.text == str(answer) == "".join(e.text for e in events if isinstance(e, Text))
    assert answer.usage.output_tokens > 0
    assert answer.sources == events[0].sources
    assert answer.cited == tuple(answer.sources[i] for i in answer.usage.cited)


def test_an_answer_is_collected_without_a_loop(memory: Memory) -> None:
    memory.write(FERRY).wait(timeout=60)
    with memory.answer("When does the ferry leave?", max_tokens=16) as answer:
        assert "noon" in answer.sources[0].text
        assert answer.text
        assert answer.usage.total_ms >= 0


def test_several_memories_answer_together(client: Client, unique: str) -> None:
    mine, ours = client.memory(f"{unique}-a", create=True), client.memory(f"{unique}-b", create=True)
    mine.write("Ana likes the early ferry.").wait(timeout=60)
    ours.write(FERRY).wait(timeout=60)
    answer = client.answer([mine, ours.name], "Which ferry does Ana like?", max_tokens=8)
    assert {s.document.split("/")[1] for s in answer.sources} == {mine.id, ours.id}
    answer.close()
    assert client.context([mine, ours], "ferry").sources


def test_a_job_is_read_listed_and_watched(client: Client, memory: Memory) -> None:
    written = memory.write(FERRY)
    states = list(client.jobs.watch(written.job, timeout=120))
    assert states[-1].state is JobState.SUCCEEDED
    assert states[-1].target == written.document.name
    assert client.jobs.get(written.job).receipt is not None
    assert written.job in {job.name for job in client.jobs.list()}


def test_what_breaks_a_rule_is_named(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.memories.create("Not An Id")
    assert "memory_id" in {v.field for v in caught.value.violations}
    assert "memory_id" in str(caught.value)


def test_unknown_names_are_not_found(client: Client, memory: Memory) -> None:
    memory.write(FERRY)
    for call in (
        lambda: client.memory("nobody").write("text"),
        lambda: client.memory("nobody").answer("who?").text,
        lambda: memory.documents.get("nothing"),
        lambda: client.jobs.get("nothing"),
        lambda: list(client.jobs.watch("nothing")),
        lambda: client.memory("nobody").upload(io.BytesIO(b"text")),
    ):
        with pytest.raises(NotFound):
            call()


def test_usage_counts(client: Client, memory: Memory) -> None:
    memory.write(FERRY)
    assert client.admin.usage().documents >= 1


def test_tenants_and_keys(client: Client, unique: str) -> None:
    tenant = client.admin.tenants.create(unique, display_name="Test")
    assert client.admin.tenants.get(unique).display_name == "Test"
    assert unique in {t.name.split("/")[1] for t in client.admin.tenants.list()}
    new = client.admin.keys.create(tenant, display_name="ci")
    assert new.secret.startswith(new.key.prefix)
    assert new.secret not in repr(new)
    client.admin.keys.revoke(new.key)
    (key,) = client.admin.keys.list(tenant)
    assert key.revoke_time is not None


def test_the_readmes_ten_lines(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(memoryd_client.__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(example.replace("localhost:7437", target), {})
    assert "['Ferries']" in capsys.readouterr().out


async def test_asyncio_has_the_same_shape(target: str, unique: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ana likes the early ferry.")
    async with AsyncClient(target) as client:
        await client.wait_until_ready()
        memory = client.memory(unique, create=True)
        first, second = await asyncio.gather(memory.write(FERRY), memory.upload(tmp_path / "a.txt"))
        await asyncio.gather(first.wait(timeout=60), second.wait(timeout=60))
        assert {d.name async for d in memory.documents.list(page_size=1)} == {first.document.name, second.document.name}
        assert len(await memory.search("ferry")) == 2
        answer = memory.answer("When does the ferry leave?", max_tokens=16)
        kinds = [type(event) async for event in answer]
        assert (kinds[0], kinds[-1]) == (Sources, Usage)
        assert await answer.text
        assert (await answer.usage).output_tokens > 0
        assert (await client.jobs.wait(first.job, timeout=120)).receipt is not None
        async with client.answer([memory], "When?") as other:
            assert await other.sources
