"""Stores are called in threads, and one that hangs does not hold up the others."""

from __future__ import annotations

import asyncio
import threading

from memoryd.threads import StoreThreads


class Index:
    """It hangs until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def search(self) -> str:
        self.go_on.wait()
        return threading.current_thread().name


class Ledger:
    def read(self) -> str:
        return threading.current_thread().name


async def test_calls_of_an_index_that_hangs_leave_all_threads_to_the_other_stores() -> None:
    asyncio.get_running_loop().set_default_executor(StoreThreads(2, Index))
    index = Index()
    hanging = [asyncio.create_task(asyncio.to_thread(index.search)) for _ in range(5)]
    try:
        async with asyncio.timeout(30):
            names = await asyncio.gather(*(asyncio.to_thread(Ledger().read) for _ in range(5)))
        assert not any(task.done() for task in hanging)
    finally:
        index.go_on.set()
    assert not set(names) & set(await asyncio.gather(*hanging))
