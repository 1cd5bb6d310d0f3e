"""The floor under a durable write: a bare gRPC server that flushes the bytes to a file of their own, and says so.

Run as a child process (`python -m bench.echo DIRECTORY`), so that both ends cost what the daemon's cost. It prints its port.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc

METHOD = "/bench.Echo/Write"


def _write_durably(directory: Path, name: str, data: bytes) -> None:
    """Write beside, flush, rename, flush the directory: the least that survives a power cut."""
    part = directory / f"{name}.part"
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(directory / name)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _serve(directory: Path) -> None:
    count = 0

    async def write(request: bytes, context: object) -> bytes:
        nonlocal count
        count += 1
        await asyncio.to_thread(_write_durably, directory, f"{count:06d}", request)
        return b"ok"

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("bench.Echo", {"Write": grpc.unary_unary_rpc_method_handler(write)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
