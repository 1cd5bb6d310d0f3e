"""Erases what an adapter is made of, wherever it lies."""

from __future__ import annotations

import asyncio

from memoryd.core import adapter_prefix
from memoryd.recall.adapters import AdapterStore, cache_key
from memoryd.store.base import Blobs, Cache


class AdapterEraser:
    """In the worker and in this process first, so that nothing brings it back; then in cache and blobs."""

    def __init__(self, adapters: AdapterStore, blobs: Blobs, cache: Cache) -> None:
        self._adapters = adapters
        self._blobs = blobs
        self._cache = cache

    async def erase(self, tenant: str, memory: str, adapter: str) -> dict[str, int]:
        """How many blobs and cache keys there were. Harmless where there is nothing. Unavailable where the cache is down."""
        await self._adapters.forget(tenant, [adapter])
        cached = await asyncio.to_thread(self._cache.delete_prefix, tenant, cache_key(adapter))
        blobs = await asyncio.to_thread(self._blobs.delete_prefix, tenant, adapter_prefix(tenant, memory, adapter))
        return {"blobs": blobs, "cache_keys": cached}
