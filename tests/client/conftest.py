"""Targets of the client's tests: a fake daemon, and the real one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest
from memoryd_client import Client, Memory, NotFound, Retry

from tests.client.fake_daemon import FakeDaemon

TARGETS = ["fake_target", "daemon_target"]

FAST = Retry(attempts=4, first_delay=0.01, max_delay=0.05)


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
def memory(client: Client, unique: str) -> Iterator[Memory]:
    """Deleted afterwards: the real daemon is everybody's, and would go on compressing what was written."""
    made = client.memory(unique, create=True)
    yield made
    with contextlib.suppress(NotFound):
        client.memories.delete(made.name)


@pytest.fixture
def unique() -> str:
    """A memory id that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def faulty(fake: FakeDaemon) -> Iterator[Client]:
    """A client of the fake that repeats fast."""
    with Client(fake.target, retry=FAST) as client:
        yield client
