"""Runs jobs: leases, heartbeats, retries with back-off, progress, and giving way so that no job holds up the others.

A job is a row in the ledger; this process leases it, works, and renews the lease while it does. After kill -9 the lease runs
out and the job is taken up again where its stage left it. Work is cooperative: a handler calls `Progress.step` between short
units, and that is where a cancelled job stops and a long one gives way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta

from memoryd import core, log
from memoryd.core import LEARNING, Job, JobKind, JobState, Receipt
from memoryd.errors import MemorydError, ResourceExhausted, Unavailable, WorkerLost
from memoryd.store.base import Ledger
from memoryd.watches import Watches

SLICE_SECONDS = 15.0  # a job that has worked this long goes to the end of the queue
POLL_SECONDS = 0.5  # how often the ledger is asked for work that nobody announced: retries, leases of the dead
MAX_BACKOFF_SECONDS = 30.0
_FATAL = (
    "the worker ended each of the last {lost} times that it worked on this: logs/worker.log in the data directory may say why; "
    "where it does not, the machine had most likely no memory left. Mend that and retry the job, or delete what it is for"
)
_LOST = "workers_lost"  # in the receipt of a job that has not ended: how many in a row, lost over this job


class Stopped(Exception):
    """The job is no longer ours: it was cancelled, its document was deleted, or another process took it."""


class GiveWay(Exception):
    """The job goes to the end of the queue, and on from there later."""


class NotYet(Exception):
    """The job waits for something that another job does; it looks again later, and the longer it has waited the later."""


class Progress:
    """How far a running job is. Handlers call `step`; the runner persists and publishes it."""

    def __init__(self, job: Job, published: Callable[[], None], owner: str = "") -> None:
        self.job = job
        self.owner = owner
        """Whose lease it works under: each claim has one of its own, so an attempt whose job was taken from it finds out."""
        self.stopped = False
        self.draining = False
        self.given_back = False
        """Whether the ledger may hand the job out again, to this process too, while what is left of this attempt ends."""
        self._published = published
        self._began = time.monotonic()
        self._stage_began, self._stage_first = self._began, job.done

    def show(self, stage: str, done: int, total: int) -> None:
        """Records progress, and that is all."""
        if stage != self.job.stage or done < self._stage_first:
            self._stage_began, self._stage_first = time.monotonic(), done
        elapsed = time.monotonic() - self._stage_began
        rate = (done - self._stage_first) / elapsed if elapsed > 0.05 else 0.0
        self.job = replace(self.job, stage=stage, done=done, total=total, rate=round(rate, 3))
        self._published()

    def note(self, **facts: str | float) -> None:
        """Adds to the receipt. Kept together with the stage: whoever takes the job up from there finds it in `job.receipt`."""
        self.job = replace(self.job, receipt={**self.job.receipt, **facts})

    def step(self, stage: str, done: int, total: int, *, resumable: bool = True) -> None:
        """Records progress. Raises Stopped or GiveWay where the handler must end here: call it only at a safe point.

        A job that would begin anew is not `resumable`: it gives way only to the end of the daemon."""
        self.show(stage, done, total)
        if self.stopped:
            raise Stopped
        if self.draining or (resumable and time.monotonic() - self._began > SLICE_SECONDS):
            raise GiveWay

    def give_way(self) -> None:
        """Lets others in at a stage that is usable on its own."""
        raise GiveWay


Handler = Callable[[Job, Progress], Awaitable[Receipt]]


class JobRunner:
    """Works on due jobs of all tenants, `slots` at a time.

    A failure is tried again with exponential back-off, at most `attempts` times; then the job is DEAD, with its reason, and
    a person may retry it. What failed because a part was down (Unavailable) or the disk full (ResourceExhausted) is tried for
    ever, and so is erasing.

    A worker that was lost while it worked on a job (WorkerLost) is no such part: a document that crashes it would crash it
    for ever, for all tenants. After `attempts` of them in a row the job is DEAD. Nothing tells which of the jobs that the
    worker had in hand it was, so each is counted; from then on they run one at a time, and a further loss counts for that one
    alone. So the others stay far from `attempts`.
    """

    def __init__(self, ledger: Ledger, slots: int, lease_seconds: float, attempts: int) -> None:
        self._ledger = ledger
        self._slots = slots
        self._lease = lease_seconds
        self._attempts = attempts
        self._handlers: Mapping[JobKind, Handler] = {}
        self._wake = asyncio.Event()
        self._running: dict[asyncio.Task[None], Progress] = {}
        self._watches = Watches(self._read)
        self._draining = False
        self._suspect = asyncio.Lock()  # held by the one job that runs of those that a worker was lost over
        self._log = log.get("jobs")

    async def run(self, handlers: Mapping[JobKind, Handler]) -> None:
        """Works until `drain`."""
        self._handlers = handlers
        while not self._draining:
            self._wake.clear()
            try:
                while self._busy < self._slots and not self._draining:
                    owner = core.new_id()
                    job = await asyncio.to_thread(self._ledger.claim_job, owner, self._lease)
                    if job is None:
                        break
                    await self._take(job, owner)
            except MemorydError as error:
                self._log.warning("the ledger gives no jobs", reason=error.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):  # `wait_for` loses a cancellation that comes with the event, in 3.11
                    await self._wake.wait()

    @property
    def _busy(self) -> int:
        """Slots that are taken. What learns takes none: it runs for long, and mostly waits for the worker."""
        return sum(progress.job.kind not in LEARNING for progress in self._running.values())

    def wake(self) -> None:
        """There may be work: called after a write."""
        self._wake.set()

    async def drain(self) -> None:
        """Takes no more jobs; running ones stop at their next safe point and stay pending."""
        self._draining = True
        self._wake.set()
        for progress in self._running.values():
            progress.draining = True
        if self._running:
            await asyncio.wait(list(self._running), timeout=self._lease)

    async def stop_work_on(self, tenant: str, documents: Collection[str], erase: Job) -> None:
        """Returns when no job of this process touches these documents any more, nor learns from the memory since before the
        delete, which has taken the job from such an attempt: erasing must come last."""
        tasks = []
        for task, progress in list(self._running.items()):
            job = progress.job
            touches = job.kind is not JobKind.ERASE and job.payload.get("document") in documents
            if job.tenant == tenant and job.kind in LEARNING and job.payload["memory"] == erase.payload["memory"]:
                await self._beat(progress)
                touches = progress.stopped
            if job.tenant == tenant and touches:
                progress.stopped = True
                tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """NotFound; FailedPrecondition for what must not be cancelled."""
        job = await asyncio.to_thread(self._ledger.cancel_job, tenant, job_id)
        for progress in self._running.values():
            if progress.job.id == job_id and progress.job.tenant == tenant:
                progress.stopped = True
        self._watches.publish(tenant, job_id)
        return job

    def watch(self, tenant: str, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now, then after each change, until it has ended. NotFound; ResourceExhausted (too many watches)."""
        return self._watches.watch(tenant, job_id)

    async def _read(self, tenant: str, job_id: str) -> Job:
        return self._live(await asyncio.to_thread(self._ledger.get_job, tenant, job_id))

    def _live(self, job: Job) -> Job:
        """The ledger's row with the progress that it does not have yet."""
        for progress in self._running.values():
            if progress.job.id == job.id and job.state is JobState.RUNNING:
                live = progress.job
                return replace(job, stage=live.stage, done=live.done, total=live.total, rate=live.rate, receipt=live.receipt)
        return job

    async def _take(self, job: Job, owner: str) -> None:
        """Starts on what was claimed, unless it runs here already: the machine stood still for longer than the lease, which the
        claim has renewed, or a delete took the job from an attempt at learning, which has to end first."""
        same = (p for p in self._running.values() if (p.job.tenant, p.job.id) == (job.tenant, job.id))
        running = next((p for p in same if not p.given_back), None)
        if running is None:
            self._start(job, owner)
        elif job.kind in LEARNING:
            running.stopped = True
            await asyncio.to_thread(self._ledger.release_job, job.tenant, job.id, owner, POLL_SECONDS)
        else:
            running.owner = owner

    def _start(self, job: Job, owner: str) -> None:
        progress = Progress(job, lambda: self._watches.publish(job.tenant, job.id), owner)
        task = asyncio.create_task(self._work(job, progress), name=f"job {job.id}")
        self._running[task] = progress
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        progress = self._running.pop(task)
        self._watches.publish(progress.job.tenant, progress.job.id)
        self._wake.set()

    async def _work(self, job: Job, progress: Progress) -> None:
        heartbeat = asyncio.create_task(self._heartbeat(progress))
        try:
            await self._attempt(job, progress)
        except MemorydError as error:  # the ledger itself failed: the lease runs out and the job comes back
            self._log.warning("job lost", job=job.id, reason=error.reason)
        finally:
            heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heartbeat

    async def _attempt(self, job: Job, progress: Progress) -> None:
        if not _suspect(job):
            await self._try(job, progress)
        elif self._suspect.locked():  # later, since to wait here would keep a slot from others
            await self._release(progress, POLL_SECONDS)
        else:
            async with self._suspect:
                await self._try(job, progress)

    async def _try(self, job: Job, progress: Progress) -> None:
        began = time.monotonic()
        try:
            receipt = await self._handlers[job.kind](job, progress)
        except GiveWay:
            if _lost(job):
                progress.note(**{_LOST: 0})  # it got further
            await self._beat(progress)  # the stage that it goes on from
            await self._release(progress)
        except NotYet:
            waited = (core.now() - job.create_time).total_seconds()
            pause = min(MAX_BACKOFF_SECONDS, max(POLL_SECONDS, waited / 4))
            await self._release(progress, pause)
        except Stopped:
            pass  # the ledger knows: whoever stopped it wrote that down first
        except Exception as error:
            lost = self._count_lost(job, error)
            if lost != _lost(job):
                progress.note(**{_LOST: lost if lost < self._attempts else 0})  # a person who retries it begins afresh
            await self._beat(progress)  # the next attempt begins at the stage that this one reached
            progress.given_back = True
            await self._failed(progress, error, lost)
        else:
            await self._beat(progress)  # where it ended: a short job has had no heartbeat to say so
            await asyncio.to_thread(self._ledger.finish_job, job.tenant, job.id, progress.owner, dict(receipt))
            self._log.info("job done", job=job.id, kind=str(job.kind), tenant=job.tenant, s=round(time.monotonic() - began, 3))

    async def _release(self, progress: Progress, pause: float = 0.0) -> None:
        progress.given_back = True
        await asyncio.to_thread(self._ledger.release_job, progress.job.tenant, progress.job.id, progress.owner, pause)

    def _count_lost(self, job: Job, error: Exception) -> int:
        """How many workers in a row were lost over this job. One that another suspect had in hand too is that one's; one that
        ends with this daemon is nobody's."""
        counts = isinstance(error, WorkerLost) and not self._draining and (_suspect(job) or not self._suspect.locked())
        return _lost(job) + counts

    async def _failed(self, progress: Progress, error: Exception, lost: int) -> None:
        job = progress.job
        known = isinstance(error, MemorydError)
        why = error.message if isinstance(error, MemorydError) else f"unexpected {type(error).__name__}: see the log"
        fatal = isinstance(error, WorkerLost) and lost >= self._attempts
        if fatal:
            why = _FATAL.format(lost=lost)
        self._log.warning("job failed", job=job.id, tenant=job.tenant, attempt=job.attempts, why=why, exc_info=not known)
        for_ever = job.kind is JobKind.ERASE or (isinstance(error, Unavailable | ResourceExhausted) and not fatal)
        retry_at = None
        if for_ever or job.attempts < self._attempts:
            seconds = min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** min(job.attempts, 10))
            retry_at = core.now() + timedelta(seconds=seconds)
        await asyncio.to_thread(self._ledger.fail_job, job.tenant, job.id, progress.owner, why, retry_at)

    async def _heartbeat(self, progress: Progress) -> None:
        while True:
            await asyncio.sleep(self._lease / 4)
            with contextlib.suppress(MemorydError):
                await self._beat(progress)

    async def _beat(self, progress: Progress) -> None:
        job, owner = progress.job, progress.owner
        ours = await asyncio.to_thread(
            self._ledger.heartbeat,
            job.tenant,
            job.id,
            owner,
            self._lease,
            job.stage,
            job.done,
            job.total,
            job.rate,
            job.receipt,
        )
        if not ours and progress.owner == owner:
            progress.stopped = True


def _lost(job: Job) -> int:
    return int(job.receipt.get(_LOST, 0))


def _suspect(job: Job) -> bool:
    """Whether a worker was lost over it, so that it runs with no other such job. Learning does not: it runs for hours, in which
    the others would wait."""
    return _lost(job) > 0 and job.kind not in LEARNING
