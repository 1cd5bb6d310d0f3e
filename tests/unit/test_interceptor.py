"""What a caller sees of an error, what rules a request is held to, and how long a call may go on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2

from memoryd import errors
from memoryd.api import interceptor
from memoryd.api.auth import Authenticator, hash_secret
from memoryd.api.documents import DocumentServicer
from memoryd.api.interceptor import CallInterceptor, status_of, validate
from memoryd.errors import InvalidArgument, MemorydError, Unavailable
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger
from memoryd.v1 import jobs_pb2, jobs_pb2_grpc, memory_pb2, memory_pb2_grpc, recall_pb2
from memoryd.write import DocumentWriter, Upload


def all_errors(kind: type[MemorydError] = MemorydError) -> list[type[MemorydError]]:
    return [
        kind,
        *(below for child in kind.__subclasses__() if child.__module__ == errors.__name__ for below in all_errors(child)),
    ]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_a_status_with_its_reason_and_the_request_id(kind: type[MemorydError]) -> None:
    status = status_of(kind("what to do", details={"key": "value"}), "r1")
    assert status.code == kind.code.value[0]
    assert status.message == "what to do"
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.domain, info.reason, dict(info.metadata)) == ("memoryd", kind.reason, {"key": "value"})
    assert request.request_id == "r1"


def test_every_error_is_drawn_in_the_tree() -> None:
    for kind in all_errors():
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.code.name in (errors.__doc__ or "")


def test_no_two_errors_share_a_reason() -> None:
    reasons = [kind.reason for kind in all_errors()]
    assert len(reasons) == len(set(reasons))
    assert MemorydError.code is grpc.StatusCode.INTERNAL


def test_a_broken_rule_names_the_field_and_the_rule_but_not_the_value() -> None:
    request = recall_pb2.SearchRequest(memories=["memories/zebra/zebra"], query="zebra", top_k=101)
    with pytest.raises(InvalidArgument) as caught:
        validate(request)
    assert dict(caught.value.violations).keys() == {"memories[0]", "top_k"}
    assert "zebra" not in caught.value.message
    bad = error_details_pb2.BadRequest()
    assert status_of(caught.value, "r").details[2].Unpack(bad)
    assert {violation.field for violation in bad.field_violations} == {"memories[0]", "top_k"}


def test_of_very_many_broken_rules_the_first_are_named() -> None:
    """A status travels in metadata, of which gRPC takes 8 KiB."""
    messages = [memory_pb2.Message(role="user", content="", speaker="a:b") for _ in range(1000)]
    with pytest.raises(InvalidArgument) as refused:
        validate(memory_pb2.WriteMessagesRequest(parent="memories/m", messages=messages))
    assert refused.value.message.endswith(" more")
    assert 0 < len(refused.value.violations) < 100
    assert status_of(refused.value, "r").ByteSize() * 2 < 8192


def test_a_good_request_passes() -> None:
    validate(memory_pb2.GetMemoryRequest(name="memories/m"))


@pytest.mark.parametrize("character", ["\U0001f600", "%", "\0", '"', "é", "語"])
def test_keys_of_any_characters_leave_a_status_that_travels(character: str) -> None:
    """The message travels percent-encoded, the details as base64, and gRPC takes 8 KiB of both."""
    metadata = {f"{number:02}" + character * 200: memory_pb2.MetadataValue() for number in range(64)}
    with pytest.raises(InvalidArgument) as refused:
        validate(memory_pb2.WriteDocumentRequest(parent="memories/m", text=b"x", metadata=metadata))
    status = status_of(refused.value, "r" * 128)
    message = quote(status.message, safe="".join(chr(c) for c in range(0x20, 0x7F) if c != ord("%")))
    assert len(message) + len(base64.b64encode(status.SerializeToString())) < 7 << 10
    assert refused.value.message.isascii()
    assert refused.value.message.endswith(" more")
    assert refused.value.violations


# --- calls that are open ---


class Watched(jobs_pb2_grpc.JobServiceServicer):
    """A job that goes on for ever."""

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Any) -> AsyncIterator[jobs_pb2.JobMetadata]:
        while True:
            yield jobs_pb2.JobMetadata()
            await asyncio.sleep(0.001)


class Daemon:
    """The interceptor with what stands around it in the daemon, on a real wire. Each tenant has a memory `m`."""

    def __init__(self, folder: Path, target: str, ledger: SqlLedger) -> None:
        self.blobs, self.ledger = folder / "blobs", ledger
        self.channel = grpc.aio.insecure_channel(target)
        self._keys: dict[str, str] = {}

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        if tenant not in self._keys:
            self.ledger.ensure_tenant(tenant)
            self.ledger.create_memory(tenant, "m", "", "", {}, None)
            self._keys[tenant] = self.ledger.create_key(tenant, "", hash_secret(tenant), "mk").id
        return (("authorization", f"Bearer {tenant}"),)

    def revoke(self, tenant: str) -> None:
        self.ledger.revoke_key(tenant, self._keys[tenant])

    async def upload(self, tenant: str, data: bytes = b"") -> Any:
        """One whose header has come, and its data if any."""
        stub: Any = memory_pb2_grpc.DocumentServiceStub(self.channel)
        call = stub.UploadDocument(metadata=self.metadata(tenant))
        await call.write(memory_pb2.UploadDocumentRequest(header=memory_pb2.UploadHeader(parent="memories/m")))
        if data:
            await call.write(memory_pb2.UploadDocumentRequest(data=data))
        return call

    async def end(self, call: Any, data: bytes) -> Any:
        trailer = memory_pb2.UploadTrailer(sha256=hashlib.sha256(data).hexdigest())
        await call.write(memory_pb2.UploadDocumentRequest(trailer=trailer))
        await call.done_writing()
        return await call

    def documents(self, tenant: str) -> int:
        return len(self.ledger.list_documents(tenant, "m", 10, "").items)

    def files(self) -> list[Path]:
        return [path for path in self.blobs.rglob("*") if path.is_file()]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    ledger, blobs = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}"), FsspecBlobs(str(tmp_path / "blobs"))
    nobody: Any = SimpleNamespace(wake=lambda: None)
    server = grpc.aio.server(interceptors=[CallInterceptor(Authenticator(ledger, "admin"))])
    documents = DocumentServicer(ledger, blobs, DocumentWriter(ledger, blobs, 1 << 20), nobody, nobody, nobody)
    memory_pb2_grpc.add_DocumentServiceServicer_to_server(documents, server)
    jobs_pb2_grpc.add_JobServiceServicer_to_server(Watched(), server)
    made = Daemon(tmp_path, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", ledger)
    await server.start()
    yield made
    await made.channel.close()
    await server.stop(None)
    ledger.close()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """How the call ends: its status, and what it says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # on disk: nothing tells when
        await asyncio.sleep(0.01)


