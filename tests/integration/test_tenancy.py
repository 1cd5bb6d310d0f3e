"""Nothing crosses from one tenant to another: every method of every service is tried with the other's ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from memoryd_client import Client, InvalidArgument, NotFound, PermissionDenied, Stage, Unauthenticated

from memoryd.v1 import admin_pb2, jobs_pb2, learn_pb2, memory_pb2, recall_pb2
from tests.integration.conftest import Keyed
from tests.integration.support import CALL_SECONDS, Refusal, files_with, refused

SECRET = "The vault of tenant blue opens with marmalade."


@dataclass(frozen=True)
class Ids:
    """What a tenant has: of tenant red here, or of the tenant whose ids are tried."""

    memory: str
    document: str
    job: str
    key: str
    example: str
    adapter: str


@pytest.fixture(scope="module")
def theirs(keyed: Keyed) -> Iterator[Ids]:
    """What tenant blue has."""
    with Client(keyed.daemon.target, api_key=keyed.blue) as client:
        memory = client.memory("only-blues", create=True)
        written = memory.write(SECRET, title="vault")
        written.wait(Stage.COMPRESSED)
        memory.examples.add_many([(f"What opens the vault {n}?", "marmalade", [written.document]) for n in range(3)])
        client.jobs.wait(memory.learn(epochs=1))
        example, adapter = next(iter(memory.examples.list())).name, next(iter(memory.adapters.list())).name
    with Client(keyed.daemon.target, api_key=keyed.admin) as client:
        key = client.admin.keys.list("blue")[0].name
    yield Ids(memory.name, written.document.name, written.job, key, example, adapter)
    with Client(keyed.daemon.target, api_key=keyed.blue) as client:
        assert client.memory("only-blues").documents.get(written.document, text=True).text == SECRET
        assert client.memories.get("only-blues").display_name == ""


def turns() -> list[memory_pb2.Message]:
    return [memory_pb2.Message(role="user", content="x")]


def upload(parent: str, replaces: str = "") -> list[memory_pb2.UploadDocumentRequest]:
    return [
        memory_pb2.UploadDocumentRequest(header=memory_pb2.UploadHeader(parent=parent, replaces=replaces)),
        memory_pb2.UploadDocumentRequest(data=b"x"),
        memory_pb2.UploadDocumentRequest(trailer=memory_pb2.UploadTrailer(sha256=hashlib.sha256(b"x").hexdigest())),
    ]


NOT_FOUND, DENIED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED

# Each method with a request that names what is another tenant's, and the status that it must end with. None: the method
# names nothing that could be another's, and has a test of its own below.
CROSSING: dict[str, tuple[Callable[[Ids], Any], grpc.StatusCode | None]] = {
    "CreateMemory": (lambda t: memory_pb2.CreateMemoryRequest(), None),
    "GetMemory": (lambda t: memory_pb2.GetMemoryRequest(name=t.memory), NOT_FOUND),
    "ListMemories": (lambda t: memory_pb2.ListMemoriesRequest(), None),
    "UpdateMemory": (
        lambda t: memory_pb2.UpdateMemoryRequest(memory=memory_pb2.Memory(name=t.memory, display_name="red's now")),
        NOT_FOUND,
    ),
    "DeleteMemory": (lambda t: memory_pb2.DeleteMemoryRequest(name=t.memory), NOT_FOUND),
    "WriteDocument": (lambda t: memory_pb2.WriteDocumentRequest(parent=t.memory, text=b"x"), NOT_FOUND),
    "UploadDocument": (lambda t: upload(t.memory), NOT_FOUND),
    "WriteMessages": (lambda t: memory_pb2.WriteMessagesRequest(parent=t.memory, messages=turns()), NOT_FOUND),
    "GetDocument": (
        lambda t: memory_pb2.GetDocumentRequest(name=t.document, view=memory_pb2.DOCUMENT_VIEW_FULL),
        NOT_FOUND,
    ),
    "ListDocuments": (lambda t: memory_pb2.ListDocumentsRequest(parent=t.memory), NOT_FOUND),
    "DeleteDocument": (lambda t: memory_pb2.DeleteDocumentRequest(name=t.document), NOT_FOUND),
    "Search": (lambda t: recall_pb2.SearchRequest(memories=[t.memory], query="vault"), NOT_FOUND),
    "BuildContext": (lambda t: recall_pb2.BuildContextRequest(memories=[t.memory], query="vault"), NOT_FOUND),
    "Answer": (lambda t: recall_pb2.AnswerRequest(memories=[t.memory], question="vault?"), NOT_FOUND),
    "CreateExamples": (
        lambda t: learn_pb2.CreateExamplesRequest(parent=t.memory, examples=[learn_pb2.Example(question="q", answer="a")]),
        NOT_FOUND,
    ),
    "GiveFeedback": (
        lambda t: learn_pb2.GiveFeedbackRequest(parent=t.memory, question="q", answer="a", verdict=learn_pb2.VERDICT_GOOD),
        NOT_FOUND,
    ),
    "ListExamples": (lambda t: learn_pb2.ListExamplesRequest(parent=t.memory), NOT_FOUND),
    "DeleteExample": (lambda t: learn_pb2.DeleteExampleRequest(name=t.example), NOT_FOUND),
    "ExportExamples": (lambda t: learn_pb2.ExportExamplesRequest(parent=t.memory), NOT_FOUND),
    "StudyMemory": (lambda t: learn_pb2.StudyMemoryRequest(name=t.memory), NOT_FOUND),
    "LearnMemory": (lambda t: learn_pb2.LearnMemoryRequest(name=t.memory), NOT_FOUND),
    "ListAdapters": (lambda t: learn_pb2.ListAdaptersRequest(parent=t.memory), NOT_FOUND),
    "GetAdapter": (lambda t: learn_pb2.GetAdapterRequest(name=t.adapter), NOT_FOUND),
    "ActivateAdapter": (lambda t: learn_pb2.ActivateAdapterRequest(name=t.adapter), NOT_FOUND),
    "RollBackAdapter": (lambda t: learn_pb2.RollBackAdapterRequest(name=t.memory), NOT_FOUND),
    "DeleteAdapter": (lambda t: learn_pb2.DeleteAdapterRequest(name=t.adapter), NOT_FOUND),
    "ExportAdapter": (lambda t: learn_pb2.ExportAdapterRequest(name=t.adapter), NOT_FOUND),
    "ImportAdapter": (lambda t: [learn_pb2.ImportAdapterRequest(parent=t.memory)], NOT_FOUND),
    "WatchJob": (lambda t: jobs_pb2.WatchJobRequest(name=t.job), NOT_FOUND),
    "RetryJob": (lambda t: jobs_pb2.RetryJobRequest(name=t.job), NOT_FOUND),
    "GetOperation": (lambda t: operations_pb2.GetOperationRequest(name=t.job), NOT_FOUND),
    "ListOperations": (lambda t: operations_pb2.ListOperationsRequest(), None),
    "CancelOperation": (lambda t: operations_pb2.CancelOperationRequest(name=t.job), NOT_FOUND),
    "WaitOperation": (lambda t: operations_pb2.WaitOperationRequest(name=t.job), NOT_FOUND),
    "DeleteOperation": (
        lambda t: operations_pb2.DeleteOperationRequest(name=t.job),
        grpc.StatusCode.UNIMPLEMENTED,  # for everyone: jobs are kept
    ),
    "CreateTenant": (lambda t: admin_pb2.CreateTenantRequest(tenant_id="green"), DENIED),
    "GetTenant": (lambda t: admin_pb2.GetTenantRequest(name="tenants/blue"), DENIED),
    "ListTenants": (lambda t: admin_pb2.ListTenantsRequest(), DENIED),
    "CreateApiKey": (lambda t: admin_pb2.CreateApiKeyRequest(parent="tenants/blue"), DENIED),
    "ListApiKeys": (lambda t: admin_pb2.ListApiKeysRequest(parent="tenants/blue"), DENIED),
    "RevokeApiKey": (lambda t: admin_pb2.RevokeApiKeyRequest(name=t.key), DENIED),
    "GetUsage": (lambda t: admin_pb2.GetUsageRequest(name="tenants/blue"), DENIED),
}

SERVICES: list[ServiceDescriptor] = [
    service
    for file in (memory_pb2, recall_pb2, learn_pb2, jobs_pb2, admin_pb2, operations_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: dict[str, MethodDescriptor] = {method.name: method for service in SERVICES for method in service.methods}


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any, key: str = "") -> Any:
    """Calls a method by its descriptor alone."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    response = message_factory.GetMessageClass(method.output_type)
    codec: Any = {"request_serializer": lambda m: m.SerializeToString(), "response_deserializer": response.FromString}
    options: Any = {"metadata": (("authorization", f"Bearer {key}"),) if key else (), "timeout": CALL_SECONDS}
    if method.client_streaming:
        return channel.stream_unary(path, **codec)(iter(request), **options)
    if method.server_streaming:
        return list(channel.unary_stream(path, **codec)(request, **options))
    return channel.unary_unary(path, **codec)(request, **options)


