"""What an export writes to: a path, where it is whole or not there at all, or an open binary file."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from . import _wire
from ._caller import Caller
from ._errors import InvalidArgument

Target: TypeAlias = str | os.PathLike[str] | BinaryIO


async def save(caller: Caller, method: str, field: str, target: Target, /, *, timeout: float, **fields: Any) -> None:
    """Calls a `Service.Method` that streams bytes in this field of its responses, and writes them to the target."""
    stream = caller.stream(method, timeout=timeout, **fields)
    with _Sink(target) as sink:
        try:
            while (piece := await stream.read()) is not None:
                await caller.transport.off_loop(partial(sink.write, getattr(piece, field)))
            await caller.transport.off_loop(sink.finish)
        finally:
            stream.cancel()


class _Sink:
    def __init__(self, target: Target) -> None:
        self._path: Path | None = None
        if isinstance(target, (str, os.PathLike)):
            self._path = Path(os.path.realpath(target))  # a link stays, and what it leads to is replaced
            if self._path.is_dir():  # said now, not after everything was streamed
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            self._part = self._path.with_name(f".memoryd-{_wire.new_id()}.part")
            target = self._part.open("xb")
        self._file = target

    def write(self, data: bytes) -> None:
        while data:
            try:
                written = self._file.write(data)
            except TypeError:
                raise InvalidArgument("an export takes files opened in binary mode: open(path, 'wb')") from None
            data = b"" if written is None else data[written:]  # an unbuffered file may take a part of it

    def finish(self) -> None:
        """Puts it in its place; until then what was at the path is untouched."""
        if self._path is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._path is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)
