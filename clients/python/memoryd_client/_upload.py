"""What is sent piece by piece: a path or an open file. An upload has a header before it and its sha256 after it."""

from __future__ import annotations

import hashlib
import os
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from . import _wire
from ._caller import Caller, Deadline
from ._errors import InvalidArgument, MemorydError

_PIECE = 256 * 1024


class UploadSource:
    """A path or an open binary file, to be sent from where it stands; more than once where it can be rewound."""

    def __init__(self, given: str | os.PathLike[str] | BinaryIO) -> None:
        self._owned = isinstance(given, (str, os.PathLike))
        self.title = ""
        if isinstance(given, (str, os.PathLike)):
            self.title, given = Path(given).name, Path(given).open("rb")  # noqa: SIM115  # closed by __exit__
        self._file = given
        self.failure: BaseException | None = None
        """What went wrong while reading: grpcio only says that something did."""
        self._lock = threading.Lock()
        self._closed = False
        self.rewindable = self._file.seekable()
        self._start = self._file.tell() if self.rewindable else 0

    async def send(
        self, caller: Caller, name: str, pieces: Callable[[], Iterable[Any]], timeout: float, *, repeatable: bool
    ) -> Any:
        """Calls a `Service.Method` that takes a stream of requests; `pieces` makes them of data(), anew for each attempt."""
        method = _wire.method(name)
        try:
            return await caller.retrying(
                method,
                lambda left, sent: caller.transport.upload(method, pieces(), left, sent),
                deadline=Deadline(timeout),
                again=lambda: repeatable and self.rewindable and self.failure is None,
            )
        except (MemorydError, CancelledError):
            if self.failure is not None:
                raise self.failure from None
            raise

    def pieces(self, header: Any) -> Iterator[Any]:
        """The whole upload. Made anew for each attempt."""
        piece = _wire.message("UploadDocumentRequest")
        yield piece(header=header)
        digest = hashlib.sha256()
        for data in self.data():
            digest.update(data)
            yield piece(data=data)
        yield piece(trailer={"sha256": digest.hexdigest()})

    def data(self) -> Iterator[bytes]:
        """What is in it, in pieces. Made anew for each attempt."""
        at = self._start
        while data := self._read(at):
            at += len(data)
            yield data

    def _read(self, at: int) -> bytes:
        # grpcio may still be reading for a failed attempt, in another thread, when the next one begins: each keeps its
        # own place, so that one can't move the other's.
        try:
            with self._lock:
                if self._closed:
                    return b""
                if self.rewindable:
                    self._file.seek(at)
                data = self._file.read(_PIECE)
            if isinstance(data, str):
                raise InvalidArgument("only files opened in binary mode can be sent: open(path, 'rb')")
            return data or b""
        except BaseException as error:
            self.failure = error
            raise

    def __enter__(self) -> UploadSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the file where this opened it; nothing reads it from now on."""
        with self._lock:
            self._closed = True
            if self._owned:
                self._file.close()
