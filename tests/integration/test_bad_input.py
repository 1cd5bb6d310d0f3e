"""Bad input: each with its status, its reason, a message that says what to do, and nothing stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from memoryd_client import Client, Memory

from memoryd.v1 import admin_pb2, jobs_pb2, memory_pb2, recall_pb2
from tests.integration.support import Api, Refusal, refused, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 1 << 20


@pytest.fixture
def memory(memory: Memory) -> Iterator[Memory]:
    """A memory that must be empty afterwards, too."""
    memory.info()
    yield memory
    assert memory.info().document_count == 0, "something of the bad input was stored"


def write(api: Api, memory: Memory, text: bytes, **fields: Any) -> Refusal:
    request = memory_pb2.WriteDocumentRequest(parent=memory.name, text=text, **fields)
    return refused(lambda: api.documents.WriteDocument(request))


# --- what is no text ---


@pytest.mark.parametrize("text", [b" ", b"\n\t \r\n", "\u2003\u3000".encode()])
def test_nothing_but_white_space_is_refused(api: Api, memory: Memory, text: bytes) -> None:
    failure = write(api, memory, text)
    assert (failure.code, failure.reason) == (INVALID, "EMPTY")
    assert "nothing but white space" in failure.message


def test_an_empty_text_is_refused_by_its_field(api: Api, memory: Memory) -> None:
    failure = write(api, memory, b"")
    assert (failure.code, failure.reason, failure.fields) == (INVALID, "INVALID_FIELD", ["text"])


def test_binary_is_refused_and_says_what_to_do(api: Api, memory: Memory) -> None:
    failure = write(api, memory, b"\x50\x4b\x03\x04\x00\x00not a text")
    assert (failure.code, failure.reason, failure.details) == (INVALID, "BINARY", {"byte_offset": "4"})
    assert "Extract its text" in failure.message


def test_invalid_utf8_is_refused_with_the_offset(api: Api, memory: Memory) -> None:
    failure = write(api, memory, "Grüße".encode("latin-1"))
    assert (failure.code, failure.reason, failure.details) == (INVALID, "NOT_UTF8", {"byte_offset": "2"})
    assert "byte 2" in failure.message
    assert "re-encode" in failure.message


def test_a_surrogate_that_some_encoders_let_through_is_refused(api: Api, memory: Memory) -> None:
    assert write(api, memory, b"half an emoji: \xed\xa0\xbd").reason == "NOT_UTF8"


# --- texts that are unusual, and fine ---


@pytest.mark.parametrize(
    ("text", "query"),
    [
        pytest.param("👩‍👩‍👧‍👦🏳️‍🌈🧑🏽‍🚀" * 40 + " family flight", "family flight", id="emoji joined by ZWJ"),
        pytest.param("東京タワーは一九五八年に建てられた。" * 30, "東京タワー", id="CJK without spaces"),
        pytest.param("השעון בנמל תוקן באביב על ידי אינגריד. " * 20, "השעון בנמל", id="right to left"),
        pytest.param("\u202e\u200b\u200d\ufeff controls around words \u2066", "controls around words", id="controls"),
        pytest.param("Z̷̢̛a̴l̵g̶o̸ " * 100, "Zalgo", id="stacked accents"),
    ],
)
def test_unusual_text_is_found_and_comes_back_whole(request: Any, client: Client, text: str, query: str) -> None:
    target = client.memory(f"text-{hashlib.sha256(text.encode()).hexdigest()[:12]}", create=True)
    written = target.write(text)
    document = written.wait()
    assert target.documents.get(document, text=True).text == text
    found = target.search(query)
    assert found
    assert all(source.text == text[source.start : source.end] for source in found)


def test_one_line_of_300_kb_becomes_searchable(client: Client) -> None:
    target = client.memory("one-line", create=True)
    text = "x" * 150_000 + "needle" + "y" * 150_000
    written = target.write(text)
    document = written.wait(timeout=400)
    assert document.size_bytes == 300_006
    sources = target.search("needle", top_k=1)
    assert all(source.text == text[source.start : source.end] for source in sources)
    client.jobs.cancel(written.job)  # compressing it would keep the other tests waiting
    client.memories.delete(target.name)


# --- too large ---


def test_an_inline_text_may_be_1_mib_and_no_more(client: Client, api: Api) -> None:
    target = client.memory("a-mebibyte", create=True)
    target.info()
    most = memory_pb2.WriteDocumentRequest(parent=target.name, text=b"a " * (MIB // 2))
    written = api.documents.WriteDocument(most)
    assert written.document.size_bytes == MIB
    client.memories.delete(target.name)


def test_one_byte_above_1_mib_inline_is_refused_by_its_field(api: Api, memory: Memory) -> None:
    failure = write(api, memory, b"a" * (MIB + 1))
    assert (failure.code, failure.reason, failure.fields) == (INVALID, "INVALID_FIELD", ["text"])


def test_a_request_above_the_wires_limit_is_refused_and_the_channel_lives(api: Api, memory: Memory) -> None:
    failure = write(api, memory, b"a" * (5 * MIB))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert api.memories.GetMemory(memory_pb2.GetMemoryRequest(name=memory.name)).name == memory.name


# --- uploads ---


def header(memory: Memory, **fields: Any) -> memory_pb2.UploadDocumentRequest:
    return memory_pb2.UploadDocumentRequest(header=memory_pb2.UploadHeader(parent=memory.name, **fields))


def data(piece: bytes) -> memory_pb2.UploadDocumentRequest:
    return memory_pb2.UploadDocumentRequest(data=piece)


def trailer(*pieces: bytes) -> memory_pb2.UploadDocumentRequest:
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    return memory_pb2.UploadDocumentRequest(trailer=memory_pb2.UploadTrailer(sha256=digest))


def upload(api: Api, *pieces: memory_pb2.UploadDocumentRequest) -> Refusal:
    return refused(lambda: api.documents.UploadDocument(iter(pieces)))


def test_a_corrupted_upload_is_data_loss_and_says_what_arrived(api: Api, memory: Memory) -> None:
    failure = upload(api, header(memory), data(b"what was sent"), trailer(b"what was meant"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH")
    assert failure.details["received_bytes"] == "13"
    assert failure.details["received_sha256"] == hashlib.sha256(b"what was sent").hexdigest()
    assert "upload again" in failure.message


def test_an_upload_without_its_trailer_is_truncated(api: Api, memory: Memory) -> None:
    failure = upload(api, header(memory), data(b"the beginning"))
    assert (failure.code, failure.reason) == (INVALID, "UPLOAD_TRUNCATED")
    assert "upload again" in failure.message


def test_the_pieces_of_an_upload_come_in_one_order(api: Api, memory: Memory) -> None:
    text = b"a text"
    for pieces in ([data(text)], [trailer(text)], [], [header(memory), header(memory), data(text), trailer(text)]):
        failure = upload(api, *pieces)
        assert (failure.code, failure.reason) == (INVALID, "UPLOAD_ORDER")
        assert "header" in failure.message


def test_an_upload_of_nothing_is_empty(api: Api, memory: Memory) -> None:
    assert upload(api, header(memory), trailer(b"")).reason == "EMPTY"
    assert upload(api, header(memory), data(b" \n"), trailer(b" \n")).reason == "EMPTY"


def test_a_bad_byte_is_named_across_two_pieces(api: Api, memory: Memory) -> None:
    cut = "abc€".encode()
    failure = upload(api, header(memory), data(cut[:4]), data(b"\xff"), trailer(cut[:4], b"\xff"))
    assert (failure.reason, failure.details) == ("NOT_UTF8", {"byte_offset": "3"})


def test_a_piece_without_anything_in_it_is_refused(api: Api, memory: Memory) -> None:
    failure = upload(api, header(memory), memory_pb2.UploadDocumentRequest())
    assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")


def test_a_piece_above_1_mib_is_refused_by_its_field(api: Api, memory: Memory) -> None:
    failure = upload(api, header(memory), data(b"a" * (MIB + 1)))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["data"])


def test_an_upload_to_a_memory_that_is_not_there_is_refused_at_its_header(api: Api, memory: Memory) -> None:
    missing = memory_pb2.UploadDocumentRequest(header=memory_pb2.UploadHeader(parent="memories/not-there"))
    assert upload(api, missing).code is grpc.StatusCode.NOT_FOUND


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(api: Api, memory: Memory, daemon: Any) -> None:
    def pieces() -> Iterator[memory_pb2.UploadDocumentRequest]:
        yield header(memory)
        yield data(b"the beginning")
        until(lambda: list(temporary.iterdir()), "the upload has begun")
        call.cancel()
        yield data(b"never read")

    temporary = daemon.data_dir / "blobs" / ".tmp"
    call = api.documents.UploadDocument.future(pieces())
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    until(lambda: not list(temporary.iterdir()), "what arrived was removed")


# --- names, numbers and fields that break a rule ---

BAD_NAMES = ["", "memories/", "x", "memories/a/b", "memories/../../etc/passwd", "memories/" + "x" * 65, "Memories/a"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_by_its_field(api: Api, name: str) -> None:
    for call, request, field in (
        (api.memories.GetMemory, memory_pb2.GetMemoryRequest(name=name), "name"),
        (api.memories.DeleteMemory, memory_pb2.DeleteMemoryRequest(name=name), "name"),
        (api.documents.WriteDocument, memory_pb2.WriteDocumentRequest(parent=name, text=b"x"), "parent"),
        (api.documents.ListDocuments, memory_pb2.ListDocumentsRequest(parent=name), "parent"),
        (api.recall.Search, recall_pb2.SearchRequest(memories=[name], query="x"), "memories[0]"),
    ):
        failure = refused(lambda call=call, request=request: call(request))  # type: ignore[misc]
        assert (failure.code, failure.reason, failure.fields) == (INVALID, "INVALID_FIELD", [field])
        assert failure.message.startswith(f"{field}: ")


# These pass the pattern of a name, and name nothing: not a file, not a filter of the index, not SQL.
CUNNING = ["..", ".", "%2e%2e", "a\\b", '"', "' OR 1=1 --", "a\x00b", 'x" or tenant != "', "\u202e", "é"]


@pytest.mark.parametrize("id_", CUNNING)
def test_a_cunning_name_finds_nothing(api: Api, id_: str) -> None:
    name = f"memories/{id_}"
    document = f"{name}/documents/{id_}"
    for call, request in (
        (api.memories.GetMemory, memory_pb2.GetMemoryRequest(name=name)),
        (api.documents.WriteDocument, memory_pb2.WriteDocumentRequest(parent=name, text=b"x")),
        (api.documents.GetDocument, memory_pb2.GetDocumentRequest(name=document)),
        (api.documents.DeleteDocument, memory_pb2.DeleteDocumentRequest(name=document)),
        (api.recall.Search, recall_pb2.SearchRequest(memories=[name], query="x")),
        (api.recall.BuildContext, recall_pb2.BuildContextRequest(memories=[name], query="x")),
        (api.recall.Answer, recall_pb2.AnswerRequest(memories=[name], question="x")),
    ):
        failure = refused(lambda call=call, request=request: call(request))  # type: ignore[misc]
        assert failure.code in (grpc.StatusCode.NOT_FOUND, INVALID), failure


@pytest.mark.parametrize("id_", ["A", "-a", "a-", "a b", "a/b", "..", "é", "x" * 64])
def test_an_id_that_a_memory_can_not_have_is_refused(api: Api, id_: str) -> None:
    failure = refused(lambda: api.memories.CreateMemory(memory_pb2.CreateMemoryRequest(memory_id=id_)))
    assert (failure.code, failure.fields) == (INVALID, ["memory_id"])


def _search(**fields: Any) -> recall_pb2.SearchRequest:
    return recall_pb2.SearchRequest(**({"memories": ["memories/m"], "query": "x"} | fields))


def _answer(**fields: Any) -> recall_pb2.AnswerRequest:
    return recall_pb2.AnswerRequest(**({"memories": ["memories/m"], "question": "x"} | fields))


def _write(**fields: Any) -> memory_pb2.WriteDocumentRequest:
    return memory_pb2.WriteDocumentRequest(**({"parent": "memories/m", "text": b"x"} | fields))


def _messages(*messages: memory_pb2.Message) -> memory_pb2.WriteMessagesRequest:
    return memory_pb2.WriteMessagesRequest(parent="memories/m", messages=messages)


def _turn(**fields: Any) -> memory_pb2.Message:
    return memory_pb2.Message(**({"role": "user", "content": "x"} | fields))


def _value(**fields: Any) -> memory_pb2.MetadataValue:
    return memory_pb2.MetadataValue(**fields)


BAD_FIELDS: dict[str, tuple[Any, str]] = {
    "negative page": (memory_pb2.ListMemoriesRequest(page_size=-1), "page_size"),
    "huge page": (memory_pb2.ListMemoriesRequest(page_size=1001), "page_size"),
    "negative page of documents": (memory_pb2.ListDocumentsRequest(parent="memories/m", page_size=-1), "page_size"),
    "long token": (memory_pb2.ListMemoriesRequest(page_token="x" * 513), "page_token"),
    "negative page of tenants": (admin_pb2.ListTenantsRequest(page_size=-1), "page_size"),
    "no memories": (_search(memories=[]), "memories"),
    "33 memories": (_search(memories=["memories/m"] * 33), "memories"),
    "empty query": (_search(query=""), "query"),
    "long query": (_search(query="x" * 8193), "query"),
    "top_k of 101": (_search(top_k=101), "top_k"),
    "negative top_k": (_search(top_k=-1), "top_k"),
    "no budget": (recall_pb2.BuildContextRequest(memories=["memories/m"], query="x", max_tokens=-1), "max_tokens"),
    "empty question": (_answer(question=""), "question"),
    "unknown mode": (_answer(mode=17), "mode"),
    "answer's top_k of 101": (_answer(top_k=101), "top_k"),
    "endless answer": (_answer(max_tokens=4097), "max_tokens"),
    "hot": (_answer(temperature=2.1), "temperature"),
    "cold": (_answer(temperature=-0.1), "temperature"),
    "no number": (_answer(temperature=math.nan), "temperature"),
    "negative repeat_penalty": (_answer(repeat_penalty=-0.1), "repeat_penalty"),
    "repeat_penalty of 11": (_answer(repeat_penalty=11), "repeat_penalty"),
    "nine stops": (_answer(stop=["x"] * 9), "stop"),
    "empty stop": (_answer(stop=[""]), "stop[0]"),
    "unknown prior role": (_answer(prior_messages=[_turn(role="robot")]), "prior_messages[0].role"),
    "65 prior": (_answer(prior_messages=[_turn()] * 65), "prior_messages"),
    "long title": (_write(title="x" * 513), "title"),
    "long request id": (_write(request_id="x" * 129), "request_id"),
    "metadata key": (_write(metadata={"1st": _value(bool_value=True)}), 'metadata["1st"]'),
    "metadata NaN": (_write(metadata={"n": _value(number_value=math.nan)}), 'metadata["n"].number_value'),
    "metadata infinity": (_write(metadata={"n": _value(number_value=math.inf)}), 'metadata["n"].number_value'),
    "metadata of no kind": (_write(metadata={"n": _value()}), 'metadata["n"].kind'),
    "long metadata": (_write(metadata={"n": _value(string_value="x" * 1025)}), 'metadata["n"].string_value'),
    "65 metadata": (_write(metadata={f"k{n}": _value(bool_value=True) for n in range(65)}), "metadata"),
    "no messages": (_messages(), "messages"),
    "unknown role": (_messages(_turn(role="robot")), "messages[0].role"),
    "empty turn": (_messages(_turn(), _turn(content="")), "messages[1].content"),
    "speaker on two lines": (_messages(_turn(speaker="a\nb")), "messages[0].speaker"),
    "view": (memory_pb2.GetDocumentRequest(name="memories/m/documents/d", view=9), "view"),  # type: ignore[arg-type]
    "update without memory": (memory_pb2.UpdateMemoryRequest(), "memory"),
    "update of times": (
        memory_pb2.UpdateMemoryRequest(memory=memory_pb2.Memory(name="memories/m"), update_mask={"paths": ["create_time"]}),
        "update_mask",
    ),
    "job name": (jobs_pb2.WatchJobRequest(name="jobs/1"), "name"),
    "tenant id": (admin_pb2.CreateTenantRequest(tenant_id="Red"), "tenant_id"),
    "key name": (admin_pb2.RevokeApiKeyRequest(name="tenants/red"), "name"),
}


def _method_of(api: Api, request: Any) -> Callable[[Any], Any]:
    name = type(request).__name__.removesuffix("Request")
    stubs = (api.memories, api.documents, api.recall, api.jobs, api.admin)
    return next(getattr(stub, name) for stub in stubs if hasattr(stub, name))


@pytest.mark.parametrize("what", BAD_FIELDS)
def test_a_field_that_breaks_its_rule_is_named(api: Api, what: str) -> None:
    request, field = BAD_FIELDS[what]
    failure = refused(lambda: _method_of(api, request)(request))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")
    assert failure.fields == [field]
    assert failure.request_id


def test_every_broken_rule_is_said_at_once(api: Api) -> None:
    failure = refused(lambda: api.recall.Search(_search(query="", top_k=101)))
    assert set(failure.fields) == {"query", "top_k"}


def test_a_refusal_never_repeats_what_was_sent(api: Api) -> None:
    failure = refused(lambda: api.documents.WriteDocument(_write(title="zebra " * 100)))
    assert "zebra" not in failure.message


@pytest.mark.parametrize("time", [Timestamp(seconds=253402300800), Timestamp(seconds=-62135596801), Timestamp(nanos=-1)])
def test_a_time_out_of_range_is_refused(api: Api, memory: Memory, time: Timestamp) -> None:
    messages = _messages(_turn(time=time))
    messages.parent = memory.name
    for failure in (
        refused(lambda: api.documents.WriteMessages(messages)),
        write(api, memory, b"x", metadata={"t": _value(time_value=time)}),
    ):
        assert failure.code is INVALID
        assert "time" in failure.message


# --- ids that nothing has ---

NOWHERE, NOTHING = "memories/nowhere", "operations/nothing"
UNKNOWN: dict[str, Any] = {
    "GetMemory": memory_pb2.GetMemoryRequest(name=NOWHERE),
    "UpdateMemory": memory_pb2.UpdateMemoryRequest(memory=memory_pb2.Memory(name=NOWHERE)),
    "DeleteMemory": memory_pb2.DeleteMemoryRequest(name=NOWHERE),
    "WriteDocument": memory_pb2.WriteDocumentRequest(parent=NOWHERE, text=b"x"),
    "WriteMessages": memory_pb2.WriteMessagesRequest(parent=NOWHERE, messages=[_turn()]),
    "GetDocument": memory_pb2.GetDocumentRequest(name=f"{NOWHERE}/documents/none"),
    "ListDocuments": memory_pb2.ListDocumentsRequest(parent=NOWHERE),
    "DeleteDocument": memory_pb2.DeleteDocumentRequest(name=f"{NOWHERE}/documents/none"),
    "Search": _search(memories=[NOWHERE]),
    "BuildContext": recall_pb2.BuildContextRequest(memories=[NOWHERE], query="x"),
    "Answer": _answer(memories=[NOWHERE]),
    "WatchJob": jobs_pb2.WatchJobRequest(name=NOTHING),
    "RetryJob": jobs_pb2.RetryJobRequest(name=NOTHING),
    "GetTenant": admin_pb2.GetTenantRequest(name="tenants/nobody"),
    "CreateApiKey": admin_pb2.CreateApiKeyRequest(parent="tenants/nobody"),
    "ListApiKeys": admin_pb2.ListApiKeysRequest(parent="tenants/nobody"),
    "RevokeApiKey": admin_pb2.RevokeApiKeyRequest(name="tenants/nobody/apiKeys/none"),
    "GetUsage": admin_pb2.GetUsageRequest(name="tenants/nobody"),
    "GetOperation": operations_pb2.GetOperationRequest(name=NOTHING),
    "CancelOperation": operations_pb2.CancelOperationRequest(name=NOTHING),
    "WaitOperation": operations_pb2.WaitOperationRequest(name=NOTHING),
}


def _call(api: Api, method: str) -> Callable[[], Any]:
    stubs = (api.memories, api.documents, api.recall, api.jobs, api.admin, api.operations)
    stub = next(s for s in stubs if hasattr(s, method))
    return lambda: getattr(stub, method)(UNKNOWN[method])


@pytest.mark.parametrize("method", UNKNOWN)
def test_what_nothing_has_the_id_of_is_not_found(api: Api, method: str) -> None:
    failure = refused(_call(api, method))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert "no such" in failure.message


@pytest.mark.parametrize("name", ["", "operations/", "jobs/1", "operations/a/b", "nothing"])
def test_an_operation_of_a_bad_name_is_refused(api: Api, name: str) -> None:
    for call, request in (
        (api.operations.GetOperation, operations_pb2.GetOperationRequest(name=name)),
        (api.operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name)),
        (api.operations.WaitOperation, operations_pb2.WaitOperationRequest(name=name)),
    ):
        failure = refused(lambda call=call, request=request: call(request))  # type: ignore[misc]
        assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")


def test_bad_pages_of_operations_are_refused(api: Api) -> None:
    for request in (
        operations_pb2.ListOperationsRequest(page_size=-1),
        operations_pb2.ListOperationsRequest(page_size=1001),
        operations_pb2.ListOperationsRequest(page_token="nonsense"),
    ):
        failure = refused(lambda request=request: api.operations.ListOperations(request))  # type: ignore[misc]
        assert failure.code is INVALID


# --- deadlines ---


def test_a_deadline_of_1_ms_ends_any_call_and_the_daemon_goes_on(client: Client, api: Api) -> None:
    target = client.memory("in-a-hurry", create=True)
    document = target.write("The ferry leaves at nine.").wait()
    name = target.name
    answer = _answer(memories=[name], question="When does the ferry leave?")
    hurried: list[tuple[Any, Any]] = [
        (api.memories.GetMemory, memory_pb2.GetMemoryRequest(name=name)),
        (api.memories.ListMemories, memory_pb2.ListMemoriesRequest()),
        (api.documents.GetDocument, memory_pb2.GetDocumentRequest(name=document.name)),
        (api.documents.WriteDocument, memory_pb2.WriteDocumentRequest(parent=name, text=b"hurried")),
        (api.documents.UploadDocument, iter([header(target), data(b"hurried"), trailer(b"hurried")])),
        (api.recall.Search, _search(memories=[name], query="ferry")),
        (api.recall.BuildContext, recall_pb2.BuildContextRequest(memories=[name], query="ferry")),
        (api.recall.Answer, answer),
        (api.jobs.WatchJob, jobs_pb2.WatchJobRequest(name=document.job)),
        (api.operations.GetOperation, operations_pb2.GetOperationRequest(name=document.job)),
        (api.admin.GetUsage, admin_pb2.GetUsageRequest()),
    ]
    late = {call for call, request in hurried if _too_late(lambda call=call, request=request: call(request, timeout=0.001))}  # type: ignore[misc]
    assert {api.recall.Search, api.recall.BuildContext, api.recall.Answer} <= late  # a fast machine may meet the others
    assert target.search("ferry")[0].text == "The ferry leaves at nine."
    assert target.answer("When does the ferry leave?", max_tokens=1).usage.output_tokens == 1


def _too_late(call: Callable[[], Any]) -> bool:
    """Whether a call missed its deadline. It may meet it, but not fail in another way."""
    try:
        result = call()
        if hasattr(result, "__next__"):
            list(result)
    except grpc.RpcError as error:
        if Refusal(error).code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return True
    return False


def test_a_question_longer_than_the_prompt_is_refused_with_the_numbers(client: Client) -> None:
    target = client.memory("long-question", create=True)
    target.write("The ferry leaves at nine.").wait()
    api_error = refused_answer(target, "when? " * 1300)
    assert (api_error.code, api_error.reason) == (INVALID, "PROMPT_TOO_LONG")
    assert "2048" in api_error.message


def refused_answer(memory: Memory, question: str) -> Any:
    from memoryd_client import InvalidArgument

    with pytest.raises(InvalidArgument) as caught:
        memory.answer(question).text  # noqa: B018
    return caught.value


def test_times_may_lie_far_from_now(client: Client) -> None:
    target = client.memory("far-times", create=True)
    for year in (1, 9999):
        time = datetime(year, 1, 1, tzinfo=UTC)
        document = target.write(f"year {year}", metadata={"t": time}).document
        assert document.metadata["t"] == time
