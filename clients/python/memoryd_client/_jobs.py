"""Jobs: reading, following, waiting. `reach` waits for a document's stage by way of its job."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeAlias

from . import _convert
from ._caller import Caller, Deadline
from ._errors import DeadlineExceeded, FailedPrecondition, JobFailed, MemorydError, Unavailable
from ._records import Job, JobState
from ._settings import LONG_TIMEOUT
from ._transport import drain, finish
from ._types import Document, Stage

# A stream is attached to anew so often: it ends waits on a connection that died without a word, and each attachment
# begins with the job's state, so that a waiter looks at its document at least as often.
_ATTACHMENT = 5.0
_LOOK = 1.0

Read: TypeAlias = Callable[[float], Awaitable[Document]]
"""Reads a document within a timeout."""


class AsyncJobs:
    """`client.jobs`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get(self, job: str | Job, *, timeout: float | None = None) -> Job:
        """Reads one job."""
        name = _convert.name_of("operations", job)
        return _convert.job(await self._caller.unary("google.longrunning.Operations.GetOperation", timeout=timeout, name=name))

    async def list(self, *, page_size: int | None = None, timeout: float | None = None) -> AsyncGenerator[Job, None]:
        """Iterates the tenant's jobs, oldest first. `timeout` is for each page."""
        pages = self._caller.pages(
            "google.longrunning.Operations.ListOperations",
            "operations",
            timeout=timeout,
            name="operations",
            page_size=page_size,
        )
        async with aclosing(pages):
            async for operation in pages:
                yield _convert.job(operation)

    async def cancel(self, job: str | Job, *, timeout: float | None = None) -> None:
        """Asks a job to stop; it is CANCELLED once it has."""
        name = _convert.name_of("operations", job)
        await self._caller.unary("google.longrunning.Operations.CancelOperation", timeout=timeout, name=name)

    async def retry(self, job: str | Job, *, timeout: float | None = None) -> Job:
        """Sends a job that is DEAD or CANCELLED back to work."""
        name = _convert.name_of("operations", job)
        return _convert.job(await self._caller.unary("JobService.RetryJob", timeout=timeout, name=name))

    async def watch(self, job: str | Job, *, timeout: float = LONG_TIMEOUT) -> AsyncGenerator[Job, None]:
        """Iterates a job's progress: its state at once, then each change, to its end. Outlives a daemon's restart.
        DeadlineExceeded: it has not ended within so many seconds; it goes on all the same."""
        last = None
        states = follow(self._caller, _convert.name_of("operations", job), Deadline(timeout))
        async with aclosing(states):
            async for state in states:
                if state != last:  # attaching again tells it again
                    yield state
                last = state

    async def wait(self, job: str | Job, *, timeout: float = LONG_TIMEOUT) -> Job:
        """Waits until a job SUCCEEDED, and reads it with its receipt. JobFailed: it ended otherwise. DeadlineExceeded: it has
        not ended within so many seconds; it goes on all the same, and may be waited for again."""
        last, deadline = None, Deadline(timeout)
        async with aclosing(self.watch(job, timeout=timeout)) as progress:
            async for state in progress:
                last = state
        if last is not None and last.state is not JobState.SUCCEEDED:
            raise JobFailed(last)
        return await self.get(job, timeout=deadline.left())


