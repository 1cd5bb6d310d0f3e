"""Logs: structlog, JSON or console, with request id, tenant and method on every line of a call.

Never a document's text, a question, an answer or a key: log ids, counts and times.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog


class _Forgiving:
    """A stream on which writing never fails: a line that the disk has no room for is lost, the call that it tells of is not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure(level: str = "info", format: str = "auto") -> None:
    """Sets up the process's logging, to stderr. `format` is json, console, or auto (console on a terminal)."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    rendering: list[Any] = (
        # Never with the values of local variables, which are keys and texts: the usual formatter shows them.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Forgiving(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # Libraries' own logging: warnings only, and never their request dumps.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("pymilvus", "grpc", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def get(name: str) -> Any:
    """The logger of a part of memoryd."""
    return structlog.get_logger(part=name)
