"""A worker without its daemon has no purpose and holds gigabytes: it ends with it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; ends it now if `parent` has died already.

    SIGKILL, since there is nobody left to answer to and nothing here is durable.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


async def watch(parent: int, interval: float = 1.0) -> None:
    """End this process within `interval` seconds of its parent's end, where the kernel does not."""
    while os.getppid() == parent:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(interval)
    os._exit(1)
