"""Writing: how soon a write is acknowledged, how soon it is searchable, and how many writers it takes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator

import grpc
from memoryd_client import AsyncClient

from bench import echo
from bench.lab import concurrently, latency, passing_memory, row, timed
from bench.texts import texts
from memoryd.eval.figures import Row

SIZE = 10_000
WRITES = 300
SEARCHABLE = 30
WRITERS = 32


async def acknowledge(client: AsyncClient) -> list[Row]:
    """Each write is followed by one of the same bytes to the floor, so that both meet the same load: the daemon indexes and
    compresses what was written before, as it would while an agent writes."""
    ours: list[float] = []
    floor: list[float] = []
    async with _echo() as write, passing_memory(client, "bench-write") as memory:
        for text in itertools.islice(texts(SIZE, seed=1), WRITES):
            ours.append(await timed(memory.write(text)))
            floor.append(await timed(write(text.encode())))
    return latency("write: acknowledged while others are indexed and compressed, 10 KB", ours, below=10.0, floor=floor)


async def searchable(client: AsyncClient) -> list[Row]:
    """One at a time on an idle daemon: the job is cancelled as soon as its document is searchable."""
    took: list[float] = []
    acknowledged: list[float] = []
    floor: list[float] = []
    async with _echo() as write, passing_memory(client, "bench-searchable") as memory:
        for text in itertools.islice(texts(SIZE, seed=2), SEARCHABLE):

            async def write_and_wait(text: str = text) -> str:
                began = time.perf_counter()
                written = await memory.write(text)
                acknowledged.append((time.perf_counter() - began) * 1000)
                await written.wait()
                return written.job

            floor.append(await timed(write(text.encode())))
            took.append(await timed(task := asyncio.ensure_future(write_and_wait())))
            await client.jobs.cancel(task.result())
    return [
        *latency("write: acknowledged by an idle daemon, 10 KB", acknowledged, below=10.0, floor=floor)[:1],
        *latency("write: searchable, 10 KB", took, below=2000.0)[:1],
    ]


async def writers(client: AsyncClient) -> list[Row]:
    """32 writers at a time."""
    made = texts(SIZE, seed=3)
    bodies = [next(made) for _ in range(WRITERS * 16)]
    async with passing_memory(client, "bench-writers") as memory:
        took, rate = await concurrently(WRITERS, len(bodies), lambda number: memory.write(bodies[number]))
    return [
        row("write: 32 writers, 10 KB each", rate, "1/s"),
        *latency("write: acknowledged with 32 writers", took),
    ]


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
    with tempfile.TemporaryDirectory() as directory:
        command = (sys.executable, "-m", "bench.echo", directory)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            port = int(await process.stdout.readline())
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel.unary_unary(echo.METHOD)
        finally:
            process.terminate()
            await process.wait()
