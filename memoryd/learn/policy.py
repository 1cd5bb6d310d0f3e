"""When a memory studies and learns by itself: after enough new text, and not too often. Operators decide, or turn it off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from memoryd.core import Job, JobKind, now
from memoryd.errors import NotFound
from memoryd.jobs import Handler, Progress
from memoryd.store.base import Ledger


class LearnPolicy:
    """`after_tokens` of new text since the newest adapter, 0 for never; `after_seconds` since that was made."""

    def __init__(self, ledger: Ledger, after_tokens: int, after_seconds: float) -> None:
        self._ledger = ledger
        self._after_tokens = after_tokens
        self._after_seconds = after_seconds

    def after(self, handler: Handler) -> Handler:
        """The handler of COMPRESS, which considers the memory when a document is done."""

        async def handle(job: Job, progress: Progress) -> Mapping[str, str | int]:
            receipt = await handler(job, progress)
            with contextlib.suppress(NotFound):  # the memory is deleted
                await asyncio.to_thread(self.consider, job.tenant, job.payload["memory"])
            return receipt

        return handle

    def consider(self, tenant: str, memory: str) -> Job | None:
        """The STUDY job that the memory begins with, after which it learns; None where it is not time. NotFound. Blocks."""
        if not self._after_tokens:
            return None
        tokens, newest = self._ledger.unlearned_tokens(tenant, memory)
        waited = newest is None or (now() - newest).total_seconds() >= self._after_seconds
        if tokens < self._after_tokens or not waited:
            return None
        return self._ledger.request_learning(tenant, memory, JobKind.STUDY, {"then": JobKind.LEARN.value}, None)
