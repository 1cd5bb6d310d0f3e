"""`client.memories`: creating, reading, changing and deleting memories."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from . import _convert
from ._caller import Caller
from ._records import Job
from ._transport import drain, finish
from ._types import MemoryInfo, Metadata


class AsyncMemories:
    """`client.memories`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def create(
        self,
        id: str = "",
        *,
        display_name: str = "",
        description: str = "",
        metadata: Metadata | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryInfo:
        """Creates a memory; memoryd makes its id where none is given. AlreadyExists: there is one of that id."""
        fields = _fields(display_name=display_name, description=description, metadata=metadata)
        return _convert.memory(
            await self._caller.unary(
                "MemoryService.CreateMemory", timeout=timeout, memory_id=id, memory=fields, request_id=request_id
            )
        )

    async def get(self, memory: str | MemoryInfo, *, timeout: float | None = None) -> MemoryInfo:
        """Reads one memory."""
        name = _convert.name_of("memories", memory)
        return _convert.memory(await self._caller.unary("MemoryService.GetMemory", timeout=timeout, name=name))

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[MemoryInfo, None]:
        """Iterates the tenant's memories, oldest first. `timeout` is for each page."""
        pages = self._caller.pages("MemoryService.ListMemories", "memories", timeout=timeout, page_size=page_size)
        async with aclosing(pages):
            async for memory in pages:
                yield _convert.memory(memory)

    async def update(
        self,
        memory: str | MemoryInfo,
        *,
        display_name: str | None = None,
        description: str | None = None,
        metadata: Metadata | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryInfo:
        """Changes what is given, and leaves what is None; metadata is replaced as a whole."""
        fields = _fields(display_name=display_name, description=description, metadata=metadata)
        mask = {"paths": sorted(fields)}
        if not fields:  # an empty mask would mean all three
            return await self.get(memory, timeout=timeout)
        fields["name"] = _convert.name_of("memories", memory)
        return _convert.memory(
            await self._caller.unary(
                "MemoryService.UpdateMemory", timeout=timeout, memory=fields, update_mask=mask, request_id=request_id
            )
        )

    async def delete(self, memory: str | MemoryInfo, *, request_id: str | None = None, timeout: float | None = None) -> Job:
        """Deletes a memory and its documents: unreachable when this returns. The job ends when the bytes are erased."""
        name = _convert.name_of("memories", memory)
        return _convert.job(
            await self._caller.unary("MemoryService.DeleteMemory", timeout=timeout, name=name, request_id=request_id)
        )


class Memories:
    """`client.memories`."""

    def __init__(self, inner: AsyncMemories) -> None:
        self._inner = inner

    def create(
        self,
        id: str = "",
        *,
        display_name: str = "",
        description: str = "",
        metadata: Metadata | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryInfo:
        """Creates a memory; memoryd makes its id where none is given. AlreadyExists: there is one of that id."""
        return finish(
            self._inner.create(
                id,
                display_name=display_name,
                description=description,
                metadata=metadata,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def get(self, memory: str | MemoryInfo, *, timeout: float | None = None) -> MemoryInfo:
        """Reads one memory."""
        return finish(self._inner.get(memory, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[MemoryInfo]:
        """Iterates the tenant's memories, oldest first. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))

    def update(
        self,
        memory: str | MemoryInfo,
        *,
        display_name: str | None = None,
        description: str | None = None,
        metadata: Metadata | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryInfo:
        """Changes what is given, and leaves what is None; metadata is replaced as a whole."""
        return finish(
            self._inner.update(
                memory,
                display_name=display_name,
                description=description,
                metadata=metadata,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def delete(self, memory: str | MemoryInfo, *, request_id: str | None = None, timeout: float | None = None) -> Job:
        """Deletes a memory and its documents: unreachable when this returns. The job ends when the bytes are erased."""
        return finish(self._inner.delete(memory, request_id=request_id, timeout=timeout))


def _fields(*, metadata: Metadata | None, **texts: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {key: text for key, text in texts.items() if text is not None}
    if metadata is not None:
        fields["metadata"] = _convert.metadata_out(metadata)
    return fields
