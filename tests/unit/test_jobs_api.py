"""Jobs are listed as they are asked for, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from google.longrunning import operations_pb2

from memoryd.api.caller import Caller, enter
from memoryd.api.jobs import OperationsServicer
from memoryd.errors import InvalidArgument
from memoryd.store.base import Page
from tests.unit.test_reuse import TENANT


class Rows:
    """A ledger that remembers the pages it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []

    def list_jobs(self, tenant: str, page_size: int, page_token: str) -> Page[Any]:
        self.asked.append((tenant, page_size, page_token))
        return Page([], "")


async def test_a_filter_of_jobs_is_refused_and_not_ignored() -> None:
    enter(Caller(TENANT))
    rows: Any = Rows()
    nobody: Any = None
    api = OperationsServicer(rows, nobody)
    with pytest.raises(InvalidArgument, match=r"^filter: must be empty") as caught:
        await api.ListOperations(operations_pb2.ListOperationsRequest(filter="done=true"), None)
    assert caught.value.reason == "INVALID_FIELD"
    assert rows.asked == []
    await api.ListOperations(operations_pb2.ListOperationsRequest(page_size=7, page_token="next"), None)
    assert rows.asked == [(TENANT, 7, "next")]
