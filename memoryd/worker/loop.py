"""The worker's loop: the only thread that touches models.

Calls come in through a queue and their outputs go out through one asyncio queue each. Between two steps the loop takes
in what has arrived, so a cancellation is done within one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memoryd import log
from memoryd.engine.output import Output, Value, told
from memoryd.engine.request import Generation, Learning
from memoryd.errors import MemorydError, Unavailable, WorkerLost

if TYPE_CHECKING:
    from memoryd.engine.runner import Runner

_log = log.get("worker.loop")


@dataclass(frozen=True, slots=True)
class EmbedTexts:
    """Texts for the retrieval encoder."""

    texts: Sequence[str]
    urgent: bool


@dataclass(frozen=True, slots=True)
class CompressChunks:
    """Chunks for the compressor of this fingerprint."""

    chunks: Sequence[Sequence[int]]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """A memory's adapter in PEFT's format."""

    adapter: str
    config: bytes
    weights: bytes


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """A memory's adapter to be forgotten."""

    adapter: str


Request = Generation | EmbedTexts | CompressChunks | Learning | LoadAdapter | UnloadAdapter


@dataclass(frozen=True, slots=True)
class _Start:
    call: int
    request: Request
    deliver: Callable[[Output], None]


@dataclass(frozen=True, slots=True)
class _End:
    call: int


class _Stop:
    """Leave the loop."""


class Loop:
    """Owns the thread. `load` makes the runner, on that thread; `loaded` is done when it has, or failed to."""

    def __init__(self, load: Callable[[], Runner]) -> None:
        self._load = load
        self._inbox: queue.SimpleQueue[_Start | _End | _Stop] = queue.SimpleQueue()
        self._calls = itertools.count(1)
        self._deliver: dict[int, Callable[[Output], None]] = {}
        self._thread: threading.Thread | None = None
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._ready = False

    def start(self) -> tuple[asyncio.Future[None], asyncio.Future[None]]:
        """Start the thread. Returns two futures: models loaded (or the error), and thread ended (or the error)."""
        self._asyncio = asyncio.get_running_loop()
        loaded, ended = self._asyncio.create_future(), self._asyncio.create_future()
        self._thread = threading.Thread(target=self._main, args=(loaded, ended), name="worker-loop", daemon=True)
        self._thread.start()
        return loaded, ended

    async def stop(self) -> None:
        """Leave after the step in progress; calls that are not done raise Unavailable (WORKER_ENDING)."""
        self._inbox.put(_Stop())
        if self._thread:
            await asyncio.to_thread(self._thread.join)

    async def run(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs of a request as they come; raises the error that ends it. Closing it frees all that the call holds."""
        if not self._ready or self._asyncio is None:
            raise Unavailable("the worker is loading its models or ending", reason="WORKER_LOADING")
        events, outputs = self._asyncio, asyncio.Queue[Output]()
        call = next(self._calls)

        def deliver(output: Output) -> None:
            with contextlib.suppress(RuntimeError):  # asyncio has ended: nobody waits any more
                events.call_soon_threadsafe(outputs.put_nowait, output)

        self._inbox.put(_Start(call, request, deliver))
        try:
            while True:
                output = await outputs.get()
                if isinstance(output.value, MemorydError):
                    raise output.value
                yield output
        finally:
            self._inbox.put(_End(call))

    def _main(self, loaded: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        now = loaded
        try:
            runner = self._load()
            self._ready = True
            self._settle(loaded)
            now = ended
            while self._take_in(runner):
                for output in runner.step():
                    self._give_out(output.call, output)
            error = None
        except BaseException as raised:
            error = raised
        self._ready = False
        why = WorkerLost() if error else Unavailable("the worker is ending: try again", reason="WORKER_ENDING")
        for call in list(self._deliver):
            self._give_out(call, Output(call, why))
        self._settle(now, error)

    def _settle(self, future: asyncio.Future[None], error: BaseException | None = None) -> None:
        assert self._asyncio is not None
        with contextlib.suppress(RuntimeError):  # asyncio has ended
            if error is None:
                self._asyncio.call_soon_threadsafe(future.set_result, None)
            else:
                self._asyncio.call_soon_threadsafe(future.set_exception, error)

    def _take_in(self, runner: Runner) -> bool:
        """Handle the messages that are there, waiting for one if there is nothing to run. False means leave."""
        while True:
            try:
                message = self._inbox.get(block=runner.idle)
            except queue.Empty:
                return True
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _End):
                self._deliver.pop(message.call, None)
                runner.end(message.call)
                continue
            self._deliver[message.call] = message.deliver
            try:
                for done in self._begin(runner, message):
                    self._give_out(done.call, done)
            except Exception as error:  # one call's, whatever it is: the loop serves all others too
                runner.end(message.call)
                self._give_out(message.call, Output(message.call, told(error)))

    @staticmethod
    def _begin(runner: Runner, start: _Start) -> Sequence[Output]:
        """Queue it; or do it, where it takes no step: what that gives out, to this call and others."""
        request, call = start.request, start.call
        match request:
            case Generation():
                runner.generate(call, request)
            case EmbedTexts():
                runner.embed(call, request.texts, request.urgent)
            case CompressChunks():
                runner.compress(call, request.chunks, request.fingerprint)
            case Learning():
                runner.learn(call, request)
            case LoadAdapter():
                runner.load_adapter(request.adapter, request.config, request.weights)
                return [Output(call, None)]
            case UnloadAdapter():
                return [*runner.unload_adapter(request.adapter), Output(call, None)]
        return []

    def _give_out(self, call: int, output: Output) -> None:
        value: Value = output.value
        if isinstance(value, MemorydError) and value.reason == MemorydError.reason:
            _log.error("step failed", call=call, error=value.message, exc_info=value.__cause__)
        if deliver := self._deliver.get(call):
            deliver(output)
