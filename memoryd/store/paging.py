"""Pages of a list, by the key of the last row seen: what is added or deleted meanwhile neither repeats nor hides a row."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Connection, RowMapping, Select, tuple_, type_coerce

from memoryd.errors import InvalidArgument
from memoryd.store.base import Page
from memoryd.store.schema import Time

T = TypeVar("T")

MAX_PAGE_SIZE = 1000


def read_page(
    conn: Connection,
    query: Select[Any],
    keys: Sequence[ColumnElement[Any]],
    make: Callable[[RowMapping], T],
    *,
    scope: Sequence[str],
    page_size: int,
    page_token: str,
) -> Page[T]:
    """The rows of `query` after the token's, in the order of `keys` (times or text), which together are unique.

    `scope` names the list; a token of another list, or one that was tampered with, is InvalidArgument.
    """
    if page_size < 1:
        raise InvalidArgument("page_size must be at least 1")
    size = min(page_size, MAX_PAGE_SIZE)
    keys = [type_coerce(key, BigInteger) if isinstance(key.type, Time) else key for key in keys]
    if page_token:
        query = query.where(tuple_(*keys) > tuple_(*_decode(page_token, scope, len(keys))))
    labelled = query.add_columns(*(key.label(f"page_key_{i}") for i, key in enumerate(keys)))
    rows = conn.execute(labelled.order_by(*keys).limit(size + 1)).mappings().all()
    more = len(rows) > size
    rows = rows[:size]
    token = _encode(scope, [rows[-1][f"page_key_{i}"] for i in range(len(keys))]) if more else ""
    return Page([make(row) for row in rows], token)


def _encode(scope: Sequence[str], key: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([list(scope), list(key)], separators=(",", ":")).encode()).decode()


def _decode(token: str, scope: Sequence[str], keys: int) -> list[str | int]:
    try:
        listed, key = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise InvalidArgument("page_token is not one that memoryd gave out") from None
    if listed != list(scope) or not isinstance(key, list) or len(key) != keys:
        raise InvalidArgument("page_token is of another list")
    if not all(isinstance(part, str) or (type(part) is int and abs(part) < 2**63) for part in key):
        raise InvalidArgument("page_token is not one that memoryd gave out")
    return key
