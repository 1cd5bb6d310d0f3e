"""The cache: a miss, an eviction or a dead server is only slower, and erasing is certain."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing

from memoryd.errors import Unavailable
from memoryd.store.base import Cache
from memoryd.store.cache import ValkeyCache
from memoryd.store.embedded import ValkeyServer


def test_what_is_put_is_got(cache: Cache) -> None:
    cache.put("acme", "a", b"1")
    cache.put("acme", "b", b"\x00\xff")
    assert cache.get_many("acme", ["a", "b", "none"]) == {"a": b"1", "b": b"\x00\xff"}
    assert cache.get_many("acme", []) == {}


def test_delete_prefix_takes_the_prefix_and_nothing_else(cache: Cache) -> None:
    for key in ("d1/0", "d1/1", "d12/0", "x"):
        cache.put("acme", key, b"1")
    assert cache.delete_prefix("acme", "d1/") == 2
    assert set(cache.get_many("acme", ["d1/0", "d1/1", "d12/0", "x"])) == {"d12/0", "x"}


@pytest.mark.parametrize("prefix", ["*", "?", "[a-z]", "\\", "^"])
def test_a_prefix_is_no_pattern(cache: Cache, prefix: str) -> None:
    cache.put("acme", "plain", b"1")
    cache.put("acme", prefix + "x", b"1")
    assert cache.delete_prefix("acme", prefix) == 1
    assert set(cache.get_many("acme", ["plain", prefix + "x"])) == {"plain"}


def test_many_keys_are_all_deleted(cache: Cache) -> None:
    for number in range(2500):
        cache.put("acme", f"many/{number}", b"1")
    assert cache.delete_prefix("acme", "many/") == 2500
    assert cache.get_many("acme", [f"many/{number}" for number in range(2500)]) == {}


def test_a_value_that_would_push_out_the_others_is_not_kept(valkey: ValkeyServer) -> None:
    cache = ValkeyCache(valkey.url, 8000)
    cache.put("acme", "big", b"x" * 1001)
    cache.put("acme", "small", b"x" * 1000)
    assert set(cache.get_many("acme", ["big", "small"])) == {"small"}
    cache.delete_prefix("acme", "")
    cache.close()


def test_a_full_cache_drops_the_old(valkey: ValkeyServer) -> None:
    cache = ValkeyCache(valkey.url, 64 << 20)
    for number in range(100):
        cache.put("acme", f"fill/{number}", b"x" * (1 << 20))
    kept = cache.get_many("acme", [f"fill/{number}" for number in range(100)])
    assert 0 < len(kept) < 64
    assert "fill/99" in kept
    cache.delete_prefix("acme", "")
    cache.close()


def test_a_dead_server_is_a_miss_that_is_told_once(tmp_path: Path) -> None:
    cache = ValkeyCache(f"unix://{tmp_path}/none.sock", 1 << 20)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            cache.put("acme", "a", b"1")
            assert cache.get_many("acme", ["a"]) == {}
    assert len(lines) == 1
    with pytest.raises(Unavailable):
        cache.delete_prefix("acme", "a")
    cache.close()
