"""What tenants use, counted in memory and written to the ledger once a second.

A durable write for every search would cost a good part of the search. A kill -9 loses the last second of counts, and
nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict

from memoryd import log
from memoryd.core import Usage
from memoryd.errors import MemorydError
from memoryd.store.base import Ledger

_SECONDS = 1.0


class UsageMeter:
    """Counts answers, searches and tokens of each tenant. May be used from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._log = log.get("usage")

    def add(self, tenant: str, *, answers: int = 0, searches: int = 0, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """Does not block."""
        counts = {"answers": answers, "searches": searches, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
        with self._lock:
            self._counts[tenant].update(counts)

    def usage(self, tenant: str) -> Usage:
        """What the tenant holds and has used, up to now. NotFound; Unavailable."""
        self.flush()
        return self._ledger.usage(tenant)

    def flush(self) -> None:
        """Writes what was counted. What cannot be written stays counted. Unavailable."""
        with self._lock:
            pending, self._counts = self._counts, defaultdict(Counter)
        try:
            while pending:
                tenant, counts = next(iter(pending.items()))
                self._ledger.add_usage(tenant, **counts)
                del pending[tenant]
        finally:
            for tenant, counts in pending.items():
                self.add(tenant, **counts)

    async def run(self) -> None:
        """Until it is cancelled; the caller flushes once more when nothing is counted any longer."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await asyncio.to_thread(self.flush)
            except MemorydError as error:
                self._log.warning("usage is not written: it is tried again", reason=error.reason)