@pytest.fixture(scope="module")
def channel(keyed: Keyed) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(keyed.daemon.target) as connected:
        yield connected


def test_every_method_of_every_public_service_is_tried() -> None:
    assert set(METHODS) == set(CROSSING), "a new method needs a line in CROSSING"


def test_the_services_here_are_those_that_the_daemon_serves(channel: grpc.Channel) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
    served = {service.name for service in next(answers).list_services_response.service}
    open_to_all = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert served - open_to_all == {service.full_name for service in SERVICES}


@pytest.mark.parametrize("name", [name for name, (_, status) in CROSSING.items() if status])
def test_what_is_another_tenants_is_not_there(keyed: Keyed, channel: grpc.Channel, theirs: Ids, name: str) -> None:
    request, status = CROSSING[name]
    failure = refused(lambda: call(channel, METHODS[name], request(theirs), keyed.red))
    assert failure.code is status, failure
    assert "marmalade" not in failure.message


@pytest.mark.parametrize("name", [name for name, (_, status) in CROSSING.items() if status is NOT_FOUND])
def test_and_can_not_be_told_from_what_never_was(keyed: Keyed, channel: grpc.Channel, theirs: Ids, name: str) -> None:
    request, _ = CROSSING[name]
    of = "memories/never/{}/never".format
    key = "tenants/never/apiKeys/never"
    never = Ids("memories/never", of("documents"), "operations/never", key, of("examples"), of("adapters"))
    there = refused(lambda: call(channel, METHODS[name], request(theirs), keyed.red))
    not_there = refused(lambda: call(channel, METHODS[name], request(never), keyed.red))
    assert (there.code, there.reason, there.message) == (not_there.code, not_there.reason, not_there.message)


