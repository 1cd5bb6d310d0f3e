"""Watches of jobs: however many watch one, the ledger is asked once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

from memoryd.core import Job
from memoryd.errors import ResourceExhausted

WATCH_SECONDS = 1.0  # how often the ledger is asked for a watched job that nobody announced: what other processes change
MOST_ASKED = 100  # times a second, for all watched jobs: the more they are, the less often for each, or nothing else is done
MAX_WATCHES = 1000  # of one tenant, at a time


class Watches:
    """Those of a process. `read` gives the job of a tenant as it is now."""

    def __init__(self, read: Callable[[str, str], Awaitable[Job]]) -> None:
        self._read = read
        self._watched: dict[tuple[str, str], _Watched] = {}

    def publish(self, tenant: str, job_id: str) -> None:
        """The job has changed."""
        if watched := self._watched.get((tenant, job_id)):
            watched.changed.set()

    async def watch(self, tenant: str, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now, then after each change, until it has ended. NotFound; ResourceExhausted (too many watches)."""
        with self._watching(tenant, job_id) as watched:
            watched.changed.set()  # nothing has, but a new watcher does not wait for that
            job, seen = await self._ask(watched), None
            while True:
                if job != seen:
                    yield job
                    seen = job
                if job.state.ended:
                    return
                missed = watched.latest if watched.latest != seen else None  # while the watcher was busy with the last
                job = missed or await self._ask(watched)

    @contextlib.contextmanager
    def _watching(self, tenant: str, job_id: str) -> Iterator[_Watched]:
        watches = sum(watched.watchers for (of, _), watched in self._watched.items() if of == tenant)
        if watches >= MAX_WATCHES:
            raise ResourceExhausted(
                f"{watches} watches of jobs are open, as many as a tenant may have: end some, or ask with GetOperation",
                reason="TOO_MANY_WATCHES",
            )
        key = (tenant, job_id)
        watched = self._watched.setdefault(key, _Watched(lambda: self._read(*key)))
        watched.watchers += 1
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                watched.end()
                del self._watched[key]

    def _ask(self, watched: _Watched) -> Awaitable[Job]:
        return watched.ask(max(WATCH_SECONDS, len(self._watched) / MOST_ASKED))


class _Watched:
    """A job that is watched: the ledger is asked once for all its watchers, however many they are."""

    def __init__(self, read: Callable[[], Awaitable[Job]]) -> None:
        self.watchers = 0
        self.latest: Job | None = None
        self.changed = asyncio.Event()
        self._read = read
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[Job] | None = None

    async def ask(self, pause: float) -> Job:
        """The job after its next change, or after so long. It is read after this call, never before."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask(pause))
        return await asyncio.shield(self._next)  # one watcher that goes away does not take it from the others

    def end(self) -> None:
        """Nobody watches any more."""
        if self._next is not None:
            self._next.cancel()

    async def _ask(self, pause: float) -> Job:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self.changed.wait()
        async with self._reading:
            self._next = None  # who asks from here on must not be told what was read before
            self.changed.clear()
            self.latest = await self._read()
            return self.latest
