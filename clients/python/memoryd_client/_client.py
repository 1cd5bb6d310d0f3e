"""`AsyncClient`, and `Core`: all that a client does, over either transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from ._admin import AsyncAdmin
from ._answer import AsyncAnswer
from ._caller import Caller, Deadline
from ._convert import name_of
from ._errors import DeadlineExceeded, Unavailable
from ._jobs import AsyncJobs
from ._learning import Adapter
from ._memories import AsyncMemories
from ._memory import AsyncMemory
from ._recall import Recall
from ._settings import CALL_TIMEOUT, LONG_TIMEOUT, Retry, Settings, Tls
from ._transport import Asyncio, Transport
from ._types import Context, HealthStatus, MemoryInfo, Message, Mode, Source
from ._version import __version__

USER_AGENT = f"memoryd-client/{__version__}"
DEFAULT_RETRY = Retry()

GivenMemories: TypeAlias = str | MemoryInfo | AsyncMemory | Sequence[str | MemoryInfo | AsyncMemory]
"""One memory, or several."""


class Core:
    """What both clients do."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._settings = settings
        self._caller = Caller(transport, settings)
        self._recall = Recall(self._caller)
        self.memories = AsyncMemories(self._caller)
        """Creates, reads, changes and deletes memories."""
        self.jobs = AsyncJobs(self._caller)
        """Reads, watches, waits for, cancels and retries jobs."""
        self.admin = AsyncAdmin(self._caller)
        """Tenants, API keys and usage."""

    def __repr__(self) -> str:
        key = "a key" if self._settings.api_key is not None else "no key"
        return f"<{type(self).__name__} of {self._settings.target}, {key}>"

    def memory(self, memory: str | MemoryInfo, *, create: bool = False) -> AsyncMemory:
        """A handle to a memory; calls nothing. `create`: its first call creates the memory where there is none."""
        return AsyncMemory(self._caller, name_of("memories", memory), create)

    async def search(
        self,
        memories: GivenMemories,
        query: str,
        *,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> list[Source]:
        """Finds passages in one memory or several, best first. `top_k`: how many; 3 where None."""
        return await self._recall.search(memories, query, top_k, timeout)

    async def context(
        self,
        memories: GivenMemories,
        query: str,
        *,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> Context:
        """A text context from one memory or several, for agents that use another LLM. `max_tokens`: its budget in tokens of the
        base model; 1024 where None."""
        return await self._recall.context(memories, query, max_tokens, timeout)

    def answer(
        self,
        memories: GivenMemories,
        question: str,
        *,
        mode: Mode | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: Sequence[str] = (),
        prior_messages: Sequence[Message | Mapping[str, Any]] = (),
        seed: int | None = None,
        repeat_penalty: float | None = None,
        adapters: Mapping[str, float] | Sequence[str | Adapter] | None = None,
        no_adapter: bool = False,
        timeout: float = LONG_TIMEOUT,
    ) -> AsyncAnswer:
        """Answers a question from one memory or several: iterate the result for its events.

        The other arguments are those of Memory.answer(). `adapters` may be of any of these memories."""
        return self._recall.answer(
            memories,
            question,
            mode=mode,
            top_k=top_k,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
            prior_messages=prior_messages,
            seed=seed,
            repeat_penalty=repeat_penalty,
            adapters=adapters,
            no_adapter=no_adapter,
            timeout=timeout,
        )

    async def health(self, *, timeout: float | None = None) -> HealthStatus:
        """What the daemon says of its own health. Unavailable: it does not answer."""
        return HealthStatus((await self._caller.unary("grpc.health.v1.Health.Check", timeout=timeout)).status)

    async def wait_until_ready(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Waits until the daemon is SERVING, e.g. after starting it."""
        deadline = Deadline(timeout)
        tried, found = 0, "it does not answer"
        while True:
            try:
                status = await self.health(timeout=deadline.left(CALL_TIMEOUT))
                if status is HealthStatus.SERVING:
                    return
                found = f"it is {status.name}"
            except (Unavailable, DeadlineExceeded) as error:
                found = str(error)
            tried += 1
            if not await self._caller.paused(min(tried, 3), deadline):
                raise DeadlineExceeded(f"the daemon is not ready within {timeout:g} s: {found}", reason="NOT_READY")

    async def close(self) -> None:
        """Closes the connection. Calls under way are cancelled."""
        await self._caller.close()


class AsyncClient(Core):
    """memoryd's client on asyncio: `async with AsyncClient() as client: …`. Has the shape of Client."""

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool | Tls = False,
        timeout: float | None = CALL_TIMEOUT,
        retry: Retry | None = DEFAULT_RETRY,
        insecure: bool = False,
    ) -> None:
        """See Client."""
        settings = Settings.resolve(target, api_key, tls, timeout, retry, insecure)
        super().__init__(Asyncio(settings, USER_AGENT), settings)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
