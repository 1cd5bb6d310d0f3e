"""A page is as long as gRPC's clients take it, and no row is left out."""

from __future__ import annotations

import pytest

from memoryd.api.pages import fitting
from memoryd.v1 import learn_pb2


@pytest.mark.parametrize(
    ("rows", "each", "asked"),
    [(20, 10, 1), (300, 10, 1000), (300, 40_000, 100), (300, 40_000, 1000), (12, 1 << 20, 1000), (6, 5 << 20, 10)],
)
async def test_pages_are_small_enough_and_hold_all(rows: int, each: int, asked: int) -> None:
    seen: list[str] = []

    async def read(size: int) -> learn_pb2.ListExamplesResponse:
        some = range(len(seen), min(rows, len(seen) + size))
        examples = [learn_pb2.Example(name=str(n), answer="x" * each) for n in some]
        return learn_pb2.ListExamplesResponse(examples=examples, next_page_token="more" if some.stop < rows else "")

    more = True
    while more:
        page = await fitting(asked, read)
        assert 1 <= len(page.examples) <= asked
        assert page.ByteSize() < 4 << 20 or len(page.examples) == 1
        seen += [example.name for example in page.examples]
        more = bool(page.next_page_token)
    assert seen == [str(n) for n in range(rows)]
