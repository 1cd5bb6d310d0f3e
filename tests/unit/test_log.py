"""Logs: lines that a program can read, no louder than asked, and libraries kept quiet."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from memoryd import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The configuration is the process's: other tests get theirs back."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def configured(capsys: pytest.CaptureFixture[str], level: str = "info", format: str = "json") -> None:
    log.configure(level, format)
    structlog.configure(cache_logger_on_first_use=False, logger_factory=structlog.PrintLoggerFactory(__import__("sys").stderr))


def test_a_line_is_json_with_part_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configured(capsys)
    structlog.contextvars.bind_contextvars(request_id="r1", tenant="red", method="/m")
    log.get("api").info("call", ms=1.5)
    line = json.loads(capsys.readouterr().err)
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "event": "call",
        "level": "info",
        "ms": 1.5,
        "part": "api",
        "request_id": "r1",
        "tenant": "red",
        "method": "/m",
    }


def test_nothing_below_the_level_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    configured(capsys, level="warning")
    log.get("api").info("quiet")
    log.get("api").warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_auto_is_json_where_no_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    configured(capsys, format="auto")
    log.get("api").info("call")
    assert json.loads(capsys.readouterr().err)["event"] == "call"


def test_the_libraries_that_dump_requests_only_speak_of_errors() -> None:
    log.configure()
    for noisy in ("pymilvus", "grpc", "asyncio"):
        assert logging.getLogger(noisy).level >= logging.ERROR


@pytest.mark.parametrize("format", ["console", "json"])
def test_an_exception_is_told_without_the_values_around_it(capsys: pytest.CaptureFixture[str], format: str) -> None:
    configured(capsys, format=format)
    key = "Bearer mk_" + "x" * 20
    try:
        raise ValueError(len(key))
    except ValueError:
        log.get("api").exception("call failed")
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert "mk_x" not in said


class Full(io.StringIO):
    """A log on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_the_line_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Full())
    log.configure("info", "json")
    structlog.configure(cache_logger_on_first_use=False)
    log.get("api").info("call")
