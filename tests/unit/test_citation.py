"""A citation is taken off the stream, however it is cut into pieces, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.recall.citation import CitationSplitter, cite, split_citation

BLOCKS = 20


def streamed(pieces: list[str]) -> tuple[int | None, str]:
    splitter = CitationSplitter(BLOCKS)
    text = "".join([*(splitter.feed(piece) for piece in pieces), splitter.end()])
    return splitter.number, text


@pytest.mark.parametrize(
    ("text", "number", "rest"),
    [
        ("[2] Charleston", 2, "Charleston"),
        (" [12] 1908.", 12, "1908."),
        ("[3]", 3, ""),
        ("[", None, "["),
        ("[2", None, "[2"),
        ("I don't know from memory.", None, "I don't know from memory."),
        ("[sic] it says", None, "[sic] it says"),
        ("[1234] files", None, "[1234] files"),
        ("[21] is no block", None, "[21] is no block"),
        ("[0] neither", None, "[0] neither"),
        ("In [2] it says", None, "In [2] it says"),
        ("", None, ""),
    ],
)
def test_what_is_a_citation(text: str, number: int | None, rest: str) -> None:
    assert split_citation(text, BLOCKS) == (number, rest)
    assert streamed(list(text)) == (number, rest)
    assert streamed([text]) == (number, rest)


@given(st.integers(1, BLOCKS), st.text(), st.lists(st.integers(1, 5)))
def test_cite_and_split_are_inverse_in_any_pieces(number: int, answer: str, cuts: list[int]) -> None:
    text = cite(number, answer)
    pieces = []
    for cut in cuts:
        pieces.append(text[:cut])
        text = text[cut:]
    assert streamed([*pieces, text]) == (number, answer)


@pytest.mark.parametrize(
    ("text", "number", "rest"),
    [
        ("[", None, ""),
        (" [", None, ""),
        ("[2", None, ""),
        ("[2]", 2, ""),
        ("[21]", None, "[21]"),
        ("[si", None, "[si"),
        ("", None, ""),
    ],
)
def test_half_a_citation_is_no_text_where_the_stream_was_cut_off(text: str, number: int | None, rest: str) -> None:
    splitter = CitationSplitter(BLOCKS)
    assert "".join([*(splitter.feed(letter) for letter in text), splitter.end(cut_off=True)]) == rest
    assert splitter.number == number


def test_text_flows_as_soon_as_it_cannot_be_a_citation() -> None:
    splitter = CitationSplitter(BLOCKS)
    assert splitter.feed("I") == "I"
    assert splitter.feed(" don't") == " don't"
    other = CitationSplitter(BLOCKS)
    assert [other.feed(piece) for piece in ("[", "2", "]", " New", " France")] == ["", "", "", "New", " France"]
