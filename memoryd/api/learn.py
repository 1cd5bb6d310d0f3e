"""LearnService: examples, learning, and adapters."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from google.longrunning import operations_pb2

from memoryd import core
from memoryd.api import convert
from memoryd.api.caller import tenant
from memoryd.api.pages import USUAL, fitting
from memoryd.core import AdapterState, JobKind, Origin
from memoryd.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from memoryd.jobs import JobRunner
from memoryd.learn.adapter_files import MAX_BYTES, AdapterFiles, pack_files, unpack_files
from memoryd.learn.curve import draw
from memoryd.learn.imported import imported, named_documents
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore, blob_key
from memoryd.recall.prompt import REFUSAL
from memoryd.store.base import Blobs, Ledger
from memoryd.v1 import learn_pb2, learn_pb2_grpc

_PIECE = 1 << 20
_IMPORTS = 1  # unpacked at a time: a few bytes may become 512 MiB, which are held until the adapter is stored
_MOST_HELD = 2 * MAX_BYTES  # of archives that are received, or wait to be unpacked; of one tenant, one of the largest
_POINTS = 10_000  # of a curve, at most: a longer one is thinned out
_T = TypeVar("_T")


class LearnServicer(learn_pb2_grpc.LearnServiceServicer):
    """Learning of memories of the caller's tenant."""

    def __init__(self, ledger: Ledger, blobs: Blobs, models: Models, adapters: AdapterStore, jobs: JobRunner) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._models = models
        self._adapters = adapters
        self._jobs = jobs
        self._imports = asyncio.Semaphore(_IMPORTS)
        self._held: Counter[str] = Counter()  # bytes of archives, by tenant

    async def CreateExamples(self, request: learn_pb2.CreateExamplesRequest, context: Any) -> learn_pb2.CreateExamplesResponse:
        memory = convert.last(request.parent)
        new = [(e.question, e.answer, _documents(memory, e.documents)) for e in request.examples]
        made, held = await asyncio.to_thread(
            self._ledger.add_examples, tenant(), memory, new, Origin.SUPPLIED, convert.request(request)
        )
        return learn_pb2.CreateExamplesResponse(examples=[convert.example(e) for e in made], already_stored=held)

    async def GiveFeedback(self, request: learn_pb2.GiveFeedbackRequest, context: Any) -> learn_pb2.Example:
        corrected = request.verdict == learn_pb2.VERDICT_CORRECTED
        if corrected != bool(request.correction.strip()):
            raise InvalidArgument("correction: goes with VERDICT_CORRECTED, and with nothing else", reason="INVALID_FIELD")
        answer = {
            learn_pb2.VERDICT_GOOD: request.answer,
            learn_pb2.VERDICT_BAD: REFUSAL,
            learn_pb2.VERDICT_CORRECTED: request.correction,
        }[request.verdict]
        memory = convert.last(request.parent)
        new = [(request.question, answer, _documents(memory, request.documents))]
        made, _ = await asyncio.to_thread(
            self._ledger.add_examples, tenant(), memory, new, Origin.FEEDBACK, convert.request(request)
        )
        if not made:  # a late repeat of what was deleted since
            raise FailedPrecondition("the example of this request was deleted since", reason="EXAMPLE_DELETED")
        return convert.example(made[0])

    async def ListExamples(self, request: learn_pb2.ListExamplesRequest, context: Any) -> learn_pb2.ListExamplesResponse:
        memory = convert.last(request.parent)
        return await fitting(
            request.page_size,
            lambda size: self._ledger.list_examples(tenant(), memory, size, request.page_token),
            lambda page: learn_pb2.ListExamplesResponse(
                examples=[convert.example(e) for e in page.items], next_page_token=page.next_token
            ),
        )

    async def DeleteExample(self, request: learn_pb2.DeleteExampleRequest, context: Any) -> learn_pb2.DeleteExampleResponse:
        await asyncio.to_thread(self._ledger.delete_example, tenant(), *convert.child_ids(request.name))
        return learn_pb2.DeleteExampleResponse()

    async def ExportExamples(
        self, request: learn_pb2.ExportExamplesRequest, context: Any
    ) -> AsyncIterator[learn_pb2.ExportExamplesResponse]:
        token, piece = "", b""
        while True:
            page = await asyncio.to_thread(self._ledger.list_examples, tenant(), convert.last(request.parent), USUAL, token)
            for example in page.items:
                line = json.dumps(_exported(example), ensure_ascii=False).encode() + b"\n"
                if piece and len(piece) + len(line) > _PIECE:
                    yield learn_pb2.ExportExamplesResponse(jsonl=piece)
                    piece = b""
                piece += line
            token = page.next_token
            if not token:
                break
        if piece:
            yield learn_pb2.ExportExamplesResponse(jsonl=piece)

    async def StudyMemory(self, request: learn_pb2.StudyMemoryRequest, context: Any) -> operations_pb2.Operation:
        payload = {"max_examples": str(request.max_examples)} if request.max_examples else {}
        return await self._job(JobKind.STUDY, request, payload)

    async def LearnMemory(self, request: learn_pb2.LearnMemoryRequest, context: Any) -> operations_pb2.Operation:
        payload = {"epochs": str(request.epochs)} if request.epochs else {}
        if request.keep_inactive:
            payload["keep_inactive"] = "yes"
        if request.modes:
            payload["modes"] = ",".join(str(int(mode)) for mode in dict.fromkeys(request.modes))
        return await self._job(JobKind.LEARN, request, payload)

    async def ListAdapters(self, request: learn_pb2.ListAdaptersRequest, context: Any) -> learn_pb2.ListAdaptersResponse:
        memory = convert.last(request.parent)
        return await fitting(
            request.page_size,
            lambda size: self._ledger.list_adapters(tenant(), memory, size, request.page_token),
            lambda page: learn_pb2.ListAdaptersResponse(
                adapters=[convert.adapter(a) for a in page.items], next_page_token=page.next_token
            ),
        )

    async def GetAdapter(self, request: learn_pb2.GetAdapterRequest, context: Any) -> learn_pb2.Adapter:
        adapter = await asyncio.to_thread(self._ledger.get_adapter, tenant(), *convert.child_ids(request.name))
        out = convert.adapter(adapter)
        if adapter.state is not AdapterState.TAINTED:
            files = await asyncio.to_thread(self._adapters.read, tenant(), adapter)
            points = await asyncio.to_thread(_points, files.curve)
            out.lineage.CopyFrom(convert.lineage(files.lineage))
            out.curve.extend(learn_pb2.LossPoint(step=p["step"], loss=p["loss"]) for p in points)
            if points:
                out.curve_png = await asyncio.to_thread(draw, points)
        return out

    async def ActivateAdapter(self, request: learn_pb2.ActivateAdapterRequest, context: Any) -> learn_pb2.Adapter:
        memory, id_ = convert.child_ids(request.name)
        adapter = await asyncio.to_thread(self._ledger.get_adapter, tenant(), memory, id_)
        if why := self._adapters.misfit(adapter):
            raise FailedPrecondition(f"the adapter cannot be used, {why}", reason="ADAPTER_MISFIT")
        return convert.adapter(await asyncio.to_thread(self._ledger.activate_adapter, tenant(), memory, id_))

    async def RollBackAdapter(
        self, request: learn_pb2.RollBackAdapterRequest, context: Any
    ) -> learn_pb2.RollBackAdapterResponse:
        active = await asyncio.to_thread(self._ledger.roll_back_adapter, tenant(), convert.last(request.name))
        return learn_pb2.RollBackAdapterResponse(active=convert.adapter(active) if active else None)

    async def DeleteAdapter(self, request: learn_pb2.DeleteAdapterRequest, context: Any) -> learn_pb2.DeleteAdapterResponse:
        memory, adapter = convert.child_ids(request.name)
        await asyncio.to_thread(self._ledger.delete_adapter, tenant(), memory, adapter)
        await self._adapters.forget(tenant(), [adapter])
        self._jobs.wake()
        return learn_pb2.DeleteAdapterResponse()

    async def ExportAdapter(
        self, request: learn_pb2.ExportAdapterRequest, context: Any
    ) -> AsyncIterator[learn_pb2.ExportAdapterResponse]:
        adapter = await asyncio.to_thread(self._ledger.get_adapter, tenant(), *convert.child_ids(request.name))
        if adapter.state is AdapterState.TAINTED:
            raise FailedPrecondition("the adapter was trained with a document that is deleted", reason="ADAPTER_TAINTED")
        data = await asyncio.to_thread(self._packed, adapter)
        for at in range(0, len(data), _PIECE):
            yield learn_pb2.ExportAdapterResponse(data=data[at : at + _PIECE])

    def _packed(self, adapter: core.Adapter) -> bytes:
        """Its archive, of which the ledger knows before anybody has it. Blocks."""
        files = self._adapters.read(adapter.tenant, adapter)
        self._ledger.record_export(adapter.tenant, adapter.memory, adapter.id, files.weights_sha256)
        return pack_files(files)

    async def ImportAdapter(
        self, request_iterator: AsyncIterator[learn_pb2.ImportAdapterRequest], context: Any
    ) -> learn_pb2.Adapter:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.parent:
            raise InvalidArgument("an import begins with the parent", reason="UPLOAD_ORDER")
        memory = convert.last(first.parent)
        await asyncio.to_thread(self._ledger.require_memories, tenant(), [memory])
        data = bytearray()
        try:
            async for piece in request_iterator:
                if piece.parent:
                    raise InvalidArgument("an import has one parent, then data", reason="UPLOAD_ORDER")
                self._hold(data, piece.data)
            async with self._imports:
                return convert.adapter(await self._import(memory, data))
        finally:
            self._held[tenant()] -= len(data)

    def _hold(self, data: bytearray, piece: bytes) -> None:
        """Adds the piece. ResourceExhausted where the archive is too large, or memory has no room for it just now."""
        if len(data) + len(piece) > MAX_BYTES:
            raise ResourceExhausted(f"an adapter's archive has at most {MAX_BYTES} bytes", reason="TOO_LARGE")
        if self._held[tenant()] + len(piece) > MAX_BYTES or self._held.total() + len(piece) > _MOST_HELD:
            raise ResourceExhausted(
                "other imports under way leave this one no room: try again when one of them has ended", reason="IMPORTS_BUSY"
            )
        data += piece
        self._held[tenant()] += len(piece)

    async def _import(self, memory: str, data: bytearray) -> core.Adapter:
        adapter, files = await _ended(asyncio.to_thread(self._unpacked, tenant(), memory, data))
        try:
            await self._try_on(adapter, files)
            return await self._record(adapter, files)
        except BaseException:  # the client may have gone away
            await self._undo_import(adapter)
            raise

    async def _try_on(self, adapter: core.Adapter, files: AdapterFiles) -> None:
        """What does not fit is refused now, and not by the first answer."""
        try:
            await self._models.worker.load_adapter(adapter.id, files.config, files.weights)
        except DataLoss as error:  # of bytes that were never ours
            raise InvalidArgument(error.message, reason="ADAPTER_MISFIT", details=error.details) from None

    def _unpacked(self, tenant: str, memory: str, data: bytearray) -> tuple[core.Adapter, AdapterFiles]:
        """Blocks."""
        return imported(tenant, memory, unpack_files(bytes(data)), self._models.info)

    async def _record(self, adapter: core.Adapter, files: AdapterFiles) -> core.Adapter:
        """Blob, then row. FailedPrecondition where it may not be."""
        key = blob_key(adapter.tenant, adapter.memory, adapter.id)
        archive, weights = await asyncio.to_thread(lambda: (pack_files(files), files.weights_sha256))
        await _ended(asyncio.to_thread(self._blobs.put, adapter.tenant, key, archive))
        named = named_documents(files.lineage)
        recorded = await _ended(asyncio.to_thread(self._ledger.add_adapter, adapter, named, False, weights))
        if recorded is None:
            raise FailedPrecondition("the memory was deleted meanwhile", reason="MEMORY_DELETED")
        return recorded

    async def _undo_import(self, adapter: core.Adapter) -> None:
        """Nothing of it stays, unless it was recorded just as the client went away."""
        if adapter.id in await asyncio.to_thread(self._ledger.recorded, adapter.tenant, [adapter.id]):
            return
        await self._adapters.forget(adapter.tenant, [adapter.id])
        prefix = core.adapter_prefix(adapter.tenant, adapter.memory, adapter.id)
        await asyncio.to_thread(self._blobs.delete_prefix, adapter.tenant, prefix)

    async def _job(self, kind: JobKind, request: Any, payload: dict[str, str]) -> operations_pb2.Operation:
        job = await asyncio.to_thread(
            self._ledger.request_learning, tenant(), convert.last(request.name), kind, payload, convert.request(request)
        )
        self._jobs.wake()
        return convert.operation(job)


async def _ended(work: Coroutine[Any, Any, _T]) -> _T:
    """Its result. What runs in a thread goes on when its caller is cancelled: that is raised when it has ended."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _points(curve: bytes) -> list[dict[str, Any]]:
    """Rows of a curve, as many as are shown."""
    lines = curve.decode().splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // _POINTS + 1]]


def _documents(memory: str, names: Any) -> list[str]:
    """Ids of documents of this memory."""
    pairs = [convert.child_ids(name) for name in names]
    if any(of != memory for of, _ in pairs):
        raise InvalidArgument("documents: an example rests on documents of its own memory", reason="INVALID_FIELD")
    return [document for _, document in pairs]


def _exported(example: core.Example) -> dict[str, Any]:
    return {
        "question": example.question,
        "answer": example.answer,
        "documents": [core.document_name(example.memory, document) for document in example.documents],
        "origin": example.origin.name.lower(),
        "create_time": example.create_time.isoformat(),
    }
