"""DocumentService: writes, uploads, conversations; reading and deleting them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.longrunning import operations_pb2

from memoryd import core
from memoryd.api import convert
from memoryd.api.caller import tenant
from memoryd.api.pages import fitting
from memoryd.compress.conversation import render_conversation
from memoryd.errors import InvalidArgument
from memoryd.jobs import JobRunner
from memoryd.recall.adapters import AdapterStore
from memoryd.recall.underway import AnswersUnderWay
from memoryd.store.base import Blobs, Ledger, Written
from memoryd.v1 import memory_pb2, memory_pb2_grpc
from memoryd.write import DocumentWriter

_INLINE = 1 << 20  # bytes of text that GetDocument returns at most


class DocumentServicer(memory_pb2_grpc.DocumentServiceServicer):
    """Documents of the caller's tenant."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        writer: DocumentWriter,
        jobs: JobRunner,
        adapters: AdapterStore,
        answers: AnswersUnderWay,
    ) -> None:
        self._ledger = ledger
        self._answers = answers
        self._adapters = adapters
        self._blobs = blobs
        self._writer = writer
        self._jobs = jobs

    async def WriteDocument(self, request: memory_pb2.WriteDocumentRequest, context: Any) -> memory_pb2.WriteResult:
        written = await asyncio.to_thread(
            self._writer.write,
            tenant(),
            convert.last(request.parent),
            core.Kind.TEXT,
            request.text,
            request.title,
            convert.metadata_to_core(request.metadata),
            convert.request(request),
            convert.replaced(request),
        )
        return await self._result(written, request)

    async def WriteMessages(self, request: memory_pb2.WriteMessagesRequest, context: Any) -> memory_pb2.WriteResult:
        text = "".join(render_conversation(convert.message(m) for m in request.messages))
        written = await asyncio.to_thread(
            self._writer.write,
            tenant(),
            convert.last(request.parent),
            core.Kind.MESSAGES,
            text.encode(),
            request.title,
            convert.metadata_to_core(request.metadata),
            convert.request(request),
            convert.replaced(request),
        )
        return await self._result(written, request)

    async def UploadDocument(
        self, request_iterator: AsyncIterator[memory_pb2.UploadDocumentRequest], context: Any
    ) -> memory_pb2.WriteResult:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("header"):
            raise InvalidArgument("an upload begins with a header", reason="UPLOAD_ORDER")
        header = first.header
        upload = await asyncio.to_thread(
            self._writer.upload,
            tenant(),
            convert.last(header.parent),
            header.title,
            convert.metadata_to_core(header.metadata),
            convert.replaced(header),
        )
        try:
            sha256 = ""
            async for piece in request_iterator:  # to its end, not to the trailer: only there the key is known to be still good
                if sha256 or piece.HasField("header"):
                    raise InvalidArgument("an upload has one header, then data, then the trailer", reason="UPLOAD_ORDER")
                if piece.HasField("trailer"):
                    sha256 = piece.trailer.sha256
                else:
                    await asyncio.to_thread(upload.write, piece.data)
            if not sha256:
                raise InvalidArgument(
                    "the upload ended without its trailer: nothing was stored, upload again", reason="UPLOAD_TRUNCATED"
                )
            # The digest of a repeat must cover the content, which the header does not.
            request = header.request_id and core.Request(header.request_id, convert.digest(header) + sha256)
            written = await asyncio.to_thread(upload.finish, sha256, request or None)
        finally:
            upload.abort()
        return await self._result(written, header)

    async def GetDocument(self, request: memory_pb2.GetDocumentRequest, context: Any) -> memory_pb2.Document:
        memory, document_id = convert.child_ids(request.name)
        document = await asyncio.to_thread(self._ledger.get_document, tenant(), memory, document_id)
        if request.view != memory_pb2.DOCUMENT_VIEW_FULL:
            return convert.document(document)
        whole = document.size_bytes <= _INLINE
        data = await asyncio.to_thread(
            self._blobs.read_range,
            tenant(),
            document.blob,
            0,
            min(document.size_bytes, _INLINE),
            document.sha256 if whole else "",
        )
        # Only the cut itself can split a character; what is stored is valid UTF-8.
        return convert.document(document, data.decode("utf-8", "strict" if whole else "ignore"), truncated=not whole)

    async def ListDocuments(self, request: memory_pb2.ListDocumentsRequest, context: Any) -> memory_pb2.ListDocumentsResponse:
        memory = convert.last(request.parent)
        return await fitting(
            request.page_size,
            lambda size: self._ledger.list_documents(tenant(), memory, size, request.page_token),
            lambda page: memory_pb2.ListDocumentsResponse(
                documents=[convert.document(d) for d in page.items], next_page_token=page.next_token
            ),
        )

    async def DeleteDocument(self, request: memory_pb2.DeleteDocumentRequest, context: Any) -> operations_pb2.Operation:
        memory, document = convert.child_ids(request.name)
        job = await asyncio.to_thread(self._ledger.delete_document, tenant(), memory, document, convert.request(request))
        self._answers.end(tenant(), memory, document)
        await self._adapters.forget_tainted(tenant())
        self._jobs.wake()
        return convert.operation(job)

    async def _result(self, written: Written, request: Any) -> memory_pb2.WriteResult:
        self._jobs.wake()
        if written.erase is not None:
            self._answers.end(tenant(), written.erase.payload["memory"], written.erase.payload["document"])
            await self._adapters.forget_tainted(tenant())
        return memory_pb2.WriteResult(
            document=convert.document(written.document),
            operation=core.operation_name(written.job.id),
            already_stored=written.already_stored,
            erase_operation="" if written.erase is None else core.operation_name(written.erase.id),
        )
