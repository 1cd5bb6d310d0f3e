"""Blobs over fsspec: local files by default, any object store by its URL.

A blob is written beside, under a temporary name, and moved to its key when it is whole. On local disks it is flushed before
and its directory after the move, so that a blob that was acknowledged is there after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from memoryd.durable import flush
from memoryd.errors import Cancelled, DataLoss, MemorydError, NotFound, ResourceExhausted, Unavailable

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@+-]{0,199}")  # no dot first: neither `..` nor the temporary folder
_TEMPORARY = ".tmp"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FsspecBlobs:
    """`base.Blobs`. One instance is shared by all threads."""

    def __init__(self, url: str) -> None:
        """`url`: a local folder, or whatever fsspec takes (`s3://bucket/folder`, `memory://…`)."""
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._durable: set[str] = set()  # folders that many blobs share, on disk for certain
        with _translated():
            self._fs.makedirs(f"{self._root}/{_TEMPORARY}", exist_ok=True)

    def put(self, tenant: str, key: str, data: bytes) -> None:
        """Writes beside, flushes to disk, renames: whole or not at all. NotFound for a key that is not the tenant's;
        ResourceExhausted on a full disk; Unavailable."""
        self._path(tenant, key)
        writer = self.writer(tenant)
        try:
            writer.write(data)
            writer.commit(key)
        finally:
            writer.abort()

    def writer(self, tenant: str) -> FsspecBlobWriter:
        """For data that does not fit in memory. Errors as for `put`."""
        return FsspecBlobWriter(self, tenant)

    def get(self, tenant: str, key: str, sha256: str = "") -> bytes:
        """NotFound; DataLoss where the checksum (if given) differs; Unavailable."""
        path = self._path(tenant, key)
        with _translated():
            data: bytes = self._fs.cat_file(path)
        _verify(hashlib.sha256(data).hexdigest(), sha256)
        return data

    def read_range(self, tenant: str, key: str, start: int, end: int, sha256: str = "") -> bytes:
        """Bytes [start, end). NotFound; DataLoss where the blob is shorter or the checksum (if given) differs."""
        path = self._path(tenant, key)
        with _translated():
            data: bytes = self._fs.cat_file(path, start=start, end=end) if end > start else b""
        if len(data) != max(end - start, 0):
            raise DataLoss("a blob is shorter than it was", reason="BLOB_TRUNCATED")
        _verify(hashlib.sha256(data).hexdigest(), sha256)
        return data

    def stream(self, tenant: str, key: str, sha256: str = "", block: int = 1 << 20) -> Iterator[bytes]:
        """In blocks; DataLoss at the end where the checksum (if given) differs. NotFound; Unavailable."""
        path = self._path(tenant, key)
        digest = hashlib.sha256()
        with _translated(), self._fs.open(path, "rb") as file:
            while data := file.read(block):
                digest.update(data)
                yield data
        _verify(digest.hexdigest(), sha256)

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        """Deletes all under it, where it names a folder (`a/b` is not in the prefix of `a/bc`), and the blob of that
        key; returns how many blobs there were."""
        path = self._path(tenant, prefix.rstrip("/"))
        with _translated():
            self._fs.invalidate_cache()
            found = self._fs.find(path)
            if found:
                self._durable = {folder for folder in list(self._durable) if not folder.startswith(path)}
                self._fs.rm(path, recursive=True)
                if self._local:
                    flush(os.path.dirname(path))
        return len(found)

    def documents(self, tenant: str) -> Iterator[tuple[str, str]]:
        """(memory, document) of all documents that have blobs. NotFound; Unavailable."""
        for memory in self._folders(self._path(tenant, tenant)):
            for document in self._folders(memory):
                yield PurePosixPath(memory).name, PurePosixPath(document).name

    def sweep(self, older_than_seconds: float) -> int:
        """Removes abandoned temporary files of writers that never committed; returns how many."""
        count = 0
        with _translated():
            self._fs.invalidate_cache()
            for path in self._fs.find(f"{self._root}/{_TEMPORARY}"):
                with contextlib.suppress(FileNotFoundError):  # its writer was faster
                    if time.time() - self._fs.modified(path).timestamp() >= older_than_seconds:
                        self._fs.rm_file(path)
                        count += 1
        return count

    def _path(self, tenant: str, key: str) -> str:
        """Where the key lies. NotFound for one that is not the tenant's, or could lead anywhere else."""
        segments = key.split("/")
        if segments[0] != tenant or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise NotFound("no such blob")
        return f"{self._root}/{key}"

    def _folders(self, path: str) -> list[str]:
        with _translated():
            self._fs.invalidate_cache()
            if not self._fs.isdir(path):
                return []
            return [str(entry["name"]) for entry in self._fs.ls(path, detail=True) if entry["type"] == "directory"]

    def _temporary(self) -> str:
        return f"{self._root}/{_TEMPORARY}/{secrets.token_hex(16)}"

    def _publish(self, temporary: str, path: str) -> None:
        folder = str(PurePosixPath(path).parent)
        if not self._local:
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.mv(temporary, path)
            return
        os.makedirs(folder, exist_ok=True)
        os.replace(temporary, path)
        # All flushes at the end: a journaling file system makes one commit of them, and finds nothing to do for the rest.
        flush(folder)
        parent = os.path.dirname(folder)
        flush(parent)
        while len(parent) > len(self._root) and parent not in self._durable:  # another thread may have made it just now
            flush(os.path.dirname(parent))
            self._durable.add(parent)
            parent = os.path.dirname(parent)


class FsspecBlobWriter:
    """`base.BlobWriter`, for one thread at a time. It has a file from the first data on: who sends none takes none."""

    def __init__(self, blobs: FsspecBlobs, tenant: str) -> None:
        self._blobs = blobs
        self._tenant = tenant
        self._digest = hashlib.sha256()
        self._size = 0
        self._path = blobs._temporary()
        self._committed = False
        self._aborted = False
        self._file: IO[bytes] | Any = None

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: bytes) -> None:
        """ResourceExhausted on a full disk; Unavailable."""
        with self._guarded():
            if self._file is None:
                self._file = self._blobs._fs.open(self._path, "wb")
            if self._aborted:  # in the meantime, when there was no file yet: this one must not stay
                raise Cancelled("the blob is not wanted any more")
            self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def commit(self, key: str) -> None:
        """Durable and visible under the key at once, or not at all. Errors as for `Blobs.put`."""
        if self._file is None:
            self.write(b"")
        with self._guarded():
            path = self._blobs._path(self._tenant, key)
            if self._blobs._local:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            self._blobs._publish(self._path, path)
            self._committed = True

    def abort(self) -> None:
        """Leaves nothing. Harmless after commit."""
        if self._committed:
            return
        self._aborted = True
        if self._file is None:
            return
        with contextlib.suppress(Exception):  # what cannot be written cannot be flushed either
            self._file.close()
        with contextlib.suppress(Exception):  # sweep() finds what stays
            self._blobs._fs.rm_file(self._path)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with _translated():
                yield
        except BaseException:
            self.abort()
            raise


def _verify(actual: str, expected: str) -> None:
    if expected and actual != expected:
        raise DataLoss("a blob's bytes are not what their checksum says")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound("no such blob") from None
    except MemorydError:
        raise
    except Exception as error:  # each object store has its own
        code = error.errno if isinstance(error, OSError) else None
        if code in _NO_ROOM:
            raise ResourceExhausted("no room left for blobs: free disk space", reason="DISK_FULL") from None
        name = errno.errorcode.get(code, "") if code else ""
        raise Unavailable(f"blobs cannot be used just now ({name or type(error).__name__}): try again") from None
