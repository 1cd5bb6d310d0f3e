"""A page is as long as gRPC's clients take it, and no row is left out."""

from __future__ import annotations

import threading

import pytest

from memoryd.api.pages import fitting
from memoryd.store.base import Page
from memoryd.v1 import learn_pb2


def response(page: Page[learn_pb2.Example]) -> learn_pb2.ListExamplesResponse:
    return learn_pb2.ListExamplesResponse(examples=page.items, next_page_token=page.next_token)


@pytest.mark.parametrize(
    ("rows", "each", "asked"),
    [(20, 10, 1), (300, 10, 1000), (300, 40_000, 100), (300, 40_000, 1000), (12, 1 << 20, 1000), (6, 5 << 20, 10)],
)
async def test_pages_are_small_enough_and_hold_all(rows: int, each: int, asked: int) -> None:
    seen: list[str] = []

    def read(size: int) -> Page[learn_pb2.Example]:
        some = range(len(seen), min(rows, len(seen) + size))
        examples = [learn_pb2.Example(name=str(n), answer="x" * each) for n in some]
        return Page(examples, "more" if some.stop < rows else "")

    more = True
    while more:
        page = await fitting(asked, read, response)
        assert 1 <= len(page.examples) <= asked
        assert page.ByteSize() < 4 << 20 or len(page.examples) == 1
        seen += [example.name for example in page.examples]
        more = bool(page.next_page_token)
    assert seen == [str(n) for n in range(rows)]


async def test_a_page_that_the_store_cut_short_is_not_read_again_and_again() -> None:
    asked: list[int] = []

    def read(size: int) -> Page[learn_pb2.Example]:
        asked.append(size)
        return Page([learn_pb2.Example(answer="x" * (1 << 20))] * min(size, 5), "more")

    page = await fitting(1000, read, response)
    assert asked == [1000, 2]
    assert len(page.examples) == 2


async def test_rows_are_converted_in_a_thread() -> None:
    """Large ones take long, and the event loop would stand still for all tenants meanwhile."""
    threads = []

    def convert(page: Page[learn_pb2.Example]) -> learn_pb2.ListExamplesResponse:
        threads.append(threading.current_thread())
        return response(page)

    await fitting(10, lambda _: Page([], ""), convert)
    assert threads != [threading.current_thread()]
