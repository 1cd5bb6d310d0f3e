"""What is discussed in a conversation: who speaks in it, and what of an answer it supports."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.compress.conversation import render_conversation
from memoryd.core import Message
from memoryd.learn.discussion import discussion_request, speakers, supported


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ann: Hello.\nBob: Hello.\nAnn: Well?\n", ["Ann", "Bob"]),
        ("PhD A: So.\nHon. Mary Ng (Markham, Lib.): Thank you.\nHon. Mary Ng: Yes.", ["Hon. Mary Ng", "PhD A"]),
        ("User (7 May 2023 13:56): hi\nAssistant (7 May 2023 13:57): hello\nUser (7 May 2023): so", ["User", "Assistant"]),
        ("and so on\nZoë O\u2019Neil: yes\nProfessor D: no\nZoë O\u2019Neil: no?", ["Zoë O\u2019Neil", "Professor D"]),
        ("Note: it rains.\nWarning: it pours.", []),
        ("From: Ann\nTo: Bob\nSubject: rain\n\nDear Bob,\nit rains.\nAnn", []),
        ("Name: Ann\nAge: 7\nCity: Rome", []),
        ("It was late.\nAnn: yes\nIt rained.\nBob: no\nThey left.\nAnn: so\nNobody spoke.", []),
        ("Ann: I talk alone.\nAnn: All the time.", []),
        ("He said: no. She said: yes.", []),
        ("It opens at 9:30.\n12:45: lunch\nhttps://example.org: a page", []),
        ("Ann:\nBob:\n", []),
        ("", []),
    ],
)
def test_who_speaks(text: str, names: list[str]) -> None:
    assert speakers(text) == names


def test_a_conversation_as_it_is_stored_has_its_speakers() -> None:
    at = datetime(2023, 5, 7, 13, 56, tzinfo=UTC)
    messages = [Message("user", "Where?", "Caroline", at), Message("assistant", "Lisbon: by the sea.", "", None)]
    messages.append(Message("user", "Oh.", "Caroline", None))
    assert speakers("".join(render_conversation(messages))) == ["Caroline", "Assistant"]


@given(st.text("Aa: (\n)9", max_size=60))
def test_any_text_has_speakers_or_none(text: str) -> None:
    found = speakers(text)
    assert len(found) != 1
    assert all(f"{name}" in text for name in found)


def test_a_request_names_who_is_asked_for() -> None:
    assert "PhD A" in discussion_request("PhD A")
    assert discussion_request() != discussion_request("PhD A")


TALK = "Ann: The harbour wall leaks, we should mend it.\nBob: In spring, before the ferry season begins.\n"
TRUE, TOO = "Ann thought that the harbour wall leaks.", "Bob would mend it in spring, before the ferry season."
FALSE = "The mayor promised nine million euros."


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (f"{TRUE} {TOO}", f"{TRUE} {TOO}"),
        (f"{TRUE} {FALSE} {TOO}", f"{TRUE} {TOO}"),
        (f"{TRUE} {TOO} {TRUE} {TRUE}", f"{TRUE} {TOO}"),  # it goes round in circles
        (f"{TRUE} {TOO} Ann thought that the harb", f"{TRUE} {TOO}"),  # cut off
        (FALSE, ""),
        ("The wall leaks.", ""),  # too short to be a discussion
        ("It is so. They would not have it. It was for them to do so.", ""),  # of nothing
        ("", ""),
    ],
)
def test_what_a_conversation_supports(answer: str, kept: str) -> None:
    assert supported(answer, TALK) == kept


@given(st.lists(st.sampled_from([TRUE, TOO, FALSE, "So.", "Yes"])))
def test_what_is_supported_is_supported_again(sentences: list[str]) -> None:
    once = supported(" ".join(sentences), TALK)
    assert supported(once, TALK) == once
    assert FALSE not in once
