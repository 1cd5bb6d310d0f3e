"""The adapters that memories answer with: chosen, weighted, and brought to the worker through the tiers: process, cache, blobs.

The ledger is asked for every answer, so what is tainted or rolled back is not used by any answer that begins after that.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from memoryd import log
from memoryd.core import Adapter, AdapterState, Source, adapter_prefix
from memoryd.engine.request import GenerateEvent, Generation
from memoryd.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MemorydError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from memoryd.learn.adapter_files import AdapterFiles, unpack_files
from memoryd.models import Models
from memoryd.store.base import Blobs, Cache, Ledger

PROCESS_BYTES = 64 << 20
_TRIES = 3  # of a generation whose adapters the worker had dropped: with so many in use it may drop them again


def cache_key(adapter: str) -> str:
    """Of an adapter's archive."""
    return f"adapters/{adapter}/"


def blob_key(tenant: str, memory: str, adapter: str) -> str:
    """Of an adapter's archive: one blob, so that it is there whole or not at all."""
    return adapter_prefix(tenant, memory, adapter) + "adapter"


@dataclass(frozen=True, slots=True)
class Choice:
    """Adapters with their weights, and what the caller should know."""

    adapters: Sequence[tuple[Adapter, float]] = ()
    warnings: Sequence[str] = ()
    by_hand: bool = False
    """The caller has named them: an answer without them is not what was asked for."""

    @property
    def blend(self) -> tuple[tuple[str, float], ...]:
        """As the worker takes them."""
        return tuple((adapter.id, weight) for adapter, weight in self.adapters)


