"""A daemon's transport without a daemon: the services over the generated code, canned answers, and faults on demand.

What it remembers is what the client's tests need to see again. It does not learn, rank or generate: those are the daemon's.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import protovalidate
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from memoryd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    learn_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    recall_pb2,
    recall_pb2_grpc,
)
from tests.client.fake_learning import FakeLearning
from tests.client.fake_parts import Failure, found, packed, page_of


@dataclass
class Seen:
    """One call that arrived."""

    method: str
    metadata: dict[str, str]
    request: Any = None
    time_left: float = 0.0
    """What its client gave it of its timeout; huge where that is no limit."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Faults(grpc.ServerInterceptor):
    """Records every call, and fails, slows, cuts or otherwise meets the next ones of a method."""

    def __init__(self) -> None:
        self.calls: list[Seen] = []
        self._planned: dict[str, list[Callable[[], None]]] = {}
        self._cuts: dict[str, list[int]] = {}

    def meet(self, method: str, do: Callable[[], None]) -> None:
        """The next call of this method has this done first."""
        self._planned.setdefault(method, []).append(do)

    def fail(self, method: str, *, times: int = 1, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        def strike() -> None:
            raise Failure(code, "struck by the test")

        self._planned.setdefault(method, []).extend([strike] * times)

    def slow(self, method: str, seconds: float) -> None:
        self.meet(method, lambda: time.sleep(seconds))

    def cut(self, method: str, after: int) -> None:
        """The next stream of this method fails with UNAVAILABLE after so many responses."""
        self._cuts.setdefault(method, []).append(after)

    def of(self, method: str) -> list[Seen]:
        return [call for call in self.calls if call.method == method]

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        seen = Seen(method, {k: v for k, v in details.invocation_metadata if isinstance(v, str)})
        self.calls.append(seen)
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        def begin(request: Any, context: Any) -> None:
            seen.request, seen.time_left = request, context.time_remaining()
            context.add_callback(seen.cancelled.set)
            if (planned := self._planned.get(method)) and not handler.request_streaming:
                planned.pop(0)()
            if not handler.request_streaming:
                _check(request)

        def unary(request: Any, context: Any) -> Any:
            try:
                begin(request, context)
                return (handler.unary_unary or handler.stream_unary)(request, context)
            except Failure as failure:
                context.abort_with_status(rpc_status.to_status(failure.status))

        def stream(request: Any, context: Any) -> Iterator[Any]:
            try:
                begin(request, context)
                left = self._cuts[method].pop(0) if self._cuts.get(method) else -1
                for response in handler.unary_stream(request, context):
                    if left == 0:
                        raise Failure(grpc.StatusCode.UNAVAILABLE, "cut by the test")
                    left -= 1
                    yield response
            except Failure as failure:
                context.abort_with_status(rpc_status.to_status(failure.status))

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **codec)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(unary, **codec)
        return grpc.unary_unary_rpc_method_handler(unary, **codec)

    def strike(self, method: str) -> None:
        """For a servicer that takes a stream: fails in the middle where that is planned."""
        if planned := self._planned.get(method):
            planned.pop(0)()


