"""`memory.adapters`: the versions of a memory's LoRA, and which of them answers are given with."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, BinaryIO

from . import _convert, _wire
from ._caller import Caller, Ready, build
from ._export import Target, save
from ._learning import Adapter
from ._settings import LONG_TIMEOUT
from ._transport import drain, finish
from ._upload import UploadSource


class AsyncAdapters:
    """`memory.adapters`."""

    def __init__(self, caller: Caller, memory: str, ready: Ready) -> None:
        self._caller = caller
        self._memory = memory
        self._ready = ready

    async def get(self, adapter: str | Adapter, *, timeout: float | None = None) -> Adapter:
        """Reads one adapter: its lineage, its verdict, and its curve."""
        return _convert.adapter(await self._call("GetAdapter", timeout, name=self._name(adapter)))

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[Adapter, None]:
        """Iterates the memory's adapters, oldest first. `timeout` is for each page."""
        left = await self._ready(timeout)
        pages = self._caller.pages(
            "LearnService.ListAdapters", "adapters", timeout=timeout, first=left, parent=self._memory, page_size=page_size
        )
        async with aclosing(pages):
            async for adapter in pages:
                yield _convert.adapter(adapter)

    async def activate(self, adapter: str | Adapter, *, timeout: float | None = None) -> Adapter:
        """Serves this adapter from now on, whatever its verdict. FailedPrecondition: it is tainted, or of another base
        model."""
        return _convert.adapter(await self._call("ActivateAdapter", timeout, name=self._name(adapter)))

    async def roll_back(self, *, timeout: float | None = None) -> Adapter | None:
        """Serves the nearest ancestor of the active adapter that is not tainted again, and gives it; None: it has none, and the
        reader alone is served. FailedPrecondition: none is active."""
        response = await self._call("RollBackAdapter", timeout, name=self._memory)
        return _convert.adapter(response.active) if response.HasField("active") else None

    async def delete(self, adapter: str | Adapter, *, timeout: float | None = None) -> None:
        """Deletes an adapter. The active one is rolled back first."""
        left = await self._ready(timeout)
        await self._caller.delete("LearnService.DeleteAdapter", timeout=left, name=self._name(adapter))

    async def export(self, adapter: str | Adapter, target: Target, *, timeout: float = LONG_TIMEOUT) -> None:
        """Writes an adapter as a tar archive, a plain PEFT directory and lineage.json, to a path or an open binary file.
        A path is written beside and renamed: where the export fails, what was there stays. OSError: it can't be written."""
        left = await self._ready(timeout)
        name = self._name(adapter)
        await save(self._caller, "LearnService.ExportAdapter", "data", target, timeout=left, name=name)

    async def import_(self, source: str | os.PathLike[str] | BinaryIO, *, timeout: float = LONG_TIMEOUT) -> Adapter:
        """Takes what export() gave, or a plain PEFT directory in a tar archive: a file, or what an open binary file gives
        from where it stands. The adapter is not activated. OSError: the file can't be read."""
        left = await self._ready(timeout)
        part = _wire.message("ImportAdapterRequest")
        parent = build(part, {"parent": self._memory})

        def parts() -> Iterator[Any]:
            yield parent
            for data in file.data():
                yield part(data=data)

        with UploadSource(source) as file:
            # Never repeated: nothing would tell the daemon that the second one is the first one again.
            response = await file.send(self._caller, "LearnService.ImportAdapter", parts, left, repeatable=False)
        return _convert.adapter(response)

    async def _call(self, method: str, timeout: float | None, *, name: str) -> Any:
        left = await self._ready(timeout)
        return await self._caller.unary(f"LearnService.{method}", timeout=left, name=name)

    def _name(self, adapter: str | Adapter) -> str:
        return _convert.name_in(self._memory, "adapters", adapter)


class Adapters:
    """`memory.adapters`."""

    def __init__(self, inner: AsyncAdapters) -> None:
        self._inner = inner

    def get(self, adapter: str | Adapter, *, timeout: float | None = None) -> Adapter:
        """Reads one adapter: its lineage, its verdict, and its curve."""
        return finish(self._inner.get(adapter, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[Adapter]:
        """Iterates the memory's adapters, oldest first. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))

    def activate(self, adapter: str | Adapter, *, timeout: float | None = None) -> Adapter:
        """Serves this adapter from now on, whatever its verdict. FailedPrecondition: it is tainted, or of another base
        model."""
        return finish(self._inner.activate(adapter, timeout=timeout))

    def roll_back(self, *, timeout: float | None = None) -> Adapter | None:
        """Serves the nearest ancestor of the active adapter that is not tainted again, and gives it; None: it has none, and the
        reader alone is served. FailedPrecondition: none is active."""
        return finish(self._inner.roll_back(timeout=timeout))

    def delete(self, adapter: str | Adapter, *, timeout: float | None = None) -> None:
        """Deletes an adapter. The active one is rolled back first."""
        return finish(self._inner.delete(adapter, timeout=timeout))

    def export(self, adapter: str | Adapter, target: Target, *, timeout: float = LONG_TIMEOUT) -> None:
        """Writes an adapter as a tar archive, a plain PEFT directory and lineage.json, to a path or an open binary file.
        A path is written beside and renamed: where the export fails, what was there stays. OSError: it can't be written."""
        return finish(self._inner.export(adapter, target, timeout=timeout))

    def import_(self, source: str | os.PathLike[str] | BinaryIO, *, timeout: float = LONG_TIMEOUT) -> Adapter:
        """Takes what export() gave, or a plain PEFT directory in a tar archive: a file, or what an open binary file gives
        from where it stands. The adapter is not activated. OSError: the file can't be read."""
        return finish(self._inner.import_(source, timeout=timeout))