class AdapterStore:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, blobs: Blobs, cache: Cache, models: Models, process_bytes: int = PROCESS_BYTES) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._cache = cache
        self._models = models
        self._capacity = process_bytes
        self._held: OrderedDict[tuple[str, str], tuple[AdapterFiles, int]] = OrderedDict()  # with the bytes that they take
        self._barred: set[str] = set()  # deleted or tainted while this process runs: never to be brought back by a late answer
        self._lock = threading.Lock()
        self._log = log.get("adapters")

    def choose(
        self, tenant: str, memories: Sequence[str], sources: Sequence[Source], given: Sequence[tuple[str, str, float]] | None
    ) -> Choice:
        """Those `given` as (memory, adapter, weight), none of them where that is empty; where it is None the active ones of the
        memories, weighted by each memory's share of what was found. Blocks.

        NotFound; InvalidArgument where a given one is of a memory that is not asked; FailedPrecondition where it may not be
        served."""
        if given is not None:
            return Choice([(self._given(tenant, memories, *one), one[2]) for one in given], by_hand=True)
        active = self._ledger.active_adapters(tenant, memories)
        mass: dict[str, float] = defaultdict(float)
        for source in sources:
            mass[source.memory] += source.score
        total = sum(mass.values())
        chosen: list[tuple[Adapter, float]] = []
        warnings: list[str] = []
        for memory, adapter in active.items():
            if not mass[memory]:
                continue
            if why := self.misfit(adapter):
                warnings.append(f"the adapter of memory {memory} is not used, {why}: learn again")
            else:
                chosen.append((adapter, 1.0 if len(mass) == 1 else round(mass[memory] / total, 6)))
        return Choice(chosen, warnings)

    def misfit(self, adapter: Adapter) -> str:
        """Why it can't be served with the models in use; empty where it can."""
        info = self._models.info
        if adapter.base != info.base_fingerprint:
            return "which changes another base model"
        if adapter.reader != info.reader:
            return "which stands on another reader"
        if adapter.compressor not in ("", info.compressor.fingerprint):
            return "which learned to read another compressor's embeddings"
        return ""

    async def generate(
        self, tenant: str, choice: Choice, request: Generation, unused: Callable[[], object] | None = None
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Generates with the chosen adapters; what the worker does not have is loaded first.

        Where that can't be, what was not chosen by hand is left out, all of it, if there is `unused` to be called then, before
        the first event. Else NotFound, DataLoss, ResourceExhausted, FailedPrecondition; Unavailable where the worker drops them
        over and over, or one of them is forgotten meanwhile."""
        used, tries = replace(request, adapters=choice.blend), 0
        while True:
            begun = False
            try:
                async with aclosing(self._models.worker.generate(used)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except FailedPrecondition as error:
                if error.reason != "ADAPTER_NOT_LOADED" or begun or not used.adapters:
                    raise
            tries += 1
            if problem := await self._bring(tenant, choice, tries):
                if choice.by_hand or unused is None:
                    raise problem
                unused()
                used = replace(request, adapters=())

    def read(self, tenant: str, adapter: Adapter) -> AdapterFiles:
        """Its files, checked against its fingerprint. DataLoss; NotFound. Blocks."""
        key = (tenant, adapter.id)
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                return held[0]
        cached = self._cache.get_many(tenant, [cache_key(adapter.id)]).get(cache_key(adapter.id))
        files = None
        if cached is not None:
            try:
                files = unpack_files(cached, adapter.fingerprint)
            except DataLoss as error:  # only the cache's: blobs have it too
                self._log.warning("a cached adapter is refused", adapter=adapter.id, reason=error.reason)
        fresh = files is None and adapter.id not in self._barred
        if files is None:
            data = self._blobs.get(tenant, blob_key(tenant, adapter.memory, adapter.id))
            files = unpack_files(data, adapter.fingerprint)
            if fresh:
                self._cache.put(tenant, cache_key(adapter.id), data)
        held_bytes = files.held_bytes
        with self._lock:
            barred = adapter.id in self._barred
            if not barred:
                self._held[key] = files, held_bytes
            while sum(taken for _, taken in self._held.values()) > self._capacity:
                self._held.popitem(last=False)
        if barred:
            if fresh:  # barred meanwhile: the cache may have been emptied of it before it was put there
                self._cache.delete_prefix(tenant, cache_key(adapter.id))
            raise NotFound("no such adapter")
        return files

    async def forget(self, tenant: str, adapters: Sequence[str]) -> None:
        """Nothing is generated with these any more. What has begun with them ends here and now, with Unavailable: keys and
        values hold what they knew, so the reader alone could go on saying it."""
        with self._lock:
            self._barred.update(adapters)
            for adapter in adapters:
                self._held.pop((tenant, adapter), None)
        for adapter in adapters:
            try:
                await self._models.worker.unload_adapter(adapter)
            except MemorydError as error:  # a worker that is not there has forgotten it
                self._log.info("no worker to unload an adapter from", adapter=adapter, reason=error.reason)

    async def forget_tainted(self, tenant: str) -> None:
        """After a delete, before it returns: what it tainted is used by no answer any more; one under way is cut off."""
        tainted = await asyncio.to_thread(self._ledger.tainted_adapters, tenant)
        await self.forget(tenant, [adapter.id for adapter in tainted])

    async def _bring(self, tenant: str, choice: Choice, tries: int) -> MemorydError | None:
        """Loads them; what is wrong with them, or with using them now, is returned."""
        if tries == _TRIES:
            ids = [adapter.id for adapter, _ in choice.adapters]
            dropped = Unavailable(
                "the worker has no room for the adapters of so many answers: try again", reason="ADAPTERS_IN_USE"
            )
            self._log.warning("adapters are dropped over and over", adapters=ids, reason=dropped.reason)
            return dropped
        for adapter, _ in choice.adapters:
            try:
                await self._load(tenant, adapter)
            except (NotFound, DataLoss, ResourceExhausted, FailedPrecondition) as error:
                self._log.warning("an adapter cannot be used", adapter=adapter.id, reason=error.reason)
                return error
        return None

    async def _load(self, tenant: str, adapter: Adapter) -> None:
        files = await asyncio.to_thread(self.read, tenant, adapter)
        await self._models.worker.load_adapter(adapter.id, files.config, files.weights)
        if adapter.id in self._barred:  # meanwhile
            await self._models.worker.unload_adapter(adapter.id)
            raise NotFound("no such adapter")

    def _given(self, tenant: str, memories: Sequence[str], memory: str, adapter: str, weight: float) -> Adapter:
        if memory not in memories:
            raise InvalidArgument("adapters: one is of a memory that is not asked", reason="INVALID_FIELD")
        found = self._ledger.get_adapter(tenant, memory, adapter)
        if found.state is AdapterState.TAINTED:
            raise FailedPrecondition("the adapter was trained with a document that is deleted", reason="ADAPTER_TAINTED")
        if why := self.misfit(found):
            raise FailedPrecondition(f"the adapter cannot be used, {why}", reason="ADAPTER_MISFIT")
        return found
