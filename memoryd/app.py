"""The composition root: the only place that constructs components. Start order, supervision and drain, top to bottom.

lock ▸ ledger, blobs ▸ children (Valkey, Milvus Lite, worker) ▸ models ▸ index, cache ▸ jobs, recall ▸ API ▸ ready
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc

from memoryd import collector, log, screen
from memoryd.api.admin import AdminServicer
from memoryd.api.auth import Authenticator, admin_key
from memoryd.api.documents import DocumentServicer
from memoryd.api.interceptor import CallInterceptor
from memoryd.api.jobs import JobServicer, OperationsServicer
from memoryd.api.learn import LearnServicer
from memoryd.api.memories import MemoryServicer
from memoryd.api.recall import RecallServicer
from memoryd.api.server import Health, build, probe
from memoryd.child import ChildProcess, ChildState, supervise
from memoryd.compress.job import CompressJob
from memoryd.compress.recompress import request_recompression
from memoryd.config import Settings
from memoryd.core import DEFAULT_TENANT, JobKind
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import MemorydError, Unavailable
from memoryd.forget import EraseJob, owns, reclaim
from memoryd.jobs import JobRunner
from memoryd.learn.asker import LocalAsker
from memoryd.learn.contexts import ContextMaker
from memoryd.learn.eraser import AdapterEraser
from memoryd.learn.job import LearnJob
from memoryd.learn.policy import LearnPolicy
from memoryd.learn.runs import Runs
from memoryd.learn.study import Asker, StudyJob
from memoryd.learn.teacher import Teacher
from memoryd.lock import DataDirLock
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore
from memoryd.recall.answer import Answerer
from memoryd.recall.assembly import Assembler
from memoryd.recall.context import ContextBuilder
from memoryd.recall.embeddings import EmbeddingStore
from memoryd.recall.indexing import Indexer, ReindexJob, lost_tenants, request_reindex
from memoryd.recall.search import Searcher
from memoryd.recall.underway import AnswersUnderWay
from memoryd.store.base import Blobs, Cache, Index, Ledger
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.cache import ValkeyCache
from memoryd.store.embedded import MilvusServer, ValkeyServer
from memoryd.store.index import MilvusIndex
from memoryd.store.ledger import SqlLedger
from memoryd.store.texts import Texts
from memoryd.threads import StoreThreads
from memoryd.usage import UsageMeter
from memoryd.worker.child import WorkerProcess
from memoryd.worker.client import WorkerClient
from memoryd.write import DocumentWriter

T = TypeVar("T")

_FLUSH_SECONDS = 20.0
_RETRY_SECONDS = 0.5
_PROGRESS_SECONDS = 10.0
_ABANDONED_SECONDS = 3600.0
_THREADS = 64  # calls of the index at a time, and as many of all other stores
_START_TRIES = 3  # of a child, before the daemon gives up


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of, for those that drive it: the rest holds only what it was handed."""

    ledger: Ledger
    blobs: Blobs
    index: Index
    cache: Cache
    runs: Runs
    models: Models
    usage: UsageMeter
    jobs: JobRunner
    server: grpc.aio.Server
    health: Health
    handlers: Mapping[JobKind, Any]
    policy: LearnPolicy


