"""The demo's questions stand in its book, and the README tells every setting."""

import re
from pathlib import Path

import pytest

from memoryd import demo
from memoryd.config import Settings

ROOT = Path(__file__).parents[2]


def test_the_book_is_whole_and_nobody_elses() -> None:
    text = demo.BOOK.read_text()
    assert len(text.split()) > 30_000
    assert not re.search(r"gutenberg|licen[cs]e|https?:", text, re.IGNORECASE)


@pytest.mark.parametrize("question", [*demo.QUESTIONS, demo.COMPRESSED], ids=lambda q: q.text)
def test_what_is_expected_stands_in_the_book(question: demo.Question) -> None:
    assert re.search(question.expected, demo.BOOK.read_text())


def test_the_book_does_not_answer_the_last_question() -> None:
    assert "Nemo" not in demo.BOOK.read_text()


def test_a_book_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--target", "127.0.0.1:1", "--book", "/no/such/book"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_book_is_read_before_a_daemon_is_started_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(demo, "running_daemon", lambda *given: started.append(given))
    assert demo.main(["--book", "/no/such/book"]) == 1
    assert started == []


def test_the_readme_has_every_setting() -> None:
    shown = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown == set(Settings.model_fields)
