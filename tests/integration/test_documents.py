"""Documents and memories: written once, found, listed, changed, deleted until nothing is left."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from memoryd_client import (
    AlreadyExists,
    Client,
    CompressReceipt,
    DocumentKind,
    EraseReceipt,
    JobState,
    Memory,
    Message,
    NotFound,
    Stage,
)

from memoryd.v1 import memory_pb2
from tests.daemon import DaemonProcess
from tests.integration.support import Api, files_with, refused

TEXT = "The harbour clock of Vardo was repaired by Ingrid Solberg in the spring of 1957. It has not stopped since."
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()


# --- the life of a document ---


def test_a_write_is_stored_at_once_then_searchable_then_compressed(client: Client, memory: Memory) -> None:
    written = memory.write(TEXT, title="The clock")
    assert not written.already_stored
    assert (written.document.stage, written.document.title) == (Stage.STORED, "The clock")
    assert (written.document.size_bytes, written.document.sha256) == (len(TEXT), SHA256)
    assert written.document.kind is DocumentKind.TEXT

    searchable = written.wait(Stage.SEARCHABLE)
    assert searchable.token_count > 0
    assert searchable.chunk_count == 1
    assert memory.search("Who repaired the clock?")[0].document == written.document.name

    assert written.wait(Stage.COMPRESSED).stage is Stage.COMPRESSED
    receipt = client.jobs.wait(written.job).receipt
    assert isinstance(receipt, CompressReceipt)
    assert (receipt.document, receipt.chunks) == (written.document.name, 1)
    assert receipt.tokens == searchable.token_count
    assert 0 < receipt.soft_tokens < receipt.tokens


def test_the_same_content_is_stored_once_and_says_so(memory: Memory) -> None:
    first = memory.write(TEXT, title="one")
    again = memory.write(TEXT, title="another title, the same content")
    assert again.already_stored
    assert (again.document.name, again.document.title, again.job) == (first.document.name, "one", first.job)
    assert [d.name for d in memory.documents.list()] == [first.document.name]
    assert memory.info().document_count == 1


def test_other_memories_store_the_same_content_for_themselves(client: Client, memory: Memory) -> None:
    other = client.memory(f"{memory.id}-other", create=True)
    assert memory.write(TEXT).document.id != other.write(TEXT).document.id


def test_its_text_comes_back_byte_for_byte_where_it_is_asked_for(memory: Memory) -> None:
    text = "\ufeffCRLF\r\n tabs\t, ünïcödé 🧭👩‍🚀, \u202eright to left\u202c, and a trailing space \n"
    document = memory.write(text).document
    assert memory.documents.get(document).text is None
    full = memory.documents.get(document, text=True)
    assert (full.text, full.text_truncated) == (text, False)


def test_a_long_text_is_uploaded_and_comes_back_cut_between_characters(memory: Memory) -> None:
    text = "€" * 400_000  # 1.2 MB, and 1 MiB is no multiple of 3
    document = memory.write(text, title="long").document
    assert (document.title, document.size_bytes) == ("long", 1_200_000)
    full = memory.documents.get(document, text=True)
    assert full.text_truncated
    assert full.text == text[: (1 << 20) // 3]


def test_metadata_of_all_four_kinds_comes_back_as_it_was(client: Client, memory: Memory) -> None:
    metadata = {
        "text": "Åse\n",
        "number": -1.5,
        "whole": 3.0,
        "yes": True,
        "no": False,
        "time": datetime(1957, 4, 2, 13, 56, 7, 123456, tzinfo=UTC),
    }
    document = memory.write(TEXT, metadata=metadata).document
    read = memory.documents.get(document).metadata
    assert read == metadata
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in metadata.items()}
    assert client.memories.update(memory.name, metadata=metadata).metadata == metadata


# --- conversations ---


def test_messages_are_one_line_a_turn_with_speaker_and_time(memory: Memory) -> None:
    written = memory.write_messages(
        [
            Message(
                role="user",
                content="I moved to Lisbon\nlast week.",
                speaker="Caroline",
                time=datetime(2023, 5, 7, 13, 56, tzinfo=UTC),
            ),
            {"role": "assistant", "content": "How is it?"},
        ],
        title="a talk",
    )
    assert written.document.kind is DocumentKind.MESSAGES
    text = memory.documents.get(written.document, text=True).text
    assert text == "Caroline (7 May 2023 13:56): I moved to Lisbon last week.\nAssistant: How is it?\n"
    written.wait()
    found = memory.search("Where did Caroline move to?")[0]
    assert found.document == written.document.name
    assert "Lisbon" in found.text


# --- repeats are harmless ---


def _id() -> str:
    return f"t{uuid.uuid4().hex[:16]}"


def _create(api: Api, memory: str, request_id: str, variant: str) -> Any:
    fields = memory_pb2.Memory(display_name=variant)
    return api.memories.CreateMemory(
        memory_pb2.CreateMemoryRequest(memory_id=f"{memory}-made", memory=fields, request_id=request_id)
    )


def _update(api: Api, memory: str, request_id: str, variant: str) -> Any:
    fields = memory_pb2.Memory(name=f"memories/{memory}", display_name=variant)
    return api.memories.UpdateMemory(memory_pb2.UpdateMemoryRequest(memory=fields, request_id=request_id))


def _write(api: Api, memory: str, request_id: str, variant: str) -> Any:
    return api.documents.WriteDocument(
        memory_pb2.WriteDocumentRequest(parent=f"memories/{memory}", text=variant.encode(), request_id=request_id)
    )


def _messages(api: Api, memory: str, request_id: str, variant: str) -> Any:
    turns = [memory_pb2.Message(role="user", content=variant)]
    return api.documents.WriteMessages(
        memory_pb2.WriteMessagesRequest(parent=f"memories/{memory}", messages=turns, request_id=request_id)
    )


def _upload(api: Api, memory: str, request_id: str, variant: str) -> Any:
    pieces = [
        memory_pb2.UploadDocumentRequest(header=memory_pb2.UploadHeader(parent=f"memories/{memory}", request_id=request_id)),
        memory_pb2.UploadDocumentRequest(data=variant.encode()),
        memory_pb2.UploadDocumentRequest(trailer=memory_pb2.UploadTrailer(sha256=hashlib.sha256(variant.encode()).hexdigest())),
    ]
    return api.documents.UploadDocument(iter(pieces))


def _delete_document(api: Api, memory: str, request_id: str, variant: str) -> Any:
    written = _write(api, memory, "", variant) if variant == "first" else None
    name = written.document.name if written and not written.already_stored else f"memories/{memory}/documents/none"
    deleted.setdefault(request_id, name)
    target = deleted[request_id] if variant == "first" else name
    return api.documents.DeleteDocument(memory_pb2.DeleteDocumentRequest(name=target, request_id=request_id))


def _delete_memory(api: Api, memory: str, request_id: str, variant: str) -> Any:
    name = f"memories/{memory}" if variant == "first" else "memories/another"
    return api.memories.DeleteMemory(memory_pb2.DeleteMemoryRequest(name=name, request_id=request_id))


deleted: dict[str, str] = {}
WRITES: dict[str, Callable[[Api, str, str, str], Any]] = {
    "CreateMemory": _create,
    "UpdateMemory": _update,
    "WriteDocument": _write,
    "WriteMessages": _messages,
    "UploadDocument": _upload,
    "DeleteDocument": _delete_document,
    "DeleteMemory": _delete_memory,
}


def test_every_call_that_takes_a_request_id_is_tried_here() -> None:
    services = memory_pb2.DESCRIPTOR.services_by_name.values()
    takes = {m.name for s in services for m in s.methods if "request_id" in m.input_type.fields_by_name}
    assert takes | {"UploadDocument"} == set(WRITES)  # an upload's is in its header


@pytest.mark.parametrize("method", WRITES)
def test_the_same_request_id_does_it_once_and_another_request_under_it_is_refused(
    api: Api, memory: Memory, method: str
) -> None:
    memory.info()  # creates it
    call, request_id = WRITES[method], _id()
    first, again = call(api, memory.id, request_id, "first"), call(api, memory.id, request_id, "first")
    if method in ("WriteDocument", "WriteMessages", "UploadDocument"):
        assert (first.already_stored, again.already_stored) == (False, True)
        assert again.document.name == first.document.name
        assert memory.info().document_count == 1
    else:
        assert again.name == first.name
    failure = refused(lambda: call(api, memory.id, request_id, "other"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_a_late_repeat_does_not_bring_back_what_was_deleted(api: Api, memory: Memory) -> None:
    memory.info()
    request_id = _id()
    document = _write(api, memory.id, request_id, "to be forgotten").document
    memory.documents.delete(document.name)
    failure = refused(lambda: _write(api, memory.id, request_id, "to be forgotten"))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert memory.info().document_count == 0


# --- memories ---


def test_a_memory_is_created_read_changed_and_listed(client: Client) -> None:
    made = client.memories.create(_id(), display_name="Åse", description="what Åse said", metadata={"team": "blue"})
    assert client.memories.get(made) == made
    changed = client.memories.update(made, description="what Åse wrote")
    assert (changed.display_name, changed.description, changed.metadata) == ("Åse", "what Åse wrote", {"team": "blue"})
    assert changed.update_time > made.update_time == made.create_time
    assert made.name in [m.name for m in client.memories.list(page_size=2)]


def test_a_memory_without_an_id_gets_one(client: Client) -> None:
    made = client.memories.create()
    assert client.memories.get(made.id).name == made.name


def test_a_memory_of_an_id_that_is_taken_is_refused(client: Client, memory: Memory) -> None:
    memory.info()
    with pytest.raises(AlreadyExists):
        client.memories.create(memory.id)


# --- pages ---


def test_pages_give_each_document_once_oldest_first(api: Api, memory: Memory) -> None:
    names = [memory.write(f"page {number}").document.name for number in range(5)]
    listed, token, sizes = [], "", []
    while True:
        request = memory_pb2.ListDocumentsRequest(parent=memory.name, page_size=2, page_token=token)
        page = api.documents.ListDocuments(request)
        listed += [d.name for d in page.documents]
        sizes.append(len(page.documents))
        token = page.next_page_token
        if not token:
            break
    assert listed == names
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("token", ["nonsense", "bm9uc2Vuc2U=", "!", "W10=", "é"])
def test_a_token_that_memoryd_did_not_give_out_is_refused(api: Api, memory: Memory, token: str) -> None:
    memory.info()
    request = memory_pb2.ListDocumentsRequest(parent=memory.name, page_token=token)
    failure = refused(lambda: api.documents.ListDocuments(request))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "page_token" in failure.message


def test_a_token_of_another_list_is_refused(client: Client, api: Api, memory: Memory) -> None:
    other = client.memory(f"{memory.id}-other", create=True)
    for target in (memory, other):
        for number in range(2):
            target.write(f"page {number}")
    page = api.documents.ListDocuments(memory_pb2.ListDocumentsRequest(parent=memory.name, page_size=1))
    request = memory_pb2.ListDocumentsRequest(parent=other.name, page_token=page.next_page_token)
    assert refused(lambda: api.documents.ListDocuments(request)).code is grpc.StatusCode.INVALID_ARGUMENT


# --- forgetting ---


def test_a_deleted_document_is_unreachable_at_once(client: Client, memory: Memory) -> None:
    kept = memory.write("The lighthouse keeper of Vardo was Astrid Nilsen.", title="kept")
    gone = memory.write(TEXT, title="gone")
    gone.wait()
    kept.wait()
    assert {s.title for s in memory.search("Vardo harbour clock")} == {"kept", "gone"}

    job = memory.documents.delete(gone.document)

    with pytest.raises(NotFound):
        memory.documents.get(gone.document)
    with pytest.raises(NotFound):
        memory.documents.delete(gone.document)
    assert [d.name for d in memory.documents.list()] == [kept.document.name]
    assert {s.title for s in memory.search("Vardo harbour clock")} == {"kept"}
    assert "Ingrid" not in memory.context("Vardo harbour clock").text
    answer = memory.answer("Who repaired the harbour clock of Vardo?", max_tokens=1)
    assert {s.title for s in answer.sources} == {"kept"}

    receipt = client.jobs.wait(job).receipt
    assert isinstance(receipt, EraseReceipt)
    assert (receipt.target, receipt.documents, receipt.vectors) == (gone.document.name, 1, 1)
    assert receipt.blobs >= 1
    assert receipt.erase_time is not None


def test_the_receipt_counts_what_the_tiers_held(client: Client, memory: Memory) -> None:
    from memoryd_client import Mode

    written = memory.write(TEXT)
    written.wait(Stage.COMPRESSED)
    memory.answer("Who repaired the clock?", mode=Mode.COMPRESSED, max_tokens=1).usage.soft_tokens  # noqa: B018
    receipt = client.jobs.wait(memory.documents.delete(written.document)).receipt
    assert isinstance(receipt, EraseReceipt)
    assert (receipt.documents, receipt.blobs, receipt.vectors, receipt.cache_keys) == (1, 2, 1, 1)


def test_what_was_deleted_may_be_written_again(client: Client, memory: Memory) -> None:
    first = memory.write(TEXT)
    client.jobs.wait(memory.documents.delete(first.document))
    again = memory.write(TEXT)
    assert not again.already_stored
    assert again.document.id != first.document.id
    again.wait()
    assert memory.search("harbour clock")[0].document == again.document.name


def test_a_document_written_while_its_predecessor_is_erased_stays(client: Client, memory: Memory) -> None:
    first = memory.write(TEXT)
    job = memory.documents.delete(first.document)
    again = memory.write(TEXT)  # no waiting between
    client.jobs.wait(job)
    again.wait(Stage.COMPRESSED)
    assert memory.documents.get(again.document, text=True).text == TEXT


def test_nothing_of_a_deleted_document_is_left_on_disk(client: Client, daemon: DaemonProcess, memory: Memory) -> None:
    """Texts, titles, metadata: in no file of the ledger, the blobs, the cache or the logs when the job has ended.

    The index is left out: Milvus Lite keeps what was deleted in its files until it next compacts a partition, by itself and
    after later writes, and offers no way to ask for it. Nothing there is found any more.
    """
    secret = f"zebra{uuid.uuid4().hex}"
    written = memory.write(f"{TEXT} The word is {secret}.", title=f"title {secret}", metadata={"word": secret})
    written.wait(Stage.COMPRESSED)
    memory.search(f"the word {secret}")
    memory.answer(f"What is the word {secret}?", max_tokens=1).text  # noqa: B018
    before = {name.partition("/")[0] for name in files_with(secret.encode(), daemon.data_dir)}
    assert before <= {"blobs", "ledger.db", "ledger.db-wal", "milvus"}  # never in a log
    assert "blobs" in before  # what looks for it can find it
    assert before & {"ledger.db", "ledger.db-wal"}

    client.jobs.wait(memory.documents.delete(written.document))

    left = files_with(secret.encode(), daemon.data_dir)
    assert [name for name in left if not name.startswith("milvus/")] == []


def test_a_deleted_memory_is_gone_with_all_its_documents(client: Client, memory: Memory) -> None:
    written = [memory.write(f"{TEXT} Number {number}.") for number in range(3)]
    written[0].wait()
    receipt = client.jobs.wait(client.memories.delete(memory.name)).receipt
    assert isinstance(receipt, EraseReceipt)
    assert (receipt.target, receipt.documents) == (memory.name, 3)
    for call in (memory.info, lambda: memory.search("clock"), lambda: memory.write("x"), lambda: list(memory.documents.list())):
        with pytest.raises(NotFound):
            call()
    assert client.jobs.get(written[2].job).state in (JobState.CANCELLED, JobState.SUCCEEDED)


def test_a_new_memory_of_a_deleted_ones_id_is_empty(client: Client, memory: Memory) -> None:
    memory.write(TEXT).wait()
    job = client.memories.delete(memory.name)
    client.memories.create(memory.id)
    assert memory.search("harbour clock") == []
    assert not memory.write(TEXT).already_stored
    client.jobs.wait(job)
    assert memory.info().document_count == 1
