"""Targets of the client's tests: a fake daemon, and a real one where tests/conftest.py has a fixture `daemon_target`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from memoryd_client import Client, Memory, Retry

from tests.client.fake_daemon import FakeDaemon

TARGETS = [
    "fake_target",
    # pytest.param("daemon_target", marks=pytest.mark.daemon),
]

FAST = Retry(attempts=4, first_delay=0.01, max_delay=0.05)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "daemon: runs against a real daemon")


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    daemon = FakeDaemon()
    yield daemon
    daemon.stop()


@pytest.fixture
def fake_target(fake: FakeDaemon) -> str:
    return fake.target


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """host:port of a daemon without keys. Its memories are shared: tests make their own, with ids of their own."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as client:
        yield client


@pytest.fixture
def memory(client: Client, unique: str) -> Memory:
    return client.memory(unique, create=True)


@pytest.fixture
def unique() -> str:
    """A memory id that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def faulty(fake: FakeDaemon) -> Iterator[Client]:
    """A client of the fake that repeats fast."""
    with Client(fake.target, retry=FAST) as client:
        yield client