def test_anothers_memory_beside_ones_own_is_not_found_either(red: Client, theirs: Ids) -> None:
    mine = red.memory("reds", create=True)
    for ask in (red.search, red.context, lambda memories, text: red.answer(memories, text).text):
        with pytest.raises(NotFound):
            ask([mine, theirs.memory], "vault")


@pytest.mark.parametrize("name", ["WriteDocument", "UploadDocument", "WriteMessages"])
def test_anothers_document_cannot_be_replaced(red: Client, keyed: Keyed, channel: grpc.Channel, theirs: Ids, name: str) -> None:
    """Neither by its name, nor by its id as if it were in one's own memory; nor can it be told from what never was."""
    mine = red.memory("replacing", create=True)
    mine.info()
    anothers = theirs.document.rpartition("/")[2]
    tries = [theirs.document, f"{mine.name}/documents/{anothers}", f"{mine.name}/documents/never"]
    requests = {
        "WriteDocument": lambda old: memory_pb2.WriteDocumentRequest(parent=mine.name, text=b"x", replaces=old),
        "UploadDocument": lambda old: upload(mine.name, old),
        "WriteMessages": lambda old: memory_pb2.WriteMessagesRequest(parent=mine.name, messages=turns(), replaces=old),
    }
    failures = [refused(lambda old=old: call(channel, METHODS[name], requests[name](old), keyed.red)) for old in tries]
    assert {(f.code, f.reason) for f in failures} == {(NOT_FOUND, "REPLACED_NOT_FOUND")}
    assert len({f.message for f in failures}) == 1
    assert list(mine.documents.list()) == []


