"""What the fault tests share: a base model so small that killing what runs it is cheap, and a daemon to break."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from memoryd_client import Client, Memory

from tests.daemon import DaemonProcess
from tests.fault.waiting import PATIENT
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    """A daemon for the tests of one module to break: one job at a time, and two tries for each."""
    flags = ("--model", str(tiny_model), "--job-slots", "1", "--job-attempts", "2")
    with DaemonProcess(tmp_path_factory.mktemp("fragile"), *flags) as running:
        yield running


@pytest.fixture
def patient(fragile: DaemonProcess) -> Iterator[Client]:
    fragile.wait_ready()
    with Client(fragile.target, timeout=None, retry=PATIENT) as client:
        yield client


@pytest.fixture
def notes(patient: Client) -> Memory:
    """A fresh memory of the fragile daemon."""
    return patient.memory(f"notes-{uuid.uuid4().hex[:12]}", create=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root can mount a small file system: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)
