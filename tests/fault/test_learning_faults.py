"""Faults while a memory learns: kill -9, a cancel, a full disk. What is served is a whole adapter, or none."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from memoryd_client import AdapterState, Client, Job, JobState, LearnReceipt, Memory, Stage

from tests.daemon import DaemonProcess
from tests.fault import storm
from tests.fault.test_disk_full import fill
from tests.fault.waiting import PATIENT, until

pytestmark = pytest.mark.timeout(900)

# A checkpoint after each step, and enough steps to be cut off between two.
LEARN = ("--learn-rate", "0.02", "--learn-epochs", "12", "--learn-batch", "2", "--learn-checkpoint-seconds", "0")
FLAGS = (*LEARN, "--job-lease-seconds", "2")
QUESTION = "What is word 1?"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("learning"), "--model", str(tiny_model), *FLAGS) as daemon:
        yield daemon


def taught(client: Client, name: str) -> Memory:
    memory = client.memory(name, create=True)
    written = memory.write("The word is seven. The river is green.", title="words")
    written.wait(Stage.COMPRESSED)
    memory.examples.add_many([(f"What is word {n}?", "seven", [written.document]) for n in range(40)])
    return memory


class OnDisk:
    """What a job of learning has on the daemon's disk."""

    def __init__(self, daemon: DaemonProcess, job: Job) -> None:
        self.run = daemon.data_dir / "learning" / "default" / job.name.rpartition("/")[2]
        self._blobs = daemon.data_dir / "blobs" / "default" / job.target.rpartition("/")[2]

    @property
    def checkpoint(self) -> int:
        """Steps that the last checkpoint holds; 0 where there is none."""
        for folder in ("checkpoint", "checkpoint.old"):
            with suppress(FileNotFoundError, NotADirectoryError):
                return int(json.loads((self.run / folder / "state.json").read_text())["progress"]["step"])
        return 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the metrics, those that are whole; none once the run is over."""
        try:
            *whole, _ = (self.run / "metrics.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        return [json.loads(row) for row in whole]

    @property
    def adapters(self) -> list[str]:
        """Ids of those whose bytes are in blobs."""
        return sorted(path.parent.name for path in self._blobs.glob("*/adapter"))

    def rows_to_the_end(self, client: Client, job: Job) -> list[dict[str, Any]]:
        """All that the run has written when it is over."""
        rows: list[dict[str, Any]] = []
        while not client.jobs.get(job).ended:
            rows = self.rows or rows  # it stays until judging is over
            time.sleep(0.02)
        return rows


def kill_worker(daemon: DaemonProcess) -> None:
    worker = daemon.child("memoryd.worker")
    worker.kill()
    worker.wait(30)


def kill_daemon(daemon: DaemonProcess) -> None:
    worker = daemon.child("memoryd.worker")
    daemon.kill()
    worker.wait(30)


def cancel(daemon: DaemonProcess) -> None:
    """And see that it has stopped."""
    with Client(daemon.target) as client:
        (job,) = [job for job in client.jobs.list() if job.kind == "learn" and not job.ended]
        client.jobs.cancel(job)
        assert client.jobs.get(job).state is JobState.CANCELLED


@pytest.mark.parametrize("stop", [kill_worker, kill_daemon, cancel])
def test_learning_goes_on_at_its_checkpoint(running: DaemonProcess, stop: Callable[[DaemonProcess], None]) -> None:
    name = stop.__name__
    with Client(running.target, retry=PATIENT) as client:
        job = taught(client, name).learn()
    disk = OnDisk(running, job)
    until(lambda: disk.checkpoint > 1, "there is no checkpoint", seconds=300)
    stop(running)
    begun_at, before = disk.checkpoint, disk.rows
    if stop is kill_daemon:
        running.start()
    with Client(running.target, retry=PATIENT, timeout=600) as client:
        if stop is cancel:
            client.jobs.retry(job)
        rows = disk.rows_to_the_end(client, job)
        receipt = client.jobs.get(job).receipt
        assert isinstance(receipt, LearnReceipt)
        assert 1 < begun_at < receipt.steps, "it was stopped on its way"
        assert rows[: len(before)] == before, "what was learned before stays"
        assert min(row["step"] for row in rows[len(before) :]) > begun_at, "and is not learned again"
        check_served(client.memory(name), receipt)
    assert not disk.run.exists()


def publishing(daemon: DaemonProcess, disk: OnDisk, job: Job) -> None:
    """Kills the daemon when all is done but the adapter's row: the ledger's file is locked as long."""
    until(lambda: bool(disk.adapters), "no adapter is made", seconds=300)
    with closing(sqlite3.connect(daemon.data_dir / "ledger.db", timeout=60, isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        with Client(daemon.target, timeout=300) as client:
            assert any(state.stage == "publish" for state in client.jobs.watch(job, timeout=300))
        kill_daemon(daemon)


def judging(daemon: DaemonProcess, disk: OnDisk, job: Job) -> None:
    until(lambda: bool(disk.adapters), "no adapter is made", seconds=300)
    kill_daemon(daemon)


@pytest.mark.parametrize("when", [judging, publishing])
def test_what_was_trained_and_not_published_is_judged_anew(
    running: DaemonProcess, when: Callable[[DaemonProcess, OnDisk, Job], None]
) -> None:
    name = when.__name__
    with Client(running.target, retry=PATIENT) as client:
        job = taught(client, name).learn()
    disk = OnDisk(running, job)
    when(running, disk, job)
    (unpublished,) = disk.adapters
    with storm.ledger_of(running.data_dir) as ledger:
        assert ledger.execute("SELECT count(*) FROM adapters WHERE memory = ?", (name,)).fetchone()[0] == 0
    trained = disk.rows
    running.start()
    with Client(running.target, retry=PATIENT, timeout=600) as client:
        rows = disk.rows_to_the_end(client, job)
        receipt = client.jobs.get(job).receipt
        assert isinstance(receipt, LearnReceipt)
        assert rows in ([], trained), "nothing is trained again"
        assert receipt.steps == len(trained)
        check_served(client.memory(name), receipt)
        assert disk.adapters == [receipt.adapter.rpartition("/")[2]]
        assert unpublished not in disk.adapters
    assert not disk.run.exists()


def check_served(memory: Memory, receipt: LearnReceipt) -> None:
    """The one adapter is whole, with all of its steps, and answers."""
    (adapter,) = list(memory.adapters.list())
    assert adapter.name == receipt.adapter
    steps = [point.step for point in memory.adapters.get(adapter).curve]
    assert steps == list(range(1, receipt.steps + 1)), "no step is missing, and none is there twice"
    memory.adapters.activate(adapter)
    answer = memory.answer(QUESTION, max_tokens=4)
    assert answer.usage is not None
    assert list(answer.usage.adapters) == [adapter.name]


def test_of_a_cancelled_run_nothing_is_left_once_what_it_has_seen_is_erased(running: DaemonProcess) -> None:
    with Client(running.target, retry=PATIENT, timeout=600) as client:
        memory = taught(client, "secretive")
        job = memory.learn()
        disk = OnDisk(running, job)
        until(lambda: disk.checkpoint > 1, "there is no checkpoint", seconds=300)
        cancel(running)
        (document,) = list(memory.documents.list())
        assert disk.checkpoint > 1
        client.jobs.wait(memory.documents.delete(document))
        assert not disk.run.exists()


def test_a_full_disk_during_publish(tmp_path: Path, tiny_model: Path, disk: Path) -> None:
    """The blob can't be written: the job waits for room, and until then the reader answers."""
    flags = ("--model", str(tiny_model), "--blob-url", str(disk / "blobs"), "--job-attempts", "2", *FLAGS)
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