class Jobs:
    """`client.jobs`."""

    def __init__(self, inner: AsyncJobs) -> None:
        self._inner = inner

    def get(self, job: str | Job, *, timeout: float | None = None) -> Job:
        """Reads one job."""
        return finish(self._inner.get(job, timeout=timeout))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> Iterator[Job]:
        """Iterates the tenant's jobs, oldest first. `timeout` is for each page."""
        return drain(self._inner.list(page_size=page_size, timeout=timeout))

    def cancel(self, job: str | Job, *, timeout: float | None = None) -> None:
        """Asks a job to stop; it is CANCELLED once it has."""
        return finish(self._inner.cancel(job, timeout=timeout))

    def retry(self, job: str | Job, *, timeout: float | None = None) -> Job:
        """Sends a job that is DEAD or CANCELLED back to work."""
        return finish(self._inner.retry(job, timeout=timeout))

    def watch(self, job: str | Job, *, timeout: float = LONG_TIMEOUT) -> Iterator[Job]:
        """Iterates a job's progress: its state at once, then each change, to its end. Outlives a daemon's restart.
        DeadlineExceeded: it has not ended within so many seconds; it goes on all the same."""
        return drain(self._inner.watch(job, timeout=timeout))

    def wait(self, job: str | Job, *, timeout: float = LONG_TIMEOUT) -> Job:
        """Waits until a job SUCCEEDED, and reads it with its receipt. JobFailed: it ended otherwise. DeadlineExceeded: it has
        not ended within so many seconds; it goes on all the same, and may be waited for again."""
        return finish(self._inner.wait(job, timeout=timeout))


async def follow(caller: Caller, name: str, deadline: Deadline, *, patient: bool = False) -> AsyncGenerator[Job, None]:
    """A job's states to its end, attached again when the daemon went away. `patient`: also when it was never there."""
    last: Job | None = None
    tried = 0
    while True:
        stream = caller.stream("JobService.WatchJob", timeout=deadline.left(_ATTACHMENT), name=name)
        try:
            while (message := await stream.read()) is not None:
                tried, last = 0, _convert.progress(message)
                yield last
                if last.ended:
                    return
            failure: MemorydError | None = None
        except (Unavailable, DeadlineExceeded) as error:
            failure = error
        finally:
            stream.cancel()
        if isinstance(failure, Unavailable) and last is None and not patient:
            raise failure
        tried += 1
        if not await caller.paused(tried, deadline):
            raise failure or DeadlineExceeded(f"job {name} has not ended within the timeout")


async def reach(caller: Caller, read: Read, name: str, stage: Stage, timeout: float) -> Document:
    """Waits until a document is at a stage, and reads it."""
    deadline = Deadline(timeout)
    document: Document | None = None
    try:
        document = await _patiently(caller, read, deadline)
        while document.stage < stage:
            job = document.job
            document, last = await _until(caller, read, document, stage, deadline)
            if document.stage < stage and document.job == job:  # no later job took over
                if last is not None and last.state is not JobState.SUCCEEDED:
                    raise JobFailed(last)
                raise FailedPrecondition(
                    f"{name} is {document.stage.name}, and no job is taking it to {stage.name}", reason="NO_JOB"
                )
        return document
    except DeadlineExceeded as error:
        job = document.job if document is not None else ""
        raise DeadlineExceeded(
            f"{name} is not {stage.name} within {timeout:g} s: wait longer, or ask client.jobs.get({job!r}) what holds it up",
            reason="NOT_REACHED",
            request_id=error.request_id,
        ) from None


async def _until(
    caller: Caller, read: Read, document: Document, stage: Stage, deadline: Deadline
) -> tuple[Document, Job | None]:
    """Follows a document's job until the document is at a stage or the job ended."""
    last: Job | None = None
    if document.job:
        looked_at, looked = None, 0.0
        async with aclosing(follow(caller, document.job, deadline, patient=True)) as jobs:
            async for last in jobs:
                now = time.monotonic()
                if (last.state, last.stage) != looked_at or now - looked > _LOOK:
                    looked_at, looked = (last.state, last.stage), now
                    document = await _patiently(caller, read, deadline)
                    if document.stage >= stage:
                        break
    return document, last


async def _patiently(caller: Caller, read: Read, deadline: Deadline) -> Document:
    """Reads, however long the daemon takes to come back: it has acknowledged the document, so it will."""
    tried = 0
    while True:
        try:
            return await read(deadline.left())
        except Unavailable:
            tried += 1
            if not await caller.paused(tried, deadline):
                raise
