"""Every store behind its protocol. A further implementation joins the suite by one more parameter here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryd.store.base import Blobs, Cache, Index, Ledger
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.cache import ValkeyCache
from memoryd.store.embedded import MilvusServer, ValkeyServer
from memoryd.store.index import MilvusIndex
from memoryd.store.ledger import SqlLedger
from tests.servers import new_database

DIM = 8


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return new_database(request.getfixturevalue("postgresql"))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = SqlLedger(ledger_url)
    for tenant in ("acme", "other"):
        made.create_tenant(tenant, tenant.title())
    yield made
    made.close()


@pytest.fixture(params=["local", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "s3":
        return FsspecBlobs(f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}")
    return FsspecBlobs(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "blobs"))


@pytest.fixture(params=["milvus-lite"])
def index(request: pytest.FixtureRequest, milvus: MilvusServer) -> Iterator[Index]:
    made = MilvusIndex(milvus.uri, DIM, uuid.uuid4().hex)
    yield made
    made.drop()
    made.close()


@pytest.fixture(params=["valkey"])
def cache(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Cache]:
    made = ValkeyCache(valkey.url, 64 << 20)
    yield made
    made.delete_prefix("acme", "")
    made.delete_prefix("other", "")
    made.close()
