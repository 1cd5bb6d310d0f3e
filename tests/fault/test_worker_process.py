"""The worker as a process: it starts, says what it is, drains, dies with its parent, and its death is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memoryd.engine.request import Generation, TokenIds
from memoryd.errors import Unavailable, WorkerLost
from memoryd.worker.client import WorkerClient, WorkerInfo, identity
from tests.tiny_models import make_tiny_model

ANSWER = Generation([TokenIds([5, 6, 7])], 4000, temperature=5.0, seed=3)  # hot, so that it goes on


@dataclass
class Running:
    process: asyncio.subprocess.Process
    socket: Path
    client: WorkerClient
    info: WorkerInfo


def command(socket: Path, model: Path, *more: str) -> list[str]:
    arguments = ["--socket", str(socket), "--data-dir", str(socket.parent), "--model", str(model), "--threads", "1", *more]
    return [sys.executable, "-m", "memoryd.worker", *arguments]


async def ready(client: WorkerClient) -> WorkerInfo:
    async with asyncio.timeout(240):
        while True:
            try:
                return await client.describe()
            except Unavailable:
                await asyncio.sleep(0.1)


async def answers(client: WorkerClient) -> bool:
    with contextlib.suppress(Unavailable):
        await client.describe()
        return True
    return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
async def worker(tmp_path: Path, model: Path) -> AsyncIterator[Running]:
    socket = tmp_path / "w.sock"
    socket.write_text("")  # as a killed predecessor leaves it
    process = await asyncio.create_subprocess_exec(*command(socket, model, "--parent", str(os.getpid())))
    try:
        async with WorkerClient(socket) as client:
            yield Running(process, socket, client, await ready(client))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_it_says_what_it_is_and_works(worker: Running, model: Path) -> None:
    info = worker.info
    assert (info.device, info.dtype, info.model_path, info.d_model, info.max_positions) == ("cpu", "float32", model, 64, 4096)
    assert (info.compressor.name, info.compressor.ratio, info.compressor.gate_passed) == ("pooled", 4, False)
    assert (info.encoder_dim, info.reader) == (384, "")
    vectors = await worker.client.embed(["a river", "a mountain"], urgent=True)
    assert vectors.shape == (2, 384)
    assert abs((vectors**2).sum(1) - 1).max() < 1e-5
    made = await worker.client.compress([[5] * 10], info.compressor.fingerprint)
    assert (made[0].k, made[0].d_model) == (3, 64)
    events = [event async for event in worker.client.generate(Generation([TokenIds([5, 6])], 8))]
    assert events[-1].finish_reason in ("stop", "length")


async def test_killed_in_the_middle_of_an_answer_the_client_is_told_and_finds_the_next_worker(
    worker: Running, model: Path
) -> None:
    events = worker.client.generate(ANSWER)
    await anext(events)
    chunks = [[5] * 500] * 32
    waiting = asyncio.ensure_future(worker.client.compress(chunks, worker.info.compressor.fingerprint))
    for _ in range(3):  # by then the worker has both in hand: the first may have been on its way already
        await anext(events)
    worker.process.kill()
    with pytest.raises(WorkerLost, match="while it worked on this"):
        async for _ in events:
            pass
    with pytest.raises(WorkerLost):
        await waiting
    await worker.process.wait()
    for call in (worker.client.describe(), worker.client.embed(["a river"])):
        with pytest.raises(Unavailable) as unreachable:
            await call
        assert unreachable.value.reason == "WORKER_UNAVAILABLE", "no worker was lost over these"
    process = await asyncio.create_subprocess_exec(*command(worker.socket, model))
    try:
        assert await ready(worker.client) == worker.info
    finally:
        process.kill()
        await process.wait()


async def test_sigterm_lets_an_answer_end_and_takes_no_new_one(worker: Running) -> None:
    events = worker.client.generate(Generation([TokenIds([5, 6, 7])], 60, temperature=5.0, seed=3))
    first = await anext(events)
    worker.process.send_signal(signal.SIGTERM)
    rest = [event async for event in events]
    assert (rest or [first])[-1].finish_reason in ("stop", "length")
    assert await asyncio.wait_for(worker.process.wait(), 30) == 0
    with pytest.raises(Unavailable):
        await worker.client.describe()


async def test_sigterm_is_no_loss_to_an_answer_that_does_not_end_in_time(tmp_path: Path, model: Path) -> None:
    socket = tmp_path / "w.sock"
    process = await asyncio.create_subprocess_exec(*command(socket, model, "--drain", "0"))
    try:
        async with WorkerClient(socket) as client:
            await ready(client)
            events = client.generate(ANSWER)
            await anext(events)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable) as ended:
                async for _ in events:
                    pass
            assert (type(ended.value), ended.value.reason) == (Unavailable, "WORKER_ENDING")
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("broken", ["absent", "no config", "no weights"])
async def test_a_model_that_cannot_be_loaded_ends_it_with_a_message(tmp_path: Path, broken: str) -> None:
    model = tmp_path / "model"
    if broken != "absent":
        make_tiny_model("llama", model)
        (model / ("config.json" if broken == "no config" else "model.safetensors")).unlink()
    ran = await asyncio.to_thread(subprocess.run, command(tmp_path / "s", model), capture_output=True, text=True, timeout=240)
    assert ran.returncode == 78
    assert str(model) in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_it_lets_nobody_use_other_models_than_the_expected(worker: Running, tmp_path: Path, model: Path) -> None:
    ran = await asyncio.to_thread(
        subprocess.run, command(tmp_path / "s", model, "--expect", "other"), capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 78
    assert "restart memoryd" in ran.stderr
    socket = tmp_path / "again.sock"
    process = await asyncio.create_subprocess_exec(*command(socket, model, "--expect", identity(worker.info)))
    try:
        async with WorkerClient(socket) as client:
            assert await ready(client) == worker.info
    finally:
        process.kill()
        await process.wait()


async def test_it_dies_with_its_parent(tmp_path: Path, model: Path) -> None:
    """Started by a shell in between, which is then killed."""
    socket = tmp_path / "w.sock"
    code = "import subprocess, sys, os; subprocess.Popen([*sys.argv[1:], '--parent', str(os.getpid())]).wait()"
    between = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *command(socket, model))
    async with WorkerClient(socket) as client:
        await ready(client)
        between.kill()
        await between.wait()
        async with asyncio.timeout(10):
            while await answers(client):  # noqa: ASYNC110 - polls from outside
                await asyncio.sleep(0.05)
