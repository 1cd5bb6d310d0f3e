"""Pages that gRPC's clients take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from memoryd.store.base import Page

USUAL = 100
"""Rows of a page where nobody says how many."""
_MOST_BYTES = 3 << 20  # clients take 4 MiB unless they are told otherwise

R = TypeVar("R")
T = TypeVar("T", bound=Any)


async def fitting(size: int, read: Callable[[int], Page[R]], convert: Callable[[Page[R]], T]) -> T:
    """The response with a page of at most so many rows (USUAL where 0), or of as few as it takes to be small enough; of one row
    whatever its size. Both functions run in a thread: large rows take long to convert.

    A page's token is that of its own last row, so a shorter one repeats and hides nothing.
    """
    return await asyncio.to_thread(_fitting, size or USUAL, read, convert)


def _fitting(size: int, read: Callable[[int], Page[R]], convert: Callable[[Page[R]], T]) -> T:
    while True:
        page = read(size)
        response, rows = convert(page), len(page.items)
        if rows <= 1 or response.ByteSize() <= _MOST_BYTES:
            return response
        size = max(1, min(rows // 2, rows * _MOST_BYTES // response.ByteSize()))
