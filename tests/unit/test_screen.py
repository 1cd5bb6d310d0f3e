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
        "not trained yet",
        "memoryd demo",
    ):
        assert part in text
    assert len(text.splitlines()) < 25


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
