"""What the benchmarks share: timing, a memory that is gone afterwards, concurrency, and the rows that come out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from memoryd_client import AsyncClient, AsyncMemory

from bench.stats import Quantile, quantile
from memoryd.eval.figures import Row


@contextlib.asynccontextmanager
async def passing_memory(client: AsyncClient, name: str) -> AsyncIterator[AsyncMemory]:
    """A memory for one benchmark. When it is deleted its jobs end too, so that the next benchmark finds an idle daemon."""
    memory = client.memory(name, create=True)
    await memory.info()
    try:
        yield memory
    finally:
        await client.jobs.wait(await client.memories.delete(memory.name))


async def timed(work: Awaitable[object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def concurrently(workers: int, count: int, work: Callable[[int], Awaitable[object]]) -> tuple[list[float], float]:
    """Runs `work(0)` … `work(count - 1)`, `workers` at a time; gives each one's milliseconds, and how many a second."""
    numbers = iter(range(count))

    async def one() -> list[float]:
        return [await timed(work(number)) for number in numbers]

    began = time.perf_counter()
    parts = await asyncio.gather(*(one() for _ in range(workers)))
    return [ms for part in parts for ms in part], count / (time.perf_counter() - began)


def row(
    name: str,
    measured: Quantile | float,
    unit: str,
    baseline: float | None = None,
    below: float | None = None,
    above_ratio: float | None = None,
) -> Row:
    """A figure. `baseline` was measured in the same run; `below`, or `above_ratio` of the baseline, is the aim."""
    q = measured if isinstance(measured, Quantile) else None
    value = measured.value if isinstance(measured, Quantile) else measured
    ratio = value / baseline if baseline else None
    aim, met = "", None
    if below is not None:
        aim, met = f"< {below:,g} {unit}", value < below
    if above_ratio is not None and ratio is not None:
        aim, met = f"≥ {above_ratio:g} of the baseline", ratio >= above_ratio
    return Row(
        name,
        value,
        unit,
        low=q.low if q else None,
        high=q.high if q else None,
        n=q.n if q else None,
        baseline=baseline,
        ratio=ratio,
        aim=aim,
        met=met,
        command="make bench",
    )


def latency(name: str, ms: Sequence[float], below: float | None = None, floor: Sequence[float] | None = None) -> list[Row]:
    """Median and p99; the aim is the median's. `floor` are the baseline's milliseconds."""
    return [
        row(
            f"{name}, {label}",
            quantile(ms, q),
            "ms",
            baseline=quantile(floor, q).value if floor else None,
            below=below if q == 0.5 else None,
        )
        for label, q in (("median", 0.5), ("p99", 0.99))
    ]
