"""Output for people: on a terminal in colour, with progress on one line; elsewhere plain lines, now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time


class Terminal:
    """Standard output, whatever it is."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._colour = self._live and "NO_COLOR" not in os.environ
        self._next = 0.0

    def dim(self, text: str) -> str:
        return self._styled(text, "2")

    def bold(self, text: str) -> str:
        return self._styled(text, "1")

    def good(self, text: str) -> str:
        return self._styled(text, "32")

    def warn(self, text: str) -> str:
        return self._styled(text, "33")

    def line(self, text: str = "") -> None:
        print(("\r\x1b[K" if self._live else "") + text, flush=True)

    def piece(self, text: str) -> None:
        print(text, end="", flush=True)

    def progress(self, text: str) -> None:
        if self._live:
            print("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        elif time.monotonic() > self._next:
            self._next = time.monotonic() + 10
            print(text, flush=True)

    def _styled(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def printable(text: str) -> str:
    """A model may say anything: no line breaks, and nothing that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
