"""`Client`: `AsyncClient` in blocking shape, over a transport that never suspends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from ._admin import Admin
from ._answer import Answer
from ._client import DEFAULT_RETRY, USER_AGENT, Core
from ._jobs import Jobs
from ._learning import Adapter
from ._memories import Memories
from ._memory import AsyncMemory
from ._settings import CALL_TIMEOUT, LONG_TIMEOUT, Retry, Settings, Tls
from ._sync_memory import Memory
from ._transport import Blocking, finish
from ._types import Context, HealthStatus, MemoryInfo, Message, Mode, Source

GivenMemories: TypeAlias = str | MemoryInfo | Memory | Sequence[str | MemoryInfo | Memory]
"""One memory, or several."""


class Client:
    """memoryd's client: `with Client() as client: …`. Threads may share one.

    target: host:port, or unix:/path; MEMORYD_TARGET where None, and localhost:7437 where that is not set.
    api_key: MEMORYD_API_KEY where None. Refused over an unencrypted connection to another machine, unless `insecure`.
    tls: True, or a Tls with its own certificates.
    timeout: seconds for a call with all that it takes, where the call itself is given none; None is no limit.
    retry: how calls that are safe to repeat are repeated while the daemon is unavailable; None never repeats.

    InvalidArgument: the key would cross a network in the clear, or is none. OSError: a file of `tls` can't be read.
    """

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
        self._settings = Settings.resolve(target, api_key, tls, timeout, retry, insecure)
        self._core = Core(Blocking(self._settings, USER_AGENT), self._settings)
        self.memories = Memories(self._core.memories)
        """Creates, reads, changes and deletes memories."""
        self.jobs = Jobs(self._core.jobs)
        """Reads, watches, waits for, cancels and retries jobs."""
        self.admin = Admin(self._core.admin)
        """Tenants, API keys and usage."""

    def __repr__(self) -> str:
        return repr(self._core).replace("Core", "Client", 1)

    def memory(self, memory: str | MemoryInfo, *, create: bool = False) -> Memory:
        """A handle to a memory; calls nothing. `create`: its first call creates the memory where there is none."""
        return Memory(self._core.memory(memory, create=create))

    def search(
        self,
        memories: GivenMemories,
        query: str,
        *,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> list[Source]:
        """Finds passages in one memory or several, best first. `top_k`: how many; 3 where None."""
        return finish(self._core.search(_inner(memories), query, top_k=top_k, timeout=timeout))

    def context(
        self,
        memories: GivenMemories,
        query: str,
        *,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> Context:
        """A text context from one memory or several, for agents that use another LLM. `max_tokens`: its budget in tokens of the
        base model; 1024 where None."""
        return finish(self._core.context(_inner(memories), query, max_tokens=max_tokens, timeout=timeout))

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
    ) -> Answer:
        """Answers a question from one memory or several: iterate the result for its events.

        The other arguments are those of Memory.answer(). `adapters` may be of any of these memories."""
        return Answer(
            self._core.answer(
                _inner(memories),
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
        )

    def health(self, *, timeout: float | None = None) -> HealthStatus:
        """What the daemon says of its own health. Unavailable: it does not answer."""
        return finish(self._core.health(timeout=timeout))

    def wait_until_ready(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Waits until the daemon is SERVING, e.g. after starting it."""
        finish(self._core.wait_until_ready(timeout=timeout))

    def close(self) -> None:
        """Closes the connection. Calls under way are cancelled."""
        finish(self._core.close())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _inner(memories: GivenMemories) -> list[str | MemoryInfo | AsyncMemory]:
    if isinstance(memories, (str, MemoryInfo, Memory)):
        memories = [memories]
    return [m._inner if isinstance(m, Memory) else m for m in memories]
