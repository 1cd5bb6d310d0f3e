"""What an upload sends: a header, the data piece by piece, and a trailer with its sha256."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from . import _wire
from ._errors import InvalidArgument

_PIECE = 256 * 1024


class UploadSource:
    """A path or an open binary file, to be sent from where it stands; more than once where it can be rewound."""

    def __init__(self, given: str | os.PathLike[str] | BinaryIO) -> None:
        self._owned = isinstance(given, (str, os.PathLike))
        self.title = ""
        if isinstance(given, (str, os.PathLike)):
            self.title, given = Path(given).name, Path(given).open("rb")  # noqa: SIM115  # closed by close()
        self._file = given
        self.failure: BaseException | None = None
        """What went wrong while reading: grpcio only says that something did."""
        self._lock = threading.Lock()
        self._closed = False
        self.rewindable = self._file.seekable()
        self._start = self._file.tell() if self.rewindable else 0

    def pieces(self, header: Any) -> Iterator[Any]:
        """The whole upload. Made anew for each attempt."""
        piece = _wire.message("UploadDocumentRequest")
        yield piece(header=header)
        digest, at = hashlib.sha256(), self._start
        while data := self._read(at):
            digest.update(data)
            at += len(data)
            yield piece(data=data)
        yield piece(trailer={"sha256": digest.hexdigest()})

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
                raise InvalidArgument("upload() takes files opened in binary mode: open(path, 'rb')")
            return data or b""
        except BaseException as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Closes the file where this opened it; nothing reads it from now on."""
        with self._lock:
            self._closed = True
            if self._owned:
                self._file.close()
