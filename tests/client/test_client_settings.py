"""How a client finds its daemon, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import datetime
from pathlib import Path

import grpc
import pytest
from memoryd_client import AsyncClient, Client, InvalidArgument, Mode, Retry, Stage, Tls, Unavailable
from memoryd_client._settings import is_loopback

from tests.client.fake_daemon import FakeDaemon

KEY = "mk_verysecret"


def test_the_environment_fills_in_what_is_not_given(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORYD_TARGET", fake.target)
    monkeypatch.setenv("MEMORYD_API_KEY", KEY)
    with Client() as client:
        client.health()
    with Client(api_key="mk_other") as client:
        client.health()
    assert [c.metadata["authorization"] for c in fake.faults.calls] == [f"Bearer {KEY}", "Bearer mk_other"]
    assert all(c.metadata["x-request-id"] for c in fake.faults.calls)
    assert all(c.metadata["user-agent"].startswith("memoryd-client/") for c in fake.faults.calls)


def test_no_key_sends_none(fake: FakeDaemon) -> None:
    with Client(fake.target) as client:
        client.health()
    assert "authorization" not in fake.faults.calls[0].metadata


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_does_not_cross_a_network_in_the_clear(kind: type[Client] | type[AsyncClient]) -> None:
    with pytest.raises(InvalidArgument, match="tls=True"):
        kind("memory.example.com:7437", api_key=KEY)
    kind("memory.example.com:7437", api_key=KEY, insecure=True)
    kind("memory.example.com:7437", api_key=KEY, tls=True)
    kind("memory.example.com:7437")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_is_never_shown(kind: type[Client] | type[AsyncClient]) -> None:
    client = kind("localhost:7437", api_key=KEY)
    assert repr(client) == f"<{kind.__name__} of localhost:7437, a key>"
    assert KEY not in repr(client._settings)
    with pytest.raises(InvalidArgument) as caught:
        kind("localhost:7437", api_key=KEY + "\n")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("localhost:7437", True),
        ("localhost", True),
        ("127.0.0.1:7437", True),
        ("127.9.9.9:1", True),
        ("[::1]:7437", True),
        ("unix:/run/memoryd.sock", True),
        ("dns:///localhost:7437", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("10.0.0.1:7437", False),
        ("localhost.example.com:7437", False),
        ("dns:///memory.example.com:7437", False),
        ("xds:///localhost", False),
        ("[2001:db8::1]:7437", False),
    ],
)
def test_what_stays_on_this_machine(target: str, loopback: bool) -> None:
    assert is_loopback(target) is loopback


def test_enums_print_their_names_and_survive_a_newer_daemon() -> None:
    assert f"{Stage.SEARCHABLE} {Mode.TEXT!s:>5}" == "SEARCHABLE  TEXT"
    assert Stage(99) is Stage.UNSPECIFIED


def test_delays_grow_to_a_limit_and_are_jittered() -> None:
    retry = Retry(first_delay=0.1, max_delay=1.0)
    assert all(0.05 <= retry.delay(1) <= 0.1 for _ in range(100))
    assert all(0.5 <= retry.delay(n) <= 1.0 for n in (10, 100, 10_000))
    assert len({retry.delay(3) for _ in range(10)}) > 1


@pytest.mark.parametrize("metadata", [{"k": datetime(2026, 1, 1)}, {"k": None}, {"k": [1]}, {"k": 2**60}], ids=repr)
def test_metadata_that_has_no_meaning_is_refused(fake: FakeDaemon, metadata: dict[str, object]) -> None:
    with Client(fake.target) as client:
        for write in (client.memory("notes").write, client.memory("notes").upload):
            with pytest.raises(InvalidArgument, match=r"time zone|'k'"):
                write(__file__, metadata=metadata)  # type: ignore[arg-type]
    assert fake.faults.calls == []


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, chain = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=memoryd.test", "-addext", "subjectAltName=DNS:memoryd.test"]
    try:
        subprocess.run([*made, *names, "-keyout", key, "-out", chain], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return key, chain


def test_tls(certificate: tuple[Path, Path]) -> None:
    key, chain = certificate
    daemon = FakeDaemon(grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())]))
    try:
        tls = Tls(ca=chain, server_name="memoryd.test")
        with Client(daemon.target, api_key=KEY, tls=tls) as client:
            client.health(timeout=5)
        assert daemon.faults.calls[0].metadata["authorization"] == f"Bearer {KEY}"
        asyncio.run(_healthy(AsyncClient(daemon.target, api_key=KEY, tls=tls)))  # made where there is no loop yet
        assert len(daemon.faults.calls) == 2
        with Client(daemon.target, api_key=KEY, tls=True, retry=None) as client, pytest.raises(Unavailable):
            client.health(timeout=5)
    finally:
        daemon.stop()


async def _healthy(client: AsyncClient) -> None:
    async with client:
        await client.health(timeout=5)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("which", ["ca", "certificate", "private_key"])
def test_a_certificate_that_is_not_there_is_told_when_the_client_is_made(
    kind: type[Client] | type[AsyncClient], which: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        kind("localhost:7437", tls=Tls(**{which: tmp_path / "none.pem"}))  # type: ignore[arg-type]
