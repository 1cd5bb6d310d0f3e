"""Child processes of the daemon: started, watched, restarted, ended, and never left behind.

A child has its own session, so that a Ctrl-C meant for the daemon does not reach it first. On Linux it dies with the daemon,
even with one that was killed: it asks the kernel for that before it becomes its program. Elsewhere, and against anything
that slips through, a pid file lets the next daemon on the same data directory end what an earlier one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import structlog

from memoryd.errors import MemorydError, Unavailable

log = structlog.get_logger(__name__)

# Runs in the child before its program does. A preexec_fn would instead run Python in a fork of a process with many threads.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent died first")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell may have started the daemon with it ignored
os.execvpe(sys.argv[2], sys.argv[2:], os.environ)
"""
_LOG_BYTES = 16 << 20  # a longer log is put aside at the next start, in place of the one before
_PROBE_SECONDS = 0.05  # between looks at a child that starts
_WORKS = 0.1  # of a core at least, is what one uses that does something


class ChildState(enum.StrEnum):
    """What `supervise` reports."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"  # died, hangs or did not start: a restart follows


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to tell that it works. Times are in seconds."""

    name: str
    command: Sequence[str]
    run_dir: Path  # NAME.pid and logs/NAME.log go here
    ready: Callable[[], Awaitable[bool]]  # True once it serves; may raise OSError while it does not
    env: Mapping[str, str] = field(default_factory=dict)  # added to the daemon's own
    start_timeout: float = 60.0
    stop_timeout: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM
    probe_timeout: float = 5.0

    @property
    def log_file(self) -> Path:
        return self.run_dir / "logs" / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return self.run_dir / f"{self.name}.pid"


class ChildProcess:
    """One child process at a time. Use it from the main thread's event loop: the kernel ends a child with the thread that
    started it."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.exit_code: int | None = None  # of the one that ended last
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Returns when it is ready. Unavailable, naming the log, where it ends or is not ready in time."""
        await asyncio.to_thread(self._end_leftover)
        with self._open_log() as output:
            self._process = await asyncio.create_subprocess_exec(
                *ending_with_us(self.spec.command),
                env={**os.environ, **self.spec.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._write_pid_file()
            async with asyncio.timeout(self.spec.start_timeout):
                await self._until_ready()
        except TimeoutError:
            await self.kill()
            raise self._failed(f"was not ready within {self.spec.start_timeout:g} s") from None
        except BaseException:
            await self.kill()
            raise

    def cpu_seconds(self) -> float:
        """That it has used, all its threads together; 0 while it does not run."""
        try:
            used = psutil.Process(self.pid).cpu_times() if self.pid is not None else None
        except psutil.Error:
            return 0.0
        return used.user + used.system if used else 0.0

    async def healthy(self) -> bool:
        """Whether it runs and answers its probe in time."""
        if self.pid is None:
            return False
        try:
            async with asyncio.timeout(self.spec.probe_timeout):
                return await self.spec.ready()
        except OSError:  # TimeoutError is one
            return False

    async def wait(self) -> int:
        """Until it ends; returns its exit code, negative for a signal."""
        return await self._process.wait() if self._process else 0

    async def stop(self) -> None:
        """Asks it to end; kills it where it does not in time."""
        if self.pid is not None:
            self._signal(self.spec.stop_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.spec.stop_timeout):
                    await self.wait()
        await self.kill()

    async def kill(self) -> None:
        """Ends it and what it started, at once."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self.exit_code = await self._process.wait()
            self._process = None  # its number may become somebody else's
            self.spec.pid_file.unlink(missing_ok=True)

    async def _until_ready(self) -> None:
        while not await self.healthy():
            if self.pid is None:
                raise self._failed(f"ended with exit code {await self.wait()} while starting")
            await asyncio.sleep(_PROBE_SECONDS)

    def _open_log(self) -> IO[bytes]:
        path = self.spec.log_file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".old.log"))
        return path.open("ab")

    def _failed(self, what: str) -> Unavailable:
        return Unavailable(f"{self.spec.name} {what}: see {self.spec.log_file}", reason="CHILD_NOT_STARTED")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # its session is its group
                os.killpg(self._process.pid, number)

    def _write_pid_file(self) -> None:
        # A pid is used again some day; together with its start time it names one process.
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            identity = {"pid": self._process.pid, "start": psutil.Process(self._process.pid).create_time()}
            self.spec.pid_file.write_text(json.dumps(identity))

    def _end_leftover(self) -> None:
        try:
            identity = json.loads(self.spec.pid_file.read_text())
            process = psutil.Process(int(identity["pid"]))
            if abs(process.create_time() - float(identity["start"])) > 1.0:
                return
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return
        log.warning("ending a child that an earlier daemon left", child=self.spec.name, pid=process.pid)
        with contextlib.suppress(psutil.Error):
            process.send_signal(self.spec.stop_signal)
            try:
                process.wait(self.spec.stop_timeout)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(self.spec.stop_timeout)


def ending_with_us(command: Sequence[str]) -> list[str]:
    """The command as one that the kernel (Linux) kills when the thread that starts it ends, however that came."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How `supervise` watches and restarts. Times are in seconds."""

    first: float = 0.2
    most: float = 10.0
    healthy_after: float = 30.0  # alive for this long, it starts from `first` again
    probe_every: float = 5.0
    probe_failures: int = 3  # in a row, and it hangs: it is killed and restarted
    busy_failures: int = 12  # of one that works meanwhile: where the machine is busy, an answer may be minutes late


async def supervise(
    child: ChildProcess,
    on_change: Callable[[ChildState, str], None],
    backoff: Backoff | None = None,
) -> None:
    """Keeps `child` running until cancelled; then leaves it as it is, for the caller to stop.

    A child that runs already is taken over. `on_change` gets each new state and a line for people.
    """
    backoff = backoff or Backoff()
    loop = asyncio.get_running_loop()
    pause = backoff.first
    while True:
        began = loop.time()
        try:
            if child.pid is None:
                on_change(ChildState.STARTING, "")
                await child.start()
            on_change(ChildState.READY, "")
            why = await _until_down(child, backoff)
        except MemorydError as error:  # not Unavailable alone: what is wrong with its files may be put right meanwhile
            why = error.message
        except OSError as error:  # the program or the log file is not there
            why = f"{child.spec.name} cannot be started: {error.strerror}"
        if loop.time() - began >= backoff.healthy_after:
            pause = backoff.first
        log.warning("child is down", child=child.spec.name, why=why, restart_in_seconds=pause)
        on_change(ChildState.DOWN, why)
        await asyncio.sleep(pause)
        pause = min(pause * 2, backoff.most)


async def _until_down(child: ChildProcess, backoff: Backoff) -> str:
    """Returns why it is down."""
    loop = asyncio.get_running_loop()
    failures = idle = 0  # in a row, and those of them in which it did nothing either
    looked, used = loop.time(), child.cpu_seconds()
    ended = asyncio.ensure_future(child.wait())
    try:
        while idle < backoff.probe_failures and failures < backoff.busy_failures:
            done, _ = await asyncio.wait({ended}, timeout=backoff.probe_every)
            if done:
                await child.kill()  # what it started must not outlive it
                return f"{child.spec.name} ended with exit code {ended.result()}"
            if await child.healthy():
                failures = idle = 0
            else:
                failures += 1
                idle += child.cpu_seconds() - used < _WORKS * (loop.time() - looked)
            looked, used = loop.time(), child.cpu_seconds()
    finally:
        ended.cancel()
    await child.kill()
    return f"{child.spec.name} did not answer {failures} probes in a row"
