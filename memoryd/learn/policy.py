"""When a memory studies and learns by itself: after enough new text, and not too often. Operators decide, or turn it off."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta

from memoryd.core import Job, JobKind, Receipt, now
from memoryd.errors import MemorydError, NotFound
from memoryd.jobs import Handler, Progress
from memoryd.store.base import Ledger

_LOOK_SECONDS = 1.0  # how often the list of what is due is looked at; the ledger is asked only for what is
_BUSY_SECONDS = 30.0  # to the next look at a memory that learns just now: what it takes in is not known before it is done


class LearnPolicy:
    """`after_tokens` of text that no adapter was trained with, 0 for never; `after_seconds` since it last learned.

    A memory is considered when a document is compressed. Where that is too soon it is considered again when it is time, and at
    the daemon's start all are that have so much text.
    """

    def __init__(self, ledger: Ledger, after_tokens: int, after_seconds: float) -> None:
        self._ledger = ledger
        self._after_tokens = after_tokens
        self._after = timedelta(seconds=after_seconds)
        self._due: dict[tuple[str, str], datetime] = {}

    def after(self, handler: Handler) -> Handler:
        """The handler of COMPRESS, which considers the memory when a document is done."""

        async def handle(job: Job, progress: Progress) -> Receipt:
            receipt = await handler(job, progress)
            with contextlib.suppress(NotFound):  # the memory is deleted
                await asyncio.to_thread(self.consider, job.tenant, job.payload["memory"])
            return receipt

        return handle

    def consider(self, tenant: str, memory: str) -> Job | None:
        """The STUDY job that the memory begins with, after which it learns; None where it is not time. NotFound. Blocks."""
        if not self._after_tokens:
            return None
        found = self._ledger.unlearned(tenant, memory)
        if found.tokens < self._after_tokens:
            self._due.pop((tenant, memory), None)
            return None
        due = now() if found.asked is None else found.asked + self._after
        if found.learning:
            due = max(due, now() + timedelta(seconds=_BUSY_SECONDS))
        if due > now():
            self._due[tenant, memory] = due
            return None
        job = self._ledger.request_learning(tenant, memory, JobKind.STUDY, {"then": JobKind.LEARN.value}, None)
        self._due.pop((tenant, memory), None)  # not before: where the ledger is down it stays due
        return job

    async def run(self) -> None:
        """Considers what is due, for ever."""
        if not self._after_tokens:
            return
        begun = False
        while True:
            with contextlib.suppress(MemorydError):  # the ledger is down: it stays due
                if not begun:
                    large = await asyncio.to_thread(self._ledger.memories_with, self._after_tokens)
                    self._due |= dict.fromkeys(large, now())
                    begun = True
                await self._consider_due()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _consider_due(self) -> None:
        for memory in [memory for memory, due in list(self._due.items()) if due <= now()]:
            try:
                await asyncio.to_thread(self.consider, *memory)
            except NotFound:  # deleted meanwhile
                self._due.pop(memory, None)
