"""Children that are killed come back, and none outlives the daemon that started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from memoryd.child import Backoff, ChildProcess, ChildSpec, ChildState, supervise
from memoryd.errors import DataLoss, SettingsError, Unavailable
from memoryd.store.cache import ValkeyCache
from memoryd.store.embedded import MilvusServer, ValkeyServer
from memoryd.store.index import MilvusIndex
from tests.contract.rows import index_row, vector

_SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
_FAST = Backoff(first=0.01, most=0.02, probe_every=0.05, probe_failures=2)


async def _ready() -> bool:
    return True


async def _never() -> bool:
    return False


class Watch:
    """Records what `supervise` reports, and waits for it."""

    def __init__(self) -> None:
        self.states: list[ChildState] = []
        self.whys: list[str] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, state: ChildState, why: str) -> None:
        self.states.append(state)
        self.whys.append(why)
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(condition)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def supervised(child: ChildProcess, backoff: Backoff = _FAST) -> AsyncIterator[Watch]:
    watch = Watch()
    task = asyncio.create_task(supervise(child, watch, backoff))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
        await child.stop()


def child(run_dir: Path, *command: str, **settings: object) -> ChildProcess:
    spec = {"name": "child", "command": command or _SLEEP, "run_dir": run_dir, "ready": _ready, **settings}
    return ChildProcess(ChildSpec(**spec))  # type: ignore[arg-type]


def kill(process: ChildProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


async def test_valkey_comes_back_and_the_cache_with_it(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, 16 << 20)
    async with supervised(server) as watch:
        await watch.until(lambda: ChildState.READY in watch.states)
        cache = ValkeyCache(server.url, 16 << 20)
        await asyncio.to_thread(cache.put, "acme", "a", b"1")
        assert cache.get_many("acme", ["a"]) == {"a": b"1"}
        kill(server)
        assert cache.get_many("acme", ["a"]) == {}
        await watch.until(lambda: watch.states.count(ChildState.READY) == 2)
        cache.put("acme", "a", b"2")
        assert cache.get_many("acme", ["a"]) == {"a": b"2"}
        cache.close()


async def test_milvus_comes_back_on_its_port_with_every_acknowledged_row(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path)
    async with supervised(server, Backoff(first=0.01)) as watch:
        await watch.until(lambda: ChildState.READY in watch.states)
        index = MilvusIndex(server.uri, 8, "fingerprint")
        await asyncio.to_thread(index.upsert, "acme", [index_row("d-0", "flushed")])
        await asyncio.to_thread(index.flush)
        await asyncio.to_thread(index.upsert, "acme", [index_row("d-1", "unflushed")])
        kill(server)
        await watch.until(lambda: watch.states.count(ChildState.READY) == 2)
        assert await asyncio.to_thread(index.count, "acme") == 2
        for word, passage in (("flushed", "d-0"), ("unflushed", "d-1")):
            hits = await asyncio.to_thread(index.search_text, "acme", ["m"], word, 5)
            assert [hit.passage for hit in hits] == [passage]
        assert len(await asyncio.to_thread(index.search_dense, "acme", ["m"], vector(1.0), 5)) == 2
        index.close()


async def test_a_call_to_a_dead_index_is_unavailable_and_a_wipe_makes_it_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoryd.store.index.CALL_SECONDS", 0.5)
    server = MilvusServer(tmp_path)
    await server.start()
    index = MilvusIndex(server.uri, 8, "fingerprint")
    await asyncio.to_thread(index.upsert, "acme", [index_row("d-0")])
    with pytest.raises(Unavailable):
        server.wipe()
    await server.stop()
    with pytest.raises(Unavailable):
        await asyncio.to_thread(index.search_text, "acme", ["m"], "text", 5)
    monkeypatch.undo()
    server.wipe()
    await server.start()
    assert await asyncio.to_thread(index.count, "acme") == 0
    index.close()
    await server.stop()


async def test_a_wipe_whose_rest_cannot_be_removed_is_made_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is empty from then on, and would stay so."""

    def refuses(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("the disk is read-only")

    server = MilvusServer(tmp_path)
    (tmp_path / "milvus").mkdir()
    monkeypatch.setattr("memoryd.store.embedded.shutil.rmtree", refuses)
    with pytest.raises(OSError, match="read-only"):
        server.wipe()
    assert not (tmp_path / "milvus").exists()
    assert server.wiped.is_set()
    await server.stop()


async def test_a_deep_data_directory_still_gets_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    server = ValkeyServer(deep, 16 << 20)
    await server.start()
    socket = Path(server.url.removeprefix("unix://"))
    assert len(bytes(socket)) < 104
    assert os.stat(socket).st_mode & 0o077 == 0
    await server.stop()
    assert not socket.parent.exists()


async def test_a_child_that_ends_while_starting_names_its_log(tmp_path: Path) -> None:
    broken = child(tmp_path, sys.executable, "-c", "print('why'); raise SystemExit(3)", ready=_never)
    with pytest.raises(Unavailable, match=r"exit code 3.*child\.log"):
        await broken.start()
    assert "why" in broken.spec.log_file.read_text()
    slow = child(tmp_path, ready=_never, start_timeout=0.2)
    with pytest.raises(Unavailable, match="not ready within"):
        await slow.start()
    assert slow.pid is None


async def test_a_child_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    async with supervised(child(tmp_path, str(tmp_path / "none"), ready=_never)) as watch:
        await watch.until(lambda: watch.states.count(ChildState.DOWN) == 3)
        assert ChildState.READY not in watch.states


async def test_a_child_whose_files_are_bad_is_tried_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be half-written, and whole the next time."""
    broken = child(tmp_path)
    errors: list[Exception] = [SettingsError("half-written"), DataLoss("half-written"), Unavailable("half-written")]
    start = broken.start

    async def bad_at_first() -> None:
        if errors:
            raise errors.pop()
        await start()

    monkeypatch.setattr(broken, "start", bad_at_first)
    async with supervised(broken) as watch:
        await watch.until(lambda: ChildState.READY in watch.states)
        assert [why for why in watch.whys if why] == ["half-written"] * 3


async def test_a_child_that_hangs_is_replaced(tmp_path: Path) -> None:
    answers = [True]

    async def ready() -> bool:
        return answers[0]

    hanging = child(tmp_path, ready=ready)
    async with supervised(hanging) as watch:
        await watch.until(lambda: ChildState.READY in watch.states)
        first = hanging.pid
        answers[0] = False
        await watch.until(lambda: ChildState.DOWN in watch.states)
        answers[0] = True
        await watch.until(lambda: watch.states.count(ChildState.READY) == 2)
        assert hanging.pid != first
        assert any("did not answer" in why for why in watch.whys)


async def test_one_that_works_and_does_not_answer_is_given_longer(tmp_path: Path) -> None:
    """A worker that shares its cores with others answered for half a minute to nothing, and learned all the while."""
    spins = (sys.executable, "-c", "while True: pass")
    asked = 0

    async def answers_late() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3 or asked > 12  # it starts with two

    patient = Backoff(first=0.01, most=0.02, probe_every=0.2, probe_failures=2, busy_failures=20)
    process = child(tmp_path, *spins, ready=answers_late)
    async with supervised(process, patient) as watch:
        await watch.until(lambda: ChildState.READY in watch.states)
        pid = process.pid
        async with asyncio.timeout(60):
            while asked < 15:  # noqa: ASYNC110  # of probes, which nobody announces
                await asyncio.sleep(0.01)
        assert (process.pid, ChildState.DOWN in watch.states) == (pid, False)


async def test_one_that_works_and_never_answers_hangs_too(tmp_path: Path) -> None:
    started = False

    async def once() -> bool:
        nonlocal started
        was, started = started, True
        return not was

    spins = (sys.executable, "-c", "while True: pass")
    patient = Backoff(first=0.01, most=0.02, probe_every=0.05, probe_failures=2, busy_failures=6)
    async with supervised(child(tmp_path, *spins, ready=once, start_timeout=5.0), patient) as watch:
        await watch.until(lambda: ChildState.DOWN in watch.states)
        assert "did not answer" in next(filter(None, watch.whys))


async def test_a_child_that_ignores_the_signal_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); signal.pause()"
    )
    log = tmp_path / "logs" / "child.log"

    async def started() -> bool:
        return log.read_text().strip() != ""

    stubborn = child(tmp_path, sys.executable, "-c", code, ready=started, stop_timeout=0.2)
    await stubborn.start()
    pid, grandchild = stubborn.pid, int(log.read_text())
    assert pid is not None
    await stubborn.stop()
    assert gone(pid)
    assert gone(grandchild)
    assert not stubborn.spec.pid_file.exists()


async def test_what_an_earlier_daemon_left_is_ended(tmp_path: Path) -> None:
    leftover = await asyncio.create_subprocess_exec(*_SLEEP)
    start = psutil.Process(leftover.pid).create_time()
    new = child(tmp_path)
    new.spec.pid_file.write_text(json.dumps({"pid": leftover.pid, "start": start - 3600}))
    await new.start()  # that pid is somebody else's by now
    assert leftover.returncode is None
    await new.stop()
    new.spec.pid_file.write_text(json.dumps({"pid": leftover.pid, "start": start}))
    await new.start()
    # psutil may have reaped it before asyncio could: then all that asyncio says is 255, for "gone, I know not how"
    assert await asyncio.wait_for(leftover.wait(), 20) in (-signal.SIGTERM, 255)
    await new.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next daemon ends them, by their pid files")
def test_a_killed_daemon_takes_its_children_along(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from memoryd.store.embedded import MilvusServer, ValkeyServer

async def main():
    children = [ValkeyServer(Path(sys.argv[1]), 16 << 20), MilvusServer(Path(sys.argv[1]))]
    for child in children:
        await child.start()
    print(*(child.pid for child in children), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        daemon.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
