"""Conversations as text: one line per turn, so that chunks can be cut between turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from memoryd.core import Message


def render_turn(message: Message) -> str:
    """One line, without its newline: ``Caroline (7 May 2023 13:56): text``. Newlines in the content become spaces."""
    who = message.speaker or message.role.capitalize()
    when = f" ({render_time(message.time)})" if message.time else ""
    return f"{who}{when}: {' '.join(message.content.split())}"


def render_conversation(messages: Iterable[Message]) -> Iterator[str]:
    """The conversation's text in pieces, one line for each turn."""
    for message in messages:
        yield render_turn(message) + "\n"


def render_time(time: datetime) -> str:
    """``7 May 2023 13:56``: as people write it, which is how questions name it."""
    return f"{time.day} {time:%B %Y %H:%M}"
