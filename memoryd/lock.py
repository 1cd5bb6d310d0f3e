"""One daemon for each data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from memoryd.errors import FailedPrecondition


class DataDirLock:
    """Held for as long as the process lives: the kernel lets go of it even on kill -9."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "memoryd.lock"
        self._file = -1

    def __enter__(self) -> Self:
        """FailedPrecondition where another daemon holds it, naming its process."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise FailedPrecondition(
                f"another memoryd (process {holder}) runs on {self._path.parent}: "
                "stop it, or choose another directory with --data-dir",
                reason="DATA_DIR_LOCKED",
                details={"pid": holder},
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)
