"""Faults while a memory learns: kill -9 of worker and daemon, a full disk. What is served is a whole adapter, or none."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memoryd_client import AdapterState, Client, JobState, LearnReceipt, Memory, Stage

from tests.daemon import DaemonProcess
from tests.fault.test_disk_full import fill
from tests.fault.waiting import PATIENT, until

pytestmark = pytest.mark.timeout(900)

LEARN = ("--learn-rate", "0.02", "--learn-epochs", "60", "--learn-batch", "2", "--job-lease-seconds", "2")
QUESTION = "What is word 1?"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("learning"), "--model", str(tiny_model), *LEARN) as daemon:
        yield daemon


def taught(client: Client, name: str) -> Memory:
    memory = client.memory(name, create=True)
    written = memory.write("The word is seven. The river is green.", title="words")
    written.wait(Stage.COMPRESSED)
    memory.examples.add_many([(f"What is word {n}?", "seven", [written.document]) for n in range(40)])
    return memory


def kill_worker(daemon: DaemonProcess) -> None:
    daemon.child("memoryd.worker").send_signal(signal.SIGKILL)


def kill_daemon(daemon: DaemonProcess) -> None:
    daemon.kill()
    daemon.start()


@pytest.mark.parametrize(("stage", "kill"), [("learn", kill_worker), ("learn", kill_daemon), ("judge", kill_daemon)])
def test_learning_survives_kill_9(running: DaemonProcess, kill: Callable[[DaemonProcess], None], stage: str) -> None:
    name = f"{stage}-{kill.__name__}"
    with Client(running.target, retry=PATIENT) as client:
        memory = taught(client, name)
        job = memory.learn()
        until(lambda: client.jobs.get(job.name).stage == stage, f"the job is never at {stage}", seconds=300)
        kill(running)
    with Client(running.target, retry=PATIENT, timeout=600) as client:
        memory = client.memory(name)
        done = client.jobs.wait(job.name, timeout=600)
        assert isinstance(done.receipt, LearnReceipt)
        (adapter,) = list(memory.adapters.list())
        assert adapter.name == done.receipt.adapter
        steps = [point.step for point in memory.adapters.get(adapter).curve]
        assert steps == list(range(1, done.receipt.steps + 1)), "no step is missing, and none is there twice"
        memory.adapters.activate(adapter)
        answer = memory.answer(QUESTION, max_tokens=4)
        assert answer.usage is not None
        assert list(answer.usage.adapters) == [adapter.name]
    assert list((running.data_dir / "learning").glob("*/*")) == []


def test_a_full_disk_during_publish(tmp_path: Path, tiny_model: Path, disk: Path) -> None:
    """The blob can't be written: the job waits for room, and until then the reader answers."""
    flags = ("--model", str(tiny_model), "--blob-url", str(disk / "blobs"), "--job-attempts", "2", *LEARN)
    with (
        DaemonProcess(tmp_path / "data", *flags) as daemon,
        Client(daemon.target, timeout=None, retry=PATIENT) as client,
    ):
        memory = taught(client, "pupil")
        ballast = fill(disk, leave=4096)
        job = memory.learn()
        until(lambda: client.jobs.get(job.name).attempts > 2, "the disk is not full enough", seconds=600)
        assert client.jobs.get(job.name).state in (JobState.PENDING, JobState.RUNNING)
        assert list(memory.adapters.list()) == []
        answer = memory.answer(QUESTION, max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.adapters == {}
        ballast.unlink()
        done = client.jobs.wait(job.name, timeout=600)
        assert isinstance(done.receipt, LearnReceipt)
        (adapter,) = list(memory.adapters.list())
        assert adapter.state in (AdapterState.ACTIVE, AdapterState.KEPT)
        memory.adapters.activate(adapter)
        answer = memory.answer(QUESTION, max_tokens=4)
        assert answer.usage is not None
        assert list(answer.usage.adapters) == [adapter.name]
