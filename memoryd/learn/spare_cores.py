"""How many threads to train with, so that training takes the cores that others leave and no more.

Two threads on a core and a half are slower than one thread on one core: every matrix product waits for the slower half.
"""

from __future__ import annotations

import psutil


class SpareCores:
    """Looks at what other processes used since the last call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        self._last = self._times()

    def threads(self) -> int:
        """At least 1; one more for every core of which others left at least two thirds."""
        before, self._last = self._last, self._times()
        all_, idle, own = (new - old for new, old in zip(self._last, before, strict=True))
        if all_ <= 0:
            return 1
        others = max(0.0, self._cores * (all_ - idle) / all_ - own * self._cores / all_)
        return max(1, int(self._cores - others + 1 / 3))

    def _times(self) -> tuple[float, float, float]:
        """Seconds since boot: all, idle, and this process's own."""
        times = psutil.cpu_times()
        own = self._process.cpu_times()
        return sum(times[:8]), times.idle + getattr(times, "iowait", 0.0), own.user + own.system
