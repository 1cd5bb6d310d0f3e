"""Pages that gRPC's clients take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

USUAL = 100
"""Rows of a page where nobody says how many."""
_MOST_BYTES = 3 << 20  # clients take 4 MiB unless they are told otherwise

T = TypeVar("T", bound=Any)


async def fitting(size: int, read: Callable[[int], Awaitable[T]]) -> T:
    """The response with a page of so many rows, or of as few as it takes to be small enough; of one row whatever its size.

    A page's token is that of its own last row, so a shorter one repeats and hides nothing.
    """
    while True:
        response = await read(size)
        if size == 1 or response.ByteSize() <= _MOST_BYTES:
            return response
        size = max(1, min(size // 2, size * _MOST_BYTES // response.ByteSize()))
