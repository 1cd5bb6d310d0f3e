"""Fixtures of all tests: one real daemon for a whole session, with the real model, and a fresh memory for each test."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from memoryd_client import Client, Memory, NotFound

from tests.daemon import DaemonProcess

_KEPT = Path(__file__).resolve().parent.parent / ".run" / "data"


@pytest.fixture(scope="session")
def models() -> Path:
    """The base model, converted once for a clone, which takes a minute or more: data directories link to it."""
    from memoryd.engine.base_model import ensure_base_model

    ensure_base_model("smollm2-135m-instruct", _KEPT)
    return _KEPT / "models"


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[DaemonProcess]:
    """A daemon without keys, shared by all tests that only need one."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), models=models) as running:
        yield running


@pytest.fixture(scope="session")
def daemon_target(daemon: DaemonProcess) -> str:
    return daemon.target


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(daemon.target) as connected:
        yield connected


@pytest.fixture
def memory(client: Client) -> Iterator[Memory]:
    """A fresh memory, of no other test. Deleted afterwards, or the daemon would go on compressing what was written."""
    made = client.memory(f"test-{uuid.uuid4().hex[:12]}", create=True)
    yield made
    with contextlib.suppress(NotFound):
        client.memories.delete(made.name)