class Daemon:
    """`await Daemon(settings).run()` serves until SIGTERM or SIGINT and returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._up: dict[str, bool] = {}  # what answers cannot do without: is it there?
        self._health = Health()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._log = log.get("daemon")

    async def run(self) -> int:
        """SettingsError and FailedPrecondition where it can't start; the message says what to do."""
        began = time.monotonic()
        settings = self._settings
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(StoreThreads(_THREADS, MilvusIndex))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(DataDirLock(settings.data_dir))
            probe(settings)
            ledger = await asyncio.to_thread(_ledger, settings)
            stack.callback(ledger.close)
            blobs = FsspecBlobs(settings.blob_url or str(settings.data_dir / "blobs"))

            valkey = None if settings.redis_url else ValkeyServer(settings.data_dir, settings.cache_bytes)
            milvus = None if settings.milvus_uri else MilvusServer(settings.data_dir)
            worker = WorkerProcess(settings)
            if not await self._start_children([child for child in (valkey, milvus, worker) if child], stack):
                return 0
            client = WorkerClient(worker.socket)
            stack.push_async_callback(client.close)
            info = await self._patiently(client.describe)
            models = Models(client, info, TextTokenizer(info.model_path), RetrievalTokenizer())

            uri = milvus.uri if milvus else settings.milvus_uri
            index = await asyncio.to_thread(MilvusIndex, uri, info.encoder_dim, info.encoder_fingerprint, settings.milvus_token)
            stack.callback(index.close)
            cache = ValkeyCache(valkey.url if valkey else settings.redis_url, settings.cache_bytes)
            stack.callback(cache.close)
            parts = self._compose(ledger, blobs, index, cache, models)
            await self._recover(parts)
            if milvus:
                stack.push_async_callback(_cancelled, self._background(self._rebuild(parts, milvus.wiped)))
            await self._serve(parts, began, stack)
        self._log.info("stopped")
        return 0

    async def _start_children(self, children: list[ChildProcess], stack: contextlib.AsyncExitStack) -> bool:
        """Starts them side by side and keeps watch over them. False where SIGTERM came first."""
        for child in children:
            stack.push_async_callback(child.stop)
        starting: asyncio.Future[Any] = asyncio.gather(*(self._first_start(child) for child in children))
        stopping: asyncio.Future[Any] = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, MemorydError):
                await starting
            return False
        stopping.cancel()
        await starting
        for child in children:
            watch = self._background(supervise(child, self._watcher(child.spec.name)))
            stack.push_async_callback(_cancelled, watch)
        return True

    async def _first_start(self, child: ChildProcess) -> None:
        for tries in range(1, _START_TRIES + 1):
            try:
                await child.start()
                return
            except MemorydError as error:
                if tries == _START_TRIES or not isinstance(error, Unavailable):
                    raise
                self._log.warning("a child does not start", child=child.spec.name, tries=tries, why=error.message)

    def _watcher(self, name: str) -> Any:
        def changed(state: ChildState, why: str) -> None:
            self._log.info("child", child=name, state=str(state), why=why)
            if name != "valkey":  # a cache is only missed
                self._up[name] = state is ChildState.READY
                self._background(self._health.set(all(self._up.values())))

        return changed

    def _compose(self, ledger: Ledger, blobs: Blobs, index: Index, cache: Cache, models: Models) -> Parts:
        settings = self._settings
        jobs = JobRunner(ledger, settings.job_slots, settings.job_lease_seconds, settings.job_attempts)
        texts = Texts(ledger, blobs)
        embeddings = EmbeddingStore(ledger, blobs, cache)
        indexer = Indexer(ledger, texts, index, models)
        searcher = Searcher(ledger, index, texts, models)
        usage = UsageMeter(ledger)
        assembler = Assembler(ledger, embeddings, models, settings.max_context_tokens)
        adapters = AdapterStore(ledger, blobs, cache, models)
        answers = AnswersUnderWay()
        many = settings.auth == "keys"  # else everyone is the one tenant `default`
        answerer = Answerer(ledger, searcher, assembler, adapters, models, usage, answers, settings.max_answers, many)
        writer = DocumentWriter(ledger, blobs, settings.max_document_bytes)
        secret = admin_key(settings.data_dir) if settings.auth == "keys" else None
        servicers = {
            "memoryd.v1.MemoryService": MemoryServicer(ledger, jobs, adapters, answers),
            "memoryd.v1.DocumentService": DocumentServicer(ledger, blobs, writer, jobs, adapters, answers),
            "memoryd.v1.RecallService": RecallServicer(usage, searcher, ContextBuilder(searcher, models), answerer),
            "memoryd.v1.LearnService": LearnServicer(ledger, blobs, models, adapters, jobs),
            "memoryd.v1.JobService": JobServicer(ledger, jobs),
            "memoryd.v1.AdminService": AdminServicer(ledger, usage),
            "google.longrunning.Operations": OperationsServicer(ledger, jobs),
        }
        server = build(settings, servicers, CallInterceptor(Authenticator(ledger, secret)), self._health)
        contexts = ContextMaker(searcher, assembler, models)
        eraser = AdapterEraser(adapters, blobs, cache)
        runs = Runs(ledger, eraser, settings.data_dir / "learning")
        learning = LearnJob(
            *(ledger, blobs, models, contexts, adapters, runs),
            settings.learn_settings,
            settings.learn_epochs,
            settings.learn_keep,
        )
        policy = LearnPolicy(ledger, settings.learn_after_tokens, settings.learn_after_seconds)
        asker: Asker = LocalAsker(models)
        if settings.teacher_url:
            asker = Teacher(settings.teacher_url, settings.teacher_model, settings.teacher_key)
        handlers = {
            JobKind.STUDY: StudyJob(ledger, texts, models, asker),
            JobKind.LEARN: learning,
            JobKind.COMPRESS: policy.after(CompressJob(ledger, blobs, indexer, models, texts, settings.embedding_storage)),
            JobKind.ERASE: EraseJob(ledger, blobs, index, cache, embeddings, eraser, runs, jobs, answers),
            JobKind.REINDEX: ReindexJob(ledger, indexer),
        }
        return Parts(ledger, blobs, index, cache, runs, models, usage, jobs, server, self._health, handlers, policy)

    async def _recover(self, parts: Parts) -> None:
        """What an earlier daemon may have left undone, besides its jobs, which come back by themselves."""
        await asyncio.to_thread(parts.ledger.ensure_tenant, DEFAULT_TENANT)

    async def _work(self, parts: Parts) -> None:
        """Jobs, after a look at whether the index was lost: once they run, a few new vectors would hide that."""
        lost = await self._patiently(lambda: asyncio.to_thread(lost_tenants, parts.ledger, parts.index), MemorydError)
        for tenant in lost:
            self._log.warning("the index has nothing of this tenant: it is rebuilt", tenant=tenant)
        await self._reindex(parts.ledger, lost)
        await parts.jobs.run(parts.handlers)

    async def _rebuild(self, parts: Parts, wiped: asyncio.Event) -> None:
        """Milvus Lite was restarted, and its files could not be read any more."""
        wiped.clear()  # what was wiped before this is found by its absence
        while True:
            await wiped.wait()
            wiped.clear()
            tenants = await self._patiently(lambda: asyncio.to_thread(_tenants, parts.ledger), MemorydError)
            await self._reindex(parts.ledger, tenants)
            parts.jobs.wake()

    async def _reindex(self, ledger: Ledger, tenants: Iterable[str]) -> None:
        """Leaves a job for each, whatever goes wrong at first: else their memories find nothing, and nobody knows."""
        for tenant in tenants:
            await self._patiently(partial(asyncio.to_thread, request_reindex, ledger, tenant), MemorydError)

    async def _serve(self, parts: Parts, began: float, stack: contextlib.AsyncExitStack) -> None:
        running = self._background(self._work(parts))
        flushing = self._background(_flush_now_and_then(parts.index))
        metering = self._background(parts.usage.run())
        reclaiming = self._background(self._reclaim(parts))
        recompressing = self._background(self._recompress(parts))
        considering = self._background(parts.policy.run())
        stack.push_async_callback(parts.server.stop, 0)
        collector.keep()  # before anybody waits for an answer
        await parts.server.start()
        await self._health.set(all(self._up.values()))
        screen.show_ready(self._settings, parts.models.info, time.monotonic() - began)
        await self._stopping.wait()
        self._log.info("draining", seconds=self._settings.drain_seconds)
        await self._health.set(False)
        await asyncio.gather(parts.server.stop(self._settings.drain_seconds), parts.jobs.drain())
        for task in (running, flushing, metering, reclaiming, recompressing, considering):
            await _cancelled(task)
        with contextlib.suppress(MemorydError):  # the counts of the last second are not worth a failed stop
            await asyncio.to_thread(parts.usage.flush)

    async def _recompress(self, parts: Parts) -> None:
        """What another compressor made, before the configuration was changed; says now and then how far that is."""
        fingerprint = parts.models.info.compressor.fingerprint
        request = partial(asyncio.to_thread, request_recompression, parts.ledger, fingerprint)
        if count := await self._patiently(request, MemorydError):
            self._log.info("the compressor has changed: documents are compressed anew", documents=count)
            parts.jobs.wake()
        began, first, said = time.monotonic(), 0, 0  # of this daemon's life: an earlier one may have done some
        look = partial(asyncio.to_thread, parts.ledger.count_recompressing, fingerprint)
        while left := await self._patiently(look, MemorydError):
            first = first or left
            if left not in (first, said):
                minutes = (time.monotonic() - began) / (first - left) * left / 60
                self._log.info("compressing anew", documents_left=left, minutes_left=round(minutes, 1))
                said = left
            await asyncio.sleep(_PROGRESS_SECONDS)
        if first:
            self._log.info("documents are compressed anew", documents=first)

    async def _reclaim(self, parts: Parts) -> None:
        """Every hour, what writes left that were cut off, by a kill say: text that nobody could forget."""
        while True:
            try:
                await self._reclaim_once(parts)
            except MemorydError as error:
                self._log.warning("what cut-off writes left is not removed now", reason=error.reason)
            await asyncio.sleep(_ABANDONED_SECONDS)

    async def _reclaim_once(self, parts: Parts) -> None:
        if swept := await asyncio.to_thread(parts.blobs.sweep, _ABANDONED_SECONDS):
            self._log.info("removed what unfinished uploads left", files=swept)
        if not await asyncio.to_thread(owns, parts.ledger, parts.blobs):
            self._log.warning(
                "the blobs are another ledger's: none is removed. Is this the right database_url, data_dir and blob_url?"
            )
            return
        stores = (parts.ledger, parts.blobs, parts.runs)
        for tenant in await asyncio.to_thread(_tenants, parts.ledger):
            if reclaimed := await asyncio.to_thread(reclaim, *stores, tenant, _ABANDONED_SECONDS):
                self._log.info("removed bytes of documents that were never recorded", documents=reclaimed)

    async def _patiently(self, call: Callable[[], Awaitable[T]], expected: type[MemorydError] = Unavailable) -> T:
        """A child was ready, and may have died since: then it comes back. That it is waited for is said once."""
        told = False
        while True:
            try:
                return await call()
            except expected as error:
                if self._stopping.is_set():
                    raise
                if not told:
                    self._log.warning("a part does not do its work: it is asked until it does", reason=error.reason)
                    told = True
            await asyncio.sleep(_RETRY_SECONDS)

    def _background(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("work in the background failed", exc_info=error)


def request_reindex_of_all(settings: Settings) -> int:
    """`memoryd reindex`: leaves a job for each tenant, for the daemon that runs or the next one. Returns the exit code."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.closing(_ledger(settings)) as ledger:
        tenants = _tenants(ledger)
        for tenant in tenants:
            request_reindex(ledger, tenant)
    print(f"the index of {len(tenants)} tenant(s) will be rebuilt: by the running daemon within a second, or by the next one")
    return 0


def _tenants(ledger: Ledger) -> list[str]:
    tenants, token = [], ""
    while True:
        page = ledger.list_tenants(1000, token)
        tenants += [tenant.id for tenant in page.items]
        token = page.next_token
        if not token:
            return tenants


def _ledger(settings: Settings) -> SqlLedger:
    return SqlLedger(settings.database_url or f"sqlite:///{settings.data_dir / 'ledger.db'}")


async def _flush_now_and_then(index: Index) -> None:
    """Unflushed rows are slow to search."""
    while True:
        with contextlib.suppress(MemorydError):  # at once too: after a restart it is the first search that would wait
            await asyncio.to_thread(index.flush)
        await asyncio.sleep(_FLUSH_SECONDS)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
