"""MemoryService: thin over the ledger."""

from __future__ import annotations

import asyncio
from typing import Any

from google.longrunning import operations_pb2

from memoryd.api import convert
from memoryd.api.caller import tenant
from memoryd.api.pages import fitting
from memoryd.jobs import JobRunner
from memoryd.recall.adapters import AdapterStore
from memoryd.recall.underway import AnswersUnderWay
from memoryd.store.base import Ledger
from memoryd.v1 import memory_pb2, memory_pb2_grpc


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    """Memories of the caller's tenant."""

    def __init__(self, ledger: Ledger, jobs: JobRunner, adapters: AdapterStore, answers: AnswersUnderWay) -> None:
        self._ledger = ledger
        self._answers = answers
        self._adapters = adapters
        self._jobs = jobs

    async def CreateMemory(self, request: memory_pb2.CreateMemoryRequest, context: Any) -> memory_pb2.Memory:
        memory = await asyncio.to_thread(
            self._ledger.create_memory,
            tenant(),
            request.memory_id,
            request.memory.display_name,
            request.memory.description,
            convert.metadata_to_core(request.memory.metadata),
            convert.request(request),
        )
        return convert.memory(memory)

    async def GetMemory(self, request: memory_pb2.GetMemoryRequest, context: Any) -> memory_pb2.Memory:
        return convert.memory(await asyncio.to_thread(self._ledger.get_memory, tenant(), convert.last(request.name)))

    async def ListMemories(self, request: memory_pb2.ListMemoriesRequest, context: Any) -> memory_pb2.ListMemoriesResponse:
        return await fitting(
            request.page_size,
            lambda size: self._ledger.list_memories(tenant(), size, request.page_token),
            lambda page: memory_pb2.ListMemoriesResponse(
                memories=[convert.memory(m) for m in page.items], next_page_token=page.next_token
            ),
        )

    async def UpdateMemory(self, request: memory_pb2.UpdateMemoryRequest, context: Any) -> memory_pb2.Memory:
        wanted = set(request.update_mask.paths) or {"display_name", "description", "metadata"}
        new = request.memory
        memory = await asyncio.to_thread(
            self._ledger.update_memory,
            tenant(),
            convert.last(new.name),
            convert.request(request),
            display_name=new.display_name if "display_name" in wanted else None,
            description=new.description if "description" in wanted else None,
            metadata=convert.metadata_to_core(new.metadata) if "metadata" in wanted else None,
        )
        return convert.memory(memory)

    async def DeleteMemory(self, request: memory_pb2.DeleteMemoryRequest, context: Any) -> operations_pb2.Operation:
        memory = convert.last(request.name)
        job = await asyncio.to_thread(self._ledger.delete_memory, tenant(), memory, convert.request(request))
        self._answers.end(tenant(), memory)
        await self._adapters.forget_tainted(tenant())
        self._jobs.wake()
        return convert.operation(job)
