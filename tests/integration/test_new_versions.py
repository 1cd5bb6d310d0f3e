"""A document is edited: the new version takes the old one's place, reuses what did not change, and the old one is erased."""

from __future__ import annotations

import io
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from memoryd_client import (
    AsyncClient,
    Client,
    CompressReceipt,
    Document,
    DocumentKind,
    EraseReceipt,
    Job,
    JobState,
    Memory,
    Mode,
    NotFound,
    Retry,
    Stage,
)

from memoryd.v1 import memory_pb2
from tests.daemon import DaemonProcess
from tests.integration.support import Api, files_with, refused


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("versions"), "--model", str(tiny_model)) as running:
        yield running


def prose(numbers: Sequence[int], **changed: str) -> str:
    """A line for each number; `changed` holds other lines by `n` and their number."""
    plain = "Ship {n} brought {m} barrels of cider to the harbour of Vardo."
    return "\n".join(changed.get(f"n{n}", plain.format(n=n, m=n * 31)) for n in numbers)


def receipt_of(client: Client, job: str) -> CompressReceipt:
    receipt = client.jobs.wait(job).receipt
    assert isinstance(receipt, CompressReceipt)
    return receipt


def erase_of(client: Client, document: Document) -> Job:
    [found] = [job for job in client.jobs.list() if (job.kind, job.target) == ("erase", document.name)]
    return found


def erased(client: Client, document: Document) -> EraseReceipt:
    receipt = client.jobs.wait(erase_of(client, document).name).receipt
    assert isinstance(receipt, EraseReceipt)
    return receipt


def sources_of(memory: Memory, query: str) -> list[str]:
    return [source.text for source in memory.search(query, top_k=50)]


LINES = range(120)


def test_an_edit_in_the_middle_compresses_only_what_it_changed(client: Client, daemon: DaemonProcess, memory: Memory) -> None:
    secret, word = f"zebra{uuid.uuid4().hex}", f"ibex{uuid.uuid4().hex}"
    text = prose(LINES, n60=f"The word of the day is {secret}.")
    old = memory.write(text, title=f"of {secret}", metadata={"word": secret})
    before = old.wait(Stage.COMPRESSED).chunk_count
    assert receipt_of(client, old.job).reused == 0
    memory.search(f"the word {secret}")
    memory.answer(f"What is the word {secret}?", mode=Mode.COMPRESSED, max_tokens=1).text  # noqa: B018
    assert files_with(secret.encode(), daemon.data_dir)

    new = memory.write(text.replace(secret, word), title="edited", metadata={"by": "Ingrid"}, replaces=old.document)

    assert (new.already_stored, new.document.title, new.document.metadata) == (False, "edited", {"by": "Ingrid"})
    with pytest.raises(NotFound):
        memory.documents.get(old.document)
    assert [d.name for d in memory.documents.list()] == [new.document.name]
    assert not any(secret in text for text in sources_of(memory, f"the word of the day {secret}"))
    assert memory.info().document_count == 1

    chunks = new.wait(Stage.COMPRESSED).chunk_count
    receipt = receipt_of(client, new.job)
    assert receipt.chunks == chunks >= 5
    assert chunks - 2 <= receipt.reused < chunks
    found = sources_of(memory, f"the word of the day {word}")
    assert any(word in text for text in found)
    assert not any(secret in text for text in found)
    full = memory.documents.get(new.document, text=True)
    assert full.text == text.replace(secret, word)
    answer = memory.answer("What is the word of the day?", mode=Mode.COMPRESSED, max_tokens=1)
    assert answer.usage.soft_tokens > 0
    assert {source.document for source in answer.sources} == {new.document.name}

    receipt_of_old = erased(client, old.document)
    assert (receipt_of_old.target, receipt_of_old.documents) == (old.document.name, 1)
    assert receipt_of_old.blobs == 1 + before
    # Milvus Lite keeps what was deleted until it next compacts, and shows none of it: see test_documents.
    assert [name for name in files_with(secret.encode(), daemon.data_dir) if not name.startswith("milvus/")] == []


