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

from memoryd import log
from memoryd.engine.request import Generation
from memoryd.engine.runner import Output, Runner, Value
from memoryd.errors import MemorydError, Unavailable

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


Request = Generation | EmbedTexts | CompressChunks


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
        self._thread = threading.Thread(target=self._main, name="worker-loop", daemon=True)
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self.loaded: asyncio.Future[None] | None = None

    def start(self) -> asyncio.Future[None]:
        """Start the thread; the future ends when the models are loaded, with the error where they can't be."""
        self._asyncio = asyncio.get_running_loop()
        self.loaded = self._asyncio.create_future()
        self._thread.start()
        return self.loaded

    async def stop(self) -> None:
        """Leave after the step in progress, dropping what is queued."""
        self._inbox.put(_Stop())
        await asyncio.to_thread(self._thread.join)

    async def run(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs of a request as they come; raises the error that ends it. Closing it frees all that the call holds."""
        if self.loaded is None or not self.loaded.done() or not self._thread.is_alive():
            raise Unavailable("the worker is loading its models", reason="WORKER_LOADING")
        assert self._asyncio is not None
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

    def _main(self) -> None:
        assert self._asyncio is not None
        assert self.loaded is not None
        try:
            runner = self._load()
        except BaseException as error:
            self._asyncio.call_soon_threadsafe(self.loaded.set_exception, error)
            return
        self._asyncio.call_soon_threadsafe(self.loaded.set_result, None)
        while self._take_in(runner):
            for output in runner.step():
                self._give_out(output.call, output)

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
                self._begin(runner, message)
            except MemorydError as error:
                runner.end(message.call)
                self._give_out(message.call, Output(message.call, error))

    @staticmethod
    def _begin(runner: Runner, start: _Start) -> None:
        request = start.request
        if isinstance(request, Generation):
            runner.generate(start.call, request)
        elif isinstance(request, EmbedTexts):
            runner.embed(start.call, request.texts, request.urgent)
        else:
            runner.compress(start.call, request.chunks, request.fingerprint)

    def _give_out(self, call: int, output: Output) -> None:
        value: Value = output.value
        if isinstance(value, MemorydError) and value.reason == MemorydError.reason:
            _log.error("step failed", call=call, error=value.message, exc_info=value.__cause__)
        if deliver := self._deliver.get(call):
            deliver(output)
