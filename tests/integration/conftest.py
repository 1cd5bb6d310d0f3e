"""A second daemon beside the shared one: with keys, two tenants, low limits, and a tiny base model that answers at length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from memoryd_client import Client

from tests.daemon import DaemonProcess
from tests.integration.support import Api
from tests.tiny_models import make_tiny_model

MAX_ANSWERS = 3  # of which one tenant may have two
MAX_DOCUMENT_BYTES = 100 << 20


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: what it says means nothing, but it says it at once."""
    return make_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "llama")


@dataclass(frozen=True)
class Keyed:
    """The daemon with keys: the admin's, and one of each of two tenants."""

    daemon: DaemonProcess
    admin: str
    red: str
    blue: str


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Keyed]:
    limits = ("--max-answers", str(MAX_ANSWERS), "--max-document-bytes", str(MAX_DOCUMENT_BYTES), "--job-attempts", "2")
    flags = ("--auth", "keys", "--model", str(tiny_model), *limits)
    with DaemonProcess(tmp_path_factory.mktemp("keyed"), *flags) as daemon:
        admin = (daemon.data_dir / "admin.key").read_text().strip()
        with Client(daemon.target, api_key=admin) as client:
            secrets = []
            for tenant in ("red", "blue"):
                client.admin.tenants.create(tenant, display_name=tenant.title())
                secrets.append(client.admin.keys.create(tenant, display_name="tests").secret)
        yield Keyed(daemon, admin, *secrets)


@pytest.fixture
def red(keyed: Keyed) -> Iterator[Client]:
    """A client of tenant red."""
    with Client(keyed.daemon.target, api_key=keyed.red) as client:
        yield client


@pytest.fixture
def blue(keyed: Keyed) -> Iterator[Client]:
    """A client of tenant blue."""
    with Client(keyed.daemon.target, api_key=keyed.blue) as client:
        yield client


@pytest.fixture
def api(daemon: DaemonProcess) -> Iterator[Api]:
    """The shared daemon's API without the client."""
    with Api(daemon.target) as connected:
        yield connected