def test_lists_show_only_ones_own(red: Client, blue: Client, theirs: Ids) -> None:
    mine = red.memory("listed", create=True)
    job = mine.write("red's own").job
    memories = [memory.name for memory in red.memories.list()]
    assert mine.name in memories
    assert theirs.memory not in memories
    jobs = {found.name for found in red.jobs.list()}
    assert job in jobs
    assert jobs.isdisjoint({found.name for found in blue.jobs.list()})


def test_a_page_token_of_another_tenant_is_refused(red: Client, keyed: Keyed, channel: grpc.Channel) -> None:
    for number in range(2):
        red.memory(f"paged-{number}", create=True).info()
    first = memory_pb2.ListMemoriesRequest(page_size=1)
    token = call(channel, METHODS["ListMemories"], first, keyed.red).next_page_token
    second = memory_pb2.ListMemoriesRequest(page_token=token)
    assert call(channel, METHODS["ListMemories"], second, keyed.red).memories
    failure = refused(lambda: call(channel, METHODS["ListMemories"], second, keyed.blue))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_memory_of_the_same_id_is_another_memory(red: Client, blue: Client) -> None:
    text = "The word is sandcastle."
    mine, others = red.memory("same", create=True), blue.memory("same", create=True)
    written, also = mine.write(text), others.write(text)
    assert (written.already_stored, also.already_stored) == (False, False)
    assert written.document.id != also.document.id
    for one in (written, also):
        one.wait()
    assert [s.document for s in mine.search("sandcastle")] == [written.document.name]
    assert [s.document for s in others.search("sandcastle")] == [also.document.name]
    with pytest.raises(NotFound):
        mine.documents.get(also.document.name)
    red.jobs.wait(red.memories.delete("same"))
    assert [s.document for s in others.search("sandcastle")] == [also.document.name]
    assert others.documents.get(also.document, text=True).text == text


def test_the_same_request_id_is_another_tenants_own(red: Client, blue: Client) -> None:
    made = red.memories.create("requested", request_id="the-same")
    assert blue.memories.create("requested-by-blue", request_id="the-same").name != made.name


def test_search_and_answer_never_show_anothers_text(red: Client, theirs: Ids) -> None:
    mine = red.memory("curious", create=True)
    mine.write("The vault of tenant red is empty.", title="mine").wait()
    question = "What does the vault of tenant blue open with? marmalade"
    assert [s.title for s in mine.search(question, top_k=100)] == ["mine"]
    assert "marmalade" not in mine.context(question).text
    answer = mine.answer(question, max_tokens=1)
    assert [s.title for s in answer.sources] == ["mine"]
    assert answer.usage.full_source_tokens < 100


def test_usage_is_ones_own(red: Client, blue: Client, keyed: Keyed) -> None:
    assert red.admin.usage().tenant == "tenants/red"
    assert red.admin.usage("red") == red.admin.usage()
    assert blue.admin.usage().tenant == "tenants/blue"
    with Client(keyed.daemon.target, api_key=keyed.admin) as admin:
        assert admin.admin.usage("blue") == blue.admin.usage()


