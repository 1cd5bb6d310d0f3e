"""What the public server refuses to be built with, and that it says what is really wrong."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import grpc
import pytest

from memoryd import config
from memoryd.api import server
from memoryd.api.interceptor import CallInterceptor
from memoryd.config import Settings
from memoryd.errors import SettingsError


def settings(**flags: str) -> Settings:
    return config.load(environment={}, flags={"listen": "127.0.0.1:0", "auth": "keys"} | flags)


def built(given: Settings) -> grpc.aio.Server:
    """Without any service, and nobody calls it."""
    return server.build(given, {}, CallInterceptor(None), server.Health())  # type: ignore[arg-type]


# --- the address ---


def test_an_address_that_is_free_is_well() -> None:
    server.probe(settings())


def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(server.AddressTaken, match="something else is listening there"):
            server.probe(settings(listen=f"127.0.0.1:{taken.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("no.such.host.invalid:7437", ".+"),  # the resolver's own words
        ("203.0.113.5:7437", "Cannot assign requested address"),
    ],
)
def test_an_address_that_is_not_this_machines_is_not_called_taken(listen: str, why: str) -> None:
    with pytest.raises(SettingsError, match=rf"can't be bound \({why}\): choose with --listen") as caught:
        server.probe(settings(listen=listen))
    assert not isinstance(caught.value, server.AddressTaken)
    assert caught.value.details == {"key": "listen"}


# --- TLS ---


def _made(folder: Path, name: str, *how: str) -> None:
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", f"/CN={name}", "-newkey", *how]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates NAME.pem with their keys NAME.key, and what is no such thing."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    try:
        _made(folder, "good", *curve)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    _made(folder, "other", *curve)
    _made(folder, "short", "rsa:1024")
    locked = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", str(folder / "good.key")]
    subprocess.run([*locked, "-out", str(folder / "locked.key")], check=True, capture_output=True)
    (folder / "cut.pem").write_bytes((folder / "good.pem").read_bytes()[:300])
    (folder / "junk.key").write_text("junk")
    return folder


def pem(files: Path, cert: str, key: str) -> Settings:
    return settings(tls_cert=str(files / cert), tls_key=str(files / key))


@pytest.mark.parametrize("name", ["good", "short"])
async def test_a_certificate_with_its_key_is_taken(files: Path, name: str) -> None:
    """`short` is too weak for this Python's library, but not for gRPC's."""
    given = pem(files, f"{name}.pem", f"{name}.key")
    assert server.read_tls(given) == ((files / f"{name}.key").read_bytes(), (files / f"{name}.pem").read_bytes())
    await built(given).stop(0)


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("nowhere.pem", "good.key", "tls_cert: .*can't be read .No such file"),
        ("good.pem", "nowhere.key", "tls_key: .*can't be read .No such file"),
        ("cut.pem", "good.key", "tls_cert: .*holds no certificate"),
        ("good.key", "good.key", "tls_cert: .*holds no certificate"),
        ("good.pem", "junk.key", "tls_key: .*holds no key"),
        ("good.pem", "locked.key", "tls_key: .*without a password"),
        ("good.pem", "other.key", "tls_key: .*is not the key of the first certificate"),
        ("good.pem", "short.key", "tls_key: .*is not the key of the first certificate"),
    ],
)
def test_files_that_are_of_no_use_are_refused_by_their_setting(files: Path, cert: str, key: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        server.probe(pem(files, cert, key))
    assert said.startswith(caught.value.details["key"])


# --- both, when the server is built ---


async def test_what_is_wrong_only_when_the_server_is_built_is_said_as_before(files: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = settings(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(server.AddressTaken):
            built(given)
    with pytest.raises(SettingsError, match="tls_key"):
        built(pem(files, "good.pem", "other.key"))
