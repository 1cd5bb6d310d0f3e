"""The first screen shows where everything lies, and no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoryd import config, screen
from memoryd.worker.client import CompressorInfo, WorkerInfo

INFO = WorkerInfo(
    device="cpu",
    dtype="float32",
    model_path=Path("/models/m"),
    base_fingerprint="f" * 64,
    d_model=64,
    max_positions=4096,
    compressor=CompressorInfo("pooled", 4, "c" * 64, gate_passed=False, chunk_tokens=512),
    encoder_fingerprint="e" * 64,
    encoder_dim=384,
    reader="",
    compress_tokens=512,
)


def shown(capsys: pytest.CaptureFixture[str], **flags: str) -> str:
    settings = config.load(environment={}, flags={"data_dir": "/somewhere"} | flags)
    screen.show_ready(settings, INFO, 1.25)
    return capsys.readouterr().out


def test_it_says_where_things_are_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    for part in (
        "127.0.0.1:7437",
        "/somewhere",
        "smollm2-135m-instruct",
        "pooled 4x",
        "has not passed its quality gate: HYBRID",
        "memoryd demo",
    ):
        assert part in text
    assert len(text.splitlines()) < 25


@pytest.mark.parametrize(
    "flags", [{"auth": "keys"}, {"auth": "keys", "listen": "0.0.0.0:7437"}, {"tls_cert": "c.pem", "tls_key": "k.pem"}]
)
def test_the_demo_is_not_offered_where_it_would_be_refused(capsys: pytest.CaptureFixture[str], flags: dict[str, str]) -> None:
    text = shown(capsys, **flags)
    assert "memoryd demo" not in text
    assert "Ctrl-C" in text


def test_passwords_of_servers_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(
        capsys,
        redis_url="redis://user:hunter2@cache:6379/0",
        database_url="postgresql+psycopg://memoryd:hunter2@db/memoryd",
        milvus_uri="http://milvus:19530",
        milvus_token="root:hunter2",
    )
    assert "hunter2" not in text
    for host in ("cache:6379", "@db/memoryd", "milvus:19530"):
        assert host in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
        ("https://hunter2@milvus:19530", "https://***@milvus:19530"),  # a token in place of a name
        ("postgresql+psycopg://host/db?user=me&password=hunter2", "postgresql+psycopg://host/db?***"),
        ("redis://h:1/0?password=hunter2", "redis://h:1/0?***"),
        ("redis://h:1/0;password=hunter2", "redis://h:1/0;***"),
        ("s3://bucket/folder#hunter2", "s3://bucket/folder#***"),
        ("postgresql+psycopg://me:hun/ter2@host/db", "postgresql+psycopg://***@host/db"),
        ("redis://:hunter2@x@cache:6379/0", "redis://***@cache:6379/0"),
        ("redis://:hunter2?@cache:6379/0", "redis://***"),
        ("redis://:hun#ter2@cache:6379/0", "redis://***"),
        ("postgresql+psycopg://host/db?user=me@corp&password=hunter2", "postgresql+psycopg://***"),
        ("redis://me:hunter2@cache:6379/0?password=hunter2@x", "redis://***"),
        ("simplecache::s3://key:hunter2@bucket/folder", "simplecache::s3://***@bucket/folder"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("/srv/R&D/blobs@home", "/srv/R&D/blobs@home"),
        ("", ""),
    ],
)
def test_secrets_are_not_shown_wherever_they_stand_in_a_url(url: str, shown: str) -> None:
    assert screen.without_secrets(url) == shown