# --- keys ---


def unauthenticated(failure: Refusal) -> bool:
    return failure.code is grpc.StatusCode.UNAUTHENTICATED and failure.reason == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("key", ["", "mk_wrong"])
def test_no_method_answers_without_a_key_that_is_right(channel: grpc.Channel, theirs: Ids, name: str, key: str) -> None:
    failure = refused(lambda: call(channel, METHODS[name], CROSSING[name][0](theirs), key))
    assert unauthenticated(failure), failure
    assert "mk_wrong" not in failure.message


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "mk_x", ""])
def test_a_header_that_is_no_bearer_key_is_refused(channel: grpc.Channel, header: str) -> None:
    stub = channel.unary_unary("/memoryd.v1.MemoryService/ListMemories")
    failure = refused(lambda: stub(b"", metadata=(("authorization", header),), timeout=CALL_SECONDS))
    assert unauthenticated(failure)
    assert "authorization: Bearer" in failure.message


def test_a_revoked_key_is_refused_at_once_and_others_still_work(keyed: Keyed, red: Client) -> None:
    with Client(keyed.daemon.target, api_key=keyed.admin) as admin:
        made = admin.admin.keys.create("red", display_name="short-lived")
        with Client(keyed.daemon.target, api_key=made.secret) as client:
            list(client.memories.list())
            admin.admin.keys.revoke(made.key)
            with pytest.raises(Unauthenticated):
                list(client.memories.list())
        listed = {key.name: key for key in admin.admin.keys.list("red")}
        assert listed[made.key.name].revoke_time is not None
        assert made.secret.startswith(made.key.prefix)
        assert len(made.key.prefix) < len(made.secret) / 3
    list(red.memories.list())


def test_the_admin_key_has_no_memories(keyed: Keyed) -> None:
    with Client(keyed.daemon.target, api_key=keyed.admin) as admin:
        for ask in (
            lambda: list(admin.memories.list()),
            lambda: admin.memories.create("admins"),
            lambda: admin.memory("only-blues").search("vault"),
            lambda: admin.answer(["only-blues"], "vault?").text,
            lambda: list(admin.jobs.list()),
            lambda: admin.admin.usage(),
        ):
            with pytest.raises(PermissionDenied):
                ask()


def test_the_admin_manages_tenants(keyed: Keyed) -> None:
    with Client(keyed.daemon.target, api_key=keyed.admin) as admin:
        made = admin.admin.tenants.create("green", display_name="Green")
        assert admin.admin.tenants.get("green") == made
        assert {"tenants/red", "tenants/blue", "tenants/green"} <= {t.name for t in admin.admin.tenants.list(page_size=1)}
        with pytest.raises(InvalidArgument):
            admin.admin.tenants.create("Not A Tenant")


def test_secrets_are_nowhere_on_disk_but_the_admins_in_its_file(keyed: Keyed) -> None:
    data_dir = keyed.daemon.data_dir
    for secret in (keyed.red, keyed.blue):
        assert files_with(secret.encode(), data_dir) == []
        digest = hashlib.sha256(secret.encode()).hexdigest()
        assert any(name.startswith("ledger.db") for name in files_with(digest.encode(), data_dir))
    assert files_with(keyed.admin.encode(), data_dir) == ["admin.key"]
    assert (data_dir / "admin.key").stat().st_mode & 0o077 == 0


# --- what is open to all ---


def test_health_answers_without_a_key(keyed: Keyed) -> None:
    with Client(keyed.daemon.target) as client:
        assert client.health().name == "SERVING"


def test_reflection_describes_the_api_without_a_key(channel: grpc.Channel) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="memoryd.v1.MemoryService")
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in next(answers).file_descriptor_response.file_descriptor_proto
    ]
    assert any(service.name == "MemoryService" for file in files for service in file.service)
