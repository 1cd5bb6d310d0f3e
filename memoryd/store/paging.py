"""Pages of a list, by the key of the last row seen: what is added or deleted meanwhile neither repeats nor hides a row."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Connection, RowMapping, Select, tuple_, type_coerce

from memoryd.errors import InvalidArgument
from memoryd.store.base import Page
from memoryd.store.schema import Time

T = TypeVar("T")

MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 << 20
"""Of rows on a page: more are not read, since one message, of 4 MiB at most, could not take them."""
_AT_ONCE = 16  # rows that the database hands over: as many may be read and not be kept


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
    """The rows of `query` after the token's, in the order of `keys` (times or text), which together are unique. Fewer than
    asked for where they are large, at least one where there is one; more are there while the page has a token.

    `scope` names the list; a token of another list, or one that was tampered with, is InvalidArgument.
    """
    if page_size < 1:
        raise InvalidArgument("page_size must be at least 1")
    size = min(page_size, MAX_PAGE_SIZE)
    keys = [type_coerce(key, BigInteger) if isinstance(key.type, Time) else key for key in keys]
    if page_token:
        query = query.where(tuple_(*keys) > tuple_(*_decode(page_token, scope, [key.type.python_type for key in keys])))
    labelled = query.add_columns(*(key.label(f"page_key_{i}") for i, key in enumerate(keys)))
    rows, room, token = list[RowMapping](), MAX_PAGE_BYTES, ""
    with conn.execute(labelled.order_by(*keys).limit(size + 1), execution_options={"yield_per": _AT_ONCE}) as result:
        for row in result.mappings():
            room -= sum(_bytes(value) for value in row.values())
            if len(rows) == size or (rows and room < 0):
                token = _encode(scope, [rows[-1][f"page_key_{i}"] for i in range(len(keys))])
                break
            rows.append(row)
    return Page([make(row) for row in rows], token)


def _bytes(value: object) -> int:
    """About as many as a message needs for it."""
    if isinstance(value, Mapping):
        return sum(_bytes(key) + _bytes(item) for key, item in value.items())
    return len(value.encode()) if isinstance(value, str) else 8


def _encode(scope: Sequence[str], key: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([list(scope), list(key)], separators=(",", ":")).encode()).decode()


def _decode(token: str, scope: Sequence[str], types: Sequence[type]) -> list[str | int]:
    try:
        listed, key = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise InvalidArgument("page_token is not one that memoryd gave out") from None
    if listed != list(scope) or not isinstance(key, list) or len(key) != len(types):
        raise InvalidArgument("page_token is of another list")
    if not all(_may_be(kind, part) for kind, part in zip(types, key, strict=True)):
        raise InvalidArgument("page_token is not one that memoryd gave out")
    return key


def _may_be(kind: type, part: object) -> bool:
    """Whether a key of this type. JSON has numbers that a database does not have, and text that is not Unicode."""
    if isinstance(part, str):
        return kind is str and not any("\ud800" <= character <= "\udfff" for character in part)
    return type(part) is kind is int and abs(part) < 2**63