async def test_an_upload_whose_key_is_revoked_meanwhile_stores_nothing(daemon: Daemon) -> None:
    call = await daemon.upload("red", b"The ferry leaves at nine.")
    await until(lambda: len(daemon.files()) == 1)
    daemon.revoke("red")
    code, said = await refusal(daemon.end(call, b"The ferry leaves at nine."))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "revoked" in said
    assert daemon.documents("red") == 0
    assert daemon.files() == []


async def test_an_upload_whose_key_is_good_is_stored(daemon: Daemon) -> None:
    call = await daemon.upload("red", b"The ferry leaves at nine.")
    assert (await daemon.end(call, b"The ferry leaves at nine.")).document.size_bytes == 25
    assert daemon.documents("red") == 1


async def test_nothing_follows_an_uploads_trailer(daemon: Daemon) -> None:
    call = await daemon.upload("red", b"text")
    await call.write(memory_pb2.UploadDocumentRequest(trailer=memory_pb2.UploadTrailer(sha256="0" * 64)))
    await call.write(memory_pb2.UploadDocumentRequest(data=b"more"))
    assert (await refusal(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_upload_that_goes_on_ends_soon_after_its_key_is_revoked(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "_KEY_SECONDS", 0.0)
    call = await daemon.upload("red", b"text")
    await until(lambda: len(daemon.files()) == 1)  # the key was looked up
    daemon.revoke("red")
    with contextlib.suppress(asyncio.InvalidStateError):  # of a write after the end
        await call.write(memory_pb2.UploadDocumentRequest(data=b"more"))
    assert (await refusal(call))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_of_responses_ends_soon_after_its_key_is_revoked(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "_KEY_SECONDS", 0.05)
    stub: Any = jobs_pb2_grpc.JobServiceStub(daemon.channel)
    watching = aiter(stub.WatchJob(jobs_pb2.WatchJobRequest(name="operations/j"), metadata=daemon.metadata("red")))
    for _ in range(100):
        await anext(watching)

    async def rest() -> None:
        async for _ in watching:
            pass

    daemon.revoke("red")
    assert (await refusal(rest()))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_ledger_that_cannot_be_asked_revokes_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def away(digest: str) -> None:
        asked.append(digest)
        raise Unavailable("the ledger is away")

    monkeypatch.setattr(interceptor, "_KEY_SECONDS", 0.0)
    stub: Any = jobs_pb2_grpc.JobServiceStub(daemon.channel)
    watching = aiter(stub.WatchJob(jobs_pb2.WatchJobRequest(name="operations/j"), metadata=daemon.metadata("red")))
    await anext(watching)
    call = await daemon.upload("red", b"text")
    await until(lambda: len(daemon.files()) == 1)
    monkeypatch.setattr(daemon.ledger, "find_key", away)
    while len(asked) < 3:
        await anext(watching)
    await call.done_writing()
    assert (await refusal(call))[0] is grpc.StatusCode.UNAVAILABLE, "what is to be stored waits for a sure answer"


async def test_the_key_of_a_stream_is_not_looked_up_for_each_piece(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    find = daemon.ledger.find_key
    monkeypatch.setattr(interceptor, "_KEY_SECONDS", 3600.0)
    monkeypatch.setattr(daemon.ledger, "find_key", lambda digest: looked_up.append(digest) or find(digest))
    call = await daemon.upload("red")
    for _ in range(20):
        await call.write(memory_pb2.UploadDocumentRequest(data=b"x"))
    await daemon.end(call, b"x" * 20)
    assert len(looked_up) == 2, "when it began, and when it ended"


async def test_an_upload_that_sends_no_data_has_no_file(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Upload] = []
    begin = DocumentWriter.upload

    def watched(*given: Any) -> Upload:
        begun.append(begin(*given))
        return begun[-1]

    monkeypatch.setattr(DocumentWriter, "upload", watched)
    call = await daemon.upload("red")
    await until(lambda: begun != [])
    assert daemon.files() == []
    await call.write(memory_pb2.UploadDocumentRequest(data=b"text"))
    await until(lambda: len(daemon.files()) == 1)
    call.cancel()
    await until(lambda: daemon.files() == [])


async def test_an_upload_that_is_silent_ends(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "_SILENCE_SECONDS", 0.2)
    code, said = await refusal(await daemon.upload("red", b"text"))
    assert code is grpc.StatusCode.CANCELLED
    assert "upload again" in said
    assert daemon.files() == []


@pytest.mark.parametrize(("of_one", "of_all", "others"), [(2, 4, True), (4, 2, False)])
async def test_a_tenant_and_all_tenants_have_so_many_uploads_at_a_time(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, of_one: int, of_all: int, others: bool
) -> None:
    monkeypatch.setattr(interceptor, "_UPLOADS_OF_ONE", of_one)
    monkeypatch.setattr(interceptor, "_UPLOADS", of_all)
    under_way = [await daemon.upload("red", b"%d" % number) for number in range(2)]
    await until(lambda: len(daemon.files()) == 2)
    code, said = await refusal(await daemon.upload("red"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again" in said
    blue = await daemon.upload("blue", b"b")
    if others:
        assert (await daemon.end(blue, b"b")).document.size_bytes == 1
    else:
        assert (await refusal(blue))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await daemon.end(under_way[0], b"0")
    again = await daemon.upload("red", b"2")
    assert (await daemon.end(again, b"2")).document.size_bytes == 1
    under_way[1].cancel()