class FakeDaemon(
    memory_pb2_grpc.MemoryServiceServicer,
    memory_pb2_grpc.DocumentServiceServicer,
    recall_pb2_grpc.RecallServiceServicer,
    jobs_pb2_grpc.JobServiceServicer,
    admin_pb2_grpc.AdminServiceServicer,
    FakeLearning,
    operations_pb2_grpc.OperationsServicer,
    health_pb2_grpc.HealthServicer,
):
    """All services in one object, on a loopback port."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0") -> None:
        FakeLearning.__init__(self)
        self.faults = Faults()
        self.memories: dict[str, Any] = {}
        self.documents: dict[str, Any] = {}
        self.jobs: dict[str, Any] = {}
        self.receipts: dict[str, Any] = {}
        self.tenants: dict[str, Any] = {}
        self.keys: dict[str, Any] = {}
        self.words = ["It ", "leaves ", "at ", "noon."]
        self.word_delay = 0.0
        self.cites = [0]
        self.job_ends = jobs_pb2.JOB_STATE_SUCCEEDED
        self._numbers = iter(range(1, 1 << 30))
        self._server = grpc.server(futures.ThreadPoolExecutor(16), interceptors=[self.faults])
        for register in (
            memory_pb2_grpc.add_MemoryServiceServicer_to_server,
            memory_pb2_grpc.add_DocumentServiceServicer_to_server,
            recall_pb2_grpc.add_RecallServiceServicer_to_server,
            jobs_pb2_grpc.add_JobServiceServicer_to_server,
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            learn_pb2_grpc.add_LearnServiceServicer_to_server,
            operations_pb2_grpc.add_OperationsServicer_to_server,
            health_pb2_grpc.add_HealthServicer_to_server,
        ):
            register(self, self._server)
        port = self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address)
        self.target = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    # memories

    def CreateMemory(self, request: Any, context: Any) -> Any:
        name = f"memories/{request.memory_id or f'm{next(self._numbers)}'}"
        if name in self.memories:
            raise Failure(grpc.StatusCode.ALREADY_EXISTS, f"there is a memory {name}")
        memory = memory_pb2.Memory()
        memory.CopyFrom(request.memory)
        memory.name = name
        memory.create_time.GetCurrentTime()
        memory.update_time.GetCurrentTime()
        self.memories[name] = memory
        return memory

    def GetMemory(self, request: Any, context: Any) -> Any:
        memory = found(self.memories, request.name)
        memory.document_count = len(self._of(request.name))
        return memory

    def ListMemories(self, request: Any, context: Any) -> Any:
        page, token = page_of(list(self.memories.values()), request)
        return memory_pb2.ListMemoriesResponse(memories=page, next_page_token=token)

    def UpdateMemory(self, request: Any, context: Any) -> Any:
        memory = found(self.memories, request.memory.name)
        for path in request.update_mask.paths:
            memory.ClearField(path)
            if path == "metadata":
                for key, value in request.memory.metadata.items():
                    memory.metadata[key].CopyFrom(value)
            else:
                setattr(memory, path, getattr(request.memory, path))
        return memory

    def DeleteMemory(self, request: Any, context: Any) -> Any:
        found(self.memories, request.name)
        del self.memories[request.name]
        gone = self._of(request.name)
        for name in gone:
            del self.documents[name]
        return self._erased(request.name, len(gone))

    # documents

    def WriteDocument(self, request: Any, context: Any) -> Any:
        return self._write(request, request.text, memory_pb2.Document.KIND_TEXT)

    def UploadDocument(self, requests: Iterator[Any], context: Any) -> Any:
        header = next(requests).header
        data = b""
        for piece in requests:
            if piece.WhichOneof("piece") == "trailer":
                if hashlib.sha256(data).hexdigest() != piece.trailer.sha256:
                    raise Failure(grpc.StatusCode.DATA_LOSS, "the sha256 differs")
                return self._write(header, data, memory_pb2.Document.KIND_TEXT)
            data += piece.data
            self.faults.strike("UploadDocument")
        raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "the upload has no trailer")

    def WriteMessages(self, request: Any, context: Any) -> Any:
        text = "\n".join(f"{m.speaker or m.role}: {m.content}" for m in request.messages)
        return self._write(request, text.encode(), memory_pb2.Document.KIND_MESSAGES)

    def GetDocument(self, request: Any, context: Any) -> Any:
        document = memory_pb2.Document()
        document.CopyFrom(found(self.documents, request.name))
        if request.view != memory_pb2.DOCUMENT_VIEW_FULL:
            document.ClearField("text")
        return document

    def ListDocuments(self, request: Any, context: Any) -> Any:
        found(self.memories, request.parent)
        page, token = page_of([self.documents[name] for name in self._of(request.parent)], request)
        return memory_pb2.ListDocumentsResponse(documents=page, next_page_token=token)

    def DeleteDocument(self, request: Any, context: Any) -> Any:
        found(self.documents, request.name)
        del self.documents[request.name]
        return self._erased(request.name, 1)

    # recall

    def Search(self, request: Any, context: Any) -> Any:
        return recall_pb2.SearchResponse(sources=self._sources(request)[: request.top_k or 4])

    def BuildContext(self, request: Any, context: Any) -> Any:
        sources = self._sources(request)
        return recall_pb2.BuildContextResponse(text="\n".join(s.text for s in sources), sources=sources, token_count=7)

    def Answer(self, request: Any, context: Any) -> Iterator[Any]:
        mode = request.mode or recall_pb2.MODE_HYBRID
        sources = recall_pb2.AnswerSources(sources=self._sources(request), mode=mode, warnings=["fake"])
        yield recall_pb2.AnswerEvent(sources=sources)
        for word in self.words:
            time.sleep(self.word_delay)
            yield recall_pb2.AnswerEvent(text=word)
        usage = recall_pb2.AnswerUsage(
            output_tokens=len(self.words),
            cache_hits={"process": 1},
            finish_reason=1,
            cited=self.cites,
            adapters=request.adapters,
        )
        yield recall_pb2.AnswerEvent(usage=usage)

    # jobs

    def GetOperation(self, request: Any, context: Any) -> Any:
        return self._operation(request.name)

    def ListOperations(self, request: Any, context: Any) -> Any:
        page, token = page_of([self._operation(name) for name in self.jobs], request)
        return operations_pb2.ListOperationsResponse(operations=page, next_page_token=token)

    def CancelOperation(self, request: Any, context: Any) -> Any:
        found(self.jobs, request.name).state = jobs_pb2.JOB_STATE_CANCELLED
        return empty_pb2.Empty()

    def RetryJob(self, request: Any, context: Any) -> Any:
        found(self.jobs, request.name).state = jobs_pb2.JOB_STATE_PENDING
        return self._operation(request.name)

    def WatchJob(self, request: Any, context: Any) -> Iterator[Any]:
        """A job moves on while it is watched, one stage an event."""
        job = found(self.jobs, request.name)
        yield job
        document = self.documents.get(job.target)
        for stage, reached in (("chunk", 1), ("index", 2), ("compress", 3)):
            if job.state not in (jobs_pb2.JOB_STATE_PENDING, jobs_pb2.JOB_STATE_RUNNING):
                return
            time.sleep(0.01)
            job.state, job.stage, job.done, job.total = jobs_pb2.JOB_STATE_RUNNING, stage, 1, 1
            if self.job_ends == jobs_pb2.JOB_STATE_SUCCEEDED and document is not None:
                document.stage = reached
            yield job
        job.state, job.error = self.job_ends, "" if self.job_ends == jobs_pb2.JOB_STATE_SUCCEEDED else "it broke"
        job.end_time.GetCurrentTime()
        if document is not None:
            self.receipts[job.name] = jobs_pb2.CompressReceipt(document=job.target, chunks=1, passages=2)
        yield job

    # admin and health

    def CreateTenant(self, request: Any, context: Any) -> Any:
        name = f"tenants/{request.tenant_id}"
        self.tenants[name] = admin_pb2.Tenant(name=name, display_name=request.display_name)
        return self.tenants[name]

    def GetTenant(self, request: Any, context: Any) -> Any:
        return found(self.tenants, request.name)

    def ListTenants(self, request: Any, context: Any) -> Any:
        page, token = page_of(list(self.tenants.values()), request)
        return admin_pb2.ListTenantsResponse(tenants=page, next_page_token=token)

    def CreateApiKey(self, request: Any, context: Any) -> Any:
        name = f"{request.parent}/apiKeys/k{next(self._numbers)}"
        self.keys[name] = admin_pb2.ApiKey(name=name, display_name=request.display_name, prefix="mk_abc")
        return admin_pb2.CreateApiKeyResponse(api_key=self.keys[name], secret="mk_abcdef")

    def ListApiKeys(self, request: Any, context: Any) -> Any:
        return admin_pb2.ListApiKeysResponse(api_keys=[k for n, k in self.keys.items() if n.startswith(request.parent)])

    def RevokeApiKey(self, request: Any, context: Any) -> Any:
        found(self.keys, request.name).revoke_time.GetCurrentTime()
        return empty_pb2.Empty()

    def GetUsage(self, request: Any, context: Any) -> Any:
        held = {"memories": len(self.memories), "documents": len(self.documents)}
        return admin_pb2.Usage(tenant=request.name or "tenants/default", **held)

    def Check(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    # what the services share

    def _of(self, memory: str) -> list[str]:
        return [name for name in self.documents if name.startswith(f"{memory}/")]

    def _write(self, header: Any, data: bytes, kind: int) -> Any:
        found(self.memories, header.parent)
        if header.replaces:
            found(self.documents, header.replaces)
        digest = hashlib.sha256(data).hexdigest()
        for name in self._of(header.parent):
            if self.documents[name].sha256 == digest:
                return memory_pb2.WriteResult(
                    document=self.documents[name], operation=self.documents[name].operation, already_stored=True
                )
        erase = ""
        if header.replaces:
            del self.documents[header.replaces]
            erase = self._erased(header.replaces, 1).name
        number = next(self._numbers)
        document = memory_pb2.Document(
            name=f"{header.parent}/documents/d{number}",
            title=header.title,
            kind=kind,
            stage=memory_pb2.STAGE_STORED,
            metadata=header.metadata,
            size_bytes=len(data),
            sha256=digest,
            text=data.decode()[:1000],
            text_truncated=len(data) > 1000,
            operation=f"operations/o{number}",
        )
        document.create_time.GetCurrentTime()
        self.documents[document.name] = document
        self._job(document.operation, "compress", document.name)
        return memory_pb2.WriteResult(document=document, operation=document.operation, erase_operation=erase)

    def _job(self, name: str, kind: str, target: str) -> None:
        self.jobs[name] = jobs_pb2.JobMetadata(name=name, kind=kind, target=target, state=jobs_pb2.JOB_STATE_PENDING)
        self.jobs[name].create_time.GetCurrentTime()

    def _erased(self, target: str, documents: int) -> Any:
        name = f"operations/o{next(self._numbers)}"
        self._job(name, "erase", target)
        self.receipts[name] = jobs_pb2.EraseReceipt(target=target, documents=documents, blobs=2, vectors=3)
        return self._operation(name)

    def _operation(self, name: str) -> Any:
        job = found(self.jobs, name)
        operation = operations_pb2.Operation(name=name, metadata=packed(job))
        if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            operation.done = True
            operation.response.CopyFrom(packed(self.receipts[name]))
        elif job.state in (jobs_pb2.JOB_STATE_DEAD, jobs_pb2.JOB_STATE_CANCELLED):
            operation.done = True
            operation.error.CopyFrom(status_pb2.Status(code=13, message=job.error))
        return operation

    def _sources(self, request: Any) -> list[Any]:
        for memory in request.memories:
            found(self.memories, memory)
        return [
            recall_pb2.Source(passage_id="0", document=name, title=d.title, end=len(d.text), score=1.0, text=d.text)
            for name, d in self.documents.items()
            if any(name.startswith(f"{memory}/") for memory in request.memories)
        ]


def _check(request: Any) -> None:
    if broken := protovalidate.collect_violations(request):
        fields = [(".".join(e.field_name for e in v.proto.field.elements), v.proto.message) for v in broken]
        raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "the request breaks a rule", fields)
