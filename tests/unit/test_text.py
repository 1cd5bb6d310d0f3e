"""Streaming text: with bytes as tokens, every way to cut a character is tried."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.engine.text import Detokenizer, StopFilter

TEXTS = st.text(alphabet="aé€🎉 b\n", max_size=30)


def as_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def as_words(ids: Sequence[int]) -> str:
    """As sentencepiece does: the first word loses its leading space."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


@given(TEXTS)
def test_never_half_a_character(text: str) -> None:
    detokenizer, out = Detokenizer(as_bytes), ""
    for byte in text.encode():
        out += detokenizer.push(byte)
        assert text.startswith(out)
    assert out + detokenizer.flush() == text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_give_what_decoding_all_of_them_gives(ids: list[int]) -> None:
    detokenizer = Detokenizer(as_bytes)
    out = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()
    assert out.rstrip("�") == as_bytes(ids).rstrip("�")


def test_a_character_cut_off_by_the_end_is_left_out() -> None:
    detokenizer = Detokenizer(as_bytes)
    assert "".join(detokenizer.push(b) for b in "a🎉".encode()[:-1]) + detokenizer.flush() == "a"


def test_leading_spaces_of_later_words_are_kept() -> None:
    detokenizer = Detokenizer(as_words)
    assert [detokenizer.push(i) for i in (7, 8, 9)] == ["w7", " w8", " w9"]


@pytest.mark.parametrize(
    ("pieces", "stops", "want"),
    [
        (["hello"], [], "hello"),
        (["hel", "lo wor", "ld"], ["lo w"], "hel"),
        (["a", "b", "a", "b", "c", "d"], ["abc"], "ab"),
        (["aa", "ab"], ["aab"], "a"),
        (["x\n", "\ny"], ["\n\n"], "x"),
        (["x\n", "y"], ["\n\n"], "x\ny"),
        (["x\n"], ["\n\n"], "x\n"),
        (["abc"], ["abc", "b"], "a"),
        (["stop"], ["", "stop"], ""),
        (["🎉", "!"], ["🎉!"], ""),
    ],
)
def test_stop(pieces: list[str], stops: list[str], want: str) -> None:
    stop = StopFilter(stops)
    out = "".join(stop.push(piece) for piece in pieces)
    assert out + stop.flush() == want
    assert stop.stopped == ("".join(pieces) != want)


@given(st.lists(st.text(alphabet="ab", max_size=4), max_size=12), st.lists(st.text(alphabet="ab", min_size=1, max_size=4)))
def test_how_the_text_is_cut_does_not_matter_and_no_partial_stop_leaks(pieces: list[str], stops: list[str]) -> None:
    text, stop = "".join(pieces), StopFilter(stops)
    ends = [(at + len(s), at) for s in stops if (at := text.find(s)) >= 0]
    want = text[: min(ends)[1]] if ends else text
    out = ""
    for piece in pieces:
        out += stop.push(piece)
        assert want.startswith(out)
    assert out + stop.flush() == want
    assert stop.push("more") == "" if ends else True