def test_what_is_reused_is_what_the_compressor_would_make(client: Client, daemon: DaemonProcess, memory: Memory) -> None:
    """Bytes of a new version, chunk by chunk, are those of the same text written afresh; both are read alike."""
    text = prose(LINES)
    old = memory.write(text)
    old.wait(Stage.COMPRESSED)
    before = embeddings_of(daemon, old.document)
    new = memory.write(text + "\nOne more line.", replaces=old.document)
    new.wait(Stage.COMPRESSED)
    erased(client, old.document)
    after = embeddings_of(daemon, new.document)
    assert receipt_of(client, new.job).reused == len(before.keys() & after.keys()) >= len(before) - 1
    assert all(after[sha256] == data for sha256, data in before.items() if sha256 in after)
    assert embeddings_of(daemon, old.document) == {}


def embeddings_of(daemon: DaemonProcess, document: Document) -> dict[bytes, bytes]:
    """A document's stored embeddings, by the digest of the chunk that they say they are of."""
    folder = daemon.data_dir / "blobs" / "default" / document.name.split("/")[1] / document.id
    found = [path.read_bytes() for path in folder.glob("*/*")]
    return {data[data.index(b'"chunk_sha256"') :][:82]: data for data in found}


def test_uploads_and_conversations_have_versions_too(client: Client, memory: Memory) -> None:
    first = memory.upload(io.BytesIO(prose(LINES).encode()), title="log")
    first.wait(Stage.COMPRESSED)
    second = memory.upload(io.BytesIO(prose(range(1, 121)).encode()), title="log", replaces=first.document.id)
    second.wait(Stage.COMPRESSED)
    assert receipt_of(client, second.job).reused > 0
    turns = [{"role": "user", "content": f"Ship {n} has come in."} for n in range(100)]
    third = memory.write_messages(turns, replaces=second.document.name)
    assert third.document.kind is DocumentKind.MESSAGES
    third.wait(Stage.COMPRESSED)
    fourth = memory.write_messages([*turns, {"role": "assistant", "content": "How many is that?"}], replaces=third.document)
    fourth.wait(Stage.COMPRESSED)
    assert receipt_of(client, fourth.job).reused > 0
    assert [d.name for d in memory.documents.list()] == [fourth.document.name]
    for old, new in ((first, second), (second, third), (third, fourth)):
        assert new.erase_job == erase_of(client, old.document).name
        assert erased(client, old.document).documents == 1


async def test_asyncio_replaces_too(daemon: DaemonProcess, memory: Memory) -> None:
    async with AsyncClient(daemon.target) as client:
        notes = client.memory(memory.id, create=True)
        written = await notes.write("The ferry leaves at noon.")
        later = await notes.write("The ferry leaves at one.", replaces=written.document)
        assert [d.name async for d in notes.documents.list()] == [later.document.name]
        receipt = (await client.jobs.wait(later.erase_job)).receipt
        assert isinstance(receipt, EraseReceipt)
        assert receipt.target == written.document.name


def test_edits_in_quick_succession_reuse_what_the_first_version_had(client: Client, memory: Memory) -> None:
    old = memory.write(prose(LINES))
    old.wait(Stage.COMPRESSED)
    versions = [old]
    for edit in range(3):
        text = prose(LINES, n20=f"Edit {edit}.", n90=f"Edited {edit} times.")
        versions.append(memory.write(text, replaces=versions[-1].document))
    last = versions[-1]
    chunks = last.wait(Stage.COMPRESSED).chunk_count
    assert receipt_of(client, last.job).reused >= chunks - 4
    assert [d.name for d in memory.documents.list()] == [last.document.name]
    for version in versions[:-1]:
        assert erased(client, version.document).documents == 1


