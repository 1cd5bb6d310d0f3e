"""The cache on Valkey or Redis. Everything in it can be made again, so only erasing ever fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import redis
import structlog

from memoryd.errors import Unavailable

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 0.25
CALL_SECONDS = 1.0
_SCAN = 1000  # keys looked at per round trip


class ValkeyCache:
    """`base.Cache`. Keys are `memoryd:{tenant}:{key}`. One instance is shared by all threads."""

    def __init__(self, url: str, max_bytes: int) -> None:
        """`url` as `unix:///path` or `redis://host:port/0`. A value above an eighth of `max_bytes` is not kept: it would
        push out too many others. A server that is down is noticed at the first call, and is no error."""
        self._most = max_bytes // 8
        self._down = False
        self._client: redis.Redis = redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=CALL_SECONDS,
            retry=None,  # a miss is cheaper than a second try
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )

    def get_many(self, tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Those that are there."""
        if not keys:
            return {}
        try:
            values: Any = self._client.mget([_key(tenant, key) for key in keys])
        except redis.RedisError as error:
            self._missed(error)
            return {}
        self._answered()
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def put(self, tenant: str, key: str, value: bytes) -> None:
        """Keeps it, if it can."""
        if len(value) > self._most:
            return
        try:
            self._client.set(_key(tenant, key), value)
        except redis.RedisError as error:
            self._missed(error)
        else:
            self._answered()

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        """Returns how many there were. Unavailable where it cannot be sure."""
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", _key(tenant, prefix)) + "*"
        count = 0
        try:
            batch: list[bytes] = []
            for key in self._client.scan_iter(pattern, count=_SCAN):
                batch.append(key)
                if len(batch) == _SCAN:
                    count += int(self._client.unlink(*batch))
                    batch = []
            if batch:
                count += int(self._client.unlink(*batch))
        except redis.RedisError as error:
            raise Unavailable(
                f"the cache cannot be reached ({type(error).__name__}), so what it holds cannot be erased: try again",
                reason="CACHE_DOWN",
            ) from None
        return count

    def close(self) -> None:
        """Ends all connections."""
        self._client.close()

    def _missed(self, error: redis.RedisError) -> None:
        if not self._down:
            self._down = True
            log.warning("the cache is down: going on without it", error=type(error).__name__)

    def _answered(self) -> None:
        if self._down:
            self._down = False
            log.info("the cache is back")


def _key(tenant: str, key: str) -> str:
    return f"memoryd:{tenant}:{key}"