def test_of_many_who_replace_the_same_document_one_does(client: Client, memory: Memory) -> None:
    old = memory.write("The ferry leaves at noon.").document
    won: list[Document] = []
    lost: list[NotFound] = []

    def edit(hour: int) -> None:
        try:
            won.append(memory.write(f"The ferry leaves at {hour}.", replaces=old).document)
        except NotFound as error:
            lost.append(error)

    threads = [threading.Thread(target=edit, args=(hour,)) for hour in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert {error.reason for error in lost} == {"REPLACED_NOT_FOUND"}
    assert "another write has replaced it" in lost[0].message
    assert [d.name for d in memory.documents.list()] == [won[0].name]
    assert erased(client, old).documents == 1


def test_the_same_content_is_the_same_document(client: Client, memory: Memory) -> None:
    old = memory.write("The ferry leaves at noon.", title="old")
    again = memory.write("The ferry leaves at noon.", title="new", replaces=old.document)
    assert (again.already_stored, again.document.name, again.document.title) == (True, old.document.name, "old")
    other = memory.write("The ferry leaves at one.")
    merged = memory.write("The ferry leaves at one.", replaces=old.document)
    assert (merged.already_stored, merged.document.name) == (True, other.document.name)
    assert [d.name for d in memory.documents.list()] == [other.document.name]
    assert (again.erase_job, merged.erase_job) == ("", erase_of(client, old.document).name)
    assert erased(client, old.document).documents == 1


def test_a_repeat_of_the_call_is_harmless(client: Client, memory: Memory) -> None:
    old, request_id = memory.write("The ferry leaves at noon.").document, uuid.uuid4().hex
    first, second = (memory.write("The ferry leaves at one.", replaces=old, request_id=request_id) for _ in range(2))
    assert first.document.name == second.document.name
    assert first.erase_job == second.erase_job == erase_of(client, old).name


def test_what_is_not_in_the_memory_is_not_replaced_and_nothing_is_written(
    client: Client, api: Api, daemon: DaemonProcess, memory: Memory
) -> None:
    elsewhere = client.memory(f"{memory.id}-other", create=True).write("The ferry leaves at noon.").document
    deleted = memory.write("The ferry leaves at two.").document
    memory.documents.delete(deleted)
    needle = uuid.uuid4().hex
    for name in (elsewhere.name, deleted.name, f"{memory.name}/documents/{elsewhere.id}", "never"):
        with pytest.raises(NotFound) as caught:
            memory.write(f"The ferry is {needle}.", replaces=name)
        assert caught.value.reason == "REPLACED_NOT_FOUND"
    assert list(memory.documents.list()) == []
    assert files_with(needle.encode(), daemon.data_dir) == []
    bad = memory_pb2.WriteDocumentRequest(parent=memory.name, text=b"x", replaces="documents/d")
    failure = refused(lambda: api.call(api.documents.WriteDocument, bad))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["replaces"])
    client.memories.delete(f"memories/{memory.id}-other")


def test_deleting_the_new_version_does_not_keep_the_old_one(client: Client, memory: Memory) -> None:
    old = memory.write(prose(LINES))
    old.wait(Stage.COMPRESSED)
    new = memory.write(prose(range(1, 121)), replaces=old.document)
    gone = memory.documents.delete(new.document)
    assert erased(client, old.document).documents == 1
    assert client.jobs.wait(gone).state is JobState.SUCCEEDED
    assert list(memory.documents.list()) == []


def test_kill_9_at_any_moment_loses_neither_the_new_version_nor_the_erasing(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--model", str(tiny_model), "--job-lease-seconds", "2")
    patient = Retry(attempts=1000, max_delay=1.0)
    with DaemonProcess(tmp_path, *flags) as daemon, Client(daemon.target, timeout=None, retry=patient) as client:
        memory = client.memory("notes", create=True)
        words = [f"zebra{uuid.uuid4().hex}" for _ in range(3)]
        versions = [memory.write(prose(range(400), n200=f"The word is {words[0]}."))]
        versions[0].wait(Stage.COMPRESSED)
        for word, seconds in zip(words[1:], (0.0, 0.3), strict=True):
            old = versions[-1].document
            versions.append(memory.write(prose(range(400), n200=f"The word is {word}."), replaces=old))
            time.sleep(seconds)  # the moment is what is tested
            daemon.kill()
            daemon.start()
            with pytest.raises(NotFound):
                memory.documents.get(old)
            new = versions[-1].wait(Stage.COMPRESSED)
            receipt = receipt_of(client, versions[-1].job)
            assert new.chunk_count - 2 <= receipt.reused < receipt.chunks == new.chunk_count
            assert len(embeddings_of(daemon, new)) == new.chunk_count
            assert erased(client, old).documents == 1
        for word in words[:-1]:
            assert [name for name in files_with(word.encode(), tmp_path) if not name.startswith("milvus/")] == []
        assert any(words[-1] in text for text in sources_of(memory, words[-1]))
